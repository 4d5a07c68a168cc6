"""An ONNX graph as affine steps: what each node means to the fuser, or why it is left alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx
import torch
from torch import Tensor

from ..errors import FusionError, GeometryError
from ..geometry import Pair, Sides
from ..kernels import batch_norm_affine
from ..refusal import Refusal
from .cost import Cost, convolution, elementwise
from .expression import Term
from .onnx_facts import Array, Facts, attributes, first_line
from .region import Offset, Step
from .sizes import Dims, nominal, through
from .terms import average_term, concatenation, convolution_term, grid_term, matrix_term, scale_term, select_term

_ROUNDING: dict[int, float] = {
    onnx.TensorProto.FLOAT: 2.0**-23, onnx.TensorProto.DOUBLE: 2.0**-52,
    onnx.TensorProto.FLOAT16: 2.0**-10, onnx.TensorProto.BFLOAT16: 2.0**-7,
}  # fmt: skip
"""The element types that are fused, and one rounding of each relative to a number."""


class _NotAffineError(Exception):
    """A node that is no affine step; the message says why if it might have been one, and is empty otherwise."""


@dataclass(frozen=True)
class _Part:
    """One output of a node before its cost is known."""

    output: str
    terms: tuple[Term, ...]
    offset: Offset | None = None
    moves: int = 1


def read_steps(facts: Facts) -> tuple[list[Step], list[Refusal]]:
    """The affine steps of a graph in the order they run, and the refusals of those that almost are.

    Raises:
        FusionError: a constant cannot be read.
    """
    steps: list[Step] = []
    refusals: list[Refusal] = []
    for node in facts.model.graph.node:
        facts.refine(node)
        reader = _READERS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        if reader is None or facts.is_constant(node.output[0]):
            continue
        where = node.name or node.output[0]
        try:
            steps += _finish(facts, node, where, reader(facts, node))
        except (_NotAffineError, GeometryError) as error:
            if str(error):
                refusals.append(Refusal(where, str(error)))
        except FusionError:
            raise
        except (ValueError, IndexError, KeyError, TypeError, RuntimeError) as error:
            refusals.append(Refusal(where, f"its attributes or inputs are not understood: {first_line(error)}"))
    return steps, refusals


def _finish(facts: Facts, node: onnx.NodeProto, where: str, parts: list[_Part]) -> list[Step]:
    """Check types and sizes of a node's parts and note the sizes of its outputs."""
    steps = []
    for part in parts:
        kind = facts.types.get(part.output, 0)
        if kind not in _ROUNDING or any(facts.types.get(term.source) != kind for term in part.terms):
            raise _NotAffineError("it computes in a type that is not float16, bfloat16, float32 or float64")
        if part.output not in facts.dims and all(term.source in facts.flat for term in part.terms):
            facts.flat.add(part.output)
        if any((term.source in facts.flat) != (part.output in facts.flat) for term in part.terms):
            raise _NotAffineError
        found = {through(term.form.geometry, _dims(facts, term.source)) for term in part.terms}
        if len(found) > 1:
            raise _NotAffineError("it adds tensors that may differ in size: " + " and ".join(map(_shown, found)))
        dims = next(iter(found))
        facts.set_dims(part.output, dims)
        size = nominal(dims)
        if node.op_type in ("Conv", "Gemm", "MatMul"):
            cost = convolution(part.terms[0].form, nominal(_dims(facts, part.terms[0].source)), size)
        else:
            cost = elementwise(part.moves, size) if part.moves else Cost()
        steps.append(Step(part.output, where, node.op_type, part.terms, cost, part.offset, _ROUNDING[kind]))
    return steps


def _shown(dims: Dims) -> str:
    return "x".join(str(d) if isinstance(d, int) else f"({d[0]}{d[2] + 1:+d})/{d[1]}" for d in dims)


