# SPDX-License-Identifier: Apache-2.0
"""Recordings and evaluations that are killed with all their workers, at random instants, and resumed until they end.

The real commands run, each in a process group of its own. What counts: a finished recording has the episodes of one
that nobody killed, with the same actions and states, each once; what was in the dataset before a kill is there after
it; a finished evaluation has each (task, seed) once, with the actions of one that nobody killed, and a line that was
written before a kill is there to the letter at the end: it has the time that the episode took, so that one that was run
again has another. Half of the kills of evaluations wait for an episode to be written: the others often come before.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vla.bench.results import Row
from vla.bench.survival import SurvivalConfig, at_least, at_most

if TYPE_CHECKING:
    from vla.eval.episodes import Episode

GOAL = 50
EPISODES, SHARD = 60, 5
EVALUATED = 40
SHARE = 0.7
"""Of the time that the work takes when nobody kills it: until then the kill comes."""


@dataclass
class Tally:
    """What kills did to one kind of work."""

    kills: int = 0
    midway: int = 0
    """kills when episodes were there already, and not all"""
    lost: int = 0
    duplicated: int = 0
    wrong: str = ""


def record_eval_kills(config: SurvivalConfig) -> list[Row]:
    """Half of the kills while recording, half while evaluating. <out>/interrupted keeps what was made."""
    folder, goal = config.out / "interrupted", 2 if config.quick else GOAL
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    draw = random.Random(f"{config.seed}/interrupted")
    recorded, evaluated = Tally(), Tally()
    reference, life_s = folder / "reference", _timed(_recording(folder / "reference"), folder)
    while recorded.kills < goal // 2:
        kill_recordings(folder, reference, life_s, draw, goal // 2, recorded)
        print(f"  {recorded.kills}/{goal // 2} recordings killed", flush=True)
    life_s = _timed(_evaluation(folder / "eval-reference"), folder)
    expected = actions_of(folder / "eval-reference")
    while evaluated.kills < goal - goal // 2:
        kill_evaluations(folder, expected, life_s, draw, goal - goal // 2, evaluated)
        print(f"  {evaluated.kills}/{goal - goal // 2} evaluations killed", flush=True)
    both = (recorded, evaluated)
    note = f"{recorded.kills} while recording, {evaluated.kills} while evaluating; "
    note += f"{recorded.midway} and {evaluated.midway} of them with a part of the episodes there"
    wrong = "; ".join(tally.wrong for tally in both if tally.wrong)
    return [
        at_least("record_eval_kills", sum(t.kills for t in both), goal, "", note),
        at_most("episodes_lost", sum(t.lost for t in both), 0, "", wrong, ok=not wrong),
        at_most("episodes_duplicated", sum(t.duplicated for t in both), 0, ""),
    ]


def kill_recordings(folder: Path, reference: Path, life_s: float, draw: random.Random, goal: int, tally: Tally) -> None:
    """One recording, killed until it is faster than the next kill or there are enough kills."""
    out, expected = folder / "dataset", episodes_of(reference)
    shutil.rmtree(out, ignore_errors=True)
    while tally.kills < goal:
        before = episodes_of(out)
        if not killed(_recording(out), draw.random() * SHARE * life_s, folder):
            break
        tally.kills += 1
        there = episodes_of(out)
        tally.midway += 0 < len(there) < len(expected)
        tally.lost += len(before.keys() - there.keys())
    _run(_recording(out), folder)
    found = episodes_of(out)
    tally.lost += len(expected.keys() - found.keys())
    tally.duplicated += max(len(found) - len(expected), 0)
    if found != expected:
        tally.wrong = "a resumed recording differs from one that nobody killed"


def kill_evaluations(
    folder: Path, expected: "dict[Episode, str]", life_s: float, draw: random.Random, goal: int, tally: Tally
) -> None:
    """One evaluation, likewise. `expected`: `actions_of` one that nobody killed."""
    out = folder / "eval"
    shutil.rmtree(out, ignore_errors=True)
    lines = out / "episodes.jsonl"
    kept: set[str] = set()
    while tally.kills < goal:
        aimed, moment = draw.random() < 0.5, draw.random()
        after_s, more_than = (
            (0.2 * moment * life_s, len(whole_lines(lines))) if aimed else (SHARE * moment * life_s, -1)
        )
        if not killed(_evaluation(out), after_s, folder, lines, more_than):
            break
        tally.kills += 1
        there = whole_lines(lines)
        tally.midway += 0 < len(there) < len(expected)
        tally.duplicated += twice(lines)  # before a resumed run puts the file in order
        kept |= there
    _run(_evaluation(out), folder)
    found = actions_of(out)
    again = {_episode(line) for line in kept - whole_lines(lines)}
    tally.lost += len(expected.keys() - found.keys())
    tally.duplicated += twice(lines) + len(again & found.keys())
    if found != expected:
        tally.wrong = "a resumed evaluation differs from one that nobody killed"


def actions_of(folder: Path) -> "dict[Episode, str]":
    """(task, seed) -> the hash of all actions, of a finished evaluation."""
    from vla.eval.episodes import read_results

    return {result.episode: result.actions_sha256 for result in read_results(folder / "episodes.jsonl")}


def twice(lines: Path) -> int:
    """How many whole lines of an evaluation are of an episode that has a line before."""
    times = Counter(_episode(line) for line in whole_lines(lines))
    return times.total() - len(times)


def _episode(line: str) -> "Episode":
    from vla.eval.episodes import Episode

    about = json.loads(line)
    return Episode(about["task"], about["seed"])


def whole_lines(path: Path) -> set[str]:
    """Lines of the file that are whole; a kill may have cut the last."""
    return set(path.read_text(encoding="utf-8").split("\n")[:-1]) if path.exists() else set()


def episodes_of(folder: Path) -> dict[int, bytes]:
    """Episode -> its actions and states, of what is a dataset by now; {} if nothing is."""
    from vla.data.lerobot_files import read_tables

    if not (folder / "meta" / "info.json").exists():
        return {}
    files = read_tables(folder)
    pairs = zip(files.episode_from, files.episode_to, strict=True)
    return {
        number: np.ascontiguousarray(np.concatenate([files.action[a:b], files.state[a:b]], axis=1)).tobytes()
        for number, (a, b) in enumerate(pairs)
    }


def killed(command: list[str], after_s: float, folder: Path, lines: Path | None = None, more_than: int = -1) -> bool:
    """Start it in a group of its own, and SIGKILL the group after so long. False if it had ended.

    `lines`: the time begins when this file has more whole lines than `more_than`.
    """
    with (folder / "log.txt").open("a") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        while lines and process.poll() is None and len(whole_lines(lines)) <= more_than:
            time.sleep(0.01)
        process.wait(after_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True
    if process.returncode:
        raise RuntimeError(f"'{' '.join(command[3:5])}' ended with {process.returncode}: see '{folder / 'log.txt'}'")
    return False


def _timed(command: list[str], folder: Path) -> float:
    began = time.perf_counter()
    _run(command, folder)
    return time.perf_counter() - began


def _run(command: list[str], folder: Path) -> None:
    killed(command, 3600.0, folder)


def _recording(out: Path) -> list[str]:
    options = f"--suite demo --episodes {EPISODES} --image-size 32 --shard-episodes {SHARD} --workers 2"
    if out.exists() and any(out.iterdir()):
        options += " --resume"
    return [sys.executable, "-m", "vla.cli", "record", "--out", str(out), *options.split()]


def _evaluation(out: Path) -> list[str]:
    options = f"--suite demo --episodes {EVALUATED} --workers 2 --videos 0 --resume"
    return [sys.executable, "-m", "vla.cli", "eval", "--out", str(out), *options.split()]
