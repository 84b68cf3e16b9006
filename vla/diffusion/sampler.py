# SPDX-License-Identifier: Apache-2.0
"""The sampler: descend the lattice from what is given to a full canvas, in a fixed number of evaluations.

    for t in 1..T:
        draw a noise index anew (or use the plain mask)
        h = model.decode(prefix, state)                      one evaluation of the network
        draw every hidden digit from p(digit | h, digits before it), and note its confidence
        keep the digits that the schedule asks for, most confident first; forget the rest
    for each revision:                                       two evaluations
        ask the quality head about every digit; what it doubts climbs (a doubted fine digit one rung, a doubted
        coarse digit to the top) and is marked SUSPECT
        fill it again

Schedule: coarse digits everywhere first, then fine ones. T = 1 keeps everything at once; T = 2 keeps all coarse digits,
then all fine ones; T = 4 keeps half of the coarse digits, the rest, half of the fine ones, the rest (cosine steps:
few first, when little is known; Chang et al. 2022). What is given (COMMITTED) is never touched.

    max-confidence        order="confidence"; `anneal` cools the temperature linearly over the evaluations
    ancestral             order="random", temperature=1: which digits are kept does not depend on what was drawn
    coarse to fine        evaluations=2
    one evaluation        evaluations=1, noise=True: a mixture over the noise index (noise.py)
    adaptive early stop   stop_at=0.9: once every row is that sure of all that is hidden, it is kept at once

There is no host synchronisation (but for `stop_at`), no Python loop over rows, and the randomness of a row is a
function of its key.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vla import randomness
from vla.canvas import State, climb, descend, hidden
from vla.diffusion.domain import Domain, choose, narrow
from vla.diffusion.noise import redraw
from vla.model import LatticeModel, Prefix
from vla.model.embedding import DigitHead


@dataclass(frozen=True)
class Sampling:
    """How to fill a canvas."""

    evaluations: int = 2
    """T, evaluations of the network (NFE), >= 1, not counting revisions."""
    temperature: float = 0.0
    """0: the most likely digit. > 0: sampled (Gumbel-max in float64)."""
    anneal: bool = False
    """Cool the temperature linearly, from `temperature` to `temperature` / T."""
    noise: bool = False
    """Draw a noise index for each evaluation (one evaluation becomes multimodal); False: the plain mask."""
    order: Literal["confidence", "random"] = "confidence"
    """Which digits are kept first."""
    single_mask: bool = False
    """Keep whole tokens (the two-rung lattice) instead of coarse digits everywhere first."""
    stop_at: float = 1.0
    """Stop early once all hidden digits are at least this probable in all rows; 1: never (needs a host sync if < 1)."""
    revisions: int = 0
    """How often doubted digits are taken back and filled again, two evaluations each."""
    doubt: float = 0.5
    """A digit that is true with less than this probability is taken back."""
    expectation: bool = True
    """Decode the last digit as its expectation inside the coarse bin, not as the middle of the likeliest bin."""

    def __post_init__(self) -> None:
        if self.evaluations < 1 or self.revisions < 0:
            raise ValueError(
                f"evaluations must be at least 1 and revisions at least 0, got {self.evaluations}, {self.revisions}"
            )
        if self.order not in ("confidence", "random"):
            raise ValueError(f"order must be 'confidence' or 'random', got {self.order!r}")


@dataclass(frozen=True)
class Sample:
    """A full canvas and how it was decided. B rows, N positions, S sub-tokens."""

    state: State
    confidence_BNS: Tensor
    """float, product of the probabilities of the token's digits when they were kept; 1 for given tokens."""
    fine_offset_BNS: Tensor
    """float, expectation of the last digit minus the digit kept, in last-digit units; 0 for given tokens."""
    evaluations: int
    """How many evaluations it took."""
    near_BNS: Tensor | None = None
    """float, how probable the coarse digit was to be the one kept or one beside it, when it was kept; 1 if given.

    The product of all digits asks for one value in 256; this asks for the action, up to the width of a coarse bin."""


