# SPDX-License-Identifier: Apache-2.0
"""Meta-World as we wrap it: episodes from seeds, fresh first frames, a state without objects, shared worlds."""

import subprocess
import sys

import numpy as np
import pytest

from vla.envs import make_env, suites
from vla.envs.metaworld.tasks import MAX_STEPS, SENTENCES, TIERS
from vla.envs.registry import CAMERAS

pytest.importorskip("metaworld")

CAMERA = "corner2_mt50"


@pytest.fixture(scope="module")
def blind():
    """An environment without pictures, shared: reset must make it as good as new."""
    env = make_env("metaworld", render=False)
    yield env
    env.close()


@pytest.fixture(scope="module")
def seeing():
    env = make_env("metaworld", image_size=64)
    yield env
    env.close()


def rollout(env, task: str, seed: int, steps: int = 25) -> np.ndarray:
    """The expert's actions and noise: everything that the simulator knows, float64 (steps + 1, n)."""
    env.reset(seed=seed, options={"task": task})
    rng, rows = np.random.default_rng(seed), []
    for step in range(steps + 1):
        data = env._world._sim.data
        rows.append(np.concatenate([env._world.observation, data.qpos, data.qvel, data.site_xpos.ravel()]))
        if step < steps:
            env.step(env.expert_action() + rng.normal(0, 0.3, 4))
    return np.stack(rows)


# ---- seeds -------------------------------------------------------------------------------------------------


# Doors, lids and windows are set by moving fixed bodies, pucks by their joints; box-close also refuses placements.
@pytest.mark.parametrize("task", ["box-close-v3", "door-open-v3", "push-v3", "window-close-v3"])
def test_an_episode_is_a_pure_function_of_task_and_seed(blind, task):
    first = rollout(blind, task, 3)
    rollout(blind, task, 1_000_004)
    rollout(blind, "hammer-v3", 1, steps=3)
    other = make_env("metaworld", task=task, render=False)
    try:
        other.reset(seed=8)
        assert other._world is not blind._world
        assert np.array_equal(rollout(other, task, 3), first)
        assert np.array_equal(rollout(blind, task, 3), first)
    finally:
        other.close()


def test_nothing_that_an_episode_leaves_behind_matters_to_the_next(blind):
    """By construction, not by the care of fifty resets: whatever is moved or remembered is put back."""
    first = rollout(blind, "stick-push-v3", 2)
    sim = blind._world._sim
    sim.model.body_pos[1:] += 0.05
    sim.model.site_pos += 0.05
    sim.data.qpos[:] = 0.3
    sim.hand_init_pos, sim.left_over = sim.hand_init_pos + 0.1, True
    assert np.array_equal(rollout(blind, "stick-push-v3", 2), first)
    assert blind._world._sim is sim and not hasattr(sim, "left_over")


def test_seeds_of_evaluation_and_of_recording_place_things_differently(blind):
    for task in ("reach-v3", "drawer-close-v3"):
        placements = set()
        for seed in (0, 1, 99_999, 1_000_000, 1_000_001):
            blind.reset(seed=seed, options={"task": task})
            placements.add(blind._world._sim._last_rand_vec.tobytes())
        assert len(placements) == 5


def test_global_random_state_is_neither_used_nor_disturbed(blind):
    np.random.seed(0)  # noqa: NPY002 (what is tested)
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    first = rollout(blind, "shelf-place-v3", 5)
    assert np.array_equal(np.random.get_state()[1], before)  # noqa: NPY002
    np.random.seed(1)  # noqa: NPY002
    assert np.array_equal(rollout(blind, "shelf-place-v3", 5), first)


# ---- what is seen ------------------------------------------------------------------------------------------


@pytest.mark.render
@pytest.mark.parametrize("task", ["reach-v3", "dial-turn-v3", "window-close-v3"])
def test_the_first_frame_and_state_are_of_now(seeing, task):
    import mujoco

    seeing.reset(seed=1, options={"task": task})
    obs, _ = seeing.reset(seed=2)
    sim = seeing._world._sim
    known = seeing._world.observation.copy()
    mujoco.mj_forward(sim.model, sim.data)
    assert np.array_equal(seeing.render(), obs["pixels"][CAMERA])
    sim._get_obs()
    assert np.array_equal(sim._get_obs(), known)
    assert np.array_equal(known[:18], known[18:36])


