# SPDX-License-Identifier: Apache-2.0
"""Action tokenizer `dct`: a chunk as its frequencies, low ones first, each a number of base**digits bins.

As FAST (arXiv 2501.09747), an orthonormal DCT-II over the steps of a chunk; unlike FAST, no byte-pair encoding: the
length is fixed, every digit string decodes, and a position is a band. A position speaks about all steps, so a committed
prefix of actions is *not* a set of positions.

Binary dimensions are not transformed: sub-token (k, a) holds the command at step k. With fewer bands than steps, the
last command that was kept holds for the rest of the chunk; the steps before it are exact.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from vla.tokenizers.action import ActionLimits, fit_limits, fit_range, windows


def dct_basis(horizon: int) -> np.ndarray:
    """float64 (bands, steps), the orthonormal DCT-II: coefficients = basis @ values; its transpose is its inverse."""
    steps = np.arange(horizon)
    basis_KH = np.cos(math.pi / horizon * (steps + 0.5) * steps[:, None]) * math.sqrt(2 / horizon)
    basis_KH[0] /= math.sqrt(2)
    return basis_KH


_TINY = 1e-4
"""Least span of a coefficient, of actions scaled to [-1, 1]."""


def _band_range(column_M: np.ndarray, quantile: float) -> tuple[float, float]:
    """As `fit_range`. If nearly all values are the same, the range of all of them, and never less than a tiny span."""
    low, high = fit_range(column_M, quantile)
    if high - low < _TINY:
        low, high = float(column_M.min()), float(column_M.max())
    widen = max(0.0, _TINY - (high - low)) / 2
    return low - widen, high + widen


@dataclass(kw_only=True)
class DctTokenizer(ActionLimits):
    """K bands. Shapes: (B, H, A) float actions, dataset units <-> (B, K, A, digits) int64 digits.

    Actions are scaled to [-1, 1] by their limits, and clipped, before the transform.
    """

    horizon: int
    """H, the steps of a chunk."""
    band_low: list[list[float]]
    """(K, A): lower limit of each coefficient."""
    band_high: list[list[float]]
    """(K, A): upper limit of each coefficient."""

    kind: ClassVar[str] = "dct"
    time_aligned: ClassVar[bool] = False

    @classmethod
    def fit(
        cls,
        actions_NA: np.ndarray,
        episode_from: np.ndarray,
        episode_to: np.ndarray,
        names: list[str],
        horizon: int,
        digits: int = 2,
        base: int = 16,
        bands: int | None = None,
        quantile: float = 0.01,
    ) -> "DctTokenizer":
        """Fit the limits of actions on all frames, those of coefficients on chunks of the episodes [from, to).

        `bands`: K in 1..horizon, by default all. ValueError as `BinTokenizer.fit`, and for K outside.
        """
        bands = horizon if bands is None else bands
        if not 1 <= bands <= horizon:
            raise ValueError(f"expected bands in 1..{horizon} (the steps of a chunk), got {bands}")
        low, high, binary = fit_limits(actions_NA, names, quantile)
        chunks_MHA = windows(actions_NA, episode_from, episode_to, horizon)
        scaled_MHA = (2 * (chunks_MHA - np.array(low)) / (np.array(high) - np.array(low)) - 1).clip(-1, 1)
        bands_KAM = np.einsum("kh,mha->kam", dct_basis(horizon)[:bands], scaled_MHA)
        limits_KA2 = np.array([[_band_range(column_M, quantile) for column_M in band_AM] for band_AM in bands_KAM])
        return cls(
            low=low,
            high=high,
            binary=binary,
            names=list(names),
            digits=digits,
            base=base,
            horizon=horizon,
            band_low=limits_KA2[..., 0].tolist(),
            band_high=limits_KA2[..., 1].tolist(),
        )

    @property
    def bands(self) -> int:
        """K."""
        return len(self.band_low)

    def grid(self, horizon: int) -> tuple[int, int]:
        """(positions, sub-tokens) of a chunk: (K, A). ValueError for another horizon than the one fitted."""
        if horizon != self.horizon:
            raise ValueError(
                f"expected chunks of {self.horizon} steps, for which the bands were fitted, got {horizon}; fit anew"
            )
        return self.bands, self.dims

    def chunk_steps(self, positions: int) -> int:
        """Steps of the chunk that so many positions hold: H, if they are K. ValueError if not."""
        if positions != self.bands:
            raise ValueError(f"expected {self.bands} positions, one a band, got {positions}")
        return self.horizon

    def encode(self, actions: Tensor) -> Tensor:
        """float (..., H, A), dataset units -> int64 (..., K, A, digits). Counts the values and the coefficients that
        it clips. ValueError as `BinTokenizer.encode`, and for another H."""
        unit_HA = self._to_unit(actions)
        self.grid(actions.shape[-2])
        low_KA, high_KA, basis_KH = self._tables(unit_HA)
        coefficients_KA = sum(basis_KH[:, h, None] * (2 * unit_HA[..., h : h + 1, :] - 1) for h in range(self.horizon))
        binary_A = torch.tensor(self.binary, device=actions.device)
        band_KA = ((coefficients_KA - low_KA) / (high_KA - low_KA)).masked_fill(binary_A, 0)
        return self._quantise(self._clip(band_KA), unit_HA[..., : self.bands, :] > 0.5)

    def decode(self, digits: Tensor, fine_offset: Tensor | None = None) -> Tensor:
        """int64 (..., K, A, digits) -> float32 (..., H, A), dataset units, within the limits of the actions.

        `fine_offset`, float (..., K, A) in last-digit units, is added to the last digit of a coefficient.
        """
        return self._decode(digits, self.digits, fine_offset)

    def decode_prefix(self, digits: Tensor, levels: int) -> Tensor:
        """As `decode`, knowing the first `levels` digits (1..digits) only: the middles of the coarse bins."""
        return self._decode(digits, levels, None)

    def _decode(self, digits: Tensor, levels: int, fine_offset: Tensor | None) -> Tensor:
        self.chunk_steps(digits.shape[-3])
        low_KA, high_KA, basis_KH = self._tables(digits)
        coefficients_KA = low_KA + (high_KA - low_KA) * self._dequantise(digits, levels, fine_offset)
        scaled_HA = sum(basis_KH[k, :, None] * coefficients_KA[..., k : k + 1, :] for k in range(self.bands))
        kept_H = torch.arange(self.horizon, device=digits.device).clamp(max=self.bands - 1)
        return self._from_unit((scaled_HA + 1) / 2, digits[..., kept_H, :, 0] > 0)

    def _tables(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """float32: the limits of the coefficients, (K, A) each, and the basis (K, H)."""
        basis_KH = dct_basis(self.horizon)[: self.bands]
        low, high, basis = (torch.tensor(t, device=like.device) for t in (self.band_low, self.band_high, basis_KH))
        return low.to(torch.float32), high.to(torch.float32), basis.to(torch.float32)
