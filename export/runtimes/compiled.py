"""OpenVINO IR and engines as artefacts that run, for comparing them with any other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from repconv.errors import BuildError, SourceError
from repconv.files.whole import sha256

from ..artefacts.artefact import Artefact, Input, Step
from ..artefacts.built import Run
from .engine_runtime import open_engine, read_sidecar
from .openvino import compile_openvino, import_openvino

OPENVINO = "OpenVINO"
_HALF = {"f16": torch.float16, "fp16": torch.float16, "bf16": torch.bfloat16}
"""Inputs are drawn in, and errors judged by, the precision a network computes in, whatever type it takes them in."""
_OPENVINO_TYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16, "u8": torch.uint8}
_ENGINE_TYPES = {"FLOAT": torch.float32, "HALF": torch.float16, "BF16": torch.bfloat16, "UINT8": torch.uint8}


def openvino_artefact(text: str, path: Path) -> Artefact:
    """IR, compiled for the CPU in the precision it records, or float32.

    Raises:
        BackendError: OpenVINO is not installed.
        SourceError: it cannot be read or compiled, or has other inputs than one tensor of images.
    """
    ov = import_openvino()
    try:
        network = ov.Core().read_model(str(path))
    except RuntimeError as error:
        raise SourceError(f"{text}: not readable IR ({_last_line(error)}); its .bin belongs beside it") from error
    if len(network.inputs) != 1:
        raise SourceError(f"{text} takes {len(network.inputs)} inputs; IR of one input is run")
    hint = _recorded_precision(network)
    try:
        run, observed = compile_openvino(path, hint)
    except BuildError as error:
        raise SourceError(f"{text}: {error}") from error
    taken = _taken(text, network.input(0).element_type.get_type_name(), _OPENVINO_TYPES)
    sizes = tuple(d.get_length() if d.is_static else None for d in network.input(0).partial_shape)
    kind = f"{OPENVINO} in {observed['inference_precision']}"
    return _artefact(text, path, kind, run, taken, Input(network.input(0).any_name, _HALF.get(hint, taken), sizes))


def engine_artefact(text: str, path: Path) -> Artefact:
    """An engine of TensorRT or TensorRT-RTX.

    Raises:
        SourceError: the JSON beside it is missing or does not fit.
        BackendError: it cannot run here, for want of the module or a GPU.
    """
    run = open_engine(path)
    known = read_sidecar(path)
    first = known["tensors"][0]
    taken = _taken(text, first["dtype"], _ENGINE_TYPES)
    sizes = tuple(None if size < 0 else size for size in first["shape"])
    dtype = _HALF.get(known["precision"], taken)
    return _artefact(
        text, path, f"{known['target']} {known['version']}", run, taken, Input(first["name"], dtype, sizes)
    )


def _recorded_precision(network: Any) -> str:  # noqa: ANN401  # OpenVINO is optional
    where = ["repconv", "inference_precision"]
    return str(network.get_rt_info(where).astype(str)) if network.has_rt_info(where) else "f32"


def _taken(text: str, name: str, types: dict[str, torch.dtype]) -> torch.dtype:
    if name not in types:
        raise SourceError(f"{text} takes an input of {name}; images are {', '.join(types)}")
    return types[name]


def _artefact(text: str, path: Path, kind: str, one: Run, taken: torch.dtype, declared: Input) -> Artefact:
    def run(given: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return tuple(one(given[0].to(taken)))

    def trace(given: Sequence[Tensor]) -> list[Step]:  # noqa: ARG001
        raise SourceError(
            f"{text}: {kind} shows nothing of what is inside; locate in the .onnx file of the same network"
        )

    return Artefact(text, kind, run, trace, (declared,), path=path, sha256=sha256(path))


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
