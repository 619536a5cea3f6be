"""The rest of a network from changed values: every output equals that of the whole network, run by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from saboteur import workloads
from saboteur.errors import TargetError
from saboteur.levels.crosslayer.suffix import Call, Changes, GoldenValues, Network, products
from saboteur.workloads.int8 import (
    Dequantize,
    Int8Add,
    Int8AvgPool2d,
    Int8Conv2d,
    Int8Linear,
    Int8MatMul,
    Int8MaxPool2d,
    Int8Pad,
    Int8ReLU,
    Int8Softmax,
    Quantize,
)

INT8_WORKLOADS = [name for name in workloads.names() if name.endswith("-int8")]


def randomised(model: nn.Module, seed: int, shift: int = 7) -> nn.Module:
    """The model with random weights, biases and zero points; scales that use the whole range of int8."""
    rng = np.random.default_rng(seed)
    for name, values in (*model.named_parameters(), *model.named_buffers()):
        kind = name.rsplit(".", 1)[-1]
        if kind in ("weight", "zero_points") or kind.endswith("zero_point"):
            drawn = rng.integers(-20, 20, values.shape)
        elif kind == "bias":
            drawn = rng.integers(-2000, 2000, values.shape)
        elif kind in ("multiplier", "multipliers"):
            drawn = rng.integers(2**30, 2**31, values.shape)
        elif kind in ("shift", "shifts"):
            drawn = np.full(values.shape, shift)
        elif kind == "exponentials":
            drawn = rng.integers(0, 2**16, values.shape)
        else:
            drawn = np.full(values.shape, 0.02)
        values.data.copy_(torch.from_numpy(np.asarray(drawn)))
    return model.eval().requires_grad_(False)


@settings(max_examples=40, deadline=None)
@given(st.tuples(*(st.integers(1, 9),) * 3), st.booleans(), st.integers(0, 1 << 20))
def test_products_are_elements_of_the_whole_product(sizes: tuple[int, int, int], own_b: bool, seed: int) -> None:
    generator, images = np.random.default_rng(seed), 3
    m, k, n = sizes
    a = generator.integers(-128, 128, (images, m, k)).astype(np.int8)
    b = generator.integers(-128, 128, (images if own_b else 1, k, n)).astype(np.int8)
    image, row, column = (generator.integers(0, size, 50) for size in (images, m, n))
    whole = a.astype(np.int64) @ b.astype(np.int64)
    assert np.array_equal(products(a, b, image, row, column), whole[image, row, column])


def test_products_wrap_at_32_bits() -> None:
    a, b = np.full((1, 1, 1 << 17), -128, np.int8), np.full((1, 1 << 17, 1), -128, np.int8)
    first = np.zeros(1, np.int64)
    assert products(a, b, first, first, first).tolist() == [-(1 << 31)]


class Residual(nn.Module):
    """Strided convolutions, a sum of a tensor with itself and with a shortcut that drops and pads, pooling, ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.quantize = Quantize()
        self.conv1 = Int8Conv2d(2, 5, 3, padding=1)
        self.twice = Int8Add()
        self.conv2 = Int8Conv2d(5, 9, 3, stride=2, padding=1, relu=True)
        self.conv3 = Int8Conv2d(9, 9, 2, padding=1)
        self.pad = Int8Pad((0, 1, 0, 1, 2, 2))
        self.add = Int8Add(relu=True)
        self.relu = Int8ReLU()
        self.pool, self.mean = Int8MaxPool2d(), Int8AvgPool2d(2)
        self.fc = Int8Linear(9, 4)
        self.dequantize = Dequantize()

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(self.quantize(x))
        x = self.twice(x, x)
        y = self.conv3(self.conv2(x))
        x = self.relu(self.add(y, self.pad(x[:, :, ::2, ::2])))
        x = self.mean(self.pool(x)).flatten(1)
        return self.dequantize(self.fc(x))


