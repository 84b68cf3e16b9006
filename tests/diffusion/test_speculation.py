# SPDX-License-Identifier: Apache-2.0
"""Speculation gives the sampler's very answer, in fewer passes."""

import pytest
import torch

from vla import randomness
from vla.canvas import revealed
from vla.diffusion import Sampling, sample
from vla.diffusion.speculation import sample_speculatively
from vla.model import LatticeModel, ModelConfig


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    model = LatticeModel(ModelConfig(cameras=(), vocabulary=50, text_length=6, width=32, layers=2)).eval()
    for p in model.parameters():
        p.data += torch.randn_like(p) * 0.1
    return model


def encoded(model, seeds):
    keys = torch.tensor(seeds)
    state = randomness.uniform(keys, "state", model.config.state_dim).float()
    return model.encode({}, state, 1 + randomness.integers(keys, "words", 49, 6)), keys


@pytest.mark.parametrize("evaluations", [1, 2, 3, 8, 16])
@pytest.mark.parametrize("ahead", [1, 2, 5, 40])
def test_the_answer_is_the_samplers_and_never_takes_more_passes(network, evaluations, ahead):
    for seeds in ([3], [1, 2, 4]):
        prefix, keys = encoded(network, seeds)
        expected = sample(network, prefix, keys, Sampling(evaluations))
        found = sample_speculatively(network, prefix, keys, Sampling(evaluations), ahead=ahead)
        assert torch.equal(found.state.digits_BNSD, expected.state.digits_BNSD)
        assert torch.allclose(found.confidence_BNS, expected.confidence_BNS, atol=1e-5)
        assert torch.allclose(found.fine_offset_BNS, expected.fine_offset_BNS, atol=1e-4)
        assert found.evaluations <= evaluations and (ahead > 1 or found.evaluations == evaluations)


def test_passes_are_saved_and_what_is_given_stays(network):
    prefix, keys = encoded(network, [7])
    layout = network.config.layout
    digits = torch.full((1, layout.positions, layout.sub_tokens, layout.digits), 5)
    known = torch.zeros(digits.shape[:3], dtype=torch.long)
    known[:, :2] = layout.digits
    given = revealed(digits, known)
    expected = sample(network, prefix, keys, Sampling(16), given)
    found = sample_speculatively(network, prefix, keys, Sampling(16), given)
    assert torch.equal(found.state.digits_BNSD, expected.state.digits_BNSD) and found.evaluations < 16
    assert (found.state.digits_BNSD[:, :2] == 5).all()


@pytest.mark.parametrize("sampling", [Sampling(4, temperature=1.0), Sampling(4, stop_at=0.9), Sampling(4, revisions=1)])
def test_what_depends_on_more_than_the_state_is_refused(network, sampling):
    prefix, keys = encoded(network, [7])
    with pytest.raises(ValueError, match="speculation needs temperature=0"):
        sample_speculatively(network, prefix, keys, sampling)
