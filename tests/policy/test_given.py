# SPDX-License-Identifier: Apache-2.0
"""Given, decided and shown are one: whoever says a segment, the network reads the same thing, bit for bit."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from tests.networks import KEYS, QUESTIONS, a_policy, chunk, given_of, now, pictures, state_of
from vla.canvas import Provenance, Segment
from vla.canvas.query import ASK, QUERIES, Part, PartialActions
from vla.diffusion import Sampling, sample
from vla.diffusion.sampler import sequential
from vla.model import Tokens
from vla.recipes import Queries, Recipe
from vla.train.queries import QueryLoss, Rows

SAMPLING = Sampling(3, temperature=1.0, noise=True, revisions=1, remask_below=0.5)
TRAINS = {
    Segment.INSTRUCTION: "policy",
    Segment.PLAN: "plan_policy",
    Segment.WAYPOINTS: "waypoint_policy",
    Segment.FUTURE_IMAGE: "inverse",
    Segment.ACTION: "world_model",
}
"""A query that shows the segment in training."""


@pytest.fixture
def policy():
    """Its texts are always four times the same word, so that what was written can be said."""
    policy = a_policy(noise_indices=4)
    (word,) = policy.tokenizers.text.ids("reach")
    with torch.no_grad():
        for segment in (Segment.INSTRUCTION, Segment.PLAN):
            for d, digit in enumerate(policy.tokenizers.words.encode(torch.tensor(word))):
                policy.model.head_of(segment).bias[0, d, digit] = 50.0
    return policy


def watched(model, monkeypatch):
    """What is read from now on: a list of {segment: what is given}."""
    seen, real = [], model.read
    monkeypatch.setattr(model, "read", lambda context, given: seen.append(given) or real(context, given))
    return seen


def decided(policy, context, segment, monkeypatch):
    """The segment as the sampler reads it once it is decided. Of actions, which come last, some are committed."""
    known = {}
    if segment is Segment.ACTION:
        question = now(0, actions=PartialActions(chunk(1), np.arange(24).reshape(8, 3) % 7 < 2))
        known = policy.encoder.known([question] * 3, question.query)
        assert (known[segment].provenance_BNS == Provenance.COMMITTED).any()
    asked, words = sorted({segment, Segment.ACTION}), policy.encoder.vocabulary()
    with monkeypatch.context() as patch:
        seen = watched(policy.model, patch)
        turns = sequential(asked, SAMPLING.num_inference_steps)
        found = sample(policy.model, context, KEYS[:3], asked, SAMPLING, known, None, words, turns)
    if segment is Segment.ACTION:
        return Tokens(found.segments[segment].state)
    return next(given[segment] for given in seen if segment in given)


def said(policy, segment, tokens, monkeypatch):
    """The same segment in units, for each of three rows."""
    digits, units = tokens.state.digits_BNSD, policy.tokenizers
    if segment is Segment.ACTION:
        return units.action.decode(policy.model.config.layout.unfold(digits)).numpy()
    if segment is Segment.WAYPOINTS:
        return units.waypoints.decode(digits).numpy()
    if segment is Segment.FUTURE_IMAGE:  # whatever pictures have these codes
        monkeypatch.setattr(units, "codes", lambda images: digits[: len(images["front"]), :, 0])
        return [pictures(50 + row) for row in range(3)]
    return [units.text.decode(ids) for ids in (units.words.decode(digits[:, :, 0]) * tokens.there_BN).tolist()]


def given_by_the_caller(policy, segment, values):
    """What the encoder makes of a question that gives the segment."""
    asks = {"plan": ASK} if segment is Segment.ACTION else {"actions": ASK}
    field = {Segment.ACTION: "actions", Segment.FUTURE_IMAGE: "future_image"}.get(segment, segment.name.lower())
    questions = [now(row).but(**asks, **{field: value}) for row, value in enumerate(values)]
    return policy.encoder.given(questions, questions[0].query)[segment]


def rows_of(policy, segment=None, values=()):
    """Three rows of a training batch, in which a segment has these values."""
    encoder, yes = policy.encoder, torch.ones(3, dtype=torch.bool)
    texts = values if len(values) and isinstance(values[0], str) else ["go"] * 3
    moving = encoder.pictures([pictures(50 + row) for row in range(3)])
    return Rows(
        observed=encoder.observed([now(row) for row in range(3)]),
        words_BL=encoder.words(texts),
        labels_BHA=torch.zeros(3, 8, 3),
        executed_BHA=torch.from_numpy(values) if segment is Segment.ACTION else torch.ones(3, 8, 3),
        ended_BH=torch.zeros(3, 8, dtype=torch.bool),
        has_labels_B=yes,
        has_actions_B=yes,
        plan_BL=encoder.plans(texts),
        has_plan_B=yes,
        waypoints_BKS=torch.from_numpy(values) if segment is Segment.WAYPOINTS else torch.zeros(3, 3, 3),
        pictures={"future": moving, "goal": moving, "last": moving},
    )


def learn(policy, name, rows):
    """A training step of one query."""
    recipe = Recipe(queries=Queries(image_tokenizer="some", **{name: 1.0}))
    QueryLoss(policy.model, policy.tokenizers, policy.encoder.vocabulary(), recipe, (name,))(rows, KEYS[:3], 0)


def shown_in_training(policy, segment, values, monkeypatch):
    """What a training step reads of rows in which the segment has these values."""
    with monkeypatch.context() as patch:
        seen = watched(policy.model, patch)
        learn(policy, TRAINS[segment], rows_of(policy, segment, values))
    return next(given[segment] for given in seen if segment in given)


@torch.no_grad()
@pytest.mark.parametrize("name", QUERIES)
def test_training_and_asking_lay_out_the_same_canvas(policy, name, monkeypatch):
    """What is read, in which order, what is denoised behind it, and what is withheld."""
    seen, real = [], policy.model.decode

    def noted(context, states, there=None):
        begins = [0, *torch.tensor(lengths_of(policy, context)).cumsum(0).tolist()]
        said = [bool(context.visible_BP[:, a:b].any()) for a, b in pairwise(begins)]
        seen.append((context.segments, said, sorted(states)))
        return real(context, states, there)

    monkeypatch.setattr(policy.model, "decode", noted)
    question = QUESTIONS[name](0)
    asked = question.query.asked
    policy.ask([question] * 3, [(0, 0)] * 3, turns=dict.fromkeys(asked, (1, 1)))
    asking, seen[:] = [*seen], []
    learn(policy, name, rows_of(policy))
    assert asking[0] == seen[-1] and asking[0][2] == sorted(asked)
    told = dict(zip(*asking[0][:2], strict=True))
    assert told.pop(Segment.INSTRUCTION) == (question.query.instruction is Part.GIVEN) and all(told.values())


def lengths_of(policy, context):
    """How many positions each segment of a context has."""
    config, alone = policy.model.config, {}
    for segment in context.segments:
        alone[segment] = policy.model.read(None, {segment: given_of(config, segment, 1)}).visible_BP.shape[1]
    return list(alone.values())


@torch.no_grad()
@pytest.mark.parametrize("segment", TRAINS, ids=lambda s: s.name)
def test_what_is_given_is_what_was_decided_and_what_training_shows(policy, segment, monkeypatch):
    model, encoder = policy.model, policy.encoder
    base = {Segment.INSTRUCTION: encoder.vocabulary().tokens(encoder.words(["lift"] * 3))}
    context = model.read(None, base | {Segment.OBSERVATION: encoder.observed([now(row) for row in range(3)])})
    sampled = decided(policy, context, segment, monkeypatch)
    values = said(policy, segment, sampled, monkeypatch)
    others = [given_by_the_caller(policy, segment, values), shown_in_training(policy, segment, values, monkeypatch)]
    read, *rest = [model.read(context, {segment: tokens}) for tokens in (sampled, *others)]
    action, there = {Segment.ACTION: state_of(model.config, Segment.ACTION)}, read.visible_BP
    h = model.decode(read, action)[Segment.ACTION]
    assert there[:, context.visible_BP.shape[1] :].any(1).all()
    for other in rest:
        assert torch.equal(other.visible_BP, there) and torch.equal(other.pooled_BF, read.pooled_BF)
        for a, b in zip((*read.keys, *read.values), (*other.keys, *other.values), strict=True):
            assert torch.equal(a.transpose(1, 2)[there], b.transpose(1, 2)[there])
        assert torch.equal(model.decode(other, action)[Segment.ACTION], h)
    assert not torch.allclose(model.decode(context, action)[Segment.ACTION], h, atol=1e-4)  # and it is heard
