# SPDX-License-Identifier: Apache-2.0
"""The contenders that are ours: the recipe, the recipe with one mask, and two other ways to use the same network.

`ours` and `single_mask` are trained by `vla train`'s function. The other two take its dataset, tokenizers, network,
optimiser, schedule and averaged weights (`vla.train.setup.build`), and put another model and loss in their place.
"""

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.rivals import autoregressive, regression
from benchmarks.rivals.fit import Budget, fit
from benchmarks.rivals.settings import Settings
from vla import checkpoint, recipes
from vla.bench.ladder import VARIANTS
from vla.bench.speed_paths import Autoregressive
from vla.canvas import Segment
from vla.canvas.query import QUERIES
from vla.diffusion import Sampling
from vla.model import LatticeModel, ModelConfig
from vla.policy import Policy
from vla.tokenizers import Tokenizers
from vla.train.loop import TrainConfig, train
from vla.train.session import Session
from vla.train.setup import build

UNLIMITED = 10_000_000
"""The recipe's number of steps is for its own budget: with --minutes, the wall-clock alone decides."""
SINGLE_MASK = (*VARIANTS["single_mask"], "sampling.num_inference_steps=8")
"""As `vla bench lattice` has it, filled in 8 steps, its best."""
WEIGHTS = "weights"


def train_config(settings: Settings, folder: Path, extra: tuple[str, ...] = ()) -> TrainConfig:
    return TrainConfig(
        dataset=settings.dataset,
        out=folder / "train",
        recipe=settings.recipe,
        set=(*settings.overrides, *extra),
        steps=settings.steps or UNLIMITED,
        minutes=settings.minutes,
        seed=settings.seed,
        device="cpu",
        threads=settings.threads,
        tensorboard=False,
        overwrite=True,
    )


@dataclass(frozen=True)
class Lattice:
    """A recipe, trained by `vla train`."""

    overrides: tuple[str, ...] = ()

    def train(self, settings: Settings, folder: Path) -> dict[str, Any]:
        """Train from scratch into `folder`. Returns the facts."""
        config = train_config(settings, folder, self.overrides)
        trained = train(config)
        recipe = recipes.get(config.recipe, config.set)
        return {
            "parameters": trained["parameters"],
            "steps": trained["steps"],
            "train_s": trained["elapsed_s"],
            "loss": trained["loss"],
            "precision": recipe.precision,
            "config": {"recipe": config.recipe, "overrides": list(config.set)},
        }

    def weights(self, folder: Path) -> Path:
        return folder / "train" / "checkpoints" / "last"

    def load(self, folder: Path, rows: int | None) -> Policy:
        """The trained policy; `rows`: of each evaluation of the network, padded."""
        return Policy.load(self.weights(folder), rows=rows)


@dataclass(frozen=True)
class SameNetwork:
    """Another model and loss with everything else of the recipe."""

    model: type[LatticeModel]
    policy: type[Policy]
    loss: Callable[[Session, nn.Module, dict[str, Any], int, int], Tensor]
    arrangement: str

    def train(self, settings: Settings, folder: Path) -> dict[str, Any]:
        """Train from scratch into `folder`. Returns the facts. ValueError for a recipe whose tokens are no bins."""
        config = train_config(settings, folder)
        no_lattice = [f"arrangement={self.arrangement}", "noise_indices=1", "queries.policy=1"]
        no_lattice += [f"queries.{name}=0" for name in QUERIES if name != "policy"]
        recipe = recipes.get(config.recipe, (*config.set, *no_lattice))
        if recipe.actions != "bins":
            raise ValueError(f"expected a recipe with actions=bins for this rival, got '{recipe.actions}'")
        s = with_model(build(config, recipe), self.model)
        averaged, facts = fit(
            s.model,
            s.optimiser,
            lambda batch, step, total: self.loss(s, s.model, batch, step, total),
            lambda step, total: s.learning_rate(step, total) / recipe.lr,
            s.batches,
            Budget(settings.minutes, settings.steps),
            recipe.grad_clip,
            recipe.ema,
        )
        acts = recipe.sampling, recipe.n_action_steps
        policy = self.policy(averaged, s.tokenizers, s.cache.fps, *acts, trained=s.trained)  # type: ignore[arg-type]
        checkpoint.write_folder(self.weights(folder), policy.write)
        about = {"recipe": config.recipe, "overrides": [*config.set, *no_lattice]}
        return {"parameters": s.parameters, "precision": s.precision, "config": about, **facts}

    def weights(self, folder: Path) -> Path:
        return folder / WEIGHTS

    def load(self, folder: Path, rows: int | None) -> Policy:
        """The trained policy; `rows`: of each evaluation of the network, padded."""
        checkpoint.verify(self.weights(folder))
        config = json.loads((self.weights(folder) / "config.json").read_text())
        model = self.model(ModelConfig(**config["model"]))
        model.load_state_dict(checkpoint.load_tensors(self.weights(folder) / "model.safetensors"))
        tokenizers, sampling = Tokenizers.load(self.weights(folder)), Sampling(**config["sampling"])
        acts = sampling, config["n_action_steps"]
        return self.policy(model, tokenizers, config["fps"], *acts, rows=rows, trained=config["queries"])


def with_model(s: Session, kind: type[LatticeModel]) -> Session:
    """The session with a model of another kind, from the same seed, and an optimiser with the same settings."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(s.seed)
        model = kind(s.model.config)
    model.head_of(Segment.ACTION).allowed_ADV.copy_(s.tokenizers.action.allowed_ADV())
    model.vision.load_state_dict(s.model.vision.state_dict())  # the dataset's mean picture is in it
    decay = s.recipe.weight_decay
    groups = [
        {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": decay},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, lr=s.recipe.lr, betas=s.optimiser.defaults["betas"], fused=True)
    return replace(s, model=model, averaged=copy.deepcopy(model).requires_grad_(False), optimiser=optimiser)


MADE = {
    "ours": Lattice(),
    "single_mask": Lattice(SINGLE_MASK),
    "autoregressive": SameNetwork(Autoregressive, autoregressive.AutoregressivePolicy, autoregressive.loss, "per_dim"),
    "regression": SameNetwork(regression.RegressionModel, regression.RegressionPolicy, regression.loss, "per_step"),
}
"""A contender's name and how it is made."""
