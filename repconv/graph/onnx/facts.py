"""What is known of an ONNX graph's tensors before anything is fused: constants, types and sizes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import prod

import numpy as np
import onnx
import onnx.reference
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from ...algebra.geometry import with_flat
from ...errors import FusionError, GeometryError
from ...files.onnx import without_weights
from ...limits import LARGEST_TENSOR
from ..core.dims import Dim, Dims, broadcast, symbol, told
from ..core.reasons import Kind, StaysError
from ..maps.canvas import Canvas
from ..maps.carried import Carried, Reader
from ..maps.layout import MOST_PIXEL_AXES, Layout, with_channels_at

Array = NDArray[np.generic]

_KEPT = 1 << 16
"""Bytes of a stored weight that is kept as an array besides, having been read once."""

LARGEST_CONSTANT = 2**26
"""A constant of more elements is not evaluated: it would take 256 MB in float32."""
ALL_CONSTANTS = 2**30
"""Bytes of what is evaluated of one graph, all together; what is more is computed by whoever runs it."""
MOST_WORK = 2**30
"""Multiply-adds of all that is evaluated of one graph."""

_NOT_REPEATED = frozenset((
    "Bernoulli", "Dropout", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike",
))  # fmt: skip
"""Operations that need not give the same each time."""

_GIVEN_SIZE = frozenset(("ConstantOfShape", "Expand", "OneHot", "Pad", "Range", "Resize", "Tile", "Upsample"))
"""Operations whose result is as large as the numbers they read say."""

_MULTIPLY = frozenset(("Conv", "ConvTranspose", "Einsum", "Gemm", "MatMul"))
"""Operations that take more than a few steps a number."""

_SMOOTH = frozenset((
    "Abs", "Add", "BatchNormalization", "Cast", "CastLike", "Concat", "Conv", "Div", "Exp", "Expand", "Flatten",
    "Gather", "Gemm", "Identity", "Log", "MatMul", "Max", "Mean", "Min", "Mul", "Neg", "Pad", "Pow", "Reciprocal",
    "ReduceMean", "ReduceSum", "Reshape", "Sigmoid", "Slice", "Softmax", "Sqrt", "Squeeze", "Sub", "Sum", "Tanh",
    "Tile", "Transpose", "Unsqueeze", "Where",
))  # fmt: skip
"""Operations that give nearly the same of nearly the same numbers: no steps, such as those of Floor."""

EPSILON = float(np.float32(1e-5))
"""Batch normalisation's where a node says nothing; attributes are float32."""

KEEPS_SIZE = frozenset((
    "Relu", "Sigmoid", "HardSigmoid", "HardSwish", "LeakyRelu", "PRelu", "Elu", "Selu", "Celu", "Softplus",
    "Softsign", "Tanh", "Clip", "Gelu", "Erf", "Mish", "Swish", "Cast", "Identity", "Dropout", "Neg", "Abs",
    "Exp", "Sqrt", "BatchNormalization", "InstanceNormalization", "GroupNormalization",
))  # fmt: skip
_ELEMENTWISE = frozenset(("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Sum"))


