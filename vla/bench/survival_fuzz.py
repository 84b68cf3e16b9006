# SPDX-License-Identifier: Apache-2.0
"""Rubbish for the decoder and for a server: bytes made at random, and right frames made wrong.

`Frames` makes them. Frames come in blocks, and a block depends on the seed and its number alone, whichever process has
it, so what was found can be found again. The decoder runs in processes of its own, one a core: a process that dies is a
crash, anything that it raises but DecodeError is `uncaught`.
"""

import importlib
import multiprocessing
import os
import random
import struct
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np

from vla.bench.results import Row
from vla.bench.survival import SurvivalConfig, at_least, at_most
from vla.bench.survival_server import TEXT, Known, Served, WireClient, observation, rss_mb, served

DECODER = "vla.bench.survival_fuzz:decode"
BLOCK = 5_000
"""Frames of the decoder in a block."""
FRAMES, QUICK_FRAMES = 10_000_000, 20_000
SERVER_FRAMES, QUICK_SERVER_FRAMES = 100_000, 500
EVERY = 100
"""After so many frames to the server a right request must be answered right."""
GROWTH_MB = 64.0
PATIENCE_S = 300.0
"""A block that takes longer hangs, which counts as a crash."""
MOST_CRASHES = 20
"""After so many the rest is not tried."""

DTYPES = (b"|b1", b"|u1", b"|i1", b"<u2", b"<i4", b">i8", b"<u8", b"<f2", b"<f4", b">f8", b"<U1", b"<U4", b"|O8")
MORE_DTYPES = (b"|V8", b"<c8", b"<M8", b"(2,", b"f4,", b"|S3", b"<f9", b"   ", b"\x00\x00\x00")
SIZES = (0, 1, 2, 3, 127, 128, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**32, 2**62, 2**63 - 1, 2**64 - 1)
HEADS = (b"\xc6", b"\xdb", b"\xdd", b"\xdf", b"\xc9")
"""msgpack: bin, str, array, map and ext with a size of four bytes."""
SHORT_HEADS = (b"\xc4", b"\xc5", b"\xd9", b"\xda", b"\xdc", b"\xde", b"\xc7", b"\xc8", b"\xd4", b"\xd6", b"\xd8")
NESTS = (b"\x91", b"\x81\xa1a", b"\xdc\x00\x01", b"\x92\xc0", b"\x81\xc4\x01a", b"\x81")


# --- frames ----------------------------------------------------------------------------------------------------------
@cache
def decoder_corpus() -> tuple[bytes, ...]:
    """Right messages of many kinds, small."""
    from vla.serve.codec import pack

    pixels, state = np.arange(12, dtype=np.uint8).reshape(2, 2, 3), np.array([0.5, -1, 3, 4], np.float32)
    request = {"observation/image": pixels, "observation/state": state, "prompt": "push it"}
    kinds = ("?", "i1", "u1", "i2", "<u4", ">i4", "i8", "u8", "f2", "f4", ">f8", "f8")
    odd = np.array([np.nan, np.inf, -np.inf, 1e-45], np.float32)
    messages: list[Any] = [
        request,
        request | {"seed": 3, "step": np.int64(4)},
        request | {"rtc/prev_actions": np.zeros((2, 4), np.float32), "rtc/delay_steps": 1},
        request | {"observation/state": odd},
        request | {"observation/state": odd.astype(np.float64), "seed": 2**64 - 1},
        {"actions": np.ones((2, 4), np.float32), "length": 2, "server_timing": {"infer_ms": 1.5}},
        {"cameras": ["front", "wrist"], "fps": 10.0, "supports": ["rtc", "seed"], "nothing": None, "yes": True},
        {"scalars": [np.dtype(kind).type(1) for kind in kinds]},
        {kind: np.ones((1, 2), kind) for kind in kinds[:6]},
        {kind: np.ones((2, 1), kind) for kind in kinds[6:]},
        {
            "empty": np.zeros((0, 4), np.float32),
            "point": np.zeros((), np.int16),
            "b": b"\x00\xff",
            "": "\u00e9\U0001f600",
        },
        {"deep": [[[[[{"a": [1, -1, 2**63, -(2**63), 1e300]}]]]]]},
        [np.float64(np.nan), float("inf"), float("-inf"), float("nan"), np.float16(65504), -0.0],
        [{"x": i, "y": [i] * 3} for i in range(8)],
        np.arange(6, dtype=np.int16).reshape(1, 2, 3),
        "text",
        {},
    ]
    return tuple(pack(message) for message in messages)


