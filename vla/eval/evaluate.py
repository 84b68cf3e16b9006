# SPDX-License-Identifier: Apache-2.0
"""`vla eval`: run a policy (or a baseline) over a fixed list of episodes and write down what happened.

One process thinks (`centre`), several simulate (`workers`). An episode's randomness is a function of (task,
seed, sampler seed, step) only, so that the results do not depend on slots, workers or batches. Every episode
on the list is run to its end: stopping at the first n that finish would favour success, which is short.
"""

import importlib
import json
import os
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vla.envs.perturbation import Perturbation, check_perturbation
from vla.eval.episodes import (
    Episode,
    EpisodeResult,
    episode_list,
    read_list,
    read_results,
    to_line,
    write_atomically,
    write_results,
)
from vla.eval.foresight import can_foresee, foresee
from vla.eval.summary import Summary, show, summarize

if TYPE_CHECKING:
    from rich.console import Console

    from vla.eval.centre import Policy
    from vla.eval.workers import EnvDescription

BASELINES = ("random", "expert")
IMAGE_SIZE = 64


@dataclass(frozen=True)
class EvalConfig:
    """Evaluate a checkpoint, or a baseline, in simulation."""

    policy: str = "tabletop_nano"
    """checkpoint folder, the name of a shipped checkpoint, or "random" or "expert\""""
    env: str = "tabletop"
    """environment"""
    suite: str = "demo"
    """named set of tasks"""
    tasks: tuple[str, ...] = ()
    """these tasks instead of a suite"""
    episodes: int = 200
    """in total, spread evenly over the tasks"""
    list: str = ""
    """fixed list of episodes instead of env, suite, tasks, episodes and first_seed: a name as in vla/eval/lists (for
    example metaworld-mt50-500), or a file"""
    first_seed: int = 0
    """seeds first_seed, first_seed + 1, ... for each task; below 100_000"""
    slots: int = 16
    """environments in parallel; changes the speed, never the result"""
    workers: int = 0
    """simulator processes; 0: one a core"""
    instruction: Literal["given", "swapped", "paraphrased"] = "given"
    """"swapped": tell the policy about another object of the scene and judge by the first (does it read?);
    "paraphrased": tell it the same in other words"""
    perturbation: Perturbation | None = None
    """make this different about every episode: the same tasks and seeds, to be compared with an evaluation without"""
    out: Path = Path("runs/eval")
    """folder for episodes.jsonl, summary.json and videos/"""
    name: str = ""
    """of this run in summaries; empty: the policy's"""
    videos: int = 2
    """videos to keep for each task and outcome"""
    seed: int = 0
    """of the policy's sampler"""
    n_action_steps: int | None = None
    """execute this many actions of a chunk before looking again; none: as the checkpoint says"""
    sure_above: float = 0.0
    """> 0: execute a chunk for as long as the policy is that sure of it, in [0, 1], instead of n_action_steps"""
    delay: int = 0
    """steps that go by while the policy thinks: the robot executes the last chunk on, the policy fills in the rest"""
    naive: bool = False
    """with a delay: the policy is not told what is executed meanwhile"""
    decoding: Literal["actions", "plan", "waypoints", "joint", "adaptive_plan"] = "actions"
    """the actions alone; first a plan, or waypoints (where the robot will be), and then actions that follow; plan,
    future image and actions together ("joint"); or "adaptive_plan": first a plan where the actions alone are unsure.
    All but the actions alone need a checkpoint that was trained for it"""
    num_inference_steps: int | None = None
    """denoising steps a chunk; none: as the checkpoint says"""
    rows: int = 8
    """observations in one call of the network, padded to it, so that results do not depend on slots"""
    device: str = "auto"
    """"cpu", "cuda", or "auto\""""
    threads: int = 1
    """CPU threads of torch; 0: as they are. The simulators need the cores: with two threads that wait for each other, a
    call took 28 times as long on two busy cores"""
    overwrite: bool = False
    """replace an evaluation that is in `out` already"""
    resume: bool = False
    """go on with an interrupted evaluation in `out`: episodes that are there are not run again"""


