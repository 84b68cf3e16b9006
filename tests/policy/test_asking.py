# SPDX-License-Identifier: Apache-2.0
"""Any question to one network: shapes, what is given comes back, rows do not depend on each other, clear errors."""

import numpy as np
import pytest
import torch

from vla.canvas import Segment, query
from vla.canvas.query import ASK, Part, Partly, Question, part_of
from vla.diffusion import Sampling
from vla.diffusion.joint import one_by_one, together
from vla.diffusion.limits import Limits
from vla.model import LatticeModel, ModelConfig
from vla.policy import Observation, Policy, asking
from vla.tokenizers import (
    BinTokenizer,
    ImageTokenizer,
    StateScaler,
    TextTokenizer,
    Tokenizers,
    WordNumerals,
    neighbour_counts,
)

CAMERAS = ("front", "wrist")
SENTENCES = ["push the red block left", "reach the blue block", "lower, close the gripper, lift"]


@pytest.fixture(scope="module")
def policy():
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (200, 3)).astype(np.float32)
    actions[:, 2] = np.sign(actions[:, 2])
    names = ["x", "y", "gripper"]
    text = TextTokenizer.train(SENTENCES, 300)
    words = WordNumerals.fit(neighbour_counts([text.ids(s) for s in SENTENCES], text.vocabulary + 1))
    torch.manual_seed(0)
    image = ImageTokenizer(64, levels=(5, 3), width=16).eval()
    tokenizers = Tokenizers(
        BinTokenizer.fit(actions, names), StateScaler.fit(actions, names), text, words=words, image=image
    )
    config = ModelConfig(
        cameras=CAMERAS,
        image_size=64,
        state_dim=3,
        vocabulary=text.vocabulary,
        text_length=text.length,
        action_dims=3,
        width=32,
        layers=1,
        heads=2,
        quality=True,
        word_radices=words.numerals.radices,
        plan_length=8,
        code_radices=image.numerals.radices,
        codes=image.positions,
    )
    model = LatticeModel(config)
    for p in model.parameters():
        p.data += torch.randn_like(p) * 0.05
    return Policy(model, tokenizers, fps=10)


def pictures(seed):
    rng = np.random.default_rng(seed)
    return {c: rng.integers(0, 256, (64, 64, 3), dtype=np.uint8) for c in CAMERAS}


def now(seed=0, **values):
    return Question(pictures(seed), np.full(3, 0.1 * seed, np.float32), "reach the blue block", **values)


def chunk(seed):
    values = np.random.default_rng(seed).uniform(-1, 1, (8, 3)).astype(np.float32)
    values[:, 2] = 1.0
    return values


QUESTIONS = {
    "policy": lambda s: query.policy(now(s)),
    "plan": lambda s: query.plan(now(s)),
    "world_model": lambda s: query.world_model(now(s), chunk(s)),
    "inverse": lambda s: query.inverse(now(s), pictures(50 + s)),
    "goal_policy": lambda s: query.goal_policy(now(s), pictures(60 + s)),
    "label": lambda s: query.label(now(s), chunk(s)),
    "infill": lambda s: query.infill(now(s), chunk(s), np.arange(8)[:, None].repeat(3, 1) < 2),
    "joint": lambda s: query.joint(now(s)),
}


@pytest.mark.parametrize("name", QUESTIONS)
def test_every_query_answers_with_tokens_values_and_confidence(policy, name):
    questions = [QUESTIONS[name](s) for s in range(3)]
    answer = policy.ask(questions, [(s, 0) for s in range(3)])
    asked = {segment.name.lower().replace("action", "actions") for segment in questions[0].query.asked}
    assert asked == {n for n in ("instruction", "plan", "future_image", "actions") if getattr(answer, n) is not None}
    if answer.actions is not None:
        assert answer.actions.values.shape == answer.actions.confidence.shape == (3, 8, 3)
    if answer.future_image is not None:
        assert all(answer.future_image.values[c].shape == (3, 64, 64, 3) for c in CAMERAS)
        assert answer.future_image.tokens.shape == (3, 128, 1, 2)
        assert (answer.future_image.tokens < [5, 3]).all()  # of its own vocabulary
    for found in (answer.plan, answer.instruction):
        assert found is None or (len(found.values) == 3 and found.confidence.shape == found.tokens.shape)
    for found in (answer.plan, answer.instruction, answer.future_image, answer.actions):
        assert found is None or ((found.confidence >= 0) & (found.confidence <= 1 + 1e-6)).all()


