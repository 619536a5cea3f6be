from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saboteur.errors import FaultError
from saboteur.faults.formats import AFFINE, FLOATING, Affine, FixedPoint, Floating, number_format

pytestmark = pytest.mark.filterwarnings("error")

SMALL = [
    "float16",
    "bfloat16",
    "float8_e4m3",
    "float8_e5m2",
    "int8",
    "uint8",
    "int4",
    "uint4",
    "int16",
    "16b_rb10",
    "Q3.4",
]
TORCH = {"float16": "float16", "bfloat16": "bfloat16", "float8_e4m3": "float8_e4m3fn", "float8_e5m2": "float8_e5m2"}
# exponent bits, fraction bits, bias, highest finite value
IEEE = {"float16": (5, 10, 15), "bfloat16": (8, 7, 127), "float8_e5m2": (5, 2, 15), "float8_e4m3": (4, 3, 7)}


def read_by_hand(name: str, word: int) -> float:
    """The value of a word, from the definition of the format."""
    exponents, fractions, bias = IEEE[name]
    sign = -1.0 if word >> (exponents + fractions) else 1.0
    exponent, fraction = (word >> fractions) % 2**exponents, word % 2**fractions
    if exponent == 2**exponents - 1:
        if name == "float8_e4m3":
            if fraction == 7:
                return math.nan
        else:
            return math.nan if fraction else sign * math.inf
    if exponent == 0:
        return sign * math.ldexp(fraction, 1 - bias - fractions)
    return sign * math.ldexp(2**fractions + fraction, exponent - bias - fractions)


@pytest.mark.parametrize("name", SMALL)
def test_every_word_comes_back(name):
    fmt = number_format(name)
    words = np.arange(2**fmt.bits, dtype=np.uint64)
    values = fmt.decode(words)
    numbers = ~np.isnan(values) & (np.isfinite(values) | (fmt.bits > 8))
    np.testing.assert_array_equal(fmt.encode(values)[numbers], words[numbers])
    assert np.isnan(fmt.decode(fmt.encode(values[np.isnan(values)]))).all()


@pytest.mark.parametrize("name", ["float32", "float64"])
@given(st.integers(0, 2**64 - 1))
def test_wide_words_come_back(name, word):
    fmt = number_format(name)
    words = np.array([word % 2**fmt.bits], np.uint64)
    value = fmt.decode(words)
    assert np.isnan(value[0]) or fmt.encode(value) == words


@pytest.mark.parametrize("name", IEEE)
def test_floating_words_mean_what_the_format_defines(name):
    fmt = number_format(name)
    expected = [read_by_hand(name, word) for word in range(2**fmt.bits)]
    np.testing.assert_array_equal(fmt.decode(np.arange(2**fmt.bits, dtype=np.uint64)), expected)


@pytest.mark.parametrize("name", IEEE)
@given(st.floats(allow_nan=False, allow_infinity=False, width=64))
def test_floating_values_round_once_to_nearest_even(name, value):
    """Against exact rational arithmetic; a double rounding by way of float32 would show."""
    fmt = number_format(name)
    limit = float(fmt.highest)
    rounded = float(fmt.round(value))
    if abs(value) > limit:
        assert rounded in (
            (math.copysign(limit, value),)
            if fmt.bits == 8
            else (math.copysign(limit, value), math.copysign(math.inf, value))
        )
        return
    _, fractions, bias = IEEE[name]
    exponent = max(math.frexp(value)[1] - 1, 1 - bias) if value else 1 - bias
    steps = Fraction(value) / Fraction(2) ** (exponent - fractions)
    assert Fraction(rounded) == round(steps) * Fraction(2) ** (exponent - fractions)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("bfloat16", 1 + 2**-8 + 2**-40, 1 + 2**-7),
        ("bfloat16", -(1 + 2**-8 + 2**-40), -(1 + 2**-7)),
        ("bfloat16", 1 + 2**-7 + 2**-8 - 2**-40, 1 + 2**-7),
        ("float8_e4m3", 1 + 2**-4 + 2**-40, 1.125),
        ("float8_e5m2", 1 + 2**-3 + 2**-40, 1.25),
        ("float8_e5m2", 1 + 2**-3, 1.0),
    ],
)
def test_values_beside_a_tie_are_not_rounded_twice(name, value, expected):
    assert number_format(name).round(value) == expected


