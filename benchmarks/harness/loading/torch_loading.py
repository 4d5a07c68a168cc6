"""Networks and programs in PyTorch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from repconv.export.artefacts.cuda import cuda_graph, event_clock
from repconv.export.artefacts.loaded import How, Job, Loaded, as_arrays, nothing
from repconv.export.proof.tolerances import DTYPES
from repconv.files.foreign.programs import open_program
from repconv.proof.leaves import leaves, of_tensors
from repconv.sources.checkpoint import load


def load_torch(job: Job, how: How, *, compiled: bool) -> Loaded:
    """A checkpoint (`.pt`) or a program (`.pt2`), eager or through torch.compile."""
    is_program = job.file.suffix == ".pt2"
    network = of_tensors(open_program(job.file)) if is_program else load(job.file, own_code=job.own_code).model
    dtype = DTYPES[job.precision]
    network = network.to(device=how.device, dtype=dtype)
    given = torch.from_numpy(np.load(job.input)).to(dtype)
    run: Callable[[Tensor], object] = network
    if compiled:
        run = torch.compile(network, mode="reduce-overhead" if how.cuda_graphs else None)

    def forward(x: Tensor) -> object:
        with torch.inference_mode():
            return run(x)

    observed = {"threads": str(torch.get_num_threads()), "dtype": str(dtype).removeprefix("torch.")}
    if how.device == "cuda":
        return _on_gpu(forward, given, how, observed, record=how.cuda_graphs and not compiled)

    def call() -> object:
        return forward(given)

    call()  # torch.compile compiles here
    return Loaded(call=call, wait=nothing, outputs=lambda: as_arrays(tensors(call())), observed=observed)


def _on_gpu(
    forward: Callable[[Tensor], object], given: Tensor, how: How, observed: dict[str, str], *, record: bool
) -> Loaded:
    placed = given.cuda()

    def eager() -> object:
        return forward(placed)

    call: Callable[[], object] = eager
    if record:
        replay, kept = cuda_graph(eager)

        def replayed() -> object:
            replay()
            return kept

        call = replayed

    def with_transfers() -> object:
        placed.copy_(given)
        return [t.cpu() for t in tensors(call())]

    call()
    tf32 = torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32
    return Loaded(
        call=with_transfers if how.transfers else call,
        wait=torch.cuda.synchronize,
        outputs=lambda: as_arrays(tensors(call())),
        observed={**observed, "gpu": torch.cuda.get_device_name(), "tf32": str(tf32).lower()},
        clock=event_clock() if how.cuda_events else None,
    )


def without_tf32() -> None:
    """Ten bits of mantissa are not float32: have the GPU compute in what was asked for."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def tensors(value: object) -> list[Tensor]:
    """The tensors of an output, in order."""
    return [t for _, t in leaves(value)]
