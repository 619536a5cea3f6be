"""Injected runs against loops that put the same faults in by hand."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from examples import resnet20
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from saboteur import workloads
from saboteur.campaign.target import Resources
from saboteur.faults import BitFlip, Dead, Faults, FaultSpace, Noise, RandomValue, StuckAt, StuckValue, draws, lists
from saboteur.faults.formats import number_format
from saboteur.faults.space import Region
from saboteur.levels.software.corruption import Hits, corrupted
from saboteur.levels.software.spec import SoftwareFault
from saboteur.outcomes import Recorder, Sdc1
from saboteur.testing import draw_faults
from tests.software import models
from tests.software.models import plain_target
from tests.software.test_support import assert_same_bits, outputs_of


def faults_at(
    space: FaultSpace, rows: list[tuple[str, int | tuple[int, ...], int, int]], trials: list[int] | None = None
):
    """Faults at (site, index, step, variant), a trial each unless ``trials`` says otherwise."""
    trials = trials or list(range(len(rows)))
    regions = [space.region_of(site) for site, *_ in rows]
    elements = [
        np.ravel_multi_index(index, space.regions[region].shape) if index else 0
        for region, (_, index, _, _) in zip(regions, rows, strict=True)
    ]
    return Faults(
        draws.words(7, np.arange(max(trials) + 1)),
        np.array(trials),
        np.array(regions, np.int32),
        np.array(elements),
        np.array([step for *_, step, _ in rows], np.int32),
        np.array([variant for *_, variant in rows]),
    )


def run_in(batch_size: int, forward, inputs: Tensor) -> Tensor:
    """Outputs in batches of one size, the last one filled up from the first batch."""
    size = -(-len(inputs) // -(-len(inputs) // batch_size))
    out = []
    with torch.inference_mode():
        for start in range(0, len(inputs), size):
            rows = inputs[start : start + size]
            filled = torch.cat([rows, inputs[len(rows) : size]])
            out.append(forward(filled)[: len(rows)])
    return torch.cat(out)


def test_an_exhaustive_campaign_over_a_layer_equals_a_loop() -> None:
    workload = workloads.load("digits-cnn")
    inputs = workload.inputs[:30]
    target = plain_target(workload.model, inputs, workload.labels[:30])
    space = target.space([SoftwareFault(where="weights", layers="conv1", model=BitFlip())])
    assert space.size == 8 * 1 * 3 * 3 * 32
    (stratum,) = space.strata("network")
    faults = Faults(
        np.arange(space.size, dtype=np.uint64), np.arange(space.size), *space.decode(stratum, np.arange(space.size))
    )
    recorder = Recorder(target.golden(), [Sdc1()], space.size, keep_outputs=True)
    target.inject(space, faults, recorder)
    table = recorder.table()

    model = workloads.load("digits-cnn").model
    words = model.conv1.weight.data.view(torch.int32).view(-1)
    with torch.inference_mode():
        golden = model(inputs)
        for number in range(space.size):
            element, bit = divmod(number, 32)
            words[element] ^= 1 << bit if bit < 31 else -(1 << 31)
            faulty = model(inputs)
            words[element] ^= 1 << bit if bit < 31 else -(1 << 31)
            finite = torch.isfinite(faulty).all(1)
            wrong = finite & (faulty.argmax(1) != golden.argmax(1))
            same = (faulty.view(torch.int32) == golden.view(torch.int32)).all(1)
            right = (faulty.argmax(1) == workload.labels[:30]) & finite
            row = {name: table[name][number].as_py() for name in ("identical", "nonfinite", "sdc:sdc-1", "correct")}
            assert row == {
                "identical": int(same.sum()),
                "nonfinite": int((~finite).sum()),
                "sdc:sdc-1": int(wrong.sum()),
                "correct": int(right.sum()),
            }
    assert table["nonfinite"].to_numpy().sum() > 0 and table["sdc:sdc-1"].to_numpy().sum() > 0


def test_a_fault_that_changes_no_bit_is_run_and_gives_golden_bits() -> None:
    """Stuck at the value that is there, at every kind of site at once."""
    model = models.filled(models.ConvNet())
    x = models.numbers(9, 2, 4, 4)
    x[:, 0, 0, 0] = 0.0
    target = plain_target(model, x, resources=Resources(batch_size=4))
    specs = [SoftwareFault(where=w, model=StuckAt()) for w in ("weights", "inputs", "connections")]
    space = target.space(specs)
    sign = int(model.fc.weight[1, 3] < 0)
    faults = faults_at(
        space,
        [
            ("fc.weight", (1, 3), 0, 2 * 31 + sign),
            ("input", (0, 0, 0), 0, 2 * 20),
            ("conv1:connection", (0, 0, 0, 0), 0, 2 * 5),
        ],
        [0, 0, 0],
    )
    assert_same_bits(outputs_of(target, target.golden(), space, faults)[0], torch.from_numpy(target.golden().outputs))


def test_faults_of_one_word_compose_in_their_order() -> None:
    model = models.mlp()
    target = plain_target(model, models.numbers(3, 5))
    space = target.space(
        [
            SoftwareFault(where="weights", model=BitFlip()),
            SoftwareFault(where="weights", model=StuckValue(values=(2.0,))),
        ]
    )
    flip, stuck = 0, 2
    assert space.regions[flip].site == space.regions[stuck].site == "0.weight"

    def outcome(order: list[int], variants: list[int]) -> np.ndarray:
        faults = Faults(
            np.zeros(1, np.uint64),
            np.zeros(len(order), np.int64),
            np.array(order, np.int32),
            np.full(len(order), 7),
            np.zeros(len(order), np.int32),
            np.array(variants),
        )
        return outputs_of(target, target.golden(), space, faults)[0]

    def by_hand(value: float) -> Tensor:
        faulty = models.mlp()
        with torch.no_grad():
            faulty[0].weight.view(-1)[7] = value
        return run_in(64, faulty, models.numbers(3, 5))

    assert_same_bits(outcome([flip, stuck], [31, 0]), by_hand(2.0))
    assert_same_bits(outcome([stuck, flip], [0, 31]), by_hand(-2.0))
    assert_same_bits(outcome([stuck, flip, flip], [0, 31, 31]), by_hand(2.0))


@given(
    rows=st.lists(st.tuples(st.integers(0, 1), st.integers(0, 3), st.integers(0, 31)), max_size=12),
    inferences=st.integers(1, 3),
)
def test_corrupted_equals_one_fault_after_another(rows: list[tuple[int, int, int]], inferences: int) -> None:
    fmt = number_format("float32")
    regions = [Region("a", "a", "weight", (4,), fmt, model) for model in (BitFlip(), StuckAt(value=1))]
    hits = Hits(
        regions,
        np.array([row[0] for row in rows], np.int32),
        np.array([row[1] for row in rows], np.int64),
        np.zeros(len(rows), np.int32),
        np.array([row[2] for row in rows], np.int64),
        np.zeros(len(rows), np.uint64),
    )
    words = draws.words(3, np.arange(inferences * 4)).reshape(inferences, 4) >> np.uint64(32)
    expected = words.astype(object)
    for region, element, bit in rows:
        for inference in range(inferences):
            word = int(expected[inference, element])
            expected[inference, element] = word ^ (1 << bit) if region == 0 else word | (1 << bit)
    assert corrupted(words, np.arange(4), hits, lambda _: fmt).tolist() == expected.tolist()


def test_faults_in_several_kinds_of_site_act_together() -> None:
    model = models.filled(models.ConvNet())
    x = models.numbers(6, 2, 4, 4)
    target = plain_target(model, x)
    space = target.space(
        [SoftwareFault(where=w, model=BitFlip()) for w in ("weights", "buffers", "activations", "operators", "inputs")]
    )
    faults = faults_at(
        space,
        [
            ("input", (1, 2, 3), 0, 30),
            ("conv1.weight", (1, 0, 2, 2), 0, 29),
            ("bn1.running_mean", (2,), 0, 28),
            ("relu:output", (3, 1, 1), 0, 27),
            ("add#0", (0, 3, 3), 0, 31),
        ],
        [0] * 5,
    )

    def flip(value: Tensor, index: tuple, bit: int) -> None:
        value.view(torch.int32)[index] ^= 1 << bit if bit < 31 else -(1 << 31)

    faulty = copy.deepcopy(model)
    flip(faulty.conv1.weight.data, (1, 0, 2, 2), 29)
    flip(faulty.bn1.running_mean, (2,), 28)

    def forward(x: Tensor) -> Tensor:
        x = x.clone()
        flip(x, (slice(None), 1, 2, 3), 30)
        y = torch.relu(faulty.bn1(faulty.conv1(x)))
        flip(y, (slice(None), 3, 1, 1), 27)
        y = faulty.conv2(y) + y
        flip(y, (slice(None), 0, 3, 3), 31)
        y = torch.relu(y)
        flip(y, (slice(None), 3, 1, 1), 27)
        return faulty.fc(torch.flatten(torch.max_pool2d(y, 2), 1))

    assert_same_bits(outputs_of(target, target.golden(), space, faults)[0], run_in(64, forward, x))


@pytest.mark.parametrize("duration", ["transient", "permanent"])
def test_a_module_called_twice(duration: str) -> None:
    model = models.filled(models.Twice())
    x = models.numbers(6, 5)
    target = plain_target(model, x)
    space = target.space([SoftwareFault(where="activations", layers="fc", model=BitFlip(), duration=duration)])
    assert space.regions[0].steps == (2 if duration == "transient" else 1)
    steps = range(space.regions[0].steps)
    seen = outputs_of(target, target.golden(), space, faults_at(space, [("fc:output", (2,), s, 30) for s in steps]))

    def forward(x: Tensor, calls: set[int]) -> Tensor:
        for call in (0, 1):
            x = model.fc(x)
            if call in calls:
                x.view(torch.int32)[:, 2] ^= 1 << 30
            x = torch.tanh(x) if call == 0 else x
        return x

    for step in steps:
        calls = {step} if duration == "transient" else {0, 1}
        assert_same_bits(seen[step], run_in(64, lambda x, c=calls: forward(x, c), x))


@pytest.mark.parametrize("where", ["weights", "activations"])
def test_intermittent_faults_act_in_some_inferences(where: str) -> None:
    model = models.mlp()
    x = models.numbers(40, 5)
    target = plain_target(model, x, resources=Resources(batch_size=16))
    steady = target.space([SoftwareFault(where=where, layers="0", model=BitFlip(bits=(30,)))])
    spec = SoftwareFault(where=where, layers="0", model=BitFlip(bits=(30,)), duration="intermittent", activity=0.3)
    space = target.space([spec])
    assert space.regions[0].steps == 1
    rows = [(space.regions[0].site, (1,) * len(space.regions[0].shape), 0, 0)] * 3
    golden = target.golden()
    always = outputs_of(target, golden, steady, faults_at(steady, rows))
    seen = outputs_of(target, golden, space, faults_at(space, rows))
    keys = draws.words(7, np.arange(3))
    acting_at_all = 0
    for trial in range(3):
        acts = faults_at(space, rows).acts(0.3, np.arange(40), trial)
        acting_at_all += acts.sum()
        assert_same_bits(seen[trial], torch.from_numpy(np.where(acts[:, None], always[trial], golden.outputs)))
    assert 12 <= acting_at_all <= 60 and len(set(keys.tolist())) == 3


def test_intermittent_and_permanent_faults_in_one_trial() -> None:
    x = models.numbers(20, 5)
    target = plain_target(models.mlp(), x)
    space = target.space(
        [
            SoftwareFault(
                where="weights", layers="0", model=BitFlip(bits=(30,)), duration="intermittent", activity=0.5
            ),
            SoftwareFault(where="weights", layers="2", model=BitFlip(bits=(31,))),
        ]
    )
    golden = target.golden()
    both = faults_at(space, [("0.weight", (0, 0), 0, 0), ("2.weight", (0, 0), 0, 0)], [0, 0])
    acts = both.acts(0.5, np.arange(20), 0)
    assert 0 < acts.sum() < 20

    def by_hand(first: bool) -> Tensor:
        faulty = models.mlp()
        with torch.no_grad():
            faulty[2].weight[0, 0] *= -1
            if first:
                faulty[0].weight.data.view(torch.int32)[0, 0] ^= 1 << 30
        return run_in(64, faulty, x)

    expected = torch.where(torch.from_numpy(acts)[:, None], by_hand(True), by_hand(False))
    assert_same_bits(outputs_of(target, golden, space, both)[0], expected)


@pytest.mark.parametrize("granularity", ["channel", "layer"])
@pytest.mark.parametrize("where", ["activations", "operators", "inputs"])
def test_whole_channels_and_layers(where: str, granularity: str) -> None:
    model = models.filled(models.ConvNet())
    x = models.numbers(6, 2, 4, 4)
    target = plain_target(model, x)
    place = {"activations": "conv2:output", "operators": "add#0", "inputs": "input"}[where]
    spec = SoftwareFault(where=where, granularity=granularity, model=Dead(outputs=("zero", "high")))
    space = target.space([spec])
    region = space.regions[space.region_of(f"{place}:{granularity}")]
    channels = 2 if where == "inputs" else 4
    assert region.shape == ((channels,) if granularity == "channel" else ())
    index = (1,) if granularity == "channel" else ()
    seen = outputs_of(target, target.golden(), space, faults_at(space, [(f"{place}:{granularity}", index, 0, 0)]))

    def dead(value: Tensor, name: str) -> Tensor:
        value = value.clone()
        if name == where:
            value[:, 1 if granularity == "channel" else slice(None)] = 0.0
        return value

    def forward(x: Tensor) -> Tensor:
        y = torch.relu(model.bn1(model.conv1(dead(x, "inputs"))))
        y = torch.relu(dead(dead(model.conv2(y), "activations") + y, "operators"))
        return model.fc(torch.flatten(torch.max_pool2d(y, 2), 1))

    assert_same_bits(seen[0], run_in(64, forward, x))


def test_noise_on_a_channel_differs_from_word_to_word_and_not_from_input_to_input() -> None:
    model = nn.Sequential(nn.Identity()).eval()
    x = torch.zeros(3, 2, 4)
    target = plain_target(model, x, outputs="values")
    space = target.space([SoftwareFault(where="activations", granularity="channel", model=Noise(additive=1.0))])
    seen = outputs_of(target, target.golden(), space, faults_at(space, [("0:output:channel", (1,), 0, 0)]))[0]
    assert (seen[:, 0] == 0).all()
    assert len(np.unique(seen[0, 1])) == 4
    assert (seen[0] == seen[1]).all() and (seen[0] == seen[2]).all()


def test_the_last_axis_of_a_sequence_counts_channels() -> None:
    model = models.filled(models.Tokens())
    target = plain_target(model, torch.arange(12).reshape(2, 6) % 11, output="logits")
    space = target.space([SoftwareFault(where="activations", granularity="channel", model=Dead())])
    assert {r.site: r.shape for r in space.regions}["embedding:output:channel"] == (8,)


def test_nan_payloads_survive() -> None:
    model = nn.Sequential(nn.Identity()).eval()
    target = plain_target(model, torch.ones(2, 1), outputs="values")
    space = target.space([SoftwareFault(where="activations", model=RandomValue())])
    faults = Faults(
        np.arange(400, dtype=np.uint64),
        np.arange(400),
        *(np.zeros(400, kind) for kind in (np.int32, np.int64, np.int32, np.int64)),
    )
    seen = outputs_of(target, target.golden(), space, faults)
    assert (seen.view(np.uint32)[:, 0, 0] == faults.drawn >> np.uint64(32)).all()
    assert np.isnan(seen).any()


class Counts(nn.Module):
    """Looks its integer input up in a table of 11."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.embedding(tokens).sum(1)


