"""Two campaigns at two levels as one estimate: the cheap level on many faults, the exact one on some of the same.

The cheap campaign draws its faults uniformly from the population; the exact one takes some of these as a fault list
(:func:`second_phase_faults` draws them, more from the classes in which the exact outcome is less certain). See
:mod:`saboteur.statistics.hybrid` for what is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from saboteur.campaign.results import Results
from saboteur.errors import CampaignError
from saboteur.faults import draws, lists
from saboteur.outcomes.criteria import Criterion
from saboteur.statistics.hybrid import Costs, Hybrid, Strategy, TwoPhase, combine, second_phase

CLASSES = ("identical", "changed", "sdc")
"""Of cheap outcomes: all outputs bit for bit golden; some not, but no SDC; SDC."""

_SCORES = np.array([0.0, 0.0, 1.0])
_KEYS = ("site", "index", "step", "model", "variant")
_DRAW_LANE = 401
_EQUAL_FRACTIONS = 0.02

Match = Callable[[pa.Table], pa.Table]
"""Gives fault-list rows (``site``, ``index``, ``step``, ``model``, ``variant``) of the exact campaign as the cheap one
would write the same faults; for levels that name the same faults alike there is nothing to do."""


def paired(cheap: Results, exact: Results, criterion: str | None = None, match: Match | None = None) -> TwoPhase:
    """Both phases, by class of cheap outcome.

    Args:
        cheap: a campaign of single faults that were drawn uniformly from its population.
        exact: a campaign of some of the same faults.
        criterion: of both; the question of ``exact`` if absent. The outcome of a fault is SDC or not.
        match: how faults of ``exact`` are named in ``cheap``.

    Raises:
        CampaignError: when faults of the cheap campaign were not drawn uniformly, or one of the exact campaign is not
            among them.
    """
    name = criterion or exact.campaign.question.name
    _refuse_unequal_sampling(cheap, cheap.campaign.criterion(name))
    first, kind = _verdicts(cheap, name)
    second, exact_kind = _verdicts(exact, name)
    if match is not None:
        second = match(second.select(_KEYS))
    numbered = first.select(_KEYS).append_column("class", pa.array(kind))
    joined = (
        second.select(_KEYS)
        .append_column("exact", pa.array(exact_kind))
        .join(numbered, list(_KEYS), join_type="left outer")
    )
    if len(joined) != len(second):
        raise CampaignError("cheap: a fault is listed more than once; a hybrid takes each fault once")
    unknown = joined.filter(joined["class"].is_null())
    if len(unknown):
        row = unknown.slice(0, 1).to_pylist()[0]
        raise CampaignError(
            f"exact: {len(unknown)} of its {len(second)} faults did not run in the cheap campaign, the first "
            f"{row['model']} in {row['site']}{row['index']}, step {row['step']}, variant {row['variant']}; use the "
            "cheap campaign's faults as its list"
        )
    of, sdc = joined["class"].to_numpy(), joined["exact"].to_numpy() == 2
    return TwoPhase(
        first=np.bincount(kind, minlength=len(CLASSES)),
        n=np.bincount(of, minlength=len(CLASSES)),
        k=np.bincount(of, sdc, len(CLASSES)),
        score=_SCORES,
    )


def hybrid(
    cheap: Results,
    exact: Results,
    costs: Costs,
    *,
    criterion: str | None = None,
    strategy: Strategy = "stratified",
    confidence: float | None = None,
    match: Match | None = None,
) -> Hybrid:
    """The SDC rate of faults at the exact level, from both campaigns.

    Args:
        cheap: as for :func:`paired`.
        exact: likewise.
        costs: of one fault at each level, in any one unit.
        criterion: as for :func:`paired`.
        strategy: how to combine; anything but ``stratified`` needs an exact sample that is not drawn by class.
        confidence: two-sided; that of the exact campaign if absent.
        match: as for :func:`paired`.

    Raises:
        CampaignError: as :func:`paired`, or when the strategy does not suit how the exact sample was drawn.
    """
    sample = paired(cheap, exact, criterion, match)
    fractions = sample.n[sample.first > 0] / sample.first[sample.first > 0]
    overall = sample.n.sum() / sample.first.sum()
    spread = 4 * np.sqrt(overall * (1 - overall) / sample.first[sample.first > 0]) + _EQUAL_FRACTIONS * overall
    if strategy != "stratified" and (np.abs(fractions - overall) > spread).any():
        shares = ", ".join(f"{name} {n}/{of}" for name, n, of in zip(CLASSES, sample.n, sample.first, strict=True))
        raise CampaignError(
            f"strategy: {strategy} needs a second phase drawn without regard to cheap outcomes; it has {shares}: use "
            "stratified"
        )
    level = exact.campaign.sampling.confidence if confidence is None else confidence
    return combine(sample, cheap.space.size, costs, strategy, level, stopping_rule="both campaigns as planned")


def second_phase_faults(
    cheap: Results, shares: Sequence[float], file: Path, *, criterion: str | None = None, seed: int = 0
) -> list[int]:
    """Draw the faults of the second phase from each class of cheap outcome, and write them as a fault list.

    Args:
        cheap: the first phase.
        shares: for each of :data:`CLASSES`, the share of its faults to draw; at least two are, where there are.
        file: Parquet, which ``sampling: {kind: list}`` of the exact campaign reads.
        criterion: what counts as SDC; the campaign's question if absent.
        seed: of the draw.

    Returns:
        How many faults of each class were drawn.

    Raises:
        CampaignError: when there are not as many shares as classes, or one is outside of 0 to 1.
    """
    if len(shares) != len(CLASSES) or not all(0 <= share <= 1 for share in shares):
        raise CampaignError(f"shares: {list(shares)}; give one from 0 to 1 for each of {', '.join(CLASSES)}")
    table, kind = _verdicts(cheap, criterion or cheap.campaign.question.name)
    wanted = second_phase(np.bincount(kind, minlength=len(CLASSES)), shares)
    chosen = []
    for number, count in enumerate(wanted.tolist()):
        members = np.flatnonzero(kind == number)
        order = np.argsort(draws.words(seed, members, _DRAW_LANE), kind="stable")
        chosen.append(members[order[:count]])
    rows = np.sort(np.concatenate(chosen))
    listed = table.take(pa.array(rows)).set_column(0, "trial", pa.array(np.arange(len(rows))))
    pq.write_table(listed, file)
    return wanted.tolist()


def _verdicts(results: Results, criterion: str) -> tuple[pa.Table, NDArray[np.int64]]:
    """The single faults of all valid trials as a fault list, and the class of each outcome."""
    judge = results.campaign.criterion(criterion)
    tables, kinds = [], []
    for table, found in results.outcomes(judge):
        keep = (found != "invalid") & table["region"].is_valid().to_numpy()
        table, found = table.filter(pa.array(keep)), found[keep]
        identical = table["identical"].to_numpy() == table["inferences"].to_numpy()
        kinds.append(np.where(found == "sdc", 2, np.where(identical, 0, 1)))
        tables.append(lists.to_table(results.space, results.rows(table)))
    if not tables or not sum(map(len, tables)):
        raise CampaignError(f"store: {results.store.path} holds no valid trial of a single fault yet")
    return pa.concat_tables(tables), np.concatenate(kinds)


def _refuse_unequal_sampling(cheap: Results, judge: Criterion) -> None:
    counts = cheap.counts(judge)
    fraction = counts.n / counts.population
    if np.ptp(fraction) > _EQUAL_FRACTIONS * fraction.max() + 1 / counts.population.min():
        raise CampaignError(
            "cheap: its strata were sampled at different rates; a hybrid takes a first phase that was drawn uniformly, "
            "as stratify: network or n_for: total gives"
        )
