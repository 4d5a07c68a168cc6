"""Networks of MNN in their runtime, and its converter, which is asked as a module and never by its command.

The command `mnnconvert` installs a package with whatever pip is on PATH, and sends what it converted to its makers. The
module `_tools` behind it does neither. It says that it succeeded whatever comes of it, so its file is looked for.

What runs a network answers with numbers, and writes the words to standard output.
"""

from __future__ import annotations

import re
import struct
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from repconv.errors import BackendError, SourceError

from ...artefacts.attempt import attempt
from ...onnx.quiet import heard
from ...targets import TARGETS
from .said import converted

_CONVERTS = "import sys, _tools; _tools.mnnconvert(['mnnconvert', *sys.argv[1:]])"
_STATUS, _THREADS = 3, 4
"""Of `getSessionInfo`: whether it is ready to run, 0 if so, and how many threads it has."""
PRECISION, SIZES = "repconv.precision", "repconv.sizes"
"""Metadata of a file, ours: what it was proved for."""
WORDS = {True: "low", False: "high"}
"""MNN's for its precision, an option of the session: with `high` it computes in float32."""


def mnnconvert(folder: Path, arguments: Sequence[str], wanted: Sequence[str]) -> str:
    """Run MNN's converter in a process of its own; returns what it said, errors as `said.converted`."""
    return converted([sys.executable, "-P", "-c", _CONVERTS, *arguments], folder, wanted, by="MNN's converter")


@dataclass(frozen=True, kw_only=True)
class MnnAbout:
    """What a file says of itself: names of outputs in order, sizes of its input, None if open, and the precision."""

    taken: str
    sizes: tuple[int | None, ...]
    given: tuple[str, ...]
    precision: str | None


def about(path: Path, folder: Path) -> MnnAbout:
    """What a file says of itself; `folder` is the process's own.

    Raises:
        SourceError: it is no network, or takes another number of inputs, or no float32.
    """
    said = mnnconvert(folder, ["-f", "MNN", "--modelFile", str(path.resolve()), "--info"], ())
    inputs = re.findall(r"^\[ (.+) \]: dimensionFormat: \w+, size: \[ ([-\d,]+) \], type is (\w+)", said, re.MULTILINE)
    outputs = re.search(r"^Model Outputs:\n((?:\[ .+ \]\n)+)", said, re.MULTILINE)
    precision = re.search(rf"^\[Meta\] {PRECISION} : (\w+)", said, re.MULTILINE)
    if len(inputs) != 1 or outputs is None:
        last = next((line for line in reversed(said.splitlines()) if line.strip() not in ("", "True")), "no words")
        raise SourceError(f"it has {len(inputs)} inputs; networks of one input are run ({last.strip()})")
    name, sizes, kind = inputs[0]
    if kind != "float":
        raise SourceError(f"it takes an input of {kind}; images are float32")
    return MnnAbout(
        taken=name,
        sizes=_proved(said) or tuple(None if int(size) < 0 else int(size) for size in sizes.split(",")),
        given=tuple(line[2:-2] for line in outputs[1].splitlines()),
        precision=precision[1] if precision else None,
    )


def _proved(said: str) -> tuple[int | None, ...] | None:
    """The sizes a file was proved for; by itself MNN calls a batch 1 that is open."""
    found = re.search(rf"^\[Meta\] {SIZES} : ([\dx]+) to ([\dx]+)$", said, re.MULTILINE)
    if found is None:
        return None
    ends = zip(*(map(int, end.split("x")) for end in found.groups()), strict=True)
    return tuple(least if least == most else None for least, most in ends)


