# SPDX-License-Identifier: Apache-2.0
"""Policy type `lattice` inside LeRobot, in one process. LeRobot's own commands: benchmarks/lerobot.py."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from vla import randomness
from vla.policy import Observation, Policy

pytest.importorskip("lerobot")
import lerobot_policy_lattice
from vla.lerobot.configuration_lattice import LatticeConfig, cosine
from vla.lerobot.convert import ConvertConfig, convert
from vla.lerobot.modeling_lattice import LatticePolicy

ROWS = 3


def observations():
    rng = np.random.default_rng(0)
    images, state = rng.integers(0, 256, (ROWS, 64, 64, 3), dtype=np.uint8), rng.normal(0, 0.1, (ROWS, 4))
    state, task = state.astype(np.float32), ["reach the red block", "push the blue block left", "lift the green block"]
    ours = [Observation({"front": images[i]}, state[i], task[i]) for i in range(ROWS)]
    pictures = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    batch = {"observation.images.front": pictures, "observation.state": torch.from_numpy(state), "task": task}
    return ours, batch


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    out = tmp_path_factory.mktemp("converted") / "lerobot"
    convert(ConvertConfig(Path("tabletop_nano"), out))
    return out


def test_there_and_back_the_actions_are_the_same_bits(converted, tmp_path):
    ours, batch = observations()
    theirs = LatticePolicy.from_pretrained(converted)
    keys = [(int(randomness.fold(theirs._episode, row)), 0) for row in range(ROWS)]
    expected = Policy.load("tabletop_nano").act(ours, keys)
    assert np.array_equal(theirs.predict_action_chunk(batch).numpy(), expected)
    back = tmp_path / "back"
    convert(ConvertConfig(converted, back))
    policy = Policy.load(back)
    assert np.array_equal(policy.act(ours, keys), expected)
    assert policy.n_action_steps == Policy.load("tabletop_nano").n_action_steps
    with pytest.raises(ValueError, match="exists"):
        convert(ConvertConfig(converted, back))


def test_select_action_executes_a_part_of_a_chunk_before_it_looks_again(converted):
    _, batch = observations()
    policy = LatticePolicy.from_pretrained(converted)
    chunk = policy.predict_action_chunk(batch)
    steps = policy.config.n_action_steps
    actions = [policy.select_action(batch) for _ in range(steps)]
    assert torch.equal(torch.stack(actions, 1), chunk[:, :steps])
    blank = batch | {"observation.images.front": torch.zeros_like(batch["observation.images.front"])}
    assert not torch.equal(policy.select_action(blank), chunk[:, steps])


def test_committed_actions_are_kept_and_padding_is_not_data(converted):
    _, batch = observations()
    policy = LatticePolicy.from_pretrained(converted)
    assert policy.supports_rtc()
    one = {key: value[:1] for key, value in batch.items()}
    left = torch.zeros(6, 4)
    left[:2] = torch.tensor([[0.31, -0.2, 0.05, 1.0], [0.3, -0.1, 0.0, 1.0]])
    chunk = policy.predict_action_chunk(one, inference_delay=2, prev_chunk_left_over=left)
    assert torch.equal(chunk[0, :2], left[:2])
    # A delay longer than what is left: LeRobot pads with zeros, which are no actions.
    longer = policy.predict_action_chunk(one, inference_delay=5, prev_chunk_left_over=left)
    assert torch.equal(longer, chunk) and longer[0, 2:5].any()
    assert torch.equal(policy.predict_action_chunk(one, inference_delay=0, prev_chunk_left_over=left),
                       policy.predict_action_chunk(one))  # fmt: skip


def test_the_schedule_is_that_of_vla_train():
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = LatticeConfig(device="cpu", push_to_hub=False).get_scheduler_preset().build(optimiser, 1000)
    for step in range(1000):
        assert schedule.get_last_lr()[0] == pytest.approx(cosine(step, 1000, 100))
        optimiser.step()
        schedule.step()
    assert (
        cosine(0, 1000, 100) == 0.01 and cosine(99, 1000, 100) == 1 and cosine(1000, 1000, 100) == pytest.approx(0.01)
    )


def test_bad_input_says_what_is_expected(converted, tmp_path):
    _, batch = observations()
    policy = LatticePolicy.from_pretrained(converted)
    with pytest.raises(ValueError, match="instruction for each of 3 rows"):
        policy.predict_action_chunk({k: v for k, v in batch.items() if k != "task"})
    with pytest.raises(ValueError, match=r"needs 'observation\.images\.front'"):
        policy.predict_action_chunk({k: v for k, v in batch.items() if "image" not in k})
    config = json.loads((converted / "config.json").read_text())
    config["output_features"]["action"]["shape"] = [7]
    other = tmp_path / "seven"
    other.mkdir()
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"the checkpoint has 4 values of 'action'.* has 7"):
        LatticePolicy.from_pretrained(other)
    with pytest.raises(ValueError, match=r"n_action_steps in 0 .. 8"):
        LatticeConfig(device="cpu", n_action_steps=9)
    with pytest.raises(ValueError, match="made from a dataset"):
        LatticePolicy(LatticeConfig(device="cpu", input_features=policy.config.input_features,
                                    output_features=policy.config.output_features))  # fmt: skip


def test_our_environments_are_lerobots():
    env = lerobot_policy_lattice.TabletopEnv(task="reach", image_size=32)
    vectors = env.create_envs(2)
    vector = vectors["tabletop"][0]
    observation, _ = vector.reset(seed=[1000, 1001])
    assert observation["pixels"]["front"].shape == (2, 32, 32, 3) and observation["agent_pos"].shape == (2, 4)
    assert vector.call("task_description")[0].startswith(("reach", "touch", "go", "move"))
    for _ in range(30):  # past the end: reset without a seed
        vector.step(np.zeros((2, 4), np.float32))
    vector.close()
    assert set(env.features) == set(env.features_map)
    assert lerobot_policy_lattice.MetaworldLatticeEnv().features_map["pixels/corner2_mt50"].endswith("corner2_mt50")
    with pytest.raises(ValueError, match="no task or suite reaach"):
        lerobot_policy_lattice.TabletopEnv(task="reaach")
