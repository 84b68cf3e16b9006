# SPDX-License-Identifier: Apache-2.0
"""The rival without tokens: our network regresses the whole chunk at once, mean absolute error (as OpenVLA-OFT does).

Same context, same positions with nothing known, same layers; a linear layer reads a timestep's actions off its
position. Actions are scaled to [-1, 1] by the limits of the tokenizer that the others use.

Shapes: B samples, N = H positions and timesteps, A action dimensions, W width.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.rivals.fit import read
from vla.canvas import Segment, all_masked
from vla.canvas.query import Question
from vla.diffusion import Sampling
from vla.model import Context, LatticeModel, ModelConfig
from vla.policy import Answer, Policy, SegmentOutput
from vla.policy.encoding import one_shape
from vla.tokenizers.actions import ActionTokenizer
from vla.train.session import Session


class LinearHead(nn.Module):
    """(B, N, W) -> float32 (B, N, A)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.layout, self.out = config.layout, nn.Linear(config.width, config.action_dims)
        every_digit = torch.ones(config.action_dims, config.digits, config.base, dtype=torch.bool)
        self.register_buffer("allowed_ADV", every_digit)  # a Policy sets it; nothing here reads it

    def forward(self, h_BNW: Tensor) -> Tensor:
        return self.out(h_BNW).float()


class RegressionModel(LatticeModel):
    """LatticeModel with a linear head in place of digits."""

    def __init__(self, config: ModelConfig) -> None:
        """ValueError unless a position is a timestep with all its dimensions."""
        super().__init__(config)
        if config.arrangement != "per_step":
            raise ValueError(f"expected the arrangement 'per_step' for regression, got '{config.arrangement}'")
        self.heads[Segment.ACTION.name] = LinearHead(config)

    def chunk(self, context: Context) -> Tensor:
        """The scaled actions of what was read, float32 (B, H, A), in about [-1, 1]."""
        layout, action = self.config.layout, Segment.ACTION
        nothing = all_masked(layout.shape(len(context.pooled_BF)), layout.digits, context.pooled_BF.device)
        return self.head_of(action)(self.decode(context, {action: nothing})[action])


def unscale(scaled_BHA: Tensor, tokenizer: ActionTokenizer) -> Tensor:
    """[-1, 1] -> float32, dataset units, within the limits; a dimension with two values takes the nearer one."""
    low, high = torch.tensor(tokenizer.low), torch.tensor(tokenizer.high)
    two = torch.where(scaled_BHA > 0, high, low)
    values = low + (high - low) * (scaled_BHA.clamp(-1, 1) + 1) / 2
    return torch.where(torch.tensor(tokenizer.binary), two, values).float()


def loss(s: Session, model: nn.Module, batch: dict[str, Any], step: int, total: int) -> Tensor:
    """Mean absolute error of the scaled actions within the episode, a scalar; and the training aid."""
    assert isinstance(model, RegressionModel)
    target_BHA = s.tokenizers.action.scaled(torch.from_numpy(batch["actions"]))
    with s.autocast():
        context, aid = read(s, model, batch, step)
        chunk_BHA = model.chunk(context)
    real_BHA = torch.from_numpy(~batch["is_pad"]).unsqueeze(-1).expand_as(target_BHA)
    return (chunk_BHA - target_BHA).abs()[real_BHA].mean() + aid


class RegressionPolicy(Policy):
    """Acts with a RegressionModel. It knows the query `policy` alone: nothing can be painted into."""

    model: RegressionModel

    @torch.inference_mode()
    def _answer(
        self, questions: Sequence[Question], keys: Sequence[tuple[int, int]], sampling: Sampling, *more: Any
    ) -> Answer:
        context = self.model.read(None, self.encoder.given(questions, one_shape(questions, keys)))
        values = unscale(self.model.chunk(context), self.tokenizers.action).numpy()
        digits = self.tokenizers.action.encode(torch.from_numpy(values)).numpy()
        actions = SegmentOutput(values, digits, np.ones_like(values))
        return Answer(actions=actions, steps=1, lengths=np.full(len(values), self.horizon))
