# SPDX-License-Identifier: Apache-2.0
"""One Meta-World task in the simulator, as good as new before every episode; and the few of them that are kept.

Meta-World has a model of its own for each task, tens of megabytes that take a tenth of a second to compile. So worlds
are shared: an environment borrows the one of its task, and gives it back when it is asked for another task.
"""

import copy
import pickle
import warnings
import weakref
import zlib
from typing import Any

import numpy as np

from vla.envs.metaworld.pictures import View
from vla.envs.metaworld.subtasks import subtask
from vla.envs.offscreen import mujoco  # first, so that it is imported as an off-screen renderer needs it
from vla.envs.perturbation import UNDISTURBED, Disturbance, Rectangle, Table

# isort: split
from metaworld.env_dict import ALL_V3_ENVIRONMENTS
from metaworld.policies import ENV_POLICY_MAP
from metaworld.types import Task

_CAMERA, _CAMERA_POSITION = "corner2", (0.75, 0.075, 0.7)
"""Where lerobot/metaworld_mt50 was filmed from, m; the camera hangs upside down there."""
_NOT_STATE = ("model", "data", "mujoco_renderer")
_TOP: Rectangle = (-0.5, 0.52, 0.3, 0.9)
"""What the camera sees of the table's top, m."""
_TABLE, _FURNITURE = ("tablelink", ""), ("world", "base", "mocap", "RetainingWall")
"""Bodies that belong to no task: a table (one with a hole has a part without a name), the robot, the walls around."""


class World:
    """The simulation of one task. `seed` decides the placement of an episode, and nothing before it matters.

    Placements are drawn by Meta-World's own rule for the task (uniform in a box, some pairs refused), from a generator
    of (task, seed).
    """

    def __init__(self, task: str) -> None:
        self.task = task
        self._sim = ALL_V3_ENVIRONMENTS[task]()
        self._policy = ENV_POLICY_MAP[task]()
        self._views: dict[bool, View] = {}
        self._camera = mujoco.mj_name2id(self._sim.model, mujoco.mjtObj.mjOBJ_CAMERA, _CAMERA)
        self._sim.model.cam_pos[self._camera] = _CAMERA_POSITION
        # What resetting and stepping change besides the simulator's state: attributes, and where things are fixed.
        self._attributes = copy.deepcopy({k: v for k, v in vars(self._sim).items() if k not in _NOT_STATE})
        self._places = self._sim.model.body_pos.copy(), self._sim.model.site_pos.copy()
        self.observation = np.zeros(39)
        """The simulator's full observation, of now; only the expert may look at all of it."""
        self._wanted: np.ndarray | None = None

    def begin(self, seed: int) -> None:
        """Start the episode (task, seed)."""
        sim = self._sim
        self._renew()
        sim.np_random = np.random.default_rng([seed, zlib.crc32(self.task.encode())])
        sim._freeze_rand_vec, sim.seeded_rand_vec = False, True
        sim.reset_model()  # draws until the task accepts
        placement = sim._last_rand_vec.copy()
        self._renew()
        # An observable goal, for the expert: through set_task, which adapts the limits that observations are cut to.
        about = {"env_cls": type(sim), "rand_vec": placement, "partially_observable": False}
        sim.set_task(Task(self.task, pickle.dumps(about)))
        sim.reset()
        # Bring every pose up to date with what the reset wrote, before anything is seen; then observe twice, because an
        # observation repeats the one before it.
        mujoco.mj_forward(sim.model, sim.data)
        sim._get_obs()
        self.observation, self._wanted = sim._get_obs(), None

    def step(self, action: np.ndarray) -> bool:
        """Act for 1/80 s, float32 (4,) within [-1, 1]. Returns whether the task is done now."""
        self.observation, _, _, _, info = self._sim.step(action)
        self._wanted = None
        return bool(info["success"])

    def expert_action(self) -> np.ndarray:
        """What Meta-World's scripted policy would do now, clipped, float32 (4,): a function of the observation."""
        return np.clip(self._advise(), -1.0, 1.0).astype(np.float32)

    def subtask(self) -> str:
        """What the scripted policy is doing now, a few words, never empty: a function of the observation."""
        return subtask(self.task, self.observation, self._advise())

    def _advise(self) -> np.ndarray:
        """What the scripted policy wants now, not clipped, (4,); asked once a state."""
        if self._wanted is None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that it wants more than the limits
                # A copy: the policies for doors write into what they are given.
                self._wanted = self._policy.get_action(self.observation.copy())
        return self._wanted

    def draw(self, size: int, official: bool, disturbance: Disturbance = UNDISTURBED) -> np.ndarray:
        """The picture of now, the right way up, uint8 (size, size, 3). RuntimeError if there is no OpenGL."""
        if official not in self._views:
            self._views[official] = View(self._sim.model, self._camera, official)
        image_HWC = self._views[official].draw(self._sim.data, size, disturbance)
        return np.ascontiguousarray(image_HWC[::-1, ::-1])

    def table(self) -> Table:
        """Where there is room at the start: off the task's things, the goal, what lies between them and the hand."""
        model, data = self._sim.model, self._sim.data
        turned = np.abs(data.geom_xmat.reshape(-1, 3, 3))
        centre = data.geom_xpos + np.einsum("gij,gj->gi", data.geom_xmat.reshape(-1, 3, 3), model.geom_aabb[:, :3])
        half = np.einsum("gij,gj->gi", turned, model.geom_aabb[:, 3:])
        names = [model.body(model.body_rootid[body]).name for body in model.geom_bodyid]
        things = np.array([name not in (*_TABLE, *_FURNITURE) for name in names])
        points = [self.observation[:3], self._sim.obj_init_pos, self._sim._target_pos]
        low = np.array([*(p - 0.1 for p in points), *(centre - half)[things]]).min(0)
        high = np.array([*(p + 0.1 for p in points), *(centre + half)[things]]).max(0)
        height = max(float(top) for name, top in zip(names, (centre + half)[:, 2], strict=True) if name in _TABLE)
        return Table(_TOP, height, ((float(low[0]), float(high[0]), float(low[1]), float(high[1])),))

    def close(self) -> None:
        """Free the pictures' memory. Safe to call twice."""
        while self._views:
            self._views.popitem()[1].close()
        self._sim.close()

    def _renew(self) -> None:
        """Make the simulation what it was when it was made."""
        sim = self._sim
        for name in set(vars(sim)) - set(self._attributes) - set(_NOT_STATE):
            delattr(sim, name)
        vars(sim).update(copy.deepcopy(self._attributes))
        sim.model.body_pos[:], sim.model.site_pos[:] = self._places
        mujoco.mj_resetData(sim.model, sim.data)


MAX_IDLE = 12
"""How many worlds that nobody uses are kept in a process, about 100 MB each: enough for the ten tasks of MT10. With
more tasks in turn, a change of task costs 0.2 s."""
_idle: list[World] = []  # the longest unused first
_users: "weakref.WeakSet[Any]" = weakref.WeakSet()


def borrow(task: str, user: Any) -> World:
    """The world of a task, for `user` alone until it is given back."""
    _users.add(user)
    for i in reversed(range(len(_idle))):
        if _idle[i].task == task:
            return _idle.pop(i)
    return World(task)


def give_back(world: World) -> None:
    """Keep a world for whoever wants it next."""
    _idle.append(world)
    while len(_idle) > MAX_IDLE:
        _idle.pop(0).close()


def leave(user: Any) -> None:
    """`user` wants no more worlds; when nobody does, none are kept."""
    _users.discard(user)
    while _idle and not _users:
        _idle.pop().close()
