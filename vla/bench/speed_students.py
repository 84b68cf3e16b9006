# SPDX-License-Identifier: Apache-2.0
"""What a student of one evaluation keeps of its teacher of eight: success on the tabletop, modes of a bimodal task."""

import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from vla import randomness
from vla.bench import fork
from vla.bench.ladder import one_thread_processes
from vla.bench.lattice_rows import over_seeds
from vla.bench.results import Row
from vla.diffusion import Sampling, total_loss
from vla.diffusion.distillation import distillation_losses, taught
from vla.model import LatticeModel

TEACHER = 8
"""Evaluations."""


def mode_rows(config: Any) -> list[Row]:
    """`config`: a SpeedConfig. The task of `fork`: one mask in eight evaluations teaches one evaluation, at which it
    could not do it itself."""
    seeds, steps = (1, 60) if config.quick else (3, 1000)
    with one_thread_processes(min(seeds, len(os.sched_getaffinity(0)))) as pool:
        found = list(pool.map(measured, range(seeds), [steps] * seeds))
    ratios = [f["student"]["coverage"] / f["teacher"]["coverage"] if f["teacher"]["coverage"] else 0.0 for f in found]

    def said(who: str, what: str) -> str:
        return f"{sum(f[who][what] for f in found) / seeds:.3f}"

    note = f"bimodal task, over that of the teacher at {TEACHER} ({said('teacher', 'coverage')}); the teacher at 1: "
    note += f"{said('before', 'coverage')}"
    right = f"the teacher at {TEACHER}: {said('teacher', 'joint')}, at 1: {said('before', 'joint')}"
    return [
        over_seeds("student_mode_coverage", ratios, "ratio", ">= 0.9", lambda mean: mean >= 0.9, note),
        over_seeds("student_joint", [f["student"]["joint"] for f in found], note=right),
    ]


def measured(seed: int, steps: int) -> dict[str, dict[str, float]]:
    """What the teacher, the teacher at one evaluation, and its student do on the task."""
    teacher = fork.train(fork.SINGLE, steps, seed)
    student = distilled(teacher, steps, seed)
    taught_as = replace(fork.SINGLE, noise_indices=student.config.noise_indices, single_mask=False)
    return {
        "teacher": fork.measure(teacher, fork.SINGLE, TEACHER, 1.0),
        "before": fork.measure(teacher, fork.SINGLE, 1, 1.0),
        "student": fork.measure(student, taught_as, 1, 0.0),
    }


def distilled(teacher: LatticeModel, steps: int, seed: int, batch: int = 128) -> LatticeModel:
    """A student of one evaluation, taught on the observations of `fork`."""
    from vla.train.student import student_of

    student = student_of(teacher, fork.NOISE_INDICES, seed)
    optimiser = torch.optim.AdamW(student.parameters(), lr=2e-3, weight_decay=0.01)
    said = torch.ones(batch, 1, dtype=torch.long)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = 2e-3 * min(1, (step + 1) / 100) * (1 + math.cos(math.pi * step / steps)) / 2
        key_B = randomness.fold(1000 + seed, step, torch.arange(batch))
        observation, digits, _ = fork.data(key_B)
        given = fork.nothing(digits)
        with torch.no_grad():
            prefix = teacher.encode({}, observation, said)
        digits = taught(teacher, prefix, key_B, Sampling(TEACHER, 1.0, single_mask=True), given)
        prefix = student.encode({}, observation, said)
        loss = total_loss(distillation_losses(student, prefix, digits, given, key_B, 1, fork.CANDIDATES))
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimiser.step()
    return student.eval()


def student_rows(config: Any) -> list[Row]:
    """`config`: a SpeedConfig. The shipped policy in eight evaluations teaches a student of one; these and the teacher
    at one, same episodes."""
    from vla.data.record import RecordConfig, record
    from vla.eval.episodes import read_results
    from vla.eval.evaluate import EvalConfig, evaluate
    from vla.eval.statistics import compare_paired
    from vla.train.distill import DistillConfig, distill

    scenes, steps, episodes = (15, 20, 15) if config.quick else (1500, 2000, 600)
    folder: Path = config.out
    data = folder / "scenes"
    if not data.exists():
        record(RecordConfig(suite="all", episodes=scenes, out=data))
    how = DistillConfig("tabletop_nano", str(data), folder / "student", steps=steps, overwrite=True)
    student = distill(how)["checkpoint"]
    found = {}
    for name, policy, evaluations in (
        ("teacher", "tabletop_nano", TEACHER),
        ("before", "tabletop_nano", 1),
        ("student", student, 1),
    ):
        out = folder / f"eval-{name}"
        settings = EvalConfig(
            policy, suite="all", episodes=episodes, evaluations=evaluations, out=out, videos=0, overwrite=True
        )
        evaluate(settings)
        found[name] = {(r.task, r.seed): r.success for r in read_results(out / "episodes.jsonl")}
    share = {name: sum(solved.values()) / len(solved) for name, solved in found.items()}
    pair = compare_paired(found["teacher"], found["student"])
    ratio = share["student"] / share["teacher"] if share["teacher"] else 0.0
    lower, upper = (100 * x for x in pair.interval)
    note = f"all fifteen tasks: {100 * share['student']:.1f} against {100 * share['teacher']:.1f} % at {TEACHER} "
    note += f"evaluations; paired, {100 * pair.difference:+.1f} points ({lower:.1f} to {upper:.1f}); the teacher at 1: "
    note += f"{100 * share['before']:.1f} %"
    return [Row("student_success_ratio", ratio, "ratio", pair.n, None, ">= 0.97", ratio >= 0.97, note)]
