# SPDX-License-Identifier: Apache-2.0
"""`vla reproduce NAME`: record, train and evaluate a recipe as its docstring says, in one command that can be resumed.

It needs no network. However often it is interrupted, `--resume` goes on where it was: finished shards, the newest
checkpoint and finished episodes are kept. The budget counts what the machine worked, over all parts.
"""

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import Positional

from vla.data.record import RecordConfig
from vla.eval.evaluate import EvalConfig
from vla.train.loop import TrainConfig

if TYPE_CHECKING:
    from vla.bench.results import Row


@dataclass(frozen=True)
class Experiment:
    """What a recipe learns from, how long it may take, and what it is judged by."""

    record: RecordConfig
    list: str
    """of episodes, a name in vla/eval/lists"""
    prefix: str
    """of the rows' ids"""
    minutes: float
    """recording and training together, on the machine that the recipe names"""
    goals: dict[str, float] = field(default_factory=dict)
    """row -> least value"""


_METAWORLD = RecordConfig(env="metaworld", attempts=10, shard_episodes=50)

EXPERIMENTS: dict[str, Experiment] = {
    "metaworld_mt10_small": Experiment(
        replace(_METAWORLD, suite="mt10", episodes=500), "metaworld-mt10-200", "mt10", 60, {"success": 0.80}
    ),
    "metaworld_mt50_base": Experiment(
        replace(_METAWORLD, suite="mt50", episodes=2500), "metaworld-mt50-500", "mt50", 60, {"tier_macro": 0.80}
    ),
}
"""Recipe -> its experiment: fifty demonstrations a task, and all tasks in one network."""


LAST_MINUTES = 0.4
"""What the last validation and checkpoint may take, once the time for training is up."""


@dataclass(frozen=True)
class ReproduceConfig:
    """Record, train and evaluate a recipe as its docstring says."""

    name: Positional[str]
    """recipe: metaworld_mt10_small or metaworld_mt50_base"""
    out: Path | None = None
    """run folder: dataset/, train/, eval/, report.html; none: runs/NAME"""
    minutes: float | None = None
    """for recording and training; none: as the experiment says"""
    set: tuple[str, ...] = ()
    """overrides of the recipe, as in `vla train`"""
    seed: int = 0
    device: str = "auto"
    threads: int = 0
    """of torch on a CPU; 0: all cores"""
    resume: bool = False
    """go on with a run that was interrupted"""
    overwrite: bool = False
    """delete an existing run folder first"""
    tiny: bool = False
    """two tasks, a few episodes and steps: shows that it runs, and proves nothing; its results stay in `out`"""
    results: Path | None = None
    """where to write the numbers; none: benchmarks/results/NAME.json in a checkout, else NAME.json in `out`"""


def record_once(config: RecordConfig) -> dict[str, Any]:
    """Record, or go on recording, or give what a finished recording said of itself. Kept beside the dataset."""
    from vla.data.record import record

    done = config.out.with_name("recorded.json")
    if done.exists():
        return json.loads(done.read_text())
    there = config.out.is_dir() and any(config.out.iterdir())
    recorded = record(replace(config, resume=there))
    done.write_text(json.dumps(recorded, default=str))
    return recorded


def train_once(config: TrainConfig) -> dict[str, Any]:
    """Train, or go on from the newest checkpoint, or give what a finished training said of itself."""
    from vla.checkpoint import steps_in
    from vla.train.loop import train

    done = config.out / "train.json"
    if done.exists():
        return json.loads(done.read_text())
    again = bool(steps_in(config.out))
    return train(replace(config, resume=again, overwrite=not again))


