# SPDX-License-Identifier: Apache-2.0
"""LeRobot's configuration of policy type `lattice`: a recipe of ours, and what a dataset decided.

lerobot-train --policy.type=lattice --policy.recipe=tabletop_nano --policy.overrides='["width=192"]' ...
"""

import math
from dataclasses import dataclass, field
from typing import Any

from lerobot.configs import FeatureType, NormalizationMode, PreTrainedConfig
from lerobot.optim import AdamWConfig, LRSchedulerConfig
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from vla import recipes
from vla.recipes import Recipe


def cosine(step: int, total: int, warmup: int) -> float:
    """The factor of `vla train`: linear warm-up, then a cosine to 1 % of the peak."""
    if step < warmup:
        return (step + 1) / warmup
    progress = min((step - warmup) / max(total - warmup, 1), 1.0)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress))


@LRSchedulerConfig.register_subclass("lattice_cosine")
@dataclass
class LatticeCosineConfig(LRSchedulerConfig):
    """`cosine`, over as many steps as are trained."""

    num_warmup_steps: int | None = 100

    def build(self, optimizer: Optimizer, num_training_steps: int) -> LambdaLR:
        warmup = self.num_warmup_steps or 0
        return LambdaLR(optimizer, lambda step: cosine(step, num_training_steps, warmup))


@PreTrainedConfig.register_subclass("lattice")
@dataclass
class LatticeConfig(PreTrainedConfig):
    """Policy type `lattice`. The network, the corruption and the optimiser are the recipe's."""

    recipe: str = "tabletop_nano"
    """A named recipe of vla/recipes.py."""
    overrides: list[str] = field(default_factory=list)
    """Single values of the recipe: ["width=192", "image_size=96"]."""
    n_obs_steps: int = 1
    """Moments that are seen, the present one included: what the recipe says."""
    n_action_steps: int = 0
    """Actions of a chunk that are executed before the next observation; 0: as the recipe says."""
    num_inference_steps: int = 0
    """Denoising steps a chunk; 0: as the recipe says."""
    seed: int = 0
    """Of masks, noise and augmentation."""
    fitted: str = ""
    """What a dataset decided (names, limits, words, sizes of the network), as JSON. Filled in when training begins."""
    rtc_config: Any = None
    """Set by lerobot-rollout; a committed start of a chunk is in-painted and needs no settings."""
    normalization_mapping: dict[str, NormalizationMode] = field(
        # Our own limits, over all frames, are in `fitted`: LeRobot's normaliser has nothing to do.
        default_factory=lambda: dict.fromkeys(("VISUAL", "STATE", "ACTION"), NormalizationMode.IDENTITY)
    )

    def __post_init__(self) -> None:
        """ValueError for an unknown recipe or override, more executed actions than a chunk has, other moments."""
        super().__post_init__()
        recipe = self.values()
        if not 0 <= self.n_action_steps <= recipe.horizon:
            raise ValueError(f"expected n_action_steps in 0 .. {recipe.horizon} (the chunk), got {self.n_action_steps}")
        if self.n_obs_steps not in (1, recipe.n_obs_steps):
            raise ValueError(
                f"expected n_obs_steps as the recipe says, {recipe.n_obs_steps}, got {self.n_obs_steps}: it is an "
                f'override of the recipe, ["n_obs_steps={self.n_obs_steps}"]'
            )
        self.n_obs_steps = recipe.n_obs_steps

    def values(self) -> Recipe:
        """The recipe with its overrides."""
        return recipes.get(self.recipe, tuple(self.overrides))

    @property
    def chunk_size(self) -> int:
        """Actions of a chunk."""
        return self.values().horizon

    @property
    def observation_delta_indices(self) -> list[int] | None:
        """The moments that are seen; None: the present one, without a dimension of its own."""
        return list(range(1 - self.n_obs_steps, 1)) if self.n_obs_steps > 1 else None

    @property
    def action_delta_indices(self) -> list[int]:
        """What was done between the moments that are seen, and the chunk."""
        return list(range(1 - self.n_obs_steps, self.chunk_size))

    @property
    def reward_delta_indices(self) -> None:
        return None

    def get_optimizer_preset(self) -> AdamWConfig:
        r = self.values()
        return AdamWConfig(lr=r.lr, betas=(0.9, 0.98), weight_decay=r.weight_decay, grad_clip_norm=r.grad_clip)

    def get_scheduler_preset(self) -> LatticeCosineConfig:
        return LatticeCosineConfig(num_warmup_steps=self.values().warmup)

    def validate_features(self) -> None:
        """ValueError without a camera, a state or actions; it names what there is."""
        there = {**(self.input_features or {}), **(self.output_features or {})}
        for kind in (FeatureType.VISUAL, FeatureType.STATE, FeatureType.ACTION):
            if not any(feature.type is kind for feature in there.values()):
                raise ValueError(
                    f"policy type lattice needs a feature of type {kind.value}; there are: {sorted(there)}"
                )
