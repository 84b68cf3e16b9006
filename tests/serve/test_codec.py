# SPDX-License-Identifier: Apache-2.0
"""The wire format keeps what it carries, and believes nothing."""

import contextlib
import struct

import msgpack
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vla.serve.codec import DecodeError, pack, unpack

QUICK = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
DTYPES = ("?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", ">f4", ">i2")
ARRAYS = st.sampled_from(DTYPES).flatmap(
    lambda d: hnp.arrays(d, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
)
SCALARS = st.sampled_from(DTYPES[:12]).flatmap(lambda d: hnp.arrays(d, ())).map(lambda a: a[()])
LEAVES = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | ARRAYS | SCALARS
MESSAGES = st.dictionaries(
    st.text(max_size=12),
    st.recursive(LEAVES, lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(), x, max_size=3), max_leaves=8),
    max_size=5,
)


def same(a, b):
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.shape == b.shape and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
    if isinstance(a, dict):
        return set(a) == set(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return (type(a) is type(b) or isinstance(a, np.float64)) and (a == b or (a != a and b != b))


@QUICK
@given(MESSAGES)
def test_what_is_packed_comes_back(message):
    assert same(message, unpack(pack(message), max_depth=32))


def test_the_bytes_are_openpis():
    marker = b"\xc3\xc4\x04data"
    array = b"\x84\xc4\x0b__ndarray__" + marker + b"\xc4\x08" + struct.pack("<2f", 1, 2)
    assert pack({"state": np.array([1, 2], np.float32)}) == (
        b"\x81\xa5state" + array + b"\xc4\x05dtype\xa3<f4\xc4\x05shape\x91\x02"
    )
    scalar = b"\x83\xc4\x0d__npgeneric__" + marker + b"\xcb" + struct.pack(">d", 0.5) + b"\xc4\x05dtype\xa3<f4"
    assert pack(np.float32(0.5)) == scalar


def test_arrays_are_ours_to_change_whatever_their_memory_was():
    image = np.arange(24, dtype=">i4").reshape(2, 3, 4).T
    got = unpack(pack({"image": image}))["image"]
    assert got.flags.writeable and got.flags.c_contiguous and got.dtype.isnative
    np.testing.assert_array_equal(got, image)


def test_text_arrays_only_where_asked_for():
    wire = pack(np.array(["pick", "the cube"]))
    assert unpack(wire, text_arrays=True).tolist() == ["pick", "the cube"]
    with pytest.raises(DecodeError, match="dtype"):
        unpack(wire)


@pytest.mark.parametrize(
    "obj", [object(), np.array([object()]), np.array([1j]), np.array(["2026-01-01"], "M8[D]"), {1: 2}, {b"a": 1}, 2**70]
)
def test_what_cannot_be_read_is_not_packed(obj):
    with pytest.raises(ValueError, match="expected"):
        pack(obj)


def array(data=bytes(8), dtype="<f4", shape=(2,), **more):
    return {b"__ndarray__": True, b"data": data, b"dtype": dtype, b"shape": shape, **more}


def scalar(data, dtype="<f4"):
    return {b"__npgeneric__": True, b"data": data, b"dtype": dtype}


HOSTILE = {
    "more than the data": array(shape=(3,)),
    "less than the data": array(shape=(1,)),
    "a huge array": array(shape=(2**62, 4)),
    "a product that overflows to the size": array(shape=(2**32, 2**32, 2)),
    "huge beside zero": array(data=b"", shape=(0, 2**26, 2**26, 2**26)),
    "negative twice": array(shape=(-1, -2)),
    "a bool for a size": array(data=bytes(4), shape=(True,)),
    "nine dimensions": array(data=bytes(4), shape=(1,) * 9),
    "an object": array(dtype="|O", shape=(1,)),
    "a structure": array(dtype="|V8", shape=(1,)),
    "a list of fields": array(dtype=[["a", "<f4"]]),
    "a dtype by name": array(dtype="float32"),
    "a date": array(dtype="<M8[D]", shape=(1,)),
    "complex": array(dtype="<c8", shape=(1,)),
    "a comma": array(dtype="<f4,<f4", shape=(1,)),
    "a subarray": array(dtype="(2,)<f4", shape=(1,)),
    "text for data": array(data="12345678"),
    "a bool of 2": array(data=b"\x02", dtype="|b1", shape=(1,)),
    "another marker": array(**{"x": 1}),
    "no marker": array() | {b"__ndarray__": False},
    "too large a scalar": scalar(300, "|u1"),
    "a scalar of other kind": scalar("a"),
    "a scalar that becomes infinite": scalar(1e300, "<f2"),
    "bytes for a key": {b"a": 1},
    "an int for a key": {1: 1},
    "a time": msgpack.Timestamp(1, 2),
    "an extension": msgpack.ExtType(5, b"abc"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_messages_are_refused(name):
    with pytest.raises(DecodeError) as caught:
        unpack(msgpack.packb({"x": HOSTILE[name]}))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_text_that_is_none_is_refused():
    with pytest.raises(DecodeError, match="characters"):
        unpack(msgpack.packb(array(b"\xff" * 4, "<U1", (1,))), text_arrays=True)


@pytest.mark.parametrize(
    "wire",
    [
        b"",
        b"\xc1",
        b"\x91" * 100_000,
        b"\x91" * 9 + b"\xc0",
        b"\xdd\xff\xff\xff\xff",
        b"\xdc\x10\x00" * 1000,
        b"\xdd\x00\x00\x0f\x00" + (b"\xdc\x00\x02\x80\x80") * 0xF00,
        b"\xdf\x7f\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\x82\xa1a\x01\xa1a\x02",
        b"\x81\xa1\xff\x01",
        b"\x81\x90\x01",
        b"\xc0\xc0",
    ],
)
def test_hostile_bytes_are_refused(wire):
    with pytest.raises(DecodeError):
        unpack(wire)


def test_limits_are_checked_first():
    with pytest.raises(DecodeError, match="at most 10 bytes"):
        unpack(bytes(11), max_bytes=10)
    with pytest.raises(DecodeError, match="expected bytes"):
        unpack("text")


FRAME = pack(
    {
        "observation/image": np.arange(48, dtype=np.uint8).reshape(4, 4, 3),
        "observation/state": np.zeros(3, np.float32),
        "prompt": "put it down",
        "nested": [np.float32(1), {"seed": np.int64(3)}, np.array([True, False])],
    }
)


def only_decode_errors(wire):
    for text_arrays in (False, True):
        with contextlib.suppress(DecodeError):
            repr(unpack(wire, text_arrays=text_arrays))


@settings(QUICK, max_examples=500)
@given(st.binary(max_size=200))
def test_random_bytes_raise_nothing_else(wire):
    only_decode_errors(wire)


@settings(QUICK, max_examples=1000)
@given(st.lists(st.tuples(st.integers(0, len(FRAME) - 1), st.integers(0, 255)), min_size=1, max_size=6), st.integers(0))
def test_mutated_frames_raise_nothing_else(changes, cut):
    wire = bytearray(FRAME)
    for where, byte in changes:
        wire[where] = byte
    only_decode_errors(bytes(wire[: len(wire) - cut % 3 * (cut % len(wire)) // 3]))
