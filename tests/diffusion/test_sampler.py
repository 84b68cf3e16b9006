# SPDX-License-Identifier: Apache-2.0
"""The sampler: fills what is asked, in the steps that it has, and what it says of it is true."""

import zlib
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.diffusion.test_corruption import LAYOUT, clean, corrupted
from tests.networks import KEYS, actions_only, every_segment, observed_of, read_all, shaken
from vla import randomness
from vla.canvas import Numerals, Provenance, Segment, all_masked, unmasked
from vla.diffusion import CorruptionConfig, Sampling, denoising_losses, sample, total_loss
from vla.diffusion.lengths import Vocabulary
from vla.diffusion.likelihood import log_likelihood
from vla.diffusion.sampler import Sample, doubt, keep_digits, kept_fraction, sequential, together
from vla.model import Tokens
from vla.tokenizers import BinTokenizer

ACTION = Segment.ACTION
pytestmark = pytest.mark.usefixtures("no_gradients")


@pytest.fixture
def no_gradients():
    with torch.no_grad():
        yield


def tiny(**changes):
    return shaken(actions_only(**({"noise_indices": 64} | changes)), 0.1)


def filled(model, context, keys, sampling, given=None, trace=None):
    return sample(model, context, keys, [ACTION], sampling, given and {ACTION: given}, trace=trace).segments[ACTION]


def certain(model, bias_DV=None):
    """The head of actions says the same everywhere: the logits `bias_DV`, (D, V); uniform by default."""
    head = model.head_of(ACTION)
    head.out.zero_()
    head.bias.zero_()
    if bias_DV is not None:
        head.bias += bias_DV
    return head


@pytest.mark.parametrize("arrangement", ["per_step", "per_dim"])
@pytest.mark.parametrize("steps", [1, 2, 3, 8])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_every_schedule_fills_the_canvas_in_its_number_of_steps(arrangement, steps, temperature):
    model, seen = tiny(arrangement=arrangement), []
    sampling = Sampling(steps, temperature, noise=True)
    found = filled(model, read_all(model), KEYS[:3], sampling, trace=lambda t, s: seen.append((t, s[ACTION])))
    assert [t for t, _ in seen] == [*range(1, steps + 1)]
    assert all(bool((b.state.known_BNS >= a.state.known_BNS).all()) for (_, a), (_, b) in pairwise(seen))
    assert torch.equal(found.state.known_BNS, torch.full(model.config.layout.shape(3), 2))
    assert bool(((found.confidence_BNS > 0) & (found.confidence_BNS <= 1)).all())
    assert bool(((found.near_BNS >= found.confidence_BNS) & (found.near_BNS <= 1)).all())  # right, or nearly


def test_two_steps_are_all_coarse_then_all_fine():
    assert kept_fraction(1, 2, 2) == [1.0, 0.0] and kept_fraction(2, 2, 2) == [1.0, 1.0]
    assert kept_fraction(1, 1, 2) == [1.0, 1.0]


@given(st.integers(1, 12), st.integers(1, 4), st.booleans())
@settings(max_examples=50, deadline=None)
def test_schedules_are_monotone_and_end_full(steps, depth, single):
    rows = [kept_fraction(t, steps, depth, single) for t in range(1, steps + 1)]
    assert rows[-1] == [1.0] * depth
    for a, b in pairwise(rows):
        assert all(x <= y for x, y in zip(a, b, strict=True))
    for row in rows:
        assert all(x == y if single else x >= y for x, y in pairwise(row))  # coarse before fine


def test_single_mask_sampling_never_shows_half_a_token():
    model, seen = tiny(), []
    filled(model, read_all(model), KEYS[:3], Sampling(4, single_mask=True), trace=lambda t, s: seen.append(s[ACTION]))
    assert all(set(s.state.known_BNS.unique().tolist()) <= {0, 2} for s in seen)
    assert 0 < (seen[0].state.known_BNS == 2).double().mean() < 0.5


def test_given_tokens_are_never_touched():
    model, tokens = tiny(), LAYOUT.fold(clean(3, seed=5))
    known = torch.zeros(3, 8, 4, dtype=torch.long)
    known[:, :3], known[0, 5, 2] = 2, 1
    state = unmasked(tokens, known, torch.where(known > 0, int(Provenance.COMMITTED), 0))
    sampling = Sampling(4, revisions=2, remask_below=1.1)
    found = filled(model, read_all(model), KEYS[:3], sampling, state)
    visible = state.visible_BNSD()
    assert torch.equal(found.state.digits_BNSD[visible], tokens[visible])
    assert bool((found.offset_BNS[known == 2] == 0).all()) and bool((found.confidence_BNS[known == 2] == 1).all())
    assert bool((found.state.known_BNS == 2).all()) and bool((found.near_BNS[known == 2] == 1).all())


