# SPDX-License-Identifier: Apache-2.0
"""How fast a dataset becomes batches: writing, decoding once into the cache, gathering. One core, 96 px.

Makes a small synthetic dataset with our own writer in a temporary folder. Writes benchmarks/results/loader.json,
prints a table and one last line of JSON.

    python benchmarks/loader.py --frames 8000
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np
from rich.console import Console

from vla.bench.results import Row, results, show, write
from vla.data.batches import Batches, Prefetch
from vla.data.cache import open_cache
from vla.data.shard import DatasetSpec, ShardWriter
from vla.data.writer import DatasetWriter

GOALS = {"write": 1000, "decode": 2000, "gather": 5000, "prefetch": 5000}


def synthetic_episode(seed: int, length: int, size: int) -> np.ndarray:
    """Blocks on a noisy table, one of them moving: uint8 (length, size, size, 3)."""
    rng = np.random.default_rng(seed)
    table = rng.integers(110, 130, (size, size, 3), dtype=np.uint8)
    frames = np.tile(table, (length, 1, 1, 1))
    colours, places = rng.integers(0, 256, (4, 3)), rng.integers(0, size - 10, (4, 2))
    for t in range(length):
        for i in range(4):
            y, x = (places[i] + (t if i == 0 else 0)) % (size - 8)
            frames[t, y : y + 8, x : x + 8] = colours[i]
    return frames


def measure(frames: int, size: int, batch_size: int, seconds: float, console: Console) -> dict[str, float]:
    """Frames/s of every stage, in one process on one core."""
    length, per_shard = 25, 80
    episodes = frames // length
    total = episodes * length
    rates: dict[str, float] = {}
    spec = DatasetSpec(10, {"front": (size, size)}, ("x", "y", "z", "grip"), ("dx", "dy", "dz", "grip"))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "synthetic"
        writer, spent = DatasetWriter(root, {"synthetic": True}), 0.0
        rng = np.random.default_rng(0)
        for index, first in enumerate(range(0, episodes, per_shard)):
            shard = ShardWriter(Path(folder) / f"shard-{index}", index, spec)
            for episode in range(first, min(first + per_shard, episodes)):
                images = synthetic_episode(episode, length, size)
                state, action = rng.standard_normal((2, length, 4)).astype(np.float32)
                began = time.perf_counter()
                shard.add_episode({"front": images}, state, action, f"take block {episode % 7}", {}, "synthetic")
                spent += time.perf_counter() - began
            began = time.perf_counter()
            writer.commit(shard.finish())
            spent += time.perf_counter() - began
        rates["write"] = total / spent
        rates["bytes_per_frame"] = sum(p.stat().st_size for p in root.rglob("*") if p.is_file()) / total

        began = time.perf_counter()
        cache = open_cache(root, cache_dir=Path(folder) / "cache", workers=1, console=console)
        rates["decode"] = total / (time.perf_counter() - began)

        batches = Batches(cache, horizon=16, batch_size=batch_size, seed=0)
        steps, began = 0, time.perf_counter()
        while time.perf_counter() - began < seconds:
            batches.batch(steps)
            steps += 1
        rates["gather"] = steps * batch_size / (time.perf_counter() - began)

        prefetch: Prefetch
        with batches.prefetch(0, depth=3) as prefetch:
            steps, began = 0, time.perf_counter()
            while time.perf_counter() - began < seconds:
                next(prefetch)
                steps += 1
            rates["prefetch"] = steps * batch_size / (time.perf_counter() - began)
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=8000)
    parser.add_argument("--size", type=int, default=96, help="side of the pictures, pixels")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=2.0, help="of measuring each way of gathering")
    arguments = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    console = Console(highlight=False)
    rates = measure(arguments.frames, arguments.size, arguments.batch_size, arguments.seconds, console)
    notes = {
        "write": "encode and write a dataset",
        "decode": "decode it into the cache, tables and all",
        "gather": f"gather batches of {arguments.batch_size}",
        "prefetch": f"batches of {arguments.batch_size} through the prefetching thread",
    }
    rows = [
        Row(
            f"loader_{key}_fps",
            round(rates[key]),
            "1/s",
            arguments.frames,
            goal=f"at least {goal}",
            passes=rates[key] >= goal,
            note=f"{notes[key]}, {arguments.size} px, one core",
        )
        for key, goal in GOALS.items()
    ]
    measured = results("loader", rows, [0], {"bytes_per_frame": round(rates["bytes_per_frame"], 1)})
    write(measured, Path(__file__).parent / "results" / "loader.json")
    console.print(f"{rates['bytes_per_frame'] / 1000:.2f} kB/frame on the disk")
    show(measured, console)


if __name__ == "__main__":
    main()
