"""Sample sizes against the published ResNet-20 tables and as an inverse of the margin."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saboteur.statistics import (
    StatisticsError,
    margin_of_error,
    network_wise,
    sample_size,
    stratum_wise,
)

T_PUBLISHED = 2.58
LAYER_WEIGHTS = [432, *[2304] * 6, 4608, *[9216] * 3, 9226, 9216, 18432, *[36864] * 5, 640]
"""Weights per ResNet-20 layer as published, the misprint of layer 11 (9,226 for 9,216) included."""

PUBLISHED_PRIOR = np.full(32, 1e-4)
"""Rates per bit (index = bit) that the published data-aware table rests on, recovered from its sizes."""
for _bit, _rate in {
    31: 0.00214,
    30: 0.4915,
    29: 0.00045,
    28: 0.00045,
    27: 0.00046,
    26: 0.00341,
    25: 0.02772,
    24: 0.00524,
    23: 0.00036,
}.items():
    PUBLISHED_PRIOR[_bit] = _rate


def table(folder: Path, name: str, header: bool = True) -> np.ndarray:
    """Rows of a published table without its index column."""
    with (folder / "resnet20-cifar10" / "published" / name).open() as file:
        rows = list(csv.reader(file))[1 if header else 0 :]
    return np.array([[int(cell) for cell in row[1:] if cell] for row in rows])


def test_layer_populations_are_the_published_ones(shared_data: Path) -> None:
    published = table(shared_data, "resnet20_N_layers.csv")[:, 0]
    np.testing.assert_array_equal(np.array(LAYER_WEIGHTS) * 64, published)


def test_network_wise_table(shared_data: Path) -> None:
    published = table(shared_data, "resnet20_n_date.csv", header=False)[:, 0]
    ours = network_wise(np.array(LAYER_WEIGHTS) * 64, 0.01, quantile=T_PUBLISHED)
    np.testing.assert_array_equal(ours, published)


def test_layer_wise_table(shared_data: Path) -> None:
    published = table(shared_data, "resnet20_n_date_per_layer.csv", header=False)[:, 0]
    ours = stratum_wise(np.array(LAYER_WEIGHTS) * 64, 0.01, quantile=T_PUBLISHED)
    np.testing.assert_array_equal(ours, published)


def test_worst_case_layer_bit_table(shared_data: Path) -> None:
    published = table(shared_data, "resnet20_n_worst_case.csv")
    ours = stratum_wise(np.array(LAYER_WEIGHTS)[:, None] * 2, 0.01, quantile=T_PUBLISHED)
    np.testing.assert_array_equal(np.broadcast_to(ours, published.shape), published)


def test_data_aware_layer_bit_table(shared_data: Path) -> None:
    published = table(shared_data, "resnet20_n_tuning_scenario_1.csv")[:, ::-1]
    ours = stratum_wise(np.array(LAYER_WEIGHTS)[:, None] * 2, 0.01, p=PUBLISHED_PRIOR, quantile=T_PUBLISHED)
    np.testing.assert_array_equal(ours, published)


def test_published_totals() -> None:
    weights = np.array(LAYER_WEIGHTS)
    assert sample_size(weights.sum() * 64, 0.01, quantile=T_PUBLISHED) == 16_625
    assert network_wise(weights * 64, 0.01, quantile=T_PUBLISHED).sum() == 16_628
    assert stratum_wise(weights * 64, 0.01, quantile=T_PUBLISHED).sum() == 307_650
    layer_bit = weights[:, None] * 2
    assert stratum_wise(layer_bit, 0.01, quantile=T_PUBLISHED).sum() * 32 == 4_885_760
    assert stratum_wise(layer_bit, 0.01, p=PUBLISHED_PRIOR, quantile=T_PUBLISHED).sum() == 201_079


@pytest.mark.parametrize(
    ("population", "expected"),
    [(27_648, 10_389), (590_464, 16_185), (2_359_296, 16_524), (864, 821), (18_452, 8_750), (1_280, 1_189)],
)
def test_published_rows(population: int, expected: int) -> None:
    assert sample_size(population, 0.01, quantile=T_PUBLISHED) == expected


def test_exact_quantile_and_small_cases() -> None:
    # t = 1.959964, infinite population: t²/4e² = 9603.6.
    assert sample_size(10**12, 0.01, 0.95) == 9604
    assert sample_size(1, 0.01) == 1
    assert sample_size(10, 0.5) == 4
    assert sample_size(10**6, 0.01, p=1e-9) == 1


@given(
    population=st.integers(1, 10**10),
    margin=st.floats(1e-4, 0.5),
    confidence=st.floats(0.5, 0.9999),
    p=st.floats(1e-4, 1 - 1e-4),
)
def test_margin_inverts_sample_size(population: int, margin: float, confidence: float, p: float) -> None:
    n = sample_size(population, margin, confidence, p, rounding="up")
    assert 1 <= n <= population
    assert margin_of_error(n, population, confidence, p) <= margin * (1 + 1e-6)
    if n > 1:
        assert margin_of_error(n - 1, population, confidence, p) > margin * (1 - 1e-6)


@given(st.integers(2, 10**8), st.floats(1e-3, 0.3), st.floats(0.01, 0.49))
def test_monotone(population: int, margin: float, p: float) -> None:
    n = sample_size(population, margin, 0.95, p)
    assert n <= sample_size(population * 2, margin, 0.95, p)
    assert n >= sample_size(population, margin * 1.5, 0.95, p)
    assert n <= sample_size(population, margin, 0.99, p)
    assert n <= sample_size(population, margin, 0.95, 0.5)


def test_margin_ends() -> None:
    np.testing.assert_array_equal(margin_of_error([0, 100], 100), [np.inf, 0.0])
    assert margin_of_error(1, 1) == 0


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"population": 0}, "population is 0"),
        ({"population": np.nan}, "population is nan"),
        ({"population": [5, -2]}, "population is -2"),
        ({"margin": 0}, "margin is 0"),
        ({"margin": 1}, "margin is 1"),
        ({"margin": 5}, "margin is 5"),
        ({"confidence": 1.0}, "confidence is 1"),
        ({"confidence": 99}, "confidence is 99"),
        ({"p": 0}, "p is 0"),
        ({"p": [0.5, 1.0]}, "p is 1"),
        ({"quantile": -1}, "quantile is -1"),
        ({"rounding": "down"}, "rounding is 'down'"),
    ],
)
def test_errors_name_field_and_value(arguments: dict, named: str) -> None:
    with pytest.raises(StatisticsError, match=named):
        sample_size(**{"population": 1000, "margin": 0.01, **arguments})


def test_sample_larger_than_population_is_refused() -> None:
    with pytest.raises(StatisticsError, match="n is 11"):
        margin_of_error(11, 10)
