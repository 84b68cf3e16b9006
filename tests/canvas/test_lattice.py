# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vla.canvas import Provenance, Segment, attention_mask, climb, descend, hidden, is_complete, revealed

BASE = 16


@st.composite
def canvases(draw):
    """(tokens, known, rungs, provenance) of one canvas with D digits."""
    depth = draw(st.integers(1, 4))
    shape = (draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(1, 3)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def integers(high, *extra):
        return torch.randint(0, high, (*shape, *extra), generator=generator)

    return integers(BASE, depth), integers(depth + 1), integers(depth + 2), integers(3)


def shows_only_what_is_known(state):
    hidden_digits = state.digits_BNSD[~state.visible_BNSD()]
    return bool((hidden_digits == 0).all())


@given(canvases())
@settings(max_examples=60, deadline=None)
def test_climbing_then_descending_with_the_true_tokens_is_the_identity(canvas):
    tokens, known, rungs, provenance = canvas
    state = revealed(tokens, known, provenance)
    back = descend(climb(state, rungs), tokens, known)
    assert torch.equal(back.digits_BNSD, state.digits_BNSD) and torch.equal(back.known_BNS, state.known_BNS)


@given(canvases())
@settings(max_examples=60, deadline=None)
def test_a_state_never_shows_a_digit_it_should_not(canvas):
    tokens, known, rungs, provenance = canvas
    state = revealed(tokens, known, provenance)
    climbed = climb(state, rungs, suspect=True)
    descended = descend(climbed, tokens, known)
    assert all(map(shows_only_what_is_known, (state, climbed, descended, hidden(tokens.shape[:3], tokens.shape[3]))))
    assert bool((climbed.known_BNS <= state.known_BNS).all())


@given(canvases())
@settings(max_examples=60, deadline=None)
def test_committed_tokens_never_climb_and_known_digits_are_never_overwritten(canvas):
    tokens, known, rungs, provenance = canvas
    state = revealed(tokens, known, provenance)
    climbed = climb(state, rungs, suspect=True)
    committed = provenance == Provenance.COMMITTED
    assert torch.equal(climbed.known_BNS[committed], known[committed])
    assert bool((climbed.provenance_BNS[committed] == Provenance.COMMITTED).all())
    taken_back = climbed.known_BNS < known
    assert bool((climbed.provenance_BNS[taken_back] == Provenance.SUSPECT).all())
    other = descend(state, (tokens + 1) % BASE, known + 1)
    visible = state.visible_BNSD()
    assert torch.equal(other.digits_BNSD[visible], state.digits_BNSD[visible])


def test_descending_all_the_way_completes():
    tokens = torch.randint(0, BASE, (2, 3, 4, 2))
    state = descend(hidden((2, 3, 4), 2), tokens, torch.full((2, 3, 4), 2))
    assert is_complete(state) and torch.equal(state.digits_BNSD, tokens)


def test_more_digits_than_there_are_is_refused():
    with pytest.raises(ValueError, match=r"between 0 and 2 digits, got 3\.\.3"):
        revealed(torch.zeros(1, 1, 1, 2, dtype=torch.long), torch.full((1, 1, 1), 3))


def test_prefix_sees_only_itself_and_actions_have_no_path_to_the_image():
    order = [Segment.OBSERVATION, Segment.INSTRUCTION, Segment.PLAN, Segment.FUTURE_IMAGE, Segment.ACTION]
    mask = attention_mask(order)
    assert mask.tolist() == [
        [True, True, False, False, False],
        [True, True, False, False, False],
        [True, True, True, False, False],
        [True, True, True, True, False],
        [True, True, True, True, True],
    ]
    # The transitive closure, too: no chain of layers leads from actions to an earlier segment.
    reach = mask.float()
    for _ in range(5):
        reach = ((reach @ mask.float()) > 0).float()
    assert reach[:4, 4].sum() == 0