@pytest.mark.render
def test_it_is_filmed_from_where_lerobot_films(seeing):
    """Against `mujoco.Renderer` with the camera put there by hand, its picture turned by 180 degrees."""
    import mujoco

    official = make_env("metaworld", task="reach-v3", image_size=96, official_look=True)
    obs, _ = official.reset(seed=2)
    sim = official._world._sim
    sim.model.cam_pos[2] = [0.75, 0.075, 0.7]
    with mujoco.Renderer(sim.model, 96, 96) as renderer:
        renderer.update_scene(sim.data, camera="corner2")
        reference = np.flip(renderer.render(), (0, 1))
    picture = obs["pixels"]["corner2_mt50_official"]
    assert np.array_equal(picture, reference)
    seeing.reset(seed=2, options={"task": "reach-v3"})
    difference = np.abs(seeing.render_at(96).astype(int) - picture)
    assert 0 < difference.mean() < 15, "the same scene without multisampling and shadows"
    official.close()


@pytest.mark.render
def test_pictures_do_not_depend_on_which_other_environments_draw(seeing):
    alone, _ = seeing.reset(seed=6, options={"task": "soccer-v3"})
    others = [make_env("metaworld", task=task, image_size=32) for task in ("soccer-v3", "stick-pull-v3")]
    others.append(make_env("tabletop", image_size=48))
    try:
        for env in others:
            env.reset(seed=1)
        assert np.array_equal(seeing.render(), alone["pixels"][CAMERA])
        others.pop(0).close()
        others[-1].render()
        assert np.array_equal(seeing.render(), alone["pixels"][CAMERA])
    finally:
        for env in others:
            env.close()


def test_the_state_is_hand_and_gripper_and_nothing_of_the_scene(blind):
    states = []
    for seed in (0, 1):
        obs, info = blind.reset(seed=seed, options={"task": "reach-v3"})
        assert set(obs) == {"agent_pos"} and blind.observation_space.contains(obs)
        assert set(info) == {"is_success", "task", "instruction", "subtask"}
        states.append(obs["agent_pos"])
    assert states[0].shape == (4,) == (len(blind.state_names),)
    assert np.array_equal(*states), "another goal, the same hand"
    obs, *_ = blind.step(np.array([0, 0, 1, 1]))
    assert obs["agent_pos"][2] > states[1][2] and obs["agent_pos"][3] <= states[1][3]


# ---- episodes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["button-press-topdown-v3", "pick-place-v3"])
def test_the_expert_succeeds_and_success_ends_the_episode(blind, task):
    blind.reset(seed=0, options={"task": task})
    ended = False
    while not ended:
        action = blind.expert_action()
        assert action.dtype == np.float32 and np.abs(action).max() <= 1
        assert np.array_equal(action, blind.expert_action())
        _, reward, terminated, truncated, info = blind.step(action)
        assert reward == float(terminated) == float(info["is_success"])
        ended = terminated or truncated
    assert terminated
    with pytest.raises(ValueError, match="the episode ended"):
        blind.step(action)


def test_an_episode_ends_at_the_limit(blind):
    blind.reset(seed=0, options={"task": "sweep-v3"})
    for step in range(1, MAX_STEPS + 1):
        _, reward, terminated, truncated, _ = blind.step(np.zeros(4))
        assert (reward, terminated, truncated) == (0.0, False, step == MAX_STEPS)


def test_sentences(blind):
    _, info = blind.reset(seed=0, options={"task": "door-open-v3"})
    assert info["instruction"] == blind.task_description == "Open a door with a revolving joint"
    swapped = blind.alternative_instruction()
    assert swapped == blind.alternative_instruction() != info["instruction"]
    assert swapped in SENTENCES.values()
    _, info = blind.reset(seed=0, options={"instruction": "do as you like"})
    assert (info["task"], info["instruction"]) == ("door-open-v3", "do as you like")


def test_suites_partition_the_fifty_tasks():
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS, MT10_V3

    table = suites("metaworld")
    assert set(table) == {"all", "mt50", "mt10", "mt50-easy", "mt50-medium", "mt50-hard", "mt50-very-hard"}
    assert [len(table[f"mt50-{tier}"]) for tier in TIERS] == [28, 11, 6, 5]
    assert sorted(task for tier in TIERS for task in table[f"mt50-{tier}"]) == sorted(ALL_V3_ENVIRONMENTS)
    assert table["all"] == table["mt50"] == tuple(sorted(ALL_V3_ENVIRONMENTS))
    assert table["mt10"] == tuple(MT10_V3)
    assert len(set(SENTENCES.values())) == 49
    assert make_env("metaworld").cameras == CAMERAS["metaworld"]


