# SPDX-License-Identifier: Apache-2.0
"""A tiny recorded dataset and a tiny trained run, made once by the real functions."""

import os

import pytest

os.environ.setdefault("MUJOCO_GL", "egl")


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory):
    """20 episodes of the demo suite at 32 px."""
    from vla.data.record import RecordConfig, record

    folder = tmp_path_factory.mktemp("tiny") / "dataset"
    record(RecordConfig(suite="demo", episodes=20, out=folder, image_size=32, shard_episodes=10, workers=1))
    return folder


@pytest.fixture(scope="session")
def tiny_run(tiny_dataset, tmp_path_factory):
    """A run of eight steps of the recipe `tabletop_test`, with checkpoints at 4 and 8."""
    from vla.train.loop import train

    run = tmp_path_factory.mktemp("tiny") / "run"
    train(tiny_config(tiny_dataset, run))
    return run


def tiny_config(dataset, run, **changes):
    from vla.train.loop import TrainConfig

    settings = {"recipe": "tabletop_test", "save_interval": 4, "log_interval": 4, "val_interval": 4, "threads": 1}
    return TrainConfig(dataset=str(dataset), out=run, tensorboard=False, **(settings | changes))
