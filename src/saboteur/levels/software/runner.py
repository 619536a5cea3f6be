"""Runs a model over its workload in fixed batches, with or without faults in its signals."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from saboteur.errors import TargetError
from saboteur.faults.formats import NumberFormat
from saboteur.levels.software.corruption import Hits
from saboteur.levels.software.emulation import rounded_output
from saboteur.levels.software.flow import Event, Visit, leaves, named_modules, tapped
from saboteur.levels.software.memory import computed_tensors
from saboteur.levels.software.signals import Connection, Output, Signal
from saboteur.levels.software.states import State, with_faulty_states

DEFAULT_BATCH = 64

Edit = tuple[Signal, Hits]


class ModelError(Exception):
    """The model itself failed, as a faulty program may."""


class HarnessError(Exception):
    """The run says nothing about the model: Saboteur's own part of it failed."""


@dataclass(frozen=True)
class Batch:
    """Inputs that are computed together.

    Attributes:
        rows: [batch size] input numbers; some may be there only to fill the batch.
        kept: [n] the places in ``rows`` whose outputs are wanted.
    """

    rows: NDArray[np.int64]
    kept: NDArray[np.int64]

    @property
    def inputs(self) -> NDArray[np.int64]:
        """[n] the inputs whose outputs are wanted."""
        return self.rows[self.kept]


