# SPDX-License-Identifier: Apache-2.0
"""Broken lines: clients that vanish, that come all at once, without the key, or with too much.

One client that does everything right asks all the while; it must get the policy's actions every time.
"""

import contextlib
import random
import socket
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from vla.bench.results import Row
from vla.bench.survival import SurvivalConfig, at_least
from vla.bench.survival_server import BINARY, Known, WireClient, frame, served, settles, upgrade

KEY = "a-key-for-the-wire"
DISCONNECTS, QUICK_DISCONNECTS = 1_000, 20
CLIENTS, QUICK_CLIENTS = 50, 5
ROUNDS = 4
"""Requests of each of the clients that come at once."""
PAUSE_S = 0.02
"""Of the good client, between a reply and the next request."""
WAYS = (
    "before the upgrade",
    "rubbish for the upgrade",
    "after the upgrade",
    "in the middle of a frame",
    "after a request",
    "rubbish for a frame",
)


class GoodClient:
    """Asks again and again in a thread. `served` counts right replies, `failed` says what went wrong."""

    def __init__(self, port: int, known: Known, key: str | None, pause_s: float = PAUSE_S) -> None:
        self.known, self.pause_s, self.client = known, pause_s, WireClient(port, key)
        self.served, self.failed = 0, [] if self.client.status == 101 else [f"HTTP {self.client.status}"]
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._ask, name="good-client", daemon=True)

    def _ask(self) -> None:
        count = 0
        while not self.over.wait(self.pause_s):
            which = count % len(self.known.frames)
            count += 1
            try:
                answer = self.client.ask(self.known.frames[which])
            except OSError as error:
                self.failed.append(f"request {count}: {error}")
                return
            if self.known.right(which, answer):
                self.served += 1
            else:
                self.failed.append(f"request {count} was answered with {answer[:200]!r}")

    def __enter__(self) -> "GoodClient":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join(90)
        self.client.close()


def vanish(port: int, key: str, way: str, draw: random.Random, request: bytes) -> None:
    """Connect and hang up, in one of `WAYS`; half of the time with a reset. OSError if the server is not there."""
    reset = draw.random() < 0.5
    if way in ("before the upgrade", "rubbish for the upgrade"):
        asked = upgrade(key)
        if way == "before the upgrade":
            asked = asked[: draw.randrange(len(asked))]
        else:
            asked = draw.choice((b"", asked[:16])) + draw.randbytes(draw.randrange(1, 400)) + b"\r\n\r\n"
        with socket.create_connection(("127.0.0.1", port), timeout=30) as raw:
            raw.sendall(asked)
            if reset:
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return
    client = WireClient(port, key)
    try:
        if client.status != 101:
            raise ConnectionError(f"expected an upgrade, got HTTP {client.status}")
        if way == "in the middle of a frame":
            whole = frame(request)
            client.socket.sendall(whole[: draw.randrange(1, len(whole))])
        elif way == "after a request":
            client.send(request)
        elif way == "rubbish for a frame":
            # Any opcode, reserved bits, no mask, control frames in pieces, text that is none.
            head = frame(draw.randbytes(draw.randrange(200)), draw.randrange(16))
            client.socket.sendall(bytes([head[0] ^ draw.choice((0, 0x80, 0x40))]) + head[1:] + draw.randbytes(8))
        if draw.random() < 0.3:
            time.sleep(draw.random() * 0.02)
    finally:
        client.close(reset)


def disconnects(port: int, known: Known, count: int, seed: int) -> tuple[int, list[str]]:
    """Vanish `count` times at random points; returns how often it went as meant, and what did not."""
    draw, done, failed = random.Random(f"wire/{seed}"), 0, []
    for number in range(count):
        way = WAYS[draw.randrange(len(WAYS))]
        try:
            vanish(port, KEY, way, draw, known.frames[number % len(known.frames)])
            done += 1
        except OSError as error:
            failed.append(f"disconnect {number}, {way}: {error}")
    return done, failed


