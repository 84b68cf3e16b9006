# SPDX-License-Identifier: Apache-2.0
"""An exactly bimodal task: pass an obstacle on its left or on its right, half and half.

The chunk is a curve of 8 steps in 2 dimensions; the observation says how wide the obstacle is, and nothing says which
side to take. All 16 tokens of a chunk depend on one hidden coin, so a sampler that treats them as independent drives
into the obstacle. A network of one denoising step can only do it with noise. The lattice and one mask are each trained
with a noise index and without, or the comparison would show the index for the lattice.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vla import randomness
from vla.canvas import Segment, State, all_masked
from vla.diffusion import (
    UNIFORM_MASKING,
    CorruptionConfig,
    Sampling,
    corrupt,
    denoising_losses,
    sample,
    total_loss,
)
from vla.model import Context, LatticeModel, ModelConfig, Observed

HORIZON, DIMS, BASE = 8, 2, 16
NOISE_INDICES, CANDIDATES = 16, 8


@dataclass(frozen=True)
class Variant:
    """A way to train and sample."""

    corruption: CorruptionConfig
    noise_indices: int

    @property
    def noise(self) -> bool:
        return self.noise_indices > 1


VARIANTS = {
    "lattice": Variant(CorruptionConfig(), NOISE_INDICES),
    "lattice_no_index": Variant(CorruptionConfig(), 1),
    "single_mask": Variant(UNIFORM_MASKING, 1),
    "single_mask_index": Variant(UNIFORM_MASKING, NOISE_INDICES),
}


def curve(width_B: Tensor, side: Tensor | int) -> Tensor:
    """Actions in [0, 1], float (B, 8, 2): forward, and to the side (-1 or 1) of an obstacle of this width in [0, 1)."""
    t = torch.arange(1, HORIZON + 1) / HORIZON
    sideways = 0.5 + (side * (0.15 + 0.3 * width_B)).unsqueeze(1) * torch.sin(t * math.pi / 1.1)
    return torch.stack([(0.2 + 0.6 * t).expand_as(sideways), sideways], dim=-1)


def bins(actions: Tensor) -> Tensor:
    """float in [0, 1] -> the bin, int64 0..255."""
    return (actions.clamp(0, 1) * BASE**2).long().clamp(max=BASE**2 - 1)


def data(key_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(observation (B, 2), digits (B, 8, 2, 2), width (B,)), a function of the keys."""
    width_B = randomness.uniform(key_B, "width").float()
    side_B = 2.0 * (randomness.uniform(key_B, "side") < 0.5) - 1
    index = bins(curve(width_B, side_B))
    return torch.stack([width_B, 1 - width_B], 1), torch.stack([index // BASE, index % BASE], -1), width_B


def read(model: LatticeModel, observation_BS: Tensor) -> Context:
    """The context of an observation: it is all that is seen, and nothing is said."""
    return model.read(None, {Segment.OBSERVATION: Observed({}, observation_BS.unsqueeze(1))})


def nothing(digits_BHAD: Tensor) -> State:
    """A chunk of which nothing is known."""
    batch, steps, dims, depth = digits_BHAD.shape
    return all_masked((batch, steps, dims), depth)


def train(variant: Variant, steps: int, seed: int, batch: int = 128, width: int = 64) -> LatticeModel:
    """A small network on the task; AdamW with a cosine schedule."""
    config = ModelConfig(
        cameras=(),
        state_dim=2,
        executed_dim=DIMS,
        text_length=1,
        action_dims=DIMS,
        horizon=HORIZON,
        noise_indices=variant.noise_indices,
        width=width,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LatticeModel(config)
    pad_BH, how = torch.zeros(batch, HORIZON, dtype=torch.bool), variant.corruption

    def loss(step: int) -> Tensor:
        key_B = randomness.fold(seed, step, torch.arange(batch))
        observation, digits, _ = data(key_B)
        corrupted = {Segment.ACTION: corrupt(digits, pad_BH, key_B, config.layout, how)}
        losses = denoising_losses(model, read(model, observation), corrupted, key_B, how.p_noisy, CANDIDATES)
        return total_loss(losses[Segment.ACTION])

    return fit(model, loss, steps)


def fit(model: LatticeModel, loss: Callable[[int], Tensor], steps: int) -> LatticeModel:
    """Train by `loss(step)`."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    for step in range(steps):
        rate = min(1, (step + 1) / 100) * (1 + math.cos(math.pi * step / steps)) / 2
        optimiser.param_groups[0]["lr"] = 2e-3 * rate
        optimiser.zero_grad()
        loss(step).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
    return model.eval()


@torch.no_grad()
def measure(
    model: LatticeModel, single_mask: bool, noise: bool, steps: int, temperature: float, n: int = 2000
) -> dict[str, float]:
    """{"joint": chunks that follow one of the two curves within a coarse bin at every step, "coverage": sum over the
    modes of min(frequency, 1/2)}: 1 - total variation to the truth."""
    key_B = randomness.fold(1_000_000, torch.arange(n))
    observation, _, width_B = data(key_B)
    sampling = Sampling(steps, temperature, noise=noise, single_mask=single_mask)
    found = sample(model, read(model, observation), randomness.fold(2, key_B), [Segment.ACTION], sampling)
    digits = found.segments[Segment.ACTION].state.digits_BNSD
    index = digits[..., 0] * BASE + digits[..., 1]
    follows = [
        ((index - bins(curve(width_B, side))).abs() <= BASE).all((1, 2)).double().mean().item() for side in (-1, 1)
    ]
    return {"joint": sum(follows), "coverage": sum(min(f, 0.5) for f in follows)}
