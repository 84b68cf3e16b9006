# SPDX-License-Identifier: Apache-2.0
"""Rivals on the same data, for the same time, with the same seeds: who solves more, and what does an answer cost?

Eight contenders are trained from scratch on one dataset, one after the other on this machine, each for the same
wall-clock (or, with --steps, the same number of steps), and are evaluated on the same (task, seed) episodes: ours, our
network used in three other ways, and four policies of LeRobot 0.6.1 (ACT, Diffusion, VQ-BeT, multi-task DiT) in its own
classes, losses, optimisers and processors. `cells.CONTENDERS` lists them, `lerobot_configs.CONFIGS` says how they are
configured and why, `table.UNFAIR` what is unfair in which direction. Diffusion and multi-task DiT need diffusers, which
is in our extra `rivals`. Without it they are reported as not run.

What is done stays in --out, a folder for each contender, and is not done again: a run that was stopped goes on, and
with all cells there the table takes seconds. --only runs some; the table has all that are finished.

    python benchmarks/rivals/run.py --dataset runs/x/dataset --minutes 7 --episodes 200 --out runs/rivals/tabletop

writes benchmarks/results/rivals_tabletop.json (--prefix tabletop), prints a table and, last, a line of JSON. --quick:
seconds a contender, proves nothing, and writes into --out.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

# A script's folder is first on the path; the modules beside this one are imported from the checkout's root.
ROOT = Path(__file__).resolve().parents[2]
if sys.path[0] == str(Path(__file__).resolve().parent):
    sys.path[0] = str(ROOT)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Run what is not there yet, write the results, show and return them. ValueError for settings that cannot be."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here is pretrained
    from rich.console import Console

    from benchmarks.rivals import cells
    from benchmarks.rivals.settings import QUICK_STEPS, Settings
    from benchmarks.rivals.table import UNFAIR, rows
    from vla.bench.results import default_path, results, show, write
    from vla.envs import registry

    args = parse(arguments)
    if args.quick:
        args.minutes, args.steps = None, QUICK_STEPS
    settings = Settings(
        dataset=args.dataset,
        out=args.out.resolve(),
        prefix=args.prefix or args.env,
        env=args.env,
        suite=args.suite,
        minutes=args.minutes,
        steps=args.steps,
        episodes=args.episodes,
        seed=args.seed,
        threads=args.threads,
        recipe=args.recipe,
        overrides=tuple(args.set),
    )
    if args.quick:
        settings = cells.quick(settings, registry.suites(settings.env))
    chosen = choose(args.only)
    settings.claim_folder()
    console = Console(highlight=False)
    not_run = {}
    for name in chosen:
        if cells.finished(settings, name) is not None:
            continue
        if reason := cells.missing(name):
            not_run[name] = reason
            console.print(f"{name}: not run: {reason}", soft_wrap=True)
        else:
            cells.run(settings, name, console)
    found = {name: cell for name in cells.CONTENDERS if (cell := cells.finished(settings, name)) is not None}
    bench = f"rivals_{settings.prefix}"
    extra = {
        "settings": settings.trained_as() | {"dataset": Path(settings.dataset).name, "episodes": settings.episodes},
        "contenders": {name: {"meaning": cells.CONTENDERS[name], **cell["train"]} for name, cell in found.items()},
        "unfair": UNFAIR,
        "not_run": not_run,
    }
    seeds = f"training {settings.seed}; evaluation from 0 on for each task"
    made = results(bench, rows(settings.prefix, found, not_run, settings.minutes), seeds, extra)
    path = settings.out / f"{bench}.json" if settings.quick else default_path(bench, settings.out)
    write(made, path)
    console.print(f"written to '{path}'", soft_wrap=True)
    show(made, console)
    return made


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dataset", required=True, help="folder of a LeRobot dataset (v3)")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run; goes on with what is in it")
    parser.add_argument("--env", default="tabletop")
    parser.add_argument("--suite", default="demo")
    parser.add_argument("--prefix", default="", help="of the rows' ids and the results file; default: --env")
    parser.add_argument("--minutes", type=float, default=None, help="of training, wall-clock, for each contender")
    parser.add_argument("--steps", type=int, default=None, help="of training, instead of --minutes")
    parser.add_argument("--episodes", type=int, default=200, help="of evaluation, spread over the suite's tasks")
    parser.add_argument("--only", default="", help="some contenders, separated by commas")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    parser.add_argument("--recipe", default="tabletop_nano")
    parser.add_argument("--set", nargs="*", default=[], help="overrides of the recipe, key=value")
    parser.add_argument("--quick", action="store_true", help="seconds a contender; proves nothing")
    return parser.parse_args(arguments)


def choose(only: str) -> list[str]:
    """The contenders named in `only`, all if it is empty, in the fixed order. ValueError for one that is none."""
    from benchmarks.rivals.cells import CONTENDERS

    names = [name.strip() for name in only.split(",") if name.strip()]
    if unknown := [name for name in names if name not in CONTENDERS]:
        raise ValueError(f"expected contenders out of {', '.join(CONTENDERS)}, got {', '.join(unknown)}")
    return [name for name in CONTENDERS if not names or name in names]


if __name__ == "__main__":
    main()
