# SPDX-License-Identifier: Apache-2.0
"""The same network used in slower ways: without a cache, and one token after the other.

Shapes: B samples, N positions, P places of the prefix, D digits, W width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from vla.canvas import Segment, State, attention_mask, hidden
from vla.diffusion.sampler import Sample, Sampling, decide, kept_fraction
from vla.model import LatticeModel, Prefix
from vla.model.transformer import Images


class Uncached:
    """Every evaluation passes over [prefix, canvas] as a whole. What the vision sees is computed once."""

    def __init__(self, model: LatticeModel, images: Images, state_BS: Tensor, words_BL: Tensor) -> None:
        found: dict[str, Tensor] = {}
        self.model = model
        hook = model.blocks[0].register_forward_pre_hook(lambda _, inputs: found.update(x=inputs[0]))
        self.prefix: Prefix = model.encode(images, state_BS, words_BL)
        hook.remove()
        self.x_BPW: Tensor = found["x"]
        places, positions = self.x_BPW.shape[1], model.config.layout.positions
        segments = [Segment.OBSERVATION] * places + [Segment.ACTION] * positions
        there = torch.cat([self.prefix.visible_BP, torch.ones(len(words_BL), positions, dtype=torch.bool)], dim=1)
        self.visible = attention_mask(segments)[None, None] & there[:, None, None, :]

    def decode(self, state: State) -> Tensor:
        """What `LatticeModel.decode` says, float (B, N, W)."""
        model = self.model
        x_BNW = model.canvas(state) + self.prefix.summary_BW.unsqueeze(1)
        x = torch.cat([self.x_BPW, x_BNW], dim=1)
        for block in model.blocks:
            x, _ = block(x, self.visible)
        return model.norm(x[:, -x_BNW.shape[1] :])


def sample_uncached(
    model: LatticeModel, images: Images, state_BS: Tensor, words_BL: Tensor, key_B: Tensor, sampling: Sampling
) -> Sample:
    """What `sample` gives, with every evaluation from scratch."""
    whole, layout = Uncached(model, images, state_BS, words_BL), model.config.layout
    shape = (len(key_B), layout.positions, layout.sub_tokens)
    now = Sample(hidden(shape, layout.digits), torch.ones(shape), torch.zeros(shape), 0)
    for t in range(1, sampling.evaluations + 1):
        fractions = kept_fraction(t, sampling.evaluations, layout.digits)
        now, _ = decide(model.head, whole.decode(now.state), now, key_B, sampling, 0.0, fractions)
    return now


def write_one_by_one(model: LatticeModel, prefix: Prefix) -> Tensor:
    """A chunk token after token, each the likeliest given those before it: int64 (B, N, D).

    Keys and values of the prefix and of all that is written are kept. ValueError unless a position is one token.
    """
    layout, canvas, head = model.config.layout, model.canvas, model.head
    if layout.sub_tokens != 1:
        raise ValueError(f"expected positions of one token (arrangement per_dim), got {layout.sub_tokens} in one")
    batch, past = len(prefix.summary_BW), list(zip(prefix.keys, prefix.values, strict=True))
    before_BD = torch.full((batch, layout.digits), layout.base, device=prefix.summary_BW.device)
    visible_BP, one_B1 = prefix.visible_BP, torch.ones_like(prefix.visible_BP[:, :1])
    written = []
    for n in range(layout.positions):
        index_BD = before_BD + canvas.digit_offset_D + canvas.offset_NS[n]
        x_B1W = (F.embedding_bag(index_BD, canvas.table, mode="sum") + canvas.place[n] + prefix.summary_BW).unsqueeze(1)
        visible_BP = torch.cat([visible_BP, one_B1], dim=1)
        for i, (block, (k, v)) in enumerate(zip(model.blocks, past, strict=True)):
            x_B1W, (own_k, own_v) = block(x_B1W, visible_BP[:, None, None, :], (k, v))
            past[i] = torch.cat([k, own_k], dim=2), torch.cat([v, own_v], dim=2)
        before_BD = _token(head, model.norm(x_B1W)[:, 0], n % layout.dims)
        written.append(before_BD)
    return torch.stack(written, dim=1)


def _token(head: torch.nn.Module, h_BW: Tensor, dim: int) -> Tensor:
    """The likeliest digits of one dimension, int64 (B, D): the head's arithmetic for this dimension alone."""
    digits, hidden_ = head.layout.digits, head.hidden
    rows = slice(dim * digits * hidden_, (dim + 1) * digits * hidden_)
    features_BDR = F.linear(h_BW, head.project.weight[rows], head.project.bias[rows]).unflatten(-1, (digits, hidden_))
    chosen: list[Tensor] = []
    for d in range(digits):
        x_BR = features_BDR[:, d]
        for earlier, digit_B in enumerate(chosen):
            x_BR = x_BR + head.given[dim, earlier, digit_B]
        logits_BV = F.gelu(x_BR) @ head.out[dim, d] + head.bias[dim, d]
        chosen.append(logits_BV.masked_fill(~head.allowed_ADV[dim, d], float("-inf")).argmax(-1))
    return torch.stack(chosen, dim=-1)
