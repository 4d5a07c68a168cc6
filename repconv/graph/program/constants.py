"""What an exported program computes of parameters and buffers alone: which tensors that are, and their values."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves, tree_map

from ...limits import LARGEST_CONSTANT
from ..core.ordering import dependencies_first
from ..core.reasons import Kind, StaysError
from ..planning.operands import Held

_STEPPED = frozenset((
    "bucketize", "ceil", "div.Tensor_mode", "div.Scalar_mode", "fake_quantize_per_channel_affine",
    "fake_quantize_per_tensor_affine", "floor", "floor_divide", "fmod", "frac", "heaviside", "nextafter", "remainder",
    "round", "sgn", "sign", "trunc", "view.dtype",
))  # fmt: skip
"""Operations that may give something else altogether of nearly the same numbers, by name or by name and overload."""

_LAYS_OUT = frozenset((
    "alias", "clone", "contiguous", "detach", "permute", "reshape", "squeeze", "t", "to", "_to_copy", "transpose",
    "unsqueeze", "view", "_unsafe_view",
))  # fmt: skip
"""Operations that lay out anew, or cast."""


class ProgramConstants:
    """Constants of one graph module.

    A node is constant if nothing it depends on is an input of the program, and running it again gives the same. `exact`
    has more precise values of some parameters, by their names in `module`.
    """

    def __init__(self, module: fx.GraphModule, exact: Mapping[str, Tensor] | None = None) -> None:
        self.module = module
        self.nodes: dict[str, fx.Node] = {node.name: node for node in module.graph.nodes}
        self._exact = exact or {}
        self._changing = _changing(module.graph)
        self._constants: dict[fx.Node, Any] = {}
        self._widened: dict[fx.Node, Any] = {}

    def constant(self, node: object) -> Tensor | None:
        """The value of a constant node, None if it is none.

        What the program stores comes as it stands. What it computes of that comes in float64: in the program's own type
        it would be rounded at every step, and is to be rounded once, when it is written.
        """
        if not isinstance(node, fx.Node) or not isinstance(self._value(node), Tensor):
            return None
        for each in dependencies_first(node, lambda n: [m for m in n.all_input_nodes if m not in self._widened]):
            if each not in self._widened:
                self._widened[each] = self._value(each)
                if _is_smooth(each):
                    with contextlib.suppress(RuntimeError, TypeError, ValueError):  # of what takes no float64
                        self._widened[each] = self._run(each, self._widened)
        found: Tensor = self._widened[node]
        return found

    def is_constant(self, node: fx.Node) -> bool:
        """True for a node whose value, one tensor or several, is the same in every run."""
        return self._value(node) is not None

    def _value(self, node: fx.Node) -> object:
        """What a constant node gives; None if it is none."""
        for each in dependencies_first(node, lambda n: [m for m in n.all_input_nodes if m not in self._constants]):
            if each not in self._constants:
                self._constants[each] = self._evaluate(each)
        return self._constants[node]

    def _evaluate(self, node: fx.Node) -> object:
        """Run a node whose inputs have been looked at; None if one is not constant, or running it is out of bounds."""
        if node.op == "get_attr":
            if str(node.target) in self._changing:
                return None
            if str(node.target) in self._exact:
                return self._exact[str(node.target)]
            value: object = self.module
            for part in str(node.target).split("."):
                value = getattr(value, part)
            return value.detach() if isinstance(value, Tensor) else None
        if node.op != "call_function" or any(self._constants[n] is None for n in node.all_input_nodes):
            return None
        if not _repeats(node.target) or not _is_small(node.meta.get("val")):
            return None
        return self._run(node, self._constants)

    def _run(self, node: fx.Node, known: Mapping[fx.Node, Any]) -> object:
        """What a node gives of `known` values, which are float64 if they are those that are `_widened`."""
        arguments: Any = fx.node.map_arg(node.args, known.__getitem__)
        options: Any = fx.node.map_arg(node.kwargs, known.__getitem__)
        if known is self._widened:
            arguments, options = tree_map(_in_float64, (arguments, options))
        function: Any = node.target
        with torch.no_grad():
            return _detached(function(*arguments, **options))

    def held(self, name: str) -> Held:
        """A constant of the program, and what it is computed of."""
        node = self.nodes[name]
        tensors = [each for each in tree_leaves(self._value(node)) if isinstance(each, Tensor)]
        width = max((each.itemsize for each in tensors), default=0)
        moves = _name(node) in _LAYS_OUT
        return Held(sum(t.numel() for t in tensors), width, tuple(n.name for n in node.all_input_nodes), moves)

    def factors(self, nodes: Iterable[fx.Node]) -> list[str]:
        """Those of some nodes that are constants of floating-point numbers, or several of them, by name."""
        known = {node.name: tree_leaves(self._value(node)) for node in nodes if self.is_constant(node)}
        return [n for n, found in known.items() if any(isinstance(t, Tensor) and t.is_floating_point() for t in found)]

    def not_quantised(self, node: fx.Node) -> None:
        """Refuse constants that a program stores as quantised integers.

        Raises:
            StaysError: it reads one.
        """
        for name in self.factors(operands(node)):
            makers = dependencies_first(self.nodes[name], lambda n: n.all_input_nodes)
            if any("dequantize" in str(maker.target) for maker in makers if maker.op == "call_function"):
                raise StaysError(Kind.QUANTISED(name=name))


def operands(node: fx.Node) -> list[fx.Node]:
    """What a node reads; of one that takes one of several results, what their maker does."""
    maker = node.args[0] if node.target is operator.getitem else node
    return maker.all_input_nodes if isinstance(maker, fx.Node) else []


def _is_smooth(node: fx.Node) -> bool:
    """True for an operation that gives floating-point numbers, without steps."""
    value = node.meta.get("val")
    found = value if isinstance(value, (tuple, list)) else (value,)
    floats = all(isinstance(each, Tensor) and each.is_floating_point() for each in found)
    if not floats or fills(node):
        return False
    names = {_name(node), str(node.target).partition(".")[2]}
    return node.target is operator.getitem or (str(node.target).startswith("aten.") and _STEPPED.isdisjoint(names))


def fills(node: fx.Node) -> bool:
    """True for an operation that makes a tensor of a number, which counts as the program's type holds it."""
    return not node.all_input_nodes or _name(node) in ("new_full", "full_like")


