# SPDX-License-Identifier: Apache-2.0
"""`vla train`: one flat function from a dataset to a checkpoint."""

import json
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch

    from vla.recipes import Recipe
    from vla.train.session import Session


@dataclass(frozen=True)
class TrainConfig:
    """Train a policy on LeRobotDatasets (v3): local folders or hub repository ids."""

    dataset: str | tuple[str, ...]
    """Folder of the dataset, or a hub repository id. Several are mixed."""
    weights: tuple[float, ...] = ()
    """Which share of the samples comes from each of several datasets, e.g. 3 1; none: as many as it has frames."""
    episodes: str = ""
    """Which episodes to learn from, e.g. 0:450,500; none: all. Numbers go on through several datasets."""
    action_free: str = ""
    """Of these, which have no actions to learn from (a person's video): their pictures and plans alone are learnt."""
    out: Path = Path("runs/train")
    """Run folder: checkpoints/, metrics.jsonl, tensorboard/."""
    recipe: str = "tabletop_nano"
    """A named recipe of vla/recipes.py."""
    init: str = ""
    """Begin with the weights and the tokenizers of this checkpoint (a folder, or the name of a shipped one), whose
    network must be the recipe's; none: with nothing learnt."""
    set: tuple[str, ...] = ()
    """Overrides of single values of the recipe, e.g. --set width=192 corruption.p_full_mask=0.3"""
    steps: int | None = None
    """Optimiser steps; the recipe's by default."""
    minutes: float | None = None
    """Upper limit of the wall-clock: the total is cut to the steps that fit (the schedule follows)."""
    seed: int = 0
    device: str = "auto"
    """auto: CUDA where there is one, else the CPU."""
    threads: int = 0
    """CPU threads of torch; 0: all cores."""
    resume: bool = False
    """Continue from the newest complete checkpoint in `out`."""
    overwrite: bool = False
    """Delete an existing run folder first."""
    save_interval: int = 1000
    """Steps between checkpoints."""
    keep: int = 2
    """How many checkpoints to keep, beside the one with the lowest validation loss."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """Several processes (torchrun, accelerate launch): each has the whole network, or (fsdp) a slice of all of it."""
    log_interval: int = 25
    val_interval: int = 500
    tensorboard: bool = True
    dry_run: bool = False
    """Say what would be trained, its parameters by part, and which batch fits into which GPU; train nothing."""


FIT_FROM, FIT_AGAIN = 40, 1000
"""Steps after which the total is first cut to what fits into the minutes, and then again: a machine that became slower
must not make it late, nor one that was slow for a while end it early. A resumed run keeps the total it had."""


def train(config: TrainConfig) -> dict[str, Any]:
    """Train, in this process or together with the others that a launcher started.

    Returns {"checkpoint", "steps", "loss", "elapsed_s", "steps_per_s", ...}. Raises ValueError for a missing dataset, a
    dataset without language, NaN in it, an existing run folder.
    """
    from vla import recipes
    from vla.train.setup import build, started

    return run(config, recipes.get(config.recipe, config.set), started if config.init else build)


def run(
    config: TrainConfig, recipe: "Recipe", build: "Callable[[TrainConfig, Recipe, torch.device], Session]"
) -> dict[str, Any]:
    """As `train`, with any recipe and the session that `build` makes of it: what is learnt is the session's."""
    from vla import processes

    with processes.together(config.device) as device:
        return _run(config, recipe, build, device)


