# SPDX-License-Identifier: Apache-2.0
"""Simulator processes: each holds several environments (slots) and steps them through whole chunks.

A worker is given an episode for a slot, sends the first observation, is given a chunk of actions, steps
through it without a round trip and sends the next observation, until the episode ends; then the slot is free
for the next one. Baselines that need no network ("random", "expert") run a whole episode on one message.
Processes are spawned, never forked: a GL context does not survive a fork. Pipes carry the observations: a
64-pixel image is 12 kB. This module is imported by every worker and must stay light.
"""

import contextlib
import hashlib
import importlib
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vla.eval.episodes import Episode, EpisodeResult, episode_key
from vla.eval.history import Moment, moment, shown

Mode = Literal["policy", "random", "expert"]


@dataclass(frozen=True)
class WorkerSettings:
    """What every worker of one evaluation is told at its start. Picklable."""

    registry: str
    """module with make_env(env, **kwargs), imported by name in the worker"""
    env: str
    env_kwargs: dict[str, Any]
    mode: Mode = "policy"
    instruction: Literal["given", "swapped", "paraphrased"] = "given"
    """what the policy is told: the episode's own sentence, env.alternative_instruction() or env.paraphrase(); success
    is judged by the first"""
    sampler_seed: int = 0
    moments: int = 1
    """how many moments the policy sees, one control step apart, the present one included"""


@dataclass(frozen=True)
class EnvDescription:
    """What the environment says of itself."""

    action_names: tuple[str, ...]
    state_names: tuple[str, ...]
    cameras: tuple[str, ...]
    image_shape: tuple[int, ...] | None
    fps: float
    renderer: str | None


@dataclass
class _Slot:
    """One environment and the episode it is in."""

    env: Any
    episode: Episode | None = None
    given: str = ""
    instruction: str = ""
    first_frame: str = ""
    started: float = 0.0
    calls: int = 0
    success: bool = False
    actions: list[np.ndarray] = field(default_factory=list)
    seen: list[Moment] = field(default_factory=list)
    """images and state of the last moments, oldest first; empty if the policy sees the present only"""


def _gl_renderer() -> str | None:
    """What the current GL context calls itself, if a context is current and cheap to ask."""
    if "OpenGL" not in sys.modules:
        return None
    try:
        from OpenGL import GL

        name = GL.glGetString(GL.GL_RENDERER)
    except Exception:  # no context, or a binding without this call: not worth failing for
        return None
    return name.decode() if name else None


def random_action(key: int, step: int, size: int) -> np.ndarray:
    """Uniform in [-1, 1], float32 (size,): a pure function of the episode's key and the step."""
    generator = np.random.Generator(np.random.Philox(key=key, counter=step))
    return generator.uniform(-1.0, 1.0, size).astype(np.float32)


