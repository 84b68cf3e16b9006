# SPDX-License-Identifier: Apache-2.0
"""Limits of actions: exact on small cases, kept by whatever the sampler keeps, judged on the values themselves."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vla.diffusion.domain import Domain, allowed, choose, narrow, propagate, settle
from vla.diffusion.limits import Limits, TokenLimits
from vla.tokenizers import BinTokenizer

NAMES = ["x", "y", "grip"]


def tokenizer(generator, dims=3, base=4, digits=2, binary=True):
    """Ranges that are not round; the last dimension has two values, if `binary`."""
    low = generator.normal(size=dims) * 10.0 ** generator.integers(-2, 3)
    high = low + generator.uniform(0.1, 3, size=dims)
    two = [binary and a == dims - 1 for a in range(dims)]
    names = [f"d{a}" for a in range(dims)]
    return BinTokenizer(low.tolist(), high.tolist(), two, names, digits, base)


def table(bins: BinTokenizer) -> torch.Tensor:
    """float32 (A, V): what every token decodes to."""
    digits_VD = bins.numerals.to_digits(torch.arange(bins.bins))
    return bins.decode(digits_VD.unsqueeze(1).expand(-1, bins.dims, -1)).T


def tokens_of(limits: Limits, bins: BinTokenizer) -> TokenLimits:
    return TokenLimits(limits, table(bins), bins.allowed_ADV())


def keeps(actions_HA, limits: Limits, previous=None, start=None, done=0, dtype=np.float64) -> bool:
    """Are the steps from `done` on within the limits? Counted in `dtype`, one step after the other."""
    before = None if previous is None else np.asarray(previous, dtype)
    at = None if start is None else np.asarray(start, dtype)
    scale = np.nan_to_num(np.asarray(limits.scale)).astype(dtype)
    for h, action in enumerate(np.asarray(actions_HA, dtype)):
        at = None if at is None else at + scale * action
        if h >= done:
            fine = (action >= limits.low) & (action <= limits.high)
            if before is not None:
                fine &= ~(np.abs(action - before) > limits.change)
            if at is not None:
                fine &= (at >= limits.reach_low) & (at <= limits.reach_high)
            if not fine.all():
                return False
        before = action
    return True


def around(generator, bins: BinTokenizer, horizon: int):
    """A chunk of tokens (H, A), and limits, a pose before it and a start that it keeps, some of them just so."""
    tokens_HA = generator.integers(0, bins.bins, (horizon, bins.dims))
    tokens_HA[:, bins.binary] = generator.integers(0, 2, (horizon, sum(bins.binary))) * bins.base ** (bins.digits - 1)
    if generator.random() < 0.7:  # slow chunks, so that the change is small
        slow = (tokens_HA[0] + generator.integers(-2, 3, tokens_HA.shape).cumsum(0)).clip(0, bins.bins - 1)
        tokens_HA = np.where(bins.binary, tokens_HA, slow)
    values_AV = table(bins).double().numpy()
    x_HA = np.take_along_axis(values_AV, tokens_HA.T, 1).T
    low, high, change, reach_low, reach_high, scale = ([None] * bins.dims for _ in range(6))
    one = values_AV[:, 1] - values_AV[:, 0]
    previous = x_HA[0] + np.where(bins.binary, 0, generator.uniform(-2, 2, bins.dims) * one)
    start = generator.normal(size=bins.dims)
    for a in range(bins.dims):
        if generator.random() < 0.6:
            low[a] = x_HA[:, a].min() - generator.choice([0, 1e-9, generator.exponential(one[a])])
        if generator.random() < 0.6:
            high[a] = x_HA[:, a].max() + generator.choice([0, 1e-9, generator.exponential(one[a])])
        kind = generator.choice(["", "change", "reach"]) if not bins.binary[a] else ""
        if kind == "change":
            jump = max(np.abs(np.diff(tokens_HA[:, a])).max(initial=0), 1)
            span = (values_AV[a, jump:] - values_AV[a, : bins.bins - jump]).max()  # of the widest such jump
            step = max(span, abs(x_HA[0, a] - previous[a]), abs(x_HA[0, a] - np.float32(previous[a])))
            change[a] = np.nextafter(np.float32(step), np.float32(np.inf)) + generator.choice([0, one[a]])
        if kind == "reach":
            scale[a] = generator.choice([-1, 1]) * 10.0 ** generator.uniform(-2, 1)
            at = start[a] + scale[a] * x_HA[:, a].cumsum()
            more = 1e-4 * abs(scale[a]) * np.abs(values_AV[a]).max() + 1e-4 * np.abs(at).max()
            reach_low[a], reach_high[a] = at.min() - more, at.max() + more * generator.choice([1, 100])
    limits = Limits(bins.names, low, high, change, reach_low, reach_high, scale)
    return tokens_HA, limits, previous.astype(np.float32), start


# --- propagation --------------------------------------------------------------------------------------------------


def all_chunks(domain: Domain, bins: int):
    """For each dimension of row 0, the set of full chunks that keep the (unpropagated) domain, by trying them all."""
    ends = torch.stack([domain.tokens_2BHA, domain.sums_2BHA])[:, :, 0]
    horizon, dims = ends.shape[2:]
    for a in range(dims):
        (low, high), (least, most) = ends[..., a].tolist()
        change = domain.rules.change_BHA[0, :, a].tolist()
        yield [
            x
            for x in itertools.product(range(bins), repeat=horizon)
            if all(-low[h] <= x[h] <= high[h] and -least[h] <= sum(x[: h + 1]) <= most[h] for h in range(horizon))
            and all(abs(x[h] - x[h - 1]) <= change[h] for h in range(1, horizon))
        ]


@given(st.integers(0, 2**31), st.integers(1, 5))
@settings(max_examples=150, deadline=None)
def test_propagation_leaves_exactly_what_is_part_of_a_chunk(seed, horizon):
    generator = np.random.default_rng(seed)
    bins = tokenizer(generator, 1, 4, 1, binary=False)
    kind = generator.choice(["change", "reach"])
    change = {0: 1.01 * generator.integers(1, 4) * (bins.high[0] - bins.low[0]) / 4} if kind == "change" else None
    reach = {0: 1e9} if kind == "reach" else None
    limits = Limits(bins.names, change=change, reach_high=reach, scale=[1.0])
    domain = tokens_of(limits, bins).begin(1, horizon, start=np.zeros(1))
    corners = generator.integers(0, 4, (2, 1, horizon, 1))
    corners = np.sort(np.where(generator.random((1, 1, horizon, 1)) < 0.4, [[[[0]]], [[[3]]]], corners), 0)
    tokens_2BHA = torch.tensor(corners) * torch.tensor([-1, 1]).view(2, 1, 1, 1)
    sums_2BHA = domain.sums_2BHA
    if kind == "reach":
        sums = np.sort(generator.integers(0, 3 * horizon + 1, (2, 1, horizon, 1)), 0)
        sums_2BHA = torch.tensor(sums) * torch.tensor([-1, 1]).view(2, 1, 1, 1)
    domain = Domain(tokens_2BHA, sums_2BHA, domain.rules)
    (chunks,) = all_chunks(domain, 4)
    if not chunks:
        with pytest.raises(ValueError, match=r"step \d of 'd0' \(row 0\): no action keeps the limits"):
            propagate(domain)
        return
    tight = propagate(domain)
    columns = np.array(chunks)
    assert (tight.tokens_2BHA[1, 0, :, 0].numpy() == columns.max(0)).all()
    assert (-tight.tokens_2BHA[0, 0, :, 0].numpy() == columns.min(0)).all()
    for h in range(horizon):  # no holes: the interval is the set
        left = range(-int(tight.tokens_2BHA[0, 0, h, 0]), int(tight.tokens_2BHA[1, 0, h, 0]) + 1)
        assert set(columns[:, h].tolist()) == set(left)
    if kind == "reach":
        assert (tight.sums_2BHA[1, 0, :, 0].numpy() == columns.cumsum(1).max(0)).all()
    again = propagate(tight)
    assert torch.equal(again.tokens_2BHA, tight.tokens_2BHA) and torch.equal(again.sums_2BHA, tight.sums_2BHA)


@given(st.integers(0, 2**31))
@settings(max_examples=50, deadline=None)
def test_a_token_is_inside_when_its_value_is(seed):
    """Boxes: exactly. The change: the largest number of bins that never oversteps it."""
    generator = np.random.default_rng(seed)
    bins = tokenizer(generator, 3, 16, 2, binary=False)
    values_AV = table(bins)
    edge = values_AV[torch.arange(3), torch.tensor(generator.integers(1, 255, 3))].double().numpy()
    to = generator.choice([-np.inf, np.inf])
    just, near = np.nextafter(edge, to), np.nextafter(edge.astype(np.float32), np.float32(to))
    low, _, high = (float(generator.choice(x)) for x in zip(edge, just, near, strict=True))
    change = float(generator.uniform(1.1, 300) * (bins.high[1] - bins.low[1]) / 256)
    tokens = tokens_of(Limits(bins.names, low={0: low}, change={1: change}, high={2: high}), bins)
    assert (tokens.inside_AV[0] == (values_AV[0].double().numpy() >= low)).all() and tokens.inside_AV[1].all()
    assert (tokens.inside_AV[2] == (values_AV[2].double().numpy() <= high)).all()
    spans = np.array([(values_AV[1, c:] - values_AV[1, : 256 - c]).double().abs().max() for c in range(256)])
    exact = np.array([(values_AV[1, c:].double() - values_AV[1, : 256 - c].double()).abs().max() for c in range(256)])
    most = tokens.steps_A[1]
    assert exact[most] <= change and spans[most] <= np.float32(change)
    assert most == 255 or exact[most + 1] > change - 1e-6 * abs(change)


# --- the sampler's loop ---------------------------------------------------------------------------------------------


def some_kept(generator, known_BHA, digits):
    """A random part of a proposal: each token keeps what it knows, and perhaps more of its digits, coarse first."""
    more = generator.integers(0, digits + 1, known_BHA.shape) * (generator.random(known_BHA.shape) < generator.random())
    return np.minimum(known_BHA + more, digits)


def scores_for(generator, shape):
    """Logits of every temper: flat, spiky, with -inf, with NaN."""
    scores = torch.tensor(generator.normal(size=shape) * 10.0 ** generator.integers(-1, 4), dtype=torch.float32)
    odd = torch.tensor(generator.random(shape)) < generator.choice([0, 0.2, 0.9])
    return scores.masked_fill(odd, float(generator.choice([-np.inf, np.inf, np.nan])))


def sample(generator, domain, digits_BHAD, known_BHA, base, evaluations):
    """What `sampler.sample` does, with random logits, and a random part of each proposal kept."""
    digits = digits_BHAD.shape[-1]
    for t in range(evaluations):
        now = narrow(domain, digits_BHAD, known_BHA, check=t % 2 == 0)
        proposal = digits_BHAD.clone()
        for d in range(digits):
            visible_BHA = known_BHA > d
            before = allowed(now, d, proposal)
            chosen, mask, now = choose(scores_for(generator, (*known_BHA.shape, base)), d, proposal, visible_BHA, now)
            free = now.rules.free_BH1 & ~visible_BHA
            assert bool(mask.gather(-1, chosen.unsqueeze(-1)).squeeze(-1)[free.expand_as(chosen)].all())
            assert bool((before | ~mask).all()), "the walk only narrows"
            assert torch.equal(chosen[visible_BHA], proposal[..., d][visible_BHA])
            proposal[..., d] = chosen
        kept = (
            some_kept(generator, known_BHA.numpy(), digits) if t + 1 < evaluations else np.full(known_BHA.shape, digits)
        )
        known_BHA = torch.tensor(kept)
        digits_BHAD = proposal * (torch.arange(digits) < known_BHA.unsqueeze(-1))
    return digits_BHAD


@given(st.integers(0, 2**31), st.integers(1, 6), st.integers(1, 3), st.integers(2, 3), st.integers(1, 4))
@settings(max_examples=200, deadline=None)
def test_whatever_is_kept_the_chunk_is_within_the_limits(seed, horizon, dims, digits, evaluations):
    generator = np.random.default_rng(seed)
    bins = tokenizer(generator, dims, 4, digits, binary=generator.random() < 0.5)
    tokens_HA, limits, previous, start = around(generator, bins, horizon)
    truth_HAD = bins.numerals.to_digits(torch.tensor(tokens_HA))
    batch, previous = int(generator.integers(1, 4)), previous if generator.random() < 0.7 else None
    domain = tokens_of(limits, bins).begin(batch, horizon, previous, start)
    known_BHA = torch.tensor(some_kept(generator, np.zeros((batch, horizon, dims), int), digits))
    given_BHAD = truth_HAD * (torch.arange(digits) < known_BHA.unsqueeze(-1))
    digits_BHAD = sample(generator, domain, given_BHAD, known_BHA, 4, evaluations)
    shown = torch.arange(digits) < known_BHA.unsqueeze(-1)
    assert torch.equal(digits_BHAD[shown], given_BHAD[shown])
    if bins.binary[-1]:
        assert bool((digits_BHAD[:, :, -1, 0] < 2).all()) and not digits_BHAD[:, :, -1, 1:].any()
    actions_BHA = bins.decode(digits_BHAD)
    for actions_HA in actions_BHA.numpy():
        assert keeps(actions_HA, limits, previous, start)
        assert keeps(actions_HA, limits, previous, start, dtype=np.float32)
    offset = torch.tensor(generator.normal(size=actions_BHA.shape) * 2, dtype=torch.float32)
    settled_BHA = settle(actions_BHA, bins.decode(digits_BHAD, offset), domain)
    for actions_HA in settled_BHA.numpy():
        assert keeps(actions_HA, limits, previous, start)
        assert keeps(actions_HA, limits, previous, start, dtype=np.float32)


@given(st.integers(0, 2**31), st.integers(2, 6))
@settings(max_examples=100, deadline=None)
def test_limits_go_on_from_the_committed_actions_themselves(seed, horizon):
    """Committed actions are not on the grid of tokens, and the limits count from them and not from their tokens."""
    generator = np.random.default_rng(seed)
    bins = tokenizer(generator, 2, 16, 2, binary=False)
    tokens_HA, limits, _, start = around(generator, bins, horizon)
    done_B = generator.integers(0, horizon, 2)
    true_HA = bins.decode(bins.numerals.to_digits(torch.tensor(tokens_HA))).numpy()
    one = (np.array(bins.high) - np.array(bins.low)) / bins.bins
    off = np.where(np.isfinite(limits.change), 0, 0.4) * one * generator.uniform(-1, 1, true_HA.shape)
    given_HA = (true_HA + off).astype(np.float32)
    try:
        domain = tokens_of(limits, bins).begin(2, horizon, None, start, [given_HA[:d] for d in done_B])
    except ValueError as e:  # what is left of a reach may be too little
        assert "no action" in str(e)
        return
    known_BHA = torch.tensor(np.arange(horizon)[:, None] < done_B[:, None, None]).expand(2, horizon, 2) * 2
    digits_BHAD = bins.encode(torch.tensor(given_HA)) * (known_BHA > 0).unsqueeze(-1)
    digits_BHAD = sample(generator, domain, digits_BHAD, known_BHA, 16, 3)
    actions_BHA = bins.decode(digits_BHAD)
    wanted_BHA = bins.decode(digits_BHAD, torch.tensor(generator.normal(size=actions_BHA.shape)).float())
    for row, d in enumerate(done_B):
        for x_BHA in (actions_BHA, settle(actions_BHA, wanted_BHA, domain)):
            x_BHA[row, :d] = torch.tensor(given_HA[:d])
            assert keeps(x_BHA[row].numpy(), limits, None, start, d)
            assert keeps(x_BHA[row].numpy(), limits, None, start, d, np.float32)


def far(bins, horizon=8):
    """Limits that touch nothing, of every kind."""
    limits = Limits(
        bins.names,
        low=[-1e6] * 3,
        change=[1e6, None, None],
        reach_low={"d1": -1e6},
        reach_high=[None, 1e6, None],
        scale=[None, 1, None],
    )
    return tokens_of(limits, bins).begin(3, horizon, start=np.zeros(3))


@pytest.mark.parametrize("limited", [False, True])
def test_limits_that_do_not_bind_change_nothing(limited):
    generator = np.random.default_rng(0)
    bins = tokenizer(generator, 3, 16, 2)
    domain = far(bins) if limited else tokens_of(Limits(bins.names), bins).begin(3, 8)
    assert (domain.rules.linked or domain.rules.summed) == limited
    digits_BHAD, hidden = torch.zeros(3, 8, 3, 2, dtype=torch.long), torch.zeros(3, 8, 3, dtype=torch.bool)
    now = narrow(domain, digits_BHAD, hidden.long())
    for d in range(2):
        permitted = bins.allowed_ADV()[:, d]
        scores = torch.tensor(generator.normal(size=(3, 8, 3, 16))).masked_fill(~permitted, -math.inf)
        chosen, mask, now = choose(scores, d, digits_BHAD, hidden, now)
        assert torch.equal(chosen, scores.argmax(-1)) and torch.equal(mask, permitted.expand_as(mask))
        digits_BHAD[..., d] = chosen
    values = bins.decode(digits_BHAD)
    wanted = bins.decode(digits_BHAD, torch.full_like(values, 0.3))
    assert torch.equal(settle(values, wanted, domain), wanted)


def test_the_best_allowed_digit_is_chosen_and_steps_follow_each_other():
    """By hand: bins 0..15 are worth 0.5..15.5; at most 2 a step from 3 on; the logits want 15 everywhere."""
    bins = BinTokenizer([0.0], [16.0], [False], ["x"], 2, 4)
    tokens = tokens_of(Limits(["x"], high=[12], change=[2.9]), bins)
    domain = tokens.begin(1, 6, previous=np.array([3.0]))
    assert domain.tokens_2BHA[1, 0, :, 0].tolist() == [5, 7, 9, 11, 11, 11]
    digits_BHAD, hidden = torch.zeros(1, 6, 1, 2, dtype=torch.long), torch.zeros(1, 6, 1, dtype=torch.bool)
    scores = torch.arange(4.0).expand(1, 6, 1, 4)
    now = narrow(domain, digits_BHAD, hidden.long())
    for d in range(2):
        digits_BHAD[..., d], mask, now = choose(scores, d, digits_BHAD, hidden, now)
    assert bins.numerals.to_index(digits_BHAD).flatten().tolist() == [5, 7, 9, 11, 11, 11]
    assert mask[0, 0, 0].tolist() == [True, True, False, False]  # 4 and 5 of 4..7
    known = torch.tensor([0, 0, 0, 0, 0, 2]).view(1, 6, 1)  # the end at 0: the way there bends back
    digits_BHAD = torch.zeros_like(digits_BHAD)
    now = narrow(domain, digits_BHAD, known)
    for d in range(2):
        digits_BHAD[..., d], mask, now = choose(scores, d, digits_BHAD, known > d, now)
    assert bins.numerals.to_index(digits_BHAD).flatten().tolist() == [5, 7, 6, 4, 2, 0]
    domain = tokens.begin(1, 5, committed=[np.array([[14.0], [10]])])  # on its way, though above 12
    assert domain.tokens_2BHA[:, 0, :, 0].tolist() == [[0, 0, -7, -5, -3], [0, 0, 11, 11, 11]]


def test_a_workspace_of_displacements():
    """The tabletop's: the hand moves by 0.04 a unit of action, and must stay within [0.4, 0.6]."""
    bins = BinTokenizer([-1.0], [1.0], [False], ["x"])
    limits = Limits(["x"], reach_low=[0.4], reach_high=[0.6], scale=[0.04])
    tokens = tokens_of(limits, bins)
    domain = tokens.begin(1, 8, start=np.array([0.5]))
    digits_BHAD, hidden = torch.zeros(1, 8, 1, 2, dtype=torch.long), torch.zeros(1, 8, 1, dtype=torch.bool)
    now = narrow(domain, digits_BHAD, hidden.long())
    for d in range(2):
        digits_BHAD[..., d], _, now = choose(torch.arange(16.0).expand(1, 8, 1, 16), d, digits_BHAD, hidden, now)
    at = 0.5 + 0.04 * bins.decode(digits_BHAD).double().cumsum(1)
    assert 0.5995 < at.max() <= 0.6 and at[0, 2, 0] > 0.598  # as fast as it may, then it stays
    assert keeps(bins.decode(digits_BHAD)[0].numpy(), limits, None, [0.5])
    tokens.begin(1, 8, start=np.array([0.63]))  # outside, but back within one step
    with pytest.raises(ValueError, match=r"step 0 of 'x' \(row 1\)"):
        tokens.begin(2, 8, start=np.array([[0.5], [0.65]]))


