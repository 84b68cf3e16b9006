# SPDX-License-Identifier: Apache-2.0
"""Reads the tables of anybody's LeRobotDataset v3, on disk or on the hub, and refuses what could not be
trained on.

Names of cameras, dimensions and files come from the dataset's own metadata. Only rows that meta/info.json
counts are read, so that a dataset which is being recorded can be opened. Pictures are decoded elsewhere
(vla.data.cache).
"""

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from vla.data.language import read_language
from vla.data.shard import check_finite

EXECUTED = "executed_action"
"""The feature that says what was done where "action" says what should have been. Most datasets have one action only,
which is both."""
UNEVEN = 0.25
"""Timestamps may be off by this fraction of a frame."""
_STANDARD = re.compile(r"^(stats|videos|data|meta)/|^(episode_index|tasks|length|dataset_(from|to)_index)$")


@dataclass
class LeRobotFiles:
    """The tables of a dataset of N frames in E episodes."""

    root: Path
    info: dict[str, Any]
    cameras: dict[str, str]
    """camera name -> feature"""
    fps: float
    state: np.ndarray
    """float32 (N, S); S may be 0"""
    action: np.ndarray
    """float32 (N, A): the label"""
    executed: np.ndarray
    """float32 (N, A): what was done; `action` itself where the dataset has no feature of that name"""
    timestamp: np.ndarray
    """float64 (N,), seconds since the episode's beginning"""
    frame_index: np.ndarray
    episode_index: np.ndarray
    task_index: np.ndarray
    episode_from: np.ndarray
    """int64 (E,): row of the first frame"""
    episode_to: np.ndarray
    """int64 (E,): row after the last frame"""
    tasks: list[str]
    plan_index: np.ndarray
    """int64 (N,), into plans: what is still to do; -1 where the dataset says nothing"""
    plans: list[str]
    """texts; "" is a plan, too: nothing is left to do"""
    subtask_index: np.ndarray
    """int64 (N,), into subtasks: what is being done; -1 where the dataset says nothing"""
    subtasks: list[str]
    state_names: tuple[str, ...]
    action_names: tuple[str, ...]
    episodes: dict[str, list[Any]]
    """columns of meta/episodes that place the videos, in the order of episodes"""
    extra: dict[str, list[Any]]
    """columns of meta/episodes that LeRobot does not define: ours are task_template, seed, noise, success and
    dynamics_only"""
    dynamics_only: np.ndarray
    """bool (E,): episodes that show how the world moves, and are no demonstrations"""
    data_files: list[Path]


