# SPDX-License-Identifier: Apache-2.0
"""Instructions for episodes: something proposes, the policy decides."""

import numpy as np
import pytest

from tests.networks import a_policy, chunk, now, pictures
from vla.canvas.query import Part, part_of
from vla.policy.labelling import label
from vla.policy.types import Answer, SegmentOutput


@pytest.fixture(scope="module")
def policy():
    return a_policy()


def frame(seed):
    return now(seed, actions=chunk(seed), goal_image=pictures(60))


def test_a_label_is_the_proposal_under_which_the_actions_are_likeliest(policy, monkeypatch):
    """The query says one thing of each frame; the policy, asked about all of them, decides."""
    proposals = iter(["reach the red block"] * 2 + ["reach the blue block", "", "reach the red block", "reach"])
    likely = {"reach the blue block": -1.0, "reach the red block": -3.0, "reach": -2.0}
    heat = []

    def ask(questions, keys, sampling):
        assert all(q.query.name == "label" and part_of(q.instruction) is Part.ASKED for q in questions)
        heat.append(sampling.temperature)
        texts = [next(proposals) for _ in questions]
        return Answer(instruction=SegmentOutput(texts, np.zeros((2, 1)), np.ones((2, 1))))

    def score(questions):
        assert all(part_of(q.actions) is Part.GIVEN for q in questions)
        return np.array([likely[q.instruction] for q in questions])

    monkeypatch.setattr(policy, "ask", ask)
    monkeypatch.setattr(policy, "score", score)
    frames = [frame(s) for s in range(2)]
    (found,) = label(policy, [frames], [(0, 0)], candidates=2)
    assert (found.instruction, found.proposed) == ("reach the blue block", "reach the red block")
    assert found.confidence == pytest.approx(1 / (1 + np.exp(-2) + np.exp(-4)))  # two frames of each
    assert heat == [0.0, 1.0, 1.0]  # the likeliest, then draws
    (found,) = label(policy, [frames], [(0, 0)], among=["reach the red block", "reach"])  # asks the query nothing
    assert (found.instruction, found.proposed) == ("reach", "")


def test_labels_of_a_network_that_knows_nothing_are_sentences_with_a_share(policy):
    labels = label(policy, [[frame(0)], [frame(1), frame(2)]], [(0, 0), (1, 0)], candidates=1)
    assert len(labels) == 2 and all(0 < found.confidence <= 1 for found in labels)
    among = label(policy, [[frame(0)]], [(0, 0)], among=["reach the blue block", "push the red block left"])
    own = policy.score([frame(0), frame(0).but(instruction="push the red block left")])
    assert among[0].instruction == ["reach the blue block", "push the red block left"][int(own.argmax())]


def test_what_cannot_be_labelled_says_why(policy):
    with pytest.raises(ValueError, match="at least one frame"):
        label(policy, [[]], [(0, 0)])
    with pytest.raises(ValueError, match=r"1 to \d+ tokens"):
        label(policy, [[frame(0)]], [(0, 0)], among=["reach", ""])
    with pytest.raises(ValueError, match=r"proposals need Question\.goal_image"):
        label(policy, [[now(0, actions=chunk(0))]], [(0, 0)])
    with pytest.raises(ValueError, match="a score is of actions that are given"):
        label(policy, [[now(0)]], [(0, 0)], among=["reach"])