def test_settling_stops_at_the_border():
    bins = BinTokenizer([0.0, 0.0], [16.0, 16.0], [False, False], ["x", "y"], 2, 4)
    domain = tokens_of(Limits(["x", "y"], high=[None, 4.75], change=[1.5, None]), bins).begin(1, 3)
    values = torch.tensor([[[4.5, 4.5], [5.5, 4.5], [5.5, 4.5]]])
    wanted = torch.tensor([[[4.5, 4.6], [6.5, 4.9], [5.5, 3.0]]])
    settled = settle(values, wanted, domain)[0]
    assert torch.allclose(settled[:, 0], torch.tensor([4.5, 6.0, 5.5]), atol=1e-4) and settled[1, 0] <= 6
    assert torch.equal(settled[:, 1], torch.tensor([4.6, 4.75, 3.0]))


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"low": [0, 0]}, "one number for each"),
        ({"low": {"z": 0}}, r"no dimension \['z'\]"),
        ({"low": {3: 0}}, "no dimension"),
        ({"high": [0, math.nan, 0]}, "NaN|nan"),
        ({"low": {"x": 1}, "high": {"x": 0}}, "low <= high"),
        ({"low": {"x": math.inf}}, "empty"),
        ({"reach_low": {0: 1}, "reach_high": {0: 0}, "scale": {0: 1}}, "low <= high"),
        ({"change": {"x": -1}}, r"\[0, -1.0\], which is empty"),
        ({"reach_low": {"y": 0}}, "needs `scale`"),
        ({"reach_low": {"y": 0}, "scale": [1, 0, 1]}, "needs `scale`"),
        ({"reach_low": {"y": 0}, "scale": {"y": 1}, "change": {"y": 1}}, "both a change and a reach"),
    ],
)
def test_limits_that_make_no_sense_are_refused(wrong, match):
    with pytest.raises(ValueError, match=match):
        Limits(NAMES, **wrong)


