"""Learns an error model from a finished campaign: what its faults did to the outputs of the layers that they hit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from saboteur.campaign.results import Results
from saboteur.errors import CampaignError
from saboteur.faults.error_models import ErrorModel, Source, learn
from saboteur.faults.error_values import LayerOutput
from saboteur.faults.space import Faults, FaultSpace


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
    """Learn an error model from the faults of a campaign; they are run again as far as the layer that they hit.

    Args:
        results: of single transient faults, drawn uniformly within each layer and component.
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
    lasting = [region.site for region in results.space.regions if region.duration != "transient"]
    if results.campaign.multiple or lasting:
        raise CampaignError("faults: an error model is learned from single transient faults")
    layer, component = (np.array([getattr(r, name) for r in results.space.regions]) for name in ("layer", "component"))
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
            region = faults.region[faults.bounds[:-1]]
            trials.append(
                pa.table(
                    {
                        "trial": begun + np.arange(faults.trials),
                        "layer": layer[region],
                        "component": component[region],
                        "inferences": np.full(
                            faults.trials, session.golden.inputs if inputs is None else inputs.shape[1]
                        ),
                    }
                )
            )
            begun += faults.trials
    if not trials:
        raise CampaignError(f"store: {results.store.path} holds no valid trial yet")
    whole = pa.concat_tables(trials)
    populations: dict[tuple[str, str], int] = {}
    for region in results.space.regions:
        key = region.layer, region.component
        populations[key] = populations.get(key, 0) + region.size
    source = Source(
        campaign=results.store.id,
        level=f"{results.campaign.target.kind}, {results.campaign.name}",
        faults=len(whole),
        inferences=int(np.sum(whole["inferences"].to_numpy())),
    )
    return learn(
        pa.concat_tables(deviations),
        whole,
        target.layer_outputs(),
        title or results.campaign.name,
        populations=populations,
        source=source,
    )
