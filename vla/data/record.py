# SPDX-License-Identifier: Apache-2.0
"""`vla record`: expert demonstrations in simulation, on all cores, as a LeRobot dataset.

Episode i has a task, a seed and a noise level that are functions of i alone, and a shard of a few hundred
episodes is the work of one process; this process only puts finished shards into the dataset, in order. So the
result does not depend on the number of workers, and a recording that was killed goes on with --resume to the
very same files.

The hand does what the expert says plus noise, and the label, "action", is what the expert said (DART, Laskey et
al. 2017): demonstrations then also visit the places where a policy with small errors will find itself, and say
how to get back from there. What the hand did is kept beside it as "executed_action". Only that explains the next
picture, and only where the two differ do actions that are already decided say more than the picture does.
"""

import dataclasses
import errno
import importlib
import math
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from rich.console import Console

EVALUATION_SEEDS = 100_000
"""Seeds below this belong to evaluation."""


@dataclass(frozen=True)
class RecordConfig:
    """Record expert demonstrations as a LeRobot dataset."""

    out: Path = Path("runs/dataset")
    """Folder of the dataset."""
    env: str = "tabletop"
    """Environment to record in."""
    suite: str = "demo"
    """Suite of tasks, recorded in turn."""
    tasks: tuple[str, ...] = ()
    """Names of tasks, instead of a suite."""
    episodes: int = 6000
    """Episodes to attempt; those in which the expert fails are left out."""
    attempts: int = 1
    """Scenes that are tried for an episode until the expert succeeds in one: with enough of them, every task gets the
    same number of demonstrations."""
    image_size: int = 64
    """Side of the pictures, pixels, even."""
    cameras: tuple[str, ...] | None = None
    """Cameras to record; none: the environment's usual ones ("front"; tabletop_state has no camera)."""
    noise: tuple[float, ...] = (0.0, 0.1, 0.2)
    """Standard deviations of the noise on the executed action, in turn over episodes; the gripper is spared."""
    noise_steps: int = 1
    """So many steps the noise stays as it was drawn: at a high rate, what changes every step averages out and leads
    nowhere that the policy could learn to come back from."""
    bursts: float = 0.0
    """Probability, at each step outside of a burst, that one begins: 2 to 8 steps of random actions, uniform in
    [-1, 1]; in half of the bursts one action is held, in the other half each step has a new one. The gripper does what
    the expert says, and the label is what the expert would do."""
    playful: float = 0.0
    """Share of the episodes that are played at random instead of by the expert, for what they say about how the world
    moves: marked `dynamics_only` in meta/episodes, never a demonstration."""
    seed: int = 1_000_000
    """Seed of the first episode; each further episode has the next one."""
    shard_episodes: int = 250
    """Episodes that one process records at a time, and at most as many per worker are lost by a kill."""
    pix_fmt: Literal["yuv420p", "yuv444p"] = "yuv444p"
    """yuv420p plays everywhere, but 2 x 2 pixels share a colour; yuv444p keeps small coloured things sharp.
    """
    workers: int = 0
    """Processes; 0: one per core."""
    plans: bool = True
    """Also write what the expert is doing and what it has still to do, in words, into LeRobot's language columns; only
    if the environment says it (info["subtask"])."""
    keep_failures: bool = False
    """Also keep episodes in which the expert failed: in meta/episodes 'success' is False, 'dynamics_only' True."""
    resume: bool = False
    """Go on with a recording that was interrupted."""
    overwrite: bool = False
    """Delete the dataset in `out` first."""

    @property
    def disturbed(self) -> bool:
        """Whether something else may be executed than the label: then the dataset has "executed_action"."""
        return any(sigma > 0 for sigma in self.noise) or self.bursts > 0 or self.playful > 0


@dataclass(frozen=True)
class EpisodePlan:
    """What episode `index` is: a function of the index alone."""

    index: int
    task: str
    seed: int
    noise: float
    playful: bool = False
    """played at random, without the expert; then there is no noise"""