def _name(config: EvalConfig) -> str:
    name = config.name or (config.policy if config.policy in BASELINES else Path(config.policy).name)
    told = "" if config.instruction == "given" else config.instruction
    differs = ", ".join(word for word in (told, config.perturbation) if word)
    return name if config.name or not differs else f"{name} ({differs})"


def _tasks(config: EvalConfig, registry: Any) -> tuple[str, ...]:
    if config.env not in registry.ENVS:
        raise ValueError(f"expected an environment out of {', '.join(registry.ENVS)}, got {config.env!r}")
    suites = registry.suites(config.env)
    if not config.tasks:
        if config.suite not in suites:
            raise ValueError(f"expected a suite of {config.env} out of {', '.join(suites)}, got {config.suite!r}")
        return tuple(suites[config.suite])
    known = dict.fromkeys(task for tasks in suites.values() for task in tasks)
    unknown = [task for task in config.tasks if task not in known]
    if unknown:
        raise ValueError(f"expected tasks of {config.env} out of {', '.join(known)}, got {', '.join(unknown)}")
    return config.tasks


def _check(config: EvalConfig) -> None:
    if min(config.slots, config.rows) < 1 or min(config.workers, config.videos, config.threads) < 0:
        raise ValueError(
            "expected --slots and --rows of at least 1 and no negative --workers, --videos or --threads, "
            f"got {config.slots}, {config.rows}, {config.workers}, {config.videos}, {config.threads}"
        )
    if config.list and config.tasks:
        raise ValueError("expected --list or --tasks, got both; a list says which tasks")
    if config.overwrite and config.resume:
        raise ValueError("expected --overwrite or --resume, got both; the one deletes what the other goes on with")
    if config.instruction != "given" and config.policy in BASELINES:
        raise ValueError(
            f"expected a checkpoint with --instruction {config.instruction}, got {config.policy!r}, which reads none"
        )


def _load(config: EvalConfig) -> "Policy":
    import torch

    from vla.checkpoint import resolve
    from vla.policy import Policy as LatticePolicy

    path = resolve(config.policy)
    if not path.is_dir():
        raise ValueError(
            f'expected a checkpoint folder, "random" or "expert", got {config.policy!r}, which is no '
            "folder; train one with `vla train`"
        )
    device = ("cuda" if torch.cuda.is_available() else "cpu") if config.device == "auto" else config.device
    return LatticePolicy.load(
        path,
        device=device,
        num_inference_steps=config.num_inference_steps,
        n_action_steps=config.n_action_steps,
        rows=config.rows,
        sure_above=config.sure_above,
        decoding=config.decoding,
    )


FORESEEN = 3
"""Episodes that are also played with everything that a policy expects, for the report."""


def _same_run(config: EvalConfig, checkpoint: str | None) -> dict[str, Any]:
    """What must not differ between the two halves of a resumed evaluation."""
    keys = ("policy", "env", "instruction", "perturbation", "seed", "n_action_steps", "num_inference_steps", "rows")
    identity = {key: getattr(config, key) for key in keys} | {"checkpoint_sha256": checkpoint}
    later = {"sure_above": 0.0, "delay": 0, "naive": False, "decoding": "actions"}
    return identity | {key: getattr(config, key) for key, usual in later.items() if getattr(config, key) != usual}


def _prepare_folder(config: EvalConfig, todo: list[Episode], identity: dict[str, Any]) -> list[EpisodeResult]:
    """Make or clear the output folder. Returns what is done already (resume)."""
    lines, about = config.out / "episodes.jsonl", config.out / "config.json"
    done: list[EpisodeResult] = []
    if config.out.exists() and not config.out.is_dir():
        raise ValueError(f"expected --out to be a folder, got the file {config.out}")
    if config.out.is_dir() and any(config.out.iterdir()):
        if config.resume and lines.exists():
            before = json.loads(about.read_text(encoding="utf-8"))["identity"] if about.exists() else identity
            differs = [key for key in identity if before.get(key) != identity[key]]
            if differs:
                raise ValueError(
                    f"expected the same {', '.join(differs)} as in {config.out} to resume, got "
                    + ", ".join(f"{identity[key]!r} instead of {before.get(key)!r}" for key in differs)
                )
            wanted = set(todo)
            done = write_results(lines, [r for r in read_results(lines) if r.episode in wanted])
        elif config.overwrite or config.resume:
            ours = [lines, about, config.out / "summary.json", *(config.out / "videos").glob("*.mp4")]
            for path in ours:
                path.unlink(missing_ok=True)
        else:
            raise ValueError(
                f"expected a new or empty folder, got {config.out}, which has files in it; "
                "choose another --out, or give --overwrite, or --resume to go on with it"
            )
    config.out.mkdir(parents=True, exist_ok=True)
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(config).items()}
    write_atomically(about, json.dumps({"identity": identity, "config": settings}, indent=1))
    return done


