# SPDX-License-Identifier: Apache-2.0
"""The networks that `vla bench queries` compares: which there are, how they are trained, evaluated, and asked.

What is there is not made again, so that a benchmark that was stopped goes on where it was.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vla.bench.query_answers import HeldOut

if TYPE_CHECKING:
    from vla.train.loop import TrainConfig

ALONE = tuple(f"queries.{name}=0" for name in ("policy", "joint", "world_model", "goal_policy", "label"))
NETWORKS: dict[str, tuple[str, ...]] = {
    "unified": (),
    "actions": ("queries.joint=0", "queries.share=0"),
    "no_image": ("queries.image_tokenizer=", "queries.world_model=0"),
    "inverse": (*ALONE, "queries.share=1", "queries.inverse=1", "queries.after=0", "ahead=0"),
    "every": ("queries.share=0.33", "queries.inverse=1", "queries.waypoints=1"),
}
"""Overrides of the recipe `tabletop_unified`. `every`: it acts on waypoints, and the other questions are asked of fewer
rows, for where there is little to learn from (LOG.md, 2026-11-27)."""
Cell = tuple[str, str]
"""A network of NETWORKS and what it learns from; "": everything, for the full number of steps. All others have fewer.

    short   everything, so that there is room above and below their success
    tenth   a tenth of 1,000 demonstrations (a tenth of all 6,000 leaves no room: acting alone, learnt from 600,
            succeeds in 91 %)
    video   the same, and the other nine tenths without their actions, in equal parts
