# SPDX-License-Identifier: Apache-2.0
"""The loss: cross-entropy of the digits that are hidden, and whether those that are shown are true.

For a canvas x with digits x[n, d] and a corrupted state s that shows the first known[n] digits of token n,

    L = sum_d w_d  mean_{n : known[n] <= d} [ -log p(x[n, d] | s, z, x[n, <d]) ]  +  w_q mean_{n, d shown} BCE(q[n, d]),

    w_d = 2^-d,  w_q = 0.1.

The chain inside a position (digit d is predicted given the digits before it) makes the sum over d of a fully hidden
token its exact -log-likelihood given s. The mean over hidden tokens, not their sum over 1/t, is the weighting of
MaskGIT and of most masked VLAs: it bounds the NLL from above up to the weights of the levels (for w = 1 and ratios
drawn as 1/t it is the MDLM bound, Sahoo et al. 2024, eq. 10). Fine digits weigh less: they are worth less in the
robot's units. The mean is taken over the batch and the segment, so that samples with much to ask weigh more than those
with little, and long segments do not drown short ones.

The noise index z of a copy that has one is picked among K candidates (`noise.explain`): the bound of an
importance-weighted autoencoder on the likelihood of the one-evaluation sampler.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from vla import processes
from vla.diffusion.noise import DIGIT_DECAY, explain
from vla.diffusion.programs import COPIES, Corrupted, noisy_copy
from vla.model import LatticeModel, Prefix

QUALITY_WEIGHT = 0.1


def losses(
    model: LatticeModel, prefix: Prefix, corrupted: Corrupted, key_B: Tensor, candidates: int = 1
) -> tuple[list[Tensor], Tensor]:
    """One evaluation of the network. Returns (the loss of each digit, the loss of the quality head), scalars in nats.

    `prefix`: one row a sample, encoded once for both copies. `candidates`: how many noise indices are looked at for a
    sample; 1 looks at none and keeps the one that was drawn.
    """
    state = corrupted.state
    if candidates > 1 and model.config.noise_indices > 1:
        rows = noisy_copy(len(key_B), key_B.device).flatten().nonzero().squeeze(1)
        if not len(rows):  # one of several processes; all evaluate equally often, and a plain mask stays one
            rows = rows.new_zeros(1)
        asked = rows // COPIES
        noise_BNS = state.noise_BNS.clone()
        noise_BNS[rows] = explain(model, prefix.pick(asked), corrupted, rows, key_B[asked], candidates)[:, None, None]
        state = state.with_noise(noise_BNS)
    h_BNW = model.decode(prefix.repeat(COPIES), state)
    digits = digit_losses(model.head(h_BNW, corrupted.digits_BNSD), corrupted)
    quality = quality_loss(model.quality(h_BNW), corrupted) if model.quality is not None else h_BNW.new_zeros(())
    return digits, quality


def digit_losses(logits: list[Tensor], corrupted: Corrupted) -> list[Tensor]:
    """Mean cross-entropy of each digit in nats, a list of D scalars. `logits`: D tensors (B, N, S, V)."""
    result = []
    for d, logits_BNSV in enumerate(logits):
        nll_BNS = F.cross_entropy(
            logits_BNSV.flatten(0, -2), corrupted.digits_BNSD[..., d].flatten(), reduction="none"
        ).view(logits_BNSV.shape[:-1])
        result.append(_mean(nll_BNS, corrupted.asked_BNSD[..., d]))
    return result


def quality_loss(quality_BNSD: Tensor, corrupted: Corrupted) -> Tensor:
    """Mean binary cross-entropy of "this digit is true" over the digits that are shown and not committed."""
    true_BNSD = (~corrupted.wrong_BNSD).to(quality_BNSD.dtype)
    bce_BNSD = F.binary_cross_entropy_with_logits(quality_BNSD, true_BNSD, reduction="none")
    return _mean(bce_BNSD, corrupted.judged_BNSD)


def total_loss(digits: list[Tensor], quality: Tensor | float = 0.0) -> Tensor:
    """sum_d 2^-d digits[d] + 0.1 quality."""
    return torch.stack([loss * DIGIT_DECAY**d for d, loss in enumerate(digits)]).sum() + QUALITY_WEIGHT * quality


def _mean(x: Tensor, where: Tensor) -> Tensor:
    weight = where.to(x.dtype)
    return (x * weight).sum() / processes.mean(weight.sum()).clamp(min=1 / processes.world())
