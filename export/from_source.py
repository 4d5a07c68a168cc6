"""The main job: a source, or a module, in its fused form, of the format asked for, proved before it is handed out."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import onnx
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from repconv.blocks.fold import outermost_branches
from repconv.blocks.forecast import Forecast, forecast
from repconv.blocks.probing import count_flops, dtype_of, example_shape, pixel_axes, probes
from repconv.errors import OutputError, SourceError, VerificationError
from repconv.files.edited import inputs_of
from repconv.files.held import temporary_folder
from repconv.files.onnx import is_large, save_large
from repconv.files.whole import followed, whole_file
from repconv.fusing import exported_program, fuse_modules, fuse_network
from repconv.graph import foresee_onnx, foresee_program, fuse_onnx, fuse_program
from repconv.graph.onnx.proof.prove import labels_of, region_comparisons
from repconv.graph.planning.foresight import Foresight
from repconv.models.spec import is_foreign
from repconv.proof.agreement import Agreement
from repconv.proof.leaves import leaves, of_tensors
from repconv.proof.report import FusionReport, Proof
from repconv.sources.checkpoint import SUFFIXES, Checkpoint, save
from repconv.sources.source import ONNX_TYPES, WRITTEN, Source, open_source, require_one_input, writable

from .artefacts.artefact import artefact_of
from .comparing.compare import inputs_for
from .onnx.exporter import described, exported, finished, verify_onnx
from .settings import DEFAULT_OPSET

Shape = tuple[int, ...]


@dataclass(frozen=True)
class FuseSettings:
    """How to fuse: the shape of one input, such as (c, h, w), where the source says none; what graphs leave open."""

    input_shape: Shape | None = None
    opset: int = DEFAULT_OPSET
    dynamic_batch: bool = False


Model = nn.Module | ExportedProgram | onnx.ModelProto
M_co = TypeVar("M_co", bound=Model, covariant=True)


@dataclass(frozen=True)
class Fused(Generic[M_co]):
    """A fused network, and the account and proof of it.

    model: in the form asked for: modules, a program or an ONNX model.
    modules: the same as modules, where this package's blocks were folded as such; else None.
    in_runtime: how far the ONNX model of `modules` is from the source in onnxruntime.
    known: the source as it was loaded, and `shape` of its images; None for files that are graphs.
    """

    model: M_co
    report: FusionReport
    _: KW_ONLY
    modules: nn.Module | None = None
    in_runtime: Agreement | None = None
    known: Checkpoint | None = None
    shape: Shape | None = None

    def forecast(self) -> Forecast | None:
        """What low precision will make of the blocks, on random inputs; None where no blocks were folded as modules."""
        if self.modules is None or self.known is None or self.shape is None:
            return None
        inputs = probes(self.shape, dtype=dtype_of(self.modules))
        return forecast(self.known.model, self.modules, self.report, inputs)


def fuse_source(
    source: str | Path | Source | nn.Module,
    suffix: str,
    settings: FuseSettings | None = None,
    *,
    inputs: Sequence[Tensor] | None = None,
    prove: bool = True,
) -> Fused[Model]:
    """Fuse `source`, and prove it.

    Args:
        source: as the command line takes it, a source that is open already, or a module in evaluation mode.
        suffix: of the form wanted, one of `writable(source)`: modules for a checkpoint, an ONNX model, or a program.
        settings: sizes and opset.
        inputs: images [n, c, h, w] to run what becomes a graph on; None: random ones.
        prove: False leaves the comparing out, and the report says so.

    Raises:
        SourceError: nothing that can be fused so, or an image size that is not known.
        CheckpointError: the file cannot be read, or does not fit its network.
        FusionError: in training mode, or the code cannot be followed.
        BuildError: the ONNX exporter cannot follow it.
        VerificationError: the result differs by more than rounding; `error.report` has every comparison.
    """
    settings = settings or FuseSettings()
    opened = _opened(source)
    if opened.is_graph:
        return _fuse_graph(opened, suffix, settings, prove=prove)
    known, shape = opened.checkpoint, _shape_of(opened, settings)
    network = known.model
    fused: Fused[Model]
    if suffix in SUFFIXES:
        if is_foreign(network) and not _has_blocks(network):
            raise SourceError(
                f"{opened.name} holds no blocks of this package, so no checkpoint can hold it fused; write a graph "
                "instead, such as -o fused.onnx or -o fused.pt2"
            )
        fused = _modules(network, shape, prove=prove)
    elif suffix not in WRITTEN:
        raise SourceError(f"a fused network is written as {', '.join(WRITTEN)}, not {suffix or 'without a suffix'}")
    else:
        given = _runs(network, shape, settings) if inputs is None else list(inputs)
        if suffix == ".pt2":
            fused = _program(network, given, settings, prove=prove)
        else:
            metadata = described(opened.sha256, known.class_names, known.normalization)
            fused = network_to_onnx(network, given, settings, metadata, shape=shape, prove=prove)
    return replace(fused, known=known, shape=shape)


def _opened(source: str | Path | Source | nn.Module) -> Source:
    if isinstance(source, Source):
        return source
    if isinstance(source, nn.Module):
        return Source(name=type(source).__name__, path=None, sha256=None, held=Checkpoint(model=source, fused=False))
    return open_source(source)


def _shape_of(source: Source, settings: FuseSettings) -> Shape:
    model = source.checkpoint.model
    require_one_input(model, source.name)
    shape = settings.input_shape or source.checkpoint.input_shape
    if shape is None:
        raise SourceError(f"{source.name} records no shape of its input; give one, such as --input-shape 3,224,224")
    return example_shape(shape, pixel_axes(model), source.name)


def _runs(network: nn.Module, shape: Shape, settings: FuseSettings) -> list[Tensor]:
    x = probes(shape, dtype=dtype_of(network))[0]
    return [x, x.flip(-1).expand(3, *shape)] if settings.dynamic_batch else [x, x.flip(-1)]


def _has_blocks(model: nn.Module) -> bool:
    return next(outermost_branches(model), None) is not None or bool(getattr(model, "replaced", None))


def in_graph(network: nn.Module, suffix: str) -> bool:
    """Whether `network` folds in its graph and not as modules, to become what `suffix` says."""
    return suffix == ".pt2" or (suffix == ".onnx" and is_foreign(network))


def natural_suffix(network: nn.Module, suffix: str) -> str:
    """Of a file that `network` can be written to fused, `suffix` if that can hold it."""
    if is_foreign(network) and not _has_blocks(network):
        return ".onnx"
    return suffix if suffix in SUFFIXES else ".pt"


def _modules(network: nn.Module, shape: Shape, *, prove: bool) -> Fused[nn.Module]:
    fused, report = fuse_modules(network, probes(shape, dtype=dtype_of(network)), prove=prove)
    if prove:
        report = report.with_flops(count_flops(network, shape), count_flops(fused, shape))
    return Fused(fused, report, modules=fused)


def _program(
    network: nn.Module, inputs: Sequence[Tensor], settings: FuseSettings, *, prove: bool
) -> Fused[ExportedProgram]:
    example, *more = inputs
    if settings.dynamic_batch and len(example) == 1:
        example = example.expand(2, *example.shape[1:])  # a batch of one would be taken for a constant
    dynamic = ({0: torch.export.Dim("batch")},) if settings.dynamic_batch else None
    return Fused(*fuse_network(network, [example, *more], dynamic, prove=prove))


def network_to_onnx(
    network: nn.Module,
    inputs: Sequence[Tensor],
    settings: FuseSettings,
    metadata: Mapping[str, str] | None = None,
    *,
    shape: Shape | None = None,
    dynamic_image: bool = False,
    summary: Callable[[FusionReport], Mapping[str, str]] | None = None,
    prove: bool = True,
) -> Fused[onnx.ModelProto]:
    """`network` as a fused ONNX model; a network of this package folds as modules, any other in its graph.

    Args:
        network: in evaluation mode.
        inputs: [n, c, h, w] to export with (the first) and to run in onnxruntime; the model is of their type.
        settings: opset, and whether the batch stays open.
        metadata: written into the model.
        shape: of the images that modules are compared on; None: that of `inputs`.
        dynamic_image: leave height and width open.
        summary: of the report, written into the model as well; None: `repconv.fusion`.
        prove: as `fuse_source`.

    Raises:
        BuildError, FusionError, VerificationError: as `fuse_source`.
    """
    foreign = in_graph(network, ".onnx")
    fused = None if foreign else _modules(network, shape or tuple(inputs[0].shape[1:]), prove=prove)
    before = exported(
        network if fused is None else _in_type(fused.model, inputs[0].dtype),
        inputs[0],
        opset=settings.opset,
        optimise=not foreign,
        dynamic_batch=settings.dynamic_batch,
        dynamic_image=dynamic_image,
    )
    after, report = (before, fused.report) if fused is not None else fuse_onnx(before, prove=False)
    final = finished(after, {**(metadata or {}), **(summary or _summary)(report)})
    if not prove:
        return Fused(final, report, modules=None if fused is None else fused.modules)
    in_runtime = verify_onnx(final.SerializeToString(), _flat(network), inputs)
    if fused is not None:
        if not in_runtime.passed:
            raise VerificationError(f"the ONNX model in onnxruntime: {in_runtime.verdict}; nothing was written", report)
        return Fused(final, report, modules=fused.modules, in_runtime=in_runtime)
    feeds = {before.graph.input[0].name: inputs[0].numpy()}
    regions, unmeasured = region_comparisons(before, after, feeds, labels_of(report))
    proof = Proof(Agreement(tuple(regions), in_runtime.end_to_end, partial=bool(unmeasured)), tuple(unmeasured))
    return Fused(final, report.with_proof(proof).require())


def _in_type(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The network in another type: its numbers, folded in float64, are cast this once."""
    return network if dtype_of(network) == dtype else copy.deepcopy(network).to(dtype)


