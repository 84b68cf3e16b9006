# SPDX-License-Identifier: Apache-2.0
"""The running success rate with its interval: a live bar on a terminal, one plain line in ten per cent
elsewhere.
"""

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vla.eval.statistics import wilson_interval


class EvalProgress:
    """Counts episodes as they end. Use as a context manager; `done`: how many there are already."""

    def __init__(self, console: Console, name: str, total: int, done: int = 0, successes: int = 0):
        self.console, self.name, self.total = console, name, total
        self.done, self.successes = done, successes
        self.started, self.next_line = time.monotonic(), done + max(1, total // 10)
        self.bar: Progress | None = None
        if console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
            self.bar = Progress(*columns, TextColumn("{task.fields[rate]}"), TimeRemainingColumn(), console=console)
            self.task = self.bar.add_task(name, total=total, completed=done, rate=self.rate())

    def rate(self) -> str:
        if not self.done:
            return ""
        low, high = wilson_interval(self.successes, self.done)
        return f"success {100 * self.successes / self.done:.0f} % ({100 * low:.0f}-{100 * high:.0f})"

    def add(self, success: bool) -> None:
        self.done += 1
        self.successes += success
        if self.bar is not None:
            self.bar.update(self.task, completed=self.done, rate=self.rate())
        elif self.done >= self.next_line or self.done == self.total:
            self.next_line = self.done + max(1, self.total // 10)
            elapsed = time.monotonic() - self.started
            self.console.print(
                f"{self.name}: {self.done}/{self.total}, {self.rate()}, {elapsed:.0f} s", highlight=False
            )

    def __enter__(self) -> "EvalProgress":
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()
