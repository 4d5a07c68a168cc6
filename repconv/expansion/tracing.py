"""Which batch normalisation follows a convolution: read from the data flow, never from names or their order.

A network is traced twice, in evaluation and in training mode, since code may differ between them (auxiliary heads):
by `torch.fx` where it can follow the code, else by `torch.export`, which needs example inputs. What holds of a
convolution has to hold in both traces.
"""

from __future__ import annotations

import inspect
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils.parametrize import is_parametrized

from ..blocks.branches import Branch
from ..blocks.copies import copied
from ..errors import GeometryError
from ..proof.leaves import Inputs, arguments

SHAPE_READS = frozenset({"shape", "dtype", "device", "ndim", "size", "dim"})


@dataclass(frozen=True)
class ConvCall:
    """One call of a convolution: the batch normalisation modules that read its output, and how many others do."""

    norms: tuple[str, ...]
    others: int


@dataclass(frozen=True)
class Flow:
    """What one trace saw, by module name (the first one of a module that has several).

    calls: of each convolution. norm_calls: how often each batch normalisation module ran. read_elsewhere: modules
    whose weights or statistics were read by code other than their own.
    """

    calls: Mapping[str, Sequence[ConvCall]]
    norm_calls: Mapping[str, int]
    read_elsewhere: frozenset[str]


def trace(model: nn.Module, example_inputs: Inputs | None = None) -> tuple[Flow, ...]:
    """The data flow of `model` in evaluation and in training mode; `model` itself is left alone.

    Raises:
        GeometryError: neither way of tracing can follow it.
    """
    traced = copied(model)
    inputs = None if example_inputs is None else arguments(example_inputs)
    flows = []
    for training in (False, True):
        traced.train(training)
        try:
            with warnings.catch_warnings():
                # What they warn of is the user's code or their own; what they see is checked here.
                warnings.simplefilter("ignore")
                flows.append(_flow(traced, inputs))
        except GeometryError as error:
            own = _fails_in_training(traced, inputs)
            raise GeometryError(own or f"in {'training' if training else 'evaluation'} mode {error}") from None
    return tuple(flows)


@torch.no_grad()
def _fails_in_training(model: nn.Module, inputs: tuple[Any, ...] | None) -> str | None:
    """What is wrong where the code itself, not the tracing of it, fails in training mode."""
    if inputs is None:
        return None
    try:
        model.train()(*inputs)
    except Exception as error:  # noqa: BLE001  # the user's own code may raise anything
        return (
            f"in training mode its code fails on the example ({_line(error)}), as that of a detector does which takes "
            "targets, too; expand the part of it that takes images alone, such as its backbone"
        )
    return None


def _flow(model: nn.Module, inputs: tuple[Any, ...] | None) -> Flow:
    try:
        return _flow_of_fx(model, inputs)
    except Exception as error:  # noqa: BLE001  # tracing runs the user's own code, which may raise anything
        reason = f"torch.fx cannot follow the code ({_line(error)})"
    if inputs is None:
        raise GeometryError(f"{reason}; give example_inputs to let torch.export try")
    try:
        return _flow_of_export(model, inputs)
    except Exception as error:  # noqa: BLE001
        raise GeometryError(f"{reason}, nor can torch.export ({_line(error)})") from None


def _line(error: Exception) -> str:
    """The first line of an error that may be long."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__


class _Tracer(fx.Tracer):
    """Convolutions, batch normalisations and blocks are single nodes, whatever package their class is from."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, nn.Conv2d | nn.BatchNorm2d | Branch) or super().is_leaf_module(m, module_qualified_name)