# Graphs


def _fuse_graph(source: Source, suffix: str, settings: FuseSettings, *, prove: bool) -> Fused[Model]:
    """An ONNX model or a program; neither needs its network's code."""
    held = source.held
    allowed = writable(source.name)
    if suffix not in allowed:
        kind = Path(source.name).suffix
        raise SourceError(f"{source.name}: of a {kind} file {' and '.join(allowed)} are made, no {suffix}")
    metadata = {"repconv.source_sha256": source.sha256 or ""}
    if isinstance(held, onnx.ModelProto):
        feeds = _feeds(source, held, settings)
        after, report = fuse_onnx(held, feeds, prove=prove)
        if report.layers:
            kept = {entry.key: entry.value for entry in after.metadata_props}
            onnx.helper.set_model_props(after, {**kept, **metadata, **_summary(report)})
        return Fused(after, report)
    if not isinstance(held, ExportedProgram):
        raise SourceError(f"{source.name} is no graph")
    artefact = artefact_of(source)
    inputs = inputs_for(artefact, artefact, settings.input_shape)
    if suffix == ".pt2":
        return Fused(*fuse_program(held, inputs, prove=prove))
    if len(inputs[0]) != 1:
        raise SourceError(
            f"{source.name} takes {len(inputs[0])} inputs; only programs of one input are exported to ONNX. Write a "
            "program, -o fused.pt2; torch.onnx.export makes ONNX of torch.export.load('fused.pt2')"
        )
    return network_to_onnx(of_tensors(held), [x for (x,) in inputs], settings, metadata, prove=prove)


