# SPDX-License-Identifier: Apache-2.0
"""Pictures as digits: a small convolutional autoencoder with finite scalar quantisation (FSQ).

FSQ (Mentzer et al. 2024, arXiv 2309.15505) rounds each of D numbers to a few levels; there is no codebook that could
collapse, every string of digits decodes, and neighbouring digits mean similar things. A code stands for 8 x 8 pixels
and is written as D digits, by default of radices (8, 5, 5, 5).

Small things on a large, still background are what a robot needs and what an autoencoder loses first. So the network
sees, and predicts, how a picture differs from its camera's *background*: each pixel's median over the dataset, kept
with the weights. For a camera that moves it is a plain grey, and the network sees and predicts the picture itself.

One tokenizer serves all cameras; each camera has its own N positions. It needs torch and safetensors alone; training
is in vla/train/image_tokenizer.py.

Shapes: B pictures, H W = S S pixels, C channels, N = grid * grid positions (row by row), D digits of a code.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vla.canvas import Numerals

PATCH = 8
"""Side of the square of pixels that a code stands for."""
GREY = 128
VERSION = 2
_NEAR = 12
"""Of 255: a pixel this near to the background shows the background."""
_STILL = 0.5
"""A camera stands still if this part of its pixels shows the background, over many pictures."""
Quantise = Callable[[Tensor], Tensor]


class Residual(nn.Module):
    """x + f(x) with two convolutions, 3 x 3 and `last` x `last`; float (B, C, H, W) -> the same.

    The encoder has `last` = 1: what it sees less far changes fewer codes when a hand moves (LOG.md, 2026-11-26).
    Without a norm: the networks are shallow, and a norm over the picture (GroupNorm) lets a hand that moves change the
    codes of a block that does not. Measured, it also trains worse.
    """

    def __init__(self, width: int, last: int = 3) -> None:
        super().__init__()
        self.conv_1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv_2 = nn.Conv2d(width, width, last, padding=last // 2)
        nn.init.zeros_(self.conv_2.weight)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return x_BCHW + self.conv_2(F.relu(self.conv_1(F.relu(x_BCHW))))


class ImageTokenizer(nn.Module):
    """uint8 (B, S, S, 3) <-> int64 (B, N, D), N = (S / 8)^2.

    Args:
        image_size: S, a multiple of 8 from 64 to 128: 64 to 256 positions.
        levels: the radices of the digits, each at least 3.
        width: channels of the network, a multiple of 16.
        cameras: those that have a background of their own (`fit_background`); none: grey for all.
    ValueError for anything else.
    """

    def __init__(
        self, image_size: int, levels: tuple[int, ...] = (8, 5, 5, 5), width: int = 64, cameras: tuple[str, ...] = ()
    ) -> None:
        super().__init__()
        if image_size % PATCH or not 64 <= image_size <= 128:
            raise ValueError(f"expected an image_size of 64, 72, ... 128 pixels, got {image_size}; resize the pictures")
        if not levels or min(levels) < 3:
            raise ValueError(f"expected a number of levels >= 3 for each digit, got {levels}")
        if width < 16 or width % 16:
            raise ValueError(f"expected a width of 16, 32, ..., got {width}")
        if len(set(cameras)) < len(cameras):
            raise ValueError(f"expected cameras of different names, got {cameras}")
        self.image_size, self.levels, self.width, self.cameras = image_size, tuple(levels), width, tuple(cameras)
        backgrounds_CHWC = torch.full((max(len(cameras), 1), image_size, image_size, 3), GREY, dtype=torch.uint8)
        self.backgrounds_CHWC: Tensor
        self.register_buffer("backgrounds_CHWC", backgrounds_CHWC)
        self.levels_D: Tensor
        self.register_buffer("levels_D", torch.tensor(self.levels, dtype=torch.int32), persistent=False)
        half, digits = width // 2, len(levels)
        self.encoder = nn.Sequential(
            nn.Conv2d(3, half, 8, stride=4, padding=2),
            nn.ReLU(),
            nn.Conv2d(half, width, 4, stride=2, padding=1),
            Residual(width, last=1),
            nn.ReLU(),
            nn.Conv2d(width, digits, 1),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(digits, width, 3, padding=1),
            Residual(width),
            nn.ReLU(),
            nn.Conv2d(width, 4 * half, 1),
            nn.PixelShuffle(2),
            nn.ReLU(),
            nn.Conv2d(half, half, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(half, 3 * 16, 3, padding=1),
            nn.PixelShuffle(4),
        )

    # ---- what a canvas has to know -----------------------------------------------------------------------------

    @property
    def grid(self) -> int:
        """Codes along a side."""
        return self.image_size // PATCH

    @property
    def positions(self) -> int:
        """N, codes of a picture."""
        return self.grid**2

    @property
    def digits(self) -> int:
        """D, digits of a code."""
        return len(self.levels)

    @property
    def numerals(self) -> Numerals:
        """How a code is written: the levels are the radices."""
        return Numerals(self.levels)

    @property
    def parameter_count(self) -> int:
        return sum(p.numel() for p in self.parameters())

    # ---- pictures to digits and back ---------------------------------------------------------------------------

    @torch.no_grad()
    def encode(self, image_BHWC: Tensor, camera: str | None = None) -> Tensor:
        """uint8 (B, S, S, 3) -> int64 (B, N, D), digit d in 0..levels[d]-1.

        `camera`: whose picture it is; None will do where there are not several backgrounds. ValueError for another
        size, another dtype, or a camera that is not known.
        """
        level_BND = bound(self._latent(image_BHWC, camera), self.levels_D).round()
        return level_BND.to(torch.int64) + self.levels_D // 2

    @torch.no_grad()
    def decode(self, digits_BND: Tensor, camera: str | None = None) -> Tensor:
        """int64 (B, N, D) -> uint8 (B, S, S, 3). Total: a digit beyond its radix counts as the largest one.

        `camera` as in `encode`. ValueError for another shape, or digits that are not whole numbers.
        """
        if digits_BND.shape[1:] != (self.positions, self.digits) or digits_BND.is_floating_point():
            raise ValueError(
                f"expected digits of shape (B, {self.positions}, {self.digits}), whole numbers, got "
                f"{tuple(digits_BND.shape)}, {digits_BND.dtype}; these are not the digits of this tokenizer"
            )
        half_D = self.levels_D // 2
        code_BND = (torch.minimum(digits_BND.clamp(min=0), self.levels_D - 1) - half_D) / half_D
        return self._picture(code_BND, camera).round_().clamp_(0, 255).to(torch.uint8)

    def forward(self, image_BHWC: Tensor, camera: str | None = None, quantise: Quantise | None = None) -> Tensor:
        """The reconstruction, float32 (B, S, S, 3), 0..255 but not clipped; for training.

        `quantise`: float (B, N, D) -> float (B, N, D), codes in [-1, 1] with a gradient that goes straight through
        the rounding, as the FSQ of vector-quantize-pytorch. None: no gradient for the encoder.
        """
        latent_BND = self._latent(image_BHWC, camera)
        if quantise is not None:
            return self._picture(quantise(latent_BND), camera)
        return self._picture(bound(latent_BND, self.levels_D).round() / (self.levels_D // 2), camera)

    def _latent(self, image_BHWC: Tensor, camera: str | None) -> Tensor:
        """float32 (B, N, D), before it is bounded and rounded."""
        side = self.image_size
        if image_BHWC.shape[1:] != (side, side, 3) or image_BHWC.dtype != torch.uint8:
            raise ValueError(
                f"expected pictures of shape (B, {side}, {side}, 3), uint8, got {tuple(image_BHWC.shape)}, "
                f"{image_BHWC.dtype}; resize them, or train an image tokenizer for this size"
            )
        differs_BHWC = (image_BHWC.to(torch.float32) - self.background(camera)) * (1 / 127.5)
        # NHWC storage seen as NCHW is exactly torch's channels_last: no copy.
        return self.encoder(differs_BHWC.permute(0, 3, 1, 2)).flatten(2).transpose(1, 2)

    def _picture(self, code_BND: Tensor, camera: str | None) -> Tensor:
        """float32 (B, S, S, 3), 0..255."""
        code_BCHW = code_BND.transpose(1, 2).unflatten(2, (self.grid, self.grid))
        return self.decoder(code_BCHW).permute(0, 2, 3, 1) * 127.5 + self.background(camera)

    # ---- backgrounds -------------------------------------------------------------------------------------------

    def background(self, camera: str | None = None) -> Tensor:
        """uint8 (S, S, 3), of a camera. ValueError if it has none; grey where no camera has."""
        if not self.cameras or (camera is None and len(self.cameras) == 1):
            return self.backgrounds_CHWC[0]
        if camera not in self.cameras:
            raise ValueError(f"expected one of the cameras {', '.join(self.cameras)}, got {camera}; say whose picture")
        return self.backgrounds_CHWC[self.cameras.index(camera)]

    @torch.no_grad()
    def fit_background(self, image_NHWC: Tensor, camera: str) -> bool:
        """Take each pixel's median over uint8 (N, S, S, 3) for a camera's background, N in the hundreds.

        Returns whether that is what it usually shows; if not, the camera moves, and the background is grey.
        """
        median_HWC = image_NHWC.median(0).values
        far_NHW = (image_NHWC.to(torch.int16) - median_HWC).abs().amax(-1) > _NEAR
        still = 1 - far_NHW.float().mean().item() >= _STILL
        self.background(camera).copy_(median_HWC if still else torch.full_like(median_HWC, GREY))
        return still

    # ---- on disk -----------------------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """Write `image_tokenizer.json` (the shape) and `image_tokenizer.safetensors` (weights and backgrounds)."""
        about: dict[str, Any] = {name: getattr(self, name) for name in ("image_size", "levels", "width", "cameras")}
        (folder / "image_tokenizer.json").write_text(json.dumps({"version": VERSION, **about}, indent=2))
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        save_file(tensors, folder / "image_tokenizer.safetensors")

    @classmethod
    def load(cls, folder: Path) -> "ImageTokenizer":
        """Read what `save` wrote, on the CPU. ValueError if it is missing, damaged, or of another version."""
        path = folder / "image_tokenizer.json"
        if not path.is_file():
            raise ValueError(f"no image tokenizer in '{folder}': expected {path.name}; train one: vla train-tokenizer")
        about = json.loads(path.read_text())
        if about.pop("version", None) != VERSION:
            raise ValueError(f"expected an image tokenizer of version {VERSION} in '{folder}'; train it anew")
        self = cls(about["image_size"], tuple(about["levels"]), about["width"], tuple(about["cameras"]))
        try:
            self.load_state_dict(load_file(folder / "image_tokenizer.safetensors"))
        except (OSError, SafetensorError, RuntimeError) as error:
            raise ValueError(f"the image tokenizer in '{folder}' is damaged: {error}; copy it again") from error
        return self.eval()


def bound(z: Tensor, levels_D: Tensor) -> Tensor:
    """float32 (..., D) -> the same, squashed such that rounding gives levels[d] values around 0 for digit d.

    Equation (1) of the paper, in the order of vector-quantize-pytorch, so that the digits are exactly the same.
    """
    half_D = (levels_D - 1) * (1 + 1e-3) / 2
    offset_D = torch.where(levels_D % 2 == 0, 0.5, 0.0)
    return torch.tanh(z + torch.atanh(offset_D / half_D)) * half_D - offset_D
