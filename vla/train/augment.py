# SPDX-License-Identifier: Apache-2.0
"""Observations made harder: pictures moved by a few pixels, lighter or darker; the robot's state left out.

Few demonstrations show few places; a policy then learns "this pixel means that far", for these places only. When the
picture is moved (and the state that says where the hand is, is not), only the distances *within* the picture can be
trusted, and those hold everywhere. Random shifts are from DrQ (Kostrikov et al. 2020), there for values of actions.

Shapes: B batch, H W pixels.
"""

import torch
from torch import Tensor

from vla import randomness
from vla.recipes import Recipe


def harder(
    images: dict[str, Tensor], state_BS: Tensor, key_B: Tensor, recipe: Recipe
) -> tuple[dict[str, Tensor], Tensor]:
    """What training sees in place of an observation: images a camera, and the scaled state, as the recipe says.

    Where some samples hide the state, only their pictures are moved: a state that is seen says where the hand is.
    """
    hidden_B = hidden(key_B, recipe.state_dropout)
    moved_B = hidden_B if recipe.state_dropout else ~hidden_B
    images = {camera: augment(x, key_B, recipe.shift, recipe.light, camera, moved_B) for camera, x in images.items()}
    return images, state_BS * (~hidden_B).unsqueeze(1).to(state_BS.dtype) if recipe.state_dropout else state_BS


def augment(
    image_BHWC: Tensor, key_B: Tensor, shift: int, light: float, camera: str, moved_B: Tensor | None = None
) -> Tensor:
    """uint8 (B, H, W, 3) -> the same, each sample in its own way: a pure function of (image, key, camera).

    `shift`: at most so many pixels up, down, left and right; the border is repeated. `light`: contrast and brightness
    change by up to this fraction. 0 changes nothing. `moved_B`: bool, which samples are moved; None: all.
    """
    if shift:
        by_B2 = randomness.integers(key_B, f"shift {camera}", 2 * shift + 1, 2) - shift
        image_BHWC = _moved(image_BHWC, by_B2 if moved_B is None else by_B2 * moved_B.unsqueeze(1))
    if light:
        draw_B2 = randomness.uniform(key_B, f"light {camera}", 2).to(torch.float32) * 2 - 1
        contrast_B, offset_B = (1 + light * draw_B2[:, 0]), 255 * light * draw_B2[:, 1] / 2
        gain, offset = contrast_B.view(-1, 1, 1, 1), offset_B.view(-1, 1, 1, 1)
        image_BHWC = ((image_BHWC - 127.5) * gain + (127.5 + offset)).clamp_(0, 255).to(torch.uint8)
    return image_BHWC


def hidden(key_B: Tensor, fraction: float) -> Tensor:
    """Which samples do not see the state, bool (B,): this fraction of them.

    Where the hand is says where it has been going: a network may learn to go on, and never to look at what it is going
    to. Without the state it has to look.
    """
    return randomness.uniform(key_B, "state") < fraction


def _moved(image_BHWC: Tensor, by_B2: Tensor) -> Tensor:
    """`by_B2`: int64 (B, 2), down and right, pixels."""
    batch, height, width = image_BHWC.shape[:3]
    device = image_BHWC.device
    rows_BH = (torch.arange(height, device=device) - by_B2[:, :1]).clamp(0, height - 1)
    columns_BW = (torch.arange(width, device=device) - by_B2[:, 1:]).clamp(0, width - 1)
    samples = torch.arange(batch, device=device)[:, None, None]
    return image_BHWC[samples, rows_BH[:, :, None], columns_BW[:, None, :]]
