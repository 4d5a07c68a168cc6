"""An ONNX graph as affine steps: what each node means to the fuser, or why it is left alone."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable
from dataclasses import replace

import onnx

from ...errors import FusionError, GeometryError, first_line
from ...proof.report import GraphRefusal
from ..core.cost import Cost, averaging, convolution, elementwise
from ..core.dims import nominal
from ..core.expression import Term
from ..core.reasons import Kind, StaysError, reason_of
from ..core.step import Step
from ..maps.canvas import recognised
from . import arithmetic, layout
from .facts import FLOATS, KEEPS_SIZE, Facts
from .nodes import label
from .operands import Part, not_quantised, shown
from .painting import PAINTERS

_ROUNDING: dict[int, float] = {
    onnx.TensorProto.FLOAT: 2.0**-24, onnx.TensorProto.DOUBLE: 2.0**-53,
    onnx.TensorProto.FLOAT16: 2.0**-11, onnx.TensorProto.BFLOAT16: 2.0**-8,
}  # fmt: skip
"""The element types that are fused, and the most by which a cast to each changes a number, relative to it."""


NORMS_OF_THEIR_OWN = frozenset((
    "LayerNormalization", "InstanceNormalization", "GroupNormalization", "RMSNormalization",
))  # fmt: skip
"""Normalisations by statistics of what they read."""

_READERS: dict[str, Callable[[Facts, onnx.NodeProto], list[Part]]] = {
    "Conv": arithmetic.convolution, "ConvTranspose": arithmetic.transposed,
    "BatchNormalization": arithmetic.batch_norm, "AveragePool": arithmetic.average,
    "GlobalAveragePool": arithmetic.global_average,
    "Add": arithmetic.add, "Sub": arithmetic.add, "Sum": arithmetic.add, "Mul": arithmetic.multiply,
    "Div": arithmetic.multiply, "Neg": arithmetic.negate, "Gemm": arithmetic.matrix, "MatMul": arithmetic.matrix,
    "Mean": arithmetic.add, "Transpose": layout.transpose, "Gather": layout.gather, "GatherND": layout.gather,
    "ReduceSum": layout.reduce, "ReduceMean": layout.reduce, "Einsum": layout.einsum, "Expand": layout.expand,
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), layout.reshape),
    "Identity": layout.same, "Dropout": layout.same, "Pad": layout.pad, "Concat": layout.concat, "Split": layout.split,
    "Slice": layout.take_slice,
}  # fmt: skip


_WEIGHED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""The operations that multiply by a weight."""


def read_steps(facts: Facts) -> tuple[list[Step], list[GraphRefusal]]:
    """The affine steps of a graph in the order they run, and the refusals of those that almost are.

    Raises:
        FusionError: a constant cannot be read.
    """
    steps: list[Step] = []
    refusals: list[GraphRefusal] = []
    for node in facts.model.graph.node:
        facts.refine(node)
        reader = _READERS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        if facts.is_constant(node.output[0]):
            continue
        where = label(node)
        try:
            steps += _read(facts, node, where, reader)
        except GeometryError as error:
            reason = reason_of(error, Kind.MISFIT)
            if reason is not None:
                refusals.append(reason.at(where))
        except FusionError:
            raise
        except (ValueError, IndexError, KeyError, TypeError, RuntimeError) as error:
            refusals.append(Kind.MISFIT(said=first_line(error)).at(where))
    painted = {name for node in facts.model.graph.node if facts.canvases.keys() & {*node.output} for name in node.input}
    followed = {label(facts.makers[name]) for name in painted & facts.canvases.keys()}
    return steps, [refusal for refusal in refusals if refusal.where not in followed]


