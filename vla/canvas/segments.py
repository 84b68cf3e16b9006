# SPDX-License-Identifier: Apache-2.0
"""The sequence: which segments there are, who reads whom, and how a segment is laid out as positions.

    [ instruction ] [ observation ] [ what else is given ... ]   [ what is asked ... ]
      given segments, in this order: each is read once, its       masked: read at every
      keys and values are exact for every denoising step          denoising step

A segment reads itself, in both directions, and what stands before it: never what stands after. What is given stands
before what is asked, so a query is also an order. A segment that has been decided is read like one that was given.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

import torch
from torch import Tensor


class Segment(IntEnum):
    """In the order in which they stand among what is given, and again among what is asked."""

    INSTRUCTION = 0
    OBSERVATION = 1
    """Pixels, the robot's state and the actions executed lately, of the last `n_obs_steps` moments."""
    GOAL_IMAGE = 2
    """Pixels of what is wanted some time later."""
    PRESENT_IMAGE = 3
    """The present picture once more, as codes: what a future image is compared with."""
    PLAN = 4
    """What is still to do, in words."""
    WAYPOINTS = 5
    """Robot states to come."""
    FUTURE_IMAGE = 6
    """The picture after this chunk, as codes."""
    ACTION = 7
    """The action chunk."""


def block_mask(lengths: Sequence[int]) -> Tensor:
    """bool (L, L): position i may read position j, of segments of these lengths that stand in this order."""
    order = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    return order[:, None] >= order[None, :]


ActionArrangement = Literal["per_step", "per_dim"]


@dataclass(frozen=True)
class Layout:
    """How `horizon` steps x `dims` dimensions of `digits` digits become N positions of S sub-tokens.

    per_step: a position is one timestep, its dimensions are parallel sub-tokens (N = horizon, S = dims).
    per_dim:  a position is one timestep of one dimension (N = horizon * dims, S = 1).

    A text of L words, or a picture of L codes, is laid out as L steps of one dimension.
    """

    horizon: int
    dims: int
    digits: int = 2
    base: int = 16
    arrangement: ActionArrangement = "per_step"

    def __post_init__(self) -> None:
        if self.arrangement not in ("per_step", "per_dim"):
            raise ValueError(f"action arrangement must be 'per_step' or 'per_dim', got {self.arrangement!r}")

    @property
    def positions(self) -> int:
        return self.horizon if self.arrangement == "per_step" else self.horizon * self.dims

    @property
    def sub_tokens(self) -> int:
        return self.dims if self.arrangement == "per_step" else 1

    def shape(self, batch: int) -> tuple[int, int, int]:
        """(B, N, S)."""
        return batch, self.positions, self.sub_tokens

    def fold(self, x_BHA: Tensor) -> Tensor:
        """(B, H, A, ...) -> (B, N, S, ...)."""
        return x_BHA.reshape(x_BHA.shape[0], self.positions, self.sub_tokens, *x_BHA.shape[3:])

    def unfold(self, x_BNS: Tensor) -> Tensor:
        """(B, N, S, ...) -> (B, H, A, ...)."""
        return x_BNS.reshape(x_BNS.shape[0], self.horizon, self.dims, *x_BNS.shape[3:])
