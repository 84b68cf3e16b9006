# SPDX-License-Identifier: Apache-2.0
"""Weights of few bits: eight, a scale a row; or four, a scale for every 32 of a row. torchao does the arithmetic.

Matrices of the transformer, of the pooling and of the summary become integers; heads, embeddings and norms stay
numbers, stored in 16 bits: a digit hangs on small differences there, and they are a sixth of the weights. A layer that
costs too much (vla/train/quantize.py asks each) stays a number as well.

To act with them torchao is not needed: they are multiplied out when a checkpoint is loaded. Where it is there, large
matrices of eight bits stay integers, and so do the numbers that they meet (rounded for each token by itself).
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

LARGE = 512
"""Rows and columns from which on a matrix is multiplied as integers: for smaller ones, rounding what they meet costs
more than it saves (measured with a width of 128: 2.5 times as long)."""
GROUP = 32
"""Weights of a row that share a scale, with four bits."""
SCALE, LOW = ".scale", ".low_bit"


def candidates(model: nn.Module) -> list[str]:
    """Names of the matrices that may become integers: all linear layers but those of the heads, and tiny ones."""
    kept = ("heads", "state", "executed", "places")
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.split(".")[0] not in kept and module.in_features % GROUP == 0
    ]


def pack(state: Mapping[str, Tensor], layers: Iterable[str], bits: int) -> dict[str, Tensor]:
    """A model's state with the weights of `layers` as integers and a scale; other numbers in 16 bits.

    ValueError for other bits than 4 and 8; ModuleNotFoundError without torchao.
    """
    if bits not in (4, 8):
        raise ValueError(f"expected 4 or 8 bits, got {bits}")
    packed = {name: x.half() if x.is_floating_point() else x for name, x in state.items()}
    for layer in layers:
        weight = state[f"{layer}.weight"]
        packed.pop(f"{layer}.weight", None)
        integers, scale = rounded(weight.float(), bits)
        packed[f"{layer}.weight{LOW}"] = integers if bits == 8 else _two_a_byte(integers)
        packed[f"{layer}.weight{SCALE}"] = scale
    return packed


def rounded(weight_OI: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """int8 (O, I) and float32 (O, groups): the nearest weights that `bits` can say, symmetric around 0."""
    from torchao.quantization.quant_primitives import MappingType, choose_qparams_affine, quantize_affine

    block = (1, weight_OI.shape[1] if bits == 8 else GROUP)
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    settings = {"quant_min": low, "quant_max": high}
    scale, zero = choose_qparams_affine(weight_OI, MappingType.SYMMETRIC, block, torch.int8, **settings)
    integers = quantize_affine(weight_OI, block, scale, zero, torch.int8, **settings)
    return integers, scale.reshape(weight_OI.shape[0], -1).float()


def unpack(packed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A model's state, float32, out of what `pack` made."""
    state = {
        name: x.float() if x.is_floating_point() else x for name, x in packed.items() if not name.endswith((SCALE, LOW))
    }
    for name in packed:
        if name.endswith(LOW):
            weight = name.removesuffix(LOW)
            integers, scale = _integers(packed[name], packed[weight + SCALE]), packed[weight + SCALE]
            state[weight] = (integers.float().unflatten(1, (scale.shape[1], -1)) * scale.unsqueeze(-1)).flatten(1)
    return state


def run_in_integers(model: nn.Module, packed: Mapping[str, Tensor]) -> bool:
    """Let the large matrices of eight bits in `packed` be multiplied as integers. False (no change) without torchao."""
    try:
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_
    except ModuleNotFoundError:
        return False
    layers = {
        name.removesuffix(f".weight{LOW}")
        for name, x in packed.items()
        if name.endswith(LOW) and x.dtype == torch.int8 and min(x.shape) >= LARGE
    }
    if not layers:
        return False
    config = Int8DynamicActivationInt8WeightConfig(set_inductor_config=False)
    quantize_(model, config, filter_fn=lambda _, name: name in layers)
    for layer in layers:  # the very integers of the file
        weight: Any = model.get_submodule(layer).weight
        weight.qdata.copy_(packed[f"{layer}.weight{LOW}"])
        weight.scale.copy_(packed[f"{layer}.weight{SCALE}"].reshape(weight.scale.shape))
    return True


def _two_a_byte(integers_OI: Tensor) -> Tensor:
    """int8 in -8..7, (O, I) -> uint8 (O, I / 2)."""
    unsigned = (integers_OI + 8).to(torch.uint8)
    return unsigned[:, ::2] | (unsigned[:, 1::2] << 4)


def _integers(stored: Tensor, scale_OG: Tensor) -> Tensor:
    if stored.dtype == torch.int8:
        return stored
    return torch.stack([stored & 15, stored >> 4], dim=-1).flatten(1).to(torch.int8) - 8
