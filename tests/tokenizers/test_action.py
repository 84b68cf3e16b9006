# SPDX-License-Identifier: Apache-2.0
import functools
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import vla
from vla.tokenizers import BinTokenizer, StateScaler, TextTokenizer, Tokenizers, WordNumerals, neighbour_counts
from vla.tokenizers.action import windows
from vla.tokenizers.actions import action_tokenizer_from_dict, build_action_tokenizer

KINDS = ("bins", "dct", "rvq")
HORIZON = 8


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
        (50 + 1e-9 * np.arange(10).reshape(-1, 1), "'x' is constant"),  # more than float32 can tell
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


def test_a_dimension_that_hardly_ever_moves_keeps_a_range_that_float32_can_divide():
    rare = np.full((5000, 1), 50.0)
    rare[:5, 0], rare[5:10, 0] = 49.0, 51.0
    tokenizer = BinTokenizer.fit(rare, ["x"])
    values = tokenizer.decode(tokenizer.encode(torch.tensor(rare, dtype=torch.float32)))
    assert bool(((values - 50).abs() < 1e-3).all()) and tokenizer.clipped == 10


# --- what all kinds have in common -----------------------------------------------------------------------------------
def smooth_episodes(episodes=12, length=40):
    """Slow motions of three dimensions and a gripper that closes once. (actions, from, to, names)."""
    rng, t = np.random.default_rng(3), np.arange(length) / length
    rows = []
    for _ in range(episodes):
        waves = [sum(rng.normal() * np.sin(6.28 * k * t + rng.uniform(0, 6.28)) / k for k in (1, 2)) for _ in range(3)]
        rows.append(np.stack([*waves, np.where(t > rng.uniform(0.2, 0.8), 1.0, -1.0)], axis=1))
    end = np.cumsum([length] * episodes)
    return np.concatenate(rows).astype(np.float32), end - length, end, ["x", "y", "z", "gripper"]


@functools.cache
def built(kind):
    return build_action_tokenizer(kind, *smooth_episodes(), HORIZON)


def chunks():
    return torch.from_numpy(windows(*smooth_episodes()[:3], HORIZON))


@pytest.mark.parametrize("kind", KINDS)
@given(seed=st.integers(0, 2**31), wild=st.booleans())
@settings(max_examples=15, deadline=None)
def test_every_kind_is_total_and_bounded_within_the_mask_and_outside_of_it(kind, seed, wild):
    tokenizer, generator = built(kind), torch.Generator().manual_seed(seed)
    positions, sub_tokens = tokenizer.grid(HORIZON)
    lowest, highest = (-3, 2 * tokenizer.base) if wild else (0, tokenizer.base)
    digits = torch.randint(lowest, highest, (20, positions, sub_tokens, tokenizer.digits), generator=generator)
    if not wild:
        allowed = tokenizer.allowed_ADV().expand(20, positions, -1, -1, -1)
        digits = digits * allowed.gather(-1, digits.unsqueeze(-1)).squeeze(-1)
    offset = torch.rand(20, positions, sub_tokens, generator=generator) * 40 - 20
    low, high = torch.tensor(tokenizer.low), torch.tensor(tokenizer.high)
    prefixes = [tokenizer.decode_prefix(digits, levels) for levels in range(1, tokenizer.digits + 1)]
    for values in (tokenizer.decode(digits), tokenizer.decode(digits, offset), *prefixes):
        assert values.shape == (20, HORIZON, 4) and values.dtype == torch.float32
        assert bool(((values >= low) & (values <= high)).all())
        assert set(values[..., 3].unique().tolist()) <= {-1.0, 1.0}
    assert torch.equal(prefixes[-1], tokenizer.decode(digits))


@pytest.mark.parametrize("kind", KINDS)
def test_every_digit_brings_the_chunk_closer_and_stays_within_the_mask(kind):
    tokenizer, actions = built(kind), chunks()
    digits = tokenizer.encode(actions)
    positions, sub_tokens = tokenizer.grid(HORIZON)
    assert digits.shape == (len(actions), positions, sub_tokens, tokenizer.digits) and digits.dtype == torch.int64
    assert tokenizer.chunk_steps(positions) == HORIZON
    allowed = tokenizer.allowed_ADV()
    assert allowed.shape == (sub_tokens, tokenizer.digits, tokenizer.base)
    assert bool(allowed.expand(len(actions), positions, -1, -1, -1).gather(-1, digits.unsqueeze(-1)).all())
    errors = [(tokenizer.decode_prefix(digits, n) - actions).square().mean() for n in range(1, tokenizer.digits + 1)]
    assert all(fine < coarse for coarse, fine in pairwise(errors))


