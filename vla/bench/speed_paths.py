# SPDX-License-Identifier: Apache-2.0
"""The same network used in other ways: without a cache, and one token after the other.

Shapes: B samples, N = H * A positions, P positions read so far, D digits, V base, W width.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from vla.canvas import Segment
from vla.model import Context, LatticeModel, ModelConfig
from vla.model.blocks import Cache
from vla.model.transformer import Given


class Uncached(LatticeModel):
    """Every denoising step passes over everything, what is given and what is asked, as one sequence.

    What the vision sees and what is pooled is computed once.
    """

    given: list[tuple[Tensor, Tensor, Tensor]]
    """Of each segment what goes into the layers, what it may read up to its own end, and its rotary positions."""
    reads: bool

    def begin(self, given: Mapping[Segment, Given]) -> Context:
        """What every step passes over from now on; the context that `sample` wants."""
        self.given, self.reads = [], True
        context = self.read(None, given)
        self.reads = False
        return context

    def _through(
        self, context: Context | None, x_BNW: Tensor, own_BNN: Tensor, position_N: Tensor | None = None
    ) -> tuple[Tensor, list[Cache]]:
        positions = x_BNW.shape[1]
        mask = own_BNN.expand(len(x_BNW), positions, positions)
        if context is not None:
            mask = torch.cat([context.visible_BP.unsqueeze(1).expand(-1, positions, -1), mask], dim=2)
        place = torch.arange(positions) if position_N is None else position_N
        if self.reads:
            self.given.append((x_BNW, mask, place))
            return super()._through(context, x_BNW, own_BNN, position_N)
        parts, masks, places = zip(*self.given, (x_BNW, mask, place), strict=True)
        whole = torch.cat([F.pad(m, (0, mask.shape[2] - m.shape[2])) for m in masks], dim=1)
        x_BNW, cache = super()._through(None, torch.cat(parts, dim=1), whole, torch.cat(places))
        return x_BNW[:, -positions:], cache


@dataclass(frozen=True)
class Written:
    """A chunk written token by token."""

    digits_BND: Tensor
    """int64."""
    offset_BN: Tensor
    """float, expectation of the last digit minus the digit written, as `Sampling.expectation` has it."""
    confidence_BN: Tensor
    """float, product of the digits' probabilities."""
    logits: list[Tensor]
    """A digit: float (B, N, V)."""


