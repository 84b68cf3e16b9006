# SPDX-License-Identifier: Apache-2.0
"""From finished episodes to summary.json, and to a table for people."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np

from vla.eval.episodes import EpisodeResult

if TYPE_CHECKING:
    from rich.console import Console


class Summary(TypedDict):
    """summary.json. `interval` is 95 %: Wilson for a task, stratified (see `statistics`) over tasks."""

    name: str
    suite: str
    env: str
    n: int
    success: float
    interval: list[float]
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
) -> Summary:
    """The summary of finished episodes. Raises ValueError if there is none."""
    from vla.eval.statistics import stratified_interval, wilson_interval

    by_task: dict[str, list[EpisodeResult]] = {}
    for result in results:
        by_task.setdefault(result.task, []).append(result)
    counts = {task: (sum(r.success for r in rows), len(rows)) for task, rows in by_task.items()}
    rate, low, high = stratified_interval(counts)
    quantiles = np.percentile(latencies_ms, [50, 95]) if latencies_ms else (None, None)
    return Summary(
        name=name,
        suite=suite,
        env=env,
        n=len(results),
        success=rate,
        interval=[low, high],
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
    table.add_row(
        summary["name"],
        *per_cent(summary["success"], summary["interval"]),
        str(summary["n"]),
        "",
        style="bold",
    )
    console.print(table)
