# SPDX-License-Identifier: Apache-2.0
"""Who reads whom: held by perturbing one thing and looking at everything else."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from tests.networks import every_segment, given_of, observed_of, read_all, shaken, state_of
from vla.canvas import Segment, block_mask, unmasked
from vla.canvas.query import WRITTEN
from vla.model import Tokens
from vla.model.blocks import rotation

pytestmark = pytest.mark.usefixtures("no_gradients")


@pytest.fixture
def no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def model():
    return shaken(every_segment())


def same(a, b):
    """Whether two contexts are one, bit for bit."""
    ours, theirs = [], []
    a.map(lambda x: ours.append(x) or x)
    b.map(lambda x: theirs.append(x) or x)
    return a.segments == b.segments and all(torch.equal(x, y) for x, y in zip(ours, theirs, strict=True))


def one_by_one(model, segments):
    """The contexts on the way, one more segment each."""
    context, found = None, []
    for segment in sorted(segments):
        context = model.read(context, {segment: segments[segment]})
        found.append(context)
    return found


def everything(model, seed=1):
    return {s: given_of(model.config, s, seed=seed) for s in model.config.read}


@pytest.mark.parametrize("arrangement", ["per_step", "per_dim"])
def test_cached_equals_uncached(arrangement):
    """One pass over all that is given and asked, under the mask of who reads whom, gives what the cache gives."""
    model = shaken(every_segment(arrangement=arrangement))
    inputs = []
    hook = model.layers[0].register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    context = read_all(model)
    states = {s: state_of(model.config, s) for s in WRITTEN}
    there_BN = torch.arange(5) < torch.tensor([[5], [2], [0]])
    cached = model.decode(context, states, {Segment.PLAN: there_BN})
    hook.remove()
    asked = [model.embedding_of(s).layout.positions for s in WRITTEN]
    lengths = [x.shape[1] for x in inputs[:-1]] + asked
    real_BN = torch.cat([context.visible_BP, torch.ones(3, sum(asked), dtype=torch.bool)], dim=1)
    begin = context.visible_BP.shape[1] + asked[0]
    real_BN[:, begin : begin + asked[1]] = there_BN
    visible = (block_mask(lengths) & real_BN[:, None, None, :]) | torch.eye(sum(lengths), dtype=torch.bool)
    rope = rotation(torch.cat([torch.arange(float(n)) for n in lengths]), 8)
    x_BNW = torch.cat(inputs, dim=1)
    for layer in model.layers:
        x_BNW, _ = layer(x_BNW, rope, visible)
    pieces = dict(zip(WRITTEN, model.norm(x_BNW)[:, -sum(asked) :].split(asked, dim=1), strict=True))
    for segment in WRITTEN:
        seen = there_BN if segment is Segment.PLAN else torch.ones(cached[segment].shape[:2], dtype=torch.bool)
        assert torch.allclose(pieces[segment][seen], cached[segment][seen], atol=1e-5), segment.name


def test_reading_in_pieces_is_reading_at_once_and_what_was_read_is_never_touched(model):
    segments = everything(model)
    pieces = one_by_one(model, segments)
    kept = [c.map(torch.clone) for c in pieces]
    assert same(pieces[-1], model.read(None, segments))
    model.decode(pieces[3], {s: state_of(model.config, s) for s in WRITTEN})
    model.read(pieces[3], {Segment.ACTION: given_of(model.config, Segment.ACTION, seed=9)})
    assert all(same(a, b) for a, b in zip(kept, pieces, strict=True))
    for before, after in pairwise(pieces):  # its beginning is what was read before
        old = before.visible_BP.shape[1]
        assert all(torch.equal(a, b[:, :, :old]) for a, b in zip(before.keys, after.keys, strict=True))
        assert all(torch.equal(a, b[:, :, :old]) for a, b in zip(before.values, after.values, strict=True))


def test_rows_of_a_repeated_or_picked_context_are_what_each_is_alone(model):
    context, action = read_all(model), Segment.ACTION
    states = [state_of(model.config, action, seed=s) for s in (1, 2)]
    both = unmasked(
        *(torch.stack([getattr(s, name) for s in states], dim=1).flatten(0, 1) for name in ("digits_BNSD", "known_BNS"))
    )
    repeated = model.decode(context.repeat(2), {action: both})[action].unflatten(0, (3, 2))
    for copy, state in enumerate(states):
        alone = model.decode(context, {action: state})[action]
        assert torch.allclose(repeated[:, copy], alone, atol=1e-5)
    some = torch.tensor([2, 0])
    picked = model.decode(context.pick(some), {action: states[0].map(lambda x: x[some])})[action]
    assert torch.allclose(picked, model.decode(context, {action: states[0]})[action][some], atol=1e-5)


@pytest.mark.parametrize("changed", list(Segment))
def test_of_what_is_given_a_segment_is_read_by_later_ones_only(model, changed):
    segments = everything(model)
    before = one_by_one(model, segments)
    after = one_by_one(model, segments | {changed: given_of(model.config, changed, seed=2)})
    for segment, a, b in zip(sorted(segments), before, after, strict=True):
        own = given_positions(before, segment)
        moved = [not torch.equal(x[:, :, own], y[:, :, own]) for x, y in zip(a.values, b.values, strict=True)]
        assert all(m == (segment >= changed) for m in moved[1:]), f"{changed.name} changed, {segment.name}"
    action = {Segment.ACTION: state_of(model.config, Segment.ACTION)}
    heard, other = (model.decode(c[-1], action)[Segment.ACTION] for c in (before, after))
    assert not torch.isclose(heard, other, atol=1e-5).all(-1).any()  # every asked position reads all of them


def given_positions(contexts, segment):
    """The slice of a segment in the contexts of `one_by_one`."""
    ends = [0, *(c.visible_BP.shape[1] for c in contexts)]
    place = contexts[-1].segments.index(segment)
    return slice(ends[place], ends[place + 1])


@pytest.mark.parametrize("changed", WRITTEN)
def test_of_what_is_asked_together_a_segment_is_read_by_later_ones_only(model, changed):
    """In particular there is no path from the actions to the picture."""
    context = read_all(model)
    states = {s: state_of(model.config, s) for s in WRITTEN}
    before = model.decode(context, states)
    after = model.decode(context, states | {changed: state_of(model.config, changed, seed=2)})
    for segment in WRITTEN:
        assert torch.equal(before[segment], after[segment]) == (segment < changed), segment.name
    alone = model.decode(context, {s: x for s, x in states.items() if s <= changed})
    assert torch.allclose(alone[changed], before[changed], atol=1e-5)  # what comes later need not even be there


@pytest.mark.parametrize("segment", [Segment.INSTRUCTION, Segment.PLAN])
def test_words_that_are_not_there_change_nothing(model, segment):
    """Neither what is read later, nor what is denoised beside them."""
    given = given_of(model.config, segment)
    hole = ~given.there_BN[:, :, None]
    other = torch.where(hole.unsqueeze(-1), (given.state.digits_BNSD + 1) % 7, given.state.digits_BNSD)
    assert not torch.equal(other, given.state.digits_BNSD)
    contexts = [
        model.read(None, everything(model) | {segment: Tokens(unmasked(digits), given.there_BN)})
        for digits in (given.state.digits_BNSD, other)
    ]
    assert torch.equal(contexts[0].pooled_BF, contexts[1].pooled_BF)
    action = {Segment.ACTION: state_of(model.config, Segment.ACTION)}
    h = [model.decode(c, action)[Segment.ACTION] for c in contexts]
    assert torch.equal(h[0], h[1])

    context, half = read_all(model), torch.ones_like(given.state.known_BNS)
    found = []
    for digits in (given.state.digits_BNSD, other):
        states = action | {segment: unmasked(digits, half)}
        found.append(model.decode(context, states, {segment: given.there_BN}))
    assert torch.equal(found[0][Segment.ACTION], found[1][Segment.ACTION])
    assert torch.equal(found[0][segment][given.there_BN], found[1][segment][given.there_BN])


def withheld(model, seed, how):
    """The context of words and observation, of which a part is withheld."""
    words, seen = given_of(model.config, Segment.INSTRUCTION, seed=seed), observed_of(model.config, seed=seed)
    kept_words, kept_seen = given_of(model.config, Segment.INSTRUCTION), observed_of(model.config)
    nobody = torch.zeros(3, dtype=torch.bool)
    if how == "words":
        words, seen = replace(words, there_BN=torch.zeros_like(words.there_BN)), kept_seen
    elif how == "images":
        words, seen = kept_words, replace(kept_seen, images=seen.images, sees_images_B=nobody)
    elif how == "state":
        words, seen = kept_words, replace(seen, images=kept_seen.images, sees_state_B=nobody)
    else:
        words, seen = kept_words, replace(seen, sees_images_B=nobody, sees_state_B=nobody)
    return model.read(None, {Segment.INSTRUCTION: words, Segment.OBSERVATION: seen})


@pytest.mark.parametrize("how", ["words", "images", "state", "observation"])
def test_what_is_withheld_is_as_if_it_had_never_been(model, how):
    action = {Segment.ACTION: state_of(model.config, Segment.ACTION)}
    one, other = (withheld(model, seed, how) for seed in (3, 4))
    assert torch.equal(one.pooled_BF, other.pooled_BF)
    h = model.decode(one, action)[Segment.ACTION]
    assert torch.equal(h, model.decode(other, action)[Segment.ACTION])
    if how in ("words", "observation"):
        read = Segment.OBSERVATION if how == "words" else Segment.INSTRUCTION
        never = model.read(None, {read: given_of(model.config, read)})
        assert torch.allclose(h, model.decode(never, action)[Segment.ACTION], atol=1e-5)
    told = model.decode(read_all(model, only=(Segment.INSTRUCTION, Segment.OBSERVATION)), action)[Segment.ACTION]
    assert not torch.isclose(h, told, atol=1e-4).all(-1).any()


@pytest.mark.parametrize("part", ["older picture", "newer picture", "older state", "newer state", "executed"])
def test_every_part_of_an_observation_is_heard(model, part):
    seen = observed_of(model.config)
    images, moment = {c: x.clone() for c, x in seen.images.items()}, int(part.startswith("newer"))
    state, executed = seen.state_BMS.clone(), seen.executed_BMA.clone()
    if part.endswith("picture"):
        images["wrist"][0, moment] = 255 - images["wrist"][0, moment]
    elif part.endswith("state"):
        state[0, moment, 2] += 1
    else:
        executed[0, 0, 1] += 1
    action = {Segment.ACTION: state_of(model.config, Segment.ACTION)}
    other = replace(seen, images=images, state_BMS=state, executed_BMA=executed)
    h, moved = (model.decode(model.read(None, {Segment.OBSERVATION: x}), action)[Segment.ACTION] for x in (seen, other))
    assert not torch.isclose(h[0], moved[0], atol=1e-5).all(-1).any()
    assert torch.allclose(h[1:], moved[1:], atol=1e-6)  # other rows do not notice


def test_an_executed_action_that_is_not_known_is_not_there(model):
    seen, known_BM = observed_of(model.config), torch.tensor([[True], [False], [False]])
    other = replace(seen, executed_BMA=seen.executed_BMA + 1, known_BM=known_BM)
    action = {Segment.ACTION: state_of(model.config, Segment.ACTION)}
    h, moved = (
        model.decode(model.read(None, {Segment.OBSERVATION: x}), action)[Segment.ACTION]
        for x in (replace(seen, known_BM=known_BM), other)
    )
    assert torch.equal(h[1:], moved[1:]) and not torch.allclose(h[0], moved[0], atol=1e-4)


def test_cameras_and_moments_are_told_apart_by_their_place():
    """Even if one vision looks at all of them and no layer knows their order: what is pooled has a place."""
    model = shaken(every_segment(shared_vision=True, layers=0))
    seen = observed_of(model.config)
    swapped = dict(zip(seen.images, reversed(seen.images.values()), strict=True))
    backwards = {c: x.flip(1) for c, x in seen.images.items()}
    action = {Segment.ACTION: state_of(model.config, Segment.ACTION)}
    found = [
        model.decode(model.read(None, {Segment.OBSERVATION: replace(seen, images=x)}), action)[Segment.ACTION]
        for x in (seen.images, swapped, backwards)
    ]
    assert list(model.vision) == ["shared"]
    assert not torch.allclose(found[0], found[1], atol=1e-4) and not torch.allclose(found[0], found[2], atol=1e-4)


def test_nothing_said_is_no_nan(model):
    words = given_of(model.config, Segment.INSTRUCTION)
    silent = replace(words, there_BN=words.there_BN & torch.tensor([[True], [False], [True]]))
    context = model.read(None, everything(model) | {Segment.INSTRUCTION: silent})
    h = model.decode(context, {s: state_of(model.config, s) for s in WRITTEN})
    assert all(torch.isfinite(x).all() for x in h.values())
