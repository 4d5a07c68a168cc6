"""Loading and running engines of TensorRT; the JSON beside an engine is checked first."""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any

import torch
from torch import Tensor

from repconv.errors import BackendError, SourceError
from repconv.files.whole import sha256

from ..artefacts.built import Run
from ..record import ENGINE_SCHEMA
from ..targets import TARGETS


def sidecar_of(engine: Path) -> Path:
    """Where the JSON of an engine is."""
    return engine.with_name(f"{engine.name}.json")


def read_sidecar(engine: Path) -> dict[str, Any]:
    """The JSON beside an engine.

    Raises:
        SourceError: there is none, or it lacks what its schema has, or holds it in another type; the message says which
            key, and what writes it anew.
    """
    path = sidecar_of(engine)
    try:
        known = json.loads(path.read_text())
    except FileNotFoundError:
        raise SourceError(f"{engine} has no {path.name} beside it, so nothing says what it was built for") from None
    except (OSError, ValueError) as error:
        raise SourceError(f"{path} is no readable JSON ({error})") from error
    if not isinstance(known, dict) or known.get("schema") != ENGINE_SCHEMA:
        raise SourceError(f"{path} is no {ENGINE_SCHEMA}; rebuild the engine with this version of repconv")
    _check_types(known, path, engine)
    return known


def check_sidecar(engine: Path) -> dict[str, Any]:
    """The JSON beside an engine, if it fits the engine and this machine.

    Raises:
        SourceError: see `read_sidecar`; or it is of another file, or of another version, GPU or compute capability than
            here; the message says what to rebuild.
    """
    known, path = read_sidecar(engine), sidecar_of(engine)
    again = f"rebuild it: repconv export SOURCE --to {known['target']} -o {engine.name}"
    if known["sha256"] != sha256(engine):
        raise SourceError(f"{engine} is not the file {path.name} describes: another SHA-256; {again}")
    here = version_here(str(known["target"]))
    if here is not None and here != known["version"]:
        raise SourceError(f"{engine} was built by {known['target']} {known['version']}, here is {here}; {again}")
    gpu = gpu_here()
    if gpu is None:
        return known
    capability, ahead = gpu["capability"], "capabilities" in TARGETS[str(known["target"])].options
    if not ahead and known["gpu"] not in (None, gpu):
        raise SourceError(f"{engine} was built on {known['gpu']}, here is {gpu}; {again}")
    if ahead and capability not in known["capabilities"]:
        built_for = ", ".join(known["capabilities"])
        raise SourceError(f"{engine} was built for {built_for}, this GPU is {capability}; {again} --sm {capability}")
    return known


_TEXTS = ("engine", "target", "version", "sha256", "onnx_sha256", "source", "precision", "batch")
_KINDS: Mapping[str, tuple[type, ...]] = {
    **dict.fromkeys(_TEXTS, (str,)), "source_sha256": (str, NoneType), "not_run": (str, NoneType), "bytes": (int,),
    "verified": (bool,), "versions": (dict,), "observed": (dict,), "capabilities": (list,), "tensors": (list,),
    "gpu": (dict, NoneType),
}  # fmt: skip
"""What a sidecar of this schema holds beside it (`tensorrt.py`)."""
_WORDS = {str: "text", NoneType: "null", int: "a number", bool: "true or false", dict: "an object", list: "a list"}


def _check_types(known: Mapping[str, Any], path: Path, engine: Path) -> None:
    target, engines = str(known.get("target")), [row.name for row in TARGETS.values() if row.suffix == engine.suffix]
    to = target if target in engines else " or ".join(engines)
    again = f"it is written anew with the engine: repconv export SOURCE --to {to} -o {engine.name}"
    for key, kinds in _KINDS.items():
        expected = " or ".join(_WORDS[kind] for kind in kinds)
        if key not in known:
            raise SourceError(f"{path} lacks {key!r} ({expected}); {again}")
        if type(known[key]) not in kinds:
            held = _WORDS.get(type(known[key]), "a fraction")
            raise SourceError(f"{path}: {key!r} should be {expected}, it is {held}; {again}")
    if target not in engines:
        raise SourceError(f"{path}: 'target' should be {to}, it is {target!r}; {again}")
    if not all(isinstance(name, str) for name in known["capabilities"]):
        raise SourceError(f"{path}: 'capabilities' should be a list of texts, it is {known['capabilities']}; {again}")
    if not known["tensors"] or not all(map(_describes_tensor, known["tensors"])):
        raise SourceError(f"{path}: 'tensors' should hold objects of name, dtype and shape; {again}")


