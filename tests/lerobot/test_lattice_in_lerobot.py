# SPDX-License-Identifier: Apache-2.0
"""Policy type `lattice` inside LeRobot, in one process. LeRobot's own commands: benchmarks/lerobot_commands.py."""

import json
import re
import shutil
import warnings
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from vla import randomness
from vla.data.lerobot_files import read_tables
from vla.policy import Observation, Policy

pytest.importorskip("lerobot")
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.robots.utils import make_robot_from_config

import lerobot_policy_lattice
from vla.lerobot.configuration_lattice import LatticeConfig, cosine
from vla.lerobot.convert import ConvertConfig, convert
from vla.lerobot.modeling_lattice import LatticePolicy

ROWS = 3


def observations():
    rng = np.random.default_rng(0)
    images, state = rng.integers(0, 256, (ROWS, 32, 32, 3), dtype=np.uint8), rng.normal(0, 0.1, (ROWS, 4))
    state, task = state.astype(np.float32), ["reach the red block", "push the blue block", "reach the green block"]
    ours = [Observation({"front": images[i]}, state[i], task[i]) for i in range(ROWS)]
    pictures = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    batch = {"observation.images.front": pictures, "observation.state": torch.from_numpy(state), "task": task}
    return ours, batch


@pytest.fixture(scope="module")
def converted(tiny_checkpoint, tmp_path_factory):
    out = tmp_path_factory.mktemp("converted") / "lerobot"
    convert(ConvertConfig(tiny_checkpoint, out))
    return out


def test_there_and_back_the_actions_are_the_same_bits(converted, tiny_checkpoint, tmp_path):
    ours, batch = observations()
    theirs = LatticePolicy.from_pretrained(converted)
    keys = [(int(randomness.fold(theirs._episode, row)), 0) for row in range(ROWS)]
    expected = Policy.load(tiny_checkpoint).act(ours, keys)
    assert np.array_equal(theirs.predict_action_chunk(batch).numpy(), expected)
    back = tmp_path / "back"
    convert(ConvertConfig(converted, back))
    policy = Policy.load(back)
    assert np.array_equal(policy.act(ours, keys), expected)
    assert policy.n_action_steps == Policy.load(tiny_checkpoint).n_action_steps
    assert policy.trained == ("policy", "continuation")
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
    decided, calls = policy.acting.decide, []
    policy.acting.decide = lambda *arguments: calls.append(arguments) or decided(*arguments)
    for number in range(steps + 1):
        policy.select_action(blank)
        assert len(calls) == 1 + number // steps


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
    with pytest.raises(ValueError, match=r"n_action_steps in 0 .. 16"):
        LatticeConfig(device="cpu", n_action_steps=17)
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


def new_policy(root, stats=None, **options):
    """As lerobot-train makes one from a dataset."""
    picture, four = PolicyFeature(FeatureType.VISUAL, (3, 32, 32)), PolicyFeature(FeatureType.STATE, (4,))
    config = LatticeConfig(
        recipe="tabletop_test",
        device="cpu",
        push_to_hub=False,
        input_features={"observation.images.front": picture, "observation.state": four},
        output_features={"action": PolicyFeature(FeatureType.ACTION, (4,))},
        **options,
    )
    return LatticePolicy(config, dataset_stats=stats, dataset_meta=SimpleNamespace(root=root, fps=10))


def test_a_new_policy_learns_from_a_batch_of_lerobots(tiny_dataset):
    policy = new_policy(tiny_dataset)
    batch = {
        "observation.images.front": torch.rand(8, 3, 48, 64),  # of any size
        "observation.state": torch.zeros(8, 4),
        "action": torch.zeros(8, 8, 4),
        "action_is_pad": torch.zeros(8, 8, dtype=torch.bool),
        "task": ["reach the red block"] * 8,
    }
    before = [p.clone() for p in policy.averaged.parameters()]
    optimiser = torch.optim.AdamW(policy.get_optim_params(), lr=1e-2)
    losses = []
    for _ in range(12):
        loss, parts = policy.forward(batch)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        policy.update()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0] and set(parts) == {"loss_coarse", "loss_fine", "action/continuation"}
    assert int(policy.step) == 12
    assert any(not p.equal(q) for p, q in zip(before, policy.averaged.parameters(), strict=True))
    assert policy.eval().forward(batch)[0].isfinite()


