"""What ncnn and MNN have in common: made of ONNX models of float32 images, run in half precision by choice."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx
import torch
from torch import Tensor

from repconv.errors import BuildError, SourceError, first_line

from ..settings import Span
from ..targets import Target
from .built import Run


def float_images(target: Target, model: onnx.ModelProto, batch: Span, spans: Sequence[Span]) -> tuple[Span, ...]:
    """The sizes [n, c, ...] of a model's input, which is float32.

    Raises:
        SourceError: it is of bytes.
    """
    taken = model.graph.input[0].type.tensor_type
    if taken.elem_type != onnx.TensorProto.FLOAT:
        raise SourceError(
            f"{target.title} takes float32 images only; leave out --uint8, and give it pixels from 0 to 1"
        )
    return (batch, Span.of(int(taken.shape.dim[1].dim_value)), *spans)


def tried_first(run: Run, attempt: Callable[[tuple[int, ...]], None]) -> Run:
    """`run`, of inputs of every new shape only after `attempt` came to its end on one."""
    tried: set[tuple[int, ...]] = set()

    def running(x: Tensor) -> Sequence[Tensor]:
        shape = tuple(x.shape)
        if shape not in tried:
            attempt(shape)
            tried.add(shape)
        return run(x)

    return running


def computed_in(target: Target, runner: Callable[[bool], Run], sizes: Sequence[Span]) -> str:
    """Whether half precision changes a bit of what this processor computes.

    Args:
        target: whose runtime it is.
        runner: the file as a function, with half precision or without.
        sizes: of its input.

    Raises:
        BuildError: it cannot be run.
    """
    shape = [size.usual for size in sizes]
    x = torch.from_numpy(np.random.default_rng(0).standard_normal(shape, np.float32))
    try:
        half, single = (runner(asked)(x) for asked in (True, False))
    except SourceError as error:
        raise BuildError(f"{target.title} cannot run what its converter made: {first_line(error)}") from error
    same = all(torch.equal(a, b) for a, b in zip(half, single, strict=True))
    return f"float32 on this processor, float16 where {target.title} has kernels for it" if same else "float16"
