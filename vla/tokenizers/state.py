# SPDX-License-Identifier: Apache-2.0
"""Robot state (proprioception) to the unit range, by limits measured over all frames."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass
class StateScaler:
    """Linear map of [q01, q99] to [-1, 1], clipped to [-2, 2]. A constant dimension maps to 0."""

    low: list[float]
    high: list[float]
    names: list[str]

    @classmethod
    def fit(cls, state_NS: np.ndarray, names: list[str]) -> "StateScaler":
        """`state_NS`: float (N, S), dataset units. Raises ValueError on NaN."""
        state = np.asarray(state_NS, dtype=np.float64)
        if not np.isfinite(state).all():
            frame, dim = np.argwhere(~np.isfinite(state))[0]
            raise ValueError(f"state '{names[dim]}' is not finite at frame {frame}; remove or repair that episode")
        low, high = np.quantile(state, [0.01, 0.99], axis=0)
        return cls(low.tolist(), high.tolist(), list(names))

    def __call__(self, state_BS: Tensor) -> Tensor:
        """float (B, S), dataset units -> float32 (B, S), about [-1, 1]."""
        if state_BS.shape[-1] != len(self.names):
            raise ValueError(f"expected {len(self.names)} state values {self.names}, got {state_BS.shape[-1]}")
        low, high = torch.tensor(self.low), torch.tensor(self.high)
        low, high = low.to(state_BS.device), high.to(state_BS.device)
        moves = high - low > 1e-8
        span = torch.where(moves, high - low, torch.ones_like(high))
        return torch.where(moves, 2 * (state_BS.to(torch.float32) - low) / span - 1, 0.0).clamp(-2, 2)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
