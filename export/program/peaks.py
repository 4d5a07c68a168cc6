"""How large the tensors of a program get."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from ..onnx.overflow import Peak


def program_peaks(program: ExportedProgram, batches: Sequence[Tensor]) -> list[Peak]:
    """Of every float weight, and of every float tensor computed on `batches`, in the order of computation."""
    found = [
        Peak(name, "", _largest(tensor))
        for name, tensor in program.state_dict.items()
        if tensor.is_floating_point() and tensor.numel() and tensor.dim()
    ]
    reached = _Reached(program.module())
    with torch.no_grad():
        for batch in batches:
            reached.run(batch)
    return found + [Peak(name, kind, peak) for name, (kind, peak) in reached.largest.items()]


class _Reached(fx.Interpreter):
    """Runs a program and keeps the largest magnitude of every tensor."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.largest: dict[str, tuple[str, float]] = {}

    def run_node(self, n: fx.Node) -> Any:  # noqa: ANN401  # fx's signature
        """Run one node, and look at what it gives."""
        result = super().run_node(n)
        if n.op == "call_function" and isinstance(result, Tensor) and result.is_floating_point() and result.numel():
            before = self.largest.get(n.name, ("", 0.0))[1]
            self.largest[n.name] = (str(n.target).removeprefix("aten."), max(before, _largest(result)))
        return result


def _largest(tensor: Tensor) -> float:
    return float(tensor.detach().abs().max())
