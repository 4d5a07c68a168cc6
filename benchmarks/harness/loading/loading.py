"""Which function loads a form for which backend; each runtime is imported where it is used."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from repconv.errors import BackendError
from repconv.export.artefacts.loaded import How, Job, Loaded
from repconv.export.artefacts.runtime import runtime_of
from repconv.export.targets import timed_as

from ..backends import COMPILED, TORCH


def loader_of(backend: str) -> Callable[[Job, How], Loaded]:
    """What loads a form for the backend of that name; its runtime is imported, and nothing run.

    Raises:
        BackendError, or whatever a damaged installation raises.
    """
    if backend in (TORCH, COMPILED):
        from .torch_loading import load_torch, without_tf32

        without_tf32()
        return partial(load_torch, compiled=backend == COMPILED)
    target = timed_as(backend)
    if target is None:
        raise BackendError(f"no runtime is known as {backend}")
    target.imported()
    return partial(runtime_of(target).load, backend)