@cache
def server_corpus() -> tuple[bytes, ...]:
    """Messages that mean something to the server: requests with one thing wrong, beside small ones."""
    from vla.serve.codec import pack

    right = observation(0)
    small = right | {"observation/front": np.zeros((4, 4, 3), np.uint8)}
    tail = np.zeros((2, 4), np.float32)
    odd = (np.nan, np.inf, -np.inf)
    changes: list[dict[str, Any]] = [
        *({"observation/state": np.full(4, value, kind)} for value in odd for kind in (np.float32, np.float64)),
        *({"observation/front": np.zeros((64, 64, 3), kind)} for kind in (np.int8, np.float16)),
        *(
            {"observation/front": np.zeros(shape, np.uint8)}
            for shape in ((64, 64), (64, 192), (1, 64, 64, 3), (0, 64, 3))
        ),
        *({"prompt": value} for value in (3, None, b"push", ["push"], {"a": 1}, np.float32(1), "", "x" * 5000, "\x00")),
        *({"seed": value} for value in (-1, 2**63, 2**64 - 1, 1.5, "1", True, np.float64(2), np.uint64(2**63), None)),
        *({"step": value} for value in (-(2**63), np.int8(-1), [1], np.zeros(1, np.int64))),
        {"observation/state": np.array([1e300, 0, 0, 0])},  # finite, but not as the float32 that a policy sees
        {"rtc/prev_actions": tail},
        {"rtc/delay_steps": 1},
        {"rtc/prev_actions": tail * np.nan, "rtc/delay_steps": 1},
        {"rtc/prev_actions": tail + np.inf, "rtc/delay_steps": 2},
        {"rtc/prev_actions": tail[:, :3], "rtc/delay_steps": 1},
        {"rtc/prev_actions": tail.astype(np.float64), "rtc/delay_steps": 1},
        {"rtc/prev_actions": tail, "rtc/delay_steps": -1},
        {"rtc/prev_actions": tail[0], "rtc/delay_steps": 2**62},
        {"observation/image": right["observation/front"]},
        {"observation/wrist": tail, "x\ny": 1},
    ]
    wrong = [pack(right | change) for change in changes]
    missing = [pack({k: v for k, v in right.items() if k != key}) for key in right]
    tiny = [pack(small | {k: v for k, v in change.items() if k != "observation/front"}) for change in changes]
    return (*wrong, *missing, *tiny, pack(small), *decoder_corpus())


@cache
def server_right() -> tuple[bytes, ...]:
    """Requests that are right, some of them odd: each costs an inference, so they are rare."""
    from vla.serve.codec import pack

    right, tail = observation(1), np.zeros((9, 4), np.float32)
    changes: list[dict[str, Any]] = [
        {},
        {"seed": 2**63 - 1, "step": np.uint64(2**63 - 1)},
        {"observation/state": np.full(4, 3e38, np.float32)},
        {"observation/state": np.array([3e38, -3e38, 5e-324, 0])},
        {"prompt": "\U0001f600 \u202e red \x00 \n block"},
        {"prompt": "push"},
        {"rtc/prev_actions": tail, "rtc/delay_steps": 2**62},
        {"rtc/prev_actions": tail + np.float32(3e38), "rtc/delay_steps": 3},
        {"rtc/prev_actions": tail[:0], "rtc/delay_steps": 4},
    ]
    return tuple(pack(right | change) for change in changes)


