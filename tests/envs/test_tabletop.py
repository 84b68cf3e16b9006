# SPDX-License-Identifier: Apache-2.0
"""The tabletop keeps its promises: scenes from seeds, fresh first frames, able experts, sentences."""

import subprocess
import sys
from dataclasses import replace

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
    assert suites("tabletop")["routes"] == ("reach-around",)
    assert set(suites("tabletop")["all"]) == set(TASKS) - {"reach-around"} and set(TASKS) == set(EXPERTS)
    assert suites("tabletop")["all"] == tuple(row["task"] for row in task_table())


def test_another_sentence_may_be_given(blind):
    _, info = blind.reset(seed=0, options={"task": "reach", "instruction": "touch the sky"})
    assert info["instruction"] == blind.task_description == "touch the sky"
    _, info = blind.reset(seed=0)
    assert info["instruction"] == blind.episode.instruction
    assert blind.alternative_instruction() == blind.episode.alternative


# ---- a task with two ways ----------------------------------------------------------------------------------


def go_around(env: TabletopEnv, seed: int, word: str = "") -> str:
    """Let the expert play reach-around, by the end that `word` says; the route that the hand took."""
    env.reset(seed=seed, options={"task": "reach-around"})
    goal = env.episode.goal._replace(word=word or env.episode.goal.word)
    assert env.route == ""
    for _ in range(env._max_episode_steps):
        _, _, terminated, _, info = env.step(np.array(EXPERTS["reach-around"](env.state, env.episode, goal)[0]))
        if terminated:
            break
    assert terminated and info["is_success"]
    return env.route


def test_either_way_around_the_wall_is_a_success_and_the_seed_draws_it_unseen(blind, seeing):
    goals = [sample_episode("reach-around", seed).goal for seed in range(400)]
    assert abs(np.mean([goal.word == "left" for goal in goals]) - 0.5) < 4 * 0.5 / 20
    for seed in range(12):
        assert go_around(blind, seed) == blind.episode.goal.word
        assert [go_around(blind, seed, word) for word in ("left", "right")] == ["left", "right"]
        episode = blind.episode
        assert not {"left", "right"} & set(f"{episode.instruction} {episode.alternative} {blind.paraphrase()}".split())
        assert all(abs(x - episode.wall[0]) > 0.16 or y > episode.wall[1] + 0.07 for x, y, _ in episode.start.blocks)
    assert go_around(blind, 3) and blind.reset(seed=3) and blind.route == ""
    first = seeing.reset(seed=1, options={"task": "reach-around"})[0]["pixels"]["front"]
    seeing._episode = replace(seeing.episode, goal=seeing.episode.goal._replace(word="left"))
    left = seeing.render()
    seeing._episode = replace(seeing.episode, goal=seeing.episode.goal._replace(word="right"))
    assert np.array_equal(left, seeing.render()) and np.array_equal(left, first)


@pytest.mark.parametrize("high", [False, True])
def test_over_the_wall_is_no_way(blind, high):
    """Neither straight on at the height of the table's other tasks, nor high above."""
    routes = []
    for seed in range(12):
        blind.reset(seed=seed, options={"task": "reach-around"})
        (wall_x, wall_y), ended = blind.episode.wall, False
        while not ended:
            action = np.array(EXPERTS["reach"](blind.state, blind.episode, blind.episode.goal)[0])
            x, y, z = blind.state.hand
            if y < wall_y + 0.03:  # across the middle of the wall
                action[:3] = 15 * (wall_x - x), float(z > 0.15 or not high), 1.0 if high else (0.06 - z) / 0.04
            _, _, terminated, truncated, info = blind.step(np.clip(action, -1, 1))
            ended = terminated or truncated
        assert not info["is_success"]
        routes.append(blind.route)
    # Low, the hand runs into the wall: it is a thing, not only a line.
    assert set(routes) == ({"over"} if high else {""})


def test_the_hand_goes_on_by_the_end_that_it_is_past_already(blind):
    """Whatever was drawn: from beyond an end nobody goes all the way back."""
    for seed in range(6):
        blind.reset(seed=seed, options={"task": "reach-around"})
        word = blind.episode.goal.word
        other, away = ("right", 1.0) if word == "left" else ("left", -1.0)
        while abs(blind.state.hand[0] - blind.episode.wall[0]) < 0.18:
            blind.step(np.array([away, 0.0, 0.0, -1.0]))
        ended = False
        while not ended:
            _, _, terminated, truncated, _ = blind.step(blind.expert_action())
            ended = terminated or truncated
        assert terminated and blind.route == other


def test_the_wall_is_on_every_straight_way_and_in_no_other_task(blind):
    for seed in range(40):
        episode = sample_episode("reach-around", seed)
        (x, y), hand = episode.wall, episode.start.hand
        for block in episode.start.blocks:
            share = (y - hand[1]) / (block[1] - hand[1])
            assert 0 < share < 1 and abs(hand[0] + share * (block[0] - hand[0]) - x) < 0.1
    blind.reset(seed=0, options={"task": "reach-around"})
    assert np.array_equal(blind._data.body("wall").xpos[:2], blind.episode.wall)
    blind.reset(seed=0, options={"task": "reach"})
    assert blind._data.body("wall").xpos.tolist() == [0, 0, -1] and blind.episode.wall is None


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
