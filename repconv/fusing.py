"""`fuse`: this package's blocks, or with example inputs everything affine in anybody's network."""

from __future__ import annotations

import warnings
from typing import overload

import torch
from torch import nn
from torch.export import ExportedProgram

from .errors import FusionError
from .fusion import fuse_blocks
from .graph import fuse_program
from .report import FusionReport
from .tracing import Inputs, arguments


@overload
def fuse(model: nn.Module) -> tuple[nn.Module, FusionReport]: ...
@overload
def fuse(model: nn.Module, example_inputs: Inputs) -> tuple[ExportedProgram, FusionReport]: ...


def fuse(model: nn.Module, example_inputs: Inputs | None = None) -> tuple[nn.Module | ExportedProgram, FusionReport]:
    """A single-path copy of `model`, and what was done; `model` is not changed.

    Without example inputs every `RepBlock`, and every other `Branch` (the convolutions of this package's plain
    networks), is replaced by one `Conv2d` with bias, folded in float64 and cast once to the block's own dtype. The
    result is an ordinary trainable module in evaluation mode, on the same device, in the same memory format.

    With example inputs the network, whoever wrote it, is exported by torch.export and everything affine in its graph
    is folded, exactly at every pixel or not at all. The result is an exported program: call `.module()`, compile it,
    save it to `.pt2`, or export it to ONNX. Its sizes are those of the example.

    Raises:
        FusionError: the model is in training mode, a batch normalisation keeps no running statistics, a folded weight
            is not finite in the model's dtype, or torch.export cannot follow the model's code.
    """
    if example_inputs is None:
        return fuse_blocks(model)
    return fuse_program(exported_program(model, example_inputs))


def exported_program(
    model: nn.Module, example_inputs: Inputs, dynamic_shapes: tuple[object, ...] | None = None
) -> ExportedProgram:
    """`model` as a program of torch.export, which takes `dynamic_shapes`.

    Raises:
        FusionError: the model is in training mode, or torch.export cannot follow its code.
    """
    where = next((name for name, module in model.named_modules() if module.training), None)
    if where is not None:
        raise FusionError(f"the model is in training mode (at {where or 'its root'}); call model.eval() first")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they are about the user's code or torch's own
            return torch.export.export(
                model, arguments(example_inputs), dynamic_shapes=dynamic_shapes, strict=False
            )  # fmt: skip
    except Exception as error:  # it runs the user's own code, which may raise anything
        first = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        raise FusionError(f"torch.export cannot follow {type(model).__name__}: {first}") from error