def test_several_moments_are_asked_for_learnt_and_remembered(tiny_dataset):
    policy = new_policy(tiny_dataset, overrides=["n_obs_steps=3"])
    config = policy.config
    assert config.n_obs_steps == 3 and config.observation_delta_indices == [-2, -1, 0]
    assert config.action_delta_indices == list(range(-2, 8)) and not policy.supports_rtc()
    rng = np.random.default_rng(0)
    pad = torch.zeros(8, 10, dtype=torch.bool)
    pad[0, :2] = pad[1, 5:] = True
    batch = {
        "observation.images.front": torch.rand(8, 3, 3, 48, 64),
        "observation.state": torch.from_numpy(rng.normal(0, 0.1, (8, 3, 4)).astype(np.float32)),
        "action": torch.from_numpy(rng.uniform(-1, 1, (8, 10, 4)).astype(np.float32)),
        "action_is_pad": pad,
        "task": ["reach the red block"] * 8,
    }
    rows = policy.rows(batch)
    assert rows.observed.images["front"].shape == (8, 3, 32, 32, 3) and rows.observed.state_BMS.shape == (8, 3, 4)
    assert torch.equal(rows.labels_BHA, batch["action"][:, 2:]) and torch.equal(rows.ended_BH, pad[:, 2:])
    assert rows.observed.known_BM.tolist() == [[False, False], *[[True, True]] * 7]
    assert policy.forward(batch)[0].isfinite()
    with pytest.raises(ValueError, match=r"expected 10 actions a sample \(2 before the present moment\), got 8"):
        policy.forward(batch | {"action": batch["action"][:, 2:]})
    seen, decide = [], policy.acting.decide
    policy.acting.decide = lambda observations, *rest: seen.extend(observations) or decide(observations, *rest)
    moments = [{"observation.images.front": torch.rand(1, 3, 32, 32), "observation.state": torch.full((1, 4), i / 10),
                "task": ["reach the red block"]} for i in range(9)]  # fmt: skip
    done = [policy.select_action(moment) for moment in moments]
    states = np.stack([o.state[:, 0] for o in seen])
    np.testing.assert_allclose(states, [[0, 0, 0], [0.2, 0.3, 0.4], [0.6, 0.7, 0.8]], rtol=1e-6)
    assert np.isnan(seen[0].executed).all() and np.array_equal(seen[2].executed, torch.cat(done[6:8]).numpy())
    pictures = [(m["observation.images.front"][0] * 255).round().byte().permute(1, 2, 0).numpy() for m in moments]
    assert np.array_equal(seen[1].images["front"], np.stack(pictures[2:5]))
    policy.reset()
    policy.select_action(moments[0])
    assert np.isnan(seen[-1].executed).all()


def test_queries_that_lerobots_batches_cannot_teach_are_refused(tiny_dataset, unified_checkpoint, tmp_path):
    overrides = ["queries.waypoints=0.1", "queries.waypoint_policy=0.1"]
    with pytest.raises(ValueError, match=r'waypoints, waypoint_policy.*"queries\.waypoints=0"'):
        new_policy(tiny_dataset, overrides=overrides)
    with pytest.raises(ValueError, match="future images, of which an image tokenizer is a part"):
        convert(ConvertConfig(unified_checkpoint, tmp_path / "unified"))
    with pytest.raises(ValueError, match="n_obs_steps as the recipe says, 1, got 2"):
        LatticeConfig(device="cpu", n_obs_steps=2)


def test_fine_tuning_makes_room_for_longer_sentences_and_forgets_nothing(converted, tiny_dataset, tmp_path):
    _, batch = observations()
    before = LatticePolicy.from_pretrained(converted).predict_action_chunk(batch)
    root, long = tmp_path / "copy", "please take the red block and " * 5
    shutil.copytree(tiny_dataset, root, ignore=shutil.ignore_patterns("videos"))
    tasks = pq.read_table(root / "meta/tasks.parquet")
    names = [long + name for name in tasks["task"].to_pylist()]
    pq.write_table(
        tasks.set_column(tasks.column_names.index("task"), "task", pa.array(names)), root / "meta/tasks.parquet"
    )
    policy = LatticePolicy.from_pretrained(converted, dataset_meta=SimpleNamespace(root=root, fps=10))
    assert torch.allclose(policy.predict_action_chunk(batch), before, atol=1e-4)  # sums of other lengths
    saved = tmp_path / "saved"
    policy.save_pretrained(saved)
    again = LatticePolicy.from_pretrained(saved)
    spoken = batch | {"task": names[:1] * ROWS}
    assert torch.equal(again.predict_action_chunk(spoken), policy.eval().predict_action_chunk(spoken))
    with pytest.raises(ValueError, match="shorten it"):
        LatticePolicy.from_pretrained(converted).predict_action_chunk(spoken)


def test_peft_is_pointed_at_layers_that_there_are(converted):
    policy = LatticePolicy.from_pretrained(converted)
    targets = re.compile(policy._get_default_peft_targets()["target_modules"])
    linear = [name for name, module in policy.named_modules() if isinstance(module, torch.nn.Linear)]
    adapted = [name for name in linear if targets.fullmatch(name)]
    assert len(adapted) == 7 * policy.recipe.layers and not any(name.startswith("averaged") for name in adapted)


