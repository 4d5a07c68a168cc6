"""What a benchmark can run a network with: one row a backend, and why one cannot be used here."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from repconv.errors import BackendError, SourceError
from repconv.export.artefacts.runtime import runtime_of
from repconv.export.doctor import PYTORCH_GPU
from repconv.export.targets import TARGETS, Target, Timed


@dataclass(frozen=True, kw_only=True)
class Backend:
    """One backend.

    target: what `repconv export` builds for it; None: it runs PyTorch modules.
    devices: it can run on. precisions: by device.
    problem: why it cannot be used on a device here, with the line that mends it; None if it can.
    usual: measured where no backend is named. takes_bf16: see `Timed`.
    """

    name: str
    target: str | None
    devices: tuple[str, ...]
    precisions: Mapping[str, tuple[str, ...]]
    problem: Callable[[str], str | None]
    usual: bool = False
    takes_bf16: bool = True

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


_HALVES = dict.fromkeys(("cpu", "cuda"), ("fp32", "fp16", "bf16"))
TORCH, COMPILED = "torch", "torch.compile"


def _timed(target: Target, timed: Timed) -> Backend:
    def problem(device: str) -> str | None:
        return runtime_of(target).problem(target, timed.name, device)

    return Backend(
        name=timed.name,
        target=target.name,
        devices=tuple(timed.precisions),
        precisions=timed.precisions,
        problem=problem,
        usual=timed.usual,
        takes_bf16=timed.takes_bf16,
    )


BACKENDS = {
    backend.name: backend
    for backend in (
        Backend(name=TORCH, target=None, devices=tuple(_HALVES), precisions=_HALVES, problem=_torch, usual=True),
        Backend(name=COMPILED, target=None, devices=tuple(_HALVES), precisions=_HALVES, problem=_compile),
        *(_timed(target, timed) for target in TARGETS.values() for timed in target.timed),
    )
}


def choose_backends(names: Sequence[str], device: str, precisions: Sequence[str]) -> list[Backend]:
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


def default_backends(device: str, sources: Sequence[str]) -> tuple[str, ...]:
    """Those measured where none is named: that run on the device, of what is usually installed.

    PyTorch is left out where it runs none of the sources.
    """
    able = [b for b in BACKENDS.values() if b.usual and device in b.devices and b.problem(device) is None]
    if all(Path(source).suffix == ".onnx" for source in sources):
        return tuple(b.name for b in able if b.target is not None) or (TARGETS["onnx"].timed[0].name,)
    return tuple(b.name for b in able) or (TORCH,)
