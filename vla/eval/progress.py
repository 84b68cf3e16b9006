# SPDX-License-Identifier: Apache-2.0
"""The running success rate with its interval, on the progress bar that all long jobs share."""

from rich.console import Console

from vla.data.progress import JobProgress
from vla.eval.statistics import wilson_interval


class EvalProgress(JobProgress):
    """Counts episodes as they end. Use as a context manager; `done`: how many there are already."""

    def __init__(self, console: Console, name: str, total: int, done: int = 0, successes: int = 0):
        self.successes = successes
        super().__init__(console, name, total, done)

    def rate(self) -> str:
        """The success rate so far, in words."""
        if not self.done:
            return ""
        low, high = wilson_interval(self.successes, self.done)
        return f"success {100 * self.successes / self.done:.0f} % ({100 * low:.0f}-{100 * high:.0f})"

    def count(self, success: bool) -> None:
        """One more episode has ended."""
        self.successes += success
        self.add(1, 0)
