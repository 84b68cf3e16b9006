# SPDX-License-Identifier: Apache-2.0
"""Trainings that are killed at random instants, also in the middle of a save, and resumed until they end.

A child of a fork server, which has everything imported, runs the real `vla.train.loop.train`. Some kills come at a
random time after its start, wherever that is; others wait for the temporary folder of a checkpoint, a link or a
replaced folder to appear. What counts: each loss that was logged is that of the run which nobody killed, to the last
bit that the log has, whatever came before it; the files of the last checkpoint are the same, byte for byte; no
run ends by itself before it is finished; and no resumed run began more than one save interval before the last step that
its predecessor had told of. (A save is part of the loop: no step is under way beside it. So nothing is added for that.)
"""

import itertools
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vla.bench.results import Row
from vla.bench.survival import SurvivalConfig, at_least, at_most

STEPS, SAVE = 150, 5
GOAL, A_CHAIN, AT_ONCE = 200, 5, 2
PRELOAD = ["vla.train.loop", "vla.train.setup", "vla.train.saving", "vla.train.validate"]
TIMES = {"steps_per_s", "frames_per_s", "mfu", "elapsed_s"}
FILES = ("model.safetensors", "training.safetensors")


@dataclass
class Tally:
    """What happened to one training."""

    kills: int = 0
    during_save: int = 0
    lost: list[int] = field(default_factory=list)
    """steps that each resumed run had to do again"""
    wrong: list[str] = field(default_factory=list)
    """what was not as in the run that nobody killed"""


def train_kills(config: SurvivalConfig) -> list[Row]:
    """Kill trainings until there are enough kills. <out>/kills keeps the last runs and what their children said."""
    from vla.data.record import RecordConfig, record

    folder, goal = config.out / "kills", 3 if config.quick else GOAL
    shutil.rmtree(folder, ignore_errors=True)
    data = folder / "dataset"
    record(RecordConfig(episodes=20, out=data, image_size=32, shard_episodes=10, workers=1))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    start(context, data, folder / "warm", resume=False).join()
    began = time.perf_counter()
    child = start(context, data, folder / "reference", resume=False)
    child.join()
    life_s = time.perf_counter() - began
    reference = facts(folder / "reference")
    if child.exitcode or not all(reference[1]):
        raise ValueError(f"the run that nobody kills ended too early: see '{folder / 'reference'}.log'")
    tallies: list[Tally] = []
    lock = threading.Lock()

    def chains(worker: int) -> None:
        number = worker
        while sum(tally.kills for tally in tallies) < goal:
            draw = random.Random(f"{config.seed}/{number}")
            tally = chain(context, data, folder / f"chain-{worker}", draw, life_s, reference)
            number += AT_ONCE
            with lock:
                tallies.append(tally)
                print(f"  {sum(t.kills for t in tallies)}/{goal} trainings killed", flush=True)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(chains, range(AT_ONCE)))
    return rows(tallies, goal)


def rows(tallies: list[Tally], goal: int) -> list[Row]:
    """The table of what happened to some trainings."""
    kills = sum(tally.kills for tally in tallies)
    identical = sum(tally.kills for tally in tallies if not tally.wrong)
    wrong = sorted({text for tally in tallies for text in tally.wrong})
    told = "; ".join(wrong[:3]) or "each logged loss, the weights and the optimiser's moments, to the last bit"
    about = f"{len(tallies)} trainings of {STEPS} steps, a checkpoint every {SAVE}"
    during = sum(tally.during_save for tally in tallies)
    return [
        at_least("train_kills", kills, goal, "", about),
        at_least("train_kills_bit_identical", identical, kills, "", told),
        Row("train_kills_during_save", during, "", note="a checkpoint was being written, replaced or linked"),
        at_most("train_steps_lost_max", max((n for t in tallies for n in t.lost), default=0), SAVE, "steps"),
    ]


def chain(context: Any, data: Path, run_folder: Path, draw: random.Random, life_s: float, reference: Any) -> Tally:
    """One training, killed up to A_CHAIN times, then left to end."""
    tally = Tally()
    shutil.rmtree(run_folder, ignore_errors=True)
    for _ in range(A_CHAIN):
        left = temporaries(run_folder)
        child = start(context, data, run_folder, resume=newest(run_folder) >= 0)
        killed, saving = kill(child, run_folder, draw, life_s, left)
        if not killed:  # it was faster
            if child.exitcode:
                tally.wrong.append(f"a run ended by itself with {child.exitcode}")
            break
        tally.kills += 1
        tally.during_save += saving
        if newest(run_folder) < 0:  # it begins anew, and what it has told is deleted
            told = facts(run_folder)[0]
            tally.lost.append(max((step for step, _ in told), default=0))
            tally.wrong += disagreements(told, reference[0])
    child = start(context, data, run_folder, resume=newest(run_folder) >= 0)
    child.join()
    if child.exitcode:
        tally.wrong.append(f"the last run ended with {child.exitcode}")
        return tally
    tally.lost += steps_again(run_folder)
    tally.wrong += differences(facts(run_folder), reference)
    return tally


