# SPDX-License-Identifier: Apache-2.0
"""Several datasets as one: their caches joined, to be sampled with weights (`vla.data.batches.Batches`)."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from vla.data.cache import FrameCache


class JoinedFrames:
    """The pictures of several caches one after the other, none of them copied: uint8 (N, H, W, 3)."""

    def __init__(self, parts: Sequence[np.ndarray]) -> None:
        self.parts = [part.view(np.ndarray) for part in parts]
        self.ends = np.cumsum([len(part) for part in parts])
        self.shape = (int(self.ends[-1]), *parts[0].shape[1:])
        self.dtype = parts[0].dtype

    def __len__(self) -> int:
        return self.shape[0]

    def take(self, ids: np.ndarray, axis: int = 0) -> np.ndarray:
        """The pictures `ids` >= 0, int64 (B,), as one new array."""
        out = np.empty((len(ids), *self.shape[1:]), self.dtype)
        part_of = np.searchsorted(self.ends, ids, side="right")
        for number in np.unique(part_of):
            here = part_of == number
            first = self.ends[number] - len(self.parts[number])
            out[here] = self.parts[number].take(ids[here] - first, axis=0)
        return out

    def __getitem__(self, ids: Any) -> np.ndarray:
        """As of an array, for a number, a slice or int64 (B,)."""
        if isinstance(ids, slice):
            return self.take(np.arange(len(self))[ids])
        return self.take(np.atleast_1d(ids))[0] if np.ndim(ids) == 0 else self.take(np.asarray(ids))


def join(caches: Sequence[FrameCache]) -> FrameCache:
    """Caches one after the other; `parts` says where each begins. Equal sentences become one task, equal plans one.

    ValueError, naming what differs and between which, unless all have the same cameras, picture sizes, action and
    state names and frames/s: the network has one input for each, and an action means so far in so many seconds.
    """
    if len(caches) == 1:
        return caches[0]
    first = caches[0]
    for other in caches[1:]:
        for what, of in (
            ("cameras", lambda c: sorted(c.cameras)),
            (
                "picture sizes (height, width)",
                lambda c: {name: c.frames[name].shape[1:3] for name in sorted(c.cameras)},
            ),
            ("values of 'action'", lambda c: list(c.action_names)),
            ("values of 'observation.state'", lambda c: list(c.state_names)),
            ("frames/s", lambda c: c.fps),
        ):
            if of(first) != of(other):
                raise ValueError(
                    f"datasets that are mixed need the same {what}: '{first.meta['root']}' has {of(first)}, "
                    f"'{other.meta['root']}' has {of(other)}; rename, resample or leave out one of them"
                )
    frames_before = np.cumsum([0, *(len(c) for c in caches)])
    episodes_before = np.cumsum([0, *(len(c.episode_from) for c in caches)])
    tasks, task_index = _merged([(c.tasks, c.task_index) for c in caches])
    plans, plan_index = _merged([(c.plans, c.plan_index) for c in caches])
    subtasks, subtask_index = _merged([(c.subtasks, c.subtask_index) for c in caches])

    def chain(name: str, before: np.ndarray | None = None) -> np.ndarray:
        return np.concatenate([getattr(c, name) + (0 if before is None else before[i]) for i, c in enumerate(caches)])

    return FrameCache(
        path=first.path,
        frames={camera: JoinedFrames([c.frames[camera] for c in caches]) for camera in first.cameras},
        state=chain("state"),
        action=chain("action"),
        executed=chain("executed"),
        timestamp=chain("timestamp"),
        frame_index=chain("frame_index"),
        episode_index=chain("episode_index", episodes_before),
        task_index=task_index,
        plan_index=plan_index,
        plans=plans,
        subtask_index=subtask_index,
        subtasks=subtasks,
        episode_from=chain("episode_from", frames_before),
        episode_to=chain("episode_to", frames_before),
        dynamics_only=np.concatenate([c.dynamics_only for c in caches]),
        tasks=tasks,
        fps=first.fps,
        action_names=first.action_names,
        state_names=first.state_names,
        cameras=first.cameras,
        meta={"root": ", ".join(str(c.meta["root"]) for c in caches), "info": first.meta.get("info"), "episodes": {}},
        parts=tuple(int(n) for n in frames_before[:-1]),
    )


def _merged(parts: Sequence[tuple[list[str], np.ndarray]]) -> tuple[list[str], np.ndarray]:
    """Lists of texts with indices into them as one list, each text once, and one index; -1 stays -1."""
    texts = list(dict.fromkeys(text for some, _ in parts for text in some))
    number = {text: i for i, text in enumerate(texts)}
    # The last element is what an index of -1 finds.
    return texts, np.concatenate([np.array([*(number[t] for t in some), -1])[index] for some, index in parts])
