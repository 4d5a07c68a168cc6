"""A program's graph without operations that write into what they read, every view spelled as one that fusing reads.

`run_decompositions({})` of torch gives the same and traces the whole program twice, which takes longer than all of
fusing. Most programs need little: an activation in place where nobody reads the tensor again, a `flatten` that is a
view. Those are written here, each by itself; any other program goes the long way.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._C import DispatchKey
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from ...errors import FusionError

_aten = torch.ops.aten

_MAKES_ANEW = frozenset((
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "avg_pool1d", "batch_norm", "concat", "conv1d",
    "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "divide", "group_norm",
    "instance_norm", "layer_norm", "linear", "log_softmax", "matmul", "max_pool1d", "max_pool2d", "max_pool3d",
    "multiply", "pad", "relu6", "rms_norm", "scaled_dot_product_attention", "selu", "softmax", "square", "std",
    "subtract", "upsample_bicubic2d", "upsample_bilinear2d", "upsample_linear1d", "upsample_nearest1d",
    "upsample_nearest2d", "upsample_nearest3d", "upsample_trilinear3d", "var",
))  # fmt: skip
"""Compositions of other operations that give a tensor of its own, whatever they read."""

_NORMALISES = {_aten.batch_norm.default: 5, _aten.instance_norm.default: 5}
"""What writes its running statistics, as its schema does not say, where the argument at this place is true."""


class _Unknown(Exception):  # noqa: N818  # nothing went wrong
    """What an operation does cannot be written by itself."""


def functional(program: ExportedProgram) -> fx.GraphModule:
    """The graph as a module that holds its weights, which it shares with the program; that is not changed.

    Raises:
        FusionError: torch gives no graph.
    """
    module = without_guards(program)
    if not isinstance(module, fx.GraphModule):
        raise FusionError("the exported program gives no graph module")
    # What the module of a functional program writes into buffers at its end, torch put there.
    if _is_plain(program) and _without_writing(module.graph):
        _spell_views(module.graph)
        return module
    decomposed = without_guards(_decomposed(program))
    if not isinstance(decomposed, fx.GraphModule):
        raise FusionError("the decomposed program gives no graph module")
    return decomposed


def _decomposed(program: ExportedProgram) -> ExportedProgram:
    """The program by torch: in-place operations become ordinary ones; convolutions and other compositions stay.

    Those that may give a view and do not say so are taken apart; torch would miss that what is written into their
    source changes what they gave.
    """
    kinds = {node.target for node in program.graph.nodes if isinstance(node.target, OpOverload)}
    table = torch.export.default_decompositions()
    silent = [kind for kind in kinds if may_share(kind) and not _says_so(kind) and kind in table]
    decomposed: ExportedProgram = program.run_decompositions({kind: table[kind] for kind in silent})
    return decomposed


def without_guards(program: ExportedProgram) -> nn.Module:
    """The program's module; guards, and the option to leave them out, came with torch 2.9."""
    options = inspect.signature(program.module).parameters
    return program.module(check_guards=False) if "check_guards" in options else program.module()


def _is_plain(program: ExportedProgram) -> bool:
    """Whether the program calls ATen and other declared operations alone, of ordinary weights, and copies into none."""
    plain = all(type(t) in (Tensor, nn.Parameter, nn.Buffer) for t in program.state_dict.values())
    return plain and all(_is_declared(node) for node in program.graph.nodes if node.op not in ("placeholder", "output"))


def _is_declared(node: fx.Node) -> bool:
    """Whether a node's schema, or this module, says what it writes into."""
    if node.op != "call_function":
        return False
    if not isinstance(node.target, OpOverload):
        return node.target is operator.getitem or not _holds_tensors(node)
    if node.target in _NORMALISES:
        place = _NORMALISES[node.target]
        return len(node.args) > place and (node.args[place] is False or node.args[place - 2] is None)
    return node.target is not _aten.copy_.default and node.target.overloadpacket is not _aten.native_batch_norm


