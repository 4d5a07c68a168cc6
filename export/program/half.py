"""A program in half precision."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from repconv.proof.leaves import cast

from ..settings import Span
from .exporter import sized


class _FloatOutside(nn.Module):
    """A network of another type that takes and gives float32."""

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.network, self.dtype = network, dtype
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
        fp32_io: inputs and outputs stay float32.
    """
    module = program.module().to(dtype)
    return sized(_FloatOutside(module, dtype), sizes) if fp32_io else sized(module, sizes, dtype)
