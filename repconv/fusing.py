"""`fuse`: this package's blocks, or with example inputs everything affine in anybody's network, and the proof."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from .algebra.kernels import Kernel
from .blocks.fold import fuse_blocks, outermost_branches, size, to_conv2d
from .blocks.probing import count_flops, dtype_of, probes, require_called
from .blocks.proof import block_by_block, prove_blocks
from .errors import FusionError, first_line
from .graph.program.fuse import export_again, rewrite
from .graph.program.proof.prove import prove_program
from .models.libraries import image_shape
from .models.spec import is_foreign
from .proof.agreement import Agreement
from .proof.leaves import Inputs, arguments
from .proof.report import FusionReport, Proof, Refusal, Size

_LARGEST_PROBE = 64
"""Pixels a side at most of the images on which networks of this package are compared, which take any size."""


@overload
def fuse(model: nn.Module, *, prove: bool = True) -> tuple[nn.Module, FusionReport]: ...
@overload
def fuse(model: nn.Module, example_inputs: Inputs, *, prove: bool = True) -> tuple[ExportedProgram, FusionReport]: ...


def fuse(
    model: nn.Module, example_inputs: Inputs | None = None, *, prove: bool = True
) -> tuple[nn.Module | ExportedProgram, FusionReport]:
    """A single-path copy of `model`, what was done, and the proof that it is right; `model` is not changed.

    Without example inputs every `RepBlock`, and every other `Branch` (the convolutions of this package's plain
    networks), is replaced by one `Conv2d` with bias, folded in float64 and cast once to the block's own dtype. The
    result is an ordinary trainable module, called as any is, in evaluation mode, on the same device, in the same memory
    format. What else the network holds is not looked at; where there may be more to fold, a refusal of the report says
    so, and if nothing was folded a warning.

    With example inputs the network, whoever wrote it, is exported by torch.export and everything affine in its graph is
    folded, exactly at every pixel or not at all. The result is an exported program, which is not called itself: call
    what `.module()` returns, compile it, save it to `.pt2`, or export it to ONNX. Its sizes are those of the example.

    The proof: each folded layer is compared with what it was made of in float64, and so is the whole network, on the
    example inputs. Without them networks of this package, timm and torchvision are compared on random images of a size
    that they take; of others each block is compared alone, and `report.unmeasured` says that the whole was not.

    Args:
        model: in evaluation mode.
        example_inputs: a tensor, or a tuple of positional arguments.
        prove: False leaves the comparing out, and the report says so.

    Raises:
        FusionError: the model is in training mode, a batch normalisation keeps no running statistics, a folded weight
            is not finite in the model's dtype, or torch.export cannot follow the model's code.
        SourceError: the model itself cannot be called with `example_inputs`.
        VerificationError: the result differs by more than rounding; `error.report` has every comparison.
    """
    if not isinstance(model, nn.Module):
        raise FusionError(_no_module(model))
    if example_inputs is None:
        fused, report = fuse_modules(model, prove=prove)
        unseen = _unseen(model, fused)
        if unseen is not None and not report.layers:
            warnings.warn(f"nothing was fused: {unseen.why}", stacklevel=2)
        return fused, report if unseen is None else replace(report, refusals=(*report.refusals, unseen))
    return fuse_network(model, [example_inputs], prove=prove)


def _no_module(given: object) -> str:
    """What `fuse` takes, and the way to it from what it was given."""
    if isinstance(given, str | Path):
        way = (
            f"repconv.fuse(repconv.load({str(given)!r}).model) for a checkpoint of this package; load weights of your "
            f"own network into it first; on the command line, repconv fuse {given}"
        )
    elif isinstance(given, type):
        way = f"make it first: {given.__name__}(...)"
    elif isinstance(given, ExportedProgram):
        way = "repconv.graph.fuse_program takes programs"
    elif isinstance(given, Mapping):
        way = "load these weights into their network first: network.load_state_dict(weights)"
    elif type(given).__name__ == "ModelProto":
        way = "repconv.graph.fuse_onnx takes ONNX models"
    else:
        way = "such as the model that was trained"
    return f"fuse takes a torch.nn.Module in evaluation mode, got a {type(given).__name__}; {way}"


def fuse_modules(
    model: nn.Module, inputs: Sequence[Inputs] | None = None, *, prove: bool = True
) -> tuple[nn.Module, FusionReport]:
    """`fuse` without example inputs, compared on `inputs`, one call's each; None: on what the network is known to take.

    Raises:
        FusionError, VerificationError: as `fuse`.
    """
    kernels: dict[str, Kernel] = {}
    fused, report = fuse_blocks(model, kernels.__setitem__ if prove else None)
    if not prove:
        return fused, report.with_proof(None)
    if not report.layers:
        return fused, report.with_proof(Proof(Agreement()))  # nothing was done
    proof = prove_blocks(model, fused, _known_inputs(model) if inputs is None else inputs, kernels)
    return fused, report.with_proof(proof).require()


def _unseen(model: nn.Module, fused: nn.Module) -> Refusal | None:
    """What of somebody else's network may fold and was not looked at."""
    if not is_foreign(model):
        return None
    ours = {name for name, _ in outermost_branches(model)}
    others = [
        module
        for name, module in fused.named_modules()
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d)
        and not any(name == own or not own or name.startswith(f"{own}.") for own in ours)
    ]
    if ours and not any(isinstance(module, nn.BatchNorm2d) for module in others):
        return None
    convolutions = sum(isinstance(module, nn.Conv2d) for module in others)
    blocks = "" if ours else ", and no block of this package"
    return Refusal(
        "what is no block of this package" if ours else type(model).__name__,
        f"not looked at: {convolutions} convolutions and {len(others) - convolutions} batch normalisations{blocks}; "
        "what of them folds shows in the graph, which takes an example: repconv.fuse(model, x)",
    )


