# SPDX-License-Identifier: Apache-2.0
"""`vla bench queries` in closed loop: one checkpoint run in several ways, and acting after learning more or less."""

from typing import TYPE_CHECKING, Any

import numpy as np

from vla.bench.query_networks import LOW_DATA, SHORT
from vla.bench.results import Row
from vla.eval.statistics import PairedComparison, compare_paired, wilson_interval

if TYPE_CHECKING:
    from vla.bench.queries import QueriesConfig

Episodes = dict[tuple[str, int], Any]
"""(task, seed) -> result."""

SURE = 0.3
"""A chunk is executed for as long as every action is this sure."""
DELAY = 4


def closed_loop_rows(config: "QueriesConfig") -> list[Row]:
    """The same checkpoint, run in different ways on the same episodes."""

    def run(name: str, **how: Any) -> Episodes:
        return config.networks.evaluate(unified, name, len(config.repeated), **how)

    unified = config.networks.checkpoint("unified", 0)
    plain = run("actions")
    n = len(plain)
    rows = []
    success = sum(r.success for r in plain.values())
    rows.append(Row("unified_success", success / n, "success", n, wilson_interval(success, n)))
    joint = run("joint", decoding="joint")
    turns = run("one_by_one", decoding="one_by_one")
    paired = _paired(turns, joint)
    rows.append(
        Row(
            "joint_minus_sequential",
            paired.difference,
            "success",
            n,
            paired.interval,
            ">= 0",
            paired.difference >= 0,
            f"joint {_rate(joint):.1%}, one segment after the other {_rate(turns):.1%}; p = {paired.p_value:.2g}",
        )
    )
    sure = run("sure", sure_above=SURE)
    calls, fewer = (np.mean([r.policy_calls for r in of.values()]) for of in (plain, sure))
    paired = _paired(plain, sure)
    saved = float(1 - fewer / calls)
    rows.append(
        Row(
            "evaluations_saved",
            saved,
            "fraction",
            n,
            goal=">= 0.3 at equal success",
            passes=saved >= 0.3 and paired.interval[1] >= 0,
            note=f"success {_rate(sure):.1%} instead of {_rate(plain):.1%} (difference {_interval(paired)}); "
            f"{fewer:.1f} chunks an episode instead of {calls:.1f}",
        )
    )
    late = run(f"delay_{DELAY}", delay=DELAY)
    naive = run(f"delay_{DELAY}_naive", delay=DELAY, naive=True)
    paired = _paired(late, plain)
    rows.append(
        Row(
            "delay_4_drop",
            paired.difference,
            "success",
            n,
            paired.interval,
            "<= 0.12",
            paired.difference <= 0.12,
            f"success {_rate(late):.1%} at a delay of {DELAY} steps; not told what is executed: {_rate(naive):.1%}",
        )
    )
    return rows


def image_rows(config: "QueriesConfig") -> list[Row]:
    """Success of acting alone, after as many steps that also learnt to expect pictures."""
    found = {cell: _acted(config, *cell) for cell in SHORT}
    ours, without = (found[cell] for cell in SHORT)
    gain = _paired(without, ours)
    note = f"with {_rate(ours):.1%}, without {_rate(without):.1%}; {_trained(config)}"
    passes = gain.difference > 0.02
    return [Row("future_image_gain", gain.difference, "success", gain.n, gain.interval, "> +0.02", passes, note)]


def low_data_rows(config: "QueriesConfig") -> list[Row]:
    """Success of acting, learnt from a tenth of the demonstrations.

    Every question against actions alone, first where nothing else is there, then where the other nine tenths are there
    without their actions (pictures, words, plans and the robot's state): from these there is nothing to learn for who
    learns actions alone. Every question includes that of what leads to waypoints, on which it acts where films taught
    it these (a hundred scenes do not: LOG.md, 2026-11-27). `aid_with_video`: actions alone, and where the robot will
    be (the recipe's `ahead`) learnt from the films as well.
    """
    found = {cell: _acted(config, *cell) for cell in LOW_DATA}
    alone = found["actions", "tenth"]
    sizes, rows = config.networks.sizes, []
    for id, cell, goal in (
        ("low_data_ratio", ("every", "tenth"), 1.2),
        ("low_data_video_ratio", ("every", "video"), 1.2),
        ("low_data_aid_with_video_ratio", ("actions", "video"), None),
    ):
        ours, paired = found[cell], _paired(alone, found[cell])
        ratio = _rate(ours) / max(_rate(alone), 1 / paired.n)
        note = f"{_rate(ours):.1%}, actions alone {_rate(alone):.1%} (difference {_interval(paired)}); "
        note += f"{sizes.scarce} demonstrations"
        note += f" and {9 * sizes.scarce} without actions" if cell[1] == "video" else ""
        note += f", {_trained(config)}"
        said, passes = (f">= {goal:g}", ratio >= goal) if goal else ("", None)
        rows.append(Row(id, ratio, "ratio", paired.n, goal=said, passes=passes, note=note))
    return rows


def _acted(config: "QueriesConfig", name: str, kind: str) -> Episodes:
    """The episodes of all trainings of a network, acting alone, on waypoints where films taught them; "task seed" for
    their tasks."""
    found: Episodes = {}
    for seed in config.repeated:
        how: dict[str, Any] = {"decoding": "waypoints"} if (name, kind) == ("every", "video") else {}
        of = config.networks.evaluate(config.networks.checkpoint(name, seed, kind), f"{name}-{kind}-{seed}", **how)
        found |= {(f"{task} {seed}", episode): r for (task, episode), r in of.items()}
    return found


def _trained(config: "QueriesConfig") -> str:
    return f"{len(config.repeated)} trainings of {config.networks.sizes.pair_steps} steps each"


def _rate(of: Episodes) -> float:
    return float(np.mean([r.success for r in of.values()]))


def _paired(a: Episodes, b: Episodes) -> PairedComparison:
    return compare_paired({k: r.success for k, r in a.items()}, {k: r.success for k, r in b.items()})


def _interval(paired: PairedComparison) -> str:
    return f"{paired.interval[0]:+.1%} to {paired.interval[1]:+.1%}"
