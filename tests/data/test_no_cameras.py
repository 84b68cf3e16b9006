# SPDX-License-Identifier: Apache-2.0
"""A dataset without cameras, from the recorder through stock LeRobot and the cache to batches."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from vla.data.batches import Batches
from vla.data.cache import open_cache
from vla.data.record import RecordConfig, record

pytest.importorskip("mujoco")


def quiet() -> Console:
    return Console(file=io.StringIO())


@pytest.fixture(scope="module")
def blind_dataset(tmp_path_factory):
    out = tmp_path_factory.mktemp("blind") / "dataset"
    summary = record(
        RecordConfig(out=out, env="tabletop_state", suite="all", episodes=30, shard_episodes=15, workers=1),
        console=quiet(),
    )
    assert summary["attempted"] == 30 and summary["success_rate"] > 0.9
    return out


def test_stock_lerobot_the_cache_and_batches_open_it(lerobot_dataset, blind_dataset, tmp_path):
    info = json.loads((blind_dataset / "meta/info.json").read_text())
    assert not (blind_dataset / "videos").exists() and info["video_path"] is None
    assert not [name for name, feature in info["features"].items() if feature["dtype"] in ("video", "image")]
    cache = open_cache(blind_dataset, cache_dir=tmp_path, console=quiet())
    assert cache.cameras == () and cache.frames == {} and cache.state.shape == (len(cache), 29)
    stock = lerobot_dataset("local/blind", root=blind_dataset, delta_timestamps={"action": [0.0, 0.1]})
    assert len(stock) == len(cache) and stock.meta.video_keys == [] and stock.meta.camera_keys == []
    for row in (0, len(cache) - 1):
        item = stock[row]
        np.testing.assert_array_equal(item["observation.state"].numpy(), cache.state[row])
        assert item["task"] == cache.tasks[cache.task_index[row]]
    batch = Batches(cache, horizon=8, batch_size=16, seed=0).batch(3)
    assert batch["images"] == {} and batch["state"].shape == (16, 1, 29) and batch["actions"].shape == (16, 8, 4)


def test_resuming_gives_the_same_files(blind_dataset, tmp_path):
    config = RecordConfig(out=tmp_path / "a", env="tabletop_state", suite="all", shard_episodes=15, workers=1)
    from vla.data.record import plan
    from vla.data.record_worker import WorkerSettings, record_shard
    from vla.data.writer import DatasetWriter
    from vla.envs.registry import make_env, suites

    # The first shard as the recorder would have left it, then the rest by --resume.
    whole = json.loads((blind_dataset / "meta/recording.json").read_text())
    settings = WorkerSettings("vla.envs.registry", replace(config, cameras=()), tmp_path / "partial")
    env = make_env("tabletop_state")
    plans = [plan(config, suites("tabletop_state")["all"], i) for i in range(15)]
    DatasetWriter(tmp_path / "a", whole["config"]).commit(record_shard(env, settings, 0, plans))
    env.close()
    record(replace(config, episodes=30, resume=True), console=quiet())
    for path in (path for path in blind_dataset.rglob("*") if path.is_file()):
        assert (tmp_path / "a" / path.relative_to(blind_dataset)).read_bytes() == path.read_bytes(), path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"env": "tabletop_state", "cameras": ("front",)}, "no cameras"),
        ({"env": "tabletop", "cameras": ()}, "one or more different cameras"),
    ],
)
def test_cameras_must_suit_the_environment(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        record(RecordConfig(out=tmp_path / "a", **changes), console=quiet())
    assert not (tmp_path / "a").exists()
