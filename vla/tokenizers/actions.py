# SPDX-License-Identifier: Apache-2.0
"""What every action tokenizer offers, and how to get one: fitted to a dataset, or out of a checkpoint."""

from typing import Any, ClassVar, Protocol

import numpy as np
from torch import Tensor

from vla.tokenizers.action import BinTokenizer
from vla.tokenizers.dct import DctTokenizer
from vla.tokenizers.rvq import RvqTokenizer


class ActionTokenizer(Protocol):
    """Chunks of H steps x A dimensions, dataset units <-> N positions x S sub-tokens of D digits. Total: every digit
    string decodes to finite values within the limits."""

    kind: ClassVar[str]
    time_aligned: ClassVar[bool]
    """A position is one timestep, so the first actions of a chunk are its first positions."""
    names: list[str]
    """Of the A dimensions."""
    low: list[float]
    high: list[float]
    """Limits of each dimension, dataset units."""
    binary: list[bool]
    """Dimensions with two values only."""
    digits: int
    """D."""
    base: int
    clipped: int
    """How many values `encode` has clipped so far."""

    @property
    def dims(self) -> int:
        """A."""

    def grid(self, horizon: int) -> tuple[int, int]:
        """(N, S) of a chunk of `horizon` steps. ValueError for a horizon it cannot write."""

    def chunk_steps(self, positions: int) -> int:
        """H of a chunk of N positions."""

    def allowed_ADV(self) -> Tensor:
        """bool (S, digits, base): the digits a sub-token may ever show; a mask on the logits."""

    def scaled(self, actions: Tensor) -> Tensor:
        """float (..., A), dataset units -> float32 in [-1, 1], clipped to the limits."""

    def encode(self, actions: Tensor) -> Tensor:
        """float (B, H, A), dataset units -> int64 (B, N, S, digits). ValueError on NaN or another A."""

    def decode(self, digits: Tensor, fine_offset: Tensor | None = None) -> Tensor:
        """int64 (B, N, S, digits) -> float32 (B, H, A). `fine_offset`: float (B, N, S), in last-digit units."""

    def decode_prefix(self, digits: Tensor, levels: int) -> Tensor:
        """As `decode`, knowing the first `levels` digits (1..digits) only."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON; `action_tokenizer_from_dict` reads it."""


KINDS: dict[str, type[BinTokenizer] | type[DctTokenizer] | type[RvqTokenizer]] = {
    cls.kind: cls for cls in (BinTokenizer, DctTokenizer, RvqTokenizer)
}
RVQ_DIGITS = 4
"""Fewest levels of `rvq`: one digit describes a whole slice, not one value."""


def build_action_tokenizer(
    kind: str,
    actions_NA: np.ndarray,
    episode_from: np.ndarray,
    episode_to: np.ndarray,
    names: list[str],
    horizon: int,
    digits: int = 2,
    base: int = 16,
) -> ActionTokenizer:
    """Fit a tokenizer to all N frames, dataset units; `dct` and `rvq` to chunks within the episodes [from, to).

    `digits`: of a token; `rvq` takes at least 4. ValueError for an unknown kind or data that cannot be tokenized.
    """
    if kind == "bins":
        return BinTokenizer.fit(actions_NA, names, digits, base)
    if kind == "dct":
        return DctTokenizer.fit(actions_NA, episode_from, episode_to, names, horizon, digits, base)
    if kind == "rvq":
        return RvqTokenizer.fit(actions_NA, episode_from, episode_to, names, horizon, max(digits, RVQ_DIGITS), base)
    raise _unknown(kind)


def action_tokenizer_from_dict(data: dict[str, Any]) -> ActionTokenizer:
    """The inverse of `to_dict`, for every kind. ValueError for an unknown kind."""
    if (kind := data.get("kind")) not in KINDS:
        raise _unknown(kind)
    return KINDS[kind].from_dict(data)


def _unknown(kind: object) -> ValueError:
    return ValueError(f"expected an action tokenizer of kind {', '.join(KINDS)}, got {kind!r}; is this release older?")
