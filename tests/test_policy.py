# SPDX-License-Identifier: Apache-2.0
import shutil

import numpy as np
import pytest

from vla.diffusion import Sampling
from vla.eval.episodes import read_results
from vla.eval.evaluate import EvalConfig, evaluate
from vla.policy import Observation, Policy


@pytest.fixture(scope="module")
def checkpoint_folder(tiny_run):
    return tiny_run / "checkpoints" / "last"


def observations(count, size=32):
    rng = np.random.default_rng(0)
    return [
        Observation(
            {"front": rng.integers(0, 256, (size, size, 3), dtype=np.uint8)},
            rng.uniform(-0.1, 0.2, 4).astype(np.float32),
            "reach the red block",
        )
        for _ in range(count)
    ]


def test_actions_have_the_datasets_units_and_stay_inside_its_limits(checkpoint_folder):
    policy = Policy.load(checkpoint_folder)
    assert list(policy.action_names) == ["dx", "dy", "dz", "gripper"] and policy.fps == 10
    policy.sampling = Sampling(4, temperature=2.0)
    chunk = policy.decide(observations(6), [(i, 0) for i in range(6)])
    assert chunk.actions_BHA.shape == chunk.confidence_BHA.shape == (6, policy.horizon, 4)
    low, high = policy.tokenizers.action.low, policy.tokenizers.action.high
    assert (chunk.actions_BHA >= np.float32(low)).all() and (chunk.actions_BHA <= np.float32(high)).all()
    assert set(np.unique(chunk.actions_BHA[..., 3])) <= {-1.0, 1.0}


def test_rows_do_not_depend_on_the_batch(checkpoint_folder):
    policy = Policy.load(checkpoint_folder, rows=8)
    policy.sampling = Sampling(4, temperature=1.0)
    seen, keys = observations(11), [(i, 3 * i) for i in range(11)]
    together = policy.act(seen, keys)
    alone = np.concatenate([policy.act([o], [k]) for o, k in zip(seen, keys, strict=True)])
    assert np.array_equal(together, alone)
    assert not np.array_equal(policy.act(seen[:1], [(99, 0)]), together[:1])  # the key decides


def test_episodes_are_bit_identical_for_one_slot_and_eight(checkpoint_folder, tmp_path):
    runs = []
    for slots in (1, 8):
        out = tmp_path / str(slots)
        evaluate(EvalConfig(policy=str(checkpoint_folder), episodes=10, slots=slots, workers=1, out=out, videos=0))
        runs.append([(r.task, r.seed, r.length, r.actions_sha256) for r in read_results(out / "episodes.jsonl")])
    assert runs[0] == runs[1] and len({r[3] for r in runs[0]}) == 10


def test_committed_actions_come_back_bit_exact(checkpoint_folder):
    policy = Policy.load(checkpoint_folder)
    first = policy.act(observations(3), [(i, 0) for i in range(3)])
    committed = [0.97 * first[i, 4 : 4 + i + 1] for i in range(3)]  # between the values that bins stand for
    for steps in (1, 2, 4):
        policy.sampling = Sampling(steps, temperature=1.0, revisions=1)
        chunk = policy.decide(observations(3), [(i, 4) for i in range(3)], committed=committed)
        for row, prefix in enumerate(committed):
            assert np.array_equal(chunk.actions_BHA[row, : len(prefix)], prefix)
            assert (chunk.confidence_BHA[row, : len(prefix)] == 1).all()


def test_a_loaded_checkpoint_acts_as_the_one_that_was_saved(checkpoint_folder, tmp_path):
    from vla.checkpoint import write_folder

    policy = Policy.load(checkpoint_folder)
    again = Policy.load(write_folder(tmp_path / "copy", policy.write))
    keys = [(0, 0), (1, 0)]
    assert np.array_equal(policy.act(observations(2), keys), again.act(observations(2), keys))


def test_damage_is_noticed(checkpoint_folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(checkpoint_folder, copy)
    data = bytearray((copy / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (copy / "model.safetensors").write_bytes(data)
    with pytest.raises(ValueError, match=r"damaged: model\.safetensors"):
        Policy.load(copy)
    (copy / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"incomplete: model\.safetensors is missing"):
        Policy.load(copy)
    with pytest.raises(ValueError, match="no checkpoint at"):
        Policy.load(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": {}}, r"needs cameras \['front'\]; missing \['front'\]"),
        (
            {"images": {"front": np.zeros((16, 16, 3), np.uint8)}},
            r"expected uint8 \(32, 32, 3\), got uint8 \(16, 16, 3\)",
        ),
        ({"state": np.zeros(3, np.float32)}, r"expected states of shape \(4,\) .* got \(3,\)"),
        ({"instruction": ""}, "empty instruction"),
    ],
)
def test_bad_observations_say_what_was_expected(checkpoint_folder, change, message):
    good = observations(1)[0]
    fields = {"images": good.images, "state": good.state, "instruction": good.instruction} | change
    with pytest.raises(ValueError, match=message):
        Policy.load(checkpoint_folder).act([Observation(**fields)], [(0, 0)])


def test_a_chunk_of_the_wrong_dimension_is_refused(checkpoint_folder):
    policy = Policy.load(checkpoint_folder)
    with pytest.raises(ValueError, match=r"expected actions of shape \(8, 4\)"):
        policy.decide(observations(1), [(0, 0)], committed=[np.zeros((2, 7), np.float32)])
    with pytest.raises(ValueError, match="n_action_steps must be in"):
        Policy.load(checkpoint_folder, n_action_steps=99)
