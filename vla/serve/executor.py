# SPDX-License-Identifier: Apache-2.0
"""Acts at the control rate while the next chunk is on its way.

    step t      a request leaves with what is seen at t and with the actions that will be executed meanwhile
    t .. t+d-1  they are executed; the policy keeps them and fills in what comes behind (real-time chunking)
    t+d         the reply is there: its action d is the next one

So nothing of a chunk is skipped or executed twice, and the new chunk joins the old one. Where there is nothing to
execute that is fresh and sure, the robot gets the hold action. Needs numpy alone. It only runs when `step` is called:
what happens when the control loop itself hangs is for the robot's controller.
"""

import logging
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

log = logging.getLogger("vla.executor")

Infer = Callable[[dict[str, Any]], dict[str, Any]]
"""Request to reply, as `PolicyClient.infer`; may take long, and may raise."""
Hold = Callable[[np.ndarray | None], np.ndarray]
"""From the last action that was sent, (A,), or None at a start, to the one that keeps the robot safely where it is."""
LONGEST_PAUSE_S = 1.0


class Pending(Protocol):
    """A reply that may be on its way; `concurrent.futures.Future` is one."""

    def done(self) -> bool: ...
    def result(self) -> dict[str, Any]: ...


def in_thread(function: Callable[[], dict[str, Any]]) -> Pending:
    """Call `function` in a daemon thread: one that hangs does not keep the program from ending."""
    future: Future = Future()

    def work() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, name="vla-executor", daemon=True).start()
    return future


@dataclass(frozen=True)
class ActionLimits:
    """What no action may exceed, whatever the server says. Each (A,), in the actions' units; None: no limit."""

    low: Sequence[float] | np.ndarray | None = None
    high: Sequence[float] | np.ndarray | None = None
    change: Sequence[float] | np.ndarray | None = None
    """largest difference to the action of the step before; it holds for the hold action, too, so that nothing jerks"""

    def checked(self, dims: int) -> "ActionLimits":
        """As float32 (A,). ValueError for other sizes, NaN, low above high, or a negative change."""
        filled = []
        for name, missing in (("low", -np.inf), ("high", np.inf), ("change", np.inf)):
            given = getattr(self, name)
            values = np.full(dims, missing, np.float32) if given is None else np.asarray(given, np.float32)
            if values.shape != (dims,) or np.isnan(values).any():
                raise ValueError(f"expected the limit '{name}' as {dims} numbers, one an action dimension, got {given}")
            filled.append(values)
        low, high, change = filled
        if (low > high).any() or (change < 0).any():
            raise ValueError(f"expected limits with low <= high and change >= 0, got {low}, {high} and {change}")
        return ActionLimits(low, high, change)

    def keep(self, action: np.ndarray, last: np.ndarray) -> np.ndarray:
        """The nearest action within the limits, float32 (A,); low and high win. One that is within comes back as is."""
        assert isinstance(self.change, np.ndarray), "checked() comes first"
        near = np.clip(action, last - self.change, last + self.change)
        return np.clip(near, self.low, self.high).astype(np.float32)


@dataclass(frozen=True)
class _Asked:
    """A request on its way."""

    reply: Pending
    epoch: int
    step: int
    executed: int
    at_s: float
    committed: np.ndarray


