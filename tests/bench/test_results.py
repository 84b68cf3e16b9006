# SPDX-License-Identifier: Apache-2.0
"""Rows to a file, a table and a line of JSON; the verb `vla bench` around a stand-in of a benchmark."""

import io
import json
import sys
import types

import numpy as np
import pytest
from rich.console import Console

from vla import cli
from vla.bench.results import Row, default_path, mean_interval, results, show, write

ROWS = (
    Row("success", 0.9, "fraction", 200, (0.85, 0.94), "at least 0.8", True, "from state"),
    Row("loss", 1.25, "nats", 3, (1.2, 1.3), "at most 1", False),
    Row("a_rather_long_id_of_a_number_that_nobody_set_a_goal_for", np.float32(1234.5), "1/s"),
)


@pytest.fixture(autouse=True)
def no_git(monkeypatch):
    monkeypatch.setattr("vla.eval.manifest.git_commit", lambda: "abc")


def test_results_survive_the_file(tmp_path):
    made = results("test", ROWS, range(3), {"nothing": float("nan"), "table": np.eye(2)})
    assert {"bench", "machine", "versions", "commit", "date", "seeds", "rows"} < made.keys()
    assert made["commit"] == "abc" and made["versions"]["numpy"] == np.__version__
    assert made["nothing"] is None and made["table"] == [[1, 0], [0, 1]]
    assert made["rows"][0] == {
        "id": "success", "value": 0.9, "unit": "fraction", "n": 200, "interval": [0.85, 0.94],
        "goal": "at least 0.8", "passes": True, "note": "from state",
    }  # fmt: skip
    path = tmp_path / "new" / "test.json"
    write(made, path)
    write(made, path)
    assert json.loads(path.read_text()) == made and [p.name for p in path.parent.iterdir()] == ["test.json"]


def test_results_refuse_what_would_be_lost():
    with pytest.raises(ValueError, match="loss more than once"):
        results("test", [ROWS[1], ROWS[1]], 0)
    with pytest.raises(ValueError, match="other names than rows"):
        results("test", ROWS, 0, {"rows": 1})


def test_table_and_last_line():
    out = io.StringIO()
    show(results("test", ROWS, 0), Console(file=out, width=60))
    *table, last = out.getvalue().splitlines()
    assert json.loads(last) == {"bench": "test", "rows": {row.id: float(row.value) for row in ROWS}}
    text = "\n".join(table)
    assert "90.0 %" in text and "NO" in text and "yes" in text


def test_mean_interval():
    mean, interval = mean_interval([1.0, 2.0, 3.0])
    assert mean == 2 and interval == pytest.approx((2 - 2.4841, 2 + 2.4841), abs=1e-4)
    assert mean_interval([0.5, 0.5]) == (0.5, (0.5, 0.5))
    assert mean_interval(np.array([3.0])) == (3.0, None)
    with pytest.raises(ValueError, match="at least one"):
        mean_interval([])


def test_default_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert default_path("x", tmp_path / "out") == tmp_path / "out" / "x.json"
    (tmp_path / "benchmarks").mkdir()  # anybody may have such a folder
    assert default_path("x", tmp_path / "out") == tmp_path / "out" / "x.json"
    (tmp_path / "vla" / "bench").mkdir(parents=True)
    assert str(default_path("x", tmp_path / "out")) == "benchmarks/results/x.json"


@pytest.fixture
def lattice(monkeypatch):
    """A stand-in for vla.bench.lattice; holds the configuration that it was given."""
    module = types.ModuleType("vla.bench.lattice")

    def run(config):
        module.config = config
        return results("lattice", ROWS, config.seeds)

    module.run = run
    monkeypatch.setitem(sys.modules, "vla.bench.lattice", module)
    return module


def test_the_verb(tmp_path, monkeypatch, capsys, lattice):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "vla" / "bench").mkdir(parents=True)
    assert cli.main(["bench", "lattice", "--out", "out", "--quick", "--seeds", "2", "--budget-minutes", "9"]) == 0
    assert (lattice.config.seeds, lattice.config.quick, lattice.config.budget_minutes) == (2, True, 9)
    last = capsys.readouterr().out.splitlines()[-1]
    assert json.loads(last)["rows"]["success"] == 0.9
    assert (tmp_path / "out/lattice.json").exists()  # a quick run replaces no figure that is quoted
    assert not (tmp_path / "benchmarks/results").exists()
    assert cli.main(["bench", "lattice", "--out", "out"]) == 0
    assert json.loads((tmp_path / "benchmarks/results/lattice.json").read_text())["seeds"] == 3
    assert cli.main(["bench", "lattice", "--seeds", "0"]) == 2
    assert "expected --seeds >= 1" in capsys.readouterr().err


def test_plots_are_written(tmp_path):
    from vla.bench.plots import curves_plot, ladder_plot

    rows = [{"name": "one", "values": [0.2, 0.3], "interval": (0.1, 0.4)}, {"name": "two", "values": [0.5]}]
    ladder_plot(rows, tmp_path / "ladder.png", "A ladder", "success")
    curves = {"one": [(1, 0.5, 0.4, 0.6), (2, 0.7, None, None)], "two": [(1, 0.2, 0.1, 0.3)]}
    curves_plot(curves, tmp_path / "curves.png", "Curves", "evaluations", "success", logx=True)
    assert all((tmp_path / name).read_bytes()[:4] == b"\x89PNG" for name in ("ladder.png", "curves.png"))
    with pytest.raises(ValueError, match="x > 0"):
        curves_plot({"one": [(0, 1, 1, 1)]}, tmp_path / "c.png", "", "", "", logx=True)
    with pytest.raises(ValueError, match="one or more rows"):
        ladder_plot([], tmp_path / "c.png", "", "")
