# SPDX-License-Identifier: Apache-2.0
"""What faster ways do to decisions: the shipped policy, on frames and episodes of the tabletop."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vla.bench.results import Row
from vla.bench.speed_networks import in_turns

EVALUATIONS, AHEAD = 16, 4
"""Of the sampler that is speculated for, and how far it guesses its own future."""


def speculation_rows(config: Any) -> list[Row]:
    """`config`: a SpeedConfig."""
    return speculation(frames(config.out), 4 if config.quick else 200)


def int8_success_rows(config: Any) -> list[Row]:
    """`config`: a SpeedConfig."""
    return int8_success(frames(config.out), config.out, 15 if config.quick else 600)


def frames(folder: Path) -> Path:
    """A small dataset of the demo's tasks, recorded once."""
    from vla.data.record import RecordConfig, record

    data = folder / "dataset"
    if not data.exists():
        record(RecordConfig(episodes=40, out=data, shard_episodes=20))
    return data


def speculation(data: Path, count: int) -> list[Row]:
    """Self-speculation against the sampler of many evaluations: the same tokens, in how many passes, in what time?"""
    from vla.data.cache import open_cache
    from vla.diffusion import Sampling, sample
    from vla.diffusion.speculation import sample_speculatively
    from vla.policy import Observation, Policy

    policy = Policy.load("tabletop_nano")
    cache, sampling = open_cache(str(data), image_size=policy.image_size), Sampling(EVALUATIONS)
    key_B = torch.zeros(1, dtype=torch.long)
    same, passes = [], []
    ids = np.random.default_rng(0).permutation(len(cache.action))[:count]
    with torch.inference_mode():
        prefixes = []
        for i in ids:
            images = {camera: np.asarray(pictures[i]) for camera, pictures in cache.frames.items()}
            seen = Observation(images, cache.state[i], cache.tasks[cache.task_index[i]])
            prefixes.append(policy.model.encode(*policy.inputs([seen])))
        for prefix in prefixes:
            plain = sample(policy.model, prefix, key_B, sampling)
            quick = sample_speculatively(policy.model, prefix, key_B, sampling, ahead=AHEAD)
            same.append(torch.equal(plain.state.digits_BNSD, quick.state.digits_BNSD))
            passes.append(quick.evaluations)
        taken = in_turns(
            {
                "plain": lambda n: sample(policy.model, prefixes[n % count], key_B, sampling),
                "quick": lambda n: sample_speculatively(
                    policy.model, prefixes[n % count], key_B, sampling, ahead=AHEAD
                ),
            },
            count,
        )
    exact, saved = float(np.mean(same)), EVALUATIONS / float(np.mean(passes))
    quicker = float(np.median(taken["plain"]) / np.median(taken["quick"]))
    note = f"{EVALUATIONS} evaluations, {AHEAD} guessed ahead: {np.mean(passes):.1f} passes in a row"
    return [
        Row(
            "speculative_exact",
            exact,
            "fraction",
            count,
            goal="100 %",
            passes=exact == 1.0,
            note="all tokens of a chunk",
        ),
        Row("speculative_speedup", saved, "times", count, goal=">= 1.5", passes=saved >= 1.5, note=note),
        Row("speculative_time_ratio", quicker, "times", count, note="wall-clock on this machine; a pass has more rows"),
    ]


def int8_success(data: Path, folder: Path, episodes: int) -> list[Row]:
    """The shipped policy with weights of eight bits, on the same episodes: success lost, size."""
    from vla import checkpoint
    from vla.eval.evaluate import EvalConfig, evaluate
    from vla.eval.statistics import compare_paired
    from vla.train.quantize import QuantizeConfig, quantize

    small = folder / "int8"
    shutil.rmtree(small, ignore_errors=True)
    made = quantize(QuantizeConfig("tabletop_nano", str(data), small))
    found = {}
    for name, policy in (("exact", "tabletop_nano"), ("int8", str(small))):
        out = folder / f"eval-{name}"
        evaluate(EvalConfig(policy=policy, suite="all", episodes=episodes, out=out, videos=0, overwrite=True))
        found[name] = _successes(out)
    pair = compare_paired(found["int8"], found["exact"])
    worst = max(made["loss_after"][ratio] - made["loss"][ratio] for ratio in made["loss"])
    size_mb = (checkpoint.resolve(str(small)) / "model.safetensors").stat().st_size / 1e6
    note = f"all fifteen tasks, paired; the loss of hidden digits grows by {worst:.4f} nats, {size_mb:.2f} MB"
    loss = pair.difference
    return [
        Row("int8_success_loss", loss, "fraction", pair.n, pair.interval, "<= 1 point", loss <= 0.01, note),
        Row("int8_size_ratio_nano", made["size_ratio"], "", goal="<= 0.3", passes=made["size_ratio"] <= 0.3),
    ]


def _successes(folder: Path) -> dict[tuple[str, int], bool]:
    """(task, seed) -> whether it was solved."""
    from vla.eval.episodes import read_results

    return {(r.task, r.seed): r.success for r in read_results(folder / "episodes.jsonl")}
