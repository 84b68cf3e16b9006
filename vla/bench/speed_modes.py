# SPDX-License-Identifier: Apache-2.0
"""What a student of one step keeps of its teacher of eight, on the bimodal task (fork.py): one mask in eight steps
teaches one step, at which it could not do it itself."""

import os
from typing import Any

import torch
from torch import Tensor

from vla import randomness
from vla.bench import fork
from vla.bench.ladder import one_thread_processes
from vla.bench.lattice_rows import over_seeds
from vla.bench.results import Row
from vla.diffusion import Sampling, total_loss
from vla.diffusion.distillation import distillation_losses, taught
from vla.model import LatticeModel

TEACHER = 8
"""Steps."""


def mode_rows(config: Any) -> list[Row]:
    """`config`: a SpeedConfig."""
    seeds, steps = (1, 60) if config.quick else (3, 1000)
    with one_thread_processes(min(seeds, len(os.sched_getaffinity(0)))) as pool:
        found = list(pool.map(measured, range(seeds), [steps] * seeds))

    def row(name: str, who: str, what: str, note: str) -> Row:
        return over_seeds(f"{name}_{what}", [f[who][what] for f in found], note=note)

    drawn = f"temperature 1, as it teaches: a chunk counts if it is right, so this is also how often, {TEACHER} steps"
    return [
        row("student", "student", "coverage", "one step, arg max under a noise index that is drawn"),
        row("teacher", "teacher", "coverage", drawn),
        row("teacher_1", "before", "coverage", "the teacher in one step, temperature 1"),
        row("student", "student", "joint", "one step"),
        row("teacher", "teacher", "joint", f"{TEACHER} steps"),
    ]


def measured(seed: int, steps: int) -> dict[str, dict[str, float]]:
    """What the teacher, the teacher in one step, and its student do on the task."""
    teacher = fork.train(fork.VARIANTS["single_mask"], steps, seed)
    return {
        "teacher": fork.measure(teacher, True, False, TEACHER, 1.0),
        "before": fork.measure(teacher, True, False, 1, 1.0),
        "student": fork.measure(distilled(teacher, steps, seed), False, True, 1, 0.0),
    }


def distilled(teacher: LatticeModel, steps: int, seed: int, batch: int = 128) -> LatticeModel:
    """A student of one step, taught on the observations of `fork`."""
    from vla.train.student import student_of

    student = student_of(teacher, fork.NOISE_INDICES, seed)

    def loss(step: int) -> Tensor:
        key_B = randomness.fold(1000 + seed, step, torch.arange(batch))
        observation, digits, _ = fork.data(key_B)
        given = fork.nothing(digits)
        with torch.no_grad():
            context = fork.read(teacher, observation)
        digits = taught(teacher, context, key_B, Sampling(TEACHER, 1.0, single_mask=True), given)
        context = fork.read(student, observation)
        return total_loss(distillation_losses(student, context, digits, given, key_B, 1, fork.CANDIDATES))

    return fork.fit(student, loss, steps)
