"""The JSON Schema of campaign files takes what is read, and refuses what is not."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest
from ruamel.yaml import YAML

from saboteur.campaign import Campaign
from tests.cli.conftest import ROOT

SOFTWARE = {"kind": "pytorch", "workload": "digits-cnn"}
DESIGN = {"kind": "hdl", "sources": "a.v", "top": "a", "stimulus": "a.npz", "outputs": "q"}
ACCELERATOR = {"kind": "accelerator", "workload": "digits-cnn-int8"}
CONTENT = {
    "kind": "error_model",
    "title": "t",
    "profiles": [{"component": "acc", "shape": "vector", "population": 1, "inferences": 1}],
}


@pytest.fixture(scope="module")
def valid():
    schema = json.loads(json.dumps(Campaign.model_json_schema()))
    return pytest.importorskip("jsonschema").Draft202012Validator(schema).is_valid


def campaign(target: object, faults: object, **more: object) -> dict[str, object]:
    return {"name": "one", "target": target, "faults": faults, **more}


def shipped() -> Iterator[tuple[str, dict[str, object]]]:
    yaml = YAML(typ="safe", pure=True)
    for path in [*ROOT.glob("src/saboteur/cli/examples/*.yaml"), *ROOT.glob("examples/*.yaml")]:
        yield path.name, yaml.load(path.read_text())
    for path in sorted(ROOT.glob("docs/*.md")):
        for block in re.findall(r"```yaml\n(.*?)```", path.read_text(), re.DOTALL):
            if block.startswith("name:") and "\ntarget:" in block and "\nfaults:" in block and "…" not in block:
                yield path.name, yaml.load(block)


@pytest.mark.parametrize(("name", "found"), list(shipped()))
def test_campaigns_that_are_shipped_or_shown(valid, name, found):
    assert valid(found)


@pytest.mark.parametrize(
    "good",
    [
        campaign(SOFTWARE, {"where": "weights", "model": "bit_flip"}),
        campaign(SOFTWARE, [{"where": "weights", "model": "bit_flip", "layers": "conv*", "layer_types": ["Linear"]}]),
        campaign(DESIGN, {"where": "flip_flops", "model": "bit_flip", "duration": "transient", "instances": "u.*"}),
        campaign(DESIGN | {"outputs": {"port": "q", "lanes": 2}}, {"where": "flip_flops", "model": "bit_flip"}),
        campaign(DESIGN | {"outputs": ["q", {"port": "r"}]}, {"where": "flip_flops", "model": "bit_flip"}),
        campaign(ACCELERATOR, {"where": "flip_flops", "model": "bit_flip", "duration": "transient", "names": "acc"}),
        campaign({"kind": "tests.campaign.toy:ToyTarget", "inputs": 3}, [{"model": "bit_flip", "layers": ["a"]}]),
        campaign(SOFTWARE, {"where": "outputs", "duration": "transient", "model": CONTENT}),
    ],
)
def test_what_is_read_is_valid(valid, good):
    Campaign.read(good)
    assert valid(good)


@pytest.mark.parametrize(
    ("model", "good"),
    [
        ({"kind": "error_model", "file": "array.yaml"}, True),
        ({"kind": "error_model", "file": "classes.json", "output_shape": [16, 32, 32]}, True),
        ({"kind": "error_model", "file": "array.yaml", "title": "t"}, False),
        ({"kind": "error_model", "file": "array.yaml", "output_shape": []}, False),
        ({"kind": "error_model", "file": 3}, False),
        ({"kind": "error_model", "output_shape": [16, 32, 32]}, False),
        ({"kind": "bit_flip", "file": "array.yaml"}, False),
        ("error_model", False),
    ],
)
def test_error_models_stand_in_files(valid, model, good):
    assert valid(campaign(SOFTWARE, {"where": "outputs", "duration": "transient", "model": model})) is good


@pytest.mark.parametrize(
    "bad",
    [
        campaign(SOFTWARE, []),
        campaign(SOFTWARE, "bit_flip"),
        campaign(SOFTWARE, {"where": "weights"}),
        campaign(SOFTWARE, {"where": "flip_flops", "model": "bit_flip"}),
        campaign(SOFTWARE, [{"where": "weights", "model": "bit_flip", "layer": "conv1"}]),
        campaign(DESIGN, {"where": "weights", "model": "bit_flip"}),
        campaign(DESIGN, {"where": "flip_flops", "model": "bit_flip", "layers": "conv*"}),
        campaign(ACCELERATOR, {"where": "weights", "model": "bit_flip"}),
        campaign(DESIGN | {"outputs": {"port": "q", "lane": 2}}, {"where": "flip_flops", "model": "bit_flip"}),
        campaign({"kind": "tests.campaign.toy:ToyTarget"}, [{"layers": ["a"]}]),
        campaign(SOFTWARE, {"where": "weights", "model": "bit_flip"}, sampels=3),
    ],
)
def test_what_is_not_read_is_not_valid(valid, bad):
    with pytest.raises(Exception, match="campaign"):
        Campaign.read(bad)
    assert not valid(bad)


def test_a_file_of_an_error_model_is_a_path():
    with pytest.raises(Exception, match=r"faults\.0\.model: file: is 3; it takes a path"):
        Campaign.read(campaign(SOFTWARE, {"where": "outputs", "model": {"kind": "error_model", "file": 3}}))