def _name(node: fx.Node) -> str:
    """Of an ATen operation, without its overload."""
    return str(node.target).split(".")[1] if str(node.target).startswith("aten.") else ""


def _in_float64(argument: object) -> object:
    """A floating-point tensor in float64, and that type for any such type that is asked for."""
    if isinstance(argument, Tensor):
        return argument.double() if argument.is_floating_point() else argument
    return torch.float64 if isinstance(argument, torch.dtype) and argument.is_floating_point else argument


def _changing(graph: fx.Graph) -> set[str]:
    """The names of buffers that the program writes into, so that the next run finds other numbers there."""
    written = [node.args[0] for node in graph.nodes if str(node.target) == "aten.copy_.default"]
    return {str(node.target) for node in written if isinstance(node, fx.Node) and node.op == "get_attr"}


def _repeats(target: object) -> bool:
    """True for an operation that gives the same each time and changes nothing."""
    if target is operator.getitem:
        return True
    if not isinstance(target, torch._ops.OpOverload):  # noqa: SLF001
        return False
    return torch.Tag.nondeterministic_seeded not in target.tags and not target._schema.is_mutable  # noqa: SLF001


def _is_small(value: object) -> bool:
    """True if what a node gives, known by its type alone, is of fixed size and no larger than `LARGEST_CONSTANT`."""
    if isinstance(value, Tensor):
        sides = [d if isinstance(d, int) else LARGEST_CONSTANT + 1 for d in value.shape]
        return prod(sides) <= LARGEST_CONSTANT
    return value is None or (isinstance(value, Sequence) and all(_is_small(each) for each in value))


def _detached(value: object) -> object:
    if isinstance(value, Tensor):
        return value.detach()
    return tuple(map(_detached, value)) if isinstance(value, (tuple, list)) else value
