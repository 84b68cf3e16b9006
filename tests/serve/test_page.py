# SPDX-License-Identifier: Apache-2.0
"""The page shows the last answered request to whom it may concern, and can do nothing else."""

import base64
import json
import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote

import numpy as np
import pytest

from vla.policy import Policy
from vla.serve import watch
from vla.serve.client import PolicyClient
from vla.serve.server import PolicyServer, ServeConfig

ROOT = Path(__file__).resolve().parents[2]
KEY = "correct+horse/=%"
EVIL = "<b>x</b>"


@pytest.fixture(scope="module")
def policy(tiny_checkpoint):
    return Policy.load(tiny_checkpoint)


def get(port, path, **headers):
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=headers)
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=20) as reply:
            return reply.status, reply.headers, reply.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


def observation(policy, seed=0):
    size = policy.image_size
    picture = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    return {"observation/front": picture, "observation/state": np.zeros(4, np.float32), "prompt": EVIL}


def guarded(headers):
    """Nothing from elsewhere is loaded, nothing is shown elsewhere, nothing inline is run."""
    rules = headers["Content-Security-Policy"]
    assert "default-src 'none'" in rules and "script-src 'self';" in rules and "unsafe" not in rules
    assert "frame-ancestors 'none'" in rules and "base-uri 'none'" in rules and "form-action 'none'" in rules
    assert headers["X-Content-Type-Options"] == "nosniff" and headers["Cache-Control"] == "no-store"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin" and headers["Referrer-Policy"] == "no-referrer"
    assert not [name for name in headers if name.lower().startswith("access-control")]


def test_the_page_shows_the_last_answered_request(policy):
    with PolicyServer(policy, ServeConfig(port=0, threads=1, deadline_s=30)).background() as port:
        for path, kind in (("/", "text/html"), ("/page.css", "text/css"), ("/page.js", "text/javascript")):
            status, headers, body = get(port, path)
            assert status == 200 and headers["Content-Type"].startswith(kind) and body
            guarded(headers)
        status, headers, body = get(port, "/state")
        assert (status, headers["Content-Type"]) == (200, "application/json; charset=utf-8")
        assert json.loads(body)["last"] is None
        guarded(headers)
        with PolicyClient(port=port) as client:
            asked = observation(policy)
            reply = client.infer(asked)
            with pytest.raises(RuntimeError, match="unknown key"):
                client.infer({**asked, "other": 1})
        state = json.loads(get(port, "/state?again")[2])
    last = state["last"]
    assert (state["requests"], state["answered"], state["errors"], state["number"]) == (2, 1, 1, 1)
    assert last["prompt"] == EVIL and len(state["latencies_ms"]) == 1 and state["p50_ms"] > last["network_ms"] > 0
    np.testing.assert_array_equal(np.array(last["actions"], np.float32), reply["actions"])
    np.testing.assert_allclose(last["confidence"], reply["confidence"], atol=1e-4)
    assert last["length"] == reply["length"] and last["frozen_steps"] == 0
    assert state["metadata"]["action_names"] == list(policy.action_names)
    (camera,) = last["cameras"]
    shown = np.frombuffer(base64.b64decode(camera["rgb"]), np.uint8).reshape(camera["height"], camera["width"], 3)
    np.testing.assert_array_equal(shown, asked["observation/front"])


def test_nobody_without_the_key_sees_a_camera(policy):
    with PolicyServer(policy, ServeConfig(port=0, threads=1, api_key=KEY)).background() as port:
        assert get(port, "/")[0] == 200 and KEY.encode() not in get(port, "/")[2]  # it says nothing by itself
        assert get(port, "/state")[0] == 401 and get(port, "/state", Authorization="Api-Key wrong")[0] == 401
        assert get(port, "/state", Authorization=f"Api-Key {KEY}")[0] == 200


def test_a_page_of_elsewhere_cannot_make_its_name_point_here(policy):
    with PolicyServer(policy, ServeConfig(port=0, threads=1)).background() as port:
        assert all(get(port, path, Host="evil.example")[0] == 403 for path in ("/", "/page.js", "/state"))
        assert get(port, "/state", Host=f"localhost:{port}")[0] == 200
    own = ("127.0.0.1", "127.0.0.1:80", "localhost", "LOCALHOST:9", "[::1]", "[::1]:8000")
    assert all(watch.is_own_host([host]) for host in own)
    foreign = ("", "evil.example:80", "127.0.0.1.evil.example", "localhost.evil.example", "10.0.0.1", "[", "a:b:c")
    assert not any(watch.is_own_host([host]) for host in foreign)
    assert not watch.is_own_host([]) and not watch.is_own_host(["localhost", "localhost"])