def plan(config: RecordConfig, tasks: tuple[str, ...], index: int) -> EpisodePlan:
    """Return the plan of episode `index`: tasks take turns, and for each task the noise levels do.

    Playful episodes are spread evenly over each task, and tasks have theirs at different times.
    """
    turn, task = divmod(index, len(tasks))

    def played(turns: int) -> int:
        return math.floor(turns * config.playful + task / len(tasks))

    playful = played(turn + 1) > played(turn)
    noise = 0.0 if playful else config.noise[(turn - played(turn)) % len(config.noise)]
    return EpisodePlan(index, tasks[task], config.seed + index, noise, playful)


def record(
    config: RecordConfig, *, registry: str = "vla.envs.registry", console: "Console | None" = None
) -> dict[str, Any]:
    """Record what `config` says. Returns what was recorded, and how fast.

    `registry`: the module, by name, whose `make_env`, `suites`, `ENVS` and (if it has it) `CAMERAS` are used;
    workers import it.
    `console`: for the progress bar, default standard output. Keys of the result: out, episodes, frames,
    attempted, success_rate (of the expert's attempts), tasks {task: {attempted, succeeded, recorded, played}}, seconds,
    frames_per_s, workers, bytes_per_frame.

    ValueError for settings that cannot be, an existing `out` without resume or overwrite, a full disk,
    numbers that are not finite. KeyboardInterrupt passes through after the workers have ended; the shards
    finished until then are a valid dataset.
    """
    known = importlib.import_module(registry)
    if config.cameras is None:
        config = dataclasses.replace(config, cameras=_usual_cameras(known, config.env))
    tasks = _check(config, known)
    _prepare(config)

    from rich.console import Console

    from vla.data.progress import JobProgress
    from vla.data.record_worker import Farm, WorkerSettings
    from vla.data.writer import PARTIAL, DatasetWriter

    began = time.perf_counter()
    console = console or Console(highlight=False)
    # Everything that decides what is recorded; who resumes must say the same.
    settings = {k: v for k, v in dataclasses.asdict(config).items() if k not in _NOT_CONTENT}
    about = {k: list(v) if isinstance(v, tuple) else v for k, v in settings.items()} | {"tasks": list(tasks)}
    writer = DatasetWriter(config.out, about, resume=config.resume)
    shards = math.ceil(config.episodes / config.shard_episodes)
    workers = min(config.workers or _cores(), max(shards - writer.shards, 1))
    partial = config.out / PARTIAL
    shutil.rmtree(partial, ignore_errors=True)
    plans = {
        shard: [
            plan(config, tasks, i)
            for i in range(shard * config.shard_episodes, min((shard + 1) * config.shard_episodes, config.episodes))
        ]
        for shard in range(writer.shards, shards)
    }
    frames_before = writer.frames
    done_before = min(writer.shards * config.shard_episodes, config.episodes)
    if plans:
        partial.mkdir(parents=True)
        worker_settings = WorkerSettings(registry, config, partial)
        try:
            with (
                JobProgress(console, "record", config.episodes, done_before) as progress,
                Farm(worker_settings, workers) as farm,
            ):
                for shard in farm.run(plans, progress.add):
                    writer.commit(shard)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise ValueError(
                f"the disk of '{config.out}' is full; its {writer.episodes} finished episodes are a valid "
                "dataset: make room and go on with --resume"
            ) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    seconds = time.perf_counter() - began
    if not writer.frames:
        raise ValueError(
            f"the expert failed in all {config.episodes} episodes, so there is nothing to learn from: "
            "try less --noise, or --keep-failures to look at them"
        )
    failed = {t: n["attempted"] - n["succeeded"] for t, n in writer.counts.items() if n["attempted"] > n["succeeded"]}
    console.print(
        f"recorded {writer.episodes} episodes, {writer.frames} frames in '{config.out}'"
        + (f"; the expert failed in {', '.join(f'{n} of {t}' for t, n in failed.items())}" if failed else "")
        + ("" if plans else " (it was complete already)"),
        highlight=False,
        soft_wrap=True,
    )
    attempted = sum(numbers["attempted"] for numbers in writer.counts.values())
    size = sum(path.stat().st_size for path in config.out.rglob("*") if path.is_file())
    return {
        "out": str(config.out),
        "episodes": writer.episodes,
        "frames": writer.frames,
        "attempted": attempted,
        "success_rate": sum(numbers["succeeded"] for numbers in writer.counts.values()) / max(attempted, 1),
        "tasks": writer.counts,
        "instructions": len(writer.tasks),
        "seconds": seconds,
        "frames_per_s": (writer.frames - frames_before) / seconds,
        "workers": workers,
        "bytes_per_frame": size / writer.frames,
    }


