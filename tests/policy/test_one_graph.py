# SPDX-License-Identifier: Apache-2.0
"""The whole decision as one graph: no break in it, never compiled twice, the same answers."""

import numpy as np
import pytest
import torch

from tests.networks import a_policy, chunk, observation
from vla.canvas import query
from vla.diffusion import Sampling
from vla.policy import Policy


@pytest.fixture(scope="module")
def shared():
    return a_policy(noise_indices=4)


def two(shared, sampling):
    return (Policy(shared.model, shared.tokenizers, 10, sampling, trained=shared.trained) for _ in range(2))


@pytest.mark.parametrize(
    "sampling",
    [Sampling(), Sampling(3, temperature=1.0, noise=True, revisions=1, remask_below=0.3), Sampling(1, noise=True)],
)
def test_one_graph_without_breaks_is_compiled_once_and_decides_the_same(shared, sampling):
    plain, compiled = two(shared, sampling)
    compiled.compile(rows=2, backend="eager")  # raises at a break
    torch._dynamo.utils.counters.clear()
    for number in range(4):  # raises where it would compile again
        observations, keys = [observation(2 * number), observation(2 * number + 1)], [(number, 0), (number, 1)]
        committed = [chunk(number)[: number % 3]] * 2 if number else None
        expected, found = (policy.decide(observations, keys, committed) for policy in (plain, compiled))
        np.testing.assert_array_equal(found.actions_BHA, expected.actions_BHA)
        np.testing.assert_array_equal(found.confidence_BHA, expected.confidence_BHA)
    assert not torch._dynamo.utils.counters["stats"] and not torch._dynamo.utils.counters["graph_break"]
    one = compiled.decide(observations[:1], keys[:1])  # padded, not compiled anew
    assert len(one.actions_BHA) == 1
    np.testing.assert_allclose(one.actions_BHA, plain.decide(observations[:1], keys[:1]).actions_BHA, atol=1e-6)


def test_what_the_graph_was_not_made_for_is_obeyed_without_it(shared, monkeypatch):
    plain, compiled = two(shared, Sampling())
    compiled.compile(backend="eager")
    monkeypatch.setattr(type(compiled._graph), "__call__", lambda *_: pytest.fail("the graph was asked"))
    plain.sampling = compiled.sampling = Sampling(4, temperature=2.0)
    found, expected = (policy.act([observation(1)], [(1, 2)]) for policy in (compiled, plain))
    np.testing.assert_array_equal(found, expected)
    plain.sampling = compiled.sampling = Sampling()  # the graph's own; but more is given than it reads
    question = query.plan_policy(query.Question(**vars(observation(0)) | {"instruction": None}), "lift")
    found, expected = (policy.ask([question], [(1, 2)]).actions.values for policy in (compiled, plain))
    np.testing.assert_array_equal(found, expected)
