"""Whole networks at register-transfer level: one ``layer_engine`` for each layer, chained by ready/valid streams.

:func:`build` takes one of the embedded int8 networks, :func:`build_fixed_point` one of the embedded float networks
in 16-bit fixed point. Both return a :class:`Pipeline`: the Verilog of its top module, the contents of all memories,
the inputs by cycle, and the integer logits that must come out.

An image is a stream of words: rows, then columns, then channels, channels fastest. Every layer works on an image of
its own. In each layer *P* processing elements (PEs) work on *P* output channels of one output position at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from saboteur.errors import TargetError
from saboteur.levels.hardware.designs.arrays import RESET_CYCLES
from saboteur.levels.hardware.designs.ports import unpack

if TYPE_CHECKING:
    from torch import nn

    from saboteur.workloads import Workload

ACC_WIDTH = 32
FIXED_POINT_WIDTH = 16
MULTIPLIER_FRACTION_BITS = 31
PARAMETER_WIDTH = 32
SHIFT_WIDTH = 5
# What load_memory says, see layer_engine.v. PE p has WEIGHTS + p.
BIASES, MULTIPLIERS, SHIFTS, ZERO_POINTS, WEIGHTS = range(5)
# load_memory has 8 bits, load_address and the engine's counters 16.
MAX_PES = 2**8 - 1 - WEIGHTS
MAX_DEPTH = 2**16
# Registers between the counters of an engine and the next engine's buffer, with room for the handshakes.
ENGINE_FILL = 16


@dataclass(frozen=True, slots=True, eq=False)
class EngineLayer:
    """One layer of a pipeline: shapes, numbers and the memories that hold them.

    Attributes:
        name: Name of the layer in the network, and of its engine instance.
        in_shape: Rows, columns and channels of the input.
        weight: Integers ``[out_channels, kernel, kernel, in_channels]``; a fully connected layer has an input of
            shape ``(1, 1, features)`` and a kernel of 1.
        bias: int32 values ``[out_channels]``.
        multiplier: int32 values ``[out_channels]``.
        shift: Integers ``[out_channels]``, 0 to 31.
        input_zero_point: What stands for 0 in the input, and surrounds it as padding.
        output_zero_point: What stands for 0 in the output.
        stride: Step of the kernel.
        padding: Width of the border around the input.
        relu: Whether a ReLU is fused.
        pool: Edge of the max pooling window, 1 for none. Rows and columns left over are cut.
        pes: Number of processing elements, 1 to 251.

    Raises:
        TargetError: If the layer does not fit the engine's counters and load port.
    """

    name: str
    in_shape: tuple[int, int, int]
    weight: np.ndarray
    bias: np.ndarray
    multiplier: np.ndarray
    shift: np.ndarray
    input_zero_point: int
    output_zero_point: int
    stride: int
    padding: int
    relu: bool
    pool: int
    pes: int

    def __post_init__(self) -> None:
        if not 1 <= self.pes <= MAX_PES:
            raise TargetError(f"pes of layer {self.name!r} is {self.pes}; it must be in [1, {MAX_PES}]")
        for what, size in (("words of an image", self.in_size), ("weights of a PE", self.groups * self.taps)):
            if size > MAX_DEPTH:
                raise TargetError(f"layer {self.name!r} has {size} {what}; the engine addresses at most {MAX_DEPTH}")

    @property
    def kernel(self) -> int:
        """Edge of the kernel."""
        return self.weight.shape[1]

    @property
    def taps(self) -> int:
        """Products in one sum."""
        return int(np.prod(self.weight.shape[1:]))

    @property
    def in_size(self) -> int:
        """Words of an input image."""
        return int(np.prod(self.in_shape))

    @property
    def out_shape(self) -> tuple[int, int, int]:
        """Rows, columns and channels of the output."""
        return _out_shape(self.in_shape, self.weight.shape[:2], self.stride, self.padding, self.pool)

    @property
    def groups(self) -> int:
        """Groups of output channels, each of as many as there are PEs (the last may be smaller)."""
        return -(-len(self.weight) // self.pes)

    @property
    def cycles(self) -> int:
        """Upper bound of the cycles between two images where nothing but this layer makes them wait.

        A group of *n* channels at one place takes ``max(taps, n + 1)``: the PEs need ``taps`` cycles, and the
        requantiser takes up one sum a cycle and starts a cycle after the last.
        """
        sizes = np.minimum(self.pes, len(self.weight) - self.pes * np.arange(self.groups))
        rows, columns, _ = self.out_shape
        return rows * columns * self.pool**2 * int(np.maximum(self.taps, sizes + 1).sum())

    def parameters(self, data_width: int) -> dict[str, int]:
        """Return the parameters of the Verilog module ``layer_engine``."""
        rows, columns, channels = self.in_shape
        return {
            "DATA_WIDTH": data_width,
            "ACC_WIDTH": ACC_WIDTH,
            "PES": self.pes,
            "IN_CHANNELS": channels,
            "IN_HEIGHT": rows,
            "IN_WIDTH": columns,
            "OUT_CHANNELS": len(self.weight),
            "KERNEL": self.kernel,
            "STRIDE": self.stride,
            "PADDING": self.padding,
            "POOL": self.pool,
            "RELU": int(self.relu),
        }

    def memories(self, data_width: int) -> dict[str, np.ndarray]:
        """Return the contents of the engine's memories by name below the engine.

        PE *p* works on output channels ``p``, ``P + p``, ``2 P + p``, ...; word ``group * taps + tap`` of its
        weights is tap ``(kernel row, kernel column, input channel)`` of channel ``group * P + p``, 0 where there is
        no such channel.

        Returns:
            uint64 ``[depth]``, two's complement in as many bits as a word of the memory has.
        """
        weights = np.zeros((self.groups * self.pes, self.taps), dtype=np.int64)
        weights[: len(self.weight)] = self.weight.reshape(len(self.weight), self.taps)
        by_pe = weights.reshape(self.groups, self.pes, self.taps).swapaxes(0, 1).reshape(self.pes, -1)
        zero_points = np.array([self.input_zero_point, self.output_zero_point])
        return {
            "scaling.biases": _words(self.bias, PARAMETER_WIDTH),
            "scaling.multipliers": _words(self.multiplier, PARAMETER_WIDTH),
            "scaling.shifts": _words(self.shift, SHIFT_WIDTH),
            "zero_points": _words(zero_points, data_width),
            **{f"lane[{pe}].pe.weights": _words(words, data_width) for pe, words in enumerate(by_pe)},
        }

    def reference(self, images: np.ndarray, data_width: int) -> np.ndarray:
        """Compute the layer in NumPy, bit for bit as :mod:`saboteur.workloads.int8` does with 8 bits.

        Args:
            images: Integers ``[images, rows, columns, channels]`` of ``in_shape``.
            data_width: Bits of an activation.

        Returns:
            int64 ``[images, rows, columns, channels]`` of ``out_shape``.
        """
        border = (self.padding, self.padding)
        centred = np.pad(images.astype(np.int64) - self.input_zero_point, ((0, 0), border, border, (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(centred, (self.kernel, self.kernel), axis=(1, 2))
        windows = windows[:, :: self.stride, :: self.stride]
        sums = np.einsum("nyxcij,oijc->nyxo", windows, self.weight.astype(np.int64), optimize=True) + self.bias
        # The accumulator wraps modulo 2^32; the product of 64 bits is rounded once, halves away from zero.
        products = sums.astype(np.int32).astype(np.int64) * self.multiplier
        bits = MULTIPLIER_FRACTION_BITS + (self.shift & (2**SHIFT_WIDTH - 1))
        scaled = (products + (np.int64(1) << (bits - 1)) - (products < 0)) >> bits
        highest = 2 ** (data_width - 1) - 1
        outputs = np.clip(scaled + self.output_zero_point, -highest - 1, highest)
        if self.relu:
            outputs = np.maximum(outputs, self.output_zero_point)
        rows, columns, channels = self.out_shape
        pooled = outputs[:, : rows * self.pool, : columns * self.pool]
        return pooled.reshape(-1, rows, self.pool, columns, self.pool, channels).max(axis=(2, 4))


@dataclass(frozen=True, slots=True, eq=False)
class Pipeline:
    """A network as a chain of layer engines, with its inputs.

    Attributes:
        name: Name of the top module.
        layers: The layers, first to last.
        data_width: Bits of activations and weights: 8 or 16.
        words: Input images, int64 ``[images, words]``, in the order of the stream.
    """

    name: str
    layers: tuple[EngineLayer, ...]
    data_width: int
    words: np.ndarray

    @property
    def ports(self) -> dict[str, int]:
        """Width of each input port of the top module except ``clk``."""
        return {
            "rst": 1,
            "load": 1,
            "load_layer": 8,
            "load_memory": 8,
            "load_address": 16,
            "load_data": 32,
            "in_valid": 1,
            "in_data": self.data_width,
            "out_ready": 1,
        }

    @property
    def outputs(self) -> dict[str, int]:
        """Width of each output port of the top module."""
        return {"in_ready": 1, "out_valid": 1, "out_data": self.data_width}

    @property
    def verilog(self) -> str:
        """The top module: all engines, in an instance each that has the name of the layer."""
        width = f"[{self.data_width - 1}:0]"
        streams = len(self.layers) + 1
        lines = [
            f"// {self.name}: {' -> '.join(layer.name for layer in self.layers)}, {self.data_width}-bit data.",
            "// Written by saboteur.levels.hardware.designs.engine.",
            f"module {self.name} (",
            "    input  wire        clk,",
            "    input  wire        rst,",
            "    input  wire        load,",
            "    input  wire [7:0]  load_layer,",
            "    input  wire [7:0]  load_memory,",
            "    input  wire [15:0] load_address,",
            "    input  wire [31:0] load_data,",
            "    input  wire        in_valid,",
            "    output wire        in_ready,",
            f"    input  wire signed {width} in_data,",
            "    output wire        out_valid,",
            "    input  wire        out_ready,",
            f"    output wire signed {width} out_data",
            ");",
            "",
        ]
        for stream in range(streams):
            lines.append(f"    wire valid_{stream}, ready_{stream};")
            lines.append(f"    wire signed {width} data_{stream};")
        lines += [
            "    assign valid_0 = in_valid;",
            "    assign data_0 = in_data;",
            "    assign in_ready = ready_0;",
            f"    assign out_valid = valid_{streams - 1};",
            f"    assign out_data = data_{streams - 1};",
            f"    assign ready_{streams - 1} = out_ready;",
        ]
        for index, layer in enumerate(self.layers):
            settings = ", ".join(f".{key}({value})" for key, value in layer.parameters(self.data_width).items())
            lines += [
                "",
                f"    layer_engine #({settings}) {layer.name} (",
                f"        .clk(clk), .rst(rst), .load(load && load_layer == {index}), .load_memory(load_memory),",
                "        .load_address(load_address), .load_data(load_data),",
                f"        .in_valid(valid_{index}), .in_ready(ready_{index}), .in_data(data_{index}),",
                f"        .out_valid(valid_{index + 1}), .out_ready(ready_{index + 1}), .out_data(data_{index + 1})",
                "    );",
            ]
        return "\n".join([*lines, "", "endmodule", ""])

    def write(self, folder: Path) -> Path:
        """Write :attr:`verilog` to ``folder`` and return the file; the engines are ``sources("layer_engine")``."""
        path = folder / f"{self.name}.v"
        path.write_text(self.verilog, encoding="utf-8")
        return path

    def memories(self) -> dict[str, np.ndarray]:
        """Return the contents of all memories, int64 ``[depth]``, by hierarchical name below the top module."""
        return {
            f"{layer.name}.{memory}": words
            for layer in self.layers
            for memory, words in layer.memories(self.data_width).items()
        }

    def expected(self, images: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return the words that must come out for these images, int64 ``[images, classes]``, computed in NumPy."""
        values = self.words[np.asarray(images)]
        for layer in self.layers:
            values = layer.reference(values.reshape(-1, *layer.in_shape), self.data_width)
        return values.reshape(len(values), -1)

    @property
    def interval(self) -> int:
        """Cycles from one image to the next at which no layer makes its predecessor wait."""
        return max(max(layer.cycles, layer.in_size) for layer in self.layers)

    @property
    def latency(self) -> int:
        """Upper bound of the cycles from the first word of an image to its last result, in an idle pipeline."""
        return self.layers[0].in_size + sum(layer.cycles + layer.pes + ENGINE_FILL for layer in self.layers)

    def load_cycles(self) -> int:
        """Cycles in which the load port is in use."""
        return sum(len(words) for words in self.memories().values())

    def stimulus(self, images: Sequence[int] | np.ndarray, *, load: bool = True) -> dict[str, np.ndarray]:
        """Return the port values that run images through the network, one every :attr:`interval` cycles.

        After one cycle of reset the memories are loaded; without ``load`` they are taken to be preloaded (see
        :meth:`memories`). Then image *i* begins at ``start + i * interval``. Its words follow cycle by cycle without
        regard to ``in_ready``, which is 1 in all these cycles in a fault-free pipeline. ``out_ready`` is always 1.

        Args:
            images: Which of :attr:`words`, by index.
            load: Whether to load the memories through the load port.

        Returns:
            For each input port except ``clk``, ``[cycles]`` (see
            :mod:`saboteur.levels.hardware.designs.ports`).
        """
        words = self.words[np.asarray(images)]
        loads = self._loads() if load else np.zeros((0, 4), dtype=np.uint64)
        start = RESET_CYCLES + len(loads)
        cycles = start + (len(words) - 1) * self.interval + self.latency
        values = {port: np.zeros(cycles, dtype=np.uint64) for port in self.ports}
        values["rst"][:RESET_CYCLES] = 1
        values["load"][RESET_CYCLES:start] = 1
        for column, port in enumerate(("load_layer", "load_memory", "load_address", "load_data")):
            values[port][RESET_CYCLES:start] = loads[:, column]
        when = start + np.arange(len(words))[:, None] * self.interval + np.arange(words.shape[1])
        values["in_valid"][when] = 1
        values["in_data"][when] = _words(words, self.data_width)
        values["out_ready"][:] = 1
        return values

    def _loads(self) -> np.ndarray:
        """One row a word: layer, memory, address, data."""
        rows = []
        for index, layer in enumerate(self.layers):
            numbers = {
                "scaling.biases": BIASES,
                "scaling.multipliers": MULTIPLIERS,
                "scaling.shifts": SHIFTS,
                "zero_points": ZERO_POINTS,
                **{f"lane[{pe}].pe.weights": WEIGHTS + pe for pe in range(layer.pes)},
            }
            for name, words in layer.memories(self.data_width).items():
                address = np.arange(len(words), dtype=np.uint64)
                where = np.broadcast_to(np.array([index, numbers[name]], dtype=np.uint64), (len(words), 2))
                rows.append(np.column_stack([where, address, words]))
        return np.concatenate(rows)

    def result(self, outputs: Mapping[str, np.ndarray], images: int) -> np.ndarray:
        """Return the results of the first ``images`` images, int64 ``[images, classes]``.

        Args:
            outputs: ``out_valid`` and ``out_data`` by cycle, ``[cycles]``, from :meth:`stimulus`.
            images: How many images went in.

        Raises:
            TargetError: If there are fewer results than that.
        """
        classes = int(np.prod(self.layers[-1].out_shape))
        came = outputs["out_valid"].astype(bool)
        words = unpack(outputs["out_data"][came], self.data_width, 1)[:, 0]
        if len(words) < images * classes:
            raise TargetError(f"{len(words)} words came out of {self.name}; {images} images have {images * classes}")
        return words[: images * classes].reshape(images, classes)


