# SPDX-License-Identifier: Apache-2.0
"""The README's table: what stands in a cell, and on which network it was measured."""

import json

from benchmarks import figures

OLD, NEW = "2026-11-24T19:00:00+00:00", "2026-11-29T01:00:00+00:00"


def row(**changes):
    usual = {"id": "x", "value": 0.5, "unit": "fraction", "n": 300, "interval": None, "goal": "", "passes": None}
    return usual | {"note": ""} | changes


def test_cells():
    assert figures.cell(row(interval=[0.4, 0.61])) == "50.0 % (40.0-61.0, n = 300)"
    assert figures.cell(row(id="a_vs_b", value=-0.01, interval=[-0.03, 0.01])) == "-1.0 points (-3.0 to 1.0, n = 300)"
    assert figures.cell(row(unit="ratio", interval=[0.41, 0.55])) == "0.5 (0.41-0.55, n = 300)"
    assert figures.cell(row(value=1234.5, unit="1/s", n=None)) == "1,234 frames/s"
    assert figures.cell(row(value=20, unit="pairs", n=22)) == "20 of 22 pairs"
    assert figures.cell(row(value=None, note="not run: no reason")) == "not run: no reason"
    assert figures.goal(row(goal="at least 1", passes=False)) == "at least 1 (**not met**)"


def test_what_was_measured_before_the_redesign_says_so():
    assert figures.edition({"bench": "demo", "date": OLD}) == "first edition's network"
    assert figures.edition({"bench": "demo", "date": NEW}) == figures.edition({"bench": "data", "date": OLD}) == ""
    parts = {"fuzz": {"commit": "a"}, "wire": {"commit": "b", "date": NEW}}  # parts once had no date
    assert figures.edition({"bench": "survival", "date": NEW, "parts": parts}) == "in part first edition's network"
    del parts["fuzz"]
    assert figures.edition({"bench": "survival", "date": NEW, "parts": parts}) == ""


def test_a_file_that_is_not_there_is_left_out_and_rows_that_are_gone_too(tmp_path, monkeypatch):
    results = tmp_path / "benchmarks" / "results"
    results.mkdir(parents=True)
    about = {"bench": "heard", "machine": "a machine", "commit": "abcdefghi", "date": NEW}
    rows = [row(id="committed_ratio", unit="ratio"), row(id="nobody_shows_this")]
    (results / "heard.json").write_text(json.dumps(about | {"rows": rows}))
    monkeypatch.setattr(figures, "ROOT", tmp_path)
    lines = figures.figures().splitlines()
    assert "| **heard.json** (commit abcdefg) | | |" in lines and len([x for x in lines if x.startswith("| ")]) == 3
