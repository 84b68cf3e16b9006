# SPDX-License-Identifier: Apache-2.0
import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vla import randomness
from vla.canvas import Layout, Provenance, is_complete, revealed
from vla.diffusion import Programs, Sampling, corrupt, digit_losses, losses, sample, total_loss
from vla.diffusion.sampler import kept_fraction
from vla.model import LatticeModel, ModelConfig

LAYOUT = Layout(8, 4)
KEYS = randomness.fold(0, torch.arange(256))


def clean(batch, seed=0):
    return torch.randint(0, 16, (batch, 8, 4, 2), generator=torch.Generator().manual_seed(seed))


def corrupted(batch=256, pad_from=8, programs=None, step=0):
    key_B = randomness.fold(0, step, torch.arange(batch))
    pad_BH = (torch.arange(8) >= pad_from).expand(batch, 8)
    return corrupt(clean(batch), pad_BH, key_B, LAYOUT, programs or Programs(), 64)


def test_complementary_pairs_ask_for_every_token_exactly_once():
    c = corrupted(programs=Programs(full=0, revise=0, keep_coarse=0, only_coarse=0, prefix=0, wrong=0))
    assert bool((c.asked_BNSD.view(-1, 2, 8, 4, 2).sum(1) == 1).all())


def test_every_program_asks_for_every_token():
    """Loss coverage: but for committed steps, no token of a sample goes without a loss."""
    c = corrupted(2000)
    committed = (c.state.provenance_BNS == Provenance.COMMITTED).view(-1, 2, 8, 4)[:, 0]
    asked = c.asked_BNSD.any(-1).view(-1, 2, 8, 4).any(1)
    assert bool((asked | committed).all())


def test_full_pairs_are_the_first_and_the_middle_of_sampling():
    c = corrupted(programs=Programs(full=1, revise=0, prefix=0, wrong=0))
    assert c.state.known_BNS.view(-1, 2, 8, 4).amax((0, 2, 3)).tolist() == [0, 1]
    assert c.state.known_BNS.view(-1, 2, 8, 4).amin((0, 2, 3)).tolist() == [0, 1]


def test_committed_steps_are_shown_and_cost_nothing_and_padding_is_never_shown():
    c = corrupted(pad_from=5, programs=Programs(prefix=1.0))
    committed = c.state.provenance_BNS == Provenance.COMMITTED
    assert committed.any() and bool((c.state.known_BNS[committed] == 2).all())
    assert not c.asked_BNSD[committed].any()
    assert bool((c.state.known_BNS[:, 5:] == 0).all()) and not c.asked_BNSD[:, 5:].any()


def test_corruption_is_a_function_of_the_key_not_of_the_neighbours():
    """But for the ratio, whose first half is spread evenly over the batch on purpose, rows do not know each other."""
    programs = Programs(full=1, revise=0)
    a, b = corrupted(64, programs=programs), corrupted(16, programs=programs)
    assert torch.equal(a.state.known_BNS[:32], b.state.known_BNS) and torch.equal(
        a.state.noise_BNS[:32], b.state.noise_BNS
    )


def test_mask_ratios_are_bell_shaped_and_clipped():
    c = corrupted(
        4000, programs=Programs(full=0, revise=0, keep_coarse=0, only_coarse=0, structured=0, prefix=0, wrong=0)
    )
    ratio = c.asked_BNSD[..., 1].view(-1, 2, 32)[:, 0].double().mean(-1)
    assert abs(ratio.mean() - 0.5) < 0.02 and 0.18 < ratio.std() < 0.26


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


def test_a_forbidden_digit_costs_nothing_and_has_no_nan():
    model = tiny()
    model.head.allowed_ADV[3] = False
    model.head.allowed_ADV[3, 0, :2] = True
    model.head.allowed_ADV[3, 1, 0] = True
    digits = clean(4)
    digits[..., 3, 0] %= 2
    digits[..., 3, 1] = 0
    c = corrupt(
        digits,
        torch.zeros(4, 8, dtype=torch.bool),
        randomness.fold(0, torch.arange(4)),
        LAYOUT,
        Programs(),
        64,
    )
    loss = total_loss(*losses(model, model.encode(*observation(4)), c, KEYS[:4], candidates=4))
    loss.backward()
    assert torch.isfinite(loss) and all(torch.isfinite(p.grad).all() for p in model.parameters())


def tiny(arrangement="per_step"):
    torch.manual_seed(0)
    model = LatticeModel(
        ModelConfig(
            image_size=16,
            vocabulary=50,
            text_length=6,
            width=32,
            arrangement=arrangement,
            quality=True,
            noise_indices=64,
        )
    ).eval()
    for p in model.parameters():
        p.data += torch.randn_like(p) * 0.1
    return model


def observation(batch):
    generator = torch.Generator().manual_seed(3)
    image = torch.randint(0, 256, (batch, 16, 16, 3), dtype=torch.uint8, generator=generator)
    return (
        {"front": image},
        torch.randn(batch, 4, generator=generator),
        torch.randint(1, 50, (batch, 6), generator=generator),
    )


