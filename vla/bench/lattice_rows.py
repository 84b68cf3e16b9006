# SPDX-License-Identifier: Apache-2.0
"""The rows of `vla bench lattice`: what the cells measured, against the goals."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from vla.bench.ladder import MEANING, NFES
from vla.bench.results import Row, mean_interval, not_worse

Found = dict[str, Any]
"""What a cell measured."""


def over_seeds(
    id: str,
    values: Sequence[float],
    unit: str = "fraction",
    goal: str = "",
    good: Callable[[float], bool] | None = None,
    note: str = "",
) -> Row:
    """Mean over seeds with its t-interval; `good`: whether the mean meets the goal."""
    finite = all(map(math.isfinite, values))
    mean, interval = mean_interval(values) if finite else (math.inf, None)
    if interval and unit == "fraction":
        interval = max(0.0, interval[0]), min(1.0, interval[1])
    return Row(id, mean, unit, len(values), interval, goal, good(mean) if good else None, note)


def fork_rows(forks: list[Found]) -> list[Row]:
    """The bimodal task in one step: the lattice and one mask, each with a noise index and without."""

    def of(name: str, sampler: str, what: str) -> list[float]:
        return [f[sampler][what] for f in forks if f["name"] == name]

    def mean(name: str) -> float:
        values = of(name, "nfe1_t0", "joint")
        return sum(values) / len(values)

    low = max(mean(name) for name in ("lattice_no_index", "single_mask"))
    joint = over_seeds(
        "bimodal_joint_1nfe",
        of("lattice", "nfe1_t0", "joint"),
        goal="at least 0.90, without an index at most 0.55",
        good=lambda mean: mean >= 0.90 and low <= 0.55,
        note="2,000 chunks a seed; digits by arg max, the noise index drawn",
    )
    rows, without = [joint], {"no_index": "lattice_no_index", "single_mask": "single_mask"}
    for end, name in (without | {"single_mask_index": "single_mask_index"}).items():
        rows.append(over_seeds(f"bimodal_joint_1nfe_{end}", of(name, "nfe1_t0", "joint"), note="arg max"))
    for end, name in without.items():
        drawn = of(name, "nfe1_t1", "joint")
        rows.append(over_seeds(f"bimodal_joint_1nfe_{end}_sampled", drawn, note="temperature 1"))
    coverage = of("lattice", "nfe1_t0", "coverage")
    note = "sum over both modes of min(frequency, 1/2)"
    rows.append(over_seeds("mode_coverage", coverage, "fraction", "at least 0.90", lambda mean: mean >= 0.90, note))
    for name in ("single_mask", "single_mask_index"):
        rows.append(over_seeds(f"mode_coverage_{name}", of(name, "nfe1_t0", "coverage"), note="arg max"))
    return rows


def world_rows(prefix: str, cells: dict[str, list[Found]], note: str = "") -> list[Row]:
    """The recipe ("lattice") against one mask in one world; ids begin with `prefix`.

    Where "noise" was measured too, its likelihoods follow under ids that end in "_noise". `note`: what to know of this
    world's single mask.
    """
    ours, single = cells["lattice"], cells["single_mask"]
    rows = success_rows(ours, single) + likelihood_rows(ours, single) + learning_rows(ours, single)
    if "noise" in cells:
        with_noise = [*likelihood_rows(cells["noise"], single), steps_row(cells["noise"], single)]
        rows += [replace(row, id=f"{row.id}_noise") for row in with_noise if not row.id.startswith("single_mask")]
    return [replace(row, id=prefix + row.id, note="; ".join(filter(None, (row.note, note)))) for row in rows]


def success_rows(ours: list[Found], single: list[Found]) -> list[Row]:
    """Success in simulation at 1, 2, 4 and 8 steps, all seeds together (a scene counts once for each training).

    More steps must not be worse, and two of them not worse than eight of one mask, each paired and within a margin.
    """
    from vla.eval.statistics import compare_paired, wilson_interval

    def pooled(of: list[Found], n: int) -> dict[tuple[str, int], bool]:
        return {(episode, c["seed"]): success for c in of for episode, success in c["successes"][str(n)].items()}

    def row(id: str, episodes: dict[tuple[str, int], bool], *judgement: Any) -> Row:
        k, n = sum(episodes.values()), len(episodes)
        return Row(id, k / n, "fraction", n, wilson_interval(k, n), *judgement)

    rows: list[Row] = []
    for place, n in enumerate(NFES):
        episodes, passes, notes = pooled(ours, n), True, []
        references = {f"success_nfe_{NFES[place - 1]}": pooled(ours, NFES[place - 1])} if place else {}
        if n == 2:
            references["single_mask_nfe_8"] = pooled(single, 8)
        for name, reference in references.items():
            pair = compare_paired(reference, episodes)
            goal, good = not_worse(pair.interval[0])
            points = [f"{100 * x:+.1f}" for x in (pair.difference, *pair.interval)]
            notes.append(f"minus {name}, paired: {points[0]} ({points[1]} to {points[2]}) points")
            passes &= good
        judgement = (f"minus {' and '.join(references)}: {goal}", passes) if references else ("", None)
        rows.append(row(f"success_nfe_{n}", episodes, *judgement, "; ".join(notes)))
    return rows + [row(f"single_mask_nfe_{n}", pooled(single, n)) for n in NFES]


def likelihood_rows(ours: list[Found], single: list[Found]) -> list[Row]:
    """Bits a chunk; the gap is over the lower chain of the two networks, so that none gains by a bad chain."""
    chains = [min(a["chain_bits"], b["chain_bits"]) for a, b in zip(ours, single, strict=True)]

    def gaps(of: list[Found], t: int) -> list[float]:
        return [c["bits"][str(t)] - chain for c, chain in zip(of, chains, strict=True)]

    rows = [
        over_seeds(
            "factorisation_gap_ratio_t2",
            [a / b for a, b in zip(gaps(ours, 2), gaps(single, 2), strict=True)],
            "ratio",
            "at most 0.70",
            lambda mean: mean <= 0.70,
            "gap over that of one mask, both above the lower chain of the two networks",
        )
    ]
    for t in (1, 2, 4):
        rows.append(over_seeds(f"factorisation_gap_t{t}", gaps(ours, t), "bits"))
        rows.append(over_seeds(f"single_mask_gap_t{t}", gaps(single, t), "bits"))
    rows.append(over_seeds("chain_bits", [c["chain_bits"] for c in ours], "bits"))
    rows.append(over_seeds("single_mask_chain_bits", [c["chain_bits"] for c in single], "bits"))
    return rows


def learning_rows(ours: list[Found], single: list[Found]) -> list[Row]:
    """Loss coverage, gradient noise, steps to the likelihood that plain masking ends with."""
    plain = sum(c["gradient_plain"]["coverage"] for c in ours) / len(ours)
    return [
        over_seeds(
            "loss_coverage",
            [c["gradient"]["coverage"] for c in ours],
            goal="1",
            good=lambda mean: mean >= 1,
            note=f"plain masking {plain:.3f}",
        ),
        over_seeds(
            "grad_variance_ratio",
            [c["gradient"]["variance"] / c["gradient_plain"]["variance"] for c in ours],
            "ratio",
            "at most 0.5",
            lambda mean: mean <= 0.5,
            "same weights, batch and number of copies; variance over squared mean",
        ),
        steps_row(ours, single),
    ]


def steps_row(ours: list[Found], single: list[Found]) -> Row:
    """Steps to the likelihood that one mask ends with."""
    return over_seeds(
        "steps_to_target_ratio",
        [steps_to(a["curve"], b["curve"][-1][1]) / b["curve"][-1][0] for a, b in zip(ours, single, strict=True)],
        "ratio",
        "at most 0.5",
        lambda mean: mean <= 0.5,
        "target: the bits a chunk, 2 steps, that one mask ends with; null: not reached by every seed",
    )


def steps_to(curve: list[list[float]], target: float) -> float:
    """The step at which a curve of [step, value] first is at or below `target`, interpolated; infinite if never."""
    for (a, x), (b, y) in zip([curve[0], *curve], curve, strict=False):
        if y <= target:
            return b if y == x else b - (b - a) * (target - y) / (x - y)
    return math.inf


def tokenizer_rows(table: list[Found]) -> list[Row]:
    """Totality and falling error of our tokenizers; the whole table is among the results."""
    ours = [t for t in table if not t["tokenizer"].startswith("fast")]
    broken = sum(t["undecodable"] for t in ours)
    falls = [all(b < a for a, b in zip(t["rmse_by_level"], t["rmse_by_level"][1:], strict=False)) for t in ours]
    levels = "; ".join(f"{t['tokenizer']} " + " > ".join(f"{x:.4f}" for x in t["rmse_by_level"]) for t in ours)
    return [
        Row("undecodable", broken, "strings", 100_000 * len(ours), None, "0", broken == 0, "random token strings"),
        Row(
            "rmse_by_level", sum(falls) / len(falls), "fraction", len(ours), None, "falls strictly", all(falls), levels
        ),
    ]


def ladder_entry(variant: str, of: list[Found]) -> Found:
    """One step of the ladder: means over seeds."""
    entry: Found = {"variant": variant, "meaning": MEANING[variant], "seeds": len(of)}
    for n in NFES:
        found = mean_interval([c["success"][str(n)] for c in of])
        entry[f"success_nfe_{n}"], entry[f"success_nfe_{n}_interval"] = found
    for t in ("1", "2", "4"):
        entry[f"bits_t{t}"] = mean_interval([c["bits"][t] for c in of])[0]
        entry[f"bits_plain_mask_t{t}"] = mean_interval([c["bits_plain_mask"][t] for c in of])[0]
    entry["chain_bits"] = mean_interval([c["chain_bits"] for c in of])[0]
    entry["train_s"] = mean_interval([c["train_s"] for c in of])[0]
    return entry
