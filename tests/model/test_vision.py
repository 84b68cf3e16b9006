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


def test_a_timm_backbone_gives_tokens_that_hear_the_words():
    torch.manual_seed(0)
    pytest.importorskip("timm")
    vision = build_vision("timm:test_resnet", 16, 64).eval()
    image, words = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8), torch.randn(2, 16)
    tokens = vision(image, words)
    assert tokens.shape == (2, vision.tokens, 16)
    assert not torch.allclose(vision(image, words + 1), tokens, atol=1e-5)
