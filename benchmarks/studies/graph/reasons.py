"""Whether every operation that stays in a fused graph beside an affine neighbour was given a reason, and which.

    python benchmarks/studies/graph/reasons.py levit_128s torchvision:resnet18

Looks at the fused graph itself, whatever the planner says of it: what multiplies, adds or normalises, and reads or is
read by an affine operation, must be named by a reason together with that.
"""

from __future__ import annotations

import re
import sys
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx
import torch
from torch import Tensor, fx

from repconv.benchmarks.studies.graph.networks import specimen, to_onnx
from repconv.graph.onnx.facts import Facts
from repconv.graph.onnx.fuse import fuse_onnx
from repconv.graph.onnx.nodes import attributes, label
from repconv.graph.program.facts import BY_BATCH_NORMS, NORMS, ProgramFacts
from repconv.graph.program.fuse import rewrite
from repconv.graph.program.proof.prove import Rewritten
from repconv.proof.report import FusionReport, GraphRefusal, Refusal

_SUFFIX = re.compile(r"(/(scale|add|pool|transpose|reshape|bias))?(_\d+)?$")
_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)


@dataclass(frozen=True)
class Operation:
    """A node of a fused graph: what reports call what it came from, and the tensors it makes and reads.

    names: of all nodes that it stands for. is_watched: it multiplies, adds or normalises. is_affine: with constants for
    all but one factor. is_sum: of two computed tensors. is_average: of all pixels; what reads it is cheapest after it.
    is_batch_norm: with fixed statistics. is_new: fusing wrote it.
    """

    label: str
    names: frozenset[str]
    makes: tuple[str, ...]
    reads: tuple[str, ...]
    is_watched: bool
    is_affine: bool
    is_sum: bool
    is_average: bool
    is_batch_norm: bool
    is_new: bool


def unexplained(operations: Sequence[Operation], refusals: Sequence[Refusal]) -> list[tuple[str, str]]:
    """Neighbours, one of them affine and one watched, that no reason names together, by their labels."""
    together = [{each.where, *each.beside} for each in refusals if isinstance(each, GraphRefusal)]
    makers = {name: operation for operation in operations for name in operation.makes}
    missing: dict[tuple[str, str], None] = {}
    for reader in operations:
        for name in reader.reads:
            maker = makers.get(name)
            if maker is None or not _might_join(maker, reader):
                continue
            # What is written for one tensor is one map, but for sums of what goes back to several.
            if maker.is_new and reader.is_new and maker.label == reader.label and not reader.is_sum:
                continue
            if not any(maker.names & named and reader.names & named for named in together):
                missing[maker.label, reader.label] = None
    return list(missing)


def why_norms_stay(operations: Sequence[Operation], refusals: Sequence[Refusal]) -> Counter[str]:
    """Batch normalisations that stay, by the kinds of reasons that name them."""
    told = [(each.kind, {each.where, *each.beside}) for each in refusals if isinstance(each, GraphRefusal)]
    norms = [operation for operation in operations if operation.is_batch_norm]
    return Counter(
        " and ".join(sorted({kind for kind, named in told if named & norm.names})) or "no reason" for norm in norms
    )


def _might_join(maker: Operation, reader: Operation) -> bool:
    """True for two of the operations looked at, one of them affine and one watched."""
    if maker.is_average:
        return False
    both = all(each.is_affine or each.is_watched for each in (maker, reader))
    return both and (maker.is_affine or reader.is_affine) and (maker.is_watched or reader.is_watched)


_ONNX_AFFINE = ("Conv", "ConvTranspose", "BatchNormalization", "Gemm", "MatMul", "Mul", "Div")
_ONNX_SUMS = ("Add", "Sub", "Sum")
_ONNX_NORMS = ("LayerNormalization", "InstanceNormalization", "GroupNormalization")


def of_onnx(before: onnx.ModelProto, after: onnx.ModelProto, report: FusionReport) -> list[Operation]:
    """The operations of a fused ONNX model."""
    facts = Facts(after)
    given = {label(node): frozenset((label(node),)) for node in before.graph.node}
    given |= {_origin(layer.name, given): frozenset(layer.branches) for layer in report.layers}
    kept = {node.SerializeToString() for node in before.graph.node}
    return [
        _of_onnx(facts, node, given, is_new=node.SerializeToString() not in kept)
        for node in after.graph.node
        if node.output and not facts.is_constant(node.output[0])
    ]


