# SPDX-License-Identifier: Apache-2.0
"""Perturbed episodes: functions of (task, seed), nothing left behind, and nothing else changed than was asked for."""

import math
import pickle

import numpy as np
import pytest

from vla.envs import make_env, suites
from vla.envs.delay import DelayedActions
from vla.envs.perturbation import CLEARANCE, VISUAL, check_perturbation, draw
from vla.envs.registry import ENVS, PERTURBATIONS
from vla.envs.tabletop import TabletopEnv
from vla.envs.tabletop.clutter import table
from vla.envs.tabletop.layouts import RING
from vla.envs.tabletop.scene import BLOCK_HALF, COLOURS, REGION
from vla.envs.tabletop.tasks import TASKS, sample_episode

TASK = {"tabletop": "push-left", "metaworld": "reach-v3"}
OTHER = {"tabletop": "unstack", "metaworld": "push-v3"}
IN_PICTURES = [("tabletop", name) for name in (*VISUAL, "held-out-positions")] + [("metaworld", n) for n in VISUAL]


@pytest.fixture(scope="module")
def plain():
    """Unperturbed environments by name, shared."""
    made = {}

    def env(name):
        if name == "metaworld":
            pytest.importorskip("metaworld")
        if name not in made:
            made[name] = make_env(name, image_size=64)
        return made[name]

    yield env
    for each in made.values():
        each.close()


