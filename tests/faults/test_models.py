from __future__ import annotations

import itertools
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.stats import kstest

from saboteur.errors import FaultError
from saboteur.faults import draws
from saboteur.faults.formats import Affine, number_format
from saboteur.faults.models import BitFlip, Dead, Noise, RandomValue, StuckAt, StuckValue

pytestmark = pytest.mark.filterwarnings("error")
widths = st.sampled_from([4, 8, 16, 32, 64])
FORMATS = {4: "int4", 8: "int8", 16: "float16", 32: "float32", 64: "float64"}


def corrupted(model, word, variant, bits, drawn=0):
    columns = np.array([word], np.uint64), np.array([variant]), np.array([drawn], np.uint64)
    return int(model.corrupt(*columns, number_format(FORMATS[bits]))[0])


def bit_string(word: int, bits: int) -> list[str]:
    return list(f"{word:0{bits}b}"[::-1])


def flipped(word: int, positions, bits: int) -> int:
    text = bit_string(word, bits)
    for position in positions:
        text[position] = "1" if text[position] == "0" else "0"
    return int("".join(reversed(text)), 2)


@given(widths, st.data())
def test_single_flips(bits, data):
    word, variant = data.draw(st.integers(0, 2**bits - 1)), data.draw(st.integers(0, bits - 1))
    assert corrupted(BitFlip(), word, variant, bits) == flipped(word, [variant], bits)


@given(st.sampled_from([4, 8, 16]), st.integers(1, 4), st.data())
def test_multiple_flips_in_lexicographic_order(bits, count, data):
    subset = data.draw(st.none() | st.lists(st.integers(0, bits - 1), min_size=count, unique=True))
    model = BitFlip(count=count, bits=subset)
    combinations = list(itertools.combinations(range(bits) if subset is None else sorted(subset), count))
    assert model.variants(bits) == len(combinations)
    masks = model.mask(np.arange(len(combinations)), bits)
    assert masks.tolist() == [sum(1 << p for p in combination) for combination in combinations]
    assert model.bit(np.arange(len(combinations)), bits).tolist() == [c[0] for c in combinations]
    word, variant = data.draw(st.integers(0, 2**bits - 1)), data.draw(st.integers(0, len(combinations) - 1))
    assert corrupted(model, word, variant, bits) == flipped(word, combinations[variant], bits)


@given(st.integers(1, 16), st.sampled_from([32, 64]), st.data())
def test_wide_combinations_have_the_right_number_of_bits(count, bits, data):
    model = BitFlip(count=count)
    total = comb(bits, count)
    assert model.variants(bits) == total
    variant = np.unique(data.draw(st.lists(st.integers(0, total - 1), min_size=1, max_size=50)))
    masks = model.mask(variant, bits)
    assert len(np.unique(masks)) == len(variant)
    assert {int(mask).bit_count() for mask in masks} == {count}
    lowest = model.bit(variant, bits)
    assert lowest.tolist() == [(int(mask) & -int(mask)).bit_length() - 1 for mask in masks]
    assert (np.diff(lowest) >= 0).all()


@given(widths, st.data())
def test_bursts(bits, data):
    count = data.draw(st.integers(1, min(16, bits)))
    model = BitFlip(count=count, adjacent=True)
    assert model.variants(bits) == bits - count + 1
    variant, word = data.draw(st.integers(0, bits - count)), data.draw(st.integers(0, 2**bits - 1))
    assert corrupted(model, word, variant, bits) == flipped(word, range(variant, variant + count), bits)
    assert model.bit(np.array([variant]), bits) == variant


def test_bursts_start_at_the_given_bits_that_leave_room():
    model = BitFlip(count=3, adjacent=True, bits=(0, 5, 6))
    assert model.mask(np.arange(model.variants(8)), 8).tolist() == [0b111, 0b11100000]


@given(widths, st.sampled_from([0, 1, "both"]), st.data())
def test_stuck_bits(bits, value, data):
    subset = data.draw(st.none() | st.lists(st.integers(0, bits - 1), min_size=1, unique=True))
    model = StuckAt(value=value, bits=subset)
    positions = list(range(bits)) if subset is None else sorted(subset)
    faults = [(p, v) for p in positions for v in ((0, 1) if value == "both" else (value,))]
    assert model.variants(bits) == len(faults)
    assert model.bit(np.arange(len(faults)), bits).tolist() == [p for p, _ in faults]
    word, variant = data.draw(st.integers(0, 2**bits - 1)), data.draw(st.integers(0, len(faults) - 1))
    text = bit_string(word, bits)
    text[faults[variant][0]] = str(faults[variant][1])
    assert corrupted(model, word, variant, bits) == int("".join(reversed(text)), 2)


