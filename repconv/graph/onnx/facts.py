"""What is known of an ONNX graph's tensors before anything is fused: constants, types and sizes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import prod

import onnx
from onnx import numpy_helper

from ...algebra.geometry import with_flat
from ...errors import FusionError, GeometryError, first_line
from ...files.onnx import without_weights
from ...limits import LARGEST_CONSTANT, LARGEST_TENSOR
from ..core.dims import Dim, Dims, broadcast, symbol, told
from ..core.reasons import Kind, StaysError
from ..maps.canvas import Canvas
from ..maps.carried import Carried, Reader
from ..maps.layout import MOST_PIXEL_AXES, Layout, with_channels_at
from .evaluator.constants import Array, Constants, stored_number
from .evaluator.sizes import complete
from .nodes import attributes, label

KEEPS_SIZE = frozenset((
    "Relu", "Sigmoid", "HardSigmoid", "HardSwish", "LeakyRelu", "PRelu", "Elu", "Selu", "Celu", "Softplus",
    "Softsign", "Tanh", "Clip", "Gelu", "Erf", "Mish", "Swish", "Cast", "Identity", "Dropout", "Neg", "Abs",
    "Exp", "Sqrt", "BatchNormalization", "InstanceNormalization", "GroupNormalization",
))  # fmt: skip
_ELEMENTWISE = frozenset(("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Sum"))


FLOATS = frozenset((
    onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16,
))  # fmt: skip
"""The element types that are fused."""


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
        self._constants = Constants(model, self.makers, self.sides, self.types)
        self._infer(model)
        complete(model, self.sides, self.types, self._constants)
        self._ask_readers()
        self._channel_axes = channel_axes(graph.node, self.sides)
        self._readers = _readers(graph.node, self.is_constant)
        self._constants.look_again()

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

    def _ask_readers(self) -> None:
        """Complete sides and types by what reads a tensor: a weight has its channels and its type."""
        for node in reversed(self.model.graph.node):
            if node.domain not in ("", "ai.onnx") or not node.input or not node.output:
                continue
            name, known = node.input[0], self.sides.get(node.input[0])
            if node.op_type in ("Conv", "ConvTranspose") and node.input[1] in self.initializers:
                kind = self.initializers[node.input[1]].data_type
                self.types.update({each: kind for each in (name, node.output[0]) if not self.types.get(each)})
            told = _told(node, self.initializers, self.sides)
            if name in self.inputs or not told or (known is not None and len(known) != len(told)):
                continue
            mine = known or tuple(symbol(f"{name}#{axis}") for axis in range(len(told)))
            pairs = zip(mine, told, strict=True)
            self.sides[name] = tuple(
                theirs if not isinstance(a, int) and theirs is not None else a for a, theirs in pairs
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
        return stored_number(maker) if maker is not None and maker.op_type == "Constant" else None

    def tensor(self, name: str) -> Carried:
        """A tensor that is computed, as convolutions see it.

        Raises:
            StaysError: it has no layout.
        """
        if name not in self._carried:
            sides, axis = self.sides.get(name, ()), self._channel_axes.get(name, 1)
            width = sides[axis] if 0 < axis < len(sides) else 0
            if self.is_constant(name) or self.types.get(name, 0) not in (0, *FLOATS):
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

    def is_constant(self, name: str) -> bool:
        """True for initialisers nobody can override, constants, and cheap operations on constants."""
        return self._constants.is_constant(name)

    def constant(self, name: str) -> Array | None:
        """The value of a constant, None if it is none; see `Constants.constant`."""
        return self._constants.constant(name)

    def as_run(self, name: str) -> Array | None:
        """The same in the graph's own types; see `Constants.as_run`."""
        return self._constants.as_run(name)

    def reads_sizes(self, name: str) -> bool:
        """True for a constant that is computed from the size of a tensor; see `Constants.reads_sizes`."""
        return self._constants.reads_sizes(name)

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


def _told(
    node: onnx.NodeProto, weights: Mapping[str, onnx.TensorProto], sides: Mapping[str, Sequence[Dim]]
) -> Sequence[int | None]:
    """The sides of what a node reads first, as far as the node itself tells them; empty if not even how many."""
    held = weights.get(node.input[1]) if len(node.input) > 1 else None
    if node.op_type in ("Conv", "ConvTranspose") and held is not None and len(held.dims) < 2:
        return ()  # no kernel; what reads it says so
    if node.op_type == "Conv" and held is not None:
        groups = attributes(node).get("group", 1)
        channels = held.dims[1] * groups if isinstance(groups, int) else None
        return (None, channels, *(None for _ in held.dims[2:]))
    if node.op_type == "ConvTranspose" and held is not None:
        return (None, held.dims[0], *(None for _ in held.dims[2:]))
    made = sides.get(node.output[0], ())
    if node.op_type == "BatchNormalization" and held is not None and len(held.dims) == 1 and len(made) > 1:
        return (None, held.dims[0], *(side if isinstance(side, int) else None for side in made[2:]))
    return [side if isinstance(side, int) else None for side in made] if node.op_type in KEEPS_SIZE else ()


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
            if isinstance(order, (list, tuple)) and known < len(order):
                found[first] = order[known]
        elif node.op_type in KEEPS_SIZE or node.op_type in _ELEMENTWISE:
            found.update({name: known for name in node.input if len(sides.get(name, ())) > known})
        elif node.op_type == "Reshape":
            mine, theirs = sides.get(first, ()), sides.get(node.output[0], ())
            last = bool(mine and theirs) and known == len(theirs) - 1 and mine[-1] == theirs[-1]
            found[first] = rank - 1 if last else 1
    return found


def _readers(nodes: Iterable[onnx.NodeProto], is_constant: Callable[[str], bool]) -> dict[str, Reader]:
    """The operation that reads a tensor, by way of operations on each number too, and takes it in some layouts only."""
    found: dict[str, Reader] = {}
    for node in reversed(list(nodes)):
        if node.op_type in ("Conv", "ConvTranspose", "AveragePool"):
            found[node.input[0]] = "convolution"
        elif node.op_type == "BatchNormalization":
            found[node.input[0]] = found.get(node.output[0], "norm")
        elif node.op_type in ("MatMul", "Gemm") and is_constant(node.input[1]):
            found[node.input[0]] = "matrix"
        elif node.output and node.output[0] in found and node.op_type in KEEPS_SIZE | _ELEMENTWISE:
            found.update(dict.fromkeys(node.input, found[node.output[0]]))
    return found
