# SPDX-License-Identifier: Apache-2.0
"""What a policy expects is asked by the queries that it was trained for, and drawn."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from vla.canvas.query import QUERIES, Question, world_model
from vla.eval.evaluate import EvalConfig, evaluate
from vla.eval.foresight import can_foresee, expect, foresee
from vla.eval.report import ReportConfig, report
from vla.policy import Observation, Policy

pytestmark = pytest.mark.render


@pytest.fixture
def policy(unified_checkpoint):
    """Trained for every query; a test may forget some."""
    return Policy.load(unified_checkpoint)


def test_what_was_not_trained_is_not_asked(policy):
    rng = np.random.default_rng(0)
    image, state = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8), rng.normal(0, 0.1, 4).astype(np.float32)
    now = Observation({"front": image}, state, "reach the red block")
    together = expect(policy, now, (3, 4))
    assert together.plan is not None and together.future_image is not None and together.actions_HA.shape == (8, 4)
    policy.trained = ("policy", "world_model")
    alone = expect(policy, now, (3, 4))
    decided = policy.decide([now], [(3, 4)])
    assert np.array_equal(alone.actions_HA, decided.actions_BHA[0]) and alone.plan is None
    assert np.array_equal(alone.confidence_HA, decided.confidence_BHA[0])
    answer = policy.ask([world_model(Question(now.images, state), alone.actions_HA)], [(3, 4)])
    assert np.array_equal(alone.future_image.values["front"], answer.future_image.values["front"])
    policy.trained = ("policy", "plan")
    assert isinstance(expect(policy, now, (3, 4)).plan.values[0], str)
    assert can_foresee(policy) and not can_foresee(SimpleNamespace(cameras=("front",)))
    policy.trained = ("policy", "continuation", "goal_policy")
    assert not can_foresee(policy)


@pytest.mark.parametrize("trained", [tuple(QUERIES), ("policy", "plan"), ("policy", "world_model")])
def test_an_episode_is_played_and_held_against_what_came(policy, trained):
    policy.trained = trained
    found = foresee(policy, "tabletop", "reach", 0)
    first = found["decisions"][0]
    says_plan, says_picture = ({"joint", name} & {*trained} for name in ("plan", "world_model"))
    assert found["instruction"].split() and [d["step"] for d in found["decisions"][:2]] == [0, 8]
    assert ("plan" in first) == bool(says_plan) and ("predicted" in first["pictures"]) == bool(says_picture)
    assert len(first["confidence"]) == 8 and first["error_of_now"] >= 0 and ("error" in first) == bool(says_picture)


def test_an_evaluation_writes_it_and_the_report_shows_it(unified_checkpoint, tmp_path):
    config = EvalConfig(
        str(unified_checkpoint), tasks=("reach",), episodes=1, slots=1, workers=1, videos=1, out=tmp_path
    )
    evaluate(config)
    episodes = json.loads((tmp_path / "foresight.json").read_text())
    assert len(episodes) == 1 and "predicted" in episodes[0]["decisions"][0]["pictures"]
    page = report(ReportConfig(tmp_path)).read_text()
    assert "What it expects" in page and 'alt="expected"' in page