def _cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _usual_cameras(registry: Any, env: str) -> tuple[str, ...]:
    """What is recorded unless the user says otherwise; a registry without CAMERAS means the front camera."""
    return tuple(getattr(registry, "CAMERAS", {}).get(env, ("front",)))


_NOT_CONTENT = ("out", "workers", "resume", "overwrite")


def _check(config: RecordConfig, registry: Any) -> tuple[str, ...]:
    """ValueError for what cannot be. Returns the names of the tasks."""
    suites = registry.suites(config.env)
    known = sorted({task for tasks in suites.values() for task in tasks})
    if not config.tasks and config.suite not in suites:
        raise ValueError(f"expected a suite of '{config.env}' out of {sorted(suites)}, got '{config.suite}'")
    tasks = tuple(config.tasks) or tuple(suites[config.suite])
    for task in tasks:
        if task not in known:
            raise ValueError(f"'{config.env}' has no task '{task}'; there are: {', '.join(known)}")
    for name in ("episodes", "attempts", "shard_episodes", "image_size"):
        if getattr(config, name) < 1:
            raise ValueError(f"expected {name} >= 1, got {getattr(config, name)}")
    if config.workers < 0:
        raise ValueError(f"expected workers >= 0 (0: one per core), got {config.workers}")
    if config.image_size % 2:
        raise ValueError(f"expected an even image_size (h264 needs it), got {config.image_size}")
    cameras = config.cameras or ()
    sighted = bool(_usual_cameras(registry, config.env))
    if len(set(cameras)) != len(cameras) or bool(cameras) != sighted:
        wanted = "one or more different cameras" if sighted else "no cameras"
        raise ValueError(f"expected {wanted} for '{config.env}', got {cameras}; leave out --cameras for its usual ones")
    if not config.noise or not all(0 <= sigma < math.inf for sigma in config.noise):
        raise ValueError(f"expected one or more noise levels >= 0, got {config.noise}")
    if config.noise_steps < 1:
        raise ValueError(f"expected noise_steps >= 1, got {config.noise_steps}")
    for name in ("bursts", "playful"):
        if not 0 <= getattr(config, name) <= 1:
            raise ValueError(f"expected {name} in 0..1, got {getattr(config, name)}")
    if config.seed < EVALUATION_SEEDS:
        raise ValueError(
            f"expected a seed >= {EVALUATION_SEEDS}, got {config.seed}: those below belong to evaluation, "
            "and a policy must not be tried on scenes that it was trained on"
        )
    if config.resume and config.overwrite:
        raise ValueError("--resume goes on with what is there and --overwrite deletes it: give one of them")
    return tasks


def _prepare(config: RecordConfig) -> None:
    """Make sure that `out` may be written to."""
    out = config.out
    if out.exists() and not out.is_dir():
        raise ValueError(f"'{out}' is a file; --out must be a folder")
    if out.is_dir() and any(out.iterdir()):
        ours = (out / "meta/recording.json").exists()
        begun = not any(path.is_file() for path in out.rglob("*") if ".partial" not in path.parts)
        if config.overwrite:
            if not (ours or begun or (out / "meta/info.json").exists()):
                raise ValueError(f"'{out}' holds something else than a dataset; --overwrite does not delete that")
            shutil.rmtree(out)
        elif not config.resume:
            raise ValueError(
                f"the folder '{out}' exists: --resume goes on with a recording in it, --overwrite deletes it, "
                "or give another --out"
            )
        elif not ours and (out / "meta/info.json").exists():
            raise ValueError(f"the dataset in '{out}' was not recorded by vla record, so it cannot be resumed")
    out.mkdir(parents=True, exist_ok=True)
