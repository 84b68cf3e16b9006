# SPDX-License-Identifier: Apache-2.0
"""The ablation ladder: the same network, data and steps, one part of the lattice after the other.

A cell is (world, variant, seed): train, probe on held-out chunks, evaluate in simulation at 1, 2, 4 and 8 steps.
All variants learn the same queries.
It is one process with one thread and one JSON file; a cell that has its file is not run again.
"""

import io
import json
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

NFES = (1, 2, 4, 8)
ONE_LEVEL = (
    "corruption.p_keep_coarse=0",
    "corruption.p_coarse_only=0",
    "corruption.single_mask=true",
    "sampling.single_mask=true",
)
ALL_TRUE = ("corruption.p_wrong=0", "corruption.p_remasked=0")
NO_PAIRS = (
    "corruption.p_full_mask=0",
    "corruption.p_structured=0",
    "corruption.min_ratio=0",
    "corruption.complementary=false",
    "corruption.bell=false",
)
VARIANTS: dict[str, tuple[str, ...]] = {
    "single_mask": (*ONE_LEVEL, *ALL_TRUE, *NO_PAIRS),
    "pairs": (*ONE_LEVEL, *ALL_TRUE),
    "levels": ALL_TRUE,
    "lattice": (),
    "noise": ("noise_indices=16",),
}
"""Overrides of the recipe, each step of the ladder with one part more."""
MEANING = {
    "single_mask": "one mask, plain random masking",
    "pairs": "+ complementary pairs, bell ratios, full masks, structure",
    "levels": "+ a coarse level",
    "lattice": "+ false tokens, and masks that count as remasked (the recipe)",
    "noise": "+ noise index, picked by its posterior",
}


@dataclass(frozen=True)
class World:
    """A dataset and where it is evaluated."""

    name: str
    env: str
    suite: str
    recipe: str
    dataset: Path
    recorded: int
    """episodes"""
    steps: int
    episodes: int
    """of each evaluation"""
    variants: tuple[str, ...]
    note: str = ""
    """What to know of its single mask."""


@dataclass(frozen=True)
class Cell:
    world: World
    variant: str
    seed: int
    out: Path

    @property
    def file(self) -> Path:
        return self.out / f"{self.world.name}-{self.variant}-{self.seed}.json"

    def measured(self) -> dict[str, Any] | None:
        """What its file says; None without a file, or if it is of other steps or another number of episodes."""
        if not self.file.exists():
            return None
        found = json.loads(self.file.read_text())
        same = (found["steps"], len(found["successes"]["1"])) == (self.world.steps, self.world.episodes)
        return found if same else None


def record(world: World) -> None:
    """Record the world's demonstrations, if they are not there."""
    from vla.data.record import RecordConfig
    from vla.data.record import record as record_episodes

    if (world.dataset / "meta" / "info.json").exists():
        return
    config = RecordConfig(
        env=world.env,
        suite=world.suite,
        episodes=world.recorded,
        seed=3_000_000,
        out=world.dataset,
        resume=world.dataset.exists(),
    )
    record_episodes(config)


def one_thread_processes(count: int) -> ProcessPoolExecutor:
    """Spawned processes of one thread each: two processes of two threads would take each other's cores."""
    os.environ["OMP_NUM_THREADS"] = "1"  # inherited
    return ProcessPoolExecutor(count, mp_context=get_context("spawn"))


def run_cells(cells: list[Cell], processes: int, console: "Console") -> dict[tuple[str, str, int], dict[str, Any]]:
    """All cells, `processes` at a time. Returns (world, variant, seed) -> what `run_cell` measured."""
    todo = [cell for cell in cells if cell.measured() is None]
    if todo:
        with one_thread_processes(min(processes, len(todo))) as pool:
            running = {pool.submit(run_cell, cell): cell for cell in todo}
            for number, done in enumerate(as_completed(running), 1):
                done.result()
                cell = running[done]
                found = json.loads(cell.file.read_text())
                success = " ".join(f"{100 * found['success'][str(n)]:.0f}" for n in NFES)
                console.print(
                    f"{number}/{len(todo)}  {cell.world.name} {cell.variant} seed {cell.seed}: success at "
                    f"1, 2, 4, 8 steps {success} %, {found['train_s']:.0f} s",
                    soft_wrap=True,
                )
    return {(c.world.name, c.variant, c.seed): json.loads(c.file.read_text()) for c in cells}


