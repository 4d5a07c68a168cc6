"""Loading and running programs of ExecuTorch, which fails without a word where it is not held to its own rules.

A method whose program is gone reads memory that is no longer its own. A tensor in channels-last order is read as if it
were contiguous. Errors are numbers, and what they mean is written to standard error from C++. Some damaged files end
the process, so what a user names is tried in another one first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor

from repconv.errors import BackendError, BuildError, SourceError, first_line

from ...artefacts.attempt import attempt
from ...onnx.quiet import heard, quiet
from ...targets import TARGETS

METHOD, LEAST, PRECISION = "forward", "repconv_least", "repconv_precision"
"""Methods of a program: the network; the least sizes it is meant for; what it computes in. The last two are ours."""
_KINDS = {0: "uint8", 1: "int8", 3: "int32", 4: "int64", 5: "float16", 6: "float32", 7: "float64", 15: "bfloat16"}
"""Types by the numbers that stand in files, which are those of PyTorch."""

_ATTEMPT = """
import sys
from pathlib import Path
import torch
from executorch.runtime import Runtime
runtime = Runtime.get()
limit_memory(int(sys.argv[2]))
program = runtime.load_program(Path(sys.argv[1]).read_bytes())
method = program.load_method("forward")
taken = method.metadata.input_tensor_meta(0)
kind = {0: torch.uint8, 5: torch.half}.get(taken.dtype(), torch.float)
method.execute((torch.zeros(tuple(taken.sizes()), dtype=kind),))
"""


@dataclass(frozen=True, kw_only=True)
class LoadedProgram:
    """A program that runs.

    program: owns the memory `method` computes in, so it is kept as long.
    kind: type of its one input, as PyTorch calls it.
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
            with heard(said):
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
        with heard(said):
            program = runtime.get().load_program(content)
            names = program.method_names
            method = program.load_method(METHOD) if METHOD in names else None
            least, precision = (
                program.load_method(name).execute(())[0] if name in names else None for name in (LEAST, PRECISION)
            )
    except Exception as error:  # of a damaged file it raises anything
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
        kind=_KINDS.get(taken.dtype(), f"type {taken.dtype()}"),
        least=tuple(least.tolist()) if isinstance(least, Tensor) and least.numel() == len(most) else most,
        most=most,
        precision=precision if isinstance(precision, str) else None,
    )


def open_program(path: Path, what: str) -> LoadedProgram:
    """A file that anybody may have written or damaged; a process of its own tries it first.

    Raises:
        BackendError: ExecuTorch is not installed.
        SourceError: it cannot be loaded.
    """
    imported()
    attempt(_ATTEMPT, path, title=TARGETS["executorch"].title, what=what)
    return load_program(path.read_bytes(), SourceError, what)


def set_threads(count: int) -> int:
    """Give the pool of all programs of this process so many threads; returns how many it has then.

    Programs keep the pool they were loaded with, and end the process where it is gone: this comes before the first.
    """
    imported()
    native = import_module("executorch.extension.pybindings.portable_lib")
    if native._threadpool_get_thread_count() != count:  # noqa: SLF001  # there is no public way
        said: list[str] = []
        with heard(said):
            native._unsafe_reset_threadpool(count)  # noqa: SLF001  # as above
    return int(native._threadpool_get_thread_count())  # noqa: SLF001  # as above


def working_backends(needed: str) -> tuple[str, ...]:
    """Backends this build of ExecuTorch runs.

    Raises:
        BackendError: it is not installed, or lacks the one that is needed.
    """
    said: list[str] = []
    runtime = imported().Runtime
    with heard(said):
        found = tuple(runtime.get().backend_registry.registered_backend_names)
    if needed not in found:
        raise BackendError(f"it was built without {needed}")
    return found


def _why(error: Exception, said: Sequence[str]) -> str:
    """What ExecuTorch wrote on the way says more than its error, which is a number."""
    words = [line.partition("] ")[2] or line for line in said if "cpuinfo" not in line]
    return "; ".join([*words[:1], first_line(error)])