@pytest.mark.parametrize("arrangement", ["per_step", "per_dim"])
@pytest.mark.parametrize("evaluations", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_every_schedule_fills_the_canvas_in_its_number_of_evaluations(arrangement, evaluations, temperature):
    model = tiny(arrangement)
    seen = []
    prefix = model.encode(*observation(3))
    sampling = Sampling(evaluations, temperature)
    result = sample(
        model,
        prefix,
        randomness.fold(0, torch.arange(3)),
        sampling,
        trace=lambda t, s, c: seen.append(s.known_BNS),
    )
    assert is_complete(result.state) and len(seen) == evaluations
    assert all(bool((b >= a).all()) for a, b in pairwise(seen))  # knowledge only grows
    assert bool(((result.confidence_BNS > 0) & (result.confidence_BNS <= 1)).all())
    assert bool(((result.near_BNS >= result.confidence_BNS) & (result.near_BNS <= 1)).all())  # right, or nearly


def test_two_evaluations_are_all_coarse_then_all_fine():
    assert kept_fraction(1, 2, 2) == [1.0, 0.0] and kept_fraction(2, 2, 2) == [1.0, 1.0]
    assert kept_fraction(1, 1, 2) == [1.0, 1.0]


@given(st.integers(1, 12), st.integers(1, 4))
@settings(max_examples=50, deadline=None)
def test_schedules_are_monotone_and_end_full(evaluations, depth):
    rows = [kept_fraction(t, evaluations, depth) for t in range(1, evaluations + 1)]
    assert rows[-1] == [1.0] * depth
    for a, b in pairwise(rows):
        assert all(x <= y for x, y in zip(a, b, strict=True))
    assert all(x >= y for row in rows for x, y in pairwise(row))  # coarse before fine


def test_given_tokens_are_never_touched():
    model = tiny()
    tokens = LAYOUT.fold(clean(3, seed=5))
    known = torch.zeros(3, 8, 4, dtype=torch.long)
    known[:, :3], known[0, 5, 2] = 2, 1
    given_state = revealed(tokens, known, torch.where(known > 0, int(Provenance.COMMITTED), 0))
    result = sample(
        model,
        model.encode(*observation(3)),
        randomness.fold(1, torch.arange(3)),
        Sampling(4, 1.0),
        given_state,
    )
    visible = given_state.visible_BNSD()
    assert torch.equal(result.state.digits_BNSD[visible], tokens[visible])
    assert bool((result.fine_offset_BNS[known == 2] == 0).all()) and is_complete(result.state)


def test_rows_are_a_function_of_their_key():
    model = tiny()
    images, state, words = observation(4)
    keys = randomness.fold(9, torch.arange(4))
    together = sample(model, model.encode(images, state, words), keys, Sampling(4, 1.0)).state.digits_BNSD
    order = torch.tensor([2, 0, 3, 1])
    shuffled = model.encode({k: v[order] for k, v in images.items()}, state[order], words[order])
    assert torch.equal(sample(model, shuffled, keys[order], Sampling(4, 1.0)).state.digits_BNSD, together[order])
    again = sample(model, model.encode(images, state, words), keys + 1, Sampling(4, 1.0)).state.digits_BNSD
    assert not torch.equal(again, together)


def test_temperature_one_samples_the_model_distribution():
    """First-digit frequencies of one token over many keys match its softmax: the Gumbel noise is right."""
    model = tiny()
    images, state, words = observation(1)
    many = 4000
    prefix = model.encode(images, state, words).repeat(many)
    model.canvas.noise_indices = 1  # one mask only, so that all rows have the same distribution
    digits = sample(model, prefix, randomness.fold(0, torch.arange(many)), Sampling(1, 1.0)).state.digits_BNSD
    h = model.decode(model.encode(images, state, words), revealed(digits[:1], torch.zeros(1, 8, 4, dtype=torch.long)))
    p = model.head.digit_logits(model.head.features(h), 0, digits[:1])[0, 0, 0].softmax(-1)
    frequency = torch.bincount(digits[:, 0, 0, 0], minlength=16) / many
    assert (frequency - p).abs().max() < 4 * (0.25 / many) ** 0.5


def test_golden_loss_and_sample():
    """Refactors must not change numbers: these are release 0.2's, to the rounding of float32."""
    model = tiny()
    c = corrupted(4)
    loss = total_loss(*losses(model, model.encode(*observation(4)), c, KEYS[:4], candidates=4)).item()
    tokens = sample(model, model.encode(*observation(4)), randomness.fold(0, torch.arange(4)), Sampling(4, 1.0)).state
    assert loss == pytest.approx(4.4089, abs=2e-3)
    assert tokens.digits_BNSD[0, 0].flatten().tolist() == [14, 14, 4, 12, 3, 5, 15, 14]