def _flow_of_fx(model: nn.Module, inputs: tuple[Any, ...] | None) -> Flow:
    # fx would take an argument that is left out for a tensor: `if mask is not None` would go the wrong way.
    given = max(1, len(inputs or ()))
    parameters = list(inspect.signature(model.forward).parameters.values())[given:]
    defaults = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
    graph = _Tracer().trace(model, concrete_args=defaults or None)
    calls: dict[str, list[ConvCall]] = {}
    norm_calls: Counter[str] = Counter()
    elsewhere: set[str] = set()
    names = _first_names(model)

    def module(node: fx.Node) -> nn.Module | None:
        return model.get_submodule(str(node.target)) if node.op == "call_module" else None

    for node in graph.nodes:
        called = module(node)
        if node.op == "get_attr":
            elsewhere.add(_owner(model, names, str(node.target)))
        elif isinstance(called, nn.BatchNorm2d):
            norm_calls[names[id(called)]] += 1
        elif isinstance(called, nn.Conv2d):
            users = [user for user in node.users if not _reads_shape(user)]
            norms = [m for m in map(module, users) if isinstance(m, nn.BatchNorm2d)]
            call = ConvCall(tuple(names[id(m)] for m in norms), len(users) - len(norms))
            calls.setdefault(names[id(called)], []).append(call)
    return Flow(calls, norm_calls, frozenset(elsewhere))


def _reads_shape(user: fx.Node) -> bool:
    if user.op == "call_function" and user.target is getattr:
        return user.args[1] in SHAPE_READS
    return user.op == "call_method" and user.target in SHAPE_READS


def _flow_of_export(model: nn.Module, inputs: tuple[Any, ...]) -> Flow:
    program = torch.export.export(model, inputs, strict=False)
    names = _first_names(model)
    signature = program.graph_signature
    held = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    calls: dict[str, list[ConvCall]] = {}
    norm_calls: Counter[str] = Counter()
    elsewhere: set[str] = set()

    def frame(node: fx.Node) -> str | None:
        """The module whose own code made a node."""
        stack = node.meta.get("nn_module_stack")
        if not stack:
            return None
        path = next(reversed(stack.values()))[0].partition("@")[0]
        return names[id(model.get_submodule(path))]

    def norms_of(node: fx.Node) -> Iterator[str]:
        for user in node.users:
            where = frame(user) if "batch_norm" in str(user.target) else None
            if where is not None and isinstance(model.get_submodule(where), nn.BatchNorm2d):
                yield where

    for source in program.graph.nodes:
        if source.op != "placeholder" or source.name not in held:
            continue
        owner = _owner(model, names, held[source.name])
        attribute = held[source.name].rpartition(".")[2]
        for node in source.users:
            if frame(node) != owner:
                elsewhere.add(owner)
            elif attribute == "weight" and isinstance(model.get_submodule(owner), nn.Conv2d):
                norms = tuple(norms_of(node))
                calls.setdefault(owner, []).append(ConvCall(norms, len(node.users) - len(norms)))
            elif attribute == "running_mean" and "batch_norm" in str(node.target):
                norm_calls[owner] += 1
    return Flow(calls, norm_calls, frozenset(elsewhere))


def _first_names(model: nn.Module) -> dict[int, str]:
    return {id(module): name for name, module in model.named_modules()}


def _owner(model: nn.Module, names: Mapping[int, str], attribute: str) -> str:
    """The module that holds the tensor `attribute`, by its first name; "" for what a trace itself made up."""
    try:
        return names[id(model.get_submodule(attribute.rpartition(".")[0]))]
    except (AttributeError, KeyError):
        return ""


def follower(name: str, flows: Sequence[Flow]) -> str | None:
    """The batch normalisation that a block in the place of convolution `name` takes over, None if none follows.

    Raises:
        GeometryError: the convolution, or it and its batch normalisation, cannot be replaced.
    """
    if any(name in flow.read_elsewhere for flow in flows):
        raise GeometryError("its weight is read by other code than its own call")
    most = max(len(flow.calls.get(name, ())) for flow in flows)
    if most != 1:
        raise GeometryError(f"it is called {most} times, so it is shared" if most else "it is never called")
    seen = [(flow, flow.calls[name][0]) for flow in flows if flow.calls.get(name)]
    norms = sorted({norm for _, call in seen for norm in call.norms})
    if not norms:
        return None
    norm = norms[0]
    if any(call != ConvCall((norm,), 0) for _, call in seen):
        raise GeometryError(f"its output has a second user before the batch normalisation {norm}")
    if any(flow.norm_calls.get(norm, 0) != len(flow.calls.get(name, ())) for flow in flows):
        times = max(flow.norm_calls.get(norm, 0) for flow in flows)
        raise GeometryError(f"the batch normalisation {norm} after it is called {times} times, so it is shared")
    if any(norm in flow.read_elsewhere for flow in flows):
        raise GeometryError(f"the weights or statistics of {norm} after it are read by other code than its own call")
    return norm


