# SPDX-License-Identifier: Apache-2.0
"""The sequence: which segments there are, who may look at whom, and how actions are laid out as positions.

[ observation images | robot state | instruction ]  [ plan ]  [ future image ]  [ action chunk ]
  prefix: sees itself only                            blocks: bidirectional inside, causal between,
  (its keys and values are computed once              and no path from actions to images
   and are exact for every denoising step)
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

import torch
from torch import Tensor


class Segment(IntEnum):
    OBSERVATION = 0
    INSTRUCTION = 1
    PLAN = 2
    FUTURE_IMAGE = 3
    ACTION = 4


# Row segment may attend to column segment. The future image sees plan and prefix but never the actions
# (an action must not leak into the picture it is conditioned on); actions see everything.
ATTENDS: dict[Segment, frozenset[Segment]] = {
    Segment.OBSERVATION: frozenset({Segment.OBSERVATION, Segment.INSTRUCTION}),
    Segment.INSTRUCTION: frozenset({Segment.OBSERVATION, Segment.INSTRUCTION}),
    Segment.PLAN: frozenset({Segment.OBSERVATION, Segment.INSTRUCTION, Segment.PLAN}),
    Segment.FUTURE_IMAGE: frozenset(set(Segment) - {Segment.ACTION}),
    Segment.ACTION: frozenset(set(Segment)),
}


def attention_mask(segments: list[Segment] | Tensor) -> Tensor:
    """bool (L, L): may position i attend to position j? `segments` gives the segment of each of the L positions."""
    ids = torch.as_tensor([int(s) for s in segments])
    table = torch.zeros(len(Segment), len(Segment), dtype=torch.bool)
    for row, columns in ATTENDS.items():
        for column in columns:
            table[row, column] = True
    return table[ids][:, ids]


ActionArrangement = Literal["per_step", "per_dim"]


@dataclass(frozen=True)
class Layout:
    """How an action chunk of `horizon` steps x `dims` dimensions becomes N positions of S sub-tokens.

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

    def fold(self, x_BHA: Tensor) -> Tensor:
        """(B, H, A, ...) -> (B, N, S, ...)."""
        return x_BHA.reshape(x_BHA.shape[0], self.positions, self.sub_tokens, *x_BHA.shape[3:])

    def unfold(self, x_BNS: Tensor) -> Tensor:
        """(B, N, S, ...) -> (B, H, A, ...)."""
        return x_BNS.reshape(x_BNS.shape[0], self.horizon, self.dims, *x_BNS.shape[3:])
