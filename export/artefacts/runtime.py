"""What the file of a target gives: building, opening, timing, and what `doctor` says.

Nothing is imported before it is used, so that the process that times a runtime holds that runtime alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from repconv.errors import BackendError, first_line
from repconv.files.record import installed

from ..onnx.quiet import heard, quiet
from ..targets import TARGETS, Target
from .loaded import How, Job, Loaded

if TYPE_CHECKING:
    from torch import Tensor

    from ..settings import BuildSettings, Span
    from .artefact import Artefact
    from .built import Built, Lowered, Network, Provenance

N = TypeVar("N")
"""An ONNX model or a program of torch.export, as the row's `reads` says."""


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """One backend: whether it works, its version, what it runs or builds for, and else the line that mends it."""

    name: str
    works: bool
    version: str | None
    devices: tuple[str, ...]
    said: str
    remedy: str | None = None

    def to_dict(self) -> dict[str, object]:
        """Plain containers for JSON."""
        return asdict(self)


def tried(name: str, package: str, use: str, devices: Callable[[], tuple[str, ...]], install: str = "") -> Diagnosis:
    """A backend that may not be installed, or installed and broken: `devices` uses it."""
    known, install = installed(package), install or f"pip install {package}"
    if known is None:
        return Diagnosis(name=name, works=False, version=None, devices=(), said=f"not installed; {use}", remedy=install)
    try:
        found = devices()
    except Exception as error:  # noqa: BLE001  # a damaged installation raises anything
        said = f"installed, but fails: {next(iter(str(error).splitlines()), type(error).__name__)}"
        return Diagnosis(
            name=name, works=False, version=known, devices=(), said=said, remedy=f"{install} --force-reinstall"
        )
    return Diagnosis(name=name, works=True, version=known, devices=found, said=use)


def needed(target: Target, module: str, package: str) -> Any:  # noqa: ANN401  # optional, so without types
    """A module of a package that building for a target takes besides its runtime.

    Raises:
        BackendError: it is not installed, or cannot be imported whole.
    """
    try:
        with quiet(), heard([]):
            return import_module(module)
    except ImportError as error:
        raise BackendError(
            f"building for {target.title} takes {package} ({first_line(error)}); install it with: pip install {package}"
        ) from error


def uninstalled(target: Target, _backend: str, _device: str) -> str | None:
    """Why a target cannot be timed here, if all it takes is its package."""
    if installed(target.packages[0]):
        return None
    return f"{target.title} is not installed; install it with: {target.install}"


def _nothing(_target: Target, _made: Provenance, _built: Built) -> Mapping[str, bytes]:
    return {}


@dataclass(frozen=True, kw_only=True)
class Runtime(Generic[N]):
    """The functions of a target's file.

    build: the float32 network as the row's `reads` says, the settings, height and width, and batches for int8, to what
        can be made of it. Raises SourceError for settings the target has not, BackendError where a package is missing
        or cannot work here, BuildError for what the backend cannot build.
    open: a file, with the text that named it, as something that runs.
    look: the lines of `doctor`.
    load: an artefact, ready to be timed, by the backend of that name.
    problem: why that backend cannot be used on a device here, with the line that mends it; None if it can.
    beside: more files, by suffix, that say what an artefact is; they appear before it.
    """

    build: Callable[[Target, N, BuildSettings, tuple[Span, ...], Sequence[Tensor] | None], Lowered]
    open: Callable[[str, Path], Artefact]
    look: Callable[[Target], tuple[Diagnosis, ...]]
    load: Callable[[str, Job, How], Loaded]
    problem: Callable[[Target, str, str], str | None] = uninstalled
    beside: Callable[[Target, Provenance, Built], Mapping[str, bytes]] = _nothing


def runtime_of(target: Target) -> Runtime[Any]:
    """What its file gives."""
    found: Runtime[Any] = import_module(target.file, "repconv.export").RUNTIME
    return found


def build(
    network: Network,
    target: str,
    settings: BuildSettings,
    spans: tuple[Span, ...],
    calibration: Sequence[Tensor] | None,
) -> Lowered:
    """`network`, float32, for a target; see `Runtime.build`."""
    row = TARGETS[target]
    return runtime_of(row).build(row, network, settings, spans, calibration)
