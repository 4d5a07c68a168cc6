"""Packages of Core ML (`.mlpackage`), which iPhones and Macs run, made of a program by coremltools.

Core ML runs on macOS only. Elsewhere a package is built and not run: its files are read back and computed by rules.
That proves weights, strides, paddings, groups and order, and not Apple's kernels.
"""

from __future__ import annotations

import json
import math
import sys
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.export import ExportedProgram

from repconv.errors import BuildError, SourceError, first_line
from repconv.files.held import temporary_folder
from repconv.files.record import installed
from repconv.sources.source import Input

from ..artefacts.artefact import Artefact, opaque_artefact
from ..artefacts.built import Built, Lowered, Run
from ..artefacts.loaded import How, Job, Loaded
from ..artefacts.read_back import FLOATS, counted, require_type
from ..artefacts.runtime import Diagnosis, Runtime, tried
from ..onnx.quiet import heard, quiet
from ..program.exporter import input_sizes
from ..settings import BuildSettings, Span
from ..targets import TARGETS, Target
from .phones.mil import Package, imported, load_package
from .phones.said import LOGGED

_MANIFEST = "Manifest.json"
_NOT_RUN = "Core ML runs on macOS only"
_READ_BACK = "what its package says"


def build(
    target: Target,
    program: ExportedProgram,
    settings: BuildSettings,
    spans: tuple[Span, ...],
    _calibration: Sequence[Tensor] | None,
) -> Lowered:
    """`program`, float32, as a package.

    Args:
        target: the row.
        program: with sizes open where `settings` gives ranges.
        settings: fp16 stores and computes in half precision; input and outputs stay float32.
        spans: height and width.

    Raises:
        BackendError: coremltools is not installed.
        BuildError: it cannot convert the program, no rule is for what it made, or that is of another precision or size.
    """
    sizes = input_sizes(program, settings.batch, spans)
    files = _converted(program, settings)
    with temporary_folder() as folder:
        path = _laid_out(folder, files)
        try:
            package = load_package(path)
        except SourceError as error:
            raise BuildError(f"{target.title}'s package is not what it should be: {error}") from error
        run = _predicting(files, package) if sys.platform == "darwin" else None
    _require_sizes(package, sizes)
    weights = package.weights()
    require_type(weights, FLOATS[settings.precision], what="weights", who="the package")
    kinds = Counter(op.op_type for op in package.operations)
    observed = {
        "weights": counted(weights),
        "operations": counted(kinds),
        "tensor": f"{package.taken}, float32 {'x'.join(map(str, package.most))}",
        "needs": "iOS 16 or macOS 13",
    }
    version = f"{target.title} by coremltools {installed(target.packages[0])}"
    built = Built(
        files={f"{target.suffix}/{file}": content for file, content in files.items()},
        run=run,
        runtime=version,
        not_run=None if run else _NOT_RUN,
        observed=observed,
    )
    if run is not None:
        return Lowered.of(None, built)
    _require_rules(package)
    shown = Built(files={}, run=package.run, runtime=_read_back(target), observed=observed, stands_in=_READ_BACK)
    return Lowered(model=None, quantized=None, make=lambda: built, load=lambda: built, shown=lambda: shown)


def _read_back(target: Target) -> str:
    return (
        f"PyTorch by rules in float64 (read back by coremltools {installed(target.packages[0])}; not Apple's kernels)"
    )


def _converted(program: ExportedProgram, settings: BuildSettings) -> dict[str, bytes]:
    """The files of the package, by their paths in it."""
    tools = imported()
    outputs = len(program.graph_signature.user_outputs)
    names = ["output"] if outputs == 1 else [f"output_{index}" for index in range(outputs)]
    precision = {"fp32": tools.precision.FLOAT32, "fp16": tools.precision.FLOAT16}[settings.precision]
    try:
        with quiet(), heard([]), temporary_folder() as folder:
            model = tools.convert(
                _readable(program),
                minimum_deployment_target=tools.target.iOS16,
                compute_precision=precision,
                outputs=[tools.TensorType(name=name, dtype=np.float32) for name in names],
                skip_model_load=True,
            )
            path = folder / "m.mlpackage"
            model.save(str(path))
            files = _files_of(path)
    except Exception as error:  # it raises anything
        raise BuildError(f"coremltools cannot convert the program: {first_line(error)}; {LOGGED}") from error
    return _settled(files)


def _readable(program: ExportedProgram) -> ExportedProgram:
    """As coremltools reads it: without nodes that hand on what they are given, and GELU's approximation written out.

    It takes no notice of arguments given by name, so that approximation would be left out without a word.
    """
    program = program.run_decompositions({torch.ops.aten.gelu.default: _gelu_by_tanh})
    graph = program.graph_module.graph
    for node in list(graph.nodes):
        if node.op == "call_function" and str(node.target) in ("aten.alias.default", "aten.detach.default"):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    program.graph_module.recompile()
    return program


