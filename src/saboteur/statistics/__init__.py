"""How sure we are: sample sizes, allocation, intervals, estimates, stopping and comparison.

A map of the package, in the order in which a campaign needs it:

- `sample_size`: how many faults for a margin (`sample_size`), and back (`margin_of_error`).
- `allocation`: how many for each stratum: `network_wise`, `stratum_wise`, `proportional`, `neyman`;
  `data_aware_prior` for the rates to expect per bit; `refine` for campaigns in rounds.
- `stopping`: when to stop: `FixedSize`, `AbsoluteMargin`, `RelativeMargin`, and what each guarantees.
- `intervals`: bounds of a rate or count: `wilson`, `clopper_pearson`, `hypergeometric`, `poisson`,
  `confidence_sequence`, and the one-sided `upper_bound`.
- `estimates`: the rate with all it rests on, an `Estimate`: `proportion` and `proportions` for simple
  samples, `stratified` for any sampling plan, `clustered` for rates per inference.
- `comparison`: two campaigns: `mcnemar`, `paired_difference`, `paired_mean_difference`,
  `unpaired_difference`.
- `hybrid` (a module of its own): a cheap level on many faults and the exact one on some of them: `combine`,
  `plan`, `rank`.

Functions take and give NumPy arrays over strata. Nothing is random, and nothing knows of faults, targets or
stores. Arguments out of range raise `StatisticsError`.
"""

from saboteur.statistics.allocation import (
    Refinement,
    data_aware_prior,
    network_wise,
    neyman,
    proportional,
    refine,
    stratum_wise,
)
from saboteur.statistics.checks import StatisticsError
from saboteur.statistics.comparison import (
    Difference,
    mcnemar,
    paired_difference,
    paired_mean_difference,
    unpaired_difference,
)
from saboteur.statistics.estimates import Estimate, clustered, proportion, proportions, stratified
from saboteur.statistics.intervals import (
    Interval,
    clopper_pearson,
    confidence_sequence,
    hypergeometric,
    poisson,
    upper_bound,
    wilson,
)
from saboteur.statistics.sample_size import margin_of_error, sample_size
from saboteur.statistics.stopping import AbsoluteMargin, FixedSize, RelativeMargin, StoppingRule

__all__ = [
    "AbsoluteMargin",
    "Difference",
    "Estimate",
    "FixedSize",
    "Interval",
    "Refinement",
    "RelativeMargin",
    "StatisticsError",
    "StoppingRule",
    "clopper_pearson",
    "clustered",
    "confidence_sequence",
    "data_aware_prior",
    "hypergeometric",
    "margin_of_error",
    "mcnemar",
    "network_wise",
    "neyman",
    "paired_difference",
    "paired_mean_difference",
    "poisson",
    "proportion",
    "proportional",
    "proportions",
    "refine",
    "sample_size",
    "stratified",
    "stratum_wise",
    "unpaired_difference",
    "upper_bound",
    "wilson",
]