class Runner:
    """A model, its inputs and how they are run.

    All batches have one size, and each input always has the same place in its batch, fault or no fault: the
    last bits of an output may depend on both, and a run without a fault must give the golden bits. Where the
    other inputs of a batch change an output (as where a scale is found for the whole batch, by dynamic
    quantisation), batches hold one input: each inference is one of its own.

    Args:
        model: in eval mode, on the device of ``tensors``.
        tensors: the model's arguments, each [inputs, ...].
        output: which element of a tuple or mapping is the output.
        batch_size: inputs in one pass, at most.
        threads: CPU threads.

    Raises:
        TargetError: when the model fails without a fault.
    """

    def __init__(
        self,
        model: nn.Module,
        tensors: tuple[Tensor, ...],
        *,
        output: int | str | None = None,
        batch_size: int | None = None,
        threads: int = 1,
    ):
        self.model = model
        self.tensors = tensors
        self.inputs = len(tensors[0])
        passes = -(-self.inputs // (batch_size or DEFAULT_BATCH))
        self.batch_size = -(-self.inputs // passes)
        self.threads = threads
        self.rounding: dict[str, NumberFormat] = {}
        """Formats that outputs of modules and inputs are rounded to, by place."""
        self.output = output
        self._modules = named_modules(model)
        self._computed = [(module, name) for module in self._modules.values() for name in computed_tensors(module)]
        self.inputs_interact = self._do_inputs_interact()
        if self.inputs_interact:
            self.batch_size = 1

    def batches(self, inputs: NDArray[np.int64] | None = None) -> Iterator[Batch]:
        """Batches that together give the output of each of ``inputs`` (or of all) once."""
        if inputs is None:
            inputs = np.arange(self.inputs)
        place = inputs % self.batch_size
        order = np.argsort(place, kind="stable")
        number = np.empty(len(inputs), np.int64)
        number[order] = np.arange(len(inputs)) - np.searchsorted(place[order], place[order])
        for batch in range(number.max(initial=-1) + 1):
            chosen = np.flatnonzero(number == batch)
            rows = np.arange(self.batch_size)
            rows[place[chosen]] = inputs[chosen]
            yield Batch(rows, place[chosen])

    def batch_of(self, one: int) -> Batch:
        """The batch that gives the output of one input."""
        return next(self.batches(np.array([one])))

    def golden(self) -> NDArray:
        """The fault-free outputs of all inputs.

        Raises:
            TargetError: when the model fails without a fault, or answers differently when asked again.
        """
        with self.prepared(), _fault_free():
            outputs = np.concatenate([self.run(batch) for batch in self.batches()])
            # So many inputs that random answers do not agree by chance, also where batches hold one.
            repeated = islice(self.batches(), -(-DEFAULT_BATCH // self.batch_size))
            again = np.concatenate([self.run(batch) for batch in repeated])
        if again.tobytes() != outputs[: len(again)].tobytes():
            raise TargetError(
                "model: two fault-free runs on the same inputs differ; it draws random numbers (dropout by "
                "F.dropout without training=self.training is a common cause) or keeps a state between calls"
            )
        return outputs

    def _do_inputs_interact(self) -> bool:
        """Whether an output changes when the rest of its batch does."""
        rows = np.arange(self.batch_size)
        with self.prepared(), _fault_free():
            together = self.run(Batch(rows, rows))
            for place in {0, self.batch_size // 2, self.batch_size - 1}:
                among_copies = self.run(Batch(np.full(self.batch_size, place), np.array([place])))
                if among_copies.tobytes() != together[place : place + 1].tobytes():
                    return True
        return False

    def depends_on_batch_size(self) -> bool:
        """Whether the first inputs have other output bits in a batch of half the size."""
        first = next(self.batches())
        half = -(-self.batch_size // 2)
        with self.prepared():
            whole = self.run(first)[:half]
            return whole.tobytes() != self.run(Batch(first.rows[:half], first.kept[:half])).tobytes()

    def run(self, batch: Batch, edits: Sequence[Edit] = (), watch: Visit | None = None) -> NDArray:
        """The outputs [kept, ...] with the faults of ``edits`` in the model's signals.

        Args:
            batch: the inputs.
            edits: faults by the signal that they hit.
            watch: sees every event after its faults.

        Raises:
            ModelError: when the model fails.
            HarnessError: when placing the faults fails.
        """
        rows = torch.from_numpy(batch.rows)
        tensors = tuple(tensor[rows.to(tensor.device)] for tensor in self.tensors)
        edits = [(signal.in_batch(batch.rows), hits) for signal, hits in edits]
        return self._forward(tensors, edits, watch)[batch.kept]

    def probe(self, size: int) -> None:
        """Run fault-free on ``size`` inputs, for what can be seen on the way."""
        index = torch.arange(size) % self.inputs
        with self.prepared(), _fault_free():
            self._forward(tuple(tensor[index.to(tensor.device)] for tensor in self.tensors), [], None)

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """Settings of PyTorch under which runs repeat bit for bit; as before on leaving."""
        threads, fast_path = torch.get_num_threads(), torch.backends.mha.get_fastpath_enabled()
        cudnn = torch.backends.cudnn
        deterministic, benchmark = cudnn.deterministic, cudnn.benchmark
        computed = [(module, name, getattr(module, name)) for module, name in self._computed]
        try:
            torch.set_num_threads(self.threads)
            # The fast path goes around the modules whose outputs are hit, and is not taken where hooks are.
            torch.backends.mha.set_fastpath_enabled(False)
            cudnn.deterministic, cudnn.benchmark = True, False
            with torch.inference_mode():
                yield
        finally:
            torch.set_num_threads(threads)
            torch.backends.mha.set_fastpath_enabled(fast_path)
            cudnn.deterministic, cudnn.benchmark = deterministic, benchmark
            for module, name, tensor in computed:
                setattr(module, name, tensor)

    def _forward(self, tensors: tuple[Tensor, ...], edits: Sequence[Edit], watch: Visit | None) -> NDArray:
        by_place = _by_place(edits)
        tensors = tuple(self._input(position, tensor, by_place, watch) for position, tensor in enumerate(tensors))
        with self.tapped(edits, watch):
            try:
                output = self.model(*tensors)
            except (HarnessError, TargetError):
                raise
            except torch.OutOfMemoryError as error:
                raise HarnessError(f"out of memory: {error}") from error
            except Exception as error:
                raise ModelError(f"{type(error).__name__}: {error}") from error
        return self._select(output, len(tensors[0]))

    @contextmanager
    def tapped(self, edits: Sequence[Edit], watch: Visit | None = None) -> Iterator[None]:
        """A context for one pass, in which outputs of modules and functions are rounded and meet their faults.

        Args:
            edits: faults by the signal that they hit; those of the model's inputs are left out.
            watch: sees every event after its faults.
        """
        by_place = _by_place(edits)
        places = {place for place in (*by_place, *self.rounding) if place in self._modules}
        functions = any("#" in place for place in by_place) or watch is not None
        if watch is not None:
            places |= set(leaves(self.model))
        with ExitStack() as stack:
            if places or functions:
                modules = {place: self._modules[place] for place in places}
                visit = self._guarded(by_place, watch)
                stack.enter_context(tapped(self.model, visit, modules, functions=functions))
            yield

    def _input(self, position: int, tensor: Tensor, by_place: Mapping[str, list[Edit]], watch: Visit | None) -> Tensor:
        place = input_place(position, len(self.tensors))
        event = Event(place, 0, self.model, (), {}, tensor)
        return self._guarded(by_place, watch)(event)

    def _guarded(self, by_place: Mapping[str, list[Edit]], watch: Visit | None) -> Visit:
        def visit(event: Event) -> Any:
            try:
                event.output = self.edited(event, by_place.get(event.place, ()))
                if watch is not None:
                    watch(event)
                return event.output
            except Exception as error:
                raise HarnessError(f"{event.place}: {type(error).__name__}: {error}") from error

        return visit

    def edited(self, event: Event, edits: Sequence[Edit]) -> Any:
        """What takes the place of an event's output: it is rounded, where it is to be, and meets its faults."""
        states = [(signal, hits) for signal, hits in edits if isinstance(signal, State)]
        if states:
            event.output = with_faulty_states(event, states)
        for signal, hits in edits:
            if isinstance(signal, Connection):
                event.output = signal.edit(event, hits)
        event.output = rounded_output(event.output, self.rounding.get(event.place))
        for signal, hits in edits:
            if isinstance(signal, Output):
                event.output = signal.edit(event, hits)
        return event.output

    def _select(self, output: Any, size: int) -> NDArray:
        if self.output is not None:
            try:
                output = output[self.output]
            except (KeyError, IndexError, TypeError) as error:
                raise TargetError(
                    f"output: the model returns {_describe(output)}, which has no element {self.output!r}"
                ) from error
        if not isinstance(output, Tensor):
            raise TargetError(
                f"output: the model returns {_describe(output)}; say which element is the output "
                "(an index of a tuple, a key of a mapping)"
            )
        if output.dim() == 0 or len(output) != size:
            raise TargetError(
                f"output: shape {list(output.shape)} for {size} inputs; the first axis must tell the inputs apart"
            )
        output = output.dequantize() if output.is_quantized else output
        if output.dtype in (torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2):
            output = output.float()
        return output.cpu().numpy()


def _by_place(edits: Sequence[Edit]) -> dict[str, list[Edit]]:
    found: dict[str, list[Edit]] = defaultdict(list)
    for signal, hits in edits:
        found[signal.place].append((signal, hits))
    return found


@contextmanager
def _fault_free() -> Iterator[None]:
    try:
        yield
    except ModelError as error:
        raise TargetError(f"model: fails without any fault: {error}") from error


@contextmanager
def differentiable() -> Iterator[None]:
    """A context within :meth:`Runner.prepared` in which what is computed can be differentiated."""
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        yield


def input_place(position: int, count: int) -> str:
    """How the model's argument at ``position`` is called as a place: ``input``, or ``input0``, ``input1`` ..."""
    return "input" if count == 1 else f"input{position}"


def _describe(output: Any) -> str:
    if isinstance(output, Mapping):
        return f"a mapping with the keys {', '.join(map(repr, output))}"
    if isinstance(output, tuple | list):
        return f"a {type(output).__name__} of {len(output)}"
    return f"a {type(output).__name__}"
