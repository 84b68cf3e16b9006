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

import numpy as np
import pytest

from vla.policy import Policy
from vla.serve import watch
from vla.serve.client import PolicyClient
from vla.serve.server import PolicyServer, ServeConfig

ROOT = Path(__file__).resolve().parents[2]
KEY = "correct-horse"
EVIL = "<img onerror=go>"


@pytest.fixture(scope="module")
def policy():
    return Policy.load("tabletop_nano")


def get(port, path, **headers):
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=20) as reply:
            return reply.status, reply.headers, reply.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


def observation(policy, seed=0):
    picture = np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    return {"observation/front": picture, "observation/state": np.zeros(4, np.float32), "prompt": EVIL}


def test_the_page_shows_the_last_answered_request(policy):
    with PolicyServer(policy, ServeConfig(port=0, threads=1, deadline_s=30)).background() as port:
        for path, kind in (("/", "text/html"), ("/page.css", "text/css"), ("/page.js", "text/javascript")):
            status, headers, body = get(port, path)
            assert status == 200 and headers["Content-Type"].startswith(kind) and body
            assert "default-src 'none'" in headers["Content-Security-Policy"]
            assert headers["X-Content-Type-Options"] == "nosniff"
            assert "Access-Control-Allow-Origin" not in headers
        assert json.loads(get(port, "/state")[2])["last"] is None
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
    np.testing.assert_array_equal(np.array(last["confidence"], np.float32), reply["confidence"])
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
        assert get(port, "/state", Host="evil.example")[0] == 403
        assert get(port, "/state", Host=f"localhost:{port}")[0] == 200
    own = ("127.0.0.1", "127.0.0.1:80", "localhost", "LOCALHOST:9", "[::1]", "[::1]:8000")
    assert all(watch.is_own_host(host) for host in own)
    assert not any(
        watch.is_own_host(host) for host in ("", "evil.example:80", "127.0.0.1.evil.example", "10.0.0.1", "[")
    )


def test_the_page_can_be_left_out(policy):
    with PolicyServer(policy, ServeConfig(port=0, threads=1, page=False)).background() as port:
        assert all(get(port, path)[0] >= 400 for path in ("/", "/page.js", "/state"))


def test_text_from_outside_is_never_taken_for_markup():
    script = (Path(watch.__file__).parent / "page" / "page.js").read_text()
    for danger in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "WebSocket"):
        assert danger not in script
    assert script.count("fetch(") == 1
    page = (Path(watch.__file__).parent / "page" / "index.html").read_text()
    assert "//" not in page.replace("<!doctype", "") and "onclick" not in page


def test_large_pictures_are_thinned_out():
    found = watch._picture("wide", np.zeros((480, 640, 3), np.uint8))
    assert (found["width"], found["height"]) == (214, 160)


@pytest.mark.slow
def test_a_real_browser_shows_it(policy, tmp_path):
    chromium = os.environ.get("VLA_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if not chromium:
        pytest.skip("no Chromium on the path, nor in VLA_CHROMIUM")
    with PolicyServer(policy, ServeConfig(port=0, threads=1, deadline_s=30)).background() as port:
        with PolicyClient(port=port) as client:
            client.infer(observation(policy))
        script = ROOT / "benchmarks" / "browser_check.py"
        command = [
            sys.executable,
            script,
            "--url",
            f"http://127.0.0.1:{port}/",
            "--chromium",
            chromium,
            "--out",
            tmp_path,
        ]
        done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {p.name for p in tmp_path.glob("*.png")} == {
        "wide-light.png",
        "wide-dark.png",
        "phone-light.png",
        "phone-dark.png",
    }


def test_a_plan_is_told_and_shown():
    policy = Policy.load("tabletop_unified", decoding="one_by_one")
    with PolicyServer(policy, ServeConfig(port=0, threads=1, deadline_s=60)).background() as port:
        with PolicyClient(port=port) as client:
            reply = client.infer({**observation(policy), "prompt": "push the red block to the left"})
        last = json.loads(get(port, "/state")[2])["last"]
    assert reply["plan"] and last["plan"] == reply["plan"]
