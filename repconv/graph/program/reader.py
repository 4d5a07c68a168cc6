"""An exported program's graph of ATen operations as affine steps."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Hashable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, fx

from ...algebra.geometry import Axes
from ...algebra.kernels import batch_norm_affine
from ...errors import GeometryError
from ...proof.report import GraphRefusal
from ..core.constant import Constant
from ..core.cost import Cost, averaging, convolution, elementwise
from ..core.expression import Term
from ..core.pool import Pool
from ..core.reasons import AN_INPUT, BY_BATCH, COMPUTED, HANGING, OWN_DIVISOR, UNCOUNTED, Kind, StaysError, reason_of
from ..core.step import Step
from ..core.terms import average_term, convolution_term, extent, grid_term, scale_term, transposed_term
from ..maps.canvas import recognised
from ..maps.carried import Carried, Made, last_axis, spread
from ..maps.layout import MOST_PIXEL_AXES, plain
from .facts import (
    BY_BATCH_NORMS,
    CONVOLVE,
    FUNCTIONAL_NORM,
    PADDED,
    SPREAD,
    ProgramFacts,
    argument,
    is_pointwise,
    kind_of,
)
from .moves import MOVES
from .painting import PAINTERS

NORMS_OF_THEIR_OWN = frozenset((
    "aten.layer_norm.default", "aten.group_norm.default", "aten.instance_norm.default", "aten.rms_norm.default",
))  # fmt: skip
"""Normalisations by statistics of what they read."""

_ROUNDING = {torch.float32: 2.0**-24, torch.float64: 2.0**-53, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}


def read_program(facts: ProgramFacts) -> tuple[list[Step], list[GraphRefusal]]:
    """The affine steps of a graph in the order they run, and the refusals of those that almost are."""
    steps: list[Step] = []
    refusals: list[GraphRefusal] = []
    for node in facts.module.graph.nodes:
        reader = _READERS.get(kind_of(node))
        if facts.is_constant(node) or not facts.size(node):
            continue
        try:
            steps += _read(facts, node, reader)
        except GeometryError as error:
            reason = reason_of(error, Kind.MISFIT)
            if reason is not None:
                refusals.append(reason.at(facts.labels[node.name]))
    painted = {n.name for name in facts.canvases for n in facts.nodes[name].all_input_nodes}
    followed = {facts.labels[name] for name in painted & facts.canvases.keys()}
    return steps, [refusal for refusal in refusals if refusal.where not in followed]


def _read(facts: ProgramFacts, node: fx.Node, reader: Callable[[ProgramFacts, fx.Node], Made] | None) -> list[Step]:
    """A node as a step; or as a piece of a border, and a step if that is a whole one."""
    painter = PAINTERS.get(str(node.target))
    if painter is not None and any(n.name in facts.canvases for n in node.all_input_nodes):
        with contextlib.suppress(GeometryError):
            facts.canvases[node.name] = painter(facts, node)
            return [_painted(facts, node)]
    if reader is None and painter is None:
        _follow(facts, node)
        if str(node.target) in NORMS_OF_THEIR_OWN:
            raise StaysError(Kind.OWN_STATISTICS())
        return []
    try:
        if reader is None:
            raise StaysError
        step = _step(facts, node, reader(facts, node))
    except GeometryError:
        if painter is None or node.name in facts.canvases:
            raise
        with contextlib.suppress(GeometryError):
            facts.canvases[node.name] = painter(facts, node)
            return [_painted(facts, node)]
        raise  # though it may be a whole border once more is painted
    if painter is not None and "pad" in str(node.target):
        with contextlib.suppress(GeometryError):
            facts.canvases[node.name] = painter(facts, node)
    return [step]


def _painted(facts: ProgramFacts, node: fx.Node) -> Step:
    made, border = recognised(facts.canvases[node.name])
    return replace(_step(facts, node, made), border=border)


def _follow(facts: ProgramFacts, node: fx.Node) -> None:
    """Give what an operation on each number makes the layout of the tensor it reads."""
    sources = [n for n in node.all_input_nodes if not facts.is_constant(n)]
    if is_pointwise(node) and len(sources) == 1 and facts.size(sources[0]) == facts.size(node):
        source = facts.tensor(sources[0])
        facts.place(node, source.layout, source.dims)


def _step(facts: ProgramFacts, node: fx.Node, made: Made) -> Step:
    facts.not_quantised(node)
    sources = [facts.nodes[term.source] for term in made.terms]
    dtype = node.meta["val"].dtype
    if dtype not in _ROUNDING:
        raise StaysError
    if any(s.meta["val"].dtype != dtype for s in sources):
        raise StaysError(Kind.TYPE())
    kind = kind_of(node).split(".")[1]
    terms = tuple(
        term.of_sides(facts.tensor(facts.nodes[term.source]).dims[2:]).known_as(_key(facts, node, kind, term, index))
        for index, term in enumerate(made.terms)
    )
    made = replace(made, terms=terms)
    facts.place(node, made.layout, made.terms[0].makes(facts.tensor(sources[0]).dims))
    size = facts.nominal(node)
    if kind in (*_CONVOLUTIONS, "matmul", "mm"):
        cost = convolution(made.terms[0].form, facts.nominal(sources[0]), size)
    elif any(term.pool or term.pooled for term in made.terms):
        cost = averaging(facts.nominal(sources[0]), size)
    else:
        cost = elementwise(made.moves, size) if made.moves else Cost()
    return Step(node.name, facts.labels[node.name], kind, made.terms, cost, made.offset, _ROUNDING[dtype])


def _key(facts: ProgramFacts, node: fx.Node, kind: str, term: Term, index: int) -> Hashable:
    """What tells the numbers of a node's term: the weight that it has stored, or all that they are made of."""

    def name(operand: fx.Node) -> str:
        if not facts.is_constant(operand):
            return ""
        return str(operand.target) if operand.op == "get_attr" else operand.name

    if kind in _CONVOLUTIONS and isinstance(node.args[1], fx.Node) and node.args[1].op == "get_attr":
        return name(node.args[1])
    taken = node.args[1:] if node.target is operator.getitem else ()
    maker = _source(node) if node.target is operator.getitem else node
    settings = str(fx.node.map_arg((maker.args, maker.kwargs, taken), name))
    source = facts.tensor(facts.nodes[term.source])
    return hash((kind, index, settings, source.layout))


