# SPDX-License-Identifier: Apache-2.0
"""`vla bench speed`: what a decision costs, whole path (raw observation in, actions out), and what each trick saves.

Networks with drawn weights (`speed_networks.SIZES`) are timed on this machine in one process; calls that are compared
take turns. "The number of evaluations is not latency": every figure is wall-clock, with percentiles. Its parts
(parts.py):

    cache         the prefix is encoded once: the same logits, and how much faster than passing over everything again
    sequence      one token after the other: the same blocks as a causal decoder with a cache, alone and in batches
    latency       an operation at a time and the whole decision in one graph, against the floor: operations and bytes
    served        `vla serve`, asked as a robot asks
    int8          matrices multiplied as integers
    growth        latency against prefix, cameras, chunk and batch: fitted exponents, and a plot
    speculation   many evaluations in fewer passes, on frames of the tabletop
    int8_success  eight bits on episodes of the tabletop
    modes         one evaluation that was taught by eight, on a bimodal task
    students      the same on episodes of the tabletop
    gpu           a decision and a step of training on a GPU, where there is one
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from vla import checkpoint
from vla.bench import parts, speed_floor
from vla.bench.results import Row
from vla.bench.speed_networks import SIZES, in_turns, make, seen
from vla.bench.speed_paths import Uncached, sample_uncached, write_one_by_one
from vla.canvas import query, revealed
from vla.canvas.query import Question
from vla.diffusion import Sampling, sample
from vla.diffusion.joint import one_by_one, sample_blocks
from vla.model import low_bit
from vla.policy import Policy, asking
from vla.policy.pipeline import decide_in_a_row

if TYPE_CHECKING:
    from vla.bench.run import BenchConfig

LONG_TEXT = 512
"""Words of the instruction, for a prefix of that many places and more."""
BATCH = 16
ROUNDS = {"nano": 200, "small": 60, "base": 20}
"""How often a decision is timed: percentiles of the largest are of few."""
BLOCK = 10
"""Calls in a row."""
CROWDS = {"nano": (1, 16, 64, 256), "small": (1, 16), "base": (1,)}
"""Observations at once, for the way that has to win on large batches if it wins at all."""


@dataclass(frozen=True)
class SpeedConfig(parts.PartsConfig):
    """What the parts of `vla bench speed` are told."""

    bench: ClassVar = "speed"
    parts: ClassVar = {
        "cache": ("speed", "cache_rows"),
        "sequence": ("speed", "sequence_rows"),
        "latency": ("speed", "latency_rows"),
        "served": ("speed_served", "served_rows"),
        "int8": ("speed", "int8_rows"),
        "growth": ("speed_growth", "growth_rows"),
        "speculation": ("speed_decisions", "speculation_rows"),
        "int8_success": ("speed_decisions", "int8_success_rows"),
        "modes": ("speed_students", "mode_rows"),
        "students": ("speed_students", "student_rows"),
        "gpu": ("speed_gpu", "gpu_rows"),
    }
    out: Path = Path("runs/bench/speed")

    @property
    def rounds(self) -> int:
        """How often a call is timed."""
        return 3 if self.quick else 60

    @property
    def sizes(self) -> tuple[str, ...]:
        return ("nano",) if self.quick else tuple(SIZES)


def run(config: "BenchConfig") -> dict[str, Any]:
    """As `parts.run`; its folder is <out>/speed, with --quick <out>/quick/speed. `config.threads`: of torch."""
    if config.threads:
        torch.set_num_threads(config.threads)
    speed = SpeedConfig(
        out=(config.out / "quick" if config.quick else config.out) / "speed",
        only=config.only,
        quick=config.quick,
        resume=config.resume,
        overwrite=config.overwrite,
    )
    return parts.run(speed) | {"measured_with": {"threads": torch.get_num_threads(), "precision": "float32"}}


def cache_rows(config: SpeedConfig) -> list[Row]:
    return [*cache(config.sizes[min(1, len(config.sizes) - 1)], config.rounds), decided_blocks(config.rounds)]


def sequence_rows(config: SpeedConfig) -> list[Row]:
    rows = []
    for name in config.sizes:
        rounds, crowds = (config.rounds, (1, 4)) if config.quick else (ROUNDS[name] // 4, CROWDS[name])
        rows += one_token_after_the_other(name, rounds, crowds)
    return rows


def latency_rows(config: SpeedConfig) -> list[Row]:
    best = speed_floor.machine()
    rows = []
    for name in config.sizes:
        rows += latency(name, config.rounds if config.quick else ROUNDS[name], best, compiled=not config.quick)
    rows += [encoded_ahead(name, max(2, config.rounds // 6)) for name in config.sizes[:2]]
    return [
        *rows,
        Row("machine_gflops", best.flops_per_s / 1e9, "GFLOP/s", note="a large product, float32"),
        Row("machine_gb_per_s", best.bytes_per_s / 1e9, "GB/s", note="a long sum"),
    ]


def int8_rows(config: SpeedConfig) -> list[Row]:
    return integers(config.sizes[-1], config.rounds)


def cache(name: str, rounds: int) -> list[Row]:
    """The exact prefix cache: the same logits, less time, at eight evaluations and a long prefix."""
    policy = make(SIZES[name], text_length=LONG_TEXT)
    model, sampling = policy.model, Sampling(8)
    images, state_BS, _ = policy.inputs([seen(policy, 0)])
    words_BL = torch.arange(LONG_TEXT).unsqueeze(0) % (model.config.vocabulary - 1) + 1
    key_B = torch.tensor([1])
    with torch.inference_mode():
        whole = Uncached(model, images, state_BS, words_BL)
        layout = model.config.layout
        digits = torch.randint(0, layout.base, (1, layout.positions, layout.sub_tokens, layout.digits))
        known = torch.randint(0, layout.digits + 1, digits.shape[:3])
        canvas = revealed(digits, known)
        prefix = model.encode(images, state_BS, words_BL)
        pair = [model.head(h, digits) for h in (model.decode(prefix, canvas), whole.decode(canvas))]
        apart = max(float((a - b)[a.isfinite()].abs().max()) for a, b in zip(*pair, strict=True))
        taken = in_turns(
            {
                "cached": lambda _: sample(model, model.encode(images, state_BS, words_BL), key_B, sampling),
                "uncached": lambda _: sample_uncached(model, images, state_BS, words_BL, key_B, sampling),
            },
            rounds,
        )
    places = whole.x_BPW.shape[1]
    note = f"{name}, {places} places of prefix, {sampling.evaluations} evaluations"
    ratio = float(np.median(taken["uncached"]) / np.median(taken["cached"]))
    return [
        Row("cache_max_logit_diff", apart, "", goal="<= 1e-4", passes=apart <= 1e-4, note=f"{note}; float32"),
        Row("cache_speedup", ratio, "times", rounds, goal=">= 3", passes=ratio >= 3, note=note),
    ]


def decided_blocks(rounds: int) -> Row:
    """Plan, future image and actions one after the other, eight evaluations each: what is decided joins the prefix."""
    policy = Policy.load("tabletop_unified")
    observation = seen(policy, 0)
    question = query.joint(Question(observation.images, observation.state, observation.instruction))
    turns, key_B = one_by_one(question.query.asked, 8), torch.tensor([1])
    with torch.inference_mode():
        prefix = asking.encoded(policy, [question], question.query)
        given = (policy.model, prefix, key_B, turns, policy.sampling, asking.words_of(policy))
        calls = {
            "kept": lambda _: sample_blocks(*given),
            "again": lambda _: sample_blocks(*given, keep_decided=False),
        }
        taken = {what: float(np.median(ms)) for what, ms in in_turns(calls, max(1, rounds // 3)).items()}
    positions = sum(policy.model.embedding_of(segment).layout.positions for segment in turns)
    note = (
        f"tabletop_unified, {positions} positions in three blocks: {taken['kept']:.1f} against {taken['again']:.1f} ms"
    )
    return Row("block_cache_speedup", taken["again"] / taken["kept"], "times", rounds, note=note)


def one_token_after_the_other(name: str, rounds: int, crowds: Sequence[int]) -> list[Row]:
    """A chunk in two evaluations against one token after the other, both with every cache, neither compiled.

    Where a batch is large, operations count and not the number of passes; is there one at which the other way wins?
    """
    ours, theirs = make(SIZES[name]), make(SIZES[name], arrangement="per_dim")
    found: dict[int, tuple[float, float]] = {}
    for crowd in crowds:
        observations = [seen(ours, number) for number in range(crowd)]
        keys = [(number, 0) for number in range(crowd)]

        def written(_: int, observations: list[Any] = observations) -> Any:
            with torch.inference_mode():
                return write_one_by_one(theirs.model, theirs.model.encode(*theirs.inputs(observations)))

        def decided(_: int, observations: list[Any] = observations, keys: list[Any] = keys) -> Any:
            return ours.act(observations, keys)

        many = max(3, rounds // crowd)
        taken = in_turns({"ours": decided, "one by one": written}, many, warm=1, block=BLOCK)
        found[crowd] = float(np.median(taken["ours"])), float(np.median(taken["one by one"]))
    mine, other = found[crowds[0]]
    ratio, tokens = mine / other, theirs.model.config.layout.positions
    note = f"{name}, {tokens} tokens: {mine:.1f} against {other:.1f} ms"
    crossed = next((crowd for crowd, (mine, other) in found.items() if other < mine), 0)
    times = ", ".join(f"{crowd}: {mine:.0f} against {other:.0f}" for crowd, (mine, other) in found.items())
    return [
        Row(f"latency_ratio_to_ar_{name}", ratio, "", rounds, goal="<= 0.1", passes=ratio <= 0.1, note=note),
        Row(f"ar_crossover_batch_{name}", crossed, "rows", note=f"0: none; ms at a batch of {times}"),
    ]


def latency(name: str, rounds: int, best: speed_floor.Machine, compiled: bool) -> list[Row]:
    """One size: the whole path an operation at a time and as one graph, and its floor."""
    policy = make(SIZES[name])
    observations = [seen(policy, number) for number in range(BATCH)]
    calls = {
        "": lambda number: policy.act(observations[:1], [(0, number)]),
        "batch_": lambda number: policy.act(observations, [(i, number) for i in range(BATCH)]),
    }
    if compiled:
        graph, batched = make(SIZES[name]), make(SIZES[name])
        graph.compile()
        batched.compile(rows=BATCH)
        calls["graph_"] = lambda number: graph.act(observations[:1], [(0, number)])
        calls["graph_batch_"] = lambda number: batched.act(observations, [(i, number) for i in range(BATCH)])
    taken = in_turns(calls, rounds, block=BLOCK)
    parameters = sum(p.numel() for p in policy.model.parameters())
    rows = [Row(f"{name}_parameters", parameters, "parameters")]
    for call, ms in taken.items():
        for percentile in (50, 95, 99):
            note = f"{BATCH} observations at once" if "batch" in call else "one observation"
            value = float(np.percentile(ms, percentile))
            rows.append(Row(f"{name}_{call}p{percentile}_ms", value, "ms", rounds, note=note))
    operations = speed_floor.count(policy, lambda: policy.act(observations[:1], [(0, 0)]))
    least = speed_floor.floor(policy, operations, best)
    fastest = min(float(np.median(taken[call])) for call in taken if "batch" not in call)
    note = f"{operations / 1e9:.3f} GFLOP, {least.bytes / 1e6:.1f} MB"
    return [
        *rows,
        Row(f"{name}_floor_ms", least.ms, "ms", note=note),
        Row(f"{name}_floor_ratio", fastest / least.ms, "times", note="the faster of the two ways, p50"),
    ]


def encoded_ahead(name: str, rounds: int) -> Row:
    """A stream of observations: the next one encoded while a chunk is decided, against one after the other."""
    policy = make(SIZES[name])
    asked = [(seen(policy, number), (0, number)) for number in range(BATCH)]
    taken = in_turns(
        {
            "in turn": lambda _: [policy.act([observation], [key]) for observation, key in asked],
            "ahead": lambda _: list(decide_in_a_row(policy, asked)),
        },
        rounds,
        warm=1,
    )
    each = {what: float(np.median(ms)) / BATCH for what, ms in taken.items()}
    note = f"{name}: {each['ahead']:.1f} against {each['in turn']:.1f} ms a chunk, {BATCH} in a row"
    return Row(f"encode_ahead_speedup_{name}", each["in turn"] / each["ahead"], "times", rounds, note=note)


def integers(name: str, rounds: int) -> list[Row]:
    """Matrices of eight bits: the file and the latency against float32. Success is measured elsewhere."""
    exact = make(SIZES[name])
    state = exact.model.state_dict()
    packed = low_bit.pack(state, low_bit.candidates(exact.model), 8)
    small = make(SIZES[name])
    small.model.load_state_dict(low_bit.unpack(packed))
    used = low_bit.run_in_integers(small.model, packed)
    with tempfile.TemporaryDirectory() as folder:
        sizes = []
        for number, tensors in enumerate((packed, state)):
            path = Path(folder) / f"{number}.safetensors"
            checkpoint.save_tensors(tensors, path)
            sizes.append(path.stat().st_size)
    observation = seen(exact, 0)
    calls = {
        what: (lambda number, p=policy: p.act([observation], [(0, number)]))
        for what, policy in (("exact", exact), ("small", small))
    }
    taken = {what: float(np.median(ms)) for what, ms in in_turns(calls, rounds).items()}
    ratio = taken["small"] / taken["exact"]
    note = f"{name}: {taken['small']:.1f} against {taken['exact']:.1f} ms" + ("" if used else "; multiplied out")
    size = sizes[0] / sizes[1]
    return [
        Row("int8_size_ratio", size, "", goal="<= 0.3", passes=size <= 0.3, note=name),
        Row("int8_latency_ratio", ratio, "", rounds, goal="<= 1", passes=ratio <= 1.0, note=note),
    ]
