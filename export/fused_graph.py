"""Anybody's graph, fused and verified: an ONNX file, a program of torch.export, or a network."""

from __future__ import annotations

import copy
import io
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from repconv.agreement import Agreement, Comparison, comparisons
from repconv.errors import OutputError, SourceError
from repconv.files import whole_file
from repconv.fusing import exported_program
from repconv.graph import fuse_onnx
from repconv.graph.exported_program import export_again, rewrite
from repconv.graph.onnx_model import load
from repconv.graph.onnx_proof import labels_of, prove_onnx, region_comparisons
from repconv.graph.program_evidence import program_regions
from repconv.leaves import leaves
from repconv.onnx_files import is_large, save_large
from repconv.refusal import Refusal
from repconv.report import FusionReport

from .artefacts import onnx_artefact, program_artefact
from .checks import inputs_for
from .onnx_exporter import exported, finished, verify_onnx
from .programs import read_program

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Fused:
    """A fused graph, what was done and how far it is from the original.

    unmeasured: what could not be compared in float64, with the reason.
    """

    model: onnx.ModelProto | ExportedProgram
    report: FusionReport
    unmeasured: tuple[Refusal, ...] = ()


def fuse_onnx_file(path: Path, size: Shape | None = None, metadata: Mapping[str, str] | None = None) -> Fused:
    """Fuse an `.onnx` file, and run it and the result in onnxruntime.

    Args:
        path: the file; it needs no network's code.
        size: (c, h, w) of an image, where the file leaves it open.
        metadata: added to the file's own.

    Raises:
        SourceError: onnxruntime cannot run the file, or an open size is not given.
        FusionError: not a readable, valid ONNX model.
    """
    artefact = onnx_artefact(str(path), path)
    names = [i.name for i in artefact.inputs]
    runs = [
        {name: tensor.numpy() for name, tensor in zip(names, given, strict=True)}
        for given in inputs_for(artefact, artefact, size)
    ]
    before = load(path)
    after, report = fuse_onnx(before, prove=False)
    if not report.layers:
        return Fused(after, report.with_agreement(Agreement()))
    evidence = prove_onnx(before, after, runs, labels_of(after, report))
    described = {**{p.key: p.value for p in after.metadata_props}, **(metadata or {}), **_summary(report)}
    onnx.helper.set_model_props(after, described)
    return Fused(after, report.with_agreement(evidence.agreement), evidence.unmeasured)


def fuse_program_file(path: Path, size: Shape | None = None) -> Fused:
    """Fuse a `.pt2` program, and run it and the result.

    Args:
        path: the file.
        size: (c, h, w) of an image, where the program leaves it open.

    Raises:
        SourceError: not a readable program, or an open size is not given.
        FusionError: it cannot be traced again.
    """
    artefact = program_artefact(str(path), path)
    inputs = inputs_for(artefact, artefact, size)
    return _fuse_program(read_program(path), inputs)


