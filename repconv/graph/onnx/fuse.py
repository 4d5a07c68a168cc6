"""`fuse_onnx`: any ONNX model, its affine regions written as single convolutions."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import prod
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from ...errors import FusionError, SourceError
from ...files.edited import copy_of
from ...files.onnx import LARGE, complaint, parameters, parsed, return_freed, statistics_of, stored_bytes
from ...proof.agreement import Agreement
from ...proof.report import Diverged, FusedLayer, FusionReport, GraphRefusal, Proof, Refusal, Size
from ..core.dims import nominal_side
from ..core.reasons import Kind
from ..core.step import Step
from ..planning.emission import Convolution
from ..planning.foresight import Foresight, diverged, foreseen, staying
from ..planning.liveness import Node, live
from ..planning.neighbours import touching
from ..planning.operands import with_operands
from ..planning.plan import Plan, plan
from .commuting import commuted, distributed
from .facts import Facts
from .nodes import attributes, captured, label
from .operands import factors, held
from .proof.prove import Feeds, NotRunError, labels_of, prove_onnx, random_feeds, region_comparisons
from .reader import read_steps
from .writer import DIALECT, Names, Nodes, emit, taken, without_unread

CONVOLUTIONS = ("Conv", "ConvTranspose")
"""What a report counts as convolutions."""


def fuse_onnx(
    model: onnx.ModelProto | str | os.PathLike[str], feeds: Sequence[Feeds] | None = None, *, prove: bool = True
) -> tuple[onnx.ModelProto, FusionReport]:
    """A copy of `model` with one convolution where affine regions allow it, what was done, and proof that it is right.

    Exact in real arithmetic at every pixel, borders included; what would not be is refused in words. Names of inputs
    and outputs, metadata, opset and every node that nothing substituted feeds stay as they are. A model with nothing to
    gain comes back with every node and weight untouched. External data is read into the result; above 2 GB save it with
    `onnx.save(..., save_as_external_data=True)`.

    Both run in onnxruntime. Every tensor that is written anew is compared with what the nodes it stands for give in
    float64, and so is every output; the report holds the comparisons, and what could not be compared.

    Args:
        model: the model or its file.
        feeds: inputs by name to compare on, one mapping a run; None: two random draws of what the model declares.
        prove: False leaves the comparing out, and the report says so.

    Raises:
        FusionError: not a readable, valid ONNX model.
        VerificationError: the result differs by more than rounding; `error.report` has every comparison.
        SourceError: onnxruntime cannot run the model on the given `feeds`.
    """
    source = model if isinstance(model, onnx.ModelProto) else load(model)
    result, report = _fused(source)
    proof = proof_of(source, result, report, feeds) if prove else None
    return result, report.with_proof(proof).require("the fused ONNX model")


def _fused(source: onnx.ModelProto) -> tuple[onnx.ModelProto, FusionReport]:
    """The model as it is written, and what was done; the plan, which holds its numbers in float64, ends here."""
    planned = _planned(source)
    facts, chosen = planned.facts, planned.chosen
    written = _write(facts, planned.steps, chosen, captured(source.graph))
    _check(written.model)
    after = measure(written.model, facts, written.owners)
    refusals = (*planned.refusals, *chosen.refusals, *written.refusals)
    layers = tuple(replace(each, branches=_names(each.branches, planned.called)) for each in written.layers)
    return written.model, FusionReport(layers, refusals, planned.before, after, diverged=written.diverged)


def proof_of(
    before: onnx.ModelProto, after: onnx.ModelProto, report: FusionReport, feeds: Sequence[Feeds] | None
) -> Proof:
    """The proof of what `fuse_onnx` made; arguments and errors as there.

    A model that onnxruntime cannot run is proven region by region, and `unmeasured` says so.
    """
    if list(before.graph.node) == list(after.graph.node):
        return Proof(Agreement())  # nothing was done
    drawn, unmeasured = random_feeds(before) if feeds is None else (list(feeds), ())
    if not drawn:
        return Proof(Agreement(), unmeasured)
    try:
        return prove_onnx(before, after, drawn, labels_of(report))
    except NotRunError as error:
        if feeds is not None:
            raise
        said = f"{error}; pass inputs that it takes: feeds=[{{name: array}}]"
        regions, more = region_comparisons(before, after, drawn[-1], labels_of(report))
        return Proof(Agreement(tuple(regions)), (Refusal("end to end", said), *more))


def foresee_onnx(model: onnx.ModelProto | str | os.PathLike[str]) -> Foresight:
    """What `fuse_onnx` would do, from shapes, without the weights it would write.

    Raises:
        FusionError: as `fuse_onnx`.
    """
    source = model if isinstance(model, onnx.ModelProto) else load(model)
    planned = _planned(source)
    facts, graph = planned.facts, planned.facts.model.graph
    reads = {name: [] if _is_size(facts, node) else node.input for node in graph.node for name in node.output if name}
    unread = reads.keys() - {name for node in graph.node for name in node.input}
    left = staying(planned.chosen, reads, {*unread, *captured(graph), *(value.name for value in graph.output)})
    kinds = [node.op_type for node in graph.node if not left.isdisjoint(node.output)]
    convolutions, norms = sum(map(kinds.count, CONVOLUTIONS)), kinds.count("BatchNormalization")
    sizes = planned.before, Size(convolutions=convolutions, batch_norms=norms, parameters=0)
    return foreseen(planned.steps, planned.chosen, planned.refusals, sizes, lambda name: _width(facts, name))


@dataclass(frozen=True)
class _Planned:
    """What is written, of the graph in `facts`; before: of the graph as it was given.

    called: the nodes of `facts` that are a part of one that was given, and that, by their names.
    """

    facts: Facts
    steps: list[Step]
    chosen: Plan
    refusals: list[GraphRefusal]
    before: Size
    called: Mapping[str, str] = field(default_factory=dict)


def _planned(source: onnx.ModelProto) -> _Planned:
    """The choice of what is written, before anything is."""
    _check(source)
    found = _planned_as_it_is(source)
    for in_other_words in (commuted, distributed):
        names = Names(taken(found.facts.model))
        given = in_other_words(found.facts, found.steps, names)
        if given is not None:
            other = _planned_as_it_is(given)
            if other.chosen.is_cheaper(found.chosen):
                found = replace(other, before=found.before, called={**found.called, **names.instead})
    if not found.called:
        return found
    refusals = [_by_author(each, found.called) for each in found.refusals]
    chosen = replace(found.chosen, refusals=tuple(_by_author(each, found.called) for each in found.chosen.refusals))
    return replace(found, refusals=refusals, chosen=chosen)


def _by_author(refusal: GraphRefusal, called: Mapping[str, str]) -> GraphRefusal:
    """A reason by the names of the graph as it was given."""
    return replace(refusal, where=called.get(refusal.where, refusal.where), beside=_names(refusal.beside, called))


def _names(names: Sequence[str], called: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(called.get(name, name) for name in names))


def _planned_as_it_is(source: onnx.ModelProto) -> _Planned:
    facts = Facts(source)
    for node in source.graph.node:
        _check_groups(facts, node)
    found, refusals = read_steps(facts)
    sizes = _of_sizes(facts)
    nodes = [
        Node(
            label(node),
            tuple(node.output),
            tuple(node.input),
            follows=any(name in facts.canvases for name in node.output),
            of_sizes=not sizes.isdisjoint(node.output),
        )
        for node in source.graph.node
        if not (node.output and facts.is_constant(node.output[0]))
    ]
    outputs = {value.name for value in source.graph.output} | captured(source.graph)
    measured = {name for node in source.graph.node if _is_size(facts, node) for name in node.input}
    steps, needed = live(nodes, found, outputs, measured)
    names = {name: node.where for node in nodes for name in node.outputs}
    made = {step.output for step in steps}
    read = [*outputs, *(name for node in nodes if made.isdisjoint(node.outputs) for name in node.inputs)]
    taken = {step.output: factors(facts, facts.makers[step.output].input) for step in steps}
    steps = with_operands(steps, taken, partial(held, facts), factors(facts, read))
    # Exporters look up a weight's size where a bias is missing; who looks at nothing else shares no weight.
    staying_nodes = [n for n in source.graph.node if made.isdisjoint(n.output) and n.op_type not in ("Shape", "Size")]
    others = [name for node in staying_nodes for name in {*node.input}]
    besides = [*outputs, *others]
    chosen = plan(steps, needed, names, facts.placed, DIALECT, besides)
    return _Planned(facts, steps, chosen, touching(refusals, nodes, steps), measure(source, facts))


def _check_groups(facts: Facts, node: onnx.NodeProto) -> None:
    """Refuse a convolution that no runtime runs, and that ONNX's checker does not look at."""
    kernels = node.op_type in ("Conv", "ConvTranspose") and len(node.input) > 1
    weight = facts.initializers.get(node.input[1]) if kernels else None
    if weight is None or len(weight.dims) < 2:
        return
    groups, sides = attributes(node).get("group", 1), facts.sides.get(node.input[0], ())
    first, taken = weight.dims[:2]  # [o, i/g, ...], and of a transposed one [i, o/g, ...]
    channels = sides[1] if len(sides) > 1 and node.op_type == "Conv" else None
    fits = isinstance(groups, int) and groups > 0 and first % groups == 0
    if not fits or (isinstance(channels, int) and isinstance(groups, int) and channels != taken * groups):
        shape, reads = "x".join(map(str, weight.dims)), channels if isinstance(channels, int) else "?"
        raise FusionError(
            f"the ONNX model is not valid: the convolution {label(node)} has group {groups}, a weight of {shape} and "
            f"reads {reads} channels"
        )


