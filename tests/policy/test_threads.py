# SPDX-License-Identifier: Apache-2.0
"""The number of CPU threads is what was measured to pay, and is set where it was measured."""

import pytest
import torch

from tests.networks import a_policy
from vla.policy import threads


@pytest.fixture
def policy():
    before = torch.get_num_threads()
    yield a_policy()
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("ms", "most", "chosen"),
    [
        ({1: 4.0, 2: 3.5}, 8, 1),  # twice the threads for an eighth of the time
        ({1: 100.0, 2: 60.0, 4: 59.0}, 8, 2),
        ({1: 100.0, 2: 60.0}, 3, 2),
        ({1: 100.0}, 1, 1),
    ],
)
def test_more_threads_have_to_pay(policy, monkeypatch, ms, most, chosen):
    monkeypatch.setattr(threads, "decision_ms", lambda _, number: ms[number])
    assert threads.choose_threads(policy, most) == torch.get_num_threads() == chosen


def test_a_real_decision_is_timed(policy, monkeypatch):
    monkeypatch.setattr(threads, "PAUSE_S", 0.0)
    asked = []
    monkeypatch.setattr(policy, "act", lambda observations, keys: asked.append(torch.get_num_threads()))
    assert threads.decision_ms(policy, 2) >= 0
    assert asked == [2] * (threads.TRIES + 2)
