# SPDX-License-Identifier: Apache-2.0
"""A small unified run, and a small run with history: made once, by the real command."""

import pytest

from vla import cli
from vla.canvas.query import QUERIES

EVERY_QUERY = tuple(f"queries.{name}=0.4" for name in QUERIES)
UNIFIED = ("queries.image_tokenizer=tabletop_image", *EVERY_QUERY, "image_size=64", "noise_indices=4", "holdout=0.3")


def command(dataset, run, *more):
    """`vla train`, as it is typed, with the smallest recipe. The last of `more` may be --set and overrides."""
    every = ["--recipe", "tabletop_test", "--steps", "6", "--save-interval", "3", "--val-interval", "3"]
    quick = ["--log-interval", "1", "--threads", "1", "--no-tensorboard", "--device", "cpu"]
    return [str(x) for x in ("train", "--dataset", dataset, "--out", run, *every, *quick, *more)]


@pytest.fixture(scope="session")
def played(tmp_path_factory):
    """12 episodes of 64 px, some of which are played at random, and pushes where there is an expert."""
    from vla.data.record import RecordConfig, record

    folder = tmp_path_factory.mktemp("played") / "data"
    settings = {"suite": "demo", "episodes": 12, "shard_episodes": 12, "workers": 1}
    record(RecordConfig(out=folder, noise=(0.0, 0.3), noise_steps=4, playful=0.25, **settings))
    return folder


@pytest.fixture(scope="session")
def unified(played, tmp_path_factory):
    """Six steps of a network that learns every query, with checkpoints at 3 and 6."""
    run = tmp_path_factory.mktemp("unified") / "run"
    assert cli.main(command(played, run, "--set", *UNIFIED)) == 0
    return run


@pytest.fixture(scope="session")
def remembering(tmp_path_factory):
    """(dataset, run) of a policy that sees two moments of the state, and no picture."""
    from vla.data.record import RecordConfig, record

    room = tmp_path_factory.mktemp("remembering")
    settings = {"env": "tabletop_state", "suite": "demo", "episodes": 8, "shard_episodes": 8, "workers": 1}
    record(RecordConfig(out=room / "data", noise=(0.0, 0.3), **settings))
    assert cli.main(command(room / "data", room / "run", "--set", "n_obs_steps=2")) == 0
    return room / "data", room / "run"
