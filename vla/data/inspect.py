# SPDX-License-Identifier: Apache-2.0
"""`vla inspect DATASET`: what is in a dataset, and how many training problems one of its frames yields."""

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from tyro.conf import Positional

if TYPE_CHECKING:
    from rich.console import Console

    from vla.data.lerobot_files import LeRobotFiles

MOST_TASKS = 20


@dataclass(frozen=True)
class InspectConfig:
    """Describe a LeRobotDataset (v3)."""

    dataset: Positional[str]
    """Folder of the dataset, or a hub repository id."""


def problems(has_plans: bool, has_pictures: bool, has_state: bool = True) -> dict[str, int]:
    """How many training problems one frame yields, by query: one for every segment that is asked, in each copy.

    A query asks every frame anew in each epoch, under masks of its own; this counts the questions, not the masks. 0 for
    a query that gives, or only asks, what the dataset lacks.
    """
    from vla.canvas import Segment
    from vla.canvas.query import QUERIES
    from vla.diffusion.corruption import COPIES

    has = {
        Segment.PLAN: has_plans,
        Segment.GOAL_IMAGE: has_pictures,
        Segment.FUTURE_IMAGE: has_pictures,
        Segment.WAYPOINTS: has_state,
    }
    lacks = {segment for segment, there in has.items() if not there}
    counts = {}
    for name, query in QUERIES.items():
        asked = [segment for segment in query.asked if segment not in lacks]
        whole = len(asked) == len(query.asked)  # of `joint` some may be missing, as long as it is more than the policy
        counts[name] = COPIES * len(asked) if lacks.isdisjoint(query.given) and (whole or len(asked) > 1) else 0
    return counts


def describe(tables: "LeRobotFiles") -> dict[str, Any]:
    """The report as plain data: counts, tasks, limits of each dimension, plans, training problems of a frame."""
    frames = len(tables.action)
    lengths = tables.episode_to - tables.episode_from
    told = tables.plan_index >= 0
    dimensions = {}
    for names, values in ((tables.state_names, tables.state), (tables.action_names, tables.action)):
        kind = "action" if values is tables.action else "state"
        for d, name in enumerate(names):
            low, middle, high = np.quantile(values[:, d], [0.01, 0.5, 0.99])
            dimensions[f"{kind} {name}"] = {"q01": float(low), "median": float(middle), "q99": float(high)}
    episodes = Counter(tables.tasks[t] for t in tables.task_index[tables.episode_from])
    return {
        "episodes": len(lengths),
        "frames": frames,
        "fps": tables.fps,
        "minutes": frames / tables.fps / 60,
        "frames_an_episode": [int(x) for x in np.quantile(lengths, [0, 0.5, 1])],
        "cameras": list(tables.cameras),
        "tasks": dict(episodes.most_common()),
        "dimensions": dimensions,
        "plans": {"share_of_frames": float(told.mean()) if frames else 0.0, "different": len(tables.plans)},
        "problems": problems(bool(told.any()), bool(tables.cameras), bool(tables.state_names)),
    }


def inspect(config: InspectConfig, *, console: "Console | None" = None) -> dict[str, Any]:
    """Print the report, and return it. ValueError for a dataset that is missing or broken."""
    from rich.console import Console
    from rich.table import Table

    from vla.data.lerobot_files import find_dataset, read_tables

    console = console or Console(highlight=False)
    found = describe(read_tables(find_dataset(config.dataset)))
    least, middle, most = found["frames_an_episode"]
    console.print(
        f"{found['episodes']} episodes, {found['frames']} frames ({found['minutes']:.1f} minutes at {found['fps']:g} "
        f"Hz; {least} to {most} an episode, half of them {middle} or fewer); cameras: "
        f"{', '.join(found['cameras']) or 'none'}",
        soft_wrap=True,
    )
    tasks = Table("instruction", "episodes", box=None, pad_edge=False)
    for task, count in list(found["tasks"].items())[:MOST_TASKS]:
        tasks.add_row(task, str(count))
    if (more := len(found["tasks"]) - MOST_TASKS) > 0:
        tasks.add_row(f"... and {more} others", "")
    console.print(tasks)
    numbers = Table("dimension", "1 %", "median", "99 %", box=None, pad_edge=False)
    for name, of in found["dimensions"].items():
        numbers.add_row(name, *(f"{of[key]:.3g}" for key in ("q01", "median", "q99")))
    console.print(numbers)
    plans = found["plans"]
    said = f"{plans['different']} different plans, said of {plans['share_of_frames']:.0%} of the frames"
    console.print(said if plans["different"] else "no plans: record with vla record, or annotate the dataset")
    problem = Table("one frame asks", "training problems", box=None, pad_edge=False)
    for name, count in found["problems"].items():
        problem.add_row(name, str(count) if count else "none: the dataset lacks what it needs")
    problem.add_row("all together", str(sum(found["problems"].values())))
    console.print(problem)
    return found
