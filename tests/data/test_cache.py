# SPDX-License-Identifier: Apache-2.0
"""The cache holds the decoded videos, is made once, and refuses what could not be trained on."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import quiet, run
from fake_world import Squares

from vla.data import cache as cache_module
from vla.data.cache import default_cache_dir, open_cache


@pytest.fixture
def copy(dataset, tmp_path) -> Path:
    shutil.copytree(dataset, tmp_path / "copy")
    return tmp_path / "copy"


def open_copy(root: Path, **changes):
    return open_cache(root, cache_dir=root.parent / "cache", console=quiet(), **changes)


def test_frames_are_those_of_the_videos(dataset, cache):
    decoded = []
    for path in sorted((dataset / "videos/observation.images.front").rglob("*.mp4")):
        with av.open(str(path)) as container:
            decoded += [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    np.testing.assert_array_equal(cache.frames["front"], np.stack(decoded))
    assert isinstance(cache.frames["front"], np.memmap) and not cache.frames["front"].flags.writeable
    assert cache.state.dtype == cache.action.dtype == np.float32
    assert cache.action_names == ("dx", "dy", "gripper") and cache.fps == 10
    assert set(cache.meta["episodes"]) == {"task_template", "seed", "noise", "success", "dynamics_only"}
    assert cache.executed.dtype == np.float32 and cache.executed.shape == cache.action.shape
    assert (cache.executed != cache.action).any() and not cache.dynamics_only.any()
    for episode, (first, last) in enumerate(zip(cache.episode_from, cache.episode_to, strict=True)):
        assert set(cache.episode_index[first:last]) == {episode}
        np.testing.assert_array_equal(cache.frame_index[first:last], np.arange(last - first))


def test_pictures_and_state_belong_together(cache):
    """The hand is a black 6 x 6 square at the place that the state says."""
    for row in range(0, len(cache), 7):
        x, y = (cache.state[row] * 26 + 1e-4).astype(int)
        assert cache.frames["front"][row][y + 2 : y + 4, x + 2 : x + 4].max() < 40


@pytest.mark.parametrize(("pix_fmt", "limit"), [("yuv420p", 40), ("yuv444p", 8)])
def test_colours_survive_encoding(tmp_path, pix_fmt, limit):
    """The block is 6 pixels wide; with 4:2:0 its edges blend with the table."""
    run(tmp_path / "a", pix_fmt=pix_fmt, episodes=4, workers=1, noise=(0.0,))
    cache = open_copy(tmp_path / "a")
    for episode, first in enumerate(cache.episode_from):
        env = Squares()
        task, seed = (cache.meta["episodes"][name][episode] for name in ("task_template", "seed"))
        image = env.reset(seed=seed, options={"task": task})[0]["pixels"]["front"].astype(int)
        coloured = np.ptp(image, axis=2) > 50
        error = np.abs(image - cache.frames["front"][first])[coloured]
        assert error.mean() < limit


def test_the_cache_is_made_once_and_again_after_a_change(copy, monkeypatch):
    first = open_copy(copy)
    with monkeypatch.context() as patch:
        patch.setattr(cache_module, "_build", lambda *_: pytest.fail("built twice"))
        assert open_copy(copy).path == first.path
    assert open_copy(copy, image_size=16).frames["front"].shape[1:] == (16, 16, 3)
    stats = copy / "meta/info.json"
    stats.write_text(stats.read_text() + "\n")
    assert open_copy(copy).path != first.path
    assert not [p for p in (copy.parent / "cache").iterdir() if p.name.startswith(".")]


def test_several_cameras(tmp_path):
    run(tmp_path / "a", cameras=("front", "wrist"), episodes=4, workers=1)
    cache = open_copy(tmp_path / "a")
    assert cache.cameras == ("front", "wrist")
    assert abs(int(cache.frames["front"][0].max(2).min()) - 0) < 40
    assert np.median(cache.frames["front"]) == pytest.approx(120, abs=3)
    assert np.median(cache.frames["wrist"]) == pytest.approx(60, abs=3)


def test_which_episodes_are_no_demonstrations(copy):
    """A column says so; of a recording of ours that has none, failures are not; somebody else's success is not ours."""
    path = sorted((copy / "meta/episodes").rglob("*.parquet"))[0]
    table = pq.read_table(path)
    n = len(table)
    marks, success = [i == 1 for i in range(n)], [i != 2 for i in range(n)]
    change_parquet(path, dynamics_only=marks, success=success)
    assert np.flatnonzero(open_copy(copy).dynamics_only).tolist() == [1, 2]
    paths = sorted((copy / "meta/episodes").rglob("*.parquet"))
    for one in paths:
        pq.write_table(pq.read_table(one).drop_columns(["dynamics_only"]), one)
    assert np.flatnonzero(open_copy(copy).dynamics_only).tolist() == [2]
    for one in paths:
        pq.write_table(pq.read_table(one).drop_columns(["task_template"]), one)
    assert not open_copy(copy).dynamics_only.any()


