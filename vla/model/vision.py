# SPDX-License-Identifier: Apache-2.0
"""Images to prefix tokens. Two encoders: a small keypoint network for CPUs, and any backbone of `timm`.

Shapes: B batch, H W pixels, C channels, K keypoints, T tokens a camera, D width.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vla.model.embedding import along, on_grid


class KeypointStem(nn.Module):
    """Three convolutions, conditioned on the words by FiLM, read out by a spatial soft-argmax.

    The words scale and shift the feature maps (FiLM, Perez et al. 2018), so that maps can mean "the block that is
    talked about"; the soft-argmax (Levine et al. 2016) turns each map into the coordinates of its mass. A network of
    50 k parameters localises named objects to a fraction of a pixel after minutes of training, where patch tokens of
    the same budget learn nothing (LOG.md). The maps have a quarter of the picture's side: with half of it, the hand was
    found less well, and in twice the time (LOG.md, 2026-11-28).

    `background` > 0, the side of the pictures, for a camera that stands still: it also sees how each pixel differs from
    its mean over the dataset, in standard deviations. A puck of three pixels then stands out, wherever it lies.
    """

    def __init__(self, width: int, tokens: int = 2, keypoints: int = 64, background: int = 0) -> None:
        super().__init__()
        self.tokens, self.keypoints = tokens, keypoints
        self.register_buffer("where_TC", along(tokens, axis=2), persistent=False)
        self.where_TC: Tensor
        self.mean_HWC: Tensor | None
        self.register_buffer("mean_HWC", torch.zeros(background, background, 3) if background else None)
        self.register_buffer("spread_HW1", torch.ones(background, background, 1) if background else None)
        self.conv_1 = nn.Conv2d(6 if background else 3, 32, 5, stride=2, padding=2)
        self.conv_2 = nn.Conv2d(32, 32, 3, stride=2, padding=1)
        self.conv_3 = nn.Conv2d(32, keypoints, 3, padding=1)
        self.film_2, self.film_3 = nn.Linear(width, 64), nn.Linear(width, 2 * keypoints)
        self.readout = nn.Linear(3 * keypoints, tokens * width)

    def fit_background(self, image_NHWC: Tensor) -> None:
        """Learn what usually is where from uint8 (N, H, W, 3). No effect without `background`."""
        if self.mean_HWC is not None:
            pictures_NHWC = image_NHWC.to(torch.float32)
            self.mean_HWC.copy_(pictures_NHWC.mean(0))
            self.spread_HW1.copy_(pictures_NHWC.var(0, correction=0).mean(-1, keepdim=True).sqrt() + QUIET)

    def forward(self, image_BHWC: Tensor, words_BD: Tensor) -> Tensor:
        """uint8 (B, H, W, 3), float (B, D) -> float (B, T, D)."""
        if self.mean_HWC is not None:
            differs_BHWC = ((image_BHWC - self.mean_HWC) / self.spread_HW1).clamp(-4, 4)
            image_BHWC = torch.cat([image_BHWC, 127.5 * (differs_BHWC + 1)], dim=-1)
        # NHWC storage seen as NCHW is exactly torch's channels_last: no copy, here and below.
        x_BCHW = image_BHWC.permute(0, 3, 1, 2).to(torch.float32) * (1 / 127.5) - 1
        x_BCHW = F.relu(self.conv_1(x_BCHW))
        x_BCHW = F.relu(film(self.conv_2(x_BCHW), self.film_2(words_BD)))
        maps_BKHW = film(self.conv_3(x_BCHW), self.film_3(words_BD), SHARPNESS)
        return self.readout(soft_argmax(maps_BKHW)).unflatten(-1, (self.tokens, -1))


QUIET = 8.0
"""Of 255: what is added to every pixel's standard deviation, so that one that never changed does not decide."""


SHARPNESS = 4.0
"""Of the soft-argmax at the start of training: flat maps have no gradient worth following."""


GAIN = 8.0


def film(x_BCHW: Tensor, scale_shift_BF: Tensor, gain: float = 1.0) -> Tensor:
    """gain * (x * (1 + scale) + shift), a scale and a shift for each channel of each sample."""
    scale, shift = (gain * scale_shift_BF)[:, :, None, None].chunk(2, dim=1)
    return torch.addcmul(shift.to(x_BCHW.dtype), x_BCHW, (gain + scale).to(x_BCHW.dtype))


def soft_argmax(maps_BKHW: Tensor) -> Tensor:
    """Expected x and y, in [-1, 1], of every map's mass, and its spread (the variance of both): float32 (B, 3 K)."""
    x_BK, y_BK, square_BK = _Moments.apply(maps_BKHW)
    return torch.cat([GAIN * x_BK, GAIN * y_BK, square_BK - x_BK * x_BK - y_BK * y_BK], dim=-1)


