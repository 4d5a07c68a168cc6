"""Preprocessing in front of a program, by the numbers and the rules of `onnx/preprocess.py`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from repconv.errors import SourceError

from ..onnx.preprocess import Array, moved_bias, scale_and_shift, scaled_weight
from ..settings import Preprocessing, Span
from .exporter import sized, with_tensors

_CONVOLUTION = "aten.conv2d.default"


class _Before(nn.Module):
    """What is left to do before the network: `(x - shift) * scale`, then another order of channels."""

    shift: Tensor
    scale: Tensor
    order: Tensor

    def __init__(
        self, network: nn.Module, *, shift: Array | None, scale: Array | None, order: Sequence[int] | None
    ) -> None:
        super().__init__()
        self.network, self.training = network, False
        self.steps = (shift is not None, scale is not None, order is not None)
        for name, numbers in (("shift", shift), ("scale", scale)):
            kept = (
                torch.zeros(0) if numbers is None else torch.from_numpy(numbers.astype(np.float32)).reshape(1, -1, 1, 1)
            )
            self.register_buffer(name, kept)
        self.register_buffer("order", torch.tensor([] if order is None else list(order), dtype=torch.int64))

    def forward(self, x: Tensor) -> object:
        shifted, scaled, ordered = self.steps
        x = x.to(self.shift.dtype)
        x = x - self.shift if shifted else x
        x = x * self.scale if scaled else x
        x = x.index_select(1, self.order) if ordered else x
        found: object = self.network(x)
        return found


def preprocess_program(
    program: ExportedProgram, asked: Preprocessing, sizes: Sequence[Span]
) -> tuple[ExportedProgram, tuple[str, ...]]:
    """`program`, float32, of one image input of these sizes, with preprocessing in front; what went into its weights.

    Raises:
        SourceError: it takes another number of channels, or no images of height and width.
        BuildError: as `sized`.
    """
    if len(sizes) != 4 or sizes[1].usual != len(asked.mean):
        took = "x".join(map(str, sizes[1:]))
        raise SourceError(f"mean and std are of {len(asked.mean)} channels, the network takes {took}")
    scale, shift, order = scale_and_shift(asked)
    readers = _readers(program)
    tensors: dict[str, Tensor] = {}
    folded: tuple[str, ...] = ()
    if readers is None:
        left = partial(_Before, shift=shift, scale=scale, order=range(len(scale))[order] if asked.bgr else None)
    else:
        unpadded = all(_unpadded(node) and bias is not None for node, _, bias in readers)
        folded = ("scale", *(["order"] if asked.bgr else []), *(["shift"] if unpadded else []))
        left = partial(_Before, shift=None if unpadded else shift, scale=None, order=None)
        for _, weight, bias in readers:
            numbers = scaled_weight(_exact(program, weight), scale, order)
            tensors[weight] = torch.from_numpy(numbers.astype(np.float32))
            if unpadded and bias is not None:
                moved = _exact(program, bias) + moved_bias(numbers, shift)
                tensors[bias] = torch.from_numpy(moved.astype(np.float32))
    kind = torch.uint8 if asked.uint8 else torch.float32
    return sized(left(with_tensors(program, tensors)), sizes, kind), folded


def _readers(program: ExportedProgram) -> list[tuple[fx.Node, str, str | None]] | None:
    """Convolutions, where nothing else reads the image, and the names of weights and biases that are theirs alone."""
    signature = program.graph_signature
    (image,) = signature.user_inputs
    parameters = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    (source,) = (node for node in program.graph.nodes if node.name == image)
    found: list[tuple[fx.Node, str, str | None]] = []
    for node in source.users:
        operands = [operand for operand in node.args[1:3] if isinstance(operand, fx.Node)]
        names = [parameters.get(operand.name) for operand in operands]
        groups = node.args[6] if len(node.args) > 6 else 1
        own = all(name in program.state_dict and len(o.users) == 1 for name, o in zip(names, operands, strict=True))
        plain = str(node.target) == _CONVOLUTION and groups == 1 and not node.kwargs and node.args[0] is source
        if not (plain and own and names):
            return None
        found.append((node, str(names[0]), str(names[1]) if len(names) > 1 else None))
    return found or None


def _unpadded(node: fx.Node) -> bool:
    padding = node.args[4] if len(node.args) > 4 else 0
    return not any(padding) if isinstance(padding, (list, tuple)) else padding in (0, "valid")


def _exact(program: ExportedProgram, name: str) -> Array:
    found: Array = program.state_dict[name].detach().double().numpy()
    return found
