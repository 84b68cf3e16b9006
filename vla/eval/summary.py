# SPDX-License-Identifier: Apache-2.0
"""From finished episodes to summary.json, and to a table for people."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np

from vla.eval.episodes import EpisodeResult

if TYPE_CHECKING:
    from rich.console import Console


class Summary(TypedDict):
    """summary.json. `interval` is 95 %: Wilson for a task, stratified (see `statistics`) over tasks.

    `success` counts every episode the same. `macro` has "tasks", the mean over tasks, and, if there are several tiers
    of difficulty, "tiers", the mean over those (what published MT50 tables call the average); `tiers` has each of them.
    """

    name: str
    suite: str
    env: str
    n: int
    success: float
    interval: list[float]
    macro: dict[str, dict[str, Any]]
    tiers: dict[str, dict[str, Any]]
    tasks: dict[str, dict[str, Any]]
    latency_ms: dict[str, float | int | None]
    steps_per_s: float
    manifest: dict[str, Any]


def summarize(
    name: str,
    suite: str,
    env: str,
    results: list[EpisodeResult],
    latencies_ms: list[float],
    steps_per_s: float,
    manifest: dict[str, Any],
    tiers: Mapping[str, Sequence[str]] | None = None,
) -> Summary:
    """The summary of finished episodes. Raises ValueError if there is none. `tiers`: difficulty -> its tasks."""
    from vla.eval.statistics import stratified_interval, wilson_interval

    by_task: dict[str, list[EpisodeResult]] = {}
    for result in results:
        by_task.setdefault(result.task, []).append(result)
    counts = {task: (sum(r.success for r in rows), len(rows)) for task, rows in by_task.items()}
    rate, low, high = stratified_interval(counts)
    tiers = {tier: [task for task in tasks if task in counts] for tier, tasks in (tiers or {}).items()}
    tiers = {tier: tasks for tier, tasks in tiers.items() if tasks}
    quantiles = np.percentile(latencies_ms, [50, 95]) if latencies_ms else (None, None)
    return Summary(
        name=name,
        suite=suite,
        env=env,
        n=len(results),
        success=rate,
        interval=[low, high],
        macro=_macro(counts, tiers),
        tiers={tier: _pooled({task: counts[task] for task in tasks}) for tier, tasks in tiers.items()},
        tasks={
            task: {
                "n": counts[task][1],
                "success": counts[task][0] / counts[task][1],
                "interval": list(wilson_interval(*counts[task])),
                "mean_length": float(np.mean([r.length for r in rows])),
            }
            for task, rows in by_task.items()
        },
        latency_ms={
            "p50": None if quantiles[0] is None else round(float(quantiles[0]), 3),
            "p95": None if quantiles[1] is None else round(float(quantiles[1]), 3),
            "n": len(latencies_ms),
        },
        steps_per_s=round(steps_per_s, 1),
        manifest=manifest,
    )


def _pooled(counts: dict[str, tuple[int, int]], weights: dict[str, float] | None = None) -> dict[str, Any]:
    from vla.eval.statistics import stratified_interval

    rate, low, high = stratified_interval(counts, weights=weights)
    return {"success": rate, "interval": [low, high], "n": sum(n for _, n in counts.values())}


def _macro(counts: dict[str, tuple[int, int]], tiers: Mapping[str, Sequence[str]]) -> dict[str, dict[str, Any]]:
    """The mean over tasks, and that over tiers if there are several and they have all tasks."""
    from vla.eval.statistics import macro_weights

    macro = {"tasks": _pooled(counts, macro_weights({"all": [*counts]}))}
    if len(tiers) > 1 and {task for tasks in tiers.values() for task in tasks} == counts.keys():
        macro["tiers"] = _pooled(counts, macro_weights(tiers))
    return macro


def show(summary: Summary, console: "Console") -> None:
    """The summary as a small table for people."""
    from rich.table import Table

    def per_cent(rate: float, interval: Sequence[float]) -> tuple[str, str]:
        return f"{100 * rate:.1f} %", f"{100 * interval[0]:.0f} to {100 * interval[1]:.0f} %"

    table = Table("task", *("success", "95 % interval", "episodes", "mean steps"), box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for task, row in summary["tasks"].items():
        rate = per_cent(row["success"], row["interval"])
        table.add_row(task, *rate, str(row["n"]), f"{row['mean_length']:.0f}")
    several = summary["tiers"] if len(summary["tiers"]) > 1 else {}
    for name, row in several.items():
        table.add_row(name, *per_cent(row["success"], row["interval"]), str(row["n"]), "", style="italic")
    if several and "tiers" in summary["macro"]:
        row = summary["macro"]["tiers"]
        table.add_row("mean of tiers", *per_cent(row["success"], row["interval"]), str(row["n"]), "", style="italic")
    table.add_row(
        summary["name"],
        *per_cent(summary["success"], summary["interval"]),
        str(summary["n"]),
        "",
        style="bold",
    )
    console.print(table)
