"""One network, one array, several levels: how far each is from the registers of the RTL.

    python examples/levels.py [FAULTS] [FOLDER]

The network is the embedded int8 CNN, the array an output-stationary one of 8 × 8 processing elements. Compared, layer
by layer, on FAULTS faults a layer (20,000 if absent) with one random input of 60 each; plain software-level flips, of
which there are few, on all 60. Rates are of inferences:

- ``RTL``: upsets of every flip-flop in every cycle, at register-transfer level (the reference);
- ``gate``: upsets of the flip-flops in the netlist of gates (and 1,000 of the same upsets as at RTL, one by one);
- ``architecture``: upsets of what the registers of an architecture description hold, while it is still read (times the
  share of cycles in which they do, this is the rate of all cycles);
- ``error model``: learned from another RTL campaign, drawn at the software level;
- ``output flips``, ``weight flips``: plain bit flips of the software level, as most tools inject them.

Campaigns are kept in FOLDER (``runs/levels`` if absent) and taken up again when run anew.
"""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from saboteur.campaign import Campaign, Results, run
from saboteur.cli.terminal import interval, percent, show, table
from saboteur.faults import lists
from saboteur.levels.crosslayer.architecture import shipped
from saboteur.reliability.learning import learn_from
from saboteur.reliability.levels import ALL, compare_levels
from saboteur.report.levels import write

NETWORK = {"workload": "digits-cnn-int8", "inputs": 60}
ARRAY = {"kind": "accelerator", "array": "output_stationary", "rows": 8, "cols": 8, **NETWORK}
UPSET = {"model": "bit_flip", "duration": "transient"}
LAYERS = ["conv1", "conv2", "fc"]
REGISTERS = ["activation", "weight", "accumulator", "valid", "clear", "drain"]
SAME_FAULTS = 1000


def campaign(
    name: str, target: dict[str, Any], faults: dict[str, Any], faults_a_layer: int, **changes: Any
) -> Campaign:
    """So many faults in each layer, on one random input each if nothing else is said."""
    sampling = {"kind": "fixed", "n": faults_a_layer, "n_for": "stratum", "stratify": "layer", "confidence": 0.95}
    return Campaign.read(
        {
            "name": name,
            "target": target,
            "faults": faults,
            "sampling": sampling,
            "inputs_per_fault": 1,
            "criteria": ["sdc-1"],
            "resources": {"unit_trials": 2048},
        }
        | changes
    )


def at_gates(listed: pa.Table) -> pa.Table:
    """The same upsets, of registers that are words at RTL and single flip-flops at gate level."""
    bits = pc.cast(listed["variant"], pa.string())
    inner = pc.utf8_slice_codeunits(listed["index"], 0, -1)
    index = pc.binary_join_element_wise(inner, ", ", bits, ")", "")
    word = pc.is_in(listed["component"], value_set=pa.array(["a", "b", "acc"]))
    index = pc.if_else(word, index, listed["index"])
    zero = pa.array([0] * len(listed), pa.int64())
    columns = {"index": index, "variant": zero, "bit": pc.cast(zero, pa.int16())}
    for name, values in columns.items():
        listed = listed.set_column(listed.column_names.index(name), name, values)
    return listed


def fault_list(results: Results) -> pa.Table:
    """All faults of a campaign."""
    parts = [lists.to_table(results.space, results.rows(observed)) for observed in results.tables()]
    listed = pa.concat_tables(parts)
    return listed.set_column(0, "trial", pa.array(range(len(listed))))