"""
SHORT: tuple[Cell, ...] = (("unified", "short"), ("no_image", "short"))
LOW_DATA: tuple[Cell, ...] = (("every", "tenth"), ("actions", "tenth"), ("every", "video"), ("actions", "video"))
CELLS: dict[str, tuple[Cell, ...]] = {
    "answers": (("unified", ""),),
    "inverse": (("unified", ""), ("inverse", "")),
    "closed_loop": (("unified", ""),),
    "guarantees": (("unified", ""),),
    "images": SHORT,
    "low_data": LOW_DATA,
}
"""What each part of the benchmark compares."""


@dataclass(frozen=True)
class Sizes:
    """How much of everything."""

    recorded: int = 6000
    scarce: int = 100
    """Demonstrations, where there are few."""
    steps: int = 4000
    pair_steps: int = 1200
    episodes: int = 200
    """Of an evaluation."""
    limits: int = 100_000
    """Chunks that are sampled under limits."""
    prefixes: int = 1000
    overrides: tuple[str, ...] = ()


SMALL = ("width=32", "layers=1", "heads=2", "batch_size=8", "full_steps=4", "holdout=0.2", "queries.after=2")
QUICK = Sizes(48, 4, 12, 6, 5, 64, 8, SMALL)


@dataclass(frozen=True)
class Networks:
    """Where they are, and how big. Whatever is there is not made again."""

    room: Path
    sizes: Sizes
    policy: str = ""
    """A checkpoint that stands for the unified one; "": none."""
    threads: int = 0
    """Processes at once; 0: as many as there are cores."""

    @property
    def dataset(self) -> Path:
        return self.room / "dataset"

    def record(self) -> None:
        """The demonstrations, if they are not there."""
        from rich.console import Console

        from vla.data.record import RecordConfig, record

        if not (self.dataset / "meta" / "info.json").exists():
            shard = min(250, max(self.sizes.recorded // 2, 1))
            record(
                RecordConfig(
                    out=self.dataset,
                    suite="demo",
                    episodes=self.sizes.recorded,
                    shard_episodes=shard,
                    workers=self.threads,
                    resume=self.dataset.exists(),
                ),
                console=Console(highlight=False),
            )

    def make(self, cells: Sequence[Cell], seeds: Sequence[int]) -> None:
        """Whatever is not there yet, as many networks at once as there are cores, on one thread each; those that learn
        from everything for seed 0 only.

        Small networks make little use of a second thread: two at once are half as fast again as one after the other.
        """
        from concurrent.futures import as_completed

        from rich.console import Console

        from vla import recipes
        from vla.bench.ladder import one_thread_processes
        from vla.data.cache import open_cache

        self.record()
        wanted = dict.fromkeys((name, seed, kind) for name, kind in cells for seed in (seeds if kind else (0,)))
        configs = [self._training(*network) for network in wanted if not self._given(*network)]
        todo = [config for config in configs if not (config.out / "train.json").exists()]
        if not todo:
            return
        console = Console(highlight=False)
        processes = min(self.threads or len(os.sched_getaffinity(0)), len(todo))
        recipe = recipes.get("tabletop_unified", self.sizes.overrides)
        open_cache(self.dataset, image_size=recipe.image_size)  # decoded once, not by each of them
        told = f"training {len(todo)} networks, {processes} at once; what they say is in '{self.room}'"
        console.print(told, soft_wrap=True)
        with one_thread_processes(processes) as pool:
            running = {pool.submit(train_quietly, config): config for config in todo}
            for number, done in enumerate(as_completed(running), 1):
                done.result()
                config = running[done]
                trained = json.loads((config.out / "train.json").read_text())
                about = f"{trained['steps']} steps, {trained['elapsed_s'] / 60:.1f} min"
                console.print(f"{number}/{len(todo)}  {config.out.name}: {about}", soft_wrap=True)

    def checkpoint(self, name: str, seed: int, kind: str = "") -> Path:
        """Of a network that was made, or that is given."""
        if self._given(name, seed, kind):
            from vla.checkpoint import resolve

            return resolve(self.policy)
        return self._training(name, seed, kind).out / "checkpoints" / "last"

    def _given(self, name: str, seed: int, kind: str) -> bool:
        """Whether the user's checkpoint stands for this network."""
        return (name, seed, kind) == ("unified", 0, "") and bool(self.policy)

    def _training(self, name: str, seed: int, kind: str) -> "TrainConfig":
        from vla.train.loop import TrainConfig

        few, all = self.sizes.scarce, 10 * self.sizes.scarce
        what: dict[str, Any] = {"dataset": str(self.dataset)}
        if kind == "tenth":
            what["episodes"] = f"0:{few}"
        if kind == "video":  # the dataset twice: once with its actions, once without
            again = json.loads((self.dataset / "meta" / "info.json").read_text())["total_episodes"]
            film = f"{again + few}:{again + all}"
            what = {"dataset": (str(self.dataset),) * 2, "weights": (1.0, 1.0)}
            what |= {"episodes": f"0:{few},{film}", "action_free": film}
        return TrainConfig(
            **what,
            out=self.room / f"{name}{kind and '-' + kind}-{seed}",
            recipe="tabletop_unified",
            set=(*NETWORKS[name], *self.sizes.overrides),
            steps=self.sizes.pair_steps if kind else self.sizes.steps,
            seed=seed,
            threads=1,
        )

    def evaluate(self, checkpoint: Path, name: str, times: int = 1, **how: Any) -> dict[tuple[str, int], Any]:
        """Run a checkpoint in closed loop, in `times` as many scenes as usual: (task, seed) -> result."""
        from rich.console import Console

        from vla.eval.episodes import read_results
        from vla.eval.evaluate import EvalConfig, evaluate

        out = self.room / "eval" / name
        evaluate(
            EvalConfig(
                policy=str(checkpoint),
                suite="demo",
                episodes=times * self.sizes.episodes,
                name=name,
                out=out,
                videos=0,
                resume=True,
                **how,
            ),
            console=Console(highlight=False),
        )
        return {(r.task, r.seed): r for r in read_results(out / "episodes.jsonl")}

    def held_out(self, checkpoint: Path, seed: int) -> HeldOut:
        """Episodes that the checkpoint was not trained on."""
        from vla.data.batches import split_episodes
        from vla.data.cache import open_cache
        from vla.policy import Policy

        recipe = json.loads((checkpoint / "config.json").read_text())["recipe"]
        cache = open_cache(self.dataset, image_size=recipe["image_size"])
        # The seed of training decides which episodes are held out: it is that of the folder.
        trained = int(str(checkpoint.parents[1]).rsplit("-", 1)[-1]) if checkpoint.name == "last" else 0
        train, held = split_episodes(cache, recipe["holdout"], trained)
        return HeldOut(Policy.load(checkpoint), cache, train, held, seed)


def train_quietly(config: "TrainConfig") -> None:
    """Train, or go on where it was stopped, with its words in <out>.log; nothing if it is done."""
    from contextlib import redirect_stdout

    from vla.checkpoint import steps_in
    from vla.train.loop import train

    if (config.out / "train.json").exists():
        return
    again = bool(steps_in(config.out))
    config.out.parent.mkdir(parents=True, exist_ok=True)
    with config.out.with_suffix(".log").open("a") as log, redirect_stdout(log):
        train(replace(config, resume=again, overwrite=not again))
