# SPDX-License-Identifier: Apache-2.0
"""The moving parts of a training run, and what it minimises."""

import contextlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vla import processes, randomness
from vla.data.batches import Batches
from vla.data.cache import FrameCache
from vla.diffusion.lengths import Vocabulary
from vla.model import LatticeModel, Observed
from vla.policy import Policy
from vla.recipes import Recipe
from vla.tokenizers import Tokenizers
from vla.train.augment import augmented
from vla.train.parallel import own, whole
from vla.train.queries import QueryLoss, Rows


@dataclass
class Session:
    """The moving parts of one run."""

    recipe: Recipe
    seed: int
    device: torch.device
    precision: str
    cache: FrameCache
    train_episodes: np.ndarray
    val_episodes: np.ndarray
    batches: Batches
    tokenizers: Tokenizers
    words_TL: Tensor
    """int64 (tasks, words): the ids of every instruction of the dataset."""
    plans_TL: Tensor
    """int64 (plans, words): of every plan."""
    trained: tuple[str, ...]
    """The queries that are learnt."""
    model: LatticeModel
    averaged: LatticeModel
    optimiser: torch.optim.Optimizer
    within: torch.nn.Module
    """Calls `losses` in such a way that several processes share its gradients."""
    sharded: bool = False
    """Whether this process has a slice of every parameter only."""

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters())

    @property
    def frames(self) -> int:
        return len(self.cache.action)

    def rows(self, batch: dict[str, Any], key_B: Tensor | None = None) -> Rows:
        """A numpy batch on the device. `key_B`: augment what is seen, a function of it."""
        device = self.device

        def to(x: np.ndarray) -> Tensor:
            return torch.from_numpy(x).to(device, non_blocking=True)

        def pictures(found: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
            images = {camera: to(found[camera]) for camera in self.cache.cameras}
            return images if key_B is None else augmented(images, key_B, self.recipe)

        executed, known = None, None
        if batch["past"].shape[1]:
            executed, known = self.tokenizers.action.scaled(to(batch["past"])), to(batch["past_known"])
        observed = Observed(pictures(batch["images"]), self.tokenizers.state(to(batch["state"])), executed, known)
        plan_B = torch.from_numpy(batch["plan_index"]) if "plan_index" in batch else None
        return Rows(
            observed=observed,
            words_BL=self.words_TL[torch.from_numpy(batch["task_index"])].to(device),
            labels_BHA=to(batch["actions"]),
            executed_BHA=to(batch["executed"]),
            ended_BH=to(batch["is_pad"]),
            has_labels_B=to(batch["has_labels"]),
            has_actions_B=to(batch["has_actions"]),
            plan_BL=None if plan_B is None else self.plans_TL[plan_B.clamp(min=0)].to(device),
            has_plan_B=None if plan_B is None else (plan_B >= 0).to(device),
            waypoints_BKS=to(batch["waypoints"]) if "waypoints" in batch else None,
            pictures={n: pictures(batch[n]) for n in ("future", "goal", "last")} if "future" in batch else None,
        )

    def losses(
        self, batch: dict[str, Any], step: int, model: LatticeModel | None = None, part: tuple[int, int] = (0, 1)
    ) -> dict[str, Tensor]:
        """The losses of one batch, "loss" the total. Masks and noise: a function of (seed, step, place in it).

        `model`: another one than the trained one; then nothing is augmented, and the policy alone is asked. `part`:
        (i, n), the rows i, i + n, ... alone.
        """
        validates = model is not None and model is not self.model
        key_B, batch = self.keys(batch, step, part), some_rows(batch, part)
        trained = tuple(n for n in self.trained if n == "policy") or self.trained if validates else self.trained
        objective = QueryLoss(model or self.model, self.tokenizers, self.vocabulary, self.recipe, trained)
        with self.autocast():
            return objective(self.rows(batch, None if validates else key_B), key_B, step)

    def keys(self, batch: dict[str, Any], step: int, part: tuple[int, int]) -> Tensor:
        """int64 (B,): all randomness of the rows of a part of a batch."""
        places_B = processes.places(len(batch["actions"]))[part[0] :: part[1]]
        return randomness.fold(self.seed, step, places_B).to(self.device)

    @property
    def vocabulary(self) -> Vocabulary:
        """The words, as tables."""
        return Vocabulary(*(table.to(self.device) for table in self.tokenizers.words.tables))

    def autocast(self) -> contextlib.AbstractContextManager:
        if self.precision == "bfloat16":
            return torch.autocast(self.device.type, torch.bfloat16)
        return contextlib.nullcontext()

    def learning_rate(self, step: int, total: int) -> float:
        """Linear warm-up, then a cosine to 1 % of the peak."""
        r = self.recipe
        if step < r.warmup:
            return r.lr * (step + 1) / r.warmup
        progress = min((step - r.warmup) / max(total - r.warmup, 1), 1.0)
        return r.lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))

    def average(self, step: int) -> None:
        """Move the averaged weights towards the trained ones."""
        average(self.averaged, self.model, self.recipe.ema, step)

    def acting(self) -> LatticeModel:
        """The network with the averaged weights, whole. Every process has to ask."""
        if not self.sharded:
            return self.averaged.eval()
        model = LatticeModel(self.averaged.config).requires_grad_(False).to(self.device)
        model.load_state_dict({name: whole(x) for name, x in self.averaged.state_dict().items()})
        return model.eval()

    def policy(self) -> Policy:
        """A policy that acts with the averaged weights."""
        return Policy(
            self.acting(),
            self.tokenizers,
            self.cache.fps,
            self.recipe.sampling,
            self.recipe.n_action_steps,
            trained=self.trained,
        )


def some_rows(batch: dict[str, Any], part: tuple[int, int]) -> dict[str, Any]:
    """The rows i, i + n, ... of a batch, pictures included. `part`: (i, n)."""
    if part[1] == 1:
        return batch
    return {
        name: some_rows(x, part) if isinstance(x, dict) else np.ascontiguousarray(x[part[0] :: part[1]])
        for name, x in batch.items()
    }


@torch.no_grad()
def average(averaged: torch.nn.Module, model: torch.nn.Module, decay: float, step: int) -> None:
    """averaged += (1 - d) (model - averaged) for parameters, d growing to `decay` in the first steps; buffers (running
    statistics of norms) are copied."""
    decay = min(decay, (1 + step) / (10 + step))
    pairs = [[own(p) for p in m.parameters()] for m in (averaged, model)]
    torch._foreach_lerp_(*pairs, 1 - decay)
    for ours, theirs in zip(averaged.buffers(), model.buffers(), strict=True):
        ours.copy_(theirs)
