# SPDX-License-Identifier: Apache-2.0
"""The loss: cross-entropy of the digits that are hidden.

For a canvas x with digits x[n, d] and a corrupted state s that shows the first known[n] digits of token n,

    L = sum_d w_d  mean_{n : known[n] <= d} [ -log p(x[n, d] | s, x[n, <d]) ],      w = (1, 1/2, 1/4, ...)

The chain inside a position (digit d is predicted given the digits before it) makes the sum over d of a fully hidden
token its exact -log-likelihood given s. The mean over hidden tokens, not their sum over 1/t, is the weighting of
MaskGIT and of most masked VLAs: it bounds the NLL from above up to the weights of the levels (for w = 1 and ratios
drawn as 1/t it is the MDLM bound, Sahoo et al. 2024, eq. 10). Fine digits weigh less: they are worth less in the
robot's units. The mean is taken over the batch, so that samples with much to ask weigh more than those with little.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from vla.diffusion.programs import Corrupted


def digit_losses(logits: list[Tensor], corrupted: Corrupted) -> list[Tensor]:
    """Mean cross-entropy of each digit in nats, a list of D scalars. `logits`: D tensors (B, N, S, V)."""
    losses = []
    for d, logits_BNSV in enumerate(logits):
        nll_BNS = F.cross_entropy(
            logits_BNSV.flatten(0, -2), corrupted.digits_BNSD[..., d].flatten(), reduction="none"
        ).view(logits_BNSV.shape[:-1])
        asked_BNS = corrupted.asked_BNSD[..., d].to(nll_BNS.dtype)
        losses.append((nll_BNS * asked_BNS).sum() / asked_BNS.sum().clamp(min=1))
    return losses


def total_loss(losses: list[Tensor]) -> Tensor:
    """sum_d 2^-d losses[d]."""
    return torch.stack([loss * 0.5**d for d, loss in enumerate(losses)]).sum()
