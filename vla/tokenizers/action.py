# SPDX-License-Identifier: Apache-2.0
"""Action tokenizer `bins`: every value becomes one of base**digits bins, written as digits, coarse first.

Fixed length, time-aligned, total: every digit string decodes, so a committed prefix of actions is a set of positions
and real-time chunking is in-painting. Limits are true quantiles over all frames (the mean of per-episode quantiles that
datasets store cuts off up to 41 % of the range), widened by a quarter of their span but never past the data, so that a
few outliers cost neither clipping nor resolution. A dimension that only ever takes two values (a gripper command) is
*binary*: its coarse digit is 0 or 1 and its other digits are 0, by a mask on the logits.

`ActionLimits` is what `bins`, `dct` and `rvq` share. No matrix products here or there: results must be the same bits
for every batch size, and autocast must not round them.
"""

from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from vla.canvas import Numerals


def fit_range(column_N: np.ndarray, quantile: float = 0.01) -> tuple[float, float]:
    """Quantiles of a column, widened by a quarter of their span but never past the data."""
    q_low, q_high = np.quantile(column_N, [quantile, 1 - quantile])
    margin = 0.25 * (q_high - q_low) or 1e-6 * max(1.0, abs(q_low))
    return float(max(column_N.min(), q_low - margin)), float(min(column_N.max(), q_high + margin))


