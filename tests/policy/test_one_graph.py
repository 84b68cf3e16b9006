# SPDX-License-Identifier: Apache-2.0
"""The whole decision as one graph: no break in it, never compiled twice, the same answers."""

import numpy as np
import pytest
import torch

from vla.diffusion import Sampling
from vla.policy import Observation, Policy


def seen(policy, seed):
    draw = np.random.default_rng(seed)
    size = policy.image_size
    images = {camera: draw.integers(0, 256, (size, size, 3), dtype=np.uint8) for camera in policy.cameras}
    state = draw.normal(size=len(policy.state_names)).astype(np.float32)
    return Observation(images, state, ("push the red block to the left", "reach the blue block")[seed % 2])


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(4, temperature=1.0), Sampling(1, noise=True)])
def test_one_graph_without_breaks_is_compiled_once_and_decides_the_same(tiny_run, sampling):
    plain, compiled = (Policy.load(tiny_run / "checkpoints" / "last") for _ in range(2))
    plain.sampling = compiled.sampling = sampling
    compiled.compile(rows=2, backend="eager")  # raises at a break
    torch._dynamo.utils.counters.clear()
    for number in range(4):  # raises where it would compile again
        observations, keys = [seen(plain, 2 * number), seen(plain, 2 * number + 1)], [(number, 0), (number, 1)]
        committed = [np.zeros((number % 3, len(plain.action_names)), np.float32)] * 2 if number else None
        expected, found = (policy.decide(observations, keys, committed) for policy in (plain, compiled))
        np.testing.assert_array_equal(found.actions_BHA, expected.actions_BHA)
        np.testing.assert_array_equal(found.confidence_BHA, expected.confidence_BHA)
    assert not torch._dynamo.utils.counters["stats"] and not torch._dynamo.utils.counters["graph_break"]
    one = compiled.decide(observations[:1], keys[:1])  # padded, not compiled anew
    np.testing.assert_allclose(one.actions_BHA, plain.decide(observations[:1], keys[:1]).actions_BHA, atol=1e-6)


def test_a_sampler_that_looks_at_its_answers_is_refused(tiny_run):
    policy = Policy.load(tiny_run / "checkpoints" / "last")
    policy.sampling = Sampling(4, stop_at=0.9)
    with pytest.raises(ValueError, match="set stop_at to 1 to compile"):
        policy.compile()


def test_another_sampling_is_obeyed_without_the_graph(tiny_run):
    plain, compiled = (Policy.load(tiny_run / "checkpoints" / "last") for _ in range(2))
    compiled.compile(backend="eager")
    plain.sampling = compiled.sampling = Sampling(4, temperature=2.0)
    found, expected = (policy.act([seen(plain, 1)], [(1, 2)]) for policy in (compiled, plain))
    np.testing.assert_array_equal(found, expected)
