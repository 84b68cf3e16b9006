# SPDX-License-Identifier: Apache-2.0
"""`vla bench survival`: the parts on the network for real, small; and that what it looks for would be found."""

import json
import os
import subprocess
import sys
import warnings
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from vla import cli
from vla.bench.parts import run_part, table, to_run
from vla.bench.results import Row
from vla.bench.survival import SurvivalConfig
from vla.bench.survival_fuzz import (
    DECODER,
    Frames,
    Fuzzer,
    decode,
    decoder_corpus,
    fuzz_decoder,
    server_corpus,
    try_block,
)
from vla.bench.survival_pace import Pairs, Series, difference, overhead_rows
from vla.bench.survival_server import Known, Served, observation
from vla.serve.codec import DecodeError, pack, unpack
from vla.serve.request import Reader, RequestError
from vla.serve.server import PolicyServer, ServeConfig

PLANTED = """
import os
from vla.serve.codec import unpack

def careless(frame):
    if frame[:1] == b"\\x91" and len(frame) > 500:
        raise RecursionError("too deep")
    return unpack(frame)

def falls(frame):
    if frame[:5] == b"\\xc6\\xff\\xff\\xff\\xff":
        os.abort()
    return unpack(frame)
"""


@pytest.mark.slow
def test_fuzz_and_wire_quick(tmp_path):
    command = [sys.executable, "-m", "vla.cli", "bench", "survival", "--quick", "--only", "fuzz", "wire"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--out", str(tmp_path)], capture_output=True, text=True, timeout=300, env=environment
    )
    assert done.returncode == 0, done.stderr
    rows = {row["id"]: row for row in json.loads((tmp_path / "survival.json").read_text())["rows"]}
    assert rows["crashes"]["value"] == rows["uncaught"]["value"] == 0
    assert rows["decoder_frames"]["value"] == 20_000 and rows["server_frames"]["value"] == 500
    for name in ("disconnects", "clients", "unauthorised_refused", "oversize_refused"):
        assert rows[name]["passes"], rows[name]
    assert json.loads(done.stdout.splitlines()[-1])["rows"]["clients"] == 5
    assert {"fuzz.json", "wire.json"} <= {path.name for path in (tmp_path / "quick" / "survival").iterdir()}


@pytest.mark.parametrize("corpus", [decoder_corpus, server_corpus])
def test_frames_are_right_and_wrong_in_many_ways(corpus):
    made, again = Frames("a", corpus()), Frames("a", corpus())
    frames = [made.next() for _ in range(5000)]
    assert frames[:100] == [again.next() for _ in range(100)]
    said = Counter()
    for frame in frames:
        try:
            unpack(frame)
            said["right"] += 1
        except DecodeError as error:
            said[str(error)[:25]] += 1
    assert 0.08 < said["right"] / len(frames) < 0.4
    assert len(said) > 15
    assert sum(len(frame) < 2 for frame in frames) < 250
    assert len(set(frames)) > 4000


def test_blocks_are_the_same_whoever_has_them():
    seen = []
    for _ in range(2):
        seen.append([])
        try_block(3, 7, 50, seen[-1].append)
    other = []
    try_block(3, 8, 50, other.append)
    assert seen[0] == seen[1] != other


def test_a_careless_decoder_is_caught():
    def careless(frame):
        try:
            return decode(frame)
        except DecodeError as error:
            if "dtype" in str(error):
                raise KeyError("dtype") from None
            raise

    tally = try_block(0, 0, 500, careless)
    assert tally.uncaught > 0 and tally.refused > 0 and tally.crashes == 0
    frame, what = tally.examples[0]
    assert "KeyError" in what
    with pytest.raises(DecodeError, match="dtype"):
        decode(frame)
    assert try_block(0, 0, 500, decode).uncaught == 0


def test_workers_that_die_are_counted_and_the_rest_is_tried(tmp_path, monkeypatch):
    (tmp_path / "planted_decoders.py").write_text(PLANTED)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("vla.bench.survival_fuzz.BLOCK", 100)
    raised = fuzz_decoder(1000, 0, "planted_decoders:careless", workers=1)
    assert raised.frames == 1000 and raised.uncaught > 0 and raised.crashes == 0
    assert "RecursionError" in raised.examples[0][1]
    dead = fuzz_decoder(600, 0, "planted_decoders:falls", workers=2)
    assert dead.crashes > 0 and dead.frames == 600 - 100 * dead.crashes
    assert any("ended the process with code -6" in what for _, what in dead.examples)
    assert fuzz_decoder(300, 0, DECODER, workers=2).frames == 300


class Still:
    """A policy that always decides the same."""

    cameras, image_size, action_names, state_names, horizon, fps, n_action_steps = (
        ("front",),
        64,
        "abcd",
        "abcd",
        4,
        10,
        2,
    )

    def decide(self, observations, keys, committed=None):
        ones = np.ones((1, 4, 4), np.float32)
        return SimpleNamespace(actions_BHA=ones, confidence_BHA=ones, length_B=np.array([4]), plans=())