def _by_axis(value: object, pixels: int) -> Axes:
    """A number for each pixel axis; one stands for all."""
    numbers = value if isinstance(value, (list, tuple)) else [value]
    if not all(isinstance(v, int) for v in numbers) or len(numbers) not in (1, pixels):
        raise StaysError(Kind.MISFIT(said=f"{value} where its input has {pixels} axes of pixels"))
    return tuple(numbers) * (pixels if len(numbers) == 1 else 1)


def _constant(facts: ProgramFacts, value: object, what: str) -> Tensor:
    found = facts.constant(value)
    if found is None:
        given = isinstance(value, fx.Node) and value.op == "placeholder"
        raise StaysError(Kind.VARYING(what=what, how=AN_INPUT if given else COMPUTED))
    return found


def _tensor(facts: ProgramFacts, value: object, what: str) -> Tensor:
    return _double(_constant(facts, value, what))


def _double(value: Tensor) -> Tensor:
    return value.double().cpu()


def _source(node: fx.Node, position: int = 0) -> fx.Node:
    source = node.args[position]
    if not isinstance(source, fx.Node):
        raise StaysError
    return source


def _image(facts: ProgramFacts, node: object) -> Carried:
    """A tensor [n, c, pixels].

    Raises:
        StaysError: its axes are something else.
    """
    tensor = facts.tensor(node)
    if not tensor.is_plain:
        raise StaysError(Kind.LAYOUT(what="its input is laid out"))
    return tensor


