# SPDX-License-Identifier: Apache-2.0
"""Encoding ahead changes when things are computed, and nothing else."""

import threading

import numpy as np
import pytest

from vla.bench.speed_networks import SIZES, make, seen
from vla.policy.pipeline import decide_in_a_row


def test_chunks_are_those_of_one_by_one_and_the_next_is_encoded_meanwhile():
    policy = make(SIZES["nano"])
    asked = [(seen(policy, number), (7, number)) for number in range(4)]
    pulled = []

    def stream():
        for number, one in enumerate(asked):
            pulled.append((number, threading.current_thread().name))
            yield one

    found = []
    for number, chunk in enumerate(decide_in_a_row(policy, stream())):
        found.append(chunk)
        assert chunk.shape == (policy.horizon, len(policy.action_names)) and len(found) == number + 1
    assert len(found) == 4 and [number for number, _ in pulled] == [0, 1, 2, 3]
    assert all(name.startswith("encode") for _, name in pulled)
    for (observation, key), chunk in zip(asked, found, strict=True):
        np.testing.assert_array_equal(chunk, policy.act([observation], [key])[0])
    assert list(decide_in_a_row(policy, [])) == []


def test_an_error_of_the_camera_comes_when_its_chunk_is_asked_for():
    policy = make(SIZES["nano"])

    def stream():
        yield seen(policy, 0), (0, 0)
        raise OSError("the camera fell off")

    chunks = decide_in_a_row(policy, stream())
    assert next(chunks).shape == (policy.horizon, 4)
    with pytest.raises(OSError, match="fell off"):
        next(chunks)
    policy.compile(backend="eager")
    with pytest.raises(ValueError, match="not in one graph"):
        next(decide_in_a_row(policy, []))
