# SPDX-License-Identifier: Apache-2.0
"""How noisy is the gradient that a corruption gives, and how much of a batch has a loss?"""

from typing import Any

import torch
from torch import Tensor

from vla import randomness
from vla.canvas import Segment
from vla.diffusion import CorruptionConfig, corrupt, denoising_losses, total_loss
from vla.model.transformer import Given


def seen(session: Any, batch: dict[str, Any]) -> dict[Segment, Given]:
    """What a policy reads of a batch."""
    rows = session.rows(batch)
    return {Segment.INSTRUCTION: session.vocabulary.tokens(rows.words_BL), Segment.OBSERVATION: rows.observed}


def gradient_noise(session: Any, config: CorruptionConfig, candidates: int, draws: int = 24) -> dict[str, float]:
    """{"variance", "coverage"} of one fixed batch under `draws` corruptions, at the session's present weights.

    variance: E |g - mean|^2 / |mean|^2 of the digit losses' gradient (unbiased), so that losses of other sizes compare.
    coverage: real tokens with a loss in at least one copy.
    """
    s, model = session, session.model
    batch, layout = s.batches.batch(0), model.config.layout
    digits_BHAD = s.tokenizers.action.encode(torch.from_numpy(batch["actions"]))
    pad_BH = torch.from_numpy(batch["is_pad"])
    radix_AD = model.head_of(Segment.ACTION).allowed_ADV.sum(-1)
    gradients: list[Tensor] = []
    asked = 0
    for draw in range(draws):
        key_B = randomness.fold(s.seed, 1_000_000 + draw, torch.arange(len(pad_BH)))
        c = corrupt(digits_BHAD, pad_BH, key_B, layout, config, radix_AD)
        context = model.read(None, seen(s, batch))
        losses = denoising_losses(model, context, {Segment.ACTION: c}, key_B, config.p_noisy, candidates)
        loss = total_loss(losses[Segment.ACTION])
        found = torch.autograd.grad(loss, [*model.parameters()], allow_unused=True)
        gradients.append(torch.cat([g.flatten() for g in found if g is not None]).double())
        asked += int(c.asked_BNSD.any(-1).unflatten(0, (len(pad_BH), -1)).any(1).sum())
    stack = torch.stack(gradients)
    mean = stack.mean(0)
    variance = float((stack - mean).square().sum(1).sum() / (draws - 1))
    signal = float(mean.square().sum()) - variance / draws  # the mean of `draws` is longer than the true one
    real = draws * int((~pad_BH).sum()) * layout.dims
    return {"variance": variance / max(signal, 1e-12), "coverage": asked / real}
