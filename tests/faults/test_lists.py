from __future__ import annotations

import time

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saboteur.errors import FaultError
from saboteur.faults import BitFlip, Dead, Faults, FaultSpace, Region, StuckAt, lists, number_format

COLUMNS = ("key", "trial", "region", "element", "step", "variant")
INT8, FLOAT32 = number_format("int8"), number_format("float32")


def region(site, shape, model, fmt=INT8, **more) -> Region:
    return Region(site, site.rpartition(".")[0], "weight", shape, fmt, model, **more)


CONV = region("conv1.weight", (4, 3, 2), BitFlip(), FLOAT32)
SPACE = FaultSpace(
    (
        CONV,
        region("fc.weight", (5,), BitFlip()),
        region("fc.weight", (5,), BitFlip(count=2)),
        region("fc.weight", (5,), BitFlip(), duration="transient", steps=3),
        region("gain.weight", (), StuckAt()),
        region("act.weight", (12, 12), Dead(outputs=("zero", "high"))),
    )
)


def same(a: Faults, b: Faults) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in COLUMNS)


@st.composite
def many_faults(draw) -> Faults:
    region = np.array(draw(st.lists(st.integers(0, len(SPACE.regions) - 1), max_size=12)), np.int32)
    pick = [
        (draw(st.integers(0, r.elements - 1)), draw(st.integers(0, r.steps - 1)), draw(st.integers(0, r.variants - 1)))
        for r in (SPACE.regions[i] for i in region)
    ]
    element, step, variant = np.array(pick, np.int64).reshape(-1, 3).T
    _, trial = np.unique(
        np.sort(draw(st.lists(st.integers(0, 5), min_size=len(region), max_size=len(region)))), return_inverse=True
    )
    trials = int(trial.max()) + 1 if len(trial) else 0
    key = lists.draws.words(42, np.arange(trials))
    return Faults(key, trial.astype(np.int64), region, element, step.astype(np.int32), variant)


@settings(max_examples=40, deadline=None)
@given(many_faults(), st.sampled_from(["list.csv", "list.csv.gz", "list.parquet"]))
def test_lists_come_back_from_files(tmp_path_factory, faults, name):
    path = tmp_path_factory.mktemp("lists") / name
    lists.write(lists.to_table(SPACE, faults), path)
    assert same(lists.from_table(SPACE, lists.read(path), 42), faults)


def test_a_table_reads_as_words():
    one = np.array([0], np.int32)
    faults = Faults(np.zeros(1, np.uint64), np.array([0]), one, np.array([23]), one, np.array([31]))
    assert lists.to_table(SPACE, faults).to_pylist() == [
        {
            "trial": 0,
            "site": "conv1.weight",
            "layer": "conv1",
            "component": "weight",
            "index": "(3, 2, 1)",
            "step": 0,
            "model": "bit_flip",
            "duration": "permanent",
            "bit": 31,
            "variant": 31,
        }
    ]


def test_the_published_form_is_read_as_it_is(tmp_path):
    path = tmp_path / "published.csv"
    path.write_text(
        'Injection,Layer,TensorIndex,Bit,n_injections\n0,conv1,"(3, 0, 1)",15,9\n1,conv1,"(0, 2, 0)",31,9\n'
    )
    faults = lists.from_table(SPACE, lists.read(path), 1)
    assert faults.element.tolist() == [3 * 6 + 1, 4]
    assert faults.variant.tolist() == [15, 31]
    assert faults.trial.tolist() == [0, 1]


def resnet20() -> FaultSpace:
    shapes, channels = {"conv1": (16, 3, 3, 3), "linear": (10, 64)}, 16
    for stage, width in ((1, 16), (2, 32), (3, 64)):
        for block in range(3):
            shapes[f"layer{stage}.{block}.conv1"] = (width, channels, 3, 3)
            shapes[f"layer{stage}.{block}.conv2"] = (width, width, 3, 3)
            channels = width
    return FaultSpace(tuple(region(f"{name}.weight", shape, BitFlip(), FLOAT32) for name, shape in shapes.items()))


@pytest.mark.shared
def test_the_published_resnet20_list(shared_data):
    space = resnet20()
    start = time.perf_counter()
    table = lists.read(shared_data / "resnet20-cifar10/published/dnnbench_ResNet20_FL.csv.gz")
    faults = lists.from_table(space, table, 1)
    assert time.perf_counter() - start < 2
    assert faults.trials == len(faults.element) == 16_627
    again = lists.to_table(space, faults)
    assert again["index"].to_pylist() == table["TensorIndex"].to_pylist()
    assert again["layer"].to_pylist() == table["Layer"].to_pylist()
    assert again["bit"].to_pylist() == table["Bit"].to_pylist()


