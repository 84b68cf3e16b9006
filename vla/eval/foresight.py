# SPDX-License-Identifier: Apache-2.0
"""What a policy expects, and what then happens: one episode with the plan and the future image of every decision.

A policy that was trained for `joint` says plan, future image and actions together; any other decides its actions, and
is then asked what it was trained for: its plan, and what will be seen after these actions. A chunk is executed whole,
and the predicted picture held against the true one. The report draws it (`report_foresight`).
"""

import base64
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vla.eval.history import moment, observed

if TYPE_CHECKING:
    from vla.policy import Observation, Policy, SegmentOutput

MOST_DECISIONS = 12
SAYS_MORE = ("joint", "plan", "world_model")
"""Queries that say more of what is expected than actions."""


@dataclass(frozen=True)
class Expected:
    """What a policy decides, and what it expects, of one observation."""

    actions_HA: np.ndarray
    confidence_HA: np.ndarray
    plan: "SegmentOutput | None" = None
    future_image: "SegmentOutput | None" = None


def can_foresee(policy: Any) -> bool:
    """Whether a policy sees pictures, and was trained to say more than actions."""
    return bool(policy.cameras) and not set(SAYS_MORE).isdisjoint(getattr(policy, "trained", ()))


def expect(policy: "Policy", now: "Observation", key: tuple[int, int]) -> Expected:
    """What the policy decides and expects. `key`: (episode seed, environment step)."""
    from vla.canvas import Segment, query
    from vla.canvas.query import ASK, Question

    question, trained = Question(now.images, now.state, now.instruction, executed=now.executed), policy.trained
    if "joint" in trained:
        written = policy.model.config.written
        asked = query.joint(question).but(
            plan=ASK if Segment.PLAN in written else None,
            future_image=ASK if Segment.FUTURE_IMAGE in written else None,
        )
        answer = policy.ask([asked], [key])
        assert answer.actions is not None
        return Expected(
            answer.actions.values[0], answer.actions.confidence[0], plan=answer.plan, future_image=answer.future_image
        )
    chunk = policy.decide([now], [key])
    actions_HA = chunk.actions_BHA[0]
    plan = policy.ask([query.plan(question)], [key]).plan if "plan" in trained else None
    future = None
    if "world_model" in trained:
        future = policy.ask([query.world_model(question, actions_HA)], [key]).future_image
    return Expected(actions_HA, chunk.confidence_BHA[0], plan, future)


def foresee(policy: "Policy", env_id: str, task: str, seed: int) -> dict[str, Any]:
    """Play one episode. Returns {"task", "seed", "instruction", "camera", "success", "horizon", "decisions": [...]}.

    A decision: {"step", "plan", "plan_confidence" (of all its words), "confidence" [H], "pictures" {"now", "predicted",
    "true"}, "error", "error_of_now"}: pictures as PNG in base64, errors as mean squared pixel errors, 0..255 squared.
    What the policy was not trained for is left out.
    """
    from vla.envs.registry import make_env

    camera = policy.cameras[0]
    env = make_env(env_id, task=task, image_size=policy.image_size, cameras=policy.cameras)
    decisions: list[dict[str, Any]] = []
    done: list[np.ndarray] = []
    try:
        observation, info = env.reset(seed=seed, options={"task": task})
        seen, ended = [moment(observation)], False
        while not ended and len(decisions) < MOST_DECISIONS:
            before, step = seen[-1][0][camera], len(done)
            expected = expect(policy, observed(policy, seen, done, info["instruction"]), (seed, step))
            decision: dict[str, Any] = {
                "step": step,
                "confidence": expected.confidence_HA.min(-1).tolist(),
                "pictures": {"now": _png(before)},
            }
            if expected.plan is not None:
                decision["plan"] = expected.plan.values[0]
                decision["plan_confidence"] = float(expected.plan.confidence[0].prod())
            for action in expected.actions_HA:
                observation, _, terminated, truncated, info = env.step(action)
                done.append(action)
                seen = [*seen, moment(observation)][-policy.n_obs_steps :]
                ended = terminated or truncated
                if ended:
                    break
            true = seen[-1][0][camera]
            decision["pictures"]["true"] = _png(true)
            decision["error_of_now"] = _error(before, true)
            if expected.future_image is not None:
                made = expected.future_image.values[camera][0]
                decision["pictures"]["predicted"] = _png(made)
                decision["error"] = _error(made, true)
            decisions.append(decision)
        return {
            "task": task,
            "seed": seed,
            "instruction": info["instruction"],
            "camera": camera,
            "success": bool(info["is_success"]),
            "horizon": policy.horizon,
            "decisions": decisions,
        }
    finally:
        env.close()


def _png(image_HWC: np.ndarray) -> str:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image_HWC).save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode()


def _error(a_HWC: np.ndarray, b_HWC: np.ndarray) -> float:
    return float(((a_HWC.astype(np.float32) - b_HWC.astype(np.float32)) ** 2).mean())