def run_cell(cell: Cell) -> None:
    """Train, probe, evaluate, and write the cell's file."""
    import shutil
    from contextlib import redirect_stdout

    from rich.console import Console

    from vla.eval.episodes import read_results, write_atomically
    from vla.eval.evaluate import EvalConfig, evaluate
    from vla.eval.manifest import git_commit
    from vla.train.loop import TrainConfig, train

    work, world, quiet = cell.out / cell.file.stem, cell.world, io.StringIO()
    config = TrainConfig(
        dataset=str(world.dataset),
        out=work / "train",
        recipe=world.recipe,
        set=VARIANTS[cell.variant],
        steps=world.steps,
        seed=cell.seed,
        threads=1,
        save_interval=max(1, world.steps // 8),
        keep=100,
        val_interval=world.steps,
        tensorboard=False,
        overwrite=True,
    )
    with redirect_stdout(quiet):
        trained = train(config)
    found: dict[str, Any] = {
        "variant": cell.variant,
        "seed": cell.seed,
        "steps": world.steps,
        "commit": git_commit(),
        "parameters": trained["parameters"],
        "train_s": trained["elapsed_s"],
        "success": {},
        "successes": {},
    }
    found |= probe(config, cell)
    for n in NFES:
        out = work / f"eval-{n}"
        summary = evaluate(
            EvalConfig(
                policy=trained["checkpoint"],
                env=world.env,
                suite=world.suite,
                episodes=world.episodes,
                num_inference_steps=n,
                workers=1,
                videos=0,
                out=out,
                overwrite=True,
                name=cell.variant,
            ),
            console=Console(file=quiet),
        )
        found["success"][n] = summary["success"]
        found["successes"][n] = {f"{r.task}:{r.seed}": r.success for r in read_results(out / "episodes.jsonl")}
    write_atomically(cell.file, json.dumps(found))
    shutil.rmtree(work / "train")


def probe(config: Any, cell: Cell) -> dict[str, Any]:
    """Bits a chunk on held-out episodes under samplers of T steps, along training and at its end; gradient noise of
    plain masking and of the lattice at half of the training."""
    import torch

    from vla import randomness, recipes
    from vla.bench.gradients import gradient_noise, seen
    from vla.bench.likelihood import chain_bits, sampler_bits
    from vla.checkpoint import steps_in
    from vla.data.batches import Batches
    from vla.diffusion import UNIFORM_MASKING
    from vla.train.saving import load_training
    from vla.train.setup import build

    recipe = recipes.get(config.recipe, config.set)
    s = build(config, recipe)
    batches = Batches(s.cache, recipe.horizon, 128, 1, s.val_episodes)
    single, noise = recipe.corruption.single_mask, recipe.noise_indices > 1
    model = s.averaged.eval()

    def bits(what: Any, count: int) -> float:
        total = []
        for step in range(count):
            batch = batches.batch(step)
            whole_B = torch.from_numpy(~batch["is_pad"].any(1))
            with torch.no_grad():
                context = model.read(None, seen(s, batch)).pick(whole_B)
            digits = model.config.layout.fold(s.tokenizers.action.encode(torch.from_numpy(batch["actions"])))[whole_B]
            total.append(what(context, digits, randomness.fold(5, step, torch.arange(len(digits)))))
        return float(torch.cat(total).mean())

    found: dict[str, Any] = {"curve": []}
    for folder in steps_in(config.out):
        step, _ = load_training(folder, s, None)
        found["curve"].append([step, bits(lambda c, d, k: sampler_bits(model, c, d, k, 2, single, noise), 1)])
        if step == cell.world.steps // 8 * 4:
            found["gradient_plain"] = gradient_noise(s, UNIFORM_MASKING, 1)
            found["gradient"] = gradient_noise(s, recipe.corruption, recipe.noise_candidates)
    for name, drawn in (("bits", noise), ("bits_plain_mask", False)):
        found[name] = {
            t: bits(lambda c, d, k, t=t, z=drawn: sampler_bits(model, c, d, k, t, single, z), 2) for t in (1, 2, 4)
        }
    found["chain_bits"] = bits(lambda c, d, k: chain_bits(model, c, d, k), 2)
    return found
