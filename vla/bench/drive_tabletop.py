# SPDX-License-Identifier: Apache-2.0
"""What does latency cost? The tabletop, driven by the executor through a real client and a real server.

    python -m vla.bench.drive_tabletop --latency-ms 0 100 200 300 --episodes 50

Every latency is tried with the actions that are executed meanwhile told to the policy (committed) and not told (naive),
on the same episodes. Time is simulated: the simulator waits for the reply, which takes effect ceil(latency * fps)
control steps after it was asked for. So the figures do not depend on how fast the machine is, and nothing sleeps.
"""

import contextlib
import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from vla.serve.client import PolicyClient, PolicyError
from vla.serve.executor import Executor


@dataclass(frozen=True)
class DriveConfig:
    """Drive the tabletop through a policy server, with latency."""

    latency_ms: tuple[float, ...] = (0.0, 100.0, 200.0, 300.0)
    """from an observation to the moment at which its actions can be executed"""
    episodes: int = 50
    """of each latency and way, spread evenly over the tasks"""
    suite: str = "demo"
    """named set of tasks"""
    first_seed: int = 0
    """seeds first_seed, first_seed + 1, ... for each task"""
    seed: int = 0
    """of the policy's sampler"""
    policy: str = "tabletop_nano"
    """checkpoint to serve in this process"""
    host: str = ""
    """ask a server that runs already; with a key, it comes from the environment variable VLA_API_KEY"""
    port: int = 8000
    """of that server"""
    threads: int = 1
    """CPU threads of torch, of the server in this process"""


@dataclass(frozen=True)
class Drive:
    """What came of one latency and one way."""

    latency_ms: float
    delay_steps: int
    """control steps that a reply takes"""
    commit: bool
    successes: int
    episodes: int
    interval: tuple[float, float]
    """95 % Wilson interval of the success rate"""
    steps: int
    """control steps, all episodes together"""
    held: int
    """of them without an action that could be executed; the first chunk of an episode takes its latency, always"""
    late: int
    """replies that were asked for again"""
    jump: float
    """mean absolute change of dx, dy and dz in the step in which a new chunk takes over, in [0, 2]"""


class SimulatedTime:
    """A clock that goes on a control step when told to. `submit` computes at once and delivers `delay` steps later."""

    def __init__(self, fps: float, delay: int) -> None:
        self.fps, self.delay, self.steps = fps, delay, 0

    def clock(self) -> float:
        """Now, s."""
        return self.steps / self.fps

    def submit(self, function: Callable[[], dict[str, Any]]) -> "Later":
        """For `Executor`. What the function raises is raised here: in an experiment nothing may go wrong quietly."""
        return Later(self, self.steps + self.delay, function())


@dataclass(frozen=True)
class Later:
    """A reply that is there at a simulated step."""

    time: SimulatedTime
    due: int
    reply: dict[str, Any]

    def done(self) -> bool:
        return self.time.steps >= self.due

    def result(self) -> dict[str, Any]:
        return self.reply


def delay_of(latency_ms: float, fps: float) -> int:
    """Control steps that go by in a latency. ValueError for a negative one."""
    if not 0 <= latency_ms < math.inf:
        raise ValueError(f"expected a latency of 0 ms or more, got {latency_ms}")
    return math.ceil(latency_ms * fps / 1000 - 1e-9)


def hold(last: np.ndarray | None) -> np.ndarray:
    """Stay where you are and keep the gripper as it is, float32 (4,): an action is a displacement."""
    return np.array([0, 0, 0, 1 if last is None else last[3]], np.float32)


