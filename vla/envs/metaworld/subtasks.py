# SPDX-License-Identifier: Apache-2.0
"""What the scripted hand is doing, in a few words: a table, and one rule that reads the stage off the present state.

The hand moves to the thing, comes to its height, closes the gripper where it grasps, lifts, and does what the task is
about. Which of these it is follows from where the hand is beside the thing, from how the fingers move and from where
the expert wants to go; what the task is about is a phrase in the table.
"""

import math
from typing import Literal, NamedTuple

import numpy as np


class Work(NamedTuple):
    """What is done in a task. Lengths in m."""

    thing: str
    act: str
    """said when the hand is at the thing (and holds it, if it grasps)"""
    hand: Literal["pushes", "grips", "carries"] = "pushes"
    at: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """where the hand belongs before the act, beside what the simulator calls the thing's position"""
    near: float = 0.04
    """at the thing: no farther than this from there along `axes`..."""
    level: float = math.inf
    """...and no farther than this above or below"""
    axes: tuple[int, ...] = (0, 1)


_ANYWHERE = math.inf

WORK: dict[str, Work] = {
    "assembly-v3": Work("the nut", "carry to the peg", "carries", (-0.02, 0, 0), 0.02, 0.07),
    "basketball-v3": Work("the ball", "carry to the basket", "carries", (0, 0, 0.01), 0.04, 0.025),
    "bin-picking-v3": Work("the puck", "carry to the other bin", "carries", (0, 0, 0.03), 0.03, 0.02),
    "box-close-v3": Work("the cover", "carry to the box", "carries", (0, 0, 0.02), 0.02, 0.05),
    "button-press-topdown-v3": Work("the button", "press the button"),
    "button-press-topdown-wall-v3": Work("the button", "press the button", at=(0, -0.06, 0)),
    "button-press-v3": Work("the button", "press the button", at=(0, 0, -0.07), near=0.03, axes=(0, 2)),
    "button-press-wall-v3": Work("the button", "press the button", at=(0, -0.04, 0.04), near=0.06, level=0.02),
    "coffee-button-v3": Work("the button", "press the button", at=(0, 0, -0.07), near=0.02, axes=(0, 2)),
    "coffee-pull-v3": Work("the mug", "pull the mug away", "grips", (0, 0, 0.05), 0.06, 0.02),
    "coffee-push-v3": Work("the mug", "push the mug under the machine", "grips", (0.01, 0, 0.05), 0.06, 0.02),
    "dial-turn-v3": Work("the dial", "turn the dial", at=(0.03, 0.02, 0.09), near=0.06, level=0.05),
    "disassemble-v3": Work("the nut", "lift", "grips", (-0.02, 0, 0.01), 0.02, 0.03),
    "door-close-v3": Work("the door", "push the door shut", at=(-0.03, 0.12, 0.1), near=0.08, level=0.08),
    "door-lock-v3": Work("the lock", "turn the lock", at=(-0.02, -0.02, 0), near=0.06, level=0.14),
    "door-open-v3": Work("the door", "pull the door open", at=(-0.05, 0, 0), near=0.12, level=0.04),
    "door-unlock-v3": Work("the lock", "turn the lock", at=(-0.04, -0.02, -0.03), near=0.04),
    "drawer-close-v3": Work("the drawer", "push the drawer shut", at=(0, -0.04, -0.02), near=0.06, level=0.04),
    "drawer-open-v3": Work("the drawer", "pull the drawer open", at=(0, 0, -0.02), near=0.06, level=0.04),
    "faucet-close-v3": Work("the faucet", "turn the faucet", at=(0.04, 0, 0.03), near=0.06, level=0.04),
    "faucet-open-v3": Work("the faucet", "turn the faucet", at=(-0.04, 0, 0.03), near=0.06, level=0.04),
    "hammer-v3": Work("the hammer", "hit the screw", "grips", (-0.04, 0, -0.01), 0.04, 0.07),
    "hand-insert-v3": Work("the block", "carry to the hole", "carries", (0, 0, 0), 0.02, 0.07),
    "handle-press-side-v3": Work("the handle", "press the handle down", near=0.02),
    "handle-press-v3": Work("the handle", "press the handle down", at=(0, -0.02, 0), near=0.02),
    "handle-pull-side-v3": Work("the handle", "pull the handle up", near=0.04, level=0.06),
    "handle-pull-v3": Work("the handle", "pull the handle up", at=(0, -0.04, 0), near=0.06, level=0.04),
    "lever-pull-v3": Work("the lever", "turn the lever", at=(0, -0.055, 0), near=0.04),
    "peg-insert-side-v3": Work("the peg", "carry to the hole", "carries", (0, 0, 0), 0.04, 0.03),
    "peg-unplug-side-v3": Work("the peg", "pull the peg out", "grips", (-0.02, 0, 0.035), 0.05, 0.04),
    "pick-out-of-hole-v3": Work("the puck", "carry to the goal", "carries", (0, 0, 0.02), 0.02, 0.03),
    "pick-place-v3": Work("the puck", "carry to the goal", "carries", (0, 0, 0), 0.02, 0.05),
    "pick-place-wall-v3": Work("the puck", "carry to the goal", "carries", (0, 0, 0), 0.02, 0.045),
    "plate-slide-back-side-v3": Work("the plate", "slide the plate out", at=(0.023, 0, 0.025), near=0.02, level=0.04),
    "plate-slide-back-v3": Work("the plate", "slide the plate out", at=(0, -0.065, 0.025), near=0.02, level=0.07),
    "plate-slide-side-v3": Work("the plate", "slide the plate in", at=(0.07, 0, -0.005), near=0.04, level=0.06),
    "plate-slide-v3": Work("the plate", "slide the plate in", at=(0, -0.055, 0.03), near=0.03, level=0.04),
    "push-back-v3": Work("the puck", "push to the goal", "grips", (0, 0, 0), 0.04, 0.05),
    "push-v3": Work("the puck", "push to the goal", "grips", (0, 0, 0), 0.02, 0.04),
    "push-wall-v3": Work("the puck", "push around the wall to the goal", "grips", (0, 0, 0), 0.02, 0.04),
    "reach-v3": Work("the goal", "move to the goal", near=_ANYWHERE),
    "reach-wall-v3": Work("the goal", "move over the wall to the goal", near=_ANYWHERE),
    "shelf-place-v3": Work("the block", "carry to the shelf", "carries", (0, 0, 0.015), 0.04, 0.04),
    "soccer-v3": Work("the ball", "push the ball to the goal", near=0.07),
    "stick-pull-v3": Work("the stick", "pull the box with the stick", "grips", (-0.015, 0, 0.03), 0.02, 0.02),
    "stick-push-v3": Work("the stick", "push the box with the stick", "grips", (0.015, 0, 0.03), 0.02, 0.02),
    "sweep-into-v3": Work("the puck", "sweep the puck into the hole", "grips", (0, 0, 0.01), 0.04, 0.04),
    "sweep-v3": Work("the puck", "sweep the puck off the table", "grips", (0, 0, 0.015), 0.04, 0.12),
    "window-close-v3": Work("the window", "slide the window shut", at=(0.03, -0.03, -0.08), near=0.05, level=0.03),
    "window-open-v3": Work("the window", "slide the window open", at=(-0.03, -0.03, -0.08), near=0.05, level=0.03),
}
"""Task -> what is done in it. Where the hand belongs is where Meta-World's scripted policy brings it."""

