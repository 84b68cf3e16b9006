# SPDX-License-Identifier: Apache-2.0
"""What a unified model has beyond the policy: further segments that can be asked for, and further ones to be given.

A segment that is asked for has a port: an embedding of its lattice states and a head for its own vocabulary, so that a
token of one segment can never appear in another. A segment that is given joins the prefix:

    a picture (the future, or a goal)   is looked at by the vision of the observation: its tokens, and what it shows
                                        beside the present one in one vector for the summary
    actions                             their canvas embedding, and a vector for the summary
    the picture that is seen now        as codes, added to the positions of the future image that is asked for: each
                                        code is told what is there now, and no position is added to the sequence

Shapes: B batch, N positions, W width, L codes a picture, D digits.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vla.canvas import Layout, State
from vla.model.embedding import CanvasEmbedding, DigitHead

type Images = dict[str, Tensor] | Tensor
"""A camera: uint8 (B, H, W, 3); or float (B, T, W), what `LatticeModel.look` made of them."""


@dataclass(frozen=True)
class Given:
    """What joins the prefix beside observation, robot state and instruction."""

    picture: Images | None = None
    """What will be seen."""
    goal: bool = False
    """It is what is wanted some time later; False: what is seen at the end of this chunk."""
    actions: State | None = None
    """(B, N, S, D), all known."""
    plan: State | None = None
    """(B, L, 1, D), all known, and `plan_BL`: bool, which positions there are."""
    plan_BL: Tensor | None = None


class Port(nn.Module):
    """Lattice states of a segment in, logits of its digits out. `radices`: how many values each digit has."""

    def __init__(self, positions: int, radices: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.layout = Layout(positions, 1, len(radices), max(radices))
        self.embedding = CanvasEmbedding(self.layout, width, 1)
        self.head = DigitHead(self.layout, width)
        values = torch.arange(self.layout.base)
        self.head.allowed_ADV.copy_(values < torch.tensor(radices).view(1, -1, 1))


class GivenEncoder(nn.Module):
    """What is given, as prefix tokens and as one vector that is added to the summary of the prefix."""

    def __init__(self, seen_tokens: int, chunk: Layout, width: int, state_dim: int) -> None:
        super().__init__()
        self.state = nn.Linear(seen_tokens * width, state_dim)
        self.picture_place = nn.Parameter(torch.randn(2, seen_tokens, width) * 0.02)  # future, goal
        self.action_place = nn.Parameter(torch.randn(chunk.positions, width) * 0.02)
        self.pictures = _mixer(2 * seen_tokens * width, width)
        self.chunk = _mixer(chunk.positions * width, width)

    def state_seen(self, seen_BTW: Tensor) -> Tensor:
        """The state of the robot, read off the tokens of a picture: float (B, S). Only training asks for it."""
        return self.state(seen_BTW.flatten(1))

    def picture(self, seen_BTW: Tensor, given_BTW: Tensor, goal: bool) -> tuple[Tensor, Tensor]:
        """Tokens of the present and of the given picture -> (tokens for the prefix, vector for the summary)."""
        tokens_BTW = given_BTW + self.picture_place[int(goal)]
        return tokens_BTW, self.pictures(torch.cat([seen_BTW, tokens_BTW], dim=1).flatten(1))

    def actions(self, embedded_BNW: Tensor) -> tuple[Tensor, Tensor]:
        """The canvas embedding of given actions -> (tokens for the prefix, vector for the summary)."""
        return embedded_BNW + self.action_place, self.chunk(embedded_BNW.flatten(1))


class Guide(nn.Module):
    """The robot's state and where it will be, as all the prefix there is: tokens, and the summary."""

    def __init__(self, waypoints: int, state_dim: int, width: int) -> None:
        super().__init__()
        self.token = nn.Linear(2 * state_dim, width)
        self.place = nn.Parameter(torch.randn(waypoints + 1, width) * 0.02)
        self.summarise = _mixer((waypoints + 1) * width, width)

    def forward(self, state_BS: Tensor, waypoints_BKS: Tensor) -> tuple[Tensor, Tensor]:
        """float (B, S) and (B, K, S), scaled -> (B, 1 + K, W), (B, W). Small ways count: they are magnified."""
        at_BKS = torch.cat([state_BS.unsqueeze(1), waypoints_BKS], dim=1)
        way_BKS = MAGNIFIED * (at_BKS - state_BS.unsqueeze(1))
        tokens_BKW = self.token(torch.cat([at_BKS, way_BKS], dim=-1)) + self.place
        return tokens_BKW, self.summarise(tokens_BKW.flatten(1))


MAGNIFIED = 4.0


def _mixer(inputs: int, width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
