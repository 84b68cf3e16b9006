# SPDX-License-Identifier: Apache-2.0
"""Model FLOP utilisation: the operations that training needs, against what the machine does at its best.

    MFU = operations of one step * steps/s / (operations/s of a large matrix product, same device and precision)

Operations are those of products, forwards and backwards, each multiplication and each addition counted (Chowdhery et
al. 2022, appendix B); what is computed again is not counted as if it were needed. The best is measured and not read off
a data sheet, so that it can be told of any machine.
"""

import time
from typing import Any

import torch

BACKWARD = 2
"""A backward pass has twice the products of the forward pass."""


def step_operations(s: Any, batch: dict[str, Any], step: int) -> float:
    """Operations of one training step of this process; `s`: the session, in which nothing changes.

    Of a compiled network the averaged one is asked, which is not compiled, for the loss without what only training adds
    (further queries). Where a process has a slice of every parameter nothing is counted: 0.
    """
    from torch.utils.flop_counter import FlopCounterMode

    if s.sharded:
        return 0.0
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        s.losses(batch, step, s.averaged if s.recipe.compile else None)
    return (1 + BACKWARD) * float(counter.get_total_flops())


def measured_rate(device: torch.device, precision: str, seconds: float = 0.3) -> float:
    """Operations a second of a large product, the best of as many as fit into the time."""
    side = 1024 if device.type == "cpu" else 8192
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    draw = torch.Generator(device).manual_seed(0)  # numbers that are all alike would be multiplied faster
    a, b = (torch.randn(side, side, device=device, generator=draw).to(dtype) for _ in range(2))
    best, until = float("inf"), time.perf_counter() + seconds
    while best == float("inf") or time.perf_counter() < until:
        began = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - began)
    return 2 * side**3 / best
