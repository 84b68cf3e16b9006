# SPDX-License-Identifier: Apache-2.0
"""Weights of few bits: the integers are the nearest ones, a checkpoint of them acts, and what costs too much stays."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from vla.model import low_bit
from vla.policy import Observation, Policy
from vla.train.quantize import QuantizeConfig, quantize

pytest.importorskip("torchao")


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 9), st.integers(1, 5), st.sampled_from([4, 8]), st.integers(0, 2**31))
def test_every_weight_becomes_the_nearest_that_its_bits_can_say(rows, groups, bits, seed):
    weight = torch.randn(rows, groups * low_bit.GROUP, generator=torch.Generator().manual_seed(seed))
    state = {"a.weight": weight, "a.bias": torch.ones(rows), "n": torch.tensor(3)}
    packed = low_bit.pack(state, ["a"], bits)
    assert sum(x.nbytes for name, x in packed.items() if name.startswith("a.weight")) < weight.nbytes * (bits + 4) / 32
    found = low_bit.unpack(packed)
    assert found.keys() == state.keys() and found["n"] == 3 and torch.equal(found["a.bias"], state["a.bias"])
    scale = packed["a.weight.scale"].repeat_interleave(weight.shape[1] // packed["a.weight.scale"].shape[1], dim=1)
    off = (found["a.weight"] - weight).abs() / scale
    # The largest weight of all may lie half a step beyond the last integer.
    assert off.max() <= 1.0 and (off > 0.501).float().mean() <= 1 / low_bit.GROUP + 1e-6


def test_a_quantised_checkpoint_is_small_and_acts_alike(tiny_run, tiny_dataset, tmp_path):
    source = tiny_run / "checkpoints" / "last"
    exact = Policy.load(source)
    for bits, apart in ((8, 0.03), (4, 0.3)):
        out = tmp_path / f"bits-{bits}"
        result = quantize(QuantizeConfig(str(source), str(tiny_dataset), out, bits))
        assert not result["kept"] and result["size_ratio"] < 0.5
        assert max(result["loss_after"][r] - result["loss"][r] for r in result["loss"]) < 0.02
        policy = Policy.load(out)
        seen = Observation(
            {"front": np.full((32, 32, 3), 90, np.uint8)}, np.zeros(4, np.float32), "reach the red block"
        )
        np.testing.assert_allclose(policy.act([seen], [(1, 2)]), exact.act([seen], [(1, 2)]), atol=apart)
    with pytest.raises(ValueError, match="have 4 bits already"):
        quantize(QuantizeConfig(str(out), str(tiny_dataset), tmp_path / "again"))


def test_a_layer_that_costs_too_much_stays(tiny_run, tiny_dataset, tmp_path):
    source = tiny_run / "checkpoints" / "last"
    result = quantize(QuantizeConfig(str(source), str(tiny_dataset), tmp_path / "out", 4, keep_above=-1.0))
    assert result["layers"] == 0 and len(result["kept"]) == len(low_bit.candidates(Policy.load(source).model))
    kept = json.loads((tmp_path / "out" / "config.json").read_text())["low_bit"]["kept"]
    assert kept == result["kept"]


def test_large_matrices_are_multiplied_as_the_integers_of_the_file():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(low_bit.LARGE, low_bit.LARGE), nn.Linear(low_bit.LARGE, 32))
    packed = low_bit.pack(model.state_dict(), ["0", "1"], 8)
    model.load_state_dict(low_bit.unpack(packed))
    x = torch.randn(5, low_bit.LARGE)
    expected = model(x)
    assert low_bit.run_in_integers(model, packed)
    assert torch.equal(model[0].weight.qdata, packed["0.weight.low_bit"]) and type(model[1].weight) is nn.Parameter
    with torch.inference_mode():
        assert (model(x) - expected).abs().mean() < 0.02 * expected.abs().mean()
        assert torch.allclose(model(x)[:2], model(x[:2]), atol=1e-5)  # a row by itself
