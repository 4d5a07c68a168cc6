"""Networks of MNN (`.mnn`), a runtime for phones: made of an ONNX model, and in their runtime.

How precisely MNN computes is an option of its session, and stands nowhere in the file. So every run here says it, the
weights' types are read back, and the file says what it was proved for.
"""

from __future__ import annotations

import json
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor

from repconv.errors import BackendError, BuildError, SourceError
from repconv.files.edited import copy_of
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
from .phones.mnn_net import PRECISION, SIZES, WORDS, MnnAbout, about, imported, load_mnn, mnnconvert, require_mnn_runs
from .phones.said import LOGGED

_FILE = "model.mnn"
_READ_BACK_BYTES = 1 << 26
"""The largest file whose weights are looked at: MNN shows them as text, several times as large."""


def build(
    target: Target,
    model: onnx.ModelProto,
    settings: BuildSettings,
    spans: tuple[Span, ...],
    _calibration: Sequence[Tensor] | None,
) -> Lowered:
    """`model`, float32, as a network of MNN.

    Args:
        target: the row.
        model: with sizes open where `settings` gives ranges.
        settings: fp16 stores weights in half precision, and lets MNN compute in it.
        spans: height and width.

    Raises:
        SourceError: it takes bytes.
        BackendError: MNN is not installed.
        BuildError: it cannot be converted or loaded, or weights are of another type.
    """
    imported()
    sizes = float_images(target, model, settings.batch, spans)
    half = settings.precision == "fp16"
    least, most = ("x".join(str(getattr(size, end)) for size in sizes) for end in ("least", "most"))
    told = {PRECISION: settings.precision, SIZES: f"{least} to {most}"}
    with temporary_folder() as folder:
        content = _converted(folder, model, told)
        try:
            said = about(folder / _FILE, folder)
            run = _runner(content, said, half=half)
        except SourceError as error:
            raise BuildError(f"{target.title} cannot load what its converter made: {error}; {LOGGED}") from error
        weights = _weights(folder)
    if weights is not None:
        require_type(weights, FLOATS[settings.precision], what="weights", who=target.title)
    computed = computed_in(target, lambda asked: _runner(content, said, half=asked), sizes) if half else "float32"
    observed = {
        "weights": "not read back, of so large a file" if weights is None else counted(weights),
        "computed_in": f'{computed} (precision "{WORDS[half]}")',
        "tensor": f"{said.taken}, {'x'.join('?' if size is None else str(size) for size in said.sizes)}",
    }
    runtime = f"{target.title} {installed(target.packages[0])}, CPU"
    return Lowered.of(model, Built({target.suffix: content}, run, runtime, observed=observed))


def _converted(folder: Path, model: onnx.ModelProto, told: Mapping[str, str]) -> bytes:
    """The file, also in `folder`, that says what it is `told` and has the same name for itself every time."""
    marked = copy_of(model)
    onnx.helper.set_model_props(marked, {**{p.key: p.value for p in model.metadata_props}, **told})
    if told[PRECISION] == "fp16":
        _round_weights(marked)
    (folder / "model.onnx").write_bytes(marked.SerializeToString())
    arguments = ["-f", "ONNX", "--modelFile", "model.onnx", "--MNNModel", _FILE, "--bizCode", "repconv"]
    mnnconvert(folder, [*arguments, *(["--fp16"] if told[PRECISION] == "fp16" else [])], (_FILE,))
    path = folder / _FILE
    drawn = str(imported().get_model_uuid(str(path))).encode()
    content = path.read_bytes()
    if len(drawn) == 36 and content.count(drawn) == 1:
        # MNN draws it anew in each conversion. It is made of all the rest instead.
        named = uuid.uuid5(uuid.NAMESPACE_URL, content.replace(drawn, bytes(36)).hex())
        content = content.replace(drawn, str(named).encode())
        path.write_bytes(content)
    return content


def _round_weights(model: onnx.ModelProto) -> None:
    """To the nearest half, in float32: MNN cuts off instead, so that each layer would give some 0.05 % too little."""
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            numbers = onnx.numpy_helper.to_array(tensor)
            tensor.CopyFrom(onnx.numpy_helper.from_array(numbers.astype(np.float16).astype(np.float32), tensor.name))


def _weights(folder: Path) -> Counter[str] | None:
    """How many weights of which type and operation `folder`'s file has; None where it is too large to look."""
    if (folder / _FILE).stat().st_size > _READ_BACK_BYTES:
        return None
    mnnconvert(folder, ["-f", "MNN", "--modelFile", _FILE, "--JsonFile", "model.json"], ("model.json",))
    found: Counter[str] = Counter()
    for operation in json.loads((folder / "model.json").read_text(encoding="utf-8"))["oplists"]:
        main = operation.get("main") or {}
        if main.get("quanParameter"):
            found[f"{'float16' if main['quanParameter'].get('type') == 3 else 'int8'} {operation['type']}"] += 1
        elif main.get("weight"):
            found[f"float32 {operation['type']}"] += 1
    return found


def _runner(content: bytes, said: MnnAbout, *, half: bool) -> Run:
    """A file as a function.

    Raises:
        SourceError: MNN cannot load it.
    """
    with temporary_folder() as folder:
        (folder / _FILE).write_bytes(content)
        net = load_mnn(folder / _FILE, said.given, half=half)

    def run(x: Tensor) -> list[Tensor]:
        return [torch.from_numpy(y) for y in net.run(x.numpy())]

    def attempt(shape: tuple[int, ...]) -> None:
        with temporary_folder() as room:
            (room / _FILE).write_bytes(content)
            require_mnn_runs(room / _FILE, said.given, shape, half=half)

    return tried_first(run, attempt)


def _open(text: str, path: Path) -> Artefact:
    """A network in MNN, in the precision it says, or float32.

    Raises:
        BackendError: MNN is not installed.
        SourceError: it cannot be loaded, or has other inputs than one tensor of images.
    """
    row = TARGETS["mnn"]
    imported()
    try:
        with temporary_folder() as folder:
            said = about(path, folder)
        half = said.precision == "fp16"
        run = _runner(path.read_bytes(), said, half=half)
    except (SourceError, BuildError) as error:
        raise SourceError(f"{text}: not a network that MNN loads: {error}") from error
    kind = f'{row.title} {installed(row.packages[0])} with precision "{WORDS[half]}"'
    taken = Input(said.taken, torch.float16 if half else torch.float32, said.sizes)
    return opaque_artefact(text, path, kind, run, torch.float32, taken)


def _look(target: Target) -> tuple[Diagnosis, ...]:
    def cpu() -> tuple[str, ...]:
        imported()
        with temporary_folder() as folder:
            if "Usage" not in mnnconvert(folder, ["--help"], ()):
                raise BackendError("its converter does not answer")
        return ("CPU",)

    return (tried(target.title, target.packages[0], "builds and runs .mnn networks", cpu),)


def _load(_: str, job: Job, how: How) -> Loaded:
    """A network with its input in it."""
    half, x = job.precision == "fp16", np.load(job.input)
    with temporary_folder() as folder:
        said = about(job.file, folder)
    require_mnn_runs(job.file, said.given, x.shape, half=half)
    net = load_mnn(job.file, said.given, half=half, threads=how.threads)
    net.prepared(x)

    def outputs() -> list[Array]:
        net.once()
        return list(net.outputs())

    return Loaded(call=net.once, wait=nothing, outputs=outputs, observed={"threads": str(net.threads)})


RUNTIME = Runtime(build=build, open=_open, look=_look, load=_load)
