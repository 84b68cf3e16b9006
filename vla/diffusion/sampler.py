# SPDX-License-Identifier: Apache-2.0
"""The sampler: descend the lattice from what is given to a full canvas, in a fixed number of evaluations.

    for t in 1..T:
        draw the noise indices anew
        h = model.decode(prefix, state)                      one evaluation of the network
        draw every hidden digit from p(digit | h, digits before it), and note its confidence
        keep the digits that the schedule asks for, most confident first; forget the rest

Schedule: coarse digits everywhere first, then fine ones. T = 1 keeps everything at once; T = 2 keeps all coarse digits,
then all fine ones; T = 4 keeps half of the coarse digits, the rest, half of the fine ones, the rest (cosine steps:
few first, when little is known; Chang et al. 2022). What is given (COMMITTED) is never touched.

There is no host synchronisation, no Python loop over rows, and the randomness of a row is a function of its key.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vla import randomness
from vla.canvas import State, descend, hidden
from vla.model import LatticeModel, Prefix


@dataclass(frozen=True)
class Sampling:
    """How to fill a canvas."""

    evaluations: int = 2
    """T, evaluations of the network (NFE), >= 1."""
    temperature: float = 0.0
    """0: the most likely digit. > 0: sampled (Gumbel-max in float64)."""
    expectation: bool = True
    """Decode the last digit as its expectation inside the coarse bin, not as the middle of the likeliest bin."""

    def __post_init__(self) -> None:
        if self.evaluations < 1:
            raise ValueError(f"evaluations must be at least 1, got {self.evaluations}")


@dataclass(frozen=True)
class Sample:
    """A full canvas and how it was decided. B rows, N positions, S sub-tokens."""

    state: State
    confidence_BNS: Tensor
    """float, product of the probabilities of the token's digits when they were kept; 1 for given tokens."""
    fine_offset_BNS: Tensor
    """float, expectation of the last digit minus the digit kept, in last-digit units; 0 for given tokens."""


Trace = Callable[[int, State, Tensor], None]
"""Called after each evaluation with (its number from 1, the state, confidence (B, N, S))."""


def kept_fraction(evaluation: int, evaluations: int, depth: int) -> list[float]:
    """After `evaluation` (1..T), which fraction of each digit level is kept: D numbers in [0, 1]."""
    progress = depth * evaluation / evaluations
    fractions = [min(max(progress - d, 0.0), 1.0) for d in range(depth)]
    if evaluations < depth:  # fewer evaluations than levels: the last one keeps everything
        return [1.0] * depth if evaluation == evaluations else fractions
    return [1 - math.cos(f * math.pi / 2) if f < 1 else 1.0 for f in fractions]


@torch.no_grad()
def sample(
    model: LatticeModel,
    prefix: Prefix,
    key_B: Tensor,
    sampling: Sampling,
    given: State | None = None,
    trace: Trace | None = None,
) -> Sample:
    """Fill the canvas. `key_B`: int64 (B,), one key a row. `given`: what is known beforehand (nothing by default)."""
    layout, noise_indices = model.config.layout, model.config.noise_indices
    batch, depth = key_B.shape[0], layout.digits
    shape = (layout.positions, layout.sub_tokens)
    state = hidden((batch, *shape), depth, key_B.device) if given is None else given
    confidence = torch.ones(batch, *shape, device=key_B.device)
    offset = torch.zeros(batch, *shape, device=key_B.device)

    for t in range(1, sampling.evaluations + 1):
        # === 1. One evaluation of the network, under noise indices drawn anew ===
        key_t = randomness.fold(key_B, t)
        state = state.with_noise(randomness.integers(key_t, "noise index", noise_indices, *shape))
        features = model.head.features(model.decode(prefix, state))

        # === 2. A proposal for every hidden digit, coarse before fine ===
        proposal, levels, visible = state.digits_BNSD, [], state.visible_BNSD()
        for d in range(depth):
            logits_BNSV = model.head.digit_logits(features, d, proposal)
            probability = logits_BNSV.softmax(-1)
            if sampling.temperature > 0:
                noise = randomness.gumbel(key_t, f"digit {d}", *logits_BNSV.shape[1:])
                chosen = (logits_BNSV.double() / sampling.temperature + noise).argmax(-1)
            else:
                chosen = logits_BNSV.argmax(-1)
            chosen = torch.where(visible[..., d], state.digits_BNSD[..., d], chosen)
            proposal = torch.cat([proposal[..., :d], chosen.unsqueeze(-1), proposal[..., d + 1 :]], dim=-1)
            levels.append(probability.gather(-1, chosen.unsqueeze(-1)).squeeze(-1))
        values = torch.arange(layout.base, device=key_B.device, dtype=probability.dtype)
        proposed_offset = probability @ values - chosen.to(probability.dtype)  # of the last digit

        # === 3. Keep what the schedule asks for, most confident first ===
        kept = state.known_BNS
        for d, fraction in enumerate(kept_fraction(t, sampling.evaluations, depth)):
            candidate = kept == d  # the digits before d are known or just kept
            score = torch.where(candidate, levels[d], -1.0).flatten(1)
            rank = score.argsort(dim=1, descending=True, stable=True).argsort(dim=1, stable=True).view_as(kept)
            done = (kept > d).flatten(1).sum(1)
            quota = (math.ceil(fraction * shape[0] * shape[1]) - done).clamp(min=0)[:, None, None]
            newly = candidate & (rank < quota)
            confidence = torch.where(newly, confidence * levels[d], confidence)
            if d == depth - 1:
                offset = torch.where(newly, proposed_offset, offset)
            kept = torch.where(newly, d + 1, kept)
        state = descend(state, proposal, kept)
        if trace is not None:
            trace(t, state, confidence)
    return Sample(state, confidence, offset)
