# SPDX-License-Identifier: Apache-2.0
"""What is recorded depends on the settings alone; whatever happens, finished shards stay a valid dataset."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import HERE, SETTINGS, WORLD, run, tree
from fake_world import Squares

from vla.data import writer
from vla.data.lerobot_files import read_tables
from vla.data.record import EpisodePlan, RecordConfig, plan
from vla.data.record_worker import simulate

REPO = str(Path(__file__).parents[2])


def test_plan_is_balanced_and_a_function_of_the_index():
    config = RecordConfig(noise=(0.0, 0.2), seed=2_000_000)
    plans = [plan(config, ("a", "b", "c"), i) for i in range(60)]
    combinations = [(p.task, p.noise) for p in plans]
    assert {combinations.count(c) for c in combinations} == {10}
    assert [p.seed for p in plans] == list(range(2_000_000, 2_000_060))


def test_dataset_is_complete_and_failures_are_left_out(dataset):
    tables = read_tables(dataset)
    record = json.loads((dataset / "meta/recording.json").read_text())
    counts = record["counts"]
    assert counts["reach"] == {"attempted": 11, "succeeded": 11, "recorded": 11, "played": 0}
    assert counts["touch"]["attempted"] == 11 and 4 < counts["touch"]["recorded"] < 11
    assert counts["touch"]["recorded"] == counts["touch"]["succeeded"]
    assert len(tables.episode_from) == 11 + counts["touch"]["recorded"]
    assert tables.extra["success"] == [True] * len(tables.episode_from)
    assert tables.extra["dynamics_only"] == [False] * len(tables.episode_from) and not tables.dynamics_only.any()
    for episode, (seed, task) in enumerate(zip(tables.extra["seed"], tables.extra["task_template"], strict=True)):
        first = tables.episode_from[episode]
        env = Squares()
        observation, info = env.reset(seed=seed, options={"task": task})
        np.testing.assert_array_equal(tables.state[first], observation["agent_pos"])
        assert tables.tasks[tables.task_index[first]] == info["instruction"]
    assert not (dataset / ".partial").exists()


def test_label_is_the_clean_action_and_noise_is_executed():
    played = simulate(Squares(), EpisodePlan(0, "reach", 1_000_005, 0.3))
    moved = np.diff(played.state, axis=0) / 0.1
    np.testing.assert_allclose(moved, played.executed[:-1, :2], atol=1e-5)
    assert np.abs(moved - played.action[:-1, :2]).max() > 0.1
    np.testing.assert_array_equal(played.action[:, 2], played.executed[:, 2])  # the gripper is spared
    assert np.abs(played.executed).max() <= 1
    assert len({image.tobytes() for image in played.images["front"]}) > 3  # not one array, drawn over
    calm = simulate(Squares(), EpisodePlan(0, "reach", 1_000_005, 0.0))
    np.testing.assert_array_equal(calm.action, calm.executed)


def test_noise_may_last():
    played = simulate(Squares(), EpisodePlan(0, "fail", 1_000_005, 0.05), 3)  # twenty steps
    inside = (np.abs(played.executed[:, :2]) < 1).all(1)
    push = np.round(played.executed - played.action, 5)[:, :2]
    for first in range(0, len(push), 3):
        held = push[first : first + 3][inside[first : first + 3]]
        assert len(np.unique(held, axis=0)) <= 1
    assert len(np.unique(push[inside], axis=0)) > 3


class Patient(Squares):
    """An episode of it is as long as one wants."""

    _max_episode_steps = 4000


def spells(executed_TA: np.ndarray) -> np.ndarray:
    """How long each action was held."""
    changes = np.flatnonzero((np.diff(executed_TA, axis=0) != 0).any(1)) + 1
    return np.diff([0, *changes, len(executed_TA)])


def test_bursts_are_random_actions_for_a_while_and_labels_stay_the_experts():
    plan_ = EpisodePlan(0, "fail", 1_000_005, 0.0)
    played, again = (simulate(Patient(), plan_, bursts=0.05) for _ in range(2))
    for name in ("state", "action", "executed"):
        np.testing.assert_array_equal(getattr(played, name), getattr(again, name))
    world = Patient()
    world.reset(seed=plan_.seed, options={"task": "fail"})
    for label, executed in zip(played.action, played.executed, strict=True):
        np.testing.assert_array_equal(label, world.expert_action())  # of the state that the burst led to
        world.step(executed)
    np.testing.assert_array_equal(played.action[:, 2], played.executed[:, 2])
    wild = (played.action != played.executed).any(1)
    # A step in a burst: 5 steps of it for every 20 outside.
    assert 0.15 < wild.mean() < 0.25
    assert np.abs(played.executed[wild, :2].mean()) < 0.1 and 0.5 < played.executed[wild, :2].std() < 0.65
    edges = np.flatnonzero(np.diff(np.r_[0, wild.astype(int), 0])).reshape(-1, 2)
    alone = [played.executed[a:b, :2] for a, b in edges if b - a <= 8]
    assert min(map(len, alone)) == 2 and max(map(len, alone)) == 8
    held = np.mean([len(np.unique(burst, axis=0)) == 1 for burst in alone])
    assert 0.35 < held < 0.65 and len(alone) > 60
    calm = simulate(Patient(), EpisodePlan(0, "reach", 1_000_005, 0.2))
    both = simulate(Patient(), EpisodePlan(0, "reach", 1_000_005, 0.2), bursts=1e-9)
    np.testing.assert_array_equal(calm.executed, both.executed)  # the noise is what it was


def test_play_is_random_and_holds_its_actions():
    played = simulate(Patient(), EpisodePlan(0, "fail", 1_000_005, 0.0, playful=True))
    assert len(played.action) == 2000  # half of the steps that are allowed
    np.testing.assert_array_equal(played.action, played.executed)
    assert set(spells(played.executed)) == set(range(2, 9))
    assert set(np.unique(played.executed[:, 2])) == {-1, 1} and played.executed[0, 2] in (-1, 1)
    opened = np.abs(np.diff(played.executed[:, 2])).astype(bool).sum() / len(spells(played.executed))
    assert 0.09 < opened < 0.21  # 0.3 of the draws, half of which say what is so already
    assert 0.5 < played.executed[:, :2].std() < 0.65
    other = simulate(Patient(), EpisodePlan(0, "fail", 1_000_006, 0.0, playful=True))
    assert (other.executed[0] != played.executed[0]).any()


def test_playful_episodes_are_spread_evenly():
    tasks = ("a", "b", "c")
    for share in (0.0, 0.1, 0.25, 1 / 3, 0.9, 1.0):
        config = RecordConfig(noise=(0.0, 0.2), playful=share)
        plans = [plan(config, tasks, i) for i in range(600)]
        for task in tasks:
            of = np.array([p.playful for p in plans if p.task == task])
            assert abs(np.cumsum(of) - share * np.arange(1, 201)).max() <= 1
            noises = [p.noise for p in plans if p.task == task and not p.playful]
            assert abs(noises.count(0.0) - noises.count(0.2)) <= 1
        assert all(p.noise == 0 for p in plans if p.playful)


def test_what_was_executed_is_a_feature_of_its_own(dataset, tmp_path):
    tables = read_tables(dataset)
    assert tables.info["features"]["executed_action"] == tables.info["features"]["action"]
    noise = np.array(tables.extra["noise"])[tables.episode_index]
    moved = np.diff(tables.state, axis=0) / 0.1
    same = np.diff(tables.episode_index) == 0
    np.testing.assert_allclose(moved[same], tables.executed[:-1, :2][same], atol=1e-5)
    np.testing.assert_array_equal(tables.action[noise == 0], tables.executed[noise == 0])
    assert (tables.action != tables.executed)[noise > 0].any(1).mean() > 0.9
    stats = json.loads((dataset / "meta/stats.json").read_text())
    np.testing.assert_allclose(stats["executed_action"]["std"], tables.executed.astype(float).std(0))
    assert stats["executed_action"] != stats["action"]

    run(tmp_path / "a", noise=(0.0,), episodes=4, workers=1)
    tables = read_tables(tmp_path / "a")
    assert "executed_action" not in tables.info["features"] and tables.executed is tables.action
    assert "executed_action" not in json.loads((tmp_path / "a/meta/stats.json").read_text())
    for name, change in (("b", {"bursts": 0.1}), ("c", {"playful": 0.2})):
        run(tmp_path / name, noise=(0.0,), episodes=4, workers=1, **change)
        assert "executed_action" in read_tables(tmp_path / name).info["features"]


def test_playful_episodes_are_kept_marked_and_no_failures_of_the_expert(tmp_path):
    summary = run(tmp_path / "a", playful=0.5, suite="fail", episodes=8, workers=1)
    assert summary["episodes"] == 4 and summary["success_rate"] == 0
    assert summary["tasks"] == {"fail": {"attempted": 4, "succeeded": 0, "recorded": 4, "played": 4}}
    tables = read_tables(tmp_path / "a")
    assert tables.extra["dynamics_only"] == [True] * 4 and tables.dynamics_only.all()
    assert set(tables.plan_index) == {-1}  # nothing is said: nobody follows the expert's plan
    assert (tables.episode_to - tables.episode_from == 10).all()
    np.testing.assert_array_equal(tables.action, tables.executed)
    alone = run(tmp_path / "b", playful=1.0, episodes=2, workers=1)
    assert alone["attempted"] == 0 and alone["success_rate"] == 0 and alone["episodes"] == 2

    mixed = {"playful": 0.25, "bursts": 0.1, "noise_steps": 2, "shard_episodes": 5, "episodes": 22}
    run(tmp_path / "c", keep_failures=True, **mixed)
    tables = read_tables(tmp_path / "c")
    marked = np.array(tables.extra["dynamics_only"])
    played = [plan(RecordConfig(playful=0.25), ("reach", "touch"), i).playful for i in range(22)]
    np.testing.assert_array_equal(marked, np.array(played) | ~np.array(tables.extra["success"]))
    assert sum(played) == 5 < marked.sum() and not marked.all()
    # The worker's number does not matter, nor an end in between.
    run(tmp_path / "d", keep_failures=True, workers=1, **mixed | {"episodes": 5})
    record = json.loads((tmp_path / "d/meta/recording.json").read_text())
    record["config"]["episodes"] = 22
    (tmp_path / "d/meta/recording.json").write_text(json.dumps(record))
    run(tmp_path / "d", keep_failures=True, resume=True, **mixed)
    assert tree(tmp_path / "d") == tree(tmp_path / "c")


def test_workers_do_not_change_the_files(dataset, tmp_path):
    summary = run(tmp_path / "a", workers=1)
    assert tree(tmp_path / "a") == tree(dataset)
    assert summary["attempted"] == 22 and summary["frames"] == len(read_tables(dataset).action)
    assert summary["frames_per_s"] > 0 and 0.5 < summary["success_rate"] < 1


def test_statistics_are_those_of_all_frames(dataset):
    stats = json.loads((dataset / "meta/stats.json").read_text())
    action = read_tables(dataset).action.astype(np.float64)
    np.testing.assert_allclose(stats["action"]["q01"], np.quantile(action, 0.01, axis=0))
    np.testing.assert_allclose(stats["action"]["q99"], np.quantile(action, 0.99, axis=0))
    np.testing.assert_allclose(stats["action"]["std"], action.std(0))
    assert stats["action"]["count"] == [len(action)]
    image = stats["observation.images.front"]
    assert np.shape(image["mean"]) == (3, 1, 1) and image["q50"][0][0][0] == pytest.approx(120 / 255)


def test_failures_can_be_kept(tmp_path):
    summary = run(tmp_path / "a", suite="fail", keep_failures=True, episodes=3, workers=1)
    assert summary["episodes"] == 3 and summary["success_rate"] == 0
    tables = read_tables(tmp_path / "a")
    assert tables.extra["success"] == [False] * 3 and tables.dynamics_only.all()
    with pytest.raises(ValueError, match="failed in all 3"):
        run(tmp_path / "b", suite="fail", episodes=3, workers=1)


def test_another_scene_is_tried_until_every_episode_is_one(dataset, tmp_path):
    summary = run(tmp_path / "a", attempts=9, workers=1)
    tasks = summary["tasks"].values()
    assert [t["recorded"] for t in tasks] == [11, 11] and summary["attempted"] > 22
    seeds, before = (read_tables(root).extra["seed"] for root in (tmp_path / "a", dataset))
    assert set(before) < set(seeds) and len(set(seeds)) == 22  # what succeeded at once is what it was


def test_broken_numbers_name_the_episode(tmp_path):
    with pytest.raises(ValueError, match=r"'action'.*'dy', episode 1 \(task 'nan', seed 1000001\), step 3"):
        run(tmp_path / "a", suite="nan", episodes=2, workers=1)
    with pytest.raises(ValueError, match="no instruction"):
        run(tmp_path / "b", suite="mute", episodes=1, workers=1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"suite": "boath"}, "expected a suite"),
        ({"tasks": ("reach", "fly")}, "no task 'fly'"),
        ({"episodes": 0}, "episodes >= 1"),
        ({"attempts": 0}, "attempts >= 1"),
        ({"image_size": 33}, "even image_size"),
        ({"seed": 7}, "belong to evaluation"),
        ({"noise": ()}, "noise"),
        ({"noise_steps": 0}, "noise_steps >= 1"),
        ({"bursts": 1.5}, r"bursts in 0\.\.1"),
        ({"playful": -0.1}, r"playful in 0\.\.1"),
        ({"cameras": ()}, "cameras"),
        ({"resume": True, "overwrite": True}, "one of them"),
    ],
)
def test_settings_that_cannot_be(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "a", **changes)
    assert not (tmp_path / "a").exists()


def test_existing_folders(dataset, tmp_path):
    before = tree(dataset)
    with pytest.raises(ValueError, match="plans=True then, False now"):
        run(dataset, resume=True, plans=False)
    with pytest.raises(ValueError, match=r"--resume.*--overwrite"):
        run(dataset)
    with pytest.raises(ValueError, match=r"bursts=0\.0 then, 0\.1 now"):
        run(dataset, resume=True, bursts=0.1)
    with pytest.raises(ValueError, match="seed=1000000 then, 1000001 now"):
        run(dataset, resume=True, seed=1_000_001)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter.tex").write_text("years of work")
    with pytest.raises(ValueError, match="something else than a dataset"):
        run(tmp_path / "thesis", overwrite=True)
    assert (tmp_path / "thesis/chapter.tex").exists()
    assert run(dataset, resume=True)["episodes"] == len(read_tables(dataset).episode_from)  # nothing left to do
    assert tree(dataset) == before


def test_full_disk(dataset, tmp_path, monkeypatch):
    real, calls = writer.write_atomic, []

    def fill_up(path, write):
        calls.append(path)
        if len(calls) > 9:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, write)

    out = tmp_path / "a"
    monkeypatch.setattr(writer, "write_atomic", fill_up)
    with pytest.raises(ValueError, match=r"disk of .* is full; its .* finished episodes .* --resume"):
        run(out)
    monkeypatch.undo()
    tables = read_tables(out)  # the first shard
    assert 0 < len(tables.episode_from) < 7
    assert not list(out.rglob("*.tmp")) and not (out / ".partial").exists()
    run(out, resume=True)
    assert tree(out) == tree(dataset)


def start_slow_recording(out: Path) -> subprocess.Popen:
    """`record` in a process of its own, in a slow world; returns when a shard is finished."""
    code = (
        "import sys; sys.path[:0] = [sys.argv[2], sys.argv[3]]\n"
        "if __name__ == '__main__':\n"
        "    from pathlib import Path\n"
        "    from vla.data.record import RecordConfig, record\n"
        f"    record(RecordConfig(out=Path(sys.argv[1]), **{SETTINGS!r}), registry={WORLD!r})\n"
    )
    script = out.parent / f"{out.name}.py"
    script.write_text(code)
    environment = os.environ | {"FAKE_WORLD_DELAY": "0.03"}
    process = subprocess.Popen(
        [sys.executable, str(script), str(out), HERE, REPO],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    end = time.monotonic() + 60
    while not (out / "meta/info.json").exists():
        assert process.poll() is None and time.monotonic() < end, process.communicate()[0]
        time.sleep(0.02)
    return process


def group_is_gone(group: int, seconds: float = 15) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def test_kill_loses_only_the_shards_in_hand(dataset, tmp_path):
    out = tmp_path / "a"
    process = start_slow_recording(out)
    process.kill()
    process.communicate()
    assert group_is_gone(process.pid)  # the workers noticed, too
    tables = read_tables(out)
    whole = read_tables(dataset)
    n = len(tables.action)
    assert 0 < n < len(whole.action)
    np.testing.assert_array_equal(tables.action, whole.action[:n])
    run(out, resume=True)
    assert tree(out) == tree(dataset)


def test_ctrl_c_ends_cleanly(dataset, tmp_path):
    out = tmp_path / "a"
    process = start_slow_recording(out)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers as well
    output = process.communicate(timeout=30)[0]
    # The recorder's, wherever it was (its traceback may tell of an error that was being handled), and no worker's.
    assert process.returncode != 0 and output.count("\nKeyboardInterrupt") == 1, output
    assert group_is_gone(process.pid)
    assert not (out / ".partial").exists()
    assert len(read_tables(out).action) > 0
    run(out, resume=True)
    assert tree(out) == tree(dataset)


def test_resume_ends_a_commit_that_was_cut_short(dataset, tmp_path):
    """A kill between the record of a shard and info.json; and leftovers of a shard that was not recorded."""
    out = tmp_path / "a"
    run(out)
    info = json.loads((out / "meta/info.json").read_text())
    (out / "meta/info.json").write_text(json.dumps(info | {"total_episodes": 1, "total_frames": 5}))
    run(out, resume=True)
    assert tree(out) == tree(dataset)


def test_long_videos_are_cut_between_episodes(tmp_path, monkeypatch):
    from vla.data import shard as shard_module
    from vla.data.shard import DatasetSpec, ShardWriter

    monkeypatch.setattr(shard_module, "MAX_SECONDS", 2.0)
    spec = DatasetSpec(10, {"front": (16, 16)}, ("x",), ("dx",))
    dataset_writer = writer.DatasetWriter(tmp_path / "a", {})
    for index in range(2):
        shard_writer = ShardWriter(tmp_path / f"shard{index}", index, spec)
        for episode in range(7):
            images = np.full((8, 16, 16, 3), 20 * episode, np.uint8)
            shard_writer.add_episode({"front": images}, np.zeros((8, 1)), np.zeros((8, 1)), "go", {"seed": 1}, "it")
        dataset_writer.commit(shard_writer.finish())
    tables = read_tables(tmp_path / "a")
    key = "videos/observation.images.front"
    assert tables.episodes[f"{key}/file_index"] == [0, 0, 0, 1, 1, 1, 2, 3, 3, 3, 4, 4, 4, 5]
    assert tables.episodes[f"{key}/from_timestamp"][:4] == pytest.approx([0, 0.8, 1.6, 0])
    assert pq.read_schema(tmp_path / "a/data/chunk-000/file-000.parquet").field("action").type.list_size == 1