def _of_onnx(facts: Facts, node: onnx.NodeProto, given: Mapping[str, frozenset[str]], *, is_new: bool) -> Operation:
    kind, known = node.op_type, attributes(node)
    computed = [name for name in node.input if name and not facts.is_constant(name)]
    floats = facts.types.get(node.output[0]) in _FLOATS
    watched = kind in (*_ONNX_AFFINE, *_ONNX_SUMS, *_ONNX_NORMS)
    affine = kind in _ONNX_SUMS or (kind in _ONNX_AFFINE and len(computed) == 1 and computed[0] == node.input[0])
    affine = affine or (kind in ("Mul", "MatMul") and len(computed) == 1)
    affine = affine and not known.get("training_mode", 0)
    pool = kind == "AveragePool" or (kind == "GlobalAveragePool" and not is_new)
    name = label(node) if label(node) in given else _origin(label(node), given)
    return Operation(
        name,
        given.get(name, frozenset((name,))) if is_new else frozenset((name,)),
        tuple(node.output),
        tuple(computed),
        is_watched=watched and floats,
        is_affine=(affine or pool) and floats,
        is_sum=kind in _ONNX_SUMS and len(computed) > 1,
        is_average=kind == "GlobalAveragePool",
        is_batch_norm=kind == "BatchNormalization",
        is_new=is_new,
    )


def _origin(name: str, given: Mapping[str, object]) -> str:
    """The node whose tensor a written one makes a part of."""
    found = _SUFFIX.sub("", name)
    return found if found in given or found == name else _origin(found, given)


_SUMS = ("aten.add.Tensor", "aten.sub.Tensor", "aten.rsub.Scalar")
_PRODUCTS = ("aten.mul.Tensor", "aten.div.Tensor", "aten.matmul.default", "aten.mm.default")
_NORMS = ("aten.layer_norm.default", "aten.group_norm.default", "aten.instance_norm.default")
_POOLS = ("aten.avg_pool2d.default", "aten.adaptive_avg_pool2d.default")


def of_program(rewritten: Rewritten) -> list[Operation]:
    """The operations of a fused program."""
    facts = ProgramFacts(rewritten.after)
    nodes = [node for node in rewritten.after.graph.nodes if node.op == "call_function"]
    # Where a region comes to nothing, an operation of the author's makes what it made.
    written = {name: node for name, node in rewritten.pairs.items() if node.name not in rewritten.labels}
    ends = {node: rewritten.labels[name] for name, node in written.items()}
    names = {layer.name: frozenset(layer.branches) for layer in rewritten.report.layers}
    return [_of_program(facts, node, ends, rewritten.labels, names) for node in nodes if not facts.is_constant(node)]


def _of_program(
    facts: ProgramFacts,
    node: fx.Node,
    ends: Mapping[fx.Node, str],
    labels: Mapping[str, str],
    names: Mapping[str, frozenset[str]],
) -> Operation:
    kind, value = str(node.target), node.meta.get("val")
    computed = [n for n in node.all_input_nodes if not facts.is_constant(n)]
    sides = [n for n in node.args[:2] if isinstance(n, fx.Node) and not facts.is_constant(n)]
    floats = isinstance(value, Tensor) and value.is_floating_point()
    convolves = kind.startswith(("aten.conv", "aten.linear")) or kind in NORMS
    affine = kind in _SUMS or (convolves and computed == sides[:1]) or (kind in _PRODUCTS and len(computed) == 1)
    affine = affine and not ("div" in kind and node.args[0] not in computed) and "rounding_mode" not in node.kwargs
    is_new = node.name not in labels
    name = _end(node, ends) if is_new else labels[node.name]
    return Operation(
        name,
        names.get(name, frozenset((name,))) if is_new else frozenset((name,)),
        (node.name,),
        tuple(n.name for n in computed),
        is_watched=floats and (convolves or kind in (*_SUMS, *_PRODUCTS, *_NORMS, *BY_BATCH_NORMS)),
        is_affine=floats and (affine or (kind in _POOLS and not is_new)),
        is_sum=kind in _SUMS and len(sides) > 1,
        is_average=kind == "aten.adaptive_avg_pool2d.default",
        is_batch_norm=kind in NORMS,
        is_new=is_new,
    )


def _end(node: fx.Node, ends: Mapping[fx.Node, str]) -> str:
    """The label of the tensor that something written makes a part of."""
    while node not in ends:
        node = next(iter(node.users))
    return ends[node]


def main() -> None:
    """Print, for each network, how many reasons of each kind it has in both representations, and what lacks one."""
    warnings.simplefilter("ignore")
    for name in sys.argv[1:]:
        found = specimen(name)
        rewritten = rewrite(torch.export.export(found.model, (found.x,)))
        before = to_onnx(found.model, found.x)
        after, report = fuse_onnx(before, prove=False)
        for what, operations, refusals in (
            ("program", of_program(rewritten), rewritten.report.refusals),
            ("onnx", of_onnx(before, after, report), report.refusals),
        ):
            counts = Counter(each.kind for each in refusals if isinstance(each, GraphRefusal))
            watched = sum(operation.is_watched for operation in operations)
            missing = unexplained(operations, refusals)
            print(f"{name} {what}: {watched} operations stay, {len(missing)} pairs without a reason {missing[:6]}")
            print("  " + ", ".join(f"{kind} {count}" for kind, count in counts.most_common()))


if __name__ == "__main__":
    main()
