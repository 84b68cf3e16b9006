# SPDX-License-Identifier: Apache-2.0
"""Scripted experts: what a careful person would do next, as a pure function of the present state.

No phases and no memory: the stage is read off the scene (is the hand open, is the block between the fingers,
how far is the goal), so an expert recovers from wherever noise or a learned policy has led it, and a policy
that sees the same scene can learn the same function. Every approach is a funnel: the height wanted depends
continuously on the horizontal distance left, and speed falls in proportion to the distance, so neighbouring
states get neighbouring actions. They do not look at where a block started: a policy cannot see that either.
"""

import math

from vla.envs.tabletop.layouts import Point
from vla.envs.tabletop.scene import BLOCK_HALF, MAX_OPENING, N_BLOCKS, WALL_HALF
from vla.envs.tabletop.tasks import BESIDE, DIRECTIONS, OPEN, SIDES, Episode, Goal, Point3, State

Action = tuple[float, float, float, float]
Advice = tuple[Action, str]

STEP = 0.04
"""Displacement of the hand's target by an action of 1, m."""
GAIN = 0.75
"""Share of the distance left that one step covers, when that is less than a full step."""
SAFE = 0.095
"""Travelling height: the fingertips clear the blocks, m."""
CARRY = 0.115
"""Travelling height with a block in the hand, m."""
TOUCH = 0.072
GRASP = 0.026
LOW = 0.024
"""Heights of the hand for touching, grasping and pushing, m."""
CONTACT = 0.040
"""From the middle of a block to the middle of the hand when they touch, m."""
BEHIND = 0.056
"""From the middle of a block to where a push begins, m."""
PUSH_SPEED = 0.42
AROUND = 0.085
"""Travelling height around a wall: clear of the blocks, and too low to pass over the wall, m."""
BEYOND_END = WALL_HALF[0] + 0.06
"""From the middle of a wall to the middle of a hand that is past its end, palm and all, m."""


def _clip(value: float, low: float = -1.0, high: float = 1.0) -> float:
    return low if value < low else high if value > high else value


def _funnel(distance: float, low: float, high: float, mouth: float = 0.04, neck: float = 0.006) -> float:
    """Height wanted at a horizontal distance: `low` within `neck`, rising linearly to `high` at `mouth`."""
    return low + (high - low) * _clip((distance - neck) / (mouth - neck), 0.0)


def _towards(hand: Point3, x: float, y: float, z: float, grip: float) -> Action:
    """Go to x, y, z; while the hand is lower than it should be, rise first."""
    low_by = z - hand[2]
    share = _clip(1.0 - (low_by - 0.008) / 0.03, 0.0)
    return (
        _clip(GAIN * (x - hand[0]) / STEP) * share,
        _clip(GAIN * (y - hand[1]) / STEP) * share,
        _clip(GAIN * (z - hand[2]) / STEP),
        grip,
    )


def _reach(state: State, block: Point3, name: str) -> Advice:
    distance = math.hypot(block[0] - state.hand[0], block[1] - state.hand[1])
    z = _funnel(distance, block[2] - BLOCK_HALF + TOUCH, block[2] - BLOCK_HALF + SAFE)
    words = f"move above {name}" if distance > 0.02 else "lower" if state.hand[2] > z + 0.006 else "hold still"
    return _towards(state.hand, block[0], block[1], z, -1.0), words


def _push(
    state: State, block: Point3, direction: Point, name: str, steering: float = 1.4, speed: float = PUSH_SPEED
) -> Advice:
    """Go down behind the block, then drive the hand through it; sideways errors are steered out."""
    (x, y, z), (ux, uy) = state.hand, direction
    dx, dy = x - block[0], y - block[1]
    along, across = dx * ux + dy * uy, dy * ux - dx * uy
    px, py = block[0] - ux * BEHIND, block[1] - uy * BEHIND
    distance = math.hypot(px - x, py - y)
    approach = _towards(state.hand, px, py, _funnel(distance, LOW, SAFE, neck=0.008), 1.0)
    # How ready the hand is to push: behind the block, in line with it, low. A blend, so that the action does
    # not jump.
    ready = (
        _clip((0.022 - abs(across)) / 0.010, 0.0)
        * _clip((0.050 - z) / 0.015, 0.0)
        * _clip((-0.022 - along) / 0.006, 0.0)
    )
    ready *= _clip((along + 0.095) / 0.02, 0.0)
    steer = -steering * across / STEP
    drive = (
        _clip(speed * ux - steer * uy),
        _clip(speed * uy + steer * ux),
        _clip(GAIN * (LOW - z) / STEP),
    )
    ax, ay, az = (ready * d + (1 - ready) * a for d, a in zip(drive, approach[:3], strict=True))
    words = "push" if ready > 0.5 else f"move behind {name}" if distance > 0.02 else "lower"
    return (ax, ay, az, 1.0), words


