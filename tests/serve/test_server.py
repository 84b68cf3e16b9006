# SPDX-License-Identifier: Apache-2.0
"""A real server, asked over a real socket."""

import base64
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from vla.policy import Chunk, Observation, Policy
from vla.serve.codec import MAX_BYTES, pack, unpack
from vla.serve.server import PolicyServer, ServeConfig, key_of, tls_of

KEY = "correct-horse"


@pytest.fixture(scope="module")
def policy(tiny_checkpoint):
    return Policy.load(tiny_checkpoint)


@pytest.fixture(scope="module")
def port(policy):
    with PolicyServer(policy, ServeConfig(port=0, threads=1, deadline_s=30)).background() as port:
        yield port


class Small:
    """A policy without cameras that waits for `go` before it decides on the seed, everywhere."""

    cameras, image_size, action_names, state_names, horizon, fps, n_action_steps = (), 8, ["x", "y"], ["x"], 4, 10.0, 2

    def __init__(self):
        self.go, self.broken, self.keys = threading.Event(), False, []
        self.go.set()

    def decide(self, observations, keys, committed=None):
        if committed is not None:
            raise ValueError("no tokens of time")
        self.go.wait(20)
        if self.broken:
            raise RuntimeError("secret at /secret/path")
        self.keys += keys
        ones = np.ones((1, 4, 2), np.float32)
        return Chunk(ones * keys[0][0], ones, np.array([4]))


def small(seed=0, **more):
    return {"observation/state": np.zeros(1), "prompt": "go", "seed": seed, **more}


class Client:
    def __init__(self, port, **settings):
        raw = socket.create_connection(("127.0.0.1", port))  # past a proxy that the environment may name
        self.ws = connect(f"ws://127.0.0.1:{port}", sock=raw, compression=None, max_size=None, **settings)
        self.metadata = unpack(self.ws.recv(timeout=20))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.ws.close()

    def send(self, message):
        self.ws.send(message if isinstance(message, bytes | str) else pack(message))

    def ask(self, message):
        """The reply: a dict, or the text of an error."""
        self.send(message)
        reply = self.ws.recv(timeout=30)
        return reply if isinstance(reply, str) else unpack(reply)


def page(port, path, **headers):
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=headers)
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def observation(seed=0):
    draw = np.random.default_rng(seed)
    image = draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    return {"observation/image": image, "observation/state": draw.random(4, np.float32), "prompt": "push the red block"}


def decided(policy, message, key, committed=None):
    seen = Observation({"front": message["observation/image"]}, message["observation/state"], message["prompt"])
    return policy.decide([seen], [key], None if committed is None else [committed])


def test_a_reply_is_what_the_policy_decides(policy, port):
    message = observation()
    with Client(port) as client:
        assert client.metadata["cameras"] == ["front"] and client.metadata["supports"] == ["rtc", "seed"]
        assert client.metadata["n_obs_steps"] == 1
        assert client.metadata["action_names"] == list(policy.action_names)
        reply = client.ask(message | {"seed": 3, "step": np.int64(4)})
        again = client.ask({**message, "observation/front": message["observation/image"]})
        assert again == "expected one of observation/front and observation/image, got both"
        reply2 = client.ask({"observation/front": message.pop("observation/image"), **message, "seed": 3, "step": 4})
    chunk = decided(policy, observation(), (3, 4))
    for got in (reply, reply2):
        np.testing.assert_array_equal(got["actions"], chunk.actions_BHA[0])
        np.testing.assert_array_equal(got["confidence"], chunk.confidence_BHA[0])
        assert got["length"] == chunk.length_B[0] and got["rtc/frozen_steps"] == 0
        assert all(len(x) == policy.horizon for x in got.values() if isinstance(x, np.ndarray))
    assert reply["actions"].dtype == np.float32 and "prev_total_ms" not in reply["server_timing"]
    assert reply2["server_timing"]["prev_total_ms"] > 0


def test_one_thread_prepares_and_thinks():
    """Two that compute have a pool of threads each, and are slower than one."""
    policy, where = Small(), []
    decide = policy.decide
    policy.decide = lambda *args: where.append(threading.current_thread()) or decide(*args)
    prepare = lambda: where.append(threading.current_thread())  # noqa: E731
    with PolicyServer(policy, ServeConfig(port=0), prepare=prepare).background() as port, Client(port) as client:
        client.ask({"observation/state": np.zeros(1, np.float32), "prompt": "go"})
    assert len(where) >= 3 and len(set(where)) == 1 and where[0] is not threading.main_thread()


