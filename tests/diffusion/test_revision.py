# SPDX-License-Identifier: Apache-2.0
"""False tokens, the noise index, the samplers that revise and stop early."""

import pytest
import torch

from tests.diffusion.test_diffusion import KEYS, LAYOUT, clean, corrupted, observation, tiny
from vla import randomness
from vla.canvas import Provenance, is_complete, revealed
from vla.diffusion import PLAIN, Programs, Sampling, losses, quality_loss, sample
from vla.diffusion.noise import explain, redraw
from vla.diffusion.programs import falsify, ratios, times
from vla.diffusion.sampler import take_back

RADIX = torch.tensor([[16, 16], [16, 16], [16, 16], [2, 1]])


def test_times_cover_the_unit_interval_evenly():
    times_BC = times(KEYS[:64], 4)
    assert times_BC.shape == (64, 4) and bool(((times_BC >= 0) & (times_BC < 1)).all())
    gaps = times_BC.sort(0).values.diff(dim=0).amax(0)
    assert gaps.max() <= 2 / 64, "64 independent draws leave a gap of about 0.1"
    assert torch.corrcoef(times_BC.T).fill_diagonal_(0).abs().max() < 0.3
    assert not torch.equal(ratios(KEYS, 2, Programs())[:, 0], ratios(KEYS, 2, Programs())[:, 1])  # a level a segment


def test_false_tokens_are_other_tokens_of_their_dimension():
    digits = clean(64)
    digits[..., 3, 0] %= 2
    digits[..., 3, 1] = 0
    other = falsify(digits.unsqueeze(1), KEYS[:64], RADIX).squeeze(1)
    assert bool((other[..., 0] != digits[..., 0]).all()) and bool((other < RADIX).all()) and bool((other >= 0).all())
    near = ((other - digits)[..., :3, 0].abs() == 1).double().mean()
    assert 0.45 < near < 0.65  # half are neighbours by design, some by chance


def test_what_is_false_is_judged_and_what_follows_it_is_not_asked():
    c = corrupted(1000, programs=Programs(wrong=0.08, prefix=0.2))
    shown = c.state.known_BNS > 0
    wrong = c.wrong_BNSD.any(-1)
    assert 0.06 < wrong[shown].double().mean() < 0.12
    assert bool((c.judged_BNSD | ~c.wrong_BNSD).all()) and not (c.asked_BNSD & wrong.unsqueeze(-1)).any()
    committed = c.state.provenance_BNS == Provenance.COMMITTED
    assert committed.any() and not (wrong & committed).any() and not c.judged_BNSD[committed].any()
    q = torch.where(c.wrong_BNSD, -20.0, 20.0)
    assert quality_loss(q, c) < 1e-6 < 10 < quality_loss(-q, c)


def test_a_single_mask_has_two_rungs_and_one_noise_index_is_the_plain_mask():
    c = corrupted(500, programs=PLAIN)
    assert set(c.state.known_BNS.unique().tolist()) == {0, 2} and not c.wrong_BNSD.any()
    with pytest.raises(ValueError, match="no coarse rung"):
        Programs(single_mask=True)
    state = revealed(LAYOUT.fold(clean(8)))
    assert redraw(state, KEYS[:8], 1).noise_BNS.sum() == 0 and redraw(state, KEYS[:8], 64, False).noise_BNS.sum() == 0
    drawn = redraw(state, KEYS[:8], 64).noise_BNS
    assert bool((drawn > 0).all()) and bool((drawn == drawn[:, :1, :1]).all()) and len(drawn[:, 0, 0].unique()) > 4


def test_rung_pairs_are_the_states_that_sampling_passes_through():
    c = corrupted(2000, programs=Programs(full=0, revise=0, prefix=0))
    kinds = {tuple(row.unique().tolist()) for row in c.state.known_BNS}
    assert kinds >= {(0, 2), (1, 2), (0, 1)} and all(len(kind) <= 2 for kind in kinds)


