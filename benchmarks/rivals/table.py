# SPDX-License-Identifier: Apache-2.0
"""The rows of the table: what each contender reached, what it cost, and ours against each on the same episodes."""

import math
from collections.abc import Mapping
from typing import Any

from benchmarks.rivals.cells import CONTENDERS, OURS
from vla.bench.results import Row, not_worse

Found = dict[str, Any]
"""What a cell measured."""
LATE = 0.1
"""A training that took so much more or less than its minutes is remarked upon."""
UNFAIR = (
    "for LeRobot's policies: they read our frame cache (their own decoding is tens of times slower), are averaged over "
    "the steps (their trainer has no EMA), and their precision is chosen before the clock starts",
    "for LeRobot's policies: ours validates on held-out episodes every 500 steps and writes checkpoints on the clock",
    "against LeRobot's policies: their learning rates were chosen in trials of minutes, the rest of their "
    "configuration by hand; our recipe was tuned on this tabletop for weeks",
    "against ACT, Diffusion and VQ-BeT: they read no language; a code of the sentence is part of their state, so the "
    "pictures are encoded without it, where ours are encoded for the instruction",
    "against VQ-BeT: it cannot leave out what lies beyond the end of an episode, so it learns the repeated last action",
    "against multi_task_dit: its text encoder is frozen and drawn at random, where its authors have a pretrained CLIP",
    "for the four of our network: where the recipe says so, their vision also sees how a picture differs from the "
    "dataset's mean, and learns where the robot will be",
    "for ours and single_mask: where the recipe says so, they are also asked other queries (how a chunk that has begun "
    "goes on, where the robot will be), about the same pictures",
    "for ours: the recipe was tuned on the tabletop, and the autoregressive, regression and single-mask rivals take "
    "its learning rate and schedule as they are",
)
"""What a reader has to know; in the results file."""


def rows(prefix: str, found: Mapping[str, Found], not_run: Mapping[str, str], minutes: float | None) -> list[Row]:
    """All rows, contenders in their fixed order. `not_run`: contender -> why."""
    made: list[Row] = []
    for name in CONTENDERS:
        if name in not_run:
            made.append(Row(f"{prefix}_{name}", math.nan, "success", note=f"not run: {not_run[name]}"))
        elif name in found:
            made += own_rows(f"{prefix}_{name}", name, found[name], minutes)
    if OURS in found:
        made += [
            versus(prefix, name, found[OURS], found[name]) for name in CONTENDERS if name in found and name != OURS
        ]
    return made


def own_rows(id: str, name: str, of: Found, minutes: float | None) -> list[Row]:
    """What one contender reached and cost."""
    import numpy as np

    train, summary, times = of["train"], of["summary"], of["latency_ms"]
    p50, p95 = (float(x) for x in np.percentile(times, [50, 95]))
    note = f"{train['precision']}; optimiser steps {train['steps']:,}"
    if minutes is not None and abs(train["train_s"] / (60 * minutes) - 1) > LATE:
        note += f"; not the {minutes:g} minutes that it was given: the machine's speed changed"
    return [
        Row(id, summary["success"], "success", summary["n"], tuple(summary["interval"]), note=CONTENDERS[name]),
        Row(f"{id}_parameters", train["parameters"], "parameters"),
        Row(f"{id}_train_s", train["train_s"], "s", note=note),
        Row(f"{id}_steps", train["steps"], "steps"),
        Row(f"{id}_latency_p50_ms", p50, "ms", len(times), note="one observation to its chunk"),
        Row(f"{id}_latency_p95_ms", p95, "ms", len(times)),
    ]


def versus(prefix: str, name: str, ours: Found, rival: Found) -> Row:
    """Ours minus the rival on the same (task, seed) episodes. ValueError if the episodes differ."""
    from vla.eval.statistics import compare_paired

    pair = compare_paired(rival["successes"], ours["successes"])
    goal, passes = not_worse(pair.interval[0])
    return Row(
        f"{prefix}_vs_{name}",
        pair.difference,
        "fraction",
        pair.n,
        pair.interval,
        goal,
        passes,
        f"paired, ours minus {name}: only ours solves {pair.only_b}, only {name} {pair.only_a}; "
        f"exact McNemar p = {pair.p_value:.3g}",
    )
