"""`fuse_program`: any exported PyTorch program, its affine regions written as single convolutions."""

from __future__ import annotations

import copy
import inspect
import operator
from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import Dim, ExportedProgram

from ...errors import FusionError
from ...proof.agreement import Agreement
from ...proof.leaves import of_tensors
from ...proof.report import FusedLayer, FusionReport, GraphRefusal, Proof, Size
from ..core.dims import NOMINAL
from ..core.reasons import Kind
from ..core.step import Step
from ..dialects.core_aten import compose, decomposed_as
from ..dialects.functional import functional, without_guards
from ..planning.emission import Convolution
from ..planning.foresight import Foresight, diverged, foreseen, staying
from ..planning.liveness import Node, live
from ..planning.neighbours import touching
from ..planning.operands import with_operands
from ..planning.plan import Plan, plan
from .commuting import commuted, distributed
from .constants import operands
from .facts import CONVOLVE, COPYING, NORMS, SPREAD, ProgramFacts, argument, gives_several
from .proof.prove import Rewritten, prove_program
from .reader import read_program
from .writer import DIALECT, emit, store_once

_aten = torch.ops.aten

CONVOLUTIONS = tuple(str(kind).rpartition(".")[0] + "." for kind in (*CONVOLVE.values(), *SPREAD.values()))
"""What the names of convolutions begin with."""


def fuse_program(
    program: ExportedProgram, inputs: Sequence[tuple[Any, ...]] | None = None, *, prove: bool = True
) -> tuple[ExportedProgram, FusionReport]:
    """A program with one convolution where affine regions allow it, what was done, and proof that it is right.

    The one given is not changed. The result is an exported program again: it saves to `.pt2`, compiles, and exports to
    ONNX without the model's code. Open sizes stay open. A program with nothing to gain is returned itself.

    Every tensor that is written anew is compared with what the operations it stands for give in float64 of the tensors
    they read, and so is every output; the report holds the comparisons.

    Args:
        program: with example inputs.
        inputs: to compare on, one call's each: its tensors in the order of the program's, in whatever tuples and
            dictionaries; None: the program's example inputs.
        prove: False leaves the comparing out, and the report says so.

    Raises:
        FusionError: the program has no example inputs to be traced with again, or cannot be.
        VerificationError: the result differs by more than rounding; `error.report` has every comparison.
    """
    rewritten = rewrite(program)
    fused = export_again(program, rewritten)
    if not prove:
        return fused, rewritten.report.with_proof(None)
    if fused is program:
        return fused, rewritten.report.with_proof(Proof(Agreement()))  # nothing was done
    given = inputs if inputs is not None else [program.example_inputs] if program.example_inputs else []
    rows = [tuple(torch.utils._pytree.tree_leaves(call)) for call in given]  # noqa: SLF001  # torch.export's own order
    proof = prove_program(rewritten, fused, of_tensors(program, without_guards(program)), rows)
    return fused, rewritten.report.with_proof(proof).require("the fused program")