class Adapted(torch.nn.Module):
    """A linear layer with an adapter, as PEFT makes them."""

    active_adapters = ("default",)

    def __init__(self, layer):
        super().__init__()
        self.base_layer = layer.requires_grad_(False)
        self.lora = torch.nn.ParameterDict({"default": torch.nn.Parameter(torch.ones_like(layer.weight))})

    def get_delta_weight(self, adapter):
        return 0.1 * self.lora[adapter]

    def forward(self, x):
        return x @ (self.base_layer.weight + self.get_delta_weight("default")).T


def loaded_actions(folder, batch):
    return LatticePolicy.from_pretrained(folder).predict_action_chunk(batch)


def test_what_adapters_learnt_acts(converted):
    _, batch = observations()
    policy = LatticePolicy.from_pretrained(converted)
    before, was = loaded_actions(converted, batch), policy.averaged.layers[0].mlp.up_proj.weight.clone()
    loaded = LatticePolicy.from_pretrained(converted)
    for each in (policy, loaded):
        each.model.layers[0].mlp.up_proj = Adapted(each.model.layers[0].mlp.up_proj)
    policy.update()  # goes on from the adapters that there are
    torch.testing.assert_close(policy.averaged.layers[0].mlp.up_proj.weight, was + 0.1)
    ema = min(policy.recipe.ema, (1 + int(policy.step)) / (10 + int(policy.step)))
    policy.model.layers[0].mlp.up_proj.lora["default"].data.fill_(2)
    policy.update()
    torch.testing.assert_close(policy.averaged.layers[0].mlp.up_proj.weight, was + (2 - ema) * 0.1)
    # Adapters that come with a checkpoint act as they are.
    assert not torch.equal(loaded.predict_action_chunk(batch), before)
    torch.testing.assert_close(loaded.averaged.layers[0].mlp.up_proj.weight, was + 0.1)
    loaded.predict_action_chunk(batch)
    torch.testing.assert_close(loaded.averaged.layers[0].mlp.up_proj.weight, was + 0.1)


def test_stored_quantiles_that_leave_out_part_of_the_data_are_told_with_their_damage(tiny_dataset):
    actions = read_tables(tiny_dataset).action
    true = {"action": {"q01": np.quantile(actions, 0.01, 0), "q99": np.quantile(actions, 0.99, 0)}}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        new_policy(tiny_dataset, true)
    narrow = {"action": {name: value / 3 for name, value in true["action"].items()}}
    with pytest.warns(UserWarning, match=r"\d\d % of the action values lie beyond the quantiles"):
        new_policy(tiny_dataset, narrow)


def spoil(root, column, change):
    for path in (root / "data").rglob("*.parquet"):
        table = pq.read_table(path)
        values = change(np.array(table[column].to_pylist()))
        pq.write_table(table.set_column(table.column_names.index(column), column, pa.array(values.tolist())), path)


def nan(values):
    values[3, 1] = np.nan
    return values


def constant(values):
    values[:, 2] = 0.5
    return values


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: (root / "meta/tasks.parquet").unlink(), r"no language.*lerobot-edit-dataset"),
        (lambda root: spoil(root, "action", nan), r"'action' has nan in dimension 'dy'"),
        (lambda root: spoil(root, "action", constant), r"action 'dz' is constant \(0\.5\).*drop the dimension"),
        (lambda root: spoil(root, "timestamp", lambda t: t * 1.5), r"'timestamp'.*resample"),
        (lambda root: next((root / "data").rglob("*.parquet")).write_bytes(b"PAR1 half"), r"cannot read.*fetch it"),
    ],
)
def test_broken_datasets_are_refused_before_training_begins(tiny_dataset, tmp_path, damage, message):
    root = tmp_path / "copy"
    shutil.copytree(tiny_dataset, root, ignore=shutil.ignore_patterns("videos"))
    damage(root)
    with pytest.raises(ValueError, match=message):
        new_policy(root)


def test_the_simulated_robot_does_what_it_is_told(tmp_path):
    outcome = tmp_path / "outcome.json"
    robot = make_robot_from_config(lerobot_policy_lattice.TabletopRobotConfig(image_size=32, outcome=outcome))
    robot.connect()
    before = robot.get_observation()
    assert before["front"].shape == robot.observation_features["front"] == (32, 32, 3)
    executed = robot.send_action(dict.fromkeys(robot.action_features, 3.0))
    assert set(executed.values()) == {1.0}  # more than it can
    after = robot.get_observation()
    assert after["hand_x.pos"] > before["hand_x.pos"] and set(after) == set(robot.observation_features)
    for _ in range(60):
        robot.send_action(dict.fromkeys(robot.action_features, 0.0))
    robot.disconnect()
    assert not robot.is_connected
    happened = json.loads(outcome.read_text())
    assert happened["actions"] == 61 and happened["episodes"] >= 1 and happened["successes"] == 0
    silent = make_robot_from_config(lerobot_policy_lattice.TabletopRobotConfig(instruction="dance", image_size=16))
    with pytest.raises(ValueError, match=r"does not say 'dance' in \d+ scenes; it says, for example, '"):
        silent.connect()