@pytest.mark.parametrize(("tail", "delay", "frozen"), [(5, 3, 3), (2, 6, 2), (0, 4, 0), (9, 20, 8)])
def test_a_committed_prefix_comes_back_bit_for_bit(policy, port, tail, delay, frozen):
    previous = np.random.default_rng(1).uniform(-0.01, 0.01, (tail, 4)).astype(np.float32)
    with Client(port) as client:
        reply = client.ask(observation() | {"rtc/prev_actions": previous, "rtc/delay_steps": delay})
    assert reply["rtc/frozen_steps"] == frozen
    assert reply["actions"][:frozen].tobytes() == previous[:frozen].tobytes()
    chunk = decided(policy, observation(), (0, 0), previous[:frozen] if frozen else None)
    np.testing.assert_array_equal(reply["actions"], chunk.actions_BHA[0])


def test_a_history_is_read_as_it_was_sent():
    policy, seen = Small(), []
    policy.n_obs_steps, policy.cameras, decide = 3, ("front",), policy.decide
    policy.decide = lambda observations, *rest: seen.extend(observations) or decide(observations, *rest)
    images, states = np.arange(3 * 8 * 8 * 3, dtype=np.uint8).reshape(3, 8, 8, 3), np.arange(3.0)[:, None]
    executed = np.array([[np.nan, np.nan], [0.5, -0.5]], np.float32)
    asked = {"observation/image": images, "observation/state": states, "observation/executed": executed, "prompt": "go"}
    with PolicyServer(policy, ServeConfig(port=0)).background() as port, Client(port) as client:
        assert client.metadata["n_obs_steps"] == 3
        assert client.ask(asked)["length"] == 4
        np.testing.assert_array_equal(seen[-1].images["front"], images)
        np.testing.assert_array_equal(seen[-1].state, states)
        np.testing.assert_array_equal(seen[-1].executed, executed)
        shown = json.loads(page(port, "/state")[1])["last"]
        assert shown["state"] == [2.0] and shown["cameras"][0]["rgb"] == base64.b64encode(images[-1]).decode()
        del asked["observation/executed"]
        assert client.ask(asked)["length"] == 4 and seen[-1].executed is None
        for change, expected in (
            ({"observation/image": images[0]}, r"uint8 \(3, 8, 8, 3\), got uint8 \(8, 8, 3\)"),
            ({"observation/state": states[0]}, r"float64 \(3, 1\), got float64 \(1,\)"),
            ({"observation/executed": executed[:1]}, r"float64 \(2, 2\), got float32 \(1, 2\)"),
            ({"observation/executed": np.array([[np.nan, 1], [0, 0]])}, "finite, or a row of NaN"),
            ({"observation/executed": np.array([[0, 1], [np.inf, 0]])}, "finite, or a row of NaN"),
        ):
            with pytest.raises(AssertionError, match=expected):
                raise AssertionError(client.ask(asked | change))


WRONG = {
    "size": ({"observation/image": np.zeros((64, 64, 3), np.uint8)}, r"uint8 \(32, 32, 3\), got uint8 \(64, 64, 3\)"),
    "floats": ({"observation/image": np.zeros((32, 32, 3))}, "got float64"),
    "state": ({"observation/state": np.zeros(3, np.float32)}, r"float64 \(4,\), got float32 \(3,\)"),
    "nan": ({"observation/state": np.full(4, np.nan)}, "finite"),
    "prompt": ({"prompt": 3}, "prompt as text"),
    "no words": ({"prompt": ""}, "empty instruction"),
    "unknown": ({"observation/wrist": np.zeros(1)}, "unknown key 'observation/wrist': expected observation/front"),
    "seed": ({"seed": -1}, "seed as a whole number"),
    "bool": ({"step": True}, "step as a whole number"),
    "no tail": ({"rtc/delay_steps": 2}, "rtc/prev_actions"),
    "no delay": ({"rtc/prev_actions": np.zeros((2, 4), np.float32)}, "rtc/delay_steps"),
    "dims": ({"rtc/prev_actions": np.zeros((2, 3), np.float32), "rtc/delay_steps": 1}, r"float32 \(m, 4\)"),
}


def test_a_wrong_request_is_told_so_and_the_next_one_works(port):
    with Client(port) as client:
        for change, expected in WRONG.values():
            with pytest.raises(AssertionError, match=expected):
                raise AssertionError(client.ask(observation() | change))
        missing = observation()
        del missing["observation/state"]
        for bad in (missing, b"\x93\x01", "text", [1], b""):
            reply = client.ask(bad)
            assert reply.startswith("expected") and "\n" not in reply and "Traceback" not in reply
        assert client.ask(observation())["actions"].shape == (8, 4)


