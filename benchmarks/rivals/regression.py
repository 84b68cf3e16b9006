# SPDX-License-Identifier: Apache-2.0
"""The rival without tokens: our network regresses the whole chunk at once, mean absolute error (as OpenVLA-OFT does).

Same prefix, same canvas positions with nothing known, same blocks; a linear layer reads a timestep's actions off its
position. Actions are scaled to [-1, 1] by the limits of the tokenizer that the others use.

Shapes: B samples, N = H positions and timesteps, A action dimensions, W width.
"""

from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.rivals.fit import keys
from vla.canvas import hidden
from vla.diffusion.sampler import Trace
from vla.model import LatticeModel, ModelConfig, Prefix
from vla.policy import Observation, Policy
from vla.tokenizers.actions import ActionTokenizer
from vla.train.session import Session


class LinearHead(nn.Module):
    """(B, N, W) -> float32 (B, N, A)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.out = nn.Linear(config.width, config.action_dims)
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
        self.head = LinearHead(config)  # type: ignore[assignment]

    def chunk(self, prefix: Prefix) -> Tensor:
        """The scaled actions of a prefix, float32 (B, H, A), in about [-1, 1]."""
        layout = self.config.layout
        shape = (prefix.summary_BW.shape[0], layout.positions, layout.sub_tokens)
        nothing = hidden(shape, layout.digits, prefix.summary_BW.device)
        return self.head(self.decode(prefix, nothing))


def scale(actions_BHA: Tensor, tokenizer: ActionTokenizer) -> Tensor:
    """Dataset units -> [-1, 1], clipped as the tokenizer clips."""
    low, high = torch.tensor(tokenizer.low), torch.tensor(tokenizer.high)
    return (2 * (actions_BHA - low) / (high - low) - 1).clamp(-1, 1).float()


def unscale(scaled_BHA: Tensor, tokenizer: ActionTokenizer) -> Tensor:
    """[-1, 1] -> float32, dataset units, within the limits; a dimension with two values takes the nearer one."""
    low, high = torch.tensor(tokenizer.low), torch.tensor(tokenizer.high)
    two = torch.where(scaled_BHA > 0, high, low)
    values = low + (high - low) * (scaled_BHA.clamp(-1, 1) + 1) / 2
    return torch.where(torch.tensor(tokenizer.binary), two, values).float()


def loss(s: Session, model: nn.Module, batch: dict[str, Any], step: int, total: int) -> Tensor:
    """Mean absolute error of the scaled actions within the episode, a scalar; and the recipe's aid `ahead`."""
    assert isinstance(model, RegressionModel)
    target_BHA = scale(torch.from_numpy(batch["actions"]), s.tokenizers.action)
    with s.autocast():
        prefix = model.encode(*s.inputs(batch, keys(s.seed, step, batch)))
        chunk_BHA = model.chunk(prefix)
        aid = s.recipe.ahead * s.ahead_loss(prefix, batch["ahead"]) if model.ahead is not None else 0.0
    real_BHA = torch.from_numpy(~batch["is_pad"]).unsqueeze(-1).expand_as(target_BHA)
    return (chunk_BHA - target_BHA).abs()[real_BHA].mean() + aid


class RegressionPolicy(Policy):
    """Acts with a RegressionModel."""

    model: RegressionModel

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
            raise ValueError("expected no committed actions: regression has nothing to paint into; use a token policy")
        actions_BHA = unscale(self.model.chunk(self.model.encode(*self.inputs(observations))), self.tokenizers.action)
        return actions_BHA, torch.ones_like(actions_BHA), torch.full((len(actions_BHA),), self.horizon)
