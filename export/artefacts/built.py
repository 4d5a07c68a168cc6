"""What building an artefact gives, whichever runtime it is for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

Run = Callable[[Tensor], Sequence[Tensor]]


@dataclass(frozen=True)
class Built:
    """An artefact in memory.

    files: by what is put behind the output's name without its suffix, in the order they are to appear; the main one
        last.
    run: it in its runtime, None where it cannot run here, for the reason `not_run`.
    runtime: what runs it, with version and device.
    observed: settings read back from what was built.
    details: more for the record. timing_cache: TensorRT's, as it is after the build.
    """

    files: Mapping[str, bytes]
    run: Run | None
    runtime: str
    not_run: str | None = None
    observed: Mapping[str, str] = field(default_factory=dict)
    details: Mapping[str, object] = field(default_factory=dict)
    timing_cache: bytes | None = None
