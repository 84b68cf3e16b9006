# SPDX-License-Identifier: Apache-2.0
"""A shard: a few hundred whole episodes that one process recorded, not yet part of a dataset.

Its videos are finished files in a folder of their own; everything else is small and travels as arrays.
Nothing in it says where in the dataset it will be, so shards can be recorded in any order and by any process.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vla.data.language import Row, language_rows
from vla.data.stats import Stats, image_histogram, image_stats, vector_stats
from vla.data.video import MAX_SECONDS, VideoWriter

_LOOK_AT_EVERY = 10
"""Image statistics are of every tenth frame."""


@dataclass(frozen=True)
class DatasetSpec:
    """What all episodes of a dataset have in common. Picklable."""

    fps: int
    cameras: dict[str, tuple[int, int]]
    """camera name -> (height, width), pixels, even; may be empty: then the dataset has no videos"""
    state_names: tuple[str, ...]
    action_names: tuple[str, ...]
    robot_type: str = "tabletop"
    pix_fmt: str = "yuv420p"
    crf: int = 18
    language: bool = False
    """with LeRobot's language columns: subtasks and plans"""
    executed: bool = False
    """with the feature "executed_action" beside "action": what was done, and what should have been"""


@dataclass(frozen=True)
class Episode:
    """One finished episode in a shard."""

    instruction: str
    length: int
    clip: int
    """which of the shard's video files; -1 without cameras"""
    from_s: float
    to_s: float
    extra: dict[str, Any]
    """further columns of meta/episodes; int, float, bool or str, the same names in every episode"""
    stats: dict[str, Stats]
    language: tuple[Row, ...] = ()
    """what is being done and what is still to do, from when on"""


@dataclass
class Shard:
    """What `ShardWriter.finish` returns. Picklable."""

    index: int
    spec: DatasetSpec
    episodes: list[Episode]
    state: np.ndarray
    """float32 (N, S), all episodes one after the other"""
    action: np.ndarray
    """float32 (N, A)"""
    executed: np.ndarray | None
    """float32 (N, A): what was done; None unless the spec says so"""
    videos: dict[str, list[Path]]
    """camera -> finished files, on the disk"""
    histograms: dict[str, np.ndarray]
    """camera -> int64 (3, 256) over every tenth frame"""
    looked_at: int
    """how many frames that was"""
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    """task -> {"attempted", "succeeded", "recorded", "played"}: the first two by the expert, the last without it"""

    @property
    def vectors(self) -> dict[str, np.ndarray]:
        """feature -> float32 (N, D), in the order in which a dataset has them."""
        vectors = {"observation.state": self.state, "action": self.action}
        return vectors if self.executed is None else vectors | {"executed_action": self.executed}


def check_finite(values_TD: np.ndarray, feature: str, names: tuple[str, ...], episode: str) -> None:
    """ValueError with feature, dimension, episode and frame if a number is NaN or infinite. `values_TD`: (T,
    D)."""
    if np.isfinite(values_TD).all():
        return
    bad = np.argwhere(~np.isfinite(values_TD))
    frame, dim = bad[0]
    name = names[dim] if dim < len(names) else dim
    raise ValueError(
        f"feature '{feature}' has {values_TD[frame, dim]} in dimension '{name}', {episode}, frame {frame} "
        f"({len(bad)} such values there): repair or leave out that episode"
    )


