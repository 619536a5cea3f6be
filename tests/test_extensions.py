from __future__ import annotations

from importlib.metadata import EntryPoint

import numpy as np
import pytest
from pydantic import BaseModel, ValidationError

from saboteur import extensions
from saboteur.campaign.target import AnyTargetSpec
from saboteur.errors import SaboteurError, near
from saboteur.faults.models import AnyFaultModel, BitFlip, FaultModel, StuckAt
from saboteur.outcomes.criteria import AnyCriterion, Sdc1, TopK

FAULT_MODELS = {"bit_flip", "stuck_at", "stuck_value", "dead", "random_value", "noise"}
FAULT_MODELS |= {"delay", "open", "bridge", "error_model"}
CRITERIA = {"sdc-1", "sdc-5", "sdc-10%", "sdc-20%", "confidence_change", "top-k", "numeric_error", "accuracy_drop"}


class Swapped(FaultModel):
    """A user's model: the two halves of a byte change places."""

    kind: str = f"{__name__}:Swapped"

    def variants(self, bits):
        return 1

    def corrupt(self, words, variant, drawn, fmt):
        return ((words << np.uint64(4)) | (words >> np.uint64(4))) & np.uint64(0xFF)


class Holder(BaseModel):
    model: AnyFaultModel
    criteria: tuple[AnyCriterion, ...] = ()


class TargetHolder(BaseModel):
    target: AnyTargetSpec


def test_a_part_is_a_name_a_mapping_or_an_object():
    assert Holder(model="bit_flip").model == BitFlip()
    assert Holder(model={"kind": "stuck_at", "value": 1}).model == StuckAt(value=1)
    assert Holder(model=StuckAt(value=0)).model == StuckAt(value=0)
    holder = Holder(model="dead", criteria=["sdc-1", {"kind": "top-k", "k": 3}])
    assert holder.criteria == (Sdc1(), TopK(k=3))


def test_a_dump_keeps_settings_and_comes_back():
    holder = Holder(model=StuckAt(value=1, bits=(3,)), criteria=(TopK(k=2),))
    assert holder.model_dump()["model"] == {"kind": "stuck_at", "bits": (3,), "value": 1}
    assert Holder.model_validate_json(holder.model_dump_json()) == holder


def test_a_users_class_is_found_by_its_path():
    model = Holder(model=f"{__name__}:Swapped").model
    assert isinstance(model, Swapped)
    word = np.array([0xA5], np.uint64)
    assert model.corrupt(word, np.zeros(1, int), word, None) == 0x5A
    assert Holder.model_validate(Holder(model=Swapped()).model_dump()).model == Swapped()


def test_a_users_class_is_found_by_its_entry_point(monkeypatch):
    group = FaultModel.group
    known = extensions.registered(group) | {"swapped": EntryPoint("swapped", f"{__name__}:Swapped", group)}
    monkeypatch.setattr(extensions, "registered", lambda group: known)
    model = Holder(model="swapped").model
    assert isinstance(model, Swapped)
    assert model.kind == "swapped"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("bit_flop", "kind: unknown 'bit_flop'; did you mean 'bit_flip'"),
        ("sdc-1", "kind: unknown 'sdc-1'"),
        ("no.such.module:Model", "cannot import 'no.such.module:Model': ModuleNotFoundError"),
        (f"{__name__}:Absent", "cannot import .*AttributeError"),
        (":", "cannot import ':'"),
        ("saboteur.outcomes.criteria:Sdc1", "is not a part of saboteur.fault_models"),
        ("saboteur.extensions:Part", "is not a part of saboteur.fault_models"),
        ("saboteur.faults.models:BitFlip.mask", "is not a part of saboteur.fault_models"),
        ("saboteur.faults.models:FaultModel", "is abstract; a class that can be used defines corrupt, variants"),
        (3, "must be a name or a mapping with a 'kind'"),
        ({"count": 2}, "must be a name or a mapping with a 'kind'"),
        ({"kind": 3}, "must be a name or a mapping with a 'kind'"),
    ],
)
def test_errors_say_what_would_be_right(value, message):
    with pytest.raises(ValidationError, match=message) as caught:
        Holder(model=value)
    assert caught.value.errors()[0]["loc"] == ("model",)


def test_errors_inside_a_part_keep_their_place():
    with pytest.raises(ValidationError) as caught:
        Holder(model={"kind": "bit_flip", "cuont": 2}, criteria=["sdc-1", {"kind": "top-k", "k": 0}])
    assert [error["loc"] for error in caught.value.errors()] == [("model", "cuont"), ("criteria", 1, "k")]


def test_modules_that_fail_to_import_are_named(tmp_path, monkeypatch):
    (tmp_path / "broken_part.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SaboteurError, match="cannot import 'broken_part:Model': ZeroDivisionError"):
        extensions.resolve(FaultModel.group, "broken_part:Model")


def kinds(schema: dict) -> set[str]:
    return {part["allOf"][1]["properties"]["kind"]["const"] for part in schema["anyOf"] if "allOf" in part} | {
        part["properties"]["kind"]["const"]
        for part in schema["anyOf"]
        if "const" in part.get("properties", {}).get("kind", {})
    }


def test_the_json_schema_lists_every_registered_part():
    properties = Holder.model_json_schema()["properties"]
    assert kinds(properties["model"]) == FAULT_MODELS
    assert kinds(properties["criteria"]["items"]) == CRITERIA
    names = next(part["enum"] for part in properties["model"]["anyOf"] if "enum" in part)
    assert set(names) == FAULT_MODELS - {"stuck_value", "error_model"}, (
        "a name alone is enough where every setting has a default"
    )
    settings = next(p["allOf"][0]["properties"] for p in properties["model"]["anyOf"] if "'count'" in str(p))
    assert settings["count"]["maximum"] == 16
    assert {"pytorch"} <= kinds(TargetHolder.model_json_schema()["properties"]["target"])


def test_the_json_schema_tells_good_from_bad():
    validator = pytest.importorskip("jsonschema").Draft202012Validator(Holder.model_json_schema())
    for good in ("bit_flip", "my.models:Own", {"kind": "stuck_value", "values": [1.0]}, {"kind": "my:Own", "x": 1}):
        assert validator.is_valid({"model": good})
    for bad in ("stuck_value", "flip", {"kind": "bit_flip", "count": 17}, {"kind": "bit_flip", "value": 1}, {}, 3):
        assert not validator.is_valid({"model": bad})


def test_parts_that_cannot_be_imported_are_listed_without_settings(monkeypatch):
    known = {"absent": EntryPoint("absent", "no_such_package:Model", FaultModel.group)}
    monkeypatch.setattr(extensions, "registered", lambda group: known)

    class Other(BaseModel):
        model: AnyFaultModel

    assert kinds(Other.model_json_schema()["properties"]["model"]) == {"absent"}


def test_near_names():
    assert near("conv1", ["conv2", "fc"]) == "; did you mean 'conv2'?"
    assert near("zzz", ["conv2", "fc"]) == "; known: conv2, fc"
    assert near("zzz", [f"abc{i}" for i in range(13)]) == ""
    assert near("x", []) == ""
