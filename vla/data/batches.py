# SPDX-License-Identifier: Apache-2.0
"""Training batches from a frame cache, each a pure function of (seed, step).

There is no sampler state to save: a resumed run asks for the batch of the step where it is and gets what an
uninterrupted run would have got, whatever the number of threads. Samples are drawn without replacement: the
stream of samples is one permutation of all of them after the other, and batch k takes the places from k B on,
so that every sample occurs once in an epoch even if the batch size does not divide their number. With weights, each
dataset of a mixture has a stream of its own, and its share of every batch.
"""

import queue
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from vla.data.cache import FrameCache

Batch = dict[str, Any]


def _generator(seed: int, stream: str, counter: int = 0) -> np.random.Generator:
    """A generator that is a function of its arguments."""
    sequence = np.random.SeedSequence((seed % 2**64, zlib.crc32(stream.encode()), counter))
    return np.random.Generator(np.random.Philox(sequence))


def split_episodes(
    cache: FrameCache, holdout_fraction: float, seed: int, chosen: str = ""
) -> tuple[np.ndarray, np.ndarray]:
    """Split the episodes of `cache`, or those that are `chosen` ("0:450,500"), at random, a function of `seed`.

    Returns (training, held out), int64, sorted. At least one is held out if `holdout_fraction` > 0 and there
    are two. Frames of one episode are nearly the same, so frames must not be split. ValueError unless 0 <=
    fraction < 1, and for episodes that do not exist.
    """
    if not 0 <= holdout_fraction < 1:
        raise ValueError(f"expected a holdout_fraction in [0, 1), got {holdout_fraction}")
    episodes = chosen_episodes(chosen, len(cache.episode_from))
    n = len(episodes)
    held = round(n * holdout_fraction)
    if holdout_fraction > 0:
        held = min(max(held, 1), n - 1)
    order = episodes[_generator(seed, "split").permutation(n)]
    return np.sort(order[held:]), np.sort(order[:held])


def chosen_episodes(text: str, n: int) -> np.ndarray:
    """ "0:3,7" -> 0, 1, 2, 7; "" -> all n."""
    if not text:
        return np.arange(n)
    numbers: set[int] = set()
    for piece in text.split(","):
        try:
            first, _, last = piece.partition(":")
            some = range(int(first or 0), int(last or n) if ":" in piece else int(first) + 1)
        except ValueError:
            some = range(0)
        if not some or some.start < 0 or some.stop > n:
            raise ValueError(f"expected episodes such as '0:{n}' or '0,2,5', in 0 .. {n - 1}, got '{text}'")
        numbers.update(some)
    return np.array(sorted(numbers))


