# SPDX-License-Identifier: Apache-2.0
"""The tabletop as a robot of LeRobot's, to rehearse `lerobot-rollout` without hardware: `--robot.type=tabletop`.

    lerobot-rollout --policy.path=... --robot.type=tabletop --task="reach the red block" --fps=10 --duration=30 \\
        --inference.type=rtc --return_to_initial_position=false

One step of the simulator an action, whenever it comes. When an episode ends, the next scene for the same sentence
follows. (LeRobot finds the robot of a configuration by the module's name: hence no underscore in it.)
"""

import json
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from lerobot.robots import Robot
from lerobot.robots.config import RobotConfig

from vla.envs import registry

SCENES = 2_000
"""How many seeds are looked through for a scene in which the sentence is said."""


@RobotConfig.register_subclass("tabletop")
@dataclass(kw_only=True)
class TabletopRobotConfig(RobotConfig):
    """A simulated hand over a table."""

    task: str = "reach"
    """Of the tabletop."""
    instruction: str = "reach the red block"
    """Only scenes that are described by this sentence are set up. Give `lerobot-rollout --task` the same."""
    seed: int = 1000
    """From which on scenes are looked for."""
    image_size: int = 64
    """Side of the pictures, pixels."""
    outcome: Path | None = None
    """File for what happened, JSON: {"episodes", "successes", "actions", "longest_gap_s"}."""


class TabletopRobot(Robot):
    """See the module. ValueError from `connect` if there is no scene for the sentence."""

    config_class = TabletopRobotConfig  # type: ignore[assignment]
    name = "tabletop"  # type: ignore[assignment]

    def __init__(self, config: TabletopRobotConfig) -> None:
        super().__init__(config)
        self.config = config
        self.cameras = registry.CAMERAS["tabletop"]
        self._env: Any = None
        self._observation: dict[str, Any] = {}
        self._seed = config.seed
        self._episodes = self._successes = self._actions = 0
        self._last = self._gap = 0.0

    # --- what LeRobot asks ----------------------------------------------------------------------------------------
    @cached_property
    def observation_features(self) -> dict[str, Any]:
        from vla.envs.tabletop import TabletopEnv

        size = self.config.image_size
        state = {f"{name}.pos": float for name in TabletopEnv.state_names}
        return {**state, **dict.fromkeys(self.cameras, (size, size, 3))}

    @cached_property
    def action_features(self) -> dict[str, Any]:
        from vla.envs.tabletop import TabletopEnv

        return {f"{name}.pos": float for name in TabletopEnv.action_names}

    @property
    def is_connected(self) -> bool:
        return self._env is not None

    @property
    def is_calibrated(self) -> bool:
        return True

    def calibrate(self) -> None:
        """There is nothing to calibrate."""

    def configure(self) -> None:
        """There is nothing to configure."""

    def connect(self, calibrate: bool = True) -> None:
        size = self.config.image_size
        self._env = registry.make_env("tabletop", task=self.config.task, image_size=size, cameras=self.cameras)
        self._next_scene()

    def get_observation(self) -> dict[str, Any]:
        state = dict(zip(self.observation_features, map(float, self._observation["agent_pos"]), strict=False))
        return {**state, **{camera: self._observation["pixels"][camera] for camera in self.cameras}}

    def send_action(self, action: dict[str, Any]) -> dict[str, Any]:
        now = time.perf_counter()
        self._gap = max(self._gap, now - self._last if self._last else 0.0)
        self._last, self._actions = now, self._actions + 1
        values = np.array([float(action[name]) for name in self.action_features], np.float32)
        executed = np.clip(values, self._env.action_space.low, self._env.action_space.high)
        self._observation, _, terminated, truncated, info = self._env.step(executed)
        if terminated or truncated:
            self._episodes, self._successes = self._episodes + 1, self._successes + bool(info["is_success"])
            self._next_scene()
        return dict(zip(self.action_features, map(float, executed), strict=True))

    def disconnect(self) -> None:
        self._env.close()
        self._env = None
        happened = {
            "episodes": self._episodes,
            "successes": self._successes,
            "actions": self._actions,
            "longest_gap_s": round(self._gap, 4),
        }
        if self.config.outcome is not None:
            self.config.outcome.write_text(json.dumps(happened))

    # --- inside -----------------------------------------------------------------------------------------------------
    def _next_scene(self) -> None:
        for seed in range(self._seed, self._seed + SCENES):
            self._observation, _ = self._env.reset(seed=seed)
            if self._env.task_description == self.config.instruction:
                self._seed = seed + 1
                return
        raise ValueError(
            f"the task '{self.config.task}' does not say '{self.config.instruction}' in {SCENES} scenes; it says, "
            f"for example, '{self._env.task_description}'"
        )
