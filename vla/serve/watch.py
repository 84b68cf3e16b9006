# SPDX-License-Identifier: Apache-2.0
"""The page that shows what a served policy sees and does, and what it shows: the last request that was answered.

References to that request and its reply are kept, nothing is copied; pictures are encoded when a page asks. The page
has no way to ask the policy anything. Its files are fixed, load nothing from elsewhere, and put all text in as text.
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
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; connect-src 'self'; frame-ancestors 'none'"
)


class Watch:
    """What the page shows. Touched by the event loop only."""

    def __init__(self) -> None:
        self.files = {path: (Path(__file__).parent / "page" / name).read_bytes() for path, (name, _) in FILES.items()}
        self.latencies_ms: deque[float] = deque(maxlen=LATENCIES)
        self.last: tuple[int, Asked, dict[str, Any], float] | None = None

    def saw(self, number: int, asked: Asked, answer: dict[str, Any], ms: float) -> None:
        """Request `number` was answered after `ms` milliseconds."""
        self.latencies_ms.append(ms)
        self.last = (number, asked, answer, time.monotonic())

    def state(self, metadata: dict[str, Any], counts: dict[str, int]) -> dict[str, Any]:
        """What /state says, of plain values."""
        found: dict[str, Any] = {"metadata": metadata, **counts, "latencies_ms": list(self.latencies_ms), "last": None}
        if self.last is None:
            return found
        number, asked, answer, when = self.last
        p50, p95 = np.percentile(self.latencies_ms, [50, 95])
        seen = asked.observation
        last = {
            "prompt": seen.instruction,
            "plan": answer.get("plan", ""),
            "state": np.asarray(seen.state, float).tolist(),
            "cameras": [_picture(camera, image) for camera, image in seen.images.items()],
            "actions": answer["actions"].tolist(),
            "confidence": answer["confidence"].tolist(),
            "frozen_steps": answer["rtc/frozen_steps"],
            "network_ms": answer["policy_timing"]["infer_ms"],
        }
        more = {"number": number, "age_s": time.monotonic() - when, "p50_ms": float(p50), "p95_ms": float(p95)}
        return found | more | {"last": last}

    def file(self, path: str) -> Response:
        """One of FILES."""
        return answer(self.files[path], FILES[path][1])


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


def json_answer(value: Any) -> Response:
    return answer(json.dumps(value).encode(), "application/json")


def is_own_host(host: str) -> bool:
    """Whether a Host header names this machine itself: a page of elsewhere cannot make its own name point here."""
    name = host.rsplit(":", 1)[0] if host.count(":") == 1 or "]:" in host else host
    try:
        return ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return name.lower() == "localhost"


def _picture(camera: str, image_HWC: np.ndarray) -> dict[str, Any]:
    """uint8 (H, W, 3), every n-th pixel if it is large."""
    step = -(-max(image_HWC.shape[:2]) // SIDE)
    small = np.ascontiguousarray(image_HWC[::step, ::step])
    rgb = base64.b64encode(small.tobytes()).decode()
    return {"name": camera, "width": small.shape[1], "height": small.shape[0], "rgb": rgb}
