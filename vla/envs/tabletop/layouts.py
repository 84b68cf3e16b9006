# SPDX-License-Identifier: Apache-2.0
"""Where blocks and zones lie at the start: rejection sampling against what makes a task possible.

A layout must suit every block as the one that is named (or several of them, where every one would be too much
to ask), and the named one is drawn afterwards: the arrangement alone must not give away what the sentence
says.
"""

import math
from collections.abc import Callable

import numpy as np

from vla.envs.tabletop.scene import BLOCK_HALF, N_BLOCKS, N_ZONES, REGION, WALL_HALF, WORKSPACE, ZONE_HALF

Point = tuple[float, float]
Check = Callable[[list[Point], list[Point]], bool]

MIN_SEPARATION = 0.10
"""Smallest distance between the centres of two blocks, m: an open hand fits around any of them."""
MIN_HAND_DISTANCE = 0.07
"""The hand never starts above a block, m: no task is solved before it begins."""
_CANDIDATES = 128
RING = (0.205, 0.235)
"""Held-out positions: max(|x|, |y|) between these, m. Outside of REGION, so training places nothing there, and still in
the workspace and in the front camera's picture."""


def sample_layout(
    rng: np.random.Generator, check: Check, with_zones: bool, n_blocks: int = N_BLOCKS, held_out: bool = False
) -> tuple[list[Point], list[Point]]:
    """Draw block centres (and zone centres, or none), m, until `check(blocks, zones)` holds.

    All within REGION, or all in the RING around it with `held_out`.
    """
    n = n_blocks + (N_ZONES if with_zones else 0)
    upper = np.triu_indices(n, k=1)
    # What may not come closer than this: blocks to blocks, zones to blocks (with a margin), zones to zones.
    least = np.where(
        upper[1] < n_blocks,
        MIN_SEPARATION,
        np.where(upper[0] < n_blocks, ZONE_HALF + BLOCK_HALF + 0.03, 0.15),
    )
    for _ in range(1000):
        points = _ring(rng, n) if held_out else rng.uniform(-REGION, REGION, size=(_CANDIDATES, n, 2))
        gaps = np.linalg.norm(points[:, upper[0]] - points[:, upper[1]], axis=-1)
        for index in np.flatnonzero((gaps >= least).all(axis=1)):
            flat = [(float(x), float(y)) for x, y in points[index]]
            blocks, zones = flat[:n_blocks], flat[n_blocks:]
            if check(blocks, zones):
                return blocks, zones
    raise AssertionError("no feasible layout: the task's own check asks for too much")


def _ring(rng: np.random.Generator, n: int) -> np.ndarray:
    """Candidates in the ring, (_CANDIDATES, n, 2): along one of its four sides, and how far out."""
    along, out = rng.uniform(-RING[1], RING[1], (_CANDIDATES, n)), rng.uniform(*RING, (_CANDIDATES, n))
    side = rng.integers(4, size=(_CANDIDATES, n))
    far = np.where(side < 2, out, -out)
    return np.where((side % 2 == 0)[..., None], np.stack([along, far], -1), np.stack([far, along], -1))


def sample_hand(rng: np.random.Generator, blocks: list[Point]) -> tuple[float, float, float]:
    """Draw the hand's start, m: anywhere over the table, higher than the blocks, above none of them."""
    while True:
        x, y = (float(v) for v in rng.uniform(-0.24, 0.24, size=2))
        if all(math.hypot(x - bx, y - by) >= MIN_HAND_DISTANCE for bx, by in blocks):
            return x, y, float(rng.uniform(0.07, 0.20))


WALL_DISTANCE = 0.08
"""The wall stands at least this far from every block and from the hand's start, m: nothing is hidden behind it."""


def sample_wall(rng: np.random.Generator, blocks: list[Point]) -> tuple[Point, tuple[float, float, float]]:
    """Draw the wall's middle and the hand's start, m: the wall is on the straight way to every block.

    So the wall does not give away which block is named. The hand is on the near side, the blocks are on the far one.
    """
    nearest = min(y for _, y in blocks)
    while True:
        x, y = float(rng.uniform(-0.04, 0.04)), float(rng.uniform(-0.13, nearest - WALL_DISTANCE))
        hand = (x + float(rng.uniform(-0.04, 0.04)), float(rng.uniform(-0.25, y - WALL_DISTANCE)))
        if all(abs(_crossing(hand, block, y) - x) < WALL_HALF[0] - 0.015 for block in blocks):
            return (x, y), (*hand, float(rng.uniform(0.07, 0.20)))


def _crossing(start: Point, end: Point, y: float) -> float:
    """Where the straight line from `start` to `end` is at this y, x in m."""
    return start[0] + (end[0] - start[0]) * (y - start[1]) / (end[1] - start[1])


def a_wall_fits_before_all(blocks: list[Point], zones: list[Point]) -> bool:
    """There is room for a wall, and for the hand before it, such that every straight way to a block crosses it.

    Looked at is one pair of places out of those that `sample_wall` may draw, with a margin.
    """
    hand, wall_y = (0.0, -0.20), -0.11
    return all(
        y - wall_y > WALL_DISTANCE + 0.01 and abs(_crossing(hand, (x, y), wall_y)) < WALL_HALF[0] - 0.03
        for x, y in blocks
    )


