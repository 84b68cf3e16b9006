# SPDX-License-Identifier: Apache-2.0
"""The noise index: what makes a sampler of one evaluation multimodal.

A network that is asked for all tokens at once draws each from its own marginal, so two tokens that belong together fall
apart: that is the factorisation error, and one deterministic mask has a lower bound on it. With a noise index z that
is drawn anew before each evaluation, the same sampler draws from a mixture of products,

    p(x | s) = sum_z 1/M prod_n p(x_n | s, z),        z in 1..M, one for the whole canvas.

Index 0 is the plain mask, for samplers that want no randomness; some samples are learnt under it.

The training bound is that of importance-weighted autoencoders with the prior as proposal (Burda et al. 2016, eq. 8):

    -log p(x | s) <= E_{z_1..z_K} [ -log 1/K sum_k prod_n p(x_n | s, z_k) ],

tight as K grows. Its gradient is the expectation of  -grad log p(x | s, z_k)  under k ~ softmax_k log p(x | s, z_k).
So: look at K candidates without a gradient, pick one by how well it explains the clean tokens, learn from that one.
(Re-drawn mask indices: ReDDiT. Masks with noise: IMDM. The pick is ours.)
"""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from vla import randomness
from vla.canvas import State
from vla.model import LatticeModel, Prefix

if TYPE_CHECKING:
    from vla.diffusion.programs import Corrupted


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
def explain(
    model: LatticeModel, prefix: Prefix, corrupted: "Corrupted", rows: Tensor, key_B: Tensor, candidates: int
) -> Tensor:
    """Pick a noise index among `candidates` for each of `rows` of the canvas: int64 (B,). Plain masks stay 0.

    A candidate is drawn with the probability with which it explains what is asked, digits weighed as in the loss: the
    pick of the bound for equal weights, a softer one for fine digits. Costs `candidates` evaluations without a
    gradient. `rows`: int64 (B,), one for each row of `prefix` and `key_B`.
    """
    state, digits_BNSD, asked_BNSD = corrupted.state, corrupted.digits_BNSD[rows], corrupted.asked_BNSD[rows]
    key_BC = randomness.fold(key_B[:, None], torch.arange(candidates, device=key_B.device))
    tried_BC = 1 + randomness.integers(key_BC, "noise index", model.config.noise_indices - 1)

    def repeat(x: Tensor) -> Tensor:
        return x.repeat_interleave(candidates, dim=0)

    shape_BNS = digits_BNSD.shape[:-1]
    many = State(
        repeat(state.digits_BNSD[rows]),
        repeat(state.known_BNS[rows]),
        repeat(state.provenance_BNS[rows]),
        repeat(tried_BC.new_zeros(shape_BNS)) + tried_BC.flatten()[:, None, None],
    )
    logits = model.head(model.decode(prefix.repeat(candidates), many), repeat(digits_BNSD))
    score_BC = torch.zeros(tried_BC.shape, dtype=torch.float64, device=key_B.device)
    for d, logits_BNSV in enumerate(logits):
        nll = F.cross_entropy(logits_BNSV.flatten(0, -2), repeat(digits_BNSD[..., d]).flatten(), reduction="none")
        nll_BCN = nll.view(*tried_BC.shape, -1).masked_fill(~asked_BNSD[..., d].flatten(1).unsqueeze(1), 0.0)
        score_BC -= nll_BCN.double().sum(-1) * DIGIT_DECAY**d
    picked_B1 = (score_BC + randomness.gumbel(key_B, "pick", candidates)).argmax(-1, keepdim=True)
    return torch.where(state.noise_BNS[rows, 0, 0] > 0, tried_BC.gather(1, picked_B1).squeeze(1), 0)
