# SPDX-License-Identifier: Apache-2.0
"""What all contenders of a run share."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SETTINGS = "settings.json"
QUICK_STEPS, QUICK_RECIPE = 8, "tabletop_test"
EVALUATED_ROWS = 8
"""Observations in one call of a policy in evaluation, padded to it, so that results do not depend on slots."""


@dataclass(frozen=True)
class Settings:
    """One run: the same dataset, budget, seeds and episodes for everybody."""

    dataset: str
    out: Path
    """A folder for each contender, and settings.json."""
    prefix: str = "tabletop"
    """Of the ids of the rows; the results file is rivals_<prefix>.json."""
    env: str = "tabletop"
    suite: str = "demo"
    minutes: float | None = None
    steps: int | None = None
    episodes: int = 200
    seed: int = 0
    """Of the initial weights, the batches, the held-out episodes."""
    threads: int = 2
    """Of torch, in training and for the latencies."""
    recipe: str = "tabletop_nano"
    overrides: tuple[str, ...] = ()
    """Of the recipe, for all contenders that have our network."""
    quick: bool = False
    """Seconds a contender: shows that it runs, and proves nothing."""

    def __post_init__(self) -> None:
        """ValueError for settings that cannot be."""
        given = [x for x in (self.minutes, self.steps) if x is not None]
        if len(given) != 1 or given[0] <= 0:
            raise ValueError(
                f"expected either --minutes or --steps, more than 0, got {self.minutes} and {self.steps}; "
                "all contenders get the same one of them"
            )
        if self.episodes < 1 or self.threads < 1:
            raise ValueError(f"expected --episodes and --threads >= 1, got {self.episodes} and {self.threads}")

    def trained_as(self) -> dict[str, Any]:
        """What decides the weights and must not differ between two runs in one folder."""
        about = {
            "dataset": str(Path(self.dataset).resolve()) if Path(self.dataset).exists() else self.dataset,
            "minutes": self.minutes,
            "steps": self.steps,
            "seed": self.seed,
            "threads": self.threads,
            "recipe": self.recipe,
            "overrides": list(self.overrides),
            "quick": self.quick,
        }
        return about | {"env": self.env, "suite": self.suite}

    def claim_folder(self) -> None:
        """Make `out`, or see that it is of the same settings. ValueError if it is of others."""
        self.out.mkdir(parents=True, exist_ok=True)
        path, wanted = self.out / SETTINGS, self.trained_as()
        if not path.exists():
            path.write_text(json.dumps(wanted, indent=2))
            return
        there = json.loads(path.read_text())
        differs = [key for key in wanted if there.get(key) != wanted[key]]
        if differs:
            raise ValueError(
                f"expected the {', '.join(differs)} with which '{self.out}' was begun, got "
                + ", ".join(f"{wanted[key]!r} instead of {there.get(key)!r}" for key in differs)
                + "; a table must not mix settings: choose another --out"
            )
