# SPDX-License-Identifier: Apache-2.0
"""The training loop of the rivals: the same one for a network of ours and for a policy of LeRobot.

It is the loop of `vla train` without what only the lattice needs: the same batches in the same order, the same way to
fit the steps into a wall-clock, averaged weights with the same decay. Loss, optimiser and schedule are the rival's own.
"""

import copy
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from vla import randomness
from vla.canvas import Segment
from vla.data.batches import Batch, Batches
from vla.model import Context, LatticeModel
from vla.train.session import Session, average
from vla.train.setup import fit_steps

UNKNOWN = 1_000_000_000
"""Total steps before the rate is measured: a schedule is at its peak, or warming up."""
RATE_FROM, FIT_FROM, FIT_AGAIN = 10, 40, 200
"""As `vla train`: the total is fitted to the minutes after 40 steps, by the rate since step 10, and then again every so
many steps. Rivals take fewer steps than ours, so it is more often here."""


@dataclass(frozen=True)
class Budget:
    """How long to train: minutes of wall-clock, or steps; one of them."""

    minutes: float | None = None
    steps: int | None = None

    def less(self, seconds: float) -> "Budget":
        """What is left after `seconds`, for contenders that train in phases. Steps are those of the last phase."""
        return self if self.minutes is None else Budget(minutes=max(self.minutes - seconds / 60, 0.01))


Loss = Callable[[Batch, int, int], Tensor]
"""(a batch of `vla.data.batches`, its step, total steps) -> the loss, a scalar."""
Factor = Callable[[int, int], float]
"""(step, total steps) -> what the optimiser's learning rates are multiplied with."""


def fit(
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    loss: Loss,
    factor: Factor,
    batches: Batches,
    budget: Budget,
    grad_clip: float,
    ema: float,
) -> tuple[nn.Module, dict[str, Any]]:
    """Train `model` in place. Returns (a copy with averaged weights, {"steps", "train_s", "loss"}).

    `ema`: decay of the averaged weights, smaller in the first steps. `loss` in the facts is the mean of the last tenth.
    ValueError if the loss has not been finite for 20 steps.
    """
    peaks = [group["lr"] for group in optimiser.param_groups]
    averaged = copy.deepcopy(model).requires_grad_(False)
    total, skipped, losses = budget.steps or UNKNOWN, 0, []
    began = rate_from = time.perf_counter()
    rate_step = 0
    with batches.prefetch(0, depth=3) as stream:
        for step, batch in stream:
            again = step > 0 and step % FIT_AGAIN == 0
            if budget.minutes and (step == FIT_FROM or again):
                measured, seconds = step - rate_step, time.perf_counter() - rate_from
                total = fit_steps(measured, seconds, budget.minutes, began, step, UNKNOWN)
            if step >= total:
                break
            if step == RATE_FROM or again:
                rate_from, rate_step = time.perf_counter(), step
            for group, peak in zip(optimiser.param_groups, peaks, strict=True):
                group["lr"] = peak * factor(step, total)
            value = loss(batch, step, total)
            optimiser.zero_grad(set_to_none=True)
            value.backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), grad_clip)
            if torch.isfinite(value) and torch.isfinite(norm):
                optimiser.step()
                average(averaged, model, ema, step)
                skipped = 0
            else:
                skipped += 1
                if skipped == 20:
                    raise ValueError(f"the loss has not been finite for 20 steps, at step {step}: lower its rate")
            losses.append(value.item())
    last = losses[-max(1, len(losses) // 10) :]
    seconds = time.perf_counter() - began
    return averaged, {"steps": len(losses), "train_s": round(seconds, 1), "loss": sum(last) / len(last)}


def read(s: Session, model: LatticeModel, batch: Batch, step: int) -> tuple[Context, Tensor]:
    """What a policy of ours has read in training, and the loss of the recipe's training aid, a scalar.

    It is told the same, and the pictures and states are the same, moved and left out of the same samples, as when
    `vla train` asks the query `policy` about all rows.
    """
    key_B = keys(s.seed, step, batch)
    rows = s.rows(batch, key_B)
    left_out_B = randomness.uniform(key_B, "drop state") < s.recipe.drop_state
    observed = replace(rows.observed, sees_state_B=~left_out_B)
    context = model.read(None, {Segment.INSTRUCTION: s.vocabulary.tokens(rows.words_BL), Segment.OBSERVATION: observed})
    aid = torch.zeros((), device=key_B.device)
    if model.forecast is not None and rows.waypoints_BKS is not None:
        wrong_BKS = model.states_to_come(context).float() - s.tokenizers.state(rows.waypoints_BKS)
        aid = s.recipe.forecast * wrong_BKS[rows.purposeful_B].abs().mean()
    return context, aid


def keys(seed: int, step: int, batch: Batch) -> Tensor:
    """All randomness of a training step's rows, int64 (B,): that of `vla train`, so that all see the same pictures."""
    return randomness.fold(seed, step, torch.arange(len(batch["actions"])))


def step_ms(
    model: nn.Module, optimiser: torch.optim.Optimizer, loss: Loss, batches: Batches, steps: int, warmup: int = 3
) -> float:
    """Median milliseconds of a training step, batch included, after `warmup` steps. It changes `model`: give a copy."""
    times = []
    for step in itertools.islice(itertools.count(), warmup + steps):
        started = time.perf_counter()
        value = loss(batches.batch(step), step, UNKNOWN)
        optimiser.zero_grad(set_to_none=True)
        value.backward()
        optimiser.step()
        times.append(1e3 * (time.perf_counter() - started))
    return sorted(times[warmup:])[steps // 2]
