# SPDX-License-Identifier: Apache-2.0
"""Counter-based randomness: every draw is a pure function of (seed, step, sample, stream).

A masked-diffusion model draws masks, times and noise indices at every step of training and of sampling. If those
draws came from a generator with hidden state, a resumed run, another number of loader workers or another batch slot
would see other numbers. Here there is no state: a *key* (int64, one per sample) is folded from integers, and a draw is
a hash of (key, stream, position). The hash is SplitMix64 (Steele, Lea, Flood 2014), evaluated with wrapping int64
arithmetic, so that CPU and GPU agree bit for bit.
"""

import math
import zlib

import numpy as np
import torch
from torch import Tensor

_MASK64 = (1 << 64) - 1


def _signed(value: int) -> int:
    """The int64 with the same 64 bits as `value`."""
    value &= _MASK64
    return value - (1 << 64) if value >= (1 << 63) else value


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_MIX_1 = _signed(0xBF58476D1CE4E5B9)
_MIX_2 = _signed(0x94D049BB133111EB)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical (not arithmetic) right shift of int64."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = x + _GOLDEN
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


def fold(*parts: int | Tensor, device: torch.device | str | None = None) -> Tensor:
    """Fold integers into a key. `parts`: ints or int64 tensors that broadcast. Returns int64, the broadcast shape.

    Order matters: fold(1, 2) != fold(2, 1).
    """
    device = device or next((p.device for p in parts if isinstance(p, Tensor)), "cpu")
    key = torch.zeros((), dtype=torch.int64, device=device)
    for part in parts:
        value = part if isinstance(part, Tensor) else torch.tensor(_signed(part), dtype=torch.int64, device=device)
        key = _mix(key * _MIX_2 + _mix(value.to(torch.int64)))
    return key


def fold_numbers(*parts: int) -> int:
    """As `fold`, of Python's numbers, twenty times as fast: the same 64 bits, as an int64 has them."""
    key = 0
    for part in parts:
        key = _mixed(key * _MIX_2 + _mixed(int(part)))
    return _signed(key)


def _mixed(x: int) -> int:
    x = (x + _GOLDEN) & _MASK64
    x = ((x ^ (x >> 30)) * _MIX_1) & _MASK64
    x = ((x ^ (x >> 27)) * _MIX_2) & _MASK64
    return x ^ (x >> 31)


@torch.compiler.assume_constant_result
def stream_id(name: str) -> int:
    """A stable 32-bit number for a stream name: two draws with other names are independent."""
    return zlib.crc32(name.encode())


def bits(key_B: Tensor, stream: str, *shape: int) -> Tensor:
    """64 random bits a number. `key_B`: int64 (...,). Returns int64 (..., *shape)."""
    count = math.prod(shape)
    counter = torch.arange(count, dtype=torch.int64, device=key_B.device).view(shape)
    base = fold(key_B, stream_id(stream)).view(*key_B.shape, *([1] * len(shape)))
    return _mix(base + counter * _GOLDEN)


def uniform(key_B: Tensor, stream: str, *shape: int) -> Tensor:
    """Uniform numbers in [0, 1), float64 (..., *shape), 53 bits."""
    return _shift_right(bits(key_B, stream, *shape), 11).to(torch.float64) * (1.0 / (1 << 53))


def integers(key_B: Tensor, stream: str, high: int, *shape: int) -> Tensor:
    """Integers in [0, high), int64 (..., *shape). `high` <= 2^31 (the modulo bias is below 2^-32)."""
    return _shift_right(bits(key_B, stream, *shape), 1) % high


def gumbel(key_B: Tensor, stream: str, *shape: int) -> Tensor:
    """Standard Gumbel noise in float64: in float32 its tails are cut, which quietly lowers the temperature."""
    u = uniform(key_B, stream, *shape) + 0.5 / (1 << 53)
    return -torch.log(-torch.log(u))


def permutation(seed: int, stream: str, n: int, *counters: int) -> np.ndarray:
    """A permutation of range(n), int64, from numpy's Philox: a pure function of its arguments."""
    key = fold(seed, stream_id(stream), *counters).item()
    return np.random.Generator(np.random.Philox(key=key & _MASK64)).permutation(n)
