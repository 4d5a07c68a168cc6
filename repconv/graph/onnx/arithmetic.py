"""ONNX operations that compute, as affine steps: convolutions, pooling, normalisation, scales and sums.

Each function gives what its node makes, or raises `StaysError`.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial, reduce
from operator import add as add_up

import onnx
import torch
from torch import Tensor

from ...algebra.geometry import halves
from ...algebra.kernels import batch_norm_affine
from ..core.constant import Constant
from ..core.expression import Term
from ..core.pool import Pool
from ..core.reasons import BY_BATCH, HANGING, UNCOUNTED, Kind, StaysError
from ..core.step import Offset
from ..core.terms import average_term, convolution_term, extent, scale_term, transposed_term
from ..maps.carried import Carried, Made, last_axis, matmul, spread
from ..maps.layout import MOST_PIXEL_AXES, plain
from .evaluator.constants import Array
from .facts import Facts
from .nodes import attributes
from .operands import Part, by_axis, by_channel, constant_of, double, image_of, integer, shown, window

_EPSILON = float(torch.tensor(1e-5, dtype=torch.float32))
"""Batch normalisation's where a node says nothing; attributes are float32."""


def _weighed(facts: Facts, node: onnx.NodeProto) -> tuple[Array, int, Carried]:
    """The constant weight of a convolution, over how many axes of pixels it moves, and what it reads."""
    weight = constant_of(facts, node.input[1], "weight")
    pixels = weight.ndim - 2
    source = image_of(facts, node.input[0])
    if not 1 <= pixels <= MOST_PIXEL_AXES or len(source.layout.axes) != weight.ndim:
        raise StaysError(Kind.MISFIT(said=f"a weight of {weight.ndim} axes, an input of {len(source.layout.axes)}"))
    return weight, pixels, source


def _biased(facts: Facts, node: onnx.NodeProto, channels: int) -> Offset | None:
    """The constant bias of a convolution that makes so many channels, if it has one."""
    if len(node.input) < 3 or not node.input[2]:
        return None
    bias = double(constant_of(facts, node.input[2], "bias"))
    if bias.shape != (channels,):
        raise StaysError(Kind.MISFIT(said=f"a bias of shape {list(bias.shape)} for {channels} channels"))
    return partial(Constant.stored, bias)


def convolution(facts: Facts, node: onnx.NodeProto) -> list[Part]:
    """Conv with a constant weight."""
    known = attributes(node)
    weight, pixels, source = _weighed(facts, node)
    groups = integer(known.get("group"), 1)
    dilation = by_axis(known.get("dilations"), 1, pixels)
    o, i, *taps = weight.shape
    stride, padding = window(facts, node, extent(taps, dilation))
    if i * groups != source.layout.channels:
        raise StaysError(Kind.MISFIT(said=f"it takes {i * groups} channels, its input has {source.layout.channels}"))
    term = convolution_term(
        source.name,
        lambda: double(weight),
        weight.shape,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
    )
    return [Part(node.output[0], Made(plain(o, pixels), (term,), _biased(facts, node, o)))]


def transposed(facts: Facts, node: onnx.NodeProto) -> list[Part]:
    """ConvTranspose with a constant weight."""
    known = attributes(node)
    weight, pixels, source = _weighed(facts, node)
    if "output_shape" in known or known.get("auto_pad", b"NOTSET") != b"NOTSET":
        raise StaysError(Kind.OPEN_SIZE(what="what it crops"))
    groups = integer(known.get("group"), 1)
    i, m = weight.shape[:2]
    if i != source.layout.channels:
        raise StaysError(Kind.MISFIT(said=f"it takes {i} channels, its input has {source.layout.channels}"))
    before, after = halves(by_axis(known.get("pads"), 0, 2 * pixels))
    more = by_axis(known.get("output_padding"), 0, pixels)
    term = transposed_term(
        source.name,
        lambda: double(weight),
        weight.shape,
        stride=by_axis(known.get("strides"), 1, pixels),
        crop=(*before, *(cut - kept for cut, kept in zip(after, more, strict=True))),
        dilation=by_axis(known.get("dilations"), 1, pixels),
        groups=groups,
    )
    return [Part(node.output[0], Made(plain(m * groups, pixels), (term,), _biased(facts, node, m * groups)))]


