# SPDX-License-Identifier: Apache-2.0
"""`vla bench data`, small: every way of reading gives frames, and the rows are those that were promised."""

import os

from vla.bench.data import SIZES, run
from vla.bench.run import BenchConfig


def test_small(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", os.environ.get("HF_DATASETS_CACHE", str(tmp_path)))
    measured = run(BenchConfig("data", out=tmp_path, quick=True))
    rows = {row["id"]: row for row in measured["rows"]}
    size = SIZES[0]
    named = {f"cache_fps_{size}", f"lerobot_video_fps_{size}", f"lerobot_image_fps_{size}", "cache_build_fps"}
    assert named == set(rows) and all(row["value"] > 0 for row in rows.values())
    assert "MiB for 10,000 frames" in rows[f"cache_fps_{size}"]["note"]
    assert not list(tmp_path.glob("tmp*"))