def test_too_large_a_frame_closes_only_its_connection(port):
    with Client(port) as good, Client(port) as bad:
        with pytest.raises(ConnectionClosed):
            bad.send(bytes(MAX_BYTES + 1))
            bad.ws.recv(timeout=20)
        assert bad.ws.close_code == 1009
        assert good.ask(observation())["length"] == 8
    assert 'vla_errors_total{kind="too_big"} 1' in page(port, "/metrics")[1]


def test_pages(port):
    assert page(port, "/healthz") == (200, "OK\n")
    assert page(port, "/readyz") == (200, "ready\n")
    with Client(port) as client:
        client.ask(observation())
        status, text = page(port, "/metrics")
    found = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert status == 200 and int(found["vla_clients"]) >= 1
    assert found['vla_request_seconds_bucket{le="+Inf"}'] == found["vla_request_seconds_count"] != "0"
    assert page(port, "/elsewhere")[0] == 426


def test_clients_at_once_get_their_own_answers(policy, port):
    def ask(seed):
        with Client(port) as client:
            return [client.ask(observation(seed) | {"seed": seed})["actions"] for _ in range(3)]

    with ThreadPoolExecutor(4) as pool:
        replies = list(pool.map(ask, range(4)))
    for seed, actions in enumerate(replies):
        expected = decided(policy, observation(seed), (seed, 0)).actions_BHA[0]
        for each in actions:
            np.testing.assert_array_equal(each, expected)


def test_without_the_key_nothing_is_said():
    with PolicyServer(Small(), ServeConfig(port=0, api_key=KEY)).background() as port:
        for headers in ({}, {"Authorization": "Api-Key wrong"}, {"Authorization": KEY}):
            with pytest.raises(InvalidStatus) as caught:
                Client(port, additional_headers=headers)
            assert caught.value.response.status_code == 401 and KEY.encode() not in caught.value.response.body
            assert page(port, "/metrics", **headers)[0] == 401
        right = {"Authorization": f"Api-Key {KEY}"}
        with Client(port, additional_headers=right) as client:
            assert client.ask(small(5))["actions"][0, 0] == 5
        assert page(port, "/healthz")[0] == 200 and page(port, "/metrics", **right)[0] == 200


def test_a_web_page_may_not_connect(port):
    with pytest.raises(InvalidStatus) as caught:
        Client(port, origin="http://elsewhere.example")
    assert caught.value.response.status_code == 403


def test_settings_that_open_a_robot_to_a_network_are_refused(monkeypatch):
    monkeypatch.delenv("VLA_API_KEY", raising=False)
    for host in ("0.0.0.0", "::", "", "192.0.2.1"):
        with pytest.raises(ValueError, match="expected an API key"):
            key_of(ServeConfig(host=host))
    for host in ("127.0.0.1", "::1", "localhost"):
        assert key_of(ServeConfig(host=host)) is None
    assert key_of(ServeConfig(host="0.0.0.0", insecure=True)) is None
    monkeypatch.setenv("VLA_API_KEY", KEY)
    assert key_of(ServeConfig(host="0.0.0.0")) == KEY and KEY not in repr(ServeConfig(api_key=KEY))
    monkeypatch.setenv("VLA_API_KEY", "")
    with pytest.raises(ValueError, match="expected an API key of printable"):
        key_of(ServeConfig())
    with pytest.raises(ValueError, match="together"):
        tls_of(ServeConfig(certificate="a.pem"))
    with pytest.raises(ValueError, match="PEM"):
        tls_of(ServeConfig(certificate=__file__, private_key=__file__))


def test_a_slow_policy_keeps_nobody_waiting_past_the_deadline():
    policy = Small()
    config = ServeConfig(port=0, deadline_s=0.4, queue=1)
    with (
        PolicyServer(policy, config).background() as port,
        Client(port) as one,
        Client(port) as two,
        Client(port) as three,
    ):
        assert one.metadata["supports"] == ["seed"]
        refused = one.ask(small(**{"rtc/prev_actions": np.zeros((1, 2), np.float32), "rtc/delay_steps": 1}))
        assert "cannot commit actions" in refused
        policy.keys.clear()
        policy.go.clear()
        one.send(small(1))
        time.sleep(0.1)
        two.send(small(2))
        time.sleep(0.1)
        assert "busy" in three.ask(small(3))
        assert "deadline of 0.4 s" in one.ws.recv(timeout=5)
        assert page(port, "/healthz")[0] == 200  # the event loop lives
        assert "deadline" in two.ws.recv(timeout=5)
        assert page(port, "/readyz")[0] == 503
        policy.go.set()
        time.sleep(0.2)  # for the worker to find that 2 was given up
        assert one.ask(small(4))["actions"][0, 0] == 4  # and not the late 1
        assert policy.keys == [(1, 0), (4, 0)]  # nobody thought about 2, which was given up before its turn
        assert page(port, "/readyz")[0] == 200


