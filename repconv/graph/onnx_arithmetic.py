"""ONNX operations that compute, as affine steps: convolutions, pooling, normalisation, scales and sums.

Each function gives what its node makes, or raises `NotAffineError`.
"""

from __future__ import annotations

from functools import partial, reduce
from operator import add as add_up

import onnx
import torch
from torch import Tensor

from ..kernels import batch_norm_affine
from .constant import Constant
from .expression import Term
from .not_affine import NotAffineError
from .onnx_facts import EPSILON, Facts, attributes
from .onnx_operands import (
    Part,
    by_channel,
    channels_of,
    constant_of,
    dims_of,
    double,
    integer,
    integers,
    shown,
    window,
)
from .operand import channelwise
from .terms import average_term, convolution_term, matrix_term, scale_term


def convolution(facts: Facts, node: onnx.NodeProto) -> list[Part]:
    """Conv with a constant weight."""
    known = attributes(node)
    weight = constant_of(facts, node.input[1], "weight")
    if weight.ndim != 4:
        raise NotAffineError
    groups = integer(known.get("group"), 1)
    rows, columns = integers(known.get("dilations"), [1, 1])
    o, i, kh, kw = weight.shape
    size = ((kh - 1) * rows + 1, (kw - 1) * columns + 1)
    stride, padding = window(facts, node, size)
    if i * groups != channels_of(facts, node.input[0]):
        raise NotAffineError(f"it takes {i * groups} channels, its input has another number")
    term = convolution_term(
        node.input[0], partial(double, weight), (o, i, kh, kw),
        stride=stride, padding=padding, dilation=(rows, columns), groups=groups,
    )  # fmt: skip
    offset = None
    if len(node.input) > 2 and node.input[2]:
        bias = double(constant_of(facts, node.input[2], "bias"))
        offset = partial(Constant.stored, bias)
    return [Part(node.output[0], (term,), offset)]


def average(facts: Facts, node: onnx.NodeProto) -> list[Part]:
    """AveragePool where every window averages as many pixels."""
    known = attributes(node)
    source = node.input[0]
    channels = channels_of(facts, source)
    taps = integers(known.get("kernel_shape"), [])
    if len(taps) != 2:
        raise NotAffineError
    kh, kw = taps
    rows, columns = integers(known.get("dilations"), [1, 1])
    size = ((kh - 1) * rows + 1, (kw - 1) * columns + 1)
    stride, padding = window(facts, node, size)
    if any(padding) and not integer(known.get("count_include_pad"), 0):
        raise NotAffineError("it averages without counting padded pixels, so its weights differ at the border")
    if integer(known.get("ceil_mode"), 0):
        for side, pads, k, s in zip(
            dims_of(facts, source)[2:], (padding[0] + padding[2], padding[1] + padding[3]), size, stride, strict=True
        ):
            if s != 1 and (not isinstance(side, int) or (side + pads - k) % s):
                raise NotAffineError("with ceil_mode its last windows hang over the border and average fewer pixels")
    term = average_term(source, channels, (kh, kw), stride=stride, padding=padding, dilation=(rows, columns))
    return [Part(node.output[0], (term,))]


def batch_norm(facts: Facts, node: onnx.NodeProto) -> list[Part]:
    """BatchNormalization with fixed statistics."""
    known = attributes(node)
    if integer(known.get("training_mode"), 0) or len([n for n in node.output if n]) > 1:
        raise NotAffineError("it normalises by each batch (training mode), which is no fixed convolution")
    source = node.input[0]
    channels = channels_of(facts, source)
    weight, bias, mean, variance = (
        double(constant_of(facts, name, what))
        for name, what in zip(node.input[1:5], ("scale", "shift", "mean", "variance"), strict=True)
    )
    eps = known.get("epsilon", EPSILON)
    scale, _ = batch_norm_affine(mean, variance, weight, bias, eps if isinstance(eps, float) else EPSILON)
    if any(len(vector) != channels for vector in (weight, bias, mean, variance)):
        raise NotAffineError(f"its vectors are not one number for each of {channels} channels")
    if not bool(torch.isfinite(scale).all()):
        raise NotAffineError("its variance plus epsilon is not positive")
    offset = partial(_shifted, bias, mean * scale)
    return [Part(node.output[0], (scale_term(source, scale),), offset)]