def _gelu_by_tanh(x: Tensor, *, approximate: str = "none") -> Any:  # noqa: ANN401  # or NotImplemented
    """The approximation of Hendrycks and Gimpel, arXiv:1606.08415."""
    if approximate != "tanh":
        return NotImplemented  # it stays as it is
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _settled(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """What the manifest names, under names that are the same every time.

    coremltools draws a UUID for each of its two items; here they are made of what the items are called. One of them is
    an empty folder where all weights are small, and left out. A map for debuggers belongs to no item.
    """
    manifest = json.loads(files[_MANIFEST])
    items = manifest["itemInfoEntries"]
    ids = {
        key: str(uuid.uuid5(uuid.NAMESPACE_URL, item["path"]))
        for key, item in items.items()
        if any(name.startswith(f"Data/{item['path']}") for name in files)
    }
    manifest["itemInfoEntries"] = {ids[key]: items[key] for key in ids}
    manifest["rootModelIdentifier"] = ids[manifest["rootModelIdentifier"]]
    kept = {name: content for name, content in sorted(files.items()) if name.startswith("Data/")}
    return {**kept, _MANIFEST: json.dumps(manifest, indent=4, sort_keys=True).encode()}


def _files_of(package: Path) -> dict[str, bytes]:
    return {f.relative_to(package).as_posix(): f.read_bytes() for f in package.rglob("*") if f.is_file()}


def _laid_out(folder: Path, files: Mapping[str, bytes]) -> Path:
    path = folder / "m.mlpackage"
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def _require_sizes(package: Package, sizes: Sequence[Span]) -> None:
    if package.least != tuple(s.least for s in sizes) or package.most != tuple(s.most for s in sizes):
        ends = ("x".join(map(str, found)) for found in (package.least, package.most, sizes))
        raise BuildError(
            "the package takes from {} to {}, where {} was asked for; give one size: no ranges in --batch and "
            "--input-shape".format(*ends)
        )


def _require_rules(package: Package) -> None:
    """Insist that what was read back can be computed."""
    lacking = package.without_rule()
    said = f"there is no rule for {', '.join(lacking)}" if lacking else ""
    try:
        if not lacking:
            package.run(torch.zeros(package.least))
    except Exception as error:  # noqa: BLE001  # what a rule does not fit
        said = first_line(error)
    if said:
        raise BuildError(
            f"{_NOT_RUN}, and what was read back cannot be computed here: {said}; build it there, or for another target"
        )


def _predicting(files: Mapping[str, bytes], package: Package) -> Run:
    """A package in Core ML itself, on the processor, whose sums are those of float32.

    Of a copy, since coremltools writes the manifest of what it opens anew.

    Raises:
        BuildError: Core ML cannot load it.
    """
    tools = imported()
    try:
        with quiet(), heard([]), temporary_folder() as folder:
            model: Any = tools.models.MLModel(str(_laid_out(folder, files)), compute_units=tools.ComputeUnit.CPU_ONLY)
    except Exception as error:  # it raises anything
        raise BuildError(f"Core ML cannot load the package: {first_line(error)}") from error

    def run(x: Tensor) -> list[Tensor]:
        found = model.predict({package.taken: np.ascontiguousarray(x.numpy())})
        return [torch.from_numpy(np.array(found[name])) for name in package.given]

    return run


def _open(text: str, path: Path) -> Artefact:
    """A package, in Core ML where that is, else computed by rules.

    Raises:
        BackendError: coremltools is not installed.
        SourceError: it cannot be read, or there is no rule for something in it.
    """
    row = TARGETS["coreml"]
    try:
        package = load_package(path)
        run = _predicting(_files_of(path), package) if sys.platform == "darwin" else package.run
    except (SourceError, BuildError) as error:
        raise SourceError(f"{text}: not a package that coremltools reads: {error}") from error
    lacking = () if sys.platform == "darwin" else package.without_rule()
    if lacking:
        raise SourceError(f"{text}: {_NOT_RUN}, and here there is no rule for {', '.join(lacking)}")
    half = any(kind.startswith("float16 ") for kind in package.weights())
    version = f"{row.title} by coremltools {installed(row.packages[0])}"
    kind = version if sys.platform == "darwin" else _read_back(row)
    sizes = tuple(most if least == most else None for least, most in zip(package.least, package.most, strict=True))
    taken = Input(package.taken, torch.float16 if half else torch.float32, sizes)
    return opaque_artefact(text, path, kind, run, torch.float32, taken)


def _look(target: Target) -> tuple[Diagnosis, ...]:
    def here() -> tuple[str, ...]:
        imported()
        import_module("coremltools.converters.mil.frontend.milproto.load")
        return ("CPU",) if sys.platform == "darwin" else ()

    said = "builds .mlpackage" if sys.platform == "darwin" else "builds .mlpackage, which only macOS runs"
    return (tried(target.title, target.packages[0], said, here),)


def _load(_: str, job: Job, __: How) -> Loaded:
    raise SourceError(f"{job.file}: packages of Core ML are timed by Apple's own tools")


RUNTIME = Runtime(build=build, open=_open, look=_look, load=_load)