_CLOSING, _OPEN = 0.012, 0.95
"""How much the opening, 0 to 1, changes in a step while the fingers move; how open they are before they begin."""
_THING, _BEFORE = 4, 18
"""Where the observation has the thing's position, and the hand and gripper of one step ago."""


def subtask(task: str, observation: np.ndarray, wanted: np.ndarray) -> str:
    """What the expert is doing now, a few words, never empty: a function of the present observation alone.

    `observation`: the simulator's, float64 (39,), which holds that of one step ago too. `wanted`: what the scripted
    policy answers to it, not clipped, (4,): where to go, and how hard to close the gripper.
    """
    work = WORK[task]
    hand, opening, before = observation[:3], observation[3], observation[_BEFORE + 3]
    off = hand - observation[_THING : _THING + 3] - work.at
    if math.hypot(*(off[axis] for axis in work.axes)) > work.near:
        return f"move to {work.thing}"
    if work.hand != "pushes" and wanted[3] > 0 and (opening > _OPEN or before - opening > _CLOSING):
        return "close the gripper"
    if abs(off[2]) > work.level:
        return "lower" if off[2] > 0 else "rise"
    if work.hand == "carries" and abs(wanted[2]) > max(1.0, math.hypot(wanted[0], wanted[1])):
        return "lift" if wanted[2] > 0 else "let it down"
    return work.act
