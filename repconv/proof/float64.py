"""Whatever a network's code makes, in float64: the reference that everything is held to.

A network in float64 is more than `.double()`: `forward` makes tensors (`torch.zeros`, `torch.arange`), casts them
(`.float()`, `.half()`, autocast) and keeps plain ones as attributes. Inside `InFloat64` each of these is float64.

PyTorch's grouped convolutions in float64 run group by group. On two cores a depthwise 3x3 of 480 channels on 14x14
pixels took seconds, against milliseconds as one matrix product a group, all groups at once.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from .dispatch import EveryCall, each, parts
from .leaves import cast

_WIDE = {
    torch.float32: torch.float64, torch.float16: torch.float64, torch.bfloat16: torch.float64,
    torch.complex64: torch.complex128, torch.complex32: torch.complex128,
}  # fmt: skip


class FastGroupedDouble(EveryCall):
    """Inside, 2-D convolutions of float64 tensors in groups are matrix products of unfolded images."""

    def call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401  # of torch
        """Run `func`, or what stands for it."""
        return _run(func, args, kwargs)


class InFloat64(EveryCall):
    """Inside, every floating-point number is computed in float64, and every complex one of two such.

    Tensors of less precision that an operation reads are promoted, types that it is asked to make are widened. Only
    where an operation writes into a tensor of less precision, which somebody else holds, that keeps its type. What
    PyTorch has for no float64 runs in float32.

    rounded: names of operations that ran in float32.
    asked: the types of less precision that the code asked for.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rounded: set[str] = set()
        self.asked: set[torch.dtype] = set()

    def call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401  # of torch
        """Run `func` in float64."""
        kept = next((t.dtype for t in _written(func, args, kwargs) if t.dtype in _WIDE), None)
        if kept is not None:
            return _run(func, *each(lambda part: _as(part, kept), (args, kwargs)))
        given, named = each(self._widened, (args, kwargs))
        try:
            made = _run(func, given, named)
        except (RuntimeError, NotImplementedError):
            if not any(isinstance(t, Tensor) and t.is_floating_point() for t in parts((args, kwargs))):
                raise
            made = _run(func, *each(lambda part: _as(part, torch.float32), (args, kwargs)))
            self.rounded.add(str(func))
        return each(_promoted, made)

    def _widened(self, value: Any) -> Any:  # noqa: ANN401  # an argument
        if isinstance(value, torch.dtype) and value in _WIDE:
            self.asked.add(value)
            return _WIDE[value]
        return _promoted(value)