def test_rows_of_one_trial_are_gathered_in_order():
    table = pa.table(
        {
            "trial": [7, 3, 7],
            "site": ["conv1.weight"] * 3,
            "index": ["(0,0,1)", "0,0,0", "[ 1, 0,0, ]"],
            "bit": [1, 2, 3],
        }
    )
    faults = lists.from_table(SPACE, table, 5)
    assert (faults.trial.tolist(), faults.variant.tolist(), faults.element.tolist()) == (
        [0, 1, 1],
        [2, 1, 3],
        [0, 1, 6],
    )
    assert faults.key.tolist() == lists.draws.words(5, np.arange(2)).tolist()


def test_whole_numbers_address_vectors():
    table = pa.table({"site": ["fc.weight"], "model": ["bit_flip(count=2)"], "index": [4], "variant": [27]})
    faults = lists.from_table(SPACE, table, 5)
    assert (faults.region.tolist(), faults.element.tolist(), faults.variant.tolist()) == ([2], [4], [27])


def conv(**columns):
    return pa.table({"site": ["conv1.weight"] * 2, "index": ["(0, 0, 0)"] * 2, "bit": [0, 1]} | columns)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            conv(site=["conv1.weight", "conv2.weight"]),
            "row 2: site 'conv2.weight' is not in .*did you mean 'conv1.weight'",
        ),
        (conv(site=["conv1.weight", None]), "row 2: site is empty"),
        (
            conv(index=["(0, 0, 0)", "(0, 0)"]),
            r"row 2: index '\(0, 0\)' does not address conv1.weight of shape \(4, 3, 2\)",
        ),
        (conv(index=["(0, 0, 0)", "(0, 3, 0)"]), r"row 2: index '\(0, 3, 0\)'"),
        (conv(index=["(0, 0, -1)", "(0, 0, 0)"]), r"row 1: index '\(0, 0, -1\)'"),
        (conv(index=["(0, 0, 0)", "here"]), "row 2: index 'here'"),
        (conv(index=["(0, 0, 0)", "(1, 2, 3"]), r"row 2: index '\(1, 2, 3'"),
        (conv(index=["(0, 0, 0)", "(0, 0, 99999999999999999999)"]), "row 2: index"),
        (conv(index=["(0, 0, 0)", "()"]), r"row 2: index '\(\)'"),
        (conv(index=[[0], [1]]), "'index' must hold text"),
        (conv(bit=[0, 32]), r"row 2: bit 32 is not one that bit_flip hits in float32 \(bits 0 \.\. 31\)"),
        (conv(bit=[0, -1]), "row 2: bit -1"),
        (conv(bit=["0", "x"]), "'bit' must hold whole numbers"),
        (conv(bit=[0.0, 1.5]), "'bit' must hold whole numbers"),
        (conv(step=[0, 1]), r"row 2: step 1 is outside 0 \.\. 0"),
        (conv(variant=[0, 32]), r"row 2: variant 32 is outside 0 \.\. 31"),
        (conv(variant=[0, 2]), "row 2: bit 1 contradicts variant 2, bit 2"),
        (
            conv(model=["bit_flip", "dead"]),
            "row 2: 'dead' is not a fault of conv1.weight, which has permanent bit_flip",
        ),
        (conv(trial=[1, None]), "row 2: trial is empty"),
        (conv().drop(["site"]), "no column 'site'; it has index, bit"),
        (conv().drop(["index"]), "no column 'index'"),
        (conv().drop(["bit"]), "no column 'bit' or 'variant'"),
        (conv(site=["fc.weight"] * 2, index=["0"] * 2), "row 1: fc.weight has several faults .*'model' and 'duration'"),
        (conv(site=["fc.weight"] * 2, index=["0"] * 2, model=["bit_flip"] * 2), "row 1: fc.weight has several faults"),
        (
            conv(site=["gain.weight"] * 2, index=["()"] * 2),
            "row 1: bit 0 means 2 faults of stuck_at; .* column 'variant'",
        ),
        (conv(site=["act.weight"] * 2, index=["0, 0"] * 2), "row 1: bit 0, but dead.* acts on the value"),
    ],
)
def test_errors_name_row_and_value(table, message):
    with pytest.raises(FaultError, match=message):
        lists.from_table(SPACE, table, 1)


def test_files_that_cannot_be_read_or_written(tmp_path):
    with pytest.raises(FaultError, match=r"neither \.csv, \.csv\.gz nor \.parquet"):
        lists.read(tmp_path / "list.json")
    with pytest.raises(FaultError, match="neither"):
        lists.write(conv(), tmp_path / "list.json")
    with pytest.raises(FaultError, match="cannot read"):
        lists.read(tmp_path / "absent.csv")
    (tmp_path / "cut.parquet").write_bytes(b"PAR1")
    with pytest.raises(FaultError, match="cannot read"):
        lists.read(tmp_path / "cut.parquet")
    (tmp_path / "ragged.csv").write_text("site,index\na,b\na\n")
    with pytest.raises(FaultError, match="cannot read"):
        lists.read(tmp_path / "ragged.csv")
    with pytest.raises(FaultError, match="cannot write"):
        lists.write(conv(), tmp_path / "nowhere" / "list.csv")
