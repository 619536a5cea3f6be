"""Layers as matrix products: finished, the products are the layers' outputs bit for bit, in software and at RTL."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from saboteur.errors import TargetError

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402

from saboteur import workloads  # noqa: E402
from saboteur.levels.crosslayer.lowering import LoweredLayer, Window, lower  # noqa: E402
from saboteur.levels.crosslayer.mapping import OutputStationary, Systolic, WeightStationary  # noqa: E402
from saboteur.levels.hardware import compile, designs, importing  # noqa: E402
from saboteur.levels.hardware.importing import read_verilog  # noqa: E402
from saboteur.levels.hardware.netlist import Design  # noqa: E402
from saboteur.levels.hardware.simulate import Simulator, Stimulus  # noqa: E402
from saboteur.workloads.int8 import Int8Linear  # noqa: E402
from saboteur.workloads.quantization import quantized  # noqa: E402
from tests.workloads.test_quantization import Attention, Residual, trained_at_random  # noqa: E402

EXAMPLES = Path(__file__).parents[2] / "examples"
INT8_WORKLOADS = [name for name in workloads.names() if name.endswith("-int8")]


def calls(model: nn.Module, inputs: Tensor, layers: list[LoweredLayer]) -> list[tuple[tuple[Tensor, ...], Tensor]]:
    """Arguments and output of each layer's call in one inference."""
    seen: dict[str, list[tuple[tuple[Tensor, ...], Tensor]]] = {layer.path: [] for layer in layers}
    modules = {layer.path: layer.module for layer in layers}
    hooks = [
        module.register_forward_hook(lambda _module, args, output, path=path: seen[path].append((args, output)))
        for path, module in modules.items()
    ]
    with torch.no_grad():
        model(inputs)
    for hook in hooks:
        hook.remove()
    return [seen[layer.path][layer.call] for layer in layers]


def assert_equal_to_software(model: nn.Module, inputs: Tensor) -> list[LoweredLayer]:
    layers = lower(model, (inputs[:1],))
    reached = {layer.path: np.zeros(np.prod(layer.output_shape), bool) for layer in layers}
    for layer, (args, output) in zip(layers, calls(model, inputs, layers), strict=True):
        a, b = layer.operands(args)
        assert (a.dtype, b.dtype) == (np.int8, np.int8)
        assert a.shape == (len(inputs), layer.m, layer.k)
        assert b.shape == (1 if layer.shares_b else len(inputs), layer.k, layer.n)
        products = (a.astype(np.float64) @ b).astype(np.int64)
        image, row, column = (axis.ravel() for axis in np.meshgrid(*map(np.arange, products.shape), indexing="ij"))
        found = layer.finish(args, image, row, column, products.ravel())
        assert found.dtype == np.int8
        position = layer.position(row, column)
        np.testing.assert_array_equal(found, output.flatten(1).numpy()[image, position])
        again = layer.element(position)
        np.testing.assert_array_equal(again[0], row)
        np.testing.assert_array_equal(again[1], column)
        reached[layer.path][position] = True
        # Only the low 32 bits of what comes out of an array count.
        np.testing.assert_array_equal(layer.finish(args, image, row, column, products.ravel() + 5 * 2**32), found)
    assert all(places.all() for places in reached.values())
    return layers


@pytest.mark.parametrize("name", INT8_WORKLOADS)
def test_products_of_embedded_workloads_are_their_layers(name: str) -> None:
    workload = workloads.load(name)
    layers = assert_equal_to_software(workload.model, workload.inputs[:7])
    assert [layer.name for layer in layers] == [
        name for name, module in workload.model.named_modules() if hasattr(module, "weight")
    ]


def test_products_of_a_residual_network_are_its_layers() -> None:
    inputs = torch.randn(5, 2, 8, 8, generator=torch.Generator().manual_seed(1))
    layers = assert_equal_to_software(quantized(trained_at_random(Residual, 1), inputs), inputs)
    assert layers[1].window == Window(4, 3, 3, 4, 4, 2, 1, 8, 8)
    assert [(layer.name, layer.m, layer.k, layer.n) for layer in layers] == [
        ("conv1", 64, 18, 4),
        ("conv2", 16, 36, 6),
        ("fc", 1, 6, 3),
    ]


def test_products_of_attention_are_its_layers_head_by_head() -> None:
    inputs = torch.randn(6, 5, 8, generator=torch.Generator().manual_seed(2))
    layers = assert_equal_to_software(quantized(trained_at_random(Attention, 2), inputs), inputs)
    assert [(layer.name, layer.m, layer.k, layer.n) for layer in layers] == [
        *((name, 5, 8, 8) for name in ("query", "key", "value")),
        *((f"matmul:{head}", 5, 4, 5) for head in range(2)),
        *((f"matmul_1:{head}", 5, 5, 4) for head in range(2)),
        ("output", 5, 8, 8),
    ]


