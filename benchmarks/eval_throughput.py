# SPDX-License-Identifier: Apache-2.0
"""How fast is an evaluation on Meta-World? `vla eval` against the stock `lerobot-eval`: same tasks, machine and run.

Both evaluate a small untrained policy that sees 96 px and executes 4 of 8 actions. It fails, so that episodes last
until the limit (ours 400 steps, theirs 500), and environment steps per second say it all. Three clocks:
  evaluation     LeRobot's eval_s: simulators made, episodes run, videos written. Of ours: from config.json, which
                 `vla eval` writes before its workers start, to summary.json, which it writes after its videos
  no videos      ours: steps_per_s as `vla eval` reports it; theirs: eval_s with the videos patched out
  whole command  from the shell and back: imports and reading the policy too
LeRobot is given the best of --batch-sizes, its option for throughput: 1 (in the process; its choice for 2 cores) and
2 (a process an environment). Not max_parallel_tasks: its threads share one queue of actions (lerobot issue 4327).
Its environment draws 480 px whatever it is asked for, and the first 10 episodes of a task a second time, for videos,
which no option turns off (--eval.recording=true would, but fails on Meta-World). Its policy shrinks the pictures. The
ratios have no goal: the two do not do the same.
Run: `python benchmarks/eval_throughput.py` (about an hour on 2 idle cores, nearly all of it LeRobot's).
"""

import argparse
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console

from vla.bench.results import Row, results, show, write

CORES, SIZE, HORIZON, N_ACTION_STEPS, NORMAL_STEPS = 2, 96, 8, 4, 400
ENVIRONMENT = {"MUJOCO_GL": "egl", "HF_HUB_OFFLINE": "1", **os.environ}
"""Of both commands, from before `our_policy` imports our environments, which set LP_NUM_THREADS for their own good."""
NO_VIDEOS = """
import lerobot.scripts.lerobot_eval as script
stock = script.eval_policy_all
script.eval_policy_all = lambda **kwargs: stock(**{**kwargs, "max_episodes_rendered": 0, "videos_dir": None})
script.main()
"""
"""lerobot-eval without its videos: not an option it has, but nobody can say then that the videos are the difference."""


@dataclass(frozen=True)
class Run:
    """One command that evaluated a policy."""

    steps: int
    episodes: int
    successes: int
    evaluation_s: float
    rollouts_s: float
    whole_s: float
    pixels: int
    """side of the pictures that were drawn"""


def our_policy(folder: Path) -> None:
    """The recipe tabletop_nano with drawn weights, for Meta-World at 96 px."""
    import torch

    from vla import checkpoint, recipes
    from vla.bench.speed_networks import tokenizers
    from vla.envs.metaworld.env import CAMERA, MetaWorldEnv
    from vla.envs.metaworld.tasks import SENTENCES
    from vla.model import LatticeModel
    from vla.policy import Policy
    from vla.tokenizers import StateScaler
    from vla.train.setup import network

    recipe = replace(recipes.get("tabletop_nano"), image_size=SIZE, horizon=HORIZON)
    box = MetaWorldEnv(render=False).observation_space["agent_pos"]
    state = StateScaler(box.low.tolist(), box.high.tolist(), list(MetaWorldEnv.state_names))
    known = tokenizers(SENTENCES.values(), state, MetaWorldEnv.action_names)
    torch.manual_seed(0)
    model = LatticeModel(network(recipe, known, (CAMERA,)))
    policy = Policy(model, known, MetaWorldEnv.fps, recipe.sampling, N_ACTION_STEPS)
    checkpoint.write_folder(folder, policy.write)


def their_policy(folder: Path) -> None:
    """An untrained ACT, small but for its ResNet-18; its preprocessor shrinks the pictures to 96 px."""
    import torch
    from lerobot.configs import FeatureType, PolicyFeature
    from lerobot.policies import ACTConfig, make_pre_post_processors
    from lerobot.policies.act.modeling_act import ACTPolicy
    from lerobot.processor import ImageCropResizeProcessorStep

    picture, state = PolicyFeature(FeatureType.VISUAL, (3, SIZE, SIZE)), PolicyFeature(FeatureType.STATE, (4,))
    inputs, action = {"observation.image": picture, "observation.state": state}, PolicyFeature(FeatureType.ACTION, (4,))
    small: dict[str, Any] = {"dim_model": 128, "n_heads": 4, "dim_feedforward": 256, "n_encoder_layers": 2}
    small |= {"use_vae": False, "pretrained_backbone_weights": None}
    small |= {"chunk_size": HORIZON, "n_action_steps": N_ACTION_STEPS, "device": "cpu"}
    config = ACTConfig(input_features=inputs, output_features={"action": action}, **small)
    torch.manual_seed(0)
    ACTPolicy(config).save_pretrained(folder)
    before, after = make_pre_post_processors(config)
    before.steps = [*before.steps[:-1], ImageCropResizeProcessorStep(resize_size=(SIZE, SIZE)), before.steps[-1]]
    before.save_pretrained(folder)
    after.save_pretrained(folder)