def rewrite(program: ExportedProgram, exact: Mapping[str, Tensor] | None = None) -> Rewritten:
    """What `fuse_program` does to the graph, before it becomes an exported program again.

    Args:
        program: with example inputs.
        exact: of parameters that were rounded when they were made, by name, the float64 numbers they were made of.

    Raises:
        FusionError: as `fuse_program`.
    """
    given = _graph_module(program)
    before = _measure(given, ProgramFacts(given))
    facts, _, chosen, refusals = _planned(given, exact)
    module = facts.module
    original = copy.deepcopy(module, {id(t): t for t in (*module.parameters(), *module.buffers())})
    nodes, held = dict(facts.nodes), {name for name, _ in module.named_parameters(remove_duplicate=False)}
    layers: dict[str, tuple[FusedLayer, ...]] = {}
    weights: dict[str, tuple[fx.Node, ...]] = {}
    labelled = {label: facts.nodes[name] for name, label in facts.labels.items()}
    for name, found in chosen.rewritten.items():
        layers[name] = _layers(module, facts, name, chosen)
        try:
            written = emit(module, nodes, name, found, [labelled[origin] for origin in chosen.origins[name]])
        except FusionError as error:
            beside = (node for origins in chosen.origins.values() for node in origins)
            narrow = Kind.NARROW(said=str(error)).at(facts.labels[name], beside)
            report = FusionReport((), (*refusals, *chosen.refusals, narrow), before, before)
            return Rewritten(original, original, {}, report, facts.labels)
        nodes[name], weights[name] = written.last, written.weights
    if not chosen.rewritten:
        report = FusionReport((), (*refusals, *chosen.refusals), before, before)
        return Rewritten(original, original, {}, report, facts.labels)
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    _drop_unread(module)
    store_once(module, held)
    _drop_unread(module)
    module.recompile()
    # Where a kernel came out as zeros, what it would have read is written for nobody.
    left = set(module.graph.nodes)
    pairs = {name: nodes[name] for name in chosen.rewritten if nodes[name] in left}
    after = _measure(module, ProgramFacts(module))
    report = FusionReport(
        tuple(layer for name in pairs for layer in layers[name]),
        (*refusals, *chosen.refusals),
        before,
        after,
        diverged=diverged(chosen, _widths(facts), lambda name, position: str(weights[name][position].target)),
    )
    return Rewritten(original, module, pairs, report, facts.labels, exact or {})


def foresee_program(program: ExportedProgram) -> Foresight:
    """What `fuse_program` would do, from shapes, without the weights it would write.

    Raises:
        FusionError: as `fuse_program`.
    """
    module = _graph_module(program)
    facts, steps, chosen, refusals = _planned(module)
    nodes = facts.module.graph.nodes
    reads = {node.name: [n.name for n in node.all_input_nodes] for node in nodes}
    left = staying(chosen, reads, [node.name for node in nodes if node.op == "output" or node.is_impure()])
    sizes = _measure(module, ProgramFacts(module)), _size_of([facts.nodes[name] for name in left], facts.module)
    return foreseen(steps, chosen, refusals, sizes, _widths(facts))


_Planned = tuple[ProgramFacts, list[Step], Plan, list[GraphRefusal]]


def _planned(module: fx.GraphModule, exact: Mapping[str, Tensor] | None = None) -> _Planned:
    """The choice of what is written, before anything is; `facts.module` is the graph it is written in."""
    found = _planned_as_it_is(module, exact)
    for in_other_words in (commuted, distributed):
        facts, steps, chosen, _ = found
        given = in_other_words(facts, steps)
        if given is not None:
            other = _planned_as_it_is(given, exact)
            if other[2].is_cheaper(chosen):
                found = other
    return found


def _planned_as_it_is(module: fx.GraphModule, exact: Mapping[str, Tensor] | None) -> _Planned:
    facts = ProgramFacts(module, exact)
    steps, refusals = read_program(facts)
    nodes = [
        Node(
            facts.labels[node.name],
            (node.name,),
            tuple(n.name for n in node.all_input_nodes),
            follows=node.name in facts.canvases or gives_several(node),
        )
        for node in module.graph.nodes
        if node.op != "output" and not facts.is_constant(node)
    ]
    outputs = {n.name for node in module.graph.nodes if node.op == "output" for n in node.all_input_nodes}
    steps, needed = live(nodes, steps, outputs)
    made = {step.output for step in steps}
    read = [*outputs, *(name for node in nodes if made.isdisjoint(node.outputs) for name in node.inputs)]
    taken = {step.output: facts.factors(operands(facts.nodes[step.output])) for step in steps}
    steps = with_operands(steps, taken, facts.held, facts.factors(facts.nodes[name] for name in read))
    others = [n for node in module.graph.nodes if node.name not in made for n in node.all_input_nodes]
    besides = [str(n.target) for n in others if n.op == "get_attr"]
    chosen = plan(steps, needed, facts.labels, facts.placed, DIALECT, besides)
    return facts, steps, chosen, touching(refusals, nodes, steps)


def _widths(facts: ProgramFacts) -> Callable[[str], int]:
    """Bytes that a number of a tensor takes."""
    return lambda name: facts.nodes[name].meta["val"].dtype.itemsize


