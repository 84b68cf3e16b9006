# SPDX-License-Identifier: Apache-2.0
import json
import os
import subprocess
import sys


def test_the_whole_loop_and_its_resume(tmp_path):
    """The real command, tiny: record, train, evaluate three ways, report; then again, which finds nothing to do."""
    command = [sys.executable, "-m", "vla.cli", "demo", "--out", "demo", "--scenes", "40", "--episodes", "5"]
    command += ["--recipe", "tabletop_test"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "VLA_CACHE": str(tmp_path / "cache")}

    def run(*extra):
        return subprocess.run(
            [*command, *extra], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=150
        )

    (tmp_path / "benchmarks" / "results").mkdir(parents=True)  # as in a checkout, whose figures are quoted
    done = run()
    assert done.returncode == 0, done.stdout + done.stderr
    last = json.loads(done.stdout.splitlines()[-1])
    ids = ["success", "random_success", "swapped_success", "minutes", "record_fps_per_core", "loader_fps"]
    assert list(last["rows"]) == ids
    results = json.loads((tmp_path / "demo" / "demo.json").read_text())
    assert [row["id"] for row in results["rows"]] == ids
    assert all("interval" in row and row["n"] == 5 for row in results["rows"][:3])
    page = (tmp_path / "demo" / "report.html").read_text()
    assert "<video" in page and "step 4" in page and "http" not in page.replace("http://www.w3.org", "")
    assert not list((tmp_path / "benchmarks" / "results").iterdir())

    refused = run()
    assert refused.returncode == 2 and "--resume" in refused.stderr and "Traceback" not in refused.stderr
    again = run("--resume")
    assert again.returncode == 0 and "finished" in again.stdout