def fit_limits(
    actions_NA: np.ndarray, names: list[str], quantile: float = 0.01
) -> tuple[list[float], list[float], list[bool]]:
    """(low, high, binary) of each dimension over all N frames. ValueError on NaN or a constant dimension."""
    actions = np.asarray(actions_NA, dtype=np.float64)
    if actions.ndim != 2 or actions.shape[1] != len(names):
        raise ValueError(f"expected actions of shape (N, {len(names)}) for {names}, got {actions.shape}")
    limits: list[tuple[float, float]] = []
    binary: list[bool] = []
    for a, name in enumerate(names):
        column = actions[:, a]
        if not np.isfinite(column).all():
            frame = int(np.flatnonzero(~np.isfinite(column))[0])
            raise ValueError(f"action '{name}' is not finite at frame {frame}; remove or repair that episode")
        values = np.unique(column[:: max(1, len(column) // 100_000)])
        binary.append(len(values) == 2)
        limits.append((float(values[0]), float(values[1])) if binary[-1] else fit_range(column, quantile))
        if np.float32(limits[-1][0]) >= np.float32(limits[-1][1]):
            raise ValueError(
                f"action '{name}' is constant ({values[0]:g}) in all {len(column)} frames, so it has no range to "
                "divide into bins; drop the dimension from the dataset"
            )
    return [low for low, _ in limits], [high for _, high in limits], binary


def windows(
    values_NA: np.ndarray,
    episode_from: np.ndarray,
    episode_to: np.ndarray,
    horizon: int,
    limit: int = 50_000,
) -> np.ndarray:
    """(M, horizon, A): the chunk that begins at each frame of the episodes [from, to), the last value repeated past
    the end of its episode. At most `limit` of them, the same ones every time. ValueError without a frame."""
    first, end = np.asarray(episode_from), np.asarray(episode_to)
    frames = len(values_NA)
    if not len(first) or len(first) != len(end) or (end <= first).any() or first.min() < 0 or end.max() > frames:
        raise ValueError(
            f"expected episodes [from, to) within the {frames} frames, each with one frame or more, "
            f"got from {first.tolist()[:5]} to {end.tolist()[:5]}"
        )
    starts = np.concatenate([np.arange(a, b) for a, b in zip(first, end, strict=True)])
    last = np.repeat(end - 1, end - first)
    if len(starts) > limit:
        kept = np.sort(np.random.default_rng(0).permutation(len(starts))[:limit])
        starts, last = starts[kept], last[kept]
    return np.asarray(values_NA)[np.minimum(starts[:, None] + np.arange(horizon), last[:, None])]


@dataclass
class ActionLimits:
    """Limits of A action dimensions, and values <-> the unit range [0, 1] <-> digits."""

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

    kind: ClassVar[str]

    @property
    def dims(self) -> int:
        return len(self.names)

    @property
    def bins(self) -> int:
        """Bins of a dimension: base ** digits."""
        return self.base**self.digits

    @property
    def numerals(self) -> Numerals:
        """How a bin is written."""
        return Numerals((self.base,) * self.digits)

    def allowed_ADV(self) -> Tensor:
        """bool (A, digits, base): the digits a dimension may ever show; a mask on the logits."""
        allowed = self.numerals.allowed_DV().repeat(self.dims, 1, 1)
        for a in np.flatnonzero(self.binary):
            allowed[a] = False
            allowed[a, 0, :2] = True
            allowed[a, 1:, 0] = True
        return allowed

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, **{k: v for k, v in asdict(self).items() if k != "clipped"}}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """ValueError for the data of another kind."""
        data = dict(data)
        if (kind := data.pop("kind", None)) != cls.kind:
            raise ValueError(f"expected an action tokenizer of kind '{cls.kind}', got {kind!r}")
        return cls(**data)

    def scaled(self, actions: Tensor) -> Tensor:
        """float (..., A), dataset units -> float32 in [-1, 1], clipped to the limits; nothing is counted."""
        low, high, _ = self._limits(actions)
        return (2 * (actions.to(torch.float32) - low) / (high - low) - 1).clamp(-1, 1)

    # --- values <-> [0, 1] ---------------------------------------------------------------------------------------
    def _limits(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        def to(values: list) -> Tensor:
            return torch.tensor(values, device=like.device)

        return to(self.low).to(torch.float32), to(self.high).to(torch.float32), to(self.binary)

    def _to_unit(self, actions: Tensor) -> Tensor:
        """float (..., A), dataset units -> float32 in [0, 1]. Counts what it clips. ValueError on NaN, wrong A."""
        if actions.shape[-1] != self.dims:
            raise ValueError(
                f"expected {self.dims} action dimensions {self.names}, got {actions.shape[-1]}; "
                "the checkpoint and the dataset do not belong together"
            )
        if not bool(torch.isfinite(actions).all()):
            raise ValueError("actions contain NaN or infinity; find the episode and remove it")
        low, high, _ = self._limits(actions)
        return self._clip((actions.to(torch.float32) - low) / (high - low))

    def _from_unit(self, unit: Tensor, on: Tensor) -> Tensor:
        """float (..., A) -> float32, dataset units, within the limits. `on`: bool, the binary dimensions' command."""
        low, high, binary = self._limits(unit)
        value = low + (high - low) * unit.clamp(0, 1)
        value = torch.maximum(torch.minimum(value, high), low)  # rounding may step over a limit by one ulp
        return torch.where(binary, torch.where(on, high, low), value)

    def _clip(self, unit: Tensor) -> Tensor:
        self.clipped += int(((unit < -1e-6) | (unit > 1 + 1e-6)).sum())
        return unit.clamp(0, 1)

    # --- [0, 1] <-> digits ---------------------------------------------------------------------------------------
    def _quantise(self, unit: Tensor, on: Tensor) -> Tensor:
        """float (..., A) in [0, 1] -> int64 (..., A, digits): the bin, or for a binary dimension the command `on`."""
        digits = self.numerals.to_digits((unit * self.bins).long().clamp(max=self.bins - 1))
        two = torch.zeros_like(digits)
        two[..., 0] = on.long()
        return torch.where(torch.tensor(self.binary, device=unit.device).unsqueeze(-1), two, digits)

    def _dequantise(self, digits: Tensor, levels: int, fine_offset: Tensor | None = None) -> Tensor:
        """int64 (..., digits) -> float32 (...) in [0, 1]: the middle of what the first `levels` digits leave open."""
        self._check_levels(levels)
        known = torch.arange(self.digits, device=digits.device) < levels
        index = self.numerals.to_index(digits * known).to(torch.float32)
        if fine_offset is not None:
            index = index + fine_offset
        return ((index + 0.5 * self.base ** (self.digits - levels)) / self.bins).clamp(0, 1)

    def _check_levels(self, levels: int) -> None:
        if not 1 <= levels <= self.digits:
            raise ValueError(f"expected levels in 1..{self.digits}, the digits of a token, got {levels}")


@dataclass
class BinTokenizer(ActionLimits):
    """Quantile bins. Shapes: (..., A) float actions in the dataset's units <-> (..., S, digits) int64 digits.

    S = A, or A + 1 with `stops`: each timestep then has a sub-token more, STOP, which says that the episode is over
    before this step. A chunk so has a length of its own within a fixed canvas.
    """

    stops: bool = False

    kind: ClassVar[str] = "bins"
    time_aligned: ClassVar[bool] = True

    @classmethod
    def fit(
        cls, actions_NA: np.ndarray, names: list[str], digits: int = 2, base: int = 16, quantile: float = 0.01
    ) -> "BinTokenizer":
        """Fit limits on all frames. `actions_NA`: float (N, A). Raises ValueError on NaN or a constant dimension."""
        return cls(*fit_limits(actions_NA, names, quantile), list(names), digits, base)

    @classmethod
    def of_states(cls, state_NS: np.ndarray, names: list[str]) -> "BinTokenizer":
        """Bins of robot states, float (N, S), for those that are asked for. A constant one gets a range around it."""
        state = np.asarray(state_NS, np.float64)
        ranges = [fit_range(column, 0.001) for column in state.T]
        ranges = [(a, b) if b - a > 1e-6 * max(1.0, abs(a)) else (a - 0.5, a + 0.5) for a, b in ranges]
        low, high = [a for a, _ in ranges], [b for _, b in ranges]
        return cls(low, high, [False] * len(names), list(names))

    def grid(self, horizon: int) -> tuple[int, int]:
        """(positions, sub-tokens) of a chunk of `horizon` steps: a timestep is a position."""
        return horizon, self.dims + self.stops

    def chunk_steps(self, positions: int) -> int:
        """Steps of the chunk that so many positions hold."""
        return positions

    def allowed_ADV(self) -> Tensor:
        """bool (S, digits, base); STOP has two values."""
        allowed = super().allowed_ADV()
        if not self.stops:
            return allowed
        stop = torch.zeros_like(allowed[:1])
        stop[0, 0, :2] = True
        stop[0, 1:, 0] = True
        return torch.cat([allowed, stop])

    def encode(self, actions: Tensor, ended: Tensor | None = None) -> Tensor:
        """float (..., A), dataset units -> int64 (..., S, digits). Clips to the limits and counts what it clipped.

        `ended`: bool (...), where the episode is over, for STOP; nowhere by default.
        """
        unit = self._to_unit(actions)
        digits = self._quantise(unit, unit > 0.5)
        if not self.stops:
            return digits
        stop = torch.zeros_like(digits[..., :1, :])
        if ended is not None:
            stop[..., 0, 0] = ended.to(stop)
        return torch.cat([digits, stop], dim=-2)

    def ended(self, digits: Tensor) -> Tensor:
        """int64 (..., S, digits) -> bool (...): where STOP says that the episode is over."""
        if not self.stops:
            return torch.zeros(digits.shape[:-2], dtype=torch.bool, device=digits.device)
        return digits[..., -1, 0] > 0

    def decode(self, digits: Tensor, fine_offset: Tensor | None = None) -> Tensor:
        """int64 (..., S, digits) -> float32 (..., A): the middle of the bin, in the dataset's units.

        `fine_offset`, float (..., S) in last-digit units, is added to the last digit (an expectation inside the
        coarse bin); the result never leaves the limits.
        """
        digits = digits[..., : self.dims, :]
        fine_offset = None if fine_offset is None else fine_offset[..., : self.dims]
        return self._from_unit(self._dequantise(digits, self.digits, fine_offset), digits[..., 0] > 0)

    def decode_prefix(self, digits: Tensor, levels: int) -> Tensor:
        """As `decode`, knowing the first `levels` digits (1..digits) only: the middle of the coarse bin."""
        digits = digits[..., : self.dims, :]
        return self._from_unit(self._dequantise(digits, levels), digits[..., 0] > 0)