def _feeds(source: Source, held: onnx.ModelProto, settings: FuseSettings) -> list[dict[str, Any]] | None:
    """Inputs by name; None where a type is among them that PyTorch and onnxruntime do not share, such as bfloat16."""
    kinds = [value.type.tensor_type.elem_type for value in inputs_of(held)]
    if all(kinds) and not set(kinds) <= ONNX_TYPES.keys():
        return None
    artefact = artefact_of(source, loaded=False)
    names = [i.name for i in artefact.inputs]
    drawn = inputs_for(artefact, artefact, settings.input_shape)
    return [{name: t.numpy() for name, t in zip(names, given, strict=True)} for given in drawn]


def foresee(source: Source, shape: Shape | None = None) -> Foresight:
    """What fusing the graph of a source would do, without computing it.

    Args:
        source: a graph, or a network.
        shape: of the input a network is traced with, (c, h, w) of an image.

    Raises:
        FusionError: the network cannot be traced.
        SourceError: no shape of a network is known.
    """
    if isinstance(source.held, onnx.ModelProto):
        return foresee_onnx(source.held)
    if isinstance(source.held, ExportedProgram):
        return foresee_program(source.held)
    network = source.held.model
    x = torch.zeros(1, *_shape_of(source, FuseSettings(shape)), dtype=dtype_of(network))
    return foresee_program(exported_program(network, x))


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
    return {
        "repconv.fusion": json.dumps(
            {
                "layers": {layer.name: list(layer.branches) for layer in report.layers},
                "convolutions": [report.before.convolutions, report.after.convolutions],
                "parameters": [report.before.parameters, report.after.parameters],
            }
        )
    }


def write_fused(fused: Fused[Model], out: Path) -> None:
    """Write what was fused, whole or not at all; above 2 GB an ONNX model's weights go to OUT.data.

    Raises:
        OutputError: it cannot be written.
    """
    model = fused.model
    if isinstance(model, nn.Module):
        known = fused.known or Checkpoint(model=model, fused=True)
        save(
            model,
            out,
            class_names=known.class_names,
            normalization=known.normalization,
            input_shape=known.input_shape or fused.shape,
            metrics=known.metrics,
        )
        return
    if isinstance(model, ExportedProgram):
        buffer = io.BytesIO()
        torch.export.save(model, buffer)
        content = buffer.getvalue()
    elif is_large(model):
        _write_large(model, out)
        return
    else:
        content = model.SerializeToString()
    with whole_file(out) as stream:
        stream.write(content)


def _write_large(model: onnx.ModelProto, out: Path) -> None:
    out = followed(out)
    try:
        with temporary_folder(out.parent, out.name) as folder:
            save_large(model, folder / out.name)
            data = f"{out.name}.data"
            if (folder / data).exists():
                (folder / data).replace(out.with_name(data))
            (folder / out.name).replace(out)
    except OSError as error:
        raise OutputError(f"cannot write {out}: {error.strerror or error}; nothing was written") from error
