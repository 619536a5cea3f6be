"""A PyTorch model in eval mode with its test inputs, as a target."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from functools import cached_property
from itertools import product
from typing import get_args

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from saboteur.campaign.target import FaultSpec, Resources, Target
from saboteur.errors import FaultError, TargetError, near
from saboteur.faults.error_models import ErrorModel
from saboteur.faults.error_sampling import ComponentErrors
from saboteur.faults.error_values import LayerOutput
from saboteur.faults.formats import Affine, NumberFormat, number_format
from saboteur.faults.space import Faults, FaultSpace, Region
from saboteur.levels.software import error_models, injection, tracing
from saboteur.levels.software.emulation import native_format, raw_view
from saboteur.levels.software.engine.exact import ExactEngine
from saboteur.levels.software.engine.screening import Screen
from saboteur.levels.software.engine.screening_slopes import RULE
from saboteur.levels.software.flow import named_modules
from saboteur.levels.software.memory import Memory, memories
from saboteur.levels.software.representation import activations_in, weights_in
from saboteur.levels.software.runner import Runner, input_place
from saboteur.levels.software.signals import Granularity, Output
from saboteur.levels.software.site import Site
from saboteur.levels.software.spec import EngineName, PyTorchTarget, SoftwareFault, Where
from saboteur.levels.software.survey import Survey, output_site
from saboteur.outcomes.golden import Golden, OutputKind
from saboteur.outcomes.recorder import Recorder


class SoftwareTarget(Target):
    """A model, its workload, and the number formats that its values are taken to be in.

    A fault hits each input's own inference: batches are only a way to compute. What is random in a fault (a
    random value, noise, whether an intermittent fault acts) follows from its trial; a drawn value or noise is the
    same in each inference of the trial, and its own for each word of a channel or layer. An exception that the
    faulty model raises is a crash of the inferences that raise it.

    Args:
        model: in eval mode, on the device of ``resources``. It is left as it is, bit for bit.
        inputs: one tensor [inputs, ...], floating or integer, or a tuple of them for a model with several
            arguments.
        labels: the true class of each input, where known.
        outputs: what the model returns: class ``logits``, class ``probabilities`` or other ``values``.
        output: which element of a returned tuple (an index) or mapping (a key) is the output.
        weights_format: emulate weights stored in this number format. An affine format takes weights only,
            symmetric and calibrated on their range; a floating or fixed-point format takes all parameters.
            The golden run is then that of the emulated model.
        activations_format: emulate outputs of modules without children, and inputs, in this number format; an
            affine one is calibrated for each tensor on its fault-free range over ``inputs``.
        per_channel: an affine weight format has a scale for each output channel rather than each tensor.
        engine: ``plain`` runs every faulty inference in full; ``exact`` gives the same verdicts from a fraction of
            the work, the plain way where it has no faster one; ``screened`` predicts the clear cases first.
        audit_rate: for ``screened``, the share of all inferences that is drawn to be run even if predicted.
        resources: device, threads, batch size and memory.

    Raises:
        TargetError: when model, inputs and labels do not fit each other.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Tensor | Sequence[Tensor],
        labels: ArrayLike | Tensor | None = None,
        outputs: OutputKind = "logits",
        output: int | str | None = None,
        weights_format: str | None = None,
        activations_format: str | None = None,
        per_channel: bool = True,
        engine: EngineName = "exact",
        audit_rate: float = 0.005,
        resources: Resources = Resources(),  # noqa: B008
    ):
        device = _device(resources.device)
        self._check_model(model, device)
        tensors = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
        self._labels = _checked_labels(labels, tensors)
        self._outputs: OutputKind = outputs
        self._settings: tuple[object, ...] = (outputs, output, weights_format, activations_format, per_channel)
        self.engine_name = engine
        self._audit_rate = audit_rate
        if engine == "screened":
            self._settings += (engine, audit_rate, RULE)
        self._resources = resources
        stored = memories(model)
        if weights_format is not None:
            model, stored = weights_in(model, number_format(weights_format), per_channel)
        self._model = model
        self._memories = {site.name: site for site in stored}
        self._runner = Runner(
            model,
            tuple(tensor.detach().to(device) for tensor in tensors),
            output=output,
            batch_size=resources.batch_size,
            threads=resources.threads,
        )
        if activations_format is not None:
            self._runner.rounding = activations_in(self._runner, number_format(activations_format))

    @staticmethod
    def _check_model(model: nn.Module, device: torch.device) -> None:
        if not isinstance(model, nn.Module):
            raise TargetError(f"model: a {type(model).__name__} is not a torch.nn.Module")
        training = [path for path, module in named_modules(model).items() if module.training]
        if training:
            raise TargetError(f"model: {training[0]} is in training mode; call model.eval() first")
        for name, values in (*model.named_parameters(), *model.named_buffers()):
            if values.device.type != device.type:
                raise TargetError(
                    f"model: {name} is on {values.device}, the campaign on {device}; move the model with "
                    f"model.to({str(device)!r}) or set resources.device"
                )

    @classmethod
    def from_spec(cls, spec: PyTorchTarget, resources: Resources) -> SoftwareTarget:
        """Build the model and load the data that a campaign file names.

        Raises:
            TargetError: when a file or function is missing or gives something else.
        """
        from saboteur.levels.software import loading

        model, inputs, labels = loading.load(spec)
        return cls(
            model.to(_device(resources.device)),
            inputs,
            labels,
            outputs=spec.outputs,
            output=spec.output,
            weights_format=spec.weights_format,
            activations_format=spec.activations_format,
            per_channel=spec.per_channel,
            engine=spec.engine,
            audit_rate=spec.audit_rate,
            resources=resources,
        )

    @cached_property
    def fingerprint(self) -> str:  # type: ignore[override]
        """A hash of the model's words, structure and code, the inputs, the labels and the settings."""
        digest = hashlib.sha256()

        def add(name: str, content: bytes) -> None:
            digest.update(f"{name}\x1f{len(content)}\x1f".encode() + content)

        add("settings", repr(self._settings).encode())
        add("structure", str(self._model).encode())
        for kind in dict.fromkeys(type(module) for module in self._model.modules()):
            add(kind.__qualname__, _source(kind).encode())
        for name, site in self._memories.items():
            add(f"{name} {site.format} {site.shape}", site.words().tobytes())
            if isinstance(site.format, Affine):
                add("scale", site.format.scale.tobytes() + site.format.zero_point.tobytes())
        for name, values in (*self._model.named_parameters(), *self._model.named_buffers()):
            add(f"{name} {values.dtype} {tuple(values.shape)}", _bytes(values))
        for tensor in self._runner.tensors:
            add(f"input {tensor.dtype} {tuple(tensor.shape)}", _bytes(tensor))
        if self._labels is not None:
            add("labels", self._labels.tobytes())
        return digest.hexdigest()[:32]

    def golden(self) -> Golden:
        """Run fault-free, in the batches in which faults are injected."""
        device = torch.device(self._resources.device)
        environment = {
            "torch": torch.__version__,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "threads": str(self._resources.threads),
        }
        outputs = self._runner.golden()
        if self._runner.inputs_interact or self._runner.depends_on_batch_size():
            environment["batch_size"] = str(self._runner.batch_size)
        return Golden(outputs, self._labels, self._outputs, environment)

    def space(self, specs: Sequence[FaultSpec]) -> FaultSpace:
        """Every fault that ``specs`` describe; a site and model that several of them describe counts once."""
        regions: dict[tuple, Region] = {}
        for spec in specs:
            if not isinstance(spec, SoftwareFault):
                raise FaultError(f"faults: a {type(spec).__name__} is not a fault of the software level")
            if isinstance(spec.model, ErrorModel):
                for region in error_models.regions(spec, self._selected(spec)):
                    regions.setdefault((region.site, region.model, region.duration, region.activity), region)
                continue
            for site in self._selected(spec):
                region = Region(
                    site=site.name,
                    layer=site.layer,
                    component=site.component,
                    shape=site.shape,
                    format=site.format,
                    model=spec.model,
                    duration=spec.duration,
                    steps=site.steps if spec.duration == "transient" else 1,
                    activity=spec.activity,
                )
                if region.size:
                    regions.setdefault((site.name, spec.model, spec.duration, spec.activity), region)
        return FaultSpace(tuple(regions.values()))

    def inject(self, space: FaultSpace, faults: Faults, recorder: Recorder) -> None:
        """Run each trial over the inputs that the recorder gives it."""
        space, faults = error_models.by_layer(space, faults)
        sites = {region.site: self._site(region.site) for region in space.regions}
        with self._runner.prepared():
            if error_models.are_in(space):
                error_models.inject(self._runner, sites, space, faults, recorder)
                return
            if self.engine_name == "plain":
                injection.inject(self._runner, sites, space, faults, recorder)
                return
            prediction = None
            if self.engine_name == "screened":
                prediction = self.screen(space).screen(space, faults, recorder, self._audit_rate)
            self.engine.inject(sites, space, faults, recorder, prediction)

    @cached_property
    def engine(self) -> ExactEngine:
        """The fast engine; its ``reason`` says why it has no fast way for this model, if so."""
        memory = self._resources.memory_bytes
        return ExactEngine(self._runner, memory - memory // 4 if self.engine_name == "screened" else memory)

    def screen(self, space: FaultSpace) -> Screen:
        """What predicts the clear cases of ``space``; its ``unscreened`` says where it cannot."""
        names = frozenset(space.sites)
        if names not in self._screens:
            sites = {name: self._site(name) for name in space.sites}
            memory, on_the_way = self._resources.memory_bytes // 4, self.engine.measured_places(sites.values())
            self._screens[names] = Screen(self._runner, sites, self._outputs, memory, on_the_way)
        return self._screens[names]

    @cached_property
    def _screens(self) -> dict[frozenset[str], Screen]:
        return {}

    def stored(self, region: Region) -> tuple[NDArray, NumberFormat]:
        """The fault-free words [elements] of a parameter or buffer, and their lined-up format."""
        site = None if isinstance(region.model, ComponentErrors) else self._site(region.site)
        if not isinstance(site, Memory):
            return super().stored(region)
        return site.words(), site.format_at(np.arange(region.elements))

    def layer_outputs(self) -> dict[str, LayerOutput]:
        """What is known of the fault-free output of each layer, which learning an error model takes."""
        sites = self._sites("outputs", "element").values()
        return {site.layer: site.known for site in sites if isinstance(site, error_models.ErrorOutput)}

    def trace(self, space: FaultSpace, faults: Faults, input: int) -> pa.Table:
        """Follow the error of the first trial through the inference of ``input``."""
        if not 0 <= input < self._runner.inputs:
            raise TargetError(f"input: {input} is outside 0 .. {self._runner.inputs - 1}")
        space, faults = error_models.by_layer(space, faults)
        sites = {region.site: self._site(region.site) for region in space.regions}
        inputs = self._sites("inputs", "element").values()
        axes = {site.place: site.batch_axis for site in inputs if isinstance(site, Output)}
        axes |= self._survey.batch_axes
        with self._runner.prepared():
            return tracing.trace(self._runner, sites, axes, space, faults, input)

    @cached_property
    def _survey(self) -> Survey:
        return Survey(self._model, self._runner.probe, self._runner.rounding)

    @property
    def skipped(self) -> dict[str, str]:
        """Outputs and states that faults cannot hit, each with the reason."""
        return dict(self._survey.skipped)

    def _site(self, name: str) -> Site:
        for where, granularity in product(get_args(Where), get_args(Granularity)):
            family = self._sites(where, granularity)
            if name in family:
                return family[name]
        raise FaultError(f"site: {name!r} is not in this model{near(name, self._memories)}")

    def _sites(self, where: Where, granularity: Granularity) -> dict[str, Site]:
        if (where, granularity) not in self._found:
            sites = self._find(where, granularity)
            self._found[where, granularity] = {site.name: site for site in sites}
        return self._found[where, granularity]

    @cached_property
    def _found(self) -> dict[tuple[str, str], dict[str, Site]]:
        return {}

    def _find(self, where: Where, granularity: Granularity) -> Iterable[Site]:
        if where in ("weights", "biases", "buffers", "parameters"):
            return (site for site in self._memories.values() if _is_among(site, where))
        if where == "inputs":
            return self._inputs(granularity)
        if where == "connections":
            return self._survey.connections()
        if where in ("hidden_state", "cell_state"):
            return self._survey.states(where)
        outputs = self._survey.outputs(granularity, functions=where == "operators")
        return error_models.sites(self._runner, outputs) if where == "outputs" else outputs

    def _inputs(self, granularity: Granularity) -> Iterator[Site]:
        for index, tensor in enumerate(self._runner.tensors):
            place = input_place(index, len(self._runner.tensors))
            native = native_format(tensor.dtype)
            yield output_site(
                name=place,
                layer=place,
                module=self._model,
                component="input",
                place=place,
                shape=tuple(tensor.shape[1:]),
                fmt=self._runner.rounding.get(place, native),
                granularity=granularity,
            )

    def _selected(self, spec: SoftwareFault) -> list[Site]:
        candidates = list(self._sites(spec.where, spec.granularity).values())
        self._refuse_skipped_states(spec)
        if not candidates:
            raise FaultError(f"where: the model has no {spec.where} that faults can hit{self._reasons(spec.where)}")
        layers = {site.layer for site in candidates}
        chosen: set[str] = set()
        for pattern in spec.layers:
            matching = {layer for layer in layers if fnmatchcase(layer, pattern)}
            if not matching:
                known = [*layers, *named_modules(self._model)]
                if pattern in known:
                    raise FaultError(
                        f"layers: {pattern!r} has no {spec.where}; layers that have: {', '.join(sorted(layers)[:12])}"
                    )
                raise FaultError(f"layers: no layer matches {pattern!r}{near(pattern, layers)}")
            chosen |= matching
        sites = [site for site in candidates if site.layer in chosen]
        if spec.layer_types is not None:
            sites = self._of_types(spec, sites)
        return sites

    def _reasons(self, where: Where) -> str:
        if where not in ("activations", "operators"):
            return ""
        skipped = [(place, why) for place, why in self.skipped.items() if ("#" in place) == (where == "operators")]
        return "".join(f"; {place}: {why}" for place, why in skipped[:3])

    def _refuse_skipped_states(self, spec: SoftwareFault) -> None:
        if spec.where not in ("hidden_state", "cell_state"):
            return
        for name, reason in self._survey.skipped.items():
            layer, _, component = name.rpartition(":")
            if component == spec.where and any(fnmatchcase(layer, pattern) for pattern in spec.layers):
                raise TargetError(f"layers: the {spec.where} of {layer} cannot be hit: {reason}")

    def _of_types(self, spec: SoftwareFault, sites: list[Site]) -> list[Site]:
        names = {site.name: {kind.__name__ for kind in type(site.module).__mro__} for site in sites}
        for wanted in spec.layer_types or ():
            if not any(wanted in of_site for of_site in names.values()):
                known = sorted({type(site.module).__name__ for site in sites})
                raise FaultError(
                    f"layer_types: none of the layers with {spec.where} is a {wanted!r}{near(wanted, known)}"
                )
        return [site for site in sites if names[site.name] & set(spec.layer_types or ())]


def _device(name: str) -> torch.device:
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise TargetError(f"device: {name!r} cannot be used here: {str(error).splitlines()[0]}") from error


def _is_among(site: Memory, where: str) -> bool:
    is_bias = site.component == "bias"
    return {
        "weights": site.component == "weight" and len(site.shape) >= 2,
        "biases": is_bias,
        "buffers": site.component == "buffer" and site.values().is_floating_point(),
        "parameters": site.component != "buffer",
    }[where]


def _checked_labels(labels: ArrayLike | Tensor | None, tensors: tuple[Tensor, ...]) -> NDArray[np.int64] | None:
    sizes = {len(tensor) if isinstance(tensor, Tensor) and tensor.dim() else None for tensor in tensors}
    if len(sizes) != 1 or not sizes - {None, 0}:
        raise TargetError(
            "inputs: must be a tensor [inputs, ...] with at least one input, or several with as many inputs each"
        )
    if labels is None:
        return None
    labels = np.asarray(labels.cpu() if isinstance(labels, Tensor) else labels)
    size = sizes.pop()
    if labels.shape != (size,) or labels.dtype.kind not in "iu":
        raise TargetError(
            f"labels: {labels.dtype} of shape {list(labels.shape)} for {size} inputs; needs a whole number each"
        )
    return labels.astype(np.int64)


def _bytes(values: Tensor) -> bytes:
    values = values.detach()
    if values.is_quantized:
        values = values.int_repr()
    if values.dtype == torch.bool or values.is_complex():
        return values.cpu().numpy().tobytes()
    return raw_view(values.contiguous()).cpu().numpy().tobytes()


def _source(kind: type) -> str:
    if kind.__module__.startswith("torch."):
        return ""
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):
        return ""