class ShardWriter:
    """Takes episodes, encodes their pictures at once, keeps the rest.

    `folder`: made here; the videos lie in it until the dataset takes them. `index`: of the shard in the
    dataset.
    """

    def __init__(self, folder: Path, index: int, spec: DatasetSpec):
        self.folder, self.index, self.spec = folder, index, spec
        folder.mkdir(parents=True)
        self._writers: dict[str, VideoWriter] = {}
        self._videos: dict[str, list[Path]] = {camera: [] for camera in spec.cameras}
        self._clips = self._frames = self._looked_at = 0
        self._episodes: list[Episode] = []
        self._state: list[np.ndarray] = []
        self._action: list[np.ndarray] = []
        self._executed: list[np.ndarray] = []
        self._histograms = {camera: np.zeros((3, 256), np.int64) for camera in spec.cameras}

    def add_episode(
        self,
        images: dict[str, np.ndarray],
        state_TS: np.ndarray,
        action_TA: np.ndarray,
        instruction: str,
        extra: dict[str, Any],
        name: str,
        subtasks: Sequence[str] = (),
        executed_TA: np.ndarray | None = None,
    ) -> None:
        """Append one episode of T >= 1 frames.

        `images`: {camera: uint8 (T, H, W, 3)}. `state_TS`, `action_TA`: float32. `name`: how error messages
        call it. `subtasks`: what was being done at each frame, or nothing; only a spec with language keeps it.
        `executed_TA`: float32, what was done, given if and only if the spec has it. ValueError for shapes that differ
        from the spec, numbers that are not finite, no instruction.
        """
        length, spec = len(action_TA), self.spec
        vectors = {"observation.state": state_TS, "action": action_TA}
        if executed_TA is not None:
            vectors["executed_action"] = executed_TA
        self._check(images, vectors, length, instruction, name)
        if len(subtasks) not in (0, length):
            raise ValueError(f"{name}: expected {length} subtasks, one a frame, or none, got {len(subtasks)}")
        if spec.cameras and (not self._writers or next(iter(self._writers.values())).frames > MAX_SECONDS * spec.fps):
            self._next_clip()
        from_s, to_s = 0.0, 0.0
        stats: dict[str, Stats] = {}
        # Every tenth frame of the shard, but at least one of an episode, so that an episode has statistics.
        chosen = np.arange(-self._frames % _LOOK_AT_EVERY, length, _LOOK_AT_EVERY)
        chosen = chosen if len(chosen) else np.zeros(1, np.int64)
        for camera in spec.cameras:
            from_s, to_s = self._writers[camera].write_episode(images[camera])
            histogram = image_histogram(images[camera][chosen])
            self._histograms[camera] += histogram
            stats[f"observation.images.{camera}"] = image_stats(histogram, len(chosen))
        self._looked_at += len(chosen)
        stats |= {feature: vector_stats(values) for feature, values in vectors.items()}
        said = language_rows(subtasks, spec.fps) if spec.language else ()
        self._episodes.append(Episode(instruction, length, self._clips - 1, from_s, to_s, extra, stats, said))
        self._state.append(np.asarray(state_TS, np.float32))
        self._action.append(np.asarray(action_TA, np.float32))
        if executed_TA is not None:
            self._executed.append(np.asarray(executed_TA, np.float32))
        self._frames += length

    def _check(
        self,
        images: dict[str, np.ndarray],
        vectors: dict[str, np.ndarray],
        length: int,
        instruction: str,
        name: str,
    ) -> None:
        spec = self.spec
        if not instruction.strip():
            raise ValueError(f"{name} has no instruction: the environment must say the task in words")
        if spec.executed != ("executed_action" in vectors):
            raise ValueError(f"{name}: expected {'an' if spec.executed else 'no'} executed action, as the spec says")
        names = {"observation.state": spec.state_names}
        names = {feature: names.get(feature, spec.action_names) for feature in vectors}
        expected: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
            feature: (values.shape, (length, len(names[feature]))) for feature, values in vectors.items()
        }
        for camera, (height, width) in spec.cameras.items():
            if camera not in images:
                raise ValueError(f"{name} lacks camera '{camera}'; it has {sorted(images)}")
            expected[camera] = (images[camera].shape, (length, height, width, 3))
        for feature, (got, wanted) in expected.items():
            if length == 0 or got != wanted:
                raise ValueError(f"{name}: expected '{feature}' of shape {wanted}, length >= 1, got {got}")
        for feature, values in vectors.items():
            check_finite(values, feature, names[feature], name)

    def _next_clip(self) -> None:
        self._close_clip()
        spec = self.spec
        for camera, (height, width) in spec.cameras.items():
            path = self.folder / f"{camera}-{self._clips:03d}.mp4"
            self._writers[camera] = VideoWriter(path, height, width, spec.fps, spec.pix_fmt, spec.crf)
            self._videos[camera].append(path)
        self._clips += 1

    def _close_clip(self) -> None:
        while self._writers:
            self._writers.popitem()[1].close()

    def finish(self, counts: dict[str, dict[str, int]] | None = None) -> Shard:
        """Finish the videos and hand everything over."""
        self._close_clip()
        spec = self.spec
        nothing = np.zeros((0, len(spec.action_names)), np.float32)
        return Shard(
            index=self.index,
            spec=spec,
            episodes=self._episodes,
            state=np.concatenate([np.zeros((0, len(spec.state_names)), np.float32), *self._state]),
            action=np.concatenate([nothing, *self._action]),
            executed=np.concatenate([nothing, *self._executed]) if spec.executed else None,
            videos=self._videos,
            histograms=self._histograms,
            looked_at=self._looked_at,
            counts=counts or {},
        )
