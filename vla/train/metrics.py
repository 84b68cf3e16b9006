# SPDX-License-Identifier: Apache-2.0
"""What a training run tells: metrics.jsonl for programs, TensorBoard for plots, a live line for people."""

import json
import math
import os
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Metrics:
    """One line of JSON an interval, scalars to TensorBoard, a progress bar (sparse plain lines without a terminal).

    `silent`: it tells nobody, as behoves all but the first of several processes.
    """

    def __init__(self, run: Path, total: int, tensorboard: bool, silent: bool = False) -> None:
        run.mkdir(parents=True, exist_ok=True)
        self.total, self._console = total, Console(highlight=False, quiet=silent)
        path = Path(os.devnull) if silent else run / "metrics.jsonl"
        self._file = path.open("a")
        self._writer = None
        if tensorboard and not silent:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(run / "tensorboard"))
        self._progress: Progress | None = None
        if self._console.is_terminal and not silent:
            columns = (
                TextColumn("train"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.description}"),
            )
            self._progress = Progress(*columns, console=self._console)
            self._progress.start()
            self._task = self._progress.add_task("", total=total)
        self.ideal_step_s = 0.0
        """How long a step would take if the machine did nothing but its products, at its best (utilisation.py); 0:
        unknown."""
        self._began = self._last_time = time.perf_counter()
        self._last_step: int | None = None
        self._last_line = -math.inf

    def say(self, text: str) -> None:
        self._console.print(text)

    def advance(self, step: int) -> None:
        if self._progress is not None:
            self._progress.update(self._task, completed=step, total=self.total)

    def log(self, step: int, batch_size: int, **values: float) -> None:
        """Training scalars after `step` steps; adds the rates since the last call."""
        now = time.perf_counter()
        steps = step - self._last_step if self._last_step is not None else 0
        rate = steps / (now - self._last_time) if steps else 0.0
        self._last_step, self._last_time = step, now
        values |= {"steps_per_s": rate, "frames_per_s": rate * batch_size, "elapsed_s": now - self._began}
        text = f"loss {values['loss']:.3f}  {rate:.1f} steps/s"
        if rate and self.ideal_step_s:
            values["mfu"] = rate * self.ideal_step_s
            text += f"  MFU {100 * values['mfu']:.0f} %"
        self._write(step, values)
        if self._progress is not None:
            self._progress.update(self._task, description=text)
        elif now - self._last_line > 15 or step == self.total:
            self._last_line = now
            left_s = (self.total - step) / rate if rate else float("nan")
            self.say(f"train  {step}/{self.total}  {text}  {left_s:.0f} s left")

    def log_validation(self, step: int, **values: float) -> None:
        if values:
            self._write(step, values)
            self.say(f"train  step {step}  " + "  ".join(f"{k} {v:.4f}" for k, v in values.items()))

    def _write(self, step: int, values: dict[str, Any]) -> None:
        rounded = {k: float(f"{v:.6g}") for k, v in values.items()}
        self._file.write(json.dumps({"step": step, **rounded}) + "\n")
        self._file.flush()
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._file.close()
        if self._writer is not None:
            self._writer.close()
        if self._progress is not None:
            self._progress.stop()