class Frames:
    """Makes frames, right and wrong, out of a corpus of right ones. Deterministic by seed."""

    def __init__(self, seed: str, corpus: tuple[bytes, ...]) -> None:
        self.random, self.corpus, self.count = random.Random(seed), corpus, len(corpus)
        self.ways: tuple[Callable[[], bytes], ...] = (
            *[self.right] * 2,
            *[self.flipped] * 5,
            *[self.cut] * 2,
            *[self.spliced] * 3,
            *[self.overwritten] * 3,
            *[self.retyped] * 3,
            *[self.resized] * 3,
            *[self.grown] * 2,
            self.nested,
            self.huge,
            self.noise,
        )

    def next(self) -> bytes:
        """The next frame: about 8 % are right ones as they are."""
        return self.ways[int(self.random.random() * len(self.ways))]()

    def right(self) -> bytes:
        return self.corpus[int(self.random.random() * self.count)]

    def place(self, size: int) -> int:
        """A byte of a frame; of a long one near its ends, where keys and sizes are rather than pixels."""
        if size <= 1024:
            return int(self.random.random() * size)
        near = int(self.random.random() * 320)
        return near if near < 160 else size - 1 - (near - 160)

    def flipped(self) -> bytes:
        """One to four bits are others."""
        made = bytearray(self.right())
        for _ in range(1 + int(self.random.random() * 4)):
            made[self.place(len(made))] ^= 1 << int(self.random.random() * 8)
        return bytes(made)

    def overwritten(self) -> bytes:
        """One or two bytes are any others."""
        made = bytearray(self.right())
        for _ in range(1 + int(self.random.random() * 2)):
            made[self.place(len(made))] = int(self.random.random() * 256)
        return bytes(made)

    def cut(self) -> bytes:
        """The end is missing."""
        frame = self.right()
        return frame[: self.place(len(frame))]

    def spliced(self) -> bytes:
        """The beginning of one and the end of another, or one within another."""
        one, two = self.right(), self.right()
        head, tail = one[: self.place(len(one))], two[self.place(len(two)) :]
        return head + tail if self.random.random() < 0.7 else head + two + one[len(head) :]

    def grown(self) -> bytes:
        """Some bytes are there twice, or others come behind."""
        frame = self.right()
        start = self.place(len(frame))
        end = start + 1 + int(self.random.random() * 12)
        return frame[:end] + frame[start:] if self.random.random() < 0.7 else frame + frame[start:end]

    def retyped(self) -> bytes:
        """A dtype is another one."""
        frame, chosen = self.right(), DTYPES if self.random.random() < 0.7 else MORE_DTYPES
        found = self.field(frame, b"\xc4\x05dtype\xa3")
        if found < 0:
            return self.flipped()
        return frame[:found] + chosen[int(self.random.random() * len(chosen))] + frame[found + 3 :]

    def resized(self) -> bytes:
        """A shape has another number in it, or the data another length."""
        frame = self.right()
        if self.random.random() < 0.3:
            found = self.field(frame, b"\xc4\x04data\xc4")
            new = bytes([int(self.random.random() * 256)])
        else:
            found, new = self.field(frame, b"\xc4\x05shape"), self.whole()
            if found >= 0 and self.random.random() < 0.7:
                found += 1  # a number of the shape, not how many there are
        return self.flipped() if found < 0 else frame[:found] + new + frame[found + 1 :]

    def whole(self) -> bytes:
        """A whole number as msgpack."""
        size = SIZES[int(self.random.random() * len(SIZES))]
        roll = self.random.random()
        if roll < 0.3:
            return bytes([int(self.random.random() * 256)])
        return b"\xcf" + size.to_bytes(8, "big") if roll < 0.8 else b"\xd3" + size.to_bytes(8, "big")

    def field(self, frame: bytes, marker: bytes) -> int:
        """Where what follows a `marker` begins, of one of them at random; -1 without any."""
        places = frame.count(marker)
        found = -1
        for _ in range(1 + int(self.random.random() * places) if places else 0):
            found = frame.find(marker, found + 1)
        return found + len(marker) if found >= 0 else -1

    def nested(self) -> bytes:
        """Lists or dicts within each other, up to 3000 deep, around a frame or nothing."""
        deep = int(3000 ** self.random.random())
        return NESTS[int(self.random.random() * len(NESTS))] * deep + (self.right() if deep < 64 else b"\xc0")

    def huge(self) -> bytes:
        """A size is declared that is not there, alone or within a frame."""
        if self.random.random() < 0.6:
            size = int(self.random.random() * 2**32) if self.random.random() < 0.5 else 2**32 - 1
            head = HEADS[int(self.random.random() * len(HEADS))] + struct.pack(">I", size)
        else:
            head = SHORT_HEADS[int(self.random.random() * len(SHORT_HEADS))]
            head += self.random.randbytes(1 + int(self.random.random() * 4))
        frame = self.right()
        start = self.place(len(frame)) if self.random.random() < 0.6 else 0
        return frame[:start] + head + frame[start:]

    def noise(self) -> bytes:
        """Any bytes, up to 64."""
        return self.random.randbytes(int(self.random.random() * 65))


# --- the decoder -----------------------------------------------------------------------------------------------------
@dataclass
class Tally:
    """What came of frames."""

    frames: int = 0
    refused: int = 0
    """DecodeError"""
    uncaught: int = 0
    """anything else that was raised"""
    crashes: int = 0
    growth_mb: float = 0.0
    """of the memory of a process, after its first blocks"""
    examples: list[tuple[bytes, str]] = field(default_factory=list)
    """(frame, traceback) of the first that were uncaught"""

    def add(self, other: "Tally") -> None:
        self.frames += other.frames
        self.refused += other.refused
        self.uncaught += other.uncaught
        self.crashes += other.crashes
        self.growth_mb = max(self.growth_mb, other.growth_mb)
        self.examples = [*self.examples, *other.examples][:10]