class Executor:
    """`step(observation)` gives an action at once, always. Not for several threads: one control loop, one executor."""

    def __init__(
        self,
        infer: Infer,
        horizon: int,
        fps: float,
        hold: Hold | np.ndarray | Sequence[float],
        *,
        every: int | None = None,
        commit: bool = True,
        limits: ActionLimits | None = None,
        slow_below: float = 0.0,
        hold_below: float = 0.0,
        slow_dims: Sequence[int] | None = None,
        max_age_s: float | None = None,
        stop_after_s: float | None = None,
        first_delay: int = 1,
        quantile: float = 0.95,
        warm_up: int = 1,
        window: int = 50,
        retry_s: float = 0.05,
        seed: int = 0,
        clock: Callable[[], float] = time.monotonic,
        submit: Callable[[Callable[[], dict[str, Any]]], Pending] = in_thread,
    ) -> None:
        """`horizon`: H, the actions of a chunk, `fps` of them a second. `hold`: an action (A,), or a function (`Hold`).

        `every`: the next request leaves after so many actions of a chunk (None: half of it), earlier if it would run
        out. `commit`: False does not tell the policy what is executed meanwhile (for servers that cannot be told).
        `slow_below`, `hold_below`: in [0, 1], an action whose least sure dimension is less sure than this is slowed
        down, towards the hold action, in `slow_dims` (None: all; leave out grippers); or is not executed, nor what
        comes behind it: the robot holds until there is a surer chunk.
        `max_age_s`: of what a chunk was decided from (None: twice the time of a chunk); older ones are not executed.
        `stop_after_s`: so long without a fresh chunk, and it stops for good, until `reset` (None: 5 s, or twice
        `max_age_s` if that is longer).
        `first_delay`, `quantile`, `warm_up`, `window`: see `delay_steps`. `retry_s`: pause after an error, doubled for
        each in a row up to 1 s. `seed`: of the policy's randomness. `clock`: s. `submit`: starts a call of `infer`.

        ValueError for settings that make no sense.
        """
        self._hold: Hold = hold if callable(hold) else self._constant(hold)
        start = np.asarray(self._hold(None), np.float32)
        if start.ndim != 1 or not len(start) or not np.isfinite(start).all():
            raise ValueError(f"expected a finite hold action (A,), got {start}")
        every = max(1, horizon // 2) if every is None else every
        if not (1 <= every <= horizon and fps > 0):
            raise ValueError(f"expected 1 <= every <= horizon and a positive fps, got {every}, {horizon} and {fps}")
        if not 0 <= hold_below <= 1 or not 0 <= slow_below <= 1 or not 0 < quantile <= 1:
            raise ValueError("expected hold_below, slow_below and quantile in [0, 1], the last of them above 0")
        if min(first_delay, warm_up, retry_s) < 0 or window < 1:
            raise ValueError("expected no negative first_delay, warm_up or retry_s, and a window of 1 or more")
        self.horizon, self.fps, self.dims, self.every, self.commit = horizon, fps, len(start), every, commit
        self.max_age_s = 2 * horizon / fps if max_age_s is None else max_age_s
        self.stop_after_s = max(5.0, 2 * self.max_age_s) if stop_after_s is None else stop_after_s
        if not 0 < self.max_age_s <= self.stop_after_s:
            raise ValueError(f"expected 0 < max_age_s <= stop_after_s, got {self.max_age_s} and {self.stop_after_s}")
        self.limits = (limits or ActionLimits()).checked(self.dims)
        self.slow_below, self.hold_below = slow_below, hold_below
        slow = range(self.dims) if slow_dims is None else slow_dims
        if not set(slow) <= set(range(self.dims)):
            raise ValueError(f"expected slow_dims out of 0 .. {self.dims - 1}, got {slow_dims}")
        self._slow = np.isin(np.arange(self.dims), list(slow))
        self.first_delay, self.quantile, self.retry_s, self.seed = first_delay, quantile, retry_s, seed
        self.infer, self.clock, self.submit = infer, clock, submit
        self._unmeasured, self._took, self._at_least = warm_up, deque[int](maxlen=window), 0
        self._asked: _Asked | None = None
        self.epoch = 0
        self.counts: Counter[str] = Counter()
        """steps, requests, merged, late, stale, dropped, errors, held: since the executor was made"""
        self.reset()

    @staticmethod
    def _constant(action: np.ndarray | Sequence[float]) -> Hold:
        fixed = np.array(action, np.float32)
        return lambda _: fixed

    @classmethod
    def of(cls, client: Any, hold: Hold | np.ndarray | Sequence[float], **settings: Any) -> "Executor":
        """For a `PolicyClient`, as its server's metadata say; `settings` as above. Connects. ValueError: wrong hold."""
        about = client.metadata
        said = {"every": about.get("n_action_steps"), "commit": "rtc" in about.get("supports", ())}
        made = cls(client.infer, about["horizon"], about["fps"], hold, **(said | settings))
        if made.dims != len(about["action_names"]):
            raise ValueError(f"expected a hold action for {about['action_names']}, got one of {made.dims} dimensions")
        return made

    def reset(self, last: np.ndarray | None = None) -> None:
        """A new episode: what was begun before is dropped, also what is still on its way. Ends a stop.

        A request that is still on its way is waited for before the next one leaves: there is never more than one.
        `last`: the action that the robot is under now, (A,), where limits of change begin; None: the hold action.
        """
        self.epoch += 1
        self._at = 0
        self._plan: np.ndarray = np.zeros((0, self.dims), np.float32)
        self._last = np.array(self._hold(None) if last is None else last, np.float32)
        self._steps = self._executed = self._failures = 0
        self._seen_s = self._fresh_s = -math.inf
        self._not_before_s = -math.inf
        self.stopped = self.error = ""
        """`stopped`: why it stopped for good; `error`: what went wrong last. Empty: nothing."""

    @property
    def delay_steps(self) -> int:
        """Steps that a request takes: the `quantile` of the last `window`, `first_delay` before there is one.

        The first `warm_up` are not counted: a cold start would be remembered for long. After a reply that came too late
        at least what that one took.
        """
        if not self._took:
            return max(self.first_delay, self._at_least)
        return max(sorted(self._took)[math.ceil(self.quantile * len(self._took)) - 1], self._at_least)

    @property
    def left(self) -> int:
        """Actions that could be executed before the robot must hold."""
        return len(self._plan) - self._at

    def step(self, observation: dict[str, Any]) -> np.ndarray:
        """What to send to the robot now, float32 (A,): to be called once a control step. Does not wait.

        `observation`: a request without the keys that are added here (`rtc/...`, `seed`, `step`); copied if it is used.
        """
        now = self.clock()
        self.counts["steps"] += 1
        if self._steps == 0:
            self._fresh_s = now
        self._collect(now)
        if self.left and now - self._seen_s > self.max_age_s:
            self._plan, self._at = self._plan[:0], 0
            self.error = f"the chunk is from {now - self._seen_s:.3g} s ago, more than max_age_s {self.max_age_s:.3g}"
        if not self.stopped and now - self._fresh_s > self.stop_after_s:
            self._plan, self._at = self._plan[:0], 0
            self.stopped = (
                f"no fresh chunk for {now - self._fresh_s:.3g} s: {self.error or 'no reply'}; reset() goes on"
            )
            log.error("stopped: %s", self.stopped)
        if self._wants(now):
            self._ask(observation, now)
            self._collect(now)  # one that does not take any time
        self._steps += 1
        if self.left:
            action = self._plan[self._at]
            self._at += 1
            self._executed += 1
        else:
            action = np.asarray(self._hold(self._last), np.float32)
            self.counts["held"] += 1
        self._last = self.limits.keep(action, self._last)
        return self._last.copy()

    # --- asking --------------------------------------------------------------------------------------------------
    def _wants(self, now: float) -> bool:
        if self.stopped or self._asked is not None or now < self._not_before_s:
            return False
        return self._at >= self.every or self.left <= self.delay_steps

    def _ask(self, observation: dict[str, Any], now: float) -> None:
        tail = self._plan[self._at :].copy()
        delay = self.delay_steps if self.commit else 0
        request = {key: x.copy() if isinstance(x, np.ndarray) else x for key, x in observation.items()}
        request |= {"seed": self.seed, "step": self._steps}
        if len(tail[:delay]):
            request |= {"rtc/prev_actions": tail, "rtc/delay_steps": delay}
        self.counts["requests"] += 1
        reply = self.submit(lambda: self.infer(request))
        self._asked = _Asked(reply, self.epoch, self._steps, self._executed, now, tail[:delay])

    def _collect(self, now: float) -> None:
        """Take the reply, if there is one."""
        asked = self._asked
        if asked is None or not asked.reply.done():
            return
        self._asked = None
        if asked.epoch != self.epoch or self.stopped:
            self.counts["dropped"] += 1
            return
        try:
            actions_HA, sure_H, length = self._read(asked.reply.result(), asked.committed)
        except Exception as error:
            self._failures += 1
            self.counts["errors"] += 1
            self.error = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            log.warning("no chunk: %s", self.error)
            self._not_before_s = now + min(self.retry_s * 2 ** min(self._failures - 1, 30), LONGEST_PAUSE_S)
            return
        self._failures = 0
        took, executed = self._steps - asked.step, self._executed - asked.executed
        if self._unmeasured:
            self._unmeasured -= 1
        else:
            self._took.append(took)
        if self.commit and executed > len(asked.committed):
            self.counts["late"] += 1
            self._at_least = took
            self.error = f"a reply took {took} steps, more than the {len(asked.committed)} it was committed for"
            return
        if now - asked.at_s > self.max_age_s:
            self.counts["stale"] += 1
            self.error = f"a reply took {now - asked.at_s:.3g} s, more than max_age_s {self.max_age_s:.3g}"
            return
        self._at_least = 0
        self._merge(actions_HA, sure_H, length, executed, max(executed, len(asked.committed)))
        self._seen_s = asked.at_s
        self.counts["merged"] += 1
        if self.left:
            self._fresh_s, self.error = now, ""

    def _read(self, reply: dict[str, Any], committed: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
        """Actions (H, A), how sure each step is (H,), and the steps before STOP. ValueError for anything else."""
        if not isinstance(reply, dict) or "actions" not in reply:
            raise ValueError(
                f"expected a reply with actions, got {sorted(reply) if isinstance(reply, dict) else reply}"
            )
        actions = np.asarray(reply["actions"], np.float32)
        confidence = np.asarray(reply.get("confidence", np.ones_like(actions)), np.float32)
        expected = (self.horizon, self.dims)
        if actions.shape != expected or confidence.shape != expected:
            raise ValueError(f"expected actions and confidence {expected}, got {actions.shape}, {confidence.shape}")
        if not (np.isfinite(actions).all() and np.isfinite(confidence).all()):
            raise ValueError("expected finite actions and confidence, got NaN or infinity")
        if not np.array_equal(actions[: len(committed)], committed):
            raise ValueError("expected a chunk that begins with the committed actions, got another; use commit=False")
        return actions, confidence.min(1), min(max(int(reply.get("length", self.horizon)), 0), self.horizon)

    def _merge(self, actions_HA: np.ndarray, sure_H: np.ndarray, length: int, first: int, free: int) -> None:
        """Make the chunk the plan, from action `first` on; what comes before `free` is promised already.

        Everything that changes an action happens here and not when it is sent: a plan is what will be executed, and
        that is what the policy is told.
        """
        end = max(length, free)
        if (unsure := np.flatnonzero(sure_H[free:end] < self.hold_below)).size:
            end = free + int(unsure[0])
            self.error = f"the policy is {sure_H[end]:.3g} sure, less than hold_below {self.hold_below:.3g}"
        plan, last = actions_HA[:end].copy(), self._last
        for k in range(first, end):
            if k >= free and sure_H[k] < self.slow_below:
                still = np.asarray(self._hold(last), np.float32)
                slower = still + (sure_H[k] / self.slow_below) * (plan[k] - still)
                plan[k] = np.where(self._slow, slower, plan[k])
            plan[k] = last = self.limits.keep(plan[k], last)
        self._plan, self._at = plan, min(first, end)
