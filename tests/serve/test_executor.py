# SPDX-License-Identifier: Apache-2.0
"""The executor in simulated time, in a world that counts what was executed, with replies that take some steps."""

import itertools
import threading
import time

import numpy as np
import pytest

from vla.serve.executor import ActionLimits, Executor

H = 8
HOLD = np.array([-1, -1], np.float32)


class World:
    """Action k of a chunk is (actions executed before it, number of the request), behind the prefix it was given."""

    def __init__(self, latency=0, **settings):
        self.now, self.tick, self.latency = 0.0, 0, latency if callable(latency) else lambda _: latency
        self.requests, self.sent, self.executed, self.confidence, self.broken = [], [], [], 1.0, None
        self.prefixes, self.change = [], lambda reply: reply
        settings = {"every": 4, "hold": HOLD, "warm_up": 0} | settings
        self.executor = Executor(self.infer, H, 10.0, clock=lambda: self.now, submit=self.submit, **settings)

    def infer(self, request):
        if self.broken:
            raise self.broken
        done = len(self.executed)
        actions = np.stack([done + np.arange(H), np.full(H, len(self.requests))], 1).astype(np.float32)
        prefix = request.get("rtc/prev_actions", actions[:0])[: request.get("rtc/delay_steps", 0)]
        actions[: len(prefix)] = prefix
        self.requests.append(request)
        self.prefixes.append((done, prefix))
        return self.change({"actions": actions, "confidence": np.broadcast_to(self.confidence, (H, 2)), "length": H})

    def submit(self, function):
        world, due = self, self.tick + self.latency(len(self.requests))
        try:
            reply, error = function(), None
        except Exception as failed:
            reply, error = None, failed

        class Later:
            def done(self):
                return world.tick >= due

            def result(self):
                if error:
                    raise error
                return reply

        return Later()

    def run(self, steps):
        for _ in range(steps):
            action = self.executor.step({"observation/state": np.zeros(1)})
            self.sent.append(action)
            if not np.array_equal(action, HOLD):
                self.executed.append(action)
            self.tick += 1
            self.now += 0.1
        return np.array(self.sent[-steps:])


def test_without_latency_it_is_the_usual_loop():
    world = World()
    sent = world.run(12)
    np.testing.assert_array_equal(sent[:, 0], np.arange(12))
    np.testing.assert_array_equal(sent[:, 1], np.repeat([0, 1, 2], 4))
    assert [request["step"] for request in world.requests] == [0, 4, 8]
    assert all("rtc/prev_actions" not in request for request in world.requests)


@pytest.mark.parametrize("commit", [True, False])
@pytest.mark.parametrize("latency", [1, 2, 3, 5, 9, "random"])
def test_nothing_is_skipped_nor_done_twice_and_what_is_committed_is_done(latency, commit):
    draw = np.random.default_rng(0)
    world = World((lambda _: int(draw.integers(0, 6))) if latency == "random" else latency, commit=commit)
    world.run(200)
    counts, executed = world.executor.counts, np.array(world.executed)
    np.testing.assert_array_equal(executed[:, 0], np.arange(len(executed)))
    assert len(executed) > 60 and counts["merged"] > 10 and not world.executor.stopped
    for done, prefix in world.prefixes:
        kept = executed[done : done + len(prefix)]
        np.testing.assert_array_equal(kept, prefix[: len(kept)])
    assert any(len(prefix) for _, prefix in world.prefixes) == commit
    if isinstance(latency, int) and latency <= H - 4:
        assert counts["held"] == latency and counts["late"] == 0  # it stands still for the first chunk only


def test_the_delay_is_a_high_quantile_without_the_cold_start():
    world = World(lambda n: 40 if n == 0 else 2 if n % 10 else 4, warm_up=1, max_age_s=5)
    world.run(400)
    took = sorted(world.executor._took)
    assert took[0] == 2 and took[-1] == 4 and world.executor.delay_steps == 4


def test_a_reply_that_comes_too_late_is_asked_for_again_with_the_time_it_took():
    world = World(lambda n: 1 if n < 6 else 3)
    world.run(60)
    delays = [request.get("rtc/delay_steps") for request in world.requests]
    assert world.executor.counts["late"] == 1 and delays[5:9] == [1, 1, 3, 3]
    np.testing.assert_array_equal(np.array(world.executed)[:, 1] == 6, False)  # nothing of the late one is executed
    np.testing.assert_array_equal(np.array(world.executed)[:, 0], np.arange(len(world.executed)))


def test_unsure_actions_are_slowed_down_or_not_executed():
    world = World(slow_below=0.8, hold_below=0.2, slow_dims=[0], hold=[0.0, 0.0])
    world.confidence = np.array([1, 0.8, 0.4, 0.19, 1, 1, 1, 1])[:, None]
    world.change = lambda reply: reply | {"actions": np.ones((H, 2))}
    sent = world.run(3)
    np.testing.assert_allclose(sent, [[1, 1], [1, 1], [0.5, 1]])
    world.confidence = 0.1
    np.testing.assert_array_equal(world.run(3), 0)
    assert "less than hold_below" in world.executor.error and world.executor.counts["requests"] == 4
    world.confidence = 1.0
    np.testing.assert_array_equal(world.run(3), 1)


