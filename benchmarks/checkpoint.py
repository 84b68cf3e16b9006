# SPDX-License-Identifier: Apache-2.0
"""Success of the shipped checkpoint over all tiers of the tabletop; writes its model card.

    python benchmarks/checkpoint.py [--policy tabletop_nano] [--episodes 600]

Ids: checkpoint_success (goal 0.80), checkpoint_success_tier1..3, checkpoint_swapped_tier1.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from vla.checkpoint import resolve
from vla.eval.evaluate import EvalConfig, evaluate
from vla.eval.statistics import wilson_interval

RESULTS = Path(__file__).parent / "results" / "checkpoint.json"
TIERS = ("tier1", "tier2", "tier3")


def run(policy: str, episodes: int) -> dict[str, Any]:
    """Evaluate and return the results file's content."""
    with tempfile.TemporaryDirectory() as room:

        def ask(name: str, **settings: Any) -> Any:
            return evaluate(EvalConfig(policy=policy, out=Path(room) / name, videos=0, name=name, **settings))

        everything = ask("all", suite="all", episodes=episodes)
        swapped = ask("swapped", suite="tier1", episodes=episodes // 3, instruction="swapped")
    from vla.envs.registry import suites

    goal, value = 0.80, everything["success"]
    rows = [
        {
            "id": "checkpoint_success",
            "value": value,
            "unit": "fraction",
            "n": everything["n"],
            "interval": everything["interval"],
            "goal": f"at least {goal}",
            "passes": value >= goal,
            "note": "all 15 templates, equal weights, seeds 0.. of each",
        }
    ]
    for tier in TIERS:
        tasks = [everything["tasks"][task] for task in suites("tabletop")[tier]]
        n = sum(t["n"] for t in tasks)
        successes = round(sum(t["success"] * t["n"] for t in tasks))
        row = {"id": f"checkpoint_success_{tier}", "value": successes / n, "unit": "fraction", "n": n}
        rows.append(row | {"interval": list(wilson_interval(successes, n))})
    row = {"id": "checkpoint_swapped_tier1", "value": swapped["success"], "unit": "fraction", "n": swapped["n"]}
    rows.append(row | {"interval": swapped["interval"], "note": "told about another object, judged by the first"})
    manifest = everything["manifest"]
    return {
        "bench": "checkpoint",
        "machine": f"{manifest['cpu']}, {manifest['cores']} cores",
        "versions": manifest["versions"],
        "commit": manifest["git_commit"],
        "date": manifest["date"],
        "checkpoint_sha256": manifest["checkpoint_sha256"],
        "seeds": "0.. of each task",
        "rows": rows,
        "tasks": everything["tasks"],
        "latency_ms": everything["latency_ms"],
    }


def card(results: dict[str, Any], config: dict[str, Any]) -> str:
    """The model card: how it was made, what it reaches."""
    percent = [
        f"{100 * r['value']:.1f} ({100 * r['interval'][0]:.1f}-{100 * r['interval'][1]:.1f})" for r in results["rows"]
    ]
    lines = [f"| {t} | {100 * v['success']:.0f} | {v['n']} |" for t, v in sorted(results["tasks"].items())]
    recipe = config["recipe"]["name"]
    return "\n".join(
        [
            f"# {recipe}",
            "",
            "A shipped checkpoint for the tabletop, from 64 px pixels and words. Made by",
            "",
            "```bash",
            "vla record --suite all --episodes 15000 --seed 2000000 --out runs/ship/dataset",
            f"vla train --dataset runs/ship/dataset --out runs/ship/train --recipe {recipe} --steps 60000 --minutes 24",
            "vla export --checkpoint runs/ship/train/checkpoints/last --out vla/checkpoints/tabletop_nano",
            "python benchmarks/checkpoint.py",
            "```",
            "",
            f"{config['step']} steps. Measured on {results['machine']} ({results['date'][:10]}); success in % (95 %):",
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
    results = run(arguments.policy, arguments.episodes)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    folder = resolve(arguments.policy)
    (folder / "README.md").write_text(card(results, json.loads((folder / "config.json").read_text())))
    print(json.dumps({"bench": "checkpoint", "rows": {r["id"]: r["value"] for r in results["rows"]}}))


if __name__ == "__main__":
    main()
