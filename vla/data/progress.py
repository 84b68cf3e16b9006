# SPDX-License-Identifier: Apache-2.0
"""How far a long job is: a live bar on a terminal; elsewhere a plain line for every tenth of the work.

A job that is over within two seconds says nothing there.
"""

import time
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_SHORT_S = 2.0


class JobProgress:
    """Counts pieces of work (episodes, files) and the frames in them. A context manager."""

    def __init__(self, console: Console, name: str, total: int, done: int = 0):
        self.console, self.name, self.total, self.done, self.frames = console, name, total, done, 0
        self.started, self.next_line = time.monotonic(), done + max(1, total // 10)
        self.bar: Progress | None = None
        if console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
            self.bar = Progress(*columns, TextColumn("{task.fields[rate]}"), TimeRemainingColumn(), console=console)
            self.task = self.bar.add_task(name, total=total, completed=done, rate="")

    def rate(self) -> str:
        """Frames a second since the start, in words."""
        seconds = time.monotonic() - self.started
        return f"{self.frames} frames, {self.frames / max(seconds, 1e-3):.0f} frames/s"

    def add(self, done: int, frames: int) -> None:
        """`done` more pieces with `frames` frames in them."""
        self.done += done
        self.frames += frames
        if self.bar is not None:
            self.bar.update(self.task, completed=self.done, rate=self.rate())
            return
        seconds = time.monotonic() - self.started
        if done and seconds > _SHORT_S and (self.done >= self.next_line or self.done == self.total):
            self.next_line = self.done + max(1, self.total // 10)
            self.console.print(
                f"{self.name}: {self.done}/{self.total}, {self.rate()}, {seconds:.0f} s",
                highlight=False,
                soft_wrap=True,
            )

    def __enter__(self) -> Self:
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()
