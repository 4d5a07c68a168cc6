"""A program in half precision."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from repconv.proof.leaves import cast

from ..settings import Span
from .exporter import input_type, sized


class _FloatOutside(nn.Module):
    """A network of another type that gives float32, and takes it, or bytes."""

    def __init__(self, network: nn.Module, dtype: torch.dtype, given: torch.dtype) -> None:
        super().__init__()
        self.network, self.dtype = network, dtype if given.is_floating_point else given
        self.training = False

    def forward(self, x: Tensor) -> object:
        found: object = cast(self.network(x.to(self.dtype)), torch.float32)
        return found


def to_half(
    program: ExportedProgram, dtype: torch.dtype, sizes: Sequence[Span], *, fp32_io: bool = False
) -> ExportedProgram:
    """A float32 program with every float tensor in `dtype`; errors as `exporter.sized`.

    Args:
        program: of one input.
        dtype: float16 or bfloat16.
        sizes: of its input, [n, c, ...].
        fp32_io: inputs and outputs stay float32; an input of bytes stays as it is in any case.
    """
    module = program.module().to(dtype)
    for node in module.graph.nodes:  # casts and constants of the code itself
        node.args, node.kwargs = (
            fx.node.map_aggregate(given, lambda value: dtype if value is torch.float32 else value)
            for given in (node.args, node.kwargs)
        )
    module.recompile()
    given = input_type(program)
    if fp32_io:
        return sized(_FloatOutside(module, dtype, given), sizes, given)
    return sized(module, sizes, dtype if given.is_floating_point else given)
