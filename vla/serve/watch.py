# SPDX-License-Identifier: Apache-2.0
"""The page that shows what a served policy sees and does, and what it shows: the last request that was answered.

References to that request and its reply are kept, nothing is copied; pictures are encoded when a page asks, once for
all pages. The page has no way to ask the policy anything. Its files are fixed, load nothing from elsewhere, and put all
text in as text.
"""

import base64
import ipaddress
import json
import time
from collections import deque
from http import HTTPStatus
from pathlib import Path
from typing import Any

import numpy as np
from websockets.datastructures import Headers
from websockets.http11 import Response

from vla.serve.request import Asked

STATE = "/state"
FILES = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
LATENCIES = 120
"""So many of the last requests' latencies are shown."""
SIDE = 224
"""px of a picture at most: larger ones are thinned out."""
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class Watch:
    """What the page shows. Touched by the event loop only."""

    def __init__(self) -> None:
        self.files = {path: (Path(__file__).parent / "page" / name).read_bytes() for path, (name, _) in FILES.items()}
        self.latencies_ms: deque[float] = deque(maxlen=LATENCIES)
        self.last: tuple[int, Asked, dict[str, Any], float] | None = None
        self._written: tuple[int, str] = (0, "null")
        """number of a request, what is said of it as JSON"""

    def saw(self, number: int, asked: Asked, answer: dict[str, Any], ms: float) -> None:
        """Request `number` (1, 2, ...) was answered after `ms` milliseconds."""
        self.latencies_ms.append(ms)
        self.last = (number, asked, answer, time.monotonic())

    def state(self, metadata: dict[str, Any], counts: dict[str, int]) -> Response:
        """The answer to STATE: JSON of the metadata, the counts, the latencies (ms) and the last request."""
        found: dict[str, Any] = {"metadata": metadata, **counts, "latencies_ms": [*self.latencies_ms]}
        if self.last is not None:
            number, asked, answered, when = self.last
            p50, p95 = np.percentile(self.latencies_ms, [50, 95])
            found |= {"number": number, "age_s": time.monotonic() - when, "p50_ms": float(p50), "p95_ms": float(p95)}
            if self._written[0] != number:
                self._written = (number, described(asked, answered))
        return answer(f'{json.dumps(found)[:-1]}, "last": {self._written[1]}}}'.encode(), "application/json")

    def file(self, path: str) -> Response:
        """One of FILES."""
        return answer(self.files[path], FILES[path][1])


def described(asked: Asked, answered: dict[str, Any]) -> str:
    """JSON of a request and its reply; "actions" and "confidence" are lists (H, A)."""
    seen = asked.observation  # of several moments, the last one is shown
    said = {
        "prompt": seen.instruction,
        "plan": answered.get("plan", ""),
        "state": np.atleast_2d(np.asarray(seen.state, float))[-1].tolist(),
        "actions": answered["actions"].tolist(),
        "confidence": np.nan_to_num(answered["confidence"].astype(float)).clip(0, 1).round(4).tolist(),
        "length": answered["length"],
        "frozen_steps": answered["rtc/frozen_steps"],
        "network_ms": answered["policy_timing"]["infer_ms"],
    }
    now = {camera: image if image.ndim == 3 else image[-1] for camera, image in seen.images.items()}
    cameras = ", ".join(picture(camera, image) for camera, image in now.items())
    return f'{json.dumps(said)[:-1]}, "cameras": [{cameras}]}}'


def picture(camera: str, image_HWC: np.ndarray) -> str:
    """JSON of uint8 (H, W, 3): raw RGB in base64, every n-th pixel if it is large."""
    step = -(-max(image_HWC.shape[:2]) // SIDE)
    small = np.ascontiguousarray(image_HWC[::step, ::step])
    about = {"name": camera, "width": small.shape[1], "height": small.shape[0]}
    # Put in by hand: base64 needs no escaping, and looking for something to escape takes longer than all the rest.
    return f'{json.dumps(about)[:-1]}, "rgb": "{base64.b64encode(small).decode()}"}}'


def answer(body: bytes, kind: str) -> Response:
    """200, with everything that keeps a browser from doing more than showing it."""
    headers = {
        "Content-Type": f"{kind}; charset=utf-8",
        "Content-Length": str(len(body)),
        "Content-Security-Policy": POLICY,
        "X-Content-Type-Options": "nosniff",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
        "Connection": "close",
    }
    return Response(HTTPStatus.OK.value, HTTPStatus.OK.phrase, Headers(headers), body)


def is_own_host(hosts: list[str]) -> bool:
    """Whether the Host headers are one, of this machine itself: a page of elsewhere cannot make its name point here."""
    if len(hosts) != 1:
        return False
    host = hosts[0]
    name = host.rsplit(":", 1)[0] if host.count(":") == 1 or "]:" in host else host
    try:
        return ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return name.lower() == "localhost"
