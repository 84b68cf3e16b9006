# SPDX-License-Identifier: Apache-2.0
"""Corruption: which digits of a clean canvas are forgotten, for every copy of every sample.

Each sample is corrupted twice, and the two copies share one prefix (its image is encoded once):
  full pair           with probability `full`: (everything hidden, every coarse digit known and every fine one hidden).
                      Sampling starts with the first and passes through the second, so both get an atom of mass.
  complementary pair  otherwise: a mask and its complement, so that every token is asked for once
                      (complementary masking: LaViDa, Li et al. 2025). The ratio is bell-shaped and clipped: extremes
                      have variance and no signal. What is hidden keeps its coarse digit in some copies.
A mask hides single tokens, whole timesteps, whole dimensions or a tail of the chunk. With probability `prefix` the
first steps are given as COMMITTED in both copies (training-time real-time chunking, arXiv 2512.05964).

Every draw is a function of the sample's key. Shapes: B samples, K = 2 copies, H steps, A dimensions, N positions,
S sub-tokens, D digits.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vla import randomness
from vla.canvas import ActionLayout, Provenance, State, revealed

COPIES = 2


@dataclass(frozen=True)
class Programs:
    """How much of what is hidden. Probabilities in [0, 1]."""

    full: float = 0.8
    """The full pair; the rest are complementary pairs."""
    keep_coarse: float = 0.5
    """A copy of a complementary pair keeps the coarse digit of the tokens it hides."""
    structured: float = 0.5
    """A complementary pair hides whole timesteps, dimensions or a tail instead of single tokens."""
    prefix: float = 0.1
    """The first d steps are given, d uniform in 1..max_prefix."""
    max_prefix: int = 4
    min_ratio: float = 0.1
    """Mask ratios are clipped to [min_ratio, 1 - min_ratio]: the complement is a mask, too."""


@dataclass(frozen=True)
class Corrupted:
    """The corrupted canvas of K copies a sample (row b * K + k) and what is asked of it."""

    state: State
    digits_BNSD: Tensor
    """int64, the clean tokens."""
    asked_BNSD: Tensor
    """bool: digits that are hidden and real (not padding): these have a loss."""


def corrupt(
    digits_BHAD: Tensor,
    pad_BH: Tensor,
    key_B: Tensor,
    layout: ActionLayout,
    programs: Programs,
    noise_indices: int,
) -> Corrupted:
    """Corrupt clean action digits, int64 (B, H, A, D). `pad_BH`: bool, steps past the episode's end."""
    batch, horizon, dims, depth = digits_BHAD.shape
    device = digits_BHAD.device

    # === 1. A rank in [0, 1) for every token; a token is hidden in copy 0 if its rank is below the ratio, else in 1 ===
    rank_BHA = randomness.uniform(key_B, "rank", horizon, dims)
    by_step = randomness.uniform(key_B, "rank of steps", horizon, 1).expand_as(rank_BHA)
    by_dim = randomness.uniform(key_B, "rank of dimensions", 1, dims).expand_as(rank_BHA)
    tail = (1 - torch.arange(1, horizon + 1, device=device) / (horizon + 1)).view(1, horizon, 1).expand_as(rank_BHA)
    shape_B = torch.where(
        randomness.uniform(key_B, "structured") < programs.structured,
        1 + randomness.integers(key_B, "shape", 3),
        0,
    )
    rank_BHA = torch.stack([rank_BHA, by_step, by_dim, tail.to(rank_BHA.dtype)])[
        shape_B, torch.arange(batch, device=device)
    ]

    # === 2. Bell-shaped ratio: the mean of two uniforms, the first one spread evenly over the batch ===
    spread_B = (randomness.uniform(key_B[:1], "spread") + torch.arange(batch, device=device) / batch) % 1
    ratio_B = (spread_B + randomness.uniform(key_B, "ratio")) / 2
    ratio_B = ratio_B.clamp(programs.min_ratio, 1 - programs.min_ratio)
    first_BHA = rank_BHA < ratio_B[:, None, None]

    # === 3. Known digits of both copies ===
    coarse_BK = (randomness.uniform(key_B, "keep coarse", COPIES) < programs.keep_coarse).long()
    hides_BKHA = torch.stack([first_BHA, ~first_BHA], dim=1)
    pair_BKHA = torch.where(hides_BKHA, coarse_BK[:, :, None, None].clamp(max=depth - 1), depth)
    full_BKHA = (
        torch.stack([torch.zeros_like(first_BHA), torch.ones_like(first_BHA)], dim=1).long().clamp(max=depth - 1)
    )
    is_full_B = randomness.uniform(key_B, "full") < programs.full
    known_BKHA = torch.where(is_full_B[:, None, None, None], full_BKHA, pair_BKHA)

    # === 4. Committed first steps, and padding, which is never shown ===
    length_B = 1 + randomness.integers(key_B, "prefix length", min(programs.max_prefix, horizon - 1))
    length_B = torch.where(randomness.uniform(key_B, "prefix") < programs.prefix, length_B, 0)
    given_BH = torch.arange(horizon, device=device) < length_B[:, None]
    known_BKHA = torch.where(given_BH[:, None, :, None], depth, known_BKHA)
    known_BKHA = torch.where(pad_BH[:, None, :, None], 0, known_BKHA)
    provenance_BHA = torch.where(given_BH & ~pad_BH, int(Provenance.COMMITTED), int(Provenance.FREE))
    provenance_BKHA = provenance_BHA[:, None, :, None].expand_as(known_BKHA)

    # === 5. The state, with noise indices drawn anew ===
    def rows(x_BKHA: Tensor) -> Tensor:
        return layout.fold(x_BKHA.flatten(0, 1))

    digits_BNSD = layout.fold(digits_BHAD.repeat_interleave(COPIES, dim=0))
    noise_BKHA = randomness.integers(key_B, "noise index", noise_indices, COPIES, horizon, dims)
    state = revealed(digits_BNSD, rows(known_BKHA), rows(provenance_BKHA)).with_noise(rows(noise_BKHA))
    real_BNS = rows((~pad_BH)[:, None, :, None].expand_as(known_BKHA))
    return Corrupted(state, digits_BNSD, ~state.visible_BNSD() & real_BNS.unsqueeze(-1))