def test_a_crash_is_that_of_the_input_that_crashes() -> None:
    model = models.filled(Counts())
    tokens = torch.tensor([[10, 1], [3, 4], [9, 0], [10, 10], [8, 2]])
    target = plain_target(model, tokens, resources=Resources(batch_size=3))
    space = target.space([SoftwareFault(where="inputs", model=BitFlip())])
    assert space.regions[0].format.name == "int64"
    faults = faults_at(space, [("input", (0,), 0, 0), ("input", (0,), 0, 63), ("input", (1,), 0, 0)])
    recorder = Recorder(target.golden(), (), 3, keep_outputs=True)
    target.inject(space, faults, recorder)
    table, pairs = recorder.table(), recorder.pairs()
    assert table["crash"].to_pylist() == [2, 5, 1]
    assert table["invalid"].null_count == 3
    expected = model(torch.tensor([[2, 4], [8, 0], [9, 2]]))
    first = [(i, o) for t, i, o in zip(*(pairs[n].to_pylist() for n in pairs.column_names), strict=True) if t == 0]
    assert [i for i, _ in first] == [1, 2, 4]
    assert torch.tensor([o for _, o in first]).equal(expected)


def test_a_failure_of_the_harness_is_invalid_and_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    from saboteur.levels.software import signals

    model = models.mlp()
    target = plain_target(model, models.numbers(4, 5))
    space = target.space([SoftwareFault(where="activations", model=BitFlip())])
    recorder = Recorder(target.golden(), (), 1)

    def fails(*_: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(signals, "tensor_of", fails)
    target.inject(space, faults_at(space, [("0:output", (1,), 0, 3)]), recorder)
    assert recorder.table()["invalid"].to_pylist() == ["0: RuntimeError: broken"]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_settings_of_pytorch_are_put_back() -> None:
    def settings() -> tuple:
        cudnn = torch.backends.cudnn
        return (
            torch.get_num_threads(),
            torch.backends.mha.get_fastpath_enabled(),
            cudnn.deterministic,
            cudnn.benchmark,
            torch.is_inference_mode_enabled(),
            torch.get_rng_state().tolist(),
        )

    model = models.mlp()
    before = settings()
    target = plain_target(model, models.numbers(4, 5), resources=Resources(threads=2))
    target.golden()
    assert settings() == before


def test_a_model_whose_inputs_interact_is_run_one_input_at_a_time() -> None:
    class Centred(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x) - self.fc(x).mean(0)

    model, x = models.filled(Centred()), models.numbers(6, 5)
    golden = plain_target(model, x, outputs="values").golden()
    assert golden.environment["batch_size"] == "1"
    assert (golden.outputs == 0).all()


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("duration", ["transient", "permanent"])
def test_hidden_states_against_an_unrolled_loop(kind: type, batch_first: bool, duration: str) -> None:
    model = models.filled(models.Recurrent(kind, layers=2, batch_first=batch_first))
    x = models.numbers(6, 7, 4)
    target = plain_target(model, x)
    space = target.space([SoftwareFault(where="hidden_state", model=StuckValue(values=(0.9,)), duration=duration)])
    assert space.regions[0].shape == (2, 5)
    assert space.regions[0].steps == (7 if duration == "transient" else 1)
    rows = [("rnn:hidden_state", (layer, 3), step, 0) for layer in (0, 1) for step in range(space.regions[0].steps)]
    seen = outputs_of(target, target.golden(), space, faults_at(space, rows))
    for trial, (_, (layer, unit), faulty_step, _) in enumerate(rows):
        state = torch.zeros(2, 6, 5)
        with torch.inference_mode():
            for step in range(7):
                one = x[:, step : step + 1] if batch_first else x[:, step : step + 1].transpose(0, 1)
                _, state = model.rnn(one, state)
                if duration == "permanent" or step == faulty_step:
                    state[layer, :, unit] = 0.9
            expected = model.fc(state[-1])
        np.testing.assert_allclose(seen[trial], expected.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [nn.RNNCell, nn.GRUCell, nn.LSTMCell])
def test_states_of_cells(kind: type) -> None:
    model = models.filled(models.Cells(kind))
    x = models.numbers(6, 5, 4)
    target = plain_target(model, x)
    wheres = ["hidden_state", *(["cell_state"] if kind is nn.LSTMCell else [])]
    space = target.space([SoftwareFault(where=w, model=BitFlip(), duration="transient") for w in wheres])
    rows = [(f"cell:{where}", (2,), 3, 30) for where in wheres]
    seen = outputs_of(target, target.golden(), space, faults_at(space, rows))
    for trial, where in enumerate(wheres):

        def forward(x: Tensor, where=where) -> Tensor:
            state = None
            for step in range(5):
                state = model.cell(x[:, step], state)
                if step == 3:
                    part = state[1 if where == "cell_state" else 0] if isinstance(state, tuple) else state
                    part.view(torch.int32)[:, 2] ^= 1 << 30
            return model.fc(state[0] if isinstance(state, tuple) else state)

        assert_same_bits(seen[trial], run_in(64, forward, x))


def test_hidden_and_cell_state_in_one_trial() -> None:
    model = models.filled(models.Recurrent(nn.LSTM))
    x = models.numbers(4, 6, 4)
    target = plain_target(model, x)
    model_of = StuckValue(values=(0.5,))
    space = target.space(
        [SoftwareFault(where=w, model=model_of, duration="transient") for w in ("hidden_state", "cell_state")]
    )
    rows = [("rnn:hidden_state", (0, 1), 2, 0), ("rnn:cell_state", (0, 4), 2, 0), ("rnn:cell_state", (0, 0), 5, 0)]
    seen = outputs_of(target, target.golden(), space, faults_at(space, rows, [0, 0, 0]))
    state = (torch.zeros(1, 4, 5), torch.zeros(1, 4, 5))
    with torch.inference_mode():
        for step in range(6):
            _, state = model.rnn(x[:, step : step + 1], state)
            if step == 2:
                state[0][0, :, 1], state[1][0, :, 4] = 0.5, 0.5
        expected = model.fc(state[0][0])
    np.testing.assert_allclose(seen[0], expected.numpy(), rtol=1e-5, atol=1e-6)


def test_several_inputs_and_a_tuple_of_outputs() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(5, 3)

        def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            return x, self.fc(x) + y

    model, x, y = models.filled(Two()), models.numbers(7, 5), models.numbers(7, 3, phase=1.0)
    target = plain_target(model, (x, y), output=1)
    space = target.space([SoftwareFault(where="inputs", layers="input1", model=BitFlip())])
    assert [region.site for region in space.regions] == ["input1"]
    seen = outputs_of(target, target.golden(), space, faults_at(space, [("input1", (2,), 0, 31)]))
    y[:, 2] *= -1
    assert_same_bits(seen[0], run_in(64, lambda xs: model(xs, y)[1], x))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), (4, 7, 6)),
        (nn.Conv2d(2, 3, (2, 3), padding=(0, 2), dilation=(1, 2)), (2, 5, 6)),
        (nn.Conv2d(2, 3, (2, 4), padding="same"), (2, 4, 5)),
        (nn.Conv2d(4, 4, 3, padding="valid", groups=4), (4, 5, 5)),
        (nn.Conv1d(2, 3, 4, padding="same", dilation=2), (2, 9)),
        (nn.Linear(4, 3), (5, 4)),
    ],
    ids=str,
)
def test_connections_of_any_geometry(layer: nn.Module, shape: tuple[int, ...]) -> None:
    """A layer with one weight left shows what that connection contributes to each of its neurons."""
    model = models.filled(nn.Sequential(layer))
    x = models.numbers(3, *shape)
    target = plain_target(model, x, outputs="values")
    golden = target.golden()
    space = target.space([SoftwareFault(where="connections", model=StuckValue(values=(1.5,)))])
    (region,) = space.regions
    assert region.shape == (*golden.outputs.shape[1:], layer.weight[0].numel())
    faults = draw_faults(space, 60)
    seen = outputs_of(target, golden, space, faults)
    for trial in range(60):
        *neuron, tap = np.unravel_index(faults.element[trial], region.shape)
        channel = neuron[-1] if isinstance(layer, nn.Linear) else neuron[0]
        alone = copy.deepcopy(layer)
        with torch.no_grad():
            alone.weight.view(len(alone.weight), -1)[:] = 0
            weight = layer.weight.view(len(alone.weight), -1)[channel, tap]
            alone.weight.view(len(alone.weight), -1)[channel, tap] = weight
            alone.bias[:] = 0
            expected = layer(x)
            at = (slice(None), *neuron)
            expected[at] += weight * 1.5 - alone(x)[at]
        np.testing.assert_allclose(seen[trial], expected.numpy(), rtol=1e-5, atol=1e-5)


