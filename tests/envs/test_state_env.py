# SPDX-License-Identifier: Apache-2.0
"""The tabletop without pixels: the state holds all that the expert looks at, the rest is the tabletop's."""

import subprocess
import sys

import numpy as np
import pytest

from vla.envs import make_env, suites
from vla.envs.tabletop.experts import EXPERTS
from vla.envs.tabletop.state_env import TabletopStateEnv
from vla.envs.tabletop.tasks import DIRECTIONS, TASKS, Goal, State


@pytest.fixture(scope="module")
def env():
    made = make_env("tabletop_state")
    yield made
    made.close()


@pytest.fixture(scope="module")
def tabletop():
    made = make_env("tabletop", render=False)
    yield made
    made.close()


def named(observation: dict, *names: str) -> np.ndarray:
    return observation["agent_pos"][[TabletopStateEnv.state_names.index(name) for name in names]]


@pytest.mark.parametrize("task", TASKS)
def test_the_expert_is_a_function_of_task_and_state(env, tabletop, task):
    """Its action, recomputed from agent_pos alone, all along an episode that is the tabletop's own."""
    observation, info = env.reset(seed=1003, options={"task": task})
    same, same_info = tabletop.reset(seed=1003, options={"task": task})
    assert info == same_info
    done = False
    while not done:
        assert env.observation_space.contains(observation) and observation["agent_pos"].shape == (29,)
        np.testing.assert_array_equal(observation["agent_pos"][:4], same["agent_pos"])
        action = env.expert_action()
        side = env.episode.goal.word if env.episode.wall else ""  # nobody is told
        np.testing.assert_allclose(expert_from(task, observation["agent_pos"], side), action, atol=2e-4)
        observation, _, terminated, truncated, info = env.step(action)
        same, *_ = tabletop.step(action)
        done = terminated or truncated
    assert info["is_success"]


def expert_from(task: str, agent_pos: np.ndarray, side: str) -> np.ndarray:
    values = agent_pos.astype(float)
    blocks = [tuple(row) for row in values[17:].reshape(4, 3)]
    slots = tuple(blocks.index(tuple(row)) for row in values[4:13].reshape(3, 3) if row.any())
    word = next((word for word, direction in DIRECTIONS.items() if direction == tuple(values[15:17])), side)

    class Scene:
        zones = (tuple(values[13:15]),)
        wall = tuple(values[13:15])
        colours = zone_colours = ("",) * 4  # only words

    state = State(tuple(values[:3]), values[3], tuple(blocks))
    return np.array(EXPERTS[task](state, Scene, Goal(slots, 0, word))[0], np.float32)


def test_absent_things_are_zeros(env):
    observation, _ = env.reset(seed=1, options={"task": "reach"})
    block = env.state.blocks[env.episode.goal.blocks[0]]
    np.testing.assert_allclose(observation["agent_pos"][4:17], [*block, *[0] * 10], rtol=1e-6)
    observation, _ = env.reset(seed=1, options={"task": "push-left"})
    assert named(observation, "direction_x", "direction_y").tolist() == [-1, 0]
    observation, _ = env.reset(seed=1, options={"task": "place-in-zone"})
    zone = env.episode.zones[env.episode.goal.zone]
    np.testing.assert_allclose(named(observation, "zone_x", "zone_y"), zone, rtol=1e-6)
    observation, _ = env.reset(seed=1, options={"task": "reach-extreme"})
    assert not named(observation, "direction_x", "direction_y").any()
    observation, _ = env.reset(seed=1, options={"task": "reach-around"})
    assert not named(observation, "direction_x", "direction_y").any()
    np.testing.assert_allclose(named(observation, "zone_x", "zone_y"), env.episode.wall, rtol=1e-6)


def test_it_has_no_cameras_and_the_suites_of_the_tabletop(env):
    assert env.cameras == () and len(set(env.state_names)) == 29
    assert suites("tabletop_state") == suites("tabletop")
    with pytest.raises(ValueError, match=r"no cameras.*got \('front',\)"):
        make_env("tabletop_state", cameras=("front",))


@pytest.mark.render
def test_it_can_be_filmed(env):
    env.reset(seed=1)
    assert env.render().shape == (64, 64, 3) and env.render_at(96).shape == (96, 96, 3)


def test_physics_needs_no_opengl():
    """Where nothing can draw, everything works but drawing, which says why."""
    code = (
        "import os, sys\n"
        "os.environ['MUJOCO_GL'] = 'egl'\n"
        "class NoGL:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] == 'OpenGL': raise ImportError('libEGL.so is not here')\n"
        "sys.meta_path.insert(0, NoGL())\n"
        "from vla.envs import make_env\n"
        "env = make_env('tabletop_state', task='lift')\n"
        "env.reset(seed=0)\n"
        "while not any(env.step(env.expert_action())[2:4]): pass\n"
        "assert os.environ['MUJOCO_GL'] == 'egl'\n"
        "try: env.render()\n"
        "except RuntimeError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "libEGL.so is not here" in done.stdout and "vla doctor" in done.stdout