def _holds_tensors(node: fx.Node) -> bool:
    """Whether a node reads or makes a tensor."""
    return any(
        isinstance(leaf, Tensor) for n in (node, *node.all_input_nodes) for leaf in tree_leaves(n.meta.get("val"))
    )


def _without_writing(graph: fx.Graph) -> bool:
    """Turn what writes into a tensor into what makes another; False if that would not do, and the graph is half done.

    A tensor may be written into where no other name of its memory is read afterwards: then a new tensor in the place of
    the written one, for all who read it later, is the same.
    """
    order = {node: place for place, node in enumerate(graph.nodes)}
    memory = _Memory()
    written = []
    for node in graph.nodes:
        memory.add(node)
        if _writes(node):
            written.append(node)
    for node in written:
        source = node.args[0]
        if node.target is _aten.detach_.default:
            node.target = _aten.detach.default
            continue
        twin = _twin(node)
        older = [n for n in memory.of(source) if order[n] < order[node]]
        if twin is None or any(n.op != "call_function" for n in older):
            return False
        if any(order[user] > order[node] for n in older if n is not source for user in n.users):
            return False
        node.target = twin
        source.replace_all_uses_with(node, delete_user_cb=lambda user, at=order[node]: order[user] > at)
    return True


def _writes(node: fx.Node) -> bool:
    """Whether its schema says so; copies into buffers that stand at the end of a module are for whoever runs it."""
    if not isinstance(node.target, OpOverload) or node.target is _aten.copy_.default:
        return False
    return bool(node.target._schema.is_mutable)  # noqa: SLF001


def _twin(node: fx.Node) -> OpOverload | None:
    """The operation that makes a new tensor where `node` writes into its first, of the same type; None if none does."""
    kind: Any = node.target
    name, arguments = kind.overloadpacket.__name__, kind._schema.arguments  # noqa: SLF001
    into = [a.alias_info is not None and a.alias_info.is_write for a in arguments]
    if not name.endswith("_") or into.index(True) != 0 or sum(into) != 1 or torch.Tag.inplace_view in kind.tags:
        return None
    packet = getattr(getattr(torch.ops, kind.namespace), name[:-1], None)
    twin = getattr(packet, kind._overloadname, None)  # noqa: SLF001
    if twin is None or twin._schema.is_mutable or _types(twin) != _types(kind):  # noqa: SLF001
        return None
    tensors = [
        leaf for n in node.all_input_nodes for leaf in tree_leaves(n.meta.get("val")) if isinstance(leaf, Tensor)
    ]
    return twin if len({tensor.dtype for tensor in tensors}) == 1 else None


def _types(kind: OpOverload) -> list[tuple[str, str]]:
    return [(argument.name, str(argument.type)) for argument in kind._schema.arguments]  # noqa: SLF001


class _Memory:
    """Which nodes' tensors may share memory."""

    def __init__(self) -> None:
        self._group: dict[fx.Node, int] = {}
        self._members: dict[int, list[fx.Node]] = {}

    def add(self, node: fx.Node) -> None:
        """Take in a node, whose inputs were taken in before."""
        shared = {self._group[n] for n in self._sources(node)}
        into = len(self._group) if not shared else max(shared, key=lambda group: len(self._members[group]))
        members = self._members.setdefault(into, [])
        for group in shared - {into}:
            members += self._members.pop(group)
        members.append(node)
        self._group.update(dict.fromkeys(members if len(shared) > 1 else [node], into))

    def of(self, node: fx.Node) -> list[fx.Node]:
        """All that may share memory with it, itself among them."""
        return self._members[self._group[node]]

    def _sources(self, node: fx.Node) -> Iterable[fx.Node]:
        """Those of its inputs that what a node makes may be a part of."""
        if node.op != "call_function":
            return ()
        if not isinstance(node.target, OpOverload):
            return node.all_input_nodes
        if _writes(node):
            return [n for n in node.args[:1] if isinstance(n, fx.Node)]
        return node.all_input_nodes if may_share(node.target) else ()


