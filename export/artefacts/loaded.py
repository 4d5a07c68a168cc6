"""A built form in its runtime, ready to be called, and what that takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Job:
    """One form for one backend.

    file: what was built. input: `.npy`, float32 [n, c, h, w].
    precision: as asked for. own_code: see `repconv.load`. target: of an engine.
    """

    file: Path
    input: Path
    precision: str
    own_code: str | None = None
    target: str | None = None


@dataclass(frozen=True, kw_only=True)
class How:
    """How a backend runs: device, threads of its pool (None: its own choice), and `BenchSettings`' switches."""

    device: str = "cpu"
    threads: int | None = None
    transfers: bool = False
    cuda_graphs: bool = False
    cuda_events: bool = False


@dataclass(frozen=True)
class Loaded:
    """A form that runs.

    call: once, on the input it was loaded with; it may return before a GPU is done.
    wait: until the device is done. outputs: of a call, on the host.
    observed: read back from the runtime.
    clock: seconds of one call; None: by the host's clock, waiting before and after.
    """

    call: Callable[[], object]
    wait: Callable[[], None]
    outputs: Callable[[], list[Array]]
    _: KW_ONLY
    observed: Mapping[str, str] = field(default_factory=dict)
    clock: Callable[[Callable[[], object]], float] | None = None


def host_clock(wait: Callable[[], None]) -> Callable[[Callable[[], object]], float]:
    """Seconds of one call by the host's clock, including what it left to the device."""

    def seconds(call: Callable[[], object]) -> float:
        wait()
        start = time.perf_counter()
        call()
        wait()
        return time.perf_counter() - start

    return seconds


def as_arrays(found: Sequence[Tensor]) -> list[Array]:
    """On the host; bf16, which NumPy has not, as float32."""
    import torch

    return [(t.float() if t.dtype == torch.bfloat16 else t).detach().cpu().numpy() for t in found]


def nothing() -> None:
    """There is no device to wait for."""
