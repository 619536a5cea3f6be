"""Terms and formulas with their sources: one text for the report and the documentation."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Term:
    """A word of the field."""

    term: str
    meaning: str
    source: str


@dataclass(frozen=True)
class Formula:
    """How one kind of number was computed; ``key`` is what :class:`saboteur.report.ReportData` refers to."""

    key: str
    quantity: str
    formula: str
    source: str


TERMS = (
    Term(
        "bit-error rate",
        "The probability that a single bit (each fault of the space, in a campaign) is faulty; a trial then holds a "
        "random number of faults.",
        "Reagen et al., Ares, DAC 2018",
    ),
    Term(
        "confidence interval",
        "A range that would hold the true rate in the stated share of repeated campaigns. Always two-sided here.",
        "Wilson, JASA 1927; Fay and Feuer, Statistics in Medicine 1997",
    ),
    Term(
        "confidence sequence",
        "An interval that holds at all looks together, so that one may stop when it is narrow enough.",
        "Robbins, Annals of Mathematical Statistics 1970",
    ),
    Term(
        "criterion",
        "The rule that calls a result silent data corruption: SDC-1, SDC-5, SDC-10 %, SDC-20 %, a drop of accuracy, a "
        "numeric error, or the user's own.",
        "Li et al., SC 2017",
    ),
    Term(
        "DUE",
        "Detected or unrecoverable error: the run crashed, hung, raised an alarm, or gave numbers that are not finite.",
        "Mukherjee et al., MICRO 2003",
    ),
    Term(
        "effective n",
        "The number of faults that a simple random sample would need for the same precision.",
        "Korn and Graubard, Survey Methodology 1998",
    ),
    Term(
        "fault",
        "Fault model × site × time: what goes wrong, where, and when.",
        "Avižienis et al., IEEE TDSC 2004",
    ),
    Term(
        "fault space",
        "All faults that the campaign could inject: the population N that its rates speak of.",
        "Leveugle et al., DATE 2009",
    ),
    Term(
        "golden run",
        "The run without faults, against which every other is compared; made twice and refused if the two differ.",
        "common usage in fault injection",
    ),
    Term(
        "inference",
        "One input processed once. A fault is judged over many inferences; rates of faults and of inferences have "
        "different denominators and are never mixed.",
        "this report",
    ),
    Term(
        "invalid",
        "A trial that the harness could not run. It is in no denominator, and always shown.",
        "this report",
    ),
    Term("masked", "The fault changed nothing that the criterion looks at.", "Mukherjee et al., MICRO 2003"),
    Term(
        "N, n, k",
        "N: faults in the population; n: valid trials; k: those of them with the outcome in question.",
        "Cochran, Sampling Techniques 1977",
    ),
    Term(
        "SDC",
        "Silent data corruption: a wrong result that nothing gives away. A fault is SDC if any of its inferences is, "
        "or if its criterion judges so over all of them.",
        "Mukherjee et al., MICRO 2003; Li et al., SC 2017",
    ),
    Term(
        "SDC-1, SDC-5",
        "The top-1 class differs from the golden top-1; the top-1 class is not among the golden top-5.",
        "Li et al., SC 2017",
    ),
    Term(
        "SDC-10 %, SDC-20 %",
        "The top-1 confidence changes by more than 10 % or 20 % of its golden value.",
        "Li et al., SC 2017",
    ),
    Term(
        "site",
        "Where a fault sits: a word of a tensor, register or memory. Bit 0 is the least significant.",
        "Leveugle et al., DATE 2009",
    ),
    Term(
        "stratum",
        "A part of the fault space that is sampled by itself: the network, a layer, a bit of a layer. In totals each "
        "counts by its share of the population, however many trials it got.",
        "Cochran, Sampling Techniques 1977; Ruospo et al., DATE 2023",
    ),
    Term(
        "transient, intermittent, permanent",
        "A fault that lasts for one inference or step, comes and goes, or stays.",
        "Avižienis et al., IEEE TDSC 2004",
    ),
)

FORMULAS = (
    Formula(
        "sample size",
        "Planned n",
        "n = N / (1 + e²·(N − 1) / (t²·p·(1 − p))): N faults, margin e, assumed rate p, t the normal quantile of the "
        "confidence; for each stratum by itself or for the whole population.",
        "Leveugle et al., DATE 2009",
    ),
    Formula(
        "data-aware prior",
        "Assumed rate p of a bit",
        "From how far a flip of that bit moves the stored golden values on average: distances scaled to rates from "
        "0.0001 to 0.5; bits that move them out of all proportion count as 0.5.",
        "Ruospo et al., DATE 2023",
    ),
    Formula(
        "refinement",
        "Further rounds",
        "After a pilot, n is planned again with the rates measured so far, until the margin holds.",
        "Ruospo et al., IEEE Transactions on Computers 2025",
    ),
    Formula(
        "draws",
        "Which faults",
        "Trial i of a stratum is a pure function of seed, stratum and i: a pseudo-random permutation of the stratum's "
        "faults, so without replacement. Any trial can be repeated alone.",
        "Salmon et al., SC 2011 (counter-based generators)",
    ),
    Formula(
        "faults",
        "Rates of faults",
        "Σ N_h/N · k_h/n_h over strata h. Interval: weighted sum of Poisson counts, each fault seen with its own "
        "weight N_h/(N·n_h), with finite-population factors; the upper limit allows for one unseen event of the "
        "largest weight. A stratum without a trial widens it by its whole share. With a single stratum the rate is "
        "k/n, and the interval Wilson's with n·(N − 1)/(N − n) for n.",
        "Fay and Feuer, Statistics in Medicine 1997; Wilson, JASA 1927; Cochran, Sampling Techniques 1977",
    ),
    Formula(
        "inferences",
        "Rates of inferences",
        "Σ N_h/N · Σx/(n_h·m) with x of m inferences of a fault hit. Inferences of one fault are not independent, so "
        "each fault is a cluster: the interval is that of faults, with weights in proportion to x/m.",
        "Fay and Feuer, Statistics in Medicine 1997; Cochran, Sampling Techniques 1977",
    ),
    Formula(
        "verdict",
        "Verdict",
        "Met if the whole interval lies at or below the limit, not met if it lies above, else open. With a single "
        "stratum the interval is the exact (hypergeometric) one, a little wider than Wilson's.",
        "Clopper and Pearson, Biometrika 1934",
    ),
    Formula(
        "stopping",
        "Early stop",
        "After every tenth of the plan a confidence sequence is looked at; it holds at all looks together, and is the "
        "interval stated for the criterion that decided. Other intervals are as if n had been fixed.",
        "Robbins, Annals of Mathematical Statistics 1970; Waudby-Smith and Ramdas, NeurIPS 2020",
    ),
    Formula(
        "severity",
        "Severity of a fault",
        "Share of its inputs that are SDC; for a criterion on accuracy, right answers lost as a share of the inputs "
        "that got an answer. Classes are rates of faults like any other.",
        "this report",
    ),
    Formula(
        "accuracy",
        "Accuracy under fault",
        "Right answers by inferences, a rate of inferences like any other; an inference without an answer is not "
        "right. The loss that is held against a tolerance looks only at the inputs that got an answer, because the "
        "others are DUE.",
        "this report",
    ),
    Formula(
        "convergence",
        "Convergence",
        "The rate of faults after the first share of every stratum's trials, in the order in which they were drawn.",
        "this report",
    ),
)