def may_share(kind: OpOverload) -> bool:
    """Whether what an operation makes may be what it reads, or a window onto that.

    Schemas tell of those that are kernels of their own. Others are compositions of operations, and some that say
    nothing, `einsum` among them, give a view where it happens to do.
    """
    makes_anew = kind.namespace == "aten" and kind.overloadpacket.__name__ in _MAKES_ANEW
    return _says_so(kind) or (_is_composed(kind) and not makes_anew)


def _says_so(kind: OpOverload) -> bool:
    """Whether its schema tells that what it makes may be what it reads."""
    return any(a.alias_info is not None for a in (*kind._schema.arguments, *kind._schema.returns))  # noqa: SLF001


def _is_composed(kind: OpOverload) -> bool:
    return bool(kind.has_kernel_for_dispatch_key(DispatchKey.CompositeImplicitAutograd))


def _spell_views(graph: fx.Graph) -> None:
    """Write compositions that give views, `flatten` or `chunk`, and dropout that drops nothing, as what they are."""
    for node in list(graph.nodes):
        kind = node.target
        if not isinstance(kind, OpOverload) or kind in _NORMALISES or not _is_composed(kind):
            continue
        if _says_so(kind) or _drops_nothing(node):
            _spell(node)


def _drops_nothing(node: fx.Node) -> bool:
    return node.target is _aten.dropout.default and len(node.args) > 2 and node.args[2] is False


def _spell(node: fx.Node) -> None:
    """Put the operations that a composition calls in its place, where they read and make tensors of fixed sizes."""
    graph = node.graph
    known = {id(n.meta["val"]): n for n in node.all_input_nodes if isinstance(n.meta.get("val"), Tensor)}
    function: Any = node.target
    written = _Written(graph, known, node.meta)
    try:
        arguments, options = fx.node.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
        with graph.inserting_before(node), torch.no_grad(), written:
            made = function(*arguments, **options)
        found = tree_map(written.node_of, made)
    except (_Unknown, KeyError):
        for each in reversed(written.nodes):
            graph.erase_node(each)
        return
    if isinstance(found, fx.Node):
        node.replace_all_uses_with(found)
    else:
        for user in list(node.users):
            if user.target is operator.getitem:
                user.replace_all_uses_with(found[user.args[1]])
                graph.erase_node(user)
    if not node.users:
        graph.erase_node(node)


class _Written(TorchDispatchMode):
    """Writes a node for each operation that is called of tensors that nodes stand for."""

    def __init__(self, graph: fx.Graph, known: dict[int, fx.Node], meta: Mapping[str, Any]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._graph, self._known = graph, known
        self._meta = {key: value for key, value in meta.items() if key != "val"}
        self._kept: list[Any] = []  # as long as it is known by its identity
        self.nodes: list[fx.Node] = []

    def node_of(self, value: object) -> Any:  # noqa: ANN401  # what is no tensor stays
        """The node that stands for a tensor.

        Raises:
            _Unknown: none does, or it is a size that differs from run to run.
        """
        if isinstance(value, Tensor):
            if id(value) not in self._known:
                raise _Unknown
            return self._known[id(value)]
        if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
            raise _Unknown
        return value

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401  # torch's signature
        """Call it, and write it down."""
        made = func(*args, **(kwargs or {}))
        if not any(isinstance(leaf, Tensor) for leaf in tree_leaves(made)):
            return made
        read = tree_map(self.node_of, (args, kwargs or {}))
        self._add(made, self._graph.call_function(func, *read))
        return made

    def _add(self, value: Any, node: fx.Node) -> None:  # noqa: ANN401  # one tensor, or several
        node.meta = {**self._meta, "val": value}
        self.nodes.append(node)
        self._kept.append(value)
        if isinstance(value, Tensor):
            self._known[id(value)] = node
        else:
            for place, each in enumerate(value):
                self._add(each, self._graph.call_function(operator.getitem, (node, place)))
