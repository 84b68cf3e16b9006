# SPDX-License-Identifier: Apache-2.0
"""`vla bench robustness`: how much of a policy's success is left when one thing about the episodes is different?

The same (task, seed) episodes are run as they are, with the policy told something else, and under each perturbation
that the environment has (`vla.envs.perturbation`); each is compared with the first, paired. Every cell is an evaluation
in a folder of its own under `out`, so that a run that was stopped goes on where it was.
"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vla.bench.results import Row, results
from vla.bench.run import BenchConfig

if TYPE_CHECKING:
    from vla.eval.evaluate import EvalConfig

MEANING = {
    "swap": "told about another object, judged by the first: low means that it reads",
    "paraphrase": "told the same in other words",
    "camera-shift": "the camera moved by 2 to 3 cm and turned by 2 to 3 degrees",
    "light": "light from another side, of another colour and strength",
    "distractors": "two to four things that do not matter on the table",
    "action-delay": "every action acts two steps later",
    "held-out-positions": "objects where training places none",
}
QUICK_TASKS, QUICK_EPISODES = 2, 6


def cells(config: BenchConfig) -> dict[str, "EvalConfig"]:
    """Name -> evaluation, "unperturbed" first. ValueError for an environment or a suite that does not exist."""
    from vla.envs.registry import CAMERAS, PERTURBATIONS, suites
    from vla.eval.evaluate import BASELINES, EvalConfig

    tasks = suites(config.env)
    if config.suite not in tasks:
        raise ValueError(f"expected a suite of {config.env} out of {', '.join(tasks)}, got {config.suite!r}")
    base = EvalConfig(
        policy=config.policy,
        env=config.env,
        suite=config.suite,
        episodes=config.episodes,
        videos=0,
        resume=True,
    )
    if config.quick:
        base = replace(base, tasks=tasks[config.suite][:QUICK_TASKS], episodes=min(config.episodes, QUICK_EPISODES))
    found = {"unperturbed": base}
    # A baseline reads nothing, and a state without pixels says what the sentence means.
    if config.policy not in BASELINES and CAMERAS[config.env]:
        found |= {"swap": replace(base, instruction="swapped"), "paraphrase": replace(base, instruction="paraphrased")}
    found |= {name: replace(base, perturbation=name) for name in PERTURBATIONS[config.env]}  # type: ignore[arg-type]
    room = (config.out / "quick" if config.quick else config.out) / "robustness"
    return {name: replace(cell, name=name, out=room / name) for name, cell in found.items()}


def run(config: BenchConfig) -> dict[str, Any]:
    """Evaluate everything that is not on disk yet; returns the results.

    ValueError for settings that cannot be, and for cells in `out` that are of another policy.
    """
    from rich.console import Console

    from vla.eval.evaluate import evaluate

    console = Console(highlight=False)
    found = cells(config)
    summaries = {name: evaluate(cell, console=console) for name, cell in found.items()}
    rows = [row for name in found for row in _rows(name, summaries[name], found[name].out, found["unperturbed"].out)]
    extra = {
        "policy": config.policy,
        "checkpoint_sha256": summaries["unperturbed"]["manifest"]["checkpoint_sha256"],
        "env": config.env,
        "suite": config.suite,
        "quick": config.quick,
        "tasks": {name: summary["tasks"] for name, summary in summaries.items()},
    }
    return results("robustness", rows, "0.. of each task", extra)


def _rows(name: str, summary: Any, folder: Path, reference: Path) -> list[Row]:
    from vla.eval.episodes import read_results
    from vla.eval.statistics import compare_paired

    row_id = f"robustness_{name.replace('-', '_')}"
    low, high = summary["interval"]
    rows = [Row(row_id, summary["success"], "fraction", summary["n"], (low, high), note=MEANING.get(name, ""))]
    if folder == reference:
        return rows
    without, under = (
        {(r.task, r.seed): r.success for r in read_results(f / "episodes.jsonl")} for f in (reference, folder)
    )
    paired = compare_paired(without, under)
    note = f"lost {paired.only_a}, gained {paired.only_b}, exact McNemar p = {paired.p_value:.3g}"
    return [*rows, Row(f"{row_id}_difference", paired.difference, "fraction", paired.n, paired.interval, note=note)]
