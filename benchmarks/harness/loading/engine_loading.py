"""Engines of TensorRT and TensorRT-RTX."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from repconv.export.artefacts.cuda import cuda_graph, event_clock
from repconv.export.artefacts.loaded import Array, How, Job, Loaded
from repconv.export.proof.tolerances import DTYPES
from repconv.export.runtimes.engine_runtime import load_engine as read_engine

from .torch_loading import as_arrays


def load_engine(job: Job, how: How) -> Loaded:
    """An engine with its tensors on the GPU."""
    engine = read_engine(job.file.read_bytes(), str(job.target))
    given = torch.from_numpy(np.load(job.input)).to(DTYPES[job.precision])
    placed = given.cuda()
    bound = engine.bind(placed)
    run: Callable[[], object] = bound.enqueue
    if how.cuda_graphs:
        run, _ = cuda_graph(bound.enqueue)

    def with_transfers() -> object:
        placed.copy_(given)
        run()
        return [t.cpu() for t in bound.made]

    def outputs() -> list[Array]:
        run()
        torch.cuda.synchronize()
        return as_arrays(bound.made)

    observed = {"gpu": torch.cuda.get_device_name()}
    clock = event_clock() if how.cuda_events else None
    return Loaded(with_transfers if how.transfers else run, torch.cuda.synchronize, outputs, observed, clock)
