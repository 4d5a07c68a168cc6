"""What a benchmark can run a network with: one row a backend, and why one cannot be used here."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from repconv.errors import BackendError, SourceError
from repconv.export.doctor import PYTORCH_GPU
from repconv.export.engines.builder import INSTALL, probe_engines
from repconv.export.runtimes.engine_runtime import why_not_run
from repconv.files.record import installed

ON_GPU = "on a machine with an NVIDIA GPU"


@dataclass(frozen=True)
class Backend:
    """One backend.

    loader: which loader of `loading` its worker uses.
    target: what `repconv export` builds for it; None: it runs PyTorch modules.
    devices: it can run on. precisions: by device.
    problem: why it cannot be used on a device here, with the line that mends it; None if it can.
    """

    name: str
    loader: str
    target: str | None
    devices: tuple[str, ...]
    precisions: dict[str, tuple[str, ...]]
    problem: Callable[[str], str | None]

    def device(self, asked: str) -> str:
        """Where it runs: as asked, or the only place it can."""
        return asked if asked in self.devices else self.devices[0]


def _torch(device: str) -> str | None:
    import torch

    if device == "cpu" or torch.cuda.is_available():
        return None
    return f"PyTorch sees no GPU; {PYTORCH_GPU}"


def _compile(device: str) -> str | None:
    compilers = [os.environ.get("CXX", ""), "g++", "clang++", "cl"]
    if device == "cpu" and not any(name and shutil.which(name) for name in compilers):
        return "it needs a C++ compiler on the CPU; install one: apt-get install g++"
    if device == "cpu" and sys.platform.startswith("linux") and not _python_headers():
        return "it needs Python's headers; install them: apt-get install python3-dev"
    return _torch(device)


def _python_headers() -> bool:
    import sysconfig
    from pathlib import Path

    return (Path(sysconfig.get_path("include")) / "Python.h").is_file()


def _provider(name: str) -> Callable[[str], str | None]:
    def problem(device: str) -> str | None:
        import onnxruntime

        wanted = {"cpu": "CPUExecutionProvider"}.get(device, name)
        if wanted in onnxruntime.get_available_providers():
            return None
        return f"this onnxruntime has no {wanted}; pip install onnxruntime-gpu, {ON_GPU}"

    return problem


def _openvino(_: str) -> str | None:
    return None if installed("openvino") else "OpenVINO is not installed; install it with: pip install openvino"


def _engines(target: str) -> Callable[[str], str | None]:
    def problem(_: str) -> str | None:
        found = probe_engines(target)
        why = found.problem or why_not_run(target)
        if why is None:
            return None
        said = "it is not installed" if found.missing else why
        return f"{said}; {INSTALL[target]}, {ON_GPU}"

    return problem


_ALL, _HALVES = ("fp32", "fp16", "bf16", "int8"), ("fp32", "fp16", "bf16")
_CPU_ONNX = ("fp32", "fp16", "int8")
"""onnxruntime has no bf16 convolution on CPUs."""

BACKENDS = {
    backend.name: backend
    for backend in (
        Backend("torch", "torch", None, ("cpu", "cuda"), {"cpu": _HALVES, "cuda": _HALVES}, _torch),
        Backend("torch.compile", "torch.compile", None, ("cpu", "cuda"), {"cpu": _HALVES, "cuda": _HALVES}, _compile),
        Backend(
            "onnxruntime",
            "onnxruntime",
            "onnx",
            ("cpu", "cuda"),
            {"cpu": _CPU_ONNX, "cuda": _ALL},
            _provider("CUDAExecutionProvider"),
        ),
        Backend(
            "onnxruntime-tensorrt",
            "onnxruntime-tensorrt",
            "onnx",
            ("cuda",),
            {"cuda": _ALL},
            _provider("TensorrtExecutionProvider"),
        ),
        Backend("openvino", "openvino", "openvino", ("cpu",), {"cpu": _ALL}, _openvino),
        Backend("tensorrt", "engine", "tensorrt", ("cuda",), {"cuda": _ALL}, _engines("tensorrt")),
        Backend("tensorrt-rtx", "engine", "tensorrt-rtx", ("cuda",), {"cuda": _ALL}, _engines("tensorrt-rtx")),
    )
}


def choose(names: Sequence[str], device: str, precisions: Sequence[str]) -> list[Backend]:
    """The backends of those names, each able to run here.

    Raises:
        SourceError: there is no such backend, or it has not the precision or the device.
        BackendError: one is missing, or there is no GPU; the message says what would mend it.
    """
    found = []
    for name in names:
        if name not in BACKENDS:
            near = get_close_matches(name.lower(), BACKENDS, 1, cutoff=0.4)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise SourceError(f"no backend {name!r}{hint}; the backends are {', '.join(BACKENDS)}")
        backend = BACKENDS[name]
        if device == "cuda" and backend.devices == ("cpu",):
            raise SourceError(f"{name} runs on the CPU only; leave it out, or leave out --device cuda")
        where = backend.device(device)
        known = backend.precisions[where]
        odd = next((p for p in precisions if p not in known), None)
        if odd is not None:
            raise SourceError(f"{name} on {where} has no {odd}; it has {', '.join(known)}")
        found.append(backend)
    for backend in found:
        problem = backend.problem(backend.device(device))
        if problem is not None:
            raise BackendError(f"{backend.name} cannot run here: {problem}")
    return found


def default_backends(device: str) -> tuple[str, ...]:
    """Those measured where none is named: that run on the device, of what is usually installed."""
    usual = [BACKENDS[name] for name in ("torch", "onnxruntime", "openvino")]
    found = tuple(b.name for b in usual if device in b.devices and b.problem(device) is None)
    return found or ("torch",)
