"""What is asked of a network before it is compared: its dtype, its flops, what it takes, and random inputs for it."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..errors import SourceError, first_line

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)

_KINDS = ("rows of numbers (c)", "sequences (c, length)", "images (c, h, w)", "clips (c, depth, h, w)")
"""What is taken, by the number of its pixel axes."""


def probes(input_shape: Sequence[int], *, dtype: torch.dtype = torch.float32, seed: int = 0) -> list[Tensor]:
    """Random inputs to compare networks on, for images of `input_shape` (c, h, w), or of any number of pixel axes.

    One image of that size, and two of odd sides at most 69 pixels long, since borders and strides go wrong there.
    """
    generator = torch.Generator().manual_seed(seed)
    channels, *sides = input_shape
    shapes = ((1, channels, *sides), (2, channels, *odd(sides)))
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def odd(sides: Sequence[int]) -> tuple[int, ...]:
    """Sides that are odd, differ where they were alike, and are not much longer than 64."""
    return tuple(min(side, 64) // 2 * 2 + 1 + 2 * index for index, side in enumerate(sides))


def pixel_axes(model: nn.Module) -> int | None:
    """Over how many axes its convolutions move, the most where that differs; None if it has none."""
    kinds = ((nn.Conv1d, nn.ConvTranspose1d), (nn.Conv2d, nn.ConvTranspose2d), (nn.Conv3d, nn.ConvTranspose3d))
    modules = {type(module) for module in model.modules()}
    found = [axes for axes, kind in enumerate(kinds, 1) if any(issubclass(module, kind) for module in modules)]
    return max(found, default=None)


def assumed_axes(count: int) -> int:
    """The pixel axes of what `count` sizes are given for, where no convolution tells: two are an image's, else all."""
    return 2 if count == 2 else max(count - 1, 0)


def example_shape(given: Sequence[int], axes: int | None, name: str = "the network") -> tuple[int, ...]:
    """(c, ...) of one input, of what was asked for: with a batch of 1 before it or not, of an image without channels.

    Args:
        given: numbers as a user gives them.
        axes: pixel axes of what is taken; None where nobody knows.
        name: of what takes it.

    Raises:
        SourceError: so many numbers are no shape of such an input.
    """
    shape = tuple(given)
    axes = assumed_axes(len(shape)) if axes is None else axes
    if len(shape) == axes + 2 and shape[0] == 1:
        shape = shape[1:]
    if axes == 2 and len(shape) == 2:
        shape = (3, *shape)
    if len(shape) != axes + 1:
        kind = _KINDS[axes] if axes < len(_KINDS) else f"{axes + 1} sizes"
        raise SourceError(f"{name} takes {kind}, and the shape given is {','.join(map(str, given))}")
    return shape


def count_flops(model: nn.Module, input_shape: Sequence[int]) -> int:
    """Floating-point operations, two a multiply-add, of convolutions and linear layers on one image (c, h, w)."""
    from torch.utils.flop_counter import FlopCounterMode  # it loads triton, 75 MB

    known: dict[int, object] = {
        id(t): t.detach().to("meta")  # no weight is copied
        for t in (*model.parameters(), *model.buffers())
    }
    # Of shapes alone, normalisation takes most of the time and counts nothing.
    known |= {id(module): nn.Identity() for module in model.modules() if type(module) in _NORMS}
    try:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            copy.deepcopy(model, known)(torch.empty(1, *input_shape, device="meta"))
    except (NotImplementedError, RuntimeError, AttributeError, TypeError):
        # Some networks look at numbers, of buffers they keep on another device, say, or of norms; then it is run.
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            copy.deepcopy(model).cpu()(torch.zeros(1, *input_shape, dtype=dtype_of(model)))  # norms learn from it
    return int(counter.get_total_flops())


def require_called(model: nn.Module, inputs: Sequence[object]) -> None:
    """Insist that a network that could not be exported at least runs on these inputs.

    Raises:
        SourceError: it does not; it says how networks of other inputs are given.
    """
    try:
        with torch.no_grad(), warnings.catch_warnings(action="ignore"):
            model(*inputs)
    except Exception as error:  # it is the user's own code
        called = ", ".join(map(_said, inputs))
        raise SourceError(
            f"{type(model).__name__} itself fails when it is called with {called}: {type(error).__name__}: "
            f"{first_line(error)}. If it takes another size, give --input-shape; if its inputs are of another kind "
            f"(several, integers, a dictionary), pass them to repconv.fuse(model, inputs) in Python, or give its "
            f"program: torch.export.save(torch.export.export(model.eval(), inputs), 'model.pt2')"
        ) from error


def _said(value: object) -> str:
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    return f"a tensor of {'x'.join(map(str, value.shape))}, {str(value.dtype).removeprefix('torch.')}"


def dtype_of(model: nn.Module) -> torch.dtype:
    """The dtype of the model's floating-point parameters, of the first where they differ."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