class _Promoted(TorchFunctionMode):
    """Inside, functions of tensors get them promoted: convolutions compare types before they come to any operation."""

    def __torch_function__(
        self,
        func: Any,  # noqa: ANN401  # whatever is called
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """Call `func`; what writes into its arguments, or reads their attributes, gets them as they are."""
        del types
        given = (args, kwargs or {})
        if not getattr(func, "__name__", "_").endswith("_") and "out" not in given[1]:
            given = each(_promoted, given)
        return func(*given[0], **given[1])


def _promoted(value: Any) -> Any:  # noqa: ANN401  # an argument
    return value.to(_WIDE[value.dtype]) if isinstance(value, Tensor) and value.dtype in _WIDE else value


class Reference:
    """A callable with all that it does done in float64.

    asked, rounded: as in `InFloat64`, of all calls so far.
    """

    def __init__(self, exact: Callable[..., Any]) -> None:
        self._exact = exact
        self.asked: set[torch.dtype] = set()
        self.rounded: set[str] = set()

    def __call__(self, *inputs: Any, **named: Any) -> Any:  # noqa: ANN401  # a user's callable
        """What it gives; tensors of floating point are widened."""
        with torch.no_grad(), everything_in_float64() as mode:
            found = self._exact(*cast(inputs, torch.float64), **cast(named, torch.float64))
        self.asked |= mode.asked
        self.rounded |= mode.rounded
        return found


def float64_reference(function: Callable[..., Any]) -> Reference:
    """`function`, a module or any other callable, with all that it does done in float64; itself it stays as it is.

    What it raises passes.
    """
    if isinstance(function, Reference):
        return function
    return Reference(copy.deepcopy(function).double() if isinstance(function, nn.Module) else function)


@contextmanager
def everything_in_float64() -> Iterator[InFloat64]:
    """`InFloat64`, with float64 as the type that factories make where none is named."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _Promoted(), InFloat64() as mode:
            yield mode
    finally:
        torch.set_default_dtype(before)


@contextmanager
def full_precision() -> Iterator[None]:
    """Inside, float32 is computed in float32: no TF32 on GPUs and no bf16 on processors, whatever the user allowed."""
    backends: Any = torch.backends  # whose types do not know of parts
    parts: tuple[Any, ...] = (
        *(backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn),
        *(backends.mkldnn.matmul, backends.mkldnn.conv, backends.mkldnn.rnn),
    )
    before = [part.fp32_precision for part in parts]
    try:
        for part in parts:
            part.fp32_precision = "ieee"
        yield
    finally:
        for part, precision in zip(parts, before, strict=True):
            part.fp32_precision = precision


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Tensor]:  # noqa: ANN401
    """The tensors that `func` writes into."""
    if not func._schema.is_mutable:  # noqa: SLF001  # which torch offers under no other name
        return
    for index, argument in enumerate(func._schema.arguments):  # noqa: SLF001  # as above
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[index] if index < len(args) else kwargs.get(argument.name)
            yield from (t for t in parts(value) if isinstance(t, Tensor))


def _as(value: Any, dtype: torch.dtype) -> Any:  # noqa: ANN401  # an argument
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def _run(func: Any, args: Any, kwargs: Any) -> Any:  # noqa: ANN401
    """`func`, or what is faster."""
    if func is torch.ops.aten.convolution.default and not kwargs:
        x, weight, bias, stride, padding, dilation, transposed, _, groups = args
        if not transposed and is_grouped_double(x, groups):
            return grouped_double(x, weight, bias, stride, padding, dilation, groups)
    return func(*args, **kwargs)


def is_grouped_double(x: Tensor, groups: int) -> bool:
    """Whether a convolution of `x` is one that `grouped_double` is faster at."""
    return groups > 1 and x.dim() == 4 and x.dtype == torch.float64 and x.device.type == "cpu"


def grouped_double(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """The convolution of x [n, i, h, w] with weight [o, i/g, kh, kw] and bias [o].

    One of a channel each is the sum of its taps times the image they see, which holds one image more and not one for
    each tap; any other is one product of unfolded images.
    """
    o, i, kh, kw = weight.shape
    n = x.shape[0]
    height, width = (
        (side + 2 * p - d * (k - 1) - 1) // s + 1
        for side, p, d, k, s in zip(x.shape[2:], padding, dilation, (kh, kw), stride, strict=True)
    )
    if i == 1 and o == groups and max(stride) == 1:
        (down, right), wide = dilation, functional.pad(x, (padding[1], padding[1], padding[0], padding[0]))
        y = x.new_zeros(n, o, height, width)
        for row, column in itertools.product(range(kh), range(kw)):
            seen = wide[:, :, row * down : row * down + height, column * right : column * right + width]
            y.addcmul_(seen, weight[:, 0, row, column, None, None])
        return y if bias is None else y.add_(bias[:, None, None])
    # [n, g, i/g * kh * kw, pixels], in the order of the weight's own axes.
    columns = functional.unfold(x, (kh, kw), tuple(dilation), tuple(padding), tuple(stride)).reshape(
        n, groups, i * kh * kw, -1
    )
    y = torch.matmul(weight.reshape(groups, o // groups, -1), columns).reshape(n, o, height, width)
    return y if bias is None else y + bias[:, None, None]
