# SPDX-License-Identifier: Apache-2.0
"""`vla train --init`: a run that begins with the weights of a checkpoint."""

from pathlib import Path

import pytest
import torch

from vla import checkpoint, cli
from vla.train.loop import train

from ..conftest import tiny_config


def test_a_run_begins_with_a_checkpoint_s_weights_and_limits(tiny_dataset, tiny_checkpoint, tmp_path):
    settings = {"init": str(tiny_checkpoint), "set": ("lr=0",), "steps": 2, "seed": 7}
    result = train(tiny_config(tiny_dataset, tmp_path / "run", **settings))
    began, ended = (
        checkpoint.load_tensors(folder / "model.safetensors") for folder in (tiny_checkpoint, _last(result))
    )
    assert began.keys() == ended.keys()
    assert all(torch.equal(began[name], ended[name]) for name in began), "nothing was learnt at a rate of 0"
    for name in ("tokenizers.json", "text_tokenizer.json"):
        assert (tiny_checkpoint / name).read_text() == (_last(result) / name).read_text()


def test_another_network_is_refused(tiny_dataset, tiny_checkpoint, tmp_path, capsys):
    command = ["train", "--dataset", str(tiny_dataset), "--out", str(tmp_path / "run"), "--recipe", "tabletop_test"]
    assert cli.main([*command, "--init", str(tiny_checkpoint), "--set", "layers=2", "--steps", "1"]) != 0
    assert "layers" in capsys.readouterr().err


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def _last(result):
    return Path(result["checkpoint"])
