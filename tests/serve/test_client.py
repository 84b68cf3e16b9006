# SPDX-License-Identifier: Apache-2.0
"""The client against a real server, and against servers that misbehave."""

import base64
import contextlib
import hashlib
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from websockets.sync.server import serve

from vla.policy import Chunk
from vla.serve.client import PolicyClient, PolicyError, PolicyTimeout, PolicyUnavailable
from vla.serve.codec import pack, unpack
from vla.serve.server import PolicyServer, ServeConfig

METADATA = {"action_names": ["x"], "horizon": 2, "fps": 10.0}


class Small:
    """A policy without cameras that decides on the seed, everywhere."""

    cameras, image_size, action_names, state_names, horizon, fps, n_action_steps = (), 8, ["x"], ["x"], 4, 10.0, 2

    def decide(self, observations, keys, committed=None):
        actions = np.full((1, 4, 1), keys[0][0], np.float32)
        if committed is not None:
            actions[0, : len(committed[0])] = committed[0]
        return Chunk(actions, np.ones_like(actions), np.array([4]))


def asking(seed=0, **more):
    return {"observation/state": np.zeros(1, np.float32), "prompt": "go", "seed": seed, **more}


def answer(request, **more):
    return pack({"actions": np.full((2, 1), request["seed"], np.float32), **more})


@contextlib.contextmanager
def server_of(converse, port=0, **more):
    """A server that says METADATA and then calls `converse(connection, number of the connection)`."""
    count = iter(range(1000))

    def handle(connection):
        connection.send(pack(METADATA | more))
        converse(connection, next(count))

    with serve(handle, "127.0.0.1", port, compression=None) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.socket.getsockname()[1]


def echo(connection, _number):
    for message in connection:
        connection.send(answer(unpack(message)))


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


def test_it_speaks_with_the_server():
    with PolicyServer(Small(), ServeConfig(port=0)).background() as port, PolicyClient("127.0.0.1", port) as client:
        assert client.metadata["action_names"] == ["x"] and "rtc" in client.metadata["supports"]
        reply = client.infer(asking(5, **{"rtc/prev_actions": np.ones((3, 1), np.float32), "rtc/delay_steps": 2}))
        np.testing.assert_array_equal(reply["actions"][:, 0], [1, 1, 5, 5])
        assert reply["rtc/frozen_steps"] == 2 and reply["length"] == 4
        first = client._socket
        with pytest.raises(PolicyError, match="unknown key 'other'"):
            client.infer(asking(other=1))
        with pytest.raises(ValueError, match="to pack"):
            client.infer(asking(other=object()))
        assert client.infer(asking(6))["actions"][0, 0] == 6 and client._socket is first
    with pytest.raises(PolicyUnavailable, match="closed"):
        client.infer(asking())


def test_a_late_reply_is_never_taken_for_the_next_one():
    def converse(connection, number):
        for message in connection:
            time.sleep(0.7 if number == 0 else 0)
            connection.send(answer(unpack(message), connection=number))

    with server_of(converse) as port, PolicyClient("127.0.0.1", port, timeout_s=0.25) as client:
        assert client.metadata["horizon"] == 2
        began = time.monotonic()
        with pytest.raises(PolicyTimeout, match=r"no reply from ws://127\.0\.0\.1:\d+ in 0\.25 s"):
            client.infer(asking(1))
        assert time.monotonic() - began < 0.65
        for seed in (2, 3):
            reply = client.infer(asking(seed))
            assert reply["actions"][0, 0] == seed and reply["connection"] == 1


def test_ctrl_c_does_not_leave_a_reply_behind(monkeypatch):
    with server_of(echo) as port, PolicyClient("127.0.0.1", port) as client:
        client.infer(asking(1))

        def interrupted():
            raise KeyboardInterrupt

        monkeypatch.setattr(client._socket, "recv", interrupted)
        with pytest.raises(KeyboardInterrupt):
            client.infer(asking(2))
        assert client.infer(asking(3))["actions"][0, 0] == 3


