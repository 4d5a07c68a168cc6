"""An exported program's graph of ATen operations as affine steps."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, fx

from ..errors import GeometryError
from ..geometry import Pair
from ..kernels import batch_norm_affine
from ..refusal import Refusal
from .constant import Constant
from .cost import Cost, convolution, elementwise
from .expression import Term
from .not_affine import NotAffineError
from .operand import channelwise
from .program_facts import FUNCTIONAL_NORM, SPLITS, ProgramFacts, kind_of
from .step import Offset, Step
from .terms import average_term, concatenation, convolution_term, grid_term, matrix_term, scale_term, slice_term

_ROUNDING = {torch.float32: 2.0**-24, torch.float64: 2.0**-53, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
_TO_THE_END = 2**63 - 1
_Read = tuple[tuple[Term, ...], Offset | None]


def read_program(facts: ProgramFacts) -> tuple[list[Step], list[Refusal]]:
    """The affine steps of a graph in the order they run, and the refusals of those that almost are."""
    steps: list[Step] = []
    refusals: list[Refusal] = []
    for node in facts.module.graph.nodes:
        reader = _READERS.get(kind_of(node))
        if reader is None or facts.is_constant(node) or not facts.size(node):
            continue
        try:
            terms, offset = reader(facts, node)
            steps.append(_step(facts, node, terms, offset))
        except (NotAffineError, GeometryError) as error:
            if str(error):
                refusals.append(Refusal(facts.labels[node.name], str(error)))
    return steps, refusals


def _step(facts: ProgramFacts, node: fx.Node, terms: tuple[Term, ...], offset: Offset | None) -> Step:
    sources = [facts.nodes[term.source] for term in terms]
    dtype = node.meta["val"].dtype
    if dtype not in _ROUNDING or any(s.meta["val"].dtype != dtype for s in sources):
        raise NotAffineError("it computes in a type that is not float16, bfloat16, float32 or float64")
    if any(len(facts.size(s)) != len(facts.size(node)) for s in sources):
        raise NotAffineError
    kind = kind_of(node).split(".")[1]
    size = facts.nominal(node)
    if kind in ("conv2d", "linear"):
        cost = convolution(terms[0].form, facts.nominal(sources[0]), size)
    else:
        # Sums read each of their terms; what concatenation reads is as large as what it writes.
        cost = Cost() if kind in _FREE else elementwise(len(terms) if kind in ("add", "sub") else 1, size)
    return Step(node.name, facts.labels[node.name], kind, terms, cost, offset, _ROUNDING[dtype])


def _argument(node: fx.Node, position: int, name: str, default: object = None) -> object:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def _pair(value: object) -> Pair:
    numbers = [v for v in value if isinstance(v, int)] if isinstance(value, (list, tuple)) else [value]
    if not all(isinstance(v, int) for v in numbers) or len(numbers) not in (1, 2):
        raise NotAffineError
    return int(str(numbers[0])), int(str(numbers[-1]))


def _constant(facts: ProgramFacts, value: object, what: str) -> Tensor:
    found = facts.constant(value)
    if found is None:
        raise NotAffineError(f"its {what} is computed by the program, not a constant")
    return found


def _tensor(facts: ProgramFacts, value: object, what: str) -> Tensor:
    return _double(_constant(facts, value, what))


def _double(value: Tensor) -> Tensor:
    return value.double().cpu()


def _source(node: fx.Node, position: int = 0) -> fx.Node:
    source = node.args[position]
    if not isinstance(source, fx.Node):
        raise NotAffineError
    return source


def _conv(facts: ProgramFacts, node: fx.Node) -> _Read:
    weight = _constant(facts, node.args[1], "weight")
    dilation = _pair(_argument(node, 5, "dilation", [1, 1]))
    o, i, kh, kw = weight.shape
    padding = _argument(node, 4, "padding", [0, 0])
    if isinstance(padding, str):
        total = [d * (k - 1) if padding == "same" else 0 for d, k in zip(dilation, (kh, kw), strict=True)]
        top, left = total[0] // 2, total[1] // 2
        bottom, right = total[0] - top, total[1] - left
    else:
        top, left = bottom, right = _pair(padding)
    groups = _argument(node, 6, "groups", 1)
    term = convolution_term(
        _source(node).name, partial(_double, weight), (o, i, kh, kw),
        stride=_pair(_argument(node, 3, "stride", [1, 1])), padding=(top, left, bottom, right),
        dilation=dilation, groups=groups if isinstance(groups, int) else 1,
    )  # fmt: skip
    bias = _argument(node, 2, "bias")
    return (term,), None if bias is None else partial(Constant.stored, _tensor(facts, bias, "bias"))


def _batch_norm(facts: ProgramFacts, node: fx.Node) -> _Read:
    if node.target is operator.getitem:
        node = _source(node)
        _, weight, bias, mean, variance, _, eps = node.args[:7]
        training: object = False
    else:
        _, weight, bias, mean, variance, training, _, eps = node.args[:8]
    if training or mean is None or variance is None:
        raise NotAffineError("it normalises by the statistics of each batch, which is no fixed convolution")
    centre = _tensor(facts, mean, "mean")
    factor = None if weight is None else _tensor(facts, weight, "scale")
    added = torch.zeros_like(centre) if bias is None else _tensor(facts, bias, "shift")
    scale, _ = batch_norm_affine(centre, _tensor(facts, variance, "variance"), factor, None, float(str(eps)))
    if not bool(torch.isfinite(scale).all()):
        raise NotAffineError("its variance plus epsilon is not positive")
    offset = Constant.computed(added - centre * scale, added.abs() + (centre * scale).abs())
    return (scale_term(_source(node).name, scale),), lambda: offset


def _vector(facts: ProgramFacts, value: object, size: tuple[object, ...]) -> Tensor:
    """A constant operand of a tensor of `size` as one number a channel, [c]."""
    number = torch.tensor(float(value)) if isinstance(value, (int, float)) else _constant(facts, value, "operand")
    return channelwise(number, size)


def _sum(facts: ProgramFacts, node: fx.Node) -> _Read:
    operands = node.args[:2]
    tensors = [a for a in operands if isinstance(a, fx.Node) and facts.constant(a) is None]
    channels, size = facts.channels(tensors[0]), facts.size(node)
    alpha = node.kwargs.get("alpha", 1)
    second = float(alpha if isinstance(alpha, (int, float)) else 1) * (-1 if "sub" in str(node.target) else 1)
    terms: list[Term] = []
    offset: Tensor | None = None
    for sign, operand in zip((1.0, second), operands, strict=True):
        if not isinstance(operand, fx.Node) or operand not in tensors:
            offset = sign * _vector(facts, operand, facts.size(tensors[0]))
            continue
        if facts.size(operand) != size:
            raise NotAffineError(
                f"it adds tensors that may differ in size (broadcasting): {facts.size(operand)} and {size}"
            )
        unit = torch.full((channels,), sign, dtype=torch.float64)
        terms.append(Term.itself(operand.name, channels) if sign == 1 else scale_term(operand.name, unit))
    return tuple(terms), None if offset is None else partial(Constant.stored, offset)


def _product(facts: ProgramFacts, node: fx.Node) -> _Read:
    first, second = node.args[:2]
    if facts.constant(first) is not None or not isinstance(first, fx.Node):
        first, second = second, first
        if "div" in str(node.target):
            raise NotAffineError
    if not isinstance(first, fx.Node) or (isinstance(second, fx.Node) and facts.constant(second) is None):
        raise NotAffineError
    if facts.size(first) != facts.size(node) or node.kwargs:
        raise NotAffineError
    factors = _vector(facts, second, facts.size(first))
    return (scale_term(first.name, factors.reciprocal() if "div" in str(node.target) else factors),), None


def _negative(facts: ProgramFacts, node: fx.Node) -> _Read:
    source = _source(node)
    return (scale_term(source.name, -torch.ones(facts.channels(source), dtype=torch.float64)),), None


def _same(facts: ProgramFacts, node: fx.Node) -> _Read:
    if "dropout" in str(node.target) and node.args[2]:
        raise NotAffineError("it is in training mode and drops at random")
    return (Term.itself(_source(node).name, facts.channels(_source(node))),), None


def _average(facts: ProgramFacts, node: fx.Node) -> _Read:
    source = _source(node)
    taps = _pair(node.args[1])
    stride = _argument(node, 2, "stride") or taps
    rows, columns = _pair(_argument(node, 3, "padding", 0))
    if _argument(node, 6, "divisor_override") is not None or _argument(node, 4, "ceil_mode", False):
        raise NotAffineError("its windows at the border do not all average the same number of pixels")
    if (rows or columns) and not _argument(node, 5, "count_include_pad", True):
        raise NotAffineError("it averages without counting padded pixels, so its weights differ at the border")
    padding = (rows, columns, rows, columns)
    return (average_term(source.name, facts.channels(source), taps, stride=_pair(stride), padding=padding),), None


def _pad(facts: ProgramFacts, node: fx.Node) -> _Read:
    source, amounts = _source(node), node.args[1]
    mode = _argument(node, 2, "mode", "constant") if "constant" not in str(node.target) else "constant"
    value = _argument(node, 2 if "constant" in str(node.target) else 3, "value", None)
    if mode != "constant" or value not in (None, 0, 0.0):
        raise NotAffineError("it pads with something other than zeros")
    sides = [a for a in amounts if isinstance(a, int)] if isinstance(amounts, (list, tuple)) else []
    if len(sides) not in (2, 4) or len(facts.size(source)) != 4:
        raise NotAffineError
    left, right, top, bottom = [*sides, 0, 0][:4]
    return (grid_term(source.name, facts.channels(source), padding=(top, left, bottom, right)),), None


def _cat(facts: ProgramFacts, node: fx.Node) -> _Read:
    tensors, axis = node.args[0], _argument(node, 1, "dim", 0)
    if not isinstance(tensors, Sequence) or not isinstance(axis, int) or axis % len(facts.size(node)) != 1:
        raise NotAffineError
    sources = [(t.name, facts.channels(t)) for t in tensors if isinstance(t, fx.Node) and facts.constant(t) is None]
    if len(sources) < len(tensors):
        raise NotAffineError
    return concatenation(sources), None


def _slice(facts: ProgramFacts, node: fx.Node) -> _Read:
    source, axis = _source(node), _argument(node, 1, "dim", 0)
    start, end, step = _argument(node, 2, "start"), _argument(node, 3, "end"), _argument(node, 4, "step", 1)
    size = facts.size(source)
    if not isinstance(axis, int) or not isinstance(step, int) or not size:
        raise NotAffineError
    if not (start is None or isinstance(start, int)) or not (end is None or isinstance(end, int)):
        raise NotAffineError("where its slice begins or ends is computed by the program")
    if axis % len(size) == 0 and start in (None, 0) and (end is None or end == _TO_THE_END) and step == 1:
        return (Term.itself(source.name, facts.channels(source)),), None  # x[:, 1:] takes every image first
    return (slice_term(source.name, size, axis % len(size), start, end, step),), None


def _split(facts: ProgramFacts, node: fx.Node) -> _Read:
    """One element of what a split gives."""
    whole, position = _source(node), node.args[1]
    source, sizes, axis = _source(whole), whole.args[1], _argument(whole, 2, "dim", 0)
    size = facts.size(source)
    if not isinstance(axis, int) or not isinstance(position, int) or not size:
        raise NotAffineError
    axis %= len(size)
    if isinstance(sizes, int):
        side = size[axis]
        if "chunk" in str(whole.target):
            if not isinstance(side, int):
                raise NotAffineError("how large its chunks are depends on the open input size")
            sizes = -(-side // sizes)
        start, end = position * sizes, (position + 1) * sizes
    else:
        widths = [w for w in sizes if isinstance(w, int)] if isinstance(sizes, Sequence) else []
        if len(widths) <= position or not isinstance(sizes, Sequence) or len(widths) < len(sizes):
            raise NotAffineError
        start, end = sum(widths[:position]), sum(widths[: position + 1])
    return (slice_term(source.name, size, axis, start, end),), None


def _linear(facts: ProgramFacts, node: fx.Node) -> _Read:
    source = _source(node)
    if len(facts.size(source)) != 2:
        raise NotAffineError
    bias = _argument(node, 2, "bias")
    weight = _constant(facts, node.args[1], "weight")
    o, i = weight.shape
    term = matrix_term(source.name, partial(_double, weight), (o, i))
    return (term,), None if bias is None else partial(Constant.stored, _tensor(facts, bias, "bias"))


_FREE = frozenset(("to", "_to_copy", "dropout", "clone", "contiguous", "alias", "detach", "identity"))
_READERS: dict[str, Callable[[ProgramFacts, fx.Node], _Read]] = {
    "aten.conv2d.default": _conv, "aten.conv2d.padding": _conv, "aten.batch_norm.default": _batch_norm,
    FUNCTIONAL_NORM: _batch_norm, "aten.to.dtype": _same, "aten._to_copy.default": _same,
    "aten.add.Tensor": _sum, "aten.sub.Tensor": _sum, "aten.mul.Tensor": _product, "aten.div.Tensor": _product,
    "aten.neg.default": _negative, "aten.dropout.default": _same, "aten.clone.default": _same,
    "aten.contiguous.default": _same, "aten.alias.default": _same, "aten.detach.default": _same,
    "aten.avg_pool2d.default": _average, "aten.pad.default": _pad, "aten.constant_pad_nd.default": _pad,
    "aten.cat.default": _cat, "aten.slice.Tensor": _slice, "aten.linear.default": _linear,
    **dict.fromkeys(SPLITS, _split),
}  # fmt: skip
