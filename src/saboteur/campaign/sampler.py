"""Which faults trial *i* of a stratum holds: a pure function of (campaign, stratum, i)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.stats import binom

from saboteur.campaign.model import Campaign, Listed
from saboteur.errors import FaultError
from saboteur.faults import draws, lists
from saboteur.faults.space import Faults, FaultSpace, Stratum, expanded


@dataclass(frozen=True)
class Sampler:
    """The trials of a campaign over a fault space."""

    campaign: Campaign
    space: FaultSpace

    @cached_property
    def listed(self) -> Faults | None:
        """The faults of the campaign's list, if it has one."""
        sampling = self.campaign.sampling
        if not isinstance(sampling, Listed):
            return None
        faults = lists.from_table(self.space, lists.read(sampling.path), draws.stream_key(self.campaign.seed, "list"))
        if sampling.first is not None:
            faults = faults.take(np.arange(min(sampling.first, faults.trials)))
        if faults.trials == 0:
            raise FaultError(f"fault list: {sampling.path} holds no faults")
        return faults

    @property
    def listed_alone(self) -> bool:
        """Whether estimates speak of the listed faults only."""
        return isinstance(self.campaign.sampling, Listed) and self.campaign.sampling.represents == "list"

    @cached_property
    def list_digest(self) -> str:
        """A hash of the whole fault list; empty where there is none."""
        if not isinstance(self.campaign.sampling, Listed):
            return ""
        table = lists.read(self.campaign.sampling.path).combine_chunks()
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        return hashlib.sha256(sink.getvalue()).hexdigest()[:16]

    @cached_property
    def strata(self) -> tuple[Stratum, ...]:
        """The parts of the space that are sampled each by itself; a list is one stratum."""
        sampling = self.campaign.sampling
        return self.space.strata("network" if isinstance(sampling, Listed) else sampling.stratify)

    @cached_property
    def limits(self) -> NDArray[np.int64]:
        """How many trials each stratum can have: [strata]."""
        if self.listed is not None:
            return np.array([self.listed.trials])
        if self.campaign.multiple:
            return np.full(len(self.strata), 2**62)
        return np.array([stratum.size for stratum in self.strata])

    @cached_property
    def populations(self) -> list[int | None]:
        """How many trials each stratum stands for; ``None`` where trials are combinations without number."""
        if self.campaign.multiple:
            return [None] * len(self.strata)
        if self.listed_alone:
            return self.limits.tolist()
        return [stratum.size for stratum in self.strata]

    def faults(self, stratum: int, start: int, stop: int) -> Faults:
        """The faults of trials ``start`` .. ``stop − 1`` of a stratum."""
        trials = np.arange(start, stop)
        if self.listed is not None:
            return self.listed.take(trials)
        part, campaign = self.strata[stratum], self.campaign
        key = draws.words(draws.stream_key(campaign.seed, "trial", part.name), trials)
        if not campaign.multiple:
            order = draws.stream_key(campaign.seed, "order", part.name)
            index, trial = draws.permuted(order, part.size, trials), np.arange(len(trials))
        else:
            if campaign.bit_error_rate is None:
                counts = np.full(len(trials), campaign.simultaneous)
                if campaign.simultaneous > part.size:
                    raise FaultError(
                        f"simultaneous: {campaign.simultaneous} faults do not fit stratum {part.name!r}, "
                        f"which has {part.size}"
                    )
            else:
                drawn = draws.uniform(key, 0, lane=103)
                counts = binom.ppf(drawn, part.size, campaign.bit_error_rate).astype(np.int64)
            trial, rank = expanded(np.zeros_like(counts), counts)
            index = draws.permuted(key[trial], part.size, rank)
        return Faults(key, trial, *self.space.decode(part, index))

    def inputs(self, faults: Faults, inputs: int) -> NDArray[np.int64] | None:
        """The inputs that each trial meets, increasing: [trials, inputs per fault]; ``None`` means all."""
        k = self.campaign.inputs_per_fault
        if k is None or k >= inputs:
            return None
        key = draws.words(faults.key, 0, lane=104)
        return np.sort(draws.permuted(key[:, None], inputs, np.arange(k)[None, :]), axis=1)
