# SPDX-License-Identifier: Apache-2.0
"""The tasks: what is said, which layouts allow it, and when it is done.

A task is a template. `sample_episode(task, seed)` fills it in: it is a pure function, and its result is
everything there is to know about an episode before the first step. Success reads the simulator's state and
nothing else.
"""

import difflib
import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from vla.envs.tabletop import layouts
from vla.envs.tabletop.scene import BLOCK_HALF, COLOURS, N_BLOCKS, N_ZONES, ZONE_HALF

Point3 = tuple[float, float, float]

OPEN = 0.062
"""A hand open wider than this holds nothing (a block is 0.052 wide), m."""
BESIDE = 0.09
"""Distance from centre to centre at which a block is set down beside another, m."""
SIDES: dict[str, float] = {"left": -1.0, "right": 1.0}
"""Ways around the wall: the sign of x of the end that the hand goes round."""
DIRECTIONS: dict[str, layouts.Point] = {"left": (-1, 0), "right": (1, 0), "away": (0, 1), "near": (0, -1)}


class State(NamedTuple):
    """What experts and success see of the simulator. Positions in m, table frame."""

    hand: Point3
    opening: float
    blocks: tuple[Point3, ...]


class Goal(NamedTuple):
    """What a sentence refers to: block slots in the order they are named, a zone slot, a direction.

    Of a task that can be done in two ways, `word` is the way that the expert takes ("left" or "right"), which is not
    said, cannot be seen and does not matter for success.
    """

    blocks: tuple[int, ...]
    zone: int = -1
    word: str = ""


@dataclass(frozen=True)
class Episode:
    """Everything about an episode before its first step: a pure function of (task, seed)."""

    task: str
    seed: int
    goal: Goal
    instruction: str
    alternative_goal: Goal
    alternative: str
    colours: tuple[str, ...]
    zone_colours: tuple[str, ...]
    zones: tuple[layouts.Point, ...]
    yaws: tuple[float, ...]
    start: State
    wall: layouts.Point | None = None
    """The middle of the wall, where the task has one."""


@dataclass(frozen=True)
class Template:
    """One task. `goals(blocks, zones)` lists what the sentence may refer to; one is drawn uniformly."""

    name: str
    tier: int
    description: str
    sentences: tuple[str, ...]
    max_steps: int
    goals: Callable[[list[layouts.Point], list[layouts.Point]], list[Goal]]
    success: Callable[[State, Episode, Goal], bool]
    check: layouts.Check = layouts.anything
    with_zones: bool = False
    hold: int = 3
    stacked: bool = False
    walled: bool = False
    """A wall stands between the hand and the blocks; who crosses its line, in whatever height, has failed."""


# ---- what a sentence may refer to --------------------------------------------------------------------------


def _one(blocks: list[layouts.Point], zones: list[layouts.Point]) -> list[Goal]:
    return [Goal((i,)) for i in range(N_BLOCKS)]


def _one_along(word: str) -> Callable[[list[layouts.Point], list[layouts.Point]], list[Goal]]:
    return lambda blocks, zones: [Goal((i,), word=word) for i in range(N_BLOCKS)]


def _one_around(blocks: list[layouts.Point], zones: list[layouts.Point]) -> list[Goal]:
    return [Goal((i,), word=side) for i in range(N_BLOCKS) for side in SIDES]


def _two(blocks: list[layouts.Point], zones: list[layouts.Point]) -> list[Goal]:
    return [Goal((a, b)) for a in range(N_BLOCKS) for b in range(N_BLOCKS) if a != b]


def _two_along(word: str) -> Callable[[list[layouts.Point], list[layouts.Point]], list[Goal]]:
    return lambda blocks, zones: [goal._replace(word=word) for goal in _two(blocks, zones)]


def _block_and_zone(blocks: list[layouts.Point], zones: list[layouts.Point]) -> list[Goal]:
    return [Goal((i,), zone=j) for i in range(N_BLOCKS) for j in range(N_ZONES)]


def _pushable(blocks: list[layouts.Point], zones: list[layouts.Point]) -> list[Goal]:
    return [Goal((i,), zone=j) for i, j in layouts.pushable_pairs(blocks, zones)]


def _extreme(blocks: list[layouts.Point], zones: list[layouts.Point]) -> list[Goal]:
    return [Goal((layouts.extreme_block(word, blocks),), word=word) for word in layouts.EXTREMES]


def _between(blocks: list[layouts.Point], zones: list[layouts.Point]) -> list[Goal]:
    return [Goal(triple) for triple in layouts.between_triples(blocks)]


