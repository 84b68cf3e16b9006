# SPDX-License-Identifier: Apache-2.0
"""What may be different about an episode while its task stays the same: names, and what is drawn for (task, seed).

A policy that is good at the scenes of its training may lean on what never changed there: where the camera stands, how
the light falls, what lies about, how soon an action acts, where things start. Each perturbation changes one of these.
`draw` is a pure function and knows no simulator; `vla.envs.disturb` changes pictures, `vla.envs.delay` actions.
"""

import difflib
import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

Perturbation = Literal["camera-shift", "light", "distractors", "action-delay", "held-out-positions"]
PERTURBATIONS: tuple[Perturbation, ...] = get_args(Perturbation)
VISUAL: tuple[Perturbation, ...] = PERTURBATIONS[:3]
"""Those that change pictures and nothing else: states, physics and the expert's actions stay what they were."""

Vector = tuple[float, float, float]
Rectangle = tuple[float, float, float, float]
"""x from, x to, y from, y to, m."""
CLEARANCE = 0.04
"""Between the edges of a distractor and of what is in use, m."""
_TINTS: tuple[Vector, ...] = ((1.0, 0.82, 0.58), (0.60, 0.80, 1.0))
"""Lamp light and shade: red, green and blue keep at least half, so that colours can still be told apart."""
_COLOURS: tuple[Vector, ...] = (
    # None that the tabletop has a word for: a sentence keeps its one referent.
    (0.90, 0.90, 0.88),
    (0.07, 0.07, 0.08),
    (0.42, 0.25, 0.12),
    (0.96, 0.48, 0.04),
    (0.97, 0.62, 0.72),
    (0.45, 0.47, 0.22),
)


@dataclass(frozen=True)
class Light:
    """Every lamp shines along `direction` (unit vector, world frame); all light is multiplied by `colour`."""

    direction: Vector
    colour: Vector


@dataclass(frozen=True)
class Distractor:
    """A thing that stands on the table, is seen, and touches nothing."""

    shape: Literal["ellipsoid", "cylinder"]
    half: Vector
    """Half its extent along its own axes, m."""
    yaw: float
    colour: Vector
    foot: Vector
    """Where it stands, m."""


@dataclass(frozen=True)
class Disturbance:
    """What is different about the pictures of one episode; the default is nothing.

    `camera_move`: right, up, forward, m; `camera_turn`: a rotation vector about the same axes, rad.
    """

    camera_move: Vector = (0.0, 0.0, 0.0)
    camera_turn: Vector = (0.0, 0.0, 0.0)
    light: Light | None = None
    distractors: tuple[Distractor, ...] = ()


UNDISTURBED = Disturbance()


def check_perturbation(name: str | None, has: Sequence[str], where: str) -> str | None:
    """Return `name`. ValueError, with the nearest one, if none has that name, or if `where` does not have it."""
    if name is None or name in has:
        return name
    if name in PERTURBATIONS:
        hint = "; vla.envs.make_env puts the delay around an environment" if name == "action-delay" else ""
        raise ValueError(
            f"expected a perturbation that {where} has, out of {', '.join(has) or 'none'}, got {name!r}{hint}"
        )
    near = difflib.get_close_matches(str(name), PERTURBATIONS, n=1, cutoff=0.0)[0]
    raise ValueError(f"unknown perturbation {name!r}; did you mean {near!r}? There are: {', '.join(PERTURBATIONS)}")


@dataclass(frozen=True)
class Table:
    """Where things can stand at the start of an episode: on `top`, at `height`, off the rectangles `in_use`."""

    top: Rectangle
    height: float
    in_use: tuple[Rectangle, ...]


def draw(name: str | None, task: str, seed: int, table: Callable[[], Table]) -> Disturbance:
    """What `name` does to the pictures of the episode (task, seed); nothing if it is no visual perturbation.

    camera-shift: the camera moves 2 to 3 cm in any direction, turns 2 to 3 degrees away from where it looked, and rolls
    by up to 3 degrees; so do cameras on a hand, which see much more of it. light: lamps shine from any side, 25 to 50
    degrees above the table, with a warm or a cold tint, at 0.55 to 0.75 or at 1.2 to 1.5 of their strength.
    distractors: two to four small things, 4 to 6 cm across and up to 6 cm high, on the `table` (asked for only then),
    CLEARANCE away from what is in use and from each other.
    """
    rng = np.random.default_rng([seed, zlib.crc32(task.encode()), zlib.crc32(str(name).encode())])
    if name == "camera-shift":
        across = rng.normal(size=3)
        x, y, z = across / np.linalg.norm(across) * rng.uniform(0.02, 0.03)
        heading, angle, roll = rng.uniform(0, 2 * math.pi), math.radians(rng.uniform(2, 3)), rng.uniform(-1, 1)
        turn = (angle * math.cos(heading), angle * math.sin(heading), math.radians(3 * roll))
        return Disturbance(camera_move=(float(x), float(y), float(z)), camera_turn=turn)
    if name == "light":
        around, above = rng.uniform(0, 2 * math.pi), math.radians(rng.uniform(25, 50))
        direction = (math.cos(above) * math.cos(around), math.cos(above) * math.sin(around), -math.sin(above))
        tint = np.array(_TINTS[rng.integers(len(_TINTS))])
        strength = rng.uniform(0.55, 0.75) if rng.random() < 0.5 else rng.uniform(1.2, 1.5)
        red, green, blue = (float(c) for c in strength * (1 - rng.uniform(0.5, 1.0) * (1 - tint)))
        return Disturbance(light=Light(direction, (red, green, blue)))
    if name == "distractors":
        return Disturbance(distractors=_scatter(rng, table()))
    return UNDISTURBED


def _scatter(rng: np.random.Generator, table: Table) -> tuple[Distractor, ...]:
    taken, placed = list(table.in_use), []
    left, right, near, far = table.top
    colours = rng.permutation(len(_COLOURS))
    for number in range(rng.integers(2, 5)):
        a, b, c = (float(v) for v in rng.uniform((0.018, 0.018, 0.012), (0.032, 0.032, 0.025)))
        # A ball, an egg, a tin, a coin.
        half = ((a, a, a), (a, b, c), (a, a, c), (a, a, 0.004))[kind := rng.integers(4)]
        shape: Literal["ellipsoid", "cylinder"] = "ellipsoid" if kind < 2 else "cylinder"
        yaw, reach = float(rng.uniform(0, math.pi)), max(half[:2])
        for x, y in rng.uniform((left, near), (right, far), size=(2000, 2)).tolist():
            if all(_gap(x, y, one) >= reach + CLEARANCE for one in taken):
                placed.append(Distractor(shape, half, yaw, _COLOURS[colours[number]], (x, y, table.height)))
                taken.append((x - reach, x + reach, y - reach, y + reach))
                break
    return tuple(placed)


def _gap(x: float, y: float, rectangle: Rectangle) -> float:
    """Distance from a point to a rectangle, m; 0 inside."""
    left, right, near, far = rectangle
    return math.hypot(max(left - x, x - right, 0.0), max(near - y, y - far, 0.0))
