"""Any file or name the toolkit reads as something that runs, each in its own runtime."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from repconv.blocks.probing import dtype_of
from repconv.errors import SourceError
from repconv.files.edited import showing
from repconv.files.onnx import longest_run, model_session, run_session, session_of
from repconv.files.record import file_record
from repconv.files.whole import sha256
from repconv.graph.onnx.proof.float64 import evaluate
from repconv.proof.float64 import everything_in_float64
from repconv.proof.leaves import leaves, of_tensors
from repconv.sources.checkpoint import Normalization
from repconv.sources.source import Input, Source, require_one_input

PYTORCH, ONNXRUNTIME, PROGRAM = "PyTorch", "onnxruntime", "torch.export"


@dataclass(frozen=True, kw_only=True)
class Intermediate:
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
Trace = Callable[[Sequence[Tensor]], list[Intermediate]]


@dataclass(frozen=True, kw_only=True)
class Artefact:
    """Something that runs.

    name: as the user gave it; path and sha256: of its file, None without one; kind: of its runtime.
    run: from input tensors, of any floating-point type, to output tensors; trace: the same to intermediate ones.
    model: the PyTorch module, where it is one.
    input_size: (c, h, w) of an image it is known to take, beside what `inputs` declares.
    notes: what the user should know of how it was read. normalization: of images, where its source says it.
    exact: as `run`, in float64 whatever the artefact computes in; None where nothing known can.
    proto: the ONNX model, where it is one.
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
    normalization: Normalization | None = None
    exact: Run | None = None
    proto: onnx.ModelProto | None = None

    def to_dict(self) -> dict[str, object]:
        """Plain containers for JSON: what it is, what it takes, its file."""
        inputs = [{"name": i.name, "dtype": str(i.dtype).removeprefix("torch."), "shape": i.shape} for i in self.inputs]
        file = file_record(self.path) if self.path else {}
        return {"name": self.name, "runtime": self.kind, "inputs": inputs, **file}


def exact_artefact(artefact: Artefact) -> Artefact:
    """The same artefact in float64; as it is where nothing known can compute it so."""
    if artefact.exact is None:
        return artefact
    inputs = tuple(replace(i, dtype=torch.float64) if i.dtype.is_floating_point else i for i in artefact.inputs)
    if artefact.model is None:
        return replace(artefact, run=artefact.exact, inputs=inputs)
    trace = module_trace(copy.deepcopy(artefact.model).double())

    def trace_exactly(given: Sequence[Tensor]) -> list[Intermediate]:
        with everything_in_float64():
            return trace(given)

    return replace(artefact, run=artefact.exact, trace=trace_exactly, inputs=inputs)


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

    def trace(inputs: Sequence[Tensor]) -> list[Intermediate]:
        steps: list[Intermediate] = []
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
            steps.append(
                Intermediate(name=label, kind=type(module).__name__, tensor=output.detach().clone())
            )  # in-place ReLU writes into it

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


def artefact_of(source: Source, *, loaded: bool = True) -> Artefact:
    """A source as something that runs: a network or a program in PyTorch, an ONNX model in onnxruntime.

    Raises:
        SourceError: it takes no tensors, or onnxruntime cannot load it; not `loaded`, that comes when it runs.
    """
    proto = None
    if isinstance(source.held, onnx.ModelProto):
        kind, (run, trace), proto = ONNXRUNTIME, _of_onnx(source.held, source, loaded=loaded), source.held
        exact = _evaluated(proto, source.inputs)
    elif isinstance(source.held, ExportedProgram):
        kind, (run, trace) = PROGRAM, _of_program(source.held, source)
        exact = _exactly(run)
    else:
        require_one_input(source.held.model, source.name)
        kind, run, trace = PYTORCH, module_run(source.held.model), module_trace(source.held.model)
        exact = _exactly(run)
    model = None if source.is_graph else source.checkpoint.model
    size = None if source.is_graph else source.size
    return Artefact(
        name=source.name,
        kind=kind,
        run=run,
        trace=trace,
        inputs=source.inputs,
        model=model,
        input_size=size,
        path=source.path,
        sha256=source.sha256,
        notes=source.notes,
        normalization=source.normalization,
        exact=exact,
        proto=proto,
    )


def _exactly(run: Run) -> Run:
    """What PyTorch runs, all of it in float64."""

    def exactly(given: Sequence[Tensor]) -> tuple[Tensor, ...]:
        with everything_in_float64():
            return run(_cast(given, torch.float64))

    return exactly


def _evaluated(model: onnx.ModelProto, inputs: Sequence[Input]) -> Run:
    """An ONNX model evaluated in float64, which its runtime does not do for convolutions."""

    def run(given: Sequence[Tensor]) -> tuple[Tensor, ...]:
        feeds = {i.name: t.contiguous().numpy() for i, t in zip(inputs, _cast(given, torch.float64), strict=True)}
        names = [output.name for output in model.graph.output]
        return tuple(torch.from_numpy(np.array(value)) for value in evaluate(model, feeds, names))

    return run


