# SPDX-License-Identifier: Apache-2.0
"""Two processes train what one trains, whole or in slices, and a run goes on with another number of them."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from tests.conftest import tiny_config
from vla import checkpoint, processes
from vla.train.loop import train
from vla.train.saving import newest_sound

SETTINGS = {
    # Fractions that half a batch has, too: which rows are asked what is then the same.
    "ddp": ("precision=float32", "queries.untold=0.5", "queries.plan=0.5", "queries.plan_policy=0.25"),
    "fsdp": ("precision=float32", "noise_indices=4"),
}
EVERY = {"steps": 6, "save_interval": 3, "log_interval": 1, "val_interval": 3}


def logged(run):
    """{(step, name): value} of what the run said, without times."""
    names = ("loss", "loss_coarse", "grad_norm", "val_loss", "val_mae", "plan/plan", "action/plan_policy")
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {(line["step"], name): line[name] for line in lines for name in names if name in line}


def launch(parallel, dataset, run, *more):
    options = [f"--{name.replace('_', '-')}={value}" for name, value in EVERY.items()]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "vla.cli", "train"]
    command += ["--dataset", dataset, "--out", run, "--recipe=tabletop_test", "--parallel", parallel, *options]
    command += ["--threads=1", "--no-tensorboard", "--device=cpu", *more, "--set", *SETTINGS[parallel]]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=900, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("parameters,") == 1  # one of them speaks
    return done


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_train_what_one_trains(parallel, tiny_dataset, tmp_path):
    alone, two, later = tmp_path / "alone", tmp_path / "two", tmp_path / "later"
    train(tiny_config(tiny_dataset, alone, set=SETTINGS[parallel], device="cpu", **EVERY))
    launch(parallel, tiny_dataset, two)
    expected, found = logged(alone), logged(two)
    assert found.keys() == expected.keys() and len(found) >= 22
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, rel=5e-5), key

    slices = sorted(p.name for p in (two / "checkpoints" / "0000003").glob("training*.safetensors"))
    names = ["training-00000-of-00002.safetensors", "training-00001-of-00002.safetensors"]
    assert slices == (names if parallel == "fsdp" else ["training.safetensors"])

    # One process goes on where two were
    (later / "checkpoints").mkdir(parents=True)
    shutil.copytree(two / "checkpoints" / "0000003", later / "checkpoints" / "0000003")
    train(tiny_config(tiny_dataset, later, set=SETTINGS[parallel], device="cpu", resume=True, **EVERY))
    for key, value in logged(later).items():
        assert key[0] > 3 and value == pytest.approx(expected[key], rel=5e-5), key


@pytest.mark.slow
def test_two_processes_go_on_in_slices_where_one_was(tiny_dataset, tmp_path):
    alone, later = tmp_path / "alone", tmp_path / "later"
    train(tiny_config(tiny_dataset, alone, set=SETTINGS["fsdp"], device="cpu", **EVERY))
    (later / "checkpoints").mkdir(parents=True)
    shutil.copytree(alone / "checkpoints" / "0000003", later / "checkpoints" / "0000003")
    launch("fsdp", tiny_dataset, later, "--resume")
    expected = logged(alone)
    for key, value in logged(later).items():
        assert key[0] > 3 and value == pytest.approx(expected[key], rel=5e-5), key


def test_processes_that_cannot_share_a_batch_are_told(tiny_dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "world", lambda: 3)
    monkeypatch.setattr(processes, "rank", lambda: 0)
    monkeypatch.setattr(processes, "wait", lambda: None)
    with pytest.raises(ValueError, match="a batch size that 3 processes can share, got 8"):
        train(tiny_config(tiny_dataset, tmp_path / "run", device="cpu"))


def test_a_run_goes_on_from_the_newest_checkpoint_that_is_whole(tiny_run, tmp_path):
    run, said = tmp_path / "run", []
    shutil.copytree(tiny_run, run, symlinks=True)
    weights = run / "checkpoints" / "0000008" / "training.safetensors"
    weights.write_bytes(weights.read_bytes()[:-7])
    assert newest_sound(run, said.append).name == "0000004"
    assert len(said) == 1 and "is damaged" in said[0] and "going on from the one before" in said[0]


def test_the_best_checkpoint_is_kept(tiny_dataset, tmp_path):
    """Learning far too fast after the first checkpoint: the best one stays, however many come after it."""
    wild = ("lr=0.5", "warmup=3", "ema=0.0", "precision=float32")
    train(tiny_config(tiny_dataset, tmp_path, set=wild, steps=8, save_interval=1, val_interval=1, keep=1))
    kept = [folder.name for folder in checkpoint.steps_in(tmp_path)]
    losses = {step: value for (step, name), value in logged(tmp_path).items() if name == "val_loss"}
    best = min(losses, key=lambda step: (losses[step], -step))
    assert best < 8 and kept == [f"{best:07d}", "0000008"]
    assert (tmp_path / "checkpoints" / "best").resolve().name == f"{best:07d}"
