# SPDX-License-Identifier: Apache-2.0
"""What a unified policy expects, and what then happens: one episode with plan, future image and actions together.

At each decision the whole chunk is executed, so that the predicted picture can be held against the true one. The
report draws it (`report_foresight`).
"""

import base64
import io
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from vla.policy import Policy

MOST_DECISIONS = 12


def foresee(policy: "Policy", env_id: str, task: str, seed: int) -> dict[str, Any]:
    """Play one episode. Returns {"task", "seed", "instruction", "camera", "success", "horizon", "decisions": [...]}.

    A decision: {"step", "plan", "plan_confidence" (of all its words), "confidence" [H], "pictures" {"now", "predicted",
    "true"}, "error", "error_of_now"}: pictures as PNG in base64, errors as mean squared pixel errors, 0..255 squared.
    """
    from vla.canvas import Segment, query
    from vla.canvas.query import ASK, Question
    from vla.envs.registry import make_env

    ports = policy.model.config.ports
    camera = policy.cameras[0]
    env = make_env(env_id, task=task, image_size=policy.image_size, cameras=policy.cameras)
    decisions: list[dict[str, Any]] = []
    try:
        observation, info = env.reset(seed=seed, options={"task": task})
        step, ended = 0, False
        while not ended and len(decisions) < MOST_DECISIONS:
            images = {c: observation["pixels"][c].copy() for c in policy.cameras}
            now = Question(images, np.asarray(observation["agent_pos"], np.float32), info["instruction"])
            asked = query.joint(now).but(
                plan=ASK if Segment.PLAN in ports else None,
                future_image=ASK if Segment.FUTURE_IMAGE in ports else None,
            )
            answer = policy.ask([asked], [(seed, step)])
            assert answer.actions is not None
            decision: dict[str, Any] = {
                "step": step,
                "confidence": answer.actions.confidence[0].min(-1).tolist(),
                "pictures": {"now": _png(images[camera])},
            }
            if answer.plan is not None:
                decision["plan"] = answer.plan.values[0]
                decision["plan_confidence"] = float(answer.plan.confidence[0].prod())
            for action in answer.actions.values[0]:
                observation, _, terminated, truncated, info = env.step(action)
                step += 1
                ended = terminated or truncated
                if ended:
                    break
            true = observation["pixels"][camera]
            decision["pictures"]["true"] = _png(true)
            decision["error_of_now"] = _error(images[camera], true)
            if answer.future_image is not None:
                made = answer.future_image.values[camera][0]
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
