# SPDX-License-Identifier: Apache-2.0
"""`vla bench survival`: does it live through rubbish, broken lines, kills, and hours of load?

Six parts (parts.py), each a function in a sibling that returns rows: `fuzz` (survival_fuzz), `kills`
(survival_training: trainings that are killed), `interrupted` (survival_episodes: recordings and evaluations), `wire`
(survival_wire), `overhead` and `soak` (survival_pace).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from vla.bench import parts
from vla.bench.results import Row

if TYPE_CHECKING:
    from vla.bench.run import BenchConfig


@dataclass(frozen=True)
class SurvivalConfig(parts.PartsConfig):
    """What the parts of `vla bench survival` are told."""

    bench: ClassVar = "survival"
    parts: ClassVar = {
        "fuzz": ("survival_fuzz", "fuzz"),
        "kills": ("survival_training", "train_kills"),
        "interrupted": ("survival_episodes", "record_eval_kills"),
        "wire": ("survival_wire", "wire"),
        "overhead": ("survival_pace", "overhead"),
        "soak": ("survival_pace", "soak"),
    }
    out: Path = Path("runs/bench/survival")
    soak_minutes: float = 60.0
    """How long the soak lasts, minutes; quick: a quarter of one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.soak_minutes > 0:
            raise ValueError(f"expected --soak-minutes > 0, got {self.soak_minutes}")


def run(config: "BenchConfig") -> dict[str, Any]:
    """As `parts.run`; its folder is <out>/survival, with --quick <out>/quick/survival."""
    survival = SurvivalConfig(
        out=(config.out / "quick" if config.quick else config.out) / "survival",
        only=config.only,
        quick=config.quick,
        resume=config.resume,
        overwrite=config.overwrite,
        seed=config.seed,
        soak_minutes=config.soak_minutes,
    )
    return parts.run(survival)


def at_least(name: str, value: float, goal: float, unit: str, note: str = "", ok: bool = True, **more: Any) -> Row:
    """A row whose goal is a number or more; `ok`: what else must hold."""
    return Row(name, value, unit, goal=f"at least {goal:,g}", passes=bool(value >= goal and ok), note=note, **more)


def at_most(name: str, value: float, goal: float, unit: str, note: str = "", ok: bool = True, **more: Any) -> Row:
    """A row whose goal is a number or less; `ok`: what else must hold."""
    return Row(name, value, unit, goal=f"at most {goal:,g}", passes=bool(value <= goal and ok), note=note, **more)
