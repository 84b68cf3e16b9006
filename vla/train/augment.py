# SPDX-License-Identifier: Apache-2.0
"""Augmentation: pictures moved by a few pixels, lighter or darker.

Few demonstrations show few places; a policy then learns "this pixel means that far", for these places only. When the
picture is moved (and the state that says where the hand is, is not), only the distances *within* the picture can be
trusted, and those hold everywhere. Random shifts are from DrQ (Kostrikov et al. 2020), there for values of actions.

Shapes: B batch, H W pixels.
"""

import torch
from torch import Tensor

from vla import randomness
from vla.recipes import Recipe


def augmented(images: dict[str, Tensor], key_B: Tensor, recipe: Recipe) -> dict[str, Tensor]:
    """What training sees in place of pictures, as the recipe says: a camera, uint8 (B, H, W, 3) or (B, M, H, W, 3).

    All moments of a sample, its goal and its future are changed in the same way.
    """
    if not (recipe.shift or recipe.light):
        return images
    changed = {}
    for camera, x in images.items():
        moments = x.shape[1] if x.ndim == 5 else 1
        flat = x.flatten(0, 1) if x.ndim == 5 else x
        key = key_B.repeat_interleave(moments)
        changed[camera] = augment(flat, key, recipe.shift, recipe.light, camera).view(x.shape)
    return changed


def augment(image_BHWC: Tensor, key_B: Tensor, shift: int, light: float, camera: str) -> Tensor:
    """uint8 (B, H, W, 3) -> the same, each sample in its own way: a pure function of (image, key, camera).

    `shift`: at most so many pixels up, down, left and right; the border is repeated. `light`: contrast and brightness
    change by up to this fraction. 0 changes nothing.
    """
    if shift:
        by_B2 = randomness.integers(key_B, f"shift {camera}", 2 * shift + 1, 2) - shift
        image_BHWC = _moved(image_BHWC, by_B2)
    if light:
        draw_B2 = randomness.uniform(key_B, f"light {camera}", 2).to(torch.float32) * 2 - 1
        contrast_B, offset_B = (1 + light * draw_B2[:, 0]), 255 * light * draw_B2[:, 1] / 2
        gain, offset = contrast_B.view(-1, 1, 1, 1), offset_B.view(-1, 1, 1, 1)
        image_BHWC = ((image_BHWC - 127.5) * gain + (127.5 + offset)).clamp_(0, 255).to(torch.uint8)
    return image_BHWC


def _moved(image_BHWC: Tensor, by_B2: Tensor) -> Tensor:
    """`by_B2`: int64 (B, 2), down and right, pixels."""
    batch, height, width = image_BHWC.shape[:3]
    device = image_BHWC.device
    rows_BH = (torch.arange(height, device=device) - by_B2[:, :1]).clamp(0, height - 1)
    columns_BW = (torch.arange(width, device=device) - by_B2[:, 1:]).clamp(0, width - 1)
    samples = torch.arange(batch, device=device)[:, None, None]
    return image_BHWC[samples, rows_BH[:, :, None], columns_BW[:, None, :]]