def opaque_artefact(
    text: str, path: Path, kind: str, one: Callable[[Tensor], Sequence[Tensor]], taken: torch.dtype, declared: Input
) -> Artefact:
    """A file of a runtime that takes one tensor, of dtype `taken`, and shows nothing of what is inside."""

    def run(given: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return tuple(one(given[0].to(taken)))

    def trace(given: Sequence[Tensor]) -> list[Intermediate]:  # noqa: ARG001
        raise SourceError(
            f"{text}: {kind} shows nothing of what is inside; locate in the .onnx file of the same network"
        )

    return Artefact(name=text, kind=kind, run=run, trace=trace, inputs=(declared,), path=path, sha256=sha256(path))


def taken_type(text: str, name: str, types: Mapping[str, torch.dtype]) -> torch.dtype:
    """The dtype of an input, by a runtime's name for it.

    Raises:
        SourceError: images are of none such.
    """
    if name not in types:
        raise SourceError(f"{text} takes an input of {name}; images are {', '.join(types)}")
    return types[name]


def _of_program(program: ExportedProgram, source: Source) -> tuple[Run, Trace]:
    module, inputs = program.module(), source.inputs
    of_row = of_tensors(program, module)

    def run(given: Sequence[Tensor]) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return tuple(t for _, t in leaves(of_row(*_declared(given, inputs))))

    def trace(given: Sequence[Tensor]) -> list[Intermediate]:
        recorder = _Recorder(module)
        with torch.no_grad():
            recorder.run(*_declared(given, inputs))
        # A module's output is the last tensor computed inside it.
        ends = {name: index for index, (name, _) in enumerate(recorder.seen)}
        return [step for index, (name, step) in enumerate(recorder.seen) if ends[name] == index]

    return run, trace


class _Recorder(torch.fx.Interpreter):
    """Runs a program and keeps every tensor under the name of the module it was computed in."""

    def __init__(self, module: torch.fx.GraphModule) -> None:
        super().__init__(module)
        self.seen: list[tuple[str, Intermediate]] = []

    def run_node(self, n: torch.fx.Node) -> Any:  # noqa: ANN401  # fx's signature
        """Run one node, and keep what it gives."""
        result = super().run_node(n)
        if n.op == "call_function" and isinstance(result, Tensor):
            stack = list((n.meta.get("nn_module_stack") or {}).values())
            inside = str(stack[-1][0]) if stack else ""
            # Functions called between modules keep their own names.
            name = inside if inside and _is_leaf(str(stack[-1][1])) else n.name
            kind, sources = n.name.rstrip("_0123456789"), tuple(source.name for source in n.all_input_nodes)
            self.seen.append(
                (
                    name,
                    Intermediate(name=name, kind=kind, tensor=result.detach().clone(), value=n.name, sources=sources),
                )
            )
        return result


def _is_leaf(kind: str) -> bool:
    return kind.startswith("torch.nn.modules.") and ".container." not in kind


def _declared(given: Sequence[Tensor], inputs: Sequence[Input]) -> list[Tensor]:
    return [
        t.to(i.dtype) if t.is_floating_point() and i.dtype.is_floating_point else t
        for t, i in zip(given, inputs, strict=True)
    ]


def _of_onnx(proto: onnx.ModelProto, source: Source, *, loaded: bool) -> tuple[Run, Trace]:
    inputs, longest = source.inputs, longest_run(proto)
    # A file of another format that was read as ONNX is none that onnxruntime loads.
    path = source.path if source.path is not None and source.path.suffix == ".onnx" else None

    @cache
    def session() -> Any:  # noqa: ANN401  # onnxruntime has no types
        """It holds the weights once more, and some who open a model never run it."""
        return model_session(proto, source.name) if path is None else session_of(path, source.name)

    if loaded:
        session()

    def run(given: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return tuple(_run_session(session(), inputs, given, longest))

    def trace(given: Sequence[Tensor]) -> list[Intermediate]:
        nodes = [(node, name) for node in proto.graph.node for name in node.output if name]
        every = model_session(showing(proto, [name for _, name in nodes]), source.name)
        found = dict(
            zip((o.name for o in every.get_outputs()), _run_session(every, inputs, given, longest), strict=True)
        )
        weights = {tensor.name for tensor in proto.graph.initializer}
        return [
            Intermediate(
                name=_module_of(node, weights) or name,
                kind=node.op_type,
                tensor=found[name],
                value=name,
                sources=tuple(node.input),
            )
            for node, name in nodes
        ]

    return run, trace


def _run_session(
    session: Any,  # noqa: ANN401  # onnxruntime has no types
    inputs: Sequence[Input],
    given: Sequence[Tensor],
    seconds: float,
) -> Iterator[Tensor]:
    feed = {i.name: t.contiguous().numpy() for i, t in zip(inputs, _declared(given, inputs), strict=True)}
    for value in run_session(session, None, feed, seconds):
        if not isinstance(value, np.ndarray):
            raise SourceError(f"an output is a {type(value).__name__}; only tensors are compared")
        yield torch.from_numpy(value)


def _module_of(node: onnx.NodeProto, weights: set[str]) -> str | None:
    """The PyTorch module a node's weight is named after, as exporters write it: `stem` of `stem.weight`."""
    names = [name for name in node.input if name in weights and name.endswith(".weight")]
    return names[0].removesuffix(".weight") if len(names) == 1 else None
