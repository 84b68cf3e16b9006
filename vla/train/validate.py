# SPDX-License-Identifier: Apache-2.0
"""Validation on held-out episodes: the loss, and the error of sampled actions in the dataset's units."""

from typing import Any

import numpy as np
import torch

from vla import processes, randomness
from vla.data.batches import Batches
from vla.diffusion import sample

_BATCHES = 4


@torch.no_grad()
def validate(s: Any) -> dict[str, float]:
    """{"val_loss", "val_mae"}: the same frames, masks and noise each time, averaged weights. {} without data."""
    if not len(s.val_episodes):
        return {}
    model, tokenizer = s.acting(), s.tokenizers.action
    clipped = tokenizer.clipped
    mine = (processes.rank(), processes.world())
    batches = Batches(s.cache, s.recipe.horizon, s.recipe.batch_size, 1, s.val_episodes, part=mine)
    losses, errors = [], []
    for step in range(_BATCHES):
        batch = batches.batch(step)
        losses.append(processes.mean(s.losses(batch, -1 - step, model)["loss"]).item())
        with s.autocast():
            prefix = model.encode(*s.inputs(batch))
            key_B = randomness.fold(s.seed, step, processes.places(len(batch["state"]))).to(s.device)
            result = sample(model, prefix, key_B, s.recipe.sampling)
        layout = model.config.layout
        offset = layout.unfold(result.fine_offset_BNS) if s.recipe.sampling.expectation else None
        actions = tokenizer.decode(layout.unfold(result.state.digits_BNSD), offset).cpu().numpy()
        there = ~batch["is_pad"]
        error = np.abs(actions - batch["actions"])[there]
        total, count = processes.mean(torch.tensor([error.sum(), error.size], dtype=torch.float64, device=s.device))
        errors.append(float(total / count))
    tokenizer.clipped = clipped
    return {"val_loss": float(np.mean(losses)), "val_mae": float(np.mean(errors))}
