# SPDX-License-Identifier: Apache-2.0
"""What goes into a policy and comes out of it."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Observation:
    """What the robot sees at one moment; for a policy with history (`Policy.n_obs_steps` = M > 1) at the last M."""

    images: dict[str, np.ndarray]
    """A camera: uint8 (H, W, 3), RGB, 0..255, square, the image size of the checkpoint; with history (M, H, W, 3), the
    oldest moment first."""
    state: np.ndarray
    """float32 (S,), the dataset's units and order (`Policy.state_names`); with history (M, S)."""
    instruction: str
    """What to do, in the language of the dataset."""
    executed: np.ndarray | None = None
    """float32 (M - 1, A): the actions executed between the moments; a row of NaN where there was none."""


@dataclass(frozen=True)
class Chunk:
    """Decided actions of B observations."""

    actions_BHA: np.ndarray
    """float32, the dataset's units (`Policy.action_names`)."""
    confidence_BHA: np.ndarray
    """float32 in [0, 1]: how probable it is that the action is the decided one, up to the neighbouring coarse bins (a
    coarse bin is a sixteenth of the range); of a dimension with two values, that it is the decided one; of tokens that
    are not aligned with time, the mean probability of a token."""
    length_B: np.ndarray
    """int64, 0..H: the steps before STOP; H where there is none. What comes behind is not meant to be executed."""
    plans: tuple[str, ...] = ()
    """What is still to do, of each observation; "" where it was decided without a plan; () if none was asked for."""

    def sure_steps(self, above: float, least: int = 1) -> np.ndarray:
        """How many steps to execute before the next observation, int64 (B,): until a confidence falls below `above`.

        At least `least`, at most the whole chunk. A step is as sure as its least sure dimension.
        """
        unsure_BH = self.confidence_BHA.min(-1) < above
        first_B = np.where(unsure_BH.any(1), unsure_BH.argmax(1), unsure_BH.shape[1])
        return np.maximum(np.minimum(first_B, self.length_B), least)


@dataclass(frozen=True)
class SegmentOutput:
    """A segment that was asked for, of B questions."""

    values: Any
    """actions: float32 (B, H, A), the dataset's units; waypoints: float32 (B, K, S), the dataset's units; future_image:
    {camera: uint8 (B, H, W, 3)}; plan and instruction: a list of B texts."""
    tokens: np.ndarray
    """int64: digits (B, N, S, D) of actions, waypoints and codes; (B, N) ids of words, 0 behind the end."""
    confidence: np.ndarray
    """float32 in [0, 1], one for each token, the product of its digits' probabilities: (B, N) or (B, N, S); of actions
    as in `Chunk.confidence_BHA`, (B, H, A); 1 where it was given."""
    used: float = 1.0
    """Of a text: its words, as a share of the positions that were denoised on the way."""


@dataclass(frozen=True)
class Answer:
    """What was asked for; None for the rest."""

    instruction: SegmentOutput | None = None
    plan: SegmentOutput | None = None
    waypoints: SegmentOutput | None = None
    future_image: SegmentOutput | None = None
    actions: SegmentOutput | None = None
    steps: int = 0
    """Denoising steps that were taken."""
    lengths: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """int64 (B,), of actions: `Chunk.length_B`."""