class _Moments(torch.autograd.Function):
    """E[x], E[y], E[x^2 + y^2] under the softmax of each map. The moments are separable, so neither direction needs
    a matrix product with the grid: written out, this is 4x faster than autograd (a third of a training step)."""

    @staticmethod
    def forward(ctx: Any, maps_BKHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        height, width = maps_BKHW.shape[-2:]
        channels_last = maps_BKHW.permute(0, 2, 3, 1)
        mass_BPK = channels_last.flatten(1, 2).softmax(1, dtype=torch.float32)
        mass_BHWK = mass_BPK.unflatten(1, (height, width))
        x_W1 = torch.linspace(-1, 1, width, device=maps_BKHW.device).unsqueeze(1)
        y_H1 = torch.linspace(-1, 1, height, device=maps_BKHW.device).unsqueeze(1)
        by_x_BWK, by_y_BHK = mass_BHWK.sum(1), mass_BHWK.sum(2)
        x_BK, y_BK = (by_x_BWK * x_W1).sum(1), (by_y_BHK * y_H1).sum(1)
        square_BK = (by_x_BWK * x_W1.square()).sum(1) + (by_y_BHK * y_H1.square()).sum(1)
        ctx.save_for_backward(mass_BHWK, x_W1, y_H1, x_BK, y_BK, square_BK)
        ctx.dtype = maps_BKHW.dtype
        return x_BK, y_BK, square_BK

    @staticmethod
    def backward(ctx: Any, gx_BK: Tensor, gy_BK: Tensor, gs_BK: Tensor) -> Tensor:  # type: ignore[override]
        mass_BHWK, x_W1, y_H1, x_BK, y_BK, square_BK = ctx.saved_tensors
        mean_BK = gx_BK * x_BK + gy_BK * y_BK + gs_BK * square_BK
        along_x_BWK = gx_BK[:, None] * x_W1 + gs_BK[:, None] * x_W1.square() - mean_BK[:, None]
        along_y_BHK = gy_BK[:, None] * y_H1 + gs_BK[:, None] * y_H1.square()
        grad_BHWK = (along_x_BWK[:, None] + along_y_BHK[:, :, None]).mul_(mass_BHWK)
        return grad_BHWK.to(ctx.dtype).permute(0, 3, 1, 2)


class TimmBackbone(nn.Module):
    """A `timm` model whose last feature map becomes tokens, e.g. "timm:vit_small_patch16_224", from scratch.

    Pictures are normalised by the mean and deviation that the model's configuration names. The words are added as a
    FiLM on the features, as above.
    """

    def __init__(self, name: str, width: int, image_size: int) -> None:
        super().__init__()
        import timm

        try:
            self.body = timm.create_model(name, num_classes=0, img_size=image_size)
        except TypeError:  # a network of convolutions takes any size
            self.body = timm.create_model(name, num_classes=0)
        mean, deviation = (torch.tensor(self.body.default_cfg[k]).view(3, 1, 1) for k in ("mean", "std"))
        self.register_buffer("mean_C11", mean, persistent=False)
        self.register_buffer("deviation_C11", deviation, persistent=False)
        self.film = nn.Linear(width, 2 * self.body.num_features)
        nn.init.normal_(self.film.weight, std=0.02)
        nn.init.zeros_(self.film.bias)
        self.project = nn.Linear(self.body.num_features, width)
        training = self.body.training
        with torch.no_grad():
            self.tokens = self._features(self.body.eval(), torch.zeros(1, 3, image_size, image_size)).shape[1]
        self.body.train(training)
        side = math.isqrt(self.tokens)
        where_TC = on_grid(side) if side * side == self.tokens else along(self.tokens, axis=2)
        self.where_TC: Tensor
        self.register_buffer("where_TC", where_TC, persistent=False)

    @staticmethod
    def _features(body: Any, x_BCHW: Tensor) -> Tensor:
        """float (B, T, F): patches, without class and register tokens; or the squares of a feature map."""
        x = body.forward_features(x_BCHW)
        if x.ndim == 3:
            return x[:, getattr(body, "num_prefix_tokens", 0) :]
        if x.shape[-1] == body.num_features and x.shape[1] != body.num_features:  # channels last, as of swin
            return x.flatten(1, 2)
        return x.flatten(2).transpose(1, 2)

    def forward(self, image_BHWC: Tensor, words_BD: Tensor) -> Tensor:
        """uint8 (B, H, W, 3), float (B, D) -> float (B, T, D)."""
        x_BCHW = image_BHWC.permute(0, 3, 1, 2).to(torch.float32) / 255
        x_BTF = self._features(self.body, (x_BCHW - self.mean_C11) / self.deviation_C11)
        scale, shift = self.film(words_BD).unsqueeze(1).chunk(2, dim=-1)
        return self.project(torch.addcmul(shift, x_BTF, 1 + scale))


def build_vision(name: str, width: int, image_size: int, background: bool = False) -> nn.Module:
    """`name`: "keypoints" or "timm:<model>". Raises ValueError for anything else, and for one without background."""
    if name == "keypoints":
        return KeypointStem(width, background=image_size if background else 0)
    if background:
        raise ValueError(f"only vision 'keypoints' knows a background, got {name!r}: set background=false")
    if name.startswith("timm:"):
        return TimmBackbone(name.removeprefix("timm:"), width, image_size)
    raise ValueError(f"vision must be 'keypoints' or 'timm:<model name>', got {name!r}")