def _stacks(blocks: list[layouts.Point], zones: list[layouts.Point]) -> list[Goal]:
    return [Goal((2, 0)), Goal((3, 1))]  # slots 2 and 3 start on top of slots 0 and 1


# ---- when it is done ---------------------------------------------------------------------------------------


def _moved(state: State, episode: Episode, block: int) -> float:
    return math.dist(state.blocks[block], episode.start.blocks[block])


def _others_still(state: State, episode: Episode, block: int) -> bool:
    return all(_moved(state, episode, i) < 0.03 for i in range(N_BLOCKS) if i != block)


def _on_table(block: Point3) -> bool:
    return block[2] < BLOCK_HALF + 0.012


def _reached(state: State, episode: Episode, goal: Goal) -> bool:
    x, y, z = state.hand
    bx, by, bz = state.blocks[goal.blocks[0]]
    return math.hypot(x - bx, y - by) < 0.025 and z < bz + 0.056


def _pushed(state: State, episode: Episode, goal: Goal) -> bool:
    block = goal.blocks[0]
    (x, y, _), (sx, sy, _) = state.blocks[block], episode.start.blocks[block]
    ux, uy = DIRECTIONS[goal.word]
    along, across = (x - sx) * ux + (y - sy) * uy, abs((x - sx) * uy - (y - sy) * ux)
    return along >= 0.05 and across < 0.035 and _on_table(state.blocks[block]) and _others_still(state, episode, block)


def _lifted(state: State, episode: Episode, goal: Goal) -> bool:
    block = state.blocks[goal.blocks[0]]
    return block[2] > BLOCK_HALF + 0.06 and math.dist(block, state.hand) < 0.03


def _in_zone(state: State, episode: Episode, goal: Goal) -> bool:
    block, zone = state.blocks[goal.blocks[0]], episode.zones[goal.zone]
    inside = max(abs(block[0] - zone[0]), abs(block[1] - zone[1])) < ZONE_HALF - 0.01
    return inside and _on_table(block) and _others_still(state, episode, goal.blocks[0])


def _placed_in_zone(state: State, episode: Episode, goal: Goal) -> bool:
    return state.opening > OPEN and _in_zone(state, episode, goal)


def _placed_beside(state: State, episode: Episode, goal: Goal) -> bool:
    a, b = (state.blocks[i] for i in goal.blocks)
    ux, uy = DIRECTIONS[goal.word]
    dx, dy = a[0] - b[0], a[1] - b[1]
    along, across = dx * ux + dy * uy, abs(dx * uy - dy * ux)
    near = 0.055 < along < 0.125 and across < 0.03
    return near and state.opening > OPEN and _on_table(a) and _others_still(state, episode, goal.blocks[0])


def _stacked(state: State, episode: Episode, goal: Goal) -> bool:
    a, b = (state.blocks[i] for i in goal.blocks)
    on = abs(a[2] - b[2] - 2 * BLOCK_HALF) < 0.01 and math.hypot(a[0] - b[0], a[1] - b[1]) < 0.024
    return on and state.opening > OPEN and _on_table(b)


def _unstacked(state: State, episode: Episode, goal: Goal) -> bool:
    a, b = (state.blocks[i] for i in goal.blocks)
    apart = math.hypot(a[0] - b[0], a[1] - b[1]) > 0.06
    still = all(_moved(state, episode, i) < 0.03 for i in range(N_BLOCKS) if i != goal.blocks[0])
    return apart and still and state.opening > OPEN and _on_table(a)


def _placed_between(state: State, episode: Episode, goal: Goal) -> bool:
    a, b, c = (state.blocks[i] for i in goal.blocks)
    dx, dy = c[0] - b[0], c[1] - b[1]
    gap = math.hypot(dx, dy)
    along = ((a[0] - b[0]) * dx + (a[1] - b[1]) * dy) / gap**2
    across = abs((a[0] - b[0]) * dy - (a[1] - b[1]) * dx) / gap
    middle = 0.33 < along < 0.67 and across < 0.03
    return middle and state.opening > OPEN and _on_table(a) and _others_still(state, episode, goal.blocks[0])


# ---- the table ---------------------------------------------------------------------------------------------


def _push(word: str, description: str, sentences: tuple[str, ...]) -> Template:
    return Template(
        f"push-{word}", 1, description, sentences, 36, _one_along(word), _pushed,
        check=layouts.every_block_can_be_pushed(DIRECTIONS[word]), hold=2,
    )  # fmt: skip