def nested(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The subgraphs of a node (If, Loop, Scan)."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def captured(graph: onnx.GraphProto) -> set[str]:
    """Every name that nodes of subgraphs read, wherever it is made."""
    return set().union(*(captured_by(node) for node in graph.node))


def captured_by(node: onnx.NodeProto) -> set[str]:
    """Every name that is read inside a node's subgraphs, wherever it is made."""
    found: set[str] = set()
    pending = list(nested(node))
    while pending:
        sub = pending.pop()
        found.update(value.name for value in sub.output)
        for inner in sub.node:
            found.update(inner.input)
            pending.extend(nested(inner))
    return found


def attributes(node: onnx.NodeProto) -> dict[str, object]:
    """A node's attributes by name."""
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def label(node: onnx.NodeProto) -> str:
    """What a report calls a node: its name, or its first output."""
    return node.name or next(iter(node.output), "")


class Facts:
    """Constants, element types and sizes of the tensors of one graph.

    Raises:
        FusionError: shapes that contradict each other.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        self.model = model
        self.opset = max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=1)
        self.inputs = {value.name for value in graph.input}
        self.initializers = {t.name: t for t in graph.initializer}
        self.sparse = {t.values.name for t in graph.sparse_initializer}
        self.sparse.update(
            n.output[0]
            for n in graph.node
            if n.op_type == "Constant" and any(a.name == "sparse_value" for a in n.attribute)
        )
        self.makers = {name: node for node in graph.node for name in node.output if name}
        self.named: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        """Nodes by name, or by first output where they have none; names need not be unique."""
        for node in graph.node:
            self.named[label(node)].append(node)
        self.types: dict[str, int] = {t.name: t.data_type for t in graph.initializer}
        self.sides: dict[str, tuple[Dim, ...]] = {}
        """The sides of every tensor whose rank is known."""
        self._carried: dict[str, Carried] = {}
        self.canvases: dict[str, Canvas] = {}
        """Tensors put together of a window onto another and constants."""
        self._channel_axes: dict[str, int] = {}
        self._values: dict[str, Array | None] = {}
        self._exact: dict[str, Array | None] = {}
        self._constant: dict[str, bool] = {}
        self._room, self._work = ALL_CONSTANTS, MOST_WORK
        self._infer(model)
        self._channel_axes = channel_axes(graph.node, self.sides)
        self._readers = _readers(graph.node)

    def _infer(self, model: onnx.ModelProto) -> None:
        light = without_weights(model)
        # Following numbers, inference writes out every one of a Range, however long.
        follow = not any(self._is_long(node) for node in model.graph.node if node.op_type == "Range")
        try:
            inferred = onnx.shape_inference.infer_shapes(light, data_prop=follow)
        except (onnx.shape_inference.InferenceError, ValueError, RuntimeError) as error:
            raise FusionError(f"the ONNX model's shapes contradict each other: {first_line(error)}") from error
        for value in (*inferred.graph.input, *inferred.graph.output, *inferred.graph.value_info):
            tensor_type = value.type.tensor_type
            self.types.setdefault(value.name, tensor_type.elem_type)
            if not tensor_type.HasField("shape"):
                continue
            if prod(d.dim_value for d in tensor_type.shape.dim if d.HasField("dim_value")) > LARGEST_TENSOR:
                said = "x".join(str(d.dim_value or d.dim_param or "?") for d in tensor_type.shape.dim)
                raise FusionError(f"the tensor {value.name} would be {said}, more numbers than any machine holds")
            self.sides[value.name] = tuple(
                d.dim_value if d.HasField("dim_value") else symbol(d.dim_param or f"{value.name}#{axis}")
                for axis, d in enumerate(tensor_type.shape.dim)
            )

    def _is_long(self, node: onnx.NodeProto) -> bool:
        """True for a Range of stored numbers that has more elements than a constant may have."""
        held = [self._stored(name) for name in node.input]
        numbers = [float(value.reshape(-1)[0]) for value in held if value is not None and value.size == 1]
        if len(numbers) != 3 or not numbers[2]:
            return False
        return abs((numbers[1] - numbers[0]) / numbers[2]) > LARGEST_CONSTANT

    def _stored(self, name: str) -> Array | None:
        """A number that the graph holds as it stands."""
        maker = self.makers.get(name)
        if name in self.initializers:
            return numpy_helper.to_array(self.initializers[name])
        return _constant_node(maker) if maker is not None and maker.op_type == "Constant" else None

    def tensor(self, name: str) -> Carried:
        """A tensor that is computed, as convolutions see it.

        Raises:
            StaysError: it has no layout.
        """
        if name not in self._carried:
            sides, axis = self.sides.get(name, ()), self._channel_axes.get(name, 1)
            width = sides[axis] if len(sides) > 1 else 0
            if self.is_constant(name):
                raise StaysError
            if not isinstance(width, int) or width < 1:
                raise StaysError(Kind.NO_CHANNELS(name=name))
            try:
                layout = with_channels_at(axis, width, len(sides))
            except GeometryError:
                raise StaysError(Kind.NO_CHANNELS(name=name)) from None
            dims: list[Dim] = [1, width, *(1,) * MOST_PIXEL_AXES]
            for side, parts in zip(sides, layout.axes, strict=True):
                if parts[0].kind != "channels":
                    dims[0 if parts[0].kind == "batch" else 2 + parts[0].number] = side
            self._carried[name] = Carried(name, layout, told(dims))
        return self._carried[name]

    @property
    def placed(self) -> Mapping[str, Carried]:
        """The tensors whose layout was asked for, by name."""
        return self._carried

    def place(self, name: str, layout: Layout, dims: Dims) -> Carried:
        """Note the layout and size of a tensor; sides that are known already stay.

        Raises:
            StaysError: its reader does not take that layout, so it is better a tensor of its own, as it stands.
        """
        known, found = list(self.sides.get(name, ())), [*with_flat(dims, 2 + MOST_PIXEL_AXES, 1)]
        if len(known) != len(layout.axes):
            known = [symbol(f"{name}#{axis}") for axis in range(len(layout.axes))]
        for axis, parts in enumerate(layout.axes):
            if len(parts) == 1 and parts[0].kind != "channels":
                number = 0 if parts[0].kind == "batch" else 2 + parts[0].number
                side = known[axis]
                found[number] = known[axis] = side if isinstance(side, int) else found[number]
        tensor = Carried(name, layout, told(found))
        if not tensor.suits(self._readers.get(name)):
            raise StaysError(Kind.PIXELS(does="it makes channels, images or pixels of one another"))
        whole = tensor.size
        self.sides[name] = tuple(
            side if isinstance(side, int) else (total if isinstance(total, (int, tuple)) else side)
            for side, total in zip(known, whole, strict=True)
        )
        self._carried[name] = tensor
        return tensor

    def refine(self, node: onnx.NodeProto) -> None:
        """Replace open sides of what `node` makes by those of what it reads, where its kind says they are equal."""
        if not node.output or node.domain not in ("", "ai.onnx") or self.is_constant(node.output[0]):
            return
        known = self.sides.get(node.output[0])
        if known is not None and all(isinstance(side, int) for side in known):
            return
        sources = [self.sides.get(name) for name in node.input if name and not self.is_constant(name)]
        found: tuple[Dim, ...] | None = None
        if node.op_type in KEEPS_SIZE and sources:
            found = sources[0]
        elif node.op_type in _ELEMENTWISE and sources and None not in sources and self._constants_broadcast(node):
            found = sources[0]
            for other in sources[1:]:
                found = broadcast(found, other) if found is not None and other is not None else None
        if found is not None and (known is None or len(known) == len(found)):
            sides = zip(known or found, found, strict=True)
            self.sides[node.output[0]] = tuple(mine if isinstance(mine, int) else theirs for mine, theirs in sides)

    def _constants_broadcast(self, node: onnx.NodeProto) -> bool:
        """True if no constant operand can make the result larger than the tensors: at most one number a channel."""
        for name in node.input:
            if self.is_constant(name):
                value = self.constant(name)
                if value is None or value.size != 1:
                    return False
        return True

    def is_constant(self, name: str) -> bool:
        """True for initialisers nobody can override, constants, and cheap operations on constants."""
        if name not in self._constant:
            self._constant[name] = self._find_constant(name)
        return self._constant[name]

    def _find_constant(self, name: str) -> bool:
        if name in self.initializers:
            return name not in self.inputs
        node = self.makers.get(name)
        if node is None or node.domain not in ("", "ai.onnx"):
            return False
        if node.op_type == "Constant":
            return True
        if node.op_type in ("Shape", "Gather", "Slice") and self._size_of(node) is not None:
            return True
        if node.op_type == "CastLike":  # its second operand lends its type only
            return self.is_constant(node.input[0]) and bool(self.types.get(node.input[1]))
        if not node.input or node.op_type in _NOT_REPEATED or any(True for _ in nested(node)):
            return False
        if not all(self.is_constant(n) for n in node.input if n) or not self._is_small(node):
            return False
        if self._room <= 0 or not self._takes_little(node):
            return False
        try:
            self._values.update(self._run(node))
        except FusionError:
            return False  # whatever the evaluator does not know is computed by whoever runs the graph
        return self._values.get(name) is not None

    def _is_small(self, node: onnx.NodeProto) -> bool:
        """True if what a node of constants gives is known beforehand to be within `LARGEST_CONSTANT`."""
        shapes = [self.sides.get(name) for name in node.output if name]
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
            return values[0].size * prod(max(int(side), 1) for side in values[1].reshape(-1)) <= LARGEST_CONSTANT
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
        sides = [side for side in self.sides.get(node.output[0], ()) if isinstance(side, int)]
        if node.op_type in ("MatMul", "Gemm"):
            work = a.size * max(b.shape, default=1)
        elif node.op_type == "Conv":
            work = max(prod(sides), a.size) * b.size // max(1, b.shape[0] if b.ndim else 1)
        else:
            work = max(prod(sides), a.size) * b.size
        self._work -= work
        return self._work >= 0

    def _size_of(self, node: onnx.NodeProto) -> Array | None:
        """What Shape, or Gather or Slice of a Shape, gives where those sides are known; the others may be open."""
        taken: list[Array | None] = []
        if node.op_type != "Shape":
            shape = self.makers.get(node.input[0])
            if shape is None or shape.op_type != "Shape":
                return None
            taken = [self.as_run(name) for name in node.input[1:] if name]
            if any(value is None for value in taken):
                return None
        else:
            shape = node
        dims = self.sides.get(shape.input[0])
        if dims is None:
            return None
        known = attributes(shape)
        start, end = known.get("start", 0), known.get("end", len(dims))
        if not isinstance(start, int) or not isinstance(end, int):
            return None
        sides = np.array([d if isinstance(d, int) else -1 for d in dims[start:end]], dtype=np.int64)
        numbers = [value.astype(np.int64) for value in taken if value is not None]
        if node.op_type == "Gather":
            sides = sides[numbers[0]]
        elif node.op_type == "Slice":
            if not numbers:  # before opset 10 the ends are attributes
                return None
            first, last = (int(value.reshape(-1)[0]) for value in numbers[:2])
            sides = sides[first : last : int(numbers[3].reshape(-1)[0]) if len(numbers) > 3 else 1]
        return None if bool((sides < 0).any()) else sides

    def reads_sizes(self, name: str) -> bool:
        """True for a constant that is computed from the size of a tensor, which must not keep that tensor alive."""
        node = self.makers.get(name)
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
        if name in self.initializers:
            return self.as_run(name)
        if name not in self._exact:
            self._exact[name] = self._widened(name)
        return self._exact[name]

    def _widened(self, name: str) -> Array | None:
        found, node = self.as_run(name), self.makers.get(name)
        if found is None or node is None or name in self.initializers or not is_float(found):
            return found
        if node.op_type not in _SMOOTH or self._room <= 0:
            return found
        feeds = {n: widened(v) for n in node.input if n and (v := self.constant(n)) is not None}
        if node.op_type in ("Cast", "CastLike"):
            value = feeds[node.input[0]]
            return value if is_float(value) else found
        return self._run(node, feeds).get(name) if any(map(is_float, feeds.values())) else found

    def as_run(self, name: str) -> Array | None:
        """The value of a constant in the graph's own types, in which sizes and indices are computed; see `constant`.

        Raises:
            FusionError: its bytes cannot be read.
        """
        if name in self.initializers and self.initializers[name].ByteSize() > _KEPT:
            return self._evaluate(name)  # whoever needs it reads it once; kept, all weights were held twice
        if name not in self._values:
            self._values[name] = self._evaluate(name) if self.is_constant(name) else None
        return self._values[name]

    def _evaluate(self, name: str) -> Array | None:
        try:
            if name in self.initializers:
                return numpy_helper.to_array(self.initializers[name])
            node = self.makers[name]
            if node.op_type == "Constant":
                return _constant_node(node)
            if node.op_type in ("Shape", "Gather", "Slice"):
                size = self._size_of(node)
                if size is not None:
                    return size
            if node.op_type == "CastLike":
                value = self.as_run(node.input[0])
                kind = helper.tensor_dtype_to_np_dtype(self.types[node.input[1]])
                return None if value is None else value.astype(kind)
        except (ValueError, TypeError, RuntimeError, NotImplementedError, IndexError, OSError) as error:
            raise FusionError(f"the ONNX model's constant {name!r} cannot be read: {first_line(error)}") from error
        return self._run(node).get(name)

    def _run(self, node: onnx.NodeProto, feeds: dict[str, Array] | None = None) -> dict[str, Array]:
        """All that a node of constants gives, by name; of `feeds`, or of what the graph's own types make of them.

        Raises:
            FusionError: the evaluator cannot.
        """
        if feeds is None:
            feeds = {n: value for n in node.input if n and (value := self.as_run(n)) is not None}
        if node.op_type == "Identity":
            return {node.output[0]: feeds[node.input[0]]}
        outputs = [n for n in node.output if n]
        try:
            if node.op_type == "BatchNormalization":
                return {node.output[0]: _normalised(node, [feeds[n] for n in node.input])}
            graph = helper.make_graph(
                [node],
                "constant",
                [_untyped(n, v) for n, v in feeds.items()],
                [onnx.ValueInfoProto(name=n) for n in outputs],
            )
            small = helper.make_model(graph, opset_imports=self.model.opset_import)
            with np.errstate(all="ignore"):
                found = onnx.reference.ReferenceEvaluator(small).run(None, feeds)
        except Exception as error:  # each operation is somebody else's code
            why = f"the ONNX model's constant {node.output[0]!r} cannot be read: {first_line(error)}"
            raise FusionError(why) from error
        arrays = ((n, v) for n, v in zip(outputs, found, strict=True) if isinstance(v, (np.ndarray, np.generic)))
        made = {name: np.asarray(value) for name, value in arrays}
        self._room -= sum(value.nbytes for value in made.values())
        return made


def channel_axes(nodes: Iterable[onnx.NodeProto], sides: Mapping[str, Sequence[object]]) -> dict[str, int]:
    """Which axis of a tensor its readers take for the channels, where they say; the first of them is believed."""
    found: dict[str, int] = {}
    for node in reversed(list(nodes)):
        if not node.input or not node.output:
            continue
        first, rank, known = node.input[0], len(sides.get(node.input[0], ())), found.get(node.output[0])
        if node.op_type in ("Conv", "BatchNormalization", "ConvTranspose", "InstanceNormalization"):
            found[first] = 1
        elif node.op_type in ("MatMul", "Gemm", "LayerNormalization"):
            found[first] = rank - 1
        elif known is None:
            continue
        elif node.op_type == "Transpose":
            order = attributes(node).get("perm", list(range(rank))[::-1])
            if isinstance(order, (list, tuple)):
                found[first] = order[known]
        elif node.op_type in KEEPS_SIZE or node.op_type in _ELEMENTWISE:
            found.update({name: known for name in node.input if len(sides.get(name, ())) > known})
        elif node.op_type == "Reshape":
            mine, theirs = sides.get(first, ()), sides.get(node.output[0], ())
            last = bool(mine and theirs) and known == len(theirs) - 1 and mine[-1] == theirs[-1]
            found[first] = rank - 1 if last else 1
    return found


def _readers(nodes: Iterable[onnx.NodeProto]) -> dict[str, Reader]:
    """The operation that reads a tensor, by way of operations on each number too, and takes it in some layouts only."""
    found: dict[str, Reader] = {}
    for node in reversed(list(nodes)):
        if node.op_type in ("Conv", "ConvTranspose", "AveragePool"):
            found[node.input[0]] = "convolution"
        elif node.op_type == "BatchNormalization":
            found[node.input[0]] = found.get(node.output[0], "norm")
        elif node.output and node.output[0] in found and node.op_type in KEEPS_SIZE | _ELEMENTWISE:
            found.update(dict.fromkeys(node.input, found[node.output[0]]))
    return found


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


def _constant_node(node: onnx.NodeProto) -> Array | None:
    known = attributes(node)
    for name, value in known.items():
        if name == "value" and isinstance(value, onnx.TensorProto):
            return numpy_helper.to_array(value)
        if name in ("value_float", "value_floats"):
            return np.asarray(value, dtype=np.float32)
        if name in ("value_int", "value_ints"):
            return np.asarray(value, dtype=np.int64)
    return None


def _normalised(node: onnx.NodeProto, values: list[Array]) -> Array:
    """Batch normalisation of a constant; the reference of old opsets is another one."""
    x, scale, shift, mean, variance = (v.astype(np.float64) for v in values)
    epsilon = attributes(node).get("epsilon", EPSILON)
    axes = (-1, *(1,) * (x.ndim - 2))
    factor = scale / np.sqrt(variance + (epsilon if isinstance(epsilon, float) else EPSILON))
    result: Array = (x - mean.reshape(axes)) * factor.reshape(axes) + shift.reshape(axes)
    return result.astype(values[0].dtype)


def first_line(error: BaseException) -> str:
    """The first line of an error's message that says something."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