def at_once(port: int, known: Known, count: int) -> tuple[int, list[str]]:
    """`count` clients, connected, ask together; returns how many got nothing but right replies, and what else came."""
    ready = threading.Barrier(count, timeout=120)

    def ask(number: int) -> str:
        with WireClient(port, KEY, timeout_s=120) as client:
            ready.wait()
            for turn in range(ROUNDS):
                which = (number + turn) % len(known.frames)
                answer = client.ask(known.frames[which])
                if not known.right(which, answer):
                    return f"client {number}, request {turn} was answered with {answer[:200]!r}"
        return ""

    def safely(number: int) -> str:
        try:
            return ask(number)
        except (OSError, threading.BrokenBarrierError) as error:
            return f"client {number}: {type(error).__name__} {error}"

    with ThreadPoolExecutor(count) as pool:
        said = list(pool.map(safely, range(count)))
    return said.count(""), [line for line in said if line]


def refused(port: int) -> tuple[bool, list[str]]:
    """Whether a wrong key, a part of the key and none are each told 401."""
    status = {}
    for name, key in {"wrong": "b" + KEY[1:], "short": KEY[:-1], "missing": None}.items():
        with WireClient(port, key) as client:
            status[name] = client.status
    return set(status.values()) == {401}, [f"{name} key: HTTP {code}" for name, code in status.items() if code != 401]


def too_large(port: int) -> tuple[bool, list[str]]:
    """Whether a frame above the limit closes its connection with 1009, sent in full, or declared and not sent."""
    from vla.serve.codec import MAX_BYTES

    codes = {}
    declared = {"declared": MAX_BYTES + 1, "absurd": 2**62}
    for name, size in declared.items():
        codes[name] = _close_code(port, frame(b"", BINARY, size))
    codes["sent"] = _close_code(port, frame(bytes(MAX_BYTES + 1)))
    return set(codes.values()) == {1009}, [
        f"{name}: closed with {code}" for name, code in codes.items() if code != 1009
    ]


def _close_code(port: int, data: bytes) -> int | None:
    with WireClient(port, KEY) as client:
        # Reads meanwhile: the server closes before it has read all, and the reset that follows would eat the code.
        sender = threading.Thread(target=_send, args=(client, data), daemon=True)
        sender.start()
        with contextlib.suppress(OSError):
            client.receive()
        sender.join(60)
        return client.close_code


def _send(client: WireClient, data: bytes) -> None:
    with contextlib.suppress(OSError):
        client.socket.sendall(data)


def wire(config: SurvivalConfig) -> list[Row]:
    """The part `wire`."""
    wanted = QUICK_DISCONNECTS if config.quick else DISCONNECTS
    crowd = QUICK_CLIENTS if config.quick else CLIENTS
    known = Known(8)
    options = ("--deadline-s", "60", "--queue", "64")
    with served(config.out / "wire_server.log", *options, key=KEY) as server:
        with GoodClient(server.port, known, KEY) as good:
            done, lost = disconnects(server.port, known, wanted, config.seed)
            let_go = settles(server.port, "vla_clients", 1, KEY)
            right, wrong = at_once(server.port, known, crowd)
            closed, open_ = refused(server.port)
            before = good.served
            dropped, kept = too_large(server.port)
            until = time.monotonic() + 30
            while good.served <= before and not good.failed and time.monotonic() < until:
                time.sleep(0.05)
            goes_on = good.served > before
        alive = server.alive()
    calm = alive and good.served > 0 and not good.failed and not server.tracebacks()
    beside = f"a good client beside them got {good.served} right replies, {len(good.failed)} wrong"
    held = "" if let_go else "; the server still holds connections of clients that are gone"
    complaints = [*lost, *wrong, *open_, *kept, *good.failed]
    (config.out / "wire_complaints.txt").write_text("\n".join(complaints), encoding="utf-8")
    return [
        at_least("disconnects", done, wanted, "disconnects", beside + held, calm and let_go),
        at_least(
            "clients", right, crowd, "clients", f"at once, {ROUNDS} requests each, bit for bit the policy's", calm
        ),
        at_least("unauthorised_refused", float(closed), 1, "", "HTTP 401 for a wrong, a shortened and a missing key"),
        at_least(
            "oversize_refused",
            float(dropped and goes_on),
            1,
            "",
            "closed with 1009, sent or only declared; the good client was served meanwhile",
        ),
    ]