def test_one_action_is_both(cache):
    """Of a dataset without executed actions, and of a cache that is made by hand."""
    by_hand = replace(cache, executed=np.zeros((0, 0), np.float32), dynamics_only=np.zeros(0, bool))
    assert by_hand.executed is by_hand.action and by_hand.dynamics_only.tolist() == [False] * len(cache.episode_from)


def test_default_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("VLA_CACHE", str(tmp_path))
    assert default_cache_dir() == tmp_path
    monkeypatch.delenv("VLA_CACHE")
    assert default_cache_dir().name == "lattice"


def change_parquet(path: Path, **columns):
    table = pq.read_table(path)
    for name, values in columns.items():
        table = table.set_column(table.column_names.index(name), name, pa.array(values))
    pq.write_table(table, path)


def break_numbers(root, name="action"):
    path = root / "data/chunk-000/file-000.parquet"
    values = np.array(pq.read_table(path)[name].to_pylist())
    values[4, 1] = np.nan
    change_parquet(path, **{name: values.tolist()})


def cut_executed(root):
    """An executed action of other dimensions than the label."""
    for path in sorted((root / "data").rglob("*.parquet")):
        values = np.array(pq.read_table(path)["executed_action"].to_pylist())
        change_parquet(path, executed_action=values[:, :2].tolist())


def lose_frames(root):
    """A recorder that dropped frames: the clock goes on between two of them."""
    path = root / "data/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    late = np.where(table["frame_index"].to_numpy() >= 3, 0.06, 0.0)
    change_parquet(path, timestamp=(table["timestamp"].to_numpy() + late).astype(np.float32))


def cut_footer(root):
    """What a recorder leaves that was killed."""
    path = root / "data/chunk-000/file-001.parquet"
    path.write_bytes(path.read_bytes()[:-20])


def blank_tasks(root):
    table = pq.read_table(root / "meta/tasks.parquet")
    pq.write_table(table.set_column(1, "task", pa.array([""] * len(table))), root / "meta/tasks.parquet")


def cut_video(root):
    path = next((root / "videos").rglob("file-001.mp4"))
    other = next((root / "videos").rglob("file-003.mp4"))  # four episodes instead of six
    shutil.copy(other, path)


def spoil_video(root):
    path = next((root / "videos").rglob("file-001.mp4"))
    path.write_bytes(path.read_bytes()[:100])


def old_version(root):
    info = json.loads((root / "meta/info.json").read_text())
    (root / "meta/info.json").write_text(json.dumps(info | {"codebase_version": "v2.1"}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (break_numbers, r"'action' has nan in dimension 'dy', episode 0 of .*, frame 4"),
        (
            lambda root: break_numbers(root, "executed_action"),
            r"'executed_action' has nan in dimension 'dy', episode 0",
        ),
        (cut_executed, r"'executed_action' .* the 3 dimensions of 'action', got 2"),
        (lose_frames, r"'timestamp' .* steps of 1/10 s.*frame 3 of episode 0 is at 0\.360 s: resample"),
        (cut_footer, r"cannot read '.*file-001\.parquet'.*fetch it again"),
        (blank_tasks, "no language"),
        (lambda root: (root / "meta/tasks.parquet").unlink(), "no language"),
        (cut_video, r"no frame at .* for episode \d+, frame"),
        (spoil_video, "cannot decode the video"),
        (lambda root: next((root / "videos").rglob("file-002.mp4")).unlink(), "lacks the video"),
        (lambda root: (root / "data/chunk-000/file-001.parquet").unlink(), "cannot read"),
        (lambda root: (root / "meta/info.json").unlink(), "no LeRobot dataset"),
        (old_version, "convert"),
    ],
)
def test_broken_datasets_are_refused(copy, damage, message):
    damage(copy)
    with pytest.raises(ValueError, match=message):
        open_copy(copy)
    if (copy.parent / "cache").exists():
        assert not list((copy.parent / "cache").iterdir())  # nothing half made stays


def test_missing_datasets(tmp_path):
    for root in (tmp_path / "nothing", "tests/nothing"):
        with pytest.raises(ValueError, match="no such folder"):
            open_cache(root, cache_dir=tmp_path)


def test_no_room_for_the_cache(copy, monkeypatch):
    monkeypatch.setattr(cache_module.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with pytest.raises(ValueError, match="VLA_CACHE"):
        open_copy(copy)
