# SPDX-License-Identifier: Apache-2.0
"""Evaluation in an environment without cameras: baselines, a policy, what does not fit, videos or none."""

import io
import json

import numpy as np
import pytest
from rich.console import Console

from vla.eval.episodes import Episode, EpisodeResult, read_results
from vla.eval.evaluate import EvalConfig, evaluate
from vla.eval.workers import Worker, WorkerSettings

pytest.importorskip("mujoco")


class StatePolicy:
    """Goes straight to the first named block, seen in the state."""

    horizon, n_action_steps, image_size, cameras = 8, 4, 0, ()
    action_names = ("dx", "dy", "dz", "gripper")

    def __init__(self):
        from vla.envs.tabletop.state_env import TabletopStateEnv

        self.state_names = TabletopStateEnv.state_names

    def act(self, observations, keys):
        assert all(o.images == {} for o in observations)
        state_BS = np.stack([o.state for o in observations])
        move_B3 = (state_BS[:, 4:7] + [0, 0, 0.045] - state_BS[:, :3]) / 0.04 / self.n_action_steps
        actions_B4 = np.concatenate([np.clip(move_B3, -1, 1), np.full((len(state_BS), 1), -1)], axis=1)
        return np.repeat(actions_B4[:, None], self.horizon, axis=1).astype(np.float32)


def config(out, **changes):
    settings = {"policy": "stub", "env": "tabletop_state", "tasks": ("reach",), "episodes": 4, "slots": 2}
    return EvalConfig(out=out, **(settings | {"workers": 1, "videos": 0} | changes))


def run(settings, policy=None):
    return evaluate(settings, policy, console=Console(file=io.StringIO()))


def test_a_policy_and_the_baselines_see_the_same_scenes(tmp_path):
    folders = [tmp_path / name for name in ("policy", "expert", "random")]
    policy = run(config(folders[0]), StatePolicy())
    expert, random = (run(config(folder, policy=folder.name)) for folder in folders[1:])
    assert policy["success"] == expert["success"] == 1.0 and random["success"] == 0.0
    hashes = [[r.first_frame_sha256 for r in read_results(folder / "episodes.jsonl")] for folder in folders]
    assert hashes[0] == hashes[1] == hashes[2] and len(set(hashes[0])) == 4
    assert json.loads((folders[0] / "summary.json").read_text())["manifest"]["image_size"] is None


def test_what_does_not_fit_is_refused_in_words(tmp_path, hash_policy):
    with pytest.raises(ValueError, match="expected no cameras in 'tabletop_state'"):
        run(config(tmp_path / "a"), hash_policy)
    with pytest.raises(ValueError, match="the environment's state hand_x, hand_y, hand_z, gripper"):
        run(config(tmp_path / "b", env="tabletop"), StatePolicy())


def replay(tmp_path):
    """Film an expert's episode in a worker of this process: (whether it was filmed, its path)."""
    worker = Worker(WorkerSettings("vla.envs.registry", "tabletop_state", {"task": "reach"}, mode="expert"))
    try:
        _, _, result, actions = worker.handle(("begin", 0, Episode("reach", 0)))
        assert isinstance(result, EpisodeResult) and result.success
        path = tmp_path / "reach.mp4"
        return worker.handle(("film", 0, result, actions, path, 64))[-1], path
    finally:
        worker.close()


@pytest.mark.render
def test_it_is_filmed_where_something_can_draw(tmp_path):
    filmed, path = replay(tmp_path)
    assert filmed and path.stat().st_size > 0


def test_it_is_not_filmed_where_nothing_can_draw(tmp_path, monkeypatch):
    from vla.envs.tabletop.env import TabletopEnv

    def refuse(self, size):
        raise RuntimeError("no OpenGL")

    monkeypatch.setattr(TabletopEnv, "_open_renderer", refuse)
    filmed, path = replay(tmp_path)
    assert not filmed and not path.exists()
