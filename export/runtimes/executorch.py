"""Programs of ExecuTorch (`.pte`) for XNNPACK, PyTorch's way to phones, and such programs in their own runtime.

What XNNPACK does not take runs in ExecuTorch's portable kernels, a hundred times as slow, and nothing says so. A range
of sizes may shrink, and nothing says so either until a larger input fails. So what XNNPACK took and the sizes are read
back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.export import ExportedProgram

from repconv.errors import BackendError, BuildError, SourceError, first_line
from repconv.files.record import installed
from repconv.sources.source import Input

from ..artefacts.artefact import Artefact, opaque_artefact, taken_type
from ..artefacts.built import Built, Lowered
from ..artefacts.loaded import Array, How, Job, Loaded, as_arrays, nothing
from ..artefacts.read_back import counted, require_type
from ..artefacts.runtime import Diagnosis, Runtime, tried
from ..onnx.quiet import quiet
from ..program.exporter import input_sizes
from ..program.half import to_half
from ..program.int8 import prepared
from ..proof.tolerances import DTYPES
from ..settings import BuildSettings, Span
from ..targets import TARGETS, Target
from .phones.executorch_program import (
    LEAST,
    METHOD,
    PRECISION,
    imported,
    load_program,
    open_program,
    set_threads,
    working_backends,
)
from .phones.executorch_quantizer import in_int8

DELEGATE = "XnnpackBackend"
_COMPUTED = {"fp32": "float32", "fp16": "float16", "int8": "int8"}
"""What convolutions compute in, by precision."""
_TYPES = {"float32": torch.float32, "float16": torch.float16, "uint8": torch.uint8}


def build(
    target: Target,
    program: ExportedProgram,
    settings: BuildSettings,
    spans: tuple[Span, ...],
    calibration: Sequence[Tensor] | None,
) -> Lowered:
    """`program`, float32, as a program of ExecuTorch.

    Args:
        target: the row.
        program: with sizes open where `settings` gives ranges.
        settings: fp16 computes in half precision.
        spans: height and width.
        calibration: batches for int8.

    Raises:
        BackendError: ExecuTorch is not installed.
        SourceError: a layer that is to stay float is none of it.
        BuildError: it cannot build the program, of that precision or with those sizes.
    """
    imported()
    sizes = input_sizes(program, settings.batch, spans)
    details: dict[str, object] = {}
    if calibration is not None:
        ready = prepared(program, calibration, settings.quantization, sizes)
        program, details = in_int8(target, ready, calibration, settings.quantization, sizes), ready.to_dict()
    if settings.precision == "fp16":
        program = to_half(program, DTYPES[settings.precision], sizes, fp32_io=settings.fp32_io)
    told = {LEAST: torch.tensor([size.least for size in sizes]), PRECISION: settings.precision}
    made = _lowered(target, program, told)
    loaded = load_program(made.content, BuildError, "ExecuTorch cannot load what it made")
    if loaded.most != tuple(size.most for size in sizes):
        kept, asked = ("x".join(map(str, found)) for found in (loaded.most, sizes))
        raise BuildError(
            f"ExecuTorch keeps inputs of at most {kept} where {asked} was asked for, and larger ones would fail where "
            f"it runs; give one size: --batch {settings.batch.usual}, and no ranges in --input-shape"
        )
    require_type(
        made.convolutions,
        _COMPUTED[settings.precision],
        what="convolutions",
        who="the program",
        besides=["float32"] if settings.quantization.keep_float else [],
    )
    observed = {
        "delegates": counted(Counter(made.delegates)),
        "outside": ", ".join(sorted(set(made.outside))) or "nothing",
        "convolutions": counted(made.convolutions),
        "tensor": f"{loaded.kind} {'x'.join(map(str, loaded.most))}",
    }
    runtime = f"{target.title} {installed(target.packages[0])}, CPU"
    return Lowered.of(
        None, Built({target.suffix: made.content}, loaded.run, runtime, observed=observed, details=details)
    )


@dataclass(frozen=True, kw_only=True)
class _Made:
    """A file, and what it says of itself.

    delegates: by whom parts of it are run. outside: the operations that run in nobody of them.
    convolutions: by the type of their weights and where they run, in words.
    """

    content: bytes
    delegates: tuple[str, ...]
    outside: tuple[str, ...]
    convolutions: Counter[str]


def _lowered(target: Target, program: ExportedProgram, told: Mapping[str, object]) -> _Made:
    """`program` as a file that gives what is `told` by methods of these names.

    Raises:
        BackendError: ExecuTorch cannot be imported whole.
        BuildError: it cannot lower the program.
    """
    try:
        with quiet():
            exir = import_module("executorch.exir")
            xnnpack = import_module("executorch.backends.xnnpack.partition.xnnpack_partitioner")
    except ImportError as error:
        raise BackendError(
            f"{target.title} lacks what it builds with ({first_line(error)}); install all of it with: {target.install}"
        ) from error
    try:
        with quiet():
            edge = exir.to_edge_transform_and_lower(
                program, partitioner=[xnnpack.XnnpackPartitioner()], constant_methods=dict(told)
            )
            graph = edge.exported_program().graph_module
            parts = [part.original_module for _, part in graph.named_children() if hasattr(part, "original_module")]
            found = _convolutions(graph, "outside of it")
            for part in parts:
                found += _convolutions(part.graph_module, "in XNNPACK")
            made = edge.to_executorch()
            plan = next(plan for plan in made.executorch_program.execution_plan if plan.name == METHOD)
            return _Made(
                content=bytes(made.buffer),
                delegates=tuple(delegate.id for delegate in plan.delegates),
                outside=tuple(f"{operator.name}.{operator.overload}".rstrip(".") for operator in plan.operators),
                convolutions=found,
            )
    except Exception as error:  # it raises anything
        raise BuildError(f"ExecuTorch cannot build the program: {first_line(error)}") from error


def _convolutions(graph: torch.fx.GraphModule, where: str) -> Counter[str]:
    nodes = [node for node in graph.graph.nodes if node.op == "call_function" and "convolution" in str(node.target)]
    return Counter(f"{_computed(node)} {where}" for node in nodes)


def _computed(node: torch.fx.Node) -> str:
    """The type a convolution computes in: XNNPACK takes one whose input and weight were rounded as one of that type."""
    types = []
    for operand in node.args[:2]:
        if isinstance(operand, torch.fx.Node):
            source = operand.args[0] if "dequantize" in str(operand.target) else operand
            types.append(source.meta["val"].dtype if isinstance(source, torch.fx.Node) else operand.meta["val"].dtype)
    found = {str(dtype).removeprefix("torch.") for dtype in types}
    return found.pop() if len(found) == 1 else "float32"


def _open(text: str, path: Path) -> Artefact:
    """A program in ExecuTorch's runtime.

    Raises:
        BackendError: ExecuTorch is not installed.
        SourceError: it cannot be loaded, or has other inputs than one tensor of images.
    """
    found = open_program(path, f"{text}: not a program that ExecuTorch loads")
    taken = taken_type(text, found.kind, _TYPES)
    # Inputs are drawn in, and errors judged by, the precision it computes in, whatever type it takes them in.
    computed = DTYPES.get(found.precision or "", taken) if taken.is_floating_point else taken
    sizes = tuple(most if least == most else None for least, most in zip(found.least, found.most, strict=True))
    row = TARGETS["executorch"]
    kind = f"{row.title} {installed(row.packages[0])}"
    return opaque_artefact(text, path, kind, found.run, taken, Input("input", computed, sizes))


def _look(target: Target) -> tuple[Diagnosis, ...]:
    said = "builds and runs .pte programs"
    return (tried(target.title, target.packages[0], said, partial(working_backends, DELEGATE)),)


def _load(_: str, job: Job, how: How) -> Loaded:
    """A program with its input at hand."""
    observed = {} if how.threads is None else {"threads": str(set_threads(how.threads))}
    found = load_program(job.file.read_bytes(), SourceError, f"{job.file}: not a program that ExecuTorch loads")
    x = torch.from_numpy(np.load(job.input)).to(_TYPES[found.kind]).contiguous()
    call: Callable[[], object] = partial(found.method.execute, (x,))

    def outputs() -> list[Array]:
        return as_arrays(found.run(x))

    return Loaded(call=call, wait=nothing, outputs=outputs, observed=observed)


RUNTIME = Runtime(build=build, open=_open, look=_look, load=_load)
