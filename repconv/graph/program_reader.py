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
from .cost import Cost, convolution, elementwise
from .expression import Term
from .region import Offset, Step
from .sizes import NOMINAL
from .terms import average_term, concatenation, convolution_term, grid_term, matrix_term, scale_term, select_term

_ROUNDING = {torch.float32: 2.0**-23, torch.float64: 2.0**-52, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}
_Read = tuple[tuple[Term, ...], Offset | None]


_FUNCTIONAL_NORM = "aten._native_batch_norm_legit_no_training.default"

NORMS = ("aten.batch_norm.default", _FUNCTIONAL_NORM)
"""Batch normalisation as exported, and after functionalisation."""


class _NotAffineError(Exception):
    """A node that is no affine step; the message says why if it might have been one."""


class ProgramFacts:
    """Constants, types and sizes of the tensors of one graph module.

    A node is constant if it reads parameters and buffers only.
    """

    def __init__(self, module: fx.GraphModule) -> None:
        self.module = module
        self.nodes: dict[str, fx.Node] = {node.name: node for node in module.graph.nodes}
        self.labels = _labels(module.graph)
        """What reports call a node: the module it comes from and the operation."""
        self._constants: dict[fx.Node, Tensor | None] = {}

    def constant(self, node: object) -> Tensor | None:
        """The value of a constant node, None if it is none."""
        if not isinstance(node, fx.Node):
            return None
        if node not in self._constants:
            self._constants[node] = self._evaluate(node)
        return self._constants[node]

    def _evaluate(self, node: fx.Node) -> Tensor | None:
        if node.op == "get_attr":
            value: object = self.module
            for part in str(node.target).split("."):
                value = getattr(value, part)
            return value.detach() if isinstance(value, Tensor) else None
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):  # noqa: SLF001
            return None
        known = {n: self.constant(n) for n in node.all_input_nodes}
        if not known and node.target is not torch.ops.aten.zeros.default:
            return None
        if any(v is None for v in known.values()) or torch.Tag.nondeterministic_seeded in node.target.tags:
            return None
        arguments = fx.node.map_arg((node.args, node.kwargs), lambda n: known[n])
        with torch.no_grad():
            result = node.target(*arguments[0], **arguments[1])
        return result if isinstance(result, Tensor) else None

    def size(self, node: fx.Node) -> tuple[object, ...]:
        """The shape, open sides as text; the empty tuple if this is no tensor of rank 2 or 4."""
        value = node.meta.get("val")
        if not isinstance(value, Tensor) or value.dim() not in (2, 4):
            return ()
        return tuple(d if isinstance(d, int) else str(d) for d in value.shape)

    def nominal(self, node: fx.Node) -> tuple[int, int, int]:
        """Channels, height and width, `NOMINAL` where open."""
        sides = [d if isinstance(d, int) else NOMINAL for d in self.size(node)[1:]] + [1, 1]
        return sides[0], sides[1], sides[2]

    def channels(self, node: fx.Node) -> int:
        """How many channels a tensor has."""
        size = self.size(node)
        if not size or not isinstance(size[1], int):
            raise _NotAffineError
        return size[1]


def _labels(graph: fx.Graph) -> dict[str, str]:
    labels: dict[str, str] = {}
    taken: set[str] = set()
    for node in graph.nodes:
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        path = str(stack[-1][0]).partition("@")[0].removeprefix("L['self'].") if stack else ""
        kind = "batch_norm" if _kind(node) == _FUNCTIONAL_NORM else node.name
        if str(node.target).startswith("aten."):
            kind = str(node.target).split(".")[1]
        wanted = f"{path}/{kind}" if path else node.name
        name, count = wanted, 1
        while name in taken:
            name, count = f"{wanted}_{count}", count + 1
        taken.add(name)
        labels[node.name] = name
    return labels


def read_program(facts: ProgramFacts) -> tuple[list[Step], list[Refusal]]:
    """The affine steps of a graph in the order they run, and the refusals of those that almost are."""
    steps: list[Step] = []
    refusals: list[Refusal] = []
    for node in facts.module.graph.nodes:
        reader = _READERS.get(_kind(node))
        if reader is None or facts.constant(node) is not None or not facts.size(node):
            continue
        try:
            terms, offset = reader(facts, node)
            steps.append(_step(facts, node, terms, offset))
        except (_NotAffineError, GeometryError) as error:
            if str(error):
                refusals.append(Refusal(facts.labels[node.name], str(error)))
    return steps, refusals


def _kind(node: fx.Node) -> str:
    """The operation; a functional batch normalisation gives a tuple, whose first element is the tensor."""
    if node.op != "call_function":
        return ""
    if node.target is operator.getitem and node.args[1] == 0 and isinstance(node.args[0], fx.Node):
        inner = str(node.args[0].target)
        return inner if inner == _FUNCTIONAL_NORM else ""
    return "" if str(node.target) == _FUNCTIONAL_NORM else str(node.target)


