# SPDX-License-Identifier: Apache-2.0
import functools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vla.tokenizers.action import windows
from vla.tokenizers.dct import DctTokenizer, dct_basis

HORIZON = 8


def episodes():
    """Two slow dimensions and a gripper, 10 episodes of 50 steps."""
    rng, t = np.random.default_rng(0), np.arange(50) / 50
    rows = []
    for _ in range(10):
        x, y = (rng.uniform(1, 3) * np.sin(6.28 * (rng.uniform(0.5, 2) * t + rng.uniform())) for _ in range(2))
        rows.append(np.stack([x, y, np.where(t > rng.uniform(0.2, 0.8), 0.04, 0.0)], axis=1))
    end = np.arange(50, 501, 50)
    return np.concatenate(rows).astype(np.float32), end - 50, end, ["x", "y", "gripper"]


@functools.cache
def fitted(bands=None, digits=2):
    return DctTokenizer.fit(*episodes(), HORIZON, digits=digits, bands=bands)


def chunks():
    return torch.from_numpy(windows(*episodes()[:3], HORIZON))


def test_the_basis_is_the_orthonormal_dct():
    scipy_fft = pytest.importorskip("scipy.fft")
    values = np.random.default_rng(0).normal(size=(HORIZON, 3))
    np.testing.assert_allclose(dct_basis(HORIZON) @ values, scipy_fft.dct(values, axis=0, norm="ortho"), atol=1e-12)
    np.testing.assert_allclose(dct_basis(50) @ dct_basis(50).T, np.eye(50), atol=1e-12)


@given(st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_digits_come_back_when_no_action_meets_its_limit(seed):
    """Encoding what was decoded changes nothing, for chunks in the middle half of the range."""
    pick = torch.randint(len(chunks()), (20,), generator=torch.Generator().manual_seed(seed))
    tokenizer, actions = fitted(), chunks()[pick]
    actions[..., :2] *= 0.5
    digits = tokenizer.encode(actions)
    assert torch.equal(tokenizer.encode(tokenizer.decode(digits)), digits)


def test_low_bands_carry_slow_motion():
    errors = [(fitted(k).decode(fitted(k).encode(chunks())) - chunks())[..., :2].abs().mean() for k in (1, 2, 4, 8)]
    assert errors[0] > 2 * errors[1] > 4 * errors[2] and errors[3] < errors[2]
    assert errors[2] < 0.02 * 6  # of a range of about six
    assert fitted(4).grid(HORIZON) == (4, 3) and fitted(4).chunk_steps(4) == HORIZON


def test_binary_commands_are_exact_and_hold_when_bands_run_out():
    full, half = (fitted(k).decode(fitted(k).encode(chunks()))[..., 2] for k in (8, 4))
    true = chunks()[..., 2]
    assert torch.equal(full, true) and torch.equal(half[:, :4], true[:, :4])
    assert torch.equal(half[:, 4:], true[:, 3:4].expand(-1, 4))
    assert fitted().allowed_ADV()[2].sum(-1).tolist() == [2, 1]


def test_fine_offset_moves_a_coefficient_within_its_bin():
    tokenizer, digits = fitted(), fitted().encode(chunks()[60:61])
    offset = torch.zeros(1, HORIZON, 3)
    offset[0, 2, 0] = 0.4
    moved = (tokenizer.decode(digits, offset) - tokenizer.decode(digits))[0]
    width = (tokenizer.band_high[2][0] - tokenizer.band_low[2][0]) / tokenizer.bins
    expected = dct_basis(HORIZON)[2] * 0.4 * width * (tokenizer.high[0] - tokenizer.low[0]) / 2
    np.testing.assert_allclose(moved[:, 0], expected, atol=1e-5)
    assert not moved[:, 1:].any()


def test_a_coefficient_that_never_or_rarely_changes_does_not_break():
    """Piecewise constant actions: most high bands are 0 in more than 98 % of the chunks, but not in all."""
    actions, begin, end, names = episodes()
    actions = np.round(np.repeat(np.arange(10), 50)[:, None] * np.array([1.0, 2.0, 0.0])) + actions * [0, 0, 1]
    actions[105, 0] += 3
    tokenizer = DctTokenizer.fit(actions, begin, end, names, HORIZON)
    spans = np.array(tokenizer.band_high) - np.array(tokenizer.band_low)
    assert spans.min() >= 0.99e-4 and spans[-1, 0] > 0.1 > spans[-1, 1]
    values = tokenizer.decode(tokenizer.encode(torch.from_numpy(windows(actions, begin, end, HORIZON))))
    inside = (actions >= tokenizer.low) & (actions <= tokenizer.high)
    assert bool(torch.isfinite(values).all()) and inside.mean() > 0.9
    np.testing.assert_allclose(values[250], windows(actions, begin, end, HORIZON)[250], atol=0.1)


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r"bands in 1\.\.8"):
        DctTokenizer.fit(*episodes(), HORIZON, bands=9)
    with pytest.raises(ValueError, match="chunks of 8 steps"):
        fitted().encode(torch.zeros(1, 7, 3))
    with pytest.raises(ValueError, match="expected 8 positions"):
        fitted().decode(torch.zeros(1, 7, 3, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="kind 'dct', got 'bins'"):
        DctTokenizer.from_dict({"kind": "bins"})
