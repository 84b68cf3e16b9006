# SPDX-License-Identifier: Apache-2.0
"""Instructions for demonstrations that have none, by a noisy channel.

    label(policy, [frames of an episode, ...], keys) -> an instruction each

The query `label` proposes: `candidates` draws of p(instruction | images, actions) for every frame. The policy itself
disposes: the instruction under which the actions of all frames of an episode are likeliest, by the sum of
log p(actions | images, instruction), which is Bayes' rule with no opinion about which instruction is usual
(noisy-channel decoding; Yu et al. 2017, arXiv 1611.02554). The vision that reads a picture under an instruction knows
what to look for, so the second step tells colours apart that the first confuses.
"""

from collections.abc import Sequence
from dataclasses import dataclass
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
    """What the query says by itself: the likeliest proposal of all frames, each as loudly as it is sure."""


def label(
    policy: "Policy", episodes: Sequence[Sequence[Question]], keys: Sequence[tuple[int, int]], candidates: int = 8
) -> list[Label]:
    """Label episodes. `episodes`: frames of each, with the actions that follow (`Question.actions`, (H, A)).

    `keys`: one an episode, all its randomness. `candidates`: draws a frame, beside the likeliest one. ValueError for
    no frames, frames without actions, and checkpoints that cannot be asked for an instruction.
    """
    if len(keys) != len(episodes) or not all(episodes):
        raise ValueError(f"expected a key and at least one frame for each of {len(episodes)} episodes")
    frames = [(number, frame) for number, of in enumerate(episodes) for frame in of]
    asked = [query.label(frame, frame.actions) for _, frame in frames]
    said: list[dict[str, float]] = [{} for _ in episodes]
    for draw in range(candidates + 1):
        for begin in range(0, len(asked), ROWS):
            part = slice(begin, begin + ROWS)
            own = [(int(randomness.fold(*keys[n], draw)), begin + i) for i, (n, _) in enumerate(frames[part])]
            found = policy.ask(asked[part], own, temperature=float(draw > 0)).instruction
            assert found is not None
            sure = found.confidence.prod(1)
            for (number, _), text, weight in zip(frames[part], found.values, sure, strict=True):
                if draw == 0 or _readable(policy, text):
                    before = said[number].setdefault(text, 0.0)
                    said[number][text] = before + (float(weight) if draw == 0 else 0.0)
    rows = [(n, text, frame) for n, frame in frames for text in said[n] if _readable(policy, text)]
    likely = [{text: 0.0 if _readable(policy, text) else -np.inf for text in texts} for texts in said]
    for begin in range(0, len(rows), ROWS):
        part_rows = rows[begin : begin + ROWS]
        scores = policy.score([frame.but(instruction=text) for _, text, frame in part_rows])
        for (number, text, _), value in zip(part_rows, scores, strict=True):
            likely[number][text] += float(value)
    labels = []
    for proposals, of in zip(said, likely, strict=True):
        nats = np.array(list(of.values()))
        share = np.exp(nats - nats.max()) if np.isfinite(nats).any() else np.ones(len(nats))
        best = int(nats.argmax())
        labels.append(
            Label(list(of)[best], float(share[best] / share.sum()), max(proposals, key=proposals.__getitem__))
        )
    return labels


def _readable(policy: "Policy", text: str) -> bool:
    """Whether the policy can be told this text: an untrained query may say what is no sentence."""
    return 0 < len(policy.tokenizers.text.ids(text)) <= policy.tokenizers.text.length