def reproduce(config: ReproduceConfig) -> dict[str, Any]:
    """Run, print and return the results file's content.

    Raises ValueError for a name that has no experiment, or a run folder that exists without --resume or --overwrite.
    """
    import shutil

    from rich.console import Console

    from vla.bench.results import default_path, show, write
    from vla.bench.results import results as make_results
    from vla.eval.evaluate import evaluate
    from vla.eval.report import ReportConfig, report

    if config.name not in EXPERIMENTS:
        raise ValueError(f"expected a recipe out of {', '.join(EXPERIMENTS)}, got '{config.name}'")
    experiment = EXPERIMENTS[config.name]
    out = config.out or Path("runs") / config.name
    if out.exists() and any(out.iterdir()) and not config.resume:
        if not config.overwrite:
            raise ValueError(f"the run folder '{out}' exists; give another --out, or --resume to go on, or --overwrite")
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    console = Console(highlight=False)
    clock = _Clock(out / "clock.json")
    record_config, train_config, eval_config = _configs(config, experiment, out)

    console.print(f"[bold]1/3 record {record_config.episodes} demonstrations[/bold]")
    with clock.count("record"):
        recorded = record_once(record_config)
    console.print("\n[bold]2/3 train[/bold]")
    if train_config.minutes is not None:
        left = train_config.minutes - clock.seconds["record"] / 60 - LAST_MINUTES
        train_config = replace(train_config, minutes=max(left, 0.5))
    with clock.count("train"):
        training = train_once(train_config)
    console.print("\n[bold]3/3 evaluate[/bold]")
    with clock.count("eval"):
        summary = evaluate(eval_config)

    rows = _rows(experiment, summary, training, clock.seconds, config)
    # Where things lie on this machine says nothing to anybody else.
    recorded, training = ({k: v for k, v in d.items() if k not in ("out", "checkpoint")} for d in (recorded, training))
    facts = {"seconds": clock.seconds, "recorded": recorded, "training": training, "tiers": summary["tiers"]}
    measured = make_results(config.name, rows, {"training": config.seed, "episodes": experiment.list}, {"facts": facts})
    ours = out / f"{config.name}.json"
    write(measured, ours if config.tiny else config.results or default_path(config.name, out))
    console.print(f"\nlook at it: {report(ReportConfig(run=out))}", soft_wrap=True)
    show(measured, console)
    return measured


def _configs(
    config: ReproduceConfig, experiment: Experiment, out: Path
) -> tuple[RecordConfig, TrainConfig, EvalConfig]:
    """What the three verbs are told."""
    from vla import recipes

    size = recipes.get(config.name, config.set).image_size
    recording = replace(experiment.record, out=out / "dataset", image_size=size)
    training = TrainConfig(
        dataset=str(out / "dataset"),
        out=out / "train",
        recipe=config.name,
        set=config.set,
        minutes=config.minutes or experiment.minutes,
        seed=config.seed,
        device=config.device,
        threads=config.threads,
    )
    evaluation = EvalConfig(
        policy=str(out / "train" / "checkpoints" / "last"),
        env=recording.env,
        list=experiment.list,
        name=config.name,
        out=out / "eval" / "policy",
        videos=1,
        device=config.device,
        resume=True,
    )
    if config.tiny:
        from vla.envs.registry import suites

        tasks = suites(recording.env)[recording.suite][:2]
        recording = replace(recording, tasks=tasks, episodes=4, shard_episodes=2)
        training = replace(training, steps=8, minutes=None, tensorboard=False)
        evaluation = replace(evaluation, list="", tasks=tasks, episodes=2)
    return recording, training, evaluation


def _rows(
    experiment: Experiment, summary: Any, training: dict[str, Any], seconds: dict[str, float], config: ReproduceConfig
) -> "list[Row]":
    from vla.bench.results import Row

    def success(name: str, value: dict[str, Any], note: str = "") -> Row:
        least, low_high, id_ = experiment.goals.get(name), tuple(value["interval"]), f"{experiment.prefix}_{name}"
        row = Row(id_, value["success"], "success", value["n"], low_high, note=note)
        return row if least is None else replace(row, goal=f">= {least:g}", passes=value["success"] >= least)

    rows = [success("success", summary, "all episodes")]
    if "tiers" in summary["macro"]:
        rows.append(success("tier_macro", summary["macro"]["tiers"], "mean of the tiers, as published tables average"))
        rows += [success(f"tier_{tier}", value) for tier, value in summary["tiers"].items()]
    rows += [success(task, value, f"mean steps {value['mean_length']:.0f}") for task, value in summary["tasks"].items()]
    minutes = (seconds["record"] + seconds["train"]) / 60
    limit = config.minutes or experiment.minutes
    budget = Row(f"{experiment.prefix}_minutes", round(minutes, 2), "min", note="recording and training")
    rows += [
        replace(budget, goal=f"<= {limit:g}", passes=minutes <= limit),
        Row(f"{experiment.prefix}_parameters", training["parameters"], "parameters"),
        Row(f"{experiment.prefix}_train_steps", training["steps"], "steps"),
        Row(
            f"{experiment.prefix}_eval_steps_per_s", summary["steps_per_s"], "1/s", note="environment steps, all slots"
        ),
    ]
    return rows


class _Clock:
    """Seconds that each part has taken, over all runs of the command; kept in a file."""

    def __init__(self, path: Path):
        self.path = path
        self.seconds: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}

    @contextlib.contextmanager
    def count(self, part: str) -> Iterator[None]:
        from vla.eval.episodes import write_atomically

        before, began = self.seconds.get(part, 0.0), time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] = round(before + time.perf_counter() - began, 1)
            write_atomically(self.path, json.dumps(self.seconds))