class Attention(nn.Module):
    """Tokens, stacked matrix products, a tuple in between, and a layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.quantize = Quantize()
        self.qkv = Int8Linear(6, 3 * 8)
        self.scores, self.mix = Int8MatMul(), Int8MatMul()
        self.softmax = Int8Softmax()
        self.project = Int8Linear(8, 8)
        self.fc = Int8Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.quantize(x)).chunk(3, -1)
        scores = self.scores(self._heads(q), self._heads(k).transpose(-1, -2))
        mixed = self.mix(self.softmax(scores), self._heads(v))
        tokens = self.project(mixed.transpose(1, 2).reshape(mixed.shape[0], 5, 8))
        return self.fc(self.project(tokens)).flatten(1)

    @staticmethod
    def _heads(part: Tensor) -> Tensor:
        return part.reshape(part.shape[0], 5, 2, 4).transpose(1, 2)


def residual() -> tuple[nn.Module, Tensor]:
    return randomised(Residual(), 1), torch.from_numpy(np.random.default_rng(2).normal(size=(6, 2, 8, 8))).float()


def attention() -> tuple[nn.Module, Tensor]:
    return randomised(Attention(), 3), torch.from_numpy(np.random.default_rng(4).normal(size=(6, 5, 6))).float()


def embedded(name: str) -> tuple[nn.Module, Tensor]:
    workload = workloads.load(name)
    return workload.model, workload.inputs[:6]


NETWORKS = {name: lambda name=name: embedded(name) for name in INT8_WORKLOADS}
NETWORKS |= {"residual": residual, "attention": attention}


def calls_of(model: nn.Module, inputs: Tensor) -> list[Call]:
    """Every call of an integer layer."""
    found: list[Call] = []
    hooks = []
    for path, module in model.named_modules():
        if isinstance(module, Int8Conv2d | Int8Linear | Int8MatMul):

            def count(_module: nn.Module, _args: object, _output: object, path: str = path) -> None:
                found.append(Call(path, sum(call.path == path for call in found)))

            hooks.append(module.register_forward_hook(count))
    model(inputs)
    for hook in hooks:
        hook.remove()
    return found


def by_hand(model: nn.Module, one: Tensor, faults: Sequence[tuple[Call, int, int]]) -> bytes:
    """The output for one input with elements (call, position, value) overwritten on the way."""
    hooks, calls = [], dict.fromkeys((call.path for call, *_ in faults), 0)
    for path in calls:

        def overwrite(_module: nn.Module, _args: object, output: Tensor, path: str = path) -> Tensor:
            changed = output.clone()
            for call, position, value in faults:
                if call == Call(path, calls[path]):
                    changed.view(-1)[position] = value
            calls[path] += 1
            return changed

        hooks.append(model.get_submodule(path).register_forward_hook(overwrite))
    try:
        return model(one[None]).numpy().tobytes()
    finally:
        for hook in hooks:
            hook.remove()


def run(
    network: Network, golden: GoldenValues, inputs: np.ndarray, faults: Sequence[tuple[int, Call, int, int]]
) -> dict[int, bytes]:
    """The outputs of pairs that differ from golden; faults are (pair, call, position, value)."""
    slot = golden.slots_of(inputs)
    hardware = {}
    for call in {fault[1] for fault in faults}:
        columns = np.array([(pair, position, value) for pair, at, position, value in faults if at == call])
        changes = Changes.of(len(slot), columns[:, 0], columns[:, 1], columns[:, 2].astype(np.int8))
        hardware[call] = lambda moved, rows, changes=changes: changes
    pairs, outputs = network.outputs(golden, slot, hardware)
    return {pair: output.tobytes() for pair, output in zip(pairs.tolist(), outputs, strict=True)}


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_equal_the_whole_network(name: str) -> None:
    model, inputs = NETWORKS[name]()
    calls = calls_of(model, inputs)
    network = Network(model, (inputs,), calls)
    golden = GoldenValues(network, (inputs,), 6)
    rng = np.random.default_rng(5)
    pairs = 120
    of = np.sort(rng.integers(0, len(inputs), pairs))
    slots = golden.slots_of(np.arange(len(inputs)))
    faults = []
    for pair in range(pairs):
        for _ in range(1 + pair % 3):
            call = calls[rng.integers(len(calls))]
            values = network.results(golden, call)[slots[of[pair]]]
            position = int(rng.integers(values.size))
            if (pair, call, position) not in [fault[:3] for fault in faults]:
                faults.append((pair, call, position, int(values[position]) ^ (1 << int(rng.integers(7)))))
    found = run(network, golden, of, faults)
    expected = [model(inputs[i : i + 1]).numpy().tobytes() for i in range(len(inputs))]
    for pair in range(pairs):
        output = by_hand(model, inputs[of[pair]], [fault[1:] for fault in faults if fault[0] == pair])
        assert found.get(pair, expected[of[pair]]) == output
        assert (pair in found) == (output != expected[of[pair]])
    assert len(found) > 0


def test_faulty_hardware_sees_the_arguments_that_earlier_faults_leave() -> None:
    """And may restore golden values."""
    model, inputs = embedded("digits-cnn-int8")
    first, second = Call("conv1", 0), Call("conv2", 0)
    network = Network(model, (inputs,), [first, second])
    golden = GoldenValues(network, (inputs,), 6)
    slot = golden.slots_of(np.array([0, 3, 5]))
    before = int(network.results(golden, first)[slot[1], 7])
    seen = {}

    def spoils(moved: np.ndarray, rows: object) -> Changes:
        assert not moved.any()
        return Changes.of(3, np.array([1]), np.array([7]), np.array([before ^ 64], np.int8))

    def looks(moved: np.ndarray, rows) -> Changes:  # type: ignore[no-untyped-def]
        seen["moved"], (seen["argument"],) = moved.tolist(), rows(np.array([0, 1]))
        return Changes.of(3, *np.zeros((2, 0), np.int64), np.zeros(0, np.int8))

    def restores(moved: np.ndarray, rows: object) -> Changes:
        values = network.results(golden, second)[slot[1]]
        return Changes.of(3, np.full(values.size, 1), np.arange(values.size), values)

    changed, _ = network.outputs(golden, slot, {first: spoils, second: looks})
    assert changed.tolist() == [1]
    expected = model.conv1(model.quantize(inputs[[0, 3]]))
    expected.view(2, -1)[1, 7] = before ^ 64
    assert seen["moved"] == [False, True, False]
    assert torch.equal(seen["argument"], expected)
    changed, outputs = network.outputs(golden, slot, {first: spoils, second: restores})
    assert len(changed) == len(outputs) == 0


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(1, 2),
    st.integers(0, 2),
    st.integers(1, 20),
    st.integers(-(2**31), 2**31 - 1),
    st.integers(0, 31),
    st.booleans(),
    st.integers(0, 2**32),
)
def test_any_layer_bit_for_bit(
    kernel: int, stride: int, padding: int, outputs: int, bias: int, shift: int, relu: bool, seed: int
) -> None:
    """Sums that wrap, every shift, every geometry."""

    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before = Int8ReLU()
            self.conv = Int8Conv2d(3, outputs, kernel, stride=stride, padding=padding, relu=relu)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(self.before(x))

    rng = np.random.default_rng(seed)
    model = randomised(One(), seed, shift)
    model.conv.weight.copy_(torch.from_numpy(rng.integers(-128, 128, model.conv.weight.shape)))
    model.conv.bias.copy_(torch.from_numpy(rng.integers(-(2**31), 2**31, outputs)))
    model.conv.bias[0] = bias
    inputs = torch.from_numpy(rng.integers(-128, 128, (2, 3, 5, 4)).astype(np.int8))
    network = Network(model, (inputs,), [Call("before", 0)])
    golden = GoldenValues(network, (inputs,), 2)
    faults = [
        (pair, Call("before", 0), int(position), int(rng.integers(-128, 128)))
        for pair in range(2)
        for position in rng.choice(60, rng.integers(1, 40), replace=False)
    ]
    found = run(network, golden, np.arange(2), faults)
    for pair in range(2):
        output = by_hand(model, inputs[pair], [fault[1:] for fault in faults if fault[0] == pair])
        assert found.get(pair, model(inputs[pair : pair + 1]).numpy().tobytes()) == output


def test_few_slots_are_filled_again() -> None:
    """Values that made room come back; more inputs at once than slots are refused."""
    model, inputs = residual()
    network = Network(model, (inputs,), [Call("conv1", 0)])
    few, all_of_them = GoldenValues(network, (inputs,), 2), GoldenValues(network, (inputs,), 99)
    assert all_of_them.slots == 6
    for wanted in ([0, 1], [1, 2], [5, 2], [0], [3, 4], [5, 0]):
        slots = few.slots_of(np.array(wanted))
        others = all_of_them.slots_of(np.array(wanted))
        for index, values in few.values.items():
            assert np.array_equal(values[slots], all_of_them.values[index][others])
        for index, (sums, _) in few.layers.items():
            assert np.array_equal(sums[slots], all_of_them.layers[index][0][others])
    with pytest.raises(ValueError, match="3 at once with 2 slots"):
        few.slots_of(np.array([1, 2, 3]))


def test_bytes_each_is_what_is_kept() -> None:
    model, inputs = residual()
    network = Network(model, (inputs,), [Call("conv1", 0)])
    golden = GoldenValues(network, (inputs,), 3)
    arrays = [*golden.values.values(), *(array for pair in golden.layers.values() for array in pair)]
    assert network.bytes_each == sum(array.nbytes for array in arrays) // 3


def test_what_cannot_be_run_from_the_middle_says_so() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = Int8Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x) if x.sum() > 0 else x

    model = randomised(Branches(), 0)
    with pytest.raises(TargetError, match=r"torch.fx cannot trace it.*engine plain"):
        Network(model, (torch.ones(3, 4, dtype=torch.int8),), [Call("fc", 0)])


def test_layers_that_compute_something_else_are_noticed() -> None:
    class Own(Int8Linear):
        def forward(self, inputs: Tensor) -> Tensor:
            return super().forward(inputs) ^ 1

    model = randomised(nn.Sequential(Int8Linear(4, 4), Own(4, 4)), 0, shift=9)
    inputs = torch.from_numpy(np.random.default_rng(1).integers(-128, 128, (3, 4)).astype(np.int8))
    golden = GoldenValues(Network(model, (inputs,), [Call("0", 0)]), (inputs,), 3)
    with pytest.raises(TargetError, match="something else than int8 layers"):
        golden.slots_of(np.arange(3))
