# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vla.canvas import Numerals

radices = st.lists(st.integers(1, 16), min_size=1, max_size=4).map(tuple)


@given(radices)
@settings(max_examples=40, deadline=None)
def test_numbers_and_numerals_are_one_to_one_in_order_and_within_the_mask(radices):
    numerals = Numerals(radices)
    index = torch.arange(numerals.count)
    digits = numerals.to_digits(index)
    assert torch.equal(numerals.to_index(digits), index)
    assert digits.tolist() == sorted(digits.tolist())  # most significant first
    assert len(set(map(tuple, digits.tolist()))) == numerals.count
    allowed = numerals.allowed_DV()
    assert allowed.shape == (len(radices), numerals.base) and allowed.sum(-1).tolist() == list(radices)
    assert bool(allowed.expand(len(index), -1, -1).gather(-1, digits.unsqueeze(-1)).all())


@given(radices, st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_every_digit_string_is_a_number(radices, seed):
    numerals = Numerals(radices)
    digits = torch.randint(-2, 20, (50, len(radices)), generator=torch.Generator().manual_seed(seed))
    index = numerals.to_index(digits)
    assert bool(((index >= 0) & (index < numerals.count)).all())
    clamped = torch.minimum(digits.clamp(min=0), torch.tensor(radices) - 1)
    assert torch.equal(numerals.to_digits(index), clamped)


def test_known_values():
    assert Numerals((16, 16)).to_digits(torch.tensor([0, 17, 255])).tolist() == [[0, 0], [1, 1], [15, 15]]
    assert Numerals((8, 5, 5, 5)).to_index(torch.tensor([[1, 0, 0, 2], [9, 9, 9, 9]])).tolist() == [127, 999]


def test_what_has_no_numeral_is_refused():
    with pytest.raises(ValueError, match=r"numbers in 0\.\.255"):
        Numerals((16, 16)).to_digits(torch.tensor([256]))
    for wrong in ((), (4, 0)):
        with pytest.raises(ValueError, match="one radix >= 1"):
            Numerals(wrong)