@dataclass(frozen=True, kw_only=True)
class LoadedMnn:
    """A network that loaded: MNN's interpreter, its session, the names of its outputs, and the threads it has."""

    interpreter: Any
    session: Any
    given: tuple[str, ...]
    threads: int

    def prepared(self, x: NDArray[np.float32]) -> Any:  # noqa: ANN401  # a tensor of MNN's
        """Take an input [n, c, ...], of its sizes and numbers.

        Raises:
            SourceError: it is none for the network.
        """
        taken = self.interpreter.getSessionInput(self.session)
        self.interpreter.resizeTensor(taken, tuple(x.shape))
        self.interpreter.resizeSession(self.session)
        if _number(self.interpreter, self.session, _STATUS) != 0:
            raise SourceError(f"it cannot be run on an input of {'x'.join(map(str, x.shape))}")
        if taken.copyFrom(_tensor(x)) is not True:
            raise SourceError("it does not take its input")
        return taken

    def once(self) -> None:
        """Run it.

        Raises:
            SourceError: it fails.
        """
        code = self.interpreter.runSession(self.session)
        if code != 0:
            raise SourceError(f"it cannot be run (code {code})")

    def outputs(self) -> list[NDArray[np.float32]]:
        """What it gave."""
        found = []
        for name in self.given:
            inside = self.interpreter.getSessionOutput(self.session, name)
            outside = _tensor(np.zeros(inside.getShape(), np.float32))
            if inside.copyToHostTensor(outside) is not True:
                raise SourceError(f"it does not give {name}")
            found.append(np.array(outside.getNumpyData(), np.float32).reshape(inside.getShape()))
        return found

    def run(self, x: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """Outputs for one input.

        Raises:
            SourceError: it does not take it, with what MNN says.
        """
        said: list[str] = []
        try:
            with heard(said):
                self.prepared(x)
                self.once()
                return self.outputs()
        except SourceError as error:
            raise SourceError("; ".join([str(error), *said[-1:]])) from None


def imported() -> Any:  # noqa: ANN401  # optional, so without types
    """MNN, whose import says what the processor has.

    Raises:
        BackendError: it is not installed.
    """
    with heard([]):
        return TARGETS["mnn"].imported()


def load_mnn(path: Path, given: Sequence[str], *, half: bool, threads: int | None = None) -> LoadedMnn:
    """A network with outputs of these names.

    Args:
        path: the file.
        given: the outputs.
        half: compute in half precision where the processor can.
        threads: None: MNN's own choice.

    Raises:
        BackendError: MNN is not installed.
        SourceError: it cannot be loaded.
    """
    native = imported()
    asked: Mapping[str, object] = {"backend": "CPU", "precision": WORDS[half]}
    asked = asked if threads is None else {**asked, "numThread": threads}
    said: list[str] = []
    try:
        with heard(said):
            interpreter = native.Interpreter(str(path))
            session = interpreter.createSession(dict(asked))
    except BackendError:
        raise
    except Exception as error:  # of a damaged file it raises anything
        why = next((line for line in said if "precision" not in line and "supports" not in line), str(error))
        raise SourceError(f"MNN cannot load it: {why}") from error
    count = _number(interpreter, session, _THREADS)
    return LoadedMnn(interpreter=interpreter, session=session, given=tuple(given), threads=count)


def require_mnn_runs(path: Path, given: Sequence[str], shape: Sequence[int], *, half: bool) -> None:
    """Insist that a network loads, and runs on an input of this shape, in a process of its own.

    Raises:
        SourceError: it does not, with what MNN says.
    """
    code = _ATTEMPT.format(module=__name__, given=tuple(given), shape=tuple(shape), half=half)
    attempt(code, path, title="MNN", what="it was tried in a process of its own")


_ATTEMPT = """
import sys
from pathlib import Path
import numpy
from {module} import imported, load_mnn
imported()
limit_memory(int(sys.argv[2]))
load_mnn(Path(sys.argv[1]), {given}, half={half}, threads=1).run(numpy.zeros({shape}, numpy.float32))
"""


def _number(interpreter: Any, session: Any, what: int) -> int:  # noqa: ANN401  # MNN's
    """An integer of a session, which MNN for Python hands out as the float of the same bits."""
    return int(struct.unpack("<i", struct.pack("<f", interpreter.getSessionInfo(session, what)))[0])


def _tensor(x: NDArray[np.float32]) -> Any:  # noqa: ANN401  # MNN's
    native = imported()
    held = np.ascontiguousarray(x, np.float32)
    return native.Tensor(tuple(held.shape), native.Halide_Type_Float, held, native.Tensor_DimensionType_Caffe)