# ---- what the expert says it is doing -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ("door-close-v3", ["move to the door", "push the door shut"]),
        ("pick-place-v3", ["move to the puck", "lower", "close the gripper", "carry to the goal"]),
        ("window-open-v3", ["move to the window", "lower", "slide the window open"]),
        ("assembly-v3", ["move to the nut", "close the gripper", "lift", "carry to the peg", "let it down"]),
        ("reach-v3", ["move to the goal"]),
    ],
)
def test_the_expert_says_what_it_is_doing(blind, task, said):
    _, info = blind.reset(seed=1_000_001, options={"task": task})
    phrases, ended = [info["subtask"]], False
    while not ended:
        action = blind.expert_action()
        assert np.array_equal(action, blind.expert_action())  # not even the doors' policies change what they see
        _, _, terminated, truncated, info = blind.step(action)
        phrases.append(info["subtask"])
        ended = terminated or truncated
    assert list(dict.fromkeys(phrases)) == said and terminated


def test_something_is_said_in_every_task():
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    from vla.envs.metaworld.subtasks import WORK, subtask

    assert set(WORK) == set(SENTENCES) == set(ALL_V3_ENVIRONMENTS)
    wanted = np.array([1.0, 0, 0, 1])
    for task, work in WORK.items():
        seen = np.zeros(39)
        seen[:3], seen[3], seen[21] = work.at, 0.5, 0.5  # at the thing, what is to be held is held
        assert subtask(task, seen, wanted) == work.act
        assert work.hand == "pushes" or subtask(task, seen + 0.1 * (np.arange(39) == 21), wanted) == "close the gripper"
        seen[:3] += 1
        assert subtask(task, seen, wanted) == (work.act if work.near > 1 else f"move to {work.thing}")


# ---- worlds are shared -------------------------------------------------------------------------------------


def test_few_worlds_are_kept_and_none_without_users(monkeypatch):
    from vla.envs.metaworld import world

    monkeypatch.setattr(world, "MAX_IDLE", 2)
    monkeypatch.setattr(world, "_idle", [])
    monkeypatch.setattr(world, "_users", set())
    one, two = (make_env("metaworld", render=False) for _ in range(2))
    for task in suites("metaworld")["mt10"][:5]:
        one.reset(seed=0, options={"task": task})
    assert [w.task for w in world._idle] == ["pick-place-v3", "door-open-v3"]
    two.reset(seed=0, options={"task": "door-open-v3"})
    assert [w.task for w in world._idle] == ["pick-place-v3"]
    one.close()
    one.close()
    assert len(world._idle) == 2
    with pytest.raises(ValueError, match="call reset"):
        one.step(np.zeros(4))
    two.close()
    assert not world._idle


@pytest.mark.render
def test_importing_the_registry_imports_no_simulator_and_exit_is_clean():
    code = (
        "import sys; from vla.envs import suites; suites('metaworld');"
        "assert not {'mujoco', 'metaworld'} & set(sys.modules);"
        "from vla.envs import make_env; e = make_env('metaworld'); e.reset(seed=0); e.render_at(96);"
        "t = make_env('tabletop'); t.reset(seed=0);"
        "f = make_env('metaworld'); f.reset(seed=0, options={'task': 'push-v3'}); f.close(); f.close();"
        "assert not {'torch', 'lerobot'} & set(sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")


# ---- bad input ---------------------------------------------------------------------------------------------


def test_bad_input_is_refused(blind):
    with pytest.raises(ValueError, match="did you mean 'reach-v3'"):
        make_env("metaworld", task="reach")
    with pytest.raises(ValueError, match="cameras"):
        make_env("metaworld", cameras=("corner2",))
    with pytest.raises(ValueError, match="cameras"):
        make_env("metaworld", cameras=())
    with pytest.raises(ValueError, match="official_look"):
        make_env("metaworld", cameras=(CAMERA,), official_look=True)
    with pytest.raises(ValueError, match="image_size"):
        make_env("metaworld", image_size=600)
    with pytest.raises(ValueError, match="unknown reset options"):
        blind.reset(seed=0, options={"tusk": "push-v3"})
    for seed in (None, -1, True, 0.5):
        with pytest.raises(ValueError, match="explicit seed"):
            blind.reset(seed=seed)
    blind.reset(seed=0)
    with pytest.raises(ValueError, match=r"shape \(4,\)"):
        blind.step(np.zeros(3))
    with pytest.raises(ValueError, match="finite"):
        blind.step(np.array([0, np.nan, 0, 0]))
    with pytest.raises(ValueError, match="a size from 16"):
        blind.render_at(8)
