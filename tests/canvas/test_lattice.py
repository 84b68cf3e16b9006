# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vla.canvas import Layout, Provenance, all_masked, block_mask, remask, unmask, unmasked

BASE = 16


@st.composite
def canvases(draw):
    """(tokens, known, levels to mask, provenance) of one canvas with D digits."""
    depth = draw(st.integers(1, 4))
    shape = (draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(1, 3)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def integers(high, *extra):
        return torch.randint(0, high, (*shape, *extra), generator=generator)

    return integers(BASE, depth), integers(depth + 1), integers(depth + 2), integers(3)


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(vars(a).values(), vars(b).values(), strict=True))


@given(canvases())
@settings(max_examples=60, deadline=None)
def test_what_is_masked_and_filled_again_with_the_same_is_what_it_was(canvas):
    """A token that is fully known is FREE (or COMMITTED) and has no noise, whatever became of it on the way."""
    tokens, known, levels, provenance = canvas
    noise = torch.ones_like(known)
    state = unmasked(tokens, known, provenance)
    masked = remask(state, levels).with_noise(noise)
    back = unmask(masked, tokens, known)
    assert torch.equal(back.digits_BNSD, state.digits_BNSD) and torch.equal(back.known_BNS, state.known_BNS)
    depth = tokens.shape[-1]
    full = unmask(masked, tokens, torch.full_like(known, depth))
    given_by_caller = provenance == Provenance.COMMITTED
    assert same(full, unmasked(tokens, provenance_BNS=int(Provenance.COMMITTED) * given_by_caller))
    assert torch.equal(masked.noise_BNS == 1, masked.known_BNS < depth)


@given(canvases())
@settings(max_examples=60, deadline=None)
def test_a_state_never_shows_a_digit_it_should_not(canvas):
    tokens, known, levels, provenance = canvas
    state = unmasked(tokens, known, provenance)
    masked = remask(state, levels)
    filled = unmask(masked, tokens, known)
    for shown in (state, masked, filled, all_masked(tokens.shape[:3], tokens.shape[3])):
        assert not shown.digits_BNSD[~shown.visible_BNSD()].any()
    assert bool((masked.known_BNS <= state.known_BNS).all())


@given(canvases())
@settings(max_examples=60, deadline=None)
def test_committed_tokens_are_never_masked_and_known_digits_never_overwritten(canvas):
    tokens, known, levels, provenance = canvas
    state = unmasked(tokens, known, provenance)
    masked = remask(state, levels)
    committed = provenance == Provenance.COMMITTED
    assert torch.equal(masked.known_BNS[committed], known[committed])
    assert bool((masked.provenance_BNS[committed] == Provenance.COMMITTED).all())
    taken = masked.known_BNS < known
    assert bool((masked.provenance_BNS[taken] == Provenance.REMASKED).all())
    other = unmask(state, (tokens + 1) % BASE, known + 1)
    visible = state.visible_BNSD()
    assert torch.equal(other.digits_BNSD[visible], state.digits_BNSD[visible])


def test_more_digits_than_there_are_are_refused():
    with pytest.raises(ValueError, match=r"between 0 and 2 digits, got 3\.\.3"):
        unmasked(torch.zeros(1, 1, 1, 2, dtype=torch.long), torch.full((1, 1, 1), 3))


def test_a_segment_reads_itself_and_what_stands_before_it():
    assert block_mask([2, 1, 3]).int().tolist() == [[1, 1, 0, 0, 0, 0]] * 2 + [[1, 1, 1, 0, 0, 0]] + [[1] * 6] * 3


@pytest.mark.parametrize("arrangement", ["per_step", "per_dim"])
def test_a_layout_folds_and_unfolds(arrangement):
    layout = Layout(5, 3, arrangement=arrangement)
    x = torch.arange(2 * 5 * 3 * 2).view(2, 5, 3, 2)
    folded = layout.fold(x)
    assert folded.shape[:3] == layout.shape(2) and torch.equal(layout.unfold(folded), x)
    assert torch.equal(folded.flatten(), x.flatten())  # time first, then dimensions