def _graph_module(program: ExportedProgram) -> fx.GraphModule:
    """The program as a graph of ATen operations without those that fusing would stumble over."""
    if program.example_inputs is None:
        raise FusionError("the exported program holds no example inputs; export it again with them")
    module = functional(program)
    for node in list(module.graph.nodes):
        # These look at a tensor's type or size alone, and would keep it alive.
        if str(node.target) == "aten._assert_tensor_metadata.default":
            module.graph.erase_node(node)
        elif str(node.target) == "aten.copy.default" and (copied := _copied(node)) is not None:
            node.replace_all_uses_with(copied)
            module.graph.erase_node(node)
        elif (value := _filling(node)) is not None:
            like = node.meta["val"]
            with module.graph.inserting_before(node):
                full = module.graph.call_function(
                    _aten.full.default, (list(like.shape), value), {"dtype": like.dtype, "device": like.device}
                )
            full.meta["val"] = like
            node.replace_all_uses_with(full)
            module.graph.erase_node(node)
    compose(module)
    module.graph.eliminate_dead_code()
    return module


def _copied(node: fx.Node) -> fx.Node | None:
    """What a copy puts in the place of a tensor of its type and of fixed size, as large as that."""
    over, copied = (n for n in node.args[:2] if isinstance(n, fx.Node))
    like, value = over.meta["val"], copied.meta["val"]
    if like.dtype != value.dtype or any(not isinstance(side, int) for side in like.shape):
        return None
    if like.shape == value.shape:
        return copied
    with node.graph.inserting_before(node):
        found = node.graph.call_function(_aten.expand.default, (copied, list(like.shape)))
    found.meta["val"] = node.meta["val"]
    return found


_FILLINGS: dict[str, float | None] = {
    "aten.new_zeros.default": 0, "aten.new_ones.default": 1, "aten.new_full.default": None,
    "aten.zeros_like.default": 0, "aten.ones_like.default": 1, "aten.full_like.default": None,
}  # fmt: skip
"""Operations that make a tensor of one number in the size of another, and that number; None if it is given."""


def _filling(node: fx.Node) -> float | None:
    """The number that fills a tensor of fixed size, made for another's; None if `node` is something else."""
    if str(node.target) not in _FILLINGS or any(not isinstance(side, int) for side in node.meta["val"].shape):
        return None
    known = _FILLINGS[str(node.target)]
    given = node.args[-1] if known is None else known
    return given if isinstance(given, (bool, int, float)) else None


def export_again(program: ExportedProgram, rewritten: Rewritten) -> ExportedProgram:
    """The rewritten graph as an exported program with the inputs and open sizes of `program`.

    What was decomposed to core ATen is so again. Views that stand in the way become reshapes, in `rewritten`, too.

    Raises:
        FusionError: torch.export cannot.
    """
    if not rewritten.pairs or program.example_inputs is None:
        return program
    module = rewritten.after
    arguments, options = program.example_inputs
    leaves = [v.meta.get("val") for v in module.graph.nodes if v.op == "placeholder"]
    is_open = any(not isinstance(d, int) for v in leaves if isinstance(v, Tensor) for d in v.shape)
    dynamic = dynamic_shapes_of(module, arguments, options) if is_open else None

    def exported() -> ExportedProgram:
        return torch.export.export(module, arguments, options, dynamic_shapes=dynamic, strict=False)

    try:
        try:
            fused = exported()
        except (RuntimeError, ValueError):
            if not _reshaped(module):
                raise
            fused = exported()
        return decomposed_as(fused, program)
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        raise FusionError(f"the fused program cannot be exported again: {str(error).splitlines()[0]}") from error


def _reshaped(module: fx.GraphModule) -> bool:
    """Let views copy where they must, in place: what they are of may have its numbers in another order of memory now.

    Returns whether there were any.
    """
    views = [node for node in module.graph.nodes if COPYING.get(str(node.target), node.target) != node.target]
    for node in views:
        node.target = COPYING[str(node.target)]
    module.recompile()
    return bool(views)