def passes_through(node: fx.Node) -> bool:
    """True for a node that only an affine step reads on, so that it does not need its inputs itself."""
    return str(node.target) == _FUNCTIONAL_NORM and all(
        user.target is operator.getitem and user.args[1] == 0 for user in node.users
    )


def _step(facts: ProgramFacts, node: fx.Node, terms: tuple[Term, ...], offset: Offset | None) -> Step:
    sources = [facts.nodes[term.source] for term in terms]
    dtype = node.meta["val"].dtype
    if dtype not in _ROUNDING or any(s.meta["val"].dtype != dtype for s in sources):
        raise _NotAffineError("it computes in a type that is not float16, bfloat16, float32 or float64")
    if any(len(facts.size(s)) != len(facts.size(node)) for s in sources):
        raise _NotAffineError
    kind = _kind(node).split(".")[1]
    size = facts.nominal(node)
    if kind in ("conv2d", "linear"):
        cost = convolution(terms[0].form, facts.nominal(sources[0]), size)
    else:
        cost = Cost() if kind in _FREE else elementwise(len(terms), size)
    return Step(node.name, facts.labels[node.name], kind, terms, cost, offset, _ROUNDING[dtype])


def _argument(node: fx.Node, position: int, name: str, default: object = None) -> object:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def _pair(value: object) -> Pair:
    numbers = [v for v in value if isinstance(v, int)] if isinstance(value, (list, tuple)) else [value]
    if not all(isinstance(v, int) for v in numbers) or len(numbers) not in (1, 2):
        raise _NotAffineError
    return int(str(numbers[0])), int(str(numbers[-1]))


def _tensor(facts: ProgramFacts, value: object, what: str) -> Tensor:
    found = facts.constant(value)
    if found is None:
        raise _NotAffineError(f"its {what} is computed by the program, not a constant")
    return found.double().cpu()


def _source(node: fx.Node, position: int = 0) -> fx.Node:
    source = node.args[position]
    if not isinstance(source, fx.Node):
        raise _NotAffineError
    return source


def _plain(value: Tensor) -> tuple[Tensor, Tensor]:
    return value, value.abs()


def _conv(facts: ProgramFacts, node: fx.Node) -> _Read:
    weight = _tensor(facts, node.args[1], "weight")
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
        _source(node).name, lambda: weight, (o, i, kh, kw), stride=_pair(_argument(node, 3, "stride", [1, 1])),
        padding=(top, left, bottom, right), dilation=dilation, groups=groups if isinstance(groups, int) else 1,
    )  # fmt: skip
    bias = _argument(node, 2, "bias")
    return (term,), None if bias is None else partial(_plain, _tensor(facts, bias, "bias"))


def _batch_norm(facts: ProgramFacts, node: fx.Node) -> _Read:
    if node.target is operator.getitem:
        node = _source(node)
        _, weight, bias, mean, variance, _, eps = node.args[:7]
        training: object = False
    else:
        _, weight, bias, mean, variance, training, _, eps = node.args[:8]
    if training or mean is None or variance is None:
        raise _NotAffineError("it normalises by the statistics of each batch, which is no fixed convolution")
    centre = _tensor(facts, mean, "mean")
    factor = None if weight is None else _tensor(facts, weight, "scale")
    added = torch.zeros_like(centre) if bias is None else _tensor(facts, bias, "shift")
    scale, _ = batch_norm_affine(centre, _tensor(facts, variance, "variance"), factor, None, float(str(eps)))
    if not bool(torch.isfinite(scale).all()):
        raise _NotAffineError("its variance plus epsilon is not positive")
    offset = (added - centre * scale, added.abs() + (centre * scale).abs())
    return (scale_term(_source(node).name, scale),), lambda: offset


def _vector(facts: ProgramFacts, value: object, channels: int, rank: int) -> Tensor:
    """A constant operand as one number a channel, [c]."""
    if isinstance(value, (int, float)):
        return torch.full((channels,), float(value), dtype=torch.float64)
    found = _tensor(facts, value, "operand")
    if found.numel() == 1 and found.dim() <= rank:
        return found.reshape(1).expand(channels)
    if (1,) * (rank - found.dim()) + tuple(found.shape) != (1, channels, 1, 1)[:rank]:
        raise _NotAffineError(f"its constant of shape {list(found.shape)} is not one number a channel")
    return found.reshape(-1)


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
            offset = sign * _vector(facts, operand, channels, len(size))
            continue
        if facts.size(operand) != size:
            raise _NotAffineError(
                f"it adds tensors that may differ in size (broadcasting): {facts.size(operand)} and {size}"
            )
        unit = torch.full((channels,), sign, dtype=torch.float64)
        terms.append(Term.itself(operand.name, channels) if sign == 1 else scale_term(operand.name, unit))
    return tuple(terms), None if offset is None else partial(_plain, offset)


