# SPDX-License-Identifier: Apache-2.0
"""The processes that simulate and encode: each is given the plans of a shard and gives the finished shard
back.

Processes are spawned, never forked: an OpenGL context does not survive a fork. Each holds one end of a pipe,
so that it notices when the recorder dies, and the recorder when it dies. Workers import this module and must
start fast.
"""

import contextlib
import dataclasses
import importlib
import multiprocessing
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np

from vla.data.record import EpisodePlan, RecordConfig
from vla.data.shard import DatasetSpec, Shard, ShardWriter, check_finite

ANOTHER_SCENE = 100_000_000
"""How far the seed of the next attempt is from that of a failed one: beyond those of any other episode."""


@dataclass(frozen=True)
class WorkerSettings:
    """What every worker is told at its start. Picklable."""

    registry: str
    """module with make_env(env, **kwargs), imported by name in the worker"""
    config: RecordConfig
    partial: Path
    """where unfinished videos are"""


@dataclass
class Trajectory:
    """One simulated episode of T frames."""

    images: dict[str, np.ndarray]
    """{camera: uint8 (T, H, W, 3)}"""
    state: np.ndarray
    """float32 (T, S)"""
    action: np.ndarray
    """float32 (T, A): the label"""
    instruction: str
    success: bool
    subtasks: list[str] | None = None
    """what the expert was doing at each frame; none if the environment does not say"""


def simulate(env: Any, plan: EpisodePlan, label: str, noise_steps: int = 1) -> Trajectory:
    """Let the expert of `env` play `plan`. The last frame is the last one that an action was chosen for.

    An episode goes on for as long as success must be held, so those frames are demonstrations of staying
    there. ValueError naming episode, task and seed if the expert returns a number that is not finite.
    """
    noise = np.random.Generator(np.random.Philox(key=plan.seed))
    # The gripper is spared: noise of its command would only drop what the hand holds.
    sigma = np.array([0.0 if name == "gripper" else plan.noise for name in env.action_names], np.float32)
    observation, info = env.reset(seed=plan.seed, options={"task": plan.task})
    images: dict[str, list[np.ndarray]] = {camera: [] for camera in env.cameras}
    states: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    instruction = str(info["instruction"])
    subtasks: list[str] | None = [] if "subtask" in info else None
    ended = False
    while not ended:
        clean = np.asarray(env.expert_action(), np.float32)
        check_finite(clean[None], "action", env.action_names, f"{describe(plan)}, step {len(labels)}")
        if len(labels) % noise_steps == 0:
            push = sigma * noise.standard_normal(len(sigma), np.float32)
        executed = np.clip(clean + push, -1.0, 1.0)
        for camera, pictures in images.items():
            pictures.append(observation["pixels"][camera].copy())  # an environment may draw into the same array
        states.append(np.array(observation["agent_pos"], np.float32))
        labels.append(clean if label == "clean" else executed)
        if subtasks is not None:
            subtasks.append(str(info.get("subtask", "")))
        observation, _, terminated, truncated, info = env.step(executed)
        ended = terminated or truncated
    return Trajectory(
        {camera: np.stack(pictures) for camera, pictures in images.items()},
        np.stack(states),
        np.stack(labels),
        instruction,
        bool(info["is_success"]),
        subtasks,
    )


def describe(plan: EpisodePlan) -> str:
    """How messages call an episode."""
    return f"episode {plan.index} (task '{plan.task}', seed {plan.seed})"


def dataset_spec(env: Any, config: RecordConfig, language: bool = False) -> DatasetSpec:
    """What `env` says of itself, and whether there is `language`. ValueError for a rate that LeRobot cannot store."""
    fps = round(env.fps)
    if abs(fps - env.fps) > 1e-9 or fps < 1:
        raise ValueError(f"expected a whole number of frames a second from '{config.env}', got {env.fps}")
    return DatasetSpec(
        fps=fps,
        cameras={camera: (config.image_size, config.image_size) for camera in env.cameras},
        state_names=tuple(env.state_names),
        action_names=tuple(env.action_names),
        robot_type=config.env,
        pix_fmt=config.pix_fmt,
        language=language,
    )


