"""Is a software campaign that a learned model drives like the RTL campaign that it was learned from?"""

from __future__ import annotations

from pathlib import Path

import pytest

from saboteur.campaign import Campaign, Results, run
from saboteur.reliability.learning import learn_from
from saboteur.reliability.levels import ALL, LevelComparison, compare_levels

pytest.importorskip("torch")

ARRAY = {"kind": "accelerator", "workload": "digits-cnn-int8", "inputs": 60, "rows": 8, "cols": 8}
SOFTWARE = {"kind": "pytorch", "workload": "digits-cnn-int8", "inputs": 60}
REGISTERS = {"where": "flip_flops", "model": "bit_flip", "duration": "transient"}


def ran(folder: Path, name: str, target: dict, faults: dict, n: int, **changes: object) -> Path:
    sampling = {"kind": "fixed", "n": n, "n_for": "stratum", "stratify": "layer", "confidence": 0.99}
    campaign = {
        "name": name,
        "target": target,
        "faults": faults,
        "sampling": sampling,
        "inputs_per_fault": 1,
        "criteria": ["sdc-1"],
        "resources": {"unit_trials": 4096},
    }
    run(Campaign.read(campaign | changes), folder / name)
    return folder / name


def fidelity(folder: Path, array: dict, n: int) -> LevelComparison:
    """RTL, the model that another RTL campaign teaches, and plain flips of outputs."""
    with Results.open(ran(folder, "teacher", array, REGISTERS, n, seed=1)) as teacher:
        model = learn_from(teacher)
    learned = {"where": "outputs", "model": model, "duration": "transient", "layers": ["conv*", "fc"]}
    flips = {"where": "activations", "model": "bit_flip", "duration": "transient", "layers": ["conv*", "fc"]}
    stores = {
        "rtl": ran(folder, "rtl", array, REGISTERS, n),
        "model": ran(folder, "model", SOFTWARE, learned, n),
        "flips": ran(folder, "flips", SOFTWARE, flips, 80, inputs_per_fault=None),
    }
    with (
        Results.open(stores["rtl"]) as rtl,
        Results.open(stores["model"]) as by_model,
        Results.open(stores["flips"]) as by_flips,
    ):
        return compare_levels({"rtl": rtl, "model": by_model, "flips": by_flips}, unit="inferences")


@pytest.mark.parametrize("dataflow", ["output_stationary", pytest.param("weight_stationary", marks=pytest.mark.slow)])
def test_a_learned_model_is_like_rtl_and_plain_flips_are_not(tmp_path: Path, dataflow: str) -> None:
    found = fidelity(tmp_path, ARRAY | {"array": dataflow}, 3000)
    for layer in ("conv1", "conv2", "fc", ALL):
        row = found.row(layer, "model")
        assert row is not None and row.difference is not None and row.p_value is not None
        # The model is learned from a sample too, so that it may miss by about 1.7 times what the interval allows.
        assert row.difference.low - 0.003 < 0 < row.difference.high + 0.003
        assert row.p_value > 1e-4
    flips = found.row("fc", "flips")
    assert flips is not None and flips.difference is not None
    assert flips.difference.low > 0.03
