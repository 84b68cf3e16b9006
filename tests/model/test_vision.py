# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from vla.model.vision import GAIN, build_vision, soft_argmax


def test_soft_argmax_finds_the_peak_and_its_gradient_is_the_numerical_one():
    maps = torch.zeros(1, 2, 5, 9, dtype=torch.float32)
    maps[0, 0, 1, 8] = maps[0, 1, 4, 4] = 50.0
    x0, x1, y0, y1 = (soft_argmax(maps) / GAIN)[0, :4].tolist()
    assert (x0, y0, x1, y1) == pytest.approx((1.0, -0.5, 0.0, 1.0), abs=1e-4)
    random = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    weight = torch.randn(2, 9, generator=torch.Generator().manual_seed(1))
    (soft_argmax(random) * weight).sum().backward()
    with torch.no_grad():
        for index in [(0, 0, 0, 0), (1, 2, 3, 4), (0, 1, 2, 2)]:
            step = torch.zeros_like(random)
            step[index] = 1e-2
            slope = ((soft_argmax(random + step) - soft_argmax(random - step)) * weight).sum() / 2e-2
            assert random.grad[index].item() == pytest.approx(slope.item(), abs=2e-3)


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "tokens", "prefix"),
    [("test_resnet", 4, 0), ("test_mambaout", 4, 0), ("test_vit", 16, 1)],  # channels first, channels last, a sequence
)
def test_a_timm_backbone_gives_the_squares_of_its_last_map_as_tokens(name, tokens, prefix):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    vision = build_vision(f"timm:{name}", 16, 64).eval()
    vision.body.head = torch.nn.Identity()
    image, words = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8), torch.randn(2, 16)
    found = vision(image, words)
    assert found.shape == (2, tokens, 16) and vision.tokens == tokens and vision.where_TC.shape == (tokens, 4)
    assert not torch.allclose(vision(image, words + 1), found, atol=1e-5)  # they hear the words

    # The features themselves: normalised as the model's configuration says, patches without class tokens, row by row.
    mean, deviation = (torch.tensor(timm.get_pretrained_cfg(name).to_dict()[k]) for k in ("mean", "std"))
    features = vision.body.forward_features(((image / 255 - mean) / deviation).permute(0, 3, 1, 2))
    if name == "test_vit":
        assert features.shape[1] == tokens + prefix
        expected = features[:, prefix:]
    else:
        channels_last = features.shape[-1] == vision.body.num_features
        expected = (features if channels_last else features.permute(0, 2, 3, 1)).flatten(1, 2)
    vision.film.weight.zero_()
    vision.project = torch.nn.Identity()
    assert torch.allclose(vision(image, words), expected, atol=1e-5)


def test_what_differs_from_the_background_is_seen_and_the_background_is_not():
    torch.manual_seed(0)
    usual = torch.randint(60, 200, (1, 32, 32, 3), dtype=torch.uint8)
    pictures = usual.repeat(50, 1, 1, 1)
    pictures[:, 4] = torch.randint(0, 255, (50, 32, 3), dtype=torch.uint8)  # a row that is never the same
    stem = build_vision("keypoints", 16, 32, background=True)
    stem.fit_background(pictures)
    assert torch.equal(stem.mean_HWC[5:], usual[0, 5:].float()) and stem.spread_HW1[4].min() > stem.spread_HW1[5].max()
    seen = []
    stem.conv_1.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0][:, 3:]))
    thing = usual.clone()
    thing[:, 20:22, 9:11] = 255 - thing[:, 20:22, 9:11]
    stem(torch.cat([usual, thing]), torch.zeros(2, 16))
    assert seen[0][0, :, 5:].abs().max() < 1e-5
    there = seen[0][1].abs().amax(0) > 1e-5
    assert there[20:22, 9:11].all() and there[5:].sum() == 4
    assert stem.state_dict().keys() > build_vision("keypoints", 16, 32).state_dict().keys()
    with pytest.raises(ValueError, match="background=false"):
        build_vision("timm:resnet18", 16, 32, background=True)