def test_a_policy_that_fails_says_nothing_to_the_client():
    policy = Small()
    with PolicyServer(policy, ServeConfig(port=0)).background() as port, Client(port) as client:
        policy.broken = True
        for _ in range(3):
            reply = client.ask(small())
            assert reply.startswith("the policy failed") and "secret" not in reply and "Traceback" not in reply
        assert page(port, "/readyz")[0] == 503
        policy.broken = False
        assert client.ask(small(7))["actions"][0, 0] == 7
        assert page(port, "/readyz")[0] == 200


def test_stopping_answers_what_was_asked():
    policy = Small()
    server = PolicyServer(policy, ServeConfig(port=0))
    with server.background() as port, Client(port) as busy, Client(port) as idle:
        policy.go.clear()
        busy.send(small(9))
        time.sleep(0.2)
        server.stop()
        with pytest.raises(ConnectionClosed):
            idle.ws.recv(timeout=5)
        assert idle.ws.close_code == 1001
        with pytest.raises(OSError):
            Client(port)
        policy.go.set()
        assert unpack(busy.ws.recv(timeout=5))["actions"][0, 0] == 9
        with pytest.raises(ConnectionClosed):
            busy.ws.recv(timeout=5)


def test_stopping_does_not_wait_for_a_policy_that_hangs():
    policy = Small()
    with PolicyServer(policy, ServeConfig(port=0, drain_s=0.2)).background() as port, Client(port) as client:
        policy.go.clear()
        client.send(small())
        time.sleep(0.2)
        began = time.monotonic()
    assert time.monotonic() - began < 3
    policy.go.set()


def test_what_keeps_a_server_from_listening_is_raised(port):
    with pytest.raises(OSError), PolicyServer(Small(), ServeConfig(port=port)).background():
        pass


def test_half_frames_and_clients_that_vanish_harm_nobody():
    draw = np.random.default_rng(0)
    upgrade = (
        b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    with PolicyServer(Small(), ServeConfig(port=0)).background() as port:
        for _ in range(100):
            with socket.create_connection(("127.0.0.1", port)) as raw:
                frame = upgrade + b"\x82\xff" + draw.bytes(draw.integers(1, 200))
                raw.sendall(frame[: draw.integers(1, len(frame))])
        with Client(port) as client:
            assert client.ask(small(2))["actions"][0, 0] == 2
            assert "vla_clients" in page(port, "/metrics")[1]


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes a certificate with openssl")
def test_tls(tmp_path):
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1"]
    about = [
        "-subj",
        "/CN=localhost",
        "-addext",
        "subjectAltName=DNS:localhost",
        "-keyout",
        str(key),
        "-out",
        str(chain),
    ]
    subprocess.run(made + about, check=True, capture_output=True)
    with PolicyServer(Small(), ServeConfig(port=0, certificate=chain, private_key=key)).background() as port:
        trusted = ssl.create_default_context(cafile=chain)
        with connect(f"wss://localhost:{port}", ssl=trusted, sock=socket.create_connection(("127.0.0.1", port))) as ws:
            assert unpack(ws.recv(timeout=5))["horizon"] == 4


def test_the_unmodified_client_of_openpi(port):
    client_of = pytest.importorskip("openpi_client.websocket_client_policy")
    broker_of = pytest.importorskip("openpi_client.action_chunk_broker")
    client = client_of.WebsocketClientPolicy("127.0.0.1", port)
    with pytest.raises(RuntimeError, match="unknown key"):
        client.infer(observation() | {"other": 1})
    whole = client.infer(observation())
    broker = broker_of.ActionChunkBroker(client, 3)
    steps = [broker.infer(observation()) for _ in range(3)]
    np.testing.assert_array_equal(np.stack([step["actions"] for step in steps]), whole["actions"][:3])


def test_the_command_says_where_and_goes_on_sigterm(tiny_checkpoint):
    env = {key: value for key, value in os.environ.items() if key != "VLA_API_KEY"}
    command = [sys.executable, "-m", "vla.cli", "serve", "--port", "0", "--threads", "1", "--device", "cpu"]
    command += ["--policy", str(tiny_checkpoint), "--num-inference-steps", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env) as process:
        line = process.stdout.readline()
        assert "last listens on ws://127.0.0.1:" in line, process.stderr.read()
        with Client(int(line.split(":")[2].split()[0])) as client:
            assert len(client.metadata["checkpoint_sha256"]) == 64
            process.send_signal(signal.SIGTERM)
            assert process.wait(15) == 0
        assert "Traceback" not in process.stderr.read()
