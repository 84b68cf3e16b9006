# SPDX-License-Identifier: Apache-2.0
"""Action tokenizer `bins`: every value becomes one of base**digits bins, written as digits, coarse first.

Fixed length, time-aligned, total: every digit string decodes, so a committed prefix of actions is a set of positions
and real-time chunking is in-painting. Limits are true quantiles over all frames (the mean of per-episode quantiles that
datasets store cuts off up to 41 % of the range), widened by a quarter of their span but never past the data, so that a
few outliers cost neither clipping nor resolution. A dimension that only ever takes two values (a gripper command) is
*binary*: its coarse digit is 0 or 1 and its other digits are 0, by a mask on the logits.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass
class BinTokenizer:
    """Quantile bins. Shapes: (..., A) float actions in the dataset's units <-> (..., A, digits) int64 digits."""

    low: list[float]
    """Lower limit of each dimension, dataset units."""
    high: list[float]
    """Upper limit of each dimension, dataset units."""
    binary: list[bool]
    """Dimensions with two values only (`low` and `high`)."""
    names: list[str]
    digits: int = 2
    base: int = 16
    clipped: int = 0
    """How many values `encode` has clipped so far."""

    @classmethod
    def fit(
        cls, actions_NA: np.ndarray, names: list[str], digits: int = 2, base: int = 16, quantile: float = 0.01
    ) -> "BinTokenizer":
        """Fit limits on all frames. `actions_NA`: float (N, A). Raises ValueError on NaN or a constant dimension."""
        actions = np.asarray(actions_NA, dtype=np.float64)
        if actions.ndim != 2 or actions.shape[1] != len(names):
            raise ValueError(f"expected actions of shape (N, {len(names)}) for {names}, got {actions.shape}")
        low, high, binary = [], [], []
        for a, name in enumerate(names):
            column = actions[:, a]
            if not np.isfinite(column).all():
                frame = int(np.flatnonzero(~np.isfinite(column))[0])
                raise ValueError(f"action '{name}' is not finite at frame {frame}; remove or repair that episode")
            values = np.unique(column[:: max(1, len(column) // 100_000)])
            if len(values) == 1:
                raise ValueError(
                    f"action '{name}' is constant ({values[0]:g}) in all {len(column)} frames, so it has no range to "
                    "divide into bins; drop the dimension from the dataset"
                )
            if len(values) == 2:
                low.append(float(values[0])), high.append(float(values[1])), binary.append(True)
                continue
            q_low, q_high = np.quantile(column, [quantile, 1 - quantile])
            margin = 0.25 * (q_high - q_low) or 1e-6
            low.append(float(max(column.min(), q_low - margin)))
            high.append(float(min(column.max(), q_high + margin)))
            binary.append(False)
        return cls(low, high, binary, list(names), digits, base)

    @property
    def dims(self) -> int:
        return len(self.names)

    @property
    def bins(self) -> int:
        """Bins of a dimension: base ** digits."""
        return self.base**self.digits

    def allowed_ADV(self) -> Tensor:
        """bool (A, digits, base): the digits a dimension may ever show; a mask on the logits."""
        allowed = torch.ones(self.dims, self.digits, self.base, dtype=torch.bool)
        for a in np.flatnonzero(self.binary):
            allowed[a] = False
            allowed[a, 0, :2] = True
            allowed[a, 1:, 0] = True
        return allowed

    def _limits(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        def to(values: list) -> Tensor:
            return torch.tensor(values, device=like.device)

        return to(self.low).to(torch.float32), to(self.high).to(torch.float32), to(self.binary)

    def encode(self, actions: Tensor) -> Tensor:
        """float (..., A), dataset units -> int64 (..., A, digits). Clips to the limits and counts what it clipped."""
        if actions.shape[-1] != self.dims:
            raise ValueError(
                f"expected {self.dims} action dimensions {self.names}, got {actions.shape[-1]}; "
                "the checkpoint and the dataset do not belong together"
            )
        if not bool(torch.isfinite(actions).all()):
            raise ValueError("actions contain NaN or infinity; find the episode and remove it")
        low, high, binary = self._limits(actions)
        unit = (actions.to(torch.float32) - low) / (high - low)
        self.clipped += int(((unit < -1e-6) | (unit > 1 + 1e-6)).sum())
        index = (unit.clamp(0, 1) * self.bins).long().clamp(max=self.bins - 1)
        powers = torch.tensor([self.base**d for d in reversed(range(self.digits))], device=actions.device)
        digits = index.unsqueeze(-1) // powers % self.base
        two = torch.zeros_like(digits)
        two[..., 0] = (unit > 0.5).long()
        return torch.where(binary.unsqueeze(-1), two, digits)

    def decode(self, digits: Tensor, fine_offset: Tensor | None = None) -> Tensor:
        """int64 (..., A, digits) -> float32 (..., A): the middle of the bin, in the dataset's units.

        `fine_offset`, float (..., A) in last-digit units, is added to the last digit (an expectation inside the
        coarse bin); the result never leaves the limits.
        """
        low, high, binary = self._limits(digits)
        powers = torch.tensor([self.base**d for d in reversed(range(self.digits))], device=digits.device)
        index = (digits * powers).sum(-1).to(torch.float32)
        if fine_offset is not None:
            index = index + fine_offset
        value = low + (high - low) * ((index + 0.5) / self.bins).clamp(0, 1)
        value = torch.maximum(torch.minimum(value, high), low)  # rounding may step over a limit by one ulp
        return torch.where(binary, torch.where(digits[..., 0] > 0, high, low), value)

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "bins", **{k: v for k, v in asdict(self).items() if k != "clipped"}}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "BinTokenizer":
        data = dict(data)
        if data.pop("kind") != "bins":
            raise ValueError(f"expected an action tokenizer of kind 'bins', got {data}")
        return cls(**data)
