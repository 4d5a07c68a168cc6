"""What is exported: a network of any source, fused, in float32, as runtimes read it, and what it has to agree with."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from repconv.blocks.probing import assumed_axes, dtype_of, pixel_axes
from repconv.errors import FusionError, SourceError
from repconv.files.edited import copy_of, inputs_of
from repconv.graph import fuse_onnx
from repconv.proof.float64 import float64_reference
from repconv.proof.leaves import leaves, of_tensors
from repconv.proof.report import FusionReport
from repconv.sources.checkpoint import Checkpoint, Normalization
from repconv.sources.source import Source, open_source, require_one_input

from .artefacts.artefact import artefact_of
from .artefacts.built import Network
from .from_source import FuseSettings, in_graph, network_to_onnx
from .onnx.exporter import described, exported, finished
from .program.exporter import to_program
from .settings import BuildSettings, Preprocessing, Span
from .targets import ONNX, PROGRAM, TARGETS

Shape = tuple[int, ...]
Reference = Callable[[Tensor], tuple[Tensor, ...]]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A network ready to be built for a runtime.

    model: float32, fused unless that was declined; one image input. An ONNX model, simplified, or a program.
    reference: the network as given, unfused, from a float32 batch [n, c, h, w] to outputs: in float64 where it is a
        PyTorch network, else as onnxruntime computes them.
    network: the same as a module, None for an ONNX source.
    size: (c, h, w) that is usual. report: what fusing did, None if it was declined.
    """

    name: str
    model: Network
    reference: Reference
    network: nn.Module | None
    size: Shape
    report: FusionReport | None
    path: Path | None = None
    sha256: str | None = None
    class_names: tuple[str, ...] = ()
    normalization: Normalization | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def exact(self) -> bool:
        """Whether the reference is float64."""
        return self.network is not None

    @property
    def in_float32(self) -> Reference:
        """The network as given in float32, where that is faster than the reference."""
        return self.reference if self.network is None else _as_function(self.network)


def open_subject(
    source: str | Path | Source | nn.Module,
    settings: BuildSettings,
    *,
    model: str | None = None,
    state_key: str | None = None,
    channels: int = 3,
    reads: str = ONNX,
) -> Subject:
    """Load `source`, fuse it, and bring it to the form and the sizes asked for.

    Args:
        source: a file or a name as the command line takes them, one that is open, or a module in evaluation mode.
        settings: sizes, opset, and whether to fuse.
        model: for a state dict, its network's name.
        state_key: the key in the file under which the weights are.
        channels: of the images, where the source does not say.
        reads: what a target is built from, see `Target.reads`.

    Raises:
        SourceError: nothing that can be exported so, or sizes it cannot take.
        CheckpointError: the file cannot be read, or does not fit the network.
        FusionError: the network is in training mode or cannot be fused as it stands.
        BuildError: the exporter cannot follow the network.
    """
    if isinstance(source, nn.Module):
        where = next((name for name, module in source.named_modules() if module.training), None)
        if where is not None:
            raise FusionError(f"the model is in training mode (at {where or 'its root'}); call model.eval() first")
        opened = Source(name=type(source).__name__, path=None, sha256=None, held=Checkpoint(model=source, fused=False))
    else:
        opened = source if isinstance(source, Source) else open_source(source, model=model, state_key=state_key)
    if opened.is_graph:
        require_input(opened, "exported")
        shape = opened.inputs[0].shape or ()
        settings = settings.of_axes(len(shape) - 2, opened.name)
        require_fit(opened.name, shape, [settings.batch, None, *(settings.image or (None,) * (len(shape) - 2))])
    if isinstance(opened.held, onnx.ModelProto):
        if reads == PROGRAM:
            others = ", ".join(target.name for target in TARGETS.values() if target.reads == ONNX)
            raise SourceError(
                f"{opened.name} is an ONNX model, of which no program of torch.export is made; give the network or the "
                f".pt2 program it comes from, or build for {others}"
            )
        return _from_onnx(opened, opened.held, settings)
    if isinstance(opened.held, ExportedProgram):
        network = of_tensors(opened.held)
        for part in network.modules():
            part.training = False  # a program is of one mode, and its modules say the other; eval() refuses
        return _from_network(opened, network, settings, channels, reads)
    network, size = opened.held.model, opened.size
    axes = pixel_axes(network) if size is None else len(size) - 1
    if axes is None:
        axes = assumed_axes(len(settings.image or ()))
    return _from_network(opened, network, settings.of_axes(axes, opened.name), channels, reads)


