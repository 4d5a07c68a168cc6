"""Networks of ncnn (`.param` and `.bin`), a runtime for phones: made of an ONNX model by pnnx, and in their runtime.

ncnn rounds to half precision by itself, weights of float32 too, wherever the processor can: that is an option of who
runs a file, and stands nowhere in it. So every run here says its options, and the weights' types are read back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor

from repconv.errors import BackendError, BuildError, SourceError, first_line
from repconv.files.held import temporary_folder
from repconv.files.record import installed
from repconv.sources.source import Input

from ..artefacts.artefact import Artefact, opaque_artefact
from ..artefacts.built import Built, Lowered, Run
from ..artefacts.halves import computed_in, float_images, tried_first
from ..artefacts.loaded import Array, How, Job, Loaded, nothing
from ..artefacts.read_back import FLOATS, counted, require_type
from ..artefacts.runtime import Diagnosis, Runtime, tried
from ..settings import BuildSettings, Span
from ..targets import TARGETS, Target
from .phones.ncnn_files import layers_of, sizes_of, weights_of, with_sizes
from .phones.ncnn_net import HALVES, load_net, mat, require_running, require_sizes
from .phones.said import LOGGED, converted

_PARAM, _BIN = "model.ncnn.param", "model.ncnn.bin"
"""As pnnx names what it makes of `model.onnx`."""


def build(
    target: Target,
    model: onnx.ModelProto,
    settings: BuildSettings,
    spans: tuple[Span, ...],
    _calibration: Sequence[Tensor] | None,
) -> Lowered:
    """`model`, float32, as a network of ncnn.

    Args:
        target: the row.
        model: with sizes open where `settings` gives ranges; the file holds none, and is run at both ends.
        settings: fp16 stores weights in half precision.
        spans: height and width.

    Raises:
        SourceError: it takes bytes.
        BackendError: ncnn or pnnx is not installed.
        BuildError: pnnx cannot convert the model, ncnn cannot load that, or weights are of another type.
    """
    sizes = float_images(target, model, settings.batch, spans)
    files = _converted(target, model, settings.precision, sizes)
    half = settings.precision == "fp16"
    weights = weights_of(layers_of(files[".param"].decode()), files[".bin"])
    if weights is not None:
        require_type(weights, FLOATS[settings.precision], what="weights", who=target.title)
    try:
        run, names = _runner(files, half=half)
    except SourceError as error:
        raise BuildError(f"{target.title} cannot load what pnnx made: {error}; {LOGGED}") from error
    before = (model.graph.input[0].name, *(output.name for output in model.graph.output))
    computed = f"float32: {', '.join(HALVES)} are off"
    if half:
        computed = computed_in(target, lambda asked: _runner(files, half=asked)[0], sizes)
    observed = {
        "weights": "of layers that are not read back" if weights is None else counted(weights),
        "computed_in": computed,
        "names": ", ".join(f"{new} was {old}" for new, old in zip(names, before, strict=True)),
    }
    built = Built(
        files=files,
        run=run,
        runtime=f"{target.title} {installed(target.packages[0])}, CPU",
        observed=observed,
        details={"converter": f"pnnx {installed(target.packages[1])}"},
    )
    return Lowered.of(model, built)


def _converted(target: Target, model: onnx.ModelProto, precision: str, sizes: Sequence[Span]) -> dict[str, bytes]:
    """Both files, as pnnx makes them, with the sizes of the input."""
    target.imported()
    try:
        import pnnx
    except ImportError as error:
        raise BackendError(
            f"what makes networks of {target.title} is not installed; install it with: pip install {target.packages[1]}"
        ) from error
    command = [pnnx.EXEC_PATH, "model.onnx", f"fp16={int(precision == 'fp16')}"]
    if not all(size.fixed for size in sizes):
        command.append(f"inputshape=[{','.join(str(size.least) for size in sizes)}]f32")
        command.append(f"inputshape2=[{','.join(str(size.most) for size in sizes)}]f32")
    with temporary_folder() as folder:
        (folder / "model.onnx").write_bytes(model.SerializeToString())
        converted(command, folder, (_PARAM, _BIN), by=target.packages[1])
        text, content = (folder / _PARAM).read_text(encoding="utf-8"), (folder / _BIN).read_bytes()
    text = with_sizes(text, [size.usual if size.fixed else None for size in sizes[1:]])
    return {".bin": content, ".param": text.encode()}


def _runner(files: Mapping[str, bytes], *, half: bool) -> tuple[Run, tuple[str, ...]]:
    """Both files as a function, and the names of its input and its outputs.

    Raises:
        SourceError: ncnn cannot load them.
    """
    with temporary_folder() as folder:
        net = load_net(_laid_out(folder, files), half=half)
    sizes = sizes_of(layers_of(files[".param"].decode()))

    def run(x: Tensor) -> list[Tensor]:
        return [torch.from_numpy(y) for y in net.run(x.numpy())]

    def attempt(shape: tuple[int, ...]) -> None:
        if sizes is not None:
            require_sizes(sizes, shape[1:])
        with temporary_folder() as room:
            require_running(_laid_out(room, files), shape, half=half)

    return tried_first(run, attempt), (net.taken, *net.given)


def _laid_out(folder: Path, files: Mapping[str, bytes]) -> Path:
    for suffix, content in files.items():
        (folder / f"model{suffix}").write_bytes(content)
    return folder / "model.param"


def _open(text: str, path: Path) -> Artefact:
    """A network in ncnn, with half precision where its weights are of it.

    Raises:
        BackendError: ncnn is not installed.
        SourceError: it cannot be loaded, or has other inputs than one.
    """
    row = TARGETS["ncnn"]
    row.imported()
    try:
        half = _is_half(path)
        files = {suffix: path.with_suffix(suffix).read_bytes() for suffix in (".bin", ".param")}
        run, names = _runner(files, half=half)
    except (OSError, ValueError, SourceError) as error:
        said = getattr(error, "strerror", None) or first_line(error)
        raise SourceError(f"{text}: not a network that ncnn loads: {said}; its .bin belongs beside it") from error
    sizes = sizes_of(layers_of(files[".param"].decode()))
    computed, shape = torch.float16 if half else torch.float32, None if sizes is None else (None, *sizes)
    kind = f"{row.title} {installed(row.packages[0])} with {'' if half else 'no '}half precision"
    return opaque_artefact(text, path, kind, run, torch.float32, Input(names[0], computed, shape))


def _is_half(param: Path) -> bool:
    """Whether a weight is stored in half precision.

    Raises:
        OSError, ValueError: the files cannot be read.
    """
    layers = layers_of(param.read_text(encoding="utf-8"))
    weights = weights_of(layers, param.with_suffix(".bin").read_bytes())
    return any(kind.startswith("float16 ") for kind in weights or ())


def _look(target: Target) -> tuple[Diagnosis, ...]:
    def cpu() -> tuple[str, ...]:
        target.imported().Net()
        return ("CPU",)

    def program() -> tuple[str, ...]:
        import pnnx

        return (Path(pnnx.EXEC_PATH).name,)

    runtime, converter = target.packages
    return (
        tried(target.title, runtime, "runs .param networks", cpu),
        tried(converter, converter, "makes networks of ncnn of ONNX models", program),
    )


def _load(_: str, job: Job, how: How) -> Loaded:
    """A network with its input at hand."""
    x = np.load(job.input)
    half = job.precision == "fp16"
    require_running(job.file, x.shape, half=half)
    net, given = load_net(job.file, half=half, threads=how.threads), mat(x)

    def outputs() -> list[Array]:
        return list(net.run(x))

    def call() -> object:
        return net.once(given)

    return Loaded(call=call, wait=nothing, outputs=outputs, observed={"threads": str(net.threads)})


RUNTIME = Runtime(build=build, open=_open, look=_look, load=_load)
