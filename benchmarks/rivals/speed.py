# SPDX-License-Identifier: Apache-2.0
"""What does a chunk cost, beside LeRobot's policies that have no more parameters?

    python benchmarks/rivals/speed.py --dataset runs/x/dataset --out runs/rivals_speed [--threads 2] [--quick]

Networks with drawn weights, which are as fast as learnt ones, for the pictures, states and words of the dataset; whole
path, one raw observation in and actions out; calls take turns in one process, ten in a row of each, and then one at a
time after a pause, as a robot asks twenty times a second (caches are cold by then, and threads asleep). Everyone is
timed with one thread and with `--threads`, and has the time of the better. Each rival is configured as in
`lerobot_configs` (ACT, Diffusion and multi-task DiT with ten DDIM steps, VQ-BeT) and meets a network of ours that is
made as wide as it takes to have at least its parameters: neither compiled, which is compared with a goal; ours compiled
into one graph, and with one step instead of two, as a distilled student has. Their own code is neither made slower nor
faster: what LeRobot does to decide is timed as it is.

Writes benchmarks/results/rivals_speed.json, prints a table and, last, a line of JSON.
"""

import argparse
import os
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
if sys.path[0] == str(Path(__file__).resolve().parent):
    sys.path[0] = str(ROOT)

RIVALS = ("act", "diffusion", "multi_task_dit", "vqbet")
GOAL = {"diffusion": 0.1}
"""What our latency may be of theirs where neither is compiled; 1 for the others."""
GRAPH = "ours in one graph"
STUDENT = "one step in one graph"
PAUSE_S = 0.05
"""Between the decisions of a robot."""


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Time all of them; returns the results. ValueError for a dataset that a rival cannot take."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here is pretrained
    import torch
    from rich.console import Console

    from vla.bench.results import default_path, results, show, write

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dataset", required=True, help="folder of a LeRobot dataset (v3) with one camera")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--recipe", default="tabletop_nano")
    parser.add_argument("--threads", type=int, default=2, help="of torch, at most")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--quick", action="store_true", help="three rounds of one rival, nothing compiled")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    made = []
    for name in RIVALS[:1] if options.quick else RIVALS:
        made += against(name, options)
    found = results("rivals_speed", made, "weights 0, frames of the dataset", {"threads": options.threads})
    write(found, options.out / "rivals_speed.json" if options.quick else default_path("rivals_speed", options.out))
    show(found, Console(highlight=False))
    return found