class Worker:
    """The slots of one process. `handle` turns one message from the centre into messages to it."""

    def __init__(self, settings: WorkerSettings):
        self.settings = settings
        self.make_env = importlib.import_module(settings.registry).make_env
        self.slots: dict[int, _Slot] = {}

    def slot(self, index: int) -> _Slot:
        if index not in self.slots:
            self.slots[index] = _Slot(self.make_env(self.settings.env, **self.settings.env_kwargs))
        return self.slots[index]

    def describe(self, index: int, task: str) -> EnvDescription:
        """Make the first environment, reset it once, and say what it is."""
        env = self.slot(index).env
        observation, _ = env.reset(seed=0, options={"task": task})
        images = observation.get("pixels") or {}
        shape = next((image.shape for image in images.values()), None)
        return EnvDescription(
            action_names=tuple(env.action_names),
            state_names=tuple(env.state_names),
            cameras=tuple(env.cameras),
            image_shape=shape,
            fps=float(env.fps),
            renderer=_gl_renderer() if images else None,
        )

    def begin(self, index: int, episode: Episode) -> dict[str, Any]:
        """Reset a slot to an episode. Returns the first observation."""
        slot = self.slot(index)
        slot.started = time.perf_counter()
        observation, info = slot.env.reset(seed=episode.seed, options={"task": episode.task})
        slot.episode, slot.calls, slot.success, slot.actions, slot.seen = episode, 0, False, [], []
        self.remember(slot, observation)
        slot.instruction = str(info.get("instruction") or slot.env.task_description)
        tell = {"swapped": "alternative_instruction", "paraphrased": "paraphrase"}.get(self.settings.instruction)
        slot.given = str(getattr(slot.env, tell)()) if tell else slot.instruction
        images = observation.get("pixels") or {}
        if not slot.env.cameras:
            first = np.asarray(observation["agent_pos"], dtype="<f4")
        else:
            # A baseline runs without pixels: draw this one frame all the same, so that scenes can be compared
            # by hash.
            first = next(iter(images.values())) if images else slot.env.render()
        slot.first_frame = hashlib.sha256(np.ascontiguousarray(first).tobytes()).hexdigest()
        return observation

    def advance(self, index: int, action: np.ndarray) -> tuple[dict[str, Any], bool]:
        """One step of a slot. Returns (observation, whether the episode has ended)."""
        slot = self.slots[index]
        observation, _, terminated, truncated, info = slot.env.step(action)
        slot.actions.append(np.asarray(action, dtype=np.float32))
        slot.success = bool(info["is_success"])
        self.remember(slot, observation)
        return observation, bool(terminated or truncated)

    def remember(self, slot: _Slot, observation: dict[str, Any]) -> None:
        """Keep what the policy will want to see again: copies, an environment may draw into the same arrays."""
        if self.settings.moments > 1:
            slot.seen.append(moment(observation))
            del slot.seen[: -self.settings.moments]

    def finish(self, index: int) -> tuple[EpisodeResult, np.ndarray]:
        """The result of the episode that has just ended, and its actions, float32 (length, A)."""
        slot = self.slots[index]
        assert slot.episode is not None
        actions = np.stack(slot.actions).astype("<f4")
        result = EpisodeResult(
            task=slot.episode.task,
            seed=slot.episode.seed,
            instruction=slot.instruction,
            given_instruction=slot.given,
            success=slot.success,
            length=len(actions),
            first_frame_sha256=slot.first_frame,
            wall_s=round(time.perf_counter() - slot.started, 4),
            policy_calls=slot.calls,
            actions_sha256=hashlib.sha256(actions.tobytes()).hexdigest(),
        )
        slot.episode, slot.actions, slot.seen = None, [], []
        return result, actions

    def observe(self, index: int, observation: dict[str, Any]) -> tuple[Any, ...]:
        """("observe", slot, {camera: uint8 (H, W, 3)}, state (S,), instruction, step).

        With M > 1 moments: uint8 (M, H, W, 3), oldest first, state (M, S), and one more, the actions executed between
        them, float32 (M-1, A) (`history.shown`).
        """
        slot, moments = self.slots[index], self.settings.moments
        if moments > 1:
            images, states, executed = shown(slot.seen, slot.actions, moments, len(slot.env.action_names))
            return "observe", index, images, states, slot.given, len(slot.actions), executed
        state = np.asarray(observation["agent_pos"], dtype=np.float32)
        return "observe", index, observation.get("pixels") or {}, state, slot.given, len(slot.actions)

    def chunk(self, index: int, actions: np.ndarray) -> tuple[Any, ...]:
        """Execute a chunk, float32 (k, A), up to the episode's end."""
        self.slots[index].calls += 1
        for action in actions:
            observation, ended = self.advance(index, action)
            if ended:
                return "done", index, *self.finish(index)
        return self.observe(index, observation)

    def whole(self, index: int, episode: Episode) -> tuple[Any, ...]:
        """A baseline's episode from reset to end."""
        self.begin(index, episode)
        env = self.slots[index].env
        key, size, ended, step = (
            episode_key(episode, self.settings.sampler_seed),
            len(env.action_names),
            False,
            0,
        )
        while not ended:
            action = random_action(key, step, size) if self.settings.mode == "random" else env.expert_action()
            _, ended = self.advance(index, action)
            step += 1
        return "done", index, *self.finish(index)

    def film(self, index: int, expected: EpisodeResult, actions: np.ndarray, path: Path, size: int) -> tuple[Any, ...]:
        """Play an episode again from its actions, drawing it large. No video if it does not end as it did
        before, or if an environment that needs no pictures cannot draw any.
        """
        from vla.eval.video import write_video

        self.begin(index, expected.episode)
        env, ended = self.slots[index].env, False
        draw = (lambda: env.render_at(size)) if hasattr(env, "render_at") else env.render
        try:
            frames = [draw()]
        except RuntimeError:
            if env.cameras:
                raise
            return "filmed", index, expected.episode, False
        for action in actions:
            _, ended = self.advance(index, action)
            frames.append(draw())
        result, _ = self.finish(index)
        same = ended and result.success == expected.success
        if same:
            write_video(path, frames, float(env.fps))
        return "filmed", index, expected.episode, same

    def handle(self, message: tuple[Any, ...]) -> tuple[Any, ...]:
        match message:
            case "describe", index, task:
                try:
                    return "description", self.describe(index, task)
                except ValueError as error:  # the environment refuses these settings
                    return "refused", str(error)
            case "begin", index, episode:
                if self.settings.mode != "policy":
                    return self.whole(index, episode)
                return self.observe(index, self.begin(index, episode))
            case "chunk", index, actions:
                return self.chunk(index, actions)
            case "film", index, expected, actions, path, size:
                return self.film(index, expected, actions, path, size)
        raise AssertionError(f"unknown message {message[0]!r}")

    def close(self) -> None:
        for slot in self.slots.values():
            slot.env.close()


