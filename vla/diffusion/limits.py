# SPDX-License-Identifier: Apache-2.0
"""Limits of actions (joint, workspace, velocity), kept by construction: masks on the logits at every denoising step.

    tokens = TokenLimits(limits, values_AV, permitted_ADV)     once a policy: units become whole tokens
    domain = tokens.begin(batch, horizon, previous, start)     once a chunk: which tokens each step may be
    now = narrow(domain, digits_BHAD, known_BHA)               once an evaluation: what the state knows
    chosen_BHA, mask_BHAV, now = choose(scores_BHAV, digit, digits_BHAD, visible_BHA, now)        once a digit
    settle(values_BHA, wanted_BHA, domain)                     if the last digit is decoded as its expectation

A token is the number of a bin, so a limit is an interval of whole numbers: of a token (`low`, `high`), of the step from
one token to the next (`change`), of a running sum (`reach`). `propagate` shrinks these intervals until all that is left
in them is part of a full chunk. `choose` walks through the steps in time order; each takes its best digit among those
left. A whole proposal keeps all limits, hence so does any part of it that the schedule keeps, in whatever order.

Tokens are judged by the values that they decode to, so no limit is overstepped, not by one rounding. The price is up to
one bin of `change`, and about 1e-7 of `reach` a step, which covers sums taken in float32.

The intervals and the choice are in domain.py. Shapes: 2 ends of an interval, B batch, H steps, A dimensions, D digits,
V base, M measures of a chunk. Tokens and digits are int64.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from vla.diffusion.domain import Domain, Rules, propagate

Bounds = Mapping[str | int, float] | Sequence[float | None] | np.ndarray | None
"""One number a dimension: by name or index, or a vector of length A. None or infinity: no limit."""
Pose = np.ndarray | None
"""float (A,), or (B, A) for each row its own."""


@dataclass(frozen=True)
class Limits:
    """What actions may be, in the units of the dataset. A dimension may have a box and `change` or `reach`, not both.

    ValueError for an unknown dimension, a wrong length, NaN, limits that contradict each other, reach without scale.
    """

    names: Sequence[str]
    """The A dimensions in order (`Policy.action_names`)."""
    low: Bounds = None
    """low <= action: a joint limit, or the speed of an action that is a displacement."""
    high: Bounds = None
    """action <= high."""
    change: Bounds = None
    """|action - the action before| <= change: the velocity limit of an action that is a position. At least one bin."""
    reach_low: Bounds = None
    """reach_low <= start + scale * (sum of the actions so far), after every step: the workspace of displacements."""
    reach_high: Bounds = None
    """start + scale * (sum of the actions so far) <= reach_high."""
    scale: Bounds = None
    """How far an action of 1 moves, not 0; needed where there is a reach."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(self.names))
        defaults = (-math.inf, math.inf, math.inf, -math.inf, math.inf, 0.0)
        for field, default in zip(fields(self)[1:], defaults, strict=True):
            object.__setattr__(self, field.name, self._vector(field.name, default))
        for name, *of in zip(*(getattr(self, f.name) for f in fields(self)), strict=True):
            low, high, change, reach_low, reach_high, scale = of
            for a, b in ((low, high), (reach_low, reach_high), (0, change)):
                if not (a <= b and a < math.inf and b > -math.inf):
                    raise ValueError(f"'{name}': expected low <= high and change >= 0, got [{a}, {b}], which is empty")
            if math.isinf(reach_low) and math.isinf(reach_high):
                continue
            if not 0 < abs(scale) < math.inf:
                raise ValueError(f"'{name}': a reach needs `scale`, how far an action of 1 moves; got {scale}")
            if change < math.inf:
                raise ValueError(
                    f"'{name}' has both a change and a reach. Bounds on steps and on sums together are not exact: a "
                    "chunk could be begun that cannot be finished. Give one of them; low and high may be added"
                )

    def _vector(self, field: str, default: float) -> tuple[float, ...]:
        given, count = getattr(self, field), len(self.names)
        if isinstance(given, Mapping):
            spoken = {self.names[k] if k in range(count) else k: x for k, x in given.items()}
            if unknown := [k for k in spoken if k not in self.names]:
                raise ValueError(f"{field}: there is no dimension {unknown}; the dimensions are {list(self.names)}")
            given = [spoken.get(name) for name in self.names]
        given = [None] * count if given is None else given
        if np.ndim(given) != 1 or len(given) != count:
            raise ValueError(f"{field}: expected one number for each of {list(self.names)}, got {given}")
        numbers = tuple(default if x is None else float(x) for x in given)
        if any(map(math.isnan, numbers)):
            raise ValueError(f"{field}: expected numbers, None or infinity, got {numbers}")
        return numbers


