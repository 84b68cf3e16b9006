# SPDX-License-Identifier: Apache-2.0
"""The noise index: what makes a sampler of one step multimodal.

A network that is asked for all tokens at once draws each from its own marginal, so two tokens that belong together fall
apart: that is the factorisation error, and one deterministic mask has a lower bound on it. With a noise index z that
is drawn anew before each denoising step, the same sampler draws from a mixture of products,

    p(x | s) = sum_z 1/M prod_n p(x_n | s, z),        z in 1..M, one for the whole canvas, all its segments.

Index 0 is the plain mask, for samplers that want no randomness; some samples are learnt under it.

The training bound is that of importance-weighted autoencoders with the prior as proposal (Burda et al. 2016, eq. 8):

    -log p(x | s) <= E_{z_1..z_K} [ -log 1/K sum_k prod_n p(x_n | s, z_k) ],

tight as K grows. Its gradient is the expectation of  -grad log p(x | s, z_k)  under k ~ softmax_k log p(x | s, z_k).
So: look at K candidates without a gradient, pick one by how well it explains the clean tokens, learn from that one.
(Re-drawn mask indices: ReDDiT. Masks with noise: IMDM. The pick is ours.)
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vla import randomness
from vla.canvas import Segment, State
from vla.model import Context, LatticeModel

DIGIT_DECAY = 0.5
"""Weight of a digit in the loss, relative to the digit before it."""


def redraw(state: State, key_B: Tensor, noise_indices: int, noisy: bool | Tensor = True) -> State:
    """The same knowledge under a new noise index a row: 1..M-1 where `noisy` (bool (B,)), else the plain mask, 0."""
    if noise_indices == 1:
        index_B = torch.zeros_like(key_B)
    else:
        index_B = (1 + randomness.integers(key_B, "noise index", noise_indices - 1)) * noisy
    return state.with_noise(index_B[:, None, None].expand_as(state.known_BNS))


@torch.no_grad()
def select_latent(
    model: LatticeModel,
    context: Context,
    corrupted: Mapping[Segment, Any],
    key_B: Tensor,
    candidates: int,
    copies: int,
) -> dict[Segment, State]:
    """Pick a noise index among `candidates` for each row that has one; plain masks stay 0. Returns the states.

    A candidate is drawn with the probability with which it explains what is asked, digits weighed as in the loss: the
    pick of the bound for equal weights, a softer one for fine digits. Costs `candidates` steps of these rows without a
    gradient. `corrupted`: {segment: `Corrupted`}, of `copies` rows a row of `context` and of `key_B`.
    """
    states = {segment: c.state for segment, c in corrupted.items()}
    key_R = randomness.fold(key_B[:, None], torch.arange(copies, device=key_B.device)).flatten()
    noisy_R = torch.stack([s.noise_BNS.flatten(1).amax(1) for s in states.values()]).amax(0) > 0
    rows = noisy_R.nonzero().squeeze(1)
    if not len(rows):  # one of several processes; all take equally many steps, and a plain mask stays one
        rows = rows.new_zeros(1)
    key_CR = randomness.fold(key_R[rows, None], torch.arange(candidates, device=key_B.device))
    tried_RC = 1 + randomness.integers(key_CR, "noise index", model.config.noise_indices - 1)

    def many(x: Tensor) -> Tensor:
        return x[rows].repeat_interleave(candidates, dim=0)

    tried = {}
    for segment, state in states.items():
        picked = state.map(many)
        tried[segment] = picked.with_noise(tried_RC.flatten()[:, None, None].expand_as(picked.known_BNS))
    there = {s: many(c.there_BN) for s, c in corrupted.items() if c.there_BN is not None}
    hidden = model.decode(context.pick(rows // copies).repeat(candidates), tried, there)
    score_RC = torch.zeros(tried_RC.shape, dtype=torch.float64, device=key_B.device)
    for segment, c in corrupted.items():
        digits_BNSD, asked_BNSD = many(c.digits_BNSD), many(c.asked_BNSD)
        for d, logits_BNSV in enumerate(model.head_of(segment)(hidden[segment], digits_BNSD)):
            nll = F.cross_entropy(logits_BNSV.flatten(0, -2), digits_BNSD[..., d].flatten(), reduction="none")
            nll = torch.where(asked_BNSD[..., d], nll.view(digits_BNSD.shape[:-1]), 0.0).double()
            score_RC -= nll.flatten(1).sum(1).view(score_RC.shape) * DIGIT_DECAY**d
    best_R1 = (score_RC + randomness.gumbel(key_R[rows], "pick", candidates)).argmax(-1, keepdim=True)
    index_R = torch.zeros_like(key_R)
    index_R[rows] = tried_RC.gather(1, best_R1).squeeze(1)
    index_R = torch.where(noisy_R, index_R, 0)[:, None, None]
    return {segment: s.with_noise(index_R.expand_as(s.noise_BNS)) for segment, s in states.items()}