@pytest.mark.parametrize("name", FLOATING)
def test_values_beyond_the_range(name):
    fmt = Floating(name)
    beyond = fmt.round([1e308 * 10, -np.inf, np.nan])
    top = (fmt.highest, fmt.lowest) if fmt.bits == 8 else (np.inf, -np.inf)
    np.testing.assert_array_equal(beyond, [*top, np.nan])


@pytest.mark.parametrize(
    ("name", "highest"),
    [
        ("float64", 1.7976931348623157e308),
        ("float32", 3.4028234663852886e38),
        ("float16", 65504.0),
        ("bfloat16", 3.3895313892515355e38),
        ("float8_e4m3", 448.0),
        ("float8_e5m2", 57344.0),
        ("int8", 127),
        ("uint8", 255),
        ("int4", 7),
        ("16b_rb10", 32 - 2**-10),
        ("32b_rb10", 2**21 - 2**-10),
        ("32b_rb26", 32 - 2**-26),
    ],
)
def test_highest_values(name, highest):
    assert number_format(name).highest == highest


@pytest.mark.parametrize(
    ("name", "lowest"),
    [
        ("float16", -65504.0),
        ("float8_e4m3", -448.0),
        ("int8", -128),
        ("uint4", 0),
        ("16b_rb10", -32),
        ("32b_rb10", -(2**21)),
    ],
)
def test_lowest_values(name, lowest):
    assert number_format(name).lowest == lowest


@pytest.mark.parametrize("name", TORCH)
def test_words_and_rounding_agree_with_torch(name):
    torch = pytest.importorskip("torch")
    fmt, dtype = number_format(name), getattr(torch, TORCH[name])
    word = np.dtype(f"u{fmt.bits // 8}")
    words = np.arange(2**fmt.bits, dtype=np.uint64)
    in_torch = torch.from_numpy(words.astype(word).view(word.str.replace("u", "i"))).view(dtype).double().numpy()
    np.testing.assert_array_equal(fmt.decode(words), in_torch)
    values = np.random.default_rng(0).normal(size=4000).astype(np.float32) * 10
    np.testing.assert_array_equal(fmt.round(values), torch.from_numpy(values).to(dtype).double().numpy())


def test_torch_overflows_e5m2_to_infinity_where_this_format_saturates():
    torch = pytest.importorskip("torch")
    assert torch.tensor(1e9).to(torch.float8_e5m2).isinf()
    assert number_format("float8_e5m2").round(1e9) == 57344.0


@pytest.mark.parametrize(
    ("name", "value", "word"),
    [
        ("16b_rb10", 1.0, 0x0400),
        ("16b_rb10", -1.0, 0xFC00),
        ("16b_rb10", 40.0, 0x7FFF),
        ("16b_rb10", -40.0, 0x8000),
        ("16b_rb10", 2**-11, 0),
        ("16b_rb10", 3 * 2**-11, 2),
        ("32b_rb10", 1.0, 0x400),
        ("32b_rb26", 1.0, 0x04000000),
        ("32b_rb26", -32.0, 0x80000000),
        ("Q5.10", 0.5, 0x0200),
        ("Q0.7", -1.0, 0x80),
        ("16b_rb10", np.nan, 0),
        ("16b_rb10", np.inf, 0x7FFF),
        ("16b_rb10", -np.inf, 0x8000),
        ("32b_rb26", 1e308, 0x7FFFFFFF),
    ],
)
def test_fixed_point_words(name, value, word):
    assert number_format(name).encode(value) == word


def test_q_notation_is_the_same_format():
    assert number_format("Q5.10") == number_format("q5.10") == number_format("16b_rb10") == FixedPoint(16, 10)
    assert number_format("Q5.10").name == "16b_rb10" == str(FixedPoint(16, 10))
    assert hash(FixedPoint(16, 10)) == hash(FixedPoint(16, 10)) != hash(FixedPoint(16, 11))


def test_affine_per_tensor():
    fmt = Affine(scale=np.array(0.5), zero_point=np.array(-3))
    assert fmt.encode([0.0, 1.0, -100.0, 100.0, np.nan]).tolist() == [0xFD, 0xFF, 0x80, 0x7F, 0xFD]
    assert fmt.decode(np.array([0xFD, 0xFF, 0x80, 0x7F], np.uint64)).tolist() == [0.0, 1.0, -62.5, 65.0]
    assert (fmt.lowest, fmt.highest) == (-62.5, 65.0)
    assert fmt.encode(0.25) == 0xFD, "half a step rounds to the even integer before the zero point is added"


