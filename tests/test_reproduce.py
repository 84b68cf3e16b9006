# SPDX-License-Identifier: Apache-2.0
import json
import subprocess
import sys

import pytest

from vla.reproduce import EXPERIMENTS, ReproduceConfig, reproduce

SMALL = ("--tiny", "--set", "image_size=32", "width=32", "heads=2", "layers=1", "batch_size=4", "compile=false")


def run(out, *arguments):
    command = [sys.executable, "-m", "vla.cli", "reproduce", "metaworld_mt50_base", "--out", str(out), *SMALL]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=300)


@pytest.mark.render
@pytest.mark.slow
def test_the_gpu_run_works_on_a_cpu_at_tiny_size_and_goes_on_where_it_was(tmp_path):
    out = tmp_path / "run"
    first = run(out)
    assert first.returncode == 0, first.stderr[-2000:]
    line = json.loads(first.stdout.splitlines()[-1])
    assert line["bench"] == "metaworld_mt50_base" and {"mt50_success", "mt50_minutes"} <= line["rows"].keys()
    written = json.loads((out / "metaworld_mt50_base.json").read_text())
    assert {row["id"]: row["value"] for row in written["rows"]} == line["rows"]
    assert written["facts"]["recorded"]["episodes"] == 4 and (out / "report.html").is_file()

    # As if it had been killed while evaluating: nothing is recorded or trained again, one episode is run again.
    episodes = out / "eval" / "policy" / "episodes.jsonl"
    before = episodes.read_text().splitlines()
    episodes.write_text(before[0] + "\n")
    (out / "eval" / "policy" / "summary.json").unlink()
    weights = out / "train" / "checkpoints" / "last" / "model.safetensors"
    trained_at = weights.stat().st_mtime_ns
    again = run(out, "--resume")
    assert again.returncode == 0, again.stderr[-2000:]
    assert weights.stat().st_mtime_ns == trained_at
    strip = [{k: v for k, v in json.loads(row).items() if k != "wall_s"} for row in before]
    assert [
        {k: v for k, v in json.loads(r).items() if k != "wall_s"} for r in episodes.read_text().splitlines()
    ] == strip
    assert json.loads(again.stdout.splitlines()[-1])["rows"]["mt50_success"] == line["rows"]["mt50_success"]

    refused = run(out)
    assert refused.returncode == 2 and "--resume" in refused.stderr


def test_a_name_without_an_experiment_is_refused(tmp_path):
    with pytest.raises(ValueError, match=", ".join(EXPERIMENTS)):
        reproduce(ReproduceConfig("tabletop", out=tmp_path))
