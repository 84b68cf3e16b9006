# SPDX-License-Identifier: Apache-2.0
"""The gate of the shipped checkpoints, in a small form: what is given, is it heard?"""

import numpy as np
import pytest

from benchmarks import heard
from vla.envs.registry import suites
from vla.policy import Policy

CASES = 40


def test_a_ratio_and_its_interval():
    own, other = np.full(50, 0.2), np.full(50, 0.4)
    assert heard.ratio(own, other) == (0.5, (0.5, 0.5))
    noisy = np.random.default_rng(1).uniform(0, 1, 300)
    value, (low, high) = heard.ratio(noisy, noisy[::-1])
    assert value == pytest.approx(1) and low < 1 < high, "a condition that does nothing is not heard"


def test_swapping_takes_another_condition():
    from vla.canvas.query import Question

    nothing = np.zeros(1, np.float32)
    asked = [Question({}, nothing, instruction=text) for text in ("a", "a", "b")]
    assert [q.instruction for q in heard.swapped(asked, "instruction")] == ["b", "b", "a"]


@pytest.mark.slow
@pytest.mark.render
def test_committed_actions_of_the_shipped_checkpoint_are_heard():
    rows = {row.id: row for row in heard.committed_rows("tabletop_nano", Policy.load("tabletop_nano"), CASES)}
    for name in ("committed_ratio", "committed_ratio_push"):
        assert rows[name].interval[1] < 0.7, rows[name]


@pytest.mark.slow
@pytest.mark.render
def test_every_pair_of_the_shipped_checkpoint_is_heard():
    policy = Policy.load("tabletop_nano")
    rows = heard.pair_rows("tabletop_nano", policy, heard.record_cases(policy, suites("tabletop")["demo"], CASES))
    assert len(rows) == 7
    # The state says little that the picture does not show: its interval needs the 300 cases of the benchmark.
    for row in rows:
        assert row.value < 1 if row.id.endswith("state") else row.passes, (row.id, row.interval)
