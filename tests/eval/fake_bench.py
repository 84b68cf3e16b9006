# SPDX-License-Identifier: Apache-2.0
"""A world with the environments' API and no simulator: a dot that should reach a coloured square. Drawn by
numpy.

Its state goes on from step to step in float64, so that any difference in the actions shows in the pixels.
"""

import os
from typing import Any

import numpy as np

ENVS = {"dots": "fake_bench:DotEnv"}
PERTURBATIONS = {"dots": ("light",)}
COLOURS = {"red": (220, 30, 30), "blue": (30, 60, 220)}


def suites(env: str) -> dict[str, tuple[str, ...]]:
    return {"demo": ("touch", "circle"), "one": ("touch",)}


def make_env(env: str, **kwargs: Any) -> "DotEnv":
    return DotEnv(**kwargs)


class DotEnv:
    action_names = ("dx", "dy", "dz", "gripper")
    state_names = ("x", "y")
    fps = 20
    _max_episode_steps = 24

    def __init__(self, task="touch", image_size=16, cameras=("front",), render=True, perturbation=None):
        self.task, self.image_size, self.cameras, self.with_pixels = task, image_size, cameras, render
        self.background = 90 if perturbation == "light" else 235

    def reset(self, *, seed: int, options: dict[str, str] | None = None):
        self.task = (options or {}).get("task", self.task)
        if self.task == "touch" and seed == int(os.environ.get("DOTS_FAIL_AT", -1)):
            raise RuntimeError("the dot fell off")
        generator = np.random.Generator(np.random.Philox(key=seed, counter=len(self.task)))
        self.hand = generator.uniform(-0.5, 0.5, 2)
        self.goals = {name: generator.uniform(-0.9, 0.9, 2) for name in COLOURS}
        self.target = str(generator.choice(list(COLOURS)))
        self.task_description = f"{self.task} the {self.target} square"
        self.steps = self.held = 0
        return self._observation(), self._info()

    def alternative_instruction(self) -> str:
        other = next(name for name in COLOURS if name != self.target)
        return f"{self.task} the {other} square"

    def paraphrase(self) -> str:
        return f"{self.task} what is {self.target}"

    def _info(self):
        return {
            "is_success": self.held >= 2,
            "task": self.task,
            "instruction": self.task_description,
            "subtask": "",
        }

    def _observation(self):
        pixels = {camera: self.render() for camera in self.cameras} if self.with_pixels else {}
        return {"pixels": pixels, "agent_pos": self.hand.astype(np.float32)}

    def step(self, action):
        action = np.clip(action, -1, 1).astype(np.float64)
        self.hand = np.clip(self.hand + 0.1 * action[:2] + 0.001 * np.sin(37 * action.sum()), -1, 1)
        self.steps += 1
        self.held = self.held + 1 if np.abs(self.hand - self.goals[self.target]).max() < 0.12 else 0
        truncated = self.steps >= self._max_episode_steps
        return self._observation(), 0.0, self._info()["is_success"], truncated, self._info()

    def expert_action(self):
        delta = np.clip((self.goals[self.target] - self.hand) / 0.1, -1, 1)
        return np.array([*delta, 0, 0], dtype=np.float32)

    def render(self):
        return self.render_at(self.image_size)

    def render_at(self, size: int):
        image = np.full((size, size, 3), self.background, dtype=np.uint8)
        for name, centre in [*self.goals.items(), ("hand", self.hand)]:
            x, y = ((centre + 1) / 2 * (size - 1)).astype(int)
            half = max(1, size // 16)
            image[max(0, y - half) : y + half + 1, max(0, x - half) : x + half + 1] = COLOURS.get(name, (20, 20, 20))
        return image

    def close(self):
        pass
