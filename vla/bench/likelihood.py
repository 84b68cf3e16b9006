# SPDX-License-Identifier: Apache-2.0
"""How likely the true chunks are under a sampler, and what it loses by deciding many tokens at once.

    NLL_T   = -sum over the T groups of tokens that are decided together of
                  log 1/M sum_z prod_{n in group} p(x_n | groups before, z)
    chain   = the same with one token a group, in a random order: nothing is decided together
    gap_T   = NLL_T - chain            the factorisation gap, in bits a chunk

The sum over noise indices is exact: all of them are looked at. With the plain mask there is one.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from vla import randomness
from vla.canvas import Segment, unmasked
from vla.diffusion.likelihood import digits_nll
from vla.diffusion.sampler import kept_fraction
from vla.model import Context, LatticeModel


def sampler_bits(
    model: LatticeModel,
    context: Context,
    digits_BNSD: Tensor,
    key_B: Tensor,
    steps: int,
    single_mask: bool,
    noise: bool,
) -> Tensor:
    """Bits a chunk under the sampler of T steps with a random order inside each level: float64 (B,)."""
    rank_BNS, depth = _order(digits_BNSD, key_B), digits_BNSD.shape[-1]
    quotas = [
        [math.ceil(f * rank_BNS[0].numel()) for f in kept_fraction(t, steps, depth, single_mask)]
        for t in range(1, steps + 1)
    ]
    known = (sum((rank_BNS < quota).long() for quota in of_levels) for of_levels in quotas)
    return _bits(model, context, digits_BNSD, known, noise)  # type: ignore[arg-type]


def chain_bits(model: LatticeModel, context: Context, digits_BNSD: Tensor, key_B: Tensor) -> Tensor:
    """Bits a chunk with one token a step under the plain mask: float64 (B,)."""
    rank_BNS, depth = _order(digits_BNSD, key_B), digits_BNSD.shape[-1]
    known = (depth * (rank_BNS <= n) for n in range(rank_BNS[0].numel()))
    return _bits(model, context, digits_BNSD, known, False)


def _order(digits_BNSD: Tensor, key_B: Tensor) -> Tensor:
    """int64 (B, N, S): the place of each token in a random order."""
    shape = digits_BNSD.shape[:-1]
    return randomness.uniform(key_B, "order", *shape[1:]).flatten(1).argsort(1).argsort(1).view(shape)


@torch.no_grad()
def _bits(model: LatticeModel, context: Context, digits_BNSD: Tensor, known: Iterable[Tensor], noise: bool) -> Tensor:
    """`known`: int64 (B, N, S), after each step, how many digits are known."""
    state = unmasked(digits_BNSD, torch.zeros_like(digits_BNSD[..., 0]))
    total_B = torch.zeros(len(digits_BNSD), dtype=torch.float64)
    indices = range(1, model.config.noise_indices) if noise else range(1)
    for known_BNS in known:
        after = unmasked(digits_BNSD, known_BNS)
        newly_BNSD = after.visible_BNSD() & ~state.visible_BNSD()
        nll_ZB = torch.stack(
            [
                digits_nll(
                    model,
                    context,
                    state.with_noise(torch.full_like(known_BNS, z)),
                    digits_BNSD,
                    newly_BNSD,
                    Segment.ACTION,
                )
                for z in indices
            ]
        )
        total_B += math.log(len(indices)) - torch.logsumexp(-nll_ZB, dim=0)
        state = after
    return total_B / math.log(2)
