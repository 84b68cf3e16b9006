# SPDX-License-Identifier: Apache-2.0
"""Stock LeRobot opens what we record, and we open what stock LeRobot records."""

import numpy as np
import pytest
from conftest import quiet

from vla.data.cache import open_cache


def test_stock_lerobot_opens_a_recording(lerobot_dataset, dataset, cache):
    times = [i / 10 for i in range(-1, 4)]
    chunk = {"action": times, "executed_action": times, "observation.images.front": [-0.1, 0.0]}
    stock = lerobot_dataset(
        "local/squares", root=dataset, video_backend="pyav", return_uint8=True, delta_timestamps=chunk
    )
    assert len(stock) == len(cache) and stock.meta.total_episodes == len(cache.episode_from)
    assert stock.meta.tasks.index.tolist() == cache.tasks
    assert stock.meta.stats["action"]["q99"].shape == stock.meta.stats["executed_action"]["q99"].shape == (3,)
    np.testing.assert_allclose(stock.meta.stats["executed_action"]["max"], cache.executed.max(0))
    assert stock.meta.episodes["dynamics_only"][:] == cache.dynamics_only.tolist()
    assert stock.meta.episodes["seed"][:] == cache.meta["episodes"]["seed"]
    assert stock.features["action"]["names"] == list(cache.action_names)
    for episode in range(0, len(cache.episode_from), 3):
        first, last = int(cache.episode_from[episode]), int(cache.episode_to[episode]) - 1
        for row in (first, last):
            item = stock[row]
            assert item["task"] == cache.tasks[cache.task_index[row]] and int(item["episode_index"]) == episode
            rows = np.arange(row - 1, row + 4)
            inside = np.clip(rows, first, last)
            np.testing.assert_array_equal(item["action"].numpy(), cache.action[inside])
            np.testing.assert_array_equal(item["executed_action"].numpy(), cache.executed[inside])
            np.testing.assert_array_equal(item["action_is_pad"].numpy(), rows != inside)
            np.testing.assert_array_equal(item["observation.state"].numpy(), cache.state[row])
            pictures = item["observation.images.front"].permute(0, 2, 3, 1).numpy()
            np.testing.assert_array_equal(pictures, cache.frames["front"][inside[:2]])


@pytest.mark.parametrize("use_videos", [False, True])
def test_we_open_what_stock_lerobot_records(lerobot_dataset, tmp_path, use_videos):
    """Two cameras of different size, names in a dictionary, pictures as PNG or as video."""
    kind = "video" if use_videos else "image"
    names = ["height", "width", "channels"]
    features = {
        "observation.images.top": {"dtype": kind, "shape": (32, 48, 3), "names": names},
        "observation.wrist": {"dtype": kind, "shape": (16, 16, 3), "names": names},
        "observation.state": {"dtype": "float32", "shape": (2,), "names": {"motors": ["a", "b"]}},
        "action": {"dtype": "float32", "shape": (2,), "names": None},
    }
    from lerobot.configs import RGBEncoderConfig

    encoder = {"rgb_encoder": RGBEncoderConfig(vcodec="h264", crf=1)} if use_videos else {}
    stock = lerobot_dataset.create(
        "local/y", 20, features, root=tmp_path / "y", use_videos=use_videos, video_backend="pyav", **encoder
    )
    for episode in range(3):
        for frame in range(5):
            value = 20 * (1 + 5 * (episode % 2) + frame)
            stock.add_frame(
                {
                    "observation.images.top": np.full((32, 48, 3), value, np.uint8),
                    "observation.wrist": np.full((16, 16, 3), 255 - value, np.uint8),
                    "observation.state": np.array([episode, frame], np.float32),
                    "action": np.array([frame, episode], np.float32),
                    "task": f"task {episode % 2}",
                }
            )
        stock.save_episode()
    stock.finalize()
    ours = open_cache(tmp_path / "y", cache_dir=tmp_path / "cache", console=quiet())
    assert ours.cameras == ("top", "wrist") and ours.fps == 20
    assert ours.frames["top"].shape == (15, 32, 48, 3) and ours.frames["wrist"].shape == (15, 16, 16, 3)
    assert ours.state_names == ("a", "b") and ours.action_names == ("action_0", "action_1")
    assert [ours.tasks[t] for t in ours.task_index[::5]] == ["task 0", "task 1", "task 0"]
    values = 20.0 * (1 + 5 * (ours.state[:, 0] % 2) + ours.state[:, 1])
    tolerance = 3 if use_videos else 0
    np.testing.assert_allclose(ours.frames["top"].mean((1, 2, 3)), values, atol=tolerance)
    np.testing.assert_allclose(ours.frames["wrist"].mean((1, 2, 3)), 255 - values, atol=tolerance)
    square = open_cache(tmp_path / "y", image_size=24, cache_dir=tmp_path / "cache", console=quiet())
    assert {f.shape for f in square.frames.values()} == {(15, 24, 24, 3)}
