# SPDX-License-Identifier: Apache-2.0
"""What one checkpoint answers to eight queries about held-out episodes, beside an answer that needs no network.

    query         error                                          beside it
    policy        mean |action error| / its spread               the mean chunk of the training episodes
    infill        the same, of the steps that were not given     the mean chunk
    inverse       the same                                       the mean chunk
    goal_policy   the same                                       the mean chunk
    world_model   mean squared pixel error, 0..255               the mean picture; and what is seen now
    plan          1 if the plan is not the expert's, word by word  the most frequent plan
    label         1 if the instruction means something else      the most frequent meaning
    score         1 if another chunk scores higher               chance, 7 of 8

One frame of every held-out episode, so that frames are independent; for labels, several frames of it. An action's
spread is its standard deviation over the training episodes. Two instructions mean the same if they are ways of saying
one task of the same colours: which way was chosen for an episode, nobody can see.

Shapes: B episodes, H steps, A dimensions.
"""

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vla.canvas import query
from vla.canvas.query import Question

if TYPE_CHECKING:
    from vla.data.cache import FrameCache
    from vla.policy import Policy

ROWS = 50
"""Questions that are asked together."""
CANDIDATES = 8
"""Chunks that a score is to rank, the true one among them."""
VOTES = 4
"""Frames of an episode that decide its label together."""


@dataclass(frozen=True)
class Compared:
    """Errors of a query and of the answer without a network, one each episode, float64 (B,)."""

    ours: np.ndarray
    baseline: np.ndarray
    note: str = ""

    def better(self) -> tuple[float, tuple[float, float]]:
        """The mean of baseline - ours, and its 95 % interval (normal; episodes are independent)."""
        gain = self.baseline - self.ours
        half = 1.96 * gain.std(ddof=1) / len(gain) ** 0.5
        return float(gain.mean()), (float(gain.mean() - half), float(gain.mean() + half))