def test_a_careless_server_is_caught(monkeypatch):
    known = Known.__new__(Known)
    known.frames, known.actions = [pack(observation(0))], [np.ones((4, 4), np.float32)]
    with PolicyServer(Still(), ServeConfig(port=0)).background() as port:
        server = Served(SimpleNamespace(poll=lambda: None), port, None)
        fuzzer = Fuzzer(server, known, 0)
        fuzzer.round(200)
        assert fuzzer.right == 1 and fuzzer.tally.frames == 200 and not fuzzer.tally.uncaught
        assert fuzzer.tally.refused + fuzzer.answered == 200 and fuzzer.tally.refused > 150
        known.actions = [np.zeros((4, 4), np.float32)]
        fuzzer.round(10)
        assert fuzzer.tally.uncaught == 1 and "a right request was answered" in fuzzer.tally.examples[0][1]

        def careless(reader, message):
            if len(message) < 100:
                raise KeyError(len(message))
            raise DecodeError("expected nothing")

        monkeypatch.setattr(Reader, "read", careless)
        fuzzer.round(20)
        fuzzer.close()
        assert fuzzer.tally.uncaught == 2 and "closed with 1011" in fuzzer.tally.examples[1][1]


def test_finished_parts_are_kept_or_replaced_as_told(tmp_path):
    config = SurvivalConfig(out=tmp_path, only=("wire", "fuzz"))
    assert to_run(config) == ["fuzz", "wire"]
    run_part("wire", config, lambda given: [Row("disconnects", 3, "", note=str(given.seed))])
    with pytest.raises(ValueError, match="--resume"):
        to_run(config)
    assert to_run(SurvivalConfig(out=tmp_path, only=("wire", "fuzz"), resume=True)) == ["fuzz"]
    assert to_run(SurvivalConfig(out=tmp_path, only=("wire",), overwrite=True)) == ["wire"]
    run_part("soak", config, lambda given: [Row("soak_p99_drift", float("nan"), "fraction")])
    rows, about = table(config)
    assert [row.id for row in rows] == ["disconnects", "soak_p99_drift"] and rows[1].value is None
    assert list(about) == ["wire", "soak"] and about["wire"]["seed"] == 0


def test_settings_that_cannot_be(tmp_path, capsys):
    for more in ({"only": ("rain",)}, {"resume": True, "overwrite": True}, {"soak_minutes": 0.0}):
        with pytest.raises(ValueError, match="expected"):
            SurvivalConfig(out=tmp_path, **more)
    assert cli.main(["bench", "survival", "--resume", "--overwrite", "--out", str(tmp_path)]) == 2
    assert "got both" in capsys.readouterr().err


def test_a_state_that_no_float32_holds_is_refused():
    """Found by making the corpus: finite as float64, infinite for the policy."""
    policy = SimpleNamespace(cameras=("front",), image_size=64, state_names="abcd", action_names="abcd", horizon=8)
    reader = Reader(policy)
    assert reader.read(pack(observation(0))).observation.state.dtype == np.float32
    large = observation(0) | {"observation/state": np.array([3e38, -3e38, 5e-324, 0])}
    assert np.isfinite(reader.read(pack(large)).observation.state).all()
    with pytest.raises(RequestError, match="finite in float32"), warnings.catch_warnings():
        warnings.simplefilter("error")
        reader.read(pack(observation(0) | {"observation/state": np.array([1e300, 0, 0, 0])}))


def test_overhead_is_the_difference_of_percentiles():
    draw = np.random.default_rng(0)
    bare = draw.normal(50, 1, 400)
    value, (low, high) = difference(bare, bare + draw.normal(1.5, 0.1, 400), 50)
    assert low < value < high and value == pytest.approx(1.5, abs=0.2)
    rows = overhead_rows(Pairs([50.0] * 20, [51.0] * 19 + [90.0], [50.5] * 20, equal=20), 20)
    assert [row.id for row in rows][::5] == ["server_beside_policy_p50_ms", "bare_inference_p50_ms"]
    assert rows[0].value == 0.5 and rows[0].passes and rows[2].value == 1 and rows[2].passes is None
    assert not overhead_rows(Pairs([1.0], [1.0], [1.0], equal=0), 1)[0].passes


def test_drift_and_growth_are_of_the_right_sixths():
    series = Series(60.0)
    series.asked = [(at / 10, 10.0 if at < 500 else 12.0) for at in range(600)]
    series.memory = [(float(at), 100.0 + (50 if at < 10 else 0) + (7 if at == 30 else 0)) for at in range(60)]
    assert series.drift() == pytest.approx(0.2)
    assert series.growth_mb() == 7.0
