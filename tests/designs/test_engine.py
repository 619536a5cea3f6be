"""Layer engines compute the embedded networks bit for bit, with any number of PEs and under any handshake."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saboteur.errors import TargetError
from saboteur.levels.hardware import designs
from saboteur.levels.hardware.designs import EngineLayer, Pipeline
from tests.designs import simulators

torch = pytest.importorskip("torch")

from saboteur import workloads  # noqa: E402
from saboteur.workloads.int8 import Int8Conv2d, Int8MaxPool2d  # noqa: E402

INT8_NETWORKS = ["digits-mlp6-int8", "digits-lenet7-int8", "digits-cnn-int8"]


def integer_logits(workload: workloads.Workload) -> np.ndarray:
    """What enters the last module of an int8 network, as the network itself computes it."""
    captured: list[np.ndarray] = []
    hook = workload.model.dequantize.register_forward_pre_hook(lambda _, inputs: captured.append(inputs[0].numpy()))
    workload.model(workload.inputs)
    hook.remove()
    return captured[0]


def random_layer(
    generator: np.random.Generator, name: str, in_shape: tuple[int, int, int], **chosen: int
) -> EngineLayer:
    """A layer of random numbers, extremes among them, of any sign and shift."""
    outputs, kernel, bits = chosen["outputs"], chosen["kernel"], chosen["data_width"]
    bound = 2 ** (bits - 1)
    weight = generator.integers(-bound, bound, (outputs, kernel, kernel, in_shape[2]))
    shift = np.full(outputs, bits - 2 + int(np.log2(weight[0].size) / 2))
    bias = generator.integers(-(2 ** (2 * bits - 2)), 2 ** (2 * bits - 2), outputs)
    if outputs > 1:
        weight[0] = -bound
        shift[1], bias[1] = generator.integers(0, 32), generator.integers(-(2**31), 2**31)
    return EngineLayer(
        name=name,
        in_shape=in_shape,
        weight=weight,
        bias=bias,
        multiplier=generator.integers(-(2**31), 2**31, outputs),
        shift=shift,
        input_zero_point=int(generator.integers(-bound, bound)),
        output_zero_point=int(generator.integers(-bound, bound)),
        stride=chosen["stride"],
        padding=chosen["padding"],
        relu=bool(chosen["relu"]),
        pool=chosen["pool"],
        pes=chosen["pes"],
    )


# More than all stages of a layer hold.
IMAGES = 10

# Layers as (outputs, kernel, stride, padding, pool, relu, pes). In the first network, odd sizes, strides, and
# numbers of PEs that leave a rest; in the second, sums of one product, finished faster than they are taken away; in
# the third, images of three words, which wait for the next layer.
GEOMETRIES = {
    "odd": ((7, 6, 2), [(5, 3, 1, 1, 2, True, 3), (3, 2, 2, 2, 1, False, 4), (9, 1, 1, 0, 1, False, 2)]),
    "narrow": (
        (4, 4, 1),
        [(5, 1, 1, 0, 2, False, 5), (7, 1, 1, 0, 1, True, 7), (1, 1, 1, 0, 1, False, 3), (6, 1, 1, 0, 1, False, 6)],
    ),
    "short": ((1, 1, 3), [(3, 1, 1, 0, 1, False, 3), (8, 1, 1, 0, 1, False, 8)]),
}


def random_pipeline(kind: str, seed: int, data_width: int = 8) -> Pipeline:
    """A network of one of the :data:`GEOMETRIES` with random numbers, and random images."""
    generator = np.random.default_rng(seed)
    in_shape, geometries = GEOMETRIES[kind]
    layers: list[EngineLayer] = []
    for number, (outputs, kernel, stride, padding, pool, relu, pes) in enumerate(geometries):
        before = layers[-1].out_shape if layers else in_shape
        dense = kernel == 1 and number >= 2
        layer = random_layer(
            generator, f"layer{number}", (1, 1, int(np.prod(before))) if dense else before, outputs=outputs,
            kernel=kernel, stride=stride, padding=padding, pool=pool, relu=relu, pes=pes, data_width=data_width,
        )  # fmt: skip
        layers.append(layer)
    if kind == "narrow":
        # Odd multiples of a half, of either sign.
        weight = generator.choice([-1, 1], layers[-1].weight.shape)
        halves = {"multiplier": np.full(6, 2**30), "shift": np.zeros(6, np.int64), "bias": np.arange(6)}
        layers[-1] = replace(layers[-1], weight=weight, output_zero_point=0, **halves)
    bound = 2 ** (data_width - 1)
    words = generator.integers(-bound, bound, (IMAGES, layers[0].in_size))
    return Pipeline("random_network", tuple(layers), data_width, words)


def simulate(folder: Path, pipeline: Pipeline, images: int, **options: object) -> np.ndarray:
    files = [*designs.sources("layer_engine"), pipeline.write(folder)]
    load = "preload" not in options
    stimulus = pipeline.stimulus(range(images), load=load)
    found = simulators.icarus(folder, files, pipeline.name, {}, stimulus, pipeline.ports, pipeline.outputs, **options)
    offered = stimulus["in_valid"] == 1
    assert found["in_ready"][offered].all(), "a word was offered that the pipeline could not take"
    return pipeline.result(found, images)


@pytest.mark.parametrize("name", INT8_NETWORKS)
def test_the_reference_equals_the_network_on_all_images(name: str) -> None:
    workload = workloads.load(name)
    np.testing.assert_array_equal(designs.build(workload).expected(range(360)), integer_logits(workload))


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    padding=st.integers(0, 2),
    pool=st.integers(1, 2),
    relu=st.booleans(),
)
def test_the_reference_equals_the_int8_layers(
    seed: int, kernel: int, stride: int, padding: int, pool: int, relu: bool
) -> None:
    generator = np.random.default_rng(seed)
    layer = random_layer(
        generator, "conv", (7, 6, 2), outputs=3, kernel=kernel, stride=stride, padding=padding, pool=pool, relu=relu,
        pes=1, data_width=8,
    )  # fmt: skip
    module = Int8Conv2d(2, 3, kernel, stride=stride, padding=padding, relu=relu)
    for name in ("bias", "multiplier", "shift", "input_zero_point", "output_zero_point"):
        getattr(module, name).copy_(torch.as_tensor(getattr(layer, name)))
    module.weight.copy_(torch.from_numpy(layer.weight.transpose(0, 3, 1, 2)))
    images = generator.integers(-128, 128, (2, 7, 6, 2))
    outputs = module(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).to(torch.int8))
    outputs = Int8MaxPool2d()(outputs) if pool == 2 else outputs
    np.testing.assert_array_equal(layer.reference(images, 8), outputs.numpy().transpose(0, 2, 3, 1))


@simulators.needs_icarus
@pytest.mark.parametrize("name", ["digits-mlp6-int8", "digits-lenet7-int8"])
def test_two_images_through_the_embedded_networks(tmp_path: Path, name: str) -> None:
    workload = workloads.load(name)
    pipeline = designs.build(workload)
    logits = simulate(tmp_path, pipeline, 2, preload=pipeline.memories())
    np.testing.assert_array_equal(logits, integer_logits(workload)[:2])


@simulators.needs_icarus
def test_sixteen_bit_fixed_point_through_the_six_layer_classifier(tmp_path: Path) -> None:
    pipeline = designs.build_fixed_point(workloads.load("digits-mlp6"), pes=[16, 8, 8, 8, 4, 10])
    logits = simulate(tmp_path, pipeline, 2, preload=pipeline.memories())
    np.testing.assert_array_equal(logits, pipeline.expected(range(2)))


@simulators.needs_icarus
@pytest.mark.parametrize("data_width", [8, 16])
@pytest.mark.parametrize("seed", [0, 2])
@pytest.mark.parametrize("kind", GEOMETRIES)
def test_random_layers_through_the_load_port(tmp_path: Path, kind: str, seed: int, data_width: int) -> None:
    pipeline = random_pipeline(kind, seed, data_width)
    expected = pipeline.expected(range(IMAGES))
    assert len(np.unique(expected, axis=0)) >= IMAGES // 2, "the images of this test should differ in their results"
    np.testing.assert_array_equal(simulate(tmp_path, pipeline, IMAGES), expected)


@simulators.needs_icarus
@pytest.mark.parametrize("pes", [1, 2, 5, 8])
def test_the_number_of_pes_does_not_change_the_results(tmp_path: Path, pes: int) -> None:
    pipeline = random_pipeline("odd", 2)
    pipeline = replace(pipeline, layers=tuple(replace(layer, pes=pes) for layer in pipeline.layers))
    np.testing.assert_array_equal(simulate(tmp_path, pipeline, IMAGES), pipeline.expected(range(IMAGES)))


@simulators.needs_icarus
@pytest.mark.parametrize(("offers", "takes"), [(100, 15), (15, 100), (50, 50), (100, 100)])
@pytest.mark.parametrize("kind", GEOMETRIES)
def test_nothing_is_lost_whatever_the_neighbours_do(tmp_path: Path, kind: str, offers: int, takes: int) -> None:
    """A source that offers and a sink that takes a word in so many of a hundred cycles, at random."""
    pipeline = random_pipeline(kind, 0)
    (tmp_path / "words.hex").write_text("\n".join(f"{word & 0xFF:02x}" for word in pipeline.words.flatten().tolist()))
    (tmp_path / "source.v").write_text(f"""
