# SPDX-License-Identifier: Apache-2.0
"""The moving parts of a training run, and what it minimises."""

import contextlib
import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vla import processes, randomness
from vla.canvas.query import QUERIES
from vla.data.batches import Batches
from vla.data.cache import FrameCache
from vla.diffusion import corrupt, losses, total_loss
from vla.diffusion.joint import Vocabulary
from vla.model import LatticeModel, Prefix
from vla.policy import Policy
from vla.recipes import Recipe
from vla.tokenizers import Tokenizers
from vla.train.augment import harder
from vla.train.parallel import own, whole
from vla.train.queries import Asking, Rows, written


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

    def inputs(self, batch: dict[str, Any], key_B: Tensor | None = None) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Images, scaled state and words of a numpy batch, on the device. `key_B`: make them harder by it."""
        images = {c: torch.from_numpy(batch["images"][c]).to(self.device) for c in self.cache.cameras}
        state_BS = self.tokenizers.state(torch.from_numpy(batch["state"])).to(self.device)
        if key_B is not None:
            images, state_BS = harder(images, state_BS, key_B, self.recipe)
        return images, state_BS, self.words_TL[torch.from_numpy(batch["task_index"])].to(self.device)

    def losses(self, batch: dict[str, Any], step: int, model: LatticeModel | None = None) -> dict[str, Tensor]:
        """The losses of one batch, "loss" the total. Masks and noise: a function of (seed, step, place in it)."""
        model = model or self.model
        key_B = randomness.fold(self.seed, step, processes.places(len(batch["actions"]))).to(self.device)
        queries = self.recipe.queries
        actions, pad = torch.from_numpy(batch["actions"]), torch.from_numpy(_unknown(batch))
        with self.autocast():
            prefix = model.encode(*self.inputs(batch, key_B if model is self.model else None))
            ended = torch.from_numpy(batch["is_pad"])
            result = objective(model, prefix, self.tokenizers, self.recipe, actions, pad, key_B, step, ended)
            if model.ahead is not None and model is self.model:
                result["loss_ahead"] = self.ahead_loss(prefix, batch["ahead"])
                result["loss"] = result["loss"] + self.recipe.ahead * result["loss_ahead"]
            if queries.more and model is self.model and step >= queries.after:
                result["loss"] = queries.policy * result["loss"]
                for name, weight, parts in self._asked(batch, prefix, key_B, step):
                    result["loss"] = result["loss"] + weight * parts.pop("loss")
                    result |= {f"{part}/{name}": loss for part, loss in parts.items()}
            return result

    def ahead_loss(self, prefix: Prefix, ahead_BKS: np.ndarray) -> Tensor:
        """Mean absolute error, scaled, of the robot's states to come as the summary tells them, a scalar."""
        true_BKS = self.tokenizers.state(torch.from_numpy(ahead_BKS)).to(self.device)
        return (self.model.waypoints(prefix).float() - true_BKS).abs().mean()

    def _asked(
        self, batch: dict[str, Any], prefix: Prefix, key_B: Tensor, step: int
    ) -> Iterator[tuple[str, float, dict[str, Tensor]]]:
        """The further queries: (name, weight, its losses). `prefix`: of the policy, for the whole batch."""
        queries, size = self.recipe.queries, len(key_B)
        if queries.waypoints:
            yield "waypoints", queries.waypoints, self._towards(batch, key_B, step)
        if not queries.any:
            return
        whole = Asking(self.model, self.tokenizers, self.vocabulary, self.recipe)
        if queries.joint:
            n = max(1, round(queries.joint * size))
            rows = self.rows(batch, slice(0, n))
            shared = prefix.pick(torch.arange(n, device=self.device))
            yield "joint", 1.0, whole.losses(rows, key_B[:n], QUERIES["joint"], shared)
        if queries.share:
            n = max(1, round(queries.share * size))
            seen = whole.look(self.rows(batch, slice(size - n, size)))
            if queries.state and self.cache.cameras:
                yield "state", queries.state, {"loss": (loss := whole.state_loss(seen)), "loss_read": loss}
            for name, weight in queries.weights().items():
                if weight:
                    yield name, weight, whole.losses(seen, key_B[size - n :], QUERIES[name])

    def _towards(self, batch: dict[str, Any], key_B: Tensor, step: int) -> dict[str, Tensor]:
        """The losses of actions that lead to where the robot will be, given that and its state, and nothing else."""
        known = (torch.from_numpy(batch[name]) for name in ("state", "ahead"))
        prefix = self.model.towards(*(self.tokenizers.state(x).to(self.device) for x in known))
        key_B = randomness.fold(key_B, randomness.stream_id("waypoints"))
        actions, pad, ended = (torch.from_numpy(x) for x in (batch["actions"], _unknown(batch), batch["is_pad"]))
        return objective(self.model, prefix, self.tokenizers, self.recipe, actions, pad, key_B, step, ended)

    def rows(self, batch: dict[str, Any], which: slice) -> Rows:
        """Some rows of a batch that has plans and futures, on the device."""

        def pictures(name: str) -> dict[str, Tensor]:
            return {c: torch.from_numpy(batch[name][c][which]).to(self.device) for c in self.cache.cameras}

        def state(name: str) -> Tensor:
            return self.tokenizers.state(torch.from_numpy(batch[name][which])).to(self.device)

        plan_B = torch.from_numpy(batch["plan_index"][which])
        return Rows(
            images=pictures("images"),
            state_BS=state("state"),
            words_BL=self.words_TL[torch.from_numpy(batch["task_index"][which])].to(self.device),
            actions_BHA=torch.from_numpy(batch["actions"][which]),
            pad_BH=torch.from_numpy(_unknown(batch)[which]).to(self.device),
            ended_BH=torch.from_numpy(batch["is_pad"][which]).to(self.device),
            has_actions_B=torch.from_numpy(_has_actions(batch)[which]).to(self.device),
            plan_BL=self.plans_TL[plan_B.clamp(min=0)].to(self.device),
            has_plan_B=(plan_B >= 0).to(self.device),
            future=pictures("future"),
            goal=pictures("goal"),
            future_state_BS=state("future_state"),
            goal_state_BS=state("goal_state"),
        )

    @functools.cached_property
    def vocabulary(self) -> Vocabulary:
        """The words that are asked for."""
        assert self.tokenizers.words is not None
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

    @torch.no_grad()
    def average(self, step: int) -> None:
        """averaged += (1 - decay) (model - averaged), with a decay that grows in the first steps."""
        decay = min(self.recipe.ema, (1 + step) / (10 + step))
        pairs = [[own(p) for p in model.parameters()] for model in (self.averaged, self.model)]
        torch._foreach_lerp_(*pairs, 1 - decay)

    def acting(self) -> LatticeModel:
        """The network with the averaged weights, whole. Every process has to ask."""
        if not self.sharded:
            return self.averaged.eval()
        model = LatticeModel(self.averaged.config).requires_grad_(False).to(self.device)
        model.load_state_dict({name: whole(x) for name, x in self.averaged.state_dict().items()})
        return model.eval()

    def policy(self) -> Policy:
        """A policy that acts with the averaged weights."""
        return Policy(self.acting(), self.tokenizers, self.cache.fps, self.recipe.sampling, self.recipe.n_action_steps)