def program_to_onnx(
    path: Path,
    size: Shape | None = None,
    *,
    opset: int,
    dynamic_batch: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> Fused:
    """A `.pt2` program of one image input as a fused ONNX model; arguments as in the other functions.

    Raises:
        SourceError: not a readable program, or one of several inputs.
        BuildError: the exporter cannot follow it.
    """
    artefact = program_artefact(str(path), path)
    inputs = inputs_for(artefact, artefact, size)
    if len(inputs[0]) != 1:
        raise SourceError(f"{path} takes {len(inputs[0])} inputs; only programs of one image are exported to ONNX")
    module = read_program(path).module()
    return fuse_to_onnx(
        module, [x for (x,) in inputs], opset=opset, dynamic_batch=dynamic_batch, metadata=metadata
    )  # fmt: skip


def fuse_to_program(network: nn.Module, inputs: Sequence[Tensor], *, dynamic_batch: bool = False) -> Fused:
    """`network` as a fused program of torch.export, which needs none of its code.

    Args:
        network: in evaluation mode.
        inputs: [n, c, h, w] to export with (the first) and to compare on.
        dynamic_batch: leave n open.

    Raises:
        FusionError: torch.export cannot follow the network's code.
    """
    example = inputs[0].expand(2, *inputs[0].shape[1:]) if dynamic_batch and len(inputs[0]) == 1 else inputs[0]
    dynamic = ({0: torch.export.Dim("batch")},) if dynamic_batch else None
    program = exported_program(network, example, dynamic)
    return _fuse_program(program, [(x,) for x in inputs], network)


def _fuse_program(
    program: ExportedProgram, inputs: Sequence[tuple[Tensor, ...]], network: nn.Module | None = None
) -> Fused:
    rewritten = rewrite(program)
    fused = export_again(program, rewritten)
    # A program's module refuses to be set to evaluation; it is what it was when it was exported.
    original = program.module() if network is None else network
    reference = copy.deepcopy(original).double()
    end_to_end: list[Comparison] = []
    for given in inputs:
        where = " and ".join("x".join(map(str, x.shape)) for x in given)
        end_to_end += comparisons(reference, fused.module(), given, original=original, where=where)
    example, _ = program.example_inputs or ((), {})
    regions = program_regions(rewritten, list(example))
    return Fused(fused, rewritten.report.with_agreement(Agreement(regions, tuple(end_to_end))))


def fuse_to_onnx(
    network: nn.Module,
    inputs: Sequence[Tensor],
    *,
    opset: int,
    dynamic_batch: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> Fused:
    """`network` as a fused ONNX model, run by onnxruntime against the network in float64.

    Args:
        network: in evaluation mode.
        inputs: [n, c, h, w] to export with (the first) and to compare on.
        opset: of the result.
        dynamic_batch: leave n open.
        metadata: written into the model.

    Raises:
        BuildError: the exporter cannot follow the network.
    """
    before = exported(network, inputs[0], opset=opset, dynamic_batch=dynamic_batch, optimise=False)
    after, report = fuse_onnx(before, prove=False)
    final = finished(after, {**(metadata or {}), **_summary(report)})
    agreement = verify_onnx(final.SerializeToString(), _flat(network), inputs)
    name = before.graph.input[0].name
    regions, unmeasured = region_comparisons(before, after, {name: inputs[0].numpy()}, labels_of(after, report))
    return Fused(final, report.with_agreement(Agreement(tuple(regions), agreement.end_to_end)), tuple(unmeasured))


class _Flat(nn.Module):
    """A network whose outputs are in a row, as an ONNX model has them."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        found = tuple(t for _, t in leaves(self.network(x)))
        return found[0] if len(found) == 1 else found


def _flat(network: nn.Module) -> nn.Module:
    flat = _Flat(network)
    flat.training = False  # not eval(), which the module of an exported program refuses
    return flat


def _summary(report: FusionReport) -> dict[str, str]:
    """What an ONNX file says of how it came about."""
    return {"repconv.fusion": json.dumps({
        "layers": {layer.name: list(layer.branches) for layer in report.layers},
        "convolutions": [report.before.convolutions, report.after.convolutions],
        "parameters": [report.before.parameters, report.after.parameters],
    })}  # fmt: skip


def write(fused: Fused, out: Path) -> None:
    """Write a fused graph, whole or not at all; above 2 GB an ONNX model's weights go to OUT.data.

    Raises:
        OutputError: it cannot be written.
    """
    if isinstance(fused.model, ExportedProgram):
        buffer = io.BytesIO()
        torch.export.save(fused.model, buffer)
        content = buffer.getvalue()
    elif is_large(fused.model):
        _write_large(fused.model, out)
        return
    else:
        content = fused.model.SerializeToString()
    with whole_file(out) as stream:
        stream.write(content)


def _write_large(model: onnx.ModelProto, out: Path) -> None:
    try:
        folder = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
        try:
            save_large(model, folder / out.name)
            data = f"{out.name}.data"
            if (folder / data).exists():
                (folder / data).replace(out.with_name(data))
            (folder / out.name).replace(out)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        raise OutputError(f"cannot write {out}: {error.strerror or error}; nothing was written") from error
