"""Any file or name the toolkit reads as something that runs, each in its own runtime."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from repconv.errors import SourceError
from repconv.files.onnx import read_onnx, session_of
from repconv.files.programs import read_program
from repconv.files.whole import sha256
from repconv.proof.float64 import everything_in_float64
from repconv.proof.leaves import leaves

PYTORCH, ONNXRUNTIME, PROGRAM = "PyTorch", "onnxruntime", "torch.export"


@dataclass(frozen=True)
class Input:
    """One input as its artefact declares it: sizes that are open are None; `shape` is None where nothing is known."""

    name: str
    dtype: torch.dtype
    shape: tuple[int | None, ...] | None


@dataclass(frozen=True)
class Step:
    """One intermediate tensor of a run, in execution order.

    kind: the module's or operator's type. value and sources: its name in its graph, and the names of what it was
    computed from; empty for modules, which do not know.
    """

    name: str
    kind: str
    tensor: Tensor
    value: str = ""
    sources: tuple[str, ...] = ()


Run = Callable[[Sequence[Tensor]], tuple[Tensor, ...]]
Trace = Callable[[Sequence[Tensor]], list[Step]]


@dataclass(frozen=True)
class Artefact:
    """Something that runs.

    name: as the user gave it; path and sha256: of its file, None without one; kind: of its runtime.
    run: from input tensors, of any floating-point type, to output tensors; trace: the same to intermediate ones.
    model: the PyTorch module, where it is one.
    input_size: (c, h, w) of an image it is known to take, beside what `inputs` declares.
    notes: what the user should know of how it was read.
    """

    name: str
    kind: str
    run: Run
    trace: Trace
    inputs: tuple[Input, ...]
    model: nn.Module | None = None
    input_size: tuple[int, ...] | None = None
    path: Path | None = None
    sha256: str | None = None
    notes: tuple[str, ...] = field(default=())


def in_float64(artefact: Artefact) -> Artefact:
    """The same PyTorch network in float64; other runtimes, which cannot, as they are."""
    if artefact.model is None:
        return artefact
    exact = copy.deepcopy(artefact.model).double()
    inputs = tuple(Input(i.name, torch.float64, i.shape) for i in artefact.inputs)
    run, trace = module_run(exact), module_trace(exact)

    def run_exactly(given: Sequence[Tensor]) -> tuple[Tensor, ...]:
        with everything_in_float64():
            return run(given)

    def trace_exactly(given: Sequence[Tensor]) -> list[Step]:
        with everything_in_float64():
            return trace(given)

    return Artefact(artefact.name, PYTORCH, run_exactly, trace_exactly, inputs, exact)


def dtype_of(model: nn.Module) -> torch.dtype:
    """The dtype of the model's first floating-point parameter; float32 if it has none."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def module_run(model: nn.Module) -> Run:
    """A PyTorch module as a function of its positional inputs."""
    dtype = dtype_of(model)

    def run(inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return tuple(t for _, t in leaves(model(*_cast(inputs, dtype))))

    return run


def module_trace(model: nn.Module) -> Trace:
    """The output of every module that gives one tensor, as its forward ends; later calls of one get `#2`, `#3`."""
    run = module_run(model)

    def trace(inputs: Sequence[Tensor]) -> list[Step]:
        steps: list[Step] = []
        last: list[Tensor] = []  # kept alive, so that no later output can be taken for it
        calls: dict[str, int] = {}

        def record(name: str, module: nn.Module, output: object) -> None:
            if not isinstance(output, Tensor):
                return
            # A container that hands on what its last module gave adds nothing; an in-place ReLU does.
            if last and last[0] is output and torch.equal(steps[-1].tensor, output):
                return
            last[:] = [output]
            calls[name] = calls.get(name, 0) + 1
            label = name if calls[name] == 1 else f"{name}#{calls[name]}"
            steps.append(Step(label, type(module).__name__, output.detach().clone()))  # in-place ReLU writes into it

        handles = [
            module.register_forward_hook(lambda m, _, output, n=name: record(n, m, output))
            for name, module in model.named_modules()
            if name
        ]
        try:
            run(inputs)
        finally:
            for handle in handles:
                handle.remove()
        return steps

    return trace


def _cast(inputs: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    return [t.to(dtype) if t.is_floating_point() else t for t in inputs]


def program_artefact(text: str, path: Path) -> Artefact:
    """A program of torch.export, run by PyTorch; errors as `open_artefact`."""
    program = read_program(path)
    module = program.module()
    values = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    given = [values.get(name) for name in program.graph_signature.user_inputs if isinstance(name, str)]
    inputs = []
    for name, value in zip(program.graph_signature.user_inputs, given, strict=False):
        if not isinstance(value, Tensor):
            raise SourceError(f"{text}: its input {name} is no tensor; only programs of tensors are run")
        shape = tuple(size if isinstance(size, int) else None for size in value.shape)
        inputs.append(Input(str(name), value.dtype, shape))

    def run(given: Sequence[Tensor]) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return tuple(t for _, t in leaves(module(*_declared(given, inputs))))

    def trace(given: Sequence[Tensor]) -> list[Step]:
        recorder = _Recorder(module)
        with torch.no_grad():
            recorder.run(*_declared(given, inputs))
        # A module's output is the last tensor computed inside it.
        ends = {name: index for index, (name, _) in enumerate(recorder.seen)}
        return [step for index, (name, step) in enumerate(recorder.seen) if ends[name] == index]

    return Artefact(text, PROGRAM, run, trace, tuple(inputs), path=path, sha256=sha256(path))


class _Recorder(torch.fx.Interpreter):
    """Runs a program and keeps every tensor under the name of the module it was computed in."""

    def __init__(self, module: torch.fx.GraphModule) -> None:
        super().__init__(module)
        self.seen: list[tuple[str, Step]] = []

    def run_node(self, n: torch.fx.Node) -> Any:  # noqa: ANN401  # fx's signature
        """Run one node, and keep what it gives."""
        result = super().run_node(n)
        if n.op == "call_function" and isinstance(result, Tensor):
            stack = list((n.meta.get("nn_module_stack") or {}).values())
            inside = str(stack[-1][0]) if stack else ""
            # Functions called between modules keep their own names.
            name = inside if inside and _is_leaf(str(stack[-1][1])) else n.name
            kind, sources = n.name.rstrip("_0123456789"), tuple(source.name for source in n.all_input_nodes)
            self.seen.append((name, Step(name, kind, result.detach().clone(), n.name, sources)))
        return result


def _is_leaf(kind: str) -> bool:
    return kind.startswith("torch.nn.modules.") and ".container." not in kind


def _declared(given: Sequence[Tensor], inputs: Sequence[Input]) -> list[Tensor]:
    return [
        t.to(i.dtype) if t.is_floating_point() and i.dtype.is_floating_point else t
        for t, i in zip(given, inputs, strict=True)
    ]


def onnx_artefact(text: str, path: Path) -> Artefact:
    """An ONNX file, run by onnxruntime; errors as `open_artefact`."""
    proto = read_onnx(path)
    session = session_of(path, text)
    inputs = tuple(_onnx_inputs(proto, text))

    def run(given: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return tuple(_run_session(session, inputs, given))

    def trace(given: Sequence[Tensor]) -> list[Step]:
        exposed = copy.deepcopy(proto)
        kept = {output.name for output in exposed.graph.output}
        nodes = [(node, name) for node in exposed.graph.node for name in node.output if name]
        exposed.graph.output.extend(onnx.ValueInfoProto(name=name) for _, name in nodes if name not in kept)
        every = session_of(exposed.SerializeToString(), text)
        found = dict(zip((o.name for o in every.get_outputs()), _run_session(every, inputs, given), strict=True))
        weights = {tensor.name for tensor in proto.graph.initializer}
        return [
            Step(_module_of(node, weights) or name, node.op_type, found[name], name, tuple(node.input))
            for node, name in nodes
        ]

    return Artefact(text, ONNXRUNTIME, run, trace, inputs, path=path, sha256=sha256(path))


def _run_session(session: Any, inputs: Sequence[Input], given: Sequence[Tensor]) -> Iterator[Tensor]:  # noqa: ANN401
    feed = {i.name: t.contiguous().numpy() for i, t in zip(inputs, _declared(given, inputs), strict=True)}
    for value in session.run(None, feed):
        if not isinstance(value, np.ndarray):
            raise SourceError(f"an output is a {type(value).__name__}; only tensors are compared")
        yield torch.from_numpy(value)


def _onnx_inputs(proto: onnx.ModelProto, text: str) -> Iterator[Input]:
    weights = {tensor.name for tensor in proto.graph.initializer}
    for value in proto.graph.input:
        if value.name in weights:
            continue
        tensor = value.type.tensor_type
        if not tensor.elem_type:
            raise SourceError(f"{text}: its input {value.name} is no tensor; only models of tensors are run")
        array = np.zeros(0, onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
        shape = tuple(d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim)
        yield Input(value.name, torch.from_numpy(array).dtype, shape if tensor.HasField("shape") else None)


def _module_of(node: onnx.NodeProto, weights: set[str]) -> str | None:
    """The PyTorch module a node's weight is named after, as exporters write it: `stem` of `stem.weight`."""
    names = [name for name in node.input if name in weights and name.endswith(".weight")]
    return names[0].removesuffix(".weight") if len(names) == 1 else None
