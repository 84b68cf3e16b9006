# SPDX-License-Identifier: Apache-2.0
"""Does the server's page work in a real browser? Opens it in a headless Chromium, looks at it, takes pictures of it.

    python benchmarks/browser_check.py --url http://127.0.0.1:8000/ --out runs/page [--chromium PATH]

Ask the policy something first. Exit code 1 if the page complains in the console, breaks its own content policy, does
not show the last chunk within ten seconds, or is wider than a phone. With a key the URL ends in #key=...
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
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib import parse, request

from websockets.sync.client import ClientConnection, connect

FLAGS = "--headless --no-sandbox --disable-gpu --disable-dev-shm-usage --no-zygote --single-process --in-process-gpu"
SCREENS = {"wide": (1180, 900), "phone": (390, 844)}
SHOWN = "document.body && Number(document.body.dataset.shown) >= {} && document.querySelectorAll('#chunk rect').length"


def fetched(address: str, key: str = "") -> Any:
    """The JSON at an address, past a proxy that the environment may name."""
    asked = request.Request(address, headers={"Authorization": f"Api-Key {key}"} if key else {})
    with request.build_opener(request.ProxyHandler({})).open(asked, timeout=10) as reply:
        return json.load(reply)


class Tab:
    """One tab, driven through the DevTools protocol. `complaints`: what the console says."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket, self.numbers, self.complaints = socket, itertools.count(1), list[str]()
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call and wait for the result; what the page complains of meanwhile is kept."""
        self.socket.send(json.dumps({"id": (number := next(self.numbers)), "method": method, "params": parameters}))
        while (message := json.loads(self.socket.recv(timeout=30))).get("id") != number:
            self._hear(message.get("method"), message.get("params", {}))
        return message["result"]  # KeyError: the browser refuses

    def _hear(self, event: str | None, said: dict[str, Any]) -> None:
        entry = said.get("entry", {})  # of the browser itself: requests that fail, violations of the content policy
        if event == "Runtime.exceptionThrown" or {said.get("type"), entry.get("level")} & {"error", "warning"}:
            self.complaints.append(entry.get("text") or json.dumps(said)[:600])

    def value(self, expression: str) -> Any:
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")


@contextlib.contextmanager
def opened(chromium: str) -> Iterator[Tab]:
    """A tab of a browser that lives as long as the block."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        told, until = Path(profile) / "DevToolsActivePort", time.monotonic() + 60
        command = [chromium, *FLAGS.split(), "--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            while process.poll() is None and time.monotonic() < until and not (told.exists() and told.read_text()):
                time.sleep(0.1)
            tabs = fetched(f"http://127.0.0.1:{told.read_text().split()[0]}/json/list")
            address = next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page")
            with connect(address, max_size=None, proxy=None) as socket:
                yield Tab(socket)
        finally:
            process.kill()
            process.wait()


def look(tab: Tab, url: str, out: Path) -> list[str]:
    """Pictures of every screen, light and dark, in `out`. Returns what is wrong."""
    wrong, until, (address, _, key) = tab.complaints, time.monotonic() + 10, url.partition("#key=")
    last = fetched(parse.urljoin(address, "state"), parse.unquote(key)).get("number", 1)
    tab.call("Page.navigate", url=url)
    while not tab.value(SHOWN.format(last)):
        if time.monotonic() > until:
            return [*wrong, f"request {last} is not shown; the page says: {tab.value('document.body.innerText')}"]
        time.sleep(0.1)
    for screen, scheme in itertools.product(SCREENS, ("light", "dark")):
        size = {"width": SCREENS[screen][0], "height": SCREENS[screen][1], "mobile": screen == "phone"}
        tab.call("Emulation.setDeviceMetricsOverride", **size, deviceScaleFactor=1)
        tab.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        time.sleep(0.7)  # the page looks anew meanwhile
        picture = tab.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)["data"]
        (out / f"{screen}-{scheme}.png").write_bytes(base64.b64decode(picture))
        if tab.value("document.documentElement.scrollWidth > innerWidth"):
            wrong.append(f"{screen}, {scheme}: the page is wider than the screen")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--url", default="http://127.0.0.1:8000/")
    parser.add_argument("--out", type=Path, default=Path("runs/page"))
    default = os.environ.get("VLA_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    about = "default: VLA_CHROMIUM, or the one on the path"
    parser.add_argument("--chromium", default=default, required=not default, help=about)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with opened(options.chromium) as tab:
        wrong = look(tab, options.url, options.out)
    print("\n".join(wrong) or f"the page works; pictures are in '{options.out}'")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