class HeldOut:
    """Frames of episodes that a checkpoint was not trained on, as questions. `seed`: which frames, which randomness."""

    def __init__(
        self, policy: "Policy", cache: "FrameCache", train: np.ndarray, held_out: np.ndarray, seed: int
    ) -> None:
        self.policy, self.cache, self.seed, self.episodes = policy, cache, seed, held_out
        rows = np.concatenate([np.arange(cache.episode_from[e], cache.episode_to[e]) for e in train])
        self.spread_A = cache.action[rows].std(0)
        some = rows[np.random.default_rng(0).permutation(len(rows))[:4000]]
        self.mean_chunk_HA = self.chunks(some)[0].mean(0)
        self.mean_picture = {c: cache.frames[c][np.sort(some)].astype(np.float32).mean(0) for c in policy.cameras}
        self.meanings = meanings(cache)
        tasks = cache.task_index[cache.episode_from[train]]
        self.usual_meaning = Counter(self.meanings[t] for t in tasks).most_common(1)[0][0]
        plans = cache.plan_index[rows]
        self.usual_plan = Counter(plans[plans >= 0].tolist()).most_common(1)[0][0] if (plans >= 0).any() else -1
        self.frames_B = self.draw(0)

    def draw(self, number: int) -> np.ndarray:
        """One frame of each episode, int64 (B,): another one for each `number`."""
        first, end = self.cache.episode_from[self.episodes], self.cache.episode_to[self.episodes]
        place = np.random.default_rng((self.seed, number)).random(len(first))
        return first + np.minimum((place * (end - first)).astype(np.int64), end - first - 1)

    def chunks(self, frames_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The chunks that begin at frames, float32 (B, H, A), and which steps are real, bool (B, H)."""
        rows_BH = frames_B[:, None] + np.arange(self.policy.horizon)
        last_B1 = self.cache.episode_to[self.cache.episode_index[frames_B]][:, None] - 1
        return self.cache.action[np.minimum(rows_BH, last_B1)], rows_BH <= last_B1

    def pictures(self, frame: int) -> dict[str, np.ndarray]:
        return {camera: np.asarray(self.cache.frames[camera][frame]) for camera in self.policy.cameras}

    def later(self, frames_B: np.ndarray, steps: int | None) -> np.ndarray:
        """The frame `steps` later, at most the episode's last one; None: the last one."""
        last_B = self.cache.episode_to[self.cache.episode_index[frames_B]] - 1
        return last_B if steps is None else np.minimum(frames_B + steps, last_B)

    def question(self, frame: int) -> Question:
        task = self.cache.tasks[self.cache.task_index[frame]]
        return Question(self.pictures(frame), self.cache.state[frame], task)

    def ask(self, questions: list[Question], **how: Any) -> list[Any]:
        """Answers to many questions of one shape, ROWS at a time."""
        keys = [(self.seed, i) for i in range(len(questions))]
        starts = range(0, len(questions), ROWS)
        return [self.policy.ask(questions[i : i + ROWS], keys[i : i + ROWS], **how) for i in starts]

    def action_error(
        self, actions_BHA: np.ndarray, frames_B: np.ndarray, asked_BH: np.ndarray | None = None
    ) -> np.ndarray:
        """Mean error of real steps (and of those `asked_BH`), in spreads: (B,)."""
        true_BHA, real_BH = self.chunks(frames_B)
        weight_BH = real_BH if asked_BH is None else real_BH & asked_BH
        error_BH = (np.abs(actions_BHA - true_BHA) / self.spread_A).mean(-1)
        return (error_BH * weight_BH).sum(1) / np.maximum(weight_BH.sum(1), 1)

    def mean_chunk(self, count: int) -> np.ndarray:
        return np.broadcast_to(self.mean_chunk_HA, (count, *self.mean_chunk_HA.shape))


def meanings(cache: "FrameCache") -> list[str]:
    """Of each instruction of a dataset, what it means: its task and the colours it names; itself if that is unknown."""
    from vla.envs.tabletop.scene import COLOURS

    template = cache.meta.get("episodes", {}).get("task_template")
    if template is None:
        return list(cache.tasks)
    of = {int(cache.task_index[first]): name for first, name in zip(cache.episode_from, template, strict=True)}
    colours = [" ".join(word for word in text.lower().split() if word in COLOURS) for text in cache.tasks]
    return [f"{of[i]} {colours[i]}" if i in of else text for i, text in enumerate(cache.tasks)]


def answers(data: HeldOut, only: tuple[str, ...] = ()) -> dict[str, Compared]:
    """The eight queries (or `only` some), those that the checkpoint can be asked."""
    known = {name: found for name, found in MEASURES.items() if not only or name in only}
    return {name: measure(data) for name, measure in known.items()}


def _actions(data: HeldOut, questions: list[Question], asked_BH: np.ndarray | None = None) -> Compared:
    actions = np.concatenate([a.actions.values for a in data.ask(questions)])
    ours = data.action_error(actions, data.frames_B, asked_BH)
    return Compared(ours, data.action_error(data.mean_chunk(len(actions)), data.frames_B, asked_BH))


def _policy(data: HeldOut) -> Compared:
    return _actions(data, [query.policy(data.question(f)) for f in data.frames_B])


def _infill(data: HeldOut) -> Compared:
    """The first two steps and the last one are given."""
    known_HA = np.zeros((data.policy.horizon, len(data.spread_A)), dtype=bool)
    known_HA[:2] = known_HA[-1] = True
    true_BHA, _ = data.chunks(data.frames_B)
    questions = [query.infill(data.question(f), t, known_HA) for f, t in zip(data.frames_B, true_BHA, strict=True)]
    return _actions(data, questions, ~known_HA[:, 0][None].repeat(len(questions), 0))


def _inverse(data: HeldOut) -> Compared:
    later_B = data.later(data.frames_B, data.policy.horizon)
    questions = [query.inverse(data.question(f), data.pictures(g)) for f, g in zip(data.frames_B, later_B, strict=True)]
    return _actions(data, questions)


def _goal_policy(data: HeldOut) -> Compared:
    later_B = data.later(data.frames_B, None)
    questions = [
        query.goal_policy(data.question(f), data.pictures(g)) for f, g in zip(data.frames_B, later_B, strict=True)
    ]
    return _actions(data, questions)


def _world_model(data: HeldOut) -> Compared:
    chunks_BHA, _ = data.chunks(data.frames_B)
    questions = [query.world_model(data.question(f), a) for f, a in zip(data.frames_B, chunks_BHA, strict=True)]
    seen = [a.future_image.values for a in data.ask(questions)]
    later_B = data.later(data.frames_B, data.policy.horizon)
    ours, mean, now, floor = (np.zeros(len(later_B)) for _ in range(4))
    tokenizer = data.policy.tokenizers
    for camera in data.policy.cameras:
        true = np.stack([data.pictures(f)[camera] for f in later_B]).astype(np.float32)
        before = np.stack([data.pictures(f)[camera] for f in data.frames_B]).astype(np.float32)
        made = np.concatenate([s[camera] for s in seen]).astype(np.float32)
        again = _again(tokenizer, true.astype(np.uint8), camera)
        others = (ours, made), (mean, data.mean_picture[camera]), (now, before), (floor, again)
        for into, picture in others:
            into += ((picture - true) ** 2).mean((1, 2, 3)) / len(data.policy.cameras)
    note = f"what is seen now: {now.mean():.1f}; the tokenizer's own error: {floor.mean():.1f}"
    return Compared(ours, mean, f"{note}; better than what is seen now in {np.mean(ours < now):.0%}")


def _again(tokenizers: Any, pictures: np.ndarray, camera: str) -> np.ndarray:
    """Pictures as the tokenizer gives them back."""
    import torch

    image = tokenizers.image
    name = camera if camera in image.cameras else None
    with torch.no_grad():
        return image.decode(image.encode(torch.from_numpy(pictures), name), name).numpy().astype(np.float32)


def _plan(data: HeldOut) -> Compared:
    cache = data.cache
    told = np.array([i for i in data.frames_B if cache.plan_index[i] >= 0], dtype=np.int64)
    found = [answer.plan for answer in data.ask([query.plan(data.question(f)) for f in told])]
    texts = [text for plan in found for text in plan.values]
    read = data.policy.tokenizers.text
    true = [read.decode(read.ids(cache.plans[i])) for i in cache.plan_index[told]]
    wrong = np.array([a != b for a, b in zip(texts, true, strict=True)], dtype=np.float64)
    usual = cache.plan_index[told] != data.usual_plan
    used = float(np.mean([plan.used for plan in found]))
    return Compared(wrong, usual.astype(np.float64), f"used {used:.3f}")


def _label(data: HeldOut) -> Compared:
    """Which of the instructions of the training episodes, one for each meaning, `Policy.label` finds."""
    sentence = dict(zip(reversed(data.meanings), reversed(data.cache.tasks), strict=True))  # the first of each meaning
    labels = data.policy.label(*_frames_with_actions(data), among=list(sentence.values()))
    meaning_of = {text: meaning for meaning, text in sentence.items()}
    wrong = _wrong(data, [meaning_of[label.instruction] for label in labels])
    usual = _wrong(data, [data.usual_meaning] * len(wrong))
    return Compared(wrong, usual, f"among {len(sentence)} meanings, {VOTES} frames of an episode")


def label_in_own_words(data: HeldOut) -> tuple[Compared, float]:
    """The same with nothing to choose from; and how often the query is right by itself."""
    read = data.policy.tokenizers.text
    of = {read.decode(read.ids(t)): meaning for t, meaning in zip(data.cache.tasks, data.meanings, strict=True)}
    labels = data.policy.label(*_frames_with_actions(data))
    wrong, alone = (
        _wrong(data, [of.get(text, text) for text in texts])
        for texts in ([label.instruction for label in labels], [label.proposed for label in labels])
    )
    return Compared(wrong, _wrong(data, [data.usual_meaning] * len(wrong))), float(1 - alone.mean())


def _frames_with_actions(data: HeldOut) -> tuple[list[list[Question]], list[tuple[int, int]]]:
    """VOTES frames of every held-out episode with the actions that follow, and keys."""
    drawn = [data.draw(number) for number in range(VOTES)]
    both = [(frames_B, data.chunks(frames_B)[0]) for frames_B in drawn]
    count = len(data.episodes)
    episodes = [[data.question(frames[e]).but(actions=chunk[e]) for frames, chunk in both] for e in range(count)]
    return episodes, [(data.seed, e) for e in range(count)]


def _wrong(data: HeldOut, said: list[str]) -> np.ndarray:
    """1 for every held-out episode that does not mean what is said, float64 (B,)."""
    true = [data.meanings[t] for t in data.cache.task_index[data.cache.episode_from[data.episodes]]]
    return np.array([a != b for a, b in zip(said, true, strict=True)], dtype=np.float64)


def _score(data: HeldOut) -> Compared:
    """The true chunk against those of other episodes, for the same observation."""
    chunks_BHA, _ = data.chunks(data.frames_B)
    others = np.random.default_rng((data.seed, 99)).integers(1, len(chunks_BHA), (len(chunks_BHA), CANDIDATES - 1))
    wrong = np.zeros(len(chunks_BHA), dtype=np.float64)
    for row, frame in enumerate(data.frames_B):
        picks = [row, *((row + others[row]) % len(chunks_BHA))]
        now = data.question(frame)
        scores = data.policy.score([now.but(actions=chunks_BHA[p]) for p in picks])
        wrong[row] = float(scores[1:].max() >= scores[0])
    return Compared(wrong, np.full(len(wrong), 1 - 1 / CANDIDATES), f"{CANDIDATES} candidates")


MEASURES = {
    "policy": _policy,
    "plan": _plan,
    "world_model": _world_model,
    "inverse": _inverse,
    "goal_policy": _goal_policy,
    "label": _label,
    "infill": _infill,
    "score": _score,
}
