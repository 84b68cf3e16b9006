# SPDX-License-Identifier: Apache-2.0
"""Parts of the network: what they grow with, what they learn from, which digits a head may say."""

import pytest
import torch

from tests.networks import actions_only, digits_of, every_segment, given_of, read_all, shaken, state_of
from vla.canvas import Segment, unmasked
from vla.canvas.query import WRITTEN
from vla.model import LatticeModel, ModelConfig


def shapes(**changes):
    """Of everything that a checkpoint of such a network holds."""
    return {name: x.shape for name, x in LatticeModel(every_segment(**changes)).state_dict().items()}


@pytest.mark.parametrize(
    "changes",
    [{"text_length": 60}, {"horizon": 50}, {"plan_length": 40}, {"codes": 64}, {"waypoints": 11}, {"n_obs_steps": 6}],
)
def test_nothing_grows_with_the_number_of_positions(changes):
    assert shapes(**changes) == shapes()


def test_history_needs_one_linear_map_more():
    alone, history = shapes(n_obs_steps=1), shapes()
    assert {n: s for n, s in history.items() if n in alone} == alone
    assert history.keys() - alone.keys() == {"executed.weight", "executed.bias"}


@pytest.mark.parametrize("shared", [False, True])
def test_every_parameter_gets_a_gradient_with_and_without_checkpointing(shared):
    model = shaken(every_segment(shared_vision=shared)).train()
    gradients = []
    for model.checkpointing in (False, True):
        model.zero_grad()
        states = {s: state_of(model.config, s).with_noise(torch.tensor(0)) for s in WRITTEN}
        hidden = model.decode(read_all(model), states)
        loss = torch.zeros(())
        for segment, h in hidden.items():
            for logits in model.head_of(segment)(h, digits_of(model.config, segment)):
                loss = loss + logits.clamp(min=-9).square().mean()
        loss.backward()
        assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []
        gradients.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("arrangement", ["per_step", "per_dim"])
@torch.no_grad()
def test_a_digit_sees_the_digits_before_it_and_none_after(arrangement):
    model = shaken(actions_only(arrangement=arrangement))
    action = Segment.ACTION
    head, digits = model.head_of(action), digits_of(model.config, action)
    h = model.decode(read_all(model), {action: state_of(model.config, action)})[action]
    coarse, fine = head(h, digits)
    changed = digits.clone()
    changed[..., 1] = (changed[..., 1] + 1) % 16
    assert all(torch.equal(a, b) for a, b in zip(head(h, changed), (coarse, fine), strict=True))
    changed[:, 0, 0, 0] = (changed[:, 0, 0, 0] + 1) % 16
    coarse_2, fine_2 = head(h, changed)
    assert torch.equal(coarse, coarse_2)
    moved = (fine != fine_2).any(-1)
    assert moved[:, 0, 0].all() and moved.sum() == len(digits)  # of that token alone


def test_masked_digits_do_not_leak_into_the_embedding_and_every_part_of_a_state_is_heard():
    model, action = shaken(actions_only(noise_indices=4)), Segment.ACTION
    embed, digits, state = model.embedding_of(action), digits_of(model.config, action), state_of(model.config, action)
    other = torch.where(state.visible_BNSD(), digits, (digits + 5) % 16)
    assert torch.equal(embed(state), embed(unmasked(other, state.known_BNS)))
    half = torch.ones_like(state.known_BNS)
    plain = embed(unmasked(digits, half))
    for heard in (
        unmasked((digits + 1) % 16, half),
        unmasked(digits, half * 2),
        unmasked(digits, half, half),  # remasked
        unmasked(digits, half).with_noise(half),
    ):
        assert not torch.isclose(embed(heard), plain, atol=1e-6).all(-1).any()
    zeros = torch.zeros_like(digits)  # a masked digit is not the digit 0
    nothing, coarse = embed(unmasked(zeros, half * 0)), embed(unmasked(zeros, half))
    assert not torch.isclose(nothing, coarse, atol=1e-6).all(-1).any()


@torch.no_grad()
def test_only_a_whole_word_has_a_vector_of_its_own():
    model = shaken(every_segment())
    embed, state = model.embedding_of(Segment.PLAN), state_of(model.config, Segment.PLAN, batch=20)
    before = embed(state)
    embed.words += 1
    moved = (embed(state) != before).all(-1)
    assert torch.equal(moved, state.known_BNS[..., 0] == 2) and moved.any() and not moved.all()
    assert model.embedding_of(Segment.WAYPOINTS).words is None


@torch.no_grad()
def test_every_segment_has_its_own_vocabulary():
    """No logit exists for a digit that its segment does not have."""
    model = shaken(every_segment())
    context = read_all(model)
    for segment, (layout, radices) in model.config.written.items():
        head, digits = model.head_of(segment), digits_of(model.config, segment)
        h = model.decode(context, {segment: state_of(model.config, segment)})[segment]
        for d, radix in enumerate(radices or [layout.base] * layout.digits):
            logits = head.digit_logits(head.features(h), d, digits)
            assert torch.isfinite(logits[..., :radix]).all() and torch.isinf(logits[..., radix:]).all()


def test_what_a_model_does_not_know_is_refused():
    model = LatticeModel(actions_only())
    with pytest.raises(ValueError, match="cannot be asked for plan, only for instruction, action"):
        model.decode(read_all(model), {Segment.PLAN: state_of(every_segment(), Segment.PLAN)})
    with pytest.raises(ValueError, match="cannot be given waypoints, only instruction, observation"):
        model.read(None, {Segment.WAYPOINTS: given_of(every_segment(), Segment.WAYPOINTS)})
    with pytest.raises(ValueError, match="expected observations of 1 moments, got 2"):
        model.read(None, {Segment.OBSERVATION: given_of(every_segment(), Segment.OBSERVATION)})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vision": "resnet"}, "vision must be 'keypoints' or 'timm:"),
        ({"width": 36, "heads": 4}, "a whole even number"),
        ({"heads": 4, "key_heads": 3}, "a multiple of key_heads"),
        ({"codes": 4}, "codes need code_radices"),
        ({"n_obs_steps": 0}, "n_obs_steps >= 1"),
    ],
)
def test_networks_that_cannot_be_say_why(changes, message):
    with pytest.raises(ValueError, match=message):
        LatticeModel(ModelConfig(**changes))