@pytest.mark.parametrize(
    "sampling", [Sampling(4, 1.0), Sampling(2, 1.0, noise=True), Sampling(2, 0.7, revisions=2, remask_below=0.9)]
)
def test_rows_are_a_function_of_their_key(sampling):
    model, keys, order = tiny(), randomness.fold(9, torch.arange(4)), torch.tensor([2, 0, 3, 1])
    context = read_all(model, batch=4)
    found = filled(model, context, keys, sampling)
    shuffled = filled(model, context.pick(order), keys[order], sampling)
    assert torch.equal(shuffled.state.digits_BNSD, found.state.digits_BNSD[order])
    other = filled(model, context, keys + 1, sampling).state.digits_BNSD
    assert not (other == found.state.digits_BNSD).flatten(1).all(1).any()


def test_temperature_one_samples_the_models_distribution():
    """Frequencies over many keys match the softmax, of a half too: the Gumbel noise is right."""
    model, many = tiny(noise_indices=1), 4000
    logits_DV = torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
    certain(model, logits_DV)
    context, keys = read_all(model, batch=1).repeat(many), randomness.fold(0, torch.arange(many))
    for temperature in (1.0, 0.5):
        digits = filled(model, context, keys, Sampling(1, temperature)).state.digits_BNSD
        for d, p in enumerate((logits_DV / temperature).softmax(-1)):
            frequency = torch.bincount(digits[:, 3, 1, d], minlength=16) / many
            assert ((frequency - p).abs() < 4 * (p / many) ** 0.5).all()


def test_a_noise_index_makes_one_step_multimodal():
    """At temperature 0 the index is all randomness; without it every key decides the same."""
    model = tiny()
    model.embedding_of(ACTION).table.mul_(4)
    context = read_all(model, batch=1).repeat(16)
    plain, noisy = (
        filled(model, context, KEYS[:16], Sampling(1, noise=noise)).state.digits_BNSD.flatten(1)
        for noise in (False, True)
    )
    assert len(plain.unique(dim=0)) == 1 and len(noisy.unique(dim=0)) > 8


# --- how sure, and what is returned -----------------------------------------------------------------------------------
def test_confidence_of_a_binary_dimension_is_that_of_the_value_kept():
    model = tiny()
    head = certain(model)
    head.allowed_ADV[3] = torch.arange(16) < torch.tensor([[2], [1]])
    found = filled(model, read_all(model), KEYS[:3], Sampling(1))
    assert torch.allclose(found.near_BNS[..., 3], torch.tensor(0.5))  # not 1.0: the other value is no neighbour
    assert torch.allclose(found.near_BNS[..., :3], torch.tensor(2 / 16))  # value 0 has one neighbour
    assert torch.allclose(found.confidence_BNS[..., :3], torch.tensor(1 / 256))
    middle = torch.zeros(2, 16)
    middle[0, 7] = 1e-3
    certain(model, middle)
    assert torch.allclose(
        filled(model, read_all(model), KEYS[:3], Sampling(1)).near_BNS[..., :3], torch.tensor(3 / 16), atol=1e-3
    )


def test_draws_are_spread_as_their_distribution_and_expectations_are_its_mean():
    """The coarse digit is certain, the fine one uniform: a draw is one of 16 bins, an expectation their middle."""
    model = tiny(noise_indices=1)
    sure = torch.zeros(2, 16)
    sure[0, 5] = 50.0
    certain(model, sure)
    bins = BinTokenizer([0.0] * 4, [256.0] * 4, [False] * 4, list("abcd"))
    context, keys = read_all(model, batch=1).repeat(200), KEYS[:200]
    drawn, mean = (filled(model, context, keys, Sampling(2, temperature)) for temperature in (1.0, 0.0))
    values = [bins.decode(LAYOUT.unfold(f.state.digits_BNSD), LAYOUT.unfold(f.offset_BNS)) for f in (drawn, mean)]
    assert not drawn.offset_BNS.any() and abs(values[0].std() - 4.61) < 0.15 and abs(values[0].mean() - 88) < 0.5
    assert values[1].std() < 1e-3 and abs(values[1].mean() - 88) < 1e-3


