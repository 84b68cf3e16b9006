# SPDX-License-Identifier: Apache-2.0
"""`vla bench survival`: does it live through rubbish, broken lines, kills, and hours of load?

Six parts, each a function in a sibling that returns rows: `fuzz` (survival_fuzz), `kills` (survival_training: trainings
that are killed), `interrupted` (survival_episodes: recordings and evaluations), `wire` (survival_wire), `overhead` and
`soak` (survival_pace). A part's rows are written to `<part>.json` in the bench's folder as soon as it is finished, so
that a long run may be done in pieces; the table is made of every part that is finished there.
"""

import importlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vla.bench.results import Row, results

if TYPE_CHECKING:
    from vla.bench.run import BenchConfig

PARTS = {
    "fuzz": ("survival_fuzz", "fuzz"),
    "kills": ("survival_training", "train_kills"),
    "interrupted": ("survival_episodes", "record_eval_kills"),
    "wire": ("survival_wire", "wire"),
    "overhead": ("survival_pace", "overhead"),
    "soak": ("survival_pace", "soak"),
}
"""Part -> (module in vla.bench, function that takes a SurvivalConfig and returns rows), in the order of running."""


@dataclass(frozen=True)
class SurvivalConfig:
    """What the parts of `vla bench survival` are told."""

    out: Path = Path("runs/bench/survival")
    """Folder of the parts' results, logs and figures."""
    only: tuple[str, ...] = tuple(PARTS)
    """Which parts to run."""
    quick: bool = False
    """Small: shows that it runs, and proves nothing."""
    resume: bool = False
    """Parts whose <out>/<part>.json exists are not run again."""
    overwrite: bool = False
    """Parts whose <out>/<part>.json exists are run again."""
    seed: int = 0
    """Of everything that is random."""
    soak_minutes: float = 60.0
    """How long the soak lasts, minutes; quick: a quarter of one."""

    def __post_init__(self) -> None:
        if unknown := [name for name in self.only if name not in PARTS]:
            raise ValueError(f"expected parts out of {', '.join(PARTS)}, got {', '.join(unknown)}")
        if self.resume and self.overwrite:
            raise ValueError("expected --resume or --overwrite, got both: keep finished parts, or make them anew")
        if not self.soak_minutes > 0:
            raise ValueError(f"expected --soak-minutes > 0, got {self.soak_minutes}")


def settings(config: "BenchConfig") -> SurvivalConfig:
    """This bench's settings out of those of all; its folder is <out>/survival, with --quick <out>/quick/survival."""
    return SurvivalConfig(
        out=(config.out / "quick" if config.quick else config.out) / "survival",
        only=config.only or tuple(PARTS),
        quick=config.quick,
        resume=config.resume,
        overwrite=config.overwrite,
        seed=config.seed,
        soak_minutes=config.soak_minutes,
    )


def run(config: "BenchConfig") -> dict[str, Any]:
    """Run the parts that are asked for; returns the results of every part that is finished.

    ValueError for settings that cannot be, and for parts that are finished without --resume or --overwrite.
    """
    survival = settings(config)
    for part in to_run(survival):
        run_part(part, survival)
    rows, about = table(survival.out)
    return results("survival", rows, [survival.seed], {"quick": survival.quick, "parts": about})


def to_run(config: SurvivalConfig) -> list[str]:
    """The parts to run now, in their order. ValueError if one is finished and it was not said what then."""
    asked = [part for part in PARTS if part in config.only]
    finished = [part for part in asked if file_of(config.out, part).exists()]
    if finished and not config.resume and not config.overwrite:
        raise ValueError(
            f"expected no results of {', '.join(finished)} in '{config.out}' yet, got some; say --resume to keep them "
            "or --overwrite to make them anew"
        )
    return [part for part in asked if config.overwrite or part not in finished]


def run_part(part: str, config: SurvivalConfig, function: Callable[[SurvivalConfig], list[Row]] | None = None) -> None:
    """Run one part and write its rows. `function`: instead of the part's own."""
    from vla.bench.results import write
    from vla.eval.manifest import git_commit

    config.out.mkdir(parents=True, exist_ok=True)
    print(f"survival: {part} ...", flush=True)
    module, name = PARTS[part]
    began = time.monotonic()
    rows = (function or getattr(importlib.import_module(f"vla.bench.{module}"), name))(config)
    seconds = time.monotonic() - began
    about = {"seed": config.seed, "quick": config.quick, "commit": git_commit(), "seconds": round(seconds, 1)}
    content = results(f"survival/{part}", rows, [config.seed])  # of plain numbers, and checked for ids given twice
    write({**about, "rows": content["rows"]}, file_of(config.out, part))
    print(f"survival: {part} took {seconds:.0f} s", flush=True)


def table(out: Path) -> tuple[list[Row], dict[str, Any]]:
    """All rows of the finished parts in `out`, and part -> what else is known of it (seed, commit, seconds)."""
    rows, about = [], {}
    for part in PARTS:
        if file_of(out, part).exists():
            content = json.loads(file_of(out, part).read_text(encoding="utf-8"))
            rows += [Row(**row) for row in content.pop("rows")]
            about[part] = content
    return rows, about


def file_of(out: Path, part: str) -> Path:
    """Where the rows of a part are."""
    return out / f"{part}.json"


def at_least(name: str, value: float, goal: float, unit: str, note: str = "", ok: bool = True, **more: Any) -> Row:
    """A row whose goal is a number or more; `ok`: what else must hold."""
    return Row(name, value, unit, goal=f"at least {goal:,g}", passes=bool(value >= goal and ok), note=note, **more)


def at_most(name: str, value: float, goal: float, unit: str, note: str = "", ok: bool = True, **more: Any) -> Row:
    """A row whose goal is a number or less; `ok`: what else must hold."""
    return Row(name, value, unit, goal=f"at most {goal:,g}", passes=bool(value <= goal and ok), note=note, **more)