def _read(
    facts: Facts, node: onnx.NodeProto, where: str, reader: Callable[[Facts, onnx.NodeProto], list[Part]] | None
) -> list[Step]:
    """A node as steps; or as a piece of a border, and a step if that is a whole one."""
    painter = PAINTERS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
    output = node.output[0]
    if painter is not None and any(name in facts.canvases for name in node.input):
        with contextlib.suppress(GeometryError):
            facts.canvases[output] = painter(facts, node)
            return _painted(facts, node, where)
    if reader is None and painter is None:
        _follow(facts, node)
        if node.op_type in NORMS_OF_THEIR_OWN:
            raise StaysError(Kind.OWN_STATISTICS())
        types = {facts.types.get(node.input[0]), facts.types.get(output)} if node.op_type == "Cast" else set()
        if len(types) == 2 and types <= FLOATS:
            raise StaysError(Kind.TYPE())
        return []
    try:
        if reader is None:
            raise StaysError
        steps = _finish(facts, node, where, reader(facts, node))
    except GeometryError:
        if painter is None:
            raise
        with contextlib.suppress(GeometryError):
            facts.canvases[output] = painter(facts, node)
            return _painted(facts, node, where)
        if output in facts.canvases:  # it may be a whole border once more is painted
            facts.place(output, facts.canvases[output].layout, facts.canvases[output].dims)
        raise
    if painter is not None and node.op_type == "Pad":
        with contextlib.suppress(GeometryError):
            facts.canvases[output] = painter(facts, node)
    return steps


def _painted(facts: Facts, node: onnx.NodeProto, where: str) -> list[Step]:
    made, border = recognised(facts.canvases[node.output[0]])
    return [replace(step, border=border) for step in _finish(facts, node, where, [Part(node.output[0], made)])]


def _follow(facts: Facts, node: onnx.NodeProto) -> None:
    """Give what an operation on each number makes the layout of the tensor it reads."""
    if node.op_type in KEEPS_SIZE and facts.sides.get(node.input[0]) == facts.sides.get(node.output[0]):
        source = facts.tensor(node.input[0])
        facts.place(node.output[0], source.layout, source.dims)


def _finish(facts: Facts, node: onnx.NodeProto, where: str, parts: list[Part]) -> list[Step]:
    """Check types and sizes of a node's parts and note the layouts and sizes of its outputs."""
    not_quantised(facts, node)
    steps = []
    for part in parts:
        terms = tuple(
            term.of_sides(facts.tensor(term.source).dims[2:]).known_as(_key(facts, node, term, index))
            for index, term in enumerate(part.made.terms)
        )
        made = replace(part.made, terms=terms)
        kind = facts.types.get(part.output, 0)
        if kind not in _ROUNDING or any(facts.types.get(term.source) != kind for term in made.terms):
            raise StaysError
        found = {term.makes(facts.tensor(term.source).dims) for term in made.terms}
        if len(found) > 1:
            raise StaysError(Kind.SIZES(does="adds", sizes=" and ".join(map(shown, found))))
        size = nominal(facts.place(part.output, made.layout, next(iter(found))).dims)
        if node.op_type in _WEIGHED:
            cost = convolution(made.terms[0].form, nominal(facts.tensor(made.terms[0].source).dims), size)
        elif any(term.pool or term.pooled for term in made.terms):
            cost = averaging(nominal(facts.tensor(made.terms[0].source).dims), size)
        else:
            cost = elementwise(made.moves, size) if made.moves else Cost()
        steps.append(Step(part.output, where, node.op_type, made.terms, cost, made.offset, _ROUNDING[kind]))
    return steps


def _key(facts: Facts, node: onnx.NodeProto, term: Term, index: int) -> Hashable:
    """What tells the numbers of a node's term: the weight that it has stored, or all that they are made of."""
    constants = tuple(str(name) for name in node.input if facts.is_constant(name))
    if node.op_type in _WEIGHED and constants[0] in facts.initializers:
        return constants[0]
    source = facts.tensor(term.source)
    settings = tuple(attribute.SerializeToString() for attribute in node.attribute)
    return hash((node.op_type, index, settings, constants, source.layout))
