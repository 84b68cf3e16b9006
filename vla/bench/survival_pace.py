# SPDX-License-Identifier: Apache-2.0
"""What a server costs beside the policy itself (`overhead`), and whether it stays as it is for hours (`soak`)."""

import json
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from vla.bench.results import Row
from vla.bench.survival import SurvivalConfig, at_most
from vla.bench.survival_server import POLICY, Served, cpu_ms, observation, served

CAMERAS, SIZE = ("front", "left", "wrist"), 224
PAIRS, QUICK_PAIRS = 1000, 20
WARM_UP = 5
P50_MS, P95_MS = 2.0, 6.0

QUICK_SOAK_S = 15.0
RATE = 20.0
"""Requests a second of the client that stays."""
COME_AND_GO_S = 3.0
"""How long the other client stays away."""
BINS = 60
"""Of the figures."""
DRIFT, SOAK_GROWTH_MB = 0.05, 20.0


# --- overhead --------------------------------------------------------------------------------------------------------
def three_cameras(folder: Path, seed: int) -> Path:
    """Save a policy with random weights, three cameras at 224 px and the tokenizers of the shipped one.

    A server takes pictures of the policy's own size only, so neither side resizes.
    """
    import torch

    from vla import checkpoint
    from vla.model import LatticeModel
    from vla.policy import Policy

    small = Policy.load(POLICY)
    torch.manual_seed(seed)
    model = LatticeModel(replace(small.model.config, cameras=CAMERAS, image_size=SIZE))
    policy = Policy(model, small.tokenizers, small.fps, small.sampling, small.n_action_steps)
    return checkpoint.write_folder(folder, policy.write)


@dataclass
class Pairs:
    """Times of the same requests, ms: of the bare policy, and of a client's call over loopback."""

    bare: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    inside: list[float] = field(default_factory=list)
    """of the whole, what the policy took in the server"""
    equal: int = 0
    """pairs with the same actions, bit for bit"""
    more_cpu: float = float("nan")
    """processor time of a call, client and server, minus that of a bare one: the mean"""


def pairs_of(policy: Any, client: Any, pid: int, messages: Sequence[dict[str, Any]], count: int) -> Pairs:
    """Bare, then by the server `pid`, in turn, on the same observation; the first few are not counted."""
    from vla.policy import Observation

    found, here, there = Pairs(), 0.0, 0.0
    for turn in range(-WARM_UP, count):
        if turn == 0:
            there = cpu_ms(pid)
        message, used = messages[turn % len(messages)], time.process_time()
        began = time.perf_counter()
        images = {camera: message[f"observation/{camera}"] for camera in CAMERAS}
        seen = Observation(images, message["observation/state"], message["prompt"])
        chunk = policy.decide([seen], [(0, 0)])
        between, used_between = time.perf_counter(), time.process_time()
        reply = client.infer(message)
        ended = time.perf_counter()
        if turn >= 0:
            found.bare.append(1e3 * (between - began))
            found.whole.append(1e3 * (ended - between))
            found.inside.append(float(reply["policy_timing"]["infer_ms"]))
            found.equal += reply["actions"].tobytes() == chunk.actions_BHA[0].tobytes()
            here += 1e3 * ((time.process_time() - used_between) - (used_between - used))  # the client's, less the bare
    found.more_cpu = (cpu_ms(pid) - there + here) / count
    return found


def overhead(config: SurvivalConfig) -> list[Row]:
    """The part `overhead`. One client, one thread of torch on both sides."""
    import torch

    from vla.policy import Policy
    from vla.serve.client import PolicyClient

    torch.set_num_threads(1)
    folder = three_cameras(config.out / "three_cameras", config.seed)
    policy = Policy.load(folder)
    messages = [observation(seed, CAMERAS, SIZE, len(policy.state_names)) for seed in range(8)]
    count = QUICK_PAIRS if config.quick else PAIRS
    log = config.out / "overhead_server.log"
    with (
        served(log, "--deadline-s", "60", policy=str(folder)) as server,
        PolicyClient("127.0.0.1", server.port, timeout_s=60) as client,
    ):
        found = pairs_of(policy, client, server.process.pid, messages, count)
    return overhead_rows(found, count)


