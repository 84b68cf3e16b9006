# SPDX-License-Identifier: Apache-2.0
"""Instructions for demonstrations that have none, by a noisy channel.

    label(policy, [frames of an episode, ...], keys)                an instruction each, in the policy's own words
    label(policy, [frames of an episode, ...], keys, among=[...])   one of these each

Something proposes, the policy itself disposes: of the proposals that one under which the actions of all frames of an
episode are likeliest, by the sum of log p(actions | images, instruction). This is Bayes' rule with no opinion about
which instruction is usual (noisy-channel decoding; Yu et al. 2017, arXiv 1611.02554). Proposals are draws of the query
`label`, p(instruction | images, actions, last picture), or a list. The vision that reads a picture under an instruction
knows what to look for; without one it finds out what is done sooner than to which block, so where the instructions are
known, name them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from vla import randomness
from vla.canvas import query
from vla.canvas.query import Question

if TYPE_CHECKING:
    from vla.policy.acting import Policy

ROWS = 64
"""Of an evaluation of the network."""


@dataclass(frozen=True)
class Label:
    """An instruction for an episode."""

    instruction: str
    confidence: float
    """Its share of the likelihood of all that was proposed, in [0, 1]."""
    proposed: str
    """What the query says by itself: the likeliest proposal of all frames, each as loudly as it is sure; "" where the
    proposals were given."""


def label(
    policy: "Policy",
    episodes: Sequence[Sequence[Question]],
    keys: Sequence[tuple[int, int]],
    candidates: int = 8,
    among: Sequence[str] = (),
) -> list[Label]:
    """Label episodes. `episodes`: frames of each, with the actions that follow (`Question.actions`, (H, A)) and, unless
    `among` is said, the episode's last picture (`Question.goal_image`).

    `keys`: one an episode, all its randomness. `candidates`: draws a frame, beside the likeliest one. `among`: the
    instructions that it may be; (): those that the query says. ValueError for no frames, frames without actions,
    instructions that cannot be told, and checkpoints that cannot be asked for one.
    """
    if len(keys) != len(episodes) or not all(episodes):
        raise ValueError(f"expected a key and at least one frame for each of {len(episodes)} episodes")
    if unknown := [text for text in among if not _readable(policy, text)]:
        raise ValueError(f"an instruction must have 1 to {policy.tokenizers.text.length} tokens, got {unknown[0]!r}")
    proposals = [("", list(among))] * len(episodes) if among else _proposals(policy, episodes, keys, candidates)
    rows = [
        (number, text, frame)
        for number, (of, (_, texts)) in enumerate(zip(episodes, proposals, strict=True))
        for text in texts
        for frame in of
    ]
    likely = [dict.fromkeys(texts, 0.0) for _, texts in proposals]
    for begin in range(0, len(rows), ROWS):
        part = rows[begin : begin + ROWS]
        scores = policy.score([frame.but(instruction=text) for _, text, frame in part])
        for (number, text, _), value in zip(part, scores, strict=True):
            likely[number][text] += float(value)
    return [_best(proposed, nats) for (proposed, _), nats in zip(proposals, likely, strict=True)]


def _best(proposed: str, nats: dict[str, float]) -> Label:
    """The likeliest of the texts; without any, what the query says by itself."""
    if not nats:
        return Label(proposed, 1.0, proposed)
    best = max(nats, key=nats.__getitem__)
    return Label(best, float(1 / np.exp(np.array(list(nats.values())) - nats[best]).sum()), proposed)


def _proposals(
    policy: "Policy", episodes: Sequence[Sequence[Question]], keys: Sequence[tuple[int, int]], candidates: int
) -> list[tuple[str, list[str]]]:
    """Of each episode (what the query says of all frames, each as loudly as it is sure; the sentences that it says)."""
    frames = [(number, frame) for number, of in enumerate(episodes) for frame in of]
    if any(frame.goal_image is None for _, frame in frames):
        raise ValueError(
            "proposals need Question.goal_image, the episode's last picture, in every frame; or say `among`"
        )
    asked = [query.label(frame, frame.actions, frame.goal_image or {}) for _, frame in frames]
    said: list[dict[str, float]] = [{} for _ in episodes]
    for draw in range(candidates + 1):  # the first one is the likeliest, the others are draws
        for begin in range(0, len(asked), ROWS):
            part = slice(begin, begin + ROWS)
            own = [(int(randomness.fold(*keys[n], draw)), begin + i) for i, (n, _) in enumerate(frames[part])]
            found = policy.ask(asked[part], own, replace(policy.sampling, temperature=float(draw > 0))).instruction
            assert found is not None
            sure = found.confidence.prod(1) if draw == 0 else np.zeros(len(own))
            for (number, _), text, weight in zip(frames[part], found.values, sure, strict=True):
                said[number][text] = said[number].get(text, 0.0) + float(weight)
    return [(max(of, key=of.__getitem__), [text for text in of if _readable(policy, text)]) for of in said]


def _readable(policy: "Policy", text: str) -> bool:
    """Whether the policy can be told this text: an untrained query may say what is no sentence."""
    return 0 < len(policy.tokenizers.text.ids(text)) <= policy.tokenizers.text.length
