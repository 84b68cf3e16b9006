# SPDX-License-Identifier: Apache-2.0
"""Words as two digits, (cluster, member), so that language has a coarse and a fine level as actions have.

HDLM (arXiv 2510.08632) groups V words into sqrt(V) clusters of their embeddings. Here the clusters are *balanced*: each
but the last has exactly `base` = ceil(sqrt(V)) members. Then a numeral is a place in a permutation of the ids, the
softmax of both digits has `base` classes, and no digit is wasted.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vla.canvas import Numerals


@dataclass(frozen=True)
class WordNumerals:
    """V ids <-> (cluster, member), base ceil(sqrt(V))."""

    order: tuple[int, ...]
    """The id at each place; place = cluster * base + member. ValueError unless a permutation of 0..V-1."""

    def __post_init__(self) -> None:
        if not self.order or sorted(self.order) != list(range(len(self.order))):
            raise ValueError(f"expected a permutation of the ids 0..V-1, V >= 1, got {self.order[:10]}...; fit it anew")

    @classmethod
    def fit(cls, vectors_VF: np.ndarray) -> "WordNumerals":
        """Cluster by halving along the principal axis, again and again. `vectors_VF`: float (V, F), one row an id.

        Deterministic; equal vectors keep the order of their ids. ValueError for another shape, or NaN.
        """
        vectors = np.asarray(vectors_VF, dtype=np.float64)
        if vectors.ndim != 2 or not vectors.size or not np.isfinite(vectors).all():
            raise ValueError(f"expected finite word vectors of shape (V, F), got {vectors.shape} or NaN")
        base = math.isqrt(len(vectors) - 1) + 1
        return cls(tuple(int(i) for i in _arrange(vectors, np.arange(len(vectors)), base)))

    @property
    def vocabulary(self) -> int:
        """V."""
        return len(self.order)

    @cached_property
    def numerals(self) -> Numerals:
        base = math.isqrt(self.vocabulary - 1) + 1
        return Numerals((-(-self.vocabulary // base), base))

    @property
    def base(self) -> int:
        return self.numerals.base

    @cached_property
    def _id_V(self) -> Tensor:
        return torch.tensor(self.order)

    @cached_property
    def _place_V(self) -> Tensor:
        return self._id_V.argsort()

    def allowed_DV(self) -> Tensor:
        """bool (2, base): clusters and members that exist."""
        return self.numerals.allowed_DV()

    def encode(self, ids: Tensor) -> Tensor:
        """int64 (...), 0..V-1 -> int64 (..., 2). ValueError for an id outside."""
        if ids.numel() and (int(ids.min()) < 0 or int(ids.max()) >= self.vocabulary):
            raise ValueError(
                f"expected ids in 0..{self.vocabulary - 1}, got {int(ids.min())}..{int(ids.max())}; "
                "these numerals were fitted for another vocabulary"
            )
        return self.numerals.to_digits(self._place_V.to(ids.device)[ids])

    def decode(self, digits: Tensor) -> Tensor:
        """int64 (..., 2) -> int64 (...). Total: a pair beyond the last word means the last word."""
        place = self.numerals.to_index(digits).clamp(max=self.vocabulary - 1)
        return self._id_V.to(digits.device)[place]

    @cached_property
    def tables(self) -> tuple[Tensor, Tensor]:
        """int64 (V, 2), the digits of every id; and (base, base), the id of every pair of digits."""
        every = torch.arange(self.base)
        pairs = torch.stack(torch.meshgrid(every, every, indexing="ij"), dim=-1)
        return self.encode(torch.arange(self.vocabulary)), self.decode(pairs)

    def to_dict(self) -> dict[str, Any]:
        return {"order": list(self.order)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "WordNumerals":
        return cls(tuple(data["order"]))


def neighbour_counts(texts: Iterable[Sequence[int]], vocabulary: int) -> np.ndarray:
    """float (V, 2 V): how often each id follows, and is followed by, each other one. Words of like use are near.

    In square roots: a few frequent neighbours should not decide alone (Hellinger; Lebret and Collobert 2014).
    """
    counts = np.zeros((2, vocabulary, vocabulary), dtype=np.float64)
    for ids in texts:
        before, after = np.asarray(ids[:-1], dtype=np.int64), np.asarray(ids[1:], dtype=np.int64)
        np.add.at(counts[0], (after, before), 1)
        np.add.at(counts[1], (before, after), 1)
    return np.sqrt(np.concatenate(counts, axis=1))


def _arrange(vectors_VF: np.ndarray, ids: np.ndarray, base: int) -> np.ndarray:
    """Sort `ids` along their principal axis, cut at a whole number of clusters, and go on in both halves."""
    ids = ids[np.argsort(_along_axis(vectors_VF[ids]), kind="stable")]
    clusters = -(-len(ids) // base)
    if clusters <= 1:
        return ids
    cut = clusters // 2 * base
    return np.concatenate([_arrange(vectors_VF, half, base) for half in (ids[:cut], ids[cut:])])


def _along_axis(x_MF: np.ndarray) -> np.ndarray:
    """(M,): the coordinate of each row along the axis of most variance; the sign of the axis is fixed."""
    x_MF = x_MF - x_MF.mean(axis=0)
    if len(x_MF) < x_MF.shape[1]:
        axis = np.linalg.svd(x_MF, full_matrices=False)[2][0]
    else:
        axis = np.linalg.eigh(x_MF.T @ x_MF)[1][:, -1]
    return x_MF @ axis * np.sign(axis[np.abs(axis).argmax()])