def _describes_tensor(held: object) -> bool:
    if not isinstance(held, dict) or not all(isinstance(held.get(key), str) for key in ("name", "dtype")):
        return False
    shape = held.get("shape")
    return isinstance(shape, list) and all(isinstance(size, int) for size in shape)


def version_here(target: str) -> str | None:
    """The version that would load an engine, None where the module cannot be imported."""
    try:
        return str(importlib.import_module(TARGETS[target].module).__version__)
    except (ImportError, OSError, RuntimeError, AttributeError):
        return None


def gpu_here() -> dict[str, str] | None:
    """Name and compute capability of the GPU PyTorch sees, None without one."""
    if not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability()
    return {"name": torch.cuda.get_device_name(), "capability": f"SM{major}{minor}"}


def why_not_run(target: str) -> str | None:
    """Why an engine cannot run here, None if it can."""
    if not torch.cuda.is_available():
        return "no GPU that PyTorch sees"
    return None if importlib.util.find_spec(TARGETS[target].module) else f"{target} is not installed"


def open_engine(engine: Path) -> Run:
    """An engine as a function of one image batch; tensors go to the GPU and come back.

    Raises:
        SourceError: its JSON is missing or does not fit, or the file is no engine.
        BackendError: the module is missing, or there is no GPU.
    """
    known = check_sidecar(engine)
    target = str(known["target"])
    problem = why_not_run(target)
    if problem is not None:
        raise BackendError(
            f"{engine} cannot run here: {problem}; {TARGETS[target].install}, on a machine with an NVIDIA GPU"
        )
    return engine_function(engine.read_bytes(), target)


def engine_function(content: bytes, target: str) -> Run:
    """An engine in memory as a function of one image batch.

    Raises:
        SourceError: it is no engine of this version.
    """
    engine = load_engine(content, target)

    def run(x: Tensor) -> list[Tensor]:
        bound = engine.bind(x.contiguous().cuda())
        stream = torch.cuda.current_stream()
        stream.synchronize()
        bound.enqueue()
        stream.synchronize()
        return [tensor.cpu() for tensor in bound.made]

    return run


@dataclass(frozen=True)
class Bound:
    """An engine with its tensors on the GPU: `enqueue` runs it on PyTorch's current stream, into `made`."""

    made: tuple[Tensor, ...]
    enqueue: Callable[[], None]


@dataclass(frozen=True, kw_only=True)
class Engine:
    """A loaded engine: TensorRT's own objects, and the names of its input and outputs."""

    target: str
    engine: Any
    context: Any
    given: str
    outputs: tuple[str, ...]

    def bind(self, x: Tensor) -> Bound:
        """Give it `x` [n, c, h, w], on the GPU, and room for its outputs; the binding before it is void.

        Raises:
            SourceError: from `enqueue`, where it cannot run this size.
        """
        self.context.set_input_shape(self.given, tuple(x.shape))
        made = {
            name: torch.empty(
                tuple(self.context.get_tensor_shape(name)),
                dtype=_TYPES[self.engine.get_tensor_dtype(name).name],
                device="cuda",
            )
            for name in self.outputs
        }
        for name, tensor in {self.given: x, **made}.items():
            self.context.set_tensor_address(name, tensor.data_ptr())

        def enqueue() -> None:
            if not self.context.execute_async_v3(torch.cuda.current_stream().cuda_stream):
                raise SourceError(f"{self.target} could not run the engine on {tuple(x.shape)}")

        return Bound(tuple(made.values()), enqueue)


def load_engine(content: bytes, target: str) -> Engine:
    """An engine in memory, ready to be given its input.

    Raises:
        SourceError: it is no engine of this version.
    """
    trt: Any = importlib.import_module(TARGETS[target].module)
    runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
    loaded = runtime.deserialize_cuda_engine(content)
    if loaded is None:
        raise SourceError(f"{target} {trt.__version__} cannot load the engine; rebuild it with this version")
    context = loaded.create_execution_context()
    names = [loaded.get_tensor_name(i) for i in range(loaded.num_io_tensors)]
    inputs = [n for n in names if loaded.get_tensor_mode(n) == trt.TensorIOMode.INPUT]
    return Engine(
        target=target,
        engine=loaded,
        context=context,
        given=inputs[0],
        outputs=tuple(n for n in names if n not in inputs),
    )


_TYPES = {
    "FLOAT": torch.float32, "HALF": torch.float16, "BF16": torch.bfloat16, "INT32": torch.int32, "INT64": torch.int64,
    "UINT8": torch.uint8, "INT8": torch.int8, "BOOL": torch.bool,
}  # fmt: skip