def normalization_of(subject: Subject, settings: BuildSettings) -> Normalization | None:
    """What images in [0, 1] go through: inside the artefact if it preprocesses, else before it."""
    pre = settings.preprocessing
    return subject.normalization if pre is None else Normalization(pre.mean, pre.std)


def preprocessing_of(
    source: Source, mean: tuple[float, ...] | None, std: tuple[float, ...] | None, *, uint8: bool, bgr: bool
) -> Preprocessing:
    """What an artefact does to images, as asked for, or as the source records it.

    Raises:
        SourceError: one of `mean` and `std` without the other, or neither, and the source records none.
    """
    if mean is not None and std is not None:
        return Preprocessing(mean, std, uint8, bgr)
    if mean is not None or std is not None:
        raise SourceError("--mean and --std go together")
    known = source.normalization
    if known is None:
        raise SourceError(
            f"{source.name} records no normalisation; give it: --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225"
        )
    return Preprocessing(known.mean, known.std, uint8, bgr)


def _size(known: Shape | None, settings: BuildSettings, name: str, channels: int) -> Shape:
    """Of one input, (c, h, w) of an image, that is usual."""
    _check_channels(known[0] if known else None, settings, name)
    if settings.image is not None:
        return (known[0] if known else settings.channels or channels, *(span.usual for span in settings.image))
    if known is None:
        raise SourceError(f"{name} records no size of its input; give one: --input-shape 3,224,224")
    return known


def require_input(source: Source, done: str) -> None:
    """Insist that a graph takes one tensor [n, c, ...] in float32, to be `done` something with.

    Raises:
        SourceError: it does not; it says what it takes, and what is done with such a graph instead.
    """
    taken = source.inputs
    if len(taken) == 1 and len(taken[0].shape or ()) > 1 and taken[0].dtype == torch.float32:
        return
    said = ", ".join(f"{i.name}: {str(i.dtype).removeprefix('torch.')} {_sizes(i.shape)}" for i in taken)
    suffix = Path(source.name).suffix
    raise SourceError(
        f"{source.name} takes {said}; only float32 graphs of one input [n, c, ...] are {done}. `repconv fuse "
        f"{source.name} -o fused{suffix}` and `repconv verify` take any tensors; give the fused file to your runtime"
    )


def _sizes(shape: Sequence[int | None] | None) -> str:
    return "of any shape" if shape is None else "x".join("?" if side is None else str(side) for side in shape) or "()"


def require_fit(name: str, shape: Sequence[int | None], asked: Sequence[Span | None]) -> None:
    """Insist that the sizes asked for are those of an input that are fixed.

    Raises:
        SourceError: one is not; of a batch it says which to give.
    """
    for axis, (own, span) in enumerate(zip(shape, asked, strict=True)):
        if span is None or own is None or (span.fixed and span.usual == own):
            continue
        fixed = f"{name} has a fixed input of {_sizes(shape)}"
        if axis == 0:
            raise SourceError(f"{fixed}: a batch of {own}, not {span}; give --batch {own}")
        raise SourceError(f"{fixed}; size {span} does not fit it: leave it out, or export it with open sizes")


def _check_channels(known: int | None, settings: BuildSettings, name: str) -> None:
    if known is not None and settings.channels not in (None, known):
        raise SourceError(f"{name} takes {known} channels, got images of {settings.channels}")


def _from_network(given: Source, network: nn.Module, settings: BuildSettings, channels: int, reads: str) -> Subject:
    """Blocks of this package fold as modules, anything else affine in the graph."""
    require_one_input(network, given.name)
    size, normalization = _size(given.size, settings, given.name, channels), given.normalization
    class_names = () if given.is_graph else given.checkpoint.class_names
    given_network = network
    if dtype_of(network) != torch.float32:
        # Every precision is made from float32, so that it is rounded once.
        network = copy.deepcopy(network).float()
    model: Network
    if reads == PROGRAM:
        sizes = [settings.batch, Span.of(size[0]), *settings.sides(size)]
        model, report = to_program(network, sizes, fuse=settings.fuse)
    else:
        metadata = described(given.sha256, class_names, normalization)
        model, report = _onnx_of(given_network, network, settings, size, metadata)
    return Subject(
        name=given.name,
        model=model,
        reference=exact_outputs(given_network),
        network=network,
        size=size,
        report=report,
        path=given.path,
        sha256=given.sha256,
        class_names=class_names,
        normalization=normalization,
        notes=given.notes,
    )


