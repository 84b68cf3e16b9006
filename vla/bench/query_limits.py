# SPDX-License-Identifier: Apache-2.0
"""What holds by construction, counted all the same: vocabularies, limits, committed prefixes."""

from typing import TYPE_CHECKING

import numpy as np
import torch

from vla.canvas import query
from vla.diffusion import Sampling
from vla.tokenizers import BinTokenizer

if TYPE_CHECKING:
    from vla.bench.query_answers import HeldOut
    from vla.policy import Policy

ROWS = 256


def foreign_tokens(data: "HeldOut") -> tuple[int, int]:
    """(digits that the segment they stand in does not have, digits looked at), over joint and world-model answers."""
    foreign = total = 0
    chunks_BHA, _ = data.chunks(data.frames_B)
    allowed = data.policy.model.head.allowed_ADV.cpu().numpy()
    radices = np.array(data.policy.tokenizers.image.numerals.radices if data.policy.tokenizers.image else ())
    joint = data.ask([query.joint(data.question(f)) for f in data.frames_B])
    world = data.ask([query.world_model(data.question(f), a) for f, a in zip(data.frames_B, chunks_BHA, strict=True)])
    for answer in joint:
        digits = data.policy.model.config.layout.unfold(torch.from_numpy(answer.actions.tokens)).numpy()
        dims, places = np.arange(allowed.shape[0])[:, None], np.arange(allowed.shape[1])
        foreign += int((~allowed[dims, places, digits]).sum())
        total += digits.size
        words = answer.plan.tokens
        foreign += int(((words < 0) | (words >= data.policy.tokenizers.text.vocabulary)).sum())
        total += words.size
    for answer in (*joint, *world):
        foreign += int((answer.future_image.tokens >= radices).sum())
        total += answer.future_image.tokens.size
    return foreign, total


def broken_limits(policy: "Policy", chunks: int) -> tuple[int, int]:
    """(actions that break a limit, chunks sampled): hot samples for random pictures, under box, change and reach.

    Half of the chunks have a box and a change, half a box and a reach, with limits drawn anew for every ROWS chunks.
    """
    from vla.diffusion.limits import Limits
    from vla.policy import Observation

    rng = np.random.default_rng(0)
    names, tokenizer = policy.action_names, policy.tokenizers.action
    assert isinstance(tokenizer, BinTokenizer)
    low, high = np.array(tokenizer.low), np.array(tokenizer.high)
    steady = np.array([not b for b in tokenizer.binary])
    before, policy.sampling = policy.sampling, Sampling(evaluations=2, temperature=2.0)
    size, broken, done = policy.image_size, 0, 0
    try:
        while done < chunks:
            count = min(ROWS, chunks - done)
            images = {c: rng.integers(0, 256, (size, size, 3), dtype=np.uint8) for c in policy.cameras}
            seen = Observation(images, np.zeros(len(policy.state_names)), "reach the red block")
            middle, span = (low + high) / 2, (high - low) * rng.uniform(0.1, 0.45, len(names))
            box_low = np.where(steady, middle - span, -np.inf)
            box_high = np.where(steady, middle + span, np.inf)
            change = np.where(steady, (high - low) * rng.uniform(0.02, 0.2, len(names)), np.inf)
            reach = np.where(steady, rng.uniform(0.5, 3.0, len(names)), np.inf)
            start, scale = np.zeros((count, len(names))), np.ones(len(names))
            changes = done // ROWS % 2 == 0
            policy.limit(
                Limits(names, box_low, box_high, change=change)
                if changes
                else Limits(names, box_low, box_high, reach_low=-reach, reach_high=reach, scale=scale)
            )
            keys = [(done + i, 0) for i in range(count)]
            actions = policy.decide([seen] * count, keys, start=start).actions_BHA.astype(np.float64)
            broken += int(((actions < box_low) | (actions > box_high)).sum())
            if changes:
                broken += int((np.abs(np.diff(actions, axis=1)) > change).sum())
            else:
                broken += int((np.abs(actions.cumsum(1)) > reach).sum())
            done += count
    finally:
        policy.sampling = before
        policy.limit(None)
    return broken, done


def changed_prefixes(data: "HeldOut", count: int) -> tuple[float, int]:
    """(fraction of committed prefixes of 1 to 4 steps that come back bit by bit, how many)."""
    from vla.policy import Observation

    rng = np.random.default_rng(data.seed)
    exact = done = 0
    while done < count:
        frames_B = data.draw(1000 + done)[: count - done]
        chunks_BHA, _ = data.chunks(frames_B)
        parts = [chunk[: rng.integers(1, 5)] for chunk in chunks_BHA]
        seen = [Observation(q.images, q.state, q.instruction) for q in map(data.question, frames_B)]
        keys = [(data.seed, done + i) for i in range(len(seen))]
        actions = data.policy.decide(seen, keys, parts).actions_BHA
        exact += sum(np.array_equal(a[: len(p)], p) for a, p in zip(actions, parts, strict=True))
        done += len(frames_B)
    return exact / done, done
