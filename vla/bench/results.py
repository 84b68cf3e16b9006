# SPDX-License-Identifier: Apache-2.0
"""The one form of a benchmark's results: rows with n, interval and goal, and what they depend on.

Every benchmark writes it to benchmarks/results/NAME.json, from which the README's figures are made, and ends
with a line of JSON for machines.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

CONFIDENCE = 0.95
MARGIN = 0.02
"""What may be lost where something is said to be not worse, as a success rate."""
_PER_CENT = ("fraction", "success")
"""Units that people are shown in per cent."""


@dataclass(frozen=True)
class Row:
    """One measured number."""

    id: str
    """stable: the README and scripts refer to it"""
    value: float
    unit: str
    """"fraction", "1/s", "min", "nats", ..."""
    n: int | None = None
    """how many episodes, seeds or frames it was measured on"""
    interval: tuple[float, float] | None = None
    """95 %, in the unit of the value"""
    goal: str = ""
    """in words: "at least 0.9\""""
    passes: bool | None = None
    """whether the goal is met; none: there is no goal"""
    note: str = ""


def results(bench: str, rows: Sequence[Row], seeds: Any, extra: dict[str, Any] | None = None) -> dict[str, Any]:
    """The content of a results file, JSON-ready: bench, machine, versions, commit, date, seeds, rows, then `extra`.

    `seeds`: which were used, as a list or in words. Numbers that are not finite become null. ValueError for two
    rows of the same id, or an `extra` that would replace one of our keys.
    """
    from vla.eval.manifest import manifest

    ids = [row.id for row in rows]
    if twice := sorted({name for name in ids if ids.count(name) > 1}):
        raise ValueError(f"expected rows of different ids in '{bench}', got {', '.join(twice)} more than once")
    about = manifest()
    content: dict[str, Any] = {
        "bench": bench,
        "machine": f"{about['cpu']}, {about['cores']} cores",
        "versions": about["versions"],
        "commit": about["git_commit"],
        "date": about["date"],
        "seeds": seeds,
        "rows": [asdict(row) for row in rows],
    }
    if taken := sorted(content.keys() & (extra or {}).keys()):
        raise ValueError(f"expected extra results under other names than {', '.join(taken)}; rename them")
    return _plain(content | (extra or {}))


def _plain(value: Any) -> Any:
    """`value` of what JSON has: no numpy scalars, no tuples, no NaN."""
    if hasattr(value, "tolist"):  # numpy arrays and scalars
        value = value.tolist()
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def default_path(bench: str, out: Path) -> Path:
    """benchmarks/results/<bench>.json if the working directory is a checkout of ours, else <out>/<bench>.json."""
    checkout = Path("benchmarks").is_dir() and Path("vla/bench").is_dir()
    return (Path("benchmarks/results") if checkout else out) / f"{bench}.json"


def write(results: dict[str, Any], path: Path) -> None:
    """Write results as JSON; the file is the old or the new one, never half. Folders are made."""
    from vla.eval.episodes import write_atomically

    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(results, indent=2, allow_nan=False) + "\n")


def show(results: dict[str, Any], console: "Console") -> None:
    """A table for people, then one last line for machines: {"bench": name, "rows": {id: value}}."""
    from rich.table import Table

    table = Table("id", "value", "n", "95 % interval", "goal", "pass", box=None, pad_edge=False)
    for column in table.columns[1:4]:
        column.justify = "right"
    table.columns[0].overflow = "fold"
    for row in results["rows"]:
        interval, verdict = row.get("interval"), {True: "yes", False: "NO"}.get(row.get("passes"), "")
        table.add_row(
            row["id"],
            f"{_number(row['value'], row['unit'])} {_unit(row['unit'])}".rstrip(),
            "" if row.get("n") is None else f"{row['n']}",
            "" if interval is None else " to ".join(_number(end, row["unit"]) for end in interval),
            row.get("goal") or "",
            verdict,
            style="red" if row.get("passes") is False else None,
        )
    console.print(table)
    values = {row["id"]: row["value"] for row in results["rows"]}
    console.out(json.dumps({"bench": results["bench"], "rows": values}), highlight=False)


def _unit(unit: str) -> str:
    return "%" if unit in _PER_CENT else unit


def _number(value: float | None, unit: str) -> str:
    if value is None:
        return "?"
    if unit in _PER_CENT:
        return f"{100 * value:.1f}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def not_worse(low: float, margin: float = MARGIN) -> tuple[str, bool]:
    """Goal and verdict of "not worse": the *lower* end of the interval of ours minus theirs is above minus a margin.

    That the upper end reaches 0 says nothing: the fewer episodes, the more often it does.
    """
    return f"lower end >= -{100 * margin:g} points", bool(low >= -margin)


def mean_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, tuple[float, float] | None]:
    """The mean over seeds and its t-interval, (mean, (low, high)); no interval for a single value.

    The interval is about the spread between seeds and takes it for normal; three seeds make it wide (4.3 standard
    errors), as they should. ValueError for no value.
    """
    from scipy.stats import t

    if not len(values):
        raise ValueError("expected at least one value to take the mean of, got none")
    n, mean = len(values), math.fsum(values) / len(values)
    if n == 1:
        return mean, None
    variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
    half = float(t.ppf(0.5 + confidence / 2, n - 1)) * math.sqrt(variance / n)
    return mean, (mean - half, mean + half)