def find_dataset(root: str | Path) -> Path:
    """The folder of a dataset: `root` itself, or what the hub's dataset of that name is downloaded to.

    ValueError if there is no such folder, and no such dataset on the hub.
    """
    folder = Path(root).expanduser()
    if (folder / "meta/info.json").is_file():
        return folder
    name = str(root)
    if folder.exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or Path(name.split("/")[0]).exists():
        what = "it has no meta/info.json (nothing is finished there yet?)" if folder.exists() else "no such folder"
        raise ValueError(f"no LeRobot dataset in '{root}': {what}; make one with vla record --out {root}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import RevisionNotFoundError

    try:
        try:
            return Path(snapshot_download(name, repo_type="dataset", revision="v3.0"))
        except RevisionNotFoundError:
            return Path(snapshot_download(name, repo_type="dataset"))
    except Exception as error:
        raise ValueError(
            f"there is no folder '{root}' here, and the hub did not give a dataset of that name: {error}"
        ) from error


def fingerprint(root: Path) -> str:
    """32 hexadecimal digits that change when the dataset does.

    Of the name and content of every metadata, parquet and video file; of those over 16 MiB only the first and
    last 64 KiB, size and time of change, since to read all of a large dataset takes longer than to open its
    cache. An identical dataset that was recorded again has the same fingerprint unless it has such files.
    """
    digest = hashlib.sha256((root / "meta/info.json").read_bytes())
    files = sorted(p for folder in ("meta", "data", "videos") for p in (root / folder).rglob("*.*"))
    for path in files:
        if path.suffix not in (".parquet", ".mp4") or path.name.startswith("."):
            continue
        size = path.stat().st_size
        digest.update(f"{path.relative_to(root).as_posix()} {size}\n".encode())
        with path.open("rb") as file:
            if size <= 16 * 2**20:
                digest.update(file.read())
                continue
            digest.update(f"{path.stat().st_mtime_ns}\n".encode() + file.read(65536))
            file.seek(-65536, os.SEEK_END)
            digest.update(file.read())
    return digest.hexdigest()[:32]


def read_tables(root: Path) -> LeRobotFiles:
    """Read everything but the pictures. ValueError says what is missing or broken, and where."""
    info = _read_info(root)
    features, n_episodes, n_frames = info["features"], info["total_episodes"], info["total_frames"]
    if "action" not in features:
        raise ValueError(f"the dataset '{root}' has no feature 'action'; it has {sorted(features)}")
    cameras = _cameras(features)
    episodes, extra = _read_episodes(root, n_episodes)
    data_files = sorted(
        {
            root / info["data_path"].format(chunk_index=c, file_index=f)
            for c, f in zip(episodes["data/chunk_index"], episodes["data/file_index"], strict=True)
        }
    )
    columns = ["index", "episode_index", "frame_index", "timestamp", "task_index", "action"]
    has_state = "observation.state" in features
    columns += [name for name in ("observation.state", EXECUTED) if name in features]
    table = _read_parquet(data_files, columns, root)
    table = table.filter(pa.compute.less(table["episode_index"], n_episodes)).sort_by("index")
    n = len(table)
    if n != n_frames:
        raise ValueError(f"the dataset '{root}' should have {n_frames} frames, its data files hold {n}: fetch it again")

    if not np.array_equal(table["index"].to_numpy(), np.arange(n)):
        raise ValueError(f"expected the column 'index' of the dataset '{root}' to count 0, 1, ..., {n - 1}")

    def integers(name: str) -> np.ndarray:
        return table[name].to_numpy().astype(np.int64)

    episode_index = integers("episode_index")
    lengths = np.bincount(episode_index, minlength=n_episodes)
    ends = np.cumsum(lengths)
    if np.any(np.diff(episode_index) < 0) or np.any(lengths != np.array(episodes["length"])):
        raise ValueError(f"frames and episodes of the dataset '{root}' do not fit together: lengths or order differ")
    timestamp = table["timestamp"].to_numpy().astype(np.float64)
    said = read_language(data_files, ends - lengths, ends, timestamp)
    action = _vectors(table["action"])
    tables = LeRobotFiles(
        root=root,
        info=info,
        cameras=cameras,
        fps=float(info["fps"]),
        state=_vectors(table["observation.state"]) if has_state else np.zeros((n, 0), np.float32),
        action=action,
        executed=_vectors(table[EXECUTED]) if EXECUTED in features else action,
        timestamp=timestamp,
        frame_index=integers("frame_index"),
        episode_index=episode_index,
        task_index=integers("task_index"),
        episode_from=(ends - lengths).astype(np.int64),
        episode_to=ends.astype(np.int64),
        tasks=_read_tasks(root),
        plan_index=said["plan"].index,
        plans=said["plan"].texts,
        subtask_index=said["subtask"].index,
        subtasks=said["subtask"].texts,
        state_names=_names(features, "observation.state"),
        action_names=_names(features, "action"),
        episodes=episodes,
        extra=extra,
        dynamics_only=_dynamics_only(extra, n_episodes),
        data_files=data_files,
    )
    _check(tables)
    return tables


def _read_info(root: Path) -> dict[str, Any]:
    try:
        info = json.loads((root / "meta/info.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"cannot read '{root / 'meta/info.json'}': {error}") from error
    version = str(info.get("codebase_version"))
    if not version.startswith("v3."):
        raise ValueError(
            f"expected a LeRobot dataset of version v3.0 in '{root}', got {version}; convert it with "
            "python -m lerobot.scripts.convert_dataset_v21_to_v30 --repo-id=NAME"
        )
    if not info.get("total_frames"):
        raise ValueError(f"the dataset in '{root}' has no frames")
    return info


def _cameras(features: dict[str, Any]) -> dict[str, str]:
    """camera -> feature: "observation.images.front" is called front; depth is left out."""
    cameras: dict[str, str] = {}
    for key, feature in features.items():
        about = {**(feature.get("info") or {}), **(feature.get("video_info") or {})}
        depth = about.get("is_depth_map") or about.get("video.is_depth_map")
        if feature["dtype"] in ("video", "image") and not depth:
            name = key.removeprefix("observation.").removeprefix("images.")
            cameras[key if name in cameras else name] = key
    return cameras


def _names(features: dict[str, Any], key: str) -> tuple[str, ...]:
    """The names of a vector's dimensions; numbered if the dataset does not say."""
    if key not in features:
        return ()
    names, size = features[key].get("names"), features[key]["shape"][0]
    if isinstance(names, dict):  # {"motors": [...]} and the like
        names = [name for group in names.values() for name in (group if isinstance(group, list) else [group])]
    if not names or len(names) != size:
        return tuple(f"{key.removeprefix('observation.')}_{i}" for i in range(size))
    return tuple(map(str, names))


def _read_parquet(paths: list[Path], columns: list[str], root: Path) -> pa.Table:
    parts = []
    for path in paths:
        try:
            parts.append(pq.read_table(path, columns=columns))
        except (OSError, pa.ArrowInvalid, KeyError) as error:
            raise ValueError(f"cannot read '{path}' of the dataset '{root}': {error}; fetch it again") from error
        if missing := set(columns) - set(parts[-1].column_names):
            raise ValueError(f"'{path}' of the dataset '{root}' lacks the columns {sorted(missing)}")
    return pa.concat_tables(parts, promote_options="permissive")


def _read_episodes(root: Path, n_episodes: int) -> tuple[dict[str, list[Any]], dict[str, list[Any]]]:
    paths = sorted(p for p in (root / "meta/episodes").glob("*/*.parquet") if not p.name.startswith("."))
    if not paths:
        raise ValueError(f"the dataset '{root}' has no meta/episodes: fetch it again")
    wanted = [name for name in pq.read_schema(paths[0]).names if not name.startswith("stats/")]
    table = _read_parquet(paths, wanted, root)
    table = table.filter(pa.compute.less(table["episode_index"], n_episodes)).sort_by("episode_index")
    if table["episode_index"].to_pylist() != list(range(n_episodes)):
        raise ValueError(f"the dataset '{root}' should have episodes 0 to {n_episodes - 1}, but meta/episodes differs")
    columns = {name: table[name].to_pylist() for name in wanted}
    return columns, {name: values for name, values in columns.items() if not _STANDARD.match(name)}


def _dynamics_only(extra: dict[str, list[Any]], n: int) -> np.ndarray:
    """Which of `n` episodes are no demonstrations, bool (n,): those so marked, and failed ones of `vla record`."""
    marked = np.array([bool(mark) for mark in extra.get("dynamics_only", [False] * n)])
    if {"task_template", "seed", "success"} <= extra.keys():
        marked |= ~np.array([bool(success) for success in extra["success"]])
    return marked


def _read_tasks(root: Path) -> list[str]:
    path = root / "meta/tasks.parquet"
    hint = "a language-conditioned policy needs one instruction a task; lerobot-edit-dataset can add them"
    if not path.exists():
        raise ValueError(f"the dataset '{root}' has no language (no meta/tasks.parquet): {hint}")
    table = _read_parquet([path], ["task_index"], root)
    names = [name for name in pq.read_schema(path).names if name != "task_index"]
    if len(names) != 1:
        raise ValueError(f"expected the columns task_index and task in '{path}', got {names}")
    table = pq.read_table(path).sort_by("task_index")
    tasks = [str(task or "").strip() for task in table[names[0]].to_pylist()]
    if not any(tasks):
        raise ValueError(f"the dataset '{root}' has no language (its tasks are empty): {hint}")
    if table["task_index"].to_pylist() != list(range(len(tasks))):
        raise ValueError(f"expected task_index 0, 1, ... in '{path}'")
    return tasks


def _vectors(column: pa.ChunkedArray) -> np.ndarray:
    """A column of lists (or of numbers) as float32 (N, D)."""
    values = column.combine_chunks()
    if pa.types.is_floating(values.type) or pa.types.is_integer(values.type):
        return values.to_numpy(zero_copy_only=False).astype(np.float32)[:, None]
    flat = values.flatten().to_numpy(zero_copy_only=False)
    return np.ascontiguousarray(flat.reshape(len(values), -1), dtype=np.float32)


def _check(t: LeRobotFiles) -> None:
    """ValueError for broken numbers and instructions."""
    if t.executed.shape != t.action.shape:
        raise ValueError(
            f"expected '{EXECUTED}' of the dataset '{t.root}' to have the {t.action.shape[1]} dimensions of 'action', "
            f"got {t.executed.shape[1]}"
        )
    for name, values, names in (
        ("observation.state", t.state, t.state_names),
        ("action", t.action, t.action_names),
        (EXECUTED, t.executed, t.action_names),
    ):
        bad = np.flatnonzero(~np.isfinite(values).all(1))
        if len(bad):
            episode = t.episode_index[bad[0]]
            rows = slice(t.episode_from[episode], t.episode_to[episode])
            check_finite(values[rows], name, names, f"episode {episode} of the dataset '{t.root}'")
    late_s = t.timestamp - t.frame_index / t.fps
    late_s -= late_s[t.episode_from][t.episode_index]  # episodes cut out of longer ones begin anywhere
    if (bad := np.flatnonzero(np.abs(late_s) > UNEVEN / t.fps)).size:
        frame = bad[0]
        raise ValueError(
            f"expected the feature 'timestamp' of the dataset '{t.root}' to count in steps of 1/{t.fps:g} s, as "
            f"meta/info.json says; frame {t.frame_index[frame]} of episode {t.episode_index[frame]} is at "
            f"{t.timestamp[frame]:.3f} s: resample the recording to an even rate, since an action means so far in so "
            "many seconds"
        )
    if t.task_index.min() < 0 or t.task_index.max() >= len(t.tasks):
        raise ValueError(f"task_index {t.task_index.max()} of the dataset '{t.root}' has no row in meta/tasks.parquet")
    for task in np.unique(t.task_index):
        if not t.tasks[task]:
            frame = int(np.flatnonzero(t.task_index == task)[0])
            raise ValueError(
                f"task {task} of the dataset '{t.root}' is empty, first in episode {t.episode_index[frame]}: "
                "every episode needs an instruction"
            )