def record_shard(
    env: Any,
    settings: WorkerSettings,
    index: int,
    plans: list[EpisodePlan],
    tell: Callable[[int], None] = lambda frames: None,
) -> Shard:
    """Simulate and encode `plans`, one or more. `tell`: called after every episode with the number of its frames."""
    config = settings.config
    writer: ShardWriter | None = None
    counts: dict[str, dict[str, int]] = {}
    for plan in plans:
        numbers = counts.setdefault(plan.task, {"attempted": 0, "succeeded": 0, "recorded": 0})
        for attempt in range(config.attempts):
            plan = dataclasses.replace(plan, seed=plan.seed + bool(attempt) * ANOTHER_SCENE)
            trajectory = simulate(env, plan, config.label, config.noise_steps)
            numbers["attempted"] += 1
            if trajectory.success:
                break
        if writer is None:  # whether an environment says what it does is known once it has done something
            spec = dataset_spec(env, config, config.plans and trajectory.subtasks is not None)
            writer = ShardWriter(settings.partial / f"shard-{index:06d}", index, spec)
        keep = trajectory.success or config.keep_failures
        numbers["succeeded"] += trajectory.success
        numbers["recorded"] += keep
        if keep:
            extra = {
                "task_template": plan.task,
                "seed": plan.seed,
                "noise": float(plan.noise),
                "success": trajectory.success,
            }
            writer.add_episode(
                trajectory.images,
                trajectory.state,
                trajectory.action,
                trajectory.instruction,
                extra,
                describe(plan),
                trajectory.subtasks or (),
            )
        tell(len(trajectory.action) if keep else 0)
    assert writer is not None
    return writer.finish(counts)


def worker_main(connection: Connection, settings: WorkerSettings) -> None:
    """The life of a worker: shards until told None. Every message to the recorder is (kind, content)."""
    env: Any = None
    try:
        while (order := connection.recv()) is not None:
            index, plans = order
            if env is None:
                config = settings.config
                make_env = importlib.import_module(settings.registry).make_env
                env = make_env(config.env, task=plans[0].task, image_size=config.image_size, cameras=config.cameras)
            shard = record_shard(env, settings, index, plans, lambda frames: connection.send(("episode", frames)))
            connection.send(("shard", shard))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the recorder is gone: so are its reasons for our work
    except Exception as error:
        with contextlib.suppress(OSError):
            connection.send(("error", _portable(error)))
    finally:
        if env is not None:
            env.close()


def _portable(error: Exception) -> Exception:
    """The error as one that any process can unpickle, with its kind as far as it matters here."""
    if isinstance(error, OSError) and error.errno:
        return OSError(error.errno, str(error))
    if isinstance(error, ValueError):
        return ValueError(str(error))
    return RuntimeError(f"{type(error).__name__}: {error}")


class Farm:
    """Workers, from `with` until its end, however that comes."""

    def __init__(self, settings: WorkerSettings, workers: int):
        self.settings, self.workers = settings, workers
        self._processes: list[Any] = []
        self._connections: list[Connection] = []

    def __enter__(self) -> "Farm":
        context = multiprocessing.get_context("spawn")
        with _ignoring_ctrl_c():  # inherited: Ctrl-C is for the recorder, which then ends the workers
            for _ in range(self.workers):
                ours, theirs = context.Pipe()
                process = context.Process(target=worker_main, args=(theirs, self.settings), daemon=True)
                process.start()
                theirs.close()
                self._processes.append(process)
                self._connections.append(ours)
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        for process, connection in zip(self._processes, self._connections, strict=True):
            if kind is None:
                with contextlib.suppress(OSError):
                    connection.send(None)
            else:
                process.terminate()
        for process, connection in zip(self._processes, self._connections, strict=True):
            process.join(timeout=10)
            if process.is_alive():
                process.kill()
                process.join()
            connection.close()

    def run(self, plans: dict[int, list[EpisodePlan]], tell: Callable[[int, int], None]) -> Iterator[Shard]:
        """Record every shard. Yields them in the order of `plans`. `tell`: called with (episodes, frames) as
        they come.

        Raises what a worker raised; RuntimeError if one died.
        """
        waiting = list(plans)[::-1]
        wanted = list(plans)[::-1]
        finished: dict[int, Shard] = {}
        for connection in self._connections:
            if waiting:
                connection.send((waiting[-1], plans[waiting.pop()]))
        while wanted:
            ready: list[Any] = wait(self._connections)
            for connection in ready:
                try:
                    kind, content = connection.recv()
                except (EOFError, ConnectionResetError):
                    process = self._processes[self._connections.index(connection)]
                    process.join(timeout=5)
                    raise RuntimeError(
                        f"a recording process died (exit code {process.exitcode}; -9 often means that memory "
                        "ran out: try fewer --workers); finished shards are kept, go on with --resume"
                    ) from None
                if kind == "error":
                    raise content
                if kind == "episode":
                    tell(1, content)
                    continue
                if waiting:
                    connection.send((waiting[-1], plans[waiting.pop()]))
                finished[content.index] = content
            while wanted and wanted[-1] in finished:
                shard = finished.pop(wanted.pop())
                yield shard
                shutil.rmtree(self.settings.partial / f"shard-{shard.index:06d}", ignore_errors=True)


@contextlib.contextmanager
def _ignoring_ctrl_c() -> Iterator[None]:
    try:
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    except ValueError:  # not the main thread: whoever is, handles signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
