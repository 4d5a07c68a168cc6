"""Files of LiteRT (`.tflite`, TensorFlow Lite's format), built of programs by litert-torch, and such files in LiteRT.

litert-torch converts fixed sizes alone, so a range is one file of the usual size that LiteRT resizes where it runs;
what does not bear that is refused here. Precisions are made of the float32 file by ai-edge-quantizer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from repconv.errors import BuildError, SourceError, first_line
from repconv.files.record import installed
from repconv.sources.source import Input

from ..artefacts.artefact import Artefact, opaque_artefact, taken_type
from ..artefacts.built import Built, Lowered
from ..artefacts.loaded import Array, How, Job, Loaded, nothing
from ..artefacts.read_back import counted, require_type
from ..artefacts.runtime import Diagnosis, Runtime, needed, tried
from ..onnx.quiet import heard, quiet
from ..program.exporter import input_sizes, input_type, sized
from ..program.int8 import prepared
from ..proof.tolerances import DTYPES
from ..settings import BuildSettings, Span
from ..targets import TARGETS, Target
from .phones.litert_file import About, LoadedFile, described, inside, interpreter_module, load_file, open_file
from .phones.litert_quantizer import in_half, in_int8

_STORED = {"fp32": "float32", "fp16": "float16", "int8": "int8"}
"""The type of a convolution's weight in the file, by precision."""
_TYPES = {"float32": torch.float32, "uint8": torch.uint8}


def build(
    target: Target,
    program: ExportedProgram,
    settings: BuildSettings,
    spans: tuple[Span, ...],
    calibration: Sequence[Tensor] | None,
) -> Lowered:
    """`program`, float32, as a file of LiteRT.

    Args:
        target: the row.
        program: with sizes open where `settings` gives ranges.
        settings: fp16 stores weights in half precision; with `channels_last` the input is [n, ..., c].
        spans: height and width.
        calibration: batches for int8.

    Raises:
        BackendError: a package is not installed.
        SourceError: a layer that is to stay float is none of it.
        BuildError: it cannot be converted, to that precision or for those sizes.
    """
    interpreter_module()
    converter = needed(target, "litert_torch", target.packages[1])
    sizes = input_sizes(program, settings.batch, spans)
    last = settings.channels_last
    details: dict[str, object] = {}
    if calibration is None:
        content = _converted(converter, program, sizes, channels_last=last)
        content = in_half(target, content) if settings.precision == "fp16" else content
    else:
        ready = prepared(program, calibration, settings.quantization, sizes)
        content = _converted(converter, ready.program, sizes, channels_last=last)
        kept = [ready.program.state_dict[name] for name in sorted(ready.weights)]
        content = in_int8(target, content, calibration, settings.quantization, kept, channels_last=last)
        details = ready.to_dict()
    about = About(
        least=tuple(size.least for size in sizes),
        most=tuple(size.most for size in sizes),
        channels_last=last,
        precision=settings.precision,
    )
    content = described(content, about)
    loaded = load_file(content, BuildError, "LiteRT cannot load what was made")
    observed = _observed(loaded, settings)
    _require_sizes(loaded, sizes)
    runtime = f"{target.title} {installed(target.packages[0])}, CPU"
    return Lowered.of(None, Built({target.suffix: content}, loaded.run, runtime, observed=observed, details=details))