def command(program: Sequence[str], options: dict[str, Any]) -> tuple[float, str]:
    """Run a command with --options. Returns (seconds, its output). RuntimeError with the output's end if it fails."""
    arguments = [*program, *(f"--{name}={value}" for name, value in options.items())]
    began = time.perf_counter()
    done = subprocess.run(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=ENVIRONMENT)
    if done.returncode:
        raise RuntimeError(f"{program[0]} ended with exit code {done.returncode}:\n{done.stdout[-2000:]}")
    return time.perf_counter() - began, done.stdout


def read_ours(out: Path, whole_s: float) -> Run:
    """What `vla eval` wrote: config.json before its workers start, summary.json after its videos."""
    summary = json.loads((out / "summary.json").read_text())
    steps = sum(json.loads(line)["length"] for line in (out / "episodes.jsonl").read_text().splitlines())
    evaluation_s = (out / "summary.json").stat().st_mtime - (out / "config.json").stat().st_mtime
    wins, rollouts_s = round(summary["success"] * summary["n"]), steps / summary["steps_per_s"]
    return Run(steps, summary["n"], wins, evaluation_s, rollouts_s, whole_s, summary["manifest"]["image_size"])


def read_theirs(info: dict[str, Any], log: str, whole_s: float, pixels: int) -> Run:
    """What lerobot-eval wrote. It does not tell lengths: all are counted as the limit, too many where one succeeds."""
    if (limit := re.search(r"at most (\d+) steps", log)) is None:
        raise ValueError("expected 'at most N steps' in the output of lerobot-eval, which must have changed")
    overall, n = info["overall"], info["overall"]["n_episodes"]
    wins, seconds = round(overall["pc_success"] * n / 100), overall["eval_s"]
    return Run(int(limit[1]) * n, n, wins, seconds, seconds, whole_s, pixels)


def run_ours(policy: Path, tasks: Sequence[str], episodes: int, out: Path) -> Run:
    """`vla eval` with its default settings, `episodes` for each task."""
    program = [str(Path(sys.executable).parent / "vla"), "eval", "--tasks", *tasks]
    options = {"policy": policy, "env": "metaworld", "episodes": episodes * len(tasks), "out": out}
    return read_ours(out, command(program, options)[0])


def run_theirs(policy: Path, tasks: Sequence[str], episodes: int, batch: int, videos: bool, out: Path) -> Run:
    """lerobot-eval, `episodes` for each task, `batch` environments at a time."""
    import av

    program = [str(Path(sys.executable).parent / "lerobot-eval")] if videos else [sys.executable, "-c", NO_VIDEOS]
    options = {"policy.path": policy, "policy.device": "cpu", "env.type": "metaworld", "env.task": ",".join(tasks)}
    options |= {"eval.n_episodes": episodes, "eval.batch_size": batch, "output_dir": out}
    out.mkdir(parents=True)  # it makes none without videos
    (whole_s, log), pixels = command(program, options), 0
    if videos:  # they are what the policy saw: its environment draws in one way only
        with av.open(next(out.glob("videos/**/*.mp4"))) as video:
            pixels = video.streams.video[0].width
    return read_theirs(json.loads((out / "eval_info.json").read_text()), log, whole_s, pixels)


def rates(runs: Sequence[Run], clock: str) -> list[float]:
    """Steps a second by a clock: "evaluation_s", "rollouts_s" or "whole_s"."""
    return [run.steps / getattr(run, clock) for run in runs]


def speed(name: str, runs: Sequence[Run], clock: str, what: str) -> Row:
    """The median over repeats, and in words what it was measured on."""
    each, one = rates(runs, clock), runs[0]
    note = (
        f"{what}; {one.pixels or 'the same'} px drawn; {len(runs)} x {one.episodes} episodes of "
        f"{one.steps / one.episodes:.0f} steps, {sum(run.successes for run in runs)} succeeded; {min(each):.3g} to "
        f"{max(each):.3g} steps/s; {median(each) * 3600 / NORMAL_STEPS:,.0f} episodes of {NORMAL_STEPS} steps an hour"
    )
    return Row(name, median(each), "1/s", sum(run.steps for run in runs), note=note)


