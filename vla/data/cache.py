# SPDX-License-Identifier: Apache-2.0
"""A dataset's frames decoded once, into memory maps that training reads at random.

Decoding a frame out of a video where it is needed gives 200 frames/s; a memory map gives tens of thousands,
and the operating system keeps in memory what fits. A cache is a folder named after a fingerprint of the
dataset, made in a temporary folder and renamed when it is complete.
"""

import contextlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vla.data.language import NOTHING_SAID
from vla.data.lerobot_files import LeRobotFiles, find_dataset, fingerprint, read_tables

if TYPE_CHECKING:
    from rich.console import Console

_ARRAYS = (
    "state",
    "action",
    "executed",
    "timestamp",
    "frame_index",
    "episode_index",
    "task_index",
    "plan_index",
    "subtask_index",
    "episode_from",
    "episode_to",
    "dynamics_only",
)
Job = Callable[[Callable[[int], None]], None]
"""Decodes one file; is given a function to tell how many more frames are done."""
_FORMAT = 3
"""Part of the folder's name: a cache of another layout is not mistaken for one of this."""


@dataclass
class FrameCache:
    """N frames in E episodes."""

    path: Path
    """the cache's folder"""
    frames: dict[str, Any]
    """camera -> uint8 (N, H, W, 3), read-only: np.memmap, or vla.data.mixture.JoinedFrames"""
    state: np.ndarray
    """float32 (N, S), in the dataset's units"""
    action: np.ndarray
    """float32 (N, A), in the dataset's units: what should be done, which a policy learns"""
    timestamp: np.ndarray
    """float64 (N,), seconds since the episode's beginning"""
    frame_index: np.ndarray
    """int64 (N,), within the episode"""
    episode_index: np.ndarray
    """int64 (N,)"""
    task_index: np.ndarray
    """int64 (N,), into tasks"""
    episode_from: np.ndarray
    """int64 (E,): the episode's first frame"""
    episode_to: np.ndarray
    """int64 (E,): one past its last frame"""
    tasks: list[str]
    """instructions"""
    fps: float
    action_names: tuple[str, ...]
    state_names: tuple[str, ...]
    cameras: tuple[str, ...]
    meta: dict[str, Any]
    """{"root": str, "info": meta/info.json, "episodes": {further columns of meta/episodes: list of length E}}
    """
    parts: tuple[int, ...] = (0,)
    """first frame of each dataset, where several were joined (vla.data.mixture)"""
    plan_index: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """int64 (N,), into plans: what is still to do; -1 where the dataset says nothing. Not given: -1 everywhere"""
    plans: list[str] = field(default_factory=list)
    """texts; "" is a plan, too: nothing is left to do"""
    subtask_index: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """int64 (N,), into subtasks: what is being done; as plan_index"""
    subtasks: list[str] = field(default_factory=list)
    executed: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    """float32 (N, A), in the dataset's units: what was done. Not given: the same as action"""
    dynamics_only: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    """bool (E,): episodes that show how the world moves, and are no demonstrations. Not given: none"""

    def __post_init__(self) -> None:
        if not len(self.executed):
            self.executed = self.action
        if not len(self.dynamics_only):
            self.dynamics_only = np.zeros(len(self.episode_from), bool)
        for name in ("plan_index", "subtask_index"):
            if not len(getattr(self, name)):
                setattr(self, name, np.full(len(self), NOTHING_SAID, np.int64))

    def __len__(self) -> int:
        return len(self.action)


def default_cache_dir() -> Path:
    """$VLA_CACHE, or ~/.cache/lattice."""
    return Path(os.environ.get("VLA_CACHE") or "~/.cache/lattice").expanduser()


def open_cache(
    root: str | Path,
    image_size: int | None = None,
    cache_dir: str | Path | None = None,
    *,
    workers: int = 0,
    console: "Console | None" = None,
) -> FrameCache:
    """Open the cache of a LeRobot v3 dataset; make it first if there is none.

    `root`: the dataset's folder, or its name on the hub. `image_size`: resize pictures to this square; None
    keeps them as they are. `cache_dir`: default `default_cache_dir()`. `workers`: threads that decode, 0: one
    per core. ValueError for a dataset that is missing, has no language, has numbers that are not finite, or
    whose videos are broken or shorter than its tables.
    """
    if image_size is not None and image_size < 1:
        raise ValueError(f"expected an image_size >= 1, got {image_size}")
    folder = find_dataset(root)
    base = Path(cache_dir).expanduser() if cache_dir else default_cache_dir()
    name = f"{folder.resolve().name}-{fingerprint(folder)[:20]}-{image_size or 'full'}-v{_FORMAT}"
    path = base / name
    if not (path / "about.json").exists():
        _build(read_tables(folder), path, image_size, workers or _cores(), console)
    cache = load_cache(path)
    cache.meta["root"] = str(folder)  # an identical dataset may have been elsewhere when the cache was made
    return cache


