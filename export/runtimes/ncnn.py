"""Networks of ncnn (`.param` and `.bin`), a runtime for phones: made of an ONNX model by pnnx, and in their runtime.

ncnn rounds to half precision by itself, weights of float32 too, wherever the processor can: that is an option of who
runs a file, and stands nowhere in it. So every run here says its options, and the weights' types are read back.
"""

from __future__ import annotations

from collections import Counter
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
from ..artefacts.loaded import Array, How, Job, Loaded, nothing
from ..artefacts.runtime import Diagnosis, Runtime, tried
from ..settings import BuildSettings, Span
from ..targets import TARGETS, Target
from .phones.ncnn_files import layers_of, sizes_of, weights_of, with_sizes
from .phones.ncnn_net import HALVES, load_net, mat, require_running, require_sizes
from .phones.said import LOGGED, converted

_PARAM, _BIN = "model.ncnn.param", "model.ncnn.bin"
"""As pnnx names what it makes of `model.onnx`."""
_KINDS = {"fp32": "float32", "fp16": "float16"}


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
    _require_floats(target, model)
    files = _converted(target, model, settings, spans)
    half = settings.precision == "fp16"
    weights = weights_of(layers_of(files[".param"].decode()), files[".bin"])
    wanted = _KINDS[settings.precision]
    if weights is not None and any(not kind.startswith(f"{wanted} ") for kind in weights):
        raise BuildError(f"asked for {wanted} weights, {target.title} has {_counted(weights)}")
    try:
        run, names = _runner(files, half=half)
    except SourceError as error:
        raise BuildError(f"{target.title} cannot load what pnnx made: {error}; {LOGGED}") from error
    before = (model.graph.input[0].name, *(output.name for output in model.graph.output))
    observed = {
        "weights": "of layers that are not read back" if weights is None else _counted(weights),
        "computed_in": _computed_in(files, settings, model, spans) if half else f"float32: {', '.join(HALVES)} are off",
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


def _require_floats(target: Target, model: onnx.ModelProto) -> None:
    if model.graph.input[0].type.tensor_type.elem_type != onnx.TensorProto.FLOAT:
        raise SourceError(
            f"{target.title} takes float32 images only; leave out --uint8, and give it pixels from 0 to 1"
        )


def _converted(
    target: Target, model: onnx.ModelProto, settings: BuildSettings, spans: tuple[Span, ...]
) -> dict[str, bytes]:
    """Both files, as pnnx makes them, with the sizes of the input."""
    target.imported()
    try:
        import pnnx
    except ImportError as error:
        raise BackendError(
            f"what makes networks of {target.title} is not installed; install it with: pip install {target.packages[1]}"
        ) from error
    sizes = (settings.batch, Span.of(_channels(model)), *spans)
    command = [pnnx.EXEC_PATH, "model.onnx", f"fp16={int(settings.precision == 'fp16')}"]
    if not all(size.fixed for size in sizes):
        command.append(f"inputshape=[{','.join(str(size.least) for size in sizes)}]f32")
        command.append(f"inputshape2=[{','.join(str(size.most) for size in sizes)}]f32")
    with temporary_folder() as folder:
        (folder / "model.onnx").write_bytes(model.SerializeToString())
        converted(command, folder, (_PARAM, _BIN), by=target.packages[1])
        text, content = (folder / _PARAM).read_text(encoding="utf-8"), (folder / _BIN).read_bytes()
    text = with_sizes(text, [size.usual if size.fixed else None for size in sizes[1:]])
    return {".bin": content, ".param": text.encode()}


def _channels(model: onnx.ModelProto) -> int:
    return int(model.graph.input[0].type.tensor_type.shape.dim[1].dim_value)


def _runner(files: Mapping[str, bytes], *, half: bool) -> tuple[Run, tuple[str, ...]]:
    """Both files as a function, and the names of its input and its outputs.

    Raises:
        SourceError: ncnn cannot load them.
    """
    with temporary_folder() as folder:
        net = load_net(_laid_out(folder, files), half=half)
    sizes = sizes_of(layers_of(files[".param"].decode()))
    tried_before: set[tuple[int, ...]] = set()

    def run(x: Tensor) -> list[Tensor]:
        shape = tuple(x.shape)
        if sizes is not None:
            require_sizes(sizes, shape[1:])
        if shape not in tried_before:
            with temporary_folder() as room:
                require_running(_laid_out(room, files), shape, half=half)
            tried_before.add(shape)
        return [torch.from_numpy(y) for y in net.run(x.numpy())]

    return run, (net.taken, *net.given)


def _laid_out(folder: Path, files: Mapping[str, bytes]) -> Path:
    for suffix, content in files.items():
        (folder / f"model{suffix}").write_bytes(content)
    return folder / "model.param"


def _computed_in(
    files: Mapping[str, bytes], settings: BuildSettings, model: onnx.ModelProto, spans: tuple[Span, ...]
) -> str:
    """Whether ncnn's own options change a bit of what this processor computes."""
    sides = [settings.batch.usual, _channels(model), *(span.usual for span in spans)]
    x = np.random.default_rng(0).standard_normal(sides, np.float32)
    with temporary_folder() as folder:
        param = _laid_out(folder, files)
        try:
            require_running(param, sides, half=True)
            half, single = (load_net(param, half=asked).run(x) for asked in (True, False))
        except SourceError as error:
            raise BuildError(f"it cannot run what pnnx made: {first_line(error)}") from error
    same = all(np.array_equal(a, b) for a, b in zip(half, single, strict=True))
    return "float32 on this processor, float16 where ncnn has kernels for it" if same else "float16"


def _counted(kinds: Counter[str]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())) or "none"


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