def worker_main(connection: Connection, settings: WorkerSettings) -> None:
    """A worker process, from its start until the centre hangs up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to every process of the terminal; the centre decides
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("LP_NUM_THREADS", "0")  # Mesa draws 64 pixels faster without threads of its own
    if sys.platform == "linux":
        os.environ.setdefault("MUJOCO_GL", "egl")
    worker = None
    try:
        worker = Worker(settings)
        while True:
            message = connection.recv()
            if message[0] == "close":
                break
            connection.send(worker.handle(message))
    except (EOFError, BrokenPipeError):
        pass
    except Exception:
        slots = worker.slots.values() if worker else ()
        episodes = ", ".join(f"{s.episode.task} seed {s.episode.seed}" for s in slots if s.episode)
        connection.send(("error", traceback.format_exc(), episodes))
    finally:
        if worker is not None:
            worker.close()
        connection.close()


class Pool:
    """Worker processes, and a mailbox for each slot. Use as a context manager."""

    def __init__(self, settings: WorkerSettings, workers: int, slots: int):
        assert 1 <= workers <= slots
        context = multiprocessing.get_context("spawn")
        self.slots = slots
        self.connections: list[Connection] = []
        self.processes = []
        for number in range(workers):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=worker_main, args=(theirs, settings), name=f"vla-eval-{number}", daemon=True
            )
            process.start()
            theirs.close()
            self.connections.append(ours)
            self.processes.append(process)

    def send(self, slot: int, message: tuple[Any, ...]) -> None:
        """Send a message (name, slot, ...) to the worker that holds the slot."""
        # If its end is broken, the worker's last words are in the pipe, and `receive` raises them.
        with contextlib.suppress(BrokenPipeError):
            self.connections[slot % len(self.connections)].send(message)

    def receive(self) -> Iterator[tuple[Any, ...]]:
        """Wait until something has come, then give all that has. Raises RuntimeError if a worker fails or
        dies.
        """
        for ready in wait(self.connections):
            assert isinstance(ready, Connection)
            while True:
                try:
                    message = ready.recv()
                except (EOFError, ConnectionResetError) as error:
                    raise RuntimeError(
                        "an environment process died without a word; if memory ran out, use fewer --slots"
                    ) from error
                if message[0] == "error":
                    raise RuntimeError(f"an environment failed ({message[2] or 'at its start'}):\n{message[1]}")
                yield message
                if not ready.poll():
                    break

    def describe(self, task: str) -> EnvDescription:
        """Ask the first worker what its environment is. ValueError if it refuses the settings, cameras say."""
        self.send(0, ("describe", 0, task))
        kind, answer = next(iter(self.receive()))
        if kind == "refused":
            raise ValueError(answer)
        return answer

    def close(self) -> None:
        """End all workers: kindly, then not."""
        for connection in self.connections:
            try:
                connection.send(("close",))
            except (BrokenPipeError, OSError):
                continue
        deadline = time.monotonic() + 5.0
        for process, connection in zip(self.processes, self.connections, strict=True):
            # Read on while waiting: a worker that is blocked in a full pipe would never see the message.
            while process.is_alive() and time.monotonic() < deadline:
                try:
                    while connection.poll():
                        connection.recv()
                except (EOFError, OSError):
                    pass
                process.join(0.02)
            if process.is_alive():
                process.kill()
                process.join()
            connection.close()

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