def add(facts: Facts, node: onnx.NodeProto) -> list[Part]:
    """Add, Sub and Sum of tensors and constants."""
    tensors = [n for n in node.input if not facts.is_constant(n)]
    channels = channels_of(facts, tensors[0])
    terms: list[Term] = []
    offsets: list[Tensor] = []
    for position, name in enumerate(node.input):
        sign = -1.0 if node.op_type == "Sub" and position else 1.0
        value = facts.constant(name)
        if value is not None:
            offsets.append(sign * by_channel(facts, value, tensors[0]))
            continue
        if dims_of(facts, name) != dims_of(facts, tensors[0]):
            raise NotAffineError(
                "it adds tensors that may differ in size (broadcasting): "
                f"{shown(dims_of(facts, tensors[0]))} and {shown(dims_of(facts, name))}"
            )
        terms.append(Term.itself(name, channels) if sign > 0 else scale_term(name, _minus_one(channels)))
    offset = partial(_total, offsets) if offsets else None
    return [Part(node.output[0], tuple(terms), offset, moves=max(len(terms), 1))]


def multiply(facts: Facts, node: onnx.NodeProto) -> list[Part]:
    """Mul and Div by a constant; of two tensors they are not affine."""
    constants = [n for n in node.input if facts.is_constant(n)]
    tensors = [n for n in node.input if not facts.is_constant(n)]
    if len(constants) != 1 or (node.op_type == "Div" and constants[0] != node.input[1]):
        raise NotAffineError
    constant = constant_of(facts, constants[0], "factor")
    if constant.size == 1 and _ends_activation(facts, tensors[0]):
        raise NotAffineError
    factors = by_channel(facts, constant, tensors[0])
    if node.op_type == "Div":
        factors = factors.reciprocal()
    if not bool(torch.isfinite(factors).all()):
        raise NotAffineError("its constant factor is not finite")
    return [Part(node.output[0], (scale_term(tensors[0], factors),))]


def _ends_activation(facts: Facts, name: str) -> bool:
    """True for x * (1 + erf(x / sqrt 2)) and its like, whose last factor a runtime needs to recognise the GELU."""
    near = [name]
    for _ in range(3):
        near = [i for n in near if (maker := facts.makers.get(n)) is not None and maker.op_type in ("Mul", "Add")
                for i in maker.input]  # fmt: skip
        if any((maker := facts.makers.get(n)) is not None and maker.op_type in ("Erf", "Tanh") for n in near):
            return True
    return False


def negate(facts: Facts, node: onnx.NodeProto) -> list[Part]:
    """Neg."""
    channels = channels_of(facts, node.input[0])
    return [Part(node.output[0], (scale_term(node.input[0], _minus_one(channels)),))]


def matrix(facts: Facts, node: onnx.NodeProto) -> list[Part]:
    """Gemm and MatMul of a tensor [n, c] by a constant: a 1x1 convolution of one pixel."""
    known = attributes(node)
    source = node.input[0]
    if source not in facts.flat or integer(known.get("transA"), 0):
        raise NotAffineError
    weight = constant_of(facts, node.input[1], "weight")
    if weight.ndim != 2:
        raise NotAffineError
    weight = weight if integer(known.get("transB"), 0) else weight.T
    alpha, beta = (v if isinstance(v, float) else 1.0 for v in (known.get("alpha"), known.get("beta")))
    o, i = weight.shape
    if i != channels_of(facts, source):
        raise NotAffineError
    offset = None
    if len(node.input) > 2 and node.input[2]:
        offset = partial(Constant.stored, beta * channelwise(double(constant_of(facts, node.input[2], "bias")), (1, o)))
    return [Part(node.output[0], (matrix_term(source, lambda: alpha * double(weight), (o, i)),), offset)]


def _shifted(bias: Tensor, centre: Tensor) -> Constant:
    return Constant.computed(bias - centre, bias.abs() + centre.abs())


def _minus_one(channels: int) -> Tensor:
    return -torch.ones(channels, dtype=torch.float64)


def _total(offsets: list[Tensor]) -> Constant:
    return reduce(add_up, map(Constant.stored, offsets))
