# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from vla.canvas import Segment, attention_mask, hidden, revealed
from vla.model import LatticeModel, ModelConfig


def make(arrangement="per_step", cameras=("front",)):
    torch.manual_seed(0)
    config = ModelConfig(
        cameras=cameras,
        image_size=16,
        vocabulary=50,
        text_length=6,
        width=32,
        layers=2,
        arrangement=arrangement,
        quality=True,
    )
    model = LatticeModel(config).eval()
    for p in model.parameters():  # zero-initialised projections would hide a leak
        p.data += torch.randn_like(p) * 0.05
    return model


def inputs(model, batch=3):
    generator = torch.Generator().manual_seed(1)
    c = model.config
    images = {k: torch.randint(0, 256, (batch, 16, 16, 3), dtype=torch.uint8, generator=generator) for k in c.cameras}
    words = torch.randint(1, c.vocabulary, (batch, c.text_length), generator=generator)
    words[:, 4:] = 0
    digits = torch.randint(0, 16, (batch, c.layout.positions, c.layout.sub_tokens, 2), generator=generator)
    known = torch.randint(0, 3, digits.shape[:3], generator=generator)
    return (
        images,
        torch.randn(batch, c.state_dim, generator=generator),
        words,
        revealed(digits, known),
        digits,
    )


@pytest.mark.parametrize("arrangement", ["per_step", "per_dim"])
def test_cached_equals_uncached(arrangement):
    """One pass over [prefix, canvas] under the published attention mask gives what the cache gives."""
    model = make(arrangement)
    images, state, words, canvas, _ = inputs(model)
    prefix = model.encode(images, state, words)
    cached = model.decode(prefix, canvas)

    x_prefix = {}
    block = model.blocks[0]
    original = block.forward

    def spy(x, visible, past=None):
        if past is None:
            x_prefix["x"] = x
        return original(x, visible, past)

    block.forward = spy
    model.encode(images, state, words)
    block.forward = original
    x = torch.cat([x_prefix["x"], model.canvas(canvas) + prefix.summary_BW.unsqueeze(1)], dim=1)
    observed = x_prefix["x"].shape[1]
    segments = [Segment.OBSERVATION] * observed + [Segment.ACTION] * model.config.layout.positions
    real = torch.cat(
        [prefix.visible_BP, torch.ones(len(words), model.config.layout.positions, dtype=torch.bool)], dim=1
    )
    mask = attention_mask(segments)[None, None] & real[:, None, None, :]
    for layer in model.blocks:
        x, _ = layer(x, mask)
    assert torch.allclose(model.norm(x[:, observed:]), cached, atol=1e-5)


@pytest.mark.parametrize("arrangement", ["per_step", "per_dim"])
def test_perturbing_one_input_reaches_what_it_should_and_nothing_else(arrangement):
    model = make(arrangement)
    images, state, words, canvas, _ = inputs(model)
    reference = model.encode(images, state, words)
    h = model.decode(reference, canvas)

    other = hidden(tuple(canvas.known_BNS.shape), 2)
    assert not torch.allclose(model.decode(reference, other), h)  # the canvas is read
    again = model.encode(images, state, words)
    assert all(
        torch.equal(a, b) for a, b in zip(reference.keys, again.keys, strict=True)
    )  # and never changes the prefix

    for change in ("image", "state", "word"):
        images_2, state_2, words_2 = {k: v.clone() for k, v in images.items()}, state.clone(), words.clone()
        if change == "image":
            images_2["front"][0] = 255 - images_2["front"][0]
        elif change == "state":
            state_2[0] += 1
        else:
            words_2[0, 1] = 1 + words_2[0, 1] % (model.config.vocabulary - 1)
        moved = model.decode(model.encode(images_2, state_2, words_2), canvas)
        assert not torch.allclose(moved[0], h[0], atol=1e-6), change
        assert torch.allclose(moved[1:], h[1:], atol=1e-6), change  # other rows do not notice


def test_padding_words_are_never_looked_at():
    model = make()
    images, state, words, canvas, _ = inputs(model)
    h = model.decode(model.encode(images, state, words), canvas)
    with torch.no_grad():
        model.word.weight[0] += 100.0  # the embedding of padding
    assert torch.allclose(model.decode(model.encode(images, state, words), canvas), h, atol=1e-5)


@pytest.mark.parametrize("arrangement", ["per_step", "per_dim"])
def test_a_digit_sees_the_digits_before_it_and_none_after(arrangement):
    model = make(arrangement)
    images, state, words, canvas, digits = inputs(model)
    (coarse, fine), _ = model(images, state, words, canvas, digits)
    changed = digits.clone()
    changed[..., 1] = (changed[..., 1] + 1) % 16
    (coarse_2, fine_2), _ = model(images, state, words, canvas, changed)
    assert torch.equal(coarse, coarse_2) and torch.equal(fine, fine_2)
    changed[..., 0] = (changed[..., 0] + 1) % 16
    (coarse_3, fine_3), _ = model(images, state, words, canvas, changed)
    assert torch.equal(coarse, coarse_3) and not torch.allclose(fine, fine_3)


def test_hidden_digits_do_not_leak_into_the_embedding():
    model = make()
    _, _, _, canvas, digits = inputs(model)
    other = torch.where(canvas.visible_BNSD(), digits, (digits + 5) % 16)
    assert torch.equal(model.canvas(canvas), model.canvas(revealed(other, canvas.known_BNS)))


def test_every_parameter_gets_a_gradient():
    model = make(cameras=("front", "wrist"))
    images, state, words, canvas, digits = inputs(model)
    logits, quality = model(images, state, words, canvas, digits)
    sum(x.square().mean() for x in (*logits, quality)).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_unknown_vision_is_refused():
    with pytest.raises(ValueError, match="keypoints"):
        LatticeModel(ModelConfig(vision="resnet"))
