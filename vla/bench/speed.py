# SPDX-License-Identifier: Apache-2.0
"""`vla bench speed`: what a decision costs, whole path (raw observation in, actions out), and what each trick saves.

Networks with drawn weights (`speed_networks.SIZES`) are timed on this machine in one process; calls that are compared
take turns. The number of denoising steps is not latency: every figure is wall-clock, with percentiles. Its parts
(parts.py):

    cache         what is given is read once: the same logits, and how much faster than reading it at every step
    sequence      one token after the other: the same blocks as a causal decoder with a cache, alone and in batches
    latency       an operation at a time and the whole decision in one graph, against the floor: operations and bytes
    served        `vla serve`, asked as a robot asks
    int8          matrices multiplied as integers
    growth        latency against prefix, cameras, chunk and batch: fitted exponents, and a plot
    int8_success  eight bits on episodes of the tabletop
    modes         one step that was taught by eight, on a bimodal task
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
from vla.bench.speed_networks import SIZES, given, in_turns, make, seen
from vla.bench.speed_paths import Autoregressive, Uncached, as_kind
from vla.canvas import Segment, unmasked
from vla.diffusion import Sampling, sample
from vla.model import low_bit

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
        "int8_success": ("speed_decisions", "int8_success_rows"),
        "modes": ("speed_modes", "mode_rows"),
        "students": ("speed_decisions", "student_rows"),
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
    """At the length of the tabletop's instructions, and at one that is long enough to show what the cache is for."""
    size = config.sizes[min(1, len(config.sizes) - 1)]
    return [*cache(size, config.rounds), *cache(size, config.rounds, LONG_TEXT)]


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
    return [
        *rows,
        Row("machine_gflops", best.flops_per_s / 1e9, "GFLOP/s", note="a large product, float32"),
        Row("machine_gb_per_s", best.bytes_per_s / 1e9, "GB/s", note="a long sum"),
    ]


def int8_rows(config: SpeedConfig) -> list[Row]:
    return integers(config.sizes[-1], config.rounds)


def cache(name: str, rounds: int, words: int = 0) -> list[Row]:
    """The exact cache at eight steps: the same logits, less time. `words`: of the instruction; 0: as they are."""
    policy = make(SIZES[name], **({"text_length": words} if words else {}))
    model, sampling, key_B, action = policy.model, Sampling(8), torch.tensor([1]), Segment.ACTION
    segments, again = given(policy, 1, fill=bool(words)), as_kind(policy.model, Uncached)
    with torch.inference_mode():
        layout = model.config.layout
        digits = torch.randint(0, layout.base, (1, layout.positions, layout.sub_tokens, layout.digits))
        states = {action: unmasked(digits, torch.randint(0, layout.digits + 1, digits.shape[:3]))}
        context = model.read(None, segments)
        pair = [
            network.head_of(action)(network.decode(read, states)[action], digits)
            for network, read in ((model, context), (again, again.begin(segments)))
        ]
        apart = max(float((a - b)[a.isfinite()].abs().max()) for a, b in zip(*pair, strict=True))
        taken = in_turns(
            {
                "cached": lambda _: sample(model, model.read(None, segments), key_B, [action], sampling),
                "uncached": lambda _: sample(again, again.begin(segments), key_B, [action], sampling),
            },
            rounds,
        )
    note, end = f"{name}, {context.visible_BP.shape[1]} places of prefix, 8 steps", "_long" if words else ""
    ratio = float(np.median(taken["uncached"]) / np.median(taken["cached"]))
    return [
        Row(f"cache_max_logit_diff{end}", apart, "", goal="<= 1e-4", passes=apart <= 1e-4, note=f"{note}; float32"),
        Row(f"cache_speedup{end}", ratio, "times", rounds, note=note),
    ]


def one_token_after_the_other(name: str, rounds: int, crowds: Sequence[int]) -> list[Row]:
    """A chunk in two steps against one token after the other, both with every cache, neither compiled.

    Where a batch is large, operations count and not the number of passes; is there one at which the other way wins?
    """
    ours, theirs = make(SIZES[name]), make(SIZES[name], arrangement="per_dim")
    writer = as_kind(theirs.model, Autoregressive)
    found: dict[int, tuple[float, float]] = {}
    for crowd in crowds:
        observations = [seen(ours, number) for number in range(crowd)]
        keys = [(number, 0) for number in range(crowd)]

        def written(_: int, crowd: int = crowd) -> Any:
            with torch.inference_mode():
                return writer.write(writer.read(None, given(theirs, crowd)))

        def decided(_: int, observations: list[Any] = observations, keys: list[Any] = keys) -> Any:
            return ours.act(observations, keys)

        many = max(3, rounds // crowd)
        taken = in_turns({"ours": decided, "one by one": written}, many, warm=1, block=BLOCK)
        found[crowd] = float(np.median(taken["ours"])), float(np.median(taken["one by one"]))
    mine, other = found[crowds[0]]
    ratio, tokens = mine / other, writer.config.layout.positions
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
