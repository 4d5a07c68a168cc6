"""`fuse_blocks`: blocks of branches, and convolutions with their batch normalisation, become one convolution each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
from torch import nn

from ..algebra.geometry import pair
from ..algebra.kernels import Kernel
from ..errors import FusionError, GeometryError
from ..proof.report import FusedLayer, FusionReport, Refusal, Size
from .block import RepBlock
from .branches import Branch, conv_kernel
from .copies import copied
from .statistics.normalisation import Before, NormMoments


def fuse_blocks(
    model: nn.Module, keep: Callable[[str, Kernel], object] | None = None
) -> tuple[nn.Module, FusionReport]:
    """A single-path copy of `model`, and what was done.

    Every `RepBlock`, and every other `Branch` (the convolutions of this package's plain networks), is replaced by one
    `Conv2d` with bias, folded in float64 and cast once to the block's own dtype. The input is not changed. The result
    is an ordinary trainable module in evaluation mode, on the same device, in the same memory format. Nothing is
    compared: that is `repconv.fuse`.

    Args:
        model: in evaluation mode.
        keep: told each layer's name and its numbers in float64, before they are cast.

    Raises:
        FusionError: the model is in training mode, a batch normalisation keeps no running statistics, or a folded
            weight is not finite in the block's dtype.
        GeometryError: the model cannot be copied.
    """
    where = next((name for name, module in model.named_modules() if module.training), None)
    if where is not None:
        raise FusionError(
            f"the model is in training mode (at {where or 'its root'}), where batch normalisation is no fixed "
            "convolution; call model.eval() first"
        )
    folded: dict[nn.Module, nn.Module] = {}
    layers, refusals = [], []
    for name, branch in outermost_branches(model):
        try:
            kernel = folded_kernel(branch)
            conv = cast_like(branch, kernel)
        except GeometryError as error:
            refusals.append(Refusal(name, str(error)))
            continue
        except FusionError as error:
            raise FusionError(f"{name or 'the model'}: {error}") from None
        folded[branch] = conv
        if keep is not None:
            keep(name, kernel)
        kinds = branch.branch_set.fixed + branch.branch_set.searchable if isinstance(branch, RepBlock) else ()
        layers.append(
            FusedLayer(
                name=name,
                geometry=conv_kernel(conv, conv.weight.dtype).geometry.label,
                branches=kinds,
                before=size(branch),
                after=size(conv),
            )
        )
    fused = copied(model, folded)
    return fused, FusionReport(tuple(layers), tuple(refusals), size(model), size(fused))


def outermost_branches(model: nn.Module) -> Iterator[tuple[str, Branch]]:
    """Every `Branch` of `model` that is not inside another, with its name."""
    inside: set[int] = set()
    for name, module in model.named_modules():
        if isinstance(module, Branch) and id(module) not in inside:
            inside.update(id(child) for child in module.modules())
            yield name, module


def fold(branch: Branch) -> nn.Conv2d:
    """The `Conv2d` that `branch` is in evaluation, in its dtype, memory format and on its device.

    Raises:
        GeometryError: the branch is not one zero-padded convolution, or a forward hook sees inside it.
        FusionError: statistics are missing, or the folded numbers are not finite in the branch's dtype.
    """
    return cast_like(branch, folded_kernel(branch))


def folded_kernel(branch: Branch) -> Kernel:
    """The float64 numbers that `fold` casts; errors as `fold`."""
    refuse_hooks(branch)
    with torch.no_grad():
        kernel = branch.kernel()
    # One pass over each: the largest magnitude, which is NaN or Inf as soon as any is.
    peaks = [torch.linalg.vector_norm(t, torch.inf) for t in (kernel.weight, kernel.bias)]
    largest = float(torch.stack(peaks).max())
    if not math.isfinite(largest):
        raise FusionError(
            "the folded weights are NaN or Inf: a weight is not finite, or a running variance is negative"
        )
    dtype = _dtype(branch)
    if largest > torch.finfo(dtype).max:
        raise FusionError(
            f"a folded weight of {largest:.3g} does not fit {str(dtype).removeprefix('torch.')}; fuse in float32"
        )
    return kernel


def cast_like(branch: Branch, kernel: Kernel) -> nn.Conv2d:
    """`kernel` as a `Conv2d` in the dtype and memory format of `branch`."""
    conv = to_conv2d(kernel.to(dtype=_dtype(branch)))
    if any(_is_channels_last(p) for p in branch.parameters()):
        conv.to(memory_format=torch.channels_last)
    return conv


def to_conv2d(kernel: Kernel) -> nn.Conv2d:
    """`kernel` as a trainable `Conv2d` in evaluation mode.

    `Conv2d` pads both sides alike, so a kernel that does not gets zero taps until it does.
    """
    top, left, bottom, right = kernel.padding
    rows, columns = max(top, bottom, 0), max(left, right, 0)
    kh, kw = kernel.weight.shape[2:]
    grown = kernel.enlarge(
        (kh + 2 * rows - top - bottom, kw + 2 * columns - left - right), (rows, columns, rows, columns)
    )
    shape = grown.geometry
    conv = nn.Conv2d(
        shape.in_channels,
        shape.out_channels,
        pair(shape.size),
        pair(shape.stride),
        (rows, columns),
        groups=shape.groups,
        device="meta",
    )
    # The kernel may share memory with the model's own weights when there was nothing to compute.
    conv.weight = nn.Parameter(grown.weight.detach().clone(memory_format=torch.contiguous_format))
    conv.bias = nn.Parameter(grown.bias.detach().clone())
    return conv.eval()


def with_single_convolutions(model: nn.Module, names: Iterable[str]) -> nn.Module:
    """A copy of `model` whose named branches are single convolutions of their geometry, on their device, untrained."""
    single: dict[nn.Module, nn.Module] = {}
    for name in names:
        branch = model.get_submodule(name)
        if not isinstance(branch, Branch):
            raise FusionError(f"{name} is a {type(branch).__name__}, not a branch that folds")
        with torch.no_grad():
            single[branch] = to_conv2d(branch.kernel(no_statistics))
    return copied(model, single)


def with_kernels(model: nn.Module, kernels: Mapping[str, Kernel]) -> nn.Module:
    """A copy of `model` whose named branches are the convolutions of these kernels, in the kernels' own dtype."""
    return copied(model, {model.get_submodule(name): to_conv2d(kernel) for name, kernel in kernels.items()})


def no_statistics(_: Sequence[nn.BatchNorm2d], given: Sequence[Before]) -> NormMoments:
    """Mean 0 and variance 1, where shapes alone matter."""
    mean = torch.zeros_like(torch.stack([before.kernel.bias for before in given]))
    return NormMoments(mean, torch.ones_like(mean), given)


def size(model: nn.Module) -> Size:
    """Convolutions, batch normalisations and parameters of `model`; a shared one counts once."""
    modules = list(model.modules())
    return Size(
        convolutions=sum(isinstance(m, nn.Conv2d) for m in modules),
        batch_norms=sum(isinstance(m, nn.BatchNorm2d) for m in modules),
        parameters=sum(p.numel() for p in model.parameters()),
    )


def refuse_hooks(branch: Branch) -> None:
    """Raise if replacing `branch` would silently lose a user's hook."""
    for name, module in branch.named_modules():
        if module._forward_hooks or module._forward_pre_hooks:  # noqa: SLF001  # torch has no public way to ask
            raise GeometryError(
                f"a forward hook {f'on {name}, ' if name else ''}would be lost in a folded convolution; "
                "remove it to fuse"
            )


def _dtype(branch: Branch) -> torch.dtype:
    return next(t.dtype for t in _tensors(branch) if t.is_floating_point())


def _tensors(module: nn.Module) -> Iterator[torch.Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def _is_channels_last(parameter: torch.Tensor) -> bool:
    return (
        parameter.dim() == 4
        and parameter.is_contiguous(memory_format=torch.channels_last)
        and not parameter.is_contiguous()
    )
