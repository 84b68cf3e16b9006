# SPDX-License-Identifier: Apache-2.0
"""Several datasets as one: nothing is copied or mixed up, and weights hold exactly."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla.data.batches import Batches, split_episodes
from vla.data.mixture import join


@pytest.fixture(scope="module")
def other(cache):
    """Another dataset, of the first three episodes, with one sentence more and one less."""
    n, episodes = int(cache.episode_to[2]), 3
    rows = ("state", "action", "executed", "timestamp", "frame_index", "episode_index")
    frames = {camera: 255 - np.asarray(pictures[:n]) for camera, pictures in cache.frames.items()}
    return replace(
        cache,
        frames=frames,
        **{name: getattr(cache, name)[:n] for name in rows},
        task_index=np.zeros(n, np.int64),
        tasks=["something new"],
        plan_index=np.where(np.arange(n) % 3 == 2, -1, np.arange(n) % 3),
        plans=["a plan of its own", cache.plans[2]],
        subtask_index=np.full(n, -1),
        subtasks=[],
        episode_from=cache.episode_from[:episodes],
        episode_to=cache.episode_to[:episodes],
        dynamics_only=np.array([False, True, False]),
        meta={"root": "other"},
    )


def test_every_frame_is_where_it_belongs(cache, other):
    both, n = join([cache, other]), len(cache)
    assert len(both) == n + len(other) and both.parts == (0, n) and join([cache]) is cache
    assert both.tasks == [*cache.tasks, "something new"]
    ids = np.array([0, n, n - 1, len(both) - 1, n, 3])
    pictures = both.frames["front"]
    for row, frame in zip(pictures.take(ids), ids, strict=True):
        source, place = (cache, frame) if frame < n else (other, frame - n)
        np.testing.assert_array_equal(row, source.frames["front"][place])
        np.testing.assert_array_equal(pictures[int(frame)], row)
        assert both.tasks[both.task_index[frame]] == source.tasks[source.task_index[place]]
        assert said(both, frame) == said(source, place)
        np.testing.assert_array_equal(both.executed[frame], source.executed[place])
        episode = both.episode_index[frame]
        assert both.episode_from[episode] <= frame < both.episode_to[episode]
    np.testing.assert_array_equal(pictures[n - 2 : n + 2], pictures.take(np.arange(n - 2, n + 2)))
    assert [said(both, n + i) for i in range(3)] == [("a plan of its own", ""), (cache.plans[2] or "-", ""), ("", "")]
    assert np.flatnonzero(both.dynamics_only).tolist() == [len(cache.episode_from) + 1]
    assert both.plans == [*cache.plans, "a plan of its own"] and both.subtasks == cache.subtasks


def said(cache, frame):
    """Plan and subtask of a frame; "nothing left to do" as "-", nothing said as ""."""
    pairs = (cache.plan_index[frame], cache.plans), (cache.subtask_index[frame], cache.subtasks)
    return tuple("" if i < 0 else texts[i] or "-" for i, texts in pairs)


@given(st.integers(2, 40), st.floats(0.1, 10), st.integers(1, 30))
def test_weights_hold_and_no_frame_comes_twice_in_an_epoch(cache, other, batch_size, weight, steps):
    both, share = join([cache, other]), weight / (1 + weight)
    if min(share, 1 - share) * batch_size < 1:
        with pytest.raises(ValueError, match="less than one sample of a batch"):
            Batches(both, 4, batch_size, 0, weights=(1, weight))
        return
    batches = Batches(both, 4, batch_size, 0, weights=(1, weight))
    ids = [batches.sample_ids(step) for step in range(steps)]
    assert all(len(some) == batch_size for some in ids)
    drawn = np.concatenate(ids)
    second = drawn[drawn >= len(cache)]
    assert abs(len(second) - share * len(drawn)) <= 1
    for some in ids:  # of any part of a batch, too
        assert (abs(np.cumsum(some >= len(cache)) - share * np.arange(1, batch_size + 1)) < 2).all()
    for samples in (drawn[drawn < len(cache)], second):
        times = np.bincount(samples)[samples]
        assert not len(times) or times.max() - times.min() <= 1


def test_without_weights_frames_are_equally_likely(cache, other):
    both = join([cache, other])
    samples = np.concatenate([Batches(both, 4, 10, 0).sample_ids(step) for step in range(len(both) // 10)])
    assert len(np.unique(samples)) == len(samples)


def test_some_episodes(cache):
    train, held = split_episodes(cache, 0.3, 0, "0:3,7,5:7")
    assert sorted([*train, *held]) == [0, 1, 2, 5, 6, 7] and len(held) == 2
    for wrong in ("0:99", "3:3", "x", "-1", "1:0", "0,,1"):
        with pytest.raises(ValueError, match="expected episodes such as '0:18' or"):
            split_episodes(cache, 0.3, 0, wrong)


def test_what_cannot_be_mixed(cache, other):
    for change, message in (
        ({"fps": 30.0}, r"the same frames/s.*30\.0.*resample"),
        ({"action_names": ("a", "b", "c")}, r"the same values of 'action'.*\['a', 'b', 'c'\]"),
        ({"cameras": ("top",), "frames": {"top": other.frames["front"]}}, r"the same cameras.*\['top'\]"),
        ({"frames": {"front": np.zeros((2, 16, 16, 3), np.uint8)}}, r"picture sizes.*\(16, 16\)"),
    ):
        with pytest.raises(ValueError, match=message):
            join([cache, replace(other, **change)])
    both = join([cache, other])
    for weights in ((1,), (1, 0), (1, 2, 3)):
        with pytest.raises(ValueError, match="expected 2 weights > 0, one for each dataset"):
            Batches(both, 4, 8, 0, weights=weights)
    with pytest.raises(ValueError, match="no episodes to draw from in dataset 1"):
        Batches(both, 4, 8, 0, episodes=np.array([0, 1]), weights=(1, 1))
