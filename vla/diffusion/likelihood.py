# SPDX-License-Identifier: Apache-2.0
"""How likely given actions are under the sampler of two steps: coarse digits first, then the others, plain masks."""

import torch
import torch.nn.functional as F
from torch import Tensor

from vla.canvas import Segment, State, unmasked
from vla.model import Context, LatticeModel


def digits_nll(
    model: LatticeModel, context: Context, state: State, digits_BNSD: Tensor, asked_BNSD: Tensor, segment: Segment
) -> Tensor:
    """-log p of the true digits that are asked, decided in one denoising step from `state`: float64 (B,), nats."""
    logits = model.head_of(segment)(model.decode(context, {segment: state})[segment], digits_BNSD)
    nll_B = torch.zeros(len(digits_BNSD), dtype=torch.float64, device=digits_BNSD.device)
    for d, logits_BNSV in enumerate(logits):
        nll = F.cross_entropy(logits_BNSV.flatten(0, -2), digits_BNSD[..., d].flatten(), reduction="none")
        nll_BNS = torch.where(asked_BNSD[..., d], nll.view(digits_BNSD.shape[:-1]), 0.0)
        nll_B += nll_BNS.double().flatten(1).sum(1)
    return nll_B


@torch.no_grad()
def log_likelihood(model: LatticeModel, context: Context, digits_BNSD: Tensor) -> Tensor:
    """log p of action chunks, float64 (B,), nats: coarse digits given nothing, the others given all coarse ones."""
    shape, depth = digits_BNSD.shape[:-1], digits_BNSD.shape[-1]
    nothing = torch.zeros(shape, dtype=torch.long, device=digits_BNSD.device)
    total_B = torch.zeros(shape[0], dtype=torch.float64, device=digits_BNSD.device)
    for known in range(depth):
        state = unmasked(digits_BNSD, nothing + known)
        newly = unmasked(digits_BNSD, nothing + known + 1).visible_BNSD() & ~state.visible_BNSD()
        total_B -= digits_nll(model, context, state, digits_BNSD, newly, Segment.ACTION)
    return total_B