def load(path: str | os.PathLike[str]) -> onnx.ModelProto:
    """An ONNX file with its external data.

    Raises:
        FusionError: no file, or not a readable ONNX model.
    """
    try:
        return parsed(Path(path))
    except SourceError as error:
        raise FusionError(str(error)) from error


def _check(model: onnx.ModelProto) -> None:
    said = complaint(model)
    if said:
        raise FusionError(f"the ONNX model is not valid: {said}")


@dataclass(frozen=True)
class _Written:
    """The fused model, its layers, and what could not be written.

    owners: of each tensor that is written the one it is a part of. diverged: see `FusionReport`.
    """

    model: onnx.ModelProto
    layers: tuple[FusedLayer, ...] = ()
    refusals: tuple[GraphRefusal, ...] = ()
    owners: Mapping[str, str] = field(default_factory=dict)
    diverged: tuple[Diverged, ...] = ()


def _write(facts: Facts, steps: list[Step], chosen: Plan, outer: set[str]) -> _Written:
    """The choice as a model."""
    source = facts.model
    names = Names(taken(source))
    written: dict[str, Nodes] = {}
    where = {step.output: step.where for step in steps}
    for name, found in chosen.rewritten.items():
        try:
            written[name] = emit(
                name, where[name], found, element_type=facts.types[name], names=names, opset=facts.opset
            )
        except FusionError as error:
            # Regions depend on each other through written tensors only, but one number that does not fit means that
            # the graph's type is too narrow for its own weights; nothing is half done.
            beside = (node for origins in chosen.origins.values() for node in origins)
            return _Written(copy_of(source), refusals=(Kind.NARROW(said=str(error)).at(where[name], beside),))
        found.forget()
        if sum(map(stored_bytes, written[name].weights)) > LARGE:
            return_freed()
    layers = [layer for name in written for layer in _layers(name, chosen, written[name], facts)]
    if not written and not chosen.virtual:
        return _Written(copy_of(source))
    result = onnx.ModelProto()
    for part, value in source.ListFields():
        if part.name != "graph":
            _set(result, part.name, value)
    for part, value in source.graph.ListFields():
        if part.name not in ("node", "value_info", "initializer"):
            _set(result.graph, part.name, value)
    gone = chosen.virtual | set(written)
    needed = outer | {value.name for value in source.graph.output}
    needed.update(n for node in source.graph.node if not _is_size(facts, node) for n in node.input)
    sizes: list[onnx.TensorProto] = []
    for node in source.graph.node:
        if _is_size(facts, node):
            value = facts.as_run(node.output[0])
            if value is not None and node.output[0] in needed:
                sizes.append(numpy_helper.from_array(value, node.output[0]))
            continue
        dropped = [name for name in node.output if name in gone]
        for name in dropped:
            if name in written:
                result.graph.node.extend(written[name].nodes)
        if len(dropped) < len([n for n in node.output if n]):
            result.graph.node.append(node)
            for position, name in enumerate(node.output):
                if name in gone:
                    result.graph.node[-1].output[position] = names.new(f"{name}.unused")
    weights = [t for made in written.values() for t in made.weights]
    result.graph.value_info.extend(v for v in source.graph.value_info if v.name not in chosen.virtual)
    read = {name for node in source.graph.node for name in node.input}
    instead = without_unread(result.graph, [*source.graph.initializer, *sizes], weights, read, outer)
    owners = {made: name for name, nodes in written.items() for node in nodes.nodes for made in node.output}

    def stored(name: str, position: int) -> str:
        held = written[name].multiplied[position]
        return instead.get(held, held)

    more = diverged(chosen, lambda name: _width(facts, name), stored)
    return _Written(result, tuple(layers), (), owners, more)