def unfit_conv(conv: nn.Conv2d, tied: Mapping[int, int]) -> str | None:
    """Why a block cannot stand for `conv` whatever comes after it, None if it can; `tied` as `owners` counts."""
    if is_parametrized(conv) or "weight" not in dict(conv.named_parameters(recurse=False)):
        return "its weight is computed from other parameters (weight norm, spectral norm, pruning), not a parameter"
    if type(conv) is not nn.Conv2d or "forward" in vars(conv):
        return f"a {type(conv).__name__} may compute something else than nn.Conv2d does"
    reason = unfit_shape(conv)
    if reason is None and hooked(conv):
        reason = "a hook on it would be lost; remove it to expand"
    if reason is None and any(tied[id(parameter)] > 1 for parameter in conv.parameters()):
        reason = "its weight or bias is tied to another module's"
    return reason


def unfit_shape(conv: nn.Conv2d) -> str | None:
    """Why `conv` is not what a 3x3 block stands for, None if it is."""
    if conv.kernel_size != (3, 3):
        return f"a {'x'.join(map(str, conv.kernel_size))} kernel, a block stands for 3x3"
    if conv.dilation != (1, 1):
        return f"dilation {'x'.join(map(str, conv.dilation))}, a block stands for dilation 1"
    if conv.padding_mode != "zeros":
        return f"padding_mode={conv.padding_mode!r}, a block pads with zeros"
    if conv.padding not in ((1, 1), "same"):
        return f"padding {conv.padding if isinstance(conv.padding, str) else 'x'.join(map(str, conv.padding))}, not 1"
    return None


def unfit_norm(norm: nn.Module, tied: Mapping[int, int]) -> str | None:
    """Why a block cannot take over the batch normalisation `norm`, None if it can."""
    if (type(norm) is not nn.BatchNorm2d and not is_norm_act(norm)) or "forward" in vars(norm):
        return f"a {type(norm).__name__} may compute something else than nn.BatchNorm2d does"
    if not isinstance(norm, nn.BatchNorm2d) or norm.running_mean is None or norm.running_var is None:
        return "it keeps no running statistics, so nothing would fold"
    if hooked(norm):
        return "a hook on it would be lost; remove it to expand"
    if any(tied[id(tensor)] > 1 for tensor in (*norm.parameters(), *norm.buffers())):
        return "its weights or statistics are tied to another module's"
    return None


def is_norm_act(norm: nn.Module) -> bool:
    """Whether `norm` is timm's batch normalisation with an activation in one module."""
    if "timm" not in sys.modules:  # then nobody can have made one
        return False
    from timm.layers import BatchNormAct2d

    return type(norm) is BatchNormAct2d


def hooked(module: nn.Module) -> bool:
    """Whether a hook of a user sees what goes through `module`."""
    # torch has no public way to ask.
    before, after = module._forward_pre_hooks, module._forward_hooks  # noqa: SLF001
    gradients = (module._backward_hooks, module._backward_pre_hooks)  # noqa: SLF001
    return any((before, after, *gradients))


def owners(model: nn.Module) -> Counter[int]:
    """In how many places the modules of `model` hold each tensor, by its id."""
    return Counter(
        id(tensor)
        for module in model.modules()
        for held in (module.named_parameters, module.named_buffers)
        for _, tensor in held(recurse=False, remove_duplicate=False)
    )
