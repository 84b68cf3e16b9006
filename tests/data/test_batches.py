# SPDX-License-Identifier: Apache-2.0
"""Batches are functions of (seed, step), and an epoch is every sample once."""

import threading
from dataclasses import replace

import numpy as np
import pytest

from vla.data.batches import Batches, measure_gather_fps, split_episodes


def same(a, b):
    for name in a:
        if isinstance(a[name], dict):
            for camera in a[name]:
                np.testing.assert_array_equal(a[name][camera], b[name][camera])
        else:
            np.testing.assert_array_equal(a[name], b[name])


def test_contents(cache):
    batch = Batches(cache, horizon=8, batch_size=5, seed=0).batch(2)
    shapes = {name: (value.shape, value.dtype) for name, value in batch.items() if name != "images"}
    assert shapes == {
        "state": ((5, 1, 2), np.float32),
        "past": ((5, 0, 3), np.float32),
        "past_known": ((5, 0), bool),
        "actions": ((5, 8, 3), np.float32),
        "executed": ((5, 8, 3), np.float32),
        "is_pad": ((5, 8), bool),
        "has_labels": ((5,), bool),
        "has_actions": ((5,), bool),
        "task_index": ((5,), np.int64),
        "sample": ((5,), np.int64),
    }
    for b, row in enumerate(batch["sample"]):
        np.testing.assert_array_equal(batch["images"]["front"][b, 0], cache.frames["front"][row])
        np.testing.assert_array_equal(batch["state"][b, 0], cache.state[row])
        end = cache.episode_to[cache.episode_index[row]]
        for h in range(8):
            np.testing.assert_array_equal(batch["actions"][b, h], cache.action[min(row + h, end - 1)])
            np.testing.assert_array_equal(batch["executed"][b, h], cache.executed[min(row + h, end - 1)])
            assert batch["is_pad"][b, h] == (row + h >= end)
    assert batch["has_labels"].all() and batch["has_actions"].all()
    assert batch["images"]["front"].shape == (5, 1, 32, 32, 3)
    assert batch["images"]["front"].dtype == np.uint8 and batch["images"]["front"].flags.writeable


@pytest.mark.parametrize("moments", [2, 4])
def test_moments_and_what_was_executed_between_them(cache, moments):
    plain = Batches(cache, 4, 64, 3).batch(1)
    batch = Batches(cache, 4, 64, 3, moments=moments).batch(1)
    for name in plain.keys() - {"images", "state", "past", "past_known"}:
        np.testing.assert_array_equal(plain[name], batch[name])
    np.testing.assert_array_equal(plain["images"]["front"][:, 0], batch["images"]["front"][:, -1])
    assert batch["past"].shape == (64, moments - 1, 3) and batch["past"].dtype == np.float32
    repeated = 0
    for b, row in enumerate(batch["sample"]):
        first = cache.episode_from[cache.episode_index[row]]
        for m in range(moments):
            at = row - (moments - 1 - m)
            np.testing.assert_array_equal(batch["images"]["front"][b, m], cache.frames["front"][max(at, first)])
            np.testing.assert_array_equal(batch["state"][b, m], cache.state[max(at, first)])
            if m < moments - 1:
                assert batch["past_known"][b, m] == (at >= first)
                np.testing.assert_array_equal(batch["past"][b, m], cache.executed[at] if at >= first else 0)
                repeated += at < first
    assert repeated > 0 and (batch["past"] != 0).any()
    # The state is where these actions led: what is known explains the next moment.
    moved = np.diff(batch["state"], axis=1) / 0.1
    known = batch["past_known"]
    np.testing.assert_allclose(moved[known], batch["past"][known][:, :2], atol=1e-5)
    with pytest.raises(ValueError, match="moments >= 1"):
        Batches(cache, 4, 64, 3, moments=0)