def _dims(facts: Facts, name: str) -> Dims:
    dims = facts.dims.get(name)
    if dims is None or not isinstance(dims[1], int) or dims[1] < 1:
        raise _NotAffineError
    return dims


def _channels(facts: Facts, name: str) -> int:
    channels = _dims(facts, name)[1]
    if not isinstance(channels, int):
        raise _NotAffineError
    return channels


def _double(array: Array) -> Tensor:
    return torch.from_numpy(np.array(array, dtype=np.float64))


def _constant(facts: Facts, name: str, what: str) -> Array:
    """A constant a node needs.

    Raises:
        _NotAffineError: it is a graph input, or computed.
    """
    value = facts.constant(name)
    if value is None:
        if name in facts.inputs:
            raise _NotAffineError(f"its {what} {name!r} is an input of the graph, so it may change from run to run")
        raise _NotAffineError(f"its {what} {name!r} is computed by the graph, not a constant")
    return value


def _integers(facts: Facts, node: onnx.NodeProto, position: int) -> list[int] | None:
    """A constant integer input, None where it is left out."""
    if len(node.input) <= position or not node.input[position]:
        return None
    return [int(v) for v in _constant(facts, node.input[position], "argument").reshape(-1)]


def _ints(value: object, default: list[int]) -> list[int]:
    return [int(v) for v in value] if isinstance(value, (list, tuple)) else default


def _int(value: object, default: int) -> int:
    return value if isinstance(value, int) else default