@pytest.mark.parametrize("name", ["joint", "inverse", "label"])
def test_rows_do_not_depend_on_each_other(policy, name):
    together = policy.ask([QUESTIONS[name](s) for s in range(3)], [(s, 7) for s in range(3)])
    alone = policy.ask([QUESTIONS[name](1)], [(1, 7)])
    for segment in ("instruction", "plan", "future_image", "actions"):
        a, b = getattr(together, segment), getattr(alone, segment)
        assert (a is None) == (b is None)
        assert a is None or np.array_equal(a.tokens[1], b.tokens[0])


def test_the_policy_query_is_the_policy(policy):
    observation = Observation(pictures(1), np.full(3, 0.1, np.float32), "reach the blue block")
    chunk = policy.decide([observation], [(1, 0)])
    answer = policy.ask([query.policy(now(1))], [(1, 0)])
    assert np.allclose(answer.actions.values, chunk.actions_BHA, atol=1e-6)


def test_what_is_given_partly_comes_back_bit_exact_and_coarse_digits_stay(policy):
    known = np.zeros((8, 3), dtype=np.int64)
    known[:2] = 2  # the first steps
    known[5, :2] = 1  # a waypoint, roughly
    values = chunk(3)
    policy.sampling = Sampling(4, temperature=1.5)
    try:
        answer = policy.ask([query.infill(now(3), values, known)], [(3, 0)])
    finally:
        policy.sampling = Sampling()
    assert np.array_equal(answer.actions.values[0, :2], values[:2])
    wanted = policy.tokenizers.action.encode(torch.from_numpy(values))[..., 0].numpy()
    assert np.array_equal(answer.actions.tokens[0, 5, :2, 0], wanted[5, :2])
    assert (answer.actions.confidence[0, :2] == 1).all()


@pytest.mark.parametrize("name", ["policy", "joint", "inverse", "decide"])
def test_limits_hold_in_whatever_way_actions_are_asked_for(policy, name):
    """Hot samples, so that without limits nearly every chunk breaks them."""
    limits = Limits(policy.action_names, low=[-0.5, None, None], high=[0.4, None, None], change=[None, 0.1, None])
    previous = np.array([[0.0, 0.2, 1.0]] * 3, np.float32)

    def sampled():
        if name == "decide":
            seen = [Observation(pictures(s), np.full(3, 0.1, np.float32), "reach the blue block") for s in range(3)]
            return policy.decide(seen, [(s, 0) for s in range(3)], previous=previous).actions_BHA
        return policy.ask(
            [QUESTIONS[name](s) for s in range(3)], [(s, 0) for s in range(3)], previous=previous
        ).actions.values

    def broken(actions):
        steps = np.diff(np.concatenate([previous[:, None], actions], axis=1), axis=1)
        return (actions[..., 0] > 0.4).any() or (actions[..., 0] < -0.5).any() or (np.abs(steps[..., 1]) > 0.1).any()

    before, policy.sampling = policy.sampling, Sampling(4, temperature=2.0)
    try:
        assert broken(sampled())
        policy.limit(limits)
        assert not broken(sampled())
    finally:
        policy.limit(None)
        policy.sampling = before


def test_segments_may_take_turns(policy):
    question = query.joint(now(2))
    turns = one_by_one(question.query.asked, 2)
    answer = policy.ask([question], [(2, 0)], turns=turns)
    assert answer.evaluations == 5 + 2 + 2 and answer.actions is not None


@pytest.mark.parametrize("finished", [Segment.PLAN, Segment.FUTURE_IMAGE])
def test_what_is_decided_is_not_evaluated_again(policy, monkeypatch, finished):
    """The answer is the same; the blocks of an evaluation are those that are open, and those before which one is."""
    questions, keys = [query.joint(now(2)), query.joint(now(3))], [(2, 0), (3, 0)]
    turns = {Segment.PLAN: (1, 5), Segment.FUTURE_IMAGE: (4, 6), Segment.ACTION: (6, 8)}
    if finished is Segment.FUTURE_IMAGE:  # the plan takes longer, so that the picture waits for it
        turns[Segment.PLAN] = (1, 7)
    seen, real = [], LatticeModel.decode_blocks

    def watched(self, prefix, blocks, there=None):
        seen.append((sorted(blocks), prefix.decided))
        return real(self, prefix, blocks, there)

    monkeypatch.setattr(LatticeModel, "decode_blocks", watched)
    found = policy.ask(questions, keys, turns=turns)
    kept, seen[:] = [*seen], []
    plain = asking.sample_blocks
    monkeypatch.setattr(asking, "sample_blocks", lambda *given: plain(*given, keep_decided=False))
    expected = policy.ask(questions, keys, turns=turns)
    for name in ("plan", "future_image", "actions"):
        np.testing.assert_array_equal(getattr(found, name).tokens, getattr(expected, name).tokens)
        np.testing.assert_allclose(getattr(found, name).confidence, getattr(expected, name).confidence, atol=1e-5)
    assert all(not decided for _, decided in seen)
    last = kept[-1]
    assert last == ([Segment.ACTION], (Segment.PLAN, Segment.FUTURE_IMAGE))
    assert kept[6][0] == ([Segment.ACTION] if finished is Segment.PLAN else [*turns])