@pytest.mark.shared
def test_products_of_resnet20_are_its_layers(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    for module in ("resnet20", "resnet20_int8"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    import resnet20_int8

    layers = assert_equal_to_software(resnet20_int8.model(), resnet20_int8.data()[0][:2])
    assert len(layers) == 20
    assert (layers[0].m, layers[0].k, layers[0].n) == (1024, 27, 16)
    assert (layers[-2].m, layers[-2].k, layers[-2].n) == (64, 576, 64)


class Twice(nn.Module):
    """A shared layer, and tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = Int8Linear(4, 4)
        self.fc.weight.copy_(torch.arange(-8, 8).reshape(4, 4))
        self.fc.input_zero_point.fill_(3)
        self.fc.shift.fill_(3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc(self.fc(tokens))


def test_a_layer_that_is_called_twice_is_two() -> None:
    inputs = torch.arange(-24, 24, dtype=torch.int8).reshape(4, 3, 4)
    layers = assert_equal_to_software(Twice(), inputs)
    assert [(layer.name, layer.path, layer.call, layer.m) for layer in layers] == [
        ("fc[0]", "fc", 0, 3),
        ("fc[1]", "fc", 1, 3),
    ]


def test_faulty_weights_in_place_are_seen() -> None:
    workload = workloads.load("digits-cnn-int8")
    layer = lower(workload.model, (workload.inputs[:1],))[0]
    workload.model.conv1.weight[0, 0, 0, 0] ^= -128
    assert_equal_to_software(workload.model, workload.inputs[:3])
    assert (
        layer.operands((workload.model.quantize(workload.inputs[:1]),))[1][0, 0, 0]
        == workload.model.conv1.weight[0, 0, 0, 0]
    )


def test_a_network_without_int8_layers_is_refused() -> None:
    workload = workloads.load("digits-cnn")
    with pytest.raises(TargetError, match=r"DigitsCNN: calls no int8 layer .*Int8MatMul"):
        lower(workload.model, (workload.inputs[:1],))


def test_a_position_of_another_head_is_refused() -> None:
    inputs = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(2))
    layers = lower(quantized(trained_at_random(Attention, 2), inputs), (inputs,))
    with pytest.raises(TargetError, match="matmul:1: a position is not among the 25 elements"):
        layers[4].element(np.array([24]))


@pytest.mark.parametrize(
    ("kind", "array"),
    [(OutputStationary, designs.OutputStationary(8, 8)), (WeightStationary, designs.WeightStationary(8, 8))],
    ids=["output_stationary", "weight_stationary"],
)
def test_arrays_at_rtl_compute_the_products_of_all_embedded_workloads(
    kind: type[Systolic], array: designs.SystolicArray
) -> None:
    try:
        importing.yosys()
        compile.compiler()
    except TargetError as error:
        pytest.skip(str(error))
    design = Design(read_verilog(designs.sources(array.design), array.design, "word", parameters=array.parameters))
    simulator = Simulator(design)
    for name in INT8_WORKLOADS:
        workload = workloads.load(name)
        layers = lower(workload.model, (workload.inputs[:1],))
        for layer, (args, _) in zip(layers, calls(workload.model, workload.inputs[:1], layers), strict=True):
            a, b = (operand[0] for operand in layer.operands(args))
            mapping = kind(8, 8, layer.m, layer.k, layer.n)
            tiles = np.unique([0, 1 % mapping.tiles, mapping.tiles // 2, mapping.tiles - 1])
            operands = mapping.operands(a, b, tiles)
            shape = designs.TileShape.of(*operands)
            ports = {port: words[None] for port, words in array.stimulus(*operands).items()}
            trace = simulator.run(Stimulus(ports))
            assert trace is not None
            south = simulator.read(trace[0, :-1], design.outputs["south"])
            found = array.result({"south": south}, shape)
            block = mapping.block(tiles)
            for t, tile in enumerate(found):
                rows, columns = block.m_size[t], block.n_size[t]
                k, m, n = (
                    slice(first[t], first[t] + size[t])
                    for first, size in zip(
                        (block.k, block.m, block.n), (block.k_size, block.m_size, block.n_size), strict=True
                    )
                )
                np.testing.assert_array_equal(tile[:rows, :columns], a[m, k].astype(np.int64) @ b[k, n])