def drive(
    client: PolicyClient, env: Any, episodes: list[Any], latency_ms: float, commit: bool, seed: int = 0
) -> tuple[Drive, dict[tuple[str, int], bool]]:
    """Drive `episodes` (`vla.eval.episodes.Episode`) in `env`, a TabletopEnv. Returns also (task, seed) -> success.

    ValueError for a policy of another robot; what `PolicyClient.infer` raises.
    """
    from vla.eval.episodes import episode_key
    from vla.eval.statistics import wilson_interval

    about = client.metadata
    if list(env.action_names) != about["action_names"] or list(env.state_names) != about["state_names"]:
        raise ValueError(
            f"expected a policy of the tabletop, with the actions {list(env.action_names)} and the state "
            f"{list(env.state_names)}, got {about['action_names']} and {about['state_names']}"
        )
    if commit and "rtc" not in about["supports"]:
        raise ValueError(
            f"expected a policy that can commit actions, got {about['checkpoint']}; train with actions=bins"
        )
    delay = delay_of(latency_ms, about["fps"])
    time = SimulatedTime(about["fps"], delay)
    age_s = (about["horizon"] + delay) / about["fps"]
    executor = Executor.of(
        client,
        hold,
        commit=commit,
        clock=time.clock,
        submit=time.submit,
        warm_up=0,
        first_delay=delay,
        max_age_s=age_s,
        stop_after_s=10 * age_s,
    )
    success, jumps = {}, []
    for episode in episodes:
        seen, info = env.reset(seed=episode.seed, options={"task": episode.task})
        time.steps += delay + 1  # what the last episode asked for is there by now, and dropped
        executor.reset()
        executor.seed, merged_before = episode_key(episode, seed), executor.counts["merged"]
        told, ended, last = str(info["instruction"]), False, None
        while not ended:
            observation = {f"observation/{camera}": seen["pixels"][camera] for camera in about["cameras"]}
            observation |= {"observation/state": np.asarray(seen["agent_pos"], np.float32), "prompt": told}
            merged = executor.counts["merged"]
            action = executor.step(observation)
            if last is not None and executor.counts["merged"] > merged > merged_before:
                jumps.append(float(np.abs(action - last)[:3].mean()))
            last = action
            seen, _, terminated, truncated, info = env.step(action)
            time.steps += 1
            ended = terminated or truncated
        if executor.stopped:
            raise RuntimeError(f"the executor stopped in {episode.task} seed {episode.seed}: {executor.stopped}")
        success[episode.task, episode.seed] = bool(info["is_success"])
    count, counts = sum(success.values()), executor.counts
    interval = wilson_interval(count, len(success))
    result = Drive(
        latency_ms=latency_ms,
        delay_steps=delay,
        commit=commit,
        successes=count,
        episodes=len(success),
        interval=interval,
        steps=counts["steps"],
        held=counts["held"],
        late=counts["late"],
        jump=float(np.mean(jumps)) if jumps else 0.0,
    )
    return result, success


@contextlib.contextmanager
def client_of(config: DriveConfig) -> Iterator[PolicyClient]:
    """A client of the server that `config` names, or of one in this process for as long as the block lasts."""
    from vla.serve.server import KEY_VARIABLE, PolicyServer, ServeConfig

    key = os.environ.get(KEY_VARIABLE)
    if config.host:
        with PolicyClient(config.host, config.port, key, timeout_s=30) as client:
            yield client
        return
    from vla.policy import Policy

    served = ServeConfig(config.policy, port=0, api_key=key, threads=config.threads, deadline_s=60)
    with (
        PolicyServer(Policy.load(config.policy), served).background() as port,
        PolicyClient("127.0.0.1", port, key, timeout_s=60) as client,
    ):
        yield client


def drive_all(config: DriveConfig) -> list[Drive]:
    """Every latency, committed and naive, on the same episodes; prints a table and, last, one line of JSON."""
    from vla.envs.registry import make_env, suites
    from vla.eval.episodes import episode_list
    from vla.eval.statistics import compare_paired

    tasks = suites("tabletop").get(config.suite)
    if tasks is None:
        raise ValueError(f"expected a suite out of {', '.join(suites('tabletop'))}, got '{config.suite}'")
    episodes = episode_list(tasks, config.episodes, config.first_seed)
    results = []
    with client_of(config) as client:
        about = client.metadata
        for latency in config.latency_ms:
            delay_of(latency, about["fps"])  # refuses before the first minute is spent
        env = make_env("tabletop", image_size=about["image_size"], cameras=tuple(about["cameras"]))
        try:
            print(f"{about['checkpoint']}, {config.suite}, {len(episodes)} episodes; success in % (95 %)")
            titles = ("committed", "naive", "difference", "steps an episode", "jump")
            print(f"{'latency':>8} {'steps':>5}  {' '.join(f'{x:<19}' for x in titles)}".rstrip())
            for latency in config.latency_ms:
                told, solved = drive(client, env, episodes, latency, True, config.seed)
                naive, solved_naively = drive(client, env, episodes, latency, False, config.seed)
                pair = compare_paired(solved_naively, solved)
                columns = [_rate(x.successes / x.episodes, x.interval) for x in (told, naive)]
                columns.append(_rate(pair.difference, pair.interval, "+"))
                columns.append(" ".join(f"{x.steps / x.episodes:6.1f}" for x in (told, naive)))
                columns.append(" ".join(f"{x.jump:6.3f}" for x in (told, naive)))
                print(f"{latency:>5g} ms {told.delay_steps:>5}  {' '.join(f'{x:<19}' for x in columns)}".rstrip())
                results += [told, naive]
        finally:
            env.close()
    rows = [vars(result) for result in results]
    print(json.dumps({"bench": "drive_tabletop", "checkpoint": about["checkpoint"], "rows": rows}))
    return results


def _rate(value: float, interval: tuple[float, float], sign: str = "") -> str:
    low, high = interval
    return f"{100 * value:{sign}.1f} ({100 * low:{sign}.1f}, {100 * high:{sign}.1f})"


def main() -> int:
    """The command. Returns the exit code: 2 for bad input or a server that is not there."""
    import tyro

    try:
        drive_all(tyro.cli(DriveConfig, prog="python -m vla.bench.drive_tabletop"))
    except (ValueError, OSError, PolicyError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