class TokenLimits:
    """`Limits` in whole tokens, for a tokenizer each of whose tokens is a time and a dimension."""

    def __init__(self, limits: Limits, values_AV: Tensor | np.ndarray, permitted_ADV: Tensor) -> None:
        """`values_AV`: float32 (A, base**D), what each token decodes to, never falling. `permitted_ADV`: bool, the
        digits that a dimension ever shows (`ActionLimits.allowed_ADV`).

        ValueError when no token is inside a box (a gripper both of whose values are excluded), for a change of less
        than one bin, and for a change or a reach of a dimension with two values.
        """
        self.limits, self.permitted_ADV = limits, permitted_ADV
        digits, base = permitted_ADV.shape[1:]
        self.bins, count = base**digits, len(limits.names)
        self.values_AV = values = torch.as_tensor(values_AV).cpu().double().numpy()
        if values.shape != (count, self.bins) or len(permitted_ADV) != count or not (np.diff(values) >= 0).all():
            raise ValueError(f"expected {self.bins} rising values for each of {limits.names}, got {values.shape}")
        digits_VD = np.arange(self.bins)[:, None] // base ** np.arange(digits)[::-1] % base
        shown_AV = permitted_ADV.cpu().numpy()[:, np.arange(digits), digits_VD].all(-1)
        low, high, change, least, most, self.scale_A = (np.array(getattr(limits, f.name)) for f in fields(limits)[1:])
        self.box_2A, self.change_A = _down(np.stack([-low, high])), _down(change)
        self.reach_2A = np.stack([-least, most])
        self.linked_A, self.summed_A = np.isfinite(self.change_A), np.isfinite(self.reach_2A).any(0)
        self.inside_AV = shown_AV & (-values <= self.box_2A[0, :, None]) & (values <= self.box_2A[1, :, None])
        # A value is values[0] + bin * token, but for `error`.
        self.bin_A = (values[:, -1] - values[:, 0]) / (self.bins - 1)
        self.error_A = np.abs(values - values[:, :1] - self.bin_A[:, None] * np.arange(self.bins)).max(1)
        self.steps_A = np.full(count, self.bins)
        for a, name in enumerate(limits.names):
            if not self.inside_AV[a].any():
                raise ValueError(
                    f"'{name}': none of its values, {values[a, 0]:g} to {values[a, -1]:g}, is within "
                    f"[{-self.box_2A[0, a]:g}, {self.box_2A[1, a]:g}]"
                )
            if not shown_AV[a].all() and (self.linked_A[a] or self.summed_A[a]):
                raise ValueError(f"'{name}' has two values: it can have low and high, but neither change nor reach")
            if self.linked_A[a]:
                far = int(min(self.change_A[a] / self.bin_A[a] + 1, self.bins - 1))
                while (values[a, far:] - values[a, : self.bins - far]).max() > self.change_A[a]:
                    far -= 1
                if far == 0:
                    raise ValueError(
                        f"'{name}': a change of {self.change_A[a]:g} is less than one bin ({self.bin_A[a]:g}), so it "
                        "could never move; train with more digits"
                    )
                self.steps_A[a] = far

    def begin(
        self, batch: int, horizon: int, previous: Pose = None, start: Pose = None, committed: Sequence[np.ndarray] = ()
    ) -> Domain:
        """The domain of a chunk of which nothing is known, propagated.

        `previous`: the last action or the present pose; without it `change` leaves the first step free. `start`: where
        the sums of `reach` begin. `committed`: for each row float (d, A), its first d actions. They are executed as
        they are and not as their tokens, so they are not judged, and the limits go on from them; their tokens must be
        known in the state. The domain is on the device of `permitted_ADV`. ValueError when a row cannot keep the
        limits, naming the step and the dimension, and where a `start` is needed and not given.
        """
        steps = np.arange(horizon)
        before_BA = self._rows("previous", previous, batch, self.linked_A)
        if start is None and self.summed_A.any():
            raise ValueError("a reach needs `start`: where each dimension is before the first action")
        start_BA = np.where(self.summed_A, self._rows("start", start, batch, self.summed_A), 0)
        scale_A = np.where(self.summed_A, self.scale_A, 1)
        done_B = np.zeros(batch, np.int64)
        for row, actions in enumerate(committed):
            if len(actions):
                actions = np.asarray(actions, np.float32).astype(np.float64)
                before_BA[row], done_B[row] = actions[-1], len(actions)
                start_BA[row] += np.where(self.summed_A, scale_A * actions.sum(0), 0)
        free_BH1 = (steps >= done_B[:, None])[..., None]
        count_BH1 = np.maximum(steps + 1 - done_B[:, None], 0)[..., None]

        tokens_2BHA = np.where(free_BH1, _ends(self.inside_AV)[:, None, None], 0)
        rows = np.flatnonzero(done_B < horizon)
        near_BAV = np.broadcast_to(self.inside_AV, (len(rows), *self.inside_AV.shape))
        for before in (before_BA[rows], before_BA[rows].astype(np.float32)):  # whichever one measures from
            near_BAV = near_BAV & ~(np.abs(self.values_AV - before[..., None]) > self.change_A[:, None])
        tokens_2BHA[:, rows, done_B[rows]] = _ends(near_BAV)

        # Upper bounds on minus and plus the sum of n values, less what float32 may lose; then of n tokens.
        sign = np.array([-1.0, 1.0]).reshape(2, 1, 1)
        room_2BA = (self.reach_2A[:, None] - sign * start_BA) / np.abs(scale_A)
        room_2BA = np.where(scale_A < 0, room_2BA[::-1], room_2BA)
        size_A = np.abs(self.values_AV).max(1)
        known_A = np.where(np.isfinite(self.reach_2A), np.abs(self.reach_2A), 0).max(0)
        ever_H1 = steps[:, None] + 1
        slack_BHA = 2.0**-23 * ever_H1 * (ever_H1 * size_A + ((np.abs(start_BA) + known_A) / np.abs(scale_A))[:, None])
        room_2BHA = np.where(free_BH1, room_2BA[:, :, None] - slack_BHA, np.inf)
        lost_2BHA = count_BH1 * (self.error_A + sign[..., None] * self.values_AV[:, 0])
        sums_2BHA = np.floor((room_2BHA - lost_2BHA) / np.where(self.bin_A > 0, self.bin_A, 1))
        change_BHA = np.broadcast_to(self.change_A, room_2BHA.shape[1:])

        def to(x: np.ndarray) -> Tensor:
            return torch.as_tensor(x, device=self.permitted_ADV.device)

        rules = Rules(
            names=self.limits.names,
            linked=bool(self.linked_A.any()),
            summed=bool(self.summed_A.any()),
            permitted_ADV=self.permitted_ADV,
            free_BH1=to(free_BH1),
            change_BHA=to(np.where(steps[:, None] > done_B[:, None, None], self.steps_A, self.bins)),
            box_2A=to(self.box_2A),
            before_BA=to(before_BA),
            most_BMA=to(np.concatenate([change_BHA, change_BHA, *room_2BHA], axis=1)),
            grain_A=to(2.0**-22 * horizon * size_A),
        )
        largest = horizon * self.bins + 1
        sums_2BHA = np.clip(sums_2BHA, -largest, largest).astype(np.int64)
        return propagate(Domain(to(tokens_2BHA), to(sums_2BHA), rules))

    def _rows(self, name: str, given: Pose, batch: int, needed_A: np.ndarray) -> np.ndarray:
        """(A,) or (B, A) or None -> float64 (B, A), a copy; NaN for None."""
        shape = (batch, len(needed_A))
        rows = np.full(shape, np.nan) if given is None else np.asarray(given, np.float64)
        if rows.shape not in (shape, shape[1:]) or (given is not None and not np.isfinite(rows[..., needed_A]).all()):
            raise ValueError(f"{name}: expected finite numbers, {shape[1:]} or {shape}, got {rows.tolist()}")
        return np.broadcast_to(rows, shape).copy()


def _down(exact: np.ndarray) -> np.ndarray:
    """The largest float32 that is not above each number, as float64: a bound that holds in either precision."""
    with np.errstate(over="ignore"):
        rounded = exact.astype(np.float32)
    return np.where(rounded > exact, np.nextafter(rounded, np.float32(-np.inf)), rounded).astype(np.float64)


def _ends(inside: np.ndarray) -> np.ndarray:
    """bool (..., V) -> int64 (2, ...): minus the first, plus the last True of each row; -1 and -1 if there is none."""
    ends = np.stack([-inside.argmax(-1), inside.shape[-1] - 1 - inside[..., ::-1].argmax(-1)])
    return np.where(inside.any(-1), ends, -1)
