"""One network at several levels, layer by layer: how far each level is from the most exact one.

The same question serves a learned error model (is the campaign that it drives like the one it was learned from?), the
plain bit flips of the software level (how far are they from what registers do?) and two levels of one design.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from saboteur import statistics
from saboteur.campaign.comparison import compare, difference_of
from saboteur.campaign.model import Unit
from saboteur.campaign.results import OUTCOMES, Counts, Results
from saboteur.errors import CampaignError
from saboteur.outcomes.criteria import Criterion
from saboteur.statistics import Difference, Estimate

ALL = "all layers"

_LEAST_EXPECTED = 5.0
_EQUAL_FRACTIONS = 0.02


@dataclass(frozen=True)
class Agreement:
    """Verdicts on the same faults at two levels.

    Attributes:
        faults: how many ran at both.
        reference_alone: SDC at the reference level alone.
        level_alone: SDC at the other level alone.
    """

    faults: int
    reference_alone: int
    level_alone: int

    @property
    def share(self) -> float:
        """The share of faults with the same verdict."""
        return 1 - (self.reference_alone + self.level_alone) / self.faults


@dataclass(frozen=True)
class Row:
    """One layer at one level.

    Attributes:
        layer: its name, or :data:`ALL`.
        level: which campaign.
        estimate: the SDC rate, of faults or of inferences.
        difference: level − reference; ``None`` for the reference itself.
        p_value: of "outcomes (masked, SDC, DUE) are distributed as at the reference level"; ``None`` for the reference
            itself, and where faults of the layer were not drawn uniformly.
        agreement: of verdicts, where both levels ran the same faults; for :data:`ALL` only.
    """

    layer: str
    level: str
    estimate: Estimate
    difference: Difference | None = None
    p_value: float | None = None
    agreement: Agreement | None = None


@dataclass(frozen=True)
class LevelComparison:
    """SDC rates by layer at several levels.

    Attributes:
        criterion: what counts as SDC.
        unit: what rates are of: faults or inferences.
        confidence: of all intervals.
        reference: the level that the others are compared with.
        levels: all of them, the reference first.
        layers: in the order of the reference campaign, and last :data:`ALL`.
        rows: one for each layer and level that has it.
    """

    criterion: str
    unit: Unit
    confidence: float
    reference: str
    levels: tuple[str, ...]
    layers: tuple[str, ...]
    rows: tuple[Row, ...]

    def row(self, layer: str, level: str) -> Row | None:
        """The row of a layer at a level; ``None`` where the level does not have the layer."""
        return next((row for row in self.rows if (row.layer, row.level) == (layer, level)), None)


def compare_levels(
    results: Mapping[str, Results], criterion: str | None = None, unit: Unit = "faults"
) -> LevelComparison:
    """Compare campaigns of one network at several levels, layer by layer.

    Layers go by their names. The rate of all layers weighs each layer as its share of the reference's population, at
    every level, so that levels whose populations count other things are asked the same question.

    Differences are of independent samples (Newcombe, Statistics in Medicine 1998, 17:873, method 10). The test of one
    layer is Fisher's exact test, or Pearson's χ² where there are three outcomes and at least five of each are to be
    expected; for rates of inferences, of which a fault met several, it is Welch's t test of the faults' shares of SDC
    (Biometrika 1947). That of all layers combines the independent tests of the layers (Fisher, Statistical Methods for
    Research Workers, 4th ed. 1932: −2 Σ ln p is χ² with two degrees of freedom a layer).

    Args:
        results: campaigns by the name of their level; the first is the reference.
        criterion: of all of them; the question of the reference if absent.
        unit: what rates are of. Levels that judge faults on different numbers of inputs have only the rate of
            inferences in common.

    Raises:
        CampaignError: when there are fewer than two campaigns, one lacks the criterion, or has none of the layers.
    """
    if len(results) < 2:
        raise CampaignError("levels: a comparison takes at least two campaigns")
    (reference, exact), *others = results.items()
    name = criterion or exact.campaign.question.name
    confidence = exact.campaign.sampling.confidence
    judge = exact.campaign.criterion(name)
    truth = _ByLayer.of(exact, judge, unit)
    rows = [Row(layer, reference, estimate) for layer, estimate in truth.estimates.items()]
    rows.append(Row(ALL, reference, truth.of_all(truth.population, confidence)))
    for level, found in others:
        own = _ByLayer.of(found, found.campaign.criterion(name), unit)
        common = [layer for layer in truth.estimates if layer in own.estimates]
        if not common:
            raise CampaignError(
                f"levels: {level} has none of the layers of {reference}: {', '.join(own.estimates)} and "
                f"{', '.join(truth.estimates)}"
            )
        p_values = {layer: _p_value(truth.counts[layer], own.counts[layer], unit) for layer in common}
        rows += [
            Row(
                layer,
                level,
                own.estimates[layer],
                difference_of(own.estimates[layer], truth.estimates[layer]),
                p_values[layer],
            )
            for layer in common
        ]
        if len(common) == len(truth.estimates):
            both = compare(exact, found, name)
            estimate = own.of_all(truth.population, confidence)
            rows.append(
                Row(
                    ALL,
                    level,
                    estimate,
                    difference_of(estimate, truth.of_all(truth.population, confidence)),
                    _combined(list(p_values.values())),
                    Agreement(both.paired, both.only_a, both.only_b) if both.paired else None,
                )
            )
    return LevelComparison(
        criterion=name,
        unit=unit,
        confidence=confidence,
        reference=reference,
        levels=tuple(results),
        layers=(*truth.estimates, ALL),
        rows=tuple(rows),
    )


@dataclass(frozen=True)
class _ByLayer:
    """One campaign's outcomes by layer."""

    estimates: dict[str, Estimate]
    counts: dict[str, Counts]
    population: dict[str, float]
    unit: Unit

    @classmethod
    def of(cls, results: Results, judge: Criterion, unit: Unit) -> _ByLayer:
        counts = results.counts(judge, by="layer")
        names = [name for name, _ in results.groups("layer")]
        estimates = {
            name: estimate for name, _, estimate in results.estimates(judge, "layer", unit=unit, counts=counts)
        }
        cells = {name: counts.take(counts.group == names.index(name)) for name in estimates}
        return cls(estimates, cells, {name: float(cell.population.sum()) for name, cell in cells.items()}, unit)

    def of_all(self, population: Mapping[str, float], confidence: float) -> Estimate:
        """The rate over layers that weigh as ``population`` says; strata within a layer as in their campaign."""
        cells = [self.counts[layer] for layer in population]
        weights = [
            cell.population * population[layer] / cell.population.sum()
            for layer, cell in zip(population, cells, strict=True)
        ]
        n, sizes, k, sums, squares = (
            np.concatenate(part)
            for part in (
                [cell.n for cell in cells],
                weights,
                *([found[name]["sdc"] for found in map(vars, cells)] for name in ("faults", "sums", "squares")),
            )
        )
        met = n > 0
        n, sizes, words = n[met], np.maximum(np.rint(sizes[met]), n[met]), "as each campaign says"
        if self.unit == "faults":
            return statistics.stratified(k[met], n, sizes, confidence, stopping_rule=words)
        each = int(sum(cell.inferences.sum() for cell in cells) // n.sum())
        return statistics.clustered(sums[met], squares[met], n, each, sizes, confidence, stopping_rule=words)


def _p_value(a: Counts, b: Counts, unit: Unit) -> float | None:
    if not (_uniform(a) and _uniform(b)):
        return None
    met = [int(side.inferences.sum() // side.n.sum()) for side in (a, b)]
    if unit == "inferences" and max(met) > 1:
        means, variances = zip(*(_share(side, each) for side, each in zip((a, b), met, strict=True)), strict=True)
        n = [int(side.n.sum()) for side in (a, b)]
        if min(n) < 2 or max(variances) == 0:
            return None
        test = stats.ttest_ind_from_stats(
            means[0], np.sqrt(variances[0]), n[0], means[1], np.sqrt(variances[1]), n[1], equal_var=False
        )
        return float(np.asarray(test[1]))
    return same_distribution(*(np.array([int(side.faults[what].sum()) for what in OUTCOMES]) for side in (a, b)))


def _share(counts: Counts, each: int) -> tuple[float, float]:
    """Mean and variance, over faults, of the share of their inferences that are SDC."""
    n = int(counts.n.sum())
    mean = float(counts.sums["sdc"].sum()) / each / n
    scatter = float(counts.squares["sdc"].sum()) / each**2 - n * mean**2
    return mean, max(scatter, 0.0) / max(n - 1, 1)


def _uniform(counts: Counts) -> bool:
    """Whether the cells of a layer were all sampled at one rate."""
    fraction = counts.n / np.maximum(counts.population, 1)
    return bool(np.ptp(fraction) <= _EQUAL_FRACTIONS * fraction.max())


def same_distribution(a: NDArray[np.int64], b: NDArray[np.int64]) -> float:
    """P-value of "both samples come from one distribution over outcomes".

    Fisher's exact test where two outcomes occur, Pearson's χ² where more do; an outcome of which fewer than five are to
    be expected in a sample is added to the rarest other one first.

    Args:
        a: [outcomes] counts of one sample.
        b: the other's.
    """
    table = np.stack([a, b]).astype(np.int64)
    table = table[:, table.sum(axis=0) > 0]
    while table.shape[1] > 2:
        expected = table.sum(axis=0) * table.sum(axis=1).min() / table.sum()
        rarest, next_rarest = np.argsort(expected, kind="stable")[:2]
        if expected[rarest] >= _LEAST_EXPECTED:
            return float(np.asarray(stats.chi2_contingency(table, correction=False)[1]))
        table[:, next_rarest] += table[:, rarest]
        table = np.delete(table, rarest, axis=1)
    return 1.0 if table.shape[1] < 2 else float(np.asarray(stats.fisher_exact(table)[1]))


def _combined(p_values: list[float | None]) -> float | None:
    known = [p for p in p_values if p is not None]
    if len(known) != len(p_values):
        return None
    return float(stats.chi2.sf(-2 * np.sum(np.log(np.maximum(known, 1e-300))), 2 * len(known)))