def test_trace_follows_an_error() -> None:
    model = models.filled(models.ConvNet())
    target = plain_target(model, models.numbers(5, 2, 4, 4), resources=Resources(batch_size=2))
    space = target.space([SoftwareFault(where="activations", model=StuckValue(values=(1e6,)))])
    trace = target.trace(space, faults_at(space, [("conv2:output", (1, 2, 2), 0, 0)]), 3)
    rows = {row["place"]: row for row in trace.to_pylist()}
    assert list(rows) == [
        *("input", "conv1", "bn1", "relu", "conv2", "add#0", "relu[1]", "max_pool2d#0", "flatten#0", "fc", "output")
    ]
    assert [rows[place]["changed"] for place in ("input", "relu", "conv2", "add#0", "max_pool2d#0")] == [0, 0, 1, 1, 1]
    assert rows["conv2"]["elements"] == 64
    assert rows["conv2"]["max_abs_error"] == pytest.approx(1e6, rel=1e-5)
    assert rows["conv2"]["rms_error"] == pytest.approx(1e6 / 8, rel=1e-5)
    assert rows["output"]["changed"] == 3 and rows["output"]["max_abs_error"] > 1e4


def test_trace_ends_where_the_model_crashes() -> None:
    model = models.filled(Counts())
    target = plain_target(model, torch.tensor([[10, 1], [3, 4]]))
    space = target.space([SoftwareFault(where="inputs", model=BitFlip())])
    trace = target.trace(space, faults_at(space, [("input", (0,), 0, 40)]), 1)
    assert trace["place"].to_pylist() == ["input", "crash"]
    assert trace["changed"].to_pylist() == [1, 0]


