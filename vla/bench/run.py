# SPDX-License-Identifier: Apache-2.0
"""`vla bench NAME`: measure a claim, write it down, print a table and one line of JSON."""

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import Positional

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class BenchConfig:
    """Measure a claim of this project."""

    name: Positional[Literal["lattice", "robustness", "data", "survival", "speed"]]
    """Which benchmark."""
    out: Path = Path("runs/bench")
    """Folder for what is made on the way, and for the figures."""
    quick: bool = False
    """Small: shows that it runs, and proves nothing. Its results stay in `out`."""
    seeds: int = 3
    """How often everything that is random is repeated, from seed 0 on."""
    budget_minutes: float | None = None
    """Wall-clock to spend, minutes; none: as the benchmark says."""
    threads: int = 0
    """Threads of torch; 0: as many as it likes."""
    fast: str | None = None
    """Folder, or repository to download, of FAST's processor, for the table of tokenizers; none: after the paper."""
    policy: str = "tabletop_nano"
    """robustness: checkpoint folder, the name of a shipped checkpoint, or "random" or "expert\""""
    env: str = "tabletop"
    """robustness: environment."""
    suite: str = "all"
    """robustness: named set of tasks."""
    episodes: int = 300
    """robustness: of each perturbation, spread evenly over the tasks."""
    only: tuple[str, ...] = ()
    """survival (fuzz, kills, interrupted, wire, overhead, soak), speed (cache, sequence, latency, served, int8, growth,
    int8_success, modes, students, gpu): these parts alone; none: all of them. The table has every part that was ever
    finished in `out`."""
    resume: bool = False
    """survival, speed: parts that are finished in `out` are not run again."""
    overwrite: bool = False
    """survival, speed: parts that are finished in `out` are run again, and replaced."""
    seed: int = 0
    """survival: of everything that is random."""
    soak_minutes: float = 60.0
    """survival: how long a server is kept under load."""
    results: Path | None = None
    """Where to write the numbers; none: benchmarks/results/NAME.json in a checkout, else NAME.json in `out`."""


def bench(config: BenchConfig, *, console: "Console | None" = None) -> dict[str, Any]:
    """Run `vla.bench.<name>:run(config)`, write its results, show them, return them.

    ValueError for settings that cannot be.
    """
    from rich.console import Console

    from vla.bench.results import default_path, show, write

    if config.seeds < 1 or config.threads < 0:
        raise ValueError(f"expected --seeds >= 1 and --threads >= 0, got {config.seeds} and {config.threads}")
    if config.episodes < 1:
        raise ValueError(f"expected --episodes >= 1, got {config.episodes}")
    if config.budget_minutes is not None and not config.budget_minutes > 0:
        raise ValueError(f"expected --budget-minutes > 0, got {config.budget_minutes}")
    if config.out.exists() and not config.out.is_dir():
        raise ValueError(f"expected --out to be a folder, got the file {config.out}")
    console = console or Console(highlight=False)
    results: dict[str, Any] = importlib.import_module(f"vla.bench.{config.name}").run(config)
    # What a quick run measures must never replace figures that are quoted.
    path = config.results or (config.out / f"{config.name}.json" if config.quick else None)
    path = path or default_path(config.name, config.out)
    write(results, path)
    console.print(f"written to '{path}'", soft_wrap=True)
    show(results, console)
    return results
