# SPDX-License-Identifier: Apache-2.0
"""Lattice states to vectors and vectors to digit logits: the only code that knows how a token is written.

A position's input is the sum of its parts (digits known, provenance, noise index, place), so the sequence does not
grow with the richness of the state. All parts of a segment live in one table and are read by one `embedding_bag`.
Nothing here grows with the number of positions: places are sinusoids under one linear map.

Shapes: B batch, N positions, S sub-tokens a position, D digits, V base, A dimensions, W width, R hidden of a head.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vla.canvas import Layout, Provenance, State

NOISE_SCALE = 0.3
WORD_SCALE = 0.5


class StateEmbedding(nn.Module):
    """State (B, N, S, D) -> float (B, N, W). `metric`: neighbouring digits mean similar things; words do not."""

    def __init__(self, layout: Layout, width: int, noise_indices: int, metric: bool = True) -> None:
        super().__init__()
        self.layout, self.noise_indices = layout, noise_indices
        base, digits = layout.base, layout.digits
        self.rows_digit = base + 1  # the last row means "not known"
        # The last row of a dimension: fully known, so there is no noise.
        self.rows_dim = digits * self.rows_digit + len(Provenance) + noise_indices + 1
        table = torch.randn(layout.dims, self.rows_dim, width) * 0.02
        # One index holds for the whole canvas, so its vector may as well: it must be heard from the first step on.
        noise_rows = slice(self.rows_dim - noise_indices - 1, self.rows_dim - 1)
        table[:, noise_rows] += torch.randn(noise_indices, width) * NOISE_SCALE / layout.dims
        for d in range(digits):
            rows = slice(d * self.rows_digit, d * self.rows_digit + base)
            if metric:  # neighbouring digits start with neighbouring embeddings
                table[:, rows] += 0.1 * _smooth(base, width) / (d + 1)
            else:
                table[:, rows] += 0.1 * torch.randn(layout.dims, base, width)
        self.table = nn.Parameter(table.flatten(0, 1))
        # Words of like use share a digit, and sentences differ in a word or two: a whole word has a vector of its own.
        self.words = None if metric else nn.Parameter(WORD_SCALE * torch.randn(base**digits, width))
        dimension_NS = torch.arange(layout.dims).repeat(layout.horizon).view(layout.positions, layout.sub_tokens)
        digit_offset_D = torch.arange(digits) * self.rows_digit
        self.register_buffer("offset_NS", dimension_NS * self.rows_dim, persistent=False)
        self.register_buffer("digit_offset_D", digit_offset_D, persistent=False)

    def forward(self, state: State) -> Tensor:
        depth, base = self.layout.digits, self.layout.base
        digits_BNSD = torch.where(state.visible_BNSD(), state.digits_BNSD, base) + self.digit_offset_D
        provenance_BNS1 = (state.provenance_BNS + depth * self.rows_digit).unsqueeze(-1)
        noise_BNS = torch.where(state.known_BNS < depth, state.noise_BNS % self.noise_indices, self.noise_indices)
        noise_BNS1 = (noise_BNS + depth * self.rows_digit + len(Provenance)).unsqueeze(-1)
        index_BNSF = torch.cat([digits_BNSD, provenance_BNS1, noise_BNS1], dim=-1) + self.offset_NS.unsqueeze(-1)
        batch, positions = index_BNSF.shape[:2]
        summed = F.embedding_bag(index_BNSF.reshape(batch * positions, -1), self.table, mode="sum")
        x_BNW = summed.view(batch, positions, -1)
        if self.words is None:
            return x_BNW
        place_D = base ** torch.arange(depth - 1, -1, -1, device=x_BNW.device)
        word_BN = (state.digits_BNSD[:, :, 0] * place_D).sum(-1)
        whole_BN1 = state.known_BNS == depth
        return x_BNW + F.embedding(word_BN, self.words) * whole_BN1


def _smooth(count: int, width: int) -> Tensor:
    """Smooth features of 0..count-1: (count, width)."""
    frequency = torch.arange(1, width // 2 + 1) * (math.pi / count)
    phase = torch.arange(count).unsqueeze(1) * frequency * (8 / width)
    return torch.cat([phase.sin(), phase.cos()], dim=-1)


class Places(nn.Module):
    """Coordinates of positions (time, camera, row, column) -> float (N, W): sinusoids and a linear map."""

    FREQUENCIES = 8
    """Periods of 2, 4, ... 256 places."""
    STD = 0.04

    def __init__(self, width: int) -> None:
        super().__init__()
        self.project = nn.Linear(COORDINATES * 2 * self.FREQUENCIES, width, bias=False)
        nn.init.normal_(self.project.weight, std=self.STD)

    def forward(self, where_NC: Tensor) -> Tensor:
        """float (N, 4) -> float (N, W)."""
        period_F = 2.0 ** torch.arange(1, self.FREQUENCIES + 1, device=where_NC.device)
        angle_NF = (2 * math.pi * where_NC.unsqueeze(-1) / period_F).flatten(1)
        return self.project(torch.cat([angle_NF.sin(), angle_NF.cos()], dim=-1))


COORDINATES = 4


def along(count: int, axis: int = 0) -> Tensor:
    """float (count, 4): places 0..count-1 along one axis."""
    where_NC = torch.zeros(count, COORDINATES)
    where_NC[:, axis] = torch.arange(count)
    return where_NC


def on_grid(side: int, cameras: int = 1) -> Tensor:
    """float (cameras * side * side, 4): squares of pictures, row by row, a camera after the other."""
    camera, row, column = torch.meshgrid(torch.arange(cameras), torch.arange(side), torch.arange(side), indexing="ij")
    return torch.stack([torch.zeros_like(camera), camera, row, column], dim=-1).flatten(0, 2).float()


class DigitHead(nn.Module):
    """Hidden vectors -> logits of each digit, each given the digits before it (a chain inside one position).

    p(coarse, fine | h) = p(coarse | h) p(fine | h, coarse): a whole token can be drawn in one step without treating its
    digits as independent. The first `d` digits come from the truth (training), from the state (coarse digit known) or
    from the draw just made (sampling).
    """

    def __init__(self, layout: Layout, width: int, hidden: int = 32) -> None:
        super().__init__()
        self.layout, self.hidden = layout, hidden
        self.project = nn.Linear(width, layout.dims * layout.digits * hidden)
        self.given = nn.Parameter(torch.randn(layout.dims, max(layout.digits - 1, 1), layout.base, hidden) * 0.02)
        self.out = nn.Parameter(torch.randn(layout.dims, layout.digits, hidden, layout.base) / math.sqrt(hidden))
        self.bias = nn.Parameter(torch.zeros(layout.dims, layout.digits, layout.base))
        self.allowed_ADV: Tensor
        self.register_buffer("allowed_ADV", torch.ones(layout.dims, layout.digits, layout.base, dtype=torch.bool))

    def features(self, h_BNW: Tensor) -> Tensor:
        """(B, N, W) -> (B, H, A, D, R), one row a digit of a dimension."""
        x = self.project(h_BNW).unflatten(-1, (self.layout.dims, self.layout.digits, self.hidden))
        return _own(x, self.layout)

    def digit_logits(self, features: Tensor, digit: int, digits_BNSD: Tensor) -> Tensor:
        """Logits of `digit` given the digits before it: (B, N, S, V). Digits that a dimension never shows get -inf."""
        x_BHAR = features[..., digit, :]
        previous_BHAD = self.layout.unfold(digits_BNSD)
        dims = torch.arange(self.layout.dims, device=x_BHAR.device)
        for earlier in range(digit):
            x_BHAR = x_BHAR + self.given[dims, earlier, previous_BHAD[..., earlier]]
        x_BHAR = F.gelu(x_BHAR)
        # A batched product over dimensions: (A, B*H, R) @ (A, R, V).
        flat = x_BHAR.flatten(0, 1).transpose(0, 1)
        logits = torch.baddbmm(self.bias[:, digit].unsqueeze(1), flat, self.out[:, digit])
        logits = logits.transpose(0, 1).unflatten(0, x_BHAR.shape[:2]).float()
        return self.layout.fold(logits.masked_fill(~self.allowed_ADV[:, digit], float("-inf")))

    def forward(self, h_BNW: Tensor, digits_BNSD: Tensor) -> list[Tensor]:
        """Teacher-forced logits of every digit: a list of D tensors (B, N, S, V)."""
        features = self.features(h_BNW)
        return [self.digit_logits(features, d, digits_BNSD) for d in range(self.layout.digits)]


def _own(x_BNA: Tensor, layout: Layout) -> Tensor:
    """(B, N, A, ...) -> (B, H, A, ...): of every position its own dimensions (all, or one if `per_dim`)."""
    if layout.arrangement == "per_step":
        return x_BNA
    return torch.diagonal(x_BNA.unflatten(1, (layout.horizon, layout.dims)), dim1=2, dim2=3).movedim(-1, 2)