def dynamic_shapes_of(module: fx.GraphModule, arguments: tuple[object, ...], options: dict[str, object]) -> object:
    """Every open side of the inputs as `Dim.AUTO`, in the inputs' own structure."""
    values = iter([node.meta.get("val") for node in module.graph.nodes if node.op == "placeholder"])

    def describe(leaf: object) -> object:
        value = next(values, None)
        if not isinstance(leaf, Tensor) or not isinstance(value, Tensor):
            return None
        return {axis: Dim.AUTO for axis, side in enumerate(value.shape) if not isinstance(side, int)}

    positional, named = torch.utils._pytree.tree_map(describe, (arguments, options))  # noqa: SLF001
    if not options:
        return positional
    names = list(inspect.signature(module.forward).parameters)
    return {**dict(zip(names, positional, strict=False)), **named}


def _layers(module: fx.GraphModule, facts: ProgramFacts, name: str, chosen: Plan) -> tuple[FusedLayer, ...]:
    """What becomes the layers that make a tensor."""
    origins = chosen.origins[name]
    read = _size_of([node for n, node in facts.nodes.items() if facts.labels[n] in origins], module)
    found = chosen.rewritten[name]
    made = [(x.form.label, int(isinstance(x, Convolution)), x.form.weights) for x in found.layers]
    return tuple(
        FusedLayer(
            name=facts.labels[name],
            geometry=geometry,
            branches=origins,
            before=read,
            after=Size(convolutions=convolutions, batch_norms=0, parameters=weights),
            tensor=name,
            multiplies=bool(made),
        )
        for geometry, convolutions, weights in made or [(found.label, 0, found.weights)]
    )


def _size_of(nodes: Sequence[fx.Node], module: fx.GraphModule) -> Size:
    """Convolutions, batch normalisations and numbers that some nodes hold."""
    kinds = [str(node.target) for node in nodes]
    held = {str(n.target) for node in nodes for n in node.all_input_nodes if n.op == "get_attr"}
    tensors = [operator.attrgetter(name)(module) for name in held]
    return Size(
        convolutions=sum(k.startswith(CONVOLUTIONS) for k in kinds),
        batch_norms=sum(k in NORMS for k in kinds),
        parameters=sum(t.numel() for t in tensors if isinstance(t, torch.nn.Parameter)),
    )


def _drop_unread(module: fx.GraphModule) -> None:
    """Delete parameters and buffers that no node reads any more."""
    read = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    for name, _ in [*module.named_parameters(), *module.named_buffers()]:
        if name not in read:
            path, _, leaf = name.rpartition(".")
            delattr(operator.attrgetter(path)(module) if path else module, leaf)


def _measure(module: fx.GraphModule, facts: ProgramFacts) -> Size:
    names = [str(node.target) for node in module.graph.nodes if node.op == "call_function"]
    return Size(
        convolutions=sum(n.startswith(CONVOLUTIONS) for n in names),
        batch_norms=sum(n in NORMS for n in names),
        parameters=sum(p.numel() for p in module.parameters()),
        flops=_flops(module, facts),
    )


def _strides(node: fx.Node) -> list[int]:
    """Of a convolution."""
    given = argument(node, 3, "stride", 1)
    return [int(str(stride)) for stride in given] if isinstance(given, (list, tuple)) else [int(str(given))]


def _flops(module: fx.GraphModule, facts: ProgramFacts) -> int | None:
    """Of the convolutions of one image, two a multiply-add; None where a size is not known."""
    total = 0
    for node in module.graph.nodes:
        if not str(node.target).startswith(CONVOLUTIONS):
            continue
        weight, value = facts.constant(node.args[1]), node.meta.get("val")
        if "transpose" in str(node.target) and isinstance(node.args[0], fx.Node) and max(_strides(node)) > 1:
            value = node.args[0].meta.get("val")  # every pixel that it reads is multiplied by the weight
        if weight is None or not isinstance(value, Tensor) or value.dim() != weight.dim():
            return None
        total += 2 * prod(side if isinstance(side, int) else NOMINAL for side in value.shape[2:]) * weight.numel()
    return total