def test_affine_per_channel_lines_up_with_elements():
    fmt = Affine(scale=np.array([1.0, 0.25]), zero_point=np.array([0, 10]))
    elements = fmt.at(np.array([1, 0, 1]))
    assert elements.encode([1.0, 1.0, -1.0]).tolist() == [14, 1, 6]
    assert np.asarray(elements.highest).tolist() == [(127 - 10) / 4, 127, (127 - 10) / 4]
    distance = elements.flip_distance([1.0, 1.0, 1.0])
    assert distance.shape == (3, 8)
    assert distance[0].tolist() == [2.0**bit / 4 for bit in range(8)]
    assert distance[1].tolist() == [2.0**bit for bit in range(8)]
    assert Affine(scale=np.array(2.0)).at(np.array([0, 5])).scale == 2.0


def test_affine_equality_is_that_of_all_settings():
    a = Affine(scale=np.array([1.0, 0.5]), zero_point=np.array(3))
    assert a == Affine(scale=np.array([1.0, 0.5]), zero_point=np.array([3, 3]))
    assert len({a, Affine(scale=np.array([1.0, 0.5]), zero_point=np.array([3, 3]))}) == 1
    for other in (
        Affine(scale=np.array([1.0, 0.25]), zero_point=np.array(3)),
        Affine(scale=np.array([1.0, 0.5])),
        Affine(),
        Affine(bits=4, scale=np.array([1.0, 0.5]), zero_point=np.array(3)),
        FixedPoint(8, 0),
        "int8",
    ):
        assert a != other


def test_calibration_asymmetric_and_symmetric():
    fmt = Affine(signed=False).calibrated(-1.0, 3.0)
    assert (float(fmt.scale), int(fmt.zero_point)) == (4 / 255, 64)
    assert fmt.round(0.0) == 0.0
    symmetric = Affine().calibrated(-2.0, 1.0, symmetric=True)
    assert (float(symmetric.scale), int(symmetric.zero_point)) == (2 / 127, 0)
    channels = Affine(bits=4).calibrated(np.array([0.0, 1.0, 0.0]), np.array([15.0, 30.0, 0.0]))
    assert channels.scale.tolist() == [1.0, 2.0, 1.0]
    assert channels.zero_point.tolist() == [-8, -8, -8]


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))
def test_calibrated_ranges_are_held_within_a_step(a, b):
    low, high = min(a, b), max(a, b)
    fmt = Affine().calibrated(low, high)
    for value in (low, high, 0.0):
        assert abs(float(fmt.round(value)) - value) <= float(fmt.scale) * 1.001


@pytest.mark.parametrize("name", AFFINE)
def test_plain_integers(name):
    fmt = number_format(name)
    smallest, largest = fmt.integer_range
    assert fmt.name == name
    assert fmt.round([smallest - 1, smallest, largest, largest + 1]).tolist() == [smallest, smallest, largest, largest]


def test_flip_distances_by_hand():
    assert number_format("float32").flip_distance(1.0)[[0, 22, 23, 29, 30, 31]].tolist() == [
        2.0**-23,
        0.5,
        0.5,
        1 - 2.0**-64,
        np.inf,
        2.0,
    ]
    assert number_format("int8").flip_distance([5.0]).tolist() == [[1, 2, 4, 8, 16, 32, 64, 128]]
    assert number_format("16b_rb10").flip_distance(0.0)[-1] == 32.0
    assert number_format("float16").flip_distance(np.ones((2, 3))).shape == (2, 3, 16)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: number_format("float23"), "did you mean 'float32'"),
        (lambda: number_format("int7"), "unknown 'int7'"),
        (lambda: number_format("16b_rb16"), "fixed point of 16 bits"),
        (lambda: number_format("Q60.3"), "2 to 48 bits"),
        (lambda: number_format("bf16"), "bfloat16"),
        (lambda: Floating("float31"), "unknown 'float31'"),
        (lambda: Affine(bits=1), "2 to 32"),
        (lambda: Affine(scale=np.array(0.0)), "scale 0.0"),
        (lambda: Affine(scale=np.array([1.0, np.nan])), "finite"),
        (lambda: Affine(zero_point=np.array(128)), "-128 .. 127"),
        (lambda: Affine(scale=np.ones(2), zero_point=np.zeros(3, int)), "2 scales and 3 zero points"),
        (lambda: Affine().calibrated(0.0, np.inf), "not finite"),
    ],
)
def test_errors_name_the_setting(make, message):
    with pytest.raises(FaultError, match=message):
        make()