def _beside(word: str) -> Template:
    offset = (DIRECTIONS[word][0] * BESIDE, DIRECTIONS[word][1] * BESIDE)
    return Template(
        f"place-{word}-of", 2, f"set the first block down on the table, to the {word} of the second",
        (f"put the {{a}} block {word} of the {{b}} block",
         f"place the {{a}} one to the {word} of the {{b}} one",
         f"bring the {{a}} block to the {word} of the {{b}} block"),
        60, _two_along(word), _placed_beside, check=layouts.every_block_has_room(offset),
    )  # fmt: skip


_TEMPLATES = (
    Template(
        "reach", 1, "bring the open hand down over the named block and hold it there",
        ("reach the {a} block", "touch the {a} block", "go to the {a} one", "move to the {a} block"),
        25, _one, _reached,
    ),
    _push("left", "push the named block 5 cm to the left, moving no other",
          ("push the {a} block left", "push the {a} one to the left", "slide the {a} block to the left",
           "move the {a} block left")),
    _push("right", "push the named block 5 cm to the right, moving no other",
          ("push the {a} block right", "push the {a} one to the right", "slide the {a} block to the right",
           "move the {a} block right")),
    _push("away", "push the named block 5 cm away from the camera, moving no other",
          ("push the {a} block away", "push the {a} one forward", "slide the {a} block away from me",
           "move the {a} block away")),
    _push("near", "push the named block 5 cm towards the camera, moving no other",
          ("push the {a} block closer", "push the {a} one toward me", "slide the {a} block toward me",
           "bring the {a} block closer")),
    Template(
        "lift", 2, "grasp the named block and hold it 6 cm above the table",
        ("lift the {a} block", "pick up the {a} block", "raise the {a} one",
         "grab the {a} block and lift it"),
        40, _one, _lifted,
    ),
    Template(
        "place-in-zone", 2, "carry the named block into the named zone, let go",
        ("put the {a} block in the {z} zone", "place the {a} one on the {z} square",
         "bring the {a} block to the {z} zone"),
        60, _block_and_zone, _placed_in_zone, with_zones=True,
    ),
    Template(
        "push-to-zone", 2, "push the named block along the table into the named zone",
        ("push the {a} block to the {z} zone", "slide the {a} block into the {z} square",
         "push the {a} one into the {z} zone"),
        64, _pushable, _in_zone, check=layouts.enough_pushable_pairs, with_zones=True,
    ),
    _beside("left"),
    _beside("right"),
    Template(
        "stack", 3, "set the first block down on top of the second",
        ("stack the {a} block on the {b} block", "put the {a} block on top of the {b} one",
         "place the {a} block onto the {b} block"),
        64, _two, _stacked,
    ),
    Template(
        "unstack", 3, "two towers of two: take the named block off and set it down on the table",
        ("take the {a} block off the {b} block", "unstack the {a} block from the {b} one",
         "put the {a} block down on the table"),
        56, _stacks, _unstacked, stacked=True,
    ),
    Template(
        "move-between", 3, "set the first block down in the middle between the other two",
        ("put the {a} block between the {b} and the {c} block",
         "move the {a} one between the {b} and {c} blocks",
         "place the {a} block in the middle of the {b} and the {c} one"),
        60, _between, _placed_between, check=layouts.enough_triples,
    ),
    Template(
        "reach-extreme", 3, "reach the leftmost, rightmost, nearest or farthest block, no colour being named",
        ("reach the {w} block", "touch the {w} block", "go to the {w} one", "move to the {w} block"),
        25, _extreme, _reached, check=layouts.extremes_are_clear,
    ),
    Template(
        "lift-extreme", 3, "lift the leftmost, rightmost, nearest or farthest block, no colour being named",
        ("lift the {w} block", "pick up the {w} block", "raise the {w} one",
         "grab the {w} block and lift it"),
        40, _extreme, _lifted, check=layouts.extremes_are_clear,
    ),
    Template(
        "reach-around", 0, "go around the wall, by either end, and hold the open hand over the named block",
        ("go around the wall to the {a} block", "reach the {a} block around the wall",
         "move around the wall to the {a} one", "touch the {a} block behind the wall"),
        50, _one_around, _reached, check=layouts.a_wall_fits_before_all, walled=True,
    ),
)  # fmt: skip

TASKS: dict[str, Template] = {template.name: template for template in _TEMPLATES}


def _tier(tier: int) -> tuple[str, ...]:
    return tuple(template.name for template in _TEMPLATES if template.tier == tier)


TIERS: dict[str, tuple[str, ...]] = {f"tier{tier}": _tier(tier) for tier in (1, 2, 3)}
"""Difficulty -> task names; tier 0, what has several ways, is none of these."""

SUITES: dict[str, tuple[str, ...]] = {
    "demo": TIERS["tier1"],
    **TIERS,
    "all": tuple(task for tasks in TIERS.values() for task in tasks),
    "routes": _tier(0),
}
"""Suite name -> task names. "routes": what an expert does in either of two ways, drawn by the seed."""