def test_plans_future_and_goals(cache):
    plain, more = (Batches(cache, 4, 64, 3, **kind) for kind in ({}, {"plans": True, "future": True}))
    steps = []
    for step in (0, 5, 2, 5):
        batch, ids = more.batch(step), plain.sample_ids(step)
        same(plain.batch(step), batch)  # whatever is asked for as well, nothing else changes
        assert batch.keys() - plain.batch(step).keys() == {"plan_index", "future", "goal", "goal_steps", "last"}
        np.testing.assert_array_equal(batch["plan_index"], cache.plan_index[ids])
        left = cache.episode_to[cache.episode_index[ids]] - 1 - ids
        assert batch["goal_steps"].dtype == np.int64
        assert (batch["goal_steps"] <= left).all() and ((batch["goal_steps"] > 0) == (left > 0)).all()
        for b, row in enumerate(ids):
            later = row + min(4, left[b]), row + batch["goal_steps"][b], row + left[b]
            for name, frame in zip(("future", "goal", "last"), later, strict=True):
                np.testing.assert_array_equal(batch[name]["front"][b], cache.frames["front"][frame])
        steps.append(batch["goal_steps"])
    np.testing.assert_array_equal(steps[1], steps[3])
    assert (steps[0] != steps[1]).any()


def test_waypoints_are_states_to_come(cache):
    batch = Batches(cache, 4, 64, 3, waypoints=(2, 5)).batch(1)
    same(Batches(cache, 4, 64, 3).batch(1), batch)
    ids = batch["sample"]
    last = cache.episode_to[cache.episode_index[ids]] - 1
    for k, later in enumerate((2, 5)):
        np.testing.assert_array_equal(batch["waypoints"][:, k], cache.state[np.minimum(ids + later, last)])
    with pytest.raises(ValueError, match="waypoints one or more steps later"):
        Batches(cache, 4, 64, 3, waypoints=(0, 2))


def test_goals_are_uniform_over_the_rest_of_the_episode(cache):
    row = int(np.argmax(cache.episode_to - cache.episode_from))
    first, last = cache.episode_from[row], cache.episode_to[row] - 1
    batches = Batches(cache, 4, 200, 3, episodes=np.array([row]), future=True)
    ids = np.concatenate([batches.sample_ids(step) for step in range(40)])
    steps = np.concatenate([batches.batch(step)["goal_steps"] for step in range(40)])[ids == first]
    counts = np.bincount(steps, minlength=last - first + 1)
    assert counts[0] == 0 and len(counts) == last - first + 1
    expected = len(steps) / (last - first)
    assert (np.abs(counts[1:] - expected) < 5 * np.sqrt(expected)).all()


def test_episodes_without_actions_or_labels_are_marked(cache):
    dynamics = np.isin(np.arange(len(cache.episode_from)), [2, 4])
    marked = replace(cache, dynamics_only=dynamics)
    batch = Batches(marked, 4, 64, 3, action_free=np.array([1, 4]), moments=3).batch(2)
    told = Batches(cache, 4, 64, 3, moments=3).batch(2)
    episode_B = cache.episode_index[batch["sample"]]
    known_B = ~np.isin(episode_B, [1, 4])
    zeroed = {n: np.where(known_B[:, None, None], told[n], 0) for n in ("actions", "executed", "past")}
    changed = zeroed | {"past_known": told["past_known"] & known_B[:, None]}
    same(told | changed | {"has_actions": known_B, "has_labels": ~np.isin(episode_B, [1, 2, 4])}, batch)
    assert 0 < batch["has_labels"].sum() < batch["has_actions"].sum() < 64
    only_dynamics = episode_B == 2
    assert only_dynamics.any() and (batch["executed"][only_dynamics] != 0).any() and told["has_labels"].all()
    with pytest.raises(ValueError, match=r"action_free episodes in 0\.\.\d+, got \[99\]"):
        Batches(cache, 4, 64, 3, action_free=np.array([99]))