module source (
  input clk, input rst, input offer, input load, input [7:0] load_layer, input [7:0] load_memory,
  input [15:0] load_address, input [31:0] load_data, output out_valid, input out_ready, output [7:0] out_data
);
  reg [7:0] words [0:{pipeline.words.size - 1}];
  reg [15:0] index;
  reg valid;
  wire ready;
  initial $readmemh("words.hex", words);
  always @(posedge clk) begin
    if (rst) begin index <= 0; valid <= 0; end
    else begin
      if (valid && ready) index <= index + 1;
      if (!valid || ready) valid <= offer && index + (valid && ready) < {pipeline.words.size};
    end
  end
  random_network dut (.clk(clk), .rst(rst), .load(load), .load_layer(load_layer), .load_memory(load_memory),
    .load_address(load_address), .load_data(load_data), .in_valid(valid), .in_ready(ready), .in_data(words[index]),
    .out_valid(out_valid), .out_ready(out_ready), .out_data(out_data));
endmodule
""")
    generator = np.random.default_rng(offers * 100 + takes)
    outputs_per_image = pipeline.layers[-1].out_shape[-1]
    busiest = pipeline.interval + 100 * pipeline.words.shape[1] // offers + 100 * outputs_per_image // takes
    idle = pipeline.latency + 2 * IMAGES * busiest
    loading = pipeline.stimulus([0])
    start = 1 + pipeline.load_cycles()
    stimulus = {port: np.pad(loading[port][:start], (0, idle)) for port in pipeline.ports}
    del stimulus["in_valid"], stimulus["in_data"]
    stimulus["offer"] = (generator.integers(0, 100, start + idle) < offers).astype(np.uint64)
    stimulus["offer"][:start] = 0
    stimulus["out_ready"] = (generator.integers(0, 100, start + idle) < takes).astype(np.uint64)
    files = [tmp_path / "source.v", *designs.sources("layer_engine"), pipeline.write(tmp_path)]
    outputs = {"out_valid": 1, "out_data": 8}
    found = simulators.icarus(tmp_path, files, "source", {}, stimulus, {**pipeline.ports, "offer": 1}, outputs)
    found["out_valid"] &= stimulus["out_ready"]
    assert found["out_valid"].sum() == IMAGES * outputs_per_image
    np.testing.assert_array_equal(pipeline.result(found, IMAGES), pipeline.expected(range(IMAGES)))


@simulators.needs_icarus
def test_a_reset_in_mid_image_leaves_no_trace(tmp_path: Path) -> None:
    pipeline = random_pipeline("odd", 0)
    stimulus = pipeline.stimulus(range(2), load=False)
    interrupted = {port: np.concatenate([words[:150], words]) for port, words in stimulus.items()}
    files = [*designs.sources("layer_engine"), pipeline.write(tmp_path)]
    found = simulators.icarus(
        tmp_path, files, pipeline.name, {}, interrupted, pipeline.ports, pipeline.outputs, preload=pipeline.memories()
    )
    clean = {port: words[150:] for port, words in found.items()}
    np.testing.assert_array_equal(pipeline.result(clean, 2), pipeline.expected(range(2)))


@simulators.needs_icarus
def test_layers_overlap_across_images_at_the_stated_interval(tmp_path: Path) -> None:
    pipeline = designs.build(workloads.load("digits-mlp6-int8"))
    files = [*designs.sources("layer_engine"), pipeline.write(tmp_path)]
    stimulus = pipeline.stimulus(range(4), load=False)
    found = simulators.icarus(
        tmp_path, files, pipeline.name, {}, stimulus, pipeline.ports, pipeline.outputs, preload=pipeline.memories()
    )
    finished = np.flatnonzero(found["out_valid"])[9::10]
    # The first layer is the slowest: 8 groups of 8 neurons, 64 inputs each.
    assert np.diff(finished).tolist() == [512, 512, 512]
    assert pipeline.interval == 512
    # Six layers, one after the other, take longer than an interval: several images are under way at once.
    assert 3 * 512 < finished[0] <= 1 + pipeline.latency


@pytest.mark.slow
@simulators.needs_verilator
@pytest.mark.parametrize("name", INT8_NETWORKS)
def test_verilator_agrees_on_twenty_images_without_a_lint_warning(tmp_path: Path, name: str) -> None:
    workload = workloads.load(name)
    pipeline = designs.build(workload)
    files = [*designs.sources("layer_engine"), pipeline.write(tmp_path)]
    stimulus = pipeline.stimulus(range(20))
    found = simulators.verilator(tmp_path, files, pipeline.name, {}, stimulus, pipeline.ports, pipeline.outputs)
    np.testing.assert_array_equal(pipeline.result(found, 20), integer_logits(workload)[:20])


@pytest.mark.parametrize("name", INT8_NETWORKS)
def test_yosys_finds_no_latch_and_no_loop_in_the_networks(tmp_path: Path, name: str) -> None:
    pipeline = designs.build(workloads.load(name))
    files = [*designs.sources("layer_engine"), pipeline.write(tmp_path)]
    log = simulators.yosys(tmp_path, files, pipeline.name, {}, gates=False)
    assert "Found and reported 0 problems." in log


@pytest.mark.slow
@pytest.mark.parametrize("data_width", [8, 16])
def test_yosys_finds_no_latch_and_no_loop_in_the_gates(tmp_path: Path, data_width: int) -> None:
    pipeline = random_pipeline("odd", 0, data_width)
    files = [*designs.sources("layer_engine"), pipeline.write(tmp_path)]
    log = simulators.yosys(tmp_path, files, pipeline.name, {})
    assert log.count("Found and reported 0 problems.") >= 2


@pytest.mark.parametrize(("name", "lost"), [("digits-mlp6", 0.0), ("digits-lenet7", 0.0), ("digits-cnn", 0.005)])
def test_sixteen_bits_keep_the_accuracy_of_the_float_network(name: str, lost: float) -> None:
    workload = workloads.load(name)
    pipeline = designs.build_fixed_point(workload)
    logits = pipeline.expected(range(360))
    accuracy = np.mean(logits.argmax(axis=1) == workload.labels.numpy())
    assert accuracy >= workload.accuracy - lost
    np.testing.assert_allclose(logits / 2**10, workload.model(workload.inputs).numpy(), atol=0.15)


def test_a_weight_lies_where_the_documentation_says() -> None:
    workload = workloads.load("digits-lenet7-int8")
    pipeline = designs.build(workload, pes=4)
    memories = pipeline.memories()
    conv2, fc1 = workload.model.conv2.weight, workload.model.fc1.weight
    # Output channel 9 is the third of PE 1; 6 input channels, kernel 3.
    assert memories["conv2.lane[1].pe.weights"][2 * 54 + (2 * 3 + 1) * 6 + 5] == int(conv2[9, 5, 2, 1]) % 256
    # Feature (channel 7, row 1, column 0) of 16 channels and 2 × 2 places: channels first in PyTorch, last here.
    assert memories["fc1.lane[3].pe.weights"][(1 * 2 + 0) * 16 + 7] == int(fc1[3, 7 * 4 + 1 * 2 + 0]) % 256
    assert memories["fc3.scaling.multipliers"][9] == workload.model.fc3.multiplier[9]
    assert memories["fc3.scaling.biases"][9] == int(workload.model.fc3.bias[9]) % 2**32
    conv1 = workload.model.conv1
    assert memories["conv1.zero_points"].tolist() == [
        int(conv1.input_zero_point) % 256,
        int(conv1.output_zero_point) % 256,
    ]


def test_bad_arguments_are_named() -> None:
    workload = workloads.load("digits-mlp6-int8")
    with pytest.raises(TargetError, match=r"pes of layer 'fc1' is 0; it must be in \[1, 251\]"):
        designs.build(workload, pes=0)
    layer = designs.build(workload).layers[0]
    with pytest.raises(TargetError, match="layer 'fc1' has 65600 weights of a PE; the engine addresses at most 65536"):
        replace(layer, weight=np.zeros((1025, 1, 1, 64), np.int8), pes=1)
    with pytest.raises(TargetError, match="layer 'fc1' has 66049 words of an image"):
        replace(layer, in_shape=(257, 257, 1))
    with pytest.raises(TargetError, match="pes has 2 numbers; the network has 6 layers"):
        designs.build(workload, pes=[8, 8])
    with pytest.raises(TargetError, match="module 'fc1' is Linear"):
        designs.build(workloads.load("digits-mlp6"))
    with pytest.raises(TargetError, match="there is no 'digits-gru-int8'"):
        designs.build_fixed_point(workloads.load("digits-gru"))
    with pytest.raises(TargetError, match="fraction_bits is 16"):
        designs.build_fixed_point(workloads.load("digits-mlp6"), fraction_bits=16)
    pipeline = designs.build(workload)
    nothing = {"out_valid": np.zeros(5, np.uint64), "out_data": np.zeros(5, np.uint64)}
    with pytest.raises(TargetError, match="0 words came out of digits_mlp6_int8; 1 images have 10"):
        pipeline.result(nothing, 1)
