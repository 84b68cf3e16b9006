# SPDX-License-Identifier: Apache-2.0
"""Validation on held-out episodes: the loss, and the error of sampled actions in the dataset's units."""

from typing import Any

import numpy as np
import torch

from vla import processes, randomness
from vla.canvas import Segment
from vla.data.batches import Batches
from vla.diffusion import sample

_BATCHES = 4


@torch.no_grad()
def validate(s: Any) -> dict[str, float]:
    """{"val_loss", "val_mae"}: the same frames, masks and noise each time, averaged weights. {} without episodes that
    have labels."""
    labelled = ~s.cache.dynamics_only
    labelled[s.batches.free] = False
    episodes = s.val_episodes[labelled[s.val_episodes]]
    if not len(episodes):
        return {}
    model, tokenizer = s.acting(), s.tokenizers.action
    clipped = tokenizer.clipped
    mine = (processes.rank(), processes.world())
    batches = Batches(
        s.cache,
        s.recipe.horizon,
        s.recipe.batch_size,
        1,
        episodes,
        moments=s.recipe.n_obs_steps,
        part=mine,
    )
    losses, errors = [], []
    for step in range(_BATCHES):
        batch = batches.batch(step)
        if s.recipe.queries.policy:
            losses.append(processes.mean(s.losses(batch, -1 - step, model)["loss"]).item())
        rows = s.rows(batch)
        with s.autocast():
            seen = {Segment.INSTRUCTION: s.vocabulary.tokens(rows.words_BL), Segment.OBSERVATION: rows.observed}
            key_B = randomness.fold(s.seed, step, processes.places(len(batch["state"]))).to(s.device)
            found = sample(model, model.read(None, seen), key_B, [Segment.ACTION], s.recipe.sampling)
        result, layout = found.segments[Segment.ACTION], model.config.layout
        offset = layout.unfold(result.offset_BNS) if s.recipe.sampling.expectation else None
        actions = tokenizer.decode(layout.unfold(result.state.digits_BNSD), offset).cpu().numpy()
        error = np.abs(actions - batch["actions"])[~batch["is_pad"]]
        total, count = processes.mean(torch.tensor([error.sum(), error.size], dtype=torch.float64, device=s.device))
        errors.append(float(total / count.clamp(min=1)))
    tokenizer.clipped = clipped
    result = {"val_mae": float(np.mean(errors))}
    return {"val_loss": float(np.mean(losses)), **result} if losses else result
