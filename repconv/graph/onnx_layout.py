"""ONNX operations that move numbers without changing them, as affine steps: padding, joining, splitting, slicing.

Each function gives what its node makes, or raises `NotAffineError`.
"""

from __future__ import annotations

import numpy as np
import onnx

from .expression import Term
from .not_affine import NotAffineError
from .onnx_facts import Facts, attributes
from .onnx_operands import Part, channels_of, constant_of, dims_of, integer, integers_of
from .terms import concatenation, grid_term, slice_term


def same(facts: Facts, node: onnx.NodeProto) -> list[Part]:
    """Identity, and Dropout outside training."""
    if node.op_type == "Dropout":
        if len(node.output) > 1 and node.output[1]:
            raise NotAffineError("its mask is used")
        if len(node.input) > 2 and node.input[2] and bool(constant_of(facts, node.input[2], "training mode").any()):
            raise NotAffineError("it is in training mode and drops at random")
    return [Part(node.output[0], (Term.itself(node.input[0], channels_of(facts, node.input[0])),), moves=0)]


def pad(facts: Facts, node: onnx.NodeProto) -> list[Part]:
    """Pad with zeros around the image; negative amounts crop it."""
    mode = attributes(node).get("mode", b"constant")
    if mode != b"constant":
        raise NotAffineError(f"{mode.decode() if isinstance(mode, bytes) else mode} padding is not padding with zeros")
    channels = channels_of(facts, node.input[0])
    if node.input[0] in facts.flat:
        raise NotAffineError
    amounts = integers_of(facts, node, 1) or []
    filled = len(node.input) > 2 and node.input[2]
    if filled and bool(constant_of(facts, node.input[2], "value").astype(np.float64).any()):
        raise NotAffineError("it pads with a constant that is not zero")
    axes = [axis % 4 for axis in (integers_of(facts, node, 3) or range(4))]
    before = dict(zip(axes, amounts[: len(axes)], strict=True))
    after = dict(zip(axes, amounts[len(axes) :], strict=True))
    if any(before.get(a, 0) or after.get(a, 0) for a in (0, 1)):
        raise NotAffineError("it pads channels or the batch")
    padding = (before.get(2, 0), before.get(3, 0), after.get(2, 0), after.get(3, 0))
    return [Part(node.output[0], (grid_term(node.input[0], channels, padding=padding),))]


def concat(facts: Facts, node: onnx.NodeProto) -> list[Part]:
    """Concat of channels."""
    axis = integer(attributes(node).get("axis"), 0)
    if axis % facts.rank(node.output[0]) != 1 or any(facts.is_constant(n) for n in node.input):
        raise NotAffineError
    sources = [(name, channels_of(facts, name)) for name in node.input]
    return [Part(node.output[0], concatenation(sources))]


def split(facts: Facts, node: onnx.NodeProto) -> list[Part]:
    """Split of channels, or of rows or columns."""
    source = node.input[0]
    known = attributes(node)
    dims, axis = dims_of(facts, source), integer(known.get("axis"), 0) % facts.rank(source)
    widths = integers_of(facts, node, 1)
    if widths is None:
        side = dims[axis]
        if not isinstance(side, int):
            raise NotAffineError
        size = -(-side // len(node.output))
        widths = [min(size, side - size * i) for i in range(len(node.output))]
    parts, start = [], 0
    for name, width in zip(node.output, widths, strict=True):
        if name:
            parts.append(Part(name, (slice_term(source, dims, axis, start, start + width),)))
        start += width
    return parts


def take_slice(facts: Facts, node: onnx.NodeProto) -> list[Part]:
    """Slice of channels, rows and columns."""
    source = node.input[0]
    dims = dims_of(facts, source)
    starts, ends = integers_of(facts, node, 1) or [], integers_of(facts, node, 2) or []
    axes = integers_of(facts, node, 3) or list(range(len(starts)))
    steps = integers_of(facts, node, 4) or [1] * len(starts)
    term = Term.itself(source, channels_of(facts, source))
    for start, end, axis, step in zip(starts, ends, [a % facts.rank(source) for a in axes], steps, strict=True):
        width = term.form.geometry.out_channels
        term = slice_term(source, (dims[0], width, *dims[2:]), axis, start, end, step).after(term)
    return [Part(node.output[0], (term,))]
