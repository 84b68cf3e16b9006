# SPDX-License-Identifier: Apache-2.0
"""Which tokens of a chunk are left under limits, and how a digit is chosen among them (see limits.py).

An interval is stored as its *ends* (-low, high): narrowing it is one minimum, and x + y, x - y have the ends
x + y, x + y.flip(0). Shapes: 2 ends, B batch, H steps, A dimensions, D digits, V base. Tokens and digits are int64.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rules:
    """What a chunk has to keep from beginning to end: tokens as int64, values as float64."""

    names: Sequence[str]
    linked: bool
    """Is there a `change`?"""
    summed: bool
    """Is there a `reach`?"""
    permitted_ADV: Tensor
    """bool: the digits that a dimension ever shows."""
    free_BH1: Tensor
    """bool: False for committed steps, whose domain is the placeholder [0, 0]."""
    change_BHA: Tensor
    """How far a token may be from the one before it; the number of bins where there is no limit."""
    box_2A: Tensor
    """Ends of the values."""
    before_BA: Tensor
    """The action before the first free step; NaN: unknown."""
    most_BMA: Tensor
    """Upper bounds on the 4 H `_measures` of the values."""
    grain_A: Tensor
    """More than rounding to float32 does to a sum of values."""


@dataclass(frozen=True)
class Domain:
    """Which tokens, and which sums of the tokens so far, are left: intervals as ends (-low, high), int64."""

    tokens_2BHA: Tensor
    sums_2BHA: Tensor
    rules: Rules


def narrow(domain: Domain, digits_BHAD: Tensor, known_BHA: Tensor, check: bool = True) -> Domain:
    """The domain, given the first `known_BHA` digits of each token (the others are 0), propagated.

    ValueError as `propagate`; `check=False` where all that is known came from `choose`: no host sync.
    """
    digits, base = domain.rules.permitted_ADV.shape[1:]
    first_BHA = (digits_BHAD * base ** torch.arange(digits - 1, -1, -1, device=known_BHA.device)).sum(-1)
    cells_2BHA = torch.stack([-first_BHA, first_BHA + base ** (digits - known_BHA) - 1])
    cells_2BHA = torch.where(domain.rules.free_BH1, cells_2BHA, domain.tokens_2BHA)
    return propagate(replace(domain, tokens_2BHA=torch.minimum(domain.tokens_2BHA, cells_2BHA)), check)


def propagate(domain: Domain, check: bool = True) -> Domain:
    """Shrink every interval to the numbers that are part of a chunk within the limits: exact, in two passes.

    Proof. Going forward, a step keeps what has a partner in the step before it, and going backward, in the step after
    it; sums and differences of intervals of whole numbers are intervals, so ends suffice. From a number that is left,
    follow partners to either side: steps meet only their neighbours (a chain), so together they are a chunk.

    ValueError (a host sync, unless `check` is False) when there is none, naming the first step without a token left.
    """
    domain = _forward(domain)
    if check:
        empty_BHA = (domain.tokens_2BHA.sum(0) < 0) | (domain.sums_2BHA.sum(0) < 0)
        if bool(empty_BHA.any()):
            h, row, a = empty_BHA.transpose(0, 1).nonzero()[0].tolist()
            raise ValueError(
                f"step {h} of '{domain.rules.names[a]}' (row {row}): no action keeps the limits; are the action before "
                "the chunk, its start and the tokens that are known within them?"
            )
    return _backward(domain)


def _forward(domain: Domain, decide: Callable[[int, Tensor], Tensor] | None = None) -> Domain:
    """Each step given those before it. `decide`: (step, ends (2, B, A)) -> the ends of what it chose among these."""
    rules, tokens, sums = domain.rules, list(domain.tokens_2BHA.unbind(2)), list(domain.sums_2BHA.unbind(2))
    if decide is None and not (rules.linked or rules.summed):
        return domain
    change, before = rules.change_BHA.unbind(1), torch.zeros_like(sums[0])
    for t in range(len(tokens)):
        if rules.linked and t:
            tokens[t] = torch.minimum(tokens[t], tokens[t - 1] + change[t])
        if rules.summed:
            tokens[t] = torch.minimum(tokens[t], sums[t] + before.flip(0))
        if decide is not None:
            tokens[t] = decide(t, tokens[t])
        if rules.summed:
            sums[t] = before = torch.minimum(sums[t], before + tokens[t])
    return Domain(torch.stack(tokens, 2), torch.stack(sums, 2), rules)


def _backward(domain: Domain) -> Domain:
    """Each step given those after it, when `_forward` is done."""
    rules, tokens, sums = domain.rules, list(domain.tokens_2BHA.unbind(2)), list(domain.sums_2BHA.unbind(2))
    if not (rules.linked or rules.summed):
        return domain
    change = rules.change_BHA.unbind(1)
    for t in range(len(tokens) - 2, -1, -1):
        if rules.summed:
            tokens[t + 1] = torch.minimum(tokens[t + 1], sums[t + 1] + sums[t].flip(0))
            sums[t] = torch.minimum(sums[t], sums[t + 1] + tokens[t + 1].flip(0))
        if rules.linked:
            tokens[t] = torch.minimum(tokens[t], tokens[t + 1] + change[t + 1])
    tokens[0] = torch.minimum(tokens[0], sums[0]) if rules.summed else tokens[0]
    return Domain(torch.stack(tokens, 2), torch.stack(sums, 2), rules)


def _cells(domain: Domain, digit: int, digits_BHAD: Tensor) -> tuple[Tensor, Tensor, int]:
    """The tokens that each value of `digit` stands for, given the digits before it: the *outer* ends (-last, first),
    (2, B, H, A, V), which are at most the ends of an interval that they meet; the first token of all, (B, H, A); how
    many tokens a value stands for. Values that the dimension never shows meet nothing."""
    digits, base = domain.rules.permitted_ADV.shape[1:]
    device, width = digits_BHAD.device, base ** (digits - 1 - digit)
    place = base ** torch.arange(digits - 1, digits - 1 - digit, -1, device=device)
    first_BHA = (digits_BHAD[..., :digit] * place).sum(-1) * domain.rules.free_BH1
    cells_BHAV = first_BHA.unsqueeze(-1) + width * torch.arange(base, device=device)
    cells_BHAV = cells_BHAV.masked_fill(~domain.rules.permitted_ADV[:, digit], 2 * base**digits)
    return torch.stack([-(cells_BHAV + width - 1), cells_BHAV]), first_BHA, width


def allowed(domain: Domain, digit: int, digits_BHAD: Tensor) -> Tensor:
    """bool (B, H, A, V): which values of `digit`, given the digits before it, leave a token in the domain."""
    return torch.logical_and(*(_cells(domain, digit, digits_BHAD)[0] <= domain.tokens_2BHA.unsqueeze(-1)))


@torch.no_grad()
def choose(
    scores_BHAV: Tensor, digit: int, digits_BHAD: Tensor, visible_BHA: Tensor, domain: Domain
) -> tuple[Tensor, Tensor, Domain]:
    """Decide `digit` of every token: the best score within the limits, step after step. No host sync.

    `scores_BHAV`: float, logits, or logits / temperature + Gumbel noise; anything may be in it, NaN and -inf too.
    `digits_BHAD`: the digits before `digit`, and `digit` itself where `visible_BHA` (bool) says that it is known.
    `domain`: propagated and within the cells of these digits: of `narrow`, then of `choose` for the digit before.

    Returns the digits (B, H, A); bool (B, H, A, V), the values among which each was chosen (a softmax over them is its
    probability); the domain, narrowed to the choice and propagated. Committed steps keep their digits.
    """
    rules = domain.rules
    cells, first_BHA, width = _cells(domain, digit, digits_BHAD)
    info, values_V = torch.finfo(scores_BHAV.dtype), torch.arange(scores_BHAV.shape[-1], device=scores_BHAV.device)
    scores = scores_BHAV.nan_to_num(nan=info.min, neginf=info.min, posinf=info.max)  # above what is masked
    scores = scores.masked_fill(visible_BHA.unsqueeze(-1) & (values_V == digits_BHAD[..., digit, None]), math.inf)
    first = torch.stack([-first_BHA, first_BHA + width - 1])

    def pick(scores: Tensor, cells: Tensor, first: Tensor, ends: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mask = torch.logical_and(*(cells <= ends.unsqueeze(-1)))
        chosen = torch.where(mask, scores, -math.inf).argmax(-1)
        shift = width * chosen
        return chosen, mask, torch.minimum(ends, first + torch.stack([-shift, shift]))

    if not (rules.linked or rules.summed):  # steps do not meet: all at once
        chosen_BHA, mask_BHAV, ends = pick(scores, cells, first, domain.tokens_2BHA)
        domain = replace(domain, tokens_2BHA=ends)
    else:
        parts, picked = (scores.unbind(1), cells.unbind(2), first.unbind(2)), []

        def decide(t: int, ends: Tensor) -> Tensor:
            chosen, mask, ends = pick(parts[0][t], parts[1][t], parts[2][t], ends)
            picked.append((chosen, mask))
            return ends

        domain = _forward(domain, decide)
        domain = _backward(domain) if width > 1 else domain  # after the last digit nothing is open
        chosen_BHA, mask_BHAV = (torch.stack(x, 1) for x in zip(*picked, strict=True))
    return torch.where(visible_BHA, digits_BHAD[..., digit], chosen_BHA), mask_BHAV, domain


def _measures(values_BHA: Tensor, rules: Rules) -> Tensor:
    """float64 (B, 4 H, A): plus and minus the change of each step, minus and plus each running sum. NaN: unknown."""
    x = torch.where(rules.free_BH1, values_BHA.double(), rules.before_BA.unsqueeze(1))
    change = x - torch.cat([rules.before_BA.unsqueeze(1), x[:, :-1]], dim=1)
    sums = torch.where(rules.free_BH1, x, 0.0).cumsum(1)
    return torch.cat([change, -change, -sums, sums], dim=1)


@torch.no_grad()
def settle(values_BHA: Tensor, wanted_BHA: Tensor, domain: Domain) -> Tensor:
    """From `values_BHA` as far towards `wanted_BHA` as the limits allow; `wanted_BHA` itself where it keeps them.

    float32 (B, H, A) both: the values of the tokens chosen, which keep the limits, and what one would rather execute
    (with the expectation of the last digit). Limits are convex, so a row and dimension stops at the border.
    """
    rules = domain.rules
    box = wanted_BHA.double().clamp(-rules.box_2A[0], rules.box_2A[1]).to(wanted_BHA.dtype)
    wanted = torch.where(rules.free_BH1, box, wanted_BHA)
    here, there, most = _measures(values_BHA, rules), _measures(wanted, rules), rules.most_BMA
    inner = most - rules.grain_A
    part = torch.where(there > inner, ((inner - here) / (there - here)).clamp(0, 1), 1.0).nan_to_num(1.0)
    part = part.amin(1, keepdim=True)
    moved = values_BHA + part * (wanted.double() - values_BHA.double())
    settled = torch.where(part < 1, moved.to(wanted.dtype), wanted)
    beyond = (_measures(settled, rules) > most).any(1, keepdim=True)
    return torch.where(beyond, values_BHA, settled)