def average(facts: Facts, node: onnx.NodeProto) -> list[Part]:
    """AveragePool where every window averages as many pixels."""
    known = attributes(node)
    source = image_of(facts, node.input[0])
    pixels = len(source.layout.axes) - 2
    taps = by_axis(known.get("kernel_shape"), 1, pixels)
    dilation = by_axis(known.get("dilations"), 1, pixels)
    size = extent(taps, dilation)
    stride, padding = window(facts, node, size)
    if any(padding) and not integer(known.get("count_include_pad"), 0):
        raise StaysError(Kind.UNEQUAL_WINDOWS(how=UNCOUNTED))
    if integer(known.get("ceil_mode"), 0):
        for side, before, after, k, s in zip(source.sides(pixels), *halves(padding), size, stride, strict=True):
            if s != 1 and (not isinstance(side, int) or (side + before + after - k) % s):
                raise StaysError(Kind.UNEQUAL_WINDOWS(how=HANGING))
    term = average_term(source.name, source.layout.channels, taps, stride=stride, padding=padding, dilation=dilation)
    return [Part(node.output[0], Made(source.layout, (term,)))]


def global_average(facts: Facts, node: onnx.NodeProto) -> list[Part]:
    """GlobalAveragePool."""
    source = image_of(facts, node.input[0])
    return [Part(node.output[0], Made(source.layout, (Term.average(source.name, source.layout.channels, Pool()),)))]


def batch_norm(facts: Facts, node: onnx.NodeProto) -> list[Part]:
    """BatchNormalization with fixed statistics."""
    known = attributes(node)
    if integer(known.get("training_mode"), 0) or len([n for n in node.output if n]) > 1:
        raise StaysError(Kind.TRAINING(does=BY_BATCH))
    source = facts.tensor(node.input[0])
    channels = source.size[1]
    weight, bias, mean, variance = (
        double(constant_of(facts, name, what))
        for name, what in zip(node.input[1:5], ("scale", "shift", "mean", "variance"), strict=True)
    )
    eps = known.get("epsilon", _EPSILON)
    scale, _ = batch_norm_affine(mean, variance, weight, bias, eps if isinstance(eps, float) else _EPSILON)
    if any(len(vector) != channels for vector in (weight, bias, mean, variance)):
        raise StaysError(Kind.MISFIT(said=f"its vectors are not one number for each of {channels} channels"))
    if not bool(torch.isfinite(scale).all()):
        raise StaysError(Kind.NOT_FINITE(what="its variance plus epsilon is not positive"))
    shape = (-1, *(1,) * (len(source.layout.axes) - 2))
    factors, added, centre = (spread(vector.reshape(shape), source) for vector in (scale, bias, mean * scale))
    return [
        Part(node.output[0], Made(source.layout, (scale_term(source.name, factors),), partial(_shifted, added, centre)))
    ]


def add(facts: Facts, node: onnx.NodeProto) -> list[Part]:
    """Add, Sub and Sum of tensors and constants, and Mean of tensors."""
    tensors = [n for n in node.input if not facts.is_constant(n)]
    first = facts.tensor(tensors[0])
    share = 1 / len(node.input) if node.op_type == "Mean" else 1.0
    terms: list[Term] = []
    offsets: list[Tensor] = []
    for position, name in enumerate(node.input):
        sign = -1.0 if node.op_type == "Sub" and position else share
        value = facts.constant(name)
        if value is not None:
            offsets.append(sign * by_channel(facts, value, tensors[0]))
            continue
        other = facts.tensor(name)
        alike = facts.sides[name] == facts.sides[first.name]
        if alike and other.frame != first.frame:
            raise StaysError(Kind.AXES(does="adds"))
        if other.dims != first.dims or other.frame != first.frame:
            sizes = f"{shown(facts.sides[first.name])} and {shown(facts.sides[name])}"
            raise StaysError(Kind.SIZES(does="adds", sizes=sizes))
        terms.append(
            other.itself if sign == 1 else scale_term(name, torch.full((first.layout.channels,), sign).double())
        )
    offset = partial(_total, offsets) if offsets else None
    return [Part(node.output[0], Made(first.layout, tuple(terms), offset, moves=max(len(terms), 1)))]


