# SPDX-License-Identifier: Apache-2.0
"""A query is a mask pattern; one that was not trained is refused, with those that were."""

import numpy as np
import pytest

from vla.canvas import Segment
from vla.canvas.query import (
    ASK,
    QUERIES,
    WRITTEN,
    Part,
    PartialActions,
    Query,
    Question,
    check_trained,
    continuation,
    infill,
    without,
)

NOW = Question({}, np.zeros(2), "go")
CHUNK = np.ones((4, 2), np.float32)


def test_a_question_has_the_shape_of_its_query():
    for name, query in QUERIES.items():
        values = {Part.ABSENT: None, Part.ASKED: ASK, Part.GIVEN: CHUNK}
        partly = {"continuation": PartialActions.prefix(CHUNK[:2], 4)}
        partly["infill"] = PartialActions(CHUNK, np.arange(8).reshape(4, 2) == 5)
        fields = {field: values.get(part, partly.get(name)) for field, part in query.parts().items()}
        assert NOW.but(name=name, **fields).query == query
        assert query.asked and not set(query.asked) & set(query.given)


@pytest.mark.parametrize(
    ("known", "begins"),
    [
        ([[1, 1], [1, 1], [0, 0]], True),
        ([[0, 0], [0, 0], [0, 0]], True),
        ([[1, 1], [1, 1], [1, 1]], True),
        ([[1, 1], [1, 0], [0, 0]], False),
        ([[0, 0], [1, 1], [1, 1]], False),
        ([[1, 1], [0, 0], [1, 1]], False),
    ],
)
def test_only_whole_first_steps_are_a_beginning(known, begins):
    known = np.array(known, bool)
    assert PartialActions(np.zeros((3, 2)), known).begins is begins
    assert not PartialActions(np.zeros((3, 2)), known.astype(int)).begins  # digits: "1" is only the coarse one
    assert PartialActions(np.zeros((3, 2)), known).levels(3).tolist() == (3 * known).tolist()


def test_an_untrained_query_is_refused_with_the_list_of_the_trained_ones():
    check_trained(QUERIES["plan"], ("policy", "plan"))
    check_trained(QUERIES["plan"], ("plan",), written=WRITTEN)
    with pytest.raises(ValueError) as refused:
        check_trained(QUERIES["goal_policy"], ("policy", "world_model"))
    said = str(refused.value)
    assert "actions | goal_image" in said and "policy (actions | instruction)" in said
    assert "world_model (future_image | actions)" in said and "plan" not in said
    for query in QUERIES.values():  # no two of them are one
        others = [name for name, other in QUERIES.items() if other is not query]
        if query.name != "continuation":  # the first actions are some of the actions
            with pytest.raises(ValueError, match="was not trained to answer"):
                check_trained(query, others)


def test_who_fills_in_any_actions_may_be_given_the_first_ones_and_not_the_reverse():
    begun = continuation(NOW, CHUNK[:2], 4).query
    middle = infill(NOW, CHUNK, np.arange(8).reshape(4, 2) == 5).query
    check_trained(begun, ["infill"])
    check_trained(begun, ["continuation"])
    check_trained(middle, ["infill"])
    with pytest.raises(ValueError, match="was not trained"):
        check_trained(middle, ["continuation", "policy"])
    with pytest.raises(ValueError, match="was not trained"):
        check_trained(begun, ["policy"])


def test_a_model_without_a_segment_was_trained_without_it():
    lacks_plans = [s for s in WRITTEN if s is not Segment.PLAN]
    joint = without(QUERIES["joint"], lacks_plans)
    assert joint.asked == (Segment.FUTURE_IMAGE, Segment.ACTION)
    check_trained(joint, ["joint"], lacks_plans)
    with pytest.raises(ValueError, match="was not trained"):
        check_trained(QUERIES["joint"], ["joint"], lacks_plans)
    with pytest.raises(ValueError, match="was not trained"):
        check_trained(joint, ["joint"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Query("nothing", plan=Part.GIVEN), "asks for nothing"),
        (lambda: Query("half", plan=Part.PARTLY, actions=Part.ASKED), "only actions can be partly given, got plan"),
        (lambda: Query("goal", goal_image=Part.ASKED), "a goal image is given or absent"),
        (lambda: PartialActions(CHUNK, CHUNK[:2] > 0), "of one shape"),
        (lambda: PartialActions(CHUNK, np.full((4, 2), 3)).levels(2), r"0\.\.2 digits, got 3\.\.3"),
        (lambda: PartialActions.prefix(CHUNK, 3), "at most 3 committed steps fit into a chunk, got 4"),
    ],
)
def test_what_cannot_be_says_why(make, message):
    with pytest.raises(ValueError, match=message):
        make()
