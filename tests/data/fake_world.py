# SPDX-License-Identifier: Apache-2.0
"""A world of coloured squares with the tabletop's interface, drawn by numpy: a hand goes to a block."""

import os
import time

import numpy as np

ENVS = {"squares": "fake_world:Squares", "silent": "fake_world:Squares"}
COLOURS = {"red": (230, 20, 20), "green": (20, 200, 20), "blue": (30, 30, 230)}
TASKS = ("reach", "touch", "fail", "nan", "mute")


def suites(env):
    return {"both": ("reach", "touch"), "fail": ("fail",), "nan": ("reach", "nan"), "mute": ("mute",)}


def make_env(env, **kwargs):
    return Squares(**kwargs, speaks=env != "silent")


class Squares:
    fps = 10
    action_names = ("dx", "dy", "gripper")
    state_names = ("x", "y")
    _max_episode_steps = 20

    def __init__(self, task="reach", image_size=32, cameras=("front",), speaks=True):
        self.speaks = speaks
        self.task, self.image_size, self.cameras = task, image_size, tuple(cameras)
        self.canvas = {camera: np.zeros((image_size, image_size, 3), np.uint8) for camera in cameras}
        self.delay = float(os.environ.get("FAKE_WORLD_DELAY", 0))

    def reset(self, *, seed, options=None):
        self.task = (options or {}).get("task", self.task)
        rng = np.random.default_rng([seed, TASKS.index(self.task)])
        self.hand, self.block = rng.uniform(0.1, 0.9, 2), rng.uniform(0.1, 0.9, 2)
        self.colour = list(COLOURS)[rng.integers(3)]
        # "touch" fails in about one scene in five
        self.hopeless = self.task == "fail" or (self.task == "touch" and rng.random() < 0.2)
        self.steps = self.held = 0
        return self.observe(), self.info()

    def expert_action(self):
        move = np.clip((self.block - self.hand) / 0.1, -1, 1)
        if self.task == "nan" and self.steps == 3:
            move[1] = np.nan
        return np.array([*move, -1.0], np.float32)

    def step(self, action):
        if self.delay:
            time.sleep(self.delay)
        self.hand = np.clip(self.hand + 0.1 * action[:2], 0, 1)
        self.steps += 1
        self.held = self.held + 1 if self.near() and not self.hopeless else 0
        done = self.held >= 2
        return self.observe(), float(done), done, self.steps >= self._max_episode_steps, self.info()

    def near(self):
        return np.abs(self.hand - self.block).max() < 0.06

    def info(self):
        instruction = "" if self.task == "mute" else f"{self.task} the {self.colour} one"
        info = {"is_success": self.held >= 2, "task": self.task, "instruction": instruction}
        aside = np.abs(self.hand - self.block)[0] > 0.1
        go = "go sideways" if aside else f"go to the {self.colour} one"
        return info | {"subtask": "hold still" if self.near() else go} if self.speaks else info

    def observe(self):
        # Always the same arrays, as a renderer with a buffer would return them.
        size = self.image_size
        for camera, canvas in self.canvas.items():
            canvas[:] = 120 if camera == "front" else 60
            for place, colour in ((self.block, COLOURS[self.colour]), (self.hand, (0, 0, 0))):
                x, y = (place * (size - 6)).astype(int)
                canvas[y : y + 6, x : x + 6] = colour
        return {"pixels": self.canvas, "agent_pos": self.hand.astype(np.float32)}

    def close(self):
        pass
