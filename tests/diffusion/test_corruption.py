# SPDX-License-Identifier: Apache-2.0
"""What training shows and asks: every draw a function of the row's key, nothing asked twice or shown by mistake."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.networks import KEYS, actions_only, read_all, shaken
from vla import randomness
from vla.canvas import Layout, Provenance, Segment, unmasked
from vla.diffusion import UNIFORM_MASKING, CorruptionConfig, corrupt, denoising_losses, digit_losses, total_loss
from vla.diffusion.corruption import committed, falsify, ratios
from vla.diffusion.noise import redraw, select_latent

LAYOUT = Layout(8, 4)
PAIRS = CorruptionConfig(p_full_mask=0, p_keep_coarse=0, p_coarse_only=0, p_wrong=0)
"""Masks and their complements, nothing else."""
RADIX = torch.tensor([[16, 16], [16, 16], [16, 16], [2, 1]])


def clean(batch, seed=0):
    return torch.randint(0, 16, (batch, 8, 4, 2), generator=torch.Generator().manual_seed(seed))


def corrupted(batch=256, pad_from=8, config=None, begun="", executed=None, keys=None):
    pad_BH = (torch.arange(8) >= pad_from).expand(batch, 8)
    key_B = randomness.fold(0, torch.arange(batch)) if keys is None else keys
    return corrupt(clean(batch), pad_BH, key_B, LAYOUT, config or CorruptionConfig(), None, begun, executed)


def by_copy(x_BNS):
    """(B * K, N, S, ...) -> (B, K, N, S, ...)."""
    return x_BNS.unflatten(0, (-1, 2))


def test_complementary_pairs_ask_for_every_digit_exactly_once():
    c = corrupted(config=PAIRS)
    assert bool((by_copy(c.asked_BNSD).sum(1) == 1).all())
    independent = corrupted(config=CorruptionConfig(**(vars(PAIRS) | {"complementary": False})))
    assert not bool((by_copy(independent.asked_BNSD).sum(1) == 1).all())


@pytest.mark.parametrize("begun", ["", "prefix", "any"])
def test_no_token_of_a_sample_goes_without_a_loss_but_what_is_committed(begun):
    c = corrupted(2000, begun=begun)
    given_ = by_copy(c.state.provenance_BNS == Provenance.COMMITTED)
    assert bool((by_copy(c.asked_BNSD).any(-1).any(1) | given_.any(1)).all())


def test_full_pairs_are_the_first_and_the_middle_of_sampling():
    known = by_copy(corrupted(config=CorruptionConfig(p_full_mask=1, p_wrong=0)).state.known_BNS)
    assert not known[:, 0].any() and bool((known[:, 1] == 1).all())
    single = by_copy(corrupted(config=CorruptionConfig(p_full_mask=1, single_mask=True)).state.known_BNS)
    assert not single[:, 0].any() and set(single[:, 1].unique().tolist()) == {0, 2}


def test_levels_are_the_pairs_that_sampling_passes_through():
    c = corrupted(2000, config=CorruptionConfig(p_full_mask=0))
    kinds = {tuple(row.unique().tolist()) for row in c.state.known_BNS}
    assert {k for k in kinds if len(k) > 1} == {(0, 2), (1, 2), (0, 1)}
    plain = corrupted(500, config=UNIFORM_MASKING)
    assert set(plain.state.known_BNS.unique().tolist()) == {0, 2}
    assert torch.equal(plain.state.digits_BNSD, plain.digits_BNSD * plain.state.visible_BNSD())


@given(st.permutations(range(12)), st.sampled_from(["", "prefix", "any"]), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_corruption_is_a_function_of_the_key_alone(order, begun, seed):
    keys, index = randomness.fold(seed, torch.arange(12)), torch.tensor(order)
    executed, pad = clean(12, 1), torch.arange(8).expand(12, 8) >= torch.arange(12).unsqueeze(1)

    def made(rows):
        digits = clean(12)[rows]
        c = corrupt(digits, pad[rows], keys[rows], LAYOUT, CorruptionConfig(), None, begun, executed[rows])
        return [by_copy(x) for x in (*vars(c.state).values(), c.digits_BNSD, c.asked_BNSD)]

    together, alone = made(torch.arange(12)), made(index[:1])
    for a, b, c in zip(together, made(index), alone, strict=True):
        assert torch.equal(a[index], b) and torch.equal(a[index[:1]], c)


@pytest.mark.parametrize("begun", ["", "prefix", "any"])
@pytest.mark.parametrize("pad_from", [0, 5])
def test_padding_is_never_shown_committed_or_asked(begun, pad_from):
    c = corrupted(pad_from=pad_from, begun=begun, executed=clean(256, 1))
    assert not c.state.known_BNS[:, pad_from:].any() and not c.asked_BNSD[:, pad_from:].any()
    assert not (c.state.provenance_BNS[:, pad_from:] == Provenance.COMMITTED).any()
    assert pad_from == 0 or c.asked_BNSD[:, :pad_from].any()


@pytest.mark.parametrize("begun", ["prefix", "any"])
def test_what_is_committed_is_shown_in_both_copies_is_never_false_and_has_no_loss(begun):
    c = corrupted(1000, config=CorruptionConfig(p_wrong=0.5), begun=begun)
    state, given_ = c.state, c.state.provenance_BNS == Provenance.COMMITTED
    assert torch.equal(by_copy(given_)[:, 0], by_copy(given_)[:, 1])
    known = by_copy(state.known_BNS)
    assert torch.equal(known[:, 0][by_copy(given_)[:, 0]], known[:, 1][by_copy(given_)[:, 1]])
    shown = state.visible_BNSD() & given_.unsqueeze(-1)
    assert torch.equal(state.digits_BNSD[shown], c.digits_BNSD[shown]) and not (c.asked_BNSD & shown).any()
    assert given_.flatten(1).any(1).double().mean() > (0.99 if begun == "prefix" else 0.9)
    if begun == "any":  # of a coarse digit that is given, the fine one is asked
        half = given_ & (state.known_BNS == 1)
        assert half.any() and c.asked_BNSD[half][:, 1].all()


def test_every_way_to_begin_occurs():
    known_BHA, first_B = committed(KEYS, 8, 4, 2, "any", 0.75)
    some_BHA = known_BHA > 0
    steps_BH, any_BH = some_BHA.all(-1), some_BHA.any(-1)
    whole = (steps_BH == any_BH).all(1) & any_BH.any(1) & ~any_BH.all(1)
    rises, falls = (any_BH.int().diff(dim=1) == 1).sum(1), (any_BH.int().diff(dim=1) == -1).sum(1)
    begins, ends = whole & (rises == 0) & (falls == 1), whole & (rises == 1) & (falls == 0)
    kinds = {"first": begins, "last": ends, "steps": whole & ~begins & ~ends, "tokens": ~whole & any_BH.any(1)}
    assert {name for name, rows in kinds.items() if rows.sum() >= 16} == set(kinds)
    assert first_B.sum() >= 32 and bool(begins[first_B].all())
    levels = known_BHA.amax((1, 2))[any_BH.any(1)]
    assert set(levels.tolist()) == {1, 2} and 0.15 < (levels == 1).double().mean() < 0.35
    assert bool(((known_BHA == 0) | (known_BHA == known_BHA.amax((1, 2), keepdim=True))).all())
    prefix_BHA, all_first_B = committed(KEYS, 8, 4, 2, "prefix", 0.75)
    lengths_B = prefix_BHA.all(-1).sum(1)
    assert all_first_B.all() and set(lengths_B.tolist()) == {1, 2, 3, 4, 5, 6}
    assert torch.equal(prefix_BHA, 2 * (torch.arange(8) < lengths_B[:, None])[..., None].expand(-1, -1, 4))
    nothing, nobody = committed(KEYS, 8, 4, 2, "", 0.75)
    assert not nothing.any() and not nobody.any()


@pytest.mark.parametrize("begun", ["prefix", "any"])
def test_committed_first_steps_show_what_was_executed_and_targets_are_labels(begun):
    executed = clean(1000, 1)
    c = corrupted(1000, begun=begun, executed=executed)
    labels = LAYOUT.fold(clean(1000)).repeat_interleave(2, 0)
    done = LAYOUT.fold(executed).repeat_interleave(2, 0)
    assert torch.equal(c.digits_BNSD, labels)
    first = committed(randomness.fold(0, torch.arange(1000)), 8, 4, 2, begun, 0.75)[1].repeat_interleave(2)
    shown = c.state.visible_BNSD() & (c.state.provenance_BNS == Provenance.COMMITTED).unsqueeze(-1)
    truth = torch.where(first[:, None, None, None], done, labels)
    assert torch.equal(c.state.digits_BNSD[shown], truth[shown])
    assert first.all() if begun == "prefix" else 0.15 < first.double().mean() < 0.35
    # Nothing is asked after a coarse digit that is not the label's.
    differs = shown & (truth != labels)
    assert differs.any() and not c.asked_BNSD[differs.any(-1)].any()


def test_false_tokens_are_other_tokens_of_their_dimension():
    digits = clean(64)
    digits[..., 3, 0] %= 2
    digits[..., 3, 1] = 0
    other = falsify(digits.unsqueeze(1), KEYS[:64], RADIX).squeeze(1)
    assert bool((other[..., 0] != digits[..., 0]).all()) and bool((other < RADIX).all()) and bool((other >= 0).all())
    near = ((other - digits)[..., :3, 0].abs() == 1).double().mean()
    assert 0.45 < near < 0.65  # half are neighbours by design, some by chance


def test_what_follows_a_false_digit_is_not_asked():
    c = corrupted(1000, config=CorruptionConfig(p_wrong=0.08))
    visible = c.state.visible_BNSD()
    wrong = (visible & (c.state.digits_BNSD != c.digits_BNSD)).any(-1)
    assert 0.03 < wrong[c.state.known_BNS > 0].double().mean() < 0.1
    assert not c.asked_BNSD[wrong].any()
    clean_BNSD = LAYOUT.fold(clean(1000)).repeat_interleave(2, 0)
    assert torch.equal(c.digits_BNSD, clean_BNSD)  # targets never differ from labels


def test_what_is_masked_where_something_is_shown_may_count_as_remasked():
    c = corrupted(2000, config=CorruptionConfig(p_remasked=0.25))
    state = c.state
    remasked, masked = state.provenance_BNS == Provenance.REMASKED, state.known_BNS < 2
    rows = remasked.flatten(1).any(1)
    assert torch.equal(remasked, masked & rows[:, None, None])  # all of a copy's masks, and nothing else
    shows = (state.known_BNS > 0).flatten(1).any(1)
    assert not rows[~shows].any() and 0.2 < rows[shows & masked.flatten(1).any(1)].double().mean() < 0.3
    assert not (corrupted(config=CorruptionConfig(p_remasked=0)).state.provenance_BNS != Provenance.FREE).any()


def test_mask_ratios_are_bell_shaped_and_clipped():
    keys = randomness.fold(0, torch.arange(4000))
    bell = ratios(keys, CorruptionConfig())
    assert abs(bell.mean() - 0.5) < 0.02 and 0.18 < bell.std() < 0.22 and 0.1 <= bell.min() < bell.max() <= 0.9
    assert 0.27 < ratios(keys, UNIFORM_MASKING).std() < 0.31
    asked = by_copy(corrupted(4000, config=PAIRS).asked_BNSD)[:, 0, ..., 1].double().mean((1, 2))
    assert abs((asked - bell).mean()) < 0.02 and torch.corrcoef(torch.stack([asked, bell]))[0, 1] > 0.8


def test_more_than_all_of_the_pairs_is_refused():
    with pytest.raises(ValueError, match="must be at most 1"):
        CorruptionConfig(p_keep_coarse=0.6, p_coarse_only=0.5)


# --- the loss ---------------------------------------------------------------------------------------------------------
def test_loss_is_the_hand_computed_cross_entropy():
    c = corrupted(4)
    logits = [torch.randn(*c.state.known_BNS.shape, 16, generator=torch.Generator().manual_seed(d)) for d in range(2)]
    losses = digit_losses(logits, c)
    for d in range(2):
        log_p = logits[d].log_softmax(-1).gather(-1, c.digits_BNSD[..., d : d + 1]).squeeze(-1)
        assert torch.isclose(losses[d], -log_p[c.asked_BNSD[..., d]].mean())
    assert torch.isclose(total_loss(losses), losses[0] + losses[1] / 2)
    uniform = digit_losses([torch.zeros_like(x) for x in logits], c)
    assert all(math.isclose(x.item(), math.log(16), rel_tol=1e-6) for x in uniform)
    half = c.only(torch.tensor([True, False, True, False]))
    assert torch.equal(half.asked_BNSD[:2], c.asked_BNSD[:2]) and not half.asked_BNSD[2:4].any()
    assert digit_losses(logits, c.only(torch.zeros(4, dtype=torch.bool))) == [0, 0]


def tiny(**changes):
    return shaken(actions_only(**({"noise_indices": 64} | changes)), 0.1)


def test_a_forbidden_digit_costs_nothing_and_has_no_nan():
    model, digits = tiny(), clean(4)
    allowed = model.head_of(Segment.ACTION).allowed_ADV
    allowed.copy_(torch.arange(16) < RADIX.unsqueeze(-1))
    digits[..., 3, 0] %= 2
    digits[..., 3, 1] = 0
    pad_BH = torch.zeros(4, 8, dtype=torch.bool)
    c = corrupt(digits, pad_BH, KEYS[:4], LAYOUT, CorruptionConfig(), RADIX)
    context = read_all(model, batch=4)
    (digits_of_action,) = denoising_losses(model, context, {Segment.ACTION: c}, KEYS[:4], 0.5, 4).values()
    loss = total_loss(digits_of_action)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


# --- noise indices ----------------------------------------------------------------------------------------------------
def test_an_index_holds_for_a_row_and_one_index_is_the_plain_mask():
    state = unmasked(LAYOUT.fold(clean(8)), torch.ones(8, 8, 4, dtype=torch.long))
    noisy_B = torch.arange(8) < 6
    assert not redraw(state, KEYS[:8], 1).noise_BNS.any() and not redraw(state, KEYS[:8], 64, False).noise_BNS.any()
    drawn = redraw(state, KEYS[:8], 64, noisy_B).noise_BNS
    assert bool((drawn == drawn[:, :1, :1]).all()) and torch.equal(drawn[:, 0, 0] > 0, noisy_B)
    assert len(drawn[:6, 0, 0].unique()) > 3 and drawn.max() < 64
    assert not redraw(unmasked(LAYOUT.fold(clean(8))), KEYS[:8], 64).noise_BNS.any()


@torch.no_grad()
def test_the_noise_that_is_picked_explains_the_sample_better_than_a_random_one():
    model = tiny()
    model.embedding_of(Segment.ACTION).table.data *= 4  # a noise index that matters
    c = corrupted(32, config=CorruptionConfig(p_full_mask=1, p_wrong=0))
    key_R = randomness.fold(KEYS[:32, None], torch.arange(2)).flatten()
    noisy_R = torch.arange(64) % 3 > 0
    drawn = redraw(c.state, key_R, 64, noisy_R)
    context = read_all(model, batch=32)

    def picked(rows, state=drawn, candidates=16):
        both = (2 * rows[:, None] + torch.arange(2)).flatten()
        asked = {Segment.ACTION: type(c)(state.map(lambda x: x[both]), c.digits_BNSD[both], c.asked_BNSD[both])}
        return select_latent(model, context.pick(rows), asked, KEYS[rows], candidates, 2)[Segment.ACTION]

    found = picked(torch.arange(32))
    assert torch.equal(found.noise_BNS[:, 0, 0] > 0, noisy_R)  # a plain mask stays one
    assert not picked(torch.arange(32), c.state).noise_BNS.any()

    def nll(state):
        hidden = model.decode(context.repeat(2), {Segment.ACTION: state})[Segment.ACTION]
        logits = model.head_of(Segment.ACTION)(hidden, c.digits_BNSD)
        log_p = [x.log_softmax(-1).gather(-1, c.digits_BNSD[..., d : d + 1]) for d, x in enumerate(logits)]
        return -(torch.cat(log_p, -1) * c.asked_BNSD).sum((1, 2, 3))[noisy_R & (torch.arange(64) % 2 == 0)]

    assert nll(found).mean() < nll(drawn).mean() - 1
    order = torch.tensor([5, 0, 31, 7])
    both = (2 * order[:, None] + torch.arange(2)).flatten()
    assert torch.equal(picked(order).noise_BNS, found.noise_BNS[both])  # a function of the row


def test_all_segments_of_a_row_have_one_index():
    from tests.networks import digits_of, every_segment

    model = shaken(every_segment(noise_indices=8))
    keys, pad_BH = KEYS[:6], torch.zeros(6, 8, dtype=torch.bool)
    asked = {}
    for segment in (Segment.WAYPOINTS, Segment.ACTION):
        layout = model.head_of(segment).layout
        digits = layout.unfold(digits_of(model.config, segment, 6))
        asked[segment] = corrupt(digits, pad_BH[:, : layout.horizon], keys, layout, PAIRS)
    seen, real = [], model.decode

    def watched(context, states, there=None):
        seen.append(states)
        return real(context, states, there)

    model.decode = watched
    denoising_losses(model, read_all(model, batch=6), asked, keys, 0.7, 4)
    index = [s.noise_BNS.flatten(1).amax(1) for s in seen[-1].values()]
    assert torch.equal(*index) and 0 < (index[0] > 0).sum() < 12
