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
    """float32 (T, A): the label, what the expert said"""
    executed: np.ndarray
    """float32 (T, A): what was done"""
    instruction: str
    success: bool
    subtasks: list[str] | None = None
    """what the expert was doing at each frame; none if the environment does not say"""


class Bursts:
    """Spells of random actions in the episode of `seed`, one `begin` a step: see `RecordConfig.bursts`."""

    def __init__(self, seed: int, probability: float, size: int) -> None:
        self._random = _generator(seed, "bursts")
        self._probability, self._size = probability, size
        self._left, self._held = 0, False
        self._action: np.ndarray = np.zeros(size, np.float32)

    def next(self) -> np.ndarray | None:
        """The random action of this step, float32 (A,), or None outside of a burst."""
        if not self._left:
            if self._probability == 0 or self._random.random() >= self._probability:
                return None
            self._left, self._held = _spell(self._random), self._random.random() < 0.5
            self._action = _uniform(self._random, self._size)
        elif not self._held:
            self._action = _uniform(self._random, self._size)
        self._left -= 1
        return self._action


class Play:
    """What a playful episode does: random actions, each held for a spell; the gripper now and then opens or closes.

    `grippers`: bool (A,), which of the action's dimensions is one. `gripper`: what it does at first.
    """

    def __init__(self, seed: int, grippers: np.ndarray, gripper: float) -> None:
        self._random = _generator(seed, "play")
        self._grippers, self._gripper = grippers, gripper
        self._left = 0
        self._action: np.ndarray = np.zeros(len(grippers), np.float32)

    def next(self) -> np.ndarray:
        """The action of this step, float32 (A,) in [-1, 1]."""
        if not self._left:
            self._left = _spell(self._random)
            action = _uniform(self._random, len(self._grippers))
            if self._random.random() < 0.3:
                self._gripper = float(self._random.choice((-1.0, 1.0)))
            self._action = np.where(self._grippers, np.float32(self._gripper), action)
        self._left -= 1
        return self._action


_STREAMS = {"noise": 0, "bursts": 1, "play": 2}


def _generator(seed: int, stream: str) -> np.random.Generator:
    """The random numbers of one kind in the episode of `seed`: what one kind draws does not change another."""
    return np.random.Generator(np.random.Philox(key=[seed, _STREAMS[stream]]))


def _spell(random: np.random.Generator) -> int:
    """How many steps a burst lasts or an action is held: 2 to 8."""
    return int(random.integers(2, 9))


def _uniform(random: np.random.Generator, size: int) -> np.ndarray:
    return random.uniform(-1.0, 1.0, size).astype(np.float32)


def simulate(env: Any, plan: EpisodePlan, noise_steps: int = 1, bursts: float = 0.0) -> Trajectory:
    """Let the expert of `env` play `plan`, or let it be played at random. `noise_steps`, `bursts`: see `RecordConfig`.

    The last frame is the last one that an action was chosen for. An episode goes on for as long as success must be
    held, so those frames are demonstrations of staying there; one that is played at random ends after half of the
    steps that the environment allows. ValueError naming episode, task and seed if the expert returns a number that is
    not finite.
    """
    noise, burst = _generator(plan.seed, "noise"), Bursts(plan.seed, bursts, len(env.action_names))
    # The gripper is spared: noise of its command would only drop what the hand holds.
    grippers = np.array([name == "gripper" for name in env.action_names])
    sigma = np.where(grippers, 0.0, plan.noise).astype(np.float32)
    observation, info = env.reset(seed=plan.seed, options={"task": plan.task})
    idle = getattr(env, "idle_action", None)
    closed = float(np.asarray(idle)[grippers][0]) if idle is not None and grippers.any() else 1.0
    play = Play(plan.seed, grippers, closed)
    most_steps = getattr(env, "_max_episode_steps", None)
    images: dict[str, list[np.ndarray]] = {camera: [] for camera in env.cameras}
    states: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    done: list[np.ndarray] = []
    instruction = str(info["instruction"])
    subtasks: list[str] | None = [] if "subtask" in info else None
    ended = False
    while not ended:
        if plan.playful:
            label = executed = play.next()
        else:
            label = np.array(env.expert_action(), np.float32)
            check_finite(label[None], "action", env.action_names, f"{describe(plan)}, step {len(labels)}")
            if len(labels) % noise_steps == 0:
                push = sigma * noise.standard_normal(len(sigma), np.float32)
            wild = burst.next()
            executed = np.clip(label + push, -1.0, 1.0) if wild is None else np.where(grippers, label, wild)
        for camera, pictures in images.items():
            pictures.append(observation["pixels"][camera].copy())  # an environment may draw into the same array
        states.append(np.array(observation["agent_pos"], np.float32))
        labels.append(label)
        done.append(executed)
        if subtasks is not None:
            subtasks.append(str(info.get("subtask", "")))
        observation, _, terminated, truncated, info = env.step(executed)
        ended = terminated or truncated
        if plan.playful and most_steps is not None:
            ended = ended or len(labels) >= max(1, most_steps // 2)
    return Trajectory(
        {camera: np.stack(pictures) for camera, pictures in images.items()},
        np.stack(states),
        np.stack(labels),
        np.stack(done),
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
        executed=config.disturbed,
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
        numbers = counts.setdefault(plan.task, {"attempted": 0, "succeeded": 0, "recorded": 0, "played": 0})
        for attempt in range(1 if plan.playful else config.attempts):
            plan = dataclasses.replace(plan, seed=plan.seed + bool(attempt) * ANOTHER_SCENE)
            trajectory = simulate(env, plan, config.noise_steps, config.bursts)
            numbers["attempted"] += not plan.playful
            if trajectory.success:
                break
        if writer is None:  # whether an environment says what it does is known once it has done something
            spec = dataset_spec(env, config, config.plans and trajectory.subtasks is not None)
            writer = ShardWriter(settings.partial / f"shard-{index:06d}", index, spec)
        keep = trajectory.success or config.keep_failures or plan.playful
        numbers["succeeded"] += trajectory.success and not plan.playful
        numbers["recorded"] += keep
        numbers["played"] += plan.playful
        if keep:
            extra = {
                "task_template": plan.task,
                "seed": plan.seed,
                "noise": float(plan.noise),
                "success": trajectory.success,
                "dynamics_only": plan.playful or not trajectory.success,
            }
            writer.add_episode(
                trajectory.images,
                trajectory.state,
                trajectory.action,
                trajectory.instruction,
                extra,
                describe(plan),
                # What the expert would be doing is not what is being done in play.
                (not plan.playful and trajectory.subtasks) or (),
                trajectory.executed if config.disturbed else None,
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