def test_behind_stop_nothing_is_executed():
    world = World(latency=20, max_age_s=4)
    world.change = lambda reply: reply | {"length": 3}
    assert (world.run(30)[:, 0] >= 0).tolist() == [False] * 20 + [True] * 3 + [False] * 7


def test_no_action_exceeds_the_limits_and_the_policy_is_told_what_is_left_of_it():
    limits = ActionLimits(low=[-1, -1], high=[4, 1], change=[0.75, 0.5])
    world = World(2, limits=limits, hold=[0.0, 0.0])
    draw = np.random.default_rng(1)

    def wild(reply):
        free = np.array([len(world.prefixes[-1][1])])
        reply["actions"][free[0] :] = draw.normal(0, 5, (H - free[0], 2))
        return reply

    world.change = wild
    sent = world.run(100)
    assert (sent >= [-1, -1]).all() and (sent <= [4, 1]).all()
    assert (np.abs(np.diff(sent, axis=0, prepend=[[0, 0]])) <= [0.750001, 0.500001]).all()
    told = [request for request in world.requests if "rtc/prev_actions" in request]
    for request in told:
        at, count = request["step"], min(2, len(request["rtc/prev_actions"]))
        np.testing.assert_array_equal(sent[at : at + count], request["rtc/prev_actions"][:count])
    assert len(told) > 10 and world.executor.counts["late"] == world.executor.counts["errors"] == 0


def test_the_watchdog_stops_it_until_reset():
    world = World(stop_after_s=2.0, retry_s=0.2)
    world.run(5)
    world.broken = TimeoutError("no reply\nin time")
    sent = world.run(40)
    assert (sent[:7, 0] >= 0).all() and (sent[7:] == HOLD).all()
    assert (
        "no fresh chunk for 2" in world.executor.stopped and "TimeoutError: no reply in time" in world.executor.stopped
    )
    assert 3 <= world.executor.counts["errors"] <= 6  # pauses become longer
    world.broken = None
    assert (world.run(10) == HOLD).all()
    world.executor.reset()
    assert not world.executor.stopped and (world.run(10)[:, 0] >= 0).all()


def test_a_reply_to_what_was_asked_before_a_stop_is_not_executed():
    world = World(latency=30, stop_after_s=2.0)
    assert (world.run(60) == HOLD).all() and world.executor.stopped
    assert world.executor.counts["dropped"] == 1 and world.executor.counts["requests"] == 1


def test_what_was_begun_before_reset_is_dropped():
    world = World(3, max_age_s=2)
    world.run(6)
    assert world.executor.counts["requests"] == 1
    world.run(2)  # the second request is on its way
    world.executor.reset()
    sent = world.run(6)
    assert world.executor.counts["dropped"] == 1 and world.requests[2]["step"] > 0
    assert (sent[:5] == HOLD).all() and sent[5, 1] == 2  # of the third request, and not of the second


def test_an_old_chunk_is_not_taken_up_again():
    world = World(2)
    world.run(4)
    world.now += 60  # the control loop was stopped meanwhile
    world.executor.stop_after_s = 100
    assert (world.run(1) == HOLD).all() and "more than max_age_s" in world.executor.error
    assert (world.run(4)[-1] != HOLD).all()


WRONG = {
    "NaN": lambda r: r | {"actions": np.full((H, 2), np.nan)},
    "begins with the committed": lambda r: r | {"actions": r["actions"] + 1},
    r"\(8, 2\), got \(7, 2\)": lambda r: r | {"actions": r["actions"][1:]},
    "a reply with actions, got": lambda r: {},
    "invalid literal": lambda r: r | {"length": "x"},
}


@pytest.mark.parametrize("name", WRONG)
def test_the_robot_does_not_trust_the_server(name):
    world = World(1)
    world.run(5)
    world.change = WRONG[name]
    sent = world.run(4)
    assert (sent[:, 1] == 0).all() and world.executor.counts["errors"] > 0
    assert "committed" in name or (world.run(8) == HOLD).all()
    with pytest.raises(AssertionError, match=name):
        raise AssertionError(world.executor.error)


@pytest.mark.parametrize(
    "settings",
    [
        {"every": 0},
        {"every": 9},
        {"hold": [np.nan]},
        {"hold_below": 2},
        {"slow_dims": [2]},
        {"max_age_s": 9, "stop_after_s": 1},
        {"limits": ActionLimits(low=[1, 1, 1])},
        {"limits": ActionLimits(low=[1, 1], high=[0, 0])},
    ],
)
def test_settings_without_sense_are_refused(settings):
    with pytest.raises(ValueError, match="expected"):
        World(**settings)


def test_a_real_thread_keeps_nobody_waiting():
    go, calls = threading.Event(), itertools.count()

    def infer(request):
        go.wait(5)
        return {"actions": np.full((H, 2), next(calls), np.float32)}

    executor, seen = Executor(infer, H, 1000.0, HOLD, max_age_s=5), {"image": np.zeros(4)}
    began = time.monotonic()
    for _ in range(100):
        assert np.array_equal(executor.step(seen), HOLD)
    assert time.monotonic() - began < 1 and executor.counts["requests"] == 1
    go.set()
    while executor.step(seen)[0] < 2:
        time.sleep(0.001)
        assert time.monotonic() - began < 4
