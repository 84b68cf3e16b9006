# SPDX-License-Identifier: Apache-2.0
"""The sequence of a unified model: who may look at whom, held by perturbing one thing and looking at the rest."""

import pytest
import torch

from vla.canvas import Segment, hidden, revealed
from vla.model import Given, LatticeModel, ModelConfig

BLOCKS = (Segment.PLAN, Segment.FUTURE_IMAGE, Segment.ACTION)


def make():
    torch.manual_seed(0)
    config = ModelConfig(
        cameras=("front", "wrist"),
        image_size=16,
        vocabulary=50,
        text_length=6,
        width=32,
        layers=2,
        word_radices=(7, 8),
        plan_length=5,
        code_radices=(4, 3),
        codes=4,
    )
    model = LatticeModel(config).eval()
    for p in model.parameters():  # zero-initialised projections would hide a leak
        p.data += torch.randn_like(p) * 0.05
    return model


def inputs(model, seed=1, batch=3):
    g = torch.Generator().manual_seed(seed)
    c = model.config
    images = {k: torch.randint(0, 256, (batch, 16, 16, 3), dtype=torch.uint8, generator=g) for k in c.cameras}
    words = torch.randint(1, c.vocabulary, (batch, c.text_length), generator=g)
    words[:, 4:] = 0
    return images, torch.randn(batch, c.state_dim, generator=g), words


def state_of(model, segment, seed=1, batch=3):
    g = torch.Generator().manual_seed(seed)
    layout = model.embedding_of(segment).layout
    shape = (batch, layout.positions, layout.sub_tokens, layout.digits)
    digits = torch.randint(0, layout.base, shape, generator=g)
    return revealed(digits, torch.randint(0, layout.digits + 1, shape[:-1], generator=g))


@torch.no_grad()
@pytest.mark.parametrize("changed", BLOCKS)
def test_a_block_is_seen_by_later_ones_only(changed):
    """In particular there is no path from the actions to the image."""
    model = make()
    prefix = model.encode(*inputs(model))
    blocks = {s: state_of(model, s) for s in BLOCKS}
    before = model.decode_blocks(prefix, blocks)
    after = model.decode_blocks(prefix, blocks | {changed: state_of(model, changed, seed=2)})
    for segment in BLOCKS:
        same = torch.equal(before[segment], after[segment])
        assert same == (segment < changed), f"{changed.name} changed, {segment.name}"


@torch.no_grad()
def test_prefix_activations_do_not_depend_on_what_follows():
    """Bit for bit: the prefix is computed before the blocks, and its keys and values are never touched by them."""
    model = make()
    prefix = model.encode(*inputs(model))
    kept = [k.clone() for k in prefix.keys] + [v.clone() for v in prefix.values] + [prefix.summary_BW.clone()]
    for seed in (2, 3):
        model.decode_blocks(prefix, {s: state_of(model, s, seed) for s in BLOCKS})
        assert all(
            torch.equal(a, b) for a, b in zip(kept, [*prefix.keys, *prefix.values, prefix.summary_BW], strict=True)
        )


@torch.no_grad()
def test_a_block_alone_is_what_it_is_before_later_blocks():
    """A plan that is asked for alone is the plan of the joint question; actions alone never pay for image codes."""
    model = make()
    prefix = model.encode(*inputs(model))
    blocks = {s: state_of(model, s) for s in BLOCKS}
    together = model.decode_blocks(prefix, blocks)
    alone = model.decode_blocks(prefix, {Segment.PLAN: blocks[Segment.PLAN]})
    assert torch.allclose(together[Segment.PLAN], alone[Segment.PLAN], atol=1e-5)
    fast = model.decode_blocks(prefix, {Segment.ACTION: blocks[Segment.ACTION]})[Segment.ACTION]
    assert torch.equal(fast, model.decode(prefix, blocks[Segment.ACTION]))


@torch.no_grad()
def test_a_decided_block_need_not_be_evaluated_again():
    """Its keys and values, appended to the prefix, say to later blocks what it says itself."""
    model = make()
    prefix, blocks = model.encode(*inputs(model)), {s: state_of(model, s) for s in BLOCKS}
    there = {Segment.PLAN: torch.arange(5) < torch.tensor([[5], [2], [0]])}
    expected = model.decode_blocks(prefix, blocks, there)
    for decided in (1, 2):
        kept = prefix
        for segment in BLOCKS[:decided]:
            kept = model.append(kept, segment, blocks[segment], there.get(segment))
        found = model.decode_blocks(kept, {s: blocks[s] for s in BLOCKS[decided:]}, there)
        assert kept.decided == BLOCKS[:decided] and prefix.decided == ()
        for segment in BLOCKS[decided:]:
            assert torch.allclose(found[segment], expected[segment], atol=1e-5)
        other = model.append(prefix, BLOCKS[0], state_of(model, BLOCKS[0], seed=2), there[Segment.PLAN])
        changed = model.decode_blocks(other, {s: blocks[s] for s in BLOCKS[1:]}, there)
        assert not torch.allclose(changed[Segment.ACTION], expected[Segment.ACTION], atol=1e-4)


