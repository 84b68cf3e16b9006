# SPDX-License-Identifier: Apache-2.0
"""How fast could it be? Operations and bytes of a decision, against what this machine does of either at its best.

    floor = max(operations / (operations/s of a large product), bytes / (bytes/s of a long sum))

Bytes are those of the weights, once for each time that they are used: a batch of one reads a weight and uses it for a
few tokens, so that weights are what moves. It is a floor, not a forecast: norms, softmaxes and launches are not in it.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from vla.policy import Policy


@dataclass(frozen=True)
class Machine:
    """What it does at its best, with the threads and the precision of the measurement."""

    flops_per_s: float
    bytes_per_s: float


@dataclass(frozen=True)
class Floor:
    """One decision of one observation."""

    operations: float
    """Multiplications and additions of all products, each counted."""
    bytes: float
    ms: float


def machine(side: int = 1024, megabytes: int = 256) -> Machine:
    """Measure this machine in float32: the best of several tries of each."""
    a, b = torch.randn(side, side), torch.randn(side, side)
    long = torch.ones(megabytes * 1_000_000 // 4)
    return Machine(2 * side**3 / best_seconds(lambda: a @ b), 4 * long.numel() / best_seconds(long.sum))


def best_seconds(call: Callable[[], Any], tries: int = 12, device: torch.device | None = None) -> float:
    """The best of several tries; of what a CUDA device does, until it is finished."""

    def wait() -> None:
        if device is not None and device.type == "cuda":
            torch.cuda.synchronize(device)

    taken = []
    for _ in range(tries):
        wait()
        began = time.perf_counter()
        call()
        wait()
        taken.append(time.perf_counter() - began)
    return min(taken)


READ = 2
"""Segments that are read: each passes through the layers once."""


def floor(policy: Policy, operations: float, of: Machine) -> Floor:
    """The floor of one decision. `operations`: counted by `count`."""
    numbers = {"layers": 0, "step": 0, "once": 0}
    for name, parameter in policy.model.named_parameters():
        part, _, rest = name.partition(".")
        if part in ("embeddings", "segment", "forecast") or (part == "heads" and not rest.startswith("ACTION.")):
            continue  # a row or two of a table; not used when acting
        where = part if part == "layers" else "step" if part in ("norm", "heads", "summary", "places") else "once"
        numbers[where] += parameter.numel()
    steps = policy.sampling.num_inference_steps
    moved = 4.0 * (numbers["once"] + (READ + steps) * numbers["layers"] + steps * numbers["step"])
    return Floor(operations, moved, 1e3 * max(operations / of.flops_per_s, moved / of.bytes_per_s))


def count(policy: Policy, call) -> float:  # type: ignore[no-untyped-def]
    """Operations of all products in `call()`, as torch counts them (on the path without inference mode)."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.inference_mode(False), torch.no_grad(), FlopCounterMode(display=False) as counter:
        call()
    return float(counter.get_total_flops())
