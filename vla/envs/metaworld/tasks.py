# SPDX-License-Identifier: Apache-2.0
"""Names, sentences and suites of Meta-World's tasks: a table, read without the simulator."""

import difflib

TIERS: dict[str, dict[str, str]] = {
    "easy": {
        "button-press-topdown-v3": "Press a button from the top",
        "button-press-topdown-wall-v3": "Bypass a wall and press a button from the top",
        "button-press-v3": "Press a button",
        "button-press-wall-v3": "Bypass a wall and press a button",
        "coffee-button-v3": "Push a button on the coffee machine",
        "dial-turn-v3": "Rotate a dial 180 degrees",
        "door-close-v3": "Close a door with a revolving joint",
        "door-lock-v3": "Lock the door by rotating the lock clockwise",
        "door-open-v3": "Open a door with a revolving joint",
        "door-unlock-v3": "Unlock the door by rotating the lock counter-clockwise",
        "drawer-close-v3": "Push and close a drawer",
        "drawer-open-v3": "Open a drawer",
        "faucet-close-v3": "Rotate the faucet clockwise",
        "faucet-open-v3": "Rotate the faucet counter-clockwise",
        "handle-press-side-v3": "Press a handle down sideways",
        "handle-press-v3": "Press a handle down",
        "handle-pull-side-v3": "Pull a handle up sideways",
        "handle-pull-v3": "Pull a handle up",
        "lever-pull-v3": "Pull a lever down 90 degrees",
        "peg-unplug-side-v3": "Unplug a peg sideways",
        "plate-slide-back-side-v3": "Get a plate from the cabinet sideways",
        "plate-slide-back-v3": "Get a plate from the cabinet",
        "plate-slide-side-v3": "Slide a plate into a cabinet sideways",
        "plate-slide-v3": "Slide a plate into a cabinet",
        "reach-v3": "Reach a goal position",
        "reach-wall-v3": "Bypass a wall and reach a goal",
        "window-close-v3": "Push and close a window",
        "window-open-v3": "Push and open a window",
    },
    "medium": {
        "basketball-v3": "Dunk the basketball into the basket",
        "bin-picking-v3": "Grasp the puck from one bin and place it into another bin",
        "box-close-v3": "Grasp the cover and close the box with it",
        "coffee-pull-v3": "Pull a mug from a coffee machine",
        "coffee-push-v3": "Push a mug under a coffee machine",
        "hammer-v3": "Hammer a screw on the wall",
        "peg-insert-side-v3": "Insert a peg sideways",
        "push-wall-v3": "Bypass a wall and push a puck to a goal",
        "soccer-v3": "Kick a soccer into the goal",
        "sweep-into-v3": "Sweep a puck into a hole",
        "sweep-v3": "Sweep a puck off the table",
    },
    "hard": {
        "assembly-v3": "Pick up a nut and place it onto a peg",
        "hand-insert-v3": "Insert the gripper into a hole",
        "pick-out-of-hole-v3": "Pick up a puck from a hole",
        "pick-place-v3": "Pick and place a puck to a goal",
        "push-back-v3": "Push the puck to a goal",
        "push-v3": "Push the puck to a goal",
    },
    "very-hard": {
        "disassemble-v3": "Pick a nut out of a peg",
        "pick-place-wall-v3": "Pick a puck, bypass a wall and place the puck",
        "shelf-place-v3": "Pick and place a puck onto a shelf",
        "stick-pull-v3": "Grasp a stick and pull a box with the stick",
        "stick-push-v3": "Grasp a stick and push a box using the stick",
    },
}
"""Difficulty -> {task: sentence}: the tiers of the published MT50 tables (28, 11, 6 and 5 tasks), and the sentences of
the dataset lerobot/metaworld_mt50, so that a policy that was trained there is told what it knows. push-v3 and
push-back-v3 share theirs: 49 sentences for 50 tasks."""

SENTENCES: dict[str, str] = {task: TIERS[tier][task] for tier in TIERS for task in TIERS[tier]}
"""Task -> sentence."""

MT10 = (
    "reach-v3",
    "push-v3",
    "pick-place-v3",
    "door-open-v3",
    "drawer-open-v3",
    "drawer-close-v3",
    "button-press-topdown-v3",
    "peg-insert-side-v3",
    "window-open-v3",
    "window-close-v3",
)
"""Meta-World's own choice of ten."""

SUITES: dict[str, tuple[str, ...]] = {
    "mt50": tuple(sorted(SENTENCES)),
    "mt10": MT10,
    **{f"mt50-{tier}": tuple(sorted(tasks)) for tier, tasks in TIERS.items()},
    "all": tuple(sorted(SENTENCES)),
}
"""Suite -> tasks. The published MT50 average is the unweighted mean of the four tiers."""

MAX_STEPS = 400
"""Steps (of 1/80 s) after which an episode has failed: as in Evo-1's MT50 evaluation and in LeRobot's configuration
(episode_length). Meta-World and LeRobot's environment class allow 500: time never flatters a rate here."""


def check_task(task: str) -> str:
    """Return `task`. ValueError, with the nearest name, if Meta-World has no such task."""
    if task not in SENTENCES:
        near = difflib.get_close_matches(str(task), SENTENCES, n=1, cutoff=0.0)
        raise ValueError(
            f"unknown Meta-World task {task!r}; did you mean {near[0]!r}? There are: {', '.join(SUITES['all'])}"
        )
    return task
