# SPDX-License-Identifier: Apache-2.0
"""The rival that writes one token after the other: our network as a causal decoder, with a cache of keys and values.

Same prefix, same blocks, same tokens and digit head. A token is one timestep of one dimension, its digits are drawn by
the chain inside its position, as ours are. Position n reads token n - 1 (the first: nothing) and sees the positions up
to itself. In training the true tokens are read, all positions in one pass; acting takes one pass a token.

Shapes: B samples, N = H * A positions, D digits, V base, W width.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.rivals.fit import keys
from vla.canvas import revealed
from vla.diffusion.loss import digit_losses, total_loss
from vla.diffusion.programs import Corrupted
from vla.diffusion.sampler import Trace
from vla.model import LatticeModel, ModelConfig, Prefix
from vla.policy import Observation, Policy
from vla.train.session import Session


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


class AutoregressiveModel(LatticeModel):
    """LatticeModel whose canvas is read from left to right."""

    def __init__(self, config: ModelConfig) -> None:
        """ValueError unless a position is one timestep of one dimension."""
        super().__init__(config)
        if config.arrangement != "per_dim":
            raise ValueError(f"expected the arrangement 'per_dim' for single tokens, got '{config.arrangement}'")

    def embed(self, before_BND: Tensor, first: int = 0) -> Tensor:
        """The tokens before positions first, first + 1, ...; digits, or `base` for "nothing": float (B, N, W)."""
        canvas, positions = self.canvas, slice(first, first + before_BND.shape[1])
        index_BND = before_BND + canvas.digit_offset_D + canvas.offset_NS[positions]
        summed = F.embedding_bag(index_BND.flatten(0, 1), canvas.table, mode="sum")
        return summed.unflatten(0, index_BND.shape[:2]) + canvas.place[positions]

    def teach(self, prefix: Prefix, digits_BNSD: Tensor, blind: bool = False) -> list[Tensor]:
        """All positions at once, each given the true tokens before it: logits, D tensors (B, N, 1, V).

        `blind`: each given nothing but its place.
        """
        batch, positions = digits_BNSD.shape[:2]
        nothing_BND = torch.full_like(digits_BNSD[:, :, 0], self.config.base)
        before_BND = torch.cat([nothing_BND[:, :1], digits_BNSD[:, :-1, 0]], dim=1)
        if blind:
            before_BND = nothing_BND
        x_BNW = self.embed(before_BND) + prefix.summary_BW.unsqueeze(1)
        causal_NN = torch.ones(positions, positions, dtype=torch.bool, device=x_BNW.device).tril()
        read_BNP = prefix.visible_BP.unsqueeze(1).expand(-1, positions, -1)
        visible = torch.cat([read_BNP, causal_NN.expand(batch, -1, -1)], dim=2).unsqueeze(1)
        for block, k, v in zip(self.blocks, prefix.keys, prefix.values, strict=True):
            x_BNW, _ = block(x_BNW, visible, (k, v))
        return self.head(self.norm(x_BNW), digits_BNSD)

    def write(self, prefix: Prefix, forced_BND: Tensor | None = None) -> Written:
        """Token after token, the likeliest digits. `forced_BND`: read these tokens instead of those just written."""
        config, past = self.config, list(zip(prefix.keys, prefix.values, strict=True))
        batch = prefix.summary_BW.shape[0]
        before_B1D = torch.full((batch, 1, config.digits), config.base, device=prefix.summary_BW.device)
        visible_BP, seen_B1 = prefix.visible_BP, torch.ones_like(prefix.visible_BP[:, :1])
        tokens = []
        for n in range(config.layout.positions):
            x_B1W = self.embed(before_B1D, n) + prefix.summary_BW.unsqueeze(1)
            visible_BP = torch.cat([visible_BP, seen_B1], dim=1)
            for i, (block, (k, v)) in enumerate(zip(self.blocks, past, strict=True)):
                x_B1W, (own_k, own_v) = block(x_B1W, visible_BP[:, None, None, :], (k, v))
                past[i] = torch.cat([k, own_k], dim=2), torch.cat([v, own_v], dim=2)
            forced_BD = forced_BND[:, n] if forced_BND is not None else None
            tokens.append(self._token(self.norm(x_B1W)[:, 0], n % config.action_dims, forced_BD))
            before_B1D = tokens[-1][0].unsqueeze(1)
        digits, offsets, confidences, logits = zip(*tokens, strict=True)
        by_digit = [torch.stack(of_digit, dim=1) for of_digit in zip(*logits, strict=True)]
        return Written(torch.stack(digits, 1), torch.stack(offsets, 1), torch.stack(confidences, 1), by_digit)

    def _token(self, h_BW: Tensor, dim: int, forced_BD: Tensor | None) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        """The token of one position, of dimension `dim`: digits (B, D), offset (B,), confidence (B,), logits (B, V).

        The digit head's arithmetic for this one dimension: the head itself takes whole canvases.
        """
        head, config = self.head, self.config
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


def loss(s: Session, model: nn.Module, batch: dict[str, Any], step: int, total: int) -> Tensor:
    """Cross-entropy of the tokens within the episode given the true ones before them, weighed as ours; and `ahead`."""
    assert isinstance(model, AutoregressiveModel)
    layout = model.config.layout
    digits_BHAD = s.tokenizers.action.encode(torch.from_numpy(batch["actions"]))
    digits_BNSD = layout.fold(digits_BHAD)
    real_BH = torch.from_numpy(~batch["is_pad"])
    asked_BNSD = layout.fold(real_BH[:, :, None, None].expand_as(digits_BHAD))
    blind = step < min(s.recipe.full_steps, total // 2)  # a short run must not end before it has read a token
    with s.autocast():
        prefix = model.encode(*s.inputs(batch, keys(s.seed, step, batch)))
        logits = model.teach(prefix, digits_BNSD, blind)
        aid = s.recipe.ahead * s.ahead_loss(prefix, batch["ahead"]) if model.ahead is not None else 0.0
    asked = Corrupted(revealed(digits_BNSD), digits_BNSD, asked_BNSD, ~asked_BNSD, ~asked_BNSD)
    return total_loss(digit_losses(logits, asked)) + aid


class AutoregressivePolicy(Policy):
    """Acts with an AutoregressiveModel."""

    model: AutoregressiveModel

    @torch.inference_mode()
    def _decide_actions(
        self,
        observations: list[Observation],
        keys: list[tuple[int, int]],
        committed: list[Any] | None,
        trace: Trace | None,
        previous: Any = None,
        start: Any = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        if committed is not None:
            raise ValueError("expected no committed actions: this rival has no in-painting; use a lattice policy")
        layout = self.model.config.layout
        written = self.model.write(self.model.encode(*self.inputs(observations)))

        def unfold(x_BN: Tensor) -> Tensor:
            return x_BN.unflatten(1, (layout.horizon, layout.dims))

        offset_BHA = unfold(written.offset_BN) if self.sampling.expectation else None
        actions_BHA = self.tokenizers.action.decode(unfold(written.digits_BND), offset_BHA)
        return actions_BHA, unfold(written.confidence_BN), torch.full((len(actions_BHA),), self.horizon)
