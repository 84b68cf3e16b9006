# SPDX-License-Identifier: Apache-2.0
"""Several segments filled at once: plan, future image and actions of one canvas.

    for t in 1..T:
        h = model.decode_blocks(prefix, the segments whose turn has come)    one evaluation for all of them
        of each segment whose turn it is, keep what its schedule asks for

A turn is a span of evaluations. In `together` the turns overlap: a half-known plan and a half-known picture already
shape the actions (joint denoising; UD-VLA, arXiv 2511.01718, sec. 3.3), which need few evaluations and take the last
ones; `one_by_one` finishes a segment before the next begins. Segments whose turn has not come are not evaluated; those
that are finished join the prefix, whose keys and values are kept (exact: no block looks at a later one). The length of
a text is found on the way (`lengths.py`).

Shapes: B rows, N positions, S sub-tokens, D digits.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vla import randomness
from vla.canvas import Segment, State, hidden
from vla.diffusion.domain import Domain, narrow
from vla.diffusion.lengths import Text, blank, rewrite
from vla.diffusion.sampler import Sample, Sampling, decide, kept_fraction
from vla.model import LatticeModel, Prefix
from vla.model.embedding import DigitHead

Turns = Mapping[Segment, tuple[int, int]]
"""Of each segment the first and the last evaluation of its turn, from 1."""
TEXTS = (Segment.INSTRUCTION, Segment.PLAN)
TEXT_EVALUATIONS = 5
"""Of a text, whose length has to be found first."""


@dataclass(frozen=True)
class Vocabulary:
    """Tokens of a text and their digits, as tables. V words, D digits of `base` values."""

    digits_of: Tensor
    """int64 (V + 1, D): of each token; the last one is [expand]."""
    token_of: Tensor
    """int64 (base, base): of each pair of digits."""

    @property
    def expand(self) -> int:
        return len(self.digits_of) - 1


@dataclass(frozen=True)
class Written:
    """A text that was written."""

    ids_BN: Tensor
    """int64, 0 behind the end."""
    confidence_BN: Tensor
    """float in [0, 1]: of each word when it was written; 1 behind the end."""
    used: float
    """Of the positions that were evaluated on the way, the share that the words at the end needed: 1 is no waste."""


@dataclass(frozen=True)
class Joint:
    """All segments that were asked for."""

    samples: dict[Segment, Sample]
    texts: dict[Segment, Written]
    evaluations: int


def together(asked: Sequence[Segment], evaluations: int) -> Turns:
    """All segments are ready at the same time. Texts and pictures begin at once, actions take the last `evaluations`.

    With a text there are at least TEXT_EVALUATIONS.
    """
    last = max(evaluations, TEXT_EVALUATIONS) if set(TEXTS) & set(asked) else evaluations
    return {segment: (last - evaluations + 1 if segment is Segment.ACTION else 1, last) for segment in asked}


def one_by_one(asked: Sequence[Segment], evaluations: int) -> Turns:
    """One segment after the other, `evaluations` each, but TEXT_EVALUATIONS for a text."""
    turns, last = {}, 0
    for segment in sorted(asked):
        first, last = last + 1, last + (max(evaluations, TEXT_EVALUATIONS) if segment in TEXTS else evaluations)
        turns[segment] = (first, last)
    return turns


@torch.no_grad()
def sample_blocks(
    model: LatticeModel,
    prefix: Prefix,
    key_B: Tensor,
    turns: Turns,
    sampling: Sampling,
    vocabulary: Vocabulary | None = None,
    given: Mapping[Segment, State] | None = None,
    limits: Domain | None = None,
    keep_decided: bool = True,
) -> Joint:
    """Fill the segments of `turns`. `key_B`: int64, a key a row. `given`: what is known of a segment beforehand.

    `sampling`: its temperature and order; how many evaluations there are, the turns say. `limits`: of the actions.
    `keep_decided`: False evaluates finished segments again and again, for the same answer.
    ValueError for a text without a vocabulary.
    """
    rows, device = len(key_B), key_B.device
    if vocabulary is None and any(segment in TEXTS for segment in turns):
        raise ValueError("a text is asked for, and there is no vocabulary to write it in")
    if limits is not None and given and Segment.ACTION in given:
        layout, known = model.config.layout, given[Segment.ACTION]
        narrow(limits, layout.unfold(known.digits_BNSD), layout.unfold(known.known_BNS))  # ValueError if they break
    now: dict[Segment, Sample] = {}
    texts: dict[Segment, Text] = {}
    sure: dict[Segment, Tensor] = {}
    for segment in turns:
        layout = model.embedding_of(segment).layout
        shape = (rows, layout.positions, layout.sub_tokens)
        if segment in TEXTS:
            texts[segment] = blank(rows, layout.positions, layout.digits, device)
            sure[segment] = torch.ones(rows, layout.positions, device=device)
        else:
            state = (given or {}).get(segment) or hidden(shape, layout.digits, device)
            now[segment] = Sample(state, torch.ones(shape, device=device), torch.zeros(shape, device=device), 0)
    slots: dict[Segment, list[Tensor]] = {segment: [] for segment in texts}

    last = max(end for _, end in turns.values())
    for t in range(1, last + 1):
        if keep_decided:
            prefix = _join_decided(model, prefix, turns, t, now, texts)
        begun = sorted(s for s, (first, _) in turns.items() if first <= t and s not in prefix.decided)
        blocks = {s: texts[s].state if s in texts else now[s].state for s in begun}
        there = {s: texts[s].there_BN for s in begun if s in texts}
        h = model.decode_blocks(prefix, blocks, there)
        key_t = randomness.fold(key_B, t)
        for segment in begun:
            first, end = turns[segment]
            if t > end:
                continue
            head, turn, length = model.head_of(segment), t - first + 1, end - first + 1
            key_s = randomness.fold(key_t, int(segment))
            if segment in texts:
                assert vocabulary is not None
                slots[segment].append(texts[segment].there_BN.sum(1))
                texts[segment], sure[segment] = _write(
                    head, h[segment], texts[segment], sure[segment], vocabulary, length - turn, sampling, key_s
                )
                continue
            fractions = kept_fraction(turn, length, head.layout.digits, sampling.single_mask)
            cooled = 1 - (turn - 1) / length if sampling.anneal else 1.0
            now[segment], _ = decide(
                head,
                h[segment],
                now[segment],
                key_s,
                sampling,
                sampling.temperature * cooled,
                fractions,
                limits if segment is Segment.ACTION else None,
            )
    written = {s: _read(text, sure[s], vocabulary, slots[s]) for s, text in texts.items() if vocabulary}
    return Joint(now, written, last)


def _join_decided(
    model: LatticeModel,
    prefix: Prefix,
    turns: Turns,
    t: int,
    samples: Mapping[Segment, Sample],
    texts: Mapping[Segment, Text],
) -> Prefix:
    """The prefix with the segments whose turns ended before evaluation `t`, as far as all before them have, too."""
    for segment in sorted(turns):
        if turns[segment][1] >= t:
            break
        if segment not in prefix.decided:
            text = texts.get(segment)
            state, there_BN = (text.state, text.there_BN) if text is not None else (samples[segment].state, None)
            prefix = model.append(prefix, segment, state, there_BN)
    return prefix


def _write(
    head: DigitHead,
    h_BNW: Tensor,
    text: Text,
    sure_BN: Tensor,
    words: Vocabulary,
    later: int,
    sampling: Sampling,
    key_B: Tensor,
) -> tuple[Text, Tensor]:
    """One evaluation of a text: all changes of its length, and the surest of its words, the rest in `later` more."""
    features = head.features(h_BNW)
    digits, confidence_BN = text.state.digits_BNSD, torch.ones(h_BNW.shape[:2], device=h_BNW.device)
    for d in range(head.layout.digits):
        logits_BNV = head.digit_logits(features, d, digits)[:, :, 0]
        p_BNV, scores_BNV = logits_BNV.softmax(-1), logits_BNV
        if sampling.temperature > 0:
            noise = randomness.gumbel(key_B, f"word digit {d}", *logits_BNV.shape[1:])
            scores_BNV = logits_BNV.double() / sampling.temperature + noise
        best_BN = scores_BNV.argmax(-1)
        digits = torch.cat([digits[..., :d], best_BN[:, :, None, None], digits[..., d + 1 :]], dim=-1)
        confidence_BN = confidence_BN * p_BNV.gather(-1, best_BN.unsqueeze(-1)).squeeze(-1)
    ids_BN = words.token_of[digits[:, :, 0, 0], digits[:, :, 0, 1]]
    masked_BN = text.masked_BN
    special_BN = masked_BN & ((ids_BN == 0) | (ids_BN == words.expand))
    score_BN = torch.where(masked_BN & ~special_BN, confidence_BN, -1.0)
    rank_BN = score_BN.argsort(dim=1, descending=True, stable=True).argsort(dim=1, stable=True)
    quota_B1 = ((masked_BN & ~special_BN).sum(1, keepdim=True) + later) // (later + 1)
    decided_BN = special_BN | (masked_BN & (rank_BN < quota_B1))
    # A word keeps its place in the row until the row is rewritten, so its confidence travels as a digit would.
    marked = torch.where(decided_BN & ~special_BN, confidence_BN, sure_BN)
    after = rewrite(text, ids_BN, decided_BN, words.digits_of, words.expand)
    return after, _travel(text, after, marked, ids_BN, decided_BN, words.expand)


def _travel(before: Text, after: Text, value_BN: Tensor, ids_BN: Tensor, decided_BN: Tensor, expand: int) -> Tensor:
    """The values of positions after a rewriting, 1 at new masks and behind the end."""
    drops = decided_BN & before.masked_BN & (ids_BN == 0)
    kept_BN = before.there_BN & ~drops
    known_before = kept_BN & ((before.state.known_BNS[..., 0] > 0) | (decided_BN & (ids_BN != expand)))
    known_after = after.there_BN & (after.state.known_BNS[..., 0] > 0)
    out = torch.ones_like(value_BN)
    out[known_after] = value_BN[known_before]  # words keep their order
    return out


def _read(text: Text, sure_BN: Tensor, words: Vocabulary, slots: list[Tensor]) -> Written:
    """The words that were written; masks that were never decided are no words."""
    done_BN = text.there_BN & (text.state.known_BNS[..., 0] == text.state.depth)
    digits_BND = text.state.digits_BNSD[:, :, 0]
    ids_BN = torch.where(done_BN, words.token_of[digits_BND[..., 0], digits_BND[..., 1]], 0)
    order = (~done_BN).long().argsort(dim=1, stable=True)
    ids_BN, confidence_BN = ids_BN.gather(1, order), torch.where(done_BN, sure_BN, 1.0).gather(1, order)
    slots_BT = torch.stack(slots, dim=1)
    needed_BT = torch.minimum(slots_BT, done_BN.sum(1, keepdim=True))
    return Written(ids_BN, confidence_BN, float(needed_BT.sum()) / max(int(slots_BT.sum()), 1))
