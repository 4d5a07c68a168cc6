"""What a graph computes of constants alone: which tensors that are, and their values."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from math import prod

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from ....errors import FusionError, first_line
from ....files.onnx import stored_bytes
from ....limits import LARGEST_CONSTANT
from ...core.dims import Dim
from ...core.ordering import dependencies_first
from ..nodes import attributes, nested
from .evaluator import Evaluator

Array = NDArray[np.generic]

ALL_CONSTANTS = 2**32
"""Bytes of what is evaluated of one graph, all together; what is more is computed by whoever runs it."""
MOST_WORK = 2**35
"""Multiply-adds of all that is evaluated of one graph: seconds, and all that weights made by products need."""
_SMALL = 2**16
"""Bytes of a value that is kept for good, once it was computed or read."""
_HELD = 2**28
"""Bytes of larger values that are held at a time, in each precision; what was let go of is computed again."""

_NOT_REPEATED = frozenset((
    "Bernoulli", "Dropout", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike",
))  # fmt: skip
"""Operations that need not give the same each time."""

_GIVEN_SIZE = frozenset(("ConstantOfShape", "Expand", "OneHot", "Pad", "Range", "Resize", "Tile", "Upsample"))
"""Operations whose result is as large as the numbers they read say."""

_MULTIPLY = frozenset(("Conv", "ConvTranspose", "Einsum", "Gemm", "MatMul"))
"""Operations that take more than a few steps a number."""

_STEPPED = frozenset((
    "BitCast", "Ceil", "DynamicQuantizeLinear", "Floor", "Mod", "QuantizeLinear", "Round", "Sign", "ThresholdedRelu",
))  # fmt: skip
"""Operations that may give something else altogether of nearly the same numbers."""


class Constants:
    """The tensors of one graph that are the same in every run.

    Sizes and types are looked at when they are needed, so whoever finds out more of them writes it into `sides` and
    `types`. A value is computed when it is first asked for; of large ones only so many are held at a time.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        makers: Mapping[str, onnx.NodeProto],
        sides: Mapping[str, tuple[Dim, ...]],
        types: Mapping[str, int],
    ) -> None:
        self.stored = {t.name: t for t in model.graph.initializer}
        self._inputs = {value.name for value in model.graph.input}
        self._opsets = model.opset_import
        self._makers, self._sides, self._types = makers, sides, types
        self._known: dict[str, bool] = {}
        self._values, self._exact = _Held(_HELD), _Held(_HELD)
        self._room, self._work = ALL_CONSTANTS, MOST_WORK

    def is_constant(self, name: str) -> bool:
        """True for initialisers nobody can override, constants, and cheap operations on constants."""
        if name not in self._known:
            for each in dependencies_first(name, lambda n: [i for i in self._inputs_of(n) if i not in self._known]):
                self._known[each] = self._find(each)
        return self._known[name]

    def look_again(self) -> None:
        """Forget which tensors are no constants: more sizes may be known by the time that somebody asks again."""
        self._known = {name: True for name, known in self._known.items() if known}

    def _inputs_of(self, name: str) -> list[str]:
        node = self._makers.get(name)
        return [n for n in node.input if n] if node is not None and name not in self.stored else []

    def _find(self, name: str) -> bool:
        """Whether a tensor is constant, those before it having been looked at."""
        if name in self.stored:
            return name not in self._inputs
        node = self._makers.get(name)
        if node is None or node.domain not in ("", "ai.onnx"):
            return False
        if node.op_type == "Constant":
            return True
        if node.op_type in ("Shape", "Gather", "Slice") and self._size_of(node) is not None:
            return True
        if node.op_type == "CastLike":  # its second operand lends its type only
            return self.is_constant(node.input[0]) and bool(self._types.get(node.input[1]))
        if not node.input or node.op_type in _NOT_REPEATED or any(True for _ in nested(node)):
            return False
        if not all(self._known.get(n) for n in node.input if n) or not self._is_small(node):
            return False
        if self._room <= 0 or not self._takes_little(node):
            return False
        try:
            found = self._run(node)
        except FusionError:
            return False  # whatever the evaluator does not know is computed by whoever runs the graph
        self._values.update(found)
        return name in found

    def _is_small(self, node: onnx.NodeProto) -> bool:
        """True if what a node of constants gives is known beforehand to be within `LARGEST_CONSTANT`."""
        shapes = [self._sides.get(name) for name in node.output if name]
        known = [
            prod(d for d in shape if isinstance(d, int))
            for shape in shapes
            if shape is not None and all(isinstance(side, int) for side in shape)
        ]
        if len(known) == len(shapes):
            return max(known, default=0) <= LARGEST_CONSTANT
        values = [value for n in node.input if n and (value := self.as_run(n)) is not None]
        if node.op_type == "Range":
            start, limit, delta = (float(value.reshape(-1)[0]) for value in values)
            return delta != 0 and abs((limit - start) / delta) <= LARGEST_CONSTANT
        if node.op_type == "ConstantOfShape":
            return prod(map(int, values[0].reshape(-1))) <= LARGEST_CONSTANT
        if node.op_type == "Expand":
            sides = tuple(max(int(side), 1) for side in values[1].reshape(-1))
            return (
                _alike(values[0].shape, sides) and prod(np.broadcast_shapes(values[0].shape, sides)) <= LARGEST_CONSTANT
            )
        if node.op_type == "Concat":
            return sum(value.size for value in values) <= LARGEST_CONSTANT
        if node.op_type == "Pad" and len(values) > 1 and len(node.input) < 4:
            amounts = values[1].reshape(2, -1).sum(0)
            return prod(int(max(side, 1)) for side in values[0].shape + amounts) <= LARGEST_CONSTANT
        # No other operation gives more elements than all its operands' elements multiplied.
        return node.op_type not in _GIVEN_SIZE and prod(max(value.size, 1) for value in values) <= LARGEST_CONSTANT

    def _takes_little(self, node: onnx.NodeProto) -> bool:
        """True unless a node of constants multiplies matrices or moves a window, and takes more work than is left."""
        if node.op_type not in _MULTIPLY:
            return True
        values = [value for n in node.input if n and (value := self.as_run(n)) is not None]
        a, b = values[0], values[1] if len(values) > 1 else values[0]
        sides = [side for side in self._sides.get(node.output[0], ()) if isinstance(side, int)]
        if node.op_type in ("MatMul", "Gemm"):
            work = a.size * max(b.shape, default=1)
        elif node.op_type == "Einsum":
            work = _einsum_work(attributes(node).get("equation"), values)
        elif node.op_type == "Conv":
            work = max(prod(sides), a.size) * b.size // max(1, b.shape[0] if b.ndim else 1)
        else:
            work = max(prod(sides), a.size) * b.size
        self._work -= work
        return self._work >= 0

    def _size_of(self, node: onnx.NodeProto) -> Array | None:
        """What Shape, or Gather or Slice of a Shape, gives where those sides are known; the others may be open."""
        shape = node if node.op_type == "Shape" else self._makers.get(node.input[0])
        dims = looked_up(shape, self._sides) if shape is not None and shape.op_type == "Shape" else None
        if dims is None:
            return None
        sides = np.array([d if isinstance(d, int) else -1 for d in dims], dtype=np.int64)
        if shape is not node:
            where = places(node.op_type, len(dims), [self.as_run(name) for name in node.input[1:]])
            if where is None:
                return None
            sides = sides[where]
        return None if bool((sides < 0).any()) else sides

    def reads_sizes(self, name: str) -> bool:
        """True for a constant that is computed from the size of a tensor, which must not keep that tensor alive."""
        node = self._makers.get(name)
        if node is None or node.op_type == "Constant" or not self.is_constant(name):
            return False
        return any(not self.is_constant(n) or self.reads_sizes(n) for n in node.input if n)

    def constant(self, name: str) -> Array | None:
        """The value of a constant, None if it is none.

        What the graph stores comes as it stands. What it computes of that comes in float64: in the graph's own type
        it would be rounded at every step, and is to be rounded once, when it is written.

        Raises:
            FusionError: its bytes cannot be read.
        """
        if name in self.stored or not self.is_constant(name):
            return self.as_run(name)
        found = self._exact.get(name)
        if found is None:
            for each in dependencies_first(name, self._not_widened):
                found = self._widened(each)
                self._exact.update({} if found is None else {each: found})
        return found

    def _not_widened(self, name: str) -> list[str]:
        return [n for n in self._computed_of(name) if n not in self._exact]

    def _widened(self, name: str) -> Array | None:
        found, node = self._value(name), self._makers[name]
        if found is None or not is_float(found) or node.op_type in _STEPPED or self._room <= 0:
            return found
        feeds = {n: widened(v) for n in node.input if n and (v := self.constant(n)) is not None}
        if node.op_type in ("Cast", "CastLike"):
            value = feeds[node.input[0]]
            return value if is_float(value) else found
        if not any(map(is_float, feeds.values())):
            return found
        try:
            return self._run(node, feeds).get(name, found)
        except FusionError:
            return found  # it takes no float64

    def as_run(self, name: str) -> Array | None:
        """The value of a constant in the graph's own types, in which sizes and indices are computed; see `constant`.

        Raises:
            FusionError: its bytes cannot be read.
        """
        return self._value(name) if self.is_constant(name) else None

    def _value(self, name: str) -> Array | None:
        found = self._values.get(name)
        if found is not None:
            return found
        made: dict[str, Array] = {}
        for each in dependencies_first(name, lambda n: [i for i in self._computed_of(n) if i not in self._values]):
            made = self._evaluate(each)
            if each not in self.stored or stored_bytes(self.stored[each]) <= _SMALL:
                self._values.update(made)  # a stored weight is read where it is needed: held, it would be there twice
        return made.get(name)

    def _computed_of(self, name: str) -> list[str]:
        """What a constant's node reads that is computed, too."""
        return [n for n in self._inputs_of(name) if n not in self.stored and self._known.get(n)]

    def _evaluate(self, name: str) -> dict[str, Array]:
        """The value of a constant, and of what its node gives besides."""
        try:
            if name in self.stored:
                return {name: numpy_helper.to_array(self.stored[name])}
            node = self._makers[name]
            if node.op_type == "Constant":
                value = stored_number(node)
                return {} if value is None else {name: value}
            if node.op_type in ("Shape", "Gather", "Slice"):
                size = self._size_of(node)
                if size is not None:
                    return {name: size}
            if node.op_type == "CastLike":
                kind = helper.tensor_dtype_to_np_dtype(self._types[node.input[1]])
                value = self._value(node.input[0])
                return {} if value is None else {name: value.astype(kind)}
        except (ValueError, TypeError, RuntimeError, NotImplementedError, IndexError, OSError) as error:
            raise FusionError(f"the ONNX model's constant {name!r} cannot be read: {first_line(error)}") from error
        return self._run(node)

    def _run(self, node: onnx.NodeProto, feeds: dict[str, Array] | None = None) -> dict[str, Array]:
        """All that a node of constants gives, by name; of `feeds`, or of what the graph's own types make of them.

        Raises:
            FusionError: the evaluator cannot, or all that was evaluated is too much.
        """
        if self._room <= -ALL_CONSTANTS:
            raise FusionError(f"computing the ONNX model's constants, {node.output[0]!r} among them, takes too long")
        if feeds is None:
            feeds = {n: value for n in node.input if n and (value := self.as_run(n)) is not None}
        if node.op_type == "Identity":
            return {node.output[0]: feeds[node.input[0]]}
        outputs = [n for n in node.output if n]
        try:
            graph = helper.make_graph(
                [node],
                "constant",
                [_untyped(n, v) for n, v in feeds.items()],
                [onnx.ValueInfoProto(name=n) for n in outputs],
            )
            small = helper.make_model(graph, opset_imports=self._opsets)
            with np.errstate(all="ignore"):
                found = Evaluator(small).run(None, feeds)
        except Exception as error:  # each operation is somebody else's code
            why = f"the ONNX model's constant {node.output[0]!r} cannot be read: {first_line(error)}"
            raise FusionError(why) from error
        arrays = ((n, v) for n, v in zip(outputs, found, strict=True) if isinstance(v, (np.ndarray, np.generic)))
        made = {name: np.asarray(value) for name, value in arrays}
        self._room -= sum(value.nbytes for value in made.values())
        return made


