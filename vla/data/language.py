# SPDX-License-Identifier: Apache-2.0
"""What is being done and what is still to do, in words: LeRobot's language columns, written and read.

A row of the column `language_persistent` says something that holds from its timestamp on, until the next row of the
same style: "subtask", what is being done, and "plan", what is still to do. All rows of an episode stand in every frame
of it. LeRobot's collate function drops the columns, so whoever trains looks the texts up here, by episode and time.
Lerobot is not imported, since that takes 8 s: the types are those of its `datasets/language.py` (0.6.1).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa

PERSISTENT, EVENTS = "language_persistent", "language_events"
STYLES = ("plan", "subtask")
WAITING = frozenset({"", "hold still"})
"""Subtasks that need no thought: a plan leaves them out."""
NOTHING_SAID = -1
"""The index of a frame of which the dataset says nothing; to have nothing left to do is a plan, the text ""."""

FEATURES = {name: {"dtype": "language", "shape": [1], "names": None} for name in (PERSISTENT, EVENTS)}
"""The columns' entries in meta/info.json."""


class Row(NamedTuple):
    """What holds from `timestamp` on, s since the episode's beginning."""

    timestamp: float
    style: str
    content: str


# ---- writing -----------------------------------------------------------------------------------------------


def plan_texts(subtasks: Sequence[str]) -> list[str]:
    """The plan at each frame of an episode whose frames have these `subtasks`.

    A plan is what is done from the frame on to the end, each phrase where it comes first (experts flicker between two
    stages), joined by ", ", and without waiting. It is "" where nothing is left to do.
    """
    plans, left = [], list[str]()
    for phrase in reversed(subtasks):
        if phrase not in WAITING and left[:1] != [phrase]:
            left = [phrase, *(later for later in left if later != phrase)]
        plans.append(", ".join(left))
    return plans[::-1]


def language_rows(subtasks: Sequence[str], fps: float) -> tuple[Row, ...]:
    """The rows of an episode, in LeRobot's order: one where the plan changes, one where the subtask does.

    `subtasks`: one a frame. No rows if all of them are empty.
    """
    if not any(subtasks):
        return ()
    said = {"plan": plan_texts(subtasks), "subtask": subtasks}
    return tuple(
        Row(frame / fps, style, said[style][frame])
        for frame in range(len(subtasks))
        for style in STYLES
        if frame == 0 or said[style][frame] != said[style][frame - 1]
    )


def language_columns(episodes: Sequence[Sequence[Row]], lengths: np.ndarray) -> "dict[str, pa.ChunkedArray]":
    """The two columns for one or more episodes, with these rows and `lengths` in frames; no events."""
    import pyarrow as pa

    rows = [row for said in episodes for row in said]
    n = len(rows)
    values = {
        "role": pa.array(["assistant"] * n, pa.string()),
        "content": pa.array([row.content for row in rows], pa.string()),
        "style": pa.array([row.style for row in rows], pa.string()),
        "timestamp": pa.array(np.array([row.timestamp for row in rows], np.float32)),
        "camera": pa.nulls(n, pa.string()),
        "tool_calls": pa.nulls(n, pa.list_(pa.string())).cast(pa.list_(pa.json_())),
    }

    def structs(names: list[str], count: int) -> pa.StructArray:
        fields = [pa.field(name, values[name].type, name not in ("role", "timestamp")) for name in names]
        return pa.StructArray.from_arrays([values[name][:count] for name in names], fields=fields)

    ends = np.cumsum([0, *(len(said) for said in episodes)])
    each = pa.ListArray.from_arrays(pa.array(ends, pa.int32()), structs(list(values), n))
    no_events = structs([name for name in values if name != "timestamp"], 0)
    nowhere = pa.array(np.zeros(lengths.sum() + 1, np.int32))
    # In pieces: all texts of a large shard, repeated, may be more than one array can hold.
    frames = [each[i : i + 1].take(pa.array(np.zeros(length, np.int32))) for i, length in enumerate(lengths)]
    return {
        PERSISTENT: pa.chunked_array(frames),
        EVENTS: pa.chunked_array([pa.ListArray.from_arrays(nowhere, no_events)]),
    }


# ---- reading -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Said:
    """What a dataset of N frames says of them in one style."""

    index: np.ndarray
    """int64 (N,), into texts; NOTHING_SAID where nothing was said yet"""
    texts: list[str]


def read_language(
    data_files: Sequence[Path], episode_from: np.ndarray, episode_to: np.ndarray, timestamp: np.ndarray
) -> dict[str, Said]:
    """What holds at each frame, for each of STYLES; nothing, for a dataset without language columns.

    `episode_from`, `episode_to`: int64 (E,), the frames of each episode; `timestamp`: (N,), s. The rows are the same
    in all frames of an episode, so one frame of each is looked at. Of two rows at one time the later one holds.
    """
    n, seen = len(timestamp), np.zeros(len(episode_from), bool)
    index = {style: np.full(n, NOTHING_SAID, np.int64) for style in STYLES}
    numbers: dict[str, dict[str, int]] = {style: {} for style in STYLES}
    times_s = timestamp.astype(np.float32)  # as the rows' are: to a float64 the same time may be later
    for path in data_files:
        for episode, rows in _rows_of_episodes(path):
            if episode >= len(episode_from) or seen[episode]:
                continue
            seen[episode] = True
            frames = slice(episode_from[episode], episode_to[episode])
            for style in STYLES:
                index[style][frames] = _active(rows, style, times_s[frames], numbers[style])
    return {style: Said(index[style], list(numbers[style])) for style in STYLES}


def _rows_of_episodes(path: Path) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """(episode, rows) for the episodes of a data file, some of them more than once; nothing without the column."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        if PERSISTENT not in file.schema_arrow.names:
            return
        for batch in file.iter_batches(8192, columns=["episode_index", PERSISTENT]):
            episodes, first = np.unique(batch["episode_index"].to_numpy(), return_index=True)
            said = batch[PERSISTENT].take(first).to_pylist()
            yield from ((int(episode), rows or []) for episode, rows in zip(episodes, said, strict=True))


def _active(rows: list[dict[str, Any]], style: str, times_s: np.ndarray, numbers: dict[str, int]) -> np.ndarray:
    """The number of the text that holds at each time, int64 (T,); new texts are added to `numbers`."""
    said = [row for row in rows if row and row["style"] == style and row["content"] is not None]
    said.sort(key=lambda row: row["timestamp"])
    starts = np.array([row["timestamp"] for row in said], np.float32)
    known = [numbers.setdefault(str(row["content"]), len(numbers)) for row in said]
    # Before the first row the place is -1, which is the last element.
    return np.array([*known, NOTHING_SAID], np.int64)[np.searchsorted(starts, times_s, side="right") - 1]