def anything(blocks: list[Point], zones: list[Point]) -> bool:
    """No demand beyond the separations."""
    return True


def corridor_is_free(
    start: Point, direction: Point, length: float, others: list[Point], half_width: float = 0.066
) -> bool:
    """Can a block be pushed `length` m from `start` along a unit vector, the hand coming from behind?"""
    ux, uy = direction
    for x, y in others:
        dx, dy = x - start[0], y - start[1]
        along, across = dx * ux + dy * uy, abs(dx * uy - dy * ux)
        if across < half_width and -0.115 < along < length + 2 * BLOCK_HALF + 0.02:
            return False
    return True


def every_block_can_be_pushed(direction: Point) -> Check:
    """Every block has a free corridor along `direction`, and the hand can go behind it."""

    def check(blocks: list[Point], zones: list[Point]) -> bool:
        # Within REGION the hand always can.
        reach = WORKSPACE[0][1] - 0.01
        behind = [(x - 0.056 * direction[0], y - 0.056 * direction[1]) for x, y in blocks]
        return all(max(abs(x), abs(y)) < reach for x, y in behind) and all(
            corridor_is_free(b, direction, 0.10, blocks[:i] + blocks[i + 1 :]) for i, b in enumerate(blocks)
        )

    return check


def spot_is_free(spot: Point, others: list[Point]) -> bool:
    """Can an open hand set a block down at `spot` without touching `others`?"""
    inside = abs(spot[0]) < WORKSPACE[0][1] - 0.02 and abs(spot[1]) < WORKSPACE[1][1] - 0.02
    return inside and all(abs(x - spot[0]) > 0.088 or abs(y - spot[1]) > 0.068 for x, y in others)


def every_block_has_room(offset: Point) -> Check:
    """Next to every block, at `offset` m from it, another block can be set down."""

    def check(blocks: list[Point], zones: list[Point]) -> bool:
        return all(spot_is_free((b[0] + offset[0], b[1] + offset[1]), blocks) for b in blocks)

    return check


EXTREMES: dict[str, Point] = {
    "leftmost": (-1, 0),
    "rightmost": (1, 0),
    "nearest": (0, -1),
    "farthest": (0, 1),
}
"""Relational referents: the block farthest along this direction."""


def extreme_block(relation: str, blocks: list[Point]) -> int:
    """Index of the leftmost / rightmost / nearest / farthest block."""
    ux, uy = EXTREMES[relation]
    return max(range(len(blocks)), key=lambda i: blocks[i][0] * ux + blocks[i][1] * uy)


def extremes_are_clear(blocks: list[Point], zones: list[Point]) -> bool:
    """Every relation singles out its block by 3.5 cm, so that a person would not hesitate."""
    for ux, uy in EXTREMES.values():
        order = sorted((x * ux + y * uy for x, y in blocks), reverse=True)
        if order[0] - order[1] < 0.035:
            return False
    return True


def pushable_pairs(blocks: list[Point], zones: list[Point]) -> list[tuple[int, int]]:
    """All (block, zone) where the block can be pushed straight into the zone."""
    pairs = []
    for i, block in enumerate(blocks):
        others = blocks[:i] + blocks[i + 1 :]
        for j, zone in enumerate(zones):
            dx, dy = zone[0] - block[0], zone[1] - block[1]
            length = math.hypot(dx, dy)
            # Within 17 degrees of an axis: a push that meets a face squarely hardly turns the block.
            if min(abs(dx), abs(dy)) > 0.3 * max(abs(dx), abs(dy)):
                continue
            # The hand starts behind the block; that place has to be on the table as well.
            behind = (block[0] - 0.065 * dx / length, block[1] - 0.065 * dy / length)
            if max(abs(behind[0]), abs(behind[1])) < 0.26 and corridor_is_free(
                block, (dx / length, dy / length), length, others, half_width=0.08
            ):
                pairs.append((i, j))
    return pairs


def enough_pushable_pairs(blocks: list[Point], zones: list[Point]) -> bool:
    """At least three different blocks, with both zones, can be the subject of the sentence."""
    pairs = pushable_pairs(blocks, zones)
    return len({i for i, _ in pairs}) >= 3 and len({j for _, j in pairs}) == N_ZONES


def between_triples(blocks: list[Point]) -> list[tuple[int, int, int]]:
    """All (a, b, c), b < c, where there is room for a in the middle between b and c."""
    triples = []
    for b in range(len(blocks)):
        for c in range(b + 1, len(blocks)):
            gap = math.dist(blocks[b], blocks[c])
            spot = ((blocks[b][0] + blocks[c][0]) / 2, (blocks[b][1] + blocks[c][1]) / 2)
            if not 0.16 < gap < 0.34:
                continue
            # The carried block itself may not lie there either: it would be there already.
            if spot_is_free(spot, blocks):
                triples += [(a, b, c) for a in range(len(blocks)) if a not in (b, c)]
    return triples


def enough_triples(blocks: list[Point], zones: list[Point]) -> bool:
    """Every block can be the one that is carried."""
    return len({a for a, _, _ in between_triples(blocks)}) == len(blocks)
