# SPDX-License-Identifier: Apache-2.0
"""The loop in the middle of an evaluation: which slots wait, which observations the policy sees together, who
is next.

The centre waits until half of the running slots hold an observation, gives them to `policy.act` at once, and
sends each slot the actions it will execute before its next observation: while the policy thinks about one
half, the workers simulate the other.
"""

import math
import time
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from vla.eval.episodes import Episode, EpisodeResult, episode_key
from vla.eval.workers import Pool

if TYPE_CHECKING:
    from vla.policy import Observation

VIDEO_SIZE = 192


class Policy(Protocol):
    """What evaluation needs of a policy; `vla.policy.Policy` is one."""

    @property
    def horizon(self) -> int: ...
    @property
    def n_action_steps(self) -> int: ...
    @property
    def action_names(self) -> Sequence[str]: ...
    @property
    def state_names(self) -> Sequence[str]: ...
    @property
    def cameras(self) -> tuple[str, ...]: ...
    @property
    def image_size(self) -> int: ...

    def act(self, observations: list["Observation"], keys: list[tuple[int, int]]) -> np.ndarray:
        """Action chunks, float32 (B, H, A), each row a function of its own observation and key alone."""
        ...


class Centre:
    """The loop in the middle: who waits, who thinks, who is next."""

    def __init__(self, policy: Policy | None, pool: Pool, rows: int, seed: int, film: dict[tuple[str, bool], int]):
        """`rows`: most observations in one call. `film`: (task, success) -> how many videos to make of it."""
        self.policy, self.pool, self.most_rows, self.seed, self.film_wanted = policy, pool, rows, seed, film
        self.latencies_ms: list[float] = []
        self.steps = 0
        self.episode_of: dict[int, Episode] = {}
        self.waiting: dict[int, tuple[Any, ...]] = {}
        self.candidates: dict[tuple[str, bool], list[tuple[int, EpisodeResult, np.ndarray]]] = {}

    def run(self, todo: Iterable[Episode]) -> Iterable[EpisodeResult]:
        """Run all episodes to their end; yields results in the order in which they end."""
        queue = deque(todo)

        def begin(slot: int) -> None:
            if queue:
                self.episode_of[slot] = queue.popleft()
                self.pool.send(slot, ("begin", slot, self.episode_of[slot]))

        for slot in range(self.pool.slots):
            begin(slot)
        while self.episode_of:
            for kind, slot, *rest in self.pool.receive():
                if kind == "observe":
                    self.waiting[slot] = tuple(rest)
                else:
                    result, actions = rest
                    del self.episode_of[slot]
                    begin(slot)
                    self.steps += result.length
                    self.remember(result, actions)
                    yield result
            # Half of the running slots: the other half simulates while the policy thinks.
            rows = max(1, min(self.most_rows, math.ceil(len(self.episode_of) / 2)))
            while len(self.waiting) >= rows:
                self.think(sorted(self.waiting)[:rows])

    def think(self, slots: list[int]) -> None:
        """One call of the policy for these slots; sends each its actions."""
        from vla.policy import Observation

        assert self.policy is not None
        observations, keys = [], []
        started = time.perf_counter()
        for slot in slots:
            images, state, given, step = self.waiting.pop(slot)
            cameras = {camera: images[camera] for camera in self.policy.cameras}
            observations.append(Observation(images=cameras, state=state, instruction=given))
            keys.append((episode_key(self.episode_of[slot], self.seed), step))
        chunks = np.asarray(self.policy.act(observations, keys), dtype=np.float32)
        self.latencies_ms.append((time.perf_counter() - started) * 1e3)
        expected = (len(slots), self.policy.horizon, len(self.policy.action_names))
        if chunks.shape != expected:
            raise ValueError(f"expected actions of shape {expected} from the policy, got {chunks.shape}")
        for row, slot in enumerate(slots):
            actions = chunks[row, : self.policy.n_action_steps]
            if not np.isfinite(actions).all():
                episode = self.episode_of[slot]
                raise ValueError(
                    f"expected finite actions, got NaN or infinity from the policy in {episode.task} seed "
                    f"{episode.seed} at step {keys[row][1]}; the checkpoint is probably broken"
                )
            self.pool.send(slot, ("chunk", slot, actions))

    def remember(self, result: EpisodeResult, actions: np.ndarray) -> None:
        """Keep the actions of the lowest seeds of each task and outcome, to film them afterwards."""
        kind = (result.task, result.success)
        kept = self.candidates.setdefault(kind, [])
        kept.append((result.seed, result, actions))
        kept.sort(key=lambda entry: entry[0])
        del kept[self.film_wanted.get(kind, 0) :]

    def film(self, folder: Path) -> int:
        """Play the kept episodes again and encode them. Returns how many videos were written.

        Filming afterwards, from the actions, costs nothing during the run and finds the rare failures of a
        good policy, whose seeds nobody knows in advance.
        """
        queue = deque(entry for kept in self.candidates.values() for entry in kept)
        running = written = 0
        free = deque(range(self.pool.slots))
        while queue or running:
            while queue and free:
                _, result, actions = queue.popleft()
                slot = free.popleft()
                name = f"{result.task}_{result.seed}_{'success' if result.success else 'failure'}.mp4"
                path = folder / name
                self.pool.send(slot, ("film", slot, result, actions, path, VIDEO_SIZE))
                running += 1
            for _, slot, _, same in self.pool.receive():
                free.append(slot)
                running -= 1
                written += same
        return written
