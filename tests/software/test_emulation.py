"""Tensors as words, and formats emulated on tensors, against their definition in NumPy."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from saboteur.errors import TargetError
from saboteur.faults import Affine, number_format
from saboteur.levels.software.emulation import Integer64, native_format, rounded, tensor_of, words_of

EMULATED = [
    "float64",
    "float32",
    "float16",
    "bfloat16",
    "float8_e4m3",
    "float8_e5m2",
    "int8",
    "uint8",
    "int4",
    "16b_rb10",
    "32b_rb10",
    "32b_rb26",
]
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
INTEGERS = [torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64]

any_float = hnp.arrays(np.float64, st.integers(1, 20), elements=st.floats(width=64))
any_word = hnp.arrays(np.uint64, st.integers(1, 20), elements=st.integers(0, 2**64 - 1))


def same(first: np.ndarray, second: np.ndarray) -> bool:
    """Equal, NaN to NaN, and in the sign of zero."""
    return bool(
        np.array_equal(first, second, equal_nan=True)
        and np.array_equal(np.signbit(first[first == 0]), np.signbit(second[second == 0]))
    )


@pytest.mark.parametrize("name", EMULATED)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@given(values=any_float)
def test_rounding_is_that_of_the_format(name: str, dtype: torch.dtype, values: np.ndarray) -> None:
    fmt = number_format(name)
    if isinstance(fmt, Affine):
        fmt = Affine(fmt.bits, fmt.signed, np.array(0.037), np.array(3))
    tensor = torch.from_numpy(values).to(dtype)
    with np.errstate(all="ignore"):
        expected = torch.from_numpy(fmt.round(tensor.double().numpy())).to(dtype).double().numpy()
    assert same(rounded(tensor, fmt).double().numpy(), expected)


@given(values=hnp.arrays(np.float64, (3, 4), elements=st.floats(-100, 100)))
def test_rounding_with_a_scale_for_each_channel(values: np.ndarray) -> None:
    fmt = Affine(8, True, np.array([0.5, 0.25, 0.01]), np.array([0, 5, -7]))
    expected = np.stack([fmt.at(np.array(c)).round(row) for c, row in enumerate(values)])
    assert same(rounded(torch.from_numpy(values), fmt, 0).numpy(), expected)
    assert same(rounded(torch.from_numpy(values.T.copy()), fmt, 1).numpy(), expected.T)


@pytest.mark.parametrize("dtype", [*DTYPES, *INTEGERS, torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
@given(words=any_word)
def test_native_words_come_back_bit_for_bit(dtype: torch.dtype, words: np.ndarray) -> None:
    fmt, like = native_format(dtype), torch.empty(0, dtype=dtype)
    words = words >> np.uint64(64 - fmt.bits)
    tensor = tensor_of(words, fmt, like)
    assert tensor.dtype == dtype
    assert (words_of(tensor, fmt) == words).all()
    if fmt.bits < 64:
        assert np.array_equal(tensor.double().numpy(), fmt.decode(words), equal_nan=True)


@pytest.mark.parametrize("name", [name for name in EMULATED if name not in ("float64", "32b_rb26")])
@given(words=any_word)
def test_emulated_words_come_back_where_the_type_has_the_digits(name: str, words: np.ndarray) -> None:
    fmt = number_format(name)
    words = words >> np.uint64(64 - fmt.bits)
    tensor = tensor_of(words, fmt, torch.empty(0, dtype=torch.float64))
    back = words_of(tensor, fmt)
    nan = torch.isnan(tensor).numpy()
    assert (back[~nan] == words[~nan]).all()


def test_known_words() -> None:
    assert words_of(torch.tensor([1.0, -2.0]), number_format("float32")).tolist() == [0x3F800000, 0xC0000000]
    assert words_of(torch.tensor([1.0], dtype=torch.bfloat16), number_format("bfloat16")).tolist() == [0x3F80]
    assert words_of(torch.tensor([-1], dtype=torch.int8), Affine(8)).tolist() == [0xFF]
    payload = np.array([0x7FC01234, 0x7F800001, 0xFFFFFFFF], np.uint64)
    nan = tensor_of(payload, number_format("float32"), torch.empty(0))
    assert torch.isnan(nan).all()
    assert words_of(nan, number_format("float32")).tolist() == payload.tolist()
    assert rounded(torch.tensor([1.06]), number_format("float8_e4m3")).item() == float(ml_dtypes.float8_e4m3fn(1.06))


def test_integer64() -> None:
    fmt = Integer64()
    values = np.array([0.0, -1.0, 2.5, np.nan, np.inf, -np.inf, 1e300])
    largest, smallest = 2**63 - 1, 2**63
    assert fmt.encode(values).tolist() == [0, 2**64 - 1, 2, 0, largest, smallest, largest]
    assert fmt.decode(np.array([2**64 - 5], np.uint64)).tolist() == [-5.0]
    assert fmt.encode(np.array([fmt.lowest, fmt.highest])).tolist() == [smallest, largest]


def test_types_without_numbers_are_refused() -> None:
    with pytest.raises(TargetError, match="complex64 has no number format"):
        native_format(torch.complex64)
