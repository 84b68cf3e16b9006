# SPDX-License-Identifier: Apache-2.0
"""What faster ways do to success: eight bits, and a student of one step, on episodes of all fifteen tasks.

Each is compared on the same episodes with what it replaces: the exact weights, and the teacher in one step as well as
in eight, because a teacher that needs no more steps has nothing to teach.
"""

import shutil
from pathlib import Path
from typing import Any

from vla.bench.results import MARGIN, Row, not_worse

TEACHER = 8
"""Steps."""
POLICY = "tabletop_nano"


def int8_success_rows(config: Any) -> list[Row]:
    """The shipped policy with weights of eight bits: success lost, size. `config`: a SpeedConfig."""
    from vla import checkpoint
    from vla.data.record import RecordConfig, record
    from vla.eval.statistics import compare_paired
    from vla.train.quantize import QuantizeConfig, quantize

    folder, episodes = config.out, 15 if config.quick else 600
    data, small = folder / "dataset", folder / "int8"
    if not data.exists():
        record(RecordConfig(episodes=40, out=data, shard_episodes=20))
    shutil.rmtree(small, ignore_errors=True)
    made = quantize(QuantizeConfig(POLICY, str(data), small))
    pair = compare_paired(
        solved(str(small), folder / "eval-int8", episodes), solved(POLICY, folder / "eval-exact", episodes)
    )
    worst = max(made["loss_after"][ratio] - made["loss"][ratio] for ratio in made["loss"])
    size_mb = (checkpoint.resolve(str(small)) / "model.safetensors").stat().st_size / 1e6
    note = f"all fifteen tasks, paired; the loss of masked digits grows by {worst:.4f} nats, {size_mb:.2f} MB"
    high, size = pair.interval[1], made["size_ratio"]
    goal = f"upper end <= {100 * MARGIN:g} points"
    return [
        Row("int8_success_loss", pair.difference, "fraction", pair.n, pair.interval, goal, high <= MARGIN, note),
        Row("int8_size_ratio_nano", size, "", goal="<= 0.3", passes=size <= 0.3),
    ]


def student_rows(config: Any) -> list[Row]:
    """The shipped policy in eight steps teaches a student of one. `config`: a SpeedConfig."""
    from vla.data.record import RecordConfig, record
    from vla.eval.statistics import compare_paired
    from vla.train.distill import DistillConfig, distill

    scenes, steps, episodes = (15, 20, 15) if config.quick else (1500, 2000, 600)
    folder: Path = config.out
    data = folder / "scenes"
    if not data.exists():
        record(RecordConfig(suite="all", episodes=scenes, out=data))
    student = distill(DistillConfig(POLICY, str(data), folder / "student", steps=steps, overwrite=True))["checkpoint"]
    found = {
        "teacher": solved(POLICY, folder / "eval-teacher", episodes, TEACHER),
        "teacher_at_1": solved(POLICY, folder / "eval-before", episodes, 1),
        "student": solved(student, folder / "eval-student", episodes, 1),
    }
    share = {name: sum(of.values()) / len(of) for name, of in found.items()}
    rows = []
    for name in ("teacher", "teacher_at_1"):
        pair = compare_paired(found[name], found["student"])
        goal, passes = not_worse(pair.interval[0]) if name == "teacher" else ("interval above 0", pair.interval[0] > 0)
        note = f"all fifteen tasks, paired: {100 * share['student']:.1f} against {100 * share[name]:.1f} %"
        rows.append(
            Row(f"student_minus_{name}", pair.difference, "fraction", pair.n, pair.interval, goal, passes, note)
        )
    return rows


def solved(policy: str, out: Path, episodes: int, steps: int | None = None) -> dict[tuple[str, int], bool]:
    """(task, seed) -> whether it was solved."""
    from vla.eval.episodes import read_results
    from vla.eval.evaluate import EvalConfig, evaluate

    evaluate(
        EvalConfig(policy, suite="all", episodes=episodes, num_inference_steps=steps, out=out, videos=0, overwrite=True)
    )
    return {(r.task, r.seed): r.success for r in read_results(out / "episodes.jsonl")}
