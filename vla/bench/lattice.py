# SPDX-License-Identifier: Apache-2.0
"""`vla bench lattice`: does each part of the mask lattice pay, against one mask on the same network, data and steps?

Whole: 41 minutes on two cores. --quick: minutes, small, proves nothing. What is measured stays in `out`, so that a
run that was stopped goes on where it was.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vla.bench.ladder import MEANING, NFES, VARIANTS, Cell, World, one_thread_processes, record, run_cells
from vla.bench.lattice_rows import Found, fork_rows, ladder_entry, tokenizer_rows, world_rows
from vla.bench.results import mean_interval, results
from vla.bench.run import BenchConfig

if TYPE_CHECKING:
    from rich.console import Console

FULL_STEPS = "one mask began with full masks, as the recipe does: better than plain random masking"
ENDS = ("single_mask", "lattice")
FORK_STEPS = 700


def worlds(config: BenchConfig) -> list[World]:
    """From state: the whole ladder, all fifteen tasks. From pixels: its two ends, reach and push."""
    if config.quick:
        small = config.out / "state-quick"
        return [World("state", "tabletop_state", "all", "tabletop_state", small, 300, 40, 15, ENDS)]
    state, pixels = config.out / "state", config.out / "pixels"
    return [
        World("state", "tabletop_state", "all", "tabletop_state", state, 6000, 3000, 150, tuple(VARIANTS)),
        World("pixels", "tabletop", "demo", "tabletop_nano", pixels, 6000, 2500, 100, ENDS, FULL_STEPS),
    ]


def run(config: BenchConfig) -> dict[str, Any]:
    """Measure everything that is not on disk yet; returns the results, and draws plots into `config.out`."""
    from rich.console import Console

    from vla.bench import fork
    from vla.bench.tokenizers import tokenizer_table
    from vla.data.cache import open_cache

    console = Console(highlight=False)
    if config.quick:  # its cells must never be taken for the whole ones
        config = replace(config, out=config.out / "quick")
    config.out.mkdir(parents=True, exist_ok=True)
    seeds = range(1 if config.quick else config.seeds)
    fork_steps = 60 if config.quick else FORK_STEPS
    asked = [(config.out, name, seed, fork_steps) for seed in seeds for name in fork.VARIANTS]
    with one_thread_processes(2) as pool:
        forks = list(pool.map(fork_cell, *zip(*asked, strict=True)))
    for found_fork in forks:
        at_one = found_fork["nfe1_t0"]
        console.print(
            f"bimodal {found_fork['name']} seed {found_fork['seed']}: joint {at_one['joint']:.2f}, "
            f"coverage {at_one['coverage']:.2f} at one step",
            soft_wrap=True,
        )
    places = worlds(config)
    for world in places:
        record(world)
    cells = [Cell(world, variant, seed, config.out) for world in places for seed in seeds for variant in world.variants]
    found = run_cells(cells, 2, console)
    actions = open_cache(places[0].dataset)
    names = list(actions.action_names)
    table = tokenizer_table(actions.action, actions.episode_from, actions.episode_to, names, fast=config.fast)
    rows = fork_rows(forks)
    for world in places:
        by_variant = {v: [found[world.name, v, seed] for seed in seeds] for v in world.variants}
        rows += world_rows("" if world.name == "state" else f"{world.name}_", by_variant, world.note)
    rows += tokenizer_rows(table)
    state = {v: [found["state", v, seed] for seed in seeds] for v in places[0].variants}
    draw(state, config.out)
    ladder = [ladder_entry(variant, of) for variant, of in state.items()]
    show_ladder(ladder, console)
    show_tokenizers(table, console)
    commits = Counter(str(cell.get("commit")) for cell in found.values())
    extra = {"ladder": ladder, "tokenizers": table, "quick": config.quick, "cells_of_commit": commits}
    return results("lattice", rows, list(seeds), extra)


def fork_cell(out: Path, name: str, seed: int, steps: int) -> Found:
    """Train and measure the bimodal task, or read what was measured."""
    import torch

    from vla.bench import fork
    from vla.eval.episodes import write_atomically

    path = out / f"fork-{name}-{seed}-{steps}.json"
    if not path.exists():
        torch.set_num_threads(1)
        variant = fork.VARIANTS[name]
        model = fork.train(variant, steps, seed)
        found: Found = {"name": name, "seed": seed, "steps": steps}
        for n in (1, 2, 8):
            for temperature in (0, 1):
                measured = fork.measure(model, variant.corruption.single_mask, variant.noise, n, float(temperature))
                found[f"nfe{n}_t{temperature}"] = measured
        write_atomically(path, json.dumps(found))
    return json.loads(path.read_text())


def show_ladder(ladder: list[Found], console: "Console") -> None:
    """The ladder, a line a variant: means over seeds."""
    from rich.table import Table

    columns = [*(f"{n} NFE, %" for n in NFES), "bits, T=1", "T=2", "T=4", "chain", "s"]
    table = Table("from state", *columns, box=None, pad_edge=False)
    for entry in ladder:
        success = [f"{100 * entry[f'success_nfe_{n}']:.1f}" for n in NFES]
        bits = [f"{entry[key]:.1f}" for key in ("bits_t1", "bits_t2", "bits_t4", "chain_bits")]
        table.add_row(entry["variant"], *success, *bits, f"{entry['train_s']:.0f}")
    console.print(table)
    for entry in ladder:
        console.print(f"{entry['variant']:12} {entry['meaning']}", soft_wrap=True)


def show_tokenizers(rows: list[Found], console: "Console") -> None:
    """Action tokenizers side by side."""
    from rich.table import Table

    table = Table("tokenizer", "tokens", "bits", "error by level", "overlap", "undecodable", box=None, pad_edge=False)
    for t in rows:
        levels = " ".join(f"{x:.4f}" for x in t["rmse_by_level"])
        table.add_row(
            t["tokenizer"],
            f"{t['tokens']:.1f}",
            f"{t['bits']:.0f}",
            levels,
            f"{t['overlap']:.2f}",
            str(t["undecodable"]),
        )
    console.print(table)


def draw(state: dict[str, list[Found]], out: Path) -> None:
    """Three plots of the ladder."""
    from vla.bench.plots import curves_plot, ladder_plot

    def point(x: float, values: Sequence[float]) -> tuple[float, float, float, float]:
        mean, interval = mean_interval(values)
        return (x, mean, *(interval or (mean, mean)))

    def success(of: list[Found], n: int) -> list[float]:
        return [100 * c["success"][str(n)] for c in of]

    bars: list[dict[str, Any]] = [
        {"name": MEANING[v], "values": success(of, 2), "interval": mean_interval(success(of, 2))[1]}
        for v, of in state.items()
    ]
    bars[list(state).index("lattice")]["highlight"] = True
    ladder_plot(bars, out / "ladder.png", "Success at 2 denoising steps, from state", "success, %")
    by_nfe = {MEANING[v]: [point(n, success(of, n)) for n in NFES] for v, of in state.items()}
    by_nfe = {v: [(n, mean, low, min(high, 100.0)) for n, mean, low, high in curve] for v, curve in by_nfe.items()}
    title = "Success against denoising steps, from state"
    curves_plot(by_nfe, out / "success_nfe.png", title, "denoising steps", "success, %", logx=True)
    learning = {
        MEANING[v]: [point(step, [c["curve"][i][1] for c in of]) for i, (step, _) in enumerate(of[0]["curve"])]
        for v, of in state.items()
    }
    title = "Held-out chunks under the sampler of 2 steps"
    curves_plot(learning, out / "learning.png", title, "training steps", "bits a chunk")
