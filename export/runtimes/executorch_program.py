"""Loading and running programs of ExecuTorch, which fails without a word where it is not held to its own rules.

A method whose program is gone reads memory that is no longer its own. A tensor in channels-last order is read as if it
were contiguous. Errors are numbers, and what they mean is written to standard error from C++.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from torch import Tensor

from repconv.errors import BackendError, BuildError, SourceError, first_line

from ..onnx.quiet import quiet
from ..targets import TARGETS

METHOD, LEAST, PRECISION = "forward", "repconv_least", "repconv_precision"
"""Methods of a program: the network; the least sizes it is meant for; what it computes in. The last two are ours."""


@dataclass(frozen=True, kw_only=True)
class LoadedProgram:
    """A program that runs.

    program: owns the memory `method` computes in, so it is kept as long.
    kind: type of its one input, as ExecuTorch calls it.
    least, most: sizes of that input; they differ where open. Of files of others only `most` is known.
    precision: it computes in, where the file says so.
    """

    program: Any
    method: Any
    kind: str
    least: tuple[int, ...]
    most: tuple[int, ...]
    precision: str | None

    def run(self, x: Tensor) -> list[Tensor]:
        """Outputs for one input.

        Raises:
            SourceError: it does not take it.
        """
        said: list[str] = []
        try:
            with _heard(said):
                return list(self.method.execute((x.contiguous(),)))
        except RuntimeError as error:
            raise SourceError(_why(error, said)) from error


def imported() -> Any:  # noqa: ANN401  # optional, so without types
    """ExecuTorch's runtime.

    Raises:
        BackendError: it is not installed.
    """
    with quiet():
        return TARGETS["executorch"].imported()


def load_program(content: bytes, failed: type[BuildError | SourceError], what: str) -> LoadedProgram:
    """A program that takes one tensor.

    Args:
        content: of the file.
        failed: raised where it cannot be loaded.
        what: is wrong then, in words.

    Raises:
        BackendError: ExecuTorch is not installed.
        BuildError, SourceError: as `failed` says.
    """
    runtime = imported().Runtime
    said: list[str] = []
    try:
        with _heard(said):
            program = runtime.get().load_program(content)
            names = program.method_names
            method = program.load_method(METHOD) if METHOD in names else None
            least, precision = (
                program.load_method(name).execute(())[0] if name in names else None for name in (LEAST, PRECISION)
            )
    except RuntimeError as error:
        raise failed(f"{what}: {_why(error, said)}") from error
    if method is None:
        raise failed(f"{what}: it has no method {METHOD!r}, but {', '.join(sorted(names)) or 'none'}")
    count = method.metadata.num_inputs()
    if count != 1:
        raise failed(f"{what}: it takes {count} inputs; programs of one input are run")
    try:
        taken = method.metadata.input_tensor_meta(0)
    except RuntimeError as error:
        raise failed(f"{what}: its input is no tensor ({first_line(error)})") from error
    most = tuple(taken.sizes())
    return LoadedProgram(
        program=program,
        method=method,
        kind=str(import_module("executorch.exir.scalar_type").ScalarType(taken.dtype()).name),
        least=tuple(least.tolist()) if isinstance(least, Tensor) and least.numel() == len(most) else most,
        most=most,
        precision=precision if isinstance(precision, str) else None,
    )


def set_threads(count: int) -> int:
    """Give the pool of all programs of this process so many threads; returns how many it has then."""
    native = import_module("executorch.extension.pybindings.portable_lib")
    native._unsafe_reset_threadpool(count)  # noqa: SLF001  # there is no public way
    return int(native._threadpool_get_thread_count())  # noqa: SLF001


def working_backends(needed: str) -> tuple[str, ...]:
    """Backends this build of ExecuTorch runs.

    Raises:
        BackendError: it is not installed, or lacks the one that is needed.
    """
    said: list[str] = []
    runtime = imported().Runtime
    with _heard(said):
        found = tuple(runtime.get().backend_registry.registered_backend_names)
    if needed not in found:
        raise BackendError(f"it was built without {needed}")
    return found


def _why(error: Exception, said: Sequence[str]) -> str:
    """What ExecuTorch wrote on the way says more than its error, which is a number."""
    words = [line.partition("] ")[2] or line for line in said]
    return "; ".join([*words[:1], first_line(error)])


@contextlib.contextmanager
def _heard(lines: list[str]) -> Iterator[None]:
    """What C++ code inside writes to standard error is not shown; its lines are added to `lines` at the end."""
    sys.stderr.flush()
    shown = os.dup(2)
    try:
        with tempfile.TemporaryFile() as kept:
            os.dup2(kept.fileno(), 2)
            try:
                yield
            finally:
                os.dup2(shown, 2)
                kept.seek(0)
                lines += [line for line in kept.read().decode(errors="replace").splitlines() if "cpuinfo" not in line]
    finally:
        os.close(shown)
