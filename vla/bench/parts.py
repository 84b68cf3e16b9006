# SPDX-License-Identifier: Apache-2.0
"""A long benchmark in parts: what is finished is kept, and a run that was stopped goes on.

A part is a function in a module of its own that takes the settings and returns rows. They are written to
`<out>/<part>.json` as soon as the part is finished, so that a long run may be done in pieces; the table is made of
every part that is finished there.
"""

import importlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from vla.bench.results import Row, results, write


@dataclass(frozen=True)
class PartsConfig:
    """What the parts of a benchmark are told."""

    bench: ClassVar[str]
    """Its name."""
    parts: ClassVar[Mapping[str, tuple[str, str]]]
    """Part -> (module in vla.bench, function that takes these settings and returns rows), in the order of running."""

    out: Path
    """Folder of the parts' results, logs and figures."""
    only: tuple[str, ...] = ()
    """Which parts to run; none: all."""
    quick: bool = False
    """Small: shows that it runs, and proves nothing."""
    resume: bool = False
    """Parts whose <out>/<part>.json exists are not run again."""
    overwrite: bool = False
    """Parts whose <out>/<part>.json exists are run again."""
    seed: int = 0
    """Of everything that is random."""

    def __post_init__(self) -> None:
        if unknown := [name for name in self.only if name not in self.parts]:
            raise ValueError(f"expected parts of {self.bench} out of {', '.join(self.parts)}, got {', '.join(unknown)}")
        if self.resume and self.overwrite:
            raise ValueError("expected --resume or --overwrite, got both: keep finished parts, or make them anew")


def run(config: PartsConfig) -> dict[str, Any]:
    """Run the parts that are asked for; returns the results of every part that is finished.

    ValueError for settings that cannot be, and for parts that are finished without --resume or --overwrite.
    """
    for part in to_run(config):
        run_part(part, config)
    rows, about = table(config)
    return results(config.bench, rows, [config.seed], {"quick": config.quick, "parts": about})


def to_run(config: PartsConfig) -> list[str]:
    """The parts to run now, in their order. ValueError if one is finished and it was not said what then."""
    asked = [part for part in config.parts if not config.only or part in config.only]
    finished = [part for part in asked if file_of(config.out, part).exists()]
    if finished and not config.resume and not config.overwrite:
        raise ValueError(
            f"expected no results of {', '.join(finished)} in '{config.out}' yet, got some; say --resume to keep them "
            "or --overwrite to make them anew"
        )
    return [part for part in asked if config.overwrite or part not in finished]


def run_part(part: str, config: Any, function: Callable[[Any], list[Row]] | None = None) -> None:
    """Run one part and write its rows. `function`: instead of the part's own."""
    config.out.mkdir(parents=True, exist_ok=True)
    print(f"{config.bench}: {part} ...", flush=True)
    module, name = config.parts[part]
    began = time.monotonic()
    rows = (function or getattr(importlib.import_module(f"vla.bench.{module}"), name))(config)
    seconds = time.monotonic() - began
    content = results(f"{config.bench}/{part}", rows, [config.seed])  # of plain numbers, checked for ids given twice
    about = {"seed": config.seed, "quick": config.quick, "seconds": round(seconds, 1)}
    about |= {key: content[key] for key in ("commit", "date")}
    write({**about, "rows": content["rows"]}, file_of(config.out, part))
    print(f"{config.bench}: {part} took {seconds:.0f} s", flush=True)


def table(config: PartsConfig) -> tuple[list[Row], dict[str, Any]]:
    """All rows of the finished parts, and part -> what else is known of it (seed, commit, seconds)."""
    rows, about = [], {}
    for part in config.parts:
        if file_of(config.out, part).exists():
            content = json.loads(file_of(config.out, part).read_text(encoding="utf-8"))
            rows += [Row(**row) for row in content.pop("rows")]
            about[part] = content
    return rows, about


def file_of(out: Path, part: str) -> Path:
    """Where the rows of a part are."""
    return out / f"{part}.json"
