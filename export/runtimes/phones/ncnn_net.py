"""Networks of ncnn in their runtime, which answers with numbers, and ends the process where they are not looked at.

A network that did not load, and some damaged ones that did, end the process when they run. So every return code is
looked at, and what is run on an input of a new shape is tried in a process of its own first.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from repconv.errors import SourceError

from ...artefacts.attempt import attempt
from ...onnx.quiet import heard
from ...targets import TARGETS

HALVES = ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic")
OTHER_HALVES = ("use_bf16_packed", "use_bf16_storage")
"""Options of ncnn. The first are on by default: what is stored and computed is rounded wherever the processor can."""


@dataclass(frozen=True, kw_only=True)
class LoadedNet:
    """A network that loaded.

    native: ncnn's. taken: the name of its input. given: those of its outputs, in order. threads: that it has.
    """

    native: Any
    taken: str
    given: tuple[str, ...]
    threads: int

    def once(self, x: Any) -> list[Any]:  # noqa: ANN401  # an ncnn.Mat
        """Outputs as ncnn gives them, for an input of `mat`.

        Raises:
            SourceError: it does not take it.
        """
        with self.native.create_extractor() as extractor:
            code = extractor.input(self.taken, x)
            if code != 0:
                raise SourceError(f"it does not take its input (code {code})")
            found = [extractor.extract(name) for name in self.given]
        code = next((code for code, _ in found if code != 0), 0)
        if code != 0:
            raise SourceError(f"it cannot be run on such an input (code {code})")
        return [out for _, out in found]

    def run(self, x: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """Outputs [n, ...] for one input [n, c, ...], n images at once; errors as `once`."""
        said: list[str] = []
        try:
            with heard(said):
                return [np.array(out.numpy(batch_index=0)) for out in self.once(mat(x))]
        except SourceError as error:
            raise SourceError("; ".join([str(error), *said[:1]])) from None


def mat(x: NDArray[np.float32]) -> Any:  # noqa: ANN401  # an ncnn.Mat
    """Images [n, c, ...] as ncnn's own kind of array, with a copy of its own."""
    return TARGETS["ncnn"].imported().Mat(np.ascontiguousarray(x, np.float32), batch_index=0).clone()


def require_sizes(sizes: Sequence[int | None], given: Sequence[int]) -> None:
    """Insist that an input is of the sizes [c, ...] that a file says; ncnn computes something of others, too.

    Raises:
        SourceError: it is not.
    """
    if len(sizes) != len(given) or any(size not in (None, side) for size, side in zip(sizes, given, strict=True)):
        wanted, got = ("x".join("?" if side is None else str(side) for side in sides) for sides in (sizes, given))
        raise SourceError(f"it takes images of {wanted}, got {got}")


def load_net(param: Path, *, half: bool, threads: int | None = None) -> LoadedNet:
    """A network of one input.

    Args:
        param: the `.param` file; its `.bin` lies beside it.
        half: with ncnn's own options, which round to half precision where the processor can; else with all of them off.
        threads: None: as many as ncnn takes.

    Raises:
        BackendError: ncnn is not installed.
        SourceError: it cannot be loaded, or takes another number of inputs.
    """
    native = TARGETS["ncnn"].imported().Net()
    for option in OTHER_HALVES if half else (*HALVES, *OTHER_HALVES):
        setattr(native.opt, option, False)
    if threads is not None:
        native.opt.num_threads = threads
    said: list[str] = []
    with heard(said):
        codes = native.load_param(str(param))
        codes = codes or native.load_model(str(param.with_suffix(".bin")))
    if codes != 0:
        raise SourceError("; ".join([f"ncnn cannot load it (code {codes})", *said[:2]]))
    taken, given = list(native.input_names()), list(native.output_names())
    if len(taken) != 1:
        raise SourceError(f"it takes {len(taken)} inputs; networks of one input are run")
    if all(re.fullmatch(r"out\d+", name) for name in given):
        given.sort(key=lambda name: int(name.removeprefix("out")))
    return LoadedNet(native=native, taken=taken[0], given=tuple(given), threads=int(native.opt.num_threads))


def require_running(param: Path, shape: Sequence[int], *, half: bool) -> None:
    """Insist that a network loads, and runs on an input of this shape, in a process of its own.

    Raises:
        SourceError: it does not, with what ncnn says.
    """
    code = _ATTEMPT.format(module=__name__, shape=tuple(shape), half=half)
    attempt(code, param, title="ncnn", what="it was tried in a process of its own")


_ATTEMPT = """
import sys
from pathlib import Path
import numpy
from {module} import load_net
from repconv.export.targets import TARGETS
TARGETS["ncnn"].imported()
limit_memory(int(sys.argv[2]))
load_net(Path(sys.argv[1]), half={half}, threads=1).run(numpy.zeros({shape}, numpy.float32))
"""
