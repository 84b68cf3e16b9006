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


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_run):
    """The last checkpoint of `tiny_run`: 32 px, chunks of 8 steps, the queries policy and continuation."""
    return tiny_run / "checkpoints" / "last"


@pytest.fixture(scope="session")
def unified_checkpoint(tiny_dataset, tmp_path_factory):
    """As `tiny_checkpoint`, but of 64 px and trained for every query; its image codes are noise."""
    import torch

    from vla.canvas.query import QUERIES
    from vla.tokenizers import ImageTokenizer
    from vla.train.loop import train

    room = tmp_path_factory.mktemp("unified")
    (room / "image").mkdir()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ImageTokenizer(64, levels=(5, 3), width=16, cameras=("front",)).save(room / "image")
    queries = (*(f"queries.{name}=0.1" for name in QUERIES), f"queries.image_tokenizer={room / 'image'}")
    # The tokenizer before the queries that need it: overrides are looked at one by one.
    settings = ("image_size=64", "batch_size=16", *sorted(queries, key=lambda text: "image_tokenizer" not in text))
    train(tiny_config(tiny_dataset, room / "run", set=settings, steps=4, val_interval=4))
    return room / "run" / "checkpoints" / "last"


def tiny_config(dataset, run, **changes):
    from vla.train.loop import TrainConfig

    settings = {"recipe": "tabletop_test", "save_interval": 4, "log_interval": 4, "val_interval": 4, "threads": 1}
    return TrainConfig(dataset=str(dataset), out=run, tensorboard=False, **(settings | changes))
