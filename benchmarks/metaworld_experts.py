# SPDX-License-Identifier: Apache-2.0
"""Is Meta-World sound here? Expert success of all fifty tasks, and frames per second.

The expert shows that every task can be done within our limit; the mean over the four tiers is what published MT50
tables call the average. Prints a table for people and, last, a line of JSON, and writes
benchmarks/results/metaworld_experts.json.
Run: `python benchmarks/metaworld_experts.py --seeds 4`. The default seeds begin at 50,000.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from statsmodels.stats.proportion import proportion_confint

from vla.bench.results import Row, show, write
from vla.bench.results import results as make_results
from vla.envs.metaworld import MetaWorldEnv
from vla.envs.metaworld.tasks import MAX_STEPS, MT10, SUITES, TIERS


def act(env: MetaWorldEnv, noise: float, rng: np.random.Generator) -> np.ndarray:
    """The expert's action as the recorder executes it: noise on everything but the gripper, clipped."""
    sigma = np.array([noise, noise, noise, 0.0])
    return np.clip(env.expert_action() + rng.normal(size=4) * sigma, -1.0, 1.0).astype(np.float32)


def play(env: MetaWorldEnv, task: str, seed: int, noise: float) -> tuple[bool, int]:
    """One episode of the expert. Returns (success, steps)."""
    env.reset(seed=seed, options={"task": task})
    rng, steps, ended = np.random.default_rng([seed, 1]), 0, False
    while not ended:
        _, _, terminated, truncated, _ = env.step(act(env, noise, rng))
        ended = terminated or truncated
        steps += 1
    return terminated, steps


def rate(name: str, played: list[tuple[bool, int]], goal: float | None = None) -> Row:
    """Success of some episodes with Wilson's 95 % interval."""
    wins, lengths = sum(success for success, _ in played), [steps for success, steps in played if success]
    low, high = proportion_confint(wins, len(played), method="wilson")
    note = f"mean length {np.mean(lengths):.1f}, longest {max(lengths)}, limit {MAX_STEPS}" if lengths else "no success"
    value = wins / len(played)
    wanted = {} if goal is None else {"goal": f">= {goal}", "passes": value >= goal}
    return Row(name, value, "success", len(played), (round(low, 4), round(high, 4)), note=note, **wanted)


def frames_per_s(duration_s: float, tasks: tuple[str, ...], **kwargs: Any) -> float:
    """Steps a second, one process: expert episodes of `tasks` in turn, resets included and first uses excluded."""
    env = MetaWorldEnv(**kwargs)
    for task in tasks:
        env.reset(seed=0, options={"task": task})
    steps, episode, start = 0, 0, time.perf_counter()
    while time.perf_counter() - start < duration_s:
        steps += play(env, tasks[episode % len(tasks)], episode, 0.0)[1]
        episode += 1
    elapsed_s = time.perf_counter() - start
    env.close()
    return steps / elapsed_s


def main() -> None:
    """Measure, print, and end with the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=4, help="episodes per task and noise level")
    parser.add_argument("--first-seed", type=int, default=50_000)
    parser.add_argument("--noise", type=float, nargs="+", default=[0.0, 0.2], help="levels, on xyz")
    parser.add_argument("--fps-seconds", type=float, default=10.0)
    args = parser.parse_args()
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    console = Console(width=140)
    env = MetaWorldEnv(render=False)
    rows = []
    for noise in args.noise:
        played: dict[str, list[tuple[bool, int]]] = {}
        label = f"expert, noise {noise:g}"
        for task in track(SUITES["mt50"], description=label, console=console, disable=not console.is_terminal):
            played[task] = [play(env, task, seed, noise) for seed in seeds]
        name = "expert" if noise == 0 else f"expert_noise_{noise:g}"
        rows += [rate(f"metaworld/{task}/{name}", episodes) for task, episodes in played.items()]
        tiers = [
            rate(f"metaworld/mt50-{tier}/{name}", [result for task in tasks for result in played[task]])
            for tier, tasks in TIERS.items()
        ]
        everything = [result for results in played.values() for result in results]
        mean = float(np.mean([row.value for row in tiers]))
        rows += [
            *tiers,
            rate(f"metaworld/mt50/{name}", everything, 0.95 if noise == 0 else None),
            Row(
                f"metaworld/mt50_mean_of_tiers/{name}",
                mean,
                "success",
                len(everything),
                note="as published tables average",
            ),
        ]
    env.close()
    note = f"expert episodes of MT10, resets included, --fps-seconds {args.fps_seconds:g}"
    rows.append(
        Row("metaworld/steps_no_pictures", frames_per_s(args.fps_seconds, MT10, render=False), "1/s", note=note)
    )
    for size in (64, 96, 224):
        fps = frames_per_s(args.fps_seconds, MT10, image_size=size)
        rows.append(Row(f"metaworld/fps_{size}", fps, "frames/s/core", note=note))
    fps = frames_per_s(args.fps_seconds, MT10, image_size=64, official_look=True)
    rows.append(Row("metaworld/fps_64_official_look", fps, "frames/s/core", note=note))
    fps = frames_per_s(args.fps_seconds, SUITES["mt50"], image_size=64)
    rows.append(Row("metaworld/fps_64_mt50", fps, "frames/s/core", note=f"{note}; all fifty tasks in turn"))
    measured = make_results("metaworld_experts", rows, [seeds.start, seeds.stop - 1])
    write(measured, Path(__file__).parent / "results" / "metaworld_experts.json")
    show(measured, console)


if __name__ == "__main__":
    main()
