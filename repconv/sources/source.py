"""What a user names on the command line, opened: one opener for all commands."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from ..blocks.probing import dtype_of, pixel_axes
from ..errors import SourceError
from ..files.edited import inputs_of
from ..files.foreign.programs import open_program
from ..files.onnx import kind_of, read_onnx
from ..files.whole import sha256
from ..models.spec import ModelSpec
from .checkpoint import SUFFIXES as SAVED
from .checkpoint import Checkpoint, Normalization
from .networks import SUFFIXES, by_name, of_weights

Shape = tuple[int, ...]
Held = Checkpoint | ExportedProgram | onnx.ModelProto


@dataclass(frozen=True)
class Input:
    """One input as its source declares it: sizes that are open are None; `shape` is None where nothing is known."""

    name: str
    dtype: torch.dtype
    shape: tuple[int | None, ...] | None


@dataclass(frozen=True, kw_only=True)
class Source:
    """What was named, opened: a network in evaluation mode on the CPU with what is known of it, or a graph.

    name: as the user gave it; path and sha256: of its file, None without one; held: what it is; notes: what the user
    should know of how it was read.
    """

    name: str
    path: Path | None
    sha256: str | None
    held: Held
    notes: tuple[str, ...] = ()

    @property
    def checkpoint(self) -> Checkpoint:
        """The network.

        Raises:
            SourceError: it is a graph.
        """
        if isinstance(self.held, Checkpoint):
            return self.held
        raise SourceError(f"{self.name} is a graph, and a network in PyTorch is needed: {NETWORKS}")

    @property
    def is_graph(self) -> bool:
        """Whether it is an ONNX model or a program, which need no code of their network."""
        return not isinstance(self.held, Checkpoint)

    @property
    def size(self) -> Shape | None:
        """Of one input without its batch, (c, h, w) of an image, where it says all of it and takes one."""
        if isinstance(self.held, Checkpoint):
            return self.held.input_shape
        inputs = self.inputs
        shape = inputs[0].shape if len(inputs) == 1 else None
        known = [side for side in (shape or ())[1:] if side is not None]
        return tuple(known) if shape is not None and known and len(known) == len(shape) - 1 else None

    @property
    def channels(self) -> int | None:
        """Of the input it takes, where it says so."""
        if self.size is not None:
            return self.size[0]
        shape = self.inputs[0].shape if len(self.inputs) == 1 else None
        return None if shape is None or len(shape) < 3 else shape[1]

    @property
    def normalization(self) -> Normalization | None:
        """What it says images in [0, 1] go through before it."""
        if isinstance(self.held, Checkpoint):
            return self.held.normalization or _of_timm(self.held.model)
        if isinstance(self.held, ExportedProgram):
            return None
        said = {entry.key: entry.value for entry in self.held.metadata_props}.get("normalization")
        try:
            known = json.loads(said) if said else None
            return None if known is None else Normalization(tuple(known["mean"]), tuple(known["std"]))
        except (ValueError, KeyError, TypeError):
            return None

    @property
    def inputs(self) -> tuple[Input, ...]:
        """What it takes; of a network one image.

        Raises:
            SourceError: a graph that takes anything but tensors.
        """
        if isinstance(self.held, onnx.ModelProto):
            return tuple(_of_onnx(self.held, self.name))
        if isinstance(self.held, ExportedProgram):
            return tuple(_of_program(self.held, self.name))
        network, known = self.held.model, self.held.input_shape
        axes = pixel_axes(network) if isinstance(getattr(network, "spec", None), ModelSpec) else None
        shape = None if axes is None else (None, known[0] if known else None, *(None,) * axes)
        return (Input("input", dtype_of(network), shape),)


ONNX_TYPES: dict[int, torch.dtype] = {
    onnx.TensorProto.FLOAT: torch.float32, onnx.TensorProto.DOUBLE: torch.float64,
    onnx.TensorProto.FLOAT16: torch.float16, onnx.TensorProto.INT8: torch.int8, onnx.TensorProto.INT16: torch.int16,
    onnx.TensorProto.INT32: torch.int32, onnx.TensorProto.INT64: torch.int64, onnx.TensorProto.UINT8: torch.uint8,
    onnx.TensorProto.UINT16: torch.uint16, onnx.TensorProto.UINT32: torch.uint32,
    onnx.TensorProto.UINT64: torch.uint64, onnx.TensorProto.BOOL: torch.bool,
}  # fmt: skip
"""Element types that PyTorch, numpy and onnxruntime share."""

Reader = Callable[[Path, str | None, str | None], tuple[Held, tuple[str, ...]]]


def _graph(read: Callable[[Path], Held]) -> Reader:
    def reader(path: Path, model: str | None, _: str | None) -> tuple[Held, tuple[str, ...]]:
        if model is not None:
            raise SourceError(f"--model is for weights without their network; {path} holds its own")
        return read(path), ()

    return reader


WRITTEN = (*SAVED, ".onnx", ".pt2")
"""Formats of files that a fused network is written in."""


@dataclass(frozen=True)
class Format:
    """A format of files.

    read: from the path, `model` and `state_key` to what is in it and notes on how it was read. graph: whether that is
    one. fused: the formats it can be written in once it is fused; of a graph the usual one first.
    """

    read: Reader
    graph: bool = False
    fused: tuple[str, ...] = WRITTEN


READERS: dict[str, Format] = {
    ".onnx": Format(_graph(read_onnx), graph=True, fused=(".onnx",)),
    ".pt2": Format(_graph(open_program), graph=True, fused=(".pt2", ".onnx")),
    **dict.fromkeys(SUFFIXES, Format(of_weights)),
}
"""By suffix."""

NETWORKS = (
    f"a weight file ({' '.join(SUFFIXES)}), timm:NAME[@WEIGHTS], torchvision:NAME[@WEIGHTS] or "
    "package.module:factory[@WEIGHTS]"
)
FORMS = f"a graph ({' '.join(suffix for suffix, row in READERS.items() if row.graph)}), {NETWORKS}"


def is_graph(text: str) -> bool:
    """Whether a text names a file that is a graph, before it is opened."""
    suffix = Path(text).suffix
    return suffix in READERS and READERS[suffix].graph


def writable(text: str) -> tuple[str, ...]:
    """The formats that what a text names can be written in once it is fused, before it is opened; the usual one first.

    Of a network, the usual one depends on what it holds.
    """
    suffix = Path(text).suffix
    return READERS[suffix].fused if suffix in READERS else WRITTEN


def open_source(source: str | Path, *, model: str | None = None, state_key: str | None = None) -> Source:
    """Open what `source` names.

    Args:
        source: a repconv checkpoint, a state dict (bare, or wrapped as training scripts do), an ONNX file, a program of
            torch.export, or a model by name.
        model: for a state dict: a name of `list_models()` or `package.module:factory`.
        state_key: the key in the file under which the weights are.

    Raises:
        SourceError: it names nothing that can be opened.
        CheckpointError: the file cannot be read, or does not fit the network.
        BackendError: it needs a package that is not installed.
    """
    name, path = str(source), Path(source)
    if not name.strip():
        raise SourceError("an empty SOURCE; name a file, or a network such as timm:resnet18")
    if path.is_dir():
        raise SourceError(f"{name} is a directory; name a file")
    if not path.exists() and ":" in name:
        if model is not None:
            raise SourceError(f"--model is for weight files; {name} names its own network")
        file, (network, notes) = by_name(name, state_key)
        return Source(name=name, path=file, sha256=None if file is None else sha256(file), held=network, notes=notes)
    if not path.exists():
        raise SourceError(f"{name}: no such file; SOURCE is {FORMS}")
    if path.suffix not in READERS:
        raise SourceError(f"{name}: {path.suffix or 'no suffix'!r} is no known format; SOURCE is {FORMS}")
    held, notes = READERS[path.suffix].read(path, model, state_key)
    return Source(name=name, path=path, sha256=sha256(path), held=held, notes=notes)


def require_one_input(network: nn.Module, name: str) -> None:
    """Insist that a network can be called with one tensor.

    Raises:
        SourceError: its code needs more; it says which, and how such a network is given.
    """
    try:
        takes = inspect.signature(network.forward)
        takes.bind(torch.empty(0))
    except ValueError:  # a signature that Python does not know
        return
    except TypeError as error:
        needed = ", ".join(n for n, p in takes.parameters.items() if p.default is p.empty)
        raise SourceError(
            f"{name}: its forward takes ({needed}), and networks are called with one image. Give its program: "
            f"torch.export.save(torch.export.export(model.eval(), (its inputs)), 'model.pt2')"
        ) from error


def _of_timm(network: nn.Module) -> Normalization | None:
    """What timm says images go through before a network of its own."""
    known = getattr(network, "pretrained_cfg", None)
    mean, std = (known.get(key) for key in ("mean", "std")) if isinstance(known, Mapping) else (None, None)
    if not isinstance(mean, Sequence) or not isinstance(std, Sequence):
        return None
    return Normalization(tuple(map(float, mean)), tuple(map(float, std)))


def _of_program(program: ExportedProgram, name: str) -> Iterator[Input]:
    values = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    for given in program.graph_signature.user_inputs:
        value = values.get(given) if isinstance(given, str) else None
        if not isinstance(value, Tensor):
            raise SourceError(f"{name}: its input {given} is no tensor; only programs of tensors are run")
        yield Input(str(given), value.dtype, tuple(size if isinstance(size, int) else None for size in value.shape))


def _of_onnx(model: onnx.ModelProto, name: str) -> Iterator[Input]:
    for value in inputs_of(model):
        tensor = value.type.tensor_type
        if not tensor.elem_type:
            raise SourceError(f"{name}: its input {value.name} is no tensor; only models of tensors are run")
        if tensor.elem_type not in ONNX_TYPES:
            raise SourceError(
                f"{name}: its input {value.name} is {kind_of(tensor.elem_type)}, which no array holds that PyTorch and "
                f"onnxruntime share; models are run that take {', '.join(map(kind_of, ONNX_TYPES))}"
            )
        shape = tuple(d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim)
        yield Input(value.name, ONNX_TYPES[tensor.elem_type], shape if tensor.HasField("shape") else None)
