# SPDX-License-Identifier: Apache-2.0
"""Action tokenizer `rvq`: learned codes with ordered levels, each for what the levels before it have left over.

A chunk is cut into slices of a few steps; a slice, scaled to [-1, 1], is one vector of slice_steps * A values. Level l
has `base` codes and chooses the one nearest to the residual. Codebooks are fitted by k-means, a level at a time: the
first, then frozen, then the next on what is left (ActionCodec's advice). Every digit string is a sum of codes, hence
decodes. Codes are not numbers: a digit has no neighbours, and `fine_offset` means nothing.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from vla.tokenizers.action import ActionLimits, fit_limits, windows

_SLICES = 20_000
_ITERATIONS = 25


def kmeans(x_MF: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """(count, F) centres: k-means++ seeding, then Lloyd's steps, a bounded number of them. No centre is lost: one
    without points stays where it was."""
    centres = x_MF[torch.randint(len(x_MF), (1,), generator=generator)]
    nearest_M = (x_MF - centres).square().sum(-1)
    for _ in range(1, count):
        pick = torch.multinomial(nearest_M + 1e-12, 1, generator=generator)
        centres = torch.cat([centres, x_MF[pick]])
        nearest_M = torch.minimum(nearest_M, (x_MF - x_MF[pick]).square().sum(-1))
    for _ in range(_ITERATIONS):
        member_MC = torch.nn.functional.one_hot(_nearest(x_MF, centres), count).to(x_MF)
        size_C1 = member_MC.sum(0).unsqueeze(-1)
        moved = torch.where(size_C1 > 0, member_MC.T @ x_MF / size_C1.clamp(min=1), centres)
        if torch.allclose(moved, centres, atol=1e-5):
            break
        centres = moved
    return centres


def _nearest(x: Tensor, centres_CF: Tensor) -> Tensor:
    """int64 (...): the centre nearest to each (..., F)."""
    return (x.unsqueeze(-2) - centres_CF).square().sum(-1).argmin(-1)


@dataclass(kw_only=True)
class RvqTokenizer(ActionLimits):
    """Residual codes. Shapes: (B, H, A) float actions, dataset units <-> (B, H / slice_steps, 1, digits) int64."""

    slice_steps: int
    """Steps of a slice."""
    codebooks: list[list[list[float]]]
    """(digits, base, slice_steps * A), of actions scaled to [-1, 1]."""

    kind: ClassVar[str] = "rvq"
    time_aligned: ClassVar[bool] = False

    @classmethod
    def fit(
        cls,
        actions_NA: np.ndarray,
        episode_from: np.ndarray,
        episode_to: np.ndarray,
        names: list[str],
        horizon: int,
        digits: int = 4,
        base: int = 16,
        slice_steps: int = 2,
        seed: int = 0,
    ) -> "RvqTokenizer":
        """Fit limits on all frames, codebooks on the slices of chunks of the episodes [from, to).

        A function of its arguments. ValueError as `BinTokenizer.fit`, and if slices do not divide the horizon.
        """
        low, high, binary = fit_limits(actions_NA, names)
        self = cls(
            low=low,
            high=high,
            binary=binary,
            names=list(names),
            digits=digits,
            base=base,
            slice_steps=slice_steps,
            codebooks=[],
        )
        self.grid(horizon)
        chunks_MHA = torch.from_numpy(windows(actions_NA, episode_from, episode_to, horizon))
        residual_MF = self._slices(chunks_MHA).flatten(0, 1)
        generator = torch.Generator().manual_seed(seed)
        residual_MF = residual_MF[torch.randperm(len(residual_MF), generator=generator)[:_SLICES]]
        for _ in range(digits):
            codes_CF = kmeans(residual_MF, base, generator)
            residual_MF = residual_MF - codes_CF[_nearest(residual_MF, codes_CF)]
            self.codebooks.append(codes_CF.tolist())
        self.clipped = 0
        return self

    def grid(self, horizon: int) -> tuple[int, int]:
        """(positions, sub-tokens) of a chunk of `horizon` steps: (slices, 1). ValueError if slices do not divide it."""
        if self.slice_steps < 1 or horizon < 1 or horizon % self.slice_steps:
            raise ValueError(
                f"expected a chunk of a multiple of {self.slice_steps} steps (a slice), got {horizon}; "
                "choose another horizon or slice_steps"
            )
        return horizon // self.slice_steps, 1

    def chunk_steps(self, positions: int) -> int:
        """Steps of the chunk that so many positions hold."""
        return positions * self.slice_steps

    def allowed_ADV(self) -> Tensor:
        """bool (1, digits, base): a position has one sub-token, and every code is allowed."""
        return self.numerals.allowed_DV().unsqueeze(0)

    def encode(self, actions: Tensor) -> Tensor:
        """float (..., H, A), dataset units -> int64 (..., H / slice_steps, 1, digits): greedily the nearest code of
        every level. Counts what it clips. ValueError as `BinTokenizer.encode`, and as `grid`."""
        residual = self._slices(actions)
        digits = []
        for codes_CF in self._codes_DCF.to(actions.device):
            digits.append(_nearest(residual, codes_CF))
            residual = residual - codes_CF[digits[-1]]
        return torch.stack(digits, dim=-1).unsqueeze(-2)

    def decode(self, digits: Tensor, fine_offset: Tensor | None = None) -> Tensor:
        """int64 (..., N, 1, digits) -> float32 (..., N * slice_steps, A), dataset units, within the limits.

        A binary dimension takes the nearer of its two values. `fine_offset` is ignored.
        """
        return self.decode_prefix(digits, self.digits)

    def decode_prefix(self, digits: Tensor, levels: int) -> Tensor:
        """As `decode`, knowing the first `levels` digits (1..digits) only: the sum of fewer codes."""
        self._check_levels(levels)
        codes_DCF, code = self._codes_DCF.to(digits.device), digits.squeeze(-2).clamp(0, self.base - 1)
        scaled = sum(codes_DCF[d][code[..., d]] for d in range(levels))
        unit = ((scaled + 1) / 2).unflatten(-1, (self.slice_steps, self.dims)).flatten(-3, -2)
        return self._from_unit(unit, unit > 0.5)

    @cached_property
    def _codes_DCF(self) -> Tensor:
        return torch.tensor(self.codebooks)

    def _slices(self, actions: Tensor) -> Tensor:
        """float (..., H, A), dataset units -> float32 (..., N, slice_steps * A) in [-1, 1]. Counts what it clips."""
        scaled_HA = 2 * self._to_unit(actions) - 1
        self.grid(actions.shape[-2])
        return scaled_HA.unflatten(-2, (-1, self.slice_steps)).flatten(-2)