@torch.no_grad()
def test_the_noise_that_is_picked_explains_the_sample_better_than_a_random_one():
    model = tiny()
    model.canvas.table.data *= 8  # a noise index that matters
    c = corrupted(64, programs=Programs(full=1, revise=0, noisy=1, prefix=0))
    images, state, words = observation(64)
    prefix = model.encode(images, state, words)
    drawn = c.state.noise_BNS[:, 0, 0]
    noisy = torch.arange(128) % 8
    assert torch.equal(drawn > 0, (noisy == 0) | (noisy == 5))  # of every other sample, first and second copy in turn
    first, samples = torch.arange(0, 128, 8), torch.arange(0, 64, 4)
    picked = explain(model, prefix.pick(samples), c, first, KEYS[samples], 16)

    def nll(noise_B):
        noise_BNS = noise_B.repeat_interleave(8)[:, None, None].expand_as(c.state.known_BNS)
        logits = model.head(model.decode(prefix.repeat(2), c.state.with_noise(noise_BNS)), c.digits_BNSD)[0][first]
        return -logits.log_softmax(-1).gather(-1, c.digits_BNSD[first][..., :1]).sum((1, 2, 3))

    assert nll(picked).mean() < nll(c.state.noise_BNS[first, 0, 0]).mean() - 1
    plain = corrupted(64, programs=Programs(noisy=0))
    assert explain(model, prefix, plain, torch.arange(0, 128, 2), KEYS[:64], 4).sum() == 0
    assert torch.isfinite(losses(model, prefix, c, KEYS[:64], candidates=4)[0][0])


@pytest.mark.parametrize(
    "sampling",
    [Sampling(4, 1.0, anneal=True, noise=True), Sampling(4, 1.0, order="random"), Sampling(4, single_mask=True)],
)
def test_other_samplers_fill_the_canvas(sampling):
    model = tiny()
    result = sample(model, model.encode(*observation(3)), KEYS[:3], sampling)
    assert is_complete(result.state) and result.evaluations == 4


def test_single_mask_sampling_never_shows_half_a_token():
    model, seen = tiny(), []
    sample(
        model,
        model.encode(*observation(3)),
        KEYS[:3],
        Sampling(4, single_mask=True),
        trace=lambda t, s, c: seen.append(s),
    )
    assert all(set(s.known_BNS.unique().tolist()) <= {0, 2} for s in seen) and len(seen) == 4


def test_sampling_stops_once_every_row_is_sure():
    model = tiny()
    prefix = model.encode(*observation(3))
    assert sample(model, prefix, KEYS[:3], Sampling(8, stop_at=0.0)).evaluations == 1
    early = sample(model, prefix, KEYS[:3], Sampling(8, stop_at=0.999999))
    assert is_complete(early.state) and early.evaluations == 8


@torch.no_grad()
def test_what_is_doubted_climbs_and_what_is_committed_stays():
    model = tiny()
    prefix = model.encode(*observation(3))
    tokens = LAYOUT.fold(clean(3))
    provenance = torch.zeros(3, 8, 4, dtype=torch.long)
    provenance[:, :2] = int(Provenance.COMMITTED)
    full = sample(model, prefix, KEYS[:3], Sampling(1), revealed(tokens, provenance_BNS=provenance))
    model.quality.out.weight.data.zero_()
    model.quality.out.bias.data = torch.tensor([9.0, -9.0, -9.0, 9.0, 9.0, 9.0, -9.0, -9.0])  # dims x digits
    known = take_back(model, prefix, full, 0.5).state
    assert known.known_BNS[:, 2:].unique(dim=0).flatten(0, 1).unique(dim=0).tolist() == [[1, 0, 2, 0]]
    assert bool((known.known_BNS[:, :2] == 2).all())
    suspect = known.provenance_BNS == Provenance.SUSPECT
    assert torch.equal(suspect, known.known_BNS < 2)
    revised = sample(model, prefix, KEYS[:3], Sampling(2, revisions=2), revealed(tokens, provenance_BNS=provenance))
    assert is_complete(revised.state) and revised.evaluations == 6
    assert torch.equal(revised.state.digits_BNSD[:, :2], tokens[:, :2])
    with pytest.raises(ValueError, match="revision needs a quality head"):
        model.quality = None
        sample(model, prefix, KEYS[:3], Sampling(2, revisions=1))


def test_revision_is_a_function_of_the_row():
    model = tiny()
    images, state, words = observation(4)
    keys = randomness.fold(9, torch.arange(4))
    sampling = Sampling(2, 1.0, revisions=1, noise=True)
    together = sample(model, model.encode(images, state, words), keys, sampling).state.digits_BNSD
    order = torch.tensor([2, 0, 3, 1])
    shuffled = model.encode({k: v[order] for k, v in images.items()}, state[order], words[order])
    assert torch.equal(sample(model, shuffled, keys[order], sampling).state.digits_BNSD, together[order])
