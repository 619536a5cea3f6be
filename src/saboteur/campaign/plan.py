"""How many trials each stratum gets, in rounds that depend on nothing but the campaign and its results."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from saboteur import statistics
from saboteur.campaign.model import Campaign, Exhaustive, Fixed, Listed, Statistical
from saboteur.campaign.sampler import Sampler
from saboteur.campaign.target import Target
from saboteur.errors import CampaignError
from saboteur.faults.formats import Affine
from saboteur.faults.space import Region

LOOKS = 10
"""With a stopping rule, results are looked at after every tenth of the plan."""


@dataclass(frozen=True)
class Tally:
    """What is known so far of each stratum under the campaign's question: [strata] columns."""

    n: NDArray[np.int64]
    sdc: NDArray[np.int64]


@dataclass(frozen=True)
class Plan:
    """The sampling plan of an opened campaign.

    Attributes:
        prior: [strata], the SDC rate assumed for planning; NaN where none is needed.
        n: [strata], trials planned, before anything is known (the pilot of a refined plan).
    """

    campaign: Campaign
    sampler: Sampler
    prior: NDArray[np.float64]
    n: NDArray[np.int64]

    @classmethod
    def of(cls, campaign: Campaign, sampler: Sampler, target: Target) -> Plan:
        """Work out the plan.

        Raises:
            CampaignError: when the plan does not fit the space.
            TargetError: when a data-aware prior is asked for and a site holds no stored values.
        """
        sampling, limits = campaign.sampling, sampler.limits
        strata = len(sampler.strata)
        prior = np.full(strata, np.nan)
        sizes = np.array([stratum.size for stratum in sampler.strata])
        if isinstance(sampling, Statistical):
            prior = _data_aware(sampler, target) if sampling.prior == "data_aware" else np.full(strata, sampling.prior)
            if sampling.refine:
                n = np.minimum(sampling.pilot, limits)
            elif sampling.margin_for == "stratum":
                n = statistics.stratum_wise(
                    limits, sampling.margin, sampling.confidence, prior, quantile=sampling.quantile
                )
            else:
                # A network-wise plan assumes one rate; what matters for its margin is the mixture of the priors.
                mixture = float((prior * sizes).sum() / sizes.sum())
                population = limits if not campaign.multiple else np.maximum(sizes * (2**62 // sizes.sum()), 1)
                n = statistics.network_wise(
                    population, sampling.margin, sampling.confidence, mixture, quantile=sampling.quantile
                )
                n = np.maximum(n, 1)  # a stratum without a trial would leave its share of the population unknown
        elif isinstance(sampling, Fixed):
            if sampling.n_for == "stratum":
                n = np.minimum(sampling.n, limits)
            else:
                if not campaign.multiple and sampling.n > limits.sum():
                    raise CampaignError(
                        f"sampling.n: {sampling.n} faults are more than the population of {limits.sum()}; "
                        "use kind: exhaustive"
                    )
                n = statistics.proportional(sampling.n, sizes * (2**62 // sizes.sum()) if campaign.multiple else sizes)
        elif isinstance(sampling, Exhaustive | Listed):
            n = limits.copy()
        else:
            raise CampaignError(f"sampling.kind: {sampling!r} has no plan")
        return cls(campaign, sampler, prior, np.minimum(np.asarray(n, np.int64), limits))

    def next_round(self, before: NDArray[np.int64], tally: Tally) -> NDArray[np.int64] | None:
        """Trials each stratum shall have after the next round, or ``None`` when the plan is fulfilled.

        Args:
            before: [strata], trials decided so far.
            tally: their results.
        """
        if self.stopped(tally):
            return None
        if self.campaign.stopping is not None and (before < self.n).any():
            looks = np.arange(1, LOOKS + 1)[:, None]
            steps = np.maximum(np.ceil(self.n * looks / LOOKS).astype(np.int64), before)
            return next((step for step in steps if (step > before).any()), None)
        after = np.maximum(self.n, before)
        sampling = self.campaign.sampling
        if (after == before).all() and isinstance(sampling, Statistical) and sampling.refine:
            limits = self.sampler.limits
            if sampling.margin_for == "stratum":
                extra = statistics.refine(tally.sdc, tally.n, limits, sampling.margin, sampling.confidence).extra
                after = before + np.asarray(extra, np.int64)
            else:
                after = self._refined_total(before, tally, sampling)
            after = np.minimum(after, limits)
        return after if (after > before).any() else None

    def _refined_total(self, before: NDArray[np.int64], tally: Tally, sampling: Statistical) -> NDArray[np.int64]:
        """The trials of each stratum that should bring the whole population's interval to the margin.

        n = (Σ W_h s_h)² / (e²/z² + Σ W_h s_h² / N), allotted in proportion to W_h s_h (Cochran, Sampling
        Techniques, 1977, eq. 5.25 and 5.26), with s_h from rates that a pseudo-event keeps off 0 and 1.
        """
        sizes = np.array([stratum.size for stratum in self.sampler.strata], float)
        population = np.maximum(sizes * 2.0**60 / sizes.sum() if self.campaign.multiple else sizes, tally.n)
        estimate = statistics.stratified(tally.sdc, tally.n, population, sampling.confidence)
        if (estimate.high - estimate.low) / 2 <= sampling.margin:
            return before
        rate = (tally.sdc + 0.5) / (tally.n + 1)
        weight, deviation = sizes / sizes.sum(), np.sqrt(rate * (1 - rate))
        z = norm.isf((1 - sampling.confidence) / 2)
        unseen = (weight * deviation**2).sum() / population.sum()
        wanted = (weight * deviation).sum() ** 2 / ((sampling.margin / z) ** 2 + unseen)
        # At least a tenth more in each round, so that the rounds end.
        total = int(min(max(np.ceil(wanted), np.ceil(1.1 * before.sum())), self.sampler.limits.sum()))
        return np.maximum(before, statistics.neyman(total, self.sampler.limits, rate))

    def stopped(self, tally: Tally) -> bool:
        """Whether the stopping rule is met."""
        rule = self.rule
        if rule is None or not tally.n.sum():
            return False
        return bool(rule.met(tally.sdc.sum(), tally.n.sum()))

    @property
    def rule(self) -> statistics.AbsoluteMargin | statistics.RelativeMargin | None:
        """The stopping rule in force."""
        stopping = self.campaign.stopping
        if stopping is None:
            return None
        kind = statistics.RelativeMargin if stopping.relative else statistics.AbsoluteMargin
        return kind(stopping.half_width, self.campaign.sampling.confidence)

    def in_words(self) -> str:
        """The plan as one would write it in a method section."""
        sampling, strata = self.campaign.sampling, len(self.sampler.strata)
        cut = ""
        if not isinstance(sampling, Listed) and sampling.stratify != "network":
            cut = f" from {strata} strata by {sampling.stratify.replace('layer_bit', 'layer and bit')}"
        if isinstance(sampling, Statistical):
            prior = "data-aware priors" if sampling.prior == "data_aware" else f"p = {sampling.prior:g}"
            text = (
                f"Statistical sample without replacement{cut}: margin {100 * sampling.margin:g} % for "
                f"{'each stratum' if sampling.margin_for == 'stratum' else 'the whole population'} at "
                f"{100 * sampling.confidence:g} % confidence, {prior}"
                + (f", refined from a pilot of {sampling.pilot} a stratum" if sampling.refine else "")
            )
        elif isinstance(sampling, Fixed):
            text = f"Sample of fixed size without replacement{cut}"
        elif isinstance(sampling, Exhaustive):
            text = f"Exhaustive: every fault{cut}"
        else:
            text = f"Fault list {sampling.path.name}, standing for the {sampling.represents}"
        if self.campaign.bit_error_rate is not None:
            text += f"; in each trial every fault is present with probability {self.campaign.bit_error_rate:g}"
        elif self.campaign.simultaneous > 1:
            text += f"; {self.campaign.simultaneous} faults act together in a trial"
        if self.rule is not None:
            text += f"; {self.rule}, looked at {LOOKS} times"
        return text + "."


def _data_aware(sampler: Sampler, target: Target) -> NDArray[np.float64]:
    """One prior a stratum, from the mean flip distances of the stored words that it holds."""
    regions = sampler.space.regions
    by_layer: dict[str, list[int]] = {}
    for i, region in enumerate(regions):
        by_layer.setdefault(region.layer, []).append(i)
    prior_of_region: dict[int, NDArray[np.float64]] = {}
    for members in by_layer.values():
        distances = {i: _mean_flip_distance(target, regions[i]) for i in members}
        weights = {i: regions[i].elements for i in members}
        for bits in {regions[i].format.bits for i in members}:
            same = [i for i in members if regions[i].format.bits == bits]
            with np.errstate(invalid="ignore", over="ignore"):
                mean = np.average([distances[i] for i in same], axis=0, weights=[weights[i] for i in same])
            prior = statistics.data_aware_prior(mean)
            prior_of_region |= dict.fromkeys(same, prior)
    result = np.empty(len(sampler.strata))
    for h, stratum in enumerate(sampler.strata):
        rates, sizes = [], []
        for i, first, last in zip(stratum.regions, stratum.first_variant, stratum.last_variant, strict=True):
            bits = regions[i].variant_bits[first:last]
            if (bits < 0).any():
                raise CampaignError(
                    f"sampling.prior: data_aware needs faults of single bits; {regions[i].model.kind} acts on values"
                )
            rates.append(prior_of_region[int(i)][bits].mean())
            sizes.append(regions[i].elements * regions[i].steps * (last - first))
        result[h] = np.average(rates, weights=sizes)
    return result


def _mean_flip_distance(target: Target, region: Region) -> NDArray[np.float64]:
    words, fmt = target.stored(region)
    total = np.zeros(fmt.bits)
    with np.errstate(invalid="ignore", over="ignore"):
        for start in range(0, len(words), 65536):
            part = np.arange(start, min(start + 65536, len(words)))
            lined_up = fmt.at(part) if isinstance(fmt, Affine) else fmt
            total += lined_up.flip_distance(lined_up.decode(words[part])).sum(axis=0)
    return total / len(words)