@torch.no_grad()
def test_positions_that_are_not_there_do_not_matter():
    model = make()
    prefix = model.encode(*inputs(model))
    blocks = {s: state_of(model, s) for s in (Segment.PLAN, Segment.ACTION)}
    there = torch.ones(3, 5, dtype=torch.bool)
    there[:, 3:] = False
    before = model.decode_blocks(prefix, blocks, {Segment.PLAN: there})
    other = state_of(model, Segment.PLAN, seed=2)
    plan = blocks[Segment.PLAN]
    kept = there[:, :, None]
    mixed = revealed(
        torch.where(kept.unsqueeze(-1), plan.digits_BNSD, other.digits_BNSD),
        torch.where(kept, plan.known_BNS, other.known_BNS),
    )
    after = model.decode_blocks(prefix, blocks | {Segment.PLAN: mixed}, {Segment.PLAN: there})
    assert torch.equal(before[Segment.ACTION], after[Segment.ACTION])
    assert torch.equal(before[Segment.PLAN][:, :3], after[Segment.PLAN][:, :3])


@torch.no_grad()
def test_what_is_given_reaches_the_blocks():
    model = make()
    images, state, words = inputs(model)
    picture = inputs(model, seed=5)[0]
    actions = state_of(model, Segment.ACTION)
    known = revealed(actions.digits_BNSD)
    plain_prefix = model.encode(images, state, words)
    prefixes = [model.with_codes(plain_prefix, torch.randint(0, 3, (3, 8, 2)))]
    block = {Segment.FUTURE_IMAGE: hidden((3, 8, 1), 2)}
    asked = model.decode_blocks(plain_prefix, block)[Segment.FUTURE_IMAGE]
    seen = set()
    for given in (
        Given(picture=picture),
        Given(picture=picture, goal=True),
        Given(actions=known),
        Given(plan=revealed(torch.zeros(3, 5, 1, 2, dtype=torch.long)), plan_BL=torch.ones(3, 5, dtype=torch.bool)),
    ):
        prefixes.append(model.encode(images, state, words, given))
    for prefix in prefixes:
        h = model.decode_blocks(prefix, block)[Segment.FUTURE_IMAGE]
        assert not torch.allclose(h, asked, atol=1e-4)
        seen.add(round(h.sum().item(), 3))
    assert len(seen) == 5


@torch.no_grad()
def test_nothing_said_is_not_a_nan_and_a_row_does_not_depend_on_the_others():
    model = make()
    images, state, words = inputs(model)
    words[1] = 0
    blocks = {s: state_of(model, s) for s in BLOCKS}
    h = model.decode_blocks(model.encode(images, state, words), blocks)
    assert all(torch.isfinite(x).all() for x in h.values())
    one = {k: v[1:2] for k, v in images.items()}
    pick = {s: revealed(b.digits_BNSD[1:2], b.known_BNS[1:2]) for s, b in blocks.items()}
    alone = model.decode_blocks(model.encode(one, state[1:2], words[1:2]), pick)
    for segment in BLOCKS:
        assert torch.allclose(alone[segment][0], h[segment][1], atol=1e-5)


def test_every_segment_has_its_own_vocabulary():
    """No logit exists for a digit that its segment does not have."""
    model = make()
    prefix = model.encode(*inputs(model))
    for segment in (Segment.PLAN, Segment.FUTURE_IMAGE):
        head = model.head_of(segment)
        h = model.decode_blocks(prefix, {segment: state_of(model, segment)})[segment]
        digits = state_of(model, segment).digits_BNSD
        radices = model.config.ports[segment][1]
        for d, radix in enumerate(radices):
            logits = head.digit_logits(head.features(h), d, digits.clamp(max=min(radices) - 1))
            assert torch.isfinite(logits[..., :radix]).all()
            assert torch.isinf(logits[..., radix:]).all()


def test_a_policy_cannot_be_asked_for_what_it_has_not_learnt():
    model = LatticeModel(ModelConfig(image_size=16, width=32, heads=2))
    with pytest.raises(ValueError, match="cannot be asked for plan"):
        model.head_of(Segment.PLAN)