def against(name: str, options: argparse.Namespace) -> list[Any]:
    """The rows of one rival."""
    import numpy as np
    import torch

    from benchmarks.rivals.lerobot_configs import missing
    from vla import recipes
    from vla.bench.results import Row
    from vla.bench.speed_networks import in_turns
    from vla.data.cache import open_cache
    from vla.policy import Observation

    id = f"latency_ratio_to_{name}"
    if reason := missing(name):
        return [Row(id, float("nan"), "", note=f"not run: {reason}")]
    recipe = recipes.get(options.recipe)
    cache = open_cache(options.dataset, image_size=recipe.image_size)
    rival = drawn(name, cache, recipe, options.out / name)
    theirs = sum(p.numel() for p in rival.policy.parameters())
    plain = ours(cache, recipe, theirs)
    mine = sum(p.numel() for p in plain.model.parameters())
    counts = sorted({1, options.threads})

    def seen(number: int) -> Observation:
        i = number * len(cache.action) // (options.rounds + 1)
        images = {camera: np.asarray(cache.frames[camera][i]) for camera in cache.cameras}
        return Observation(images, cache.state[i], cache.tasks[cache.task_index[i]])

    contenders = {"rival": {t: rival for t in counts}, "ours": {t: plain for t in counts}}
    if not options.quick:
        torch._dynamo.reset()  # it keeps few graphs of one function
        for who, steps in ((GRAPH, recipe.sampling.num_inference_steps), (STUDENT, 1)):
            contenders[who] = {t: in_one_graph(ours(cache, recipe, theirs), t, steps) for t in counts}

    def asked(policy: Any, threads: int, number: int) -> None:
        torch.set_num_threads(threads)
        policy.act([seen(max(number, 0))], [(0, max(number, 0))])

    calls: dict[Any, Any] = {
        (who, threads): partial(asked, policy, threads)
        for who, of in contenders.items()
        for threads, policy in of.items()
    }
    rounds = 3 if options.quick else options.rounds
    taken = better(in_turns(calls, rounds, block=10))
    paced = better(in_turns(calls, max(rounds // 5, 1), pause_s=PAUSE_S))
    p50, of = ({who: float(np.median(ms)) for who, (ms, _) in found.items()} for found in (taken, paced))

    def told(found: Any) -> str:
        return ", ".join(
            f"{who} {np.median(ms):.2f} (p95 {np.percentile(ms, 95):.2f}, threads {threads})"
            for who, (ms, threads) in found.items()
        )

    ratio, goal = p50["ours"] / p50["rival"], GOAL.get(name, 1.0)
    note = f"neither compiled; p50 in ms: {told(taken)}; parameters: ours {mine:,}, theirs {theirs:,}"
    passes = ratio <= goal if goal < 1 else ratio < 1
    wanted = f"<= {goal:g}" if goal < 1 else "< 1"
    found_rows = [Row(f"{id}_eager", ratio, "", rounds, goal=wanted, passes=passes, note=note)]
    best = GRAPH if GRAPH in p50 else "ours"
    if GRAPH in p50:
        found_rows.append(Row(id, p50[GRAPH] / p50["rival"], "", rounds, note="ours compiled, theirs as it comes"))
        found_rows.append(Row(f"{id}_at_1", p50[STUDENT] / p50["rival"], "", rounds, note=STUDENT))
    pause = f"{PAUSE_S:g} s between decisions: {told(paced)}"
    return [*found_rows, Row(f"{id}_paced", of[best] / of["rival"], "", len(paced[best][0]), note=pause)]


def in_one_graph(policy: Any, threads: int, steps: int) -> Any:
    """The policy, compiled for so many threads."""
    import torch

    torch.set_num_threads(threads)
    policy.sampling = replace(policy.sampling, num_inference_steps=steps)
    policy.compile()
    return policy


def better(taken: Any) -> dict[str, tuple[Any, int]]:
    """{(who, threads): ms} -> {who: (ms, threads)}, with the number of threads whose median is lower."""
    import numpy as np

    found: dict[str, tuple[Any, int]] = {}
    for (who, threads), ms in taken.items():
        if who not in found or np.median(ms) < np.median(found[who][0]):
            found[who] = ms, threads
    return found


def drawn(name: str, cache: Any, recipe: Any, folder: Path) -> Any:
    """A policy of LeRobot with drawn weights, as the rivals' table trains it."""
    import torch
    from lerobot.policies.factory import get_policy_class, make_pre_post_processors

    from benchmarks.rivals.lerobot_clip import NAME, write_clip
    from benchmarks.rivals.lerobot_configs import READS, make_config
    from benchmarks.rivals.lerobot_data import SentenceCode, statistics
    from benchmarks.rivals.lerobot_policy import LeRobotContender, Robot

    code = None if name in READS else SentenceCode.of(cache.tasks)
    config = make_config(name, cache, recipe, code, folder / NAME)
    if name in READS:
        config.tokenizer_max_length = write_clip(folder / NAME, cache.tasks, recipe.image_size, 0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        policy = get_policy_class(name)(config)
    pre, post = make_pre_post_processors(policy_cfg=config, dataset_stats=statistics(cache, code))
    names = list(cache.state_names), list(cache.action_names)
    robot = Robot(tuple(cache.cameras), recipe.image_size, *names, recipe.horizon, recipe.n_action_steps)
    return LeRobotContender(policy, pre, post, robot, code, None)


def ours(cache: Any, recipe: Any, least: int) -> Any:
    """The recipe's network with drawn weights, as wide as it takes to have at least so many parameters."""
    import torch

    from vla.model import LatticeModel
    from vla.policy import Policy
    from vla.train.setup import fit_tokenizers, network

    tokenizers = fit_tokenizers(recipe, cache)
    for width in range(recipe.width, 2049, 32):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = LatticeModel(network(replace(recipe, width=width), tokenizers, cache.cameras))
        if sum(p.numel() for p in model.parameters()) >= least:
            return Policy(model, tokenizers, cache.fps, recipe.sampling, recipe.n_action_steps)
    raise ValueError(f"expected a rival of less than {least} parameters")


if __name__ == "__main__":
    main()