def test_padding_at_every_episode_end(cache):
    batches = Batches(cache, horizon=4, batch_size=len(cache), seed=0)
    batch = batches.batch(0)
    order = np.argsort(batch["sample"])
    last = batch["is_pad"][order][cache.episode_to - 1]
    np.testing.assert_array_equal(last, np.tile([False, True, True, True], (len(last), 1)))
    lengths = cache.episode_to - cache.episode_from
    assert batch["is_pad"].sum() == sum(np.maximum(3 - np.arange(n), 0).sum() for n in lengths)


def test_pure_function_of_seed_and_step(cache):
    one, two = (Batches(cache, 4, 16, seed=3) for _ in range(2))
    later = one.batch(40)
    for step in (40, 7, 40, 0):
        same(one.batch(step), two.batch(step))
    same(later, two.batch(40))
    other = Batches(cache, 4, 16, seed=4)
    assert (other.sample_ids(0) != one.sample_ids(0)).any()
    assert (one.sample_ids(0) != one.sample_ids(1)).any()


@pytest.mark.parametrize("batch_size", [1, 7, 64, 1000])
def test_every_sample_once_an_epoch(cache, batch_size):
    episodes = np.array([0, 2, 5, 6])
    batches = Batches(cache, 4, batch_size, seed=1, episodes=episodes)
    n = len(batches.samples)
    assert n == (cache.episode_to - cache.episode_from)[episodes].sum()
    ids = np.concatenate([batches.sample_ids(step) for step in range(-(-3 * n // batch_size))])
    epochs = ids[: 3 * n].reshape(3, n)
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), batches.samples)
    assert (epochs[0] != epochs[1]).any()
    assert set(cache.episode_index[ids]) == set(episodes.tolist())


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_prefetch_changes_nothing(cache, depth):
    batches = Batches(cache, 4, 16, seed=3)
    threads = threading.active_count()
    with batches.prefetch(start_step=11, depth=depth) as iterator:
        for expected in range(11, 20):
            step, batch = next(iterator)
            assert step == expected
            same(batch, Batches(cache, 4, 16, seed=3).batch(step))
    assert threading.active_count() == threads
    assert list(iterator) == []


def test_prefetch_passes_errors_on(cache):
    batches = Batches(cache, 4, 16, seed=3)
    iterator = batches.prefetch(start_step=-1)
    with pytest.raises(ValueError, match="step >= 0"):
        next(iterator)
    iterator.close()


def test_split_is_by_episode(cache):
    train, held = split_episodes(cache, 0.2, seed=5)
    n = len(cache.episode_from)
    assert len(held) == round(0.2 * n)
    np.testing.assert_array_equal(np.sort(np.concatenate([train, held])), np.arange(n))
    np.testing.assert_array_equal(held, split_episodes(cache, 0.2, seed=5)[1])
    assert (held.tolist() != split_episodes(cache, 0.2, seed=6)[1].tolist()) or n < 4
    assert len(split_episodes(cache, 0.0, seed=5)[1]) == 0 and len(split_episodes(cache, 1e-9, seed=5)[1]) == 1
    with pytest.raises(ValueError, match="holdout_fraction"):
        split_episodes(cache, 1.0, seed=0)


def test_bad_arguments(cache):
    for arguments in ((0, 4), (4, 0)):
        with pytest.raises(ValueError, match="horizon >= 1"):
            Batches(cache, *arguments, seed=0)
    with pytest.raises(ValueError, match="episodes"):
        Batches(cache, 4, 4, seed=0, episodes=np.array([99]))
    with pytest.raises(ValueError, match="episodes"):
        Batches(cache, 4, 4, seed=0, episodes=np.array([], np.int64))


def test_gather_is_fast_enough():
    """The goal is 5,000 frames/s at 96 px; this is fifty times more on an idle core."""
    assert measure_gather_fps(seconds=0.2, frames=600) > 5000
