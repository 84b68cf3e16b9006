# SPDX-License-Identifier: Apache-2.0
import json

import numpy as np
import pytest
from scipy.stats import binomtest

from vla.eval.compare import CompareConfig, compare, pairs_needed
from vla.eval.episodes import EpisodeResult, write_results


def evaluation(folder, successes, mujoco="3.3.0", frame="f", **manifest):
    """An evaluation of task "reach" whose episode i succeeded if successes[i]."""
    folder.mkdir()
    rows = [EpisodeResult("reach", i, "x", "x", s, 9, f"{frame}{i}", 0.1, 2) for i, s in enumerate(successes)]
    write_results(folder / "episodes.jsonl", rows)
    about = {"name": folder.name, "env": "tabletop", "manifest": {"versions": {"mujoco": mujoco}, "image_size": 64}}
    about["manifest"] |= manifest
    (folder / "summary.json").write_text(json.dumps(about))
    return folder


def test_a_difference_is_paired_and_signed(tmp_path):
    a = evaluation(tmp_path / "a", [True] * 50 + [False] * 50)
    b = evaluation(tmp_path / "b", [True] * 70 + [False] * 30)
    result = compare(CompareConfig(a, b, out=tmp_path / "c.json"))
    assert (result["only_a"], result["only_b"], result["difference"]) == (0, 20, 0.2)
    assert 0.1 < result["interval"][0] < 0.2 < result["interval"][1] and result["p_value"] < 1e-4
    assert json.loads((tmp_path / "c.json").read_text())["tasks"]["reach"]["n"] == 100
    assert compare(CompareConfig(b, a))["difference"] == -0.2
    same = compare(CompareConfig(a, a))
    assert same["difference"] == 0 and same["needed"] is None and same["p_value"] == 1


def test_pairs_needed_grow_as_the_difference_shrinks(tmp_path):
    assert pairs_needed(0.2, 0.1) < pairs_needed(0.2, 0.04)
    assert pairs_needed(0.2, 0.2) < 45  # all discordant pairs point one way
    assert pairs_needed(0.0, -0.05) == pairs_needed(0.05, 0.05) and pairs_needed(0.3, 0.0) is None
    a = evaluation(tmp_path / "a", [True] * 50 + [False] * 50)
    b = evaluation(tmp_path / "b", [False] * 10 + [True] * 50 + [False] * 40)
    assert compare(CompareConfig(a, b, difference=0.05))["needed_for_difference"] == pairs_needed(0.2, 0.05)


def test_the_promised_number_of_pairs_sees_the_difference_in_four_of_five():
    n, generator = pairs_needed(0.3, 0.1), np.random.default_rng(0)
    cells = generator.multinomial(n, [0.1, 0.2, 0.7], size=2000)
    seen = [binomtest(int(a), int(a + b)).pvalue < 0.05 for a, b, _ in cells]
    assert 0.74 < np.mean(seen) < 0.86


@pytest.mark.parametrize("change", [{"mujoco": "3.8.0"}, {"frame": "g"}])
def test_other_simulators_and_scenes_are_refused(tmp_path, change):
    a, b = evaluation(tmp_path / "a", [True] * 9), evaluation(tmp_path / "b", [True] * 9, **change)
    with pytest.raises(ValueError, match="differ in more than the policy"):
        compare(CompareConfig(a, b))
    assert compare(CompareConfig(a, b, force=True))["n"] == 9


def test_first_frames_may_differ_where_the_perturbation_does_and_nowhere_else(tmp_path):
    old = evaluation(tmp_path / "old", [True] * 9)  # of before there were perturbations
    new = evaluation(tmp_path / "new", [True] * 9, perturbation=None, instruction="given")
    light = evaluation(tmp_path / "light", [True] * 9, frame="g", perturbation="light", instruction="swapped")
    shift = evaluation(tmp_path / "shift", [True] * 9, frame="h", perturbation="camera-shift", instruction="swapped")
    other_light = evaluation(tmp_path / "other", [True] * 9, frame="i", perturbation="light")
    assert compare(CompareConfig(old, new))["differs"] == {}
    assert compare(CompareConfig(old, light))["differs"] == {"perturbation": ["none", "light"]}
    both = {"instruction": ["given", "swapped"], "perturbation": ["none", "light"]}
    assert compare(CompareConfig(new, light))["differs"] == both
    assert compare(CompareConfig(light, shift))["differs"] == {"perturbation": ["light", "camera-shift"]}
    with pytest.raises(ValueError, match="first frame of reach seed 0"):
        compare(CompareConfig(light, other_light))


def test_other_episodes_and_no_evaluation_are_refused(tmp_path):
    a, b = evaluation(tmp_path / "a", [True] * 9), evaluation(tmp_path / "b", [True] * 8)
    with pytest.raises(ValueError, match="same \\(task, seed\\) pairs"):
        compare(CompareConfig(a, b))
    with pytest.raises(ValueError, match=r"no summary\.json"):
        compare(CompareConfig(a, tmp_path / "c"))