# --- revisions --------------------------------------------------------------------------------------------------------
def test_what_is_doubted_is_masked_and_what_is_committed_stays():
    tokens = LAYOUT.fold(clean(3))
    provenance = torch.zeros(3, 8, 4, dtype=torch.long)
    provenance[:, :2] = int(Provenance.COMMITTED)
    confidence = torch.rand(3, 8, 4, generator=torch.Generator().manual_seed(0))
    now = replace(
        Sample.of(unmasked(tokens, None, provenance)),
        confidence_BNS=confidence,
        near_BNS=confidence,
        offset_BNS=confidence,
    )
    after = doubt(now, 0.4)
    taken = (confidence < 0.4) & (provenance == 0)
    assert torch.equal(after.state.known_BNS == 0, taken) and taken.any() and not taken.all()
    assert torch.equal(after.state.provenance_BNS == Provenance.REMASKED, taken)
    assert torch.equal(after.confidence_BNS, torch.where(taken, 1.0, confidence))
    assert torch.equal(after.offset_BNS, torch.where(taken, 0.0, confidence))


def pairs_of(state):
    """{(known, provenance)} of a state."""
    both = torch.stack([state.known_BNS, state.provenance_BNS], dim=-1).flatten(0, -2)
    return set(map(tuple, both.unique(dim=0).tolist()))


@pytest.mark.parametrize("steps", [1, 3])
def test_revisions_ask_about_nothing_that_training_does_not_show_and_leave_no_trace(steps, monkeypatch):
    model, seen = tiny(), []
    real = model.decode
    monkeypatch.setattr(model, "decode", lambda c, s, t=None: seen.append(s[ACTION]) or real(c, s, t))
    tokens = LAYOUT.fold(clean(3))
    known = torch.zeros(3, 8, 4, dtype=torch.long)
    known[0, :2], known[1, 3, 1] = 2, 1
    state = unmasked(tokens, known, torch.where(known > 0, int(Provenance.COMMITTED), 0))
    context = read_all(model)
    threshold = float(filled(model, context, KEYS[:3], Sampling(steps), state).confidence_BNS.median())
    seen.clear()
    sampling = Sampling(steps, revisions=2, remask_below=threshold)
    found = filled(model, context, KEYS[:3], sampling, state)
    assert len(seen) == steps + 2
    trained = set().union(*(pairs_of(corrupted(500, begun=begun).state) for begun in ("", "any")))
    asked = set().union(*map(pairs_of, seen))
    assert (0, int(Provenance.REMASKED)) in asked and asked <= trained
    for one in (*seen[steps:], found.state):  # a row's masks are all remasked, or none is: as in training
        masked = one.known_BNS < 2
        provenance = torch.where(known > 0, int(Provenance.COMMITTED), int(Provenance.REMASKED))
        assert torch.equal(one.provenance_BNS[masked], provenance[masked])
    committed = torch.where(known > 0, int(Provenance.COMMITTED), int(Provenance.FREE))
    expected = unmasked(found.state.digits_BNSD, None, committed)  # as if nothing had ever been remasked
    for a, b in zip(vars(found.state).values(), vars(expected).values(), strict=True):
        assert torch.equal(a, b)


# --- several segments -------------------------------------------------------------------------------------------------
def words(config):
    """All pairs of digits: 0 is [delete], the last one [expand]."""
    numerals = Numerals(config.word_radices)
    every = torch.arange(numerals.base)
    pairs = torch.stack(torch.meshgrid(every, every, indexing="ij"), dim=-1)
    return Vocabulary(numerals.to_digits(torch.arange(numerals.count)), numerals.to_index(pairs))


def test_turns():
    asked = (Segment.PLAN, Segment.FUTURE_IMAGE, ACTION)
    assert together(asked, 2) == {Segment.PLAN: (1, 5), Segment.FUTURE_IMAGE: (1, 5), ACTION: (4, 5)}
    assert together(asked[1:], 3) == dict.fromkeys(asked[1:], (1, 3))
    assert sequential(asked, 2) == {Segment.PLAN: (1, 5), Segment.FUTURE_IMAGE: (6, 7), ACTION: (8, 9)}


