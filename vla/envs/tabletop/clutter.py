# SPDX-License-Identifier: Apache-2.0
"""Where things that do not belong to the task may lie: on the table, and not in the way of what is asked for."""

import math

from vla.envs.perturbation import Rectangle, Table
from vla.envs.tabletop.layouts import Point
from vla.envs.tabletop.scene import BLOCK_HALF, WALL_HALF, ZONE_HALF
from vla.envs.tabletop.tasks import BESIDE, DIRECTIONS, Episode, get_template

_TOP: Rectangle = (-0.25, 0.25, -0.22, 0.25)
"""What the front camera sees of the table's top, which is at height 0, m."""
_BLOCK = BLOCK_HALF + 0.005
"""Half of what a block covers, turned a little as they start, m."""
_RUN = 0.12
"""The hand that pushes starts within this distance behind a block, and a push without a zone ends within it, m."""


def table(episode: Episode) -> Table:
    """In use is what blocks, zones and a wall cover at the start, and where the named block and a hand behind it will
    pass."""
    covered = [_around([(x, y)], _BLOCK) for x, y, _ in episode.start.blocks]
    covered += [_around([zone], ZONE_HALF) for zone in episode.zones]
    if episode.wall is not None:
        (x, y), (length, depth, _) = episode.wall, WALL_HALF
        covered.append((x - length, x + length, y - depth, y + depth))
    return Table(_TOP, 0.0, (*covered, _around(_way(episode), _BLOCK)))


def _around(points: list[Point], half: float) -> Rectangle:
    xs, ys = zip(*points, strict=True)
    return min(xs) - half, max(xs) + half, min(ys) - half, max(ys) + half


def _way(episode: Episode) -> list[Point]:
    """Where the named block comes from and goes to, near the table; of what is only carried, where it is set down."""
    goal = episode.goal
    (x, y), *others = [episode.start.blocks[i][:2] for i in goal.blocks]
    if goal.zone >= 0:
        dx, dy = episode.zones[goal.zone][0] - x, episode.zones[goal.zone][1] - y
        back = _RUN / math.hypot(dx, dy)
        return [(x - back * dx, y - back * dy), (x + dx, y + dy)]
    if goal.word in DIRECTIONS and episode.wall is None:
        ux, uy = DIRECTIONS[goal.word]
        if others:
            return [(others[0][0] + BESIDE * ux, others[0][1] + BESIDE * uy)]
        return [(x - _RUN * ux, y - _RUN * uy), (x + _RUN * ux, y + _RUN * uy)]
    if len(others) == 2:
        return [((others[0][0] + others[1][0]) / 2, (others[0][1] + others[1][1]) / 2)]
    if get_template(episode.task).stacked:  # a tower is taken apart to its left or to its right
        return [(x - 0.105, y), (x + 0.105, y)]
    return [(x, y)]
