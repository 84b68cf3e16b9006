# SPDX-License-Identifier: Apache-2.0
import dataclasses
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.conftest import tiny_config
from vla import checkpoint, recipes
from vla.policy import Observation, Policy
from vla.train.loop import train


def weights(run, step=8):
    folder = run / "checkpoints" / f"{step:07d}"
    return [(folder / name).read_bytes() for name in ("model.safetensors", "training.safetensors")]


def vla(*arguments):
    command = [sys.executable, "-m", "vla.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_a_run_leaves_checkpoints_metrics_and_a_summary(tiny_run):
    lines = [json.loads(line) for line in (tiny_run / "metrics.jsonl").read_text().splitlines()]
    logged = [line for line in lines if "loss" in line]
    assert [line["step"] for line in logged] == [4, 8]
    assert {"loss", "loss_coarse", "loss_fine", "lr", "grad_norm", "steps_per_s", "elapsed_s"} <= set(logged[-1])
    assert [line["step"] for line in lines if "val_loss" in line] == [4, 8]
    assert [p.name for p in checkpoint.steps_in(tiny_run)] == ["0000004", "0000008"]
    assert (tiny_run / "checkpoints" / "last").resolve().name == "0000008"
    assert json.loads((tiny_run / "train.json").read_text())["steps"] == 8


def test_a_resumed_run_is_bit_identical(tiny_run, tiny_dataset, tmp_path):
    half = tmp_path / "half"
    (half / "checkpoints").mkdir(parents=True)
    shutil.copytree(tiny_run / "checkpoints" / "0000004", half / "checkpoints" / "0000004")
    (half / "checkpoints" / ".writing-0000008-1").mkdir()  # what a killed writer leaves
    train(tiny_config(tiny_dataset, half, resume=True))
    assert weights(half) == weights(tiny_run)
    assert not list((half / "checkpoints").glob(".writing*"))


def test_a_resumed_run_keeps_its_total_whatever_the_time_limit(tiny_dataset, tmp_path):
    """The schedule was fitted to the limit once; fitting it again would change the learning rate of every step left."""
    run = tmp_path / "run"
    train(tiny_config(tiny_dataset, run, steps=92, save_interval=46, val_interval=92))
    shutil.rmtree(run / "checkpoints" / "0000092")
    resumed = train(tiny_config(tiny_dataset, run, resume=True, minutes=1e-6, save_interval=46, val_interval=92))
    assert resumed["steps"] == 92


def test_sigterm_saves_and_resume_goes_on(tiny_run, tiny_dataset, tmp_path):
    run = tmp_path / "run"
    command = [sys.executable, "-m", "vla.cli", "train", "--dataset", tiny_dataset, "--out", run, "--recipe"]
    command += ["tabletop_test", "--steps", "100000", "--threads", "1", "--no-tensorboard", "--log-interval", "1"]
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    metrics, deadline = run / "metrics.jsonl", time.monotonic() + 240
    while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=240)[0].decode()
    assert process.returncode == 130, output
    step = int(checkpoint.steps_in(run)[-1].name)
    assert 0 < step < 100000 and "--resume" in output
    checkpoint.verify(checkpoint.steps_in(run)[-1])


def test_a_full_disk_keeps_the_checkpoint_before(tiny_run, tiny_dataset, tmp_path, monkeypatch):
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run, symlinks=True)
    shutil.rmtree(run / "checkpoints" / "0000008")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint, "save_tensors", full)
    with pytest.raises(OSError, match="disk full while saving 0000008"):
        train(tiny_config(tiny_dataset, run, resume=True))
    assert [p.name for p in (run / "checkpoints").iterdir() if p.name.isdigit()] == ["0000004"]
    checkpoint.verify(run / "checkpoints" / "0000004")