def make_rows(ours: list[Run], stock: dict[int, list[Run]], bare: dict[int, list[Run]]) -> list[Row]:
    """Medians over repeats. `stock`, `bare`: LeRobot with and without videos, batch size -> runs; `bare` may be empty.

    Ratios are taken within a repeat, whose runs were near in time.
    """
    starts, plain = "with starting workers and 2 videos a task and outcome", "without start and videos"
    rows = []
    for theirs, clock, end, ours_is, theirs_is in (
        (stock, "evaluation_s", "", f"vla eval, {starts}", "eval_s, with videos"),
        (stock, "whole_s", "_whole_command", "vla eval, from the shell and back", "from the shell and back"),
        (bare, "rollouts_s", "_no_videos", f"vla eval, steps_per_s, {plain}", "eval_s, videos patched out"),
    ):
        if not theirs:
            continue
        batch = max(theirs, key=lambda size: median(rates(theirs[size], clock)))
        what = f"lerobot-eval, {theirs_is}, batch_size {batch}" + f", the best of {[*theirs]}" * (len(theirs) > 1)
        times = [a / b for a, b in zip(rates(ours, clock), rates(theirs[batch], clock), strict=True)]
        note = f"other pictures ({ours[0].pixels} and {theirs[batch][0].pixels or 'as many'} px) and slots; repeats: "
        note, n = note + ", ".join(f"{t:.3g}" for t in times), sum(run.steps for run in (*ours, *theirs[batch]))
        rows += [
            speed(f"eval_throughput_ours{end}", ours, clock, ours_is),
            speed(f"eval_throughput_lerobot{end}", theirs[batch], clock, what),
            Row(f"eval_throughput_ratio{end}", median(times), "x", n, note=note),
        ]
    return rows


def main() -> None:
    """Measure, print, and end with the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", default=["push-v3", "door-open-v3"])
    parser.add_argument("--episodes", type=int, default=20, help="of ours, each task; ours needs 16 to fill its slots")
    parser.add_argument("--lerobot-episodes", type=int, default=2, help="of LeRobot's, each task: 1 to 2 minutes each")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 2], help="LeRobot's; the best one counts")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--only-stock", action="store_true", help="do not measure LeRobot with its videos patched out")
    parser.add_argument("--quick", action="store_true", help="an episode of LeRobot's, to see that all works")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/eval_throughput.json; --quick: none")
    args = parser.parse_args()
    if args.quick:
        args.tasks, args.episodes, args.lerobot_episodes = args.tasks[:1], 4, 1
        args.batch_sizes, args.repeats, args.only_stock = [1], 1, True
    if uneven := [batch for batch in args.batch_sizes if args.lerobot_episodes % batch]:
        parser.error(f"expected --lerobot-episodes divisible by {uneven}, got {args.lerobot_episodes}")
    if hasattr(os, "sched_setaffinity"):  # children inherit it
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    console, ours, theirs = Console(width=140), [], (args.tasks, args.lerobot_episodes)
    stock: dict[int, list[Run]] = {batch: [] for batch in args.batch_sizes}
    bare: dict[int, list[Run]] = {} if args.only_stock else {batch: [] for batch in args.batch_sizes}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        our_policy(folder / "lattice")
        their_policy(folder / "act")
        for turn in range(args.repeats):
            ours.append(run_ours(folder / "lattice", args.tasks, args.episodes, folder / f"ours-{turn}"))
            console.print(f"vla eval: {ours[-1]}")
            for videos, batch in itertools.product((True, False), args.batch_sizes):
                if runs := (stock if videos else bare):
                    out = folder / f"theirs-{turn}-{batch}-{videos}"
                    runs[batch].append(run_theirs(folder / "act", *theirs, batch, videos, out))
                    console.print(f"lerobot-eval, batch_size {batch}, {videos=}: {runs[batch][-1]}")
    every = {"ours": {0: ours}, "lerobot": stock, "lerobot_no_videos": bare}
    setting = {name: value for name, value in vars(args).items() if name != "out"} | {"cores": CORES}
    environment = {name: ENVIRONMENT.get(name) for name in ("OMP_NUM_THREADS", "LP_NUM_THREADS")}
    each = {who: {batch: [asdict(run) for run in runs] for batch, runs in of.items()} for who, of in every.items()}
    extra = {"settings": setting, "environment": environment, "runs": each}
    measured = results("eval_throughput", make_rows(ours, stock, bare), "0 up (ours), 1000 up (LeRobot)", extra)
    target = args.out or (None if args.quick else Path(__file__).parent / "results" / "eval_throughput.json")
    if target is not None:
        write(measured, target)
    show(measured, console)


if __name__ == "__main__":
    main()
