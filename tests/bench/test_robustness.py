# SPDX-License-Identifier: Apache-2.0
"""`vla bench robustness` around a stand-in for the evaluation: which cells there are, and what is made of them."""

import json

import pytest

from vla import cli
from vla.bench.robustness import MEANING, cells, run
from vla.bench.run import BenchConfig
from vla.envs.registry import ENVS, PERTURBATIONS
from vla.eval.episodes import EpisodeResult, episode_list, write_results
from vla.eval.summary import summarize


@pytest.fixture
def evaluated(monkeypatch):
    """Instead of simulating: every third episode fails, under light every second one; returns what was asked for."""
    asked = {}

    def evaluate(config, *, console=None):
        asked[config.name] = config
        every = 2 if config.perturbation == "light" else 3
        chosen = episode_list(config.tasks or ("reach", "lift", "stack"), config.episodes, config.first_seed)
        rows = [EpisodeResult(e.task, e.seed, "", "", bool(i % every), 9, "", 0.1, 2) for i, e in enumerate(chosen)]
        config.out.mkdir(parents=True, exist_ok=True)
        write_results(config.out / "episodes.jsonl", rows)
        return summarize(config.name, config.suite, config.env, rows, [], 1.0, {"checkpoint_sha256": "abc"})

    monkeypatch.setattr("vla.eval.evaluate.evaluate", evaluate)
    monkeypatch.setattr("vla.eval.manifest.git_commit", lambda: "abc")
    return asked


def test_every_cell_runs_the_same_episodes_with_one_thing_different(tmp_path):
    found = cells(BenchConfig("robustness", out=tmp_path))
    assert list(found) == ["unperturbed", *MEANING]
    keys = ("suite", "tasks", "episodes", "first_seed", "seed", "policy")
    assert len({tuple(getattr(cell, key) for key in keys) for cell in found.values()}) == 1
    different = [(cell.instruction, cell.perturbation) for cell in found.values()]
    told = [("given", None), ("swapped", None), ("paraphrased", None)]
    assert different == [*told, *(("given", name) for name in PERTURBATIONS["tabletop"])]
    assert all(cell.resume for cell in found.values()) and len({cell.out for cell in found.values()}) == len(found)


def test_baselines_and_environments_without_pictures_are_told_nothing(tmp_path):
    for config in (BenchConfig("robustness", policy="expert"), BenchConfig("robustness", env="tabletop_state")):
        assert list(cells(config)) == ["unperturbed", *PERTURBATIONS[config.env]]
    assert "held-out-positions" not in cells(BenchConfig("robustness", env="metaworld")) and len(ENVS) == 3
    with pytest.raises(ValueError, match="a suite of tabletop out of demo"):
        cells(BenchConfig("robustness", suite="mt10"))
    with pytest.raises(ValueError, match="did you mean 'tabletop'"):
        cells(BenchConfig("robustness", env="table"))


def test_rows_are_rates_and_paired_differences(tmp_path, evaluated):
    made = run(BenchConfig("robustness", out=tmp_path, episodes=60))
    rows = {row["id"]: row for row in made["rows"]}
    assert len(rows) == 2 * len(MEANING) + 1 and "robustness_held_out_positions_difference" in rows
    assert (
        rows["robustness_unperturbed"]["value"] == pytest.approx(40 / 60) and rows["robustness_light"]["value"] == 0.5
    )
    difference = rows["robustness_light_difference"]
    assert difference["value"] == pytest.approx(-10 / 60) and difference["n"] == 60
    assert (
        difference["interval"][0] < -10 / 60 < difference["interval"][1] and "lost 20, gained 10" in difference["note"]
    )
    assert rows["robustness_swap_difference"]["value"] == 0
    assert made["policy"] == "tabletop_nano" and made["checkpoint_sha256"] == "abc"


def test_quick_is_two_tasks_in_a_folder_of_its_own(tmp_path, evaluated, capsys):
    assert cli.main(["bench", "robustness", "--quick", "--out", str(tmp_path), "--suite", "tier3"]) == 0
    asked = evaluated["light"]
    assert asked.tasks == ("stack", "unstack") and asked.episodes == 6 and asked.out.is_relative_to(tmp_path / "quick")
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["rows"]["robustness_light_difference"] == pytest.approx(-1 / 6)
    assert cli.main(["bench", "robustness", "--episodes", "0"]) == 2
    assert "expected --episodes >= 1" in capsys.readouterr().err