def overhead_rows(found: Pairs, count: int) -> list[Row]:
    """The rows of `overhead`, out of `count` pairs."""
    bare, whole, inside = (np.array(values) for values in (found.bare, found.whole, found.inside))
    same = found.equal == count
    told = f"{found.equal} of {count} pairs with equal actions; load {_load()}"
    note = "of a single call: client's time minus the policy's own in it, which is paired; " + told
    rows = []
    for percent, goal in ((50, P50_MS), (95, P95_MS)):
        beside = float(np.percentile(whole - inside, percent))
        rows.append(at_most(f"server_beside_policy_p{percent}_ms", beside, goal, "ms", note, same, n=count))
    note = "percentile of calls by the server minus percentile of bare calls, made in turn in another process, whose "
    note += f"caches are its own; {told}"
    for percent in (50, 95):
        value, interval = difference(bare, whole, percent)
        rows.append(Row(f"server_overhead_p{percent}_ms", value, "ms", count, interval, note=note))
    cpu = "processor time of a call, client and server, minus that of a bare one; the mean, whatever else runs here"
    rows.append(Row("server_overhead_cpu_ms", found.more_cpu, "ms", count, note=cpu))
    about = f"random weights, {len(CAMERAS)} cameras at {SIZE} px, one thread"
    return [*rows, Row("bare_inference_p50_ms", float(np.median(bare)), "ms", count, note=about)]


def difference(bare: np.ndarray, whole: np.ndarray, percent: float) -> tuple[float, tuple[float, float]]:
    """Percentile of `whole` minus that of `bare`, both float64 (n,), with the 95 % interval by bootstrap over pairs."""
    drawn = np.random.default_rng(0).integers(0, len(bare), (2000, len(bare)))
    spread = np.percentile(whole[drawn], percent, axis=1) - np.percentile(bare[drawn], percent, axis=1)
    low, high = np.percentile(spread, (2.5, 97.5))
    return float(np.percentile(whole, percent) - np.percentile(bare, percent)), (float(low), float(high))


def _load() -> str:
    """The machine's load average of the last minute, or "unknown"."""
    return f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"


# --- soak ------------------------------------------------------------------------------------------------------------
@dataclass
class Series:
    """What was seen along time; all times in s since the beginning."""

    seconds: float
    """how long it was meant to last"""
    asked: list[tuple[float, float]] = field(default_factory=list)
    """(time, latency ms) of the client that stays"""
    memory: list[tuple[float, float]] = field(default_factory=list)
    """(time, resident MB of the server), about once a second"""
    visits: int = 0
    """of the client that comes and goes"""
    failed: list[str] = field(default_factory=list)

    def sixth(self, number: int) -> np.ndarray:
        """Latencies in the sixth 0..5 of the time, float64 (n,) ms."""
        return np.array([ms for at, ms in self.asked if int(6 * at / self.seconds) == number])

    def drift(self) -> float:
        """p99 of the last sixth over that of the second, minus 1; NaN without requests in them."""
        second, last = self.sixth(1), self.sixth(5)
        if not len(second) or not len(last):
            return float("nan")
        return float(np.percentile(last, 99) / np.percentile(second, 99) - 1)

    def growth_mb(self) -> float:
        """The most memory after the first sixth, minus the memory at its end."""
        after = [mb for at, mb in self.memory if at >= self.seconds / 6]
        return max(after) - after[0] if after else float("nan")


def come_and_go(server: Served, over: threading.Event, series: Series, began: float) -> None:
    """Connect, ask two times, go, again and again; notes the server's memory meanwhile. In a thread."""
    from vla.serve.client import PolicyClient

    message, away = observation(1), 0.0
    while not over.wait(min(1.0, series.seconds / 60)):
        now = time.monotonic() - began
        series.memory.append((now, server.rss_mb()))
        if now < away:
            continue
        away = now + COME_AND_GO_S
        try:
            with PolicyClient("127.0.0.1", server.port) as client:
                for seed in range(2):
                    client.infer(message | {"seed": seed})
            series.visits += 1
        except Exception as error:
            series.failed.append(f"visit at {now:.0f} s: {error}")