def _between_fingers(state: State, block: Point3, across: float, along: float, height: float) -> bool:
    return (
        abs(block[0] - state.hand[0]) < across
        and abs(block[1] - state.hand[1]) < along
        and abs(block[2] - state.hand[2]) < height
    )


def holds(state: State, block: Point3) -> bool:
    """Is the block in the hand: between the fingers, and these no wider than it is?"""
    return state.opening < OPEN and _between_fingers(state, block, 0.022, 0.024, 0.026)


def _grasp(state: State, block: Point3, name: str) -> Advice:
    """From anywhere to the block between the closed fingers."""
    hand = state.hand
    if _between_fingers(state, block, 0.013, 0.011, 0.012):
        return (
            *_towards(hand, block[0], block[1], block[2] + GRASP - BLOCK_HALF, 1.0)[:3],
            1.0,
        ), "close the gripper"
    distance = math.hypot(block[0] - hand[0], block[1] - hand[1])
    floor = block[2] - BLOCK_HALF
    z = _funnel(distance, floor + GRASP, floor + SAFE)
    # A hand that is not open yet waits above.
    z += (floor + SAFE - z) * _clip((MAX_OPENING - 0.008 - state.opening) / 0.02, 0.0)
    words = f"move above {name}" if distance > 0.02 else "open the gripper" if state.opening < 0.06 else "lower"
    return _towards(hand, block[0], block[1], max(z, 0.02), -1.0), words


def _lift(state: State, block: Point3, name: str) -> Advice:
    if holds(state, block):
        words = "lift" if state.hand[2] < CARRY else "hold still"
        return _towards(state.hand, state.hand[0], state.hand[1], CARRY + 0.01, 1.0), words
    return _grasp(state, block, name)


def _place(state: State, block: Point3, goal: Point, bottom: float, name: str, where: str, tolerance: float) -> Advice:
    """Bring a block to `goal` so that it rests at height `bottom`, let go, rise."""
    hand = state.hand
    dx, dy = goal[0] - block[0], goal[1] - block[1]
    distance = math.hypot(dx, dy)
    above = block[2] - BLOCK_HALF - bottom
    held = holds(state, block)
    if not held and distance < tolerance and abs(above) < 0.010:
        if state.opening < MAX_OPENING - 0.012 and _between_fingers(state, block, 0.03, 0.03, 0.04):
            return (0.0, 0.0, 0.0, -1.0), "open the gripper"
        top = bottom + BLOCK_HALF + 0.08
        return _towards(hand, hand[0], hand[1], top, -1.0), "rise" if hand[2] < top - 0.01 else "hold still"
    if not held:
        return _grasp(state, block, name)
    if distance < 0.014 and above < 0.011:
        return (0.0, 0.0, 0.0, -1.0), "open the gripper"
    # The block is what has to arrive, not the hand: carry over how it sits between the fingers.
    lag = hand[2] - block[2]
    z = _funnel(distance, bottom + BLOCK_HALF + 0.003, bottom + CARRY) + lag
    words = f"carry to {where}" if distance > 0.02 else "lower"
    return _towards(hand, hand[0] + dx, hand[1] + dy, z, 1.0), words


def _name(episode: Episode, block: int) -> str:
    return f"the {episode.colours[block]} block"


def _reach_task(state: State, episode: Episode, goal: Goal) -> Advice:
    return _reach(state, state.blocks[goal.blocks[0]], _name(episode, goal.blocks[0]))


