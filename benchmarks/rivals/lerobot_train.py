# SPDX-License-Identifier: Apache-2.0
"""Training of LeRobot's policies: their classes, losses, optimisers, schedules and processors, in the rivals' loop.

What they get beyond LeRobot's own trainer: averaged weights, as ours (0.6.1 has none); batches from our frame cache;
bfloat16 if that is faster (measured, before the clock starts). VQ-BeT trains its quantiser first; that counts.
"""

import contextlib
import copy
import io
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.rivals import lerobot_policy
from benchmarks.rivals.fit import Budget, Loss, fit, keys, step_ms
from benchmarks.rivals.lerobot_clip import NAME, write_clip
from benchmarks.rivals.lerobot_configs import CONFIGS, READS, make_config, missing
from benchmarks.rivals.lerobot_data import Inputs, SentenceCode, augmented, statistics
from benchmarks.rivals.lerobot_policy import LeRobotContender, Robot
from benchmarks.rivals.settings import Settings
from vla import checkpoint, recipes
from vla.data.batches import Batch, Batches, split_episodes
from vla.data.cache import FrameCache, open_cache
from vla.train.setup import keep_freed_memory

PROBE_STEPS = 20
"""Steps in each precision by which the faster one is chosen."""
QUICK_QUANTISER_STEPS = 4
WEIGHTS = "weights"


