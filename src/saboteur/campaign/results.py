"""Reads a store: observations into outcomes, outcomes into estimates.

Two denominators are kept apart throughout: *faults* (a fault judged over the inputs it met) and *inferences*
(one fault, one input). Estimates follow the sampling plan: strata weigh by their share of the population.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from saboteur import statistics
from saboteur.campaign.model import Campaign, Unit
from saboteur.campaign.plan import Plan
from saboteur.campaign.runner import Session
from saboteur.campaign.store import Store
from saboteur.errors import StoreError
from saboteur.faults import lists
from saboteur.faults.space import Faults, FaultSpace
from saboteur.outcomes.criteria import Criterion, FaultCriterion
from saboteur.outcomes.recorder import outcome
from saboteur.statistics import Estimate

GroupBy = Literal["layer", "bit", "layer_bit", "site", "component"]
OUTCOMES = ("masked", "sdc", "due")
_DUE = ("nonfinite", "crash", "hang", "detected")


@dataclass(frozen=True)
class Counts:
    """What came of the trials of some cells: parallel columns, one entry a cell.

    Attributes:
        population: single faults in the cell; for trials of many faults, its weight.
        n: valid trials.
        faults: outcome -> how many faults.
        inferences: how many inferences the valid trials met.
        sums: outcome (``sdc``, ``due``) -> sum over faults of their inferences with that outcome.
        squares: the same, sum of squares.
        invalid: trials that the harness could not run.
    """

    population: NDArray[np.float64]
    n: NDArray[np.int64]
    faults: dict[str, NDArray[np.int64]]
    inferences: NDArray[np.int64]
    sums: dict[str, NDArray[np.int64]]
    squares: dict[str, NDArray[np.int64]]
    invalid: NDArray[np.int64]


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

    def _group_of_regions(self, by: GroupBy) -> list[str]:
        attribute = {"layer": "layer", "layer_bit": "layer", "site": "site", "component": "component"}
        return [getattr(region, attribute[by]) if by != "bit" else "" for region in self.space.regions]

    @cached_property
    def _weights(self) -> NDArray[np.float64]:
        """What one single fault of each stratum counts, so that strata of combinations weigh by their size."""
        sizes = np.array([stratum.size for stratum in self.session.sampler.strata], float)
        populations = np.array([np.nan if p is None else p for p in self.session.sampler.populations])
        return np.where(np.isnan(populations), 1e15 / sizes.sum(), populations / sizes)

    def groups(self, by: GroupBy) -> list[tuple[str, int]]:
        """The (name, bit) of each group, in the order of the space; bit is −1 where bits are not told apart."""
        if self.campaign.multiple:
            return []
        names, seen = self._group_of_regions(by), {}
        for i, region in enumerate(self.space.regions):
            for bit in np.unique(region.variant_bits).tolist() if by in ("bit", "layer_bit") else [-1]:
                seen[names[i], bit] = None
        return sorted(seen, key=lambda group: group[1]) if by == "bit" else list(seen)

    def _cell_populations(self, by: GroupBy) -> NDArray[np.float64]:
        """Population of each (stratum, group): [strata, groups]."""
        index = {group: g for g, group in enumerate(self.groups(by))}
        names, strata = self._group_of_regions(by), self.session.sampler.strata
        population = np.zeros((len(strata), len(index)))
        for h, stratum in enumerate(strata):
            for i, first, last in zip(stratum.regions, stratum.first_variant, stratum.last_variant, strict=True):
                region = self.space.regions[i]
                if by in ("bit", "layer_bit"):
                    bits, counts = np.unique(region.variant_bits[first:last], return_counts=True)
                else:
                    bits, counts = np.array([-1]), np.array([last - first])
                for bit, count in zip(bits.tolist(), counts.tolist(), strict=True):
                    population[h, index[names[i], bit]] += region.elements * region.steps * count
        return population * self._weights[:, None]

    def _group_column(self, table: pa.Table, by: GroupBy) -> NDArray[np.int64]:
        """The group of each (single-fault) trial."""
        groups = self.groups(by)
        names = self._group_of_regions(by)
        region = table["region"].to_numpy()
        if by not in ("bit", "layer_bit"):
            order = {name: g for g, (name, _) in enumerate(groups)}
            return np.array([order[name] for name in names])[region]
        lookup = np.full((len(names), 65), -1)
        for g, (name, bit) in enumerate(groups):
            lookup[np.array(names) == name, bit + 1] = g
        return lookup[region, table["bit"].to_numpy() + 1]

    def counts(self, criterion: Criterion, by: GroupBy | None = None) -> Counts:
        """Outcomes under ``criterion`` for each stratum (shape [strata]) or (stratum, group) cell, flattened."""
        strata = self.session.sampler.strata
        if by is None:
            population = np.array([stratum.size for stratum in strata]) * self._weights
        else:
            population = self._cell_populations(by)
        cells, groups = population.size, 1 if by is None else population.shape[1]
        n, inferences, invalid = np.zeros((3, cells), np.int64)
        faults = dict(zip(OUTCOMES, np.zeros((3, cells), np.int64), strict=True))
        sums, squares = (dict(zip(("sdc", "due"), np.zeros((2, cells), np.int64), strict=True)) for _ in range(2))
        for table, found in self.outcomes(criterion):
            cell = table["stratum"].to_numpy().astype(np.int64)
            if by is not None:
                cell = cell * groups + self._group_column(table, by)
            valid = found != "invalid"
            invalid += np.bincount(cell[~valid], minlength=cells)
            table, found, cell = table.filter(pa.array(valid)), found[valid], cell[valid]
            n += np.bincount(cell, minlength=cells)
            inferences += np.bincount(cell, table["inferences"].to_numpy(), cells).astype(np.int64)
            for name in OUTCOMES:
                faults[name] += np.bincount(cell[found == name], minlength=cells)
            due = np.sum([table[column].to_numpy() for column in _DUE], axis=0)
            by_inference = {"due": due}
            if not isinstance(criterion, FaultCriterion):
                by_inference["sdc"] = table[f"sdc:{criterion.name}"].to_numpy()
            for name, x in by_inference.items():
                sums[name] += np.bincount(cell, x, cells).astype(np.int64)
                squares[name] += np.bincount(cell, x.astype(float) ** 2, cells).astype(np.int64)
        if self.session.sampler.listed is not None and self.campaign.sampling.represents == "list" and by is not None:
            population = (n + invalid).astype(float)  # a list is its own population
        return Counts(population.ravel().astype(float), n, faults, inferences, sums, squares, invalid)

    # -- estimates ------------------------------------------------------------------------------------------

    @property
    def stopping_words(self) -> str:
        """What decided on the number of trials, for every estimate to carry."""
        if self.plan.rule is not None:
            return str(self.plan.rule)
        return {
            "statistical": "sample size planned for the margin",
            "fixed": "fixed n",
            "exhaustive": "all faults",
        }.get(self.campaign.sampling.kind, "listed faults")

    def estimate(self, criterion: Criterion, what: str = "sdc", unit: Unit = "faults") -> Estimate:
        """The rate of an outcome (``sdc``, ``due`` or ``masked``) over the whole population.

        Raises:
            StoreError: when nothing valid has been observed yet, or the criterion does not judge inferences.
        """
        return self._estimate(self.counts(criterion), slice(None), criterion, what, unit)

    def estimates(
        self, criterion: Criterion, by: GroupBy, what: str = "sdc", unit: Unit = "faults"
    ) -> list[tuple[str, int, Estimate]]:
        """The rate of an outcome for each group that has been met: (name, bit or −1, estimate)."""
        groups = self.groups(by)
        if not groups:
            return []
        counts = self.counts(criterion, by)
        cells = np.arange(counts.n.size).reshape(-1, len(groups))
        found = []
        for g, (name, bit) in enumerate(groups):
            column = cells[counts.population[cells[:, g]] > 0, g]
            if counts.n[column].sum():
                found.append((name, bit, self._estimate(counts, column, criterion, what, unit)))
        return found

    def _estimate(self, counts: Counts, cells: object, criterion: Criterion, what: str, unit: Unit) -> Estimate:
        confidence, words = self.campaign.sampling.confidence, self.stopping_words
        population, n = counts.population[cells], counts.n[cells]
        if n.sum() == 0:
            raise StoreError(f"store: {self.store.path} holds no valid trial yet")
        population = np.maximum(population, n)
        if unit == "faults":
            return statistics.stratified(counts.faults[what][cells], n, population, confidence, stopping_rule=words)
        if isinstance(criterion, FaultCriterion):
            raise StoreError(f"criterion: {criterion.name} judges faults, not inferences")
        each = int(counts.inferences.sum() // counts.n.sum())
        return statistics.clustered(
            counts.sums[what][cells], counts.squares[what][cells], n, each, population, confidence, stopping_rule=words
        )

    # -- single trials --------------------------------------------------------------------------------------

    def most_critical(self, criterion: Criterion, limit: int = 20) -> pa.Table:
        """The trials with the most SDC inferences (for a fault criterion: the largest loss of right answers).

        Returns:
            The observations of at most ``limit`` trials, worst first, with a column ``severity`` (0 to 1).
        """
        best: pa.Table | None = None
        for table in self.tables():
            table = table.filter(pa.array(table["invalid"].is_null().to_numpy()))
            if isinstance(criterion, FaultCriterion):
                lost = table["golden_correct"].to_numpy() - table["correct"].to_numpy()
            else:
                lost = table[f"sdc:{criterion.name}"].to_numpy()
            severity = lost / np.maximum(table["inferences"].to_numpy(), 1)
            table = table.append_column("severity", pa.array(severity)).filter(pa.array(severity > 0))
            best = table if best is None else pa.concat_tables([best, table], promote_options="permissive")
            order = [("severity", "descending"), ("stratum", "ascending"), ("trial", "ascending")]
            best = best.sort_by(order).slice(0, limit)
        if best is None:
            raise StoreError(f"store: {self.store.path} holds no finished work unit yet")
        return best

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
        columns = ["stratum", "trial", "invalid"]
        parts = [t.filter(pa.array(t["invalid"].is_valid().to_numpy())).select(columns) for t in self.tables()]
        schema = pa.schema([("stratum", pa.int32()), ("trial", pa.int64()), ("invalid", pa.string())])
        return pa.concat_tables([part.cast(schema) for part in parts]) if parts else schema.empty_table()

    def convergence(self, criterion: Criterion, points: int = 40) -> list[tuple[int, Estimate]]:
        """How the estimate over the population settled: (trials so far, estimate) in the order of the plan."""
        strata, found = [], []
        for table, outcomes in self.outcomes(criterion):
            keep = outcomes != "invalid"
            strata.append(table["stratum"].to_numpy()[keep])
            found.append(outcomes[keep] == "sdc")
        if not strata:
            return []
        stratum, sdc = np.concatenate(strata), np.concatenate(found)
        population = np.array([s.size for s in self.session.sampler.strata]) * self._weights
        cells, curve = len(population), []
        # Strata are run one after the other; what would have been known after a share of the plan is what the
        # first so many trials of every stratum show.
        rank = np.empty(len(stratum))
        for h in range(cells):
            members = stratum == h
            rank[members] = (np.arange(members.sum()) + 0.5) / max(members.sum(), 1)
        order = np.argsort(rank, kind="stable")
        stratum, sdc = stratum[order], sdc[order]
        for stop in np.unique(np.geomspace(min(20, len(sdc)), len(sdc), points).astype(int)):
            n = np.bincount(stratum[:stop], minlength=cells)
            k = np.bincount(stratum[:stop][sdc[:stop]], minlength=cells)
            met = population[n > 0] if self.campaign.sampling.kind != "list" else n[n > 0].astype(float)
            curve.append(
                (
                    int(stop),
                    statistics.stratified(
                        k[n > 0], n[n > 0], np.maximum(met, n[n > 0]), self.campaign.sampling.confidence
                    ),
                )
            )
        return curve

    # -- the verdict ----------------------------------------------------------------------------------------

    def verdict(self) -> tuple[Literal["met", "not met", "open"], Estimate] | None:
        """Whether the requirement is met: the whole interval lies below it, above it, or neither."""
        requirement = self.campaign.requirement
        if requirement is None:
            return None
        estimate = self.estimate(self.campaign.criterion(requirement.criterion), "sdc", requirement.unit)
        if estimate.high <= requirement.at_most:
            return "met", estimate
        return ("not met" if estimate.low > requirement.at_most else "open"), estimate
