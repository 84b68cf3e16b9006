# SPDX-License-Identifier: Apache-2.0
"""Meta-World as a gymnasium environment with the interface of the tabletop: all fifty tasks in one object."""

import zlib
from typing import Any

import gymnasium
import numpy as np

from vla.envs.episode_request import check_request
from vla.envs.metaworld.paraphrases import PARAPHRASES
from vla.envs.metaworld.pictures import MAX_SIZE, MIN_SIZE
from vla.envs.metaworld.tasks import MAX_STEPS, MT10, SENTENCES, check_task
from vla.envs.metaworld.world import World, borrow, give_back, leave
from vla.envs.perturbation import UNDISTURBED, VISUAL, check_perturbation, draw

CAMERA, OFFICIAL_CAMERA = "corner2_mt50", "corner2_mt50_official"
CAMERAS = (CAMERA, OFFICIAL_CAMERA)
"""The camera of lerobot/metaworld_mt50 (corner2, moved to (0.75, 0.075, 0.7), turned the right way up): without
multisampling and shadows, and with them as Meta-World draws. Two names, so that a checkpoint says what it has seen."""


class MetaWorldEnv(gymnasium.Env):
    """A Sawyer arm with a gripper, and one of fifty things to do with it; the task is told in words.

    Args:
        task: a name in `vla.envs.metaworld.tasks.SENTENCES`; `reset` may change it.
        image_size: side of the square pictures, pixels, 16 to 512.
        cameras: any of CAMERAS; none given: CAMERA, or OFFICIAL_CAMERA with `official_look`.
        render: False leaves "pixels" out of the observation (for use with state only; needs no OpenGL).
        official_look: short for cameras=("corner2_mt50_official",). ValueError if `cameras` say otherwise.
        perturbation: what is different about every episode, one of PERTURBATIONS; none: nothing. There are no held-out
            positions: the scripted experts are known to solve the task's own box of placements and nothing beyond it.

    Action: float32 (4,) in [-1, 1]: dx, dy, dz (1 = 1 cm of the target a step of 1/80 s), gripper (-1 open, +1 closed).
    Observation: {"pixels": {camera: uint8 (S, S, 3)}, "agent_pos": float32 (4,)}: hand x, y, z, m, and how open the
    gripper is, 0 to 1. Where objects and goals are can only be seen. Reward 1.0 on the step that ends with
    success, else 0.0; an episode ends at its first success, or after `MAX_STEPS`. ValueError for anything outside
    of this.

    Any number of these may live in one process, in one thread: they share an OpenGL context.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 80}  # noqa: RUF012 (gymnasium's own convention)
    render_mode = "rgb_array"
    fps = 80
    action_names = ("dx", "dy", "dz", "gripper")
    state_names = ("hand_x", "hand_y", "hand_z", "gripper")
    idle_action = (0.0, 0.0, 0.0, -1.0)
    """What changes nothing at the start of an episode: the gripper is open."""
    PERTURBATIONS: tuple[str, ...] = VISUAL

    def __init__(
        self,
        task: str = "reach-v3",
        image_size: int = 64,
        cameras: tuple[str, ...] | None = None,
        render: bool = True,
        official_look: bool = False,
        perturbation: str | None = None,
    ) -> None:
        self._perturbation = check_perturbation(perturbation, self.PERTURBATIONS, "Meta-World")
        self._disturbance = UNDISTURBED
        if cameras is None:
            cameras = (OFFICIAL_CAMERA if official_look else CAMERA,)
        unknown = [camera for camera in cameras if camera not in CAMERAS]
        if unknown or not cameras or isinstance(cameras, str):
            raise ValueError(f"expected a tuple of cameras out of {CAMERAS}, got {cameras!r}")
        if official_look and CAMERA in cameras:
            raise ValueError(f"expected no camera but {OFFICIAL_CAMERA!r} with official_look, got {cameras!r}")
        self.task = check_task(task)
        self.cameras = tuple(cameras)
        self.image_size = _check_size(image_size, "image_size")
        self.task_description = ""
        self._max_episode_steps = MAX_STEPS
        self._with_pixels = render
        self._world: World | None = None
        self._seed = self._steps = 0
        self._success = False
        spaces: dict[str, gymnasium.Space] = {
            "agent_pos": gymnasium.spaces.Box(
                np.array([-0.525, 0.348, -0.0525, 0.0], np.float32), np.array([0.525, 1.025, 0.7, 1.0], np.float32)
            )
        }
        if render:
            shape = (self.image_size, self.image_size, 3)
            spaces["pixels"] = gymnasium.spaces.Dict(
                {camera: gymnasium.spaces.Box(0, 255, shape, np.uint8) for camera in self.cameras}
            )
        self.observation_space = gymnasium.spaces.Dict(spaces)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (4,), np.float32)

    # ---- gymnasium -----------------------------------------------------------------------------------------

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start the episode that (task, seed) stands for.

        options: {"task": str} changes the task from now on; {"instruction": str} says something else than the
        task's own sentence for this episode (success still means the task). ValueError without a seed or for
        an unknown option or task.
        """
        seed, options = check_request(seed, options)
        task = check_task(options.get("task") or self.task)
        super().reset(seed=seed)
        if self._world is not None and self._world.task != task:
            give_back(self._world)
            self._world = None
        if self._world is None:
            self._world = borrow(task, self)
        self.task, self._seed = task, seed
        self.task_description = options.get("instruction") or SENTENCES[task]
        self._steps, self._success = 0, False
        self._world.begin(seed)
        self._disturbance = draw(self._perturbation, task, seed, self._world.table)
        return self._observe(), self._info()

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Act for 1/80 s. Values beyond [-1, 1] are clipped. ValueError for a wrong shape or NaN."""
        world = self._running()
        array = np.asarray(action, dtype=np.float32)
        if array.shape != (4,):
            raise ValueError(f"expected an action of shape (4,) for {self.action_names}, got shape {array.shape}")
        if not np.isfinite(array).all():
            raise ValueError(f"expected finite numbers in the action, got {array.tolist()}")
        if self._success or self._steps >= MAX_STEPS:
            raise ValueError(f"the episode ended after {self._steps} steps: call reset(seed=...) for another")
        self._success = world.step(np.clip(array, -1.0, 1.0))
        self._steps += 1
        truncated = not self._success and self._steps >= MAX_STEPS
        return self._observe(), float(self._success), self._success, truncated, self._info()

    def render(self) -> np.ndarray:
        """Return the first camera's picture, uint8 (image_size, image_size, 3)."""
        return self._draw(self.cameras[0], self.image_size)

    def close(self) -> None:
        """End the episode; with the last environment of the process, what they shared is freed. Safe to call twice."""
        if self._world is not None:
            give_back(self._world)
            self._world = None
        leave(self)

    # ---- beyond gymnasium ----------------------------------------------------------------------------------

    def render_at(self, size: int) -> np.ndarray:
        """Return the first camera's picture at another size (16 to 512), uint8 (size, size, 3)."""
        return self._draw(self.cameras[0], _check_size(size, "a size"))

    def expert_action(self) -> np.ndarray:
        """Return what Meta-World's scripted policy would do now, clipped, float32 (4,).

        It sees object and goal, and is a function of the present and the previous state only.
        """
        return self._running().expert_action()

    def alternative_instruction(self) -> str:
        """Return another task's sentence, drawn by (task, seed) from those of MT10, which most policies know.

        A policy that listens then does something else, and fails the task.
        """
        self._running()
        others = [SENTENCES[task] for task in MT10 if SENTENCES[task] != SENTENCES[self.task]]
        return others[np.random.default_rng([self._seed, zlib.crc32(self.task.encode()), 1]).integers(len(others))]

    def paraphrase(self) -> str:
        """Return another sentence that means the task's, drawn by (task, seed). It is no task's own."""
        self._running()
        known = PARAPHRASES[self.task]
        return known[np.random.default_rng([self._seed, zlib.crc32(self.task.encode()), 2]).integers(len(known))]

    # ---- inside --------------------------------------------------------------------------------------------

    def _running(self) -> World:
        if self._world is None:
            raise ValueError("no episode is running: call reset(seed=...) first")
        return self._world

    def _draw(self, camera: str, size: int) -> np.ndarray:
        return self._running().draw(size, camera == OFFICIAL_CAMERA, self._disturbance)

    def _observe(self) -> dict[str, Any]:
        obs: dict[str, Any] = {"agent_pos": self._running().observation[:4].astype(np.float32)}
        if self._with_pixels:
            obs["pixels"] = {camera: self._draw(camera, self.image_size) for camera in self.cameras}
        return obs

    def _info(self) -> dict[str, Any]:
        return {
            "is_success": self._success,
            "task": self.task,
            "instruction": self.task_description,
            "subtask": self._running().subtask(),
        }


def _check_size(size: int, name: str) -> int:
    if not MIN_SIZE <= size <= MAX_SIZE:
        raise ValueError(f"expected {name} from {MIN_SIZE} to {MAX_SIZE} pixels, got {size}")
    return int(size)
