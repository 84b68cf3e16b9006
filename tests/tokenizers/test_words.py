# SPDX-License-Identifier: Apache-2.0
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vla.tokenizers.words import WordNumerals


@given(st.integers(1, 150), st.integers(1, 40), st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_balanced_one_to_one_and_total(words, features, seed):
    numerals = WordNumerals.fit(np.random.default_rng(seed).normal(size=(words, features)))
    assert (numerals.base - 1) ** 2 < words <= numerals.base**2
    ids = torch.arange(words)
    digits = numerals.encode(ids)
    assert torch.equal(numerals.decode(digits), ids)
    assert bool(numerals.allowed_DV().expand(words, -1, -1).gather(-1, digits.unsqueeze(-1)).all())
    sizes = digits[:, 0].bincount()
    assert bool((sizes[:-1] == numerals.base).all())  # all clusters but the last are full
    anything = torch.randint(-1, numerals.base + 2, (100, 2), generator=torch.Generator().manual_seed(seed))
    assert bool(torch.isin(numerals.decode(anything), ids).all())
    again = WordNumerals.from_dict(json.loads(json.dumps(numerals.to_dict())))
    assert again == numerals and torch.equal(again.encode(ids), digits)


def test_words_with_like_vectors_share_a_cluster():
    """16 groups of 16 words, shuffled: almost every cluster is one group."""
    rng = np.random.default_rng(0)
    group = rng.permutation(np.repeat(np.arange(16), 16))
    corners = np.array([[(g >> bit & 1) * (1 + bit) for bit in range(4)] for g in range(16)], dtype=float)
    clusters = WordNumerals.fit(corners[group] + rng.normal(0, 0.05, (256, 4))).encode(torch.arange(256))[:, 0].numpy()
    assert all(len(set(group[clusters == c])) == 1 for c in range(16))


def test_bad_vectors_and_ids_are_refused():
    with pytest.raises(ValueError, match=r"shape \(V, F\)"):
        WordNumerals.fit(np.full((3, 2), np.nan))
    with pytest.raises(ValueError, match=r"ids in 0\.\.8"):
        WordNumerals.fit(np.random.default_rng(0).normal(size=(9, 2))).encode(torch.tensor([9]))
    with pytest.raises(ValueError, match="permutation"):
        WordNumerals((0, 0, 1))
