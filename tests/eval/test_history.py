# SPDX-License-Identifier: Apache-2.0
"""A policy that sees several moments: what it is shown is what happened, one control step after the other."""

import io
import sys
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
from fake_bench import DotEnv
from rich.console import Console

from vla.eval.centre import Centre
from vla.eval.episodes import Episode, read_results
from vla.eval.evaluate import EvalConfig, evaluate
from vla.eval.history import moment, observed
from vla.eval.workers import Worker, WorkerSettings


@dataclass(frozen=True)
class Observation:
    images: dict
    state: np.ndarray
    instruction: str
    executed: np.ndarray | None = None


@pytest.fixture(autouse=True)
def observation(monkeypatch):
    """What a policy takes, without the networks that `vla.policy` brings along."""
    monkeypatch.setitem(sys.modules, "vla.policy", SimpleNamespace(Observation=Observation))


SETTINGS = WorkerSettings("fake_bench", "dots", {"task": "touch"}, moments=3)


class Overwriting(DotEnv):
    """Draws every picture, and writes every state, into the same arrays."""

    def _observation(self):
        fresh = super()._observation()
        if not hasattr(self, "buffers"):
            self.buffers = fresh
        self.buffers["pixels"]["front"][:] = fresh["pixels"]["front"]
        self.buffers["agent_pos"][:] = fresh["agent_pos"]
        return self.buffers


def replayed(seed: int, actions: list[np.ndarray]) -> list[dict]:
    """Every observation of an episode: the first, and one after each action."""
    env = DotEnv()
    first, _ = env.reset(seed=seed, options={"task": "touch"})
    return [first, *(env.step(action)[0] for action in actions)]


@pytest.mark.parametrize("length", [1, 2, 4])
def test_the_worker_keeps_the_last_moments(monkeypatch, length):
    monkeypatch.setattr("fake_bench.make_env", lambda env, **kwargs: Overwriting(**kwargs))
    worker = Worker(SETTINGS)
    actions = list(np.random.default_rng(0).uniform(-0.3, 0.3, (3 * length, 4)).astype(np.float32))
    moments = replayed(7, actions)
    message = worker.handle(("begin", 0, Episode("touch", 7)))
    for calls in range(4):
        kind, slot, images, state, _, step, executed = message
        assert (kind, slot, step) == ("observe", 0, calls * length)
        rows = np.arange(step - 2, step + 1)
        wanted = [moments[max(row, 0)] for row in rows]
        np.testing.assert_array_equal(images["front"], [moment["pixels"]["front"] for moment in wanted])
        np.testing.assert_array_equal(state, [moment["agent_pos"] for moment in wanted])
        assert images["front"].shape == (3, 16, 16, 3) and images["front"].dtype == np.uint8
        assert state.shape == (3, 2) and executed.shape == (2, 4) and state.dtype == executed.dtype == np.float32
        for row, action in zip(rows[:-1], executed, strict=True):
            np.testing.assert_array_equal(action, actions[row] if row >= 0 else [np.nan] * 4)
        if calls < 3:
            message = worker.handle(("chunk", 0, np.stack(actions[step : step + length])))
    # Another episode in the same slot begins with nothing behind it.
    _, _, images, state, _, _, executed = worker.handle(("begin", 0, Episode("touch", 8)))
    assert (
        np.isnan(executed).all()
        and (images["front"] == images["front"][-1]).all()
        and len(np.unique(state, axis=0)) == 1
    )


def test_one_moment_is_what_it_was():
    worker = Worker(replace(SETTINGS, moments=1))
    _, _, images, state, given, step = worker.handle(("begin", 0, Episode("touch", 7)))
    assert images["front"].shape == (16, 16, 3) and state.shape == (2,) and step == 0 and given.startswith("touch")
    assert worker.slots[0].seen == []


def test_the_centre_gives_a_history_only_to_who_has_one(hash_policy):
    seen = []
    hash_policy.act = lambda observations, keys: seen.extend(observations) or np.zeros((len(keys), 6, 4), np.float32)
    centre = Centre(hash_policy, SimpleNamespace(slots=1, send=lambda *_: None), 1, 0, {})
    for moments in (1, 3):
        worker = Worker(replace(SETTINGS, moments=moments))
        centre.episode_of[0] = Episode("touch", 7)
        _, _, *rest = worker.handle(("begin", 0, Episode("touch", 7)))
        centre.waiting[0] = tuple(rest)
        centre.think([0])
    one, three = seen
    assert one.executed is None and one.images["front"].shape == (16, 16, 3)
    assert three.executed.shape == (2, 4) and three.images["front"].shape == (3, 16, 16, 3)
    np.testing.assert_array_equal(three.images["front"][-1], one.images["front"])


def test_an_evaluation_with_histories_does_not_depend_on_slots(tmp_path, hash_policy):
    hash_policy.n_obs_steps = 3
    row, executed = hash_policy.row, []

    def with_history(observation, key):
        assert observation.state.shape == (3, 2) and observation.images["front"].shape == (3, 16, 16, 3)
        executed.append(observation.executed)
        return row(replace(observation, instruction=observation.instruction + repr(observation.executed.tolist())), key)

    hash_policy.row = with_history
    results = []
    for slots, workers in ((1, 1), (6, 2)):
        out = tmp_path / str(slots)
        config = EvalConfig(
            policy="stub", env="dots", episodes=8, slots=slots, workers=workers, videos=int(slots > 1), out=out
        )
        evaluate(config, hash_policy, registry="fake_bench", console=Console(file=io.StringIO()))
        results.append([replace(result, wall_s=0.0) for result in read_results(out / "episodes.jsonl")])
    assert results[0] == results[1]
    known = [np.isfinite(actions).all() for actions in executed]
    assert sum(np.isnan(actions).all() for actions in executed) == 16 == len(known) - sum(known)  # the first of each
    assert list((tmp_path / "6/videos").glob("*.mp4"))


@pytest.mark.parametrize("length", [0, 1, 5])
def test_a_player_in_this_process_shows_what_a_worker_does(length):
    worker, env = Worker(SETTINGS), Overwriting()
    actions = list(np.random.default_rng(1).uniform(-0.3, 0.3, (length, 4)).astype(np.float32))
    message = worker.handle(("begin", 0, Episode("touch", 7)))
    seen = [moment(env.reset(seed=7, options={"task": "touch"})[0])]
    for action in actions:
        message = worker.handle(("chunk", 0, action[None]))
        seen = [*seen, moment(env.step(action)[0])]
    _, _, images, state, given, _, executed = message
    policy = SimpleNamespace(n_obs_steps=3, action_names=("dx", "dy", "dz", "gripper"))
    found = observed(policy, seen, actions, given)
    np.testing.assert_array_equal(found.images["front"], images["front"])
    np.testing.assert_array_equal(found.state, state)
    np.testing.assert_array_equal(found.executed, executed)
    policy.n_obs_steps = 1
    now = observed(policy, seen, actions, given)
    np.testing.assert_array_equal(now.images["front"], images["front"][-1])
    assert now.executed is None and now.state.shape == (2,)
