# SPDX-License-Identifier: Apache-2.0
"""A real `vla serve` in a process of its own, and a websocket written by hand that may break every rule.

`WireClient` frames bytes itself: it can stop in the middle of a frame, declare what it does not send, hang up with a
reset, and have many requests in flight.
"""

import contextlib
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

KEY_VARIABLE = "VLA_API_KEY"
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
POLICY = "tabletop_nano"


@dataclass(frozen=True)
class Served:
    """A server process that listens."""

    process: subprocess.Popen
    port: int
    log: Path
    """its stderr"""

    def alive(self) -> bool:
        return self.process.poll() is None

    def tracebacks(self) -> int:
        """How many are in its log."""
        return self.log.read_text(encoding="utf-8", errors="replace").count("Traceback")

    def rss_mb(self) -> float:
        return rss_mb(self.process.pid)


@contextlib.contextmanager
def served(log: Path, *options: str, policy: str = POLICY, key: str | None = None) -> Iterator[Served]:
    """`vla serve` on any free port of this machine, with one thread of torch. RuntimeError if it does not start."""
    command = [sys.executable, "-m", "vla.cli", "serve", "--policy", str(policy), "--port", "0", "--device", "cpu"]
    environment = {name: value for name, value in os.environ.items() if name != KEY_VARIABLE}
    environment |= {"OMP_NUM_THREADS": "1"} | ({KEY_VARIABLE: key} if key else {})
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [*command, "--threads", "1", *options], stdout=subprocess.PIPE, stderr=errors, env=environment, text=True
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if " listens on ws://" not in line:
            raise RuntimeError(f"expected a server that listens, got {line!r}; see '{log}'")
        yield Served(process, int(line.split("ws://")[1].split(":")[1].split()[0]), log)
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert process.stdout is not None
        process.stdout.close()


def cpu_ms(pid: int) -> float:
    """Processor time that another process has used, ms, to 10 ms; NaN without /proc."""
    with contextlib.suppress(OSError, ValueError):
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return 1e3 * (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return float("nan")


def rss_mb(pid: int | None = None) -> float:
    """Resident memory of a process (None: this one), MB of 2^20 bytes; NaN where /proc and `ps` do not know it."""
    pid = pid or os.getpid()
    with contextlib.suppress(OSError, ValueError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    with contextlib.suppress(OSError, ValueError):
        told = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True, check=False)
        return int(told.stdout) / 1024
    return float("nan")


def upgrade(key: str | None = None) -> bytes:
    """The HTTP request that asks for a websocket."""
    lines = ["GET / HTTP/1.1", "Host: 127.0.0.1", "Upgrade: websocket", "Connection: Upgrade"]
    lines += ["Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==", "Sec-WebSocket-Version: 13"]
    lines += [f"Authorization: Api-Key {key}"] if key else []
    return "\r\n".join([*lines, "", ""]).encode()


def frame(payload: bytes, opcode: int = BINARY, declared: int | None = None) -> bytes:
    """One websocket frame of a client, with the mask 0. `declared`: a length other than the payload's."""
    size = len(payload) if declared is None else declared
    head = bytes([0x80 | opcode])
    if size < 126:
        head += bytes([0x80 | size])
    elif size < 1 << 16:
        head += struct.pack("!BH", 0x80 | 126, size)
    else:
        head += struct.pack("!BQ", 0x80 | 127, size)
    return head + bytes(4) + payload


class WireClient:
    """A websocket on a bare socket. `status` is the HTTP status of the upgrade."""

    def __init__(self, port: int, key: str | None = None, timeout_s: float = 60.0) -> None:
        """Connects, upgrades, and reads the metadata if it may. OSError without a server."""
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=timeout_s)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.file = self.socket.makefile("rb")
        self.close_code: int | None = None
        self.hello: bytes | None = None
        self.socket.sendall(upgrade(key))
        self.status = int((self.file.readline().split() or [b"", b"0"])[1])
        while self.file.readline() not in (b"\r\n", b""):
            pass
        if self.status == 101:
            answer = self.receive()
            self.hello = answer if isinstance(answer, bytes) else None

    def send(self, payload: bytes, opcode: int = BINARY) -> None:
        self.socket.sendall(frame(payload, opcode))

    def receive(self) -> bytes | str:
        """The next message: bytes, or text. ConnectionError when the server hangs up; `close_code` says how."""
        while True:
            first, second = self._exactly(2)
            size = second & 127
            if size > 125:
                (size,) = struct.unpack("!H" if size == 126 else "!Q", self._exactly(2 if size == 126 else 8))
            payload = self._exactly(size)
            opcode = first & 15
            if opcode == BINARY:
                return payload
            if opcode == TEXT:
                return payload.decode("utf-8")
            if opcode == PING:
                self.send(payload, PONG)
            elif opcode == CLOSE:
                self.close_code = struct.unpack("!H", payload[:2])[0] if len(payload) > 1 else 1005
                raise ConnectionError(f"the server closed with {self.close_code}")

    def ask(self, message: bytes) -> bytes | str:
        """Send and receive."""
        self.send(message)
        return self.receive()

    def close(self, reset: bool = False) -> None:
        """Hang up without a word. `reset`: with an RST instead of a FIN."""
        if reset:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.file.close()
        self.socket.close()

    def __enter__(self) -> "WireClient":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _exactly(self, size: int) -> bytes:
        data = self.file.read(size)
        if len(data) < size:
            raise ConnectionError("the server hung up")
        return data


