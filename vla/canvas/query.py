# SPDX-License-Identifier: Apache-2.0
"""A query is a mask pattern: of every segment, whether it is absent, given, partly given or asked.

    policy            actions      | pictures, state, instruction
    continuation      actions      | ..., and the first actions of the chunk, which are being executed
    infill            actions      | ..., and any of the actions
    plan              plan         | pictures, state, instruction
    plan_policy       actions      | pictures, state, plan
    waypoints         waypoints    | pictures, state, instruction
    waypoint_policy   actions      | pictures, state, waypoints
    world_model       future image | pictures, state, actions
    inverse           actions      | pictures, state, future image
    goal_policy       actions      | pictures, state, goal image
    label             instruction  | pictures, state, actions, goal image
    joint             plan, future image, actions | pictures, state, instruction

What is given is read once, what is asked is masked. Training draws queries from the weights in a recipe, the
checkpoint carries the list, and a query that was not trained is refused (`check_trained`).
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from typing import Any, Final

import numpy as np

from vla.canvas.segments import Segment


class Part(Enum):
    """What is known of a segment."""

    ABSENT = "absent"
    GIVEN = "given"
    PREFIX = "begun"
    """Of actions, the first steps."""
    PARTLY = "partly given"
    ASKED = "asked"


class _Ask:
    def __repr__(self) -> str:
        return "ASK"


ASK: Final = _Ask()
"""Stands for the value of a segment that is asked for."""


@dataclass(frozen=True)
class PartialActions:
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

    def levels(self, digits: int) -> np.ndarray:
        """int64 (H, A): how many leading digits are known. ValueError for numbers outside 0..digits."""
        known = np.asarray(self.known)
        levels = known.astype(np.int64) * (digits if known.dtype == bool else 1)
        if levels.size and not 0 <= levels.min() <= levels.max() <= digits:
            raise ValueError(f"expected `known` in 0..{digits} digits, got {levels.min()}..{levels.max()}")
        return levels

    @property
    def begins(self) -> bool:
        """Whether what is known is the first steps, whole (or nothing)."""
        known = np.asarray(self.known)
        if known.dtype != bool:
            return False
        steps = known.all(1)
        return bool((known.any(1) == steps).all() and (np.sort(steps)[::-1] == steps).all())

    @classmethod
    def prefix(cls, actions: np.ndarray, horizon: int) -> "PartialActions":
        """The first d actions, float (d, A), of a chunk. ValueError for more than `horizon`."""
        actions = np.asarray(actions, np.float32)
        if len(actions) > horizon:
            raise ValueError(f"at most {horizon} committed steps fit into a chunk, got {len(actions)}")
        values = np.zeros((horizon, actions.shape[-1]), np.float32)
        values[: len(actions)] = actions
        known = np.zeros(values.shape, bool)
        known[: len(actions)] = True
        return cls(values, known)


@dataclass(frozen=True)
class Query:
    """The shape of a question. The pictures and the robot's state are always given."""

    name: str
    instruction: Part = Part.GIVEN
    plan: Part = Part.ABSENT
    waypoints: Part = Part.ABSENT
    future_image: Part = Part.ABSENT
    goal_image: Part = Part.ABSENT
    actions: Part = Part.ABSENT

    def __post_init__(self) -> None:
        for name, part in self.parts().items():
            if part in (Part.PREFIX, Part.PARTLY) and name != "actions":
                raise ValueError(f"only actions can be partly given, got {name}: give it, or ask for it")
        if self.goal_image not in (Part.GIVEN, Part.ABSENT):
            raise ValueError("a goal image is given or absent: ask for future_image to see what will come")
        if not self.asked:
            raise ValueError(f"the query '{self.name}' asks for nothing: set a segment to ASK")

    def parts(self) -> dict[str, Part]:
        """{segment's name: what is known of it}."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "name"}

    @property
    def asked(self) -> tuple[Segment, ...]:
        """What is asked, or partly given, in the order of the sequence."""
        return tuple(s for s in WRITTEN if self.part(s) in (Part.ASKED, Part.PREFIX, Part.PARTLY))

    @property
    def given(self) -> tuple[Segment, ...]:
        """What is given beside pictures and state, in the order of the sequence."""
        return tuple(s for s in (*WRITTEN, Segment.GOAL_IMAGE) if self.part(s) is Part.GIVEN)

    def part(self, segment: Segment) -> Part:
        return getattr(self, FIELDS[segment])

    def describe(self) -> str:
        """ "actions | goal_image" """
        asked = [FIELDS[s] for s in self.asked]
        begun = {Part.PREFIX: ["the first actions"], Part.PARTLY: ["some actions"]}.get(self.actions, [])
        given = [FIELDS[s] for s in self.given] + begun
        return f"{', '.join(asked)} | {', '.join(given) or 'nothing but what is seen'}"


FIELDS = {
    Segment.INSTRUCTION: "instruction",
    Segment.GOAL_IMAGE: "goal_image",
    Segment.PLAN: "plan",
    Segment.WAYPOINTS: "waypoints",
    Segment.FUTURE_IMAGE: "future_image",
    Segment.ACTION: "actions",
}
"""What a segment is called in a query, a question and an answer."""
WRITTEN = (Segment.INSTRUCTION, Segment.PLAN, Segment.WAYPOINTS, Segment.FUTURE_IMAGE, Segment.ACTION)
"""Segments that can be asked for: each has an embedding of its states, and a head."""

_A, _G = Part.ASKED, Part.GIVEN
_NO_WORDS = Part.ABSENT
QUERIES: dict[str, Query] = {
    query.name: query
    for query in (
        Query("policy", actions=_A),
        Query("continuation", actions=Part.PREFIX),
        Query("infill", actions=Part.PARTLY),
        Query("plan", plan=_A),
        Query("plan_policy", _NO_WORDS, plan=_G, actions=_A),
        Query("waypoints", waypoints=_A),
        Query("waypoint_policy", _NO_WORDS, waypoints=_G, actions=_A),
        Query("world_model", _NO_WORDS, actions=_G, future_image=_A),
        Query("inverse", _NO_WORDS, future_image=_G, actions=_A),
        Query("goal_policy", _NO_WORDS, goal_image=_G, actions=_A),
        Query("label", instruction=_A, goal_image=_G, actions=_G),
        Query("joint", plan=_A, future_image=_A, actions=_A),
    )
}
"""The queries that have a name."""


def check_trained(query: Query, trained: Iterable[str], written: Iterable[Segment] = WRITTEN) -> None:
    """ValueError, naming the trained queries, unless `query` has the shape of one of them.

    `written`: the segments that the checkpoint knows; a query of others was trained without them. The first actions are
    also some of the actions: who was trained to fill in any may be given the first.
    """
    known = [without(QUERIES[name], written) for name in trained]
    shapes = [query]
    if query.actions is Part.PREFIX:
        shapes.append(replace(query, actions=Part.PARTLY))
    if not {_shape(q) for q in shapes} & {_shape(q) for q in known}:
        listed = "; ".join(f"{q.name} ({q.describe()})" for q in known)
        raise ValueError(
            f"this checkpoint was not trained to answer {query.describe()}. It was trained for: {listed}. Ask one of "
            "these, or train with a recipe that gives the query a weight (--set queries.NAME=0.1)"
        )


def without(query: Query, written: Iterable[Segment]) -> Query:
    """The query for a model that has only these segments: others are absent. ValueError if nothing is left to ask."""
    lacks = set(WRITTEN) - set(written) - {Segment.INSTRUCTION}
    parts = query.parts() | {FIELDS[s]: Part.ABSENT for s in lacks}
    return Query(query.name, **parts)


END = 1_000_000
"""Steps: past the end of any episode."""


def waypoint_steps(horizon: int) -> tuple[int, ...]:
    """The moments to come of which waypoints are, in steps: eight within the chunk (each step of a shorter one), then
    two and four chunks later, and the episode's end."""
    every = max(1, horizon // 8)
    return (*range(every, horizon + 1, every), 2 * horizon, 4 * horizon, END)


def _shape(query: Query) -> tuple[Part, ...]:
    return tuple(query.parts().values())


@dataclass(frozen=True)
class Question:
    """One question, with its values. A segment is given (a value), asked (ASK) or absent (None)."""

    images: dict[str, np.ndarray]
    """A camera: uint8 (H, W, 3), RGB, what is seen now; (M, H, W, 3), the last M moments, for a policy with history."""
    state: np.ndarray
    """float32 (S,), the dataset's units; (M, S) for a policy with history."""
    instruction: Any = None
    """str, or ASK."""
    plan: Any = None
    """str, or ASK; "" is the empty plan. Also int64 (N,): the words of a decided plan, as `SegmentOutput.tokens`."""
    waypoints: Any = None
    """float (K, S), robot states to come, the dataset's units; or ASK."""
    future_image: Any = None
    """What will be seen after this chunk: {camera: uint8 (H, W, 3)}, or ASK."""
    goal_image: dict[str, np.ndarray] | None = None
    """What is wanted, some time later: {camera: uint8 (H, W, 3)}."""
    actions: Any = None
    """float (H, A), the dataset's units; `PartialActions`; or ASK."""
    executed: np.ndarray | None = None
    """float (M - 1, A): the actions executed between the last M moments; a row of NaN where there was none."""
    name: str = field(default="question", compare=False)

    @property
    def query(self) -> Query:
        """Its shape. ValueError for one that cannot be."""
        return Query(self.name, **{name: part_of(getattr(self, name)) for name in FIELDS.values()})

    def but(self, **changes: Any) -> "Question":
        """The same question with other values."""
        return replace(self, **changes)


def part_of(value: Any) -> Part:
    """What a value of a question says of its segment."""
    if value is None:
        return Part.ABSENT
    if value is ASK:
        return Part.ASKED
    if isinstance(value, PartialActions):
        return Part.PREFIX if value.begins else Part.PARTLY
    return Part.GIVEN


# --- the queries by name, each a line on top of a question that says what is seen -----------------------------------
def policy(now: Question) -> Question:
    """Actions, given pictures and instruction."""
    return now.but(actions=ASK, name="policy")


def continuation(now: Question, actions: np.ndarray, horizon: int) -> Question:
    """The rest of a chunk whose first actions, float (d, A), are being executed (real-time chunking)."""
    return now.but(actions=PartialActions.prefix(actions, horizon), name="continuation")


def infill(now: Question, values: np.ndarray, known: np.ndarray) -> Question:
    """Actions of which some are known: the last ones, single ones, a range (`PartialActions`)."""
    return now.but(actions=PartialActions(values, known), name="infill")


def plan(now: Question) -> Question:
    """The plan, given pictures and instruction."""
    return now.but(plan=ASK, name="plan")


def plan_policy(now: Question, plan: str | np.ndarray) -> Question:
    """Actions that follow a plan; nothing else is said."""
    return now.but(instruction=None, plan=plan, actions=ASK, name="plan_policy")


def waypoints(now: Question) -> Question:
    """Where the robot will be, given pictures and instruction."""
    return now.but(waypoints=ASK, name="waypoints")


def waypoint_policy(now: Question, waypoints: np.ndarray) -> Question:
    """Actions that lead through robot states to come, float (K, S)."""
    return now.but(instruction=None, waypoints=waypoints, actions=ASK, name="waypoint_policy")


def world_model(now: Question, actions: np.ndarray) -> Question:
    """What will be seen after these actions, float (H, A)."""
    return now.but(instruction=None, actions=actions, future_image=ASK, name="world_model")


def inverse(now: Question, future_image: dict[str, np.ndarray]) -> Question:
    """The actions that lead from what is seen now to what is seen at the end of the chunk."""
    return now.but(instruction=None, future_image=future_image, actions=ASK, name="inverse")


def goal_policy(now: Question, goal_image: dict[str, np.ndarray]) -> Question:
    """Actions towards what is to be seen some time later."""
    return now.but(instruction=None, goal_image=goal_image, actions=ASK, name="goal_policy")


def label(now: Question, actions: np.ndarray, goal_image: dict[str, np.ndarray]) -> Question:
    """The instruction that these actions, float (H, A), follow, and that is done in this picture of the end."""
    return now.but(instruction=ASK, actions=actions, goal_image=goal_image, name="label")


def joint(now: Question) -> Question:
    """Plan, future image and actions together."""
    return now.but(plan=ASK, future_image=ASK, actions=ASK, name="joint")
