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
    """What evaluation needs of a policy; `vla.policy.Policy` is one.

    If it has an attribute `n_obs_steps` > 1, so many moments are in each observation.
    """

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

    def __init__(
        self,
        policy: Policy | None,
        pool: Pool,
        rows: int,
        seed: int,
        film: dict[tuple[str, bool], int],
        delay: int = 0,
        naive: bool = False,
    ):
        """`rows`: most observations in one call. `film`: (task, success) -> how many videos to make of it.

        `delay`: steps that go by while the policy thinks. The robot executes the last chunk on; the policy is told what
        these steps will be, and in-paints the rest. `naive`: it is not told.
        """
        self.delay, self.naive = delay, naive
        self.tails: dict[int, np.ndarray] = {}
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
                    self.tails.pop(slot, None)
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
            images, state, given, step, *executed = self.waiting.pop(slot)
            cameras = {camera: images[camera] for camera in self.policy.cameras}
            history = {"executed": executed[0]} if executed else {}  # of a policy that sees several moments
            observations.append(Observation(images=cameras, state=state, instruction=given, **history))
            keys.append((episode_key(self.episode_of[slot], self.seed), step))
        chunks, steps = self.decide(slots, observations, keys)
        self.latencies_ms.append((time.perf_counter() - started) * 1e3)
        expected = (len(slots), self.policy.horizon, len(self.policy.action_names))
        if chunks.shape != expected:
            raise ValueError(f"expected actions of shape {expected} from the policy, got {chunks.shape}")
        for row, slot in enumerate(slots):
            actions = chunks[row, : steps[row]]
            if self.delay:
                self.tails[slot] = chunks[row, steps[row] : steps[row] + self.delay]
            if not np.isfinite(actions).all():
                episode = self.episode_of[slot]
                raise ValueError(
                    f"expected finite actions, got NaN or infinity from the policy in {episode.task} seed "
                    f"{episode.seed} at step {keys[row][1]}; the checkpoint is probably broken"
                )
            self.pool.send(slot, ("chunk", slot, actions))

    def decide(
        self, slots: list[int], observations: list["Observation"], keys: list[tuple[int, int]]
    ) -> tuple[np.ndarray, Sequence[int]]:
        """Chunks, float32 (B, H, A), and how many steps of each to execute: a fixed number, or while it is sure."""
        policy: Any = self.policy
        if above := getattr(policy, "sure_above", 0.0):
            chunk = policy.decide(observations, keys)
            return chunk.actions_BHA, chunk.sure_steps(above).tolist()
        steps = [policy.n_action_steps] * len(slots)
        if not self.delay:
            return np.asarray(policy.act(observations, keys), dtype=np.float32), steps
        nothing = np.zeros((0, len(policy.action_names)), np.float32)
        tails = [self.tails.get(slot, nothing) for slot in slots]
        chunks = policy.decide(observations, keys, None if self.naive else tails).actions_BHA
        for row, tail in enumerate(tails):
            chunks[row, : len(tail)] = tail
        return chunks, steps

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
