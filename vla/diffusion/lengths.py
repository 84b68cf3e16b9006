# SPDX-License-Identifier: Apache-2.0
"""Text of unknown length: masks that may turn out to be no word, or two masks.

A fixed canvas teaches a network to write padding. Here a text begins as a few masks, and each of them is filled with a
word, or with one of two states of its own (DreamOn, 2026: [expand] and [delete]):

    [delete]   nothing belongs here: the position is dropped
    [expand]   more than one word belongs here: the mask becomes two

so that a text is as long as it is, down to the empty one, and no padding is ever content. Which mask stands for which
words is fixed, so that one evaluation can say it: of k hidden words behind j masks, the first k masks are words and the
others [delete] if k <= j; else the words are shared out evenly in order, and a mask that stands for two or more is an
[expand].

Numbers of tokens: 0 is [delete] (the tokenizer's padding), 1..V-1 words, V is [expand].

Shapes: B samples, K copies, L words of a clean text, N positions of the canvas, D digits.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vla import randomness
from vla.canvas import State, all_masked, unmasked
from vla.diffusion.corruption import COPIES, Corrupted
from vla.model import Tokens
from vla.model.embedding import DigitHead

DELETE = 0
START = 4
"""How many masks a text begins with."""


@dataclass(frozen=True)
class Vocabulary:
    """Tokens of a text and their digits, as tables. V words, D = 2 digits of `base` values."""

    digits_of: Tensor
    """int64 (V + 1, D): of each token; the last one is [expand]."""
    token_of: Tensor
    """int64 (base, base): of each pair of digits."""

    @property
    def expand(self) -> int:
        return len(self.digits_of) - 1

    def tokens(self, ids_BL: Tensor) -> Tokens:
        """Texts that are given, int64 (B, L), 0 behind the end."""
        return Tokens(unmasked(self.digits_of[ids_BL].unsqueeze(2)), ids_BL != 0)


@dataclass(frozen=True)
class Written:
    """A text that was written."""

    ids_BN: Tensor
    """int64, 0 behind the end."""
    confidence_BN: Tensor
    """float in [0, 1]: of each word when it was written; 1 behind the end."""
    used: float
    """Of the positions that were denoised on the way, the share that the words at the end needed: 1 is no waste."""


@dataclass(frozen=True)
class Text:
    """A text being written: its lattice state, and which positions there are (the others are behind the end)."""

    state: State
    there_BN: Tensor
    """bool."""
    sure_BN: Tensor
    """float, the confidence of words when they were kept; 1 elsewhere."""
    slots: tuple[Tensor, ...] = ()
    """int64 (B,): of each denoising step so far, how many positions there were."""

    def tokens(self) -> Tokens:
        """As it is read once it is finished: words first, nothing behind them."""
        done_BN = self.there_BN & (self.state.known_BNS[..., 0] == self.state.depth)
        order_BN = (~done_BN).long().argsort(dim=1, stable=True)
        digits_BND = self.state.digits_BNSD[:, :, 0]
        digits_BND = digits_BND.gather(1, order_BN.unsqueeze(-1).expand_as(digits_BND))
        there_BN = done_BN.gather(1, order_BN)
        return Tokens(unmasked(digits_BND.unsqueeze(2)), there_BN)

    @property
    def masked_BN(self) -> Tensor:
        """bool: positions that are there and not yet decided."""
        return self.there_BN & (self.state.known_BNS[..., 0] < self.state.depth)


def blank(batch: int, positions: int, depth: int, device: torch.device | str = "cpu") -> Text:
    """The beginning: START masks."""
    there_BN = (torch.arange(positions, device=device) < START).expand(batch, -1)
    sure_BN = torch.ones(batch, positions, device=device)
    return Text(all_masked((batch, positions, 1), depth, device), there_BN, sure_BN)


def masks_for(words: int, masks: int) -> list[int]:
    """How many of `words` hidden words each of `masks` masks stands for, in order."""
    if words <= masks:
        return [1] * words + [0] * (masks - words)
    return [words * (i + 1) // masks - words * i // masks for i in range(masks)]


def corrupt_text(
    ids_BL: Tensor, key_B: Tensor, digits_of: Tensor, expand: int, positions: int, full: float = 0.5
) -> Corrupted:
    """Mask words of clean texts, int64 (B, L), ended by zeros.

    The first copy masks everything, behind START masks with probability `full`; the others mask some of the words. A
    stretch of masked words stands behind as many masks, half of the time, or behind more or fewer. `digits_of`: int64
    (V + 1, D), the digits of each token. ValueError for a text that does not fit.
    """
    if int((ids_BL != 0).sum(1).max()) > positions:
        raise ValueError(f"a text of {int((ids_BL != 0).sum(1).max())} words does not fit into {positions} positions")
    rows = []
    draws = randomness.uniform(key_B, "text", COPIES, 2 * positions + 3).tolist()
    for ids, draw_KC in zip(ids_BL.tolist(), draws, strict=True):
        words = [i for i in ids if i]
        for copy, draw in enumerate(draw_KC):
            rows.append(_corrupt_row(words, copy, draw, expand, positions, full))
    shown, target, there = (torch.tensor(x, device=ids_BL.device) for x in zip(*rows, strict=True))
    digits_BNSD = digits_of[target.clamp(min=0)].unsqueeze(2)
    depth = digits_BNSD.shape[-1]
    state = unmasked(digits_of[shown.clamp(min=0)].unsqueeze(2), (depth * (shown >= 0)).unsqueeze(2))
    asked_BNSD = ((target >= 0) & (shown < 0))[:, :, None, None].expand_as(digits_BNSD)
    return Corrupted(state, digits_BNSD, asked_BNSD, there)


def _corrupt_row(
    words: list[int], copy: int, draw: list[float], expand: int, positions: int, full: float
) -> tuple[list[int], list[int], list[bool]]:
    """One copy of one text: what is shown (-1: a mask), what belongs there (-1: not asked), which places there are."""
    everything = copy == 0 or draw[0] < 0.25
    ratio = 1.0 if everything else 0.15 + 0.7 * draw[1]
    hides = [everything or draw[3 + i] < ratio for i in range(len(words))]
    shown, target, i = [], [], 0
    room = positions - len(words)
    while True:
        run = []
        while i < len(words) and hides[i]:
            run.append(words[i])
            i += 1
        last = i == len(words)
        if run or (last and (everything or not words)):
            masks = len(run)
            chance = draw[3 + positions + min(i, positions - 1)]
            if everything and draw[2] < full:
                masks = START
            elif chance > 0.5:  # as many as there are words, half of the time
                masks = 1 + int((chance - 0.5) * 2 * (2 * len(run) + 2))
            masks = max(min(masks, len(run) + room), 1)
            room -= max(masks - len(run), 0)
            at = 0
            for count in masks_for(len(run), masks):
                shown.append(-1)
                target.append(DELETE if count == 0 else expand if count > 1 else run[at])
                at += count
        if last:
            break
        shown.append(words[i])
        target.append(-1)
        i += 1
    rest = positions - len(shown)
    return shown + [-1] * rest, target + [-1] * rest, [True] * len(shown) + [False] * rest


def rewrite(text: Text, ids_BN: Tensor, decided_BN: Tensor, digits_of: Tensor, expand: int) -> Text:
    """Write the words of `ids_BN` where `decided_BN`, drop what is [delete], make two masks of what is [expand].

    Masks that would not fit behind the last position stay single.
    """
    positions, depth = ids_BN.shape[1], text.state.depth
    decided_BN = decided_BN & text.masked_BN
    drops = decided_BN & (ids_BN == DELETE)
    doubles = decided_BN & (ids_BN == expand)
    writes = decided_BN & ~drops & ~doubles
    free_B1 = positions - (text.there_BN & ~drops).sum(1, keepdim=True)
    doubles &= doubles.long().cumsum(1) <= free_B1  # the first ones that there is room for
    width_BN = (text.there_BN & ~drops).long() + doubles.long()
    start_BN = width_BN.cumsum(1) - width_BN
    digits_BND = torch.where(writes.unsqueeze(-1), digits_of[ids_BN], text.state.digits_BNSD[:, :, 0])
    known_BN = torch.where(writes, depth, text.state.known_BNS[..., 0])
    # Every new position takes what the old one that covers it had; a doubled mask covers two.
    place_1N = torch.arange(positions, device=ids_BN.device)
    end_BN = start_BN + width_BN
    source_BN = (place_1N.view(1, -1, 1) >= end_BN.unsqueeze(1)).sum(-1).clamp(max=positions - 1)
    there_BN = place_1N < width_BN.sum(1, keepdim=True)
    known_BN = known_BN.gather(1, source_BN) * there_BN
    digits_BND = digits_BND.gather(1, source_BN.unsqueeze(-1).expand(-1, -1, depth))
    state = unmasked(digits_BND.unsqueeze(2), known_BN.unsqueeze(2))
    return replace(text, state=state, there_BN=there_BN)


def keep_words(
    head: DigitHead, h_BNW: Tensor, text: Text, words: Vocabulary, later: int, temperature: float, key_B: Tensor
) -> Text:
    """One denoising step of a text: all changes of its length, and the surest words, the rest in `later` more steps."""
    features = head.features(h_BNW)
    digits, confidence_BN = text.state.digits_BNSD, torch.ones(h_BNW.shape[:2], device=h_BNW.device)
    for d in range(head.layout.digits):
        logits_BNV = head.digit_logits(features, d, digits)[:, :, 0]
        p_BNV, scores_BNV = logits_BNV.softmax(-1), logits_BNV
        if temperature > 0:
            noise = randomness.gumbel(key_B, f"word digit {d}", *logits_BNV.shape[1:])
            scores_BNV = logits_BNV.double() / temperature + noise
        best_BN = scores_BNV.argmax(-1)
        digits = torch.cat([digits[..., :d], best_BN[:, :, None, None], digits[..., d + 1 :]], dim=-1)
        confidence_BN = confidence_BN * p_BNV.gather(-1, best_BN.unsqueeze(-1)).squeeze(-1)
    ids_BN = words.token_of[digits[:, :, 0, 0], digits[:, :, 0, 1]]
    masked_BN = text.masked_BN
    special_BN = masked_BN & ((ids_BN == DELETE) | (ids_BN == words.expand))
    score_BN = torch.where(masked_BN & ~special_BN, confidence_BN, -1.0)
    rank_BN = score_BN.argsort(dim=1, descending=True, stable=True).argsort(dim=1, stable=True)
    quota_B1 = ((masked_BN & ~special_BN).sum(1, keepdim=True) + later) // (later + 1)
    decided_BN = special_BN | (masked_BN & (rank_BN < quota_B1))
    # A word keeps its place in the row until the row is rewritten, so its confidence travels as a digit would.
    marked_BN = torch.where(decided_BN & ~special_BN, confidence_BN, text.sure_BN)
    after = rewrite(text, ids_BN, decided_BN, words.digits_of, words.expand)
    drops_BN = decided_BN & masked_BN & (ids_BN == DELETE)
    was_word_BN = text.there_BN & ~drops_BN & (~masked_BN | (decided_BN & (ids_BN != words.expand)))
    is_word_BN = after.there_BN & (after.state.known_BNS[..., 0] > 0)
    sure_BN = torch.ones_like(marked_BN)
    sure_BN[is_word_BN] = marked_BN[was_word_BN]  # words keep their order
    return replace(after, sure_BN=sure_BN, slots=(*text.slots, text.there_BN.sum(1)))


def written(text: Text, words: Vocabulary) -> Written:
    """The words that were written; masks that were never decided are no words."""
    done_BN = text.there_BN & (text.state.known_BNS[..., 0] == text.state.depth)
    digits_BND = text.state.digits_BNSD[:, :, 0]
    ids_BN = torch.where(done_BN, words.token_of[digits_BND[..., 0], digits_BND[..., 1]], 0)
    order = (~done_BN).long().argsort(dim=1, stable=True)
    ids_BN, confidence_BN = ids_BN.gather(1, order), torch.where(done_BN, text.sure_BN, 1.0).gather(1, order)
    slots_BT = torch.stack(text.slots, dim=1)
    needed_BT = torch.minimum(slots_BT, done_BN.sum(1, keepdim=True))
    return Written(ids_BN, confidence_BN, float(needed_BT.sum()) / max(int(slots_BT.sum()), 1))
