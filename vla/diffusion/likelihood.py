# SPDX-License-Identifier: Apache-2.0
"""How likely the true chunks are under a sampler, and what it loses by deciding many tokens at once.

    NLL_T   = -sum over the T groups of tokens that are decided together of
                  log 1/M sum_z prod_{n in group} p(x_n | groups before, z)
    chain   = the same with one token a group, in a random order: nothing is decided together
    gap_T   = NLL_T - chain            the factorisation gap, in bits a chunk

The sum over noise indices is exact: all of them are evaluated. With the plain mask there is one.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from vla import randomness
from vla.canvas import State, revealed
from vla.diffusion.sampler import kept_fraction
from vla.model import LatticeModel, Prefix


def group_nll(
    model: LatticeModel, prefix: Prefix, state: State, digits_BNSD: Tensor, known_BNS: Tensor, noise: bool
) -> Tensor:
    """-log p of the true digits up to `known_BNS`, decided in one evaluation: float64 (B,)."""
    newly_BNSD = revealed(digits_BNSD, known_BNS).visible_BNSD() & ~state.visible_BNSD()
    indices = range(1, model.config.noise_indices) if noise else range(1)
    log_p = []
    for z in indices:
        logits = model.head(model.decode(prefix, state.with_noise(torch.full_like(state.noise_BNS, z))), digits_BNSD)
        nll_B = torch.zeros(len(known_BNS), dtype=torch.float64, device=known_BNS.device)
        for d, logits_BNSV in enumerate(logits):
            nll = F.cross_entropy(logits_BNSV.flatten(0, -2), digits_BNSD[..., d].flatten(), reduction="none")
            nll_B += nll.view(known_BNS.shape).masked_fill(~newly_BNSD[..., d], 0.0).double().flatten(1).sum(1)
        log_p.append(-nll_B)
    return math.log(len(log_p)) - torch.logsumexp(torch.stack(log_p), dim=0)


@torch.no_grad()
def sampler_bits(
    model: LatticeModel,
    prefix: Prefix,
    digits_BNSD: Tensor,
    key_B: Tensor,
    evaluations: int,
    single_mask: bool,
    noise: bool,
) -> Tensor:
    """Bits a chunk under the sampler of T evaluations with a random order inside each level: float64 (B,)."""
    shape, depth = digits_BNSD.shape[:-1], digits_BNSD.shape[-1]
    rank_BNS = randomness.uniform(key_B, "order", *shape[1:]).flatten(1).argsort(1).argsort(1).view(shape)
    state, total_B = (
        revealed(digits_BNSD, torch.zeros(shape, dtype=torch.long)),
        torch.zeros(shape[0], dtype=torch.float64),
    )
    for t in range(1, evaluations + 1):
        fractions = kept_fraction(t, evaluations, depth, single_mask)
        known_BNS = sum((rank_BNS < math.ceil(f * shape[1] * shape[2])).long() for f in fractions)
        total_B += group_nll(model, prefix, state, digits_BNSD, known_BNS, noise)
        state = revealed(digits_BNSD, known_BNS)
    return total_B / math.log(2)


def chain_bits(model: LatticeModel, prefix: Prefix, digits_BNSD: Tensor, key_B: Tensor) -> Tensor:
    """Bits a chunk with one token an evaluation under the plain mask: float64 (B,)."""
    tokens = digits_BNSD.shape[1] * digits_BNSD.shape[2]
    shape, depth = digits_BNSD.shape[:-1], digits_BNSD.shape[-1]
    rank_BNS = randomness.uniform(key_B, "order", *shape[1:]).flatten(1).argsort(1).argsort(1).view(shape)
    total_B = torch.zeros(shape[0], dtype=torch.float64)
    with torch.no_grad():
        for n in range(tokens):
            state = revealed(digits_BNSD, depth * (rank_BNS < n))
            total_B += group_nll(model, prefix, state, digits_BNSD, depth * (rank_BNS <= n), False)
    return total_B / math.log(2)


def log_likelihood(model: LatticeModel, prefix: Prefix, digits_BNSD: Tensor) -> Tensor:
    """log p of chunks in the order of the sampler of two evaluations (coarse digits, then fine ones), float64 (B,).

    Nats, under the plain mask: coarse digits given nothing, the others given all coarse ones.
    """
    shape, depth = digits_BNSD.shape[:-1], digits_BNSD.shape[-1]
    nothing = torch.zeros(shape, dtype=torch.long, device=digits_BNSD.device)
    total_B = torch.zeros(shape[0], dtype=torch.float64, device=digits_BNSD.device)
    for known in range(depth):
        state = revealed(digits_BNSD, nothing + known)
        total_B -= group_nll(model, prefix, state, digits_BNSD, nothing + known + 1, False)
    return total_B
