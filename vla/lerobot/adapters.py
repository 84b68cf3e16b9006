# SPDX-License-Identifier: Apache-2.0
"""Weights to act with of a network that PEFT has put adapters into: those of the plain network, the adapters added.

An adapted layer has the plain one as `base_layer`, and says what its adapters add to the weight (`get_delta_weight`, as
PEFT's LoRA does). Everything else keeps its name.
"""

from typing import Any

import torch
from torch import Tensor, nn


def adapted(model: nn.Module) -> bool:
    """Whether there are adapters."""
    return any(True for _ in _layers(model))


def plain_weights(model: nn.Module) -> dict[str, Tensor]:
    """The parameters by the names that they have without adapters; these are added to what they adapt."""
    layers = dict(_layers(model))
    found = {name: x for name, x in model.named_parameters() if not any(_within(name, layer) for layer in layers)}
    for name, layer in layers.items():
        for part, x in layer.base_layer.named_parameters():
            found[f"{name}.{part}"] = x
        found[f"{name}.weight"] = sum(map(layer.get_delta_weight, layer.active_adapters), layer.base_layer.weight)
    return found


@torch.no_grad()
def average_adapted(averaged: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """As `vla.train.session.average`, by name. `averaged`: a plain network of the same kind.

    ValueError where parts of the network are trained in another way than by adapters in its layers.
    """
    decay = min(decay, (1 + step) / (10 + step))
    theirs = plain_weights(model)
    if missing := [name for name, _ in averaged.named_parameters() if name not in theirs]:
        raise ValueError(
            f"expected adapters in linear layers, and '{missing[0]}' is replaced as a whole: leave out "
            "full_training_modules, or train without PEFT"
        )
    for name, ours in averaged.named_parameters():
        ours.lerp_(theirs[name].to(ours), 1 - decay)
    buffers = dict(model.named_buffers())
    for name, ours in averaged.named_buffers():
        ours.copy_(buffers[name])


def _layers(model: nn.Module) -> Any:
    """(name, layer) of each adapted layer."""
    return ((n, m) for n, m in model.named_modules() if hasattr(m, "base_layer") and hasattr(m, "get_delta_weight"))


def _within(name: str, layer: str) -> bool:
    return name.startswith(f"{layer}.")