class _Held:
    """Values by name: small ones for good, of large ones those that were asked for last."""

    def __init__(self, limit: int) -> None:
        self._limit, self._bytes = limit, 0
        self._small: dict[str, Array] = {}
        self._large: OrderedDict[str, Array] = OrderedDict()

    def __contains__(self, name: str) -> bool:
        return name in self._small or name in self._large

    def get(self, name: str) -> Array | None:
        """The value if it is held."""
        if name in self._large:
            self._large.move_to_end(name)
            return self._large[name]
        return self._small.get(name)

    def update(self, values: Mapping[str, Array]) -> None:
        """Hold values; others are let go of for it, but never the last."""
        for name, value in values.items():
            if value.nbytes <= _SMALL:
                self._small[name] = value
            elif name not in self._large:
                self._large[name] = value
                self._bytes += value.nbytes
        while self._bytes > self._limit and len(self._large) > 1:
            self._bytes -= self._large.popitem(last=False)[1].nbytes


def _alike(one: Sequence[int], other: Sequence[int]) -> bool:
    """True if the sides, counted from the last, are equal or 1."""
    return all(a in (b, 1) or b == 1 for a, b in zip(reversed(one), reversed(other), strict=False))


def _einsum_work(equation: object, values: list[Array]) -> int:
    """Multiply-adds at most: every combination of indices; of an equation with an ellipsis every pair of numbers."""
    terms = equation.decode().replace(" ", "").split("->")[0].split(",") if isinstance(equation, bytes) else []
    if any("." in term for term in terms) or [len(term) for term in terms] != [value.ndim for value in values]:
        return prod(value.size for value in values)
    sides: dict[str, int] = {}
    for term, value in zip(terms, values, strict=True):
        sides.update(zip(term, value.shape, strict=True))
    return prod(sides.values())