class _ChannelsLast(nn.Module):
    """A network whose input is [n, ..., c]; what it gives is as it was."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> object:
        found: object = self.network(x.movedim(-1, 1))
        return found


def _converted(converter: Any, program: ExportedProgram, sizes: Sequence[Span], *, channels_last: bool) -> bytes:  # noqa: ANN401  # no types
    """The float32 file, of the usual sizes.

    Raises:
        BuildError: it cannot be converted.
    """
    usual = [Span.of(size.usual) for size in sizes]
    if any(not size.fixed for size in sizes):
        program = sized(program.module(), usual, input_type(program))
    network: nn.Module = program.module()
    example = torch.zeros([size.usual for size in usual], dtype=input_type(program))
    if channels_last:
        network, example = _ChannelsLast(network), example.movedim(1, -1).contiguous()
    for part in network.modules():
        part.training = False  # a program is of one mode, and its modules say the other; eval() refuses
    try:
        with quiet(), heard([]):
            content: bytes = converter.convert(network, (example,)).model_content()
    except Exception as error:  # it raises anything
        raise BuildError(
            f"litert-torch cannot convert the program: {first_line(error)}; --log FILE keeps all it says"
        ) from error
    return content


def _observed(loaded: LoadedFile, settings: BuildSettings) -> dict[str, str]:
    """What was read back.

    Raises:
        BuildError: weights of convolutions are of another type than was asked for.
    """
    seen = inside(loaded)
    require_type(
        seen.convolutions,
        _STORED[settings.precision],
        what="convolutions",
        who="the file",
        besides=["float32"] if settings.quantization.keep_float else [],
    )
    sizes = "x".join("?" if size is None else str(size) for size in loaded.sizes)
    return {
        "delegates": f"{seen.delegated} XNNPACK",
        "outside": ", ".join(seen.outside) or "nothing",
        "convolutions": counted(seen.convolutions),
        "tensor": f"{loaded.kind} {sizes}, {'channels last' if settings.channels_last else 'channels first'}",
        "transposes": str(seen.transposes),
    }


def _require_sizes(loaded: LoadedFile, sizes: Sequence[Span]) -> None:
    """Insist that a file made for the usual sizes bears being resized to the ends of its ranges.

    Raises:
        BuildError: it does not.
    """
    for ends in ([size.least for size in sizes], [size.most for size in sizes]):
        try:
            found = loaded.run(torch.zeros(ends, dtype=_TYPES.get(loaded.kind)))
        except SourceError as error:
            asked, usual = "x".join(map(str, sizes)), "x".join(str(size.usual) for size in sizes)
            raise BuildError(
                f"litert-torch converts fixed sizes, and the file made for {usual} cannot be resized to "
                f"{'x'.join(map(str, ends))} of the {asked} asked for ({error}); give one size: --batch "
                f"{sizes[0].usual}, and no ranges in --input-shape"
            ) from error
        if not sizes[0].fixed and any(len(output) != ends[0] for output in found if output.dim()):
            raise BuildError(
                f"the file made for a batch of {sizes[0].usual} gives outputs of another for {ends[0]} images; give "
                f"one size: --batch {sizes[0].usual}"
            )


def _open(text: str, path: Path) -> Artefact:
    """A file in LiteRT's interpreter.

    Raises:
        BackendError: LiteRT is not installed.
        SourceError: it cannot be loaded, or has other inputs than one tensor of images.
    """
    found = open_file(path, f"{text}: not a file that LiteRT loads")
    taken = taken_type(text, found.kind, _TYPES)
    about = found.about
    # Inputs are drawn in, and errors judged by, the precision of its weights, whatever type it takes them in.
    computed = DTYPES.get(about.precision, taken) if about is not None and taken.is_floating_point else taken
    sizes = found.sizes
    if found.channels_last:
        sizes = (sizes[0], sizes[-1], *sizes[1:-1])
    row = TARGETS["litert"]
    return opaque_artefact(
        text, path, f"{row.title} {installed(row.packages[0])}", found.run, taken, Input("input", computed, sizes)
    )


def _look(target: Target) -> tuple[Diagnosis, ...]:
    runtime, converter, quantiser = target.packages

    def imports(module: str) -> tuple[str, ...]:
        needed(target, module, module)
        return ()

    def runs() -> tuple[str, ...]:
        interpreter_module()
        return ("CPU (XNNPACK)",)

    return (
        tried(target.title, runtime, "runs .tflite files", runs),
        tried(converter, converter, "builds .tflite files", partial(imports, "litert_torch")),
        tried(quantiser, quantiser, "stores them in less precision", partial(imports, "ai_edge_quantizer.quantizer")),
    )


def _load(_: str, job: Job, how: How) -> Loaded:
    """A file with its input in place."""
    what = f"{job.file}: not a file that LiteRT loads"
    found = load_file(job.file.read_bytes(), SourceError, what, how.threads)
    found.place(torch.from_numpy(np.load(job.input)).to(_TYPES[found.kind]))
    threads = found.threads or how.threads
    call: Callable[[], object] = found.interpreter.invoke

    def outputs() -> list[Array]:
        return [output.numpy() for output in found.again()]

    observed = {} if threads is None else {"threads": str(threads)}
    return Loaded(call=call, wait=nothing, outputs=outputs, observed=observed)


RUNTIME = Runtime(build=build, open=_open, look=_look, load=_load)
