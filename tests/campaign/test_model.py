"""The campaign value: files, ids, errors."""

from __future__ import annotations

import pytest

from saboteur.campaign import Campaign
from saboteur.errors import CampaignError

YAML = """
name: example
target: {kind: "tests.campaign.toy:ToyTarget"}
faults:
  - model: bit_flip
sampling: {kind: fixed, n: 10}
"""


def test_a_yaml_file_and_python_give_the_same_value(tmp_path):
    path = tmp_path / "campaign.yaml"
    path.write_text(YAML)
    built = Campaign.read(
        {
            "name": "example",
            "target": "tests.campaign.toy:ToyTarget",
            "faults": [{"model": {"kind": "bit_flip"}}],
            "sampling": {"kind": "fixed", "n": 10},
        }
    )
    assert Campaign.from_yaml(path) == Campaign.from_yaml(YAML) == built
    assert Campaign.from_yaml(built.to_yaml()) == built


def test_numbers_with_exponents_are_numbers():
    campaign = Campaign.from_yaml(YAML.replace("n: 10", "n: 10, confidence: 95e-2"))
    assert campaign.sampling.confidence == 0.95


def test_yaml_1_2_booleans_only():
    with pytest.raises(CampaignError, match="keep_outputs"):
        Campaign.from_yaml(YAML + "keep_outputs: maybe\n")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("name: example\nname: again", "duplicate key.*name"),
        ("nonsense: 1", "nonsense: Extra inputs are not permitted"),
        ("seed: -1", "seed: .*greater than or equal to 0.*-1"),
        ("requirement: {criterion: sdc-7, at_most: 0.1}", "requirement.criterion: 'sdc-7' is not among"),
        ("criteria: [sdc-1, sdc-1]", "listed twice"),
        ("criteria: [sdc-one]", "unknown 'sdc-one'; did you mean"),
        ("stopping: {criterion: sdc-1, half_width: 0.1}\nsampling: {kind: fixed, n: 5, n_for: stratum}", "proportion"),
        ("simultaneous: 2\nbit_error_rate: 0.1", "exclude each other"),
        ("resources: {workers: 0}", "resources.workers"),
        ("saboteur: 2", "saboteur"),
        (
            "criteria: [accuracy_drop]\nrequirement: {criterion: accuracy_drop, at_most: 0.1, unit: inferences}",
            "judges faults",
        ),
    ],
)
def test_errors_name_field_and_value(change, message):
    with pytest.raises(CampaignError, match=message):
        text = YAML.replace("sampling: {kind: fixed, n: 10}", "") if "sampling" in change else YAML
        Campaign.from_yaml(text + change + "\n")


def test_faults_are_read_as_the_targets_own():
    with pytest.raises(CampaignError, match=r"faults\.0\.where"):
        Campaign.from_yaml(YAML.replace("model: bit_flip", "model: bit_flip\n    where: weights"))
    with pytest.raises(CampaignError, match="unknown 'bit_flap'; did you mean 'bit_flip'"):
        Campaign.from_yaml(YAML.replace("bit_flip", "bit_flap"))
    with pytest.raises(CampaignError, match=r"target.*cannot import"):
        Campaign.from_yaml(YAML.replace("ToyTarget", "NoTarget"))


def test_not_a_mapping_and_missing_file(tmp_path):
    with pytest.raises(CampaignError, match="must be a mapping"):
        Campaign.from_yaml("- a\n- b\n")
    with pytest.raises(CampaignError, match="cannot read"):
        Campaign.from_yaml(tmp_path / "absent.yaml")
    with pytest.raises(CampaignError, match="not valid YAML"):
        Campaign.from_yaml("a: [\nb")


def test_the_id_is_of_the_answer_not_of_the_running():
    campaign = Campaign.from_yaml(YAML)

    def identity(**changes: object) -> str:
        return Campaign.read(campaign.model_dump(exclude_none=True) | changes).identity("model bytes")

    same = campaign.identity("model bytes")
    assert same == "c1-" + same[3:]
    assert len(same) == 19
    for harmless in (
        {"name": "other"},
        {"description": "other"},
        {"resources": {"workers": 2, "threads": 2}},
        {"sampling": {"kind": "fixed", "n": 77}},
        {"sampling": {"kind": "statistical", "margin": 0.1}},
        {"sampling": {"kind": "exhaustive", "stratify": "network"}},
        {"requirement": {"criterion": "sdc-1", "at_most": 0.5}},
        {"stopping": {"criterion": "sdc-1", "half_width": 0.1}},
    ):
        assert identity(**harmless) == same, harmless
    for decisive in (
        {"seed": 1},
        {"faults": [{"model": "stuck_at"}]},
        {"sampling": {"kind": "fixed", "n": 10, "stratify": "layer"}},
        {"criteria": ["sdc-1"]},
        {"inputs_per_fault": 3},
        {"simultaneous": 2},
        {"keep_outputs": True},
    ):
        assert identity(**decisive) != same, decisive
    assert campaign.identity("other bytes") != same


def test_golden_id():
    """The id of this campaign may change only together with ID_VERSION."""
    assert Campaign.from_yaml(YAML).identity("model bytes") == "c1-cc3c508d8b5e5b8a"


def test_paths_are_taken_from_the_campaign_files_folder(tmp_path):
    text = """
name: own
target: {kind: pytorch, model: "nets/mine.py:model", data: images.npz}
faults: [{where: weights, model: bit_flip}]
sampling: {kind: list, path: faults.csv}
"""
    (tmp_path / "campaign.yaml").write_text(text)
    campaign = Campaign.from_yaml(tmp_path / "campaign.yaml")
    assert campaign.target.model == f"{tmp_path}/nets/mine.py:model"
    assert campaign.target.data == f"{tmp_path}/images.npz"
    assert campaign.sampling.path == tmp_path / "faults.csv"
