# SPDX-License-Identifier: Apache-2.0
"""The sampler: fills what is asked, coarse digits first, the surest first. One for all segments and all queries.

    for t in 1..T:
        redraw the noise index                                      one for the whole canvas
        h = model.decode(context, the segments whose turn it is)    one denoising step for all of them
        of each segment and each digit level, keep what the schedule asks for, the most confident first
    for each of the revisions:
        remask what was kept with less confidence than `remask_below`, and fill it again in one step

What is known beforehand (committed actions, some of the actions) stays; limits mask the logits of actions at every step
(limits.py). A turn is a span of steps: `together` fills several segments at once, and a half-known plan already shapes
the actions (joint denoising; UD-VLA, arXiv 2511.01718, sec. 3.3); `sequential` finishes a segment before the next one
begins, and reads it as if it had been given. Texts find their length on the way (lengths.py).

Shapes: B rows, N positions, S sub-tokens, D digits, V base.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from vla import randomness
from vla.canvas import Segment, State, all_masked, remask, unmask
from vla.diffusion.domain import Domain, choose, narrow
from vla.diffusion.lengths import Text, Vocabulary, Written, blank, keep_words, written
from vla.diffusion.noise import redraw
from vla.model import Context, LatticeModel, Tokens
from vla.model.embedding import DigitHead

TEXTS = (Segment.INSTRUCTION, Segment.PLAN)
TEXT_STEPS = 5
"""Denoising steps of a text, whose length has to be found first."""
Turns = Mapping[Segment, tuple[int, int]]
"""Of each segment that is asked, the first and the last denoising step of its turn, from 1."""


@dataclass(frozen=True)
class Sampling:
    """How to fill what is asked."""

    num_inference_steps: int = 2
    """T, denoising steps, >= 1, not counting revisions. (NFE in papers.)"""
    temperature: float = 0.0
    """0: the most likely digit. > 0: sampled (Gumbel-max in float64)."""
    noise: bool = False
    """Draw a noise index for each step (one step becomes multimodal); False: the plain mask."""
    single_mask: bool = False
    """Keep whole tokens (the two-level lattice) instead of coarse digits everywhere first."""
    revisions: int = 0
    """How often doubted tokens are remasked and filled again, one step each."""
    remask_below: float = 0.5
    """A token is doubted if it was kept with less than this probability."""
    expectation: bool = True
    """At temperature 0, decode the last digit as its expectation inside the coarse bin, not as the middle of the
    likeliest bin. A digit that was sampled stays the one that was sampled."""

    def __post_init__(self) -> None:
        if self.num_inference_steps < 1 or self.revisions < 0 or self.temperature < 0:
            raise ValueError(
                "expected num_inference_steps >= 1, revisions >= 0 and temperature >= 0, got "
                f"{self.num_inference_steps}, {self.revisions}, {self.temperature}"
            )


@dataclass(frozen=True)
class Sample:
    """A segment that is filled, and how it was decided. B rows, N positions, S sub-tokens."""

    state: State
    confidence_BNS: Tensor
    """float, product of the probabilities of the token's digits when they were kept; 1 for given tokens."""
    near_BNS: Tensor
    """float, how probable the coarse digit was to be the one kept or one beside it, when it was kept; 1 if given; of a
    dimension with two or three values, how probable the one kept was.

    The product of all digits asks for one value in 256; this asks for the action, up to the width of a coarse bin."""
    offset_BNS: Tensor
    """float, expectation of the last digit minus the digit kept, in last-digit units; 0 if given or sampled."""

    @classmethod
    def of(cls, state: State) -> "Sample":
        """Before anything is decided."""
        ones = torch.ones(state.known_BNS.shape, device=state.known_BNS.device)
        return cls(state, ones, ones, torch.zeros_like(ones))


@dataclass(frozen=True)
class Samples:
    """All that was asked for."""

    segments: dict[Segment, Sample]
    texts: dict[Segment, Written] = field(default_factory=dict)
    steps: int = 0
    """Denoising steps that were taken."""


Trace = Callable[[int, Mapping[Segment, Sample]], None]
"""Called after each denoising step with (its number from 1, what is known then)."""


def together(asked: Sequence[Segment], steps: int) -> Turns:
    """All segments are ready at the same time. Texts and pictures begin at once, actions take the last `steps`.

    With a text there are at least TEXT_STEPS.
    """
    last = max(steps, TEXT_STEPS) if set(TEXTS) & set(asked) else steps
    return {segment: (last - steps + 1 if segment is Segment.ACTION else 1, last) for segment in asked}


