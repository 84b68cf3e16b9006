# SPDX-License-Identifier: Apache-2.0
"""Texts of unknown length: corruption can be undone by the true answers, and rewriting does what it says."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vla import randomness
from vla.canvas import Numerals
from vla.diffusion.lengths import START, Vocabulary, blank, corrupt_text, masks_for, rewrite

V, POSITIONS = 30, 12
NUMERALS = Numerals((6, 6))
DIGITS_OF = NUMERALS.to_digits(torch.arange(V + 1))


def texts(lengths, seed=0):
    ids = torch.zeros(len(lengths), POSITIONS, dtype=torch.long)
    g = torch.Generator().manual_seed(seed)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.randint(1, V, (length,), generator=g)
    return ids


def read(text):
    rows = []
    for known, digits, there in zip(
        text.state.known_BNS[..., 0], text.state.digits_BNSD[:, :, 0], text.there_BN, strict=True
    ):
        rows.append(
            [int(NUMERALS.to_index(d)) if k else None for k, d, t in zip(known, digits, there, strict=True) if t]
        )
    return rows


@given(words=st.integers(0, 12), masks=st.integers(1, 12))
def test_masks_stand_for_all_the_words(words, masks):
    counts = masks_for(words, masks)
    assert len(counts) == masks and sum(counts) == words
    assert max(counts) - min(counts) <= 1 or words <= masks


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(0, POSITIONS), min_size=1, max_size=4), seed=st.integers(0, 9999))
def test_true_answers_lead_back_to_the_text(lengths, seed):
    """Answer every mask with its target, again and again with those of an even split: the clean text comes out."""
    ids = texts(lengths, seed)
    corrupted = corrupt_text(ids, randomness.fold(seed, torch.arange(len(ids))), DIGITS_OF, V, POSITIONS)
    there = corrupted.there_BN
    assert there.sum(1).max() <= POSITIONS
    targets = NUMERALS.to_index(corrupted.digits_BNSD[:, :, 0])
    for row in range(len(there)):
        clean = [int(i) for i in ids[row // 2] if i]
        rebuilt, expands = [], 0
        for n in range(POSITIONS):
            if not there[row, n]:
                assert not corrupted.asked_BNSD[row, n].any()
                continue
            if corrupted.state.known_BNS[row, n, 0]:  # shown: a true word, and nothing is asked
                assert not corrupted.asked_BNSD[row, n].any()
                rebuilt.append(int(NUMERALS.to_index(corrupted.state.digits_BNSD[row, n, 0])))
            else:
                assert corrupted.asked_BNSD[row, n].all()
                token = int(targets[row, n])
                expands += token == V
                rebuilt += [token] if token not in (0, V) else []
        if not expands:
            assert rebuilt == clean
        else:
            assert len(rebuilt) < len(clean)
        if row % 2 == 0:  # the first copy masks everything
            assert not corrupted.state.known_BNS[row].any()


def test_an_empty_plan_is_asked_for_and_answered_with_nothing():
    ids = texts([0, 0, 0, 0])
    corrupted = corrupt_text(ids, randomness.fold(1, torch.arange(4)), DIGITS_OF, V, POSITIONS)
    assert corrupted.there_BN.any(1).all()
    answers = NUMERALS.to_index(corrupted.digits_BNSD[:, :, 0])[corrupted.asked_BNSD[:, :, 0, 0]]
    assert (answers == 0).all()


def test_rewriting_drops_doubles_and_writes_in_one_go():
    text = blank(2, POSITIONS, 2)
    assert text.there_BN.sum(1).tolist() == [START] * 2
    ids = torch.zeros(2, POSITIONS, dtype=torch.long)
    ids[0, :4] = torch.tensor([5, V, 0, 7])
    ids[1, :4] = torch.tensor([0, 0, 0, 0])
    decided = torch.ones(2, POSITIONS, dtype=torch.bool)
    after = rewrite(text, ids, decided, DIGITS_OF, V)
    assert read(after) == [[5, None, None, 7], []]
    decided = torch.zeros(2, POSITIONS, dtype=torch.bool)
    decided[0, 2] = True
    ids = torch.full((2, POSITIONS), 9)
    assert read(rewrite(after, ids, decided, DIGITS_OF, V)) == [[5, None, 9, 7], []]
    # what is written already is never overwritten
    assert read(rewrite(after, ids, torch.ones(2, POSITIONS, dtype=torch.bool), DIGITS_OF, V)) == [[5, 9, 9, 7], []]


def test_a_canvas_that_is_full_does_not_grow():
    text = blank(1, 5, 2)
    every = torch.full((1, 5), V)
    for _ in range(4):
        text = rewrite(text, every, torch.ones(1, 5, dtype=torch.bool), DIGITS_OF, V)
    assert text.there_BN.sum() == 5


def test_a_text_that_was_written_is_read_as_one_that_was_given():
    """Words first, nothing behind them, masks that were never decided left out."""
    text = blank(1, POSITIONS, 2)
    ids = torch.zeros(1, POSITIONS, dtype=torch.long)
    ids[0, :4] = torch.tensor([5, V, 3, 7])
    decided = torch.arange(POSITIONS)[None] != 2
    text = rewrite(text, ids, decided, DIGITS_OF, V)
    assert read(text) == [[5, None, None, None, 7]]
    pairs = torch.stack(torch.meshgrid(torch.arange(6), torch.arange(6), indexing="ij"), dim=-1)
    given_ = Vocabulary(DIGITS_OF, NUMERALS.to_index(pairs)).tokens(torch.tensor([[5, 7] + [0] * (POSITIONS - 2)]))
    found = text.tokens()
    assert torch.equal(found.there_BN, given_.there_BN)
    for a, b in zip(vars(found.state).values(), vars(given_.state).values(), strict=True):
        assert torch.equal(a[found.there_BN], b[given_.there_BN])


def test_corruption_of_texts_is_a_function_of_the_key_alone():
    ids, keys, order = texts([3, 0, 12, 7], 5), randomness.fold(3, torch.arange(4)), torch.tensor([2, 0, 3, 1])
    a, b = (corrupt_text(ids[o], keys[o], DIGITS_OF, V, POSITIONS) for o in (torch.arange(4), order))
    rows = (2 * order[:, None] + torch.arange(2)).flatten()
    for x, y in zip(
        (*vars(a.state).values(), a.asked_BNSD, a.there_BN),
        (*vars(b.state).values(), b.asked_BNSD, b.there_BN),
        strict=True,
    ):
        assert torch.equal(x[rows], y)
    with pytest.raises(ValueError, match="a text of 12 words does not fit into 11 positions"):
        corrupt_text(ids, keys, DIGITS_OF, V, 11)
