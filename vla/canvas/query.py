# SPDX-License-Identifier: Apache-2.0
"""Questions to one joint distribution: of every segment, what is given, what is partly given, and what is asked.

    policy        actions      | pictures, instruction
    plan          plan         | pictures, instruction
    world_model   future image | pictures, actions
    inverse       actions      | pictures, future image
    goal_policy   actions      | pictures, goal image
    label         instruction  | pictures, actions
    infill        actions      | pictures, instruction, some of the actions
    joint         plan, future image, actions | pictures, instruction

What is given joins the prefix, which is encoded once; what is asked is a masked block behind it; what is partly given
is a block of which some tokens or leading digits are known. A query is at once what a user asks, and one of the
training problems that a demonstration yields (`vla/train/queries.py`).
"""

from dataclasses import dataclass, field, fields, replace
from enum import Enum
from typing import Any, Final

import numpy as np

from vla.canvas.layout import Segment


class Part(Enum):
    """What is known of a segment."""

    ABSENT = "absent"
    GIVEN = "given"
    PARTLY = "partly given"
    ASKED = "asked"


class _Ask:
    def __repr__(self) -> str:
        return "ASK"


ASK: Final = _Ask()
"""Stands for the value of a segment that is asked for."""


@dataclass(frozen=True)
class Partly:
    """Actions of which some are known.

    `values`: float (H, A), the dataset's units; only what is known is read. `known`: bool (H, A), or int (H, A), how
    many leading digits are known: 0 nothing, 1 "about there" (one of 16 ranges), 2 all.
    """

    values: np.ndarray
    known: np.ndarray

    def __post_init__(self) -> None:
        if np.shape(self.values) != np.shape(self.known) or np.ndim(self.values) != 2:
            raise ValueError(
                f"expected `values` and `known` of one shape (steps, dimensions), got {np.shape(self.values)} and "
                f"{np.shape(self.known)}"
            )


@dataclass(frozen=True)
class Query:
    """The shape of a question. The pictures and the robot's state are always given."""

    name: str
    instruction: Part = Part.GIVEN
    plan: Part = Part.ABSENT
    future_image: Part = Part.ABSENT
    goal_image: Part = Part.ABSENT
    actions: Part = Part.ABSENT

    def __post_init__(self) -> None:
        for name in ("instruction", "plan", "future_image"):
            if getattr(self, name) is Part.PARTLY:
                raise ValueError(f"only actions can be partly given, got {name}: give it, or ask for it")
        if self.goal_image in (Part.ASKED, Part.PARTLY):
            raise ValueError("a goal image is given or absent: ask for future_image to see what will come")
        if self.future_image is Part.GIVEN and self.goal_image is Part.GIVEN:
            raise ValueError("a future image (after this chunk) and a goal image (some time later): give one of them")
        if not self.asked:
            raise ValueError(f"the query '{self.name}' asks for nothing: set a segment to ASK")

    @property
    def asked(self) -> tuple[Segment, ...]:
        """The blocks, in the order of the sequence: what is asked, or partly given."""
        parts = {
            Segment.INSTRUCTION: self.instruction,
            Segment.PLAN: self.plan,
            Segment.FUTURE_IMAGE: self.future_image,
            Segment.ACTION: self.actions,
        }
        return tuple(segment for segment, part in parts.items() if part in (Part.ASKED, Part.PARTLY))


_NO_WORDS = Part.ABSENT
QUERIES: dict[str, Query] = {
    query.name: query
    for query in (
        Query("policy", actions=Part.ASKED),
        Query("plan", plan=Part.ASKED),
        Query("world_model", _NO_WORDS, actions=Part.GIVEN, future_image=Part.ASKED),
        Query("inverse", _NO_WORDS, future_image=Part.GIVEN, actions=Part.ASKED),
        Query("goal_policy", _NO_WORDS, goal_image=Part.GIVEN, actions=Part.ASKED),
        Query("label", instruction=Part.ASKED, actions=Part.GIVEN),
        Query("infill", actions=Part.PARTLY),
        Query("joint", plan=Part.ASKED, future_image=Part.ASKED, actions=Part.ASKED),
    )
}
"""The queries that have a name."""


@dataclass(frozen=True)
class Question:
    """One question, with its values. A segment is given (a value), asked (ASK) or absent (None)."""

    images: dict[str, np.ndarray]
    """A camera: uint8 (H, W, 3), RGB, what is seen now."""
    state: np.ndarray
    """float32 (S,), the dataset's units."""
    instruction: Any = None
    """str, or ASK."""
    plan: Any = None
    """str, or ASK; "" is the empty plan."""
    future_image: Any = None
    """What will be seen after this chunk: {camera: uint8 (H, W, 3)}, or ASK."""
    goal_image: dict[str, np.ndarray] | None = None
    """What is wanted, some time later: {camera: uint8 (H, W, 3)}."""
    actions: Any = None
    """float (H, A), the dataset's units; `Partly`; or ASK."""
    name: str = field(default="question", compare=False)

    @property
    def query(self) -> Query:
        """Its shape. ValueError for one that cannot be."""
        parts = {}
        for f in fields(Query):
            if f.name != "name":
                parts[f.name] = part_of(getattr(self, f.name))
        return Query(self.name, **parts)

    def but(self, **changes: Any) -> "Question":
        """The same question with other values."""
        return replace(self, **changes)


def part_of(value: Any) -> Part:
    """What a value of a question says of its segment."""
    if value is None:
        return Part.ABSENT
    if value is ASK:
        return Part.ASKED
    return Part.PARTLY if isinstance(value, Partly) else Part.GIVEN


# --- the queries by name, each a line on top of a question that says what is seen -----------------------------------
def policy(now: Question) -> Question:
    """Actions, given pictures and instruction."""
    return now.but(actions=ASK, name="policy")


def plan(now: Question) -> Question:
    """The plan, given pictures and instruction."""
    return now.but(plan=ASK, name="plan")


def world_model(now: Question, actions: np.ndarray) -> Question:
    """What will be seen after these actions, float (H, A)."""
    return now.but(instruction=None, actions=actions, future_image=ASK, name="world_model")


def inverse(now: Question, future_image: dict[str, np.ndarray]) -> Question:
    """The actions that lead from what is seen now to what is seen at the end of the chunk."""
    return now.but(instruction=None, future_image=future_image, actions=ASK, name="inverse")


def goal_policy(now: Question, goal_image: dict[str, np.ndarray]) -> Question:
    """Actions towards what is to be seen some time later."""
    return now.but(instruction=None, goal_image=goal_image, actions=ASK, name="goal_policy")


def label(now: Question, actions: np.ndarray) -> Question:
    """The instruction that these actions, float (H, A), follow: words for data that have none."""
    return now.but(instruction=ASK, actions=actions, name="label")


def infill(now: Question, values: np.ndarray, known: np.ndarray) -> Question:
    """Actions of which some are known: the first ones, a waypoint, the final pose (`Partly`)."""
    return now.but(actions=Partly(values, known), name="infill")


def joint(now: Question) -> Question:
    """Plan, future image and actions together."""
    return now.but(plan=ASK, future_image=ASK, actions=ASK, name="joint")