class Batches:
    """Samples are frames with the chunk of actions that begins there.

    `horizon`: actions in a chunk. `moments`: how many moments are seen, one step apart, the present one included.
    `episodes`: which to draw from; None: all. `weights`: of the datasets that were joined, which share of the samples
    comes from each; none: as many as it has frames. `plans`, `future`, `waypoints` (K numbers of steps): what else a
    batch has, see `batch`; what they add draws from random streams of their own, and the rest stays what it was.
    `part`: (r, n), only the rows r, r + n, r + 2 n, ... of each batch, for n processes that share it.
    `action_free`: episodes, int64, whose actions are not to be trusted (a person's video).
    Attributes: samples (global frame ids), steps_per_epoch. ValueError for numbers < 1, no episodes, episodes that do
    not exist, or weights that cannot be.
    """

    def __init__(
        self,
        cache: FrameCache,
        horizon: int,
        batch_size: int,
        seed: int,
        episodes: np.ndarray | None = None,
        weights: Sequence[float] = (),
        plans: bool = False,
        future: bool = False,
        action_free: np.ndarray | None = None,
        part: tuple[int, int] = (0, 1),
        moments: int = 1,
        waypoints: tuple[int, ...] = (),
    ) -> None:
        if horizon < 1 or batch_size < 1 or moments < 1:
            raise ValueError(
                f"expected horizon >= 1, batch_size >= 1 and moments >= 1, got {horizon}, {batch_size} and {moments}"
            )
        if not all(later >= 1 for later in waypoints):
            raise ValueError(f"expected waypoints one or more steps later, got {waypoints}")
        chosen = np.arange(len(cache.episode_from)) if episodes is None else np.asarray(episodes)
        if not len(chosen) or chosen.min() < 0 or chosen.max() >= len(cache.episode_from):
            raise ValueError(
                f"expected one or more episodes in 0..{len(cache.episode_from) - 1}, got {chosen.tolist()[:10]}"
            )
        self.cache, self.horizon, self.batch_size, self.seed = cache, horizon, batch_size, seed
        if batch_size % part[1]:
            raise ValueError(f"expected a batch size that {part[1]} processes can share, got {batch_size}")
        self.plans, self.future, self.moments, self.waypoints = plans, future, moments, tuple(waypoints)
        self._part = slice(part[0], None, part[1])
        self.free = np.zeros(0, np.int64) if action_free is None else np.asarray(action_free)
        self._trusted = _trusted(len(cache.episode_from), self.free)
        self._labelled = self._trusted & ~cache.dynamics_only
        self.samples = np.concatenate([np.arange(cache.episode_from[e], cache.episode_to[e]) for e in chosen])
        self.steps_per_epoch = len(self.samples) / batch_size
        self._streams, self._until = self._shares(weights)
        # Plain views: indexing the memmap class itself costs a Python call for each array made.
        self._frames = {
            camera: frames.view(np.ndarray) if isinstance(frames, np.ndarray) else frames
            for camera, frames in cache.frames.items()
        }
        self._last_frame = cache.episode_to - 1
        self._chunk, self._back = np.arange(horizon), np.arange(1 - moments, 1)
        self._orders: list[dict[int, np.ndarray]] = [{} for _ in self._streams]

    def _shares(self, weights: Sequence[float]) -> tuple[list[np.ndarray], np.ndarray]:
        """The samples of each stream, and the streams' shares added up: 0, ..., 1."""
        if not weights:
            return [self.samples], np.array([0.0, 1.0])
        parts = len(self.cache.parts)
        if len(weights) != parts or not all(0 < w < np.inf for w in weights):
            raise ValueError(f"expected {parts} weights > 0, one for each dataset, got {list(weights)}")
        shares = np.array(weights, float) / sum(weights)
        if shares.min() * self.batch_size < 1:
            raise ValueError(
                f"a dataset of weight {min(weights):g} out of {sum(weights):g} gets less than one sample of a batch of "
                f"{self.batch_size}: raise its weight or the batch size"
            )
        streams = np.split(self.samples, np.searchsorted(self.samples, self.cache.parts[1:]))
        if empty := [number for number, stream in enumerate(streams) if not len(stream)]:
            raise ValueError(f"no episodes to draw from in dataset {empty[0]} of the {parts} that are mixed")
        return streams, np.array([0.0, *np.cumsum(shares)[:-1], 1.0])

    def _order(self, stream: int, epoch: int) -> np.ndarray:
        """The permutation of an epoch. The last few are kept: a prefetching thread may be an epoch ahead."""
        order = self._orders[stream].get(epoch)
        if order is None:
            name = f"epoch {stream}" if stream else "epoch"
            order = _generator(self.seed, name, epoch).permutation(len(self._streams[stream]))
            kept = list(self._orders[stream].items())[-2:]
            self._orders[stream] = dict([*kept, (epoch, order)])
        return order

    def _drawn(self, step: int) -> np.ndarray:
        """How many samples of each stream the batches before `step` had. Rounded such that the sum is exact."""
        return np.diff(np.floor(step * self.batch_size * self._until + 0.5).astype(np.int64))

    def sample_ids(self, step: int) -> np.ndarray:
        """The global frame ids of batch `step` >= 0, int64 (B,)."""
        if step < 0:
            raise ValueError(f"expected a step >= 0, got {step}")
        ids, places = [], []
        drawn = zip(self._streams, self._drawn(step), self._drawn(step + 1), strict=True)
        for stream, (samples, place, end) in enumerate(drawn):
            places.append((np.arange(end - place) + 0.5) / (end - place))
            while place < end:
                epoch, offset = divmod(int(place), len(samples))
                ids.append(samples[self._order(stream, epoch)[offset : offset + end - place]])
                place += len(ids[-1])
        # Side by side: what is asked of a part of the batch is asked of a part of every dataset.
        return np.concatenate(ids)[np.argsort(np.concatenate(places), kind="stable")]

    def batch(self, step: int) -> Batch:
        """Batch number `step` >= 0, of new arrays. M moments, chunks of H actions.

        images        {camera: uint8 (B, M, H, W, 3)}  oldest first, the present last; before the beginning of an
                                                       episode its first frame is repeated
        state         float32 (B, M, S)                at these moments
        past          float32 (B, M-1, A)              what was executed from each to the next; 0 where not known
        past_known    bool (B, M-1)                    not before the beginning, nor without actions
        actions       float32 (B, H, A)                labels: what should be done from now on; after the end of the
                                                       episode its last action is repeated
        executed      float32 (B, H, A)                what was done in these steps, likewise
        is_pad        bool (B, H)                      after the end of the episode
        has_labels    bool (B,)                        whether `actions` are a demonstration: not in episodes that only
                                                       show dynamics, and not in those without actions
        has_actions   bool (B,)                        False in `action_free` episodes, where actions, executed and past
                                                       are 0, whatever the dataset says
        task_index    int64 (B,)                       into cache.tasks
        sample        int64 (B,)                       the frame, of all the dataset's

        With `plans`:
        plan_index    int64 (B,)                       into cache.plans; -1 where nothing is said
        With `future`:
        future        {camera: uint8 (B, H, W, 3)}     the frame that the chunk leads to, `horizon` steps later, at most
                                                       the episode's last
        goal          likewise                         drawn uniformly from the later frames of the episode, a function
                                                       of (seed, step, place in the batch); of the last frame, itself
        goal_steps    int64 (B,)                       how many steps later that is
        last          likewise                         the episode's last frame
        With `waypoints`:
        waypoints     float32 (B, K, S)                the state so many steps later, at most at the end of the episode
        """
        cache, ids = self.cache, self.sample_ids(step)[self._part]
        episode_B = cache.episode_index[ids]
        rows_BH = ids[:, None] + self._chunk
        last_B1 = self._last_frame[episode_B][:, None]
        until_BH = np.minimum(rows_BH, last_B1)
        moments_BM = np.maximum(ids[:, None] + self._back, cache.episode_from[episode_B][:, None])
        # Before the beginning two moments in a row are the same frame, and nothing was executed between them.
        known_BM = moments_BM[:, 1:] > moments_BM[:, :-1]
        batch = {
            "images": self._moments(moments_BM),
            "state": cache.state[moments_BM],
            "past": cache.executed[moments_BM[:, :-1]],
            "past_known": known_BM,
            "actions": cache.action[until_BH],
            "executed": cache.executed[until_BH],
            "is_pad": rows_BH > last_B1,
            "has_labels": self._labelled[episode_B],
            "has_actions": self._trusted[episode_B],
            "task_index": cache.task_index[ids],
            "sample": ids,
        }
        if not batch["has_actions"].all():
            without_B = ~batch["has_actions"]
            known_BM[without_B] = False
            batch["actions"][without_B] = batch["executed"][without_B] = 0
        batch["past"][~known_BM] = 0
        if self.plans:
            batch["plan_index"] = cache.plan_index[ids]
        if self.future:
            left = last_B1[:, 0] - ids
            drawn = _generator(self.seed, "goal", step).random(self.batch_size)[self._part]
            batch["goal_steps"] = np.minimum((drawn * left).astype(np.int64) + 1, left)
            batch["future"] = self._pictures(ids + np.minimum(self.horizon, left))
            batch["goal"] = self._pictures(ids + batch["goal_steps"])
            batch["last"] = self._pictures(ids + left)
        if self.waypoints:
            later_BK = ids[:, None] + np.array(self.waypoints)
            batch["waypoints"] = cache.state[np.minimum(later_BK, last_B1)]
        return batch

    def _pictures(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        return {camera: frames.take(ids, axis=0) for camera, frames in self._frames.items()}

    def _moments(self, ids_BM: np.ndarray) -> dict[str, np.ndarray]:
        pictures = self._pictures(ids_BM.ravel())
        return {camera: frames.reshape(*ids_BM.shape, *frames.shape[1:]) for camera, frames in pictures.items()}

    def prefetch(self, start_step: int = 0, depth: int = 3) -> "Prefetch":
        """Iterate over (step, batch) from `start_step` on without end; a thread keeps up to `depth` batches
        ready."""
        return Prefetch(self, start_step, depth)


def _trusted(n: int, action_free: np.ndarray) -> np.ndarray:
    """Which of `n` episodes have actions, bool (n,)."""
    if len(action_free) and not 0 <= action_free.min() <= action_free.max() < n:
        raise ValueError(f"expected action_free episodes in 0..{n - 1}, got {action_free.tolist()[:10]}")
    trusted = np.ones(n, bool)
    trusted[action_free.astype(np.int64)] = False
    return trusted


class Prefetch(Iterator[tuple[int, Batch]]):
    """An iterator over (step, batch) with a thread behind it. `close` ends the thread; so does leaving a
    `with`."""

    def __init__(self, batches: Batches, start_step: int, depth: int):
        if depth < 1:
            raise ValueError(f"expected a prefetch depth >= 1, got {depth}")
        self._queue: queue.Queue[tuple[int, Batch] | BaseException] = queue.Queue(depth)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(batches, start_step), name="batches", daemon=True)
        self._thread.start()

    def _work(self, batches: Batches, step: int) -> None:
        while not self._stop.is_set():
            item: tuple[int, Batch] | BaseException
            try:
                item = (step, batches.batch(step))
            except BaseException as error:  # told to whoever waits for the batch
                item = error
            while not self._stop.is_set():
                try:
                    self._queue.put(item, timeout=0.1)
                    break
                except queue.Full:
                    continue
            if isinstance(item, BaseException):
                return
            step += 1

    def __next__(self) -> tuple[int, Batch]:
        if self._stop.is_set():
            raise StopIteration
        item = self._queue.get()
        if isinstance(item, BaseException):
            self.close()
            raise item
        return item

    def close(self) -> None:
        """End the thread. Safe to call twice."""
        self._stop.set()
        self._thread.join(timeout=5)

    def __enter__(self) -> "Prefetch":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def measure_gather_fps(seconds: float = 2.0, image_size: int = 96, batch_size: int = 64, frames: int = 6000) -> float:
    """Measure frames/s of `Batches.batch` in this thread, out of a memory-mapped file of `frames` frames."""
    import tempfile
    from pathlib import Path

    length = 30
    episodes = frames // length
    n = episodes * length
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "frames.npy"
        pictures = np.lib.format.open_memmap(path, "w+", np.uint8, (n, image_size, image_size, 3))
        for i in range(n):
            pictures[i] = i % 251
        pictures.flush()
        starts = np.arange(episodes) * length
        cache = FrameCache(
            path=Path(folder),
            frames={"front": np.load(path, mmap_mode="r")},
            state=np.zeros((n, 4), np.float32),
            action=np.zeros((n, 4), np.float32),
            timestamp=np.tile(np.arange(length) / 10, episodes),
            frame_index=np.tile(np.arange(length), episodes),
            episode_index=np.repeat(np.arange(episodes), length),
            task_index=np.zeros(n, np.int64),
            episode_from=starts,
            episode_to=starts + length,
            tasks=["nothing"],
            fps=10.0,
            action_names=("a", "b", "c", "d"),
            state_names=("a", "b", "c", "d"),
            cameras=("front",),
            meta={},
        )
        batches = Batches(cache, 8, batch_size, 0)
        steps, began = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - began) < seconds:
            batches.batch(steps)
            steps += 1
        return steps * batch_size / elapsed
