"""What building an artefact gives, whichever runtime it is for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field

import onnx
from torch import Tensor
from torch.export import ExportedProgram

from ..int8.quantize import Quantized
from ..settings import BuildSettings

Run = Callable[[Tensor], Sequence[Tensor]]
MADE_OF = "the ONNX model it is made of"
"""What stands in for engines."""
Network = onnx.ModelProto | ExportedProgram
"""What runtimes are built from, see `Target.reads`."""


@dataclass(frozen=True)
class Built:
    """An artefact in memory.

    files: by what is put behind the output's name without its suffix, in the order they are to appear; the main one
        last. Of a folder `SUFFIX/name/in/it`.
    run: it in its runtime, None where it cannot run here, for the reason `not_run`.
    runtime: what runs it, with version and device.
    observed: settings read back from what was built.
    details: more for the record. timing_cache: TensorRT's, as it is after the build.
    stands_in: what it is, if it is no artefact but run before or in place of one.
    """

    files: Mapping[str, bytes]
    run: Run | None
    runtime: str
    _: KW_ONLY
    not_run: str | None = None
    observed: Mapping[str, str] = field(default_factory=dict)
    details: Mapping[str, object] = field(default_factory=dict)
    timing_cache: bytes | None = None
    stands_in: str = ""


@dataclass(frozen=True, kw_only=True)
class Lowered:
    """A network lowered for a target, and what can be made of it.

    model: the ONNX model the artefact is made of, None where it is made of a program.
    quantized: for int8 in ONNX, what quantising did.
    make: the artefact, not loaded. load: it, ready to run where it can.
    shown: what runs here first: the artefact, or where it cannot run here, or takes long to build, something of the
        same numbers in its place.
    """

    model: onnx.ModelProto | None
    quantized: Quantized | None
    make: Callable[[], Built]
    load: Callable[[], Built]
    shown: Callable[[], Built]

    @classmethod
    def of(cls, model: onnx.ModelProto | None, built: Built) -> Lowered:
        """Of an artefact that was built and loaded at once."""
        return cls(model=model, quantized=None, make=lambda: built, load=lambda: built, shown=lambda: built)


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What an artefact is called and was made of, for what lies beside it.

    file: name of the main file. source, source_sha256: see `Subject`. onnx_sha256: of the ONNX form between, if any.
    """

    file: str
    source: str
    source_sha256: str | None
    onnx_sha256: str | None
    settings: BuildSettings
