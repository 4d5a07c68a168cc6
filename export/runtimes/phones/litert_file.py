"""Files of LiteRT (`.tflite`) in its own interpreter: loading, running in any size, and what is read back of them.

The interpreter brings no types of its own, shows what XNNPACK took only as one more operation, and lets any input be
resized, whether or not the rest of the file bears it. A file says of itself what it was proved for: see `ABOUT`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repconv.errors import BuildError, SourceError, first_line

from ...artefacts.attempt import attempt
from ...onnx.quiet import heard, quiet
from ...targets import TARGETS

ABOUT = "repconv"
"""Name of the metadata of a file that is an `About`, as JSON."""
CONVOLUTIONS = ("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "CONV_3D", "CONV_3D_TRANSPOSE")
_DELEGATE = "DELEGATE"
_OPEN = -1

_ATTEMPT = """
import sys
from ai_edge_litert.interpreter import Interpreter
with open(sys.argv[1], "rb") as stream:
    content = stream.read()
limit_memory(int(sys.argv[2]))
interpreter = Interpreter(model_content=content)
interpreter.allocate_tensors()
interpreter.invoke()
"""


@dataclass(frozen=True, kw_only=True)
class About:
    """What a file was proved for.

    least, most: sizes of the input [n, c, ...], whatever its layout. channels_last: whether it takes [n, ..., c].
    precision: asked for.
    """

    least: tuple[int, ...]
    most: tuple[int, ...]
    channels_last: bool
    precision: str

    @classmethod
    def read(cls, text: str) -> About | None:
        """Of JSON that anybody may have written; None where it is none of ours."""
        try:
            held = json.loads(text)
            sizes = {key: tuple(int(size) for size in held[key]) for key in ("least", "most")}
            return cls(**sizes, channels_last=bool(held["channels_last"]), precision=str(held["precision"]))
        except (ValueError, TypeError, KeyError):
            return None


@dataclass(kw_only=True)
class LoadedFile:
    """A file that runs.

    interpreter: with memory for inputs of `shape`, None before the first.
    kind: type of its one input, as NumPy calls it. sizes: of that input, in its own layout; None where open.
    """

    interpreter: Any
    kind: str
    sizes: tuple[int | None, ...]
    about: About | None
    threads: int | None = None
    shape: tuple[int, ...] | None = None

    @property
    def channels_last(self) -> bool:
        """Whether it takes [n, ..., c]; of files of others that is not known, and what they take is as it stands."""
        return self.about is not None and self.about.channels_last

    def place(self, x: Tensor) -> None:
        """Put an input [n, c, ...] where the next run takes it from.

        Raises:
            SourceError: it does not take it.
        """
        given = np.ascontiguousarray(x.movedim(1, -1).numpy() if self.channels_last else x.numpy())
        index = self.interpreter.get_input_details()[0]["index"]
        said: list[str] = []
        try:
            with heard(said):
                if self.shape != given.shape:
                    self.shape = None
                    self.interpreter.resize_tensor_input(index, list(given.shape))
                    self.interpreter.allocate_tensors()
                    self.shape = given.shape
                self.interpreter.set_tensor(index, given)
        except (RuntimeError, ValueError) as error:
            raise SourceError(_why(error)) from error

    def run(self, x: Tensor) -> list[Tensor]:
        """Outputs for one input [n, c, ...]; errors as `place`."""
        self.place(x)
        return self.again()

    def again(self) -> list[Tensor]:
        """Outputs for the input that is placed.

        Raises:
            SourceError: it cannot compute them.
        """
        try:
            self.interpreter.invoke()
        except (RuntimeError, ValueError) as error:
            raise SourceError(_why(error)) from error
        found = self.interpreter.get_output_details()
        return [torch.from_numpy(self.interpreter.get_tensor(output["index"])) for output in found]


def interpreter_module() -> Any:  # noqa: ANN401  # optional, so without types
    """LiteRT's interpreter.

    Raises:
        BackendError: it is not installed.
    """
    with quiet():
        return TARGETS["litert"].imported()


def load_file(
    content: bytes, failed: type[BuildError | SourceError], what: str, threads: int | None = None
) -> LoadedFile:
    """A file that takes one tensor.

    Args:
        content: of the file.
        failed: raised where it cannot be loaded.
        what: is wrong then, in words.
        threads: to compute with; None: LiteRT's own choice.

    Raises:
        BackendError: LiteRT is not installed.
        BuildError, SourceError: as `failed` says.
    """
    module = interpreter_module()
    said: list[str] = []
    try:
        with quiet(), heard(said):
            interpreter = module.Interpreter(model_content=content, num_threads=threads)
            before = _threads_here()
            interpreter.allocate_tensors()
            pool = _threads_here() - before + 1
            taken = interpreter.get_input_details()
            about = About.read(_metadata(content).get(ABOUT, ""))
    except Exception as error:  # of a damaged file it raises anything
        raise failed(f"{what}: {_why(error)}") from error
    if len(taken) != 1:
        raise failed(f"{what}: it takes {len(taken)} inputs; files of one input are run")
    sizes = tuple(int(size) for size in taken[0]["shape_signature"])
    return LoadedFile(
        interpreter=interpreter,
        kind=np.dtype(taken[0]["dtype"]).name,
        sizes=tuple(None if size == _OPEN else size for size in sizes),
        about=about,
        threads=pool if before else None,
        shape=tuple(int(size) for size in taken[0]["shape"]),
    )


def open_file(path: Path, what: str) -> LoadedFile:
    """A file that anybody may have written or damaged; a process of its own tries it first.

    Raises:
        BackendError: LiteRT is not installed.
        SourceError: it cannot be loaded.
    """
    interpreter_module()
    attempt(_ATTEMPT, path, title=TARGETS["litert"].title, what=what)
    return load_file(path.read_bytes(), SourceError, what)


def _threads_here() -> int:
    """Of this process; 0 where the system does not tell."""
    try:
        return sum(1 for _ in Path("/proc/self/task").iterdir())
    except OSError:
        return 0


def _why(error: Exception) -> str:
    return first_line(error).strip() or type(error).__name__


# What a file holds


def described(content: bytes, about: About) -> bytes:
    """`content` with what it was proved for in it; sizes that are open are so in its own description, too."""
    schema, tools = (
        import_module(f"ai_edge_litert.{name}") for name in ("schema_py_generated", "tools.flatbuffer_utils")
    )
    model = tools.read_model_from_bytearray(bytearray(content))
    graph = model.subgraphs[0]
    taken = graph.tensors[graph.inputs[0]]
    shape = [size if size == most else _OPEN for size, most in zip(about.least, about.most, strict=True)]
    if _OPEN in shape:
        taken.shapeSignature = [shape[0], *shape[2:], shape[1]] if about.channels_last else shape
    buffer, entry = schema.BufferT(), schema.MetadataT()
    buffer.data = np.frombuffer(json.dumps(asdict(about)).encode(), np.uint8)
    entry.name, entry.buffer = ABOUT.encode(), len(model.buffers)
    model.buffers.append(buffer)
    model.metadata = [*(model.metadata or []), entry]
    return bytes(tools.convert_object_to_bytearray(model))


def _metadata(content: bytes) -> dict[str, str]:
    schema = import_module("ai_edge_litert.schema_py_generated")
    model = schema.Model.GetRootAs(content, 0)
    entries = [model.Metadata(index) for index in range(model.MetadataLength())]
    found = {}
    for entry in entries:
        held = model.Buffers(entry.Buffer()).DataAsNumpy()
        if isinstance(held, np.ndarray):
            found[entry.Name().decode(errors="replace")] = held.tobytes().decode(errors="replace")
    return found


@dataclass(frozen=True, kw_only=True)
class Inside:
    """What a file computes.

    convolutions: by the type their weights are stored in. delegated: parts that XNNPACK runs.
    outside: operations that it does not run. transposes: operations that change the layout.
    """

    convolutions: Counter[str]
    delegated: int
    outside: tuple[str, ...]
    transposes: int


def inside(loaded: LoadedFile) -> Inside:
    """Of a file that is loaded, by its interpreter's list, which private names alone give."""
    listed: Sequence[Mapping[str, Any]] = loaded.interpreter._get_ops_details()  # noqa: SLF001  # there is no public way
    operations = [operation for operation in listed if operation["op_name"] != _DELEGATE]
    made = {int(index): operation for operation in operations for index in operation["outputs"]}
    parts = [operation for operation in listed if operation["op_name"] == _DELEGATE]
    taken: set[int] = set()
    for part in parts:
        given, left = set(map(int, part["inputs"])), list(map(int, part["outputs"]))
        while left:
            source = made.get(left.pop())
            if source is not None and int(source["index"]) not in taken:
                taken.add(int(source["index"]))
                left += [int(index) for index in source["inputs"] if int(index) not in given]
    return Inside(
        convolutions=Counter(
            _stored(operation, made) for operation in operations if operation["op_name"] in CONVOLUTIONS
        ),
        delegated=len(parts),
        outside=tuple(sorted({o["op_name"] for o in operations if int(o["index"]) not in taken})),
        transposes=sum(operation["op_name"] == "TRANSPOSE" for operation in operations),
    )


def _stored(operation: Mapping[str, Any], made: Mapping[int, Mapping[str, Any]]) -> str:
    """The type a convolution's weight, its second operand, lies in the file in."""
    source = made.get(int(operation["inputs"][1]))
    kind = operation["operand_types"][1] if source is None else source["operand_types"][0]
    return str(np.dtype(kind).name)
