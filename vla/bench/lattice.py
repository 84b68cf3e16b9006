# SPDX-License-Identifier: Apache-2.0
"""`vla bench lattice`: does each part of the mask lattice pay, against one mask on the same network, data and steps?

Whole: about 75 minutes on two cores. --quick: a few minutes, small, proves nothing.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vla.bench.ladder import MEANING, NFES, VARIANTS, Cell, World, record, run_cells
from vla.bench.results import Row, mean_interval, results
from vla.bench.run import BenchConfig


def worlds(config: BenchConfig) -> list[World]:
    """From state: the whole ladder on all fifteen tasks. From pixels: its two ends on reach and push."""
    q, both = config.quick, ("single_mask", "lattice")
    state = World(
        "state",
        "tabletop_state",
        "all",
        "tabletop_state",
        config.out / ("state-quick" if q else "state"),
        300 if q else 6000,
        40 if q else 2500,
        15 if q else 150,
        both if q else tuple(VARIANTS),
    )
    pixels = World(
        "pixels",
        "tabletop",
        "demo",
        "tabletop_nano",
        config.out / "pixels",
        6000,
        2500,
        100,
        both,
    )
    return [state] if q else [state, pixels]


def run(config: BenchConfig) -> dict[str, Any]:
    """Measure everything that is not on disk yet; returns the results, and draws plots into `config.out`."""
    from rich.console import Console

    console = Console(highlight=False)
    config.out.mkdir(parents=True, exist_ok=True)
    seeds = range(1 if config.quick else config.seeds)
    places = worlds(config)
    for world in places:
        record(world)
    cells = [Cell(w, v, seed, config.out) for w in places for seed in seeds for v in w.variants]
    forks = [
        fork_cell(config.out, name, seed, 60 if config.quick else 700, console)
        for name in ("single_mask", "lattice")
        for seed in seeds
    ]
    found = run_cells(cells, 2, console)
    tokenizers = tokenizer_rows(places[0])
    rows = fork_rows(forks)
    for world in places:
        by_variant = {v: [found[world.name, v, seed] for seed in seeds] for v in world.variants}
        rows += world_rows(world, by_variant)
    rows += table_rows(tokenizers)
    from vla.bench.plots import curves_plot, ladder_plot

    state = {v: [found["state", v, seed] for seed in seeds] for v in places[0].variants}
    ladder = [ladder_entry(v, cells_of) for v, cells_of in state.items()]
    ladder_plot(
        [
            {
                "name": MEANING[v],
                "values": [100 * c["success"]["2"] for c in of],
                "interval": mean_interval([100 * c["success"]["2"] for c in of])[1],
                "highlight": v == "lattice",
            }
            for v, of in state.items()
        ],
        config.out / "ladder.png",
        "Success at 2 evaluations, from state",
        "success, %",
    )
    curves_plot(
        {MEANING[v]: [(n, *_curve([100 * c["success"][str(n)] for c in of])) for n in NFES] for v, of in state.items()},
        config.out / "success_nfe.png",
        "Success against evaluations, from state",
        "evaluations of the network",
        "success, %",
        logx=True,
    )
    curves_plot(
        {
            MEANING[v]: [
                (of[0]["curve"][i][0], *_curve([c["curve"][i][1] for c in of])) for i in range(len(of[0]["curve"]))
            ]
            for v, of in state.items()
        },
        config.out / "learning.png",
        "Held-out chunks under the sampler of 2 evaluations",
        "training steps",
        "bits a chunk",
    )
    return results("lattice", rows, list(seeds), {"ladder": ladder, "tokenizers": tokenizers, "quick": config.quick})


def _curve(values: Sequence[float]) -> tuple[float, float, float]:
    mean, interval = mean_interval(values)
    return (mean, *(interval or (mean, mean)))


# --- the bimodal task ------------------------------------------------------------------------------------------------
def fork_cell(out: Path, name: str, seed: int, steps: int, console: Any) -> dict[str, Any]:
    """Train and measure the bimodal task, or read what was measured."""
    import torch

    from vla.bench import fork
    from vla.eval.episodes import write_atomically

    path = out / f"fork-{name}-{seed}-{steps}.json"
    if not path.exists():
        torch.set_num_threads(2)
        variant = fork.LATTICE if name == "lattice" else fork.SINGLE
        model = fork.train(variant, steps, seed)
        found: dict[str, Any] = {"name": name, "seed": seed, "steps": steps}
        for evaluations in (1, 2, 8):
            for temperature in (0.0, 1.0):
                found[f"nfe{evaluations}_t{temperature:.0f}"] = fork.measure(model, variant, evaluations, temperature)
        write_atomically(path, json.dumps(found))
        console.print(f"fork {name} seed {seed}: {found['nfe1_t0']}")
    return json.loads(path.read_text())


def fork_rows(forks: list[dict[str, Any]]) -> list[Row]:
    def values(name: str, key: str, what: str) -> list[float]:
        return [f[key][what] for f in forks if f["name"] == name]

    def seeds(id: str, found: list[float], **more: Any) -> Row:
        mean, interval = mean_interval(found)
        return Row(id, mean, "fraction", len(found), interval, **more)

    ours, single = values("lattice", "nfe1_t0", "joint"), values("single_mask", "nfe1_t0", "joint")
    coverage = values("lattice", "nfe1_t0", "coverage")
    low = sum(single) / len(single)
    return [
        seeds(
            "bimodal_joint_1nfe",
            ours,
            goal="at least 0.90, single mask at most 0.55",
            passes=sum(ours) / len(ours) >= 0.90 and low <= 0.55,
            note="2,000 chunks a seed; digits by arg max, the noise index drawn",
        ),
        seeds("bimodal_joint_1nfe_single_mask", single, note="arg max"),
        seeds(
            "bimodal_joint_1nfe_single_mask_sampled", values("single_mask", "nfe1_t1", "joint"), note="temperature 1"
        ),
        seeds(
            "mode_coverage",
            coverage,
            goal="at least 0.90",
            passes=sum(coverage) / len(coverage) >= 0.90,
            note="sum over both modes of min(frequency, 1/2)",
        ),
        seeds("mode_coverage_single_mask", values("single_mask", "nfe1_t0", "coverage")),
    ]


# --- the worlds ------------------------------------------------------------------------------------------------------
def world_rows(world: World, cells: dict[str, list[dict[str, Any]]]) -> list[Row]:
    """The rows of one world, "lattice" against "single_mask"."""
    from vla.eval.statistics import compare_paired, wilson_interval

    ours, single = cells["lattice"], cells["single_mask"]
    prefix = "" if world.name == "state" else f"{world.name}_"

    def pooled(of: list[dict[str, Any]], n: int) -> dict[tuple[str, int], bool]:
        return {(k, c["seed"]): v for c in of for k, v in c["successes"][str(n)].items()}

    rows, before = [], None
    for n in NFES:
        flat = pooled(ours, n)
        value = sum(flat.values()) / len(flat)
        goals = ([f"not below {NFES[NFES.index(n) - 1]}"] if before is not None else []) + (
            ["at least single_mask_nfe_8"] if n == 2 else []
        )
        passes, notes = before is None or value >= before, [world.env]
        if n == 2:
            other = pooled(single, 8)
            pair = compare_paired(other, flat)
            passes &= value >= sum(other.values()) / len(other)
            notes.append(
                f"minus single mask at 8, paired: {100 * pair.difference:+.1f} ({100 * pair.interval[0]:+.1f} to {100 * pair.interval[1]:+.1f}) points"
            )
        rows.append(
            Row(
                f"{prefix}success_nfe_{n}",
                value,
                "fraction",
                len(flat),
                wilson_interval(sum(flat.values()), len(flat)),
                " and ".join(goals),
                passes if goals else None,
                "; ".join(notes),
            )
        )
        before = value
    for n in NFES:
        flat = pooled(single, n)
        rows.append(
            Row(
                f"{prefix}single_mask_nfe_{n}",
                sum(flat.values()) / len(flat),
                "fraction",
                len(flat),
                wilson_interval(sum(flat.values()), len(flat)),
            )
        )

    def row(id: str, values: list[float], unit: str, goal: str = "", good: Any = None, note: str = "") -> Row:
        mean, interval = mean_interval(values)
        return Row(
            prefix + id, mean, unit, len(values), interval, goal, None if good is None else bool(good(mean)), note
        )

    # The chain is the lower one of the two networks, for both: a network is not to gain by a bad chain.
    chains = [min(a["chain_bits"], b["chain_bits"]) for a, b in zip(ours, single, strict=True)]

    def gaps(of: list[dict[str, Any]], t: int) -> list[float]:
        return [c["bits"][str(t)] - chain for c, chain in zip(of, chains, strict=True)]

    ratio = [a / b for a, b in zip(gaps(ours, 2), gaps(single, 2), strict=True)]
    rows.append(
        row(
            "factorisation_gap_ratio_t2",
            ratio,
            "ratio",
            "at most 0.70",
            lambda x: x <= 0.70,
            "gap of the lattice over gap of one mask",
        )
    )
    for t in (1, 2, 4):
        rows += [
            row(f"factorisation_gap_t{t}", gaps(ours, t), "bits"),
            row(f"single_mask_gap_t{t}", gaps(single, t), "bits"),
        ]
    rows += [
        row("chain_bits", [c["chain_bits"] for c in ours], "bits"),
        row("single_mask_chain_bits", [c["chain_bits"] for c in single], "bits"),
    ]
    rows.append(
        row(
            "loss_coverage",
            [c["gradient"]["coverage"] for c in ours],
            "fraction",
            "1",
            lambda x: x >= 1,
            f"plain masking {sum(c['gradient_plain']['coverage'] for c in ours) / len(ours):.3f}",
        )
    )
    rows.append(
        row(
            "grad_variance_ratio",
            [c["gradient"]["variance"] / c["gradient_plain"]["variance"] for c in ours],
            "ratio",
            "at most 0.5",
            lambda x: x <= 0.5,
            "same weights, batch and copies; variance over squared mean",
        )
    )
    rows.append(
        row(
            "steps_to_target_ratio",
            [steps_to(a["curve"], b["curve"][-1][1]) / b["curve"][-1][0] for a, b in zip(ours, single, strict=True)],
            "ratio",
            "at most 0.5",
            lambda x: x <= 0.5,
            "target: the last bits a chunk, 2 evaluations, of plain masking",
        )
    )
    heads = [c["revision"] for c in ours]
    rows.append(row("quality_auroc", [h["auroc"] for h in heads], "fraction", "at least 0.85", lambda x: x >= 0.85))
    rows.append(
        row(
            "quality_auroc_confidence",
            [h["auroc_confidence"] for h in heads],
            "fraction",
            note="confidence without the head",
        )
    )
    rows.append(
        row(
            "repair_rate",
            [h["repair"] for h in heads],
            "fraction",
            "at least 0.70",
            lambda x: x >= 0.70,
            "2 evaluations, value within half a coarse bin again; before: "
            f"{_mean(heads, 'before'):.3f}, true tokens harmed: {_mean(heads, 'harm'):.3f}",
        )
    )
    rows.append(
        row("repair_rate_digit", [h["repair_digit"] for h in heads], "fraction", note="the coarse digit exactly")
    )
    rows.append(
        row("repair_rate_oracle", [h["repair_oracle"] for h in heads], "fraction", note="told which tokens are false")
    )
    rows.append(
        row(
            "repair_rate_confidence",
            [h["repair_confidence"] for h in heads],
            "fraction",
            note=f"confidence without the head; true tokens harmed: {_mean(heads, 'harm_confidence'):.3f}",
        )
    )
    return rows


def _mean(of: list[dict[str, float]], key: str) -> float:
    return sum(h[key] for h in of) / len(of)


def steps_to(curve: list[list[float]], target: float) -> float:
    """The step at which a curve of [step, value] first is at or below `target`, interpolated; infinite if never."""
    for (a, x), (b, y) in zip([curve[0], *curve], curve, strict=False):
        if y <= target:
            return b if y == x else b - (b - a) * (target - y) / (x - y)
    return float("inf")


def ladder_entry(variant: str, of: list[dict[str, Any]]) -> dict[str, Any]:
    """One step of the ladder: mean and interval over seeds."""
    entry: dict[str, Any] = {"variant": variant, "meaning": MEANING[variant], "seeds": len(of)}
    for n in NFES:
        entry[f"success_nfe_{n}"], entry[f"success_nfe_{n}_interval"] = mean_interval(
            [c["success"][str(n)] for c in of]
        )
    for t in (1, 2, 4):
        entry[f"bits_t{t}"] = mean_interval([c["bits"][str(t)] for c in of])[0]
        entry[f"bits_plain_mask_t{t}"] = mean_interval([c["bits_plain_mask"][str(t)] for c in of])[0]
    entry["chain_bits"] = mean_interval([c["chain_bits"] for c in of])[0]
    entry["train_s"] = mean_interval([c["train_s"] for c in of])[0]
    return entry


# --- tokenizers ------------------------------------------------------------------------------------------------------
def tokenizer_rows(world: World) -> list[dict[str, Any]]:
    from vla.bench.tokenizers import tokenizer_table
    from vla.data.cache import open_cache

    cache = open_cache(world.dataset)
    return tokenizer_table(cache.action, cache.episode_from, cache.episode_to, list(cache.action_names))


def table_rows(table: list[dict[str, Any]]) -> list[Row]:
    ours = [t for t in table if not t["tokenizer"].startswith("fast")]
    broken = sum(t["undecodable"] for t in ours)
    falls = [all(b < a for a, b in zip(t["rmse_by_level"], t["rmse_by_level"][1:], strict=False)) for t in ours]
    return [
        Row(
            "undecodable",
            broken,
            "strings",
            100_000 * len(ours),
            None,
            "0",
            broken == 0,
            "of random token strings, all our tokenizers",
        ),
        Row(
            "rmse_by_level",
            sum(falls) / len(falls),
            "fraction",
            len(ours),
            None,
            "strictly falling for each",
            all(falls),
            "; ".join(f"{t['tokenizer']} " + " > ".join(f"{x:.4f}" for x in t["rmse_by_level"]) for t in ours),
        ),
    ]