def test_one_after_the_other_is_asking_reading_and_asking_again(monkeypatch):
    """What has been decided is read as if it had been given, and is not denoised any more."""
    model = shaken(every_segment())
    asked, sampling, vocabulary = (Segment.PLAN, Segment.FUTURE_IMAGE, ACTION), Sampling(2), words(model.config)
    context = read_all(model, only=(Segment.INSTRUCTION, Segment.OBSERVATION, Segment.PRESENT_IMAGE))
    expected, so_far = {}, context
    for segment in asked:
        one = sample(model, so_far, KEYS[:3], [segment], sampling, vocabulary=vocabulary)
        if segment in one.texts:
            expected[segment] = one.texts[segment].ids_BN
            given_ = vocabulary.tokens(expected[segment])
        else:
            expected[segment] = one.segments[segment].state.digits_BNSD
            given_ = Tokens(unmasked(expected[segment]))
        so_far = model.read(so_far, {segment: given_})
    seen, real = [], model.decode
    monkeypatch.setattr(model, "decode", lambda c, s, t=None: seen.append((c.segments[3:], [*s])) or real(c, s, t))
    turns = sequential(asked, 2)
    found = sample(model, context, KEYS[:3], asked, sampling, vocabulary=vocabulary, turns=turns)
    assert torch.equal(found.texts[Segment.PLAN].ids_BN, expected[Segment.PLAN])
    for segment in asked[1:]:
        assert torch.equal(found.segments[segment].state.digits_BNSD, expected[segment]), segment.name
    assert seen == [((), [asked[0]])] * 5 + [(asked[:1], [asked[1]])] * 2 + [(asked[:2], [asked[2]])] * 2


def test_texts_end_where_they_end():
    """A head that says anything: words, [delete] and [expand] alike, each with a ninth of the probability."""
    few = {"cameras": (), "codes": 0, "code_radices": (), "goals": False, "word_radices": (3, 3), "plan_length": 8}
    model, many, plan = shaken(every_segment(**few)), 64, Segment.PLAN
    model.head_of(plan).out.zero_()
    model.head_of(plan).bias.zero_()
    context, vocabulary = read_all(model, batch=1).repeat(many), words(model.config)
    written = sample(model, context, KEYS[:many], [plan], Sampling(2, 1.0), vocabulary=vocabulary).texts[plan]
    said = written.ids_BN > 0
    assert bool((said.int().diff(dim=1) <= 0).all()) and len(said.sum(1).unique()) > 4
    assert set(written.ids_BN[said].tolist()) == set(range(1, vocabulary.expand))
    assert torch.allclose(written.confidence_BN, torch.where(said, 1 / 9, 1.0)) and 0.5 < written.used < 1
    with pytest.raises(ValueError, match="no vocabulary"):
        sample(model, context, KEYS[:many], [plan], Sampling())


# --- numbers ----------------------------------------------------------------------------------------------------------
def test_the_likelihood_is_that_of_coarse_digits_and_of_fine_ones_given_them():
    model, digits = tiny(), LAYOUT.fold(clean(3))
    context, head = read_all(model), model.head_of(ACTION)
    expected = torch.zeros(3)
    for level in range(2):
        state = unmasked(digits, torch.full((3, 8, 4), level))
        logits = head(model.decode(context, {ACTION: state})[ACTION], digits)[level]
        expected += logits.log_softmax(-1).gather(-1, digits[..., level : level + 1]).sum((1, 2, 3))
    assert torch.allclose(log_likelihood(model, context, digits), expected.double(), atol=1e-3)
    h = model.decode(context, {ACTION: all_masked((3, 8, 4), 2)})[ACTION]
    now = keep_digits(head, h, Sample.of(all_masked((3, 8, 4), 2)), KEYS[:3], Sampling(), [1.0, 1.0])
    best = now.state.digits_BNSD  # its own answer is likelier than another
    assert bool((log_likelihood(model, context, best) > log_likelihood(model, context, digits) + 5).all())


def test_golden_loss_and_sample():
    """Refactors must not change numbers. The weights are a function of their names, not of how they begin."""
    model = tiny()
    for name, p in model.named_parameters():
        draw = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        p.copy_(torch.randn(p.shape, generator=draw) * 0.3 + ("norm" in name))
    context = model.read(None, {Segment.OBSERVATION: observed_of(model.config, 4, seed=3)})
    c = corrupted(4, config=CorruptionConfig(), begun="prefix", executed=clean(4, 7))
    losses = denoising_losses(model, context, {ACTION: c}, KEYS[:4], 0.5, 4)
    found = filled(model, context, KEYS[:4], Sampling(4, 1.0, noise=True, revisions=1))
    assert total_loss(losses[ACTION]).item() == pytest.approx(GOLDEN_LOSS, abs=2e-3)
    assert found.state.digits_BNSD[0, 0].flatten().tolist() == GOLDEN_DIGITS


GOLDEN_LOSS = 6.4494
GOLDEN_DIGITS = [12, 11, 9, 2, 9, 11, 5, 12]
