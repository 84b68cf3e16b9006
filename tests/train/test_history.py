# SPDX-License-Identifier: Apache-2.0
"""A policy that sees several moments: trained, resumed and asked by the real command."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.conftest import tiny_config
from tests.train.conftest import command
from vla import cli, recipes
from vla.canvas.query import Question
from vla.policy import Observation, Policy
from vla.train.setup import build


@pytest.fixture
def policy(remembering):
    return Policy.load(remembering[1] / "checkpoints" / "last")


def seen(policy, seed):
    draw = np.random.default_rng(seed)
    state = draw.uniform(-0.2, 0.2, (2, len(policy.state_names))).astype(np.float32)
    executed = draw.uniform(-1, 1, (1, len(policy.action_names))).astype(np.float32)
    return Observation({}, state, "reach the red block", executed)


def test_a_run_with_history_resumes_bit_for_bit(remembering, tmp_path):
    dataset, run = remembering
    (tmp_path / "checkpoints").mkdir()
    shutil.copytree(run / "checkpoints" / "0000003", tmp_path / "checkpoints" / "0000003")
    assert cli.main(command(dataset, tmp_path, "--resume", "--set", "n_obs_steps=2")) == 0
    for name in ("model.safetensors", "training.safetensors"):
        ours, theirs = (folder / "checkpoints" / "0000006" / name for folder in (tmp_path, run))
        assert ours.read_bytes() == theirs.read_bytes()
    assert json.loads((run / "checkpoints" / "last" / "config.json").read_text())["model"]["n_obs_steps"] == 2


@pytest.mark.parametrize("changed", ["older state", "newer state", "executed", "unknown"])
def test_what_was_seen_and_done_before_is_heard(policy, changed):
    """Training has made its projections more than zero: the older moment and the executed action reach the output."""
    one, other = seen(policy, 0), seen(policy, 1)
    state, executed = one.state.copy(), one.executed
    if changed.endswith("state"):
        moment = int(changed.startswith("newer"))
        state[moment] = other.state[moment]
    else:
        executed = other.executed if changed == "executed" else np.full_like(executed, np.nan)
    moved = replace(one, state=state, executed=executed)
    plain, heard = (policy.decide([x], [(0, 0)]) for x in (one, moved))
    assert policy.n_obs_steps == 2 and plain.actions_BHA.shape == (1, 8, 4)
    assert np.abs(plain.confidence_BHA - heard.confidence_BHA).max() > 1e-6
    again = policy.decide([one, other], [(0, 0), (0, 0)])
    np.testing.assert_allclose(again.actions_BHA[0], plain.actions_BHA[0], atol=1e-5)


def test_training_shows_what_a_robot_shows(remembering, policy):
    """The same moments make the same observation; before the beginning the first one is repeated, nothing was done."""
    config = tiny_config(remembering[0], "unused", set=("n_obs_steps=2",))
    session = build(config, recipes.get(config.recipe, config.set), torch.device("cpu"))
    batches = [session.batches.batch(step) for step in range(6)]
    known = np.concatenate([b["past_known"] for b in batches])
    assert known.any() and not known.all()
    for batch in batches:
        past = np.where(batch["past_known"][..., None], batch["past"], np.nan).astype(np.float32)
        questions = [Question({}, state, executed=done) for state, done in zip(batch["state"], past, strict=True)]
        ours, theirs = session.rows(batch).observed, policy.encoder.observed(questions)
        assert torch.equal(ours.state_BMS, theirs.state_BMS) and torch.equal(ours.known_BM, theirs.known_BM)
        assert torch.equal(ours.executed_BMA[ours.known_BM], theirs.executed_BMA[theirs.known_BM])