def observation(seed: int, cameras: tuple[str, ...] = ("front",), size: int = 64, states: int = 4) -> dict[str, Any]:
    """A request that is right, of random pixels: uint8 (size, size, 3) a camera, float32 (states,)."""
    draw = np.random.default_rng(seed)
    images = {f"observation/{c}": draw.integers(0, 256, (size, size, 3), dtype=np.uint8) for c in cameras}
    return {**images, "observation/state": draw.random(states, np.float32), "prompt": "push the red block"}


class Known:
    """Right requests to a policy, as bytes, and what the policy decides on them in this process."""

    def __init__(self, count: int, policy: str = POLICY) -> None:
        """`count` requests with the seeds 0.. of `policy`."""
        import torch

        from vla.policy import Policy
        from vla.serve.codec import pack

        torch.set_num_threads(1)  # as the server has: sums in another order have other last bits
        loaded = Policy.load(policy)
        messages = [observation(seed, loaded.cameras, loaded.image_size) for seed in range(count)]
        self.frames = [pack(message | {"seed": seed}) for seed, message in enumerate(messages)]
        self.actions = [decided(loaded, message, seed) for seed, message in enumerate(messages)]

    def right(self, index: int, reply: bytes | str) -> bool:
        """Whether `reply` to request `index` has the policy's actions, bit for bit."""
        from vla.serve.codec import DecodeError, unpack

        if isinstance(reply, str):
            return False
        try:
            found = unpack(reply, text_arrays=True)
        except DecodeError:
            return False
        actions = found.get("actions") if isinstance(found, dict) else None
        return isinstance(actions, np.ndarray) and actions.tobytes() == self.actions[index].tobytes()


def decided(policy: Any, message: dict[str, Any], seed: int) -> np.ndarray:
    """What a policy in this process decides on a request, float32 (H, A)."""
    from vla.policy import Observation

    images = {camera: message[f"observation/{camera}"] for camera in policy.cameras}
    seen = Observation(images, message["observation/state"], message["prompt"])
    return np.ascontiguousarray(policy.decide([seen], [(seed, 0)]).actions_BHA[0], np.float32)


def metric(port: int, name: str, key: str | None = None) -> float:
    """A number of /metrics."""
    import urllib.request

    headers = {"Authorization": f"Api-Key {key}"} if key else {}
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    request = urllib.request.Request(f"http://127.0.0.1:{port}/metrics", headers=headers)
    with opener.open(request, timeout=30) as reply:
        lines = reply.read().decode().splitlines()
    return float(next(line.rsplit(" ", 1)[1] for line in lines if line.startswith(f"{name} ")))


def settles(port: int, name: str, value: float, key: str | None = None, wait_s: float = 15.0) -> bool:
    """Whether a number of /metrics becomes `value` in time."""
    until = time.monotonic() + wait_s
    while metric(port, name, key) != value:
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True
