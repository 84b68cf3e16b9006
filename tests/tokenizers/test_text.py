# SPDX-License-Identifier: Apache-2.0
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla.tokenizers import TextTokenizer

SENTENCES = [
    "reach the red block",
    "push the blue block to the left",
    "stack the green block on the red block",
]


def test_round_trip_and_padding():
    tokenizer = TextTokenizer.train(SENTENCES)
    ids = tokenizer.encode(SENTENCES)
    assert ids.shape == (3, tokenizer.length) and ids.max() < tokenizer.vocabulary
    assert [tokenizer.decode(row) for row in ids] == SENTENCES
    again = TextTokenizer.from_json(tokenizer.to_json(), tokenizer.length)
    assert (again.encode(SENTENCES) == ids).all()


@given(st.text(min_size=1, max_size=4).filter(lambda s: s.strip()))
@settings(max_examples=50, deadline=None)
def test_every_string_encodes_or_is_refused_with_the_reason(text):
    tokenizer = TextTokenizer.train(SENTENCES, length=32)
    assert (tokenizer.encode([text]) != 0).any()


def test_empty_dataset_and_empty_or_long_instructions_are_refused():
    with pytest.raises(ValueError, match="no language"):
        TextTokenizer.train([""])
    tokenizer = TextTokenizer.train(SENTENCES)
    with pytest.raises(ValueError, match="empty instruction"):
        tokenizer.encode(["  "])
    with pytest.raises(ValueError, match="shorten"):
        tokenizer.encode(["reach the red block " * 20])
