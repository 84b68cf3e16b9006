# SPDX-License-Identifier: Apache-2.0
"""The tabletop as a gymnasium environment: hand displacements in, pixels and hand state out.

One model serves every task and every seed: `reset` writes colours, zones and poses into it, so switching the
task costs nothing and an episode never depends on what ran before it.
"""

from typing import Any

import gymnasium
import numpy as np

from vla.envs.disturb import disturb
from vla.envs.episode_request import check_request
from vla.envs.offscreen import close_at_exit, mujoco, no_renderer
from vla.envs.perturbation import UNDISTURBED, VISUAL, check_perturbation, draw
from vla.envs.tabletop.clutter import table
from vla.envs.tabletop.experts import EXPERTS, STEP
from vla.envs.tabletop.paraphrases import paraphrase
from vla.envs.tabletop.scene import (
    COLOURS,
    MAX_OPENING,
    N_BLOCKS,
    N_ZONES,
    PARKED,
    WALL_HALF,
    WORKSPACE,
    tabletop_xml,
)
from vla.envs.tabletop.tasks import Episode, State, get_template, sample_episode

CAMERAS = ("front", "wrist")
GLIDES = 5
"""In how many pieces the target moves within a step: a jump would hit blocks instead of pushing them."""
SUBSTEPS = 4
"""Simulator steps (of 5 ms) a piece."""
LEASH = 0.06
"""The target stays this close to the hand, m: pushing against something does not wind it up."""
_PALM = 0.03
"""A hand that passes the wall's end by less than this, m, has half of its palm above the wall: it went over it."""
_HAND, _FINGERS, _BLOCKS = 0, 7, 9  # offsets in qpos
_TARGET, _SHADE, _WALL = 0, 1, 2
"""Mocap bodies: what the hand is pulled to; a dark patch on the table below it, in place of a shadow map; the wall."""