def load_cache(path: Path) -> FrameCache:
    """Open a finished cache."""
    about = json.loads((path / "about.json").read_text(encoding="utf-8"))
    arrays = {name: np.load(path / f"{name}.npy") for name in _ARRAYS}
    frames = {camera: np.load(path / file, mmap_mode="r") for camera, file in about["frames"].items()}
    return FrameCache(
        path=path,
        frames=frames,
        **arrays,
        tasks=about["tasks"],
        plans=about["plans"],
        subtasks=about["subtasks"],
        fps=about["fps"],
        action_names=tuple(about["action_names"]),
        state_names=tuple(about["state_names"]),
        cameras=tuple(frames),
        meta=about["meta"],
    )


def _cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# ---- building ----------------------------------------------------------------------------------------------


def _build(tables: LeRobotFiles, path: Path, size: int | None, workers: int, console: "Console | None") -> None:
    """Decode everything into a temporary folder, and rename it to `path`."""
    from rich.console import Console

    from vla.data.progress import JobProgress

    n, base = len(tables.action), path.parent
    base.mkdir(parents=True, exist_ok=True)
    shapes = {camera: _shape(tables, camera, size) for camera in tables.cameras}
    need = sum(n * h * w * 3 for h, w in shapes.values())
    free = shutil.disk_usage(base).free
    if need > free:
        raise ValueError(
            f"the frame cache of '{tables.root}' needs {need / 2**30:.1f} GiB in '{base}', where "
            f"{free / 2**30:.1f} GiB are free: make room, set VLA_CACHE to another disk, or "
            "train at a smaller image_size"
        )
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=base))
    try:
        files = {camera: f"frames-{i}.npy" for i, camera in enumerate(tables.cameras)}
        jobs: list[Job] = []
        maps = []
        for camera, (height, width) in shapes.items():
            frames = np.lib.format.open_memmap(temporary / files[camera], "w+", np.uint8, (n, height, width, 3))
            maps.append(frames)
            jobs += _jobs(tables, camera, frames, size, workers)
        if jobs:  # a dataset may have no cameras
            total = n * len(shapes)
            with JobProgress(console or Console(highlight=False), f"decode {tables.root.name}", total) as progress:
                _run(jobs, workers, lambda count: progress.add(count, count))
        for frames in maps:
            frames.flush()
        del maps
        for name in _ARRAYS:
            np.save(temporary / f"{name}.npy", getattr(tables, name))
        about = {
            "frames": files,
            "tasks": tables.tasks,
            "plans": tables.plans,
            "subtasks": tables.subtasks,
            "fps": tables.fps,
            "action_names": tables.action_names,
            "state_names": tables.state_names,
            "meta": {"root": str(tables.root), "info": tables.info, "episodes": tables.extra},
        }
        (temporary / "about.json").write_text(json.dumps(about, default=str), encoding="utf-8")
        # Another process may have made the same cache meanwhile: then a folder is in the way, and it will do.
        with contextlib.suppress(OSError):
            os.rename(temporary, path)
        if not (path / "about.json").exists():
            raise ValueError(f"'{path}' is in the way of a frame cache: delete it")
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _run(jobs: list[Job], workers: int, tell: Callable[[int], None]) -> None:
    """Run the jobs in threads (decoding leaves the interpreter's lock); the first error ends all."""
    with ThreadPoolExecutor(max(1, min(workers, len(jobs)))) as pool:
        stopped: list[bool] = []

        def tell_or_stop(count: int) -> None:
            if stopped:
                raise InterruptedError
            tell(count)

        futures = [pool.submit(job, tell_or_stop) for job in jobs]
        try:
            for future in futures:
                future.result()
        except BaseException:
            stopped.append(True)
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _shape(tables: LeRobotFiles, camera: str, size: int | None) -> tuple[int, int]:
    """Height and width of a camera's cached frames."""
    if size is not None:
        return size, size
    feature = tables.info["features"][tables.cameras[camera]]
    shape, names = feature["shape"], feature.get("names") or []
    channels_first = list(names)[:1] in (["channels"], ["channel"], ["c"])
    return (shape[1], shape[2]) if channels_first else (shape[0], shape[1])


