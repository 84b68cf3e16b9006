# SPDX-License-Identifier: Apache-2.0
"""Success of the shipped checkpoint over all tiers of the tabletop; writes its model card.

    python benchmarks/checkpoint.py [--policy tabletop_nano] [--episodes 600]

Ids: checkpoint_success, checkpoint_success_tier1..3, checkpoint_swapped_tier1. Test seeds, 50,000 on of each task. The
goal is 0.85, with the interval's lower end at most 2 points below the 0.848 of the first edition's checkpoint.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console

from vla.bench.results import Row, results, show, write
from vla.checkpoint import resolve
from vla.eval.evaluate import EvalConfig, evaluate
from vla.eval.statistics import wilson_interval

RESULTS = Path(__file__).parent / "results" / "checkpoint.json"
TIERS = ("tier1", "tier2", "tier3")
FIRST_SEED = 50_000
GOAL, FIRST_EDITION, MARGIN = 0.85, 0.848, 0.02


def run(policy: str, episodes: int) -> dict[str, Any]:
    """Evaluate and return the results file's content."""
    with tempfile.TemporaryDirectory() as work:

        def ask(name: str, **settings: Any) -> Any:
            where = Path(work) / name
            told = {"policy": policy, "out": where, "videos": 0, "name": name, "first_seed": FIRST_SEED}
            return evaluate(EvalConfig(**told, **settings))

        everything = ask("all", suite="all", episodes=episodes)
        swapped = ask("swapped", suite="tier1", episodes=episodes // 3, instruction="swapped")
    from vla.envs.registry import suites

    value, low = everything["success"], everything["interval"][0]
    rows = [
        Row(
            "checkpoint_success",
            value,
            "fraction",
            everything["n"],
            everything["interval"],
            f"at least {GOAL}, interval above {FIRST_EDITION - MARGIN:.3f}",
            value >= GOAL and low >= FIRST_EDITION - MARGIN,
            f"all 15 templates, equal weights, seeds {FIRST_SEED}.. of each; one training",
        )
    ]
    for tier in TIERS:
        tasks = [everything["tasks"][task] for task in suites("tabletop")[tier]]
        n = sum(t["n"] for t in tasks)
        successes = round(sum(t["success"] * t["n"] for t in tasks))
        row_id, interval = f"checkpoint_success_{tier}", wilson_interval(successes, n)
        rows.append(Row(row_id, successes / n, "fraction", n, interval))
    note = "told about another object, judged by the first"
    told = Row("checkpoint_swapped_tier1", swapped["success"], "fraction", swapped["n"], swapped["interval"], note=note)
    extra = {key: everything[key] for key in ("tasks", "latency_ms")}
    extra["checkpoint_sha256"] = everything["manifest"]["checkpoint_sha256"]
    return results("checkpoint", [*rows, told], f"{FIRST_SEED}.. of each task", extra)


def card(name: str, results: dict[str, Any], config: dict[str, Any]) -> str:
    """The model card of a shipped checkpoint: how it was made, what it reaches."""
    percent = [
        f"{100 * r['value']:.1f} ({100 * r['interval'][0]:.1f}-{100 * r['interval'][1]:.1f})" for r in results["rows"]
    ]
    lines = [f"| {t} | {100 * v['success']:.0f} | {v['n']} |" for t, v in sorted(results["tasks"].items())]
    recipe = config["recipe"]["name"]
    return "\n".join(
        [
            f"# {name}",
            "",
            f"A shipped checkpoint for the tabletop, from 64 px pixels and words. It answers "
            f"{', '.join(config['queries'])}. Made by",
            "",
            "```bash",
            "vla record --suite all --episodes 15000 --seed 2000000 \\",
            "  --noise 0 0.1 0.2 0.4 --noise-steps 4 --bursts 0.02 --out runs/ship/dataset",
            f"vla train --dataset runs/ship/dataset --out runs/ship/train --recipe {recipe} --steps {config['step']} "
            "--threads 1",
            f"vla export --checkpoint runs/ship/train/checkpoints/last --out vla/checkpoints/{name}",
            f"python benchmarks/checkpoint.py --policy {name}",
            "```",
            "",
            f"Measured on {results['machine']} ({results['date'][:10]}); success in % (95 %):",
            "",
            "| what | success | n |",
            "|---|---|---|",
            *(f"| {r['id']} | {p} | {r['n']} |" for r, p in zip(results["rows"], percent, strict=True)),
            "",
            "| task | success | n |",
            "|---|---|---|",
            *lines,
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", default="tabletop_nano")
    parser.add_argument("--episodes", type=int, default=600)
    arguments = parser.parse_args()
    measured = run(arguments.policy, arguments.episodes)
    write(measured, RESULTS)
    folder = resolve(arguments.policy)
    (folder / "README.md").write_text(card(folder.name, measured, json.loads((folder / "config.json").read_text())))
    show(measured, Console())


if __name__ == "__main__":
    main()