def sequential(asked: Sequence[Segment], steps: int) -> Turns:
    """One segment after the other, `steps` each, but at least TEXT_STEPS for a text."""
    turns, last = {}, 0
    for segment in sorted(asked):
        first, last = last + 1, last + (max(steps, TEXT_STEPS) if segment in TEXTS else steps)
        turns[segment] = (first, last)
    return turns


def kept_fraction(step: int, steps: int, depth: int, single_mask: bool = False) -> list[float]:
    """After `step` (1..T), which fraction of each digit level is kept: D numbers in [0, 1]."""
    if single_mask:
        return kept_fraction(step, steps, 1) * depth
    fractions = [min(max(depth * step / steps - d, 0.0), 1.0) for d in range(depth)]
    if steps < depth:  # fewer steps than levels: the last one keeps everything
        return [1.0] * depth if step == steps else fractions
    return [1 - math.cos(f * math.pi / 2) if f < 1 else 1.0 for f in fractions]


@torch.no_grad()
def sample(
    model: LatticeModel,
    context: Context,
    key_B: Tensor,
    asked: Sequence[Segment],
    sampling: Sampling,
    given: Mapping[Segment, State] | None = None,
    limits: Domain | None = None,
    vocabulary: Vocabulary | None = None,
    turns: Turns | None = None,
    trace: Trace | None = None,
) -> Samples:
    """Fill the segments that are `asked`. `key_B`: int64 (B,), one key a row, all its randomness.

    `given`: what of a segment is known beforehand. `limits`: which actions may be chosen. `vocabulary`: of texts.
    `turns`: when each segment is filled; all together by default. ValueError when what is given breaks the limits, and
    for a text without a vocabulary.
    """
    turns = turns or together(asked, sampling.num_inference_steps)
    if vocabulary is None and set(TEXTS) & set(turns):
        raise ValueError("a text is asked for, and there is no vocabulary to write it in")
    now, texts = _begin(model, key_B, turns, given or {})
    if limits is not None and given and Segment.ACTION in given:
        state, layout = given[Segment.ACTION], model.config.layout
        narrow(limits, layout.unfold(state.digits_BNSD), layout.unfold(state.known_BNS))  # ValueError if they break
    bounds = {Segment.ACTION: limits}

    def denoise(key_t: Tensor, segments: Sequence[Segment], keep: Mapping[Segment, list[float] | int]) -> None:
        """One step of `segments`; of those in `keep`, the fractions or the steps left say how much is kept."""
        states = {s: texts[s].state if s in texts else now[s].state for s in segments}
        if model.config.noise_indices > 1:
            states = {s: redraw(x, key_t, model.config.noise_indices, sampling.noise) for s, x in states.items()}
        hidden = model.decode(context, states, {s: texts[s].there_BN for s in segments if s in texts})
        for segment, amount in keep.items():
            head, key_s = model.head_of(segment), randomness.fold(key_t, int(segment))
            if isinstance(amount, int):
                assert vocabulary is not None
                texts[segment] = keep_words(
                    head, hidden[segment], texts[segment], vocabulary, amount, sampling.temperature, key_s
                )
            else:
                now[segment] = keep_digits(
                    head, hidden[segment], now[segment], key_s, sampling, amount, bounds.get(segment)
                )

    last = max(end for _, end in turns.values())
    read: set[Segment] = set()
    for t in range(1, last + 1):
        for segment in sorted(turns):  # what is finished is read, as far as all before it are
            if turns[segment][1] >= t:
                break
            if segment not in read:
                tokens = texts[segment].tokens() if segment in texts else Tokens(now[segment].state)
                context = model.read(context, {segment: tokens})
                read.add(segment)
        begun = sorted(s for s, (first, _) in turns.items() if first <= t and s not in read)
        keep: dict[Segment, list[float] | int] = {}
        for segment in begun:
            first, end = turns[segment]
            if t > end:
                continue
            if segment in texts:
                keep[segment] = end - t
            else:
                depth = now[segment].state.depth
                keep[segment] = kept_fraction(t - first + 1, end - first + 1, depth, sampling.single_mask)
        denoise(randomness.fold(key_B, t), begun, keep)
        if trace is not None:
            trace(t, now)
    for revision in range(sampling.revisions):
        open_ = sorted(s for s in now if s not in read)
        for segment in open_:
            now[segment] = doubt(now[segment], sampling.remask_below)
        everything: dict[Segment, list[float] | int] = {s: [1.0] * now[s].state.depth for s in open_}
        behind = sorted({*open_, *(s for s in texts if s not in read)})
        denoise(randomness.fold(key_B, last + 1 + revision), behind, everything)
        if trace is not None:
            trace(last + 1 + revision, now)
    found = {s: written(text, vocabulary) for s, text in texts.items() if vocabulary is not None}
    return Samples(now, found, last + sampling.revisions)