def stay(server: Served, series: Series, began: float) -> None:
    """Ask `RATE` times a second until the time is over; what comes too late to keep the pace is not caught up with."""
    from vla.serve.client import PolicyClient

    messages = [observation(seed) for seed in range(8)]
    with PolicyClient("127.0.0.1", server.port) as client:
        client.infer(messages[0])
        due = time.monotonic()
        while (now := time.monotonic()) - began < series.seconds and server.alive():
            if now < due:
                time.sleep(due - now)
                continue
            due = max(due + 1 / RATE, now)
            asked = time.perf_counter()
            try:
                client.infer(messages[len(series.asked) % len(messages)])
            except Exception as error:
                series.failed.append(f"request at {now - began:.0f} s: {error}")
                continue
            series.asked.append((now - began, 1e3 * (time.perf_counter() - asked)))


def soaked(log: Path, seconds: float) -> Series:
    """Keep a real server under load for so long."""
    series, over = Series(seconds), threading.Event()
    with served(log) as server:
        began = time.monotonic()
        visitor = threading.Thread(target=come_and_go, args=(server, over, series, began), daemon=True)
        visitor.start()
        stay(server, series, began)
        over.set()
        visitor.join(30)
        if not server.alive():
            series.failed.append("the server ended")
    if server.tracebacks():
        series.failed.append(f"tracebacks in '{log.name}'")
    return series


def soak(config: SurvivalConfig) -> list[Row]:
    """The part `soak`. The series and two figures are left in `out`."""
    series = soaked(config.out / "soak_server.log", QUICK_SOAK_S if config.quick else 60 * config.soak_minutes)
    keep(series, config.out)
    drift, grown, calm = series.drift(), series.growth_mb(), not series.failed
    second, last = (float(np.percentile(series.sixth(n), 99)) if len(series.sixth(n)) else float("nan") for n in (1, 5))
    about = f"p99 {second:.1f} ms in the second sixth, {last:.1f} ms in the last"
    load = f"{len(series.asked):,} requests at {RATE:g}/s and {series.visits} visits, {len(series.failed)} failed"
    load += f"; load {_load()}"
    return [
        Row("soak_minutes", series.seconds / 60, "min", goal="", passes=calm, note=load),
        Row("soak_p99_drift", drift, "fraction", len(series.asked), None, "below 5 %", bool(drift < DRIFT), about),
        at_most("soak_rss_growth_mb", grown, SOAK_GROWTH_MB, "MB", "the most after the first sixth, minus at its end"),
    ]


def binned(series: Series) -> dict[str, list[Any]]:
    """The series in `BINS` bins, without empty ones: minutes (their middles), p50, p95 and p99 in ms, MB."""
    width = series.seconds / BINS
    made: dict[str, list[Any]] = {"minutes": [], "p50_ms": [], "p95_ms": [], "p99_ms": [], "rss_mb": []}
    for number in range(BINS):
        latencies = [ms for at, ms in series.asked if int(at / width) == number]
        memory = [mb for at, mb in series.memory if int(at / width) == number]
        if latencies and memory:
            made["minutes"].append((number + 0.5) * width / 60)
            made["rss_mb"].append(max(memory))
            for percent in (50, 95, 99):
                made[f"p{percent}_ms"].append(float(np.percentile(latencies, percent)))
    return made


def keep(series: Series, out: Path) -> None:
    """Write soak_series.json, soak_latency.png, soak_memory.png."""
    from vla.bench.plots import curves_plot

    bins = binned(series)
    (out / "soak_series.json").write_text(json.dumps(bins | {"failed": series.failed[:100]}), encoding="utf-8")
    if not bins["minutes"]:
        return

    def curve(name: str) -> list[tuple[float, float, None, None]]:
        return [(x, y, None, None) for x, y in zip(bins["minutes"], bins[name], strict=True)]

    latencies = {f"p{percent}": curve(f"p{percent}_ms") for percent in (99, 95, 50)}
    curves_plot(latencies, out / "soak_latency.png", "A server under load: latency", "minutes", "ms")
    curves_plot({"resident": curve("rss_mb")}, out / "soak_memory.png", "A server under load: memory", "minutes", "MB")
