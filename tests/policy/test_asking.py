# SPDX-License-Identifier: Apache-2.0
"""Any question to one network: what comes back, that acting is asking, what is refused and why."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.networks import OUTPUTS, QUESTIONS, a_policy, chunk, now, observation, pictures, some
from vla import checkpoint
from vla.canvas import Segment, query
from vla.canvas.query import ASK, QUERIES, WRITTEN, PartialActions
from vla.diffusion import Sampling
from vla.diffusion.limits import Limits
from vla.diffusion.sampler import sequential
from vla.policy import Observation, Policy

HOT = Sampling(3, temperature=1.0, noise=True, revisions=2, remask_below=0.3)


@pytest.fixture(scope="module")
def shared():
    return a_policy(noise_indices=4)


@pytest.fixture
def policy(shared):
    """The same network for all tests; settings begin anew."""
    return Policy(shared.model, shared.tokenizers, shared.fps, trained=shared.trained)


def keys(count, step=0):
    return [(seed, step) for seed in range(count)]


def found(answer):
    """{name: output} of what was asked."""
    return {name: getattr(answer, name) for name in OUTPUTS if getattr(answer, name) is not None}


@pytest.mark.parametrize("name", QUESTIONS)
def test_every_query_answers_with_tokens_values_and_confidence(policy, name):
    questions = [QUESTIONS[name](s) for s in range(3)]
    assert questions[0].query == replace(QUERIES[name], name=questions[0].name)
    answer = policy.ask(questions, keys(3), replace(HOT, revisions=0))
    assert {query.FIELDS[s] for s in questions[0].query.asked} == found(answer).keys()
    for output in found(answer).values():
        assert ((output.confidence > 0) & (output.confidence <= 1 + 1e-6)).all() and len(output.tokens) == 3
    if answer.actions is not None:
        assert answer.actions.values.shape == answer.actions.confidence.shape == (3, 8, 3)
        assert answer.lengths.tolist() == [8, 8, 8]
        assert (answer.actions.tokens < [[16, 16], [16, 16], [2, 1]]).all()  # the gripper has two values
    if answer.waypoints is not None:
        assert answer.waypoints.values.shape == (3, 3, 3)
    if answer.future_image is not None:
        assert all(picture.shape == (3, 64, 64, 3) for picture in answer.future_image.values.values())
        assert answer.future_image.tokens.shape == (3, 128, 1, 2)
        assert (answer.future_image.tokens < [5, 3]).all()  # of its own vocabulary
    for text in (answer.plan, answer.instruction):
        assert text is None or text.confidence.shape == text.tokens.shape


# --- ask is act, rows are rows ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("limited", [False, True])
@pytest.mark.parametrize("committed", [0, 2])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(1, noise=True), HOT])
def test_acting_is_asking(policy, sampling, committed, limited):
    """The same key gives the same tokens, whichever way the question is put."""
    if limited:
        policy.limit(Limits(policy.action_names, low=[-0.9, None, None], change=[None, 0.5, None]))
    policy.sampling, previous = sampling, np.zeros((3, 3), np.float32)
    seen, prefixes = [observation(s) for s in range(3)], [chunk(s)[:committed] for s in range(3)]
    decided = policy.decide(seen, keys(3, 7), committed=prefixes, previous=previous)
    asked = [query.continuation(now(s), p, 8) if committed else query.policy(now(s)) for s, p in enumerate(prefixes)]
    answer = policy.ask(asked, keys(3, 7), previous=previous)
    np.testing.assert_array_equal(answer.actions.values, decided.actions_BHA)
    np.testing.assert_array_equal(answer.actions.confidence, decided.confidence_BHA)
    other = policy.ask(asked, keys(3, 8), previous=previous).actions.confidence
    assert np.array_equal(other, answer.actions.confidence) == (sampling == Sampling())  # the key is all randomness


@pytest.mark.parametrize("name", QUESTIONS)
def test_rows_of_any_batch_are_one(policy, name):
    """Padded to the same number of rows they are equal bit for bit; else to the rounding of floats."""
    policy.sampling = replace(HOT, revisions=1)
    questions = [QUESTIONS[name](s) for s in range(3)]
    loose = policy.ask(questions, keys(3, 7))
    policy.rows = 2
    together = policy.ask(questions, keys(3, 7))
    alone = [policy.ask([question], [(row, 7)]) for row, question in enumerate(questions)]
    for field, output in found(together).items():
        assert len(output.values if field in ("plan", "instruction") else output.tokens) == 3
        for row in range(3):
            own = getattr(alone[row], field)
            np.testing.assert_array_equal(output.tokens[row], own.tokens[0])
            np.testing.assert_array_equal(output.confidence[row], own.confidence[0])
        np.testing.assert_array_equal(output.tokens, getattr(loose, field).tokens)
        np.testing.assert_allclose(output.confidence, getattr(loose, field).confidence, atol=1e-5)


@pytest.mark.parametrize("rows", [None, 1, 2, 5])
@pytest.mark.parametrize("decoding", ["plan", "joint", "adaptive_plan"])
def test_there_is_one_plan_an_observation_however_many_rows_are_decided_at_once(shared, rows, decoding):
    policy = Policy(shared.model, shared.tokenizers, 10, rows=rows, decoding=decoding, trained=shared.trained)
    policy.think_below = 1.1  # none is sure enough
    decided = policy.decide([observation(s) for s in range(3)], keys(3))
    assert len(decided.plans) == len(decided.actions_BHA) == len(decided.length_B) == 3
    expected = policy.ask([query.plan(now(s)) for s in range(3)], keys(3)).plan.values
    assert decoding == "joint" or decided.plans == tuple(expected)
    assert all(isinstance(plan, str) for plan in decided.plans)


def test_who_is_sure_does_not_think(shared):
    policy = Policy(shared.model, shared.tokenizers, 10, decoding="adaptive_plan", trained=shared.trained)
    seen = [observation(s) for s in range(3)]
    quick = Policy(shared.model, shared.tokenizers, 10).decide(seen, keys(3))
    thought = Policy(shared.model, shared.tokenizers, 10, decoding="plan", trained=shared.trained).decide(seen, keys(3))
    sure_B = quick.confidence_BHA[:, : policy.n_action_steps].min((1, 2))
    policy.think_below = float(np.sort(sure_B)[1])  # one of three is less sure
    decided, slow = policy.decide(seen, keys(3)), sure_B < policy.think_below
    assert slow.sum() == 1
    expected = np.where(slow[:, None, None], thought.actions_BHA, quick.actions_BHA)
    np.testing.assert_allclose(decided.actions_BHA, expected, atol=1e-5)
    assert decided.plans == tuple(plan if s else "" for plan, s in zip(thought.plans, slow, strict=True))


@pytest.mark.parametrize("decoding", ["plan", "waypoints"])
def test_who_goes_by_a_way_hears_nothing_else(shared, decoding, monkeypatch):
    """First the way, then actions for which the instruction is withheld."""
    policy = Policy(shared.model, shared.tokenizers, 10, decoding=decoding, trained=shared.trained)
    asked, real = [], policy.ask
    monkeypatch.setattr(policy, "ask", lambda questions, *a, **k: asked.append(questions) or real(questions, *a, **k))
    decided = policy.decide([observation(0)], keys(1))
    (first,), (second,) = asked
    assert first.query == query.plan(now()).query if decoding == "plan" else first.query == query.waypoints(now()).query
    found = real([first], keys(1))
    way = found.plan.tokens[0] if decoding == "plan" else found.waypoints.values[0]  # the very words
    assert decided.plans == ((found.plan.values[0],) if decoding == "plan" else ())
    follow = query.plan_policy(now(0), way) if decoding == "plan" else query.waypoint_policy(now(0), way)
    assert second.instruction is None and second.query == follow.query
    np.testing.assert_array_equal(decided.actions_BHA, real([follow], keys(1)).actions.values)


# --- what is given ----------------------------------------------------------------------------------------------------
def test_what_is_given_partly_comes_back_bit_exact_and_coarse_digits_stay(policy):
    known, values = some(0), chunk(3)
    policy.sampling = replace(HOT, temperature=1.5)
    answer = policy.ask([query.infill(now(3), values, known)], keys(1)).actions
    assert np.array_equal(answer.values[0, 6:], values[6:]) and (answer.confidence[0, 6:] == 1).all()
    wanted = policy.tokenizers.action.encode(torch.from_numpy(values))[..., 0].numpy()
    assert answer.tokens[0, 1, 0, 0] == wanted[1, 0] and answer.confidence[0, 1, 0] == 1
    assert not np.array_equal(answer.tokens[0, :6, :, 0], wanted[:6])


@pytest.mark.parametrize("segment", ["instruction", "plan", "waypoints", "future_image", "goal_image", "actions"])
def test_whatever_is_given_is_heard(policy, segment):
    """Another value gives another answer, in some of the questions that give it."""
    heard = 0
    for name, make in QUESTIONS.items():
        question, other = make(1), make(2)
        if getattr(question, segment) is None or getattr(question, segment) is ASK or name == "infill":
            continue
        changed = "push the red block left" if segment == "instruction" else getattr(other, segment)
        one, two = (policy.ask([q], keys(1)) for q in (question, question.but(**{segment: changed})))
        same = [np.array_equal(found(one)[n].confidence, found(two)[n].confidence) for n in found(one)]
        assert not any(same), name
        heard += 1
    assert heard


@pytest.mark.parametrize("name", ["policy", "joint", "inverse", "infill", "decide"])
def test_limits_hold_in_whatever_way_actions_are_asked_for(policy, name):
    """Hot samples, so that without limits nearly every chunk breaks them."""
    limits = Limits(policy.action_names, low=[-0.5, None, None], high=[0.4, None, None], change=[None, 0.1, None])
    previous = np.array([[0.0, 0.2, 1.0]] * 3, np.float32)
    policy.sampling = replace(HOT, temperature=2.0)

    def sampled():
        if name == "decide":
            return policy.decide([observation(s) for s in range(3)], keys(3), previous=previous).actions_BHA
        questions = [QUESTIONS[name](s) for s in range(3)]
        if name == "infill":  # of the gripper, which has no limits
            questions = [query.infill(now(s), chunk(s), np.arange(24).reshape(8, 3) % 6 == 2) for s in range(3)]
        return policy.ask(questions, keys(3), previous=previous).actions.values

    def broken(actions):
        steps = np.diff(np.concatenate([previous[:, None], actions], axis=1), axis=1)
        return (actions[..., 0] > 0.4).any() or (actions[..., 0] < -0.5).any() or (np.abs(steps[..., 1]) > 0.1).any()

    assert broken(sampled())
    policy.limit(limits)
    assert not broken(sampled())
    policy.limit(None)
    assert broken(sampled())


def test_segments_may_take_turns(policy):
    question = query.joint(now(2))
    answer = policy.ask([question], keys(1), turns=sequential(question.query.asked, 2))
    assert answer.steps == 5 + 2 + 2 and found(answer).keys() == {"plan", "future_image", "actions"}


def test_history_is_heard_and_must_be_whole():
    policy = a_policy(n_obs_steps=2)

    def seen(**changes):
        images = {c: np.stack([pictures(0)[c], pictures(1)[c]]) for c in policy.cameras}
        fields = {"images": images, "state": np.zeros((2, 3), np.float32), "executed": np.zeros((1, 3), np.float32)}
        return Observation(**(fields | {"instruction": "reach the blue block"} | changes))

    plain = policy.decide([seen()], keys(1)).confidence_BHA
    older = {c: np.stack([pictures(9)[c], pictures(1)[c]]) for c in policy.cameras}
    one, unknown = np.ones((1, 3), np.float32), np.full((1, 3), np.nan, np.float32)
    moved = np.array([[1, 0, 0], [0, 0, 0]], np.float32)
    for changes in ({"images": older}, {"state": moved}, {"executed": one}, {"executed": unknown}):
        assert not np.array_equal(policy.decide([seen(**changes)], keys(1)).confidence_BHA, plain), changes.keys()
    silent = [policy.decide([seen(executed=x)], keys(1)).actions_BHA for x in (None, unknown)]
    np.testing.assert_array_equal(*silent)
    assert np.isfinite(policy.act([policy.blank()], keys(1))).all()
    for changes, message in (
        ({"state": np.zeros(3, np.float32)}, r"states of shape \(2, 3\)"),
        ({"images": pictures(0)}, r"uint8 \(2, 64, 64, 3\), got uint8 \(64, 64, 3\)"),
        ({"executed": np.zeros((2, 3), np.float32)}, r"executed actions of shape \(1, 3\), got \(2, 3\)"),
    ):
        with pytest.raises(ValueError, match=message):
            policy.act([seen(**changes)], keys(1))


def test_scores_rank_the_policys_own_actions_above_others(policy):
    own = policy.ask([query.policy(now(4))], keys(1)).actions.values[0]
    scores = policy.score([now(4, actions=own), now(4, actions=chunk(1)), now(4, actions=chunk(2))])
    assert scores.dtype == np.float64 and scores[0] > scores[1:].max()
    with pytest.raises(ValueError, match="a score is of actions that are given"):
        policy.score([query.policy(now(4))])


# --- what is refused --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("questions", "message"),
    [
        (lambda: [], "at least one"),
        (lambda: [now(0)], "asks for nothing"),
        (lambda: [query.policy(now(0)), query.plan(now(1))], "one shape"),
        (lambda: [query.world_model(now(0), chunk(0)[:4])], r"shape \(8, 3\)"),
        (lambda: [query.continuation(now(0), np.zeros((2, 5)), 8)], r"shape \(8, 3\).*got \(8, 5\)"),
        (lambda: [query.waypoint_policy(now(0), chunk(0))], r"waypoints of shape \(3, 3\)"),
        (lambda: [query.plan_policy(now(0), "lift " * 9)], "has 9 words, there is room for 8"),
        (lambda: [query.inverse(now(0), {"front": pictures(0)["front"]})], "missing"),
        (lambda: [query.plan(now(0)).but(instruction=PartialActions(chunk(0), chunk(0) > 0))], "only actions"),
        (lambda: [now(0, goal_image=pictures(1), future_image=pictures(2), actions=ASK)], "was not trained to answer"),
    ],
)
def test_questions_that_cannot_be_answered_say_why(policy, questions, message):
    with pytest.raises(ValueError, match=message):
        made = questions()
        policy.ask(made, keys(len(made)))


def test_nothing_to_decide_is_refused(policy):
    with pytest.raises(ValueError, match="at least one observation"):
        policy.decide([], [])
    with pytest.raises(ValueError, match="one key for each of 2, got 1 keys"):
        policy.decide([observation(0), observation(1)], keys(1))


def test_what_was_not_trained_is_refused_and_an_infill_may_be_a_beginning(shared):
    few = Policy(shared.model, shared.tokenizers, 10, trained=("policy", "infill"))
    for name, make in QUESTIONS.items():
        if name in ("policy", "infill", "continuation"):
            few.ask([make(0)], keys(1))
        else:
            with pytest.raises(ValueError, match=r"It was trained for: policy \(actions \| instruction\); infill"):
                few.ask([make(0)], keys(1))
    mixed = [query.continuation(now(0), chunk(0)[:2], 8), QUESTIONS["infill"](1)]
    assert np.array_equal(few.ask(mixed, keys(2)).actions.values[0, :2], chunk(0)[:2])
    only = Policy(shared.model, shared.tokenizers, 10, trained=("policy",))
    with pytest.raises(ValueError, match=r"to answer actions \| instruction, the first actions"):
        only.decide([observation(0)], keys(1), committed=[chunk(0)[:2]])
    with pytest.raises(ValueError, match="was not trained for plan, plan_policy, only for policy"):
        Policy(shared.model, shared.tokenizers, 10, decoding="plan", trained=("policy",))
    with pytest.raises(ValueError, match="expected a decoding out of actions, plan"):
        Policy(shared.model, shared.tokenizers, 10, decoding="thinking", trained=("policy",))
    by_plan = Policy(shared.model, shared.tokenizers, 10, decoding="plan", trained=shared.trained)
    with pytest.raises(ValueError, match="committed actions need decoding='actions'"):
        by_plan.decide([observation(0)], keys(1), committed=[chunk(0)[:2]])


def test_a_model_without_a_segment_is_asked_without_it():
    blind = a_policy(trained=("policy", "joint"), codes=0, code_radices=())
    assert set(WRITTEN) - set(blind.model.config.written) == {Segment.FUTURE_IMAGE}
    joint = Policy(blind.model, blind.tokenizers, 10, decoding="joint", trained=blind.trained)
    assert len(joint.decide([observation(0)], keys(1)).plans) == 1
    with pytest.raises(ValueError, match=r"joint \(plan, actions \| instruction\)"):
        blind.ask([query.joint(now(0))], keys(1))


def test_a_policy_is_saved_and_loaded_whole(policy, tmp_path):
    loaded = Policy.load(checkpoint.write_folder(tmp_path / "whole", policy.write))
    assert loaded.trained == policy.trained and loaded.model.config == policy.model.config
    for name in ("joint", "world_model", "waypoint_policy"):
        a, b = (found(p.ask([QUESTIONS[name](5)], keys(1))) for p in (policy, loaded))
        for field in a:
            np.testing.assert_array_equal(a[field].tokens, b[field].tokens)
            np.testing.assert_array_equal(a[field].confidence, b[field].confidence)
    pictures_ = [p.ask([QUESTIONS["joint"](5)], keys(1)).future_image.values["wrist"] for p in (policy, loaded)]
    np.testing.assert_array_equal(*pictures_)
