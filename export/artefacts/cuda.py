"""CUDA graphs and the GPU's own clock."""

from __future__ import annotations

from collections.abc import Callable


def cuda_graph(run: Callable[[], object]) -> tuple[Callable[[], object], object]:
    """`run` recorded once: a function that replays it, and the tensors it writes each time."""
    import torch

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = run()
    return graph.replay, kept


def event_clock() -> Callable[[Callable[[], object]], float]:
    """Seconds of one call by the GPU's own clock, between two events on PyTorch's current stream."""
    import torch

    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def seconds(call: Callable[[], object]) -> float:
        start.record()
        call()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3

    return seconds
