# SPDX-License-Identifier: Apache-2.0
"""`vla bench data`: how fast frames come out of a dataset and into training batches.

The same synthetic frames, written by LeRobot's own writer as video (its default codec, AV1) and as images, at 64, 96
and 128 px, and read in random order in batches of 64 with chunks of 16 actions, each way as fast as it goes here:

  cache           our cache, decoded once from the video dataset, through the prefetching thread
  lerobot_video   LeRobotDataset and PyAV in torch's DataLoader, the better of no worker and one a core
  lerobot_image   the same, pictures stored in the tables
"""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from vla.bench.results import Row, results
from vla.bench.run import BenchConfig

SIZES, BUILD_SIZE, BATCH, HORIZON, EPISODE, FPS = (64, 96, 128), 96, 64, 16, 25, 10
GOAL_RATIO, GOAL_BUILD = 20, 2000


def synthetic_episode(seed: int, size: int) -> np.ndarray:
    """Blocks on a noisy table, one of them moving: uint8 (EPISODE, size, size, 3)."""
    rng = np.random.default_rng(seed)
    table = rng.integers(110, 130, (size, size, 3), dtype=np.uint8)
    frames = np.tile(table, (EPISODE, 1, 1, 1))
    colours, places = rng.integers(0, 256, (4, 3)), rng.integers(0, size - 10, (4, 2))
    for t in range(EPISODE):
        for i in range(4):
            y, x = (places[i] + (t if i == 0 else 0)) % (size - 8)
            frames[t, y : y + 8, x : x + 8] = colours[i]
    return frames


def write_lerobot(root: Path, size: int, episodes: int, video: bool) -> None:
    """A dataset by LeRobot's writer."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    names = ["height", "width", "channels"]
    picture = {"dtype": "video" if video else "image", "shape": (size, size, 3), "names": names}
    vector = {"dtype": "float32", "shape": (4,), "names": ["x", "y", "z", "gripper"]}
    features = {"observation.images.front": picture, "observation.state": vector, "action": vector}
    dataset = LeRobotDataset.create(f"lattice/{root.name}", FPS, features, root=root, use_videos=video)
    rng = np.random.default_rng(0)
    for episode in range(episodes):
        state, action = rng.standard_normal((2, EPISODE, 4)).astype(np.float32)
        for t, image in enumerate(synthetic_episode(episode, size)):
            frame = {"observation.images.front": image, "observation.state": state[t], "action": action[t]}
            dataset.add_frame(frame | {"task": f"take block {episode % 7}"})
        dataset.save_episode()
    dataset.finalize()


def rate(step: Callable[[], Any], seconds: float) -> float:
    """Frames/s of `step`, which makes a batch, after two that are not counted."""
    for _ in range(2):
        step()
    batches, began = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - began) < seconds:
        step()
        batches += 1
    return batches * BATCH / elapsed


def lerobot_fps(root: Path, seconds: float, workers: int) -> float:
    """Frames/s of LeRobotDataset in a DataLoader."""
    import torch
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    chunk = {"action": [i / FPS for i in range(HORIZON)]}
    dataset = LeRobotDataset(f"lattice/{root.name}", root=root, delta_timestamps=chunk, video_backend="pyav",
                             return_uint8=True)  # fmt: skip
    more: dict[str, Any] = {"multiprocessing_context": "fork", "prefetch_factor": 4} if workers else {}
    loader = torch.utils.data.DataLoader(
        dataset, BATCH, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=workers > 0, **more
    )

    def batches() -> Any:
        while True:
            yield from loader

    iterator = batches()
    return rate(lambda: next(iterator), seconds)


def run(config: BenchConfig) -> dict[str, Any]:
    """Write, build, read; returns the results. What is made is deleted afterwards."""
    import tempfile

    from vla.data.batches import Batches
    from vla.data.cache import open_cache

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    episodes, seconds = (4, 0.3) if config.quick else (80, 4.0)
    sizes = SIZES[:1] if config.quick else SIZES
    n = episodes * EPISODE
    rows: list[Row] = []
    fps: dict[str, float] = {}
    config.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=config.out) as temporary:
        folder = Path(temporary)
        os.environ["HF_DATASETS_CACHE"] = str(folder / "arrow")  # LeRobot copies its tables there
        for size in sizes:
            for storage in ("video", "image"):
                root = folder / f"{storage}_{size}"
                write_lerobot(root, size, episodes, storage == "video")
                fps[f"lerobot_{storage}_fps_{size}"] = max(lerobot_fps(root, seconds, w) for w in (0, cores))
            began = time.perf_counter()
            cache = open_cache(folder / f"video_{size}", cache_dir=folder / "cache")
            build = n / (time.perf_counter() - began)
            if size == BUILD_SIZE or config.quick:
                rows.append(Row("cache_build_fps", build, "1/s", n, goal=f">= {GOAL_BUILD}", passes=build >= GOAL_BUILD,
                                note=f"LeRobot's video decoded into the cache, {size} px, {cores} cores"))  # fmt: skip
            with Batches(cache, HORIZON, BATCH, 0).prefetch(0, depth=3) as prefetch:
                fps[f"cache_fps_{size}"] = rate(lambda: next(prefetch), seconds)
    for size in sizes:
        ours, mib = fps[f"cache_fps_{size}"], size * size * 3 * 1e4 / 2**20
        note = f"{mib:.0f} MiB for 10,000 frames, mapped; as few as these may fit into the processor's own cache"
        rows.append(Row(f"cache_fps_{size}", ours, "1/s", n, note=note))
        for storage in ("video", "image"):
            value = fps[f"lerobot_{storage}_fps_{size}"]
            rows.append(Row(f"lerobot_{storage}_fps_{size}", value, "1/s", n, note=f"{ours / value:.0f} times slower"))
        if size == BUILD_SIZE:
            ratio = ours / fps["lerobot_video_fps_96"]
            rows.append(Row("ratio_96", ratio, "x", n, goal=f">= {GOAL_RATIO}", passes=ratio >= GOAL_RATIO,
                            note="our cache against LeRobot's video"))  # fmt: skip
    return results("data", rows, [0])
