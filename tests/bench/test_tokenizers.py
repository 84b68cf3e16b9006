# SPDX-License-Identifier: Apache-2.0
import sys
from itertools import pairwise

import numpy as np
import pytest

from vla.bench.tokenizers import FastReference, fast_processor, tokenizer_table
from vla.tokenizers.action import windows

PROCESSOR = '''
import numpy as np
from transformers.processing_utils import ProcessorMixin


class StubProcessor(ProcessorMixin):
    """Rounds to tenths; reads an odd first token as the published decoder reads what it cannot: as zeros."""

    attributes = []

    def __init__(self, scale=10, vocab_size=64, **kwargs):
        self.scale, self.vocab_size = scale, vocab_size
        super().__init__(**kwargs)

    def __call__(self, chunks):
        return [[0, *np.clip(np.rint(c.ravel() * self.scale) + 32, 0, 63).astype(int).tolist()] for c in chunks]

    def decode(self, tokens, *, time_horizon=None, action_dim=None):
        return np.stack(
            [((1 - t[0] % 2) * (np.array(t[1:]) - 32.0) / self.scale).reshape(time_horizon, action_dim) for t in tokens]
        )
'''
CONFIG = '{"processor_class": "StubProcessor", "auto_map": {"AutoProcessor": "stub.StubProcessor"}, "vocab_size": 64}'


def episodes():
    """Slow motions of two dimensions and a gripper: (actions, from, to, names)."""
    rng, t = np.random.default_rng(0), np.arange(40) / 40
    rows = []
    for _ in range(12):
        x, y = (rng.uniform(0.8, 1) * np.sin(6.28 * (t + rng.uniform())) for _ in range(2))
        rows.append(np.stack([x, y, np.where(t > rng.uniform(0.2, 0.8), 1.0, -1.0)], axis=1))
    end = np.arange(40, 481, 40)
    return np.concatenate(rows).astype(np.float32), end - 40, end, ["x", "y", "gripper"]


@pytest.fixture(scope="module")
def table():
    return {row["tokenizer"]: row for row in tokenizer_table(*episodes(), n_random=500)}


def test_the_table_says_what_is_true_by_construction(table):
    fast = "fast (after the paper; no processor at hand)"
    assert list(table) == ["bins", "dct", "dct, 4 of 8 bands", "rvq", fast]
    assert [table[t]["tokens"] for t in list(table)[:4]] == [24, 24, 12, 4]
    assert [table[t]["bits"] for t in list(table)[:4]] == [136, 136, 68, 64]  # 8 * (8 + 8 + 1), half of it, 4 * 16
    assert table["bins"]["overlap"] == 1 and table["dct"]["overlap"] < 0.9
    for name, row in table.items():
        assert all(fine < coarse for coarse, fine in pairwise(row["rmse_by_level"]))
        assert len(row["rmse_by_level"]) == {"rvq": 4, fast: 1}.get(name, 2)
        assert row["encode_us"] > 0 and row["decode_us"] > 0 and 0 <= row["overlap"] <= 1
        assert (row["undecodable"] == 0) == (name != fast)
    assert table["bins"]["rmse_by_level"][-1] < 0.01 and table[fast]["undecodable"] > 250


def test_fast_reference_is_compact_exact_to_its_rounding_and_not_total():
    chunks = np.clip(windows(*episodes()[:3], 8) / 2, -1, 1)
    fast = FastReference(chunks)
    tokens = fast(chunks)
    assert np.mean([len(t) for t in tokens]) < 8 * 3 / 2
    assert np.abs(fast.decode(tokens) - chunks).max() < 8**0.5 * 0.5 / fast.scale + 1e-9
    with pytest.raises(ValueError, match="expected 24 coefficients"):
        fast.decode([tokens[0][:-1]])


def test_a_processor_in_a_folder_is_loaded_by_transformers_and_measured(tmp_path, monkeypatch):
    dynamic = pytest.importorskip("transformers.dynamic_module_utils")
    monkeypatch.setattr(dynamic, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    folder = tmp_path / "fast"
    folder.mkdir()
    (folder / "stub.py").write_text(PROCESSOR)
    (folder / "processor_config.json").write_text(CONFIG)
    assert type(fast_processor(str(folder))).__name__ == "StubProcessor"
    row = tokenizer_table(*episodes(), fast=str(folder), n_random=400)[-1]
    assert row["tokenizer"] == f"fast ({folder})" and row["tokens"] == 25 and row["bits"] == 25 * 6
    assert row["rmse_by_level"][0] < 0.05 and 100 < row["undecodable"] < 300  # half of the strings begin odd
    with pytest.raises(ValueError, match="expected FAST's processor, a folder"):
        fast_processor(str(tmp_path / "modules"))


def test_one_episode_is_not_enough():
    actions, begin, end, names = episodes()
    with pytest.raises(ValueError, match="two episodes or more"):
        tokenizer_table(actions, begin[:1], end[:1], names)
