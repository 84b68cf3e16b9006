# SPDX-License-Identifier: Apache-2.0
"""The weights that act are averages of the trained ones; what is no weight is theirs as it is."""

import pytest
import torch
from torch import nn

from tests.conftest import tiny_config
from vla import checkpoint
from vla.train.loop import train
from vla.train.session import average


def test_an_average_follows_the_weights_faster_at_first():
    averaged, model = nn.Linear(2, 2), nn.Linear(2, 2)
    begin, now = averaged.weight.detach().clone(), model.weight.detach()
    average(averaged, model, 0.999, 0)
    assert torch.allclose(averaged.weight, begin + 0.9 * (now - begin))
    before = averaged.weight.detach().clone()
    average(averaged, model, 0.999, 10**6)
    assert torch.allclose(averaged.weight, before + 0.001 * (now - before), atol=1e-7)


def test_averaged_weights_carry_the_running_statistics_of_norms(tiny_dataset, tmp_path):
    """A backbone with BatchNorm would act with the statistics of the beginning, or with an average of them."""
    pytest.importorskip("timm")
    train(tiny_config(tiny_dataset, tmp_path, set=("vision=timm:test_resnet", "ema=0.9"), steps=3, val_interval=3))
    folder = tmp_path / "checkpoints" / "last"
    averaged = checkpoint.load_tensors(folder / "model.safetensors")
    trained = checkpoint.load_tensors(folder / "training.safetensors")
    statistics = [name for name in averaged if name.split(".")[-1] in ("running_mean", "running_var")]
    assert len(statistics) > 4
    for name in statistics:
        assert torch.equal(averaged[name], trained[f"model.{name}"]), name
        assert averaged[name].std() > 0  # they have moved
    assert averaged[statistics[0].rpartition(".")[0] + ".num_batches_tracked"] == 3
    weight = statistics[0].rpartition(".")[0] + ".weight"
    assert not torch.equal(averaged[weight], trained[f"model.{weight}"])
