# SPDX-License-Identifier: Apache-2.0
"""The tabletop keeps its promises: scenes from seeds, fresh first frames, able experts, sentences."""

import subprocess
import sys

import numpy as np
import pytest

from vla.envs import make_env, suites
from vla.envs.tabletop import TabletopEnv
from vla.envs.tabletop.experts import EXPERTS
from vla.envs.tabletop.layouts import EXTREMES
from vla.envs.tabletop.scene import COLOURS
from vla.envs.tabletop.tasks import SUITES, TASKS, sample_episode, task_table, vocabulary


@pytest.fixture(scope="module")
def blind():
    """An environment without pictures, shared: reset must make it as good as new."""
    env = TabletopEnv(render=False)
    yield env
    env.close()


@pytest.fixture(scope="module")
def seeing():
    env = TabletopEnv(image_size=64)
    yield env
    env.close()


def rollout(env: TabletopEnv, task: str, seed: int, steps: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Random actions: states (and full physics state) and frames."""
    obs, _ = env.reset(seed=seed, options={"task": task})
    rng = np.random.default_rng(seed)
    states, frames = [obs["agent_pos"].astype(np.float64)], [obs["pixels"]["front"]]
    for _ in range(steps):
        obs, *_ = env.step(rng.uniform(-1, 1, size=4).astype(np.float32))
        states.append(np.concatenate([obs["agent_pos"], env._data.qpos, env._data.qvel]))
        frames.append(obs["pixels"]["front"])
    return np.concatenate(states), np.stack(frames)


def solve(env: TabletopEnv, seed: int, task: str, alternative: bool = False) -> bool:
    """Let the expert act; with `alternative`, on another referent than the one that is asked for."""
    env.reset(seed=seed, options={"task": task})
    episode = env.episode
    goal = episode.alternative_goal if alternative else episode.goal
    for _ in range(env._max_episode_steps):
        action, _ = EXPERTS[task](env.state, episode, goal)
        _, reward, terminated, truncated, info = env.step(np.array(action, dtype=np.float32))
        if terminated or truncated:
            assert reward == float(terminated) == float(info["is_success"])
            return terminated
    raise AssertionError("neither terminated nor truncated at the limit")


# ---- scenes and determinism --------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_an_episode_is_a_pure_function_of_task_and_seed(task):
    assert sample_episode(task, 7) == sample_episode(task, 7)
    assert sample_episode(task, 7).start != sample_episode(task, 8).start


def test_rollouts_are_bit_identical_across_live_envs_and_after_other_tasks(seeing):
    first = rollout(seeing, "push-left", 3)
    other = TabletopEnv(task="place-in-zone", image_size=64)
    try:
        rollout(other, "place-in-zone", 11, steps=5)
        twin = rollout(other, "push-left", 3)
        rollout(seeing, "unstack", 5, steps=5)
        again = rollout(seeing, "push-left", 3)
    finally:
        other.close()
    for states, frames in (twin, again):
        assert np.array_equal(states, first[0])
        assert np.array_equal(frames, first[1])


def test_first_frame_is_not_stale(seeing):
    for task in ("reach", "place-in-zone", "unstack"):
        rollout(seeing, "lift", 2, steps=3)
        obs, _ = seeing.reset(seed=4, options={"task": task})
        assert np.array_equal(obs["pixels"]["front"], seeing.render())
        import mujoco

        mujoco.mj_forward(seeing._model, seeing._data)
        assert np.array_equal(obs["pixels"]["front"], seeing.render())


def test_every_block_shows_its_colour_in_the_first_frame(seeing):
    """At 64 pixels each of the four colours covers a few pixels, unless the hand is in front of it."""
    seen = total = 0
    for seed in range(10):
        obs, _ = seeing.reset(seed=seed, options={"task": "reach"})
        frame = obs["pixels"]["front"].reshape(-1, 3) / 255.0
        hue = frame / np.maximum(np.linalg.norm(frame, axis=1, keepdims=True), 1e-6)
        for name in seeing.episode.colours:
            reference = np.array(COLOURS[name]) / np.linalg.norm(COLOURS[name])
            total += 1
            seen += int((hue @ reference > 0.985).sum() >= 15)
    assert seen >= total - 3


def test_observation_matches_its_space(seeing):
    obs, info = seeing.reset(seed=0, options={"task": "stack"})
    assert seeing.observation_space.contains(obs)
    obs, *_ = seeing.step(np.zeros(4, dtype=np.float32))
    assert seeing.observation_space.contains(obs)
    assert set(info) == {"is_success", "task", "instruction", "subtask"}
    assert seeing.render_at(96).shape == (96, 96, 3)
    assert len(seeing.action_names) == len(seeing.state_names) == 4


# ---- experts and success -----------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_expert_solves_the_task(blind, task):
    assert all(solve(blind, seed, task) for seed in range(1000, 1006))


@pytest.mark.parametrize("task", TASKS)
def test_doing_it_to_another_referent_does_not_count(blind, task):
    assert not any(solve(blind, seed, task, alternative=True) for seed in range(1000, 1006))


@pytest.mark.parametrize("task", SUITES["tier1"])
def test_a_random_policy_does_not_succeed(blind, task):
    wins = 0
    for seed in range(20):
        blind.reset(seed=seed, options={"task": task})
        rng, done = np.random.default_rng(seed), False
        while not done:
            _, _, terminated, truncated, _ = blind.step(rng.uniform(-1, 1, size=4).astype(np.float32))
            done = terminated or truncated
        wins += terminated
    assert wins <= 2


@pytest.mark.parametrize("task", TASKS)
def test_expert_answers_at_any_state_within_limits_and_without_memory(blind, task):
    blind.reset(seed=5, options={"task": task})
    rng = np.random.default_rng(0)
    for _ in range(25):
        first, second = blind.expert_action(), blind.expert_action()
        assert first.dtype == np.float32
        assert np.array_equal(first, second)
        assert np.abs(first).max() <= 1.0
        _, _, terminated, truncated, info = blind.step(rng.uniform(-1, 1, size=4).astype(np.float32))
        assert info["subtask"]
        if terminated or truncated:
            break


def test_expert_recovers_a_dropped_block(blind):
    blind.reset(seed=1, options={"task": "place-in-zone"})
    dropped = False
    for _ in range(blind._max_episode_steps):
        action = blind.expert_action()
        if not dropped and blind.state.blocks[blind.episode.goal.blocks[0]][2] > 0.08:
            action[3], dropped = -1.0, True
        _, _, terminated, _, _ = blind.step(action)
        if terminated:
            break
    assert dropped
    assert terminated


# ---- language ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_sentences_name_referents_of_the_scene(task):
    for seed in range(30):
        episode = sample_episode(task, seed)
        words = set(episode.instruction.split())
        colours = {episode.colours[block] for block in episode.goal.blocks}
        if episode.goal.word in EXTREMES:
            assert episode.goal.word in words
        else:
            assert words & set(COLOURS) <= set(episode.colours) | set(episode.zone_colours)
            assert episode.colours[episode.goal.blocks[0]] in words
            assert (words & set(COLOURS)) - set(episode.zone_colours) <= colours
        assert episode.alternative != episode.instruction
        assert episode.alternative_goal.blocks[0] != episode.goal.blocks[0]
        assert set(episode.alternative.split()) & set(COLOURS) <= set(COLOURS)
        if episode.alternative_goal.word not in EXTREMES:
            assert episode.colours[episode.alternative_goal.blocks[0]] in episode.alternative.split()


@pytest.mark.parametrize("task", TASKS)
def test_the_referent_is_not_given_away_by_its_slot(task):
    named = [sample_episode(task, seed).goal.blocks[0] for seed in range(60)]
    assert len(set(named)) == (2 if TASKS[task].stacked else 4)


def test_words_are_few_and_tiers_are_covered():
    assert len(vocabulary()) <= 80
    assert all(word == word.lower() and word.isalpha() for word in vocabulary())
    assert {row["tier"] for row in task_table()} == {1, 2, 3}
    assert suites("tabletop")["demo"] == suites("tabletop")["tier1"]
    assert set(suites("tabletop")["all"]) == set(TASKS) == set(EXPERTS)


def test_another_sentence_may_be_given(blind):
    _, info = blind.reset(seed=0, options={"task": "reach", "instruction": "touch the sky"})
    assert info["instruction"] == blind.task_description == "touch the sky"
    _, info = blind.reset(seed=0)
    assert info["instruction"] == blind.episode.instruction
    assert blind.alternative_instruction() == blind.episode.alternative


# ---- bad input ---------------------------------------------------------------------------------------------


def test_bad_input_is_refused(blind):
    with pytest.raises(ValueError, match="did you mean 'reach'"):
        TabletopEnv(task="reech")
    with pytest.raises(ValueError, match="did you mean 'tabletop'"):
        make_env("table-top")
    with pytest.raises(ValueError, match="cameras"):
        TabletopEnv(cameras=("side",))
    with pytest.raises(ValueError, match="image_size"):
        TabletopEnv(image_size=4)
    with pytest.raises(ValueError, match="did you mean 'stack'"):
        blind.reset(seed=0, options={"task": "stak"})
    with pytest.raises(ValueError, match="unknown reset options"):
        blind.reset(seed=0, options={"tusk": "stack"})
    with pytest.raises(ValueError, match="explicit seed"):
        blind.reset()
    with pytest.raises(ValueError, match="explicit seed"):
        blind.reset(seed=-1)
    blind.reset(seed=0)
    with pytest.raises(ValueError, match=r"shape \(4,\)"):
        blind.step(np.zeros(3, dtype=np.float32))
    with pytest.raises(ValueError, match="finite"):
        blind.step(np.array([0, np.nan, 0, 0], dtype=np.float32))
    with pytest.raises(ValueError, match="call reset"):
        TabletopEnv(render=False).step(np.zeros(4, dtype=np.float32))


def test_importing_the_registry_imports_no_simulator_and_exit_is_clean():
    code = (
        "import sys; from vla.envs import suites; suites('tabletop'); assert 'mujoco' not in sys.modules;"
        "from vla.envs import make_env; e = make_env('tabletop'); e.reset(seed=0); e.render_at(96);"
        "f = make_env('tabletop'); f.reset(seed=0); f.close(); f.close()"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
