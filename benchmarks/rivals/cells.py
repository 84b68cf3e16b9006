# SPDX-License-Identifier: Apache-2.0
"""A cell is one contender: trained, evaluated, timed. Each part leaves a file, and a part that has its file is not run.

<out>/<contender>/train.json      the facts of its training, beside its weights
<out>/<contender>/eval/           what `vla eval` writes
<out>/<contender>/latency.json    milliseconds from an observation to a chunk
"""

import json
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from benchmarks.rivals.settings import EVALUATED_ROWS, QUICK_RECIPE, QUICK_STEPS, Settings

if TYPE_CHECKING:
    from rich.console import Console

OURS = "ours"
CONTENDERS = {
    OURS: "this project's recipe: the lattice of masks, 2 denoising steps",
    "single_mask": "the recipe's network and data with plain single-mask diffusion, 8 denoising steps",
    "autoregressive": "the recipe's network as a causal decoder: token by token with cached keys and values",
    "regression": "the recipe's network, the whole chunk at once by L1 regression",
    "act": "LeRobot's ACT; the instruction is part of the state",
    "diffusion": "LeRobot's Diffusion Policy, DDIM with 10 steps; the instruction is part of the state",
    "vqbet": "LeRobot's VQ-BeT; the instruction is part of the state",
    "multi_task_dit": "LeRobot's multi-task DiT, DDIM with 10 steps, a small CLIP from scratch",
}
"""In the order in which they are run."""
OF_OUR_NETWORK = (OURS, "single_mask", "autoregressive", "regression")
"""The others are LeRobot's."""
TIMED, WARM_UP = 100, 10
"""Calls of the policy by which the latency is measured."""


def contender(name: str) -> Any:
    """What has `train(settings, folder)`, `weights(folder)` and `load(folder, rows)`."""
    if name in OF_OUR_NETWORK:
        from benchmarks.rivals.house import MADE

        return MADE[name]
    from benchmarks.rivals.lerobot_train import LeRobot

    return LeRobot(name)


def finished(settings: Settings, name: str) -> dict[str, Any] | None:
    """What a cell measured: {"train", "summary", "successes", "latency_ms"}; None if a part is still to be run."""
    from vla.eval.episodes import read_results

    folder = settings.out / name
    paths = [folder / "train.json", folder / "eval" / "summary.json", folder / "latency.json"]
    if not all(path.exists() for path in paths):
        return None
    train, summary, latency = (json.loads(path.read_text()) for path in paths)
    if summary["n"] != settings.episodes:
        return None
    results = read_results(folder / "eval" / "episodes.jsonl")
    successes = {(result.task, result.seed): result.success for result in results}
    return {"train": train, "summary": summary, "successes": successes, "latency_ms": latency["latency_ms"]}


def missing(name: str) -> str:
    """Why a contender cannot be run here; "" if it can."""
    if name in OF_OUR_NETWORK:
        return ""
    from benchmarks.rivals.lerobot_configs import missing

    return missing(name)


def run(settings: Settings, name: str, console: "Console") -> None:
    """Whatever of a cell is not there yet: train, evaluate, time."""
    import torch

    from vla.eval.episodes import write_atomically
    from vla.eval.evaluate import EvalConfig, evaluate
    from vla.eval.manifest import git_commit

    folder, of = settings.out / name, contender(name)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "train.json").exists():
        console.print(f"\n[bold]{name}[/bold]: train", highlight=False)
        facts = of.train(settings, folder) | {"commit": git_commit()}
        write_atomically(folder / "train.json", json.dumps(facts, indent=2) + "\n")
    console.print(f"[bold]{name}[/bold]: evaluate {settings.episodes} episodes of {settings.suite}", highlight=False)
    config = EvalConfig(
        policy=str(of.weights(folder)),
        env=settings.env,
        suite=settings.suite,
        episodes=settings.episodes,
        workers=1 if settings.quick else 0,
        slots=4 if settings.quick else 16,
        videos=0,
        rows=EVALUATED_ROWS,
        out=folder / "eval",
        name=name,
        device="cpu",
        resume=True,
    )
    evaluate(config, policy=of.load(folder, EVALUATED_ROWS), console=console)
    torch.set_num_threads(settings.threads)  # evaluation has its own number
    times = latencies_ms(of.load(folder, None), settings, TIMED if not settings.quick else 3)
    write_atomically(folder / "latency.json", json.dumps({"latency_ms": times}) + "\n")


def latencies_ms(policy: Any, settings: Settings, count: int) -> list[float]:
    """Milliseconds from one observation to its chunk, of `count` frames of the dataset after some to warm up."""
    from vla.data.cache import open_cache
    from vla.policy import Observation

    cache = open_cache(settings.dataset, image_size=policy.image_size)
    times = []
    for i in range(WARM_UP + count):
        frame = i * len(cache) // (WARM_UP + count)
        observation = Observation(
            images={camera: cache.frames[camera][frame] for camera in policy.cameras},
            state=cache.state[frame],
            instruction=cache.tasks[cache.task_index[frame]],
        )
        started = time.perf_counter()
        policy.act([observation], [(settings.seed, i)])
        times.append(1e3 * (time.perf_counter() - started))
    return [round(ms, 3) for ms in times[WARM_UP:]]


def quick(settings: Settings, suites: dict[str, Any]) -> Settings:
    """The settings of a quick run: a tiny recipe, a few steps, two episodes a task."""
    if settings.suite not in suites:
        raise ValueError(f"expected a suite of {settings.env} out of {', '.join(suites)}, got '{settings.suite}'")
    episodes = 2 * len(suites[settings.suite])
    return replace(settings, quick=True, recipe=QUICK_RECIPE, minutes=None, steps=QUICK_STEPS, episodes=episodes)