class Autoregressive(LatticeModel):
    """LatticeModel that is a causal decoder of actions: position n reads token n - 1 and sees those up to itself.

    Same context, same layers, same tokens and digit head. A token is one timestep of one dimension, its digits are
    drawn by the chain inside its position. In training the true tokens are read, all positions in one pass; acting
    takes one pass a token, with keys and values of all that is written kept.
    """

    def __init__(self, config: ModelConfig) -> None:
        """ValueError unless a position is one timestep of one dimension."""
        super().__init__(config)
        if config.arrangement != "per_dim":
            raise ValueError(f"expected the arrangement 'per_dim' for single tokens, got '{config.arrangement}'")

    def teach(self, context: Context, digits_BNSD: Tensor, blind: bool = False) -> list[Tensor]:
        """All positions at once, each given the true tokens before it: logits, D tensors (B, N, 1, V).

        `blind`: each given nothing but its place.
        """
        nothing_BND = torch.full_like(digits_BNSD[:, :, 0], self.config.base)
        before_BND = torch.cat([nothing_BND[:, :1], digits_BNSD[:, :-1, 0]], dim=1)
        x_BNW = self._embed(context, nothing_BND if blind else before_BND, 0)
        causal_NN = torch.ones(x_BNW.shape[1], x_BNW.shape[1], dtype=torch.bool, device=x_BNW.device).tril()
        x_BNW, _ = self._through(context, x_BNW, causal_NN)
        return self.head_of(Segment.ACTION)(self.norm(x_BNW), digits_BNSD)

    def write(self, context: Context, forced_BND: Tensor | None = None) -> Written:
        """Token after token, the likeliest digits. `forced_BND`: read these tokens instead of those just written."""
        config, device = self.config, context.pooled_BF.device
        before_BD = torch.full((len(context.pooled_BF), config.digits), config.base, device=device)
        one_11 = torch.ones(1, 1, dtype=torch.bool, device=device)
        tokens = []
        for n in range(config.layout.positions):
            x_B1W = self._embed(context, before_BD.unsqueeze(1), n)
            x_B1W, cache = self._through(context, x_B1W, one_11, torch.tensor([n], device=device))
            context = replace(
                context,
                keys=[torch.cat([past, k], dim=2) for past, (k, _) in zip(context.keys, cache, strict=True)],
                values=[torch.cat([past, v], dim=2) for past, (_, v) in zip(context.values, cache, strict=True)],
                visible_BP=F.pad(context.visible_BP, (0, 1), value=True),
            )
            forced_BD = forced_BND[:, n] if forced_BND is not None else None
            tokens.append(self._token(self.norm(x_B1W)[:, 0], n % config.action_dims, forced_BD))
            before_BD = tokens[-1][0]
        digits, offsets, confidences, logits = zip(*tokens, strict=True)
        by_digit = [torch.stack(of_digit, dim=1) for of_digit in zip(*logits, strict=True)]
        return Written(torch.stack(digits, 1), torch.stack(offsets, 1), torch.stack(confidences, 1), by_digit)

    def _embed(self, context: Context, before_BND: Tensor, first: int) -> Tensor:
        """The tokens before positions first, first + 1, ...; digits, or `base` for "nothing": float (B, N, W)."""
        written, where = self.embedding_of(Segment.ACTION), slice(first, first + before_BND.shape[1])
        index_BND = before_BND + written.digit_offset_D + written.offset_NS[where]
        x_BNW = F.embedding_bag(index_BND.flatten(0, 1), written.table, mode="sum").unflatten(0, index_BND.shape[:2])
        summary_B1W = self.summary(F.gelu(self.pool_norm(context.pooled_BF))).unsqueeze(1)
        return x_BNW + self.segment[Segment.ACTION] + self.places(self.where_ACTION[where]) + summary_B1W

    def _token(self, h_BW: Tensor, dim: int, forced_BD: Tensor | None) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        """The token of one position, of dimension `dim`: digits (B, D), offset (B,), confidence (B,), logits (B, V).

        The digit head's arithmetic for this one dimension: the head itself takes whole chunks.
        """
        head, config = self.head_of(Segment.ACTION), self.config
        rows = slice(dim * config.digits * head.hidden, (dim + 1) * config.digits * head.hidden)
        features_BDR = F.linear(h_BW, head.project.weight[rows], head.project.bias[rows])
        features_BDR = features_BDR.unflatten(-1, (config.digits, head.hidden))
        digits: list[Tensor] = []
        logits, confidence_B = [], torch.ones_like(h_BW[:, 0])
        for d in range(config.digits):
            x_BR = features_BDR[:, d]
            for earlier, digit_B in enumerate(digits):
                x_BR = x_BR + head.given[dim, earlier, digit_B]
            logits_BV = (F.gelu(x_BR) @ head.out[dim, d] + head.bias[dim, d]).float()
            logits_BV = logits_BV.masked_fill(~head.allowed_ADV[dim, d], float("-inf"))
            digits.append(logits_BV.argmax(-1) if forced_BD is None else forced_BD[:, d])
            probability_BV = logits_BV.softmax(-1)
            confidence_B = confidence_B * probability_BV.gather(-1, digits[-1].unsqueeze(-1)).squeeze(-1)
            logits.append(logits_BV)
        values = torch.arange(config.base, device=h_BW.device, dtype=probability_BV.dtype)
        return torch.stack(digits, -1), probability_BV @ values - digits[-1], confidence_B, logits


def as_kind[Kind: LatticeModel](model: LatticeModel, kind: type[Kind]) -> Kind:
    """The same weights in a model of another kind."""
    other = kind(model.config)
    other.load_state_dict(model.state_dict())
    return other.eval()