def _begin(
    model: LatticeModel, key_B: Tensor, turns: Turns, given: Mapping[Segment, State]
) -> tuple[dict[Segment, Sample], dict[Segment, Text]]:
    now: dict[Segment, Sample] = {}
    texts: dict[Segment, Text] = {}
    for segment in turns:
        layout = model.head_of(segment).layout
        if segment in TEXTS:
            texts[segment] = blank(len(key_B), layout.positions, layout.digits, key_B.device)
        else:
            state = given.get(segment)
            nothing = all_masked(layout.shape(len(key_B)), layout.digits, key_B.device)
            now[segment] = Sample.of(nothing if state is None else state)
    return now, texts


def keep_digits(
    head: DigitHead,
    h_BNW: Tensor,
    now: Sample,
    key_B: Tensor,
    sampling: Sampling,
    fractions: list[float],
    limits: Domain | None = None,
) -> Sample:
    """What a denoising step `h_BNW` says about the masked digits: of each digit level a fraction is kept."""
    state, depth, layout = now.state, now.state.depth, head.layout
    if limits is not None:
        limits = narrow(limits, layout.unfold(state.digits_BNSD), layout.unfold(state.known_BNS), check=False)

    # === 1. A proposal for every masked digit, coarse before fine, each given those before it ===
    features = head.features(h_BNW)
    proposal, levels, visible = state.digits_BNSD, [], state.visible_BNSD()
    for d in range(depth):
        logits_BNSV = head.digit_logits(features, d, proposal)
        scores = logits_BNSV
        if sampling.temperature > 0:
            noise = randomness.gumbel(key_B, f"digit {d}", *logits_BNSV.shape[1:])
            scores = logits_BNSV.double() / sampling.temperature + noise
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
            close_BNS = _within_one(probability, chosen, head)
    values = torch.arange(layout.base, device=key_B.device, dtype=probability.dtype)
    proposed_offset = probability @ values - chosen.to(probability.dtype)  # of the last digit
    if sampling.temperature > 0:
        proposed_offset = torch.zeros_like(proposed_offset)

    # === 2. Keep what the schedule asks for, most confident first ===
    kept, confidence, near, offset = state.known_BNS, now.confidence_BNS, now.near_BNS, now.offset_BNS
    for d, fraction in enumerate(fractions):
        candidate = kept == d  # the digits before d are known or just kept
        score = torch.where(candidate, levels[d], -1.0).flatten(1)
        rank = score.argsort(dim=1, descending=True, stable=True).argsort(dim=1, stable=True).view_as(kept)
        done = (kept > d).flatten(1).sum(1)
        quota = (math.ceil(fraction * kept[0].numel()) - done).clamp(min=0)[:, None, None]
        newly = candidate & (rank < quota)
        confidence = torch.where(newly, confidence * levels[d], confidence)
        if d == 0:
            near = torch.where(newly, close_BNS, near)
        if d == depth - 1:
            offset = torch.where(newly, proposed_offset, offset)
        kept = torch.where(newly, d + 1, kept)
    return Sample(unmask(state, proposal, kept), confidence, near, offset)


def _within_one(probability_BNSV: Tensor, chosen_BNS: Tensor, head: DigitHead) -> Tensor:
    """The probability of the chosen value and the two beside it; of the chosen one alone where there are few."""
    padded = F.pad(probability_BNSV, (1, 1))
    around = padded[..., :-2] + padded[..., 1:-1] + padded[..., 2:]
    few_A = head.allowed_ADV[:, 0].sum(-1) <= 3
    few_BNS = head.layout.fold(few_A.expand(len(chosen_BNS), head.layout.horizon, -1))
    mass = torch.where(few_BNS.unsqueeze(-1), probability_BNSV, around)
    return mass.gather(-1, chosen_BNS.unsqueeze(-1)).squeeze(-1).clamp(max=1.0)


def doubt(now: Sample, below: float) -> Sample:
    """Remask the tokens that were kept with less than this confidence. What was given stays.

    The confidence is that of the moment when a token was kept; a masked model is as sure of false visible tokens as of
    true ones (Diffusion in Diffusion, arXiv 2601.13599, likewise keeps the snapshot).
    """
    taken = now.confidence_BNS < below
    state = remask(now.state, now.state.depth * taken.long())
    taken = state.known_BNS < now.state.known_BNS
    one, none = torch.ones_like(now.confidence_BNS), torch.zeros_like(now.offset_BNS)
    return replace(
        now,
        state=state,
        confidence_BNS=torch.where(taken, one, now.confidence_BNS),
        near_BNS=torch.where(taken, one, now.near_BNS),
        offset_BNS=torch.where(taken, none, now.offset_BNS),
    )