def _window(facts: Facts, node: onnx.NodeProto, size: Pair) -> tuple[Pair, Sides]:
    """Stride and padding of a Conv or pool whose window, dilation included, is `size`."""
    known = attributes(node)
    rows, columns = _ints(known.get("strides"), [1, 1])
    auto = known.get("auto_pad", b"NOTSET")
    auto = auto.decode() if isinstance(auto, bytes) else str(auto)
    if auto in ("NOTSET", ""):
        top, left, bottom, right = _ints(known.get("pads"), [0, 0, 0, 0])
        return (rows, columns), (top, left, bottom, right)
    if auto == "VALID":
        return (rows, columns), (0, 0, 0, 0)
    sides = []
    for side, k, s in zip(_dims(facts, node.input[0])[2:], size, (rows, columns), strict=True):
        if s == 1:
            total = k - 1
        elif isinstance(side, int):
            total = max((-(-side // s) - 1) * s + k - side, 0)
        else:
            raise _NotAffineError(f"auto_pad={auto} with a stride pads by what depends on the open input size")
        sides.append((total // 2, total - total // 2) if auto == "SAME_UPPER" else (total - total // 2, total // 2))
    (top, bottom), (left, right) = sides
    return (rows, columns), (top, left, bottom, right)


def _conv(facts: Facts, node: onnx.NodeProto) -> list[_Part]:
    known = attributes(node)
    weight = _constant(facts, node.input[1], "weight")
    if weight.ndim != 4:
        raise _NotAffineError
    groups = _int(known.get("group"), 1)
    rows, columns = _ints(known.get("dilations"), [1, 1])
    o, i, kh, kw = weight.shape
    size = ((kh - 1) * rows + 1, (kw - 1) * columns + 1)
    stride, padding = _window(facts, node, size)
    if i * groups != _channels(facts, node.input[0]):
        raise _NotAffineError(f"it takes {i * groups} channels, its input has another number")
    term = convolution_term(
        node.input[0], partial(_double, weight), (o, i, kh, kw),
        stride=stride, padding=padding, dilation=(rows, columns), groups=groups,
    )  # fmt: skip
    offset = None
    if len(node.input) > 2 and node.input[2]:
        bias = _double(_constant(facts, node.input[2], "bias"))
        offset = partial(_plain, bias)
    return [_Part(node.output[0], (term,), offset)]


def _plain(value: Tensor) -> tuple[Tensor, Tensor]:
    return value, value.abs()


def _batch_norm(facts: Facts, node: onnx.NodeProto) -> list[_Part]:
    known = attributes(node)
    if _int(known.get("training_mode"), 0) or len([n for n in node.output if n]) > 1:
        raise _NotAffineError("it normalises by each batch (training mode), which is no fixed convolution")
    source = node.input[0]
    channels = _channels(facts, source)
    weight, bias, mean, variance = (
        _double(_constant(facts, name, what))
        for name, what in zip(node.input[1:5], ("scale", "shift", "mean", "variance"), strict=True)
    )
    eps = known.get("epsilon", 1e-5)
    scale, _ = batch_norm_affine(mean, variance, weight, bias, eps if isinstance(eps, float) else 1e-5)
    if any(len(vector) != channels for vector in (weight, bias, mean, variance)):
        raise _NotAffineError(f"its vectors are not one number for each of {channels} channels")
    if not bool(torch.isfinite(scale).all()):
        raise _NotAffineError("its variance plus epsilon is not positive")
    offset = partial(_shifted, bias, mean * scale)
    return [_Part(node.output[0], (scale_term(source, scale),), offset)]


def _shifted(bias: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
    return bias - centre, bias.abs() + centre.abs()


def _by_channel(value: Array, channels: int, rank: int) -> Tensor:
    """A constant operand as one number a channel, [c].

    Raises:
        _NotAffineError: it differs from pixel to pixel or image to image.
    """
    if value.size == 1 and value.ndim <= rank:
        return _double(value).reshape(1).expand(channels)
    aligned = (1,) * (rank - value.ndim) + value.shape
    if aligned != (1, channels, 1, 1)[:rank]:
        raise _NotAffineError(f"its constant of shape {list(value.shape)} is not one number a channel")
    return _double(value).reshape(-1)


def _sum(facts: Facts, node: onnx.NodeProto) -> list[_Part]:
    """Add, Sub and Sum of tensors and constants."""
    tensors = [n for n in node.input if not facts.is_constant(n)]
    channels = _channels(facts, tensors[0])
    terms: list[Term] = []
    offsets: list[Tensor] = []
    for position, name in enumerate(node.input):
        sign = -1.0 if node.op_type == "Sub" and position else 1.0
        value = facts.constant(name)
        if value is not None:
            offsets.append(sign * _by_channel(value, channels, facts.rank(tensors[0])))
            continue
        if _dims(facts, name) != _dims(facts, tensors[0]):
            raise _NotAffineError(
                "it adds tensors that may differ in size (broadcasting): "
                f"{_shown(_dims(facts, tensors[0]))} and {_shown(_dims(facts, name))}"
            )
        terms.append(Term.itself(name, channels) if sign > 0 else scale_term(name, _minus_one(channels)))
    offset = partial(_total, offsets) if offsets else None
    return [_Part(node.output[0], tuple(terms), offset, moves=max(len(terms), 1))]


def _minus_one(channels: int) -> Tensor:
    return -torch.ones(channels, dtype=torch.float64)


def _total(offsets: list[Tensor]) -> tuple[Tensor, Tensor]:
    stacked = torch.stack(offsets)
    return stacked.sum(0), stacked.abs().sum(0)


def _product(facts: Facts, node: onnx.NodeProto) -> list[_Part]:
    """Mul and Div by a constant; of two tensors they are not affine."""
    constants = [n for n in node.input if facts.is_constant(n)]
    tensors = [n for n in node.input if not facts.is_constant(n)]
    if len(constants) != 1 or (node.op_type == "Div" and constants[0] != node.input[1]):
        raise _NotAffineError
    channels = _channels(facts, tensors[0])
    constant = _constant(facts, constants[0], "factor")
    if constant.size == 1 and _ends_activation(facts, tensors[0]):
        raise _NotAffineError
    factors = _by_channel(constant, channels, facts.rank(tensors[0]))
    if node.op_type == "Div":
        factors = factors.reciprocal()
    if not bool(torch.isfinite(factors).all()):
        raise _NotAffineError("its constant factor is not finite")
    return [_Part(node.output[0], (scale_term(tensors[0], factors),))]


def _linear(facts: Facts, node: onnx.NodeProto) -> list[_Part]:
    """Gemm and MatMul of a tensor [n, c] by a constant: a 1x1 convolution of one pixel."""
    known = attributes(node)
    source = node.input[0]
    if source not in facts.flat or _int(known.get("transA"), 0):
        raise _NotAffineError
    weight = _double(_constant(facts, node.input[1], "weight"))
    if weight.dim() != 2:
        raise _NotAffineError
    weight = weight if _int(known.get("transB"), 0) else weight.T
    alpha, beta = (v if isinstance(v, float) else 1.0 for v in (known.get("alpha"), known.get("beta")))
    o, i = weight.shape
    if i != _channels(facts, source):
        raise _NotAffineError
    offset = None
    if len(node.input) > 2 and node.input[2]:
        offset = partial(_plain, beta * _by_channel(_constant(facts, node.input[2], "bias"), o, 2))
    return [_Part(node.output[0], (matrix_term(source, alpha * weight),), offset)]


def _ends_activation(facts: Facts, name: str) -> bool:
    """True for x * (1 + erf(x / sqrt 2)) and its like, whose last factor a runtime needs to recognise the GELU."""
    near = [name]
    for _ in range(3):
        near = [i for n in near if (maker := facts.makers.get(n)) is not None and maker.op_type in ("Mul", "Add")
                for i in maker.input]  # fmt: skip
        if any((maker := facts.makers.get(n)) is not None and maker.op_type in ("Erf", "Tanh") for n in near):
            return True
    return False


def _negative(facts: Facts, node: onnx.NodeProto) -> list[_Part]:
    channels = _channels(facts, node.input[0])
    return [_Part(node.output[0], (scale_term(node.input[0], _minus_one(channels)),))]


def _same(facts: Facts, node: onnx.NodeProto) -> list[_Part]:
    """Identity, and Dropout outside training."""
    if node.op_type == "Dropout":
        if len(node.output) > 1 and node.output[1]:
            raise _NotAffineError("its mask is used")
        if len(node.input) > 2 and node.input[2] and bool(_constant(facts, node.input[2], "training mode").any()):
            raise _NotAffineError("it is in training mode and drops at random")
    return [_Part(node.output[0], (Term.itself(node.input[0], _channels(facts, node.input[0])),), moves=0)]


def _average(facts: Facts, node: onnx.NodeProto) -> list[_Part]:
    known = attributes(node)
    source = node.input[0]
    channels = _channels(facts, source)
    taps = _ints(known.get("kernel_shape"), [])
    if len(taps) != 2:
        raise _NotAffineError
    kh, kw = taps
    rows, columns = _ints(known.get("dilations"), [1, 1])
    size = ((kh - 1) * rows + 1, (kw - 1) * columns + 1)
    stride, padding = _window(facts, node, size)
    if any(padding) and not _int(known.get("count_include_pad"), 0):
        raise _NotAffineError("it averages without counting padded pixels, so its weights differ at the border")
    if _int(known.get("ceil_mode"), 0):
        for side, pads, k, s in zip(
            _dims(facts, source)[2:], (padding[0] + padding[2], padding[1] + padding[3]), size, stride, strict=True
        ):
            if s != 1 and (not isinstance(side, int) or (side + pads - k) % s):
                raise _NotAffineError("with ceil_mode its last windows hang over the border and average fewer pixels")
    term = average_term(source, channels, (kh, kw), stride=stride, padding=padding, dilation=(rows, columns))
    return [_Part(node.output[0], (term,))]


def _pad(facts: Facts, node: onnx.NodeProto) -> list[_Part]:
    mode = attributes(node).get("mode", b"constant")
    if mode != b"constant":
        raise _NotAffineError(f"{mode.decode() if isinstance(mode, bytes) else mode} padding is not padding with zeros")
    channels = _channels(facts, node.input[0])
    if node.input[0] in facts.flat:
        raise _NotAffineError
    amounts = _integers(facts, node, 1) or []
    filled = len(node.input) > 2 and node.input[2]
    if filled and bool(_constant(facts, node.input[2], "value").astype(np.float64).any()):
        raise _NotAffineError("it pads with a constant that is not zero")
    axes = [axis % 4 for axis in (_integers(facts, node, 3) or range(4))]
    before = dict(zip(axes, amounts[: len(axes)], strict=True))
    after = dict(zip(axes, amounts[len(axes) :], strict=True))
    if any(before.get(a, 0) or after.get(a, 0) for a in (0, 1)):
        raise _NotAffineError("it pads channels or the batch")
    padding = (before.get(2, 0), before.get(3, 0), after.get(2, 0), after.get(3, 0))
    return [_Part(node.output[0], (grid_term(node.input[0], channels, padding=padding),))]


def _concat(facts: Facts, node: onnx.NodeProto) -> list[_Part]:
    axis = _int(attributes(node).get("axis"), 0)
    if axis % facts.rank(node.output[0]) != 1 or any(facts.is_constant(n) for n in node.input):
        raise _NotAffineError
    sources = [(name, _channels(facts, name)) for name in node.input]
    return [_Part(node.output[0], concatenation(sources))]


def _split(facts: Facts, node: onnx.NodeProto) -> list[_Part]:
    source = node.input[0]
    channels = _channels(facts, source)
    if _int(attributes(node).get("axis"), 0) % facts.rank(source) != 1:
        raise _NotAffineError
    widths = _integers(facts, node, 1)
    if widths is None:
        size = -(-channels // len(node.output))
        widths = [min(size, channels - size * i) for i in range(len(node.output))]
    parts, start = [], 0
    for name, width in zip(node.output, widths, strict=True):
        parts.append(_Part(name, (select_term(source, channels, range(start, start + width)),)))
        start += width
    return parts


def _slice(facts: Facts, node: onnx.NodeProto) -> list[_Part]:
    source = node.input[0]
    dims, channels = _dims(facts, source), _channels(facts, source)
    starts, ends = _integers(facts, node, 1) or [], _integers(facts, node, 2) or []
    axes = _integers(facts, node, 3) or list(range(len(starts)))
    steps = _integers(facts, node, 4) or [1] * len(starts)
    term = Term.itself(source, channels)
    for start, end, axis, step in zip(starts, ends, [a % facts.rank(source) for a in axes], steps, strict=True):
        side = dims[axis]
        if axis == 1:
            term = select_term(source, channels, range(channels)[start:end:step]).after(term)
        elif axis == 0 or step < 1 or not isinstance(side, int):
            raise _NotAffineError("it takes images, or rows of an open number, out of a tensor")
        else:
            first, last, _ = slice(start, end, 1).indices(side)
            crop, stride = [0, 0, 0, 0], [1, 1]
            crop[axis - 2], crop[axis], stride[axis - 2] = -first, last - side, step
            width = term.form.geometry.out_channels
            if first >= last:
                raise _NotAffineError
            sides = (crop[0], crop[1], crop[2], crop[3])
            term = grid_term(source, width, stride=(stride[0], stride[1]), padding=sides).after(term)
    return [_Part(node.output[0], (term,))]


_READERS: dict[str, Callable[[Facts, onnx.NodeProto], list[_Part]]] = {
    "Conv": _conv, "BatchNormalization": _batch_norm, "Add": _sum, "Sub": _sum, "Sum": _sum, "Mul": _product,
    "Div": _product, "Neg": _negative, "Identity": _same, "Dropout": _same, "AveragePool": _average, "Pad": _pad,
    "Concat": _concat, "Split": _split, "Slice": _slice,
    "Gemm": _linear, "MatMul": _linear,
}  # fmt: skip