def test_the_page_can_be_left_out(policy):
    with PolicyServer(policy, ServeConfig(port=0, threads=1, page=False)).background() as port:
        assert all(get(port, path)[0] == 404 for path in ("/", "/page.js", "/state"))
        with PolicyClient(port=port) as client:
            assert client.infer(observation(policy))["actions"].shape[1] == 4  # a robot asks at the same path


def test_text_from_outside_is_never_taken_for_markup():
    script = (Path(watch.__file__).parent / "page" / "page.js").read_text()
    for danger in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "WebSocket"):
        assert danger not in script
    assert script.count("fetch(") == 1
    page = (Path(watch.__file__).parent / "page" / "index.html").read_text()
    assert "//" not in page.replace("<!doctype", "") and "onclick" not in page


def test_large_pictures_are_thinned_out():
    image = np.arange(480 * 640 * 3).reshape(480, 640, 3).astype(np.uint8)
    found = json.loads(watch.picture('a "wide" one', image))
    assert (found["name"], found["width"], found["height"]) == ('a "wide" one', 214, 160)
    assert base64.b64decode(found["rgb"]) == image[::3, ::3].tobytes()


def test_what_is_no_number_is_shown_as_unsure():
    asked = SimpleNamespace(observation=SimpleNamespace(instruction="go", state=np.zeros(1, np.float32), images={}))
    reply = {"actions": np.zeros((2, 1), np.float32), "confidence": np.array([[np.nan], [0.5]], np.float32)}
    reply |= {"length": 2, "rtc/frozen_steps": 0, "policy_timing": {"infer_ms": 1.0}}
    seen = watch.Watch()
    seen.saw(1, asked, reply, 3.0)
    state = json.loads(seen.state({}, {}).body, parse_constant=pytest.fail)
    assert state["last"]["confidence"] == [[0], [0.5]] and state["last"]["cameras"] == []
    assert state["latencies_ms"] == [3.0]


def test_a_picture_is_encoded_once_for_all_pages_and_anew_for_the_next_request(monkeypatch):
    said = iter(('"first"', '"second"'))
    monkeypatch.setattr(watch, "described", lambda asked, answer: next(said))
    seen = watch.Watch()
    for number, expected in ((1, "first"), (2, "second")):
        seen.saw(number, None, {}, 1.0)
        assert all(json.loads(seen.state({}, {}).body)["last"] == expected for _ in range(3))


@pytest.mark.slow
def test_a_real_browser_shows_it(policy, tmp_path):
    chromium = os.environ.get("VLA_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if not chromium:
        pytest.skip("no Chromium on the path, nor in VLA_CHROMIUM")
    command = [sys.executable, ROOT / "benchmarks" / "browser_check.py", "--chromium", chromium, "--out", tmp_path]
    with PolicyServer(policy, ServeConfig(port=0, threads=1, deadline_s=30, api_key=KEY)).background() as port:
        with PolicyClient(port=port, api_key=KEY) as client:
            client.infer(observation(policy))
        for key, wrong in ((quote(KEY, safe="+/="), 0), ("wrong", 1)):
            address = f"http://127.0.0.1:{port}/#key={key}"
            done = subprocess.run([*map(str, command), "--url", address], capture_output=True, text=True, timeout=120)
            assert done.returncode == wrong, done.stdout + done.stderr
    names = {f"{screen}-{scheme}.png" for screen in ("wide", "phone") for scheme in ("light", "dark")}
    assert {picture.name for picture in tmp_path.glob("*.png")} == names


def test_a_plan_is_told_and_shown(unified_checkpoint):
    policy = Policy.load(unified_checkpoint, decoding="plan")
    with PolicyServer(policy, ServeConfig(port=0, threads=1, deadline_s=60)).background() as port:
        with PolicyClient(port=port) as client:
            reply = client.infer({**observation(policy), "prompt": "reach the red block"})
        last = json.loads(get(port, "/state")[2])["last"]
    assert isinstance(reply["plan"], str) and last["plan"] == reply["plan"]