def test_a_loss_that_stays_infinite_stops_the_run_with_the_reason(tiny_dataset, tmp_path):
    config = tiny_config(tiny_dataset, tmp_path / "run", steps=40, set=("lr=1e30", "warmup=1", "grad_clip=1e30"))
    with pytest.raises(ValueError, match=r"not been finite for 20 steps: lower lr"):
        train(config)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--dataset", "no/such/folder/here"), "no/such/folder/here"),
        (("--recipe", "tabletop_nana"), "did you mean 'tabletop_nano'"),
        (("--set", "corruption.p_full=1"), "did you mean 'p_full_mask'"),
        (("--set", "width=wide"), "expected a int, got 'wide'"),
        (("--resume",), "nothing to resume"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tiny_dataset, tmp_path, arguments, message):
    base = ("train", "--dataset", tiny_dataset, "--out", tmp_path / "run", "--recipe", "tabletop_test")
    result = vla(*base, *arguments)
    assert result.returncode == 2 and message in result.stderr and "Traceback" not in result.stderr, result.stderr


def test_an_existing_run_is_not_overwritten(tiny_run, tiny_dataset):
    with pytest.raises(ValueError, match=r"exists; give another --out, or --resume, or --overwrite"):
        train(tiny_config(tiny_dataset, tiny_run))


def test_overrides_reach_every_recipe():
    for name in recipes.RECIPES:
        recipe = recipes.get(name, ("corruption.p_full_mask=0.25", "grad_clip=2", "precision=float32"))
        assert (recipe.corruption.p_full_mask, recipe.grad_clip, recipe.precision) == (0.25, 2.0, "float32")
        assert json.loads(json.dumps(recipes.to_dict(recipe)))["corruption"]["p_full_mask"] == 0.25
    with pytest.raises(ValueError, match="expected accumulate to divide the batch of 8, got 3"):
        recipes.get("tabletop_test", ("accumulate=3",))


def test_nan_in_the_dataset_is_named(tiny_dataset, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    broken = tmp_path / "broken"
    shutil.copytree(tiny_dataset, broken)
    path = next((broken / "data").rglob("*.parquet"))
    table = pq.read_table(path)
    action = np.stack(table["action"].to_numpy(zero_copy_only=False)).astype(np.float32)
    action[3, 1] = np.nan
    column = pa.FixedSizeListArray.from_arrays(pa.array(action.ravel()), action.shape[1])
    pq.write_table(table.set_column(table.schema.get_field_index("action"), "action", column), path)
    with pytest.raises(ValueError, match=r"action"):
        train(tiny_config(broken, tmp_path / "run"))


def test_datasets_are_mixed_and_the_background_stays_with_the_checkpoint(tiny_dataset, tmp_path):
    config = tiny_config(tiny_dataset, tmp_path / "run", set=("background=true", "holdout=0.1"), weights=(3.0, 1.0))
    train(dataclasses.replace(config, dataset=(str(tiny_dataset), str(tiny_dataset)), episodes="0:30"))
    policy = Policy.load(tmp_path / "run/checkpoints/last")
    stem = policy.model.vision["front"]
    assert 20 < stem.mean_HWC.mean() < 235 and stem.spread_HW1.min() >= 8
    observation = Observation(
        {"front": np.zeros((32, 32, 3), np.uint8)}, np.zeros(4, np.float32), "reach the red block"
    )
    assert np.isfinite(policy.act([observation], [(0, 0)])).all()


def test_a_dry_run_says_what_would_be_trained_and_trains_nothing(tiny_dataset, tmp_path, capsys):
    found = train(tiny_config(tiny_dataset, tmp_path / "run", dry_run=True))
    assert found["parameters"] == found["trainable"] == sum(found["parts"].values())
    assert found["fixed_bytes"] == 20 * found["parameters"] and 0 < found["sample_bytes"] < 1e8
    fits = list(found["fits"].values())
    assert fits == sorted(fits) and fits[0] > 8
    assert not (tmp_path / "run").exists() and "GB: a batch of" in capsys.readouterr().out


def test_a_batch_in_parts_is_trained_by_the_real_command(tiny_dataset, tmp_path):
    losses = {}
    for parts in (1, 2):
        run = tmp_path / str(parts)
        train(tiny_config(tiny_dataset, run, set=("precision=float32", f"accumulate={parts}"), steps=2, log_interval=1))
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        losses[parts] = [line["loss"] for line in lines if "loss" in line]
    assert losses[1] == pytest.approx(losses[2], rel=0.02) and losses[1] != losses[2]