class TabletopEnv(gymnasium.Env):
    """A floating two-finger hand over a table with four coloured blocks; the task is told in words.

    Args:
        task: a name in `vla.envs.tabletop.tasks.TASKS`; `reset` may change it.
        image_size: side of the square pictures, pixels, 16 to 512.
        cameras: any of "front", "wrist".
        render: False leaves "pixels" out of the observation (for use with state only; needs no OpenGL).
        perturbation: what is different about every episode, one of PERTURBATIONS; none: nothing.

    Action: float32 (4,) in [-1, 1]: dx, dy, dz (1 = 4 cm a step of 0.1 s), gripper (-1 open, +1 closed).
    Observation: {"pixels": {camera: uint8 (S, S, 3)}, "agent_pos": float32 (4,)}: hand x, y, z and gap
    between the fingers, m. Reward 1.0 on the step that ends with success, else 0.0. ValueError for anything
    outside of this.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012 (gymnasium's own convention)
    render_mode = "rgb_array"
    fps = 10
    action_names = ("dx", "dy", "dz", "gripper")
    state_names: tuple[str, ...] = ("hand_x", "hand_y", "hand_z", "gripper")
    idle_action = (0.0, 0.0, 0.0, 1.0)
    """What changes nothing at the start of an episode: the hand is closed."""
    PERTURBATIONS: tuple[str, ...] = (*VISUAL, "held-out-positions")

    def __init__(
        self,
        task: str = "reach",
        image_size: int = 64,
        cameras: tuple[str, ...] = ("front",),
        render: bool = True,
        perturbation: str | None = None,
    ) -> None:
        get_template(task)
        self._perturbation = check_perturbation(perturbation, self.PERTURBATIONS, "this environment")
        self._disturbance = UNDISTURBED
        if not 16 <= image_size <= 512:
            raise ValueError(f"expected image_size from 16 to 512 pixels, got {image_size}")
        unknown = [camera for camera in cameras if camera not in CAMERAS]
        if unknown or not cameras or isinstance(cameras, str):
            raise ValueError(f"expected a tuple of cameras out of {CAMERAS}, got {cameras!r}")
        self.task = task
        self.cameras = tuple(cameras)
        self._film_camera = self.cameras[0]
        self.image_size = int(image_size)
        self.task_description = ""
        self._max_episode_steps = get_template(task).max_steps
        self._with_pixels = render
        self._model = mujoco.MjModel.from_xml_string(tabletop_xml())
        self._data = mujoco.MjData(self._model)
        geom = mujoco.mjtObj.mjOBJ_GEOM
        self._block_geoms = [mujoco.mj_name2id(self._model, geom, f"block{i}") for i in range(N_BLOCKS)]
        self._zone_geoms = [mujoco.mj_name2id(self._model, geom, f"zone{i}") for i in range(N_ZONES)]
        self._renderers: dict[int, mujoco.Renderer] = {}
        self._episode: Episode | None = None
        self._template = get_template(task)
        self._expert = EXPERTS[task]
        self._steps = self._held = 0
        self._route = ""
        self._state: State | None = None
        self._advice: tuple[tuple[float, float, float, float], str] | None = None
        limits = np.array(WORKSPACE, dtype=np.float32)
        spaces: dict[str, gymnasium.Space] = {
            "agent_pos": gymnasium.spaces.Box(
                np.append(limits[:, 0] - 0.1, -0.02).astype(np.float32),
                np.append(limits[:, 1] + 0.1, MAX_OPENING + 0.02).astype(np.float32),
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
        task = options.get("task") or self.task
        template = get_template(task)
        super().reset(seed=seed)
        self.task, self._template, self._expert = task, template, EXPERTS[task]
        self._max_episode_steps = template.max_steps
        episode = self._episode = sample_episode(task, seed, held_out=self._perturbation == "held-out-positions")
        self._disturbance = draw(self._perturbation, task, seed, lambda: table(episode))
        self.task_description = options.get("instruction") or episode.instruction
        self._steps = self._held = 0
        self._route = ""
        self._write_scene(episode)
        self._read_state()
        return self._observe(), self._info()

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Act for 0.1 s. Values beyond [-1, 1] are clipped. ValueError for a wrong shape or NaN."""
        values = self._check_action(action)
        data = self._data
        target = data.mocap_pos[_TARGET]
        pieces, hand = [], self.state.hand
        for axis, (low, high) in enumerate(WORKSPACE):
            here, start = hand[axis], float(target[axis])
            wanted = start + STEP * values[axis]
            wanted = min(max(wanted, here - LEASH), here + LEASH)
            pieces.append((min(max(wanted, low), high) - start) / GLIDES)
        data.ctrl[:] = (1.0 - values[3]) * (MAX_OPENING / 4)
        for _ in range(GLIDES):
            target += pieces
            mujoco.mj_step(self._model, data, nstep=SUBSTEPS)
        # mj_step leaves body poses one substep behind qpos; bring them up so that the picture and the state
        # are of one instant.
        data.mocap_pos[_SHADE, :2] = data.qpos[_HAND : _HAND + 2]
        mujoco.mj_kinematics(self._model, data)
        mujoco.mj_camlight(self._model, data)
        self._read_state()
        self._steps += 1
        self._follow(hand)
        done_now = self._route != "over" and self._template.success(self.state, self.episode, self.episode.goal)
        self._held = self._held + 1 if done_now else 0
        terminated = self._held >= self._template.hold
        truncated = not terminated and self._steps >= self._max_episode_steps
        return self._observe(), float(terminated), terminated, truncated, self._info()

    def render(self) -> np.ndarray:
        """Return the first camera's picture, uint8 (image_size, image_size, 3)."""
        return self._draw(self._film_camera, self.image_size)

    def close(self) -> None:
        """Free the OpenGL contexts. Safe to call twice."""
        while self._renderers:
            _, renderer = self._renderers.popitem()
            renderer.close()

    # ---- beyond gymnasium ----------------------------------------------------------------------------------

    def render_at(self, size: int) -> np.ndarray:
        """Return the first camera's picture at another size (16 to 512), uint8 (size, size, 3)."""
        if not 16 <= size <= 512:
            raise ValueError(f"expected a size from 16 to 512 pixels, got {size}")
        return self._draw(self._film_camera, int(size))

    @property
    def episode(self) -> Episode:
        """What this episode was made of. ValueError before the first reset."""
        return self._running()

    @property
    def state(self) -> State:
        """The present state as experts and success see it. ValueError before the first reset."""
        self._running()
        assert self._state is not None
        return self._state

    @property
    def route(self) -> str:
        """By which end of the wall the hand got behind it, the last time: "left" or "right"; "" so far, or without a
        wall; "over" from when it has crossed the wall itself, which is a failure."""
        return self._route

    def expert_action(self) -> np.ndarray:
        """Return what the expert would do now, float32 (4,): a function of the present state only."""
        return np.array(self._advise()[0], dtype=np.float32)

    def alternative_instruction(self) -> str:
        """Return this episode's sentence with another referent of the same scene.

        A policy that listens then does something else, and fails the task.
        """
        return self._running().alternative

    def paraphrase(self) -> str:
        """Return another sentence that means this episode's, in words that training does not use for it."""
        return paraphrase(self._running())

    # ---- inside --------------------------------------------------------------------------------------------

    def _running(self) -> Episode:
        if self._episode is None:
            raise ValueError("no episode is running: call reset(seed=...) first")
        return self._episode

    def _check_action(self, action: np.ndarray) -> list[float]:
        self._running()
        array = np.asarray(action)
        if array.shape != (4,):
            raise ValueError(f"expected an action of shape (4,) for {self.action_names}, got shape {array.shape}")
        values = [float(v) for v in array.tolist()]
        if not all(-1e9 < v < 1e9 for v in values):
            raise ValueError(f"expected finite numbers in the action, got {values}")
        return [min(max(v, -1.0), 1.0) for v in values]

    def _write_scene(self, episode: Episode) -> None:
        model, data = self._model, self._data
        mujoco.mj_resetData(model, data)
        for i, geom in enumerate(self._block_geoms):
            model.geom_rgba[geom, :3] = COLOURS[episode.colours[i]]
        for i, geom in enumerate(self._zone_geoms):
            # Zones are a little paler than blocks: the same name, but a block never vanishes against a zone.
            model.geom_rgba[geom, :3] = [0.78 * c + 0.16 for c in COLOURS[episode.zone_colours[i]]]
            model.geom_pos[geom] = (*episode.zones[i], 0.0008) if episode.zones else PARKED
        if episode.wall is not None:
            data.mocap_pos[_WALL] = (*episode.wall, WALL_HALF[2])
        data.qpos[_HAND : _HAND + 3] = data.mocap_pos[_TARGET] = episode.start.hand
        data.mocap_pos[_SHADE, :2] = episode.start.hand[:2]
        data.qpos[_FINGERS : _FINGERS + 2] = 0.0
        for i, (position, yaw) in enumerate(zip(episode.start.blocks, episode.yaws, strict=True)):
            at = _BLOCKS + 7 * i
            data.qpos[at : at + 3] = position
            data.qpos[at + 3 : at + 7] = (np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2))
        # Everything derived from the poses is computed before the first picture, which would else show the
        # previous scene.
        mujoco.mj_forward(model, data)

    def _read_state(self) -> None:
        q = self._data.qpos.tolist()
        blocks = tuple((q[i], q[i + 1], q[i + 2]) for i in range(_BLOCKS, _BLOCKS + 7 * N_BLOCKS, 7))
        self._state = State((q[0], q[1], q[2]), q[_FINGERS] + q[_FINGERS + 1], blocks)
        self._advice = None

    def _follow(self, before: tuple[float, float, float]) -> None:
        """Keep account of the hand's way around the wall, in the step that began with the hand at `before`."""
        wall, hand = self.episode.wall, self.state.hand
        if wall is None or self._route == "over" or (before[1] > wall[1]) == (hand[1] > wall[1]):
            return
        share = (wall[1] - before[1]) / (hand[1] - before[1])
        off = before[0] + share * (hand[0] - before[0]) - wall[0]
        if abs(off) < WALL_HALF[0] + _PALM:
            self._route = "over"
        elif hand[1] > wall[1]:
            self._route = "left" if off < 0 else "right"

    def _advise(self) -> tuple[tuple[float, float, float, float], str]:
        if self._advice is None:
            episode = self._running()
            self._advice = self._expert(self.state, episode, episode.goal)
        return self._advice

    def _agent_pos(self) -> tuple[float, ...]:
        """The numbers that `state_names` names."""
        return (*self.state.hand, self.state.opening)

    def _observe(self) -> dict[str, Any]:
        obs: dict[str, Any] = {"agent_pos": np.array(self._agent_pos(), dtype=np.float32)}
        if self._with_pixels:
            obs["pixels"] = {camera: self._draw(camera, self.image_size) for camera in self.cameras}
        return obs

    def _info(self) -> dict[str, Any]:
        return {
            "is_success": self._held >= self._template.hold,
            "task": self.task,
            "instruction": self.task_description,
            "subtask": self._advise()[1],
        }

    def _draw(self, camera: str, size: int) -> np.ndarray:
        self._running()
        renderer = self._renderers.get(size)
        if renderer is None:
            renderer = self._renderers[size] = self._open_renderer(size)
        renderer.update_scene(self._data, camera=camera)
        disturb(renderer.scene, self._disturbance)
        return renderer.render()

    def _open_renderer(self, size: int) -> "mujoco.Renderer":
        try:
            renderer = mujoco.Renderer(self._model, size, size)
        except Exception as error:
            raise no_renderer(error) from error
        for flag in (
            mujoco.mjtRndFlag.mjRND_SHADOW,
            mujoco.mjtRndFlag.mjRND_REFLECTION,
            mujoco.mjtRndFlag.mjRND_SKYBOX,
        ):
            renderer.scene.flags[flag] = 0
        close_at_exit(self)
        return renderer