def _conv(facts: ProgramFacts, node: fx.Node) -> Made:
    source, weight = _image(facts, node.args[0]), _constant(facts, node.args[1], "weight")
    pixels = weight.dim() - 2
    if not 1 <= pixels <= MOST_PIXEL_AXES or len(source.layout.axes) != weight.dim():
        raise StaysError(Kind.MISFIT(said=f"a weight of {weight.dim()} axes, an input of {len(source.layout.axes)}"))
    dilation = _by_axis(argument(node, 5, "dilation", 1), pixels)
    given = argument(node, 4, "padding", 0)
    if isinstance(given, str):
        reach = [k - 1 if given == "same" else 0 for k in extent(weight.shape[2:], dilation)]
        padding = (*(pixels // 2 for pixels in reach), *(pixels - pixels // 2 for pixels in reach))
    else:
        padding = _by_axis(given, pixels) * 2
    groups = argument(node, 6, "groups", 1)
    term = convolution_term(
        source.name,
        partial(_double, weight),
        tuple(weight.shape),
        stride=_by_axis(argument(node, 3, "stride", 1), pixels),
        padding=padding,
        dilation=dilation,
        groups=groups if isinstance(groups, int) else 1,
    )
    bias = argument(node, 2, "bias")
    offset = None if bias is None else partial(Constant.stored, _tensor(facts, bias, "bias"))
    return Made(plain(weight.shape[0], pixels), (term,), offset)


def _transposed(facts: ProgramFacts, node: fx.Node) -> Made:
    source, weight = _image(facts, node.args[0]), _constant(facts, node.args[1], "weight")
    pixels = weight.dim() - 2
    if not 1 <= pixels <= MOST_PIXEL_AXES or len(source.layout.axes) != weight.dim():
        raise StaysError(Kind.MISFIT(said=f"a weight of {weight.dim()} axes, an input of {len(source.layout.axes)}"))
    cut = _by_axis(argument(node, 4, "padding", 0), pixels)
    more = _by_axis(argument(node, 5, "output_padding", 0), pixels)
    groups = int(str(argument(node, 6, "groups", 1)))
    term = transposed_term(
        source.name,
        partial(_double, weight),
        tuple(weight.shape),
        stride=_by_axis(argument(node, 3, "stride", 1), pixels),
        crop=(*cut, *(both - kept for both, kept in zip(cut, more, strict=True))),
        dilation=_by_axis(argument(node, 7, "dilation", 1), pixels),
        groups=groups,
    )
    bias = argument(node, 2, "bias")
    offset = None if bias is None else partial(Constant.stored, _tensor(facts, bias, "bias"))
    return Made(plain(weight.shape[1] * groups, pixels), (term,), offset)


def _batch_norm(facts: ProgramFacts, node: fx.Node) -> Made:
    if node.target is operator.getitem:
        node = _source(node)
        if str(node.target) in BY_BATCH_NORMS:
            raise StaysError(Kind.TRAINING(does=BY_BATCH))
        _, weight, bias, mean, variance, _, eps = node.args[:7]
        training: object = False
    else:
        _, weight, bias, mean, variance, training, _, eps = node.args[:8]
    if training or mean is None or variance is None:
        raise StaysError(Kind.TRAINING(does=BY_BATCH))
    centre = _tensor(facts, mean, "mean")
    factor = None if weight is None else _tensor(facts, weight, "scale")
    added = torch.zeros_like(centre) if bias is None else _tensor(facts, bias, "shift")
    scale, _ = batch_norm_affine(centre, _tensor(facts, variance, "variance"), factor, None, float(str(eps)))
    if not bool(torch.isfinite(scale).all()):
        raise StaysError(Kind.NOT_FINITE(what="its variance plus epsilon is not positive"))
    source = facts.tensor(node.args[0])
    parts = added - centre * scale, added.abs() + (centre * scale).abs()
    factors, value, magnitude = (_along(source, vector) for vector in (scale, *parts))
    offset = Constant.computed(value, magnitude)
    return Made(source.layout, (scale_term(source.name, factors),), lambda: offset)


def _along(source: Carried, vector: Tensor) -> Tensor:
    """One number for each place of axis 1 as one a channel."""
    return spread(vector.reshape(-1, *(1,) * (len(source.layout.axes) - 2)), source)


def _vector(facts: ProgramFacts, value: object, source: Carried) -> Tensor:
    """A constant operand of `source` as one number a channel, [c]."""
    is_number = isinstance(value, (int, float))
    number = torch.tensor(value, dtype=torch.float64) if is_number else _constant(facts, value, "operand")
    return spread(number, source)


def _sum(facts: ProgramFacts, node: fx.Node) -> Made:
    operands = node.args[:2]
    tensors = [a for a in operands if isinstance(a, fx.Node) and not facts.is_constant(a)]
    first = facts.tensor(tensors[0])
    alpha = node.kwargs.get("alpha", 1)
    second = float(alpha if isinstance(alpha, (int, float)) else 1) * (-1 if "sub" in str(node.target) else 1)
    factors = (second, 1.0) if "rsub" in str(node.target) else (1.0, second)
    terms: list[Term] = []
    offset: Tensor | None = None
    for sign, operand in zip(factors, operands, strict=True):
        if not isinstance(operand, fx.Node) or operand not in tensors:
            offset = sign * _vector(facts, operand, first)
            continue
        if facts.size(operand) != facts.size(node):
            sizes = " and ".join("x".join(map(str, facts.size(each))) for each in tensors)
            raise StaysError(Kind.SIZES(does="adds", sizes=sizes))
        other = facts.tensor(operand)
        if other.frame != first.frame:
            raise StaysError(Kind.AXES(does="adds"))
        unit = torch.full((other.layout.channels,), sign, dtype=torch.float64)
        terms.append(other.itself if sign == 1 else scale_term(other.name, unit))
    return Made(
        first.layout, tuple(terms), None if offset is None else partial(Constant.stored, offset), moves=len(terms)
    )


def _product(facts: ProgramFacts, node: fx.Node) -> Made:
    first, second = node.args[:2]
    if not isinstance(first, fx.Node) or facts.is_constant(first):
        first, second = second, first
        if "div" in str(node.target):
            raise StaysError(Kind.QUOTIENT())
    if not isinstance(first, fx.Node):
        raise StaysError
    if isinstance(second, fx.Node) and not facts.is_constant(second):
        raise StaysError(Kind.PRODUCT(does="multiplies" if "mul" in str(node.target) else "divides"))
    if node.kwargs:  # it rounds
        raise StaysError
    if facts.size(first) != facts.size(node):
        shape = list(facts.size(second)) if isinstance(second, fx.Node) else []
        raise StaysError(Kind.NOT_BY_CHANNEL(shape=shape, how="makes the tensor larger"))
    source = facts.tensor(first)
    factors = _vector(facts, second, source)
    factors = factors.reciprocal() if "div" in str(node.target) else factors
    return Made(source.layout, (scale_term(source.name, factors),))


def _negative(facts: ProgramFacts, node: fx.Node) -> Made:
    source = facts.tensor(node.args[0])
    return Made(source.layout, (scale_term(source.name, -torch.ones(source.layout.channels, dtype=torch.float64)),))


def _same(facts: ProgramFacts, node: fx.Node) -> Made:
    if "dropout" in str(node.target) and node.args[2]:
        raise StaysError(Kind.TRAINING(does="drops at random"))
    source = facts.tensor(node.args[0])
    return Made(source.layout, (source.itself,), moves=0)


def _average(facts: ProgramFacts, node: fx.Node) -> Made:
    source = _image(facts, node.args[0])
    pixels = len(source.layout.axes) - 2
    taps = _by_axis(node.args[1], pixels)
    stride = _by_axis(argument(node, 2, "stride") or taps, pixels)
    padding = _by_axis(argument(node, 3, "padding", 0), pixels)
    if argument(node, 6, "divisor_override") is not None or argument(node, 4, "ceil_mode", False):
        raise StaysError(Kind.UNEQUAL_WINDOWS(how=HANGING if argument(node, 4, "ceil_mode", False) else OWN_DIVISOR))
    if any(padding) and not argument(node, 5, "count_include_pad", True):
        raise StaysError(Kind.UNEQUAL_WINDOWS(how=UNCOUNTED))
    term = average_term(source.name, source.layout.channels, taps, stride=stride, padding=padding * 2)
    return Made(source.layout, (term,))


def _adaptive(facts: ProgramFacts, node: fx.Node) -> Made:
    """Adaptive average pooling to one pixel, or to sides that divide the image's."""
    source = _image(facts, node.args[0])
    pixels = len(source.layout.axes) - 2
    wanted = _by_axis(node.args[1], pixels)
    if max(wanted) == 1:
        return Made(source.layout, (Term.average(source.name, source.layout.channels, Pool()),))
    taps = [
        side // count if isinstance(side, int) and side % count == 0 else 0
        for side, count in zip(source.sides(pixels), wanted, strict=True)
    ]
    if not all(taps):
        raise StaysError(
            Kind.UNEQUAL_WINDOWS(how=f"it pools to {list(wanted)} pixels, which do not divide its input's")
        )
    size = tuple(taps)
    return Made(
        source.layout,
        (average_term(source.name, source.layout.channels, size, stride=size, padding=(0,) * (2 * pixels)),),
    )


def _pad(facts: ProgramFacts, node: fx.Node) -> Made:
    source, amounts = _image(facts, node.args[0]), node.args[1]
    mode = argument(node, 2, "mode", "constant") if "constant" not in str(node.target) else "constant"
    value = argument(node, 2 if "constant" in str(node.target) else 3, "value", None)
    if mode != "constant" or value not in (None, 0, 0.0):
        how = f"in mode {mode}" if mode != "constant" else "with a constant that is not zero"
        raise StaysError(Kind.PADDED_WITH(how=how))
    sides = [a for a in amounts if isinstance(a, int)] if isinstance(amounts, (list, tuple)) else []
    pixels = len(source.layout.axes) - 2
    if len(sides) % 2 or not 2 <= len(sides) <= 2 * pixels or not isinstance(amounts, (list, tuple)):
        raise StaysError(Kind.PADDED_WITH(how="channels or the batch"))
    sides += [0] * (2 * pixels - len(sides))  # the last axis comes first
    padding = (*sides[-2::-2], *sides[::-2])
    return Made(source.layout, (grid_term(source.name, source.layout.channels, padding=padding),))


def _linear(facts: ProgramFacts, node: fx.Node) -> Made:
    source = facts.tensor(node.args[0])
    weight = _constant(facts, node.args[1], "weight")
    o, i = weight.shape
    bias = argument(node, 2, "bias")
    offset = None if bias is None else partial(Constant.stored, _tensor(facts, bias, "bias"))
    return replace(last_axis(source, partial(_double, weight), (o, i)), offset=offset)


_CONVOLUTIONS = frozenset((
    "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "linear",
))  # fmt: skip
_READERS: dict[str, Callable[[ProgramFacts, fx.Node], Made]] = {
    **dict.fromkeys((*map(str, CONVOLVE.values()), *PADDED), _conv),
    **dict.fromkeys(map(str, SPREAD.values()), _transposed), "aten.batch_norm.default": _batch_norm,
    FUNCTIONAL_NORM: _batch_norm, **dict.fromkeys(BY_BATCH_NORMS, _batch_norm),
    "aten.to.dtype": _same, "aten._to_copy.default": _same,
    "aten.add.Tensor": _sum, "aten.sub.Tensor": _sum, "aten.rsub.Scalar": _sum,
    "aten.mul.Tensor": _product, "aten.div.Tensor": _product,
    "aten.neg.default": _negative, "aten.dropout.default": _same, "aten.clone.default": _same,
    "aten.contiguous.default": _same, "aten.alias.default": _same, "aten.detach.default": _same,
    "aten.avg_pool1d.default": _average, "aten.adaptive_avg_pool1d.default": _adaptive,
    "aten.adaptive_avg_pool2d.default": _adaptive, "aten.adaptive_avg_pool3d.default": _adaptive,
    "aten.avg_pool2d.default": _average, "aten.avg_pool3d.default": _average, "aten.linear.default": _linear,
    "aten.pad.default": _pad, "aten.constant_pad_nd.default": _pad, **MOVES,
}  # fmt: skip