def _check_fits(policy: "Policy", description: "EnvDescription", config: EvalConfig) -> None:
    """Refuse a policy that was made for another robot or other cameras."""
    ours, theirs = tuple(policy.action_names), description.action_names
    if ours != theirs:
        raise ValueError(
            f"expected a policy with the environment's {len(theirs)} actions {', '.join(theirs)}, "
            f"got one with {len(ours)}: {', '.join(ours)}; evaluate in the environment it was trained for"
        )
    if tuple(policy.state_names) != description.state_names:
        raise ValueError(
            f"expected a policy with the environment's state {', '.join(description.state_names)}, "
            f"got {', '.join(policy.state_names)}; evaluate in the environment it was trained for"
        )
    missing = [camera for camera in policy.cameras if camera not in description.cameras]
    if missing:
        raise ValueError(
            f"expected a policy with cameras out of {', '.join(description.cameras) or 'none'}, "
            f"got {', '.join(missing)} too; evaluate in the environment it was trained for"
        )
    if not 1 <= policy.n_action_steps <= policy.horizon:
        raise ValueError(f"expected n_action_steps in 1 .. horizon = {policy.horizon}, got {policy.n_action_steps}")
    if not 0 <= config.delay <= policy.horizon - policy.n_action_steps:
        raise ValueError(
            f"expected a delay of 0 .. {policy.horizon - policy.n_action_steps} steps (the horizon {policy.horizon} "
            f"less {policy.n_action_steps} that are executed), got {config.delay}; execute fewer with --n-action-steps"
        )
    if config.delay and config.sure_above:
        raise ValueError("a delay needs a fixed number of steps: leave out --sure-above")