def _known_inputs(model: nn.Module) -> list[Inputs]:
    """Random images that a network of this package or a library takes; none where nobody knows."""
    shape = image_shape(model)
    if shape is None:
        return []
    own = not is_foreign(model)
    channels, height, width = shape
    limits = (min(height, _LARGEST_PROBE), min(width, _LARGEST_PROBE)) if own else (height, width)
    usual, odd = probes((channels, *limits), dtype=dtype_of(model))
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    return [(odd if own else usual).to(device)]  # others may take the one size only


def fuse_network(
    model: nn.Module,
    inputs: Sequence[Inputs],
    dynamic_shapes: tuple[object, ...] | None = None,
    *,
    prove: bool = True,
) -> tuple[ExportedProgram, FusionReport]:
    """`fuse` with example inputs: exported with the first of `inputs`, compared on all of them.

    This package's blocks are folded before, so that torch.export traces the small network; where the graph's own
    folding goes on, it takes their float64 numbers.

    Raises:
        FusionError, VerificationError: as `fuse`.
    """
    kernels: dict[str, Kernel] = {}
    small, blocks = model, None
    if next(outermost_branches(model), None) is not None:
        small, blocks = fuse_blocks(model, kernels.__setitem__)
    program = exported_program(small, inputs[0], dynamic_shapes)
    rewritten = rewrite(
        program,
        {
            f"{name}.{key}" if name else key: value
            for name, kernel in kernels.items()
            for key, value in to_conv2d(kernel).state_dict().items()
        },
    )
    fused = export_again(program, rewritten)
    report = (
        rewritten.report
        if blocks is None
        else _joined(blocks, rewritten.report, *(_with_flops(network, inputs[0]) for network in (model, small)))
    )
    if not prove:
        return fused, report.with_proof(None)
    if not report.layers and fused is program:
        return fused, report.with_proof(Proof(Agreement()))  # nothing was done
    given = [arguments(x) for x in inputs]
    proof = prove_program(rewritten, fused, model, given)
    if blocks is not None:
        proof = Proof(Agreement(tuple(block_by_block(model, small)))) + proof
    return fused, report.with_proof(proof).require()


def _with_flops(network: nn.Module, example: Inputs) -> Size:
    """Its size, with the operations of one image where it takes one."""
    image = example[0] if isinstance(example, tuple) and len(example) == 1 else example
    if not isinstance(image, Tensor) or not image.is_floating_point():
        return size(network)
    return replace(size(network), flops=count_flops(network, image.shape[1:]))


def _joined(blocks: FusionReport, graph: FusionReport, model: Size, small: Size) -> FusionReport:
    """One account of both steps. A block that the graph's own folding took up shows as part of that convolution."""
    kinds = {layer.name: layer for layer in blocks.layers}

    def taken(origin: str) -> str:
        return origin.rpartition("/")[0]

    absorbed = {taken(origin) for layer in graph.layers for origin in layer.branches} & set(kinds)
    layers = tuple(layer for layer in blocks.layers if layer.name not in absorbed)
    before = replace(
        graph.before,
        convolutions=graph.before.convolutions + model.convolutions - small.convolutions,
        batch_norms=graph.before.batch_norms + model.batch_norms - small.batch_norms,
        parameters=graph.before.parameters + model.parameters - small.parameters,
        flops=_sum(graph.before.flops, model.flops, small.flops),
    )
    return FusionReport((*layers, *graph.layers), graph.refusals, before, graph.after, diverged=graph.diverged)


def _sum(graph: int | None, model: int | None, small: int | None) -> int | None:
    """Of the graph of the small network, with what the large one has more."""
    return None if graph is None or model is None or small is None else graph + model - small


def exported_program(
    model: nn.Module, example_inputs: Inputs, dynamic_shapes: tuple[object, ...] | None = None
) -> ExportedProgram:
    """`model` as a program of torch.export, which takes `dynamic_shapes`.

    Raises:
        FusionError: the model is in training mode, or torch.export cannot follow its code.
        SourceError: the model itself cannot be called with these inputs.
    """
    where = next((name for name, module in model.named_modules() if module.training), None)
    if where is not None:
        raise FusionError(f"the model is in training mode (at {where or 'its root'}); call model.eval() first")
    found: Exception | None = None
    for following in (contextlib.nullcontext(), _data_followed()):
        try:
            with warnings.catch_warnings(), following:
                warnings.simplefilter("ignore")  # they are about the user's code or torch's own
                inputs = arguments(example_inputs)
                return torch.export.export(model, inputs, dynamic_shapes=dynamic_shapes, strict=False)
        except Exception as error:  # noqa: BLE001  # it runs the user's own code, which may raise anything
            found = found or error
    why = first_line(found) if found is not None else ""
    require_called(model, arguments(example_inputs))
    raise FusionError(f"torch.export cannot follow {type(model).__name__}: {why}") from found


@contextlib.contextmanager
def _data_followed() -> Iterator[None]:
    """Let torch.export follow `parameter.data`, which it takes for a tensor from elsewhere: it is `detach()` there."""
    plain: Any = torch._C.TensorBase.data  # noqa: SLF001  # what torch.Tensor inherits

    def read(tensor: Tensor) -> Tensor:
        found: Tensor = tensor.detach() if torch.compiler.is_exporting() else plain.__get__(tensor)
        return found

    torch.Tensor.data = property(read, plain.__set__)  # type: ignore[assignment]
    try:
        yield
    finally:
        del torch.Tensor.data