def _run(
    config: TrainConfig,
    recipe: "Recipe",
    build: "Callable[[TrainConfig, Recipe, torch.device], Session]",
    device: "torch.device",
) -> dict[str, Any]:
    import shutil

    import torch

    from vla import processes
    from vla.train.metrics import Metrics
    from vla.train.parallel import clip
    from vla.train.saving import load_training, newest_sound, save
    from vla.train.setup import fit_steps
    from vla.train.utilisation import measured_rate, step_operations
    from vla.train.validate import validate

    # --------------------------------------------------------------------------------------------------------------
    # Where, with what
    run, leads = config.out, processes.rank() == 0
    if run.exists() and any(run.iterdir()) and not config.resume and not config.dry_run:
        if not config.overwrite:
            raise ValueError(f"the run folder '{run}' exists; give another --out, or --resume, or --overwrite")
        processes.wait()  # all have seen it
        if leads:
            shutil.rmtree(run)
    processes.wait()
    if config.dry_run:
        from vla.train.memory import dry_run

        return dry_run(build(config, replace(recipe, compile=False), device))
    s = build(config, recipe, device)  # dataset cache, batches, tokenizers, model, optimiser, averaged weights
    total = limit = config.steps or recipe.steps
    start, last_validation = 0, {}
    if config.resume:
        folder = newest_sound(run)
        if folder is None:
            raise ValueError(f"nothing to resume in '{run}': no complete checkpoint; drop --resume to start")
        start, total = load_training(folder, s, None if config.steps is None else config.steps)
        last_validation = json.loads((folder / "config.json").read_text()).get("validation", {})
    metrics = Metrics(run, total, config.tensorboard, silent=not leads)
    metrics.say(
        f"{s.parameters / 1e6:.2f} M parameters, {len(s.train_episodes)} episodes, {s.frames} frames, "
        f"{s.precision}, {s.device}, {torch.get_num_threads()} threads"
        + (f", {processes.world()} processes ({config.parallel})" if processes.world() > 1 else "")
    )

    # --------------------------------------------------------------------------------------------------------------
    # SIGTERM and Ctrl-C: finish the step, save, leave
    stop: list[int] = []
    handlers = {}
    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            handlers[number] = signal.signal(number, lambda n, _: stop.append(n))
    except ValueError:
        pass  # not the main thread: the caller handles signals

    # --------------------------------------------------------------------------------------------------------------
    # The loop
    began = rate_from = time.perf_counter()
    rate_step = start
    skipped, stopped, validated = 0, False, -1
    loss_value, best_rate = float("nan"), 0.0
    batches = s.batches.prefetch(start, depth=3)
    try:
        for step, batch in batches:
            if step >= total or stopped:
                break
            if config.minutes and start < FIT_FROM and (step == FIT_FROM or (step and step % FIT_AGAIN == 0)):
                measured, seconds = step - rate_step, time.perf_counter() - rate_from
                total = fit_steps(measured, seconds, config.minutes, began, step, limit)
                total = int(processes.first(torch.tensor(total, device=device)))  # one clock for all
                metrics.total = total
            if step == start + 10 or (step and step % FIT_AGAIN == 0):
                best_rate = best_rate or measured_rate(device, s.precision)
                metrics.ideal_step_s = step_operations(s, batch, step) / best_rate
                rate_from, rate_step = time.perf_counter(), step

            # One step: corrupt, predict, descend the gradient, average the weights
            for group in s.optimiser.param_groups:
                group["lr"] = s.learning_rate(step, total)
            s.optimiser.zero_grad(set_to_none=True)
            parts = recipe.accumulate
            losses: dict[str, torch.Tensor] = {}
            for part in range(parts):
                found = s.within(s.losses, batch, step, None, (part, parts))
                (found["loss"] / parts).backward()
                losses = {name: losses.get(name, torch.zeros_like(x)) + x.detach() / parts for name, x in found.items()}
            grad_norm = clip(s.model.parameters(), recipe.grad_clip)
            loss, stops = processes.mean(torch.stack([losses["loss"], losses["loss"].new_tensor(len(stop))]))
            loss_value, stopped = loss.item(), stops.item() > 0
            if torch.isfinite(loss) and torch.isfinite(grad_norm):
                s.optimiser.step()
                s.average(step)
                skipped = 0
            else:
                skipped += 1
                metrics.say(f"step {step}: loss {loss_value}, gradient norm {grad_norm.item()}: update skipped")
                if skipped == 20:
                    raise ValueError(
                        "the loss has not been finite for 20 steps: lower lr (--set lr=...), or look for broken data; "
                        f"the last good checkpoint is in '{run / 'checkpoints'}'"
                    )

            # Tell, look, save
            done = step + 1
            if done % config.log_interval == 0 or done == total:
                told = {name: processes.mean(value).item() for name, value in losses.items()}
                metrics.log(
                    done, recipe.batch_size, **told, lr=s.learning_rate(step, total), grad_norm=grad_norm.item()
                )
            metrics.advance(done)
            if done % config.val_interval == 0 or done == total:
                last_validation, validated = validate(s), done
                metrics.log_validation(done, **last_validation)
            if done % config.save_interval == 0 and done < total:
                save(run, s, config, done, total, last_validation, validated == done)
    finally:
        batches.close()
        for number, handler in handlers.items():
            signal.signal(number, handler)

    # --------------------------------------------------------------------------------------------------------------
    # The last checkpoint
    reached = min(step, total) if stopped else total
    folder = save(run, s, config, reached, total, last_validation, validated == reached)
    elapsed = time.perf_counter() - began
    result = {
        "checkpoint": str(folder),
        "steps": reached,
        "loss": loss_value,
        "elapsed_s": round(elapsed, 1),
        "steps_per_s": round((reached - start) / max(elapsed, 1e-9), 2),
        "parameters": s.parameters,
        "clipped_actions": s.tokenizers.action.clipped,
        **last_validation,
    }
    metrics.close()
    if stopped:
        metrics.say(f"interrupted at step {reached}; saved in '{folder}'; continue with --resume")
        raise KeyboardInterrupt
    if leads:
        (run / "train.json").write_text(json.dumps(result, indent=2))  # who finds it knows that training is finished
    return result
