# SPDX-License-Identifier: Apache-2.0
"""How noisy is the gradient that a corruption program gives, and how much of a batch has a loss?"""

from typing import Any

import torch

from vla import randomness
from vla.diffusion import Programs, corrupt, losses, total_loss


def gradient_noise(session: Any, programs: Programs, candidates: int, draws: int = 24) -> dict[str, float]:
    """{"variance", "coverage"} of one fixed batch under `draws` corruptions, at the session's present weights.

    variance: E |g - mean|^2 / |mean|^2 of the digit losses' gradient (unbiased), so that losses of other sizes compare.
    coverage: real, uncommitted tokens with a loss in at least one copy.
    """
    s, model = session, session.model
    batch = s.batches.batch(0)
    digits_BHAD = s.tokenizers.action.encode(torch.from_numpy(batch["actions"]))
    pad_BH = torch.from_numpy(batch["is_pad"])
    parameters = [p for n, p in model.named_parameters() if not n.startswith("quality")]
    gradients, asked, real = [], 0, 0
    for draw in range(draws):
        key_B = randomness.fold(s.seed, 1_000_000 + draw, torch.arange(len(pad_BH)))
        radix_AD = model.head.allowed_ADV.sum(-1)
        c = corrupt(digits_BHAD, pad_BH, key_B, model.config.layout, programs, model.config.noise_indices, radix_AD)
        digit, _ = losses(model, model.encode(*s.inputs(batch)), c, key_B, candidates)
        found = torch.autograd.grad(total_loss(digit), parameters, allow_unused=True)
        gradients.append(torch.cat([g.flatten() for g in found if g is not None]).double())
        copies_BKNS = c.asked_BNSD.any(-1).unflatten(0, (len(pad_BH), -1))
        judged_BKNS = c.judged_BNSD.any(-1).unflatten(0, (len(pad_BH), -1))
        seen = copies_BKNS.any(1)
        asked += int(seen.sum())
        real += int((seen | judged_BKNS.any(1)).sum())
    stack = torch.stack(gradients)
    mean = stack.mean(0)
    variance = float((stack - mean).square().sum(1).sum() / (draws - 1))
    signal = float(mean.square().sum()) - variance / draws  # the mean of `draws` is longer than the true one
    return {"variance": variance / max(signal, 1e-12), "coverage": asked / real}
