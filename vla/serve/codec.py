# SPDX-License-Identifier: Apache-2.0
"""The wire format: msgpack with numpy arrays, byte for byte what openpi-client 0.1.2 sends and reads.

    ndarray       {b"__ndarray__": True, b"data": C-order bytes, b"dtype": "<f4", b"shape": [H, A]}
    numpy scalar  {b"__npgeneric__": True, b"data": a Python scalar, b"dtype": "<f4"}

The marker keys are msgpack *bin*. `pack` writes this; `unpack` reads it from a stranger, so it believes nothing: sizes
are compared before anything is allocated, dtypes come from a list, whatever is wrong is a `DecodeError`. No pickle.
"""

import math
import re
from typing import Any

import msgpack
import numpy as np

MAX_BYTES = 64 << 20
MAX_DEPTH = 8
MAX_ITEMS = 4096
MAX_NDIM = 8
ROOM = 1 << 20
"""Bytes that a message is given at first: three pictures of 224 px in less would move and fault for a millisecond."""

_NUMBERS = re.compile(r"\|[biu]1|[<>](?:[iu][248]|f[248])")
_TEXT = re.compile(r"[<>]U[1-9][0-9]{0,5}")
_ARRAY = (b"__ndarray__", b"data", b"dtype", b"shape")
_SCALAR = (b"__npgeneric__", b"data", b"dtype")
_PLAIN = (bool, int, float, str, bytes)


class DecodeError(ValueError):
    """Bytes that are not a message of ours. One line: what was expected and what came."""


def pack(obj: Any) -> bytes:
    """Encode `obj`: dict with str keys, list, tuple, None, bool, int, float, str, bytes, numpy arrays and scalars.

    Arrays may have any shape and memory order; dtypes bool, (u)int8..64, float16..64 and unicode. A tuple arrives as a
    list, a np.float64 as a float. ValueError for anything else: objects, complex numbers, dates, structures.
    """
    _check_keys(obj, 0)
    try:
        return msgpack.packb(obj, default=_as_map, buf_size=ROOM)
    except (TypeError, OverflowError) as error:
        raise ValueError(f"expected numbers, text, lists, dicts and numpy arrays to pack, got: {error}") from None


def _check_keys(obj: Any, depth: int) -> None:
    if depth > 64:
        raise ValueError("expected an object that is nested at most 64 deep, got a deeper one, or one within itself")
    if isinstance(obj, dict):
        for key, value in obj.items():
            if not isinstance(key, str):
                raise ValueError(f"expected dicts with str keys, got the key {key!r}")
            _check_keys(value, depth + 1)
    elif isinstance(obj, list | tuple):
        for value in obj:
            _check_keys(value, depth + 1)


def _as_map(obj: Any) -> dict[bytes, Any]:
    if not isinstance(obj, np.ndarray | np.generic):
        raise ValueError(f"expected numbers, text, lists, dicts and numpy arrays to pack, got a {type(obj).__name__}")
    dtype = obj.dtype.str
    if not _NUMBERS.fullmatch(dtype) and not _TEXT.fullmatch(dtype):
        raise ValueError(f"expected an array of bool, (u)int8..64, float16..64 or text to pack, got dtype {obj.dtype}")
    if isinstance(obj, np.ndarray):
        return {b"__ndarray__": True, b"data": obj.tobytes(), b"dtype": dtype, b"shape": obj.shape}
    return {b"__npgeneric__": True, b"data": obj.item(), b"dtype": dtype}


def unpack(
    data: bytes | bytearray | memoryview,
    *,
    max_bytes: int = MAX_BYTES,
    max_depth: int = MAX_DEPTH,
    max_items: int = MAX_ITEMS,
    text_arrays: bool = False,
) -> Any:
    """Decode one message, all of `data`. Arrays are writable copies in the machine's byte order.

    `max_bytes`: of `data`. `max_depth`: dicts and lists within each other, the outermost is 1. `max_items`: entries of
    all dicts and lists together (an array counts as a few). `text_arrays`: allow arrays and scalars of unicode too.

    Raises DecodeError, and never anything else, for any bytes: truncated, too long or deep, other dtypes, sizes that do
    not agree with the data, keys that are not text or come twice, extension types.
    """
    size = memoryview(data).nbytes if isinstance(data, bytes | bytearray | memoryview) else -1
    if size < 0:
        raise DecodeError(f"expected bytes, got a {type(data).__name__}")
    if size > max_bytes:
        raise DecodeError(f"expected at most {max_bytes} bytes, got {size}")
    items = 0

    def count(entries: int) -> None:
        nonlocal items
        items += entries
        if items > max_items:
            raise DecodeError(f"expected at most {max_items} entries of dicts and lists, got more")

    def whole_list(values: list) -> list:
        count(len(values))
        return values

    def whole_dict(pairs: list[tuple[Any, Any]]) -> dict:
        count(len(pairs))
        found = dict(pairs)
        if len(found) != len(pairs):
            raise DecodeError("expected every key of a dict once, got one twice")
        return found

    try:
        raw = msgpack.unpackb(
            data,
            list_hook=whole_list,
            object_pairs_hook=whole_dict,
            strict_map_key=True,
            max_bin_len=max_bytes,
            max_str_len=max_bytes,
            max_array_len=max_items,
            max_map_len=max_items,
            max_ext_len=0,
        )
    except DecodeError:
        raise
    except Exception as error:  # whatever a parser says about a stranger's bytes is about the bytes
        raise DecodeError(f"expected msgpack, got bytes that are none: {_one_line(error)}") from None
    return _Reader(max_bytes, max_depth, text_arrays).value(raw, 1)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__


