"""Reads a store: observations into outcomes, outcomes into estimates.

Two denominators are kept apart throughout: *faults* (a fault judged over the inputs it met) and *inferences*
(one fault, one input). Estimates follow the sampling plan: strata weigh by their share of the population.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from saboteur import statistics
from saboteur.campaign.model import Campaign, Unit
from saboteur.campaign.plan import Plan
from saboteur.campaign.runner import Session
from saboteur.campaign.store import Store
from saboteur.errors import FaultError, StoreError
from saboteur.faults import lists
from saboteur.faults.space import Faults, FaultSpace
from saboteur.outcomes.criteria import Criterion, FaultCriterion
from saboteur.outcomes.recorder import outcome
from saboteur.statistics import Estimate

GroupBy = Literal["layer", "bit", "layer_bit", "site", "component"]
OUTCOMES = ("masked", "sdc", "due")
_DUE = ("nonfinite", "crash", "hang", "detected")
_SUMMED = ("inferences", "screened", "audited", "audit_misses")
_ENDLESS = 2.0**40
"""What the sizes of strata are multiplied by where a sample can never be the whole."""


@dataclass(frozen=True)
class Counts:
    """What came of the trials of some cells: parallel columns, one entry a cell.

    Attributes:
        stratum: the stratum of each cell.
        group: the group of each cell, an index into :meth:`Results.groups`; 0 where strata are not cut further.
        population: single faults in the cell; for trials of many faults, its weight.
        n: valid trials.
        invalid: trials that the harness could not run.
        inferences: how many inferences the valid trials met.
        screened: how many of them were predicted and not run.
        audited: how many could have been predicted and were run to audit the predictions.
        audit_misses: of how many of these the prediction was wrong.
        faults: outcome -> how many faults.
        sums: outcome -> sum over faults of their inferences with that outcome.
        squares: the same, sum of squares.
    """

    stratum: NDArray[np.int64]
    group: NDArray[np.int64]
    population: NDArray[np.float64]
    n: NDArray[np.int64]
    invalid: NDArray[np.int64]
    inferences: NDArray[np.int64]
    screened: NDArray[np.int64]
    audited: NDArray[np.int64]
    audit_misses: NDArray[np.int64]
    faults: dict[str, NDArray[np.int64]]
    sums: dict[str, NDArray[np.int64]]
    squares: dict[str, NDArray[np.int64]]

    def take(self, cells: NDArray) -> Counts:
        """The given cells."""
        return self._each(lambda column: column[cells], self.stratum[cells], self.group[cells])

    def merged(self, group: NDArray[np.int64]) -> Counts:
        """Cells of the same stratum and the same new ``group`` [cells] added up; a negative group is left out."""
        kept = group >= 0
        pairs, index = np.unique(np.stack([self.stratum[kept], group[kept]]), axis=1, return_inverse=True)
        index = index.reshape(-1)

        def add(column: NDArray) -> NDArray:
            return np.bincount(index, column[kept], pairs.shape[1]).astype(column.dtype)

        return self._each(add, pairs[0], pairs[1])

    def _each(self, change: Callable[[NDArray], NDArray], stratum: NDArray, group: NDArray) -> Counts:
        def of_outcomes(columns: dict[str, NDArray[np.int64]]) -> dict[str, NDArray[np.int64]]:
            return {name: change(column) for name, column in columns.items()}

        return Counts(
            stratum,
            group,
            population=change(self.population),
            n=change(self.n),
            invalid=change(self.invalid),
            inferences=change(self.inferences),
            screened=change(self.screened),
            audited=change(self.audited),
            audit_misses=change(self.audit_misses),
            faults=of_outcomes(self.faults),
            sums=of_outcomes(self.sums),
            squares=of_outcomes(self.squares),
        )


class Collector(Protocol):
    """Takes the observations in batches, so that one reading of a store serves many questions."""

    def add(self, table: pa.Table) -> None:
        """Take the next batch."""
        ...


class CountCollector:
    """Counts outcomes under several criteria, in the finest cells that any grouping needs."""

    def __init__(self, results: Results, criteria: Sequence[Criterion]):
        self._results, self._criteria = results, criteria
        cells = len(results.cells.stratum)
        self._shared = {name: np.zeros(cells, np.int64) for name in ("n", "invalid", *_SUMMED)}
        self._found = {
            criterion.name: tuple({name: np.zeros(cells, np.int64) for name in OUTCOMES} for _ in range(3))
            for criterion in criteria
        }

    def add(self, table: pa.Table) -> None:
        """Count a batch."""
        cells, golden = self._results.cells, self._results.session.golden
        cell, size = cells.of(table), len(cells.stratum)
        valid = table["invalid"].is_null().to_numpy()
        self._shared["invalid"] += np.bincount(cell[~valid], minlength=size)
        table, cell = table.filter(pa.array(valid)), cell[valid]
        met = table["inferences"].to_numpy()
        self._shared["n"] += np.bincount(cell, minlength=size)
        for name in _SUMMED:
            self._shared[name] += np.bincount(cell, table[name].to_numpy(), size).astype(np.int64)
        due = met - answered(table)
        for criterion in self._criteria:
            faults, sums, squares = self._found[criterion.name]
            found = outcome(table, criterion, golden)
            for name in OUTCOMES:
                faults[name] += np.bincount(cell[found == name], minlength=size)
            if isinstance(criterion, FaultCriterion):
                continue
            sdc = table[f"sdc:{criterion.name}"].to_numpy()
            for name, x in {"sdc": sdc, "due": due, "masked": met - sdc - due}.items():
                sums[name] += np.bincount(cell, x, size).astype(np.int64)
                squares[name] += np.bincount(cell, x.astype(float) ** 2, size).astype(np.int64)

    def counts(self, criterion: Criterion, by: GroupBy | None = None) -> Counts:
        """The counts of each stratum that has trials to give or (stratum, group) cell."""
        results, shared = self._results, self._shared
        cells = results.cells
        faults, sums, squares = self._found[criterion.name]
        finest = Counts(
            stratum=cells.stratum,
            group=np.zeros_like(cells.stratum),
            population=cells.population,
            **shared,
            faults=faults,
            sums=sums,
            squares=squares,
        )
        if by is None:
            merged = finest.merged(finest.group)
            return replace(merged, population=results.strata_populations[merged.stratum])
        merged = finest.merged(results.group_of_cells(by))
        if results.session.sampler.listed_alone:
            return replace(merged, population=(merged.n + merged.invalid).astype(float))  # its own population
        return merged


class CriticalCollector:
    """Keeps the trials with the most SDC inferences (for a fault criterion: the largest loss of right answers)."""

    def __init__(self, criterion: Criterion, limit: int):
        self._criterion, self._limit = criterion, limit
        self.trials: pa.Table | None = None

    def add(self, table: pa.Table) -> None:
        """Keep the worst of what was kept and a batch."""
        table = table.filter(pa.array(table["invalid"].is_null().to_numpy()))
        hit = severity(table, self._criterion)
        table = table.append_column("severity", pa.array(hit)).filter(pa.array(hit > 0))
        if self.trials is not None:
            table = pa.concat_tables([self.trials, table], promote_options="permissive")
        order = [("severity", "descending"), ("stratum", "ascending"), ("trial", "ascending")]
        self.trials = table.sort_by(order).slice(0, self._limit)


class ConvergenceCollector:
    """Keeps stratum and outcome of every valid trial, in the order of the plan."""

    def __init__(self, results: Results, criterion: Criterion):
        self._results, self._criterion = results, criterion
        self._strata: list[NDArray[np.int32]] = []
        self._sdc: list[NDArray[np.bool_]] = []

    def add(self, table: pa.Table) -> None:
        """Keep a batch."""
        found = outcome(table, self._criterion, self._results.session.golden)
        keep = found != "invalid"
        self._strata.append(table["stratum"].to_numpy()[keep])
        self._sdc.append(found[keep] == "sdc")

    def curve(self, points: int = 40) -> list[tuple[int, Estimate]]:
        """How the estimate settled; see :meth:`Results.convergence`."""
        if not self._strata or not sum(map(len, self._sdc)):
            return []
        results = self._results
        stratum, sdc = np.concatenate(self._strata), np.concatenate(self._sdc)
        population, curve = results.strata_populations, []
        # Strata are run one after the other; what would have been known after a share of the plan is what the
        # first so many trials of every stratum show.
        by_stratum = np.argsort(stratum, kind="stable")
        sizes = np.bincount(stratum, minlength=len(population))
        starts = np.cumsum(sizes) - sizes
        rank = np.empty(len(stratum))
        rank[by_stratum] = np.arange(len(stratum)) - starts[stratum[by_stratum]]
        order = np.argsort((rank + 0.5) / sizes[stratum], kind="stable")
        stratum, sdc = stratum[order], sdc[order]
        for stop in np.unique(np.geomspace(min(20, len(sdc)), len(sdc), points).round().astype(int)):
            n = np.bincount(stratum[:stop], minlength=len(population))
            k = np.bincount(stratum[:stop][sdc[:stop]], minlength=len(population))
            curve.append((int(stop), results.estimate_of_strata(k, n)))
        return curve


class InvalidCollector:
    """Keeps which trials the harness could not run, and why."""

    def __init__(self) -> None:
        schema = pa.schema([("stratum", pa.int32()), ("trial", pa.int64()), ("invalid", pa.string())])
        self.trials: pa.Table = schema.empty_table()

    def add(self, table: pa.Table) -> None:
        """Keep a batch's."""
        found = table.filter(pa.array(table["invalid"].is_valid().to_numpy())).select(self.trials.column_names)
        if len(found):
            self.trials = pa.concat_tables([self.trials, found.cast(self.trials.schema)])


