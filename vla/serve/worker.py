# SPDX-License-Identifier: Apache-2.0
"""The thread that thinks, and what is counted about it."""

import contextlib
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

KINDS = ("decode", "observation", "busy", "deadline", "policy", "gone", "too_big", "unauthorised", "full")
"""Of errors, in the metrics."""


class Metrics:
    """Counters in Prometheus' text format. Touched by the event loop only."""

    BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

    def __init__(self) -> None:
        self.requests, self.clients, self.answered, self.seconds = 0, 0, 0, 0.0
        self.errors = Counter(dict.fromkeys(KINDS, 0))
        self.within = [0] * len(self.BUCKETS_S)

    def answer(self, seconds: float) -> None:
        """One more request was answered with actions, after so long."""
        self.answered += 1
        self.seconds += seconds
        for i, bound in enumerate(self.BUCKETS_S):
            self.within[i] += seconds <= bound

    def counts(self) -> dict[str, int]:
        """What the page says: requests, answered, clients, errors."""
        errors = sum(self.errors.values())
        return {"requests": self.requests, "answered": self.answered, "clients": self.clients, "errors": errors}

    def text(self) -> str:
        """What /metrics says."""
        name = "vla_request_seconds"
        buckets = [*zip(map(str, self.BUCKETS_S), self.within, strict=True), ("+Inf", self.answered)]
        lines = [
            "# TYPE vla_requests_total counter",
            f"vla_requests_total {self.requests}",
            "# TYPE vla_clients gauge",
            f"vla_clients {self.clients}",
            "# TYPE vla_errors_total counter",
            *(f'vla_errors_total{{kind="{kind}"}} {self.errors[kind]}' for kind in KINDS),
            f"# HELP {name} From a request's arrival to the answer, of those that were answered with actions.",
            f"# TYPE {name} histogram",
            *(f'{name}_bucket{{le="{bound}"}} {count}' for bound, count in buckets),
            f"{name}_sum {self.seconds:.6f}",
            f"{name}_count {self.answered}",
        ]
        return "\n".join(lines) + "\n"


class Worker:
    """One daemon thread that thinks, and a bounded queue before it. A job that was cancelled meanwhile is skipped."""

    def __init__(self, waiting: int) -> None:
        self.jobs: queue.Queue[tuple[Callable[[], Any], Future] | None] = queue.Queue(waiting)
        self.began: float | None = None
        threading.Thread(target=self._work, name="vla-serve-worker", daemon=True).start()

    def submit(self, function: Callable[[], Any]) -> Future:
        """Raises queue.Full at once when too many wait."""
        future: Future = Future()
        self.jobs.put_nowait((function, future))
        return future

    def end(self) -> None:
        """The thread ends after what is waiting; if it hangs, with the process."""
        with contextlib.suppress(queue.Full):
            self.jobs.put_nowait(None)

    def busy_s(self) -> float:
        """How long the job that is running has been running; 0 without one."""
        began = self.began
        return 0.0 if began is None else time.monotonic() - began

    def _work(self) -> None:
        while (job := self.jobs.get()) is not None:
            function, future = job
            if future.set_running_or_notify_cancel():
                self.began = time.monotonic()
                try:
                    future.set_result(function())
                except BaseException as error:
                    future.set_exception(error)
                self.began = None
            del job, function, future  # not to hold the last images until the next ones come
