# SPDX-License-Identifier: Apache-2.0
"""How the cost of a decision grows: latency and memory against prefix length, cameras, chunk length and batch.

One thing grows at a time, from a network of the size `small`; the exponent is the slope of log latency over log size,
by least squares. 0 means that it costs nothing more, 1 that twice as much costs twice as much.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vla.bench.plots import curves_plot
from vla.bench.results import Row
from vla.bench.speed_networks import SIZES, given, in_turns, make
from vla.canvas import Segment
from vla.diffusion import sample
from vla.policy import Policy

GROWING: dict[str, tuple[int, ...]] = {
    "prefix": (64, 128, 256, 512, 1024),
    "cameras": (1, 2, 4, 8),
    "chunk": (8, 16, 32, 64),
    "batch": (1, 2, 4, 8, 16),
}
"""What grows, and to how much: words of the instruction, cameras, steps of a chunk, observations at once."""


def grown(what: str, size: int) -> tuple[Policy, int]:
    """A policy in which one thing is so large, and how many observations it gets at once."""
    small = SIZES["small"]
    if what == "cameras":
        return make(replace(small, cameras=size)), 1
    changes = {"prefix": {"text_length": size}, "chunk": {"horizon": size}}.get(what, {})
    return make(small, **changes), size if what == "batch" else 1


def decision(policy: Policy, rows: int) -> Callable[[int], Any]:
    """A call that decides for `rows` observations, instructions as long as there is room."""
    segments, key_B = given(policy, rows, fill=True), torch.arange(rows)

    def call(_: int) -> Any:
        with torch.inference_mode():
            return sample(policy.model, policy.model.read(None, segments), key_B, [Segment.ACTION], policy.sampling)

    return call


def kept_bytes(policy: Policy, rows: int) -> int:
    """Bytes of the keys and values that a decision keeps."""
    with torch.inference_mode():
        context = policy.model.read(None, given(policy, rows, fill=True))
    return sum(x.nbytes for x in (*context.keys, *context.values))


def growth_rows(config: Any) -> list[Row]:
    """`config`: a SpeedConfig."""
    return rows(max(1, config.rounds // 3), config.out)


def rows(rounds: int, folder: Path) -> list[Row]:
    """Exponents of latency and of what is kept; growth.png in `folder`."""
    made, curves = [], {}
    for what, sizes in GROWING.items():
        cases = {str(size): grown(what, size) for size in sizes}
        taken = in_turns({name: decision(*case) for name, case in cases.items()}, rounds)
        ms = np.array([float(np.median(taken[str(size)])) for size in sizes])
        kept = np.array([float(kept_bytes(*cases[str(size)])) for size in sizes])
        points = ", ".join(f"{size}: {value:.1f}" for size, value in zip(sizes, ms, strict=True))
        slope, memory = (float(np.polyfit(np.log(sizes), np.log(y), 1)[0]) for y in (ms, kept))
        made.append(Row(f"cost_exponent_{what}", slope, "", rounds, note=f"ms: {points}"))
        made.append(
            Row(f"memory_exponent_{what}", memory, "", note=f"keys and values, {kept[-1] / 1e6:.1f} MB at most")
        )
        curves[what] = [(size / sizes[0], value / ms[0], None, None) for size, value in zip(sizes, ms, strict=True)]
    curves_plot(
        curves,
        folder / "growth.png",
        "What a decision costs as one thing grows",
        "times as large",
        "times as long",
        logx=True,
    )
    return made