def severity(table: pa.Table, criterion: Criterion) -> NDArray[np.float64]:
    """The share of its inputs on which each trial is SDC.

    For a fault criterion, the share of right answers lost among the inputs that got an answer.
    """
    if isinstance(criterion, FaultCriterion):
        lost = table["golden_correct_answered"].to_numpy() - table["correct"].to_numpy()
        return lost / np.maximum(answered(table), 1)
    return table[f"sdc:{criterion.name}"].to_numpy() / np.maximum(table["inferences"].to_numpy(), 1)


def answered(table: pa.Table) -> NDArray[np.int64]:
    """The inferences of each trial that were not DUE."""
    return table["inferences"].to_numpy() - np.sum([table[column].to_numpy() for column in _DUE], axis=0)


@dataclass(frozen=True)
class Cells:
    """The population cut as finely as any strata and groups do: by (region, bit), each within one stratum.

    Behind these come one cell a stratum for trials that hold no or many faults.

    Attributes:
        stratum, region, bit: of each cell; region −1 for trials of no or many faults, bit −1 where the model
            acts on the value, or where bits cannot be told apart.
        population: single faults in it; for trials of many faults, its weight.
        bits: whether bits can be told apart.
    """

    stratum: NDArray[np.int64]
    region: NDArray[np.int64]
    bit: NDArray[np.int64]
    population: NDArray[np.float64]
    bits: bool

    @cached_property
    def _lookup(self) -> NDArray[np.int64]:
        lookup = np.full((self.region.max() + 2, self.bit.max() + 2), -1)
        lookup[self.region + 1, self.bit + 1] = np.arange(len(self.region))
        return lookup

    def of(self, table: pa.Table) -> NDArray[np.int64]:
        """The cell of each observed trial."""
        if self.region.max() < 0:
            return table["stratum"].to_numpy().astype(np.int64)
        region = table["region"].fill_null(-1).to_numpy().astype(np.int64)
        bit = table["bit"].fill_null(-1).to_numpy().astype(np.int64) if self.bits else np.full(len(table), -1)
        several = np.flatnonzero(self.region < 0)  # in the order of the strata
        cell = self._lookup[np.where(region < 0, 0, region + 1), np.where(region < 0, 0, bit + 1)]
        return np.where(region < 0, several[table["stratum"].to_numpy()], cell)