def multiply(facts: Facts, node: onnx.NodeProto) -> list[Part]:
    """Mul and Div by a constant; of two tensors they are not affine."""
    constants = [n for n in node.input if facts.is_constant(n)]
    tensors = [n for n in node.input if not facts.is_constant(n)]
    if len(constants) != 1:
        raise StaysError(Kind.PRODUCT(does="multiplies" if node.op_type == "Mul" else "divides"))
    if node.op_type == "Div" and constants[0] != node.input[1]:
        raise StaysError(Kind.QUOTIENT())
    constant = constant_of(facts, constants[0], "factor")
    if constant.size == 1 and _ends_activation(facts, tensors[0]):
        raise StaysError(Kind.ACTIVATION())
    factors = by_channel(facts, constant, tensors[0])
    if node.op_type == "Div":
        factors = factors.reciprocal()
    if not bool(torch.isfinite(factors).all()):
        raise StaysError(Kind.NOT_FINITE(what="its constant factor is not finite"))
    return [Part(node.output[0], Made(facts.tensor(tensors[0]).layout, (scale_term(tensors[0], factors),)))]


def _ends_activation(facts: Facts, name: str) -> bool:
    """True for x * (1 + erf(x / sqrt 2)) and its like, whose last factor a runtime needs to recognise the GELU."""
    near = [name]
    for _ in range(3):
        near = [
            i
            for n in near
            if (maker := facts.makers.get(n)) is not None and maker.op_type in ("Mul", "Add")
            for i in maker.input
        ]
        if any((maker := facts.makers.get(n)) is not None and maker.op_type in ("Erf", "Tanh") for n in near):
            return True
    return False


def negate(facts: Facts, node: onnx.NodeProto) -> list[Part]:
    """Neg."""
    source = facts.tensor(node.input[0])
    minus = -torch.ones(source.layout.channels, dtype=torch.float64)
    return [Part(node.output[0], Made(source.layout, (scale_term(source.name, minus),)))]


def matrix(facts: Facts, node: onnx.NodeProto) -> list[Part]:
    """Gemm, and MatMul by a constant matrix: over an axis that is channels."""
    if node.op_type == "MatMul":
        left, right = (facts.constant(name) for name in node.input)
        if (left is None) == (right is None):
            raise StaysError(Kind.PRODUCT(does="multiplies"))
        tensor = facts.tensor(node.input[1 if right is None else 0])
        found = matmul(tensor, *(None if value is None else double(value) for value in (left, right)))
        return [Part(node.output[0], found)]
    known = attributes(node)
    source = facts.tensor(node.input[0])
    if integer(known.get("transA"), 0):
        raise StaysError(Kind.LAYOUT(what="it takes its first input turned around,"))
    weight = constant_of(facts, node.input[1], "weight")
    weight = weight if integer(known.get("transB"), 0) else weight.T
    alpha, beta = (v if isinstance(v, float) else 1.0 for v in (known.get("alpha"), known.get("beta")))
    o, i = weight.shape
    if len(source.layout.axes) != 2:
        raise StaysError(Kind.MISFIT(said=f"an input of {len(source.layout.axes)} axes where two are taken"))
    offset = None
    if len(node.input) > 2 and node.input[2]:
        value = double(constant_of(facts, node.input[2], "bias"))
        offset = partial(Constant.stored, beta * spread(value, Carried("", plain(o, 0), (1, o, 1, 1))))
    made = last_axis(source, lambda: alpha * double(weight), (o, i))
    return [Part(node.output[0], replace(made, offset=offset))]


def _shifted(bias: Tensor, centre: Tensor) -> Constant:
    return Constant.computed(bias - centre, bias.abs() + centre.abs())


def _total(offsets: list[Tensor]) -> Constant:
    return reduce(add_up, map(Constant.stored, offsets))
