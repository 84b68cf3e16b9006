# SPDX-License-Identifier: Apache-2.0
"""A recorded dataset of a tiny fake world. Workers import that by name, so its folder is on the path."""

import hashlib
import io
import logging
import sys
from pathlib import Path

import pytest
from rich.console import Console

from vla.data.cache import FrameCache, open_cache
from vla.data.record import RecordConfig, record

HERE = str(Path(__file__).parent)
if HERE not in sys.path:
    sys.path.insert(0, HERE)

WORLD = "fake_world"
SETTINGS = {
    "env": "squares",
    "suite": "both",
    "episodes": 22,
    "shard_episodes": 6,
    "image_size": 32,
    "workers": 2,
}


def quiet() -> Console:
    return Console(file=io.StringIO())


def run(out: Path, **changes) -> dict:
    return record(RecordConfig(out=out, **(SETTINGS | changes)), registry=WORLD, console=quiet())


def tree(root: Path) -> dict[str, str]:
    """Every file with its hash."""
    files = (p for p in sorted(root.rglob("*")) if p.is_file())
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="session")
def dataset(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("recorded") / "squares"
    run(out)
    return out


@pytest.fixture(scope="session")
def cache(dataset, tmp_path_factory) -> FrameCache:
    return open_cache(dataset, cache_dir=tmp_path_factory.mktemp("cache"), console=quiet())


@pytest.fixture(scope="module")
def lerobot_dataset(tmp_path_factory):
    """Stock LeRobot's class, without network and with caches of its own."""
    patch = pytest.MonkeyPatch()
    patch.setenv("HF_HUB_OFFLINE", "1")
    patch.setenv("HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("hf")))
    module = pytest.importorskip("lerobot.datasets.lerobot_dataset")
    import datasets

    patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("hf2")))
    logging.getLogger("lerobot").setLevel(logging.ERROR)
    yield module.LeRobotDataset
    patch.undo()