@dataclass(frozen=True)
class Results:
    """The results of one store. Opening them opens the target for its fault space, but runs nothing."""

    store: Store
    session: Session

    @classmethod
    @contextmanager
    def open(cls, path: Path) -> Iterator[Results]:
        """Open a store's results.

        Raises:
            StoreError: when there is no store, or the target on this machine is no longer the store's.
        """
        store = Store.open(path)
        campaign = store.campaign
        target = campaign.target.open(campaign.resources)
        try:
            session = Session(campaign, target, store.golden())
            if session.id != store.id:
                raise StoreError(
                    f"store: {path} is of campaign {store.id}, but its target now gives {session.id}: model, data or "
                    "fault list have changed since"
                )
            yield cls(store, session)
        finally:
            target.close()

    @property
    def campaign(self) -> Campaign:
        """The campaign."""
        return self.session.campaign

    @property
    def space(self) -> FaultSpace:
        """The population."""
        return self.session.space

    @property
    def plan(self) -> Plan:
        """The sampling plan."""
        return self.session.plan

    def tables(self) -> Iterator[pa.Table]:
        """The observations of all finished trials, some thousand at a time."""
        return self.store.tables()

    @property
    def planned(self) -> int:
        """Trials in all rounds decided so far."""
        rounds = self.store.rounds()
        return int(rounds[-1].after.sum()) if rounds else 0

    def outcomes(self, criterion: Criterion) -> Iterator[tuple[pa.Table, NDArray[np.str_]]]:
        """Observations with the outcome of each fault under ``criterion``."""
        for table in self.tables():
            yield table, outcome(table, criterion, self.session.golden)

    # -- cells: strata, cut further by a group --------------------------------------------------------------

    @cached_property
    def _weights(self) -> NDArray[np.float64]:
        """What one single fault of each stratum counts, so that strata of combinations weigh by their size."""
        sizes = np.array([stratum.size for stratum in self.session.sampler.strata], float)
        populations = np.array([np.nan if p is None else p for p in self.session.sampler.populations])
        return np.where(np.isnan(populations), 1e15 / sizes.sum(), populations / sizes)

    @cached_property
    def strata_populations(self) -> NDArray[np.float64]:
        """What each stratum counts among all: its faults, or its weight."""
        sampler = self.session.sampler
        weights = np.array([stratum.size for stratum in sampler.strata]) * self._weights
        return np.array([weight if n is None else n for weight, n in zip(weights, sampler.populations, strict=True)])

    @cached_property
    def cells(self) -> Cells:
        """The finest cells; trials of many faults by draw have none but their strata."""
        strata, regions = self.session.sampler.strata, self.space.regions
        try:
            bits_told = all(len(region.variant_bits) for region in regions)
        except FaultError:  # too many variants
            bits_told = False
        rows: list[tuple[int, int, int, float]] = []
        for h, stratum in enumerate(strata if not self.campaign.multiple else ()):
            for i, first, last in zip(stratum.regions, stratum.first_variant, stratum.last_variant, strict=True):
                each = regions[i].elements * regions[i].steps * self._weights[h]
                if bits_told:
                    bits, counts = np.unique(regions[i].variant_bits[first:last], return_counts=True)
                    rows += [(h, i, bit, each * n) for bit, n in zip(bits.tolist(), counts.tolist(), strict=True)]
                else:
                    rows.append((h, i, -1, each * (last - first)))
        several = self.strata_populations if self.campaign.multiple else np.zeros(len(strata))
        rows += [(h, -1, -1, weight) for h, weight in enumerate(several)]
        stratum, region, bit, population = zip(*rows, strict=True)
        return Cells(
            np.array(stratum), np.array(region), np.array(bit), np.array(population, np.float64), bool(bits_told)
        )

    def groups(self, by: GroupBy) -> list[tuple[str, int]]:
        """The (name, bit) of each group, in the order of the space; bit is −1 where bits are not told apart.

        There are none where trials hold many faults by draw, or where bits are asked for and a model has too
        many variants to tell them apart.
        """
        return list(self._numbered(by))

    def _names(self, by: GroupBy) -> list[str]:
        attribute = "layer" if by == "layer_bit" else by
        return ["" if by == "bit" else getattr(region, attribute) for region in self.space.regions]

    def _numbered(self, by: GroupBy) -> dict[tuple[str, int], int]:
        with_bits = by in ("bit", "layer_bit")
        if self.campaign.multiple or (with_bits and not self.cells.bits):
            return {}
        names, cells = self._names(by), self.cells
        single = cells.region >= 0
        pairs = sorted(set(zip(cells.region[single].tolist(), cells.bit[single].tolist(), strict=True)))
        groups = list(dict.fromkeys((names[region], bit if with_bits else -1) for region, bit in pairs))
        if by == "bit":
            groups.sort(key=lambda group: group[1])
        return {group: g for g, group in enumerate(groups)}

    def group_of_cells(self, by: GroupBy) -> NDArray[np.int64]:
        """The group of each finest cell, an index into :meth:`groups`; −1 for trials of no or many faults."""
        numbered, names = self._numbered(by), self._names(by)
        bits = self.cells.bit if by in ("bit", "layer_bit") else np.full(len(self.cells.bit), -1)
        return np.array(
            [
                -1 if region < 0 else numbered.get((names[region], bit), -1)
                for region, bit in zip(self.cells.region.tolist(), bits.tolist(), strict=True)
            ]
        )

    def read(self, *collectors: Collector) -> None:
        """Hand the observations to all ``collectors``, reading the store once."""
        for table in self.tables():
            for collector in collectors:
                collector.add(table)

    def counts(self, criterion: Criterion, by: GroupBy | None = None) -> Counts:
        """Outcomes under ``criterion`` for each stratum or (stratum, group) cell."""
        collector = CountCollector(self, [criterion])
        self.read(collector)
        return collector.counts(criterion, by)

    # -- estimates ------------------------------------------------------------------------------------------

    @property
    def stopping_words(self) -> str:
        """What decided on the number of trials, for every estimate to carry."""
        if self.plan.rule is not None:
            return f"as if of fixed n; {self.plan.rule}"
        return {
            "statistical": "sample size planned for the margin",
            "fixed": "fixed n",
            "exhaustive": "all faults",
        }.get(self.campaign.sampling.kind, "listed faults")

    def estimate(
        self, criterion: Criterion, what: str = "sdc", unit: Unit = "faults", counts: Counts | None = None
    ) -> Estimate:
        """The rate of an outcome (``sdc``, ``due`` or ``masked``) over the whole population.

        Args:
            criterion: what counts as SDC.
            what: the outcome.
            unit: the denominator.
            counts: the :meth:`counts` of the strata, where they are at hand already.

        Raises:
            StoreError: when nothing valid has been observed yet, or the criterion does not judge inferences.
        """
        counts = counts or self.counts(criterion)
        stopping = self.campaign.stopping
        if stopping is not None and unit == "faults" and criterion.name == stopping.criterion and counts.n.sum():
            return self._sequential(int(counts.faults[what].sum()), int(counts.n.sum()))
        return self._estimate(counts, criterion, what, unit)

    def estimates(
        self,
        criterion: Criterion,
        by: GroupBy,
        what: str = "sdc",
        unit: Unit = "faults",
        counts: Counts | None = None,
    ) -> list[tuple[str, int, Estimate]]:
        """The rate of an outcome for each group that has been met: (name, bit or −1, estimate)."""
        groups = self.groups(by)
        if not groups:
            return []
        counts = counts or self.counts(criterion, by)
        order = np.argsort(counts.group, kind="stable")
        ends = np.searchsorted(counts.group[order], np.arange(len(groups) + 1))
        found = []
        for g, (name, bit) in enumerate(groups):
            group = counts.take(order[ends[g] : ends[g + 1]])
            if group.n.sum():
                found.append((name, bit, self._estimate(group, criterion, what, unit)))
        return found

    def estimate_of_strata(self, k: NDArray[np.int64], n: NDArray[np.int64]) -> Estimate:
        """The share of faults with some property that ``k`` of ``n`` valid trials of each stratum [strata] have."""
        met = n > 0
        return self._stratified(k[met], n[met], self.strata_populations[met])

    def _estimate(self, counts: Counts, criterion: Criterion, what: str, unit: Unit) -> Estimate:
        if counts.n.sum() == 0:
            raise StoreError(f"store: {self.store.path} holds no valid trial yet")
        if unit == "faults":
            return self._stratified(counts.faults[what], counts.n, counts.population)
        if isinstance(criterion, FaultCriterion):
            raise StoreError(f"criterion: {criterion.name} judges faults, not inferences")
        each = int(counts.inferences.sum() // counts.n.sum())
        return self.mean_of_inferences(counts.sums[what], counts.squares[what], counts.n, each, counts.population)

    @cached_property
    def _endless(self) -> bool:
        """Whether no sample exhausts the population: combinations of faults, or faults on inputs drawn for each."""
        inputs = self.campaign.inputs_per_fault
        return self.campaign.multiple or (inputs is not None and inputs < self.session.golden.inputs)

    def _stratified(self, k: NDArray, n: NDArray, population: NDArray, claim: bool = False) -> Estimate:
        confidence, words = self.campaign.sampling.confidence, self.stopping_words
        if len(n) > 1:
            sizes = self._sizes(population, n)
            return self._stated(statistics.stratified(k, n, sizes, confidence, stopping_rule=words), population, 1)
        size = None if self._endless else round(max(population[0], n[0]))
        method = "clopper_pearson" if claim else "wilson"
        estimate = statistics.proportion(int(k[0]), int(n[0]), size, confidence, method, stopping_rule=words)
        return self._stated(estimate, population, 1)

    def _sequential(self, k: int, n: int) -> Estimate:
        """The estimate that holds although the data decided when to stop."""
        size = None if self._endless else round(self.strata_populations.sum())
        confidence, words = self.campaign.sampling.confidence, str(self.plan.rule)
        return statistics.proportion(k, n, size, confidence, "confidence_sequence", stopping_rule=words)

    def mean_of_inferences(
        self, sums: NDArray, squares: NDArray, n: NDArray, inferences_per_fault: int, population: NDArray
    ) -> Estimate:
        """The share of inferences with some property, from sums over faults and their squares in some cells."""
        confidence, words = self.campaign.sampling.confidence, self.stopping_words
        sizes = self._sizes(population, n)
        estimate = statistics.clustered(sums, squares, n, inferences_per_fault, sizes, confidence, stopping_rule=words)
        return self._stated(estimate, population, self.session.golden.inputs)

    def _sizes(self, population: NDArray, n: NDArray) -> NDArray:
        return np.maximum(population, n) * (_ENDLESS if self._endless else 1)

    def _stated(self, estimate: Estimate, population: NDArray, inputs: int) -> Estimate:
        """The estimate with the population as it is; combinations of faults have none that could be counted."""
        if not self._endless:
            return estimate
        return replace(estimate, population=None if self.campaign.multiple else round(population.sum()) * inputs)

    # -- single trials --------------------------------------------------------------------------------------

    def most_critical(self, criterion: Criterion, limit: int = 20) -> pa.Table:
        """The trials with the most SDC inferences (for a fault criterion: the largest loss of right answers).

        Returns:
            The observations of at most ``limit`` trials, worst first, with a column ``severity`` (0 to 1).
        """
        collector = CriticalCollector(criterion, limit)
        self.read(collector)
        if collector.trials is None:
            raise StoreError(f"store: {self.store.path} holds no finished work unit yet")
        return collector.trials

    def faults(self, trials: pa.Table) -> pa.Table:
        """The single faults of the given trials (columns ``stratum`` and ``trial``) as a readable list."""
        parts = []
        for stratum, trial in zip(trials["stratum"].to_pylist(), trials["trial"].to_pylist(), strict=True):
            table = lists.to_table(self.space, self.session.sampler.faults(stratum, trial, trial + 1))
            number = pa.array([trial] * len(table), pa.int64())
            table = table.set_column(0, "trial", number)
            parts.append(table.add_column(0, "stratum", pa.array([stratum] * len(table), pa.int32())))
        return pa.concat_tables(parts) if parts else pa.table({"stratum": [], "trial": []})

    def rows(self, table: pa.Table) -> Faults:
        """The faults of observed trials of one fault each, as columns."""
        columns = {name: table[name].to_numpy() for name in ("region", "element", "step", "variant")}
        return Faults(np.zeros(len(table), np.uint64), np.arange(len(table)), **columns)

    def export(self) -> Iterator[pa.Table]:
        """All finished trials as readable tables: observations, outcomes under every criterion, and the site.

        Trials of several faults have no site; their faults come from :meth:`faults`.
        """
        strata = np.array([stratum.name for stratum in self.session.sampler.strata])
        golden = self.session.golden
        for table in self.tables():
            columns = {"stratum": table["stratum"], "stratum_name": strata[table["stratum"].to_numpy()]}
            columns["trial"] = table["trial"]
            single = table["region"].is_valid().to_numpy()
            position = pa.array(np.cumsum(single) - 1, mask=~single)
            listed = lists.to_table(self.space, self.rows(table.filter(pa.array(single))))
            for name in ("site", "layer", "component", "index", "step", "model", "bit", "variant"):
                columns[name] = listed[name].take(position)
            for criterion in self.campaign.criteria:
                columns[f"outcome:{criterion.name}"] = outcome(table, criterion, golden)
            shown = [name for name in table.column_names if name not in (*columns, "region", "element")]
            yield pa.table(columns | {name: table[name] for name in shown})

    def invalid(self) -> pa.Table:
        """Trials that the harness could not run: ``stratum``, ``trial``, ``invalid`` (why)."""
        collector = InvalidCollector()
        self.read(collector)
        return collector.trials

    def convergence(self, criterion: Criterion, points: int = 40) -> list[tuple[int, Estimate]]:
        """How the estimate over the population settled: (trials so far, estimate) in the order of the plan."""
        collector = ConvergenceCollector(self, criterion)
        self.read(collector)
        return collector.curve(points)

    # -- the verdict ----------------------------------------------------------------------------------------

    def wrong_rate(self, counts: Counts | None = None) -> float | None:
        """Which share of the predictions is wrong at most, at the sampling's confidence; ``None`` without any.

        The one-sided bound of Clopper and Pearson on the audit: a random sample of the inferences that could be
        predicted, all of which were run.

        Args:
            counts: as for :meth:`verdict`.
        """
        counts = counts or self.counts(self.campaign.question)
        audited = int(counts.audited.sum())
        if audited + int(counts.screened.sum()) == 0:
            return None
        return float(statistics.upper_bound(int(counts.audit_misses.sum()), audited, self.campaign.sampling.confidence))

    def verdict(self, counts: Counts | None = None) -> tuple[Literal["met", "not met", "open"], Estimate] | None:
        """Whether the requirement is met: the whole interval lies below it, above it, or neither.

        Where inferences were predicted, it stays open unless :meth:`wrong_rate` is at most what the campaign allows.

        Args:
            counts: the :meth:`counts` of the strata under the question, where they are at hand already.

        Raises:
            StoreError: when nothing valid has been observed yet.
        """
        requirement = self.campaign.requirement
        if requirement is None:
            return None
        counts = counts or self.counts(self.campaign.question)
        estimate = self.estimate(self.campaign.question, "sdc", requirement.unit, counts)
        if estimate.method == "Wilson":
            estimate = self._stratified(counts.faults["sdc"], counts.n, counts.population, claim=True)
        if estimate.high <= requirement.at_most:
            wrong = self.wrong_rate(counts)
            return ("met" if wrong is None or wrong <= self.campaign.allowed_wrong_rate else "open"), estimate
        return ("not met" if estimate.low > requirement.at_most else "open"), estimate
