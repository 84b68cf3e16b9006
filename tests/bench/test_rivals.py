# SPDX-License-Identifier: Apache-2.0
"""The rivals: the decoder's cache is exact, rows are functions of their own key, and a tiny run from end to end."""

import importlib.util
import json
import math
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks.rivals import cells, lerobot_configs, run
from benchmarks.rivals.fit import keys
from benchmarks.rivals.house import with_model
from benchmarks.rivals.lerobot_data import SentenceCode, augmented
from benchmarks.rivals.regression import RegressionModel, unscale
from benchmarks.rivals.settings import Settings
from benchmarks.rivals.table import rows
from vla import randomness
from vla.bench.speed_paths import Autoregressive
from vla.canvas import Segment
from vla.model import LatticeModel, ModelConfig, Observed
from vla.policy import Observation
from vla.recipes import Recipe
from vla.tokenizers.action import BinTokenizer


@pytest.fixture(scope="module")
def decoder():
    """A decoder with weights that are not zero anywhere, what it read of two samples, and their tokens."""
    torch.manual_seed(0)
    model = Autoregressive(ModelConfig(cameras=(), width=32, arrangement="per_dim", action_dims=3)).eval()
    for p in model.parameters():
        p.data.add_(0.05 * torch.randn_like(p))
    model.head_of(Segment.ACTION).allowed_ADV[2, 0, 2:] = False
    with torch.no_grad():
        context = model.read(None, {Segment.OBSERVATION: Observed({}, torch.randn(2, 1, 4))})
    digits = torch.randint(0, 16, (2, 24, 1, 2))
    digits[:, 2::3] = 0
    return model, context, digits


@torch.no_grad()
def test_writing_with_a_cache_is_the_same_as_reading_everything(decoder):
    model, context, digits = decoder
    taught = model.teach(context, digits)
    forced = model.write(context, digits[:, :, 0])
    for a, b in zip(taught, forced.logits, strict=True):
        assert torch.allclose(a[:, :, 0], b, atol=1e-4)
    free = model.write(context)
    again = model.teach(context, free.digits_BND.unsqueeze(2))
    for d, logits in enumerate(again):
        assert torch.equal(logits[:, :, 0].argmax(-1), free.digits_BND[..., d])
        assert torch.allclose(logits[:, :, 0], free.logits[d], atol=1e-4)
    assert (free.digits_BND[:, 2::3, 0] < 2).all() and (free.confidence_BN > 0).all()


@torch.no_grad()
@pytest.mark.parametrize("place", [0, 7, 22])
def test_a_token_changes_what_comes_after_it_and_nothing_before(decoder, place):
    model, context, digits = decoder
    other = digits.clone()
    other[:, place] = (other[:, place] + 5) % 16
    before, after = model.teach(context, digits), model.teach(context, other)
    assert torch.equal(before[0][:, : place + 1], after[0][:, : place + 1])
    assert torch.equal(before[1][:, :place], after[1][:, :place])  # a token's fine digit is given its own coarse one
    assert ((before[0] - after[0]).nan_to_num()[:, place + 1 :].abs().amax((2, 3)) > 1e-6).all()


@torch.no_grad()
def test_blind_positions_read_no_token(decoder):
    model, context, digits = decoder
    blind, other = model.teach(context, digits, blind=True), model.teach(context, (digits + 3) % 16, blind=True)
    assert torch.equal(blind[0], other[0])
    assert not torch.allclose(blind[0][:, 1:], model.teach(context, digits)[0][:, 1:])


def test_a_state_that_is_left_out_is_the_mean_and_the_same_samples_as_ours():
    recipe = Recipe(drop_state=0.5, light=0.5)
    state = np.arange(64, dtype=np.float32).reshape(32, 1, 2)
    batch = {"images": {"front": np.full((32, 1, 4, 4, 3), 100, np.uint8)}, "state": state, "actions": state}
    key_B, middle = keys(1, 7, batch), state.mean((0, 1))
    made = augmented(batch, recipe, key_B, middle)
    left_out = (made["state"] == middle).all((1, 2))
    wanted = randomness.uniform(key_B, "drop state") < 0.5  # as `vla.train.queries` has it
    assert (left_out == wanted.numpy()).all() and 0 < left_out.sum() < 32
    assert np.allclose(made["state"][~left_out], state[~left_out], atol=1e-4) and (made["images"]["front"] != 100).any()
    assert (batch["images"]["front"] == 100).all() and augmented(batch, Recipe(), key_B, middle) == batch


@dataclass
class FakeSession:
    """What `with_model` takes of a session."""

    model: LatticeModel
    averaged: LatticeModel
    tokenizers: SimpleNamespace
    optimiser: torch.optim.Optimizer
    recipe: Recipe = field(default_factory=Recipe)
    seed: int = 0


def test_a_rival_of_our_network_sees_the_same_mean_picture():
    model = LatticeModel(ModelConfig(width=32, image_size=16, background=True))
    model.eye("front").fit_background(torch.randint(0, 255, (4, 16, 16, 3), dtype=torch.uint8))
    allowed = SimpleNamespace(allowed_ADV=lambda: model.head_of(Segment.ACTION).allowed_ADV)
    optimiser = torch.optim.AdamW(model.parameters())
    session = FakeSession(model, model, SimpleNamespace(action=allowed), optimiser)
    made = with_model(session, RegressionModel)
    assert torch.equal(made.model.eye("front").mean_HWC, model.eye("front").mean_HWC)
    assert torch.equal(made.averaged.eye("front").mean_HWC, model.eye("front").mean_HWC)


