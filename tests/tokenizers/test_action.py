# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vla.tokenizers import BinTokenizer


def fitted(digits=2, base=16):
    rng = np.random.default_rng(0)
    actions = np.stack([rng.normal(size=5000), rng.uniform(-3, 5, 5000), rng.choice([-1.0, 1.0], 5000)], axis=1)
    return BinTokenizer.fit(actions, ["x", "y", "gripper"], digits, base), actions


@given(st.integers(1, 3), st.sampled_from([2, 4, 16]), st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_total_bounded_and_idempotent(digits, base, seed):
    """Every digit string decodes to a value inside the limits, and encoding that value again changes nothing."""
    tokenizer, _ = fitted(digits, base)
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, base, (50, 3, digits), generator=generator)
    offset = torch.rand(50, 3, generator=generator) * 4 - 2
    for values in (tokenizer.decode(tokens), tokenizer.decode(tokens, offset)):
        assert bool((values >= torch.tensor(tokenizer.low)).all() and (values <= torch.tensor(tokenizer.high)).all())
    once = tokenizer.decode(tokens)
    assert torch.equal(tokenizer.decode(tokenizer.encode(once)), once)


def test_error_falls_with_every_digit_and_stays_below_half_a_bin():
    errors = []
    for digits in (1, 2, 3):
        tokenizer, actions = fitted(digits)
        x = torch.tensor(actions, dtype=torch.float32)
        error = (tokenizer.decode(tokenizer.encode(x)) - x).abs()
        inside = (x >= torch.tensor(tokenizer.low)) & (x <= torch.tensor(tokenizer.high))
        half_bin = (torch.tensor(tokenizer.high) - torch.tensor(tokenizer.low)) / tokenizer.bins / 2
        assert bool((error <= half_bin * 1.001 + 1e-6)[inside].all())
        errors.append(error[:, :2][inside[:, :2]].mean().item())
    assert errors[0] > 4 * errors[1] > 16 * errors[2]


def test_binary_dimension_is_exact_and_its_other_digits_are_forbidden():
    tokenizer, actions = fitted()
    assert tokenizer.binary == [False, False, True]
    assert set(tokenizer.decode(tokenizer.encode(torch.tensor(actions)))[:, 2].tolist()) == {-1.0, 1.0}
    assert tokenizer.allowed_ADV()[2].sum(-1).tolist() == [2, 1]
    assert bool(tokenizer.allowed_ADV()[:2].all())


def test_clipping_is_counted():
    tokenizer, _ = fitted()
    tokenizer.encode(torch.tensor([[100.0, 0.0, 1.0], [0.0, -100.0, -1.0]]))
    assert tokenizer.clipped == 2


def test_limits_are_quantiles_of_all_frames_not_of_episodes():
    """Goal-directed data: an episode covers a narrow range; the mean of per-episode quantiles would be too small."""
    rng = np.random.default_rng(1)
    actions = np.concatenate([rng.normal(centre, 0.05, (50, 1)) for centre in np.linspace(-1, 1, 40)])
    tokenizer = BinTokenizer.fit(actions, ["x"])
    inside = (actions >= tokenizer.low[0]) & (actions <= tokenizer.high[0])
    assert inside.mean() > 0.97


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        (np.full((10, 1), 3.0), "'x' is constant"),
        (np.array([[0.0], [np.nan], [1.0]]), "'x' is not finite at frame 1"),
        (np.zeros((10, 2)), r"shape \(N, 1\)"),
    ],
)
def test_bad_data_is_named(actions, message):
    with pytest.raises(ValueError, match=message):
        BinTokenizer.fit(actions, ["x"])


def test_wrong_dimension_and_nan_are_refused():
    tokenizer, _ = fitted()
    with pytest.raises(ValueError, match="expected 3 action dimensions"):
        tokenizer.encode(torch.zeros(2, 4))
    with pytest.raises(ValueError, match="NaN"):
        tokenizer.encode(torch.full((2, 3), float("nan")))
