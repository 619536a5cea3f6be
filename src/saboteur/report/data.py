"""Everything a report shows, as plain values; nothing here draws.

The store is read once. Every rate is a :class:`saboteur.statistics.Estimate`, so that none travels without its
interval, counts, population, method and confidence.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from inspect import getdoc
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from saboteur import statistics
from saboteur.campaign.model import Campaign
from saboteur.campaign.plan import Tally
from saboteur.campaign.results import (
    OUTCOMES,
    ConvergenceCollector,
    CountCollector,
    Counts,
    CriticalCollector,
    GroupBy,
    InvalidCollector,
    Results,
    answered,
    severity,
)
from saboteur.outcomes.criteria import AccuracyDrop, Criterion, FaultCriterion
from saboteur.report.wording import given, percent, whole
from saboteur.statistics import Estimate

SCHEMA_VERSION = 1
"""Raised whenever a key of the JSON changes its name or meaning."""

CRITICAL_SHOWN = 20
SEVERITY_EDGES = (0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75)
"""Upper ends of the severity classes; above the last come "not all" and "all"."""
TOLERANCES = (0.0, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5)

Status = Literal["met", "not met", "open", "no requirement", "no data"]


@dataclass(frozen=True)
class Verdict:
    """The answer.

    Attributes:
        status: the requirement is met (the whole interval lies at or below the limit), not met (above it), open
            (the interval holds the limit), or there is no requirement, or no valid trial yet.
        headline: the answer in one sentence.
        sentences: what it rests on and what it asks of the reader.
        criterion: which criterion was asked about.
        estimate: the SDC rate under it; ``None`` without data.
        limit: the required upper limit of the rate, where there is one.
    """

    status: Status
    headline: str
    sentences: tuple[str, ...]
    criterion: str
    estimate: Estimate | None
    limit: float | None


@dataclass(frozen=True)
class Progress:
    """How much of the plan was done.

    Attributes:
        complete: whether the plan is fulfilled; otherwise everything in the report is preliminary.
        valid: trials with a result.
        invalid: trials that the harness could not run.
        decided: trials of all rounds decided so far.
        population: faults the results speak of; ``None`` for combinations of faults, which are without number.
    """

    complete: bool
    valid: int
    invalid: int
    decided: int
    population: int | None


@dataclass(frozen=True)
class Outcomes:
    """What came of the faults under one criterion: outcome (masked, sdc, due) -> rate.

    Attributes:
        criterion: its name.
        meaning: when it calls a result SDC.
        faults: rates among faults; empty without data.
        inferences: rates among inferences; empty without data, or where the criterion judges faults only.
    """

    criterion: str
    meaning: str
    faults: dict[str, Estimate]
    inferences: dict[str, Estimate]


@dataclass(frozen=True)
class Group:
    """One part of the fault space under the campaign's question.

    Attributes:
        name: the layer or component; empty where groups are bits.
        bit: the bit, 0 the least significant; ``None`` where bits are not told apart or the model acts on values.
        population: single faults in it.
        sdc: SDC rate among its faults; ``None`` where no valid trial met it.
        sdc_inferences: SDC rate among its inferences; ``None`` also where the criterion judges faults only.
        due: DUE rate among its faults.
    """

    name: str
    bit: int | None
    population: int
    sdc: Estimate | None
    sdc_inferences: Estimate | None
    due: Estimate | None


@dataclass(frozen=True)
class Groups:
    """The groups of one kind; ``absent`` says why there are none."""

    by: GroupBy
    groups: tuple[Group, ...]
    absent: str | None

    @property
    def met(self) -> int:
        """How many groups have a valid trial."""
        return sum(group.sdc is not None for group in self.groups)


@dataclass(frozen=True)
class ConvergencePoint:
    """The estimate after the first ``trials`` trials, taken evenly from all strata."""

    trials: int
    estimate: Estimate


@dataclass(frozen=True)
class CriticalTrial:
    """One of the trials that did most harm.

    Attributes:
        stratum, trial: its address; ``replay`` runs it again.
        fault: its faults in words.
        severity: share of its inputs that are SDC (for a fault criterion: share of right answers lost).
        inferences: inputs it met.
        correct, golden_correct: right answers with and without the fault, where labels are known.
        replay: the command that follows the error place by place; STORE is the result folder.
    """

    stratum: int
    trial: int
    fault: str
    severity: float
    inferences: int
    correct: int | None
    golden_correct: int | None
    replay: str


@dataclass(frozen=True)
class SeverityClass:
    """Share of faults whose severity (a share of the inputs) lies above ``above`` and is at most ``up_to``.

    The first class is of severity 0; the last is of 1 exactly, which the class before it leaves out.
    """

    label: str
    above: float | None
    up_to: float
    share: Estimate


@dataclass(frozen=True)
class ToleranceStep:
    """Share of faults that cost more than ``tolerance`` of the accuracy (0 to 1)."""

    tolerance: float
    tolerated_accuracy: float
    share: Estimate


@dataclass(frozen=True)
class Accuracy:
    """Accuracy without and with faults; an inference without an answer is not a right one.

    Attributes:
        golden: accuracy of the golden run on all inputs.
        faulty: mean accuracy over faults and inputs; its k counts right answers.
        worst: the lowest accuracy that any trial had.
        tolerances: how the share of unacceptable faults depends on what is tolerated.
    """

    golden: float
    faulty: Estimate
    worst: float
    tolerances: tuple[ToleranceStep, ...]


@dataclass(frozen=True)
class Obtained:
    """How the results of all inferences of valid trials were obtained.

    Attributes:
        inferences: how many there are; what is in none of the next three was run to its end.
        identical: bit for bit the golden output.
        bounded: not run, proved to move too little for any criterion.
        screened: not run, predicted to move too little.
        audited: could have been screened and were run all the same.
        wrong: the share of predictions that the audit found wrong; ``None`` where nothing was predicted.
    """

    inferences: int
    identical: int
    bounded: int
    screened: int
    audited: int
    wrong: Estimate | None


@dataclass(frozen=True)
class StratumPlan:
    """What was planned and done in one stratum.

    Attributes:
        name: the stratum.
        population: faults in it; ``None`` for combinations of faults.
        prior: SDC rate assumed for planning; ``None`` where none was needed.
        planned: trials planned before anything was known.
        decided: trials in all rounds decided so far.
        valid, invalid: trials done.
        sdc: of the valid ones, SDC under the campaign's question.
    """

    name: str
    population: int | None
    prior: float | None
    planned: int
    decided: int
    valid: int
    invalid: int
    sdc: int


@dataclass(frozen=True)
class InvalidReason:
    """Why trials could not be run: how many, and the address STRATUM:TRIAL of the first."""

    reason: str
    trials: int
    example: str


@dataclass(frozen=True)
class ReportData:
    """Everything a report shows.

    Attributes:
        schema: version of these keys.
        what_was_done: (label, text) pairs, the method section.
        severity_of: what severity is a share of.
        campaign_file: the campaign as YAML.
        environment, versions, hashes: (name, value) pairs.
        methods: which of the glossary's formulas apply.
    """

    schema: int
    name: str
    description: str
    verdict: Verdict
    progress: Progress
    what_was_done: tuple[tuple[str, str], ...]
    outcomes: tuple[Outcomes, ...]
    obtained: Obtained
    by_layer: Groups
    by_bit: Groups
    by_layer_bit: Groups
    by_component: Groups
    convergence: tuple[ConvergencePoint, ...]
    severity_of: str
    severity: tuple[SeverityClass, ...]
    accuracy: Accuracy | None
    critical: tuple[CriticalTrial, ...]
    sampling_plan: tuple[StratumPlan, ...]
    invalid: tuple[InvalidReason, ...]
    campaign_file: str
    environment: tuple[tuple[str, str], ...]
    versions: tuple[tuple[str, str], ...]
    hashes: tuple[tuple[str, str], ...]
    methods: tuple[str, ...]

    @property
    def any_data(self) -> bool:
        """Whether there is a valid trial."""
        return self.progress.valid > 0


def data(results: Results) -> ReportData:
    """Gather everything that a report of ``results``, finished or partial, shows; reads the store once."""
    campaign, session = results.campaign, results.session
    question = campaign.question
    counted = CountCollector(results, campaign.criteria)
    critical = CriticalCollector(question, CRITICAL_SHOWN)
    curve = ConvergenceCollector(results, question)
    invalid = InvalidCollector()
    spread = _SpreadCollector(results, question)
    effort = _EffortCollector()
    results.read(counted, critical, curve, invalid, spread, effort)
    obtained = effort.obtained(campaign.sampling.confidence)
    strata = counted.counts(question)
    progress = _progress(results, strata)
    verdict = _verdict(results, strata, progress)
    if obtained.screened:
        verdict = replace(verdict, sentences=(*verdict.sentences, _predicted(obtained)))
    groups = {by: _groups(results, counted, by) for by in ("layer", "bit", "layer_bit", "component")}
    manifest = results.store.manifest
    return ReportData(
        schema=SCHEMA_VERSION,
        name=campaign.name,
        description=campaign.description,
        verdict=verdict,
        progress=progress,
        what_was_done=_what_was_done(results, progress),
        outcomes=tuple(_outcomes(results, counted, criterion) for criterion in campaign.criteria),
        obtained=obtained,
        by_layer=groups["layer"],
        by_bit=groups["bit"],
        by_layer_bit=groups["layer_bit"],
        by_component=groups["component"],
        convergence=tuple(ConvergencePoint(trials, estimate) for trials, estimate in curve.curve()),
        severity_of="right answers lost" if isinstance(question, FaultCriterion) else "inputs hit",
        severity=spread.severity(),
        accuracy=spread.accuracy(),
        critical=_critical(results, critical.trials),
        sampling_plan=_sampling_plan(results, strata),
        invalid=_invalid(invalid.trials),
        campaign_file=campaign.to_yaml(),
        environment=tuple(sorted((key, str(value)) for key, value in manifest["environment"].items())),
        versions=(("python", manifest["python"]), *sorted(manifest["versions"].items())),
        hashes=(
            ("campaign id", manifest["campaign_id"]),
            ("golden run", manifest["golden_digest"]),
            ("target fingerprint", session.target.fingerprint),
            *((("fault list", session.sampler.list_digest),) if session.sampler.list_digest else ()),
            ("store version", str(manifest["store_version"])),
        ),
        methods=_methods(campaign, golden_labels=session.golden.labels is not None),
    )


class _EffortCollector:
    """Adds up how the inferences of valid trials were obtained."""

    def __init__(self) -> None:
        names = ("inferences", "identical", "bounded", "screened", "audited", "audit_misses")
        self._sums = dict.fromkeys(names, 0)

    def add(self, table: pa.Table) -> None:
        valid = table["invalid"].is_null().to_numpy()
        for name in self._sums:
            self._sums[name] += int(table[name].to_numpy()[valid].sum())

    def obtained(self, confidence: float) -> Obtained:
        sums = dict(self._sums)
        misses, audited, screened = sums.pop("audit_misses"), sums["audited"], sums["screened"]
        wrong = None
        if audited + screened:
            wrong = statistics.proportion(
                misses, audited, audited + screened, confidence, "clopper_pearson", unit="inferences",
                stopping_rule="random audit",
            )  # fmt: skip
        return Obtained(**sums, wrong=wrong)


def _predicted(obtained: Obtained) -> str:
    wrong = obtained.wrong
    assert wrong is not None
    return (
        f"{whole(obtained.screened)} of {whole(obtained.inferences)} inferences were not run but predicted to be "
        f"unharmed. Of {whole(wrong.n)} such predictions drawn at random and run, {whole(wrong.k)} were wrong: at most "
        f"{percent(wrong.high)} of all predictions are, at {given(wrong.confidence)} confidence. The rates above take "
        "every prediction as right."
    )


class _SpreadCollector:
    """How far faults reach: severity classes and accuracy, for each stratum."""

    def __init__(self, results: Results, question: Criterion):
        self._results, self._question = results, question
        golden, strata = results.session.golden, len(results.session.sampler.strata)
        self._n = np.zeros(strata, np.int64)
        self._classes = np.zeros((strata, len(SEVERITY_EDGES) + 2), np.int64)
        self._labelled = golden.labels is not None and golden.scores_classes
        self._beyond = np.zeros((strata, len(TOLERANCES)), np.int64)
        self._correct, self._squares = np.zeros((2, strata))
        self._inferences, self._worst = 0, np.inf

    def add(self, table: pa.Table) -> None:
        table = table.filter(pa.array(table["invalid"].is_null().to_numpy()))
        if len(table) == 0:
            return
        stratum, strata = table["stratum"].to_numpy(), len(self._n)
        self._n += np.bincount(stratum, minlength=strata)
        reach = severity(table, self._question)
        kind = np.searchsorted(SEVERITY_EDGES, reach, side="left") + (reach >= 1)
        kinds = self._classes.shape[1]
        self._classes += np.bincount(stratum * kinds + kind, minlength=strata * kinds).reshape(strata, kinds)
        if not self._labelled:
            return
        correct, before = (table[name].to_numpy() for name in ("correct", "golden_correct_answered"))
        met = table["inferences"].to_numpy()
        for i, tolerance in enumerate(TOLERANCES):
            judge = AccuracyDrop(tolerance=tolerance)
            beyond = judge.sdc_faults(self._results.session.golden, correct, before, answered(table))
            self._beyond[:, i] += np.bincount(stratum[beyond], minlength=strata)
        self._correct += np.bincount(stratum, correct, strata)
        self._squares += np.bincount(stratum, correct.astype(float) ** 2, strata)
        self._inferences = int(met[0])
        self._worst = min(self._worst, float((correct / met).min()))

    def severity(self) -> tuple[SeverityClass, ...]:
        if not self._n.sum():
            return ()
        edges = SEVERITY_EDGES
        classes: list[tuple[str, float | None, float]] = [
            ("none", None, 0.0),
            (f"up to {given(edges[1])}", 0.0, edges[1]),
        ]
        classes += [(f"{_short(above)}–{given(up_to)}", above, up_to) for above, up_to in pairwise(edges[1:])]
        classes += [(f"over {given(edges[-1])}, not all", edges[-1], 1.0), ("all", 1.0, 1.0)]
        return tuple(
            SeverityClass(label, above, up_to, self._results.estimate_of_strata(self._classes[:, i], self._n))
            for i, (label, above, up_to) in enumerate(classes)
        )

    def accuracy(self) -> Accuracy | None:
        if not self._labelled or not self._n.sum():
            return None
        results, met = self._results, self._n > 0
        golden = results.session.golden.accuracy
        return Accuracy(
            golden=golden,
            faulty=results.mean_of_inferences(
                self._correct[met],
                self._squares[met],
                self._n[met],
                self._inferences,
                results.strata_populations[met],
            ),
            worst=self._worst,
            tolerances=tuple(
                ToleranceStep(tolerance, golden - tolerance, results.estimate_of_strata(self._beyond[:, i], self._n))
                for i, tolerance in enumerate(TOLERANCES)
                if tolerance < golden
            ),
        )


def _short(share: float) -> str:
    return f"{100 * share:g}"


def _progress(results: Results, strata: Counts) -> Progress:
    rounds = results.store.rounds()
    valid, invalid = int(strata.n.sum()), int(strata.invalid.sum())
    decided = int(rounds[-1].after.sum()) if rounds else 0
    complete = False
    if rounds and valid + invalid == decided:
        complete = results.plan.next_round(rounds[-1].after, Tally(strata.n, strata.faults["sdc"])) is None
    populations = results.session.sampler.populations
    population = None if None in populations else sum(size for size in populations if size is not None)
    return Progress(complete, valid, invalid, decided, population)


def _verdict(results: Results, strata: Counts, progress: Progress) -> Verdict:
    campaign = results.campaign
    question, requirement = campaign.question, campaign.requirement
    limit = requirement.at_most if requirement else None
    meaning = _judgement(results, question)
    if progress.valid == 0:
        return Verdict("no data", "No valid trial yet: nothing can be said.", meaning, question.name, None, limit)
    unit = requirement.unit if requirement else "faults"
    judged = results.verdict(strata)
    estimate = judged[1] if judged else results.estimate(question, "sdc", unit, strata)
    sure = f"{given(estimate.confidence)} confidence"
    interval = f"{percent(estimate.low)} to {percent(estimate.high)}"
    if requirement is None or judged is None:
        headline = f"{percent(estimate.best)} of {unit} end in silent data corruption ({interval} at {sure})."
        return Verdict(
            "no requirement",
            headline,
            (*meaning, "The campaign states no requirement, so there is nothing to meet."),
            question.name,
            estimate,
            None,
        )
    allowed = f"the requirement allows at most {given(requirement.at_most)}"
    headline = (
        f"{percent(estimate.best)} of {unit} end in silent data corruption (interval {interval} at {sure}); {allowed}."
    )
    if judged[0] == "met":
        note = "The whole interval lies at or below the limit."
    elif judged[0] == "not met":
        note = "The whole interval lies above the limit."
    elif estimate.high <= requirement.at_most:
        note = (
            "The whole interval lies at or below the limit, but the audit does not yet bound the wrong predictions at "
            f"the {given(results.campaign.allowed_wrong_rate)} that the campaign allows; more faults, a higher "
            "audit_rate or engine: exact would."
        )
    else:
        note = "The limit lies inside the interval, so the faults injected so far decide neither way. "
        note += _what_would_decide(estimate, requirement.at_most)
    return Verdict(judged[0], headline, (note, *meaning), question.name, estimate, requirement.at_most)


def _what_would_decide(estimate: Estimate, limit: float) -> str:
    """Extrapolates the width of the interval by 1/√n."""
    reach = estimate.high - estimate.best if limit > estimate.best else estimate.best - estimate.low
    distance = abs(limit - estimate.best)
    trials = estimate.clusters or estimate.n
    if distance == 0:
        return "The estimate equals the limit; no sample short of the whole population may decide it."
    wanted = trials * (reach / distance) ** 2
    if estimate.population is not None and wanted * (estimate.n // trials) >= estimate.population:
        return "If the rate stays what it is, only an exhaustive campaign would decide."
    return (
        f"If the rate stays what it is, about {whole(float(f'{wanted:.1e}'))} faults in all would decide "
        "(the interval narrows with the square root of the number of faults)."
    )


def _judgement(results: Results, question: Criterion) -> tuple[str, ...]:
    """What the question calls SDC; for a drop of accuracy, against which accuracy."""
    if not isinstance(question, AccuracyDrop):
        return (f"Judged by {question.name}. {_meaning(question)}",)
    golden = results.session.golden.accuracy
    tolerated = golden - question.tolerance
    if question.tolerance == 0:
        return (
            f"Without faults, {percent(golden)} of the answers are right (the golden accuracy). "
            "A fault counts as SDC when it costs any accuracy at all.",
        )
    requirement = results.campaign.requirement
    of = f" for all but {given(requirement.at_most)} of the faults" if requirement else ""
    return (
        f"Without faults, {percent(golden)} of the answers are right (the golden accuracy). A fault counts as SDC "
        f"when accuracy falls by more than {_short(question.tolerance)} points, that is below {percent(tolerated)}.",
        f"What is asked of the reader: is {percent(tolerated)} instead of {percent(golden)} acceptable? This report "
        f"takes it as acceptable and asks whether it is kept{of}.",
    )


def _meaning(criterion: Criterion) -> str:
    """The first paragraph of its documentation."""
    text = getdoc(type(criterion)) or criterion.name
    settings = _settings(criterion, {"kind"})
    return " ".join(text.split("\n\n")[0].split()).replace("``", "") + (f" Here: {settings}." if settings else "")


def _outcomes(results: Results, counted: CountCollector, criterion: Criterion) -> Outcomes:
    counts = counted.counts(criterion)
    met = counts.n.sum() > 0
    faults = {what: results.estimate(criterion, what, "faults", counts) for what in OUTCOMES if met}
    inferences = {
        what: results.estimate(criterion, what, "inferences", counts)
        for what in OUTCOMES
        if met and not isinstance(criterion, FaultCriterion)
    }
    return Outcomes(criterion.name, _meaning(criterion), faults, inferences)


def _groups(results: Results, counted: CountCollector, by: GroupBy) -> Groups:
    campaign, question = results.campaign, results.campaign.question
    if campaign.multiple:
        how = (
            f"every fault is present with probability {campaign.bit_error_rate:g}"
            if campaign.bit_error_rate is not None
            else f"{campaign.simultaneous} faults act together"
        )
        return Groups(by, (), f"In each trial {how}, so what happened cannot be put down to one place.")
    names = results.groups(by)
    if not names:
        return Groups(by, (), "The fault model has too many variants for each word to tell them apart by bit.")
    if by in ("bit", "layer_bit") and all(bit < 0 for _, bit in names):
        return Groups(by, (), "The faults act on whole values, not on single bits.")
    counts = counted.counts(question, by)
    population = np.bincount(counts.group, counts.population, len(names))

    def rates(what: str, unit: Literal["faults", "inferences"]) -> dict[tuple[str, int], Estimate]:
        return {(name, bit): estimate for name, bit, estimate in results.estimates(question, by, what, unit, counts)}

    sdc, due = rates("sdc", "faults"), rates("due", "faults")
    inferences = {} if isinstance(question, FaultCriterion) else rates("sdc", "inferences")
    return Groups(
        by,
        tuple(
            Group(
                key[0],
                key[1] if key[1] >= 0 else None,
                round(population[g]),
                sdc.get(key),
                inferences.get(key),
                due.get(key),
            )
            for g, key in enumerate(names)
        ),
        None,
    )


def _critical(results: Results, trials: pa.Table | None) -> tuple[CriticalTrial, ...]:
    if trials is None or len(trials) == 0:
        return ()
    texts: dict[tuple[int, int], list[str]] = {}
    for fault in results.faults(trials).to_pylist():
        bit = f", bit {fault['bit']}" if fault["bit"] >= 0 else ""
        step = f", step {fault['step']}" if fault["step"] else ""
        text = f"{fault['model']} in {fault['site']}{fault['index']}{bit}{step}"
        texts.setdefault((fault["stratum"], fault["trial"]), []).append(text)
    found = []
    for row in trials.to_pylist():
        faults = texts.get((row["stratum"], row["trial"]), [])
        shown = "; ".join(faults[:3]) + (f"; and {whole(len(faults) - 3)} more" if len(faults) > 3 else "")
        found.append(
            CriticalTrial(
                row["stratum"],
                row["trial"],
                shown,
                row["severity"],
                row["inferences"],
                row.get("correct"),
                row.get("golden_correct"),
                f"saboteur replay STORE {row['stratum']}:{row['trial']}",
            )
        )
    return tuple(found)


def _sampling_plan(results: Results, counts: Counts) -> tuple[StratumPlan, ...]:
    rounds, sampler, plan = results.store.rounds(), results.session.sampler, results.plan
    decided = rounds[-1].after if rounds else np.zeros(len(sampler.strata), np.int64)
    return tuple(
        StratumPlan(
            name=stratum.name,
            population=sampler.populations[h],
            prior=_or_none(plan.prior, h),
            planned=int(plan.n[h]),
            decided=int(decided[h]),
            valid=int(counts.n[h]),
            invalid=int(counts.invalid[h]),
            sdc=int(counts.faults["sdc"][h]),
        )
        for h, stratum in enumerate(sampler.strata)
    )


def _or_none(values: NDArray[np.float64], at: int) -> float | None:
    return None if np.isnan(values[at]) else float(values[at])


def _invalid(trials: pa.Table) -> tuple[InvalidReason, ...]:
    reasons = trials["invalid"].to_pylist()
    first: dict[str, str] = {}
    for reason, stratum, trial in zip(reasons, trials["stratum"].to_pylist(), trials["trial"].to_pylist(), strict=True):
        first.setdefault(reason, f"{stratum}:{trial}")
    return tuple(InvalidReason(reason, n, first[reason]) for reason, n in Counter(reasons).most_common())


def _settings(part: Any, skip: set[str]) -> str:
    given = part.model_dump(mode="json", exclude=skip, exclude_none=True, exclude_defaults=True)
    shown = {key: ", ".join(map(str, value)) if isinstance(value, list) else value for key, value in given.items()}
    return "; ".join(f"{key.replace('_', ' ')} {value}" for key, value in shown.items())


def _what_was_done(results: Results, progress: Progress) -> tuple[tuple[str, str], ...]:
    campaign, session = results.campaign, results.session
    golden, space = session.golden, results.space
    target = _settings(campaign.target, {"kind"})
    workload = f"{whole(golden.inputs)} inputs"
    if golden.labels is not None and golden.scores_classes:
        workload += f"; golden accuracy {percent(golden.accuracy)}"
        workload += f" ({whole(int(golden.correct.sum()))} right answers)"
    faults = []
    for spec in campaign.faults:
        where = _settings(spec, {"model", "duration"})
        faults.append(f"{spec.duration} {spec.model.name}" + (f" ({where})" if where else ""))
    formats = ", ".join(dict.fromkeys(str(region.format) for region in space.regions))
    layers = len({region.layer for region in space.regions})
    each = campaign.inputs_per_fault
    judged = (
        f"{whole(each)} randomly drawn inputs of {whole(golden.inputs)}"
        if each is not None and each < golden.inputs
        else f"all {whole(golden.inputs)} inputs"
    )
    of = (
        "combinations of faults, which have no number"
        if progress.population is None
        else f"a population of {whole(progress.population)} faults"
    )
    planned, made = int(results.plan.n.sum()), progress.valid + progress.invalid
    if progress.complete and progress.decided < planned:
        done = f"{whole(made)} trials, stopped early by the rule with {whole(planned)} planned, from {of}; "
    else:
        plan = "planned" if progress.complete else "that the plan asks for so far"
        done = f"{whole(made)} of {whole(progress.decided)} trials {plan}, from {of}; "
    done += f"{whole(progress.valid)} valid, {whole(progress.invalid)} invalid"
    together = (("Counted as one fault", "a trial, with all the faults that act together in it"),)
    return (
        ("Target", campaign.target.kind + (f" ({target})" if target else "")),
        ("Golden run", workload),
        ("Faults", "; ".join(faults)),
        (
            "Fault space",
            f"{whole(space.size)} single faults in {whole(len(space.sites))} sites of {whole(layers)} layers; "
            f"words in {formats}",
        ),
        ("Sampling plan", results.plan.in_words()),
        ("Each fault was judged on", judged),
        ("Seed", str(campaign.seed)),
        ("Injected", done),
        *(together if campaign.multiple else ()),
    )


def _methods(campaign: Campaign, golden_labels: bool) -> tuple[str, ...]:
    sampling = campaign.sampling
    used = ["faults"]
    if any(not isinstance(criterion, FaultCriterion) for criterion in campaign.criteria):
        used.append("inferences")
    if sampling.kind == "statistical":
        used.append("sample size")
        if sampling.prior == "data_aware":
            used.append("data-aware prior")
        if sampling.refine:
            used.append("refinement")
    if campaign.stopping is not None:
        used.append("stopping")
    if campaign.requirement is not None:
        used.append("verdict")
    used += ["severity", "convergence", "draws"]
    if golden_labels:
        used.append("accuracy")
    return tuple(used)