def test_sending_to_a_server_that_does_not_read_times_out():
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def upgrade_and_sleep():
            connection, _ = listening.accept()
            head = connection.recv(65536).decode()
            key = next(line.split(": ")[1] for line in head.split("\r\n") if line.startswith("Sec-WebSocket-Key"))
            digest = hashlib.sha1((key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode()).digest()
            hello = pack(METADATA)
            connection.sendall(
                b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Accept: " + base64.b64encode(digest) + b"\r\n\r\n" + bytes([0x82, len(hello)]) + hello
            )
            done.wait(10)

        done = threading.Event()
        threading.Thread(target=upgrade_and_sleep, daemon=True).start()
        port = listening.getsockname()[1]
        with PolicyClient("127.0.0.1", port, timeout_s=0.2, connect_timeout_s=1) as client:
            assert client.metadata["horizon"] == 2
            began = time.monotonic()
            with pytest.raises(PolicyTimeout):
                client.infer(asking(image=np.zeros(32 << 20, np.uint8)))
            assert time.monotonic() - began < 1
        done.set()


def test_it_comes_back_when_the_server_does():
    port = free_port()
    client = PolicyClient("127.0.0.1", port, connect_timeout_s=0.3, first_pause_s=0.05)
    began = time.monotonic()
    with pytest.raises(PolicyUnavailable, match=r"within 0\.3 s, got: .*refused; is `vla serve` running"):
        client.infer(asking())
    assert 0.05 < time.monotonic() - began < 0.6
    client.connect_timeout_s = 5
    with client:
        for seed in (1, 2):
            with server_of(echo, port):
                assert client.infer(asking(seed))["actions"][0, 0] == seed
            # the connection is dead now, which shows when it is used
        stop = threading.Event()

        def come_back_later():
            time.sleep(0.2)
            with server_of(echo, port):
                stop.wait(10)

        threading.Thread(target=come_back_later).start()
        assert client.infer(asking(3))["actions"][0, 0] == 3
        stop.set()


def test_a_server_that_hangs_up_on_every_request_is_asked_twice():
    asked = []

    def converse(connection, number):
        for _ in connection:
            asked.append(number)
            return

    with server_of(converse) as port, PolicyClient("127.0.0.1", port) as client:
        assert client.metadata["horizon"] == 2
        with pytest.raises(PolicyUnavailable, match="hung up"):
            client.infer(asking())
    assert asked == [0, 1]


def test_a_robot_does_not_change_its_policy_in_mid_air():
    port = free_port()
    with PolicyClient("127.0.0.1", port) as client:
        with server_of(echo, port):
            client.infer(asking())
        with server_of(echo, port, horizon=3), pytest.raises(PolicyUnavailable, match="horizon 3 instead of 2"):
            client.infer(asking())


def test_the_key_is_shown_and_a_wrong_one_is_not_tried_again():
    with PolicyServer(Small(), ServeConfig(port=0, api_key="right")).background() as port:
        with PolicyClient("127.0.0.1", port, "right") as client:
            assert client.infer(asking(4))["actions"][0, 0] == 4
        began = time.monotonic()
        for key in (None, "wrong"):
            with pytest.raises(PolicyUnavailable, match=r"HTTP 401: .*Api-Key"):
                PolicyClient("127.0.0.1", port, key).infer(asking())
        assert time.monotonic() - began < 2
    for settings in ({"api_key": "a\r\nb"}, {"timeout_s": 0}, {"host": "http://name"}, {"host": ""}):
        with pytest.raises(ValueError, match="expected"):
            PolicyClient(**settings)


@pytest.mark.parametrize("reply", [b"\xc1", pack([1]), pack({"action": 1})])
def test_a_reply_that_is_none_drops_the_connection(reply):
    def converse(connection, number):
        for message in connection:
            connection.send(reply if number == 0 else answer(unpack(message)))

    with server_of(converse) as port, PolicyClient("127.0.0.1", port) as client:
        with pytest.raises(PolicyUnavailable, match="reply"):
            client.infer(asking())
        assert client.infer(asking(7))["actions"][0, 0] == 7


def test_close_wakes_a_thread_that_waits():
    with server_of(lambda connection, _: list(connection)) as port:
        client, caught = PolicyClient("127.0.0.1", port, timeout_s=20), []

        def wait():
            with pytest.raises(PolicyUnavailable) as error:
                client.infer(asking())
            caught.append(error.value)

        thread = threading.Thread(target=wait)
        thread.start()
        time.sleep(0.2)
        client.close()
        thread.join(3)
        assert caught and not isinstance(caught[0], PolicyTimeout)


def test_a_robot_needs_no_torch():
    code = (
        "import sys, vla.serve.client, vla.serve.executor; print(sorted({'torch', 'safetensors'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.render
def test_the_tabletop_is_driven_through_a_socket_in_simulated_time(tiny_checkpoint):
    from vla.bench.drive_tabletop import DriveConfig, client_of, delay_of, drive
    from vla.envs.registry import make_env
    from vla.eval.episodes import episode_list

    assert [delay_of(ms, 10) for ms in (0, 1, 100, 101, 300)] == [0, 1, 1, 2, 3]
    episodes = episode_list(["reach"], 2, 0)
    with client_of(DriveConfig(policy=str(tiny_checkpoint))) as client:
        env = make_env("tabletop", image_size=32)
        told, success = drive(client, env, episodes, 200, commit=True)
        again, same = drive(client, env, episodes, 200, commit=True)
        env.close()
    assert told == again and success == same and set(success) == {("reach", 0), ("reach", 1)}
    assert told.delay_steps == 2 and told.held == 2 * 2 and told.late == 0
