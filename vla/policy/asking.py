# SPDX-License-Identifier: Apache-2.0
"""Ask a policy anything: of every segment a value, a part of it, or the question (`vla/canvas/query.py`).

    now = Question(images, state, instruction="push the red block left")
    answer = policy.ask([query.world_model(now, actions)], keys=[(seed, step)])
    answer.future_image.values["front"][0]      uint8 (H, W, 3)

Questions that are asked together have the same shape: the same segments given, and the same ones asked.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from vla.canvas import Provenance, Segment, State, revealed
from vla.canvas.query import Part, Partly, Query, Question, part_of
from vla.diffusion.domain import Domain
from vla.diffusion.joint import Joint, Turns, Vocabulary, Written, sample_blocks, together
from vla.diffusion.likelihood import log_likelihood
from vla.model import Given, Prefix

if TYPE_CHECKING:
    from vla.policy.acting import Policy


@dataclass(frozen=True)
class Found:
    """A segment that was asked for, of B questions."""

    values: Any
    """actions: float32 (B, H, A), the dataset's units; future_image: {camera: uint8 (B, H, W, 3)}; plan and
    instruction: a list of B texts."""
    tokens: np.ndarray
    """int64: digits (B, N, S, D) of actions and codes; (B, N) ids of words, 0 behind the end."""
    confidence: np.ndarray
    """float32 in [0, 1], one for each token, the product of its digits' probabilities: (B, N); of actions as in
    `Chunk.confidence_BHA`, (B, H, A); 1 where it was given."""
    used: float = 1.0
    """Of a text: its words, as a share of the positions that were evaluated on the way."""


@dataclass(frozen=True)
class Answer:
    """What was asked for; None for the rest."""

    instruction: Found | None = None
    plan: Found | None = None
    future_image: Found | None = None
    actions: Found | None = None
    evaluations: int = 0
    """Of the network."""


def ask(
    policy: "Policy",
    questions: Sequence[Question],
    keys: Sequence[tuple[int, int]],
    evaluations: int | None = None,
    turns: Turns | None = None,
    previous: np.ndarray | None = None,
    start: np.ndarray | None = None,
    temperature: float | None = None,
) -> Answer:
    """Answer questions of one shape. `keys`: (episode seed, environment step) of each, all its randomness.

    `evaluations`: of the network, the policy's by default (with a text: at least TEXT_EVALUATIONS). `turns`: which
    segment is filled when (`vla.diffusion.joint`); all together by default. `previous`, `start`: where the policy's
    limits begin, which actions that are asked for keep. `temperature`: 0 for the likeliest digits, 1 for draws from the
    model; the policy's by default. ValueError for questions of different shapes, segments
    that the checkpoint cannot be asked for, and pictures or actions of the wrong shape.
    """
    query = _one_shape(questions, keys)
    model = policy.model
    for segment in query.asked:
        model.head_of(segment)  # ValueError if there is none
    with torch.inference_mode():
        key_B = policy.randomness(keys)
        prefix = encoded(policy, questions, query)
        if turns is None:
            turns = together(query.asked, evaluations or policy.sampling.evaluations)
        sampling = policy.sampling if temperature is None else replace(policy.sampling, temperature=temperature)
        given = {}
        if query.actions is Part.PARTLY:
            given[Segment.ACTION] = _partly(policy, [q.actions for q in questions])
        domain = policy.domain(len(questions), previous, start) if Segment.ACTION in query.asked else None
        result = sample_blocks(model, prefix, key_B, turns, sampling, words_of(policy), given, domain)
        return _answer(policy, result, questions, query, domain)


def score(policy: "Policy", questions: Sequence[Question]) -> np.ndarray:
    """How likely the given actions of each question are under the policy, float64 (B,), nats: to rank candidates.

    The log-likelihood of the sampler of two evaluations: of the coarse digits given nothing, and of the fine ones given
    all coarse ones. ValueError unless the actions are given.
    """
    if any(part_of(q.actions) is not Part.GIVEN for q in questions):
        raise ValueError("a score is of actions that are given, float (H, A): set Question.actions")
    with torch.inference_mode():
        prefix = policy.model.encode(*policy.inputs([_seen(q) for q in questions]))
        digits_BNSD = policy.model.config.layout.fold(_digits(policy, [q.actions for q in questions]))
        return log_likelihood(policy.model, prefix, digits_BNSD).cpu().numpy()


def words_of(policy: "Policy") -> Vocabulary | None:
    """The words that a policy can be asked for, as tables."""
    words = policy.tokenizers.words
    return None if words is None else Vocabulary(*(t.to(policy.device) for t in words.tables))


def _one_shape(questions: Sequence[Question], keys: Sequence[Any]) -> Query:
    if not questions or len(keys) != len(questions):
        raise ValueError(f"expected one key for each of {len(questions)} questions, at least one, got {len(keys)}")
    shapes = {replace(q.query, name="") for q in questions}
    if len(shapes) > 1:
        raise ValueError(
            f"questions that are asked together must have one shape, got {len(shapes)}: {[q.name for q in questions]}; "
            "ask them one after the other"
        )
    return questions[0].query


def _seen(question: Question) -> Any:
    from vla.policy.acting import Observation

    told = question.instruction if isinstance(question.instruction, str) else ""
    return Observation(question.images, question.state, told)


def encoded(policy: "Policy", questions: Sequence[Question], query: Query) -> Prefix:
    """What is seen and what is given, encoded once."""
    model, device = policy.model, policy.device
    images, state_BS, words_BL = policy.inputs([_seen(q) for q in questions], told=query.instruction is Part.GIVEN)
    if not model.config.unified:
        return model.encode(images, state_BS, words_BL)
    goal = query.goal_image is Part.GIVEN
    picture = None
    if goal or query.future_image is Part.GIVEN:
        pictures = [q.goal_image if goal else q.future_image for q in questions]
        picture = policy.pictures([p or {} for p in pictures], "goal_image" if goal else "future_image")
    actions, plan, plan_BL = None, None, None
    if query.actions is Part.GIVEN:
        digits_BNSD = model.config.layout.fold(_digits(policy, [q.actions for q in questions]))
        committed = torch.full(digits_BNSD.shape[:-1], int(Provenance.COMMITTED), device=device)
        actions = revealed(digits_BNSD, provenance_BNS=committed)
    if query.plan is Part.GIVEN:
        plan, plan_BL = _given_plan(policy, [q.plan for q in questions])
    prefix = model.encode(images, state_BS, words_BL, Given(picture, goal, actions, plan, plan_BL))
    if query.future_image is Part.ASKED:
        prefix = model.with_codes(prefix, policy.tokenizers.codes({c: images[c] for c in policy.cameras}))
    return prefix


def _digits(policy: "Policy", actions: Sequence[Any]) -> Tensor:
    """int64 (B, H, A, D) of given actions. ValueError for another shape."""
    shape = (policy.horizon, len(policy.action_names))
    for values in actions:
        if np.shape(values) != shape:
            raise ValueError(
                f"expected actions of shape {shape} (steps, {policy.action_names}), got {np.shape(values)}"
            )
    return policy.tokenizers.action.encode(torch.from_numpy(np.stack(actions).astype(np.float32)).to(policy.device))


def _partly(policy: "Policy", parts: Sequence[Partly]) -> State:
    """What is known of actions: a lattice state whose known digits are committed."""
    if not policy.tokenizers.action.time_aligned:
        raise ValueError(
            f"actions cannot be given partly with the '{policy.tokenizers.action.kind}' tokenizer, whose tokens speak "
            "about the whole chunk; train with actions=bins"
        )
    layout = policy.model.config.layout
    known = np.stack([np.where(p.known, p.known.astype(np.int64), 0) for p in parts])
    if parts[0].known.dtype == bool:
        known = known * layout.digits
    values = np.where(known > 0, np.stack([p.values for p in parts]), 0.0)
    digits_BHAD = _digits(policy, list(values))
    known_BHA = torch.from_numpy(known).to(policy.device)
    if digits_BHAD.shape[2] > known_BHA.shape[2]:  # STOP is left open
        known_BHA = torch.nn.functional.pad(known_BHA, (0, 1))
    committed = torch.where(known_BHA > 0, int(Provenance.COMMITTED), int(Provenance.FREE))
    return revealed(layout.fold(digits_BHAD), layout.fold(known_BHA), layout.fold(committed))


def _given_plan(policy: "Policy", plans: Sequence[str]) -> tuple[State, Tensor]:
    words = words_of(policy)
    if words is None or Segment.PLAN not in policy.model.config.ports:
        raise ValueError(
            "this checkpoint was trained without plans: leave the plan out, or train on a dataset with plans"
        )
    length = policy.model.config.plan_length
    ids = torch.zeros(len(plans), length, dtype=torch.long)
    for row, plan in enumerate(plans):
        tokens = policy.tokenizers.text.ids(plan)
        if len(tokens) > length:
            raise ValueError(f"the plan {plan!r} has {len(tokens)} words and there is room for {length}; shorten it")
        ids[row, : len(tokens)] = torch.tensor(tokens, dtype=torch.long)
    ids = ids.to(policy.device)
    return revealed(words.digits_of[ids].unsqueeze(2)), ids != 0


def _answer(
    policy: "Policy", result: Joint, questions: Sequence[Question], query: Query, domain: Domain | None
) -> Answer:
    found: dict[str, Found] = {}
    layout, tokenizer = policy.model.config.layout, policy.tokenizers.action
    if Segment.ACTION in result.samples:
        sample = result.samples[Segment.ACTION]
        offset = layout.unfold(sample.fine_offset_BNS) if policy.sampling.expectation else None
        digits_BHAD = layout.unfold(sample.state.digits_BNSD)
        actions_BHA = tokenizer.decode(digits_BHAD, offset)
        if domain is not None and offset is not None:
            actions_BHA = policy.settled(digits_BHAD, actions_BHA, domain)
        values = actions_BHA.cpu().numpy()
        if query.actions is Part.PARTLY:  # what was given comes back as it was
            for row, question in enumerate(questions):
                part = question.actions
                whole = part.known if part.known.dtype == bool else part.known >= layout.digits
                values[row] = np.where(whole, part.values, values[row])
        confidence = policy.sureness(sample).cpu().numpy()
        found["actions"] = Found(values, sample.state.digits_BNSD.cpu().numpy(), confidence)
    if Segment.FUTURE_IMAGE in result.samples:
        sample = result.samples[Segment.FUTURE_IMAGE]
        seen = policy.tokenizers.pictures(sample.state.digits_BNSD[:, :, 0], policy.cameras)
        pictures = {camera: picture.cpu().numpy() for camera, picture in seen.items()}
        confidence = sample.confidence_BNS[..., 0].cpu().numpy()
        found["future_image"] = Found(pictures, sample.state.digits_BNSD.cpu().numpy(), confidence)
    for segment, name in ((Segment.INSTRUCTION, "instruction"), (Segment.PLAN, "plan")):
        if segment in result.texts:
            found[name] = _text(policy, result.texts[segment])
    return Answer(**found, evaluations=result.evaluations)


def _text(policy: "Policy", written: Written) -> Found:
    texts = [policy.tokenizers.text.decode(ids) for ids in written.ids_BN.tolist()]
    return Found(texts, written.ids_BN.cpu().numpy(), written.confidence_BN.cpu().numpy(), written.used)
