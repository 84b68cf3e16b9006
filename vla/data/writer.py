# SPDX-License-Identifier: Apache-2.0
"""Writes a LeRobotDataset v3.0 that is valid after every shard: a kill loses the shards in hand and no more.

LeRobot's own writer manages 200 to 500 frames/s and leaves a dataset that cannot be opened if it is killed.
Here each shard adds one data file, one episodes file and its videos, which nothing refers to before the shard
is committed; then tasks, statistics, our own record and last meta/info.json are replaced. Every file appears
by a rename in its own folder after an fsync. Only pyarrow and pandas are needed: importing lerobot takes 8 s.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from vla.data.language import FEATURES, language_columns
from vla.data.shard import DatasetSpec, Shard
from vla.data.stats import Stats, image_stats, vector_stats

CODEBASE_VERSION = "v3.0"
FILES_PER_CHUNK = 1000
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
RECORD_PATH = "meta/recording.json"
"""How the dataset was recorded, and how many shards are in it: what resuming needs. LeRobot does not look at
it."""
VECTORS = ("observation.state", "action", "executed_action")
"""Features that are vectors of numbers; not every dataset has the last."""
PARTIAL = ".partial"
"""Folder in the dataset, on the same file system, where videos are written before a shard is committed."""


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file next to `path`, fsync it and rename it: `path` is old or new, never
    half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        write(temporary)
        _sync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync(path.parent)


def write_json_atomic(path: Path, content: dict[str, Any]) -> None:
    """`content` as JSON, through `write_atomic`."""
    write_atomic(path, lambda p: p.write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8"))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _place(number: int) -> dict[str, int]:
    return {"chunk_index": number // FILES_PER_CHUNK, "file_index": number % FILES_PER_CHUNK}


class DatasetWriter:
    """Adds shards to a dataset, in the order of their index.

    `root`: the dataset's folder. `about`: JSON-able, kept in meta/recording.json under "config". `resume`: go
    on with what is there. Attributes to read: shards, episodes, frames, counts (task -> numbers), tasks
    (instructions).
    """

    def __init__(self, root: Path, about: dict[str, Any], resume: bool = False):
        self.root, self.about = root, about
        self.shards = self.episodes = self.frames = self._clips = self._looked_at = 0
        self.tasks: list[str] = []
        self.counts: dict[str, dict[str, int]] = {}
        self._spec: DatasetSpec | None = None
        self._histograms: dict[str, np.ndarray] = {}
        self._vectors: dict[str, list[np.ndarray]] = {}
        if resume and (root / RECORD_PATH).exists():
            self._load()

    # ---- committing ----------------------------------------------------------------------------------------

    def commit(self, shard: Shard) -> None:
        """Make `shard` part of the dataset. Its video files are moved. ValueError if it does not fit the
        others."""
        assert shard.index == self.shards, (shard.index, self.shards)
        if self._spec is not None and shard.spec != self._spec:
            raise ValueError(f"shard {shard.index} differs from those before it: {shard.spec} != {self._spec}")
        self._spec = spec = shard.spec
        if shard.episodes:
            self._commit_episodes(shard)
        self.shards += 1
        for task, numbers in shard.counts.items():
            total = self.counts.setdefault(task, {})
            for name, number in numbers.items():
                total[name] = total.get(name, 0) + number
        if not self.frames:
            return  # every episode failed so far: there is nothing that could be opened
        table = pd.DataFrame({"task_index": range(len(self.tasks))}, index=pd.Index(self.tasks, name="task"))
        write_atomic(self.root / "meta/tasks.parquet", lambda p: table.to_parquet(p))
        write_json_atomic(self.root / "meta/stats.json", self._stats())
        record: dict[str, Any] = {
            "config": self.about,
            "shards": self.shards,
            "episodes": self.episodes,
            "frames": self.frames,
            "tasks": len(self.tasks),
            "clips": self._clips,
            "counts": self.counts,
            "looked_at": self._looked_at,
            "histograms": {camera: h.tolist() for camera, h in self._histograms.items()},
            "info": self._info(spec),
        }
        write_atomic(self.root / RECORD_PATH, lambda p: p.write_text(json.dumps(record) + "\n", encoding="utf-8"))
        write_json_atomic(self.root / "meta/info.json", record["info"])

    def _commit_episodes(self, shard: Shard) -> None:
        place = _place(shard.index)
        for instruction in (episode.instruction for episode in shard.episodes):
            if instruction not in self.tasks:
                self.tasks.append(instruction)
        for camera, paths in shard.videos.items():
            for i, path in enumerate(paths):
                key = f"observation.images.{camera}"
                target = self.root / VIDEO_PATH.format(video_key=key, **_place(self._clips + i))
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(path, target)
                _sync(target.parent)
        data, episodes = self._tables(shard)
        write_atomic(self.root / DATA_PATH.format(**place), lambda p: pq.write_table(data, p))
        write_atomic(self.root / EPISODES_PATH.format(**place), lambda p: pq.write_table(episodes, p))
        self._clips += max((len(paths) for paths in shard.videos.values()), default=0)
        self.episodes += len(shard.episodes)
        self.frames += len(shard.action)
        for feature, values in shard.vectors.items():
            self._vectors.setdefault(feature, []).append(values)
        self._looked_at += shard.looked_at
        for camera, histogram in shard.histograms.items():
            self._histograms[camera] = self._histograms.get(camera, 0) + histogram

    def _tables(self, shard: Shard) -> tuple[pa.Table, pa.Table]:
        """The rows of one shard: of frames and of episodes."""
        lengths = np.array([episode.length for episode in shard.episodes])
        ends = self.frames + np.cumsum(lengths)
        starts = ends - lengths
        frame_index = np.arange(len(shard.action)) + self.frames - np.repeat(starts, lengths)
        task_index = np.array([self.tasks.index(episode.instruction) for episode in shard.episodes])
        numbers = np.arange(self.episodes, self.episodes + len(lengths))
        columns = {
            "timestamp": (frame_index / shard.spec.fps).astype(np.float32),
            "frame_index": frame_index,
            "episode_index": np.repeat(numbers, lengths),
            "index": np.arange(self.frames, self.frames + len(frame_index)),
            "task_index": np.repeat(task_index, lengths),
        }
        arrays = {n: _vector(v) for n, v in shard.vectors.items()} | {n: pa.array(v) for n, v in columns.items()}
        if shard.spec.language:
            arrays |= language_columns([episode.language for episode in shard.episodes], lengths)
        data = pa.table(arrays)

        rows = []
        for i, episode in enumerate(shard.episodes):
            row: dict[str, Any] = {
                "episode_index": int(numbers[i]),
                "tasks": [episode.instruction],
                "length": episode.length,
                "dataset_from_index": int(starts[i]),
                "dataset_to_index": int(ends[i]),
            }
            row |= {f"data/{n}": v for n, v in _place(shard.index).items()}
            row |= {f"meta/episodes/{n}": v for n, v in _place(shard.index).items()}
            for camera in shard.spec.cameras:
                key = f"videos/observation.images.{camera}"
                row |= {f"{key}/{n}": v for n, v in _place(self._clips + episode.clip).items()}
                row |= {f"{key}/from_timestamp": episode.from_s, f"{key}/to_timestamp": episode.to_s}
            row |= {f"stats/{f}/{n}": v.tolist() for f, s in episode.stats.items() for n, v in s.items()}
            rows.append(row | episode.extra)
        return data, pa.Table.from_pylist(rows)

    # ---- metadata ------------------------------------------------------------------------------------------

    def _stats(self) -> dict[str, Any]:
        """meta/stats.json: over all frames so far; of images over every tenth frame."""
        self._vectors = {feature: [np.concatenate(parts)] for feature, parts in self._vectors.items()}
        stats: dict[str, Stats] = {
            f"observation.images.{camera}": image_stats(histogram, self._looked_at)
            for camera, histogram in self._histograms.items()
        }
        stats |= {feature: vector_stats(values) for feature, (values,) in self._vectors.items()}
        return {feature: {n: v.tolist() for n, v in s.items()} for feature, s in stats.items()}

    def _info(self, spec: DatasetSpec) -> dict[str, Any]:
        features: dict[str, Any] = {}
        for camera, (height, width) in spec.cameras.items():
            features[f"observation.images.{camera}"] = {
                "dtype": "video",
                "shape": [height, width, 3],
                "names": ["height", "width", "channels"],
                "info": {
                    "video.height": height,
                    "video.width": width,
                    "video.codec": "h264",
                    "video.pix_fmt": spec.pix_fmt,
                    "video.fps": spec.fps,
                    "video.channels": 3,
                    "has_audio": False,
                    "is_depth_map": False,
                },
            }
        vectors = {"observation.state": spec.state_names, "action": spec.action_names}
        if spec.executed:
            vectors["executed_action"] = spec.action_names
        for feature, names in vectors.items():
            features[feature] = {"dtype": "float32", "shape": [len(names)], "names": list(names)}
        for feature in ("timestamp", "frame_index", "episode_index", "index", "task_index"):
            dtype = "float32" if feature == "timestamp" else "int64"
            features[feature] = {"dtype": dtype, "shape": [1], "names": None}
        if spec.language:
            features |= FEATURES
        info = {
            "codebase_version": CODEBASE_VERSION,
            "fps": spec.fps,
            "features": features,
            "total_episodes": self.episodes,
            "total_frames": self.frames,
            "total_tasks": len(self.tasks),
            "chunks_size": FILES_PER_CHUNK,
            "data_files_size_in_mb": 100,
            "video_files_size_in_mb": 200,
            "data_path": DATA_PATH,
            "video_path": VIDEO_PATH if spec.cameras else None,
            "robot_type": spec.robot_type,
            "splits": {"train": f"0:{self.episodes}"},
        }
        return info

    # ---- resuming ------------------------------------------------------------------------------------------

    def _load(self) -> None:
        """Take up the state after the last committed shard; finish the commit if a kill came just before its
        end."""
        record = json.loads((self.root / RECORD_PATH).read_text(encoding="utf-8"))
        then = {"plans": False} | record["config"]  # recordings of before there were plans
        if then != {"plans": False} | self.about:
            changed = sorted(k for k in then | self.about if then.get(k) != self.about.get(k))
            raise ValueError(
                f"the dataset in '{self.root}' was recorded with other settings: "
                + ", ".join(f"{k}={then.get(k)!r} then, {self.about.get(k)!r} now" for k in changed)
                + "; resume with the same, or choose another folder, or --overwrite"
            )
        self.shards, self.episodes, self.frames = record["shards"], record["episodes"], record["frames"]
        self._clips, self._looked_at, self.counts = record["clips"], record["looked_at"], record["counts"]
        self._histograms = {c: np.array(h, np.int64) for c, h in record["histograms"].items()}
        # A kill may have left rows of the next shard; they are written again, the same.
        self.tasks = pd.read_parquet(self.root / "meta/tasks.parquet").index.tolist()[: record["tasks"]]
        self._vectors = {f: [] for f in VECTORS if f in record["info"]["features"]}
        for shard in range(self.shards):
            path = self.root / DATA_PATH.format(**_place(shard))
            if path.exists():  # not if all its episodes failed
                table = pq.read_table(path, columns=list(self._vectors))
                for name, parts in self._vectors.items():
                    values = table[name].combine_chunks()
                    parts.append(values.flatten().to_numpy().reshape(len(values), -1))
        found = sum(map(len, self._vectors["action"]))
        if found != self.frames:
            raise ValueError(
                f"cannot resume in '{self.root}': its files hold {found} frames, {RECORD_PATH} says "
                f"{self.frames}; files were removed or changed, record anew with --overwrite"
            )
        info = self.root / "meta/info.json"
        if not info.exists() or json.loads(info.read_text(encoding="utf-8")) != record["info"]:
            write_json_atomic(info, record["info"])


def _vector(values_ND: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(values_ND.ravel()), values_ND.shape[1])