Trace = Callable[[int, State, Tensor], None]
"""Called after each evaluation that fills with (its number from 1, the state, confidence (B, N, S))."""


def kept_fraction(evaluation: int, evaluations: int, depth: int, single_mask: bool = False) -> list[float]:
    """After `evaluation` (1..T), which fraction of each digit level is kept: D numbers in [0, 1]."""
    if single_mask:
        return kept_fraction(evaluation, evaluations, 1) * depth
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
    limits: Domain | None = None,
) -> Sample:
    """Fill the canvas. `key_B`: int64 (B,), one key a row. `given`: what is known beforehand (nothing by default).

    `limits`: which tokens may be chosen (limits.py), at every evaluation. ValueError when what is given breaks them.
    """
    if limits is not None and given is not None:
        narrow(limits, model.config.layout.unfold(given.digits_BNSD), model.config.layout.unfold(given.known_BNS))
    if sampling.revisions and model.quality is None:
        raise ValueError("revision needs a quality head, and this model was trained without; set revisions to 0")
    layout = model.config.layout
    shape_BNS = (key_B.shape[0], layout.positions, layout.sub_tokens)
    state = hidden(shape_BNS, layout.digits, key_B.device) if given is None else given
    now = Sample(state, torch.ones(shape_BNS, device=key_B.device), torch.zeros(shape_BNS, device=key_B.device), 0)

    for t in range(1, sampling.evaluations + 1):
        fractions = kept_fraction(t, sampling.evaluations, layout.digits, sampling.single_mask)
        cooled = 1 - (t - 1) / sampling.evaluations if sampling.anneal else 1.0
        now, sure = fill(
            model, prefix, now, randomness.fold(key_B, t), sampling, sampling.temperature * cooled, fractions, limits
        )
        if trace is not None:
            trace(now.evaluations, now.state, now.confidence_BNS)
        if sure:
            break
    for _ in range(sampling.revisions):
        now = take_back(model, prefix, now, sampling.doubt)
        key_t = randomness.fold(key_B, now.evaluations + 1)
        now, _ = fill(model, prefix, now, key_t, sampling, 0.0, [1.0] * layout.digits, limits)
        if trace is not None:
            trace(now.evaluations, now.state, now.confidence_BNS)
    return now


def fill(
    model: LatticeModel,
    prefix: Prefix,
    now: Sample,
    key_B: Tensor,
    sampling: Sampling,
    temperature: float,
    fractions: list[float],
    limits: Domain | None = None,
) -> tuple[Sample, bool]:
    """One evaluation. Returns the sample, and whether it stopped early because all rows were sure."""
    state = redraw(now.state, key_B, model.config.noise_indices, sampling.noise)
    h_BNW = model.decode(prefix, state)
    return decide(model.head, h_BNW, replace(now, state=state), key_B, sampling, temperature, fractions, limits)