def build(workload: Workload, *, pes: int | Sequence[int] = 8) -> Pipeline:
    """Build the pipeline that computes an embedded int8 network bit for bit.

    Args:
        workload: A workload whose model is a chain of the layers in :mod:`saboteur.workloads.int8`, such as
            ``digits-mlp6-int8``, ``digits-lenet7-int8`` or ``digits-cnn-int8``.
        pes: Number of processing elements, of each layer or of all.

    Raises:
        TargetError: If the model holds other layers, or a layer does not fit the engine.
    """
    links = _chain(workload.model, workload.inputs.shape[1:])
    layers = tuple(
        EngineLayer(
            **link.geometry(),
            weight=link.channels_last(link.module.weight.numpy()),
            bias=link.module.bias.numpy(),
            multiplier=link.module.multiplier.numpy(),
            shift=link.module.shift.numpy(),
            input_zero_point=int(link.module.input_zero_point),
            output_zero_point=int(link.module.output_zero_point),
            pes=count,
        )
        for link, count in zip(links, _pe_counts(pes, len(links)), strict=True)
    )
    words = workload.model.get_submodule("quantize")(workload.inputs).numpy().astype(np.int64)
    return Pipeline(_identifier(workload.name), layers, 8, _stream(words))


def build_fixed_point(workload: Workload, *, pes: int | Sequence[int] = 8, fraction_bits: int = 10) -> Pipeline:
    """Build the pipeline of an embedded float network in 16-bit fixed point.

    A real number *r* is held as ``q = clamp(round(r · 2^fraction_bits), −2^15, 2^15 − 1)``, halves to even: with
    10 fraction bits this is the format 16b_rb10 of Li et al. (SC 2017). Sums have ``2 · fraction_bits`` fraction
    bits in 32; they are brought back by a rounded shift, halves away from zero.

    Args:
        workload: A float workload that has an int8 sibling: ``digits-mlp6``, ``digits-lenet7`` or ``digits-cnn``.
        pes: Number of processing elements, of each layer or of all.
        fraction_bits: Bits behind the point, 1 to 15.

    Raises:
        TargetError: If the workload has no int8 sibling, whose chain of layers is used, or an argument is out of
            range.
    """
    from saboteur.workloads import models

    sibling = f"{workload.name}-int8"
    if sibling not in models.ARCHITECTURES:
        raise TargetError(f"workload {workload.name!r} has no chain of layers: there is no {sibling!r}")
    if not 1 <= fraction_bits < FIXED_POINT_WIDTH:
        raise TargetError(f"fraction_bits is {fraction_bits}; it must be in [1, {FIXED_POINT_WIDTH - 1}]")
    links = _chain(models.without_weights(sibling), workload.inputs.shape[1:])
    layers = []
    for link, count in zip(links, _pe_counts(pes, len(links)), strict=True):
        source: Any = workload.model.get_submodule(link.name)
        layer = EngineLayer(
            **link.geometry(),
            weight=_fixed(link.channels_last(source.weight.numpy()), fraction_bits, FIXED_POINT_WIDTH),
            bias=_fixed(source.bias.numpy(), 2 * fraction_bits, ACC_WIDTH),
            multiplier=np.full(len(source.weight), 2**30),
            shift=np.full(len(source.weight), fraction_bits - 1),
            input_zero_point=0,
            output_zero_point=0,
            pes=count,
        )
        layers.append(layer)
    words = _fixed(workload.inputs.numpy(), fraction_bits, FIXED_POINT_WIDTH)
    return Pipeline(f"{_identifier(workload.name)}_fixed16", tuple(layers), FIXED_POINT_WIDTH, _stream(words))


