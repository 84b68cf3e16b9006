# SPDX-License-Identifier: Apache-2.0
"""Several processes, one network: every process has it whole (DDP), or a slice of every parameter (FSDP2).

DDP (Li et al. 2020) averages the gradients; FSDP2 (`fully_shard`) also gathers a layer's parameters just before they
are needed and drops them afterwards, so that weights, gradients, moments and averages take 1 / W of the memory. Which
rows a process has, and why the loss is that of the whole batch: `vla/processes.py`.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from vla import processes
from vla.model import LatticeModel


class Within(nn.Module):
    """Calls a function as its forward: gradients are shared out by modules, and a loss is a function."""

    def __init__(self, model: LatticeModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)


def shard(model: LatticeModel, device: torch.device) -> nn.Module:
    """Leave this process its slice of every parameter, a layer at a time. Before the optimiser is made."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (processes.world(),))
    for layer in model.layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(Within(model), mesh=mesh)


def replicate(model: LatticeModel, device: torch.device) -> nn.Module:
    """Average the gradients over the processes. Not every step asks every head."""
    from torch.nn.parallel import DistributedDataParallel

    devices = [device] if device.type == "cuda" else None
    return DistributedDataParallel(
        Within(model), device_ids=devices, broadcast_buffers=False, find_unused_parameters=True
    )


def whole(x: Tensor) -> Tensor:
    """All of a tensor of which this process may have a slice. Every process has to ask."""
    return x.full_tensor() if isinstance(x, DTensor) else x


def own(x: Tensor) -> Tensor:
    """What this process has of it; writing to it writes to the parameter."""
    return x.detach().to_local() if isinstance(x, DTensor) else x.detach()


def slice_of(x: Tensor, like: Tensor) -> Tensor:
    """The slice of the whole `x` that this process has of `like`."""
    if not isinstance(like, DTensor):
        return x
    pieces = torch.chunk(x, processes.world()) if x.shape[0] else (x,)
    return pieces[processes.rank()] if processes.rank() < len(pieces) else x[:0]


def clip(parameters: Iterable[Tensor], limit: float) -> Tensor:
    """Scale the gradients of the whole network to a norm of at most `limit`. Returns the norm before, a scalar."""
    return whole(torch.nn.utils.clip_grad_norm_(list(parameters), limit))