def test_limits_that_the_tokens_cannot_keep_are_refused():
    bins = BinTokenizer([0.0, 0.0, -1.0], [1.0, 1.0, 1.0], [False, False, True], NAMES)
    for wrong, match in [
        ({"low": {"x": 2}}, "'x': none of its values"),
        ({"low": {"grip": -0.5}, "high": {"grip": 0.5}}, "'grip': none of its values"),
        ({"change": {"y": 0.003}}, "'y': a change of 0.003 is less than one bin"),
        ({"change": {"grip": 1}}, "'grip' has two values"),
        ({"reach_low": {"grip": 0}, "scale": {"grip": 1}}, "'grip' has two values"),
    ]:
        with pytest.raises(ValueError, match=match):
            tokens_of(Limits(NAMES, **wrong), bins)
    with pytest.raises(ValueError, match="256 rising values"):
        TokenLimits(Limits(NAMES), table(bins)[:2], bins.allowed_ADV())
    half = tokens_of(Limits(NAMES, high={"grip": 0}), bins).begin(1, 1)
    assert allowed(half, 0, torch.zeros(1, 1, 3, 2, dtype=torch.long))[0, 0].sum(-1).tolist() == [16, 16, 1]


def test_what_is_given_must_fit_the_limits():
    bins = BinTokenizer([0.0, 0.0], [1.0, 1.0], [False, False], ["x", "y"])
    tokens = tokens_of(Limits(["x", "y"], change=[0.1, None], reach_high={"y": 3}, scale={"y": 1}), bins)
    with pytest.raises(ValueError, match="needs `start`"):
        tokens.begin(1, 4)
    start = np.zeros(2)
    for wrong in (np.zeros(3), np.full(2, math.nan), np.zeros((2, 2))):
        with pytest.raises(ValueError, match="previous: expected finite numbers"):
            tokens.begin(1, 4, wrong, start)
    with pytest.raises(ValueError, match=r"step 0 of 'x' \(row 0\): no action keeps the limits"):
        tokens.begin(1, 4, np.array([1.5, 0]), start)
    with pytest.raises(ValueError, match=r"step 2 of 'x' \(row 1\)"):
        tokens.begin(2, 4, None, start, [np.zeros((0, 2)), np.array([[0.0, 0], [2, 0]])])
    domain = tokens.begin(2, 4, None, start)
    digits_BHAD, known_BHA = torch.zeros(2, 4, 2, 2, dtype=torch.long), torch.zeros(2, 4, 2, dtype=torch.long)
    digits_BHAD[1, 2, 0, 0], known_BHA[1, [0, 2], 0] = 9, 1  # 0.03 and 0.58, two steps of 0.1 apart
    with pytest.raises(ValueError, match=r"step 2 of 'x' \(row 1\): no action keeps the limits"):
        narrow(domain, digits_BHAD, known_BHA)
