"""The runtimes that artefacts are built for: a row here and a file in `runtimes/` each, and nothing anywhere else.

Command lines, `doctor`, `verify`, `bench` and the tests of the docs read the rows. A row is what can be said without
importing anything; what builds and runs is the `RUNTIME` of the file, see `artefacts/runtime.py`.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from repconv.errors import BackendError, SourceError

from .settings import PRECISIONS, BuildSettings

_CPU, _GPU = "cpu", "cuda"
ONNX, PROGRAM = "onnx", "program"
"""What a runtime is built from: an ONNX model, or a program of torch.export."""


@dataclass(frozen=True, kw_only=True)
class Timed:
    """A way in which `repconv bench` runs a target's artefacts.

    name: of the backend. precisions: by device. usual: measured where no backend is named and it is installed.
    takes_bf16: whether inputs may be of it; those given by NumPy, which has no bf16, may not.
    """

    name: str
    precisions: Mapping[str, tuple[str, ...]]
    usual: bool = False
    takes_bf16: bool = True


@dataclass(frozen=True, kw_only=True)
class Target:
    """One runtime.

    name: as `--to` takes it. title: as its makers call it.
    suffix: of the main file, or with `folder` of the folder; beside: of the other files that belong to it.
    file: the module that has its `RUNTIME`; absolute where it is none of this package.
    reads: what its `build` is given.
    packages: of PyPI, the runtime's own first. module: what they are imported as. needs: more that it takes, in words.
    precisions: it can be built in. float_io: inputs and outputs are float32 in any of them.
    options: fields of `BuildSettings` and `Quantization` that only some targets have and this has. lacks: why it has
        not, where that is more than that others have it.
    timed: how it is timed.
    """

    name: str
    title: str
    suffix: str
    file: str
    packages: tuple[str, ...]
    module: str
    reads: str = ONNX
    beside: tuple[str, ...] = ()
    folder: bool = False
    needs: str = ""
    precisions: tuple[str, ...] = PRECISIONS
    float_io: bool = False
    options: frozenset[str] = frozenset()
    lacks: Mapping[str, str] = field(default_factory=dict)
    timed: tuple[Timed, ...] = ()

    @property
    def install(self) -> str:
        """The line that installs it."""
        return f"pip install {self.packages[0]}"

    def files(self, out: Path) -> list[Path]:
        """What is written for an output of this name, the output last."""
        stem = out.name.removesuffix(out.suffix)
        return [*(out.with_name(stem + suffix) for suffix in self.beside), out]

    def check(self, settings: BuildSettings) -> None:
        """Refuse settings it has not: they would be passed over in silence.

        Raises:
            SourceError: one of them, and who has it, or why this has not.
        """
        if settings.precision not in self.precisions:
            others = ", ".join(t.name for t in TARGETS.values() if settings.precision in t.precisions)
            raise SourceError(
                f"{self.name} has no {settings.precision}; it has {', '.join(self.precisions)}; "
                f"for {settings.precision} build for {others}"
            )
        if self.reads == PROGRAM and settings.opset is not None:
            raise SourceError(f"an opset is for ONNX models, and {self.name} is built from a program; leave it out")
        if self.float_io and settings.fp32_io:
            raise SourceError(f"{self.title} keeps float32 inputs and outputs anyway; leave out fp32 io")
        if settings.timing_cache is not None and "timing_cache" not in self.options:
            why = self.lacks.get("timing_cache", f"a timing cache is for {having('timing_cache')}, not {self.name}")
            raise SourceError(why)
        if settings.channels_last and "channels_last" not in self.options:
            raise SourceError(f"an input of channels last is for {having('channels_last')}, not {self.name}")
        if settings.quantization.reduce_range and "reduce_range" not in self.options:
            raise SourceError(f"weights of a reduced range are for {having('reduce_range')}, not {self.name}")

    def imported(self) -> Any:  # noqa: ANN401  # optional, so without types
        """Its module.

        Raises:
            BackendError: it is not installed.
        """
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # such as that an interface is young
                return import_module(self.module)
        except ImportError:
            raise BackendError(f"{self.title} is not installed; install it with: {self.install}") from None


_EVERYWHERE = {_CPU: PRECISIONS, _GPU: PRECISIONS}
_ON_GPU = {_GPU: PRECISIONS}

TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target(
            name="onnx",
            title="onnxruntime",
            suffix=".onnx",
            file=".runtimes.onnx",
            packages=("onnxruntime",),
            module="onnxruntime",
            options=frozenset({"reduce_range"}),
            timed=(
                # onnxruntime has no bf16 convolution on CPUs.
                Timed(
                    name="onnxruntime",
                    precisions={**_EVERYWHERE, _CPU: ("fp32", "fp16", "int8")},
                    usual=True,
                    takes_bf16=False,
                ),
                Timed(name="onnxruntime-tensorrt", precisions=_ON_GPU, takes_bf16=False),
            ),
        ),
        Target(
            name="openvino",
            title="OpenVINO",
            suffix=".xml",
            file=".runtimes.openvino",
            packages=("openvino", "nncf"),
            module="openvino",
            beside=(".bin",),
            float_io=True,
            timed=(Timed(name="openvino", precisions={_CPU: PRECISIONS}, usual=True),),
        ),
        Target(
            name="executorch",
            title="ExecuTorch",
            suffix=".pte",
            file=".runtimes.executorch",
            packages=("executorch",),
            module="executorch.runtime",
            reads=PROGRAM,
            precisions=("fp32", "fp16", "int8"),
            timed=(Timed(name="executorch", precisions={_CPU: ("fp32", "fp16", "int8")}),),
        ),
        Target(
            name="litert",
            title="LiteRT",
            suffix=".tflite",
            file=".runtimes.litert",
            packages=("ai-edge-litert", "litert-torch", "ai-edge-quantizer"),
            module="ai_edge_litert.interpreter",
            reads=PROGRAM,
            precisions=("fp32", "fp16", "int8"),
            float_io=True,
            options=frozenset({"channels_last"}),
            timed=(Timed(name="litert", precisions={_CPU: ("fp32", "fp16", "int8")}),),
        ),
        Target(
            name="ncnn",
            title="ncnn",
            suffix=".param",
            file=".runtimes.ncnn",
            packages=("ncnn", "pnnx"),
            module="ncnn",
            beside=(".bin",),
            precisions=("fp32", "fp16"),
            float_io=True,
            timed=(Timed(name="ncnn", precisions={_CPU: ("fp32", "fp16")}),),
        ),
        Target(
            name="coreml",
            title="Core ML",
            suffix=".mlpackage",
            file=".runtimes.coreml",
            packages=("coremltools",),
            module="coremltools",
            reads=PROGRAM,
            folder=True,
            needs="macOS to run",
            precisions=("fp32", "fp16"),
            float_io=True,
        ),
        Target(
            name="mnn",
            title="MNN",
            suffix=".mnn",
            file=".runtimes.mnn",
            packages=("MNN",),
            module="MNN",
            precisions=("fp32", "fp16"),
            float_io=True,
            timed=(Timed(name="mnn", precisions={_CPU: ("fp32", "fp16")}),),
        ),
        Target(
            name="tensorrt",
            title="TensorRT",
            suffix=".engine",
            file=".runtimes.tensorrt",
            packages=("tensorrt",),
            module="tensorrt",
            beside=(".engine.json",),
            needs="an NVIDIA GPU with its driver on the machine that builds",
            options=frozenset({"timing_cache"}),
            timed=(Timed(name="tensorrt", precisions=_ON_GPU),),
        ),
        Target(
            name="tensorrt-rtx",
            title="TensorRT-RTX",
            suffix=".engine",
            file=".runtimes.tensorrt",
            packages=("tensorrt-rtx",),
            module="tensorrt_rtx",
            beside=(".engine.json",),
            needs="Linux on x86-64 or Windows",
            options=frozenset({"capabilities"}),
            lacks={
                "timing_cache": "a timing cache does nothing for TensorRT-RTX, which times no kernels when it builds, "
                "and would make it ask for a GPU; leave it out"
            },
            timed=(Timed(name="tensorrt-rtx", precisions=_ON_GPU),),
        ),
    )
}


def having(option: str) -> str:
    """Names of the targets that have an option, for messages."""
    return ", ".join(target.name for target in TARGETS.values() if option in target.options)


def of_suffix(suffix: str) -> Target | None:
    """The first target whose artefacts end so."""
    return next((target for target in TARGETS.values() if target.suffix == suffix), None)


def timed_as(backend: str) -> Target | None:
    """The target whose artefacts a backend of `repconv bench` runs."""
    return next((t for t in TARGETS.values() if any(timed.name == backend for timed in t.timed)), None)