def _out_shape(
    in_shape: tuple[int, int, int], outputs_and_kernel: tuple[int, int], stride: int, padding: int, pool: int
) -> tuple[int, int, int]:
    outputs, kernel = outputs_and_kernel
    rows, columns = (((extent + 2 * padding - kernel) // stride + 1) // pool for extent in in_shape[:2])
    return rows, columns, outputs


@dataclass(frozen=True, slots=True)
class _Link:
    """A layer with weights in a chain: its module, the rows, columns and channels before it, the pooling after it."""

    name: str
    module: Any
    before: tuple[int, int, int]
    pool: int

    @property
    def is_dense(self) -> bool:
        return self.module.weight.dim() == 2

    def geometry(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "in_shape": (1, 1, int(np.prod(self.before))) if self.is_dense else self.before,
            "stride": 1 if self.is_dense else self.module.stride,
            "padding": 0 if self.is_dense else self.module.padding,
            "relu": self.module.relu,
            "pool": self.pool,
        }

    def channels_last(self, weight: np.ndarray) -> np.ndarray:
        """Order a weight as the stream is: PyTorch flattens channels first."""
        if not self.is_dense:
            return weight.transpose(0, 2, 3, 1)
        rows, columns, channels = self.before
        ordered = weight.reshape(len(weight), channels, rows, columns).transpose(0, 2, 3, 1)
        return ordered.reshape(len(weight), 1, 1, -1)

    def after(self) -> tuple[int, int, int]:
        if self.is_dense:
            return 1, 1, len(self.module.weight)
        outputs, _, kernel, _ = self.module.weight.shape
        return _out_shape(self.before, (outputs, kernel), self.module.stride, self.module.padding, self.pool)


def _chain(model: nn.Module, image: Sequence[int]) -> list[_Link]:
    """Return the layers with weights of an int8 model in order; ``image`` is ``[channels, rows, columns]``."""
    from torch.nn import Flatten

    from saboteur.workloads.int8 import Dequantize, Int8Conv2d, Int8Linear, Int8MaxPool2d, Quantize

    channels, rows, columns = image
    links: list[_Link] = []
    shape = (rows, columns, channels)
    for name, module in model.named_children():
        if isinstance(module, Int8Conv2d | Int8Linear):
            links.append(_Link(name, module, shape, pool=1))
        elif isinstance(module, Int8MaxPool2d) and links and links[-1].pool == 1 and not links[-1].is_dense:
            links[-1] = replace(links[-1], pool=2)
        elif not isinstance(module, Quantize | Dequantize | Flatten):
            raise TargetError(
                f"module {name!r} is {module}; a pipeline is made of int8 convolutions, each with at most one max "
                "pooling after it, and int8 fully connected layers"
            )
        if links:
            shape = links[-1].after()
    return links


def _words(integers: np.ndarray, width: int) -> np.ndarray:
    return integers.astype(np.int64).view(np.uint64) & np.uint64(2**width - 1)


def _fixed(reals: np.ndarray, fraction_bits: int, width: int) -> np.ndarray:
    highest = 2 ** (width - 1) - 1
    return np.clip(np.rint(reals.astype(np.float64) * 2**fraction_bits), -highest - 1, highest).astype(np.int64)


def _identifier(name: str) -> str:
    return name.replace("-", "_")


def _stream(images: np.ndarray) -> np.ndarray:
    """Order images ``[images, channels, rows, columns]`` (or ``[images, features]``) channels last, and flatten."""
    ordered = images.transpose(0, 2, 3, 1) if images.ndim == 4 else images
    return ordered.reshape(len(images), -1)


def _pe_counts(pes: int | Sequence[int], layers: int) -> Sequence[int]:
    counts = [pes] * layers if isinstance(pes, int) else list(pes)
    if len(counts) != layers:
        raise TargetError(f"pes has {len(counts)} numbers; the network has {layers} layers")
    return counts
