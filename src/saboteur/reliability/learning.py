"""Learns an error model from a finished campaign: what its faults did to the outputs of the layers that they hit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from saboteur.campaign.results import Results
from saboteur.errors import CampaignError
from saboteur.faults.error_models import ErrorModel, Source, learn, learn_permanent
from saboteur.faults.error_values import LayerOutput
from saboteur.faults.space import Faults, FaultSpace, Region


@runtime_checkable
class ShowsDeviations(Protocol):
    """A target that can tell what its faults do to the outputs of layers, as the target ``accelerator`` can."""

    def deviations(self, space: FaultSpace, faults: Faults, inputs: NDArray[np.int64] | None) -> pa.Table:
        """The wrong values: ``trial``, ``input``, ``layer``, ``position``, ``golden``, ``faulty``."""
        ...

    def layer_outputs(self) -> Mapping[str, LayerOutput]:
        """The fault-free output of each layer."""
        ...


def learn_from(results: Results, title: str | None = None) -> ErrorModel:
    """Learn an error model from the faults of a campaign; they are run again as far as the layers that they hit.

    Transient faults teach what happens to the layer that is hit, permanent ones what happens to all layers that run on
    the array.

    Args:
        results: of single transient or permanent faults, drawn uniformly within each layer and component.
        title: of the model; the campaign's name if absent.

    Raises:
        CampaignError: when the target does not tell what its faults do to layers, or faults are of another kind.
    """
    session, target = results.session, results.session.target
    if not isinstance(target, ShowsDeviations):
        raise CampaignError(
            f"target: {results.campaign.target.kind} does not tell what a fault does to the output of a layer; the "
            "target accelerator does"
        )
    if results.campaign.multiple:
        field = "simultaneous" if results.campaign.bit_error_rate is None else "bit_error_rate"
        raise CampaignError(
            f"{field}: several faults in a trial; an error model is learned from trials of one fault, which may change "
            "several bits of a word: {kind: bit_flip, count: 2}"
        )
    regions = results.space.regions
    if any(region.duration == "intermittent" for region in regions):
        raise CampaignError(
            "duration: intermittent; an error model is learned from transient or permanent faults, and that of "
            "permanent ones can be injected as intermittent"
        )
    permanent = np.array([region.duration == "permanent" for region in regions])
    layer, component = (np.array([getattr(region, name) for region in regions]) for name in ("layer", "component"))
    deviations, trials, begun = [], [], 0
    for table in results.tables():
        table = table.filter(table["invalid"].is_null())
        stratum, number = table["stratum"].to_numpy(), table["trial"].to_numpy()
        for one in np.unique(stratum).tolist():
            rows = np.sort(number[stratum == one])
            faults = session.sampler.faults(one, int(rows[0]), int(rows[-1]) + 1).take(rows - rows[0])
            inputs = session.sampler.inputs(faults, session.golden.inputs)
            found = target.deviations(results.space, faults, inputs)
            deviations.append(found.set_column(0, "trial", pa.array(found["trial"].to_numpy() + begun)))
            first = faults.bounds[:-1]
            region, variant = faults.region[first], faults.variant[first]
            trials.append(
                pa.table(
                    {
                        "trial": begun + np.arange(faults.trials),
                        "layer": layer[region],
                        "component": component[region],
                        "fault": _kinds(results.space, region, variant),
                        "permanent": permanent[region],
                        "inferences": np.full(
                            faults.trials, session.golden.inputs if inputs is None else inputs.shape[1]
                        ),
                    }
                )
            )
            begun += faults.trials
    if not trials:
        raise CampaignError(f"store: {results.store.path} holds no valid trial yet")
    whole, wrong = pa.concat_tables(trials), pa.concat_tables(deviations)
    source = Source(
        campaign=results.store.id,
        level=f"{results.campaign.target.kind}, {results.campaign.name}",
        faults=len(whole),
        inferences=int(np.sum(whole["inferences"].to_numpy())),
    )
    outputs = target.layer_outputs()
    lasting = whole["permanent"].to_numpy()
    of_lasting = lasting[wrong["trial"].to_numpy()]
    models = []
    if not lasting.all():
        populations = _populations(regions[i] for i in np.flatnonzero(~permanent))
        models.append(
            learn(wrong.filter(~of_lasting), whole.filter(~lasting), outputs, "transient", populations=populations)
        )
    if lasting.any():
        models.append(
            learn_permanent(
                wrong.filter(of_lasting),
                whole.filter(lasting),
                outputs,
                "permanent",
                repeats=_repeats(target),
                populations=_kind_populations(results.space),
            )
        )
    return ErrorModel(
        title=title or results.campaign.name,
        source=source,
        profiles=tuple(profile for model in models for profile in model.profiles),
        permanent=tuple(profile for model in models for profile in model.permanent),
    )


_MOST_KINDS = 1024
"""Models with more faults of a word are not told apart by them."""


def _populations(regions: Iterable[Region]) -> dict[tuple[str, str], int]:
    found: dict[tuple[str, str], int] = {}
    for region in regions:
        key = region.layer, region.component
        found[key] = found.get(key, 0) + region.size
    return found


def _kinds(space: FaultSpace, region: NDArray[np.int32], variant: NDArray[np.int64]) -> NDArray:
    """What each fault is called among those of its component: model, bit, which of the model's faults of that bit."""
    found = np.full(len(region), "", object)
    for number in np.unique(region).tolist():
        names, rows = _names(space.regions[number]), region == number
        found[rows] = names[variant[rows]] if len(names) else space.regions[number].model.name
    return found.astype(str)


def _names(region: Region) -> NDArray:
    """What the variants of a region are called; none where there are too many."""
    if region.variants > _MOST_KINDS:
        return np.zeros(0, str)
    bits = region.variant_bits
    number = np.arange(region.variants) - np.searchsorted(bits, bits)
    of_bit = ["" if bit < 0 else f" bit {bit}" for bit in bits.tolist()]
    several = bool(number.any())
    return np.array(
        [
            f"{region.model.name}{bit}{f' ({i})' if several else ''}"
            for bit, i in zip(of_bit, number.tolist(), strict=True)
        ]
    )


def _kind_populations(space: FaultSpace) -> dict[tuple[str, str], int]:
    found: dict[tuple[str, str], int] = {}
    for region in space.regions:
        if region.duration == "permanent":
            names = _names(region).tolist() or [region.model.name]
            for name in names:
                key = region.component, name
                found[key] = found.get(key, 0) + region.size // len(names)
    return found


def _repeats(target: object) -> tuple[int, int] | None:
    """After how many positions and channels of a layer the array of a target is at the same place again, if known."""
    from saboteur.levels.crosslayer.machine import HdlMachine

    machine = getattr(target, "machine", None)
    if not isinstance(machine, HdlMachine):
        return None
    array = machine.simulator.array
    return {"output_stationary": (array.rows, array.cols), "weight_stationary": (1, array.cols)}.get(array.dataflow)