def is_float(value: Array) -> bool:
    """True for floating-point numbers; numpy calls bfloat16 no such type."""
    return value.dtype.kind == "f" or value.dtype.name == "bfloat16"


def widened(value: Array) -> Array:
    """Floating-point numbers in float64, others as they are."""
    return value.astype(np.float64) if is_float(value) else value


def _untyped(name: str, value: Array) -> onnx.ValueInfoProto:
    info: onnx.ValueInfoProto = helper.make_tensor_value_info(
        name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape
    )
    return info


def looked_up(node: onnx.NodeProto, sides: Mapping[str, tuple[Dim, ...]]) -> tuple[Dim, ...] | None:
    """The sides that a Shape gives, open ones too; None if nothing is known of the tensor."""
    dims = sides.get(node.input[0])
    if dims is None:
        return None
    known = attributes(node)
    start, end = known.get("start", 0), known.get("end", len(dims))
    return dims[start:end] if isinstance(start, int) and isinstance(end, int) else None


def places(kind: str, count: int, operands: Sequence[Array | None]) -> Array | None:
    """Which of a list of `count` numbers a Gather or a Slice takes; None where its operands do not tell.

    A Slice before opset 10 has attributes instead, and is not followed.
    """
    known = [value for value in operands if value is not None]
    if len(known) != len(operands) or not known:
        return None
    numbers = np.arange(count)
    if kind == "Gather":
        index = known[0].astype(np.int64)
        return numbers[index] if bool(((index >= -count) & (index < count)).all()) else None
    bounds = [int(value.reshape(-1)[0]) for value in known if value.size]  # starts, ends, axes, steps
    step = bounds[3] if len(bounds) > 3 else 1
    return numbers[bounds[0] : bounds[1] : step] if len(bounds) == len(known) > 1 and step else None


def stored_number(node: onnx.NodeProto) -> Array | None:
    """What a Constant node holds; None if that is no dense tensor of numbers."""
    known = attributes(node)
    for name, value in known.items():
        if name == "value" and isinstance(value, onnx.TensorProto):
            return numpy_helper.to_array(value)
        if name in ("value_float", "value_floats"):
            return np.asarray(value, dtype=np.float32)
        if name in ("value_int", "value_ints"):
            return np.asarray(value, dtype=np.int64)
    return None