def test_stuck_values_are_rounded_to_the_format():
    fmt = Affine(scale=np.array([0.5, 1.0, 2.0]))
    words = StuckValue(values=(3.0, 1000.0)).corrupt(
        np.zeros(3, np.uint64), np.array([0, 0, 1]), np.zeros(3, np.uint64), fmt
    )
    assert fmt.decode(words).tolist() == [3.0, 3.0, 254.0]


def test_dead_sites_read_zero_or_saturate():
    fmt = Affine(scale=np.array([0.5, 1.0, 2.0]), zero_point=np.array(5))
    model = Dead(outputs=("high", "low", "zero"))
    zeros = np.zeros(3, np.uint64)
    assert fmt.decode(model.corrupt(zeros, np.array([0, 1, 2]), zeros, fmt)).tolist() == [61.0, -133.0, 0.0]
    assert model.variants(8) == 3
    assert Dead().variants(8) == 1
    assert model.bit(np.arange(3), 8).tolist() == [-1, -1, -1]


def many(model, fmt, value=0.0, n=20_000):
    drawn = draws.words(11, np.arange(n))
    return fmt.decode(model.corrupt(fmt.encode(np.full(n, value)), np.zeros(n, int), drawn, fmt))


def test_random_values_and_noise_have_their_distributions():
    fmt = number_format("float64")
    assert kstest(many(RandomValue(low=-2, high=6), fmt), "uniform", (-2, 8)).pvalue > 1e-3
    assert kstest(many(Noise(additive=0.5), fmt, 3.0), "norm", (3.0, 0.5)).pvalue > 1e-3
    assert kstest(many(Noise(multiplicative=0.1), fmt, 3.0), "norm", (3.0, 0.3)).pvalue > 1e-3
    assert kstest(many(Noise(additive=1, distribution="uniform"), fmt), "uniform", (-1, 2)).pvalue > 1e-3


@pytest.mark.parametrize("bits", FORMATS)
def test_random_words_are_uniform(bits):
    drawn = draws.words(12, np.arange(20_000))
    words = RandomValue().corrupt(drawn, np.zeros(20_000, int), drawn, number_format(FORMATS[bits]))
    assert int(words.max()) < 2**bits
    ones = [(int(((words >> np.uint64(b)) & np.uint64(1)).sum())) for b in range(bits)]
    assert max(abs(count - 10_000) for count in ones) < 5 * np.sqrt(5000)


def test_noise_on_what_is_not_a_number_warns_of_nothing():
    fmt = number_format("float32")
    values = fmt.encode([np.inf, np.nan, 3e38])
    drawn = np.full(3, 2**64 - 1, np.uint64)
    noisy = fmt.decode(Noise(multiplicative=1.0, additive=1.0).corrupt(values, np.zeros(3, int), drawn, fmt))
    np.testing.assert_array_equal(noisy, [np.inf, np.nan, np.inf])


@pytest.mark.parametrize(
    ("model", "bits", "message"),
    [
        (BitFlip(bits=(3, 16)), 16, r"bit 16 is outside a 16-bit format, whose bits are 0 \.\. 15"),
        (StuckAt(bits=(8,)), 8, r"bit 8 is outside a 8-bit format, whose bits are 0 \.\. 7"),
        (BitFlip(count=9), 8, "count: 9 bits do not fit a word of 8 bits"),
        (BitFlip(count=9, adjacent=True), 8, "9 adjacent bits"),
        (BitFlip(count=3, bits=(1, 2)), 8, r"at bits=\(1, 2\)"),
    ],
)
def test_models_that_do_not_fit_say_so(model, bits, message):
    with pytest.raises(FaultError, match=message):
        model.variants(bits)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BitFlip(bits=()), "distinct and at least one"),
        (lambda: BitFlip(bits=(1, 1)), "distinct"),
        (lambda: BitFlip(count=0), "greater than or equal to 1"),
        (lambda: BitFlip(count=17), "less than or equal to 16"),
        (lambda: StuckAt(value=2), "both"),
        (lambda: StuckValue(values=()), "at least 1"),
        (lambda: StuckValue(values=(1.0, 1.0)), "count twice"),
        (lambda: StuckValue(values=(float("nan"),)), "finite"),
        (lambda: Dead(outputs=("zero", "zero")), "count twice"),
        (lambda: RandomValue(low=1.0), "together"),
        (lambda: RandomValue(low=1.0, high=1.0), "below high"),
        (lambda: Noise(), "above 0"),
        (lambda: Noise(additive=-1), "greater than or equal to 0"),
        (lambda: BitFlip(width=3), "Extra inputs"),
    ],
)
def test_settings_are_checked(make, message):
    with pytest.raises(ValidationError, match=message):
        make()


def test_names_tell_settings_apart():
    names = [m.name for m in (BitFlip(), BitFlip(count=2), BitFlip(bits=(1, 0)), StuckAt(), StuckAt(value=1))]
    assert names == ["bit_flip", "bit_flip(count=2)", "bit_flip(bits=(0, 1))", "stuck_at", "stuck_at(value=1)"]