def _videos_wanted(config: EvalConfig, tasks: Iterable[str]) -> dict[tuple[str, bool], int]:
    """How many videos of each (task, success) are still to be made."""
    wanted = {}
    for task in tasks:
        for success in (True, False):
            there = list((config.out / "videos").glob(f"{task}_*_{'success' if success else 'failure'}.mp4"))
            wanted[task, success] = max(0, config.videos - len(there))
    return wanted


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def evaluate(
    config: EvalConfig,
    policy: "Policy | None" = None,
    *,
    registry: str = "vla.envs.registry",
    console: "Console | None" = None,
) -> Summary:
    """Run the evaluation, write `config.out`, return the summary that is in its summary.json.

    `policy`: use this one instead of loading `config.policy`. `registry`: the module, by name, whose
    make_env, suites and ENVS are used (the workers import it too). `console`: a rich Console for the progress
    bar, else standard output.

    The workers are spawned: a script that calls this must do so under `if __name__ == "__main__":`.

    Raises ValueError for an unknown environment, suite or task, a missing checkpoint, an output folder that
    is in use, a policy that does not fit the environment, and actions that are not finite; RuntimeError if an
    environment fails. KeyboardInterrupt passes through once the finished episodes are safe in episodes.jsonl.
    """
    from rich.console import Console

    from vla.checkpoint import resolve
    from vla.eval.centre import Centre
    from vla.eval.manifest import checkpoint_hash
    from vla.eval.manifest import manifest as make_manifest
    from vla.eval.progress import EvalProgress
    from vla.eval.workers import Pool, WorkerSettings

    console = console or Console()
    _check(config)
    known = importlib.import_module(registry)
    if config.list:
        env, episodes = read_list(config.list)
        config = replace(config, env=env, tasks=tuple(dict.fromkeys(episode.task for episode in episodes)))
        tasks = _tasks(config, known)
    else:
        tasks = _tasks(config, known)
        episodes = episode_list(tasks, config.episodes, config.first_seed)
    if config.perturbation is not None:
        has = getattr(known, "PERTURBATIONS", {}).get(config.env, ())
        check_perturbation(config.perturbation, has, repr(config.env))
    baseline = config.policy in BASELINES and policy is None
    checkpoint = None if config.policy in BASELINES else resolve(config.policy)
    if config.threads and not baseline:
        import torch

        torch.set_num_threads(config.threads)
    if not baseline and policy is None:
        policy = _load(config)
    digest = checkpoint_hash(checkpoint) if checkpoint is not None else None
    done = _prepare_folder(config, episodes, _same_run(config, digest))
    finished = {result.episode for result in done}
    todo = [episode for episode in episodes if episode not in finished]
    written = config.out / "summary.json"
    if not todo and written.exists():  # nothing to resume: keep the latencies and the date that were measured
        summary = json.loads(written.read_text(encoding="utf-8"))
        if summary["n"] == len(done):
            show(summary, console)
            return summary

    env_kwargs: dict[str, Any] = {"task": tasks[0], "image_size": IMAGE_SIZE, "render": False}
    if policy is not None and policy.cameras:
        env_kwargs |= {"image_size": int(policy.image_size), "cameras": tuple(policy.cameras), "render": True}
    if config.perturbation is not None:
        env_kwargs["perturbation"] = config.perturbation
    settings = WorkerSettings(
        registry=registry,
        env=config.env,
        env_kwargs=env_kwargs,
        mode="policy" if policy is not None else config.policy,  # type: ignore[arg-type]
        instruction=config.instruction,
        sampler_seed=config.seed,
        moments=int(getattr(policy, "n_obs_steps", 1)),
    )
    workers = min(config.workers or _cores(), config.slots, max(1, len(todo)))
    slots = min(config.slots, max(1, len(todo)))
    if baseline:
        slots = min(slots, workers)  # a baseline's episode is one message: more slots would only be more memory
    lines = config.out / "episodes.jsonl"
    with Pool(settings, workers, slots) as pool:
        description = pool.describe(tasks[0])
        if policy is not None:
            _check_fits(policy, description, config)
        wanted = _videos_wanted(config, tasks)
        centre = Centre(policy, pool, config.rows, config.seed, wanted, config.delay, config.naive)
        started = time.perf_counter()
        try:
            bar = EvalProgress(console, _name(config), len(episodes), len(done), sum(result.success for result in done))
            with bar, lines.open("a", encoding="utf-8") as file:
                for result in centre.run(todo):
                    done.append(result)
                    file.write(to_line(result))
                    file.flush()
                    bar.count(result.success)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"{len(done)} of {len(episodes)} episodes are saved in {config.out}; --resume goes on from there"
            ) from None
        finally:
            done = write_results(lines, done)
        elapsed_s = time.perf_counter() - started
        centre.film(config.out / "videos")
    if config.videos and policy is not None and config.perturbation is None and can_foresee(policy):
        some = [foresee(policy, config.env, e.task, e.seed) for e in episodes[:FORESEEN]]  # type: ignore[arg-type]
        write_atomically(config.out / "foresight.json", json.dumps(some))
    about = make_manifest(description.renderer, checkpoint)
    about["n_action_steps"] = policy.n_action_steps if policy is not None else None
    about["sampler_seed"], about["instruction"] = config.seed, config.instruction
    about["perturbation"] = config.perturbation
    about["image_size"] = env_kwargs["image_size"] if description.cameras else None
    about["cameras"], about["state"] = list(description.cameras), list(description.state_names)
    steps_per_s = centre.steps / elapsed_s if todo else 0.0
    summary = summarize(
        _name(config),
        Path(config.list).stem or ",".join(config.tasks) or config.suite,
        config.env,
        done,
        centre.latencies_ms,
        steps_per_s,
        about,
        known.tiers(config.env) if hasattr(known, "tiers") else None,
    )
    write_atomically(written, json.dumps(summary, indent=1) + "\n")
    show(summary, console)
    return summary