def kill(child: Any, run_folder: Path, draw: random.Random, life_s: float, left: set[str]) -> tuple[bool, bool]:
    """SIGKILL at a random instant, one in three aimed at a save. Returns (whether it was alive, whether it saved).

    `left`: what killed predecessors had not renamed, which says nothing of this child.
    """
    began = time.perf_counter()
    if draw.random() < 1 / 3:
        skip = draw.randrange(3)  # which save it is
        while child.is_alive() and time.perf_counter() - began < 2 * life_s:
            if temporaries(run_folder) - left:
                if not skip:
                    time.sleep(draw.random() * 0.004)
                    break
                skip -= 1
                while child.is_alive() and temporaries(run_folder) - left:
                    time.sleep(0.0002)
            time.sleep(0.0002)
    else:
        until = draw.random() * 0.7 * life_s
        while child.is_alive() and time.perf_counter() - began < until:
            time.sleep(0.005)
    if not child.is_alive():
        child.join()
        return False, False
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    return child.exitcode == -signal.SIGKILL, bool(temporaries(run_folder) - left)


def temporaries(run_folder: Path) -> set[str]:
    """What saves have not renamed yet, or never will; the names have the process in them."""
    try:
        return {name for name in os.listdir(run_folder / "checkpoints") if name.startswith(".")}
    except OSError:
        return set()


def start(context: Any, data: Path, run_folder: Path, resume: bool) -> Any:
    """A child of the fork server that trains."""
    child = context.Process(target=training, args=(str(data), str(run_folder), resume))
    child.start()
    return child


def training(data: str, run_folder: str, resume: bool) -> None:
    """In the child: the real training, its words into a log beside the run."""
    from vla.train.loop import TrainConfig, train

    with Path(f"{run_folder}.log").open("a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    config = TrainConfig(
        dataset=data,
        out=Path(run_folder),
        recipe="tabletop_test",
        steps=STEPS,
        save_interval=SAVE,
        log_interval=1,
        val_interval=50,
        keep=2,
        threads=1,
        tensorboard=False,
        device="cpu",
        resume=resume,
        overwrite=not resume,
    )
    try:
        train(config)
    except BaseException as error:
        print(repr(error), flush=True)
        sys.exit(3)


def newest(run_folder: Path) -> int:
    """The step of the newest finished checkpoint, -1 if there is none."""
    from vla.checkpoint import steps_in

    found = steps_in(run_folder)
    return int(found[-1].name) if found else -1


def lines(run_folder: Path) -> list[dict[str, Any]]:
    """What the run has told; a line that a kill cut off is left out."""
    path = run_folder / "metrics.jsonl"
    found = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


def steps_again(run_folder: Path) -> list[int]:
    """For each place where the log goes back: how many steps that were told are told again. A step a line."""
    steps = [line["step"] for line in lines(run_folder) if "loss" in line]
    return [before + 1 - step for before, step in itertools.pairwise(steps) if step <= before]


def facts(run_folder: Path) -> tuple[dict[tuple[int, str], set[float]], list[bytes]]:
    """({(step, what): every value that was told of it}, the files of the last checkpoint)."""
    told: dict[tuple[int, str], set[float]] = {}
    for line in lines(run_folder):
        for name in line.keys() - TIMES - {"step"}:
            told.setdefault((line["step"], name), set()).add(line[name])
    last = run_folder / "checkpoints" / f"{STEPS:07d}"
    return told, [(last / name).read_bytes() if (last / name).exists() else b"" for name in FILES]


def disagreements(told: Any, expected: Any) -> list[str]:
    """In words, what was told otherwise than by the run that nobody killed."""
    return [f"{name} of step {step}" for (step, name), values in told.items() if values != expected.get((step, name))]


def differences(found: Any, reference: Any) -> list[str]:
    """In words, what differs from the run that nobody killed."""
    told, files = found
    expected, weights = reference
    wrong = disagreements(told, expected)
    wrong += [f"{step}: no {name}" for step, name in expected.keys() - told.keys()]
    return wrong[:5] + [name for name, ours, theirs in zip(FILES, files, weights, strict=True) if ours != theirs]
