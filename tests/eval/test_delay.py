# SPDX-License-Identifier: Apache-2.0
"""A robot that goes on while the policy thinks."""

from types import SimpleNamespace

import numpy as np
import pytest

from vla.eval.centre import Centre
from vla.eval.episodes import Episode, episode_key
from vla.policy import Observation


@pytest.mark.parametrize("naive", [False, True])
def test_what_is_executed_meanwhile_is_the_last_chunk_and_the_policy_is_told(hash_policy, naive):
    """Three chunks of an episode: each begins with the tail of the one before, and `decide` was given that tail."""
    given, sent = [], []

    def decide(observations, keys, committed=None):
        given.append(committed)
        return SimpleNamespace(actions_BHA=hash_policy.act(observations, keys))

    hash_policy.decide = decide
    pool = SimpleNamespace(slots=1, send=lambda slot, message: sent.append(message))
    centre = Centre(hash_policy, pool, 1, 0, {}, delay=2, naive=naive)
    episode = centre.episode_of[0] = Episode("reach", 5)
    images, state = {"front": np.zeros((16, 16, 3), np.uint8)}, np.zeros(2, np.float32)
    for step in (0, 4, 8):
        centre.waiting[0] = (images, state, "reach", step)
        centre.think([0])
    first, second, third = (actions for _, _, actions in sent)
    raw = [hash_policy.row(Observation(images, state, "reach"), (episode_key(episode, 0), s)) for s in (0, 4, 8)]
    assert np.array_equal(first, raw[0][:4])
    assert np.array_equal(second, np.concatenate([raw[0][4:6], raw[1][2:4]]))
    assert np.array_equal(third, np.concatenate([raw[1][4:6], raw[2][2:4]]))
    if naive:
        assert given == [None] * 3
    else:
        assert [len(tails[0]) for tails in given] == [0, 2, 2] and np.array_equal(given[1][0], raw[0][4:6])
