# SPDX-License-Identifier: Apache-2.0
"""Validation on held-out episodes: the loss, and the error of sampled actions in the dataset's units."""

from typing import Any

import numpy as np
import torch

from vla import randomness
from vla.data.batches import Batches
from vla.diffusion import sample

_BATCHES = 4


@torch.no_grad()
def validate(s: Any) -> dict[str, float]:
    """{"val_loss", "val_mae"}: the same frames, masks and noise each time, averaged weights. {} without data."""
    if not len(s.val_episodes):
        return {}
    model, tokenizer = s.averaged.eval(), s.tokenizers.action
    clipped = tokenizer.clipped
    batches = Batches(s.cache, s.recipe.horizon, s.recipe.batch_size, 1, s.val_episodes)
    losses, errors = [], []
    for step in range(_BATCHES):
        batch = batches.batch(step)
        losses.append(s.losses(batch, -1 - step, model)["loss"].item())
        with s.autocast():
            prefix = model.encode(*s.inputs(batch))
            key_B = randomness.fold(s.seed, step, torch.arange(len(batch["state"]))).to(s.device)
            result = sample(model, prefix, key_B, s.recipe.sampling)
        layout = model.config.layout
        offset = layout.unfold(result.fine_offset_BNS) if s.recipe.sampling.expectation else None
        actions = tokenizer.decode(layout.unfold(result.state.digits_BNSD), offset).cpu().numpy()
        errors.append(np.abs(actions - batch["actions"])[~batch["is_pad"]].mean())
    tokenizer.clipped = clipped
    return {"val_loss": float(np.mean(losses)), "val_mae": float(np.mean(errors))}