def decode(frame: bytes) -> Any:
    """As a server does, or, by the frame's last bit, as a client does, who allows arrays of text."""
    from vla.serve.codec import unpack

    return unpack(frame, text_arrays=bool(frame) and frame[-1] & 1 == 1)


def try_block(seed: int, block: int, frames: int, decode: Callable[[bytes], Any]) -> Tally:
    """Decode the frames of a block."""
    from vla.serve.codec import DecodeError

    made, tally = Frames(f"decoder/{seed}/{block}", decoder_corpus()), Tally(frames)
    for _ in range(frames):
        frame = made.next()
        try:
            decode(frame)
        except DecodeError:
            tally.refused += 1
        except Exception as error:
            tally.uncaught += 1
            if len(tally.examples) < 3:
                tally.examples.append((frame, "".join(traceback.format_exception(error))))
    return tally


def _work(pipe: Connection, decoder: str, seed: int, sizes: list[tuple[int, int]], warm_up: int) -> None:
    """In a process: (block, frames) after each other. Sends each block's tally; memory counts after `warm_up`."""
    module, _, name = decoder.partition(":")
    decode, first = getattr(importlib.import_module(module), name), None
    for done, (block, frames) in enumerate(sizes):
        tally = try_block(seed, block, frames, decode)
        if done >= warm_up:
            first = rss_mb() if first is None else first
            tally.growth_mb = rss_mb() - first
        pipe.send(tally)
    pipe.close()


