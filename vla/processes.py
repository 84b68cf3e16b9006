# SPDX-License-Identifier: Apache-2.0
"""Several processes that train one network: who is who, and what they have in common.

`torchrun` or `accelerate launch` starts them and says so in the environment. A batch is dealt like cards: process r of
W has the rows r, r + W, r + 2 W, ... of it. Whatever depends on the place in the batch asks `places`, and every mean
over the batch divides by `mean` of the count, so that the mean of the processes' losses and gradients is that of the
whole batch. With one process every function here gives back what it was given.
"""

import contextlib
import os
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor


def world() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is, from 0 on; 0 is the one that prints and writes."""
    return dist.get_rank() if world() > 1 else 0


@contextlib.contextmanager
def together(device: str) -> Iterator[torch.device]:
    """Join the processes that a launcher started, for as long as the block lasts. Yields this process's device.

    `device`: "cpu", "cuda", "cuda:1", or "auto". NCCL between GPUs, Gloo between CPUs.
    """
    name = device if device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield torch.device(name)
        return
    if name == "cuda":
        name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(name)
    dist.init_process_group("nccl" if name.startswith("cuda") else "gloo")
    try:
        yield torch.device(name)
    finally:
        dist.destroy_process_group()


def here() -> int:
    """How many of them share this machine, and its processor."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if world() > 1 else 1


def places(rows: int) -> Tensor:
    """Which rows of the whole batch this process has, int64 (rows,)."""
    return torch.arange(rows) * world() + rank()


def dealt(x: Tensor) -> Tensor:
    """This process's rows of the whole batch `x`."""
    return x[rank() :: world()] if world() > 1 else x


def mean(x: Tensor) -> Tensor:
    """The mean over the processes, without a gradient. The same shape and dtype."""
    if world() == 1:
        return x
    total = x.detach().clone()
    dist.all_reduce(total)
    return total / world()


def first(x: Tensor) -> Tensor:
    """What process 0 has, for all."""
    if world() == 1:
        return x
    x = x.contiguous().clone()
    dist.broadcast(x, 0)
    return x


def first_text(text: str) -> str:
    """What process 0 has, for all."""
    if world() == 1:
        return text
    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
    data = torch.frombuffer(bytearray(text.encode() or b" "), dtype=torch.uint8).to(device)
    length = int(first(torch.tensor([len(data)], device=device)))
    return bytes(first(data if rank() == 0 else data.new_zeros(length)).tolist()).decode()


def wait() -> None:
    """Go on when all have come here."""
    if world() > 1:
        dist.barrier()


@contextlib.contextmanager
def one_after_the_other() -> Iterator[None]:
    """Process 0 does it alone, e.g. makes a cache; then the others do, and find it made."""
    if rank() > 0:
        wait()
    yield
    if rank() == 0:
        wait()
