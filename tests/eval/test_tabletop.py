# SPDX-License-Identifier: Apache-2.0
"""The real environment in worker processes: what the fake one cannot show (physics, rendering, replay)."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from vla.eval.episodes import read_results
from vla.eval.evaluate import EvalConfig, evaluate

pytest.importorskip("mujoco")


def run(settings, policy=None):
    summary = evaluate(settings, policy, console=Console(file=io.StringIO()))
    return summary, [replace(r, wall_s=0.0) for r in read_results(settings.out / "episodes.jsonl")]


@pytest.mark.render
def test_slots_change_nothing_and_scenes_are_those_of_the_baselines(tmp_path, hash_policy):
    hash_policy.action_names = ("dx", "dy", "dz", "gripper")
    hash_policy.state_names = ("hand_x", "hand_y", "hand_z", "gripper")
    hash_policy.image_size = 64
    base = EvalConfig(policy="stub", episodes=10, slots=1, workers=1, videos=0, out=tmp_path / "one")
    _, one = run(base, hash_policy)
    many = replace(base, slots=5, workers=2, videos=1, out=tmp_path / "many")
    _, five = run(many, hash_policy)
    assert one == five
    assert len(list((many.out / "videos").iterdir())) == len({(r.task, r.success) for r in five})
    summary, expert = run(replace(base, policy="expert", workers=2, slots=2, out=tmp_path / "expert"))
    assert summary["success"] == 1.0
    assert [r.first_frame_sha256 for r in expert] == [r.first_frame_sha256 for r in one]