def _onnx_of(
    given: nn.Module, network: nn.Module, settings: BuildSettings, size: Shape, metadata: Mapping[str, str]
) -> tuple[onnx.ModelProto, FusionReport | None]:
    """The ONNX model of a network, `given` in its own type and `network` in float32, and what fusing did."""
    batch_open = not settings.batch.fixed
    image_open = settings.image is not None and not all(span.fixed for span in settings.image)
    generator = torch.Generator().manual_seed(0)
    example = torch.randn(settings.batch.usual if not batch_open else 2, *size, generator=generator)
    if settings.fuse:
        # What is built of it is measured in its runtime, so nothing is compared here.
        fused = network_to_onnx(
            network if in_graph(network, ".onnx") else given,
            [example],
            FuseSettings(None, settings.wanted_opset, batch_open),
            metadata,
            dynamic_image=image_open,
            summary=_summary,
            prove=False,
        )
        return fused.model, fused.report
    model = exported(network, example, opset=settings.wanted_opset, dynamic_batch=batch_open, dynamic_image=image_open)
    return finished(model, metadata), None


def exact_outputs(network: nn.Module) -> Reference:
    """A copy of `network` in float64, as a reference."""
    exact = float64_reference(network)

    def reference(x: Tensor) -> tuple[Tensor, ...]:
        return tuple(t for _, t in leaves(exact(x)))

    return reference


def _as_function(network: nn.Module) -> Reference:
    def run(x: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return tuple(t for _, t in leaves(network(x)))

    return run


def _summary(report: FusionReport) -> dict[str, str]:
    return {"repconv.convolutions": json.dumps([report.before.convolutions, report.after.convolutions])}


def _from_onnx(given: Source, original: onnx.ModelProto, settings: BuildSettings) -> Subject:
    """An ONNX file keeps its opset; its open sizes are closed where sizes are asked for."""
    artefact, path = artefact_of(given), given.name
    opset = next(entry.version for entry in original.opset_import if entry.domain in ("", "ai.onnx"))
    if settings.opset not in (None, opset):
        raise SourceError(f"{path} is of opset {opset}, which it keeps; leave out opset {settings.opset}")
    shape = artefact.inputs[0].shape or ()
    channels = shape[1]
    if channels is None:
        raise SourceError(f"{path} leaves the number of channels open; only fixed ones are exported")
    _check_channels(channels, settings, str(path))
    asked: list[Span | None] = [settings.batch, None, *(settings.image or (None,) * (len(shape) - 2))]
    sides = [own if own is not None else getattr(span, "usual", None) for own, span in zip(shape, asked, strict=True)]
    size = tuple(side for side in sides[2:] if side is not None)
    if len(size) != len(shape) - 2:
        raise SourceError(f"{path} leaves sizes of its input open; give them: --input-shape 3,224,224")
    report: FusionReport | None = None
    model = original
    if settings.fuse:
        model, report = fuse_onnx(original, prove=False)  # what is built of it is measured
    kept = {entry.key: entry.value for entry in model.metadata_props}
    sized = with_sizes(model, [None if span is None or not span.fixed else span.usual for span in asked])
    final = finished(sized, {**kept, "repconv.source_sha256": given.sha256 or ""})

    def reference(x: Tensor) -> tuple[Tensor, ...]:
        return artefact.run((x,))

    return Subject(
        name=path,
        model=final,
        reference=reference,
        network=None,
        size=(channels, *size),
        report=report,
        path=given.path,
        sha256=given.sha256,
    )


def with_sizes(model: onnx.ModelProto, sizes: Sequence[int | None]) -> onnx.ModelProto:
    """A copy whose one input has these sizes where they are given; what is derived of them is open until inferred."""
    sized = copy_of(model)
    value = inputs_of(sized)[0]
    changed = False
    for size, dim in zip(sizes, value.type.tensor_type.shape.dim, strict=True):
        if size is not None and not dim.HasField("dim_value"):
            dim.dim_value = size
            changed = True
    if changed:
        del sized.graph.value_info[:]
        for output in sized.graph.output:
            output.type.tensor_type.ClearField("shape")
        inferred: onnx.ModelProto = onnx.shape_inference.infer_shapes(sized)
        return inferred
    return sized