@pytest.mark.parametrize("kind", KINDS)
def test_a_chunk_has_the_same_digits_and_values_whatever_the_batch(kind):
    tokenizer, actions = built(kind), chunks()[:50]
    digits = torch.cat([tokenizer.encode(row[None]) for row in actions])
    assert torch.equal(digits, tokenizer.encode(actions))
    assert torch.equal(torch.cat([tokenizer.decode(row[None]) for row in digits]), tokenizer.decode(digits))


@pytest.mark.parametrize("kind", KINDS)
def test_saved_with_the_checkpoint_and_loaded_as_its_own_kind(kind, tmp_path):
    tokenizer, actions = built(kind), chunks()[:20]
    state = StateScaler.fit(np.arange(6.0).reshape(3, 2), ["a", "b"])
    text = TextTokenizer.train(["push"])
    words = WordNumerals.fit(neighbour_counts([text.ids("push")], text.vocabulary + 1))
    Tokenizers(tokenizer, state, text, words).save(tmp_path)
    again = Tokenizers.load(tmp_path).action
    assert type(again) is type(tokenizer) and again.kind == kind
    assert torch.equal(again.encode(actions), tokenizer.encode(actions))
    assert torch.equal(again.decode(tokenizer.encode(actions)), tokenizer.decode(tokenizer.encode(actions)))


def test_old_checkpoints_are_read_and_unknown_kinds_refused():
    shipped = Path(vla.__file__).parent / "checkpoints" / "tabletop_nano" / "tokenizers.json"
    assert isinstance(action_tokenizer_from_dict(json.loads(shipped.read_text())["action"]), BinTokenizer)
    with pytest.raises(ValueError, match="kind bins, dct, rvq, got 'wavelets'"):
        action_tokenizer_from_dict({"kind": "wavelets"})
    with pytest.raises(ValueError, match="got 'wavelets'"):
        build_action_tokenizer("wavelets", *smooth_episodes(), HORIZON)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_names_bad_data_and_counts_what_it_clips(kind):
    actions, begin, end, names = smooth_episodes()
    for bad, message in ((np.nan, "'y' is not finite at frame 7"), (0.0, "'y' is constant")):
        broken = actions.copy()
        broken[7 if np.isnan(bad) else slice(None), 1] = bad
        with pytest.raises(ValueError, match=message):
            build_action_tokenizer(kind, broken, begin, end, names, HORIZON)
    tokenizer = build_action_tokenizer(kind, actions, begin, end, names, HORIZON)
    assert tokenizer.clipped == 0
    with pytest.raises(ValueError, match="expected 4 action dimensions"):
        tokenizer.encode(torch.zeros(2, HORIZON, 3))
    with pytest.raises(ValueError, match="NaN"):
        tokenizer.encode(torch.full((2, HORIZON, 4), float("nan")))
    with pytest.raises(ValueError, match=r"levels in 1\.\."):
        tokenizer.decode_prefix(tokenizer.encode(chunks()[:1]), 0)
    tokenizer.clipped = 0
    far = chunks()[:1].clone()
    far[0, 0, 0] = 1e6
    tokenizer.encode(far)
    assert tokenizer.clipped >= 1


def test_windows_repeat_the_last_action_and_stay_within_their_episode():
    values = np.arange(5)[:, None]
    assert windows(values, [0, 3], [3, 5], 3)[..., 0].tolist() == [
        [0, 1, 2],
        [1, 2, 2],
        [2, 2, 2],
        [3, 4, 4],
        [4, 4, 4],
    ]
    assert len(windows(values, [0, 3], [3, 5], 3, limit=2)) == 2
    with pytest.raises(ValueError, match="within the 5 frames"):
        windows(values, [0], [6], 3)


def test_stop_is_a_sub_token_more_that_actions_do_not_show():
    rng = np.random.default_rng(0)
    plain = BinTokenizer.fit(rng.uniform(-1, 1, (100, 3)), ["x", "y", "z"])
    stops = BinTokenizer.from_dict(plain.to_dict() | {"stops": True})
    actions = torch.from_numpy(rng.uniform(-1, 1, (2, 8, 3)).astype(np.float32))
    ended = torch.arange(8).expand(2, -1) >= torch.tensor([[5], [8]])
    digits = stops.encode(actions, ended)
    assert stops.grid(8) == (8, 4) and digits.shape == (2, 8, 4, 2)
    assert torch.equal(stops.ended(digits), ended) and not stops.ended(stops.encode(actions)).any()
    assert torch.equal(stops.decode(digits), plain.decode(plain.encode(actions)))
    assert torch.equal(stops.decode_prefix(digits, 1), plain.decode_prefix(plain.encode(actions), 1))
    allowed = stops.allowed_ADV()
    assert allowed.shape == (4, 2, 16) and allowed[3].sum(-1).tolist() == [2, 1]
