"""A network as one program of torch.export, fused, with exactly the sizes asked for."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.fx.experimental.symbolic_shapes import is_concrete_int

from repconv.errors import BuildError, first_line
from repconv.fusing import exported_program, fuse_network
from repconv.proof.report import FusionReport

from ..settings import Span

_AXES = ("batch", "channels", "height", "width")


def to_program(
    network: nn.Module, sizes: Sequence[Span], *, fuse: bool = True
) -> tuple[ExportedProgram, FusionReport | None]:
    """`network` as a program of one input of these sizes, and what fusing did, None if it was declined.

    Args:
        network: float32, of one input, in evaluation mode.
        sizes: of the input, [n, c, ...]; ranges stay open.
        fuse: fold this package's blocks, and everything affine in the graph.

    Raises:
        FusionError: the network is in training mode, or torch.export cannot follow its code.
        BuildError: a size cannot stay open.
    """
    example = example_of(sizes)
    if fuse:
        # What is built of it is measured in its runtime, so nothing is compared here.
        program, report = fuse_network(network, [example], _open(sizes), prove=False)
    else:
        program, report = exported_program(network, example, _open(sizes)), None
    if all(size.fixed for size in sizes):
        return program, report
    return sized(program.module(), sizes), report  # folding in the graph keeps sizes open, but not their ends


def example_of(sizes: Sequence[Span]) -> Tensor:
    """An input to trace with, of the largest sizes.

    A trace with a small batch may note that it is small: with 2, ExecuTorch then holds 15 and not the 64 asked for.
    """
    return torch.zeros([size.most for size in sizes])


def sized(module: nn.Module, sizes: Sequence[Span], dtype: torch.dtype = torch.float32) -> ExportedProgram:
    """A module of one input as a program that takes it in these sizes and this type.

    Raises:
        BuildError: it cannot be traced so, or a size cannot stay open.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about torch's own code
            program = torch.export.export(
                module, (example_of(sizes).to(dtype),), dynamic_shapes=_open(sizes), strict=False
            )
    except Exception as error:  # it runs what the network does, on types and sizes that may be new to it
        asked = "x".join(map(str, sizes))
        raise BuildError(f"torch.export cannot trace it with an input of {asked}: {first_line(error)}") from error
    (name,) = program.graph_signature.user_inputs
    (taken,) = (node.meta["val"] for node in program.graph.nodes if node.name == name)
    closed = [
        _name(axis)
        for axis, (size, side) in enumerate(zip(sizes, taken.shape, strict=True))
        if is_concrete_int(side) and not size.fixed
    ]
    if closed:
        raise BuildError(
            f"the {' and '.join(closed)} cannot stay open: the network's code depends on its size; give one size"
        )
    return program


def with_tensors(program: ExportedProgram, tensors: Mapping[str, Tensor]) -> fx.GraphModule:
    """A program as a module some of whose parameters and buffers, by name, are others; the program stays as it is."""
    module: fx.GraphModule = program.module()
    for name, tensor in tensors.items():
        owner, _, leaf = name.rpartition(".")
        held = module.get_submodule(owner)
        if leaf in held._parameters:  # noqa: SLF001  # there is no public way to tell them apart
            setattr(held, leaf, nn.Parameter(tensor, requires_grad=False))
        else:
            setattr(held, leaf, tensor)
    return module


def input_type(program: ExportedProgram) -> torch.dtype:
    """Of the one input of a program."""
    (name,) = program.graph_signature.user_inputs
    found: torch.dtype = next(node.meta["val"].dtype for node in program.graph.nodes if node.name == name)
    return found


def input_sizes(program: ExportedProgram, batch: Span, spans: Sequence[Span]) -> list[Span]:
    """[n, c, ...] of the one input of a program, whose channels it fixes."""
    (name,) = program.graph_signature.user_inputs
    (taken,) = (node.meta["val"] for node in program.graph.nodes if node.name == name)
    return [batch, Span.of(int(taken.shape[1])), *spans]


def _open(sizes: Sequence[Span]) -> tuple[object, ...] | None:
    """For torch.export: of the batch any size in its range, of an image what strides and pooling allow of it."""
    if all(size.fixed for size in sizes):
        return None
    return ({axis: _range(axis, size) for axis, size in enumerate(sizes) if not size.fixed},)


def _range(axis: int, size: Span) -> object:
    return Dim("batch", min=size.least, max=size.most) if axis == 0 else Dim.AUTO(min=size.least, max=size.most)


def _name(axis: int) -> str:
    return _AXES[axis] if axis < len(_AXES) else f"axis {axis}"
