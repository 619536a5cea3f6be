"""A campaign file on a design, from end to end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from saboteur.campaign import Campaign, Results, run
from saboteur.faults import Faults

FILE = """
name: upsets in a small array
target:
  kind: hdl
  array: output_stationary
  parameters: {rows: 2, cols: 2}
  inputs: 2
faults:
  - {where: flip_flops, model: bit_flip, duration: transient}
  - {where: flip_flops, names: [valid, clear], model: stuck_at}
  - {where: nets, model: delay}
sampling: {kind: fixed, n: 400}
criteria: [{kind: numeric_error, tolerance: 0}]
seed: 3
"""


def test_campaign(tmp_path: Path) -> None:
    (tmp_path / "campaign.yaml").write_text(FILE)
    campaign = Campaign.from_yaml(tmp_path / "campaign.yaml")
    run(campaign, tmp_path / "store")
    with Results.open(tmp_path / "store") as results:
        criterion = campaign.criteria[0]
        estimate = results.estimate(criterion)
        assert estimate.n == 400 and 0 < estimate.k < 400
        assert {name for name, _ in results.groups("component")} >= {"flip_flop"}
        table = pq.read_table(results.store.path / "units")
    target = campaign.target.open(campaign.resources)
    target.golden()
    space = target.space(campaign.faults)
    columns = {name: table[name].to_numpy() for name in ("region", "element", "step", "variant")}
    trials = np.arange(len(table))
    keys = np.zeros(len(table), np.uint64)
    faults = Faults(keys, trials, columns["region"], columns["element"], columns["step"], columns["variant"])
    changed = np.zeros(len(table), np.int64)
    for run_number in range(2):
        answers = target.answers(space, faults, run_number)
        changed += answers.changed
    assert changed.tolist() == table["sdc:" + criterion.name].to_pylist()
    assert estimate.k == (changed > 0).sum()