def fuzz_decoder(frames: int, seed: int, decoder: str = DECODER, workers: int | None = None) -> Tally:
    """Decode so many frames in processes, one a core. `decoder`: "module:function"."""
    sizes = [(block, min(BLOCK, frames - block * BLOCK)) for block in range(-(-frames // BLOCK))]
    workers = min(workers or os.cpu_count() or 1, len(sizes))
    todo = {worker: sizes[worker::workers] for worker in range(workers)}
    total, running = Tally(), {}
    warm_up = max(1, len(sizes) // workers // 10)
    for worker in todo:
        running[worker] = _start(decoder, seed, todo[worker], warm_up)
    while running:
        ready = set(wait([pipe for pipe, _ in running.values()], PATIENCE_S))
        for worker, (pipe, process) in list(running.items()):
            if pipe not in ready and ready:
                continue
            try:
                if not ready:
                    process.kill()  # nobody got a block done
                    raise EOFError
                total.add(pipe.recv())
                todo[worker].pop(0)
            except EOFError:
                process.join()
                del running[worker]
                if todo[worker]:  # it died in this block; the next process goes on behind it
                    total.crashes += 1
                    lost = todo[worker].pop(0)[0]
                    total.examples.append((b"", f"block {lost} ended the process with code {process.exitcode}"))
                    if todo[worker] and total.crashes < MOST_CRASHES:
                        running[worker] = _start(decoder, seed, todo[worker], warm_up)
    return total


def _start(decoder: str, seed: int, sizes: list[tuple[int, int]], warm_up: int) -> tuple[Connection, Any]:
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(theirs, decoder, seed, sizes, warm_up), daemon=True)
    process.start()
    theirs.close()
    return mine, process


# --- the server ------------------------------------------------------------------------------------------------------
class Fuzzer:
    """Sends frames over a few connections, many in flight, and counts what comes back."""

    def __init__(self, server: Served, known: Known, seed: int, connections: int = 4) -> None:
        self.server, self.known, self.random = server, known, random.Random(f"server/{seed}")
        self.frames = Frames(f"server/{seed}/frames", server_corpus())
        self.clients = [WireClient(server.port) for _ in range(connections)]
        self.tally = Tally()
        self.right, self.answered = 0, 0

    def round(self, frames: int) -> None:
        """`frames` frames over one connection, then a right request over it; every answer is read."""
        which = int(self.random.random() * len(self.clients))
        sent = [self.make() for _ in range(frames)]
        good = int(self.random.random() * len(self.known.frames))
        try:
            for start in range(0, frames, 20):  # few enough that their answers fit into the sockets' buffers
                part = sent[start : start + 20]
                for payload, opcode in part:
                    self.clients[which].send(payload, opcode)
                for payload, _ in part:
                    answer = self.clients[which].receive()
                    self.tally.refused += isinstance(answer, str)
                    self.answered += not isinstance(answer, str)
                    if not answer or (isinstance(answer, str) and ("\n" in answer or "Traceback" in answer)):
                        self.wrong(payload, f"answered with {answer[:200]!r}")
            if self.known.right(good, answer := self.clients[which].ask(self.known.frames[good])):
                self.right += 1
            else:
                self.wrong(self.known.frames[good], f"a right request was answered with {answer[:200]!r}")
        except OSError as error:  # no answer in a minute, or it hung up on us
            self.wrong(b"", f"no answer to a frame of round {self.tally.frames // max(frames, 1)}: {error}")
            self.clients[which].close()
            if self.server.alive():
                self.clients[which] = WireClient(self.server.port)
        self.tally.frames += frames

    def make(self) -> tuple[bytes, int]:
        """A frame and its opcode: 3 % are text, half a per cent are right requests."""
        roll = self.random.random()
        if roll < 0.005:
            right = server_right()
            return right[int(self.random.random() * len(right))], 2
        if roll < 0.03:
            return self.frames.noise().decode("latin-1").encode(), TEXT
        return self.frames.next(), 2

    def wrong(self, payload: bytes, what: str) -> None:
        self.tally.uncaught += 1
        self.tally.examples = [*self.tally.examples, (payload, what)][:10]

    def close(self) -> None:
        for client in self.clients:
            client.close()


def fuzz_server(frames: int, seed: int, folder: Path) -> tuple[Tally, str]:
    """Send so many frames to a real server; returns the tally and a line about it."""
    known = Known(4)
    with served(folder / "fuzz_server.log", "--deadline-s", "60", "--queue", "64") as server:
        fuzzer = Fuzzer(server, known, seed)
        rounds = max(1, frames // EVERY)
        first = 0.0
        for done in range(rounds):
            if done == max(1, rounds // 10):
                first = server.rss_mb()
            fuzzer.round(EVERY)
            if not server.alive():
                break
        fuzzer.tally.growth_mb = server.rss_mb() - first if server.alive() and first else float("nan")
        fuzzer.tally.crashes += not server.alive()
        fuzzer.close()
    if tracebacks := server.tracebacks():
        fuzzer.wrong(b"", f"{tracebacks} tracebacks in '{server.log.name}'")
    tally = fuzzer.tally
    line = f"{tally.refused:,} refused, {fuzzer.answered:,} answered with actions; "
    return tally, line + f"{fuzzer.right} of {rounds} right requests between them answered right"


def fuzz(config: SurvivalConfig) -> list[Row]:
    """The part `fuzz`. What is found is left in <out>/fuzz_found."""
    began = time.monotonic()
    wanted = QUICK_FRAMES if config.quick else FRAMES
    decoder = fuzz_decoder(wanted, config.seed)
    seconds = time.monotonic() - began
    wanted_server = QUICK_SERVER_FRAMES if config.quick else SERVER_FRAMES
    server, line = fuzz_server(wanted_server, config.seed, config.out)
    keep([*decoder.examples, *server.examples], config.out / "fuzz_found")
    crashes, uncaught = decoder.crashes + server.crashes, decoder.uncaught + server.uncaught
    grown = float(np.nanmax([decoder.growth_mb, server.growth_mb]))
    parts = f"decoder {decoder.growth_mb:.1f} MB, server {server.growth_mb:.1f} MB"
    made = f"{decoder.refused / max(decoder.frames, 1):.1%} refused, the others decoded; {seconds:.0f} s"
    return [
        at_least("decoder_frames", decoder.frames, wanted, "frames", made),
        at_least("server_frames", server.frames, wanted_server, "frames", line),
        at_most("crashes", crashes, 0, "processes", "workers of the decoder and the server that died or hung"),
        at_most(
            "uncaught", uncaught, 0, "frames", "raised anything but DecodeError, or were not answered as they should"
        ),
        at_most("fuzz_rss_growth_mb", grown, GROWTH_MB, "MB", f"after the first tenth: {parts}"),
    ]


def keep(found: list[tuple[bytes, str]], folder: Path) -> None:
    """Write frames and what they did: <folder>/<n>.bin and <n>.txt."""
    for number, (payload, what) in enumerate(found):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.bin").write_bytes(payload)
        (folder / f"{number}.txt").write_text(what, encoding="utf-8")
