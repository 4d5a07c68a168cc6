"""Tools that fuse, simplify or optimise networks: what each takes, and how it is asked."""

from __future__ import annotations

import contextlib
import importlib
import io
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from repconv import RepBlock, fuse
from repconv.graph import fuse_onnx


class DeclinedError(Exception):
    """A tool cannot take a network, or gave it back wrong; says why."""


@dataclass(frozen=True)
class ModuleTool:
    """Works on PyTorch modules; `work` gets a copy and an example, and gives a module."""

    package: str
    work: Callable[[nn.Module, Tensor], nn.Module]


@dataclass(frozen=True)
class FileTool:
    """Works on ONNX models; `work` gets a copy and gives a model."""

    package: str
    work: Callable[[onnx.ModelProto], onnx.ModelProto]


def _fuse_module(model: nn.Module, x: Tensor) -> nn.Module:
    return fuse(model, (x,), prove=False)[0].module()


def _fuse_blocks(model: nn.Module, _: Tensor) -> nn.Module:
    if not any(isinstance(module, RepBlock) for module in model.modules()):
        raise DeclinedError("fuses this package's blocks alone when no example is given")
    return fuse(model, prove=False)[0]


def _timm(model: nn.Module, _: Tensor) -> nn.Module:
    return importlib.import_module("timm.utils.model").reparameterize_model(model)  # type: ignore[no-any-return]


def _ultralytics(model: nn.Module, _: Tensor) -> nn.Module:
    base = importlib.import_module("ultralytics.nn.tasks").BaseModel
    if not isinstance(model, base):
        raise DeclinedError("is a method of ultralytics' own networks")
    return model.fuse(verbose=False).eval()  # type: ignore[no-any-return]  # torch types attributes loosely


def _fx(model: nn.Module, _: Tensor) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module("torch.fx.experimental.optimization").fuse(model)  # type: ignore[no-any-return]


def _onnxsim(model: onnx.ModelProto) -> onnx.ModelProto:
    simplified, checked = importlib.import_module("onnxsim").simplify(model)
    if not checked:
        raise DeclinedError("its own check of the result failed")
    return simplified  # type: ignore[no-any-return]


def _onnxslim(model: onnx.ModelProto) -> onnx.ModelProto:
    with contextlib.redirect_stdout(io.StringIO()):
        return importlib.import_module("onnxslim").slim(model)  # type: ignore[no-any-return]


def _onnxruntime(model: onnx.ModelProto) -> onnx.ModelProto:
    """What its optimiser saves at the extended level, the last one whose files run on other processors, too."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimised.onnx"
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(path)
        options.log_severity_level = 3
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return onnx.load(path)


TOOLS: Mapping[str, ModuleTool | FileTool] = MappingProxyType({
    "as exported": FileTool("onnx", lambda model: model),
    "repconv fuse_onnx": FileTool("repconv", lambda model: fuse_onnx(model, prove=False)[0]),
    "repconv fuse": ModuleTool("repconv", _fuse_module),
    "repconv fuse, no example": ModuleTool("repconv", _fuse_blocks),
    "timm reparameterize_model": ModuleTool("timm", _timm),
    "ultralytics fuse": ModuleTool("ultralytics", _ultralytics),
    "torch.fx fuse": ModuleTool("torch", _fx),
    "onnxsim": FileTool("onnxsim", _onnxsim),
    "onnxslim": FileTool("onnxslim", _onnxslim),
    "onnxruntime extended": FileTool("onnxruntime", _onnxruntime),
})  # fmt: skip
"""Every tool whose result is, or exports to, an ONNX file; OpenVINO keeps its own (`openvino_compiled`)."""


def first_line(error: Exception) -> str:
    """The first sentence of what an error says."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "").partition(". ")[0]
    return f"{type(error).__name__}: {line}"[:160] if line else type(error).__name__


def openvino_compiled(model: onnx.ModelProto) -> Any:  # noqa: ANN401  # a type of a package that may be missing
    """The model compiled by OpenVINO for this processor in float32, on as many threads as torch uses."""
    openvino = importlib.import_module("openvino")
    core = openvino.Core()
    read = core.read_model(model.SerializeToString(), b"")
    return core.compile_model(
        read,
        "CPU",
        {
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
        },
    )


def openvino_convolutions(compiled: Any) -> int:  # noqa: ANN401  # of `openvino_compiled`
    """Convolutions of the graph that runs, after OpenVINO's own transformations."""
    return sum(
        "Convolution" in node.get_rt_info()["layerType"].astype(str) for node in compiled.get_runtime_model().get_ops()
    )