def _reach_around(state: State, episode: Episode, goal: Goal) -> Advice:
    """Along the wall to one end, past it, and from behind to the block; the other end, if the hand is past that."""
    assert episode.wall is not None
    (x, y, z), (wx, wy) = state.hand, episode.wall
    block, name = state.blocks[goal.blocks[0]], _name(episode, goal.blocks[0])
    side = SIDES[goal.word]
    if -side * (x - wx) > BEYOND_END:
        side = -side
    past_end = side * (x - wx) > BEYOND_END
    if y > wy + (0.03 if past_end else 0.0):
        distance = math.hypot(block[0] - x, block[1] - y)
        low = block[2] - BLOCK_HALF + TOUCH
        words = f"move above {name}" if distance > 0.02 else "lower" if z > low + 0.006 else "hold still"
        return _towards(state.hand, block[0], block[1], _funnel(distance, low, AROUND), -1.0), words
    # The corners of the way, further off than where it turns: the hand does not slow down there.
    corner = wx + side * (BEYOND_END + 0.03)
    if past_end:
        return _towards(state.hand, corner, wy + 0.07, AROUND, -1.0), "go past the wall"
    return _towards(state.hand, corner, wy - 0.055, AROUND, -1.0), "go along the wall"


def _push_task(state: State, episode: Episode, goal: Goal) -> Advice:
    return _push(state, state.blocks[goal.blocks[0]], DIRECTIONS[goal.word], _name(episode, goal.blocks[0]))


def _lift_task(state: State, episode: Episode, goal: Goal) -> Advice:
    return _lift(state, state.blocks[goal.blocks[0]], _name(episode, goal.blocks[0]))


def _place_in_zone(state: State, episode: Episode, goal: Goal) -> Advice:
    a = goal.blocks[0]
    where = f"the {episode.zone_colours[goal.zone]} zone"
    return _place(state, state.blocks[a], episode.zones[goal.zone], 0.0, _name(episode, a), where, 0.035)


def _push_to_zone(state: State, episode: Episode, goal: Goal) -> Advice:
    a, zone = goal.blocks[0], episode.zones[goal.zone]
    block = state.blocks[a]
    dx, dy = zone[0] - block[0], zone[1] - block[1]
    distance = math.hypot(dx, dy)
    if max(abs(dx), abs(dy)) < 0.025:
        return _towards(state.hand, *state.hand, 1.0), "hold still"
    return _push(
        state,
        block,
        (dx / distance, dy / distance),
        _name(episode, a),
        0.6,
        PUSH_SPEED * _clip(distance / 0.05, 0.4),
    )


def _place_beside(state: State, episode: Episode, goal: Goal) -> Advice:
    a, b = goal.blocks
    ux, uy = DIRECTIONS[goal.word]
    spot = (state.blocks[b][0] + ux * BESIDE, state.blocks[b][1] + uy * BESIDE)
    where = f"the {goal.word} of {_name(episode, b)}"
    return _place(state, state.blocks[a], spot, 0.0, _name(episode, a), where, 0.025)


def _stack(state: State, episode: Episode, goal: Goal) -> Advice:
    a, b = goal.blocks
    base = state.blocks[b]
    return _place(state, state.blocks[a], base[:2], base[2] + BLOCK_HALF, _name(episode, a), _name(episode, b), 0.02)


def _unstack(state: State, episode: Episode, goal: Goal) -> Advice:
    a, b = goal.blocks
    base = state.blocks[b]
    # Towards the middle of the table, unless the other tower is there.
    tower = state.blocks[next(i for i in range(N_BLOCKS // 2) if i != b)]
    side = -1.0 if base[0] > 0 else 1.0
    if abs(tower[1] - base[1]) < 0.075 and 0 < side * (tower[0] - base[0]) < 0.21:
        side = -side
    return _place(state, state.blocks[a], (base[0] + side * 0.105, base[1]), 0.0, _name(episode, a), "the table", 0.035)


def _move_between(state: State, episode: Episode, goal: Goal) -> Advice:
    a, b, c = goal.blocks
    (bx, by, _), (cx, cy, _) = state.blocks[b], state.blocks[c]
    return _place(state, state.blocks[a], ((bx + cx) / 2, (by + cy) / 2), 0.0, _name(episode, a), "the middle", 0.025)


EXPERTS = {
    "reach": _reach_task,
    "push-left": _push_task,
    "push-right": _push_task,
    "push-away": _push_task,
    "push-near": _push_task,
    "lift": _lift_task,
    "place-in-zone": _place_in_zone,
    "push-to-zone": _push_to_zone,
    "place-left-of": _place_beside,
    "place-right-of": _place_beside,
    "stack": _stack,
    "unstack": _unstack,
    "move-between": _move_between,
    "reach-extreme": _reach_task,
    "lift-extreme": _lift_task,
    "reach-around": _reach_around,
}
"""Task name -> expert(state, episode, goal) -> ((dx, dy, dz, gripper), what it is doing)."""
