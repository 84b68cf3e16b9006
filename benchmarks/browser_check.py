# SPDX-License-Identifier: Apache-2.0
"""Does the server's page work in a real browser? Opens it in a headless Chromium, looks at it, takes pictures of it.

    python benchmarks/browser_check.py --url http://127.0.0.1:8000/ --out runs/page [--chromium PATH]

Ask the policy something first. Exit code 1 if the page complains in the console, breaks its own content policy, has not
shown the last chunk within ten seconds, or is wider than a phone.
"""

import argparse
import base64
import contextlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-dev-shm-usage --no-zygote --single-process --in-process-gpu "
    "--no-first-run --remote-debugging-port=0"
)
SCREENS = {"wide": (1180, 900), "phone": (390, 844)}


class Tab:
    """One tab, driven through the DevTools protocol."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket, self.numbers, self.complaints = socket, itertools.count(1), []  # type: ignore[var-annotated]
        for domain in ("Page", "Runtime", "Log", "Emulation"):
            if domain != "Emulation":
                self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call and wait for the result; what the page complains of meanwhile is kept."""
        number = next(self.numbers)
        self.socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self.socket.recv(timeout=30))
            if message.get("id") == number:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']['message']}")
                return message["result"]
            self._hear(message)

    def _hear(self, message: dict[str, Any]) -> None:
        said = message.get("params", {})
        if message.get("method") == "Runtime.exceptionThrown":
            self.complaints.append(said["exceptionDetails"].get("text", "an exception"))
        if message.get("method") == "Log.entryAdded" and said["entry"]["level"] in ("error", "warning"):
            self.complaints.append(said["entry"]["text"])

    def value(self, expression: str) -> Any:
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")


@contextlib.contextmanager
def opened(chromium: str) -> Iterator[Tab]:
    """A tab of a browser that lives as long as the block."""
    with tempfile.TemporaryDirectory() as profile:
        command = [chromium, *FLAGS.split(), f"--user-data-dir={profile}", "about:blank"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            told = Path(profile) / "DevToolsActivePort"
            until = time.monotonic() + 60
            while not told.exists() or not told.read_text().strip():
                if process.poll() is not None or time.monotonic() > until:
                    raise RuntimeError("the browser did not start")
                time.sleep(0.1)
            port = told.read_text().split()[0]
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=10) as reply:
                address = next(tab for tab in json.load(reply) if tab["type"] == "page")["webSocketDebuggerUrl"]
            with connect(address, max_size=None, proxy=None) as socket:
                yield Tab(socket)
        finally:
            process.kill()
            process.wait()


def look(tab: Tab, url: str, out: Path) -> list[str]:
    """Pictures of every screen, light and dark. Returns what is wrong."""
    wrong = []
    tab.call("Page.navigate", url=url)
    for screen, (width, height) in SCREENS.items():
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": screen == "phone"}
        tab.call("Emulation.setDeviceMetricsOverride", **size)
        for scheme in ("light", "dark"):
            tab.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
            until = time.monotonic() + 10
            while not tab.value("document.body && document.body.dataset.shown") and time.monotonic() < until:
                time.sleep(0.2)
            time.sleep(0.8)
            picture = tab.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)["data"]
            (out / f"{screen}-{scheme}.png").write_bytes(base64.b64decode(picture))
        if not tab.value("document.querySelectorAll('#chunk rect').length"):
            wrong.append(f"{screen}: no chunk is shown; the page says '{tab.value('document.body.innerText')}'")
        if tab.value("document.documentElement.scrollWidth > innerWidth"):
            wrong.append(f"{screen}: the page is wider than its {width} px")
    return wrong + tab.complaints


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--url", default="http://127.0.0.1:8000/")
    parser.add_argument("--out", type=Path, default=Path("runs/page"))
    default = os.environ.get("VLA_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    parser.add_argument("--chromium", default=default, help="default: VLA_CHROMIUM, or the one on the path")
    options = parser.parse_args()
    if not options.chromium:
        parser.error("no Chromium found; say --chromium PATH")
    options.out.mkdir(parents=True, exist_ok=True)
    with opened(options.chromium) as tab:
        wrong = look(tab, options.url, options.out)
    print("\n".join(wrong) or f"the page works; pictures are in '{options.out}'")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