def get_template(task: str) -> Template:
    """Return the template of a task. ValueError naming the nearest one if there is none of that name."""
    if task not in TASKS:
        near = difflib.get_close_matches(str(task), TASKS, n=1, cutoff=0.0)[0]
        raise ValueError(f"unknown task {task!r}; did you mean {near!r}? The tabletop tasks are: {', '.join(TASKS)}")
    return TASKS[task]


def task_table() -> list[dict[str, object]]:
    """One row a task of the tiers for documentation: task, tier, description, max_steps, examples."""
    words = {"a": "red", "b": "blue", "c": "green", "z": "yellow", "w": "leftmost"}
    return [
        {
            "task": t.name,
            "tier": t.tier,
            "description": t.description,
            "max_steps": t.max_steps,
            "examples": [sentence.format(**words) for sentence in t.sentences],
        }
        for t in _TEMPLATES
        if t.tier
    ]


def vocabulary() -> list[str]:
    """Every word an instruction can contain, sorted."""
    words = set(COLOURS) | set(layouts.EXTREMES)
    for template in _TEMPLATES:
        for sentence in template.sentences:
            words.update(word for word in sentence.split() if "{" not in word)
    return sorted(words)


def say(sentence: str, goal: Goal, colours: tuple[str, ...], zone_colours: tuple[str, ...]) -> str:
    """A sentence of a template, with the words for what `goal` refers to."""
    words = {key: colours[block] for key, block in zip("abc", goal.blocks, strict=False)}
    return sentence.format(**words, z=zone_colours[goal.zone] if goal.zone >= 0 else "", w=goal.word)


def _places(
    rng: np.random.Generator, template: Template, held_out: bool
) -> tuple[list[layouts.Point], list[layouts.Point], Point3, layouts.Point | None]:
    """Where blocks, zones, hand and wall (if any) start, m."""
    n = N_BLOCKS // 2 if template.stacked else N_BLOCKS
    blocks, zones = layouts.sample_layout(rng, template.check, template.with_zones, n, held_out)
    blocks = blocks * (N_BLOCKS // n)
    if template.walled:
        wall, hand = layouts.sample_wall(rng, blocks)
        return blocks, zones, hand, wall
    return blocks, zones, layouts.sample_hand(rng, blocks), None


def sample_episode(task: str, seed: int, held_out: bool = False) -> Episode:
    """Return the episode (task, seed) stands for: a pure function. ValueError for an unknown task.

    With `held_out` blocks and zones lie where they never do without (`layouts.RING`); colours and the way of saying it
    stay, and so does the referent, unless the places decide what can be one.
    """
    template = get_template(task)
    rng = np.random.default_rng([seed, zlib.crc32(task.encode())])
    order = [list(COLOURS)[i] for i in rng.permutation(len(COLOURS))]
    # Zones take the two colours no block has: every colour word has exactly one referent, and all six are
    # always in the picture.
    colours, zone_colours = tuple(order[:N_BLOCKS]), tuple(order[N_BLOCKS : N_BLOCKS + N_ZONES])
    blocks, zones, hand, wall = _places(rng, template, held_out=False)
    if held_out:  # from a generator of their own: what is drawn after them stays the same
        away = np.random.default_rng([seed, zlib.crc32(task.encode()), 1])
        blocks, zones, hand, wall = _places(away, template, held_out=True)
    yaws = tuple(float(yaw) for yaw in rng.uniform(-0.1, 0.1, size=N_BLOCKS))
    goals = template.goals(blocks, zones)
    goal = goals[rng.integers(len(goals))]
    # Another referent for the first-named block, everything else the same where that is possible.
    others = [other for other in goals if other.blocks[0] != goal.blocks[0]]
    same = [other for other in others if (other.blocks[1:], other.zone) == (goal.blocks[1:], goal.zone)] or others
    alternative = same[rng.integers(len(same))]
    sentence = template.sentences[rng.integers(len(template.sentences))]
    heights = [BLOCK_HALF * (3 if template.stacked and i >= N_BLOCKS // 2 else 1) for i in range(N_BLOCKS)]
    return Episode(
        task=task,
        seed=seed,
        goal=goal,
        instruction=say(sentence, goal, colours, zone_colours),
        alternative_goal=alternative,
        alternative=say(sentence, alternative, colours, zone_colours),
        colours=colours,
        zone_colours=zone_colours,
        zones=tuple(zones),
        yaws=yaws,
        start=State(hand, 0.0, tuple((x, y, z) for (x, y), z in zip(blocks, heights, strict=True))),
        wall=wall,
    )