def test_regression_speaks_the_units_of_the_dataset():
    actions = np.stack([np.linspace(-2, 6, 500), np.where(np.arange(500) % 2, 1.0, -1.0)], 1).astype(np.float32)
    tokenizer = BinTokenizer.fit(actions, ["x", "gripper"])
    inside = torch.tensor([[[0.5, 1.0], [5.0, -1.0]]])
    assert torch.allclose(unscale(tokenizer.scaled(inside), tokenizer), inside, atol=1e-5)
    beyond = unscale(torch.tensor([[[3.0, 0.1], [-3.0, -0.1]]]), tokenizer)
    assert beyond[0, 0].tolist() == pytest.approx([tokenizer.high[0], 1])
    assert beyond[0, 1].tolist() == pytest.approx([tokenizer.low[0], -1])
    with pytest.raises(ValueError, match="per_step"):
        RegressionModel(ModelConfig(cameras=(), arrangement="per_dim"))


def test_the_sentence_code_tells_sentences_apart_and_ignores_what_it_never_saw():
    sentences = ["Push the red block to the blue block", "push the blue block to the red block", "touch it"]
    code = SentenceCode.of(sentences)
    numbers = code([*sentences, "push the", "fetch"])
    assert numbers.shape == (5, code.length) and len(np.unique(numbers[:3], axis=0)) == 3
    assert numbers.sum(1).tolist() == [8, 8, 2, 2, 0]
    with pytest.raises(ValueError, match="expected instructions"):
        SentenceCode.of(["", " "])


def cell(successes, train_s=60.0):
    found = {("reach", i): i < successes for i in range(40)}
    summary = {"success": successes / 40, "n": 40, "interval": [0.1, 0.9]}
    train = {"parameters": 7, "steps": 5, "train_s": train_s, "precision": "float32"}
    return {"train": train, "summary": summary, "successes": found, "latency_ms": [1.0, 2.0, 3.0]}


def test_ours_passes_only_if_it_is_known_not_to_be_worse():
    found = {"act": cell(20, 90.0), "ours": cell(18), "diffusion": cell(40), "regression": cell(0)}
    made = {row.id: row for row in rows("t", found, {"vqbet": "no reason"}, 1.0)}
    assert not made["t_vs_act"].passes and made["t_vs_act"].value == pytest.approx(-0.05)  # 0 is in the interval
    assert made["t_vs_act"].interval[1] > 0 and made["t_vs_act"].goal == "lower end >= -2 points"
    assert made["t_vs_regression"].passes
    assert not made["t_vs_diffusion"].passes and "McNemar p = " in made["t_vs_diffusion"].note
    assert made["t_act_latency_p50_ms"].value == 2 and made["t_ours"].n == 40
    assert "not the 1 minutes" in made["t_act_train_s"].note and "not the" not in made["t_ours_train_s"].note
    assert math.isnan(made["t_vqbet"].value) and made["t_vqbet"].note == "not run: no reason"
    assert "t_vs_ours" not in made and not [id for id in made if id.startswith("t_vs_vqbet")]


def test_settings_that_cannot_be_are_refused(tmp_path):
    for wrong in ({}, {"minutes": 1.0, "steps": 3}, {"steps": 0}, {"steps": 1, "threads": 0}):
        with pytest.raises(ValueError, match="expected"):
            Settings("x", tmp_path, **wrong)
    Settings("x", tmp_path / "out", steps=3).claim_folder()
    with pytest.raises(ValueError, match="steps"):
        Settings("x", tmp_path / "out", steps=4).claim_folder()
    with pytest.raises(ValueError, match="expected contenders out of ours"):
        run.choose("act,actt")
    assert run.choose("vqbet, ours") == ["ours", "vqbet"] and run.choose("") == list(cells.CONTENDERS)


LEROBOT = ("act", "vqbet", *(("diffusion",) if importlib.util.find_spec("diffusers") else ()))
QUICK = ("autoregressive", "regression", *LEROBOT[:2])


def test_a_tiny_run_from_end_to_end(tiny_dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lerobot_configs, "NEEDS", {"diffusion": "a_package_that_nobody_has"})
    arguments = ["--quick", "--dataset", str(tiny_dataset), "--out", str(tmp_path), "--threads", "1"]
    made = run.main([*arguments, "--only", ",".join(("ours", "diffusion", *QUICK))])
    by_id = {row["id"]: row for row in made["rows"]}
    for name in ("ours", *QUICK):
        assert by_id[f"tabletop_{name}"]["n"] == 10 and by_id[f"tabletop_{name}_latency_p95_ms"]["value"] > 0
        assert by_id[f"tabletop_{name}_steps"]["value"] == 8 and by_id[f"tabletop_{name}_parameters"]["value"] > 10_000
    assert by_id["tabletop_vs_act"]["n"] == 10 and "not run: it needs" in by_id["tabletop_diffusion"]["note"]
    assert json.loads((tmp_path / "rivals_tabletop.json").read_text()) == made

    monkeypatch.setattr(cells, "run", None)  # nothing is run again
    again = run.main([*arguments, "--only", "ours"])
    assert [row for row in again["rows"] if row["id"] != "tabletop_diffusion"] == again["rows"]
    assert {row["id"] for row in again["rows"]} == set(by_id) - {"tabletop_diffusion"}

    generator = np.random.default_rng(0)
    seen = [
        Observation(
            {"front": generator.integers(0, 255, (32, 32, 3), np.uint8)},
            generator.normal(size=4),
            "touch the red block",
        )
        for _ in range(3)
    ]
    keys = [(7, 0), (8, 0), (7, 4)]
    for name in QUICK:  # a row is a function of its own observation and key
        policy = cells.contender(name).load(tmp_path / name, 4)
        together, alone = policy.act(seen, keys), policy.act(seen[2:], keys[2:])
        assert together.shape == (3, 8, 4) and together.dtype == np.float32
        assert np.allclose(together[2], alone[0], atol=1e-5)