def _product(facts: ProgramFacts, node: fx.Node) -> _Read:
    first, second = node.args[:2]
    if facts.constant(first) is not None or not isinstance(first, fx.Node):
        first, second = second, first
        if "div" in str(node.target):
            raise _NotAffineError
    if not isinstance(first, fx.Node) or (isinstance(second, fx.Node) and facts.constant(second) is None):
        raise _NotAffineError
    if facts.size(first) != facts.size(node) or node.kwargs:
        raise _NotAffineError
    factors = _vector(facts, second, facts.channels(first), len(facts.size(node)))
    return (scale_term(first.name, factors.reciprocal() if "div" in str(node.target) else factors),), None


def _negative(facts: ProgramFacts, node: fx.Node) -> _Read:
    source = _source(node)
    return (scale_term(source.name, -torch.ones(facts.channels(source), dtype=torch.float64)),), None


def _same(facts: ProgramFacts, node: fx.Node) -> _Read:
    if "dropout" in str(node.target) and node.args[2]:
        raise _NotAffineError("it is in training mode and drops at random")
    return (Term.itself(_source(node).name, facts.channels(_source(node))),), None


def _average(facts: ProgramFacts, node: fx.Node) -> _Read:
    source = _source(node)
    taps = _pair(node.args[1])
    stride = _argument(node, 2, "stride") or taps
    rows, columns = _pair(_argument(node, 3, "padding", 0))
    if _argument(node, 6, "divisor_override") is not None or _argument(node, 4, "ceil_mode", False):
        raise _NotAffineError("its windows at the border do not all average the same number of pixels")
    if (rows or columns) and not _argument(node, 5, "count_include_pad", True):
        raise _NotAffineError("it averages without counting padded pixels, so its weights differ at the border")
    padding = (rows, columns, rows, columns)
    return (average_term(source.name, facts.channels(source), taps, stride=_pair(stride), padding=padding),), None


def _pad(facts: ProgramFacts, node: fx.Node) -> _Read:
    source, amounts = _source(node), node.args[1]
    mode = _argument(node, 2, "mode", "constant") if "constant" not in str(node.target) else "constant"
    value = _argument(node, 2 if "constant" in str(node.target) else 3, "value", None)
    if mode != "constant" or value not in (None, 0, 0.0):
        raise _NotAffineError("it pads with something other than zeros")
    sides = [a for a in amounts if isinstance(a, int)] if isinstance(amounts, (list, tuple)) else []
    if len(sides) not in (2, 4) or len(facts.size(source)) != 4:
        raise _NotAffineError
    left, right, top, bottom = [*sides, 0, 0][:4]
    return (grid_term(source.name, facts.channels(source), padding=(top, left, bottom, right)),), None


def _cat(facts: ProgramFacts, node: fx.Node) -> _Read:
    tensors, axis = node.args[0], _argument(node, 1, "dim", 0)
    if not isinstance(tensors, Sequence) or not isinstance(axis, int) or axis % len(facts.size(node)) != 1:
        raise _NotAffineError
    sources = [(t.name, facts.channels(t)) for t in tensors if isinstance(t, fx.Node) and facts.constant(t) is None]
    if len(sources) < len(tensors):
        raise _NotAffineError
    return concatenation(sources), None


def _slice(facts: ProgramFacts, node: fx.Node) -> _Read:
    source, axis = _source(node), _argument(node, 1, "dim", 0)
    bounds = [_argument(node, 2, "start"), _argument(node, 3, "end"), _argument(node, 4, "step", 1)]
    if axis != 1 or any(not isinstance(b, int) and b is not None for b in bounds):
        raise _NotAffineError
    channels = facts.channels(source)
    start, end, step = (b if isinstance(b, int) else None for b in bounds)
    return (select_term(source.name, channels, range(channels)[start:end:step]),), None


def _linear(facts: ProgramFacts, node: fx.Node) -> _Read:
    source = _source(node)
    if len(facts.size(source)) != 2:
        raise _NotAffineError
    bias = _argument(node, 2, "bias")
    term = matrix_term(source.name, _tensor(facts, node.args[1], "weight"))
    return (term,), None if bias is None else partial(_plain, _tensor(facts, bias, "bias"))


_FREE = frozenset(("to", "_to_copy", "dropout", "clone", "contiguous", "alias", "detach", "identity"))
_READERS: dict[str, Callable[[ProgramFacts, fx.Node], _Read]] = {
    "aten.conv2d.default": _conv, "aten.conv2d.padding": _conv, "aten.batch_norm.default": _batch_norm,
    _FUNCTIONAL_NORM: _batch_norm, "aten.to.dtype": _same, "aten._to_copy.default": _same,
    "aten.add.Tensor": _sum, "aten.sub.Tensor": _sum, "aten.mul.Tensor": _product, "aten.div.Tensor": _product,
    "aten.neg.default": _negative, "aten.dropout.default": _same, "aten.clone.default": _same,
    "aten.contiguous.default": _same, "aten.alias.default": _same, "aten.detach.default": _same,
    "aten.avg_pool2d.default": _average, "aten.pad.default": _pad, "aten.constant_pad_nd.default": _pad,
    "aten.cat.default": _cat, "aten.slice.Tensor": _slice, "aten.linear.default": _linear,
}  # fmt: skip