def film(env, task: str, seed: int, steps: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """The expert's first steps: frames, and all of the physics with the actions."""
    obs, _ = env.reset(seed=seed, options={"task": task})
    frames, physics = [], []
    for _ in range(steps):
        action = env.expert_action()
        data = env._data if hasattr(env, "_data") else env._world._sim.data
        frames.append(next(iter(obs["pixels"].values())).astype(int))
        physics.append(np.concatenate([action, obs["agent_pos"], data.qpos, data.qvel]))
        obs, *_ = env.step(action)
    return np.stack(frames), np.stack(physics)


# ---- pure, and gone afterwards -----------------------------------------------------------------------------


@pytest.mark.render
@pytest.mark.parametrize(("name", "perturbation"), IN_PICTURES)
def test_a_perturbed_episode_is_a_function_of_task_and_seed_and_leaves_nothing_behind(plain, name, perturbation):
    before, physics_before = film(plain(name), TASK[name], 3)
    # Meta-World's environments share worlds: give this one up, so that the perturbed environment takes it.
    plain(name).reset(seed=0, options={"task": OTHER[name]})
    env = make_env(name, image_size=64, perturbation=perturbation)
    try:
        frames, physics = film(env, TASK[name], 3)
        assert np.abs(frames[0] - before[0]).mean() > (0.05 if perturbation == "distractors" else 2)
        drawn = env._disturbance
        assert not np.array_equal(film(env, TASK[name], 4)[0], frames)
        assert perturbation not in VISUAL or env._disturbance != drawn, "another episode, another disturbance"
        film(env, OTHER[name], 3, steps=1)
        again, physics_again = film(env, TASK[name], 3)
        assert np.array_equal(again, frames) and np.array_equal(physics_again, physics)
        large = env.render_at(128)
        env.reset(seed=9, options={"task": OTHER[name]})
    finally:
        env.close()
    if perturbation in VISUAL:
        assert np.array_equal(physics, physics_before), "the expert did something else"
    after, physics_after = film(plain(name), TASK[name], 3)
    assert np.array_equal(after, before) and np.array_equal(physics_after, physics_before)
    assert not np.array_equal(plain(name).render_at(128), large), "films show the perturbed scene too"


def test_draws_differ_by_seed_and_have_the_size_they_are_said_to_have():
    for seed in range(40):
        shift = draw("camera-shift", "reach", seed, table)
        assert 0.02 <= np.linalg.norm(shift.camera_move) <= 0.03
        assert math.radians(2) <= np.linalg.norm(shift.camera_turn[:2]) <= math.radians(3) + 1e-9
        light = draw("light", "reach", seed, table).light
        assert np.isclose(np.linalg.norm(light.direction), 1) and light.direction[2] < -0.4
        assert 0.3 < min(light.colour) < 0.85 * max(light.colour), "a tint that can be seen and seen through"
        assert shift != draw("camera-shift", "reach", seed + 1, table) != draw("camera-shift", "lift", seed + 1, table)
    assert pickle.loads(pickle.dumps(shift)) == shift


@pytest.mark.parametrize("task", TASKS)
def test_distractors_lie_on_the_table_off_blocks_and_zones_and_none_has_a_colour_with_a_name(task):
    for seed in range(8):
        episode = sample_episode(task, seed)
        things = draw("distractors", task, seed, lambda episode=episode: table(episode)).distractors
        assert 2 <= len(things) <= 4
        for thing in things:
            x, y, z = thing.foot
            assert abs(x) < 0.3 and abs(y) < 0.3 and z == 0
            assert min(math.dist(thing.colour, colour) for colour in COLOURS.values()) > 0.3
            for bx, by, _ in episode.start.blocks:
                assert math.dist((x, y), (bx, by)) > BLOCK_HALF + max(thing.half[:2]) + CLEARANCE
            for zx, zy in episode.zones:
                assert max(abs(x - zx), abs(y - zy)) > 0.05 + max(thing.half[:2])


def test_distractors_of_metaworld_stand_on_the_table_and_off_what_the_task_is_about():
    pytest.importorskip("metaworld")
    env = make_env("metaworld", render=False, perturbation="distractors")
    try:
        for task, height in (("push-v3", 0.0), ("sweep-into-v3", 0.05)):  # the second on a thicker table, with a hole
            env.reset(seed=1, options={"task": task})
            sim, things = env._world._sim, env._disturbance.distractors
            assert 2 <= len(things) <= 4 and all(abs(thing.foot[2] - height) < 1e-6 for thing in things)
            for point in (sim.obj_init_pos, sim._target_pos, env._world.observation[:3]):
                assert all(math.dist(thing.foot[:2], point[:2]) > 0.1 for thing in things)
    finally:
        env.close()


# ---- held-out positions ------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_held_out_positions_are_outside_of_training_and_the_expert_still_succeeds(task):
    for seed in range(20):
        usual, unusual = sample_episode(task, seed), sample_episode(task, seed, held_out=True)
        assert unusual.colours == usual.colours and unusual == sample_episode(task, seed, held_out=True)
        for episode, low, high in ((usual, 0, REGION), (unusual, RING[0], RING[1])):
            for x, y in (*(block[:2] for block in episode.start.blocks), *episode.zones):
                assert low <= max(abs(x), abs(y)) <= high
    assert RING[0] > REGION + 0.01
    env = make_env("tabletop", task=task, render=False, perturbation="held-out-positions")
    for seed in range(2000, 2003):
        env.reset(seed=seed)
        assert env.episode == sample_episode(task, seed, held_out=True)
        ended = False
        while not ended:
            *_, terminated, truncated, _ = env.step(env.expert_action())
            ended = terminated or truncated
        assert terminated


# ---- delayed actions ---------------------------------------------------------------------------------------


class Recorder:
    """An environment that notes what it was told to do."""

    idle_action, fps = (0.0, -1.0), 7

    def reset(self, *, seed, options=None):
        self.done = []
        return {}, {}

    def step(self, action):
        self.done.append(action.tolist())
        return {}, 0.0, False, False, {}


def test_delayed_actions_are_shifted_by_exactly_that_many_steps():
    env = DelayedActions(Recorder(), 2)
    for _ in range(2):  # nothing is carried over into the next episode
        env.reset(seed=0)
        action = np.zeros(2)
        for step in range(4):
            action[:] = step
            env.step(action)
        assert env.done == [[0, -1], [0, -1], [0, 0], [1, 1]] and env.fps == 7
    with pytest.raises(ValueError, match="0 steps or more"):
        DelayedActions(Recorder(), -1)
    with pytest.raises(ValueError, match="idle_action"):
        DelayedActions(object())


@pytest.mark.parametrize("name", ENVS)
def test_every_environment_does_nothing_until_the_first_action_is_due(name):
    if name == "metaworld":
        pytest.importorskip("metaworld")
    delayed, direct = make_env(name, render=False, perturbation="action-delay"), make_env(name, render=False)
    actions = np.random.default_rng(0).uniform(-1, 1, (4, 4)).astype(np.float32)
    late = [delayed.reset(seed=2)[0], *(delayed.step(a)[0] for a in actions)]
    idle = np.array(direct.idle_action)
    soon = [direct.reset(seed=2)[0], *(direct.step(a)[0] for a in (idle, idle, *actions[:2]))]
    assert all(np.array_equal(a["agent_pos"], b["agent_pos"]) for a, b in zip(late, soon, strict=True))
    assert np.allclose(late[0]["agent_pos"][:4], late[2]["agent_pos"][:4], atol=2e-3), "hand and gripper stay"
    assert not np.allclose(late[0]["agent_pos"][:3], late[4]["agent_pos"][:3], atol=2e-3)
    delayed.close()
    direct.close()


# ---- bad input ---------------------------------------------------------------------------------------------


def test_bad_names_are_refused():
    with pytest.raises(ValueError, match="did you mean 'light'"):
        make_env("tabletop", perturbation="lights")
    with pytest.raises(ValueError, match="did you mean 'camera-shift'"):
        TabletopEnv(perturbation="camera")
    with pytest.raises(ValueError, match=r"'metaworld' has, out of camera-shift, .* got 'held-out-positions'"):
        make_env("metaworld", perturbation="held-out-positions")
    with pytest.raises(ValueError, match="'tabletop_state' has"):
        make_env("tabletop_state", perturbation="light")
    with pytest.raises(ValueError, match="make_env puts the delay around"):
        TabletopEnv(perturbation="action-delay")
    assert check_perturbation(None, (), "nothing") is None
    assert set(PERTURBATIONS) == set(ENVS) and all(suites(name) for name in PERTURBATIONS)