def _width(facts: Facts, name: str) -> int:
    """Bytes that a number of a tensor takes."""
    return int(onnx.helper.tensor_dtype_to_np_dtype(facts.types[name]).itemsize)


def _is_size(facts: Facts, node: onnx.NodeProto) -> bool:
    return len(node.output) == 1 and facts.reads_sizes(node.output[0])


def _of_sizes(facts: Facts) -> set[str]:
    """The tensors that are computed of the sizes of others alone."""
    found: set[str] = set()
    for node in facts.model.graph.node:
        computed = [name for name in node.input if name and not facts.is_constant(name)]
        if node.domain in ("", "ai.onnx") and (
            node.op_type in ("Shape", "Size") or (computed and found.issuperset(computed))
        ):
            found.update(node.output)
    return found


def _set(message: object, name: str, value: object) -> None:
    """Copy one protobuf field."""
    target = getattr(message, name)
    if hasattr(target, "extend"):
        target.extend(value)
    elif hasattr(target, "CopyFrom"):
        target.CopyFrom(value)
    else:
        setattr(message, name, value)


def _layers(name: str, chosen: Plan, written: Nodes, facts: Facts) -> list[FusedLayer]:
    """What becomes the layers that make a tensor."""
    origins, layers = chosen.origins[name], chosen.rewritten[name].layers
    nodes = [node for origin in origins for node in facts.named.get(origin, ())]
    before = Size(
        convolutions=sum(n.op_type in CONVOLUTIONS for n in nodes),
        batch_norms=sum(n.op_type == "BatchNormalization" for n in nodes),
        parameters=sum(_elements(facts, i) for n in nodes for i in n.input if i not in statistics_of(n)),
    )
    after = Size(
        convolutions=sum(isinstance(x, Convolution) for x in layers),
        batch_norms=0,
        parameters=sum(int(np.prod(t.dims)) for t in written.weights),
    )
    made = [*zip(written.layers, (layer.form.label for layer in layers), strict=True)]
    return [
        FusedLayer(
            name=node,
            geometry=geometry,
            branches=origins,
            before=before,
            after=after,
            tensor=name,
            multiplies=bool(layers),
        )
        for node, geometry in made or [(written.nodes[-1].name, chosen.rewritten[name].label)]
    ]