@pytest.mark.shared
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("images", "faults"), [(200, 20), pytest.param(1000, 200, marks=pytest.mark.slow)])
def test_resnet20_and_the_published_fault_list(shared_data: Path, images: int, faults: int) -> None:
    model = resnet20.model()
    x, y = (part[:images] for part in resnet20.data())
    target = plain_target(model, x, y)
    golden = target.golden()
    space = target.space([SoftwareFault(where="weights", model=BitFlip())])
    published = lists.read(shared_data / "resnet20-cifar10" / "published" / "dnnbench_ResNet20_FL.csv.gz")
    table = published.slice(0, faults)
    chosen = lists.from_table(space, table, key=1)
    recorder = Recorder(golden, [Sdc1()], faults)
    target.inject(space, chosen, recorder)
    counts = recorder.table()

    size = -(-images // -(-images // 64))
    loop = resnet20.model()

    def answers() -> Tensor:
        return run_in(64, loop, x)

    before = answers()
    assert size <= 64
    assert_same_bits(golden.outputs, before)
    for row, fault in enumerate(table.to_pylist()):
        weight = loop.get_submodule(fault["Layer"]).weight.data
        word = weight.view(torch.int32)[tuple(int(i) for i in fault["TensorIndex"].strip("()").split(","))]
        bit = fault["Bit"]
        word ^= 1 << bit if bit < 31 else -(1 << 31)
        after = answers()
        word ^= 1 << bit if bit < 31 else -(1 << 31)
        finite = torch.isfinite(after).all(1)
        assert counts["nonfinite"][row].as_py() == int((~finite).sum())
        assert counts["sdc:sdc-1"][row].as_py() == int((finite & (after.argmax(1) != before.argmax(1))).sum())
        assert counts["correct"][row].as_py() == int((finite & (after.argmax(1) == y)).sum())
    assert pa.compute.sum(counts["sdc:sdc-1"]).as_py() > 0


@pytest.mark.shared
def test_golden_accuracy_of_resnet20(shared_data: Path) -> None:
    x, y = (part[:1000] for part in resnet20.data())
    model = resnet20.model()
    golden = plain_target(model, x, y).golden()
    assert golden.correct.sum() == int((run_in(64, model, x).argmax(1) == y).sum())
    assert golden.accuracy == pytest.approx(0.9148, abs=0.02)