class _Reader:
    """From what msgpack found to values, markers resolved."""

    def __init__(self, max_bytes: int, max_depth: int, text_arrays: bool) -> None:
        self.max_bytes, self.max_depth, self.text_arrays = max_bytes, max_depth, text_arrays

    def value(self, raw: Any, depth: int) -> Any:
        if raw is None or isinstance(raw, _PLAIN):
            return raw
        if depth > self.max_depth:
            raise DecodeError(f"expected dicts and lists at most {self.max_depth} deep, got deeper ones")
        if isinstance(raw, list):
            return [self.value(entry, depth + 1) for entry in raw]
        if not isinstance(raw, dict):
            raise DecodeError(f"expected numbers, text, lists, dicts and arrays, got a {type(raw).__name__}")
        if b"__ndarray__" in raw:
            return self.array(raw)
        if b"__npgeneric__" in raw:
            return self.scalar(raw)
        if wrong := [key for key in raw if not isinstance(key, str)]:
            raise DecodeError(f"expected dicts with text keys, got the key {wrong[0][:40]!r}")
        return {key: self.value(entry, depth + 1) for key, entry in raw.items()}

    def dtype(self, raw: dict, keys: tuple[bytes, ...]) -> np.dtype:
        if set(raw) != set(keys) or raw[keys[0]] is not True:
            raise DecodeError(f"expected exactly the keys {list(keys)}, the first of them True, got other ones")
        name = raw[b"dtype"]
        text = isinstance(name, str) and bool(_TEXT.fullmatch(name))
        if not isinstance(name, str) or not (_NUMBERS.fullmatch(name) or (text and self.text_arrays)):
            allowed = "|b1, |u1..<u8, |i1..<i8, <f2, <f4, <f8" + (", <U" if self.text_arrays else "")
            raise DecodeError(f"expected a dtype out of {allowed}, got {str(name)[:40]!r}")
        return np.dtype(name)

    def array(self, raw: dict) -> np.ndarray:
        dtype, data, shape = self.dtype(raw, _ARRAY), raw[b"data"], raw[b"shape"]
        if not isinstance(shape, list) or len(shape) > MAX_NDIM:
            raise DecodeError(f"expected a shape of at most {MAX_NDIM} whole numbers, got {str(shape)[:40]!r}")
        if not all(type(n) is int and 0 <= n <= self.max_bytes for n in shape):
            raise DecodeError(f"expected a shape of whole numbers from 0 to {self.max_bytes}, got {str(shape)[:80]}")
        if not isinstance(data, bytes) or len(data) != math.prod(shape) * dtype.itemsize:
            got = f"{len(data)} bytes" if isinstance(data, bytes) else f"a {type(data).__name__}"
            raise DecodeError(
                f"expected {math.prod(shape) * dtype.itemsize} bytes for {dtype.str} {tuple(shape)}, got {got}"
            )
        if math.prod(max(n, 1) for n in shape) * dtype.itemsize > self.max_bytes:  # numpy minds even where one is 0
            raise DecodeError(f"expected an array of at most {self.max_bytes} bytes, got the shape {tuple(shape)}")
        if dtype.kind == "b" and np.frombuffer(data, np.uint8).max(initial=0) > 1:
            raise DecodeError("expected bools of 0 and 1, got other bytes")
        if dtype.kind == "U":
            codes = np.frombuffer(data, dtype.str[0] + "u4")
            if ((codes > 0x10FFFF) | ((codes >= 0xD800) & (codes < 0xE000))).any():
                raise DecodeError("expected text in an array of it, got numbers that are no characters")
        return np.frombuffer(data, dtype).reshape(shape).astype(dtype.newbyteorder("="))

    def scalar(self, raw: dict) -> np.generic:
        dtype, data = self.dtype(raw, _SCALAR), raw[b"data"]
        kinds = {"b": bool, "U": str, "f": float}
        fits = type(data) is kinds.get(dtype.kind, int)
        if fits and dtype.kind in "iu":
            fits = int(np.iinfo(dtype).min) <= data <= int(np.iinfo(dtype).max)
        if fits and dtype.kind == "f" and math.isfinite(data):
            fits = abs(data) <= float(np.finfo(dtype).max)
        if not fits:
            raise DecodeError(f"expected a scalar of {dtype.str}, got {str(data)[:40]!r}")
        return dtype.type(data)
