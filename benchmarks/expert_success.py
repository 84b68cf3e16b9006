# SPDX-License-Identifier: Apache-2.0
"""Is the tabletop sound? Expert and random success of every task, and frames per second.

The expert shows that every task can be done within its limit (clean, and with the noise the recorder adds);
the random policy shows that none is done by accident. Prints a table for people and, last, a
line of JSON, and writes benchmarks/results/expert_success.json.
Run: `python benchmarks/expert_success.py --seeds 200`. Experts and layouts were tuned on seeds 0..199; the default
begins at 50,000, which nobody has looked at.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table
from statsmodels.stats.proportion import proportion_confint

from vla.bench.results import Row, show, write
from vla.bench.results import results as make_results
from vla.envs.tabletop import TabletopEnv
from vla.envs.tabletop.tasks import TASKS

Policy = Callable[[TabletopEnv, np.random.Generator], np.ndarray]


def clean(env: TabletopEnv, rng: np.random.Generator) -> np.ndarray:
    """The expert's action."""
    return env.expert_action()


def noisy(env: TabletopEnv, rng: np.random.Generator) -> np.ndarray:
    """The expert's action with Gaussian noise of 0.2 on every dimension, clipped."""
    return np.clip(env.expert_action() + rng.normal(0.0, 0.2, size=4), -1.0, 1.0).astype(np.float32)


def random(env: TabletopEnv, rng: np.random.Generator) -> np.ndarray:
    """A uniform action."""
    return rng.uniform(-1.0, 1.0, size=4).astype(np.float32)


def run(env: TabletopEnv, task: str, policy: Policy, seeds: range) -> dict[str, Any]:
    """Return successes, Wilson's 95 % interval and the lengths of the successful episodes."""
    lengths = []
    for seed in seeds:
        env.reset(seed=seed, options={"task": task})
        rng = np.random.default_rng([seed, 1])
        for length in range(1, env._max_episode_steps + 1):
            _, _, terminated, _, _ = env.step(policy(env, rng))
            if terminated:
                lengths.append(length)
                break
    low, high = proportion_confint(len(lengths), len(seeds), method="wilson")
    return {
        "n": len(seeds),
        "successes": len(lengths),
        "success": len(lengths) / len(seeds),
        "interval": [round(low, 4), round(high, 4)],
        "mean_length": round(float(np.mean(lengths)), 1) if lengths else None,
        "max_length": max(lengths, default=None),
    }


def frames_per_s(image_size: int, duration_s: float) -> float:
    """Steps with a picture per second, one process, resets included: expert episodes of all tasks in turn."""
    env = TabletopEnv(image_size=image_size)
    names = list(TASKS)
    env.reset(seed=0)
    steps, episode, start = 0, 0, time.perf_counter()
    while time.perf_counter() - start < duration_s:
        env.reset(seed=episode, options={"task": names[episode % len(names)]})
        done = False
        while not done:
            _, _, terminated, truncated, _ = env.step(env.expert_action())
            done = terminated or truncated
            steps += 1
        episode += 1
    elapsed_s = time.perf_counter() - start
    env.close()
    return steps / elapsed_s


def main() -> None:
    """Measure, print, and end with the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=200, help="episodes per task and policy")
    parser.add_argument("--first-seed", type=int, default=50_000)
    parser.add_argument("--fps-seconds", type=float, default=3.0)
    args = parser.parse_args()
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    console = Console(width=140)
    env = TabletopEnv(render=False)
    results: dict[str, dict[str, Any]] = {}
    jobs = [(task, policy) for task in TASKS for policy in (clean, noisy, random)]
    for task, policy in track(jobs, description="tasks", console=console, disable=not console.is_terminal):
        results.setdefault(task, {})[policy.__name__] = run(env, task, policy, seeds)

    table = Table(title=f"{args.seeds} seeds a task; 95 % Wilson intervals")
    for column in (
        "task",
        "tier",
        "limit",
        "expert",
        "mean",
        "max",
        "expert, noise 0.2",
        "mean",
        "max",
        "random",
    ):
        table.add_column(column, justify="left" if column == "task" else "right")

    def rate(row: dict[str, Any]) -> str:
        low, high = row["interval"]
        return f"{100 * row['success']:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"

    rows = []
    for task, row in results.items():
        c, d, r = row["clean"], row["noisy"], row["random"]
        table.add_row(
            task, str(TASKS[task].tier), str(TASKS[task].max_steps), rate(c), str(c["mean_length"]),
            str(c["max_length"]), rate(d), str(d["mean_length"]), str(d["max_length"]), rate(r),
        )  # fmt: skip
        for name, values, goal, passes in (
            ("expert", c, ">= 0.99", c["success"] >= 0.99),
            ("expert_noise", d, ">= 0.95", d["success"] >= 0.95),
            ("random", r, "<= 0.05", r["success"] <= 0.05),
        ):
            mean, longest = values["mean_length"], values["max_length"]
            note = f"mean length {mean}, longest {longest}, limit {TASKS[task].max_steps}"
            rows.append(
                Row(f"tabletop/{task}/{name}", values["success"], "success", values["n"], values["interval"], goal,
                    bool(passes), note)
            )  # fmt: skip
    console.print(table)
    for size in (64, 96):
        value = round(frames_per_s(size, args.fps_seconds), 1)
        console.print(f"step + render {size} px, one process: {value:.0f} frames/s")
        goal, passes = (">= 1000", value >= 1000) if size == 96 else ("", None)
        note = "expert episodes of all tasks, resets included"
        rows.append(Row(f"tabletop/fps_{size}", value, "frames/s/core", 1, None, goal, passes, note))
    failed = [row.id for row in rows if row.passes is False]
    console.print("all goals met" if not failed else f"missed: {', '.join(failed)}")
    measured = make_results("expert_success", rows, [seeds.start, seeds.stop - 1])
    write(measured, Path(__file__).parent / "results" / "expert_success.json")
    show(measured, console)


if __name__ == "__main__":
    main()
