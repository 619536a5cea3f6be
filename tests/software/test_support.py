"""Every cell of the support matrix: fault model × site × number format, against computations by hand."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from saboteur.campaign.target import Resources
from saboteur.errors import FaultError, SaboteurError
from saboteur.faults import Affine, Floating, NumberFormat, Region, number_format
from saboteur.faults.models import FaultModel
from saboteur.faults.space import Faults
from saboteur.levels.software.spec import SoftwareFault
from saboteur.levels.software.target import SoftwareTarget
from saboteur.outcomes import Recorder
from saboteur.testing import draw_faults
from saboteur.workloads import int8
from saboteur.workloads.quantization import quantize_statically
from tests.software import by_hand, models, support

BATCH = 4
INPUTS = 6
TRIALS = 3


def chain() -> nn.Sequential:
    """Convolution, batch norm, ReLU, flatten, linear on [n, 2, 3, 3]."""
    stages = {
        "conv": nn.Conv2d(2, 3, 2, padding=1),
        "bn": nn.BatchNorm2d(3),
        "relu": nn.ReLU(),
        "flatten": nn.Flatten(),
        "fc": nn.Linear(48, 3),
    }
    model = models.filled(nn.Sequential())
    for name, stage in stages.items():
        model.add_module(name, stage)
    return models.filled(model)


def integer_chain() -> nn.Sequential:
    """The same in integers, quantised from it."""
    model = nn.Sequential()
    for name, stage in {
        "quantize": int8.Quantize(),
        "conv": int8.Int8Conv2d(2, 3, 2, padding=1, relu=True),
        "flatten": nn.Flatten(),
        "fc": int8.Int8Linear(48, 3),
        "dequantize": int8.Dequantize(),
    }.items():
        model.add_module(name, stage)
    quantize_statically(model, chain(), inputs("float32"))
    return model.eval()


class Functions(nn.Module):
    """A model whose functions are faulted: its ``signal`` lets the by-hand run reach them."""

    def __init__(self, body: nn.Module, last: nn.Module) -> None:
        super().__init__()
        self.body, self.last = body, last

    def forward(self, x: Tensor, signal: Callable[[str, Tensor], Tensor] = lambda _, value: value) -> Tensor:
        y = signal("relu#0", F.relu(self.body(x)))
        y = signal("flatten#0", torch.flatten(y, 1))
        return self.last(y)


class Dequantized(nn.Module):
    """A last layer with its dequantisation."""

    def __init__(self, fc: nn.Module, dequantize: nn.Module) -> None:
        super().__init__()
        self.fc, self.dequantize = fc, dequantize

    def forward(self, y: Tensor) -> Tensor:
        return self.dequantize(self.fc(y))


def inputs(fmt: str) -> Tensor:
    return models.numbers(INPUTS, 2, 3, 3).to(getattr(torch, fmt) if fmt in support.NATIVE else torch.float32)


def plain_model(fmt: str) -> nn.Sequential:
    if fmt == support.INTEGER_MODULES:
        return integer_chain()
    if fmt == support.TORCH_AO:
        model, stages = models.quantized(), nn.Sequential()
        for name in ("quantize", "conv", "relu", "flatten", "fc", "dequantize"):
            stages.add_module(name, getattr(model, name, None) or nn.Flatten())
        return stages.eval()
    return chain().to(getattr(torch, fmt) if fmt in support.NATIVE else torch.float32)


def data(fmt: str) -> Tensor:
    return models.numbers(INPUTS, 2, 4, 4) if fmt == support.TORCH_AO else inputs(fmt)


def functions_model(fmt: str) -> nn.Module:
    stages = plain_model(fmt)
    if fmt in (support.INTEGER_MODULES, support.TORCH_AO):
        body = nn.Sequential(stages.quantize, stages.conv)
        return Functions(body, Dequantized(stages.fc, stages.dequantize)).eval()
    return Functions(stages.conv, stages.fc).eval()


@cache
def target_for(where: str, fmt: str) -> SoftwareTarget:
    settings = {}
    if fmt in support.EMULATED:
        signals = ("activations", "inputs", "connections", "operators")
        settings["activations_format" if where in signals else "weights_format"] = fmt
    model = functions_model(fmt) if where == "operators" else plain_model(fmt)
    return SoftwareTarget(model, data(fmt), engine="plain", resources=Resources(batch_size=BATCH), **settings)


def injected(target: SoftwareTarget, spec: SoftwareFault, trials: int = TRIALS) -> tuple:
    """Space, faults, and the outputs [trials, inputs, ...]."""
    golden = target.golden()
    space = target.space([spec])
    faults = draw_faults(space, trials)
    return space, faults, outputs_of(target, golden, space, faults)


def outputs_of(target: SoftwareTarget, golden, space, faults: Faults) -> np.ndarray:
    class Keeps(Recorder):
        def outputs(self, trials, of_inputs, values):
            seen[trials, of_inputs] = values
            super().outputs(trials, of_inputs, values)

    seen = np.repeat(golden.outputs[None], faults.trials, axis=0)
    recorder = Keeps(golden, (), faults.trials)
    target.inject(space, faults, recorder)
    assert recorder.table()["invalid"].null_count == faults.trials, recorder.table()["invalid"].to_pylist()
    return seen


def assert_same_bits(seen: np.ndarray, expected: Tensor) -> None:
    expected = (expected.float() if expected.dtype == torch.bfloat16 else expected).numpy()
    assert seen.dtype == expected.dtype
    np.testing.assert_array_equal(seen.view(f"u{seen.itemsize}"), expected.view(f"u{seen.itemsize}"))


def calibrated_weights(weight: Tensor, fmt: NumberFormat) -> NumberFormat:
    """One symmetric scale for each output channel, from its largest weight."""
    if not isinstance(fmt, Affine):
        return fmt
    largest = np.abs(weight.double().numpy()).reshape(len(weight), -1).max(axis=1)
    scale = np.where(largest > 0, largest / fmt.integer_range[1], 1.0)
    return Affine(fmt.bits, fmt.signed, scale, np.zeros(len(scale), np.int64))


def change_of(region: Region, faults: Faults, trial: int, fmt: NumberFormat) -> Callable[[int], int]:
    variant, drawn = int(faults.variant[trial]), int(faults.drawn[trial])
    return lambda word: by_hand.faulty_word(word, region.model, variant, drawn, fmt)


CELLS = [
    pytest.param(where, kind, fmt, id=f"{where}-{kind}-{fmt}")
    for where in support.SITES
    for fmt in support.FORMATS
    for kind in support.MODELS
]
SUPPORTED = [cell for cell in CELLS if support.never(cell.values[0], cell.values[2]) is None]


def cells(*wheres: str) -> list:
    return [cell for cell in SUPPORTED if cell.values[0] in wheres]


@pytest.mark.parametrize(("where", "kind", "fmt"), cells("weights", "biases", "buffers", "parameters"))
def test_stored_values(where: str, kind: str, fmt: str) -> None:
    target = target_for(where, fmt)
    space, faults, seen = injected(target, SoftwareFault(where=where, model=support.MODELS[kind]))
    model = plain_model(fmt)
    if fmt in support.EMULATED:
        for name, parameter in list(model.named_parameters()):
            if not (fmt in support.AFFINE and parameter.dim() < 2):
                held = calibrated_weights(parameter.data, number_format(fmt))
                rounded = [_channel(held, c).round(row.double().numpy()) for c, row in enumerate(parameter.data)]
                model = by_hand.with_weight(model, name, lambda old, new=rounded: torch.tensor(np.array(new)).to(old))
    assert_same_bits(target.golden().outputs, by_hand.in_batches(model, data(fmt), BATCH))
    original = plain_model(fmt)
    for trial in range(TRIALS):
        region = space.regions[faults.region[trial]]
        index = tuple(int(i) for i in np.unravel_index(faults.element[trial], region.shape))
        native = fmt not in support.EMULATED or (fmt in support.AFFINE and len(region.shape) < 2)
        word_format = region.format
        if not native:
            word_format = calibrated_weights(original.get_parameter(region.site).data, number_format(fmt))
        word_format = _channel(word_format, index[0] if index else 0)
        change = change_of(region, faults, trial, word_format)
        faulty = by_hand.with_weight(
            model,
            region.site,
            lambda old, i=index, f=word_format, n=native, c=change: by_hand.with_value(
                old, i, lambda value: by_hand.faulty_scalar(value, f, n, c)
            ),
        )
        assert_same_bits(seen[trial], by_hand.in_batches(faulty, data(fmt), BATCH))


def _channel(fmt: NumberFormat, channel: int) -> NumberFormat:
    if isinstance(fmt, Affine) and fmt.scale.ndim:
        return Affine(fmt.bits, fmt.signed, fmt.scale[channel], fmt.zero_point[channel])
    return fmt


def signal_formats(fmt: str) -> dict[str, NumberFormat]:
    """The emulated format of each signal of the chain, calibrated on all inputs."""
    named = number_format(fmt)
    if not isinstance(named, Affine):
        return dict.fromkeys(("input", *dict(chain().named_children())), named)
    seen: dict[str, Tensor] = {}

    def keep(name: str, value: Tensor) -> Tensor:
        seen[name] = torch.cat([seen[name], value]) if name in seen else value
        return value

    by_hand.in_batches(
        lambda x: by_hand.stage_by_stage(plain_model(fmt), x, lambda _, value: value, keep), data(fmt), BATCH
    )
    formats = {}
    for name, values in seen.items():
        low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
        smallest, largest = named.integer_range
        scale = (high - low) / (largest - smallest)
        zero_point = np.clip(np.rint(smallest - low / scale), smallest, largest)
        formats[name] = Affine(named.bits, named.signed, np.array(scale), np.array(int(zero_point)))
    return formats


@pytest.mark.parametrize(("where", "kind", "fmt"), cells("activations", "inputs"))
def test_outputs_and_inputs(where: str, kind: str, fmt: str) -> None:
    target = target_for(where, fmt)
    space, faults, seen = injected(target, SoftwareFault(where=where, model=support.MODELS[kind]))
    model, emulated = plain_model(fmt), fmt in support.EMULATED
    formats = signal_formats(fmt) if emulated else {}

    def round_signal(name: str, value: Tensor) -> Tensor:
        return torch.from_numpy(formats[name].round(value.double().numpy())).to(value.dtype) if emulated else value

    def outputs(fault: Callable[[str, Tensor], Tensor]) -> Tensor:
        return by_hand.in_batches(lambda x: by_hand.stage_by_stage(model, x, round_signal, fault), data(fmt), BATCH)

    assert_same_bits(target.golden().outputs, outputs(lambda _, value: value))
    for trial in range(TRIALS):
        region = space.regions[faults.region[trial]]
        index = tuple(int(i) for i in np.unravel_index(faults.element[trial], region.shape))
        place = region.site.removesuffix(":output")
        word_format = formats.get(place, region.format)
        change = change_of(region, faults, trial, word_format)

        def fault(name: str, value: Tensor, place=place, index=index, f=word_format, change=change) -> Tensor:
            for one in range(len(value) if name == place else 0):
                value = by_hand.with_value(
                    value, (one, *index), lambda old: by_hand.faulty_scalar(old, f, not emulated, change)
                )
            return value

        assert_same_bits(seen[trial], outputs(fault))


@pytest.mark.parametrize(("where", "kind", "fmt"), cells("operators"))
def test_functions(where: str, kind: str, fmt: str) -> None:
    target = target_for(where, fmt)
    space, faults, seen = injected(target, SoftwareFault(where=where, model=support.MODELS[kind]))
    assert [region.site for region in space.regions] == ["relu#0", "flatten#0"]
    model = functions_model(fmt)
    for trial in range(TRIALS):
        region = space.regions[faults.region[trial]]
        index = tuple(int(i) for i in np.unravel_index(faults.element[trial], region.shape))
        change = change_of(region, faults, trial, region.format)

        def signal(name: str, value: Tensor, region=region, index=index, change=change) -> Tensor:
            for one in range(len(value) if name == region.site else 0):
                value = by_hand.with_value(
                    value, (one, *index), lambda old: by_hand.faulty_scalar(old, region.format, True, change)
                )
            return value

        assert_same_bits(seen[trial], by_hand.in_batches(lambda x, s=signal: model(x, s), data(fmt), BATCH))


@pytest.mark.parametrize(("where", "kind", "fmt"), cells("connections"))
def test_connections(where: str, kind: str, fmt: str) -> None:
    target = target_for(where, fmt)
    space, faults, seen = injected(target, SoftwareFault(where=where, model=support.MODELS[kind]), trials=6)
    assert [region.site for region in space.regions] == ["conv:connection", "fc:connection"]
    model, emulated = plain_model(fmt), fmt in support.EMULATED
    formats = signal_formats(fmt) if emulated else {}
    reads = {"conv": "input", "fc": "flatten"}
    for trial in range(6):
        region = space.regions[faults.region[trial]]
        index = [int(i) for i in np.unravel_index(faults.element[trial], region.shape)]
        layer = region.layer
        word_format = formats.get(reads[layer], region.format)
        change = change_of(region, faults, trial, word_format)

        def forward(x: Tensor, layer=layer, index=index, f=word_format, change=change) -> Tensor:
            for name, stage in (("input", nn.Identity()), *model.named_children()):
                read, x = x, stage(x)
                for one in range(len(x) if name == layer else 0):
                    value, weight = _connection(read[one], stage, index)
                    faulty = by_hand.faulty_scalar(value, f, not emulated, change)
                    if emulated:
                        value = torch.tensor(f.round(value.double().numpy())).to(value.dtype)
                    at = (one, *index[:-1])
                    x[at] = (x[at].double() + weight.double() * (faulty.double() - value.double())).to(x.dtype)
                if emulated:
                    x = torch.from_numpy(formats[name].round(x.double().numpy())).to(x.dtype)
            return x

        expected = by_hand.in_batches(forward, data(fmt), BATCH)
        expected = (expected.float() if expected.dtype == torch.bfloat16 else expected).numpy()
        np.testing.assert_array_equal(seen[trial], expected)


def _connection(read: Tensor, layer: nn.Module, index: list[int]) -> tuple[Tensor, Tensor]:
    if isinstance(layer, nn.Linear):
        return read[index[1]], layer.weight[index[0], index[1]]
    channel, row, column, tap = index
    channel_in, tap_row, tap_column = np.unravel_index(tap, layer.weight.shape[1:])
    padded = F.pad(read, (1, 1, 1, 1))
    value = padded[channel_in, row + tap_row, column + tap_column]
    return value, layer.weight[channel, channel_in, tap_row, tap_column]


@pytest.mark.parametrize(("where", "kind", "fmt"), cells("hidden_state", "cell_state"))
def test_states(where: str, kind: str, fmt: str) -> None:
    dtype = getattr(torch, fmt)
    model = models.filled(models.Recurrent(nn.LSTM, layers=2)).to(dtype)
    x = models.numbers(INPUTS, 5, 4).to(dtype)
    target = SoftwareTarget(model, x, engine="plain", resources=Resources(batch_size=INPUTS))
    spec = SoftwareFault(where=where, model=support.MODELS[kind], duration="transient")
    space, faults, seen = injected(target, spec, trials=5)
    (region,) = space.regions
    assert (region.shape, region.steps) == ((2, 5), 5)
    tolerance = {"float64": 1e-12, "float32": 1e-5, "float16": 2e-2, "bfloat16": 1e-1}[fmt]
    for trial in range(5):
        layer, unit = divmod(int(faults.element[trial]), 5)
        change = change_of(region, faults, trial, Floating(fmt))

        def fault(step: int, h: list[Tensor], c: list[Tensor], trial=trial, layer=layer, unit=unit, change=change):
            if step == faults.step[trial]:
                part = h if where == "hidden_state" else c
                part[layer] = part[layer].clone()
                for one in range(INPUTS):
                    part[layer][one, unit] = by_hand.faulty_scalar(part[layer][one, unit], Floating(fmt), True, change)

        expected = lstm_by_hand(model, x, fault)
        expected = (expected.float() if fmt == "bfloat16" else expected).numpy()
        with np.errstate(invalid="ignore"):
            np.testing.assert_allclose(seen[trial], expected, rtol=tolerance, atol=tolerance)


def lstm_by_hand(model: models.Recurrent, x: Tensor, fault: Callable) -> Tensor:
    """The cell equations of Hochreiter and Schmidhuber as PyTorch states them, step by step."""
    rnn = model.rnn
    with torch.inference_mode():
        h = [torch.zeros(len(x), 5, dtype=x.dtype) for _ in range(rnn.num_layers)]
        c = [state.clone() for state in h]
        for step in range(x.shape[1]):
            read = x[:, step]
            for layer in range(rnn.num_layers):
                parts = [getattr(rnn, f"{name}_l{layer}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
                gates = F.linear(read, parts[0], parts[2]) + F.linear(h[layer], parts[1], parts[3])
                i, f, g, o = gates.chunk(4, dim=1)
                c[layer] = torch.sigmoid(f) * c[layer] + torch.sigmoid(i) * torch.tanh(g)
                h[layer] = torch.sigmoid(o) * torch.tanh(c[layer])
                read = h[layer]
            fault(step, h, c)
        return model.fc(h[-1])


NEVER = sorted({(cell.values[0], cell.values[2]) for cell in CELLS} - {(c.values[0], c.values[2]) for c in SUPPORTED})


@pytest.mark.parametrize(("where", "fmt"), NEVER)
def test_never(where: str, fmt: str) -> None:
    """What is not supported is refused, or the words that are hit are visibly of another format."""
    if where in ("hidden_state", "cell_state") and fmt in support.EMULATED:
        model = models.filled(models.Recurrent(nn.LSTM))
        target = SoftwareTarget(
            model, models.numbers(4, 3, 4), weights_format=fmt, activations_format=fmt, resources=Resources()
        )
    else:
        target = target_for(where, fmt)
    try:
        space = target.space([SoftwareFault(where=where, model=support.MODELS["bit_flip"])])
    except SaboteurError as error:
        assert isinstance(error, FaultError) and where in str(error)
    else:
        assert {region.format.name for region in space.regions} == {"float32"}


def test_the_matrix_names_only_what_exists() -> None:
    assert all(isinstance(model, FaultModel) for model in support.MODELS.values())
    assert {where for where, _ in NEVER} < set(support.SITES)


def test_the_page_is_up_to_date() -> None:
    docs = Path(__file__).resolve().parents[2] / "docs"
    render = runpy.run_path(str(docs / "support_matrix.py"))["render"]
    assert (docs / "support-matrix.md").read_text(encoding="utf-8") == render()