@dataclass(frozen=True)
class LeRobot:
    """One of LeRobot's policies."""

    name: str

    def missing(self) -> str:
        """Why it cannot be run here; "" if it can."""
        return missing(self.name)

    def weights(self, folder: Path) -> Path:
        return folder / WEIGHTS

    def load(self, folder: Path, rows: int | None) -> LeRobotContender:
        """The trained policy; `rows`: of a call of it, padded."""
        return lerobot_policy.load(self.weights(folder), rows)

    def train(self, settings: Settings, folder: Path) -> dict[str, Any]:
        """Train from scratch into `folder`. Returns the facts. ValueError for a dataset that it cannot take."""
        from lerobot.policies.factory import get_policy_class, make_pre_post_processors

        keep_freed_memory()
        torch.set_num_threads(settings.threads)
        recipe = recipes.get(settings.recipe, settings.overrides)
        cache = open_cache(settings.dataset, image_size=recipe.image_size)
        code = None if self.name in READS else SentenceCode.of(cache.tasks)
        config = make_config(self.name, cache, recipe, code, folder / NAME)
        if self.name in READS:
            config.tokenizer_max_length = write_clip(folder / NAME, cache.tasks, recipe.image_size, settings.seed)
        if settings.quick and self.name == "vqbet":
            config.n_vqvae_training_steps = QUICK_QUANTISER_STEPS
        episodes, _ = split_episodes(cache, recipe.holdout, settings.seed)
        batches = Batches(cache, recipe.horizon, recipe.batch_size, settings.seed, episodes)
        inputs = Inputs(cache.cameras, tuple(cache.tasks), code, stacked=config.observation_delta_indices is not None)
        budget, middle = Budget(settings.minutes, settings.steps), cache.state.mean(0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            policy = get_policy_class(self.name)(config).train()
            policy.to(memory_format=torch.channels_last)  # convolutions on CPUs are a third faster
            pre, post = make_pre_post_processors(policy_cfg=config, dataset_stats=statistics(cache, code))
            precision, measured = faster_precision(policy, pre, inputs, batches, 2 if settings.quick else PROBE_STEPS)
            torch.manual_seed(settings.seed)  # whatever the probe drew
            quantised_s = quantise(policy, pre, inputs, cache, batches) if self.name == "vqbet" else 0.0
            preset, loss = config.get_optimizer_preset(), loss_of(policy, pre, inputs, precision)
            trained, facts = fit(
                policy,
                preset.build(policy.get_optim_params()),
                lambda batch, step, total: loss(
                    augmented(batch, recipe, keys(settings.seed, step, batch), middle), step, total
                ),
                Schedule(config),
                batches,
                budget.less(quantised_s),
                preset.grad_clip_norm,
                recipe.ema,
            )
        trained.to(memory_format=torch.contiguous_format)  # as safetensors wants it
        names = list(cache.state_names), list(cache.action_names)
        robot = Robot(tuple(cache.cameras), recipe.image_size, *names, recipe.horizon, recipe.n_action_steps)
        checkpoint.write_folder(
            self.weights(folder), lambda target: lerobot_policy.save(target, trained, pre, post, robot, code)
        )
        facts["train_s"] = round(facts["train_s"] + quantised_s, 1)
        counted = [p.numel() for p in policy.parameters()]
        return {"parameters": sum(counted), "precision": precision, **facts} | {
            "step_ms": measured,
            "quantiser_s": round(quantised_s, 1),
            "sentence_numbers": code.length if code is not None else None,
            "config": {key: str(value) for key, value in CONFIGS[self.name].items()},
        }


def loss_of(policy: nn.Module, pre: Any, inputs: Inputs, precision: str) -> Loss:
    """The policy's own loss of a batch of ours, after its own processor."""

    def loss(batch: Batch, step: int, total: int) -> Tensor:
        prepared = pre(inputs.batch(batch))
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            return policy.forward(prepared)[0]

    return loss


class Schedule:
    """The policy's schedule as a factor of (step, total): it wants the total when it is made, and we learn it later."""

    def __init__(self, config: Any) -> None:
        self.preset, self.total, self.factor = config.get_scheduler_preset(), -1, lambda step: 1.0
        self.begins = getattr(config, "n_vqvae_training_steps", 0)  # VQ-BeT's schedule counts from before its quantiser

    def __call__(self, step: int, total: int) -> float:
        if self.preset is not None and total != self.total:
            nobody = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
            self.total, self.factor = total, self.preset.build(nobody, total).lr_lambdas[0]
        return self.factor(step + self.begins)


def faster_precision(
    policy: nn.Module, pre: Any, inputs: Inputs, batches: Batches, steps: int
) -> tuple[str, dict[str, Any]]:
    """("float32" or "bfloat16", milliseconds of a step in each, or why it failed), measured on copies."""
    measured: dict[str, Any] = {}
    for precision in ("float32", "bfloat16"):
        trial = copy.deepcopy(policy)
        if hasattr(trial, "vqbet"):  # the phase that takes the time, its quantiser frozen
            quantiser = trial.vqbet.action_head.vqvae_model.eval()
            quantiser.discretized.fill_(True)
            quantiser.vq_layer.freeze_codebook.fill_(True)
        optimiser = trial.config.get_optimizer_preset().build(trial.get_optim_params())
        try:
            ms = step_ms(trial, optimiser, loss_of(trial, pre, inputs, precision), batches, steps)
            measured[precision] = round(ms, 1)
        except RuntimeError as error:  # an operation without a kernel for bfloat16
            measured[precision] = str(error).splitlines()[0]
    times = {k: v for k, v in measured.items() if isinstance(v, float)}
    if not times:
        raise ValueError(f"expected the policy to train in some precision, got {measured}")
    return min(times, key=lambda precision: times[precision]), measured


def quantise(policy: Any, pre: Any, inputs: Inputs, cache: FrameCache, batches: Batches) -> float:
    """VQ-BeT's first phase: the quantiser of chunks, as many steps as its configuration says. Returns seconds.

    It looks at actions only, so its batches have no pictures.
    """
    preset, started = policy.config.get_optimizer_preset(), time.perf_counter()
    optimiser = preset.build(policy.get_optim_params())
    episodes = np.unique(cache.episode_index[batches.samples])  # no held-out one
    unseen = replace(cache, frames={}, cameras=())
    blind = Batches(unseen, batches.horizon, batches.batch_size, batches.seed + 1, episodes)
    told, head, step = replace(inputs, cameras=()), policy.vqbet.action_head, 0
    while not head.vqvae_model.discretized.item():
        actions = pre(told.batch(blind.batch(step)))["action"]
        with contextlib.redirect_stdout(io.StringIO()):
            loss = head.discretize(policy.config.n_vqvae_training_steps, actions)[0]
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), preset.grad_clip_norm)
        optimiser.step()
        step += 1
    return time.perf_counter() - started
