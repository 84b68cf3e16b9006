# SPDX-License-Identifier: Apache-2.0
"""Actions that act later than they were sent, around any environment with our interface."""

from collections import deque
from typing import Any

import numpy as np

DELAY = 2
"""Steps from when an action is sent to when it acts, unless others are asked for. On the tabletop these are 0.2 s: its
scripted experts, which look at every step and know nothing of the delay, then overshoot and mostly fail (4 of 75)."""


class DelayedActions:
    """`env`, whose step k executes what was sent in step k - `steps`; everything else is `env`'s own.

    The first `steps` steps execute `env.idle_action`: a displacement of zero, and the gripper as it is at the start.
    Observation and expert are of now, not of when an action will act. ValueError for a negative number of steps, or an
    environment that does not say what doing nothing is.
    """

    def __init__(self, env: Any, steps: int = DELAY) -> None:
        if steps < 0:
            raise ValueError(f"expected a delay of 0 steps or more, got {steps}")
        if not hasattr(env, "idle_action"):
            raise ValueError(
                f"expected an environment with an idle_action to delay, got {type(env).__name__}; give it one"
            )
        self.env, self.steps = env, steps
        self._sent: deque[np.ndarray] = deque()

    def __getattr__(self, name: str) -> Any:
        if name == "env":  # while it is being unpickled or copied
            raise AttributeError(name)
        return getattr(self.env, name)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """As `env`'s; what was still on its way is forgotten."""
        first = self.env.reset(seed=seed, options=options)
        self._sent = deque([np.array(self.env.idle_action, np.float32)] * self.steps)
        return first

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Send an action, and execute the one that is due."""
        self._sent.append(np.array(action))  # a copy: the caller may write over it before it is due
        return self.env.step(self._sent.popleft())