def _unknown(batch: dict[str, Any]) -> np.ndarray:
    """bool (B, H): steps past the end of an episode, and all of one that has no actions to learn from."""
    return batch["is_pad"] | ~_has_actions(batch)[:, None]


def _has_actions(batch: dict[str, Any]) -> np.ndarray:
    """bool (B,)."""
    return batch.get("has_actions", np.ones(len(batch["is_pad"]), bool))


def objective(
    model: LatticeModel,
    prefix: Prefix,
    tokenizers: Tokenizers,
    recipe: Recipe,
    actions_BHA: Tensor,
    pad_BH: Tensor,
    key_B: Tensor,
    step: int,
    ended_BH: Tensor | None = None,
) -> dict[str, Tensor]:
    """What training minimises, "loss", and its parts, scalars.

    `actions_BHA`: float, the dataset's units. `pad_BH`: bool, past the end of the episode, or unknown; `ended_BH`: of
    these, what is past the end (all of it by default), which STOP learns. `key_B`: all randomness.
    `step`: below `recipe.full_steps` there are no partial masks; below 0 (validation) there are.
    """
    config, tokenizer = model.config, tokenizers.action
    digits_BHAD, pad_BH = written(tokenizer, actions_BHA, pad_BH, pad_BH if ended_BH is None else ended_BH)
    digits_BHAD = digits_BHAD.to(key_B.device)
    if not tokenizer.time_aligned:  # a position speaks about all steps; past the end the last action was repeated
        pad_BH = torch.zeros(digits_BHAD.shape[:2], dtype=torch.bool)
    programs = recipe.programs
    if 0 <= step < recipe.full_steps:
        programs = replace(programs, full=1 - programs.revise)
    radix_AD = model.head.allowed_ADV.sum(-1)
    corrupted = corrupt(
        digits_BHAD, pad_BH.to(key_B.device), key_B, config.layout, programs, config.noise_indices, radix_AD
    )
    digits, quality = losses(model, prefix, corrupted, key_B, recipe.noise_candidates)
    names = ["loss_coarse", "loss_fine", *(f"loss_digit_{d}" for d in range(2, len(digits)))]
    return {"loss": total_loss(digits, quality), **dict(zip(names, digits, strict=False)), "loss_quality": quality}
