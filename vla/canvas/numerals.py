# SPDX-License-Identifier: Apache-2.0
"""Numbers as digits, most significant first, each digit with its own radix: how every modality is written.

Action bins are (16, 16), an image code is its quantiser's levels, say (8, 5, 5, 5), a word is (cluster, member).
The digits of a canvas share one vocabulary of `base` values; a digit with a smaller radix uses the first of them.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Numerals:
    """The numbers 0..count-1 as D digits; digit d takes values 0..radices[d]-1. ValueError without a radix >= 1."""

    radices: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.radices or min(self.radices) < 1:
            raise ValueError(f"expected one radix >= 1 for each digit, most significant first, got {self.radices}")

    @property
    def base(self) -> int:
        """Size of the vocabulary that holds every digit: the largest radix."""
        return max(self.radices)

    @property
    def count(self) -> int:
        """How many numbers there are."""
        return math.prod(self.radices)

    def to_digits(self, index: Tensor) -> Tensor:
        """int64 (...), 0..count-1 -> int64 (..., D). ValueError for a number that has no numeral."""
        if index.numel() and (int(index.min()) < 0 or int(index.max()) >= self.count):
            raise ValueError(
                f"expected numbers in 0..{self.count - 1} for the radices {self.radices}, "
                f"got {int(index.min())}..{int(index.max())}; clamp them or add a digit"
            )
        return index.unsqueeze(-1) // self._weights(index) % self._radices(index)

    def to_index(self, digits: Tensor) -> Tensor:
        """int64 (..., D) -> int64 (...). Total: a digit beyond its radix counts as the largest one."""
        radices = self._radices(digits)
        return (torch.minimum(digits.clamp(min=0), radices - 1) * self._weights(digits)).sum(-1)

    def allowed_DV(self) -> Tensor:
        """bool (D, base): the values a digit may take; a mask on the logits."""
        return torch.arange(self.base) < torch.tensor(self.radices).unsqueeze(-1)

    def _radices(self, like: Tensor) -> Tensor:
        return torch.tensor(self.radices, device=like.device)

    def _weights(self, like: Tensor) -> Tensor:
        return torch.tensor([math.prod(self.radices[d + 1 :]) for d in range(len(self.radices))], device=like.device)