def _jobs(tables: LeRobotFiles, camera: str, frames: np.ndarray, size: int | None, workers: int) -> list[Job]:
    """One job a file of this camera."""
    feature = tables.cameras[camera]
    if tables.info["features"][feature]["dtype"] == "image":
        return [partial(_decode_images, tables, feature, path, frames, size) for path in tables.data_files]
    key = f"videos/{feature}"
    episodes = tables.episodes
    by_file: dict[Path, list[int]] = {}
    for episode in range(len(tables.episode_from)):
        place = {n: episodes[f"{key}/{n}"][episode] for n in ("chunk_index", "file_index")}
        path = tables.root / tables.info["video_path"].format(video_key=feature, **place)
        by_file.setdefault(path, []).append(episode)
    starts = np.array(episodes[f"{key}/from_timestamp"])
    threads = max(1, workers // len(by_file))
    return [partial(_decode_video, tables, path, own, starts, frames, size, threads) for path, own in by_file.items()]


def _decode_video(
    tables: LeRobotFiles,
    path: Path,
    episodes: list[int],
    starts: np.ndarray,
    frames: np.ndarray,
    size: int | None,
    threads: int,
    tell: Callable[[int], None],
) -> None:
    """Fill the rows of `episodes`, all in the file `path`; `starts`: where each episode begins in it, s."""
    from vla.data.video import read_frames, to_rgb

    if not path.exists():
        raise ValueError(f"the dataset '{tables.root}' lacks the video '{path}': fetch it again")
    rows = np.concatenate([np.arange(tables.episode_from[e], tables.episode_to[e]) for e in episodes])
    times = starts[tables.episode_index[rows]] + tables.timestamp[rows]
    order = np.argsort(times, kind="stable")
    rows, times = rows[order], times[order]
    half = 0.5 / tables.fps
    done = told = 0
    decoded = read_frames(path, threads)
    with contextlib.closing(decoded):
        for time_s, frame in decoded:
            if times[done] < time_s - half:
                break  # no frame is near enough
            if times[done] < time_s + half:
                image = to_rgb(frame, size)
                if image.shape != frames.shape[1:]:
                    raise ValueError(
                        f"frames of '{path}' are {image.shape[0]} x {image.shape[1]}, meta/info.json says "
                        f"{frames.shape[1]} x {frames.shape[2]}: give an image_size to resize them"
                    )
                while done < len(rows) and times[done] < time_s + half:
                    frames[rows[done]] = image
                    done += 1
            if done - told >= 500:
                tell(done - told)
                told = done
            if done == len(rows):
                break
    if done < len(rows):
        episode = int(tables.episode_index[rows[done]])
        raise ValueError(
            f"the video '{path}' has no frame at {times[done]:.3f} s, for episode {episode}, frame "
            f"{int(tables.frame_index[rows[done]])}: it is shorter than the tables say, or "
            "broken; fetch it again"
        )
    tell(done - told)


def _decode_images(
    tables: LeRobotFiles,
    feature: str,
    path: Path,
    frames: np.ndarray,
    size: int | None,
    tell: Callable[[int], None],
) -> None:
    """Fill the rows of a data file whose pictures are PNG or JPEG in a column."""
    import pyarrow.parquet as pq
    from PIL import Image

    height, width = frames.shape[1:3]
    for batch in pq.ParquetFile(path).iter_batches(256, columns=["index", "episode_index", feature]):
        count = 0
        for row, episode, content in zip(*(batch[i].to_pylist() for i in range(3)), strict=True):
            if episode >= len(tables.episode_from):
                continue
            count += 1
            try:
                source = io.BytesIO(content["bytes"]) if content["bytes"] else tables.root / content["path"]
                image = Image.open(source).convert("RGB")
            except (OSError, TypeError) as error:
                raise ValueError(f"cannot decode '{feature}' of frame {row} in '{path}': {error}") from error
            if image.size != (width, height):
                if size is None:
                    raise ValueError(
                        f"'{feature}' of frame {row} is {image.height} x {image.width}, meta/info.json says "
                        f"{height} x {width}: give an image_size to resize"
                    )
                resampling = Image.Resampling.BOX if image.width > width else Image.Resampling.BICUBIC
                image = image.resize((width, height), resampling)
            frames[row] = np.asarray(image)
        tell(count)