def main(faults_a_layer: int, folder: Path) -> None:
    """Run, compare and draw."""
    folder.mkdir(parents=True, exist_ok=True)
    seconds: dict[str, float] = {}

    def finished(name: str, planned: Campaign) -> Path:
        begun = time.process_time()
        path = folder / name.replace(" ", "-")
        run(planned, path)
        seconds[name] = time.process_time() - begun
        return path

    registers = {"where": "flip_flops", **UPSET}
    gates = ARRAY | {"level": "gate"}
    stores = {
        "RTL": finished("RTL", campaign("RTL", ARRAY, registers, faults_a_layer)),
        "gate": finished("gate", campaign("gate", gates, registers, faults_a_layer)),
    }
    architecture = {"kind": "accelerator", "architecture": "output_stationary", **NETWORK}
    words = {"where": "components", "names": REGISTERS, **UPSET}
    stores["architecture"] = finished("architecture", campaign("architecture", architecture, words, faults_a_layer))

    with Results.open(
        finished("learned from", campaign("learned from", ARRAY, registers, faults_a_layer, seed=1))
    ) as r:
        model = learn_from(r, "array")
    model.write(folder / "array.yaml")
    software = {"kind": "pytorch", **NETWORK}
    learned = {"where": "outputs", "model": model, "duration": "transient", "layers": LAYERS}
    plain = {"layers": LAYERS, **UPSET}
    stores["error model"] = finished("error model", campaign("error model", software, learned, faults_a_layer))
    for name, where in {"output flips": "activations", "weight flips": "weights"}.items():
        flips = campaign(name, software, {"where": where, **plain}, min(faults_a_layer, 2000), inputs_per_fault=None)
        stores[name] = finished(name, flips)

    with ExitStack() as stack:
        opened = {name: stack.enter_context(Results.open(path)) for name, path in stores.items()}
        found = compare_levels(opened, unit="inferences")
        in_use = occupancy(opened["architecture"])
    show(
        table(
            "SDC-1 of inferences",
            ["layer", "level", "rate>", "95 %>", "k>", "n>", "× RTL>", "p>", "CPU µs each>"],
            (
                [
                    layer,
                    level,
                    percent(row.estimate.best),
                    interval(row.estimate),
                    row.estimate.k,
                    row.estimate.n,
                    f"{row.estimate.best / reference.estimate.best:.2f}",
                    "" if row.p_value is None else f"{row.p_value:.2g}",
                    f"{1e6 * seconds[level] / row.estimate.n:.0f}" if layer == ALL else "",
                ]
                for layer in found.layers
                for level in found.levels
                if (row := found.row(layer, level)) is not None
                if (reference := found.row(layer, "RTL")) is not None
            ),
        )
    )
    for layer, share in in_use.items():
        row = found.row(layer, "architecture")
        if row is not None:
            whole = percent(share * row.estimate.best)
            show(f"architecture, {layer}: registers are in use in {percent(share)} of all cycles; times that, {whole}")
    verdicts_of_the_same_faults(folder, registers, gates)
    for ending in ("svg", "png"):
        write(found, folder / f"levels.{ending}")
        show(str(folder / f"levels.{ending}"))


def occupancy(results: Results) -> dict[str, float]:
    """By layer, the share of the register bits' cycles in which they hold something that is still read."""
    described = shipped("output_stationary")
    shares = {}
    for layer in results.session.target.layers:
        regions = [region for region in results.space.regions if region.layer == layer.name]
        used = {r.component: described.residence(described.component(r.component), layer).occupancy for r in regions}
        shares[layer.name] = sum(r.size for r in regions) / sum(r.size / used[r.component] for r in regions)
    return shares


def verdicts_of_the_same_faults(folder: Path, registers: dict[str, Any], gates: dict[str, Any]) -> None:
    """Run the same upsets on all inputs at RTL and at gate level."""
    sampling = {"kind": "fixed", "n": SAME_FAULTS, "confidence": 0.95}
    common = {"sampling": sampling, "inputs_per_fault": None}
    run(campaign("RTL, all inputs", ARRAY, registers, 0, **common), folder / "same-RTL")
    with Results.open(folder / "same-RTL") as rtl:
        pq.write_table(at_gates(fault_list(rtl)), folder / "gate.parquet")
        listed = {"kind": "list", "path": str(folder / "gate.parquet"), "confidence": 0.95}
        run(campaign("gate, all inputs", gates, registers, 0, **common | {"sampling": listed}), folder / "same-gate")
        with Results.open(folder / "same-gate") as gate:
            counts = [observed.select(["identical", "sdc:sdc-1"]) for observed in (_all(rtl), _all(gate))]
    same = counts[0].equals(counts[1])
    show(f"{SAME_FAULTS:,} upsets on 60 inputs at RTL and at gate level: {'the same' if same else 'other'} outcomes")


def _all(results: Results) -> pa.Table:
    return pa.concat_tables(results.tables()).sort_by("trial")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20000, Path(sys.argv[2] if len(sys.argv) > 2 else "runs/levels"))