def _elements(facts: Facts, name: str) -> int:
    return int(np.prod(facts.initializers[name].dims)) if name in facts.initializers else 0


def measure(model: onnx.ModelProto, facts: Facts, owners: Mapping[str, str] | None = None) -> Size:
    """Convolutions, batch normalisations, parameters as PyTorch counts them, and one image's flops in convolutions.

    facts: of the original. owners: of tensors that it has not, the one on whose way each is written, as large as it.
    Open sides count as `sizes.NOMINAL`; flops are None where a size is not known at all.
    """
    shapes: Mapping[str, object] = {t.name: tuple(t.dims) for t in model.graph.initializer}
    nodes = model.graph.node
    flops: int | None = 0
    for node in nodes:
        if node.op_type not in CONVOLUTIONS:
            continue
        # What puts pixels apart multiplies every one that it reads, another convolution every one that it makes.
        strides = attributes(node).get("strides")
        apart = node.op_type == "ConvTranspose" and isinstance(strides, list) and max(strides) > 1
        place = node.input[0] if apart else (owners or {}).get(node.output[0], node.output[0])
        weight = shapes.get(node.input[1])
        tensor = facts.placed.get(place)
        sides = facts.sides.get(place if apart else node.output[0])
        if not isinstance(weight, tuple) or (tensor is None and sides is None) or flops is None:
            flops = None
            continue
        pixels = map(nominal_side, tensor.dims[2:] if tensor is not None else (sides or ())[2:])
        flops += 2 * prod(pixels) * int(np.prod(weight))
    return Size(
        convolutions=sum(n.op_type in CONVOLUTIONS for n in nodes),
        batch_norms=sum(n.op_type == "BatchNormalization" for n in nodes),
        parameters=parameters(model),
        flops=flops,
    )
