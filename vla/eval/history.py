# SPDX-License-Identifier: Apache-2.0
"""What a policy that sees several moments is shown of an episode: the last ones, and what was executed between them."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from vla.policy import Observation, Policy

Moment = tuple[Mapping[str, np.ndarray], np.ndarray]
"""{camera: uint8 (H, W, 3)} and the state, float32 (S,)."""


def moment(observation: Mapping[str, Any]) -> Moment:
    """What an environment shows. A copy: it may draw into the same arrays."""
    images = {camera: np.array(image) for camera, image in (observation.get("pixels") or {}).items()}
    return images, np.array(observation["agent_pos"], dtype=np.float32)


def observed(
    policy: "Policy", seen: Sequence[Moment], actions: Sequence[np.ndarray], instruction: str
) -> "Observation":
    """What a policy is shown of an episode. `seen`, `actions`: as of `shown`, of all moments or the last ones."""
    from vla.policy import Observation

    moments = policy.n_obs_steps
    if moments == 1:
        images, state = seen[-1]
        return Observation(dict(images), state, instruction)
    images, states, executed = shown(seen[-moments:], actions, moments, len(policy.action_names))
    return Observation(images, states, instruction, executed)


def shown(
    seen: Sequence[Moment], actions: Sequence[np.ndarray], moments: int, dims: int
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """({camera: uint8 (M, H, W, 3)}, states float32 (M, S), executed actions float32 (M - 1, A)), oldest first.

    `seen`: the last moments, 1 to M of them. `actions`: all of the episode's, float32 (A,), `dims` is A. Before there
    are as many moments, the first is repeated, and its actions are NaN.
    """
    padded = [seen[0]] * (moments - len(seen)) + list(seen)
    images = {camera: np.stack([pictures[camera] for pictures, _ in padded]) for camera in seen[0][0]}
    executed = np.full((moments - 1, dims), np.nan, np.float32)
    if moments > 1 and (done := actions[1 - moments :]):
        executed[-len(done) :] = done
    return images, np.stack([state for _, state in padded]), executed