def decide(
    head: DigitHead,
    h_BNW: Tensor,
    now: Sample,
    key_B: Tensor,
    sampling: Sampling,
    temperature: float,
    fractions: list[float],
    limits: Domain | None = None,
) -> tuple[Sample, bool]:
    """What an evaluation `h_BNW` of the network says about the hidden digits: of each digit level a fraction is kept.

    Returns the sample, and whether all rows were so sure that everything was kept.
    """
    state, depth, layout = now.state, now.state.depth, head.layout
    if limits is not None:
        limits = narrow(limits, layout.unfold(state.digits_BNSD), layout.unfold(state.known_BNS), check=False)

    # === 1. What the network says, for every digit ===
    features = head.features(h_BNW)

    # === 2. A proposal for every hidden digit, coarse before fine ===
    proposal, levels, visible = state.digits_BNSD, [], state.visible_BNSD()
    for d in range(depth):
        logits_BNSV = head.digit_logits(features, d, proposal)
        scores = logits_BNSV
        if temperature > 0:
            noise = randomness.gumbel(key_B, f"digit {d}", *logits_BNSV.shape[1:])
            scores = logits_BNSV.double() / temperature + noise
        if limits is None:
            chosen = scores.argmax(-1)
        else:
            known_BHA, so_far_BHAD = layout.unfold(visible[..., d]), layout.unfold(proposal)
            chosen_BHA, mask_BHAV, limits = choose(layout.unfold(scores), d, so_far_BHAD, known_BHA, limits)
            chosen = layout.fold(chosen_BHA)
            logits_BNSV = logits_BNSV.masked_fill(~layout.fold(mask_BHAV), float("-inf"))
        probability = logits_BNSV.softmax(-1).nan_to_num(0.0)
        chosen = torch.where(visible[..., d], state.digits_BNSD[..., d], chosen)
        proposal = torch.cat([proposal[..., :d], chosen.unsqueeze(-1), proposal[..., d + 1 :]], dim=-1)
        levels.append(probability.gather(-1, chosen.unsqueeze(-1)).squeeze(-1))
        if d == 0:
            close_BNS = _within_one(probability, chosen)
    values = torch.arange(layout.base, device=key_B.device, dtype=probability.dtype)
    proposed_offset = probability @ values - chosen.to(probability.dtype)  # of the last digit

    # === 3. Keep what the schedule asks for, most confident first ===
    sure = sampling.stop_at < 1 and bool(
        torch.stack([(levels[d] >= sampling.stop_at) | visible[..., d] for d in range(depth)]).all()
    )
    kept, confidence, offset = state.known_BNS, now.confidence_BNS, now.fine_offset_BNS
    near_BNS = torch.ones_like(confidence) if now.near_BNS is None else now.near_BNS
    for d, fraction in enumerate([1.0] * depth if sure else fractions):
        candidate = kept == d  # the digits before d are known or just kept
        in_order = sampling.order == "confidence"
        score = levels[d] if in_order else randomness.uniform(key_B, "order", *kept.shape[1:])  # one order a step
        score = torch.where(candidate, score, -1.0).flatten(1)
        rank = score.argsort(dim=1, descending=True, stable=True).argsort(dim=1, stable=True).view_as(kept)
        done = (kept > d).flatten(1).sum(1)
        quota = (math.ceil(fraction * kept[0].numel()) - done).clamp(min=0)[:, None, None]
        newly = candidate & (rank < quota)
        confidence = torch.where(newly, confidence * levels[d], confidence)
        if d == 0:
            near_BNS = torch.where(newly, close_BNS, near_BNS)
        if d == depth - 1:
            offset = torch.where(newly, proposed_offset, offset)
        kept = torch.where(newly, d + 1, kept)
    return Sample(descend(state, proposal, kept), confidence, offset, now.evaluations + 1, near_BNS), sure


def _within_one(probability_BNSV: Tensor, chosen_BNS: Tensor) -> Tensor:
    """The probability of the chosen value and the two beside it."""
    padded = F.pad(probability_BNSV, (1, 1))
    around = padded[..., :-2] + padded[..., 1:-1] + padded[..., 2:]
    return around.gather(-1, chosen_BNS.unsqueeze(-1)).squeeze(-1).clamp(max=1.0)


def take_back(model: LatticeModel, prefix: Prefix, now: Sample, doubt: float) -> Sample:
    """One evaluation: what the quality head doubts climbs. A doubted coarse digit takes the digits after it along."""
    assert model.quality is not None
    state = now.state.with_noise(torch.zeros_like(now.state.noise_BNS))
    true_BNSD = model.quality(model.decode(prefix, state)).sigmoid()
    trusted_BNS = (true_BNSD >= doubt).long().cumprod(-1).sum(-1)  # how many leading digits are believed
    climbed = climb(state, (state.known_BNS - trusted_BNS).clamp(min=0), suspect=True)
    taken = climbed.known_BNS < state.known_BNS
    confidence, offset = torch.where(taken, 1.0, now.confidence_BNS), torch.where(taken, 0.0, now.fine_offset_BNS)
    near_BNS = now.near_BNS if now.near_BNS is None else torch.where(climbed.known_BNS == 0, 1.0, now.near_BNS)
    return Sample(climbed, confidence, offset, now.evaluations + 1, near_BNS)