def test_scores_rank_the_policys_own_actions_above_others(policy):
    own = policy.ask([query.policy(now(4))], [(4, 0)]).actions.values[0]
    scores = policy.score([now(4, actions=own), now(4, actions=chunk(1)), now(4, actions=chunk(2))])
    assert scores.dtype == np.float64 and scores[0] > scores[1:].max()


def test_a_label_is_the_proposal_under_which_the_actions_are_likeliest(policy, monkeypatch):
    """The query says one thing of each frame; the policy, asked about all of them, decides."""
    proposals = iter(["reach the red block"] * 2 + ["reach the blue block", "", "reach the red block", "reach"])
    likely = {"reach the blue block": -1.0, "reach the red block": -3.0, "reach": -2.0}

    def ask(_, questions, keys, *__):
        texts = [next(proposals) for _ in questions]
        return asking.Answer(instruction=asking.Found(texts, np.zeros((2, 1)), np.ones((2, 1))))

    def score(_, questions):
        assert all(part_of(q.actions) is Part.GIVEN for q in questions)
        return np.array([likely[q.instruction] for q in questions])

    monkeypatch.setattr(asking, "ask", ask)
    monkeypatch.setattr(asking, "score", score)
    frames = [now(s).but(actions=chunk(s)) for s in range(2)]
    (label,) = policy.label([frames], [(0, 0)], candidates=2)
    assert (label.instruction, label.proposed) == ("reach the blue block", "reach the red block")
    assert label.confidence == pytest.approx(1 / (1 + np.exp(-2) + np.exp(-4)))  # two frames of each
    (label,) = policy.label([frames], [(0, 0)], among=["reach the red block", "reach"])  # asks the query nothing
    assert (label.instruction, label.proposed) == ("reach", "")


def test_labels_need_frames_and_survive_a_query_that_says_nothing_readable(policy):
    labels = policy.label([[now(0).but(actions=chunk(0))]], [(0, 0)], candidates=1)
    assert len(labels) == 1 and 0 < labels[0].confidence <= 1
    with pytest.raises(ValueError, match="at least one frame"):
        policy.label([[]], [(0, 0)])
    with pytest.raises(ValueError, match=r"1 to \d+ tokens"):
        policy.label([[now(0).but(actions=chunk(0))]], [(0, 0)], among=["reach", ""])


def test_in_joint_denoising_all_segments_are_ready_together():
    asked = (Segment.PLAN, Segment.FUTURE_IMAGE, Segment.ACTION)
    assert together(asked, 2) == {Segment.PLAN: (1, 5), Segment.FUTURE_IMAGE: (1, 5), Segment.ACTION: (4, 5)}
    assert together((Segment.FUTURE_IMAGE, Segment.ACTION), 3) == dict.fromkeys(asked[1:], (1, 3))


@pytest.mark.parametrize(
    ("questions", "message"),
    [
        (lambda: [now(0)], "asks for nothing"),
        (lambda: [query.policy(now(0)), query.plan(now(1))], "one shape"),
        (lambda: [query.world_model(now(0), chunk(0)[:4])], r"shape \(8, "),
        (lambda: [query.inverse(now(0), {"front": pictures(0)["front"]})], "missing"),
        (lambda: [now(0, goal_image=pictures(1), future_image=pictures(2), actions=ASK)], "give one of them"),
        (lambda: [query.plan(now(0)).but(instruction=Partly(chunk(0), chunk(0) > 0))], "only actions"),
    ],
)
def test_questions_that_cannot_be_answered_say_why(policy, questions, message):
    with pytest.raises(ValueError, match=message):
        made = questions()
        policy.ask(made, [(i, 0) for i in range(len(made))])


def test_a_unified_policy_is_saved_and_loaded_whole(policy, tmp_path):
    from vla import checkpoint

    folder = checkpoint.write_folder(tmp_path / "unified", policy.write)
    loaded = Policy.load(folder)
    for name in ("joint", "world_model"):
        a, b = (p.ask([QUESTIONS[name](5)], [(5, 0)]) for p in (policy, loaded))
        assert np.array_equal(a.future_image.tokens, b.future_image.tokens)
        assert np.array_equal(a.future_image.values["wrist"], b.future_image.values["wrist"])
