"""`expand`: the 3x3 convolutions of any network become blocks of branches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..algebra.geometry import Geometry
from ..blocks.block import BranchSet, RepBlock
from ..blocks.branches import Branch, ConvBranch, conv_kernel
from ..blocks.copies import copied
from ..errors import GeometryError
from ..progress import counted
from ..proof.leaves import Inputs, arguments
from ..proof.report import Refusal
from .initialise import moments_of, settle
from .placement import Placement, new_block, parts_at, take_over, with_modules
from .tracing import follower, hooked, owners, trace, unfit_conv, unfit_norm


@dataclass(frozen=True)
class Replaceable:
    """A convolution that a block can replace, and the batch normalisation module whose work the block takes over.

    norm: None where none follows (the block takes the convolution alone) and for a `ConvBranch`, which has its own.
    """

    geometry: Geometry
    norm: str | None = None


def expand(
    model: nn.Module,
    *,
    branches: Iterable[str] = (),
    fixed: Iterable[str] = ("3x3",),
    preserve: bool = False,
    example_inputs: Inputs | None = None,
) -> nn.Module:
    """A copy of `model` in which every 3x3 convolution and the batch normalisation after it is a `RepBlock`.

    The block's `3x3` branch takes over the convolution and batch normalisation it replaces; other branches start
    fresh. Kinds that do not fit a convolution (`skip` where it changes the shape) are left out there. In the place of
    the batch normalisation stands an `Identity`, or the activation of timm's `BatchNormAct2d`.

    Where no batch normalisation module follows (fused networks, functional normalisation, networks without), the block
    stands for the convolution alone: exactly so in evaluation; in training its branches normalise by the batch, which
    is near to it if `example_inputs` are real ones.

    The input is not changed. `expandable` says what would be left as it is, and why.

    Args:
        model: any network; those of `create_model` need no tracing.
        branches: searchable kinds (names in `BRANCHES`), each with a gate.
        fixed: kinds without a gate.
        preserve: keep what the network computes in evaluation, whatever the branches, and every branch trainable: see
            `repconv.expansion.initialise`.
        example_inputs: what the network is called with, a tensor or a tuple of arguments. Needed where torch.fx cannot
            follow the network's code. New statistics are measured on them: best a batch of real images.

    Raises:
        GeometryError: an unknown kind, nothing to replace, or `preserve` without a fixed `3x3`.
    """
    wanted = BranchSet.of(fixed, branches)
    if preserve and "3x3" not in wanted.fixed:
        raise GeometryError(
            "preserve=True needs '3x3' among the fixed branches, where it makes up for the others; "
            f"got {', '.join(wanted.fixed) or 'none'}"
        )
    targets, refusals = expandable(model, example_inputs)
    if not targets:
        left = [f"{refusal.where or 'the model'}: {refusal.why}" for refusal in refusals]
        shown = "; ".join(left[:3]) + (f" and {len(left) - 3} more" if len(left) > 3 else "")
        raise GeometryError(
            f"nothing to expand: {type(model).__name__} holds no ConvBranch or Conv2d with a 3x3 convolution, padding "
            f"1 and dilation 1 that a block could stand for{f' ({shown})' if shown else ''}"
        )
    blocks: dict[str, RepBlock] = {}

    def build(name: str, x: Tensor | None = None) -> None:
        """The block for a convolution, once its input x [n, i, h, w] is known or will not be."""
        target = targets[name]
        conv, norm = parts_at(model, name, target.norm)
        # Before batch normalisation a bias does nothing; our own networks' blocks have it where their files do.
        bias = conv.bias is not None and isinstance(model.get_submodule(name), ConvBranch)
        eps, momentum = (1e-5, 0.1) if norm is None else (norm.eps, norm.momentum)
        placement = Placement(
            branches=wanted.fitting(target.geometry),
            norm=target.norm,
            own_bias=bias,
            bias=bias,
            eps=eps,
            momentum=momentum,
        )
        try:
            blocks[name] = new_block(conv, placement)
            take_over(blocks[name], conv, norm)
            if not conv.weight.is_meta:
                settle(blocks[name], conv, norm, moments_of(conv, norm, x), preserve=preserve)
        except GeometryError as error:
            raise GeometryError(f"{name}: {error}") from None

    norms = {name: target.norm for name, target in targets.items()}
    alone = any(parts_at(model, name, norm)[1] is None for name, norm in norms.items())
    if example_inputs is not None and (preserve or alone):
        _watch(model, list(targets), build, example_inputs)
    for name in counted(targets, "blocks"):
        if name not in blocks:
            build(name)
    return with_modules(model, blocks, norms)


def expandable(
    model: nn.Module, example_inputs: Inputs | None = None
) -> tuple[dict[str, Replaceable], tuple[Refusal, ...]]:
    """The convolutions of `model` that `expand` would replace, by module name, and why the others stay.

    Those inside a block are neither. `example_inputs` as in `expand`.
    """
    tied = owners(model)
    targets: dict[str, Replaceable] = {}
    reasons: dict[str, str] = {}
    traced: dict[str, nn.Conv2d] = {}
    inside: set[int] = set()
    for name, module in model.named_modules():
        if isinstance(module, Branch) and id(module) not in inside:
            inside.update(id(child) for child in module.modules())
        elif id(module) in inside or not isinstance(module, nn.Conv2d):
            continue
        conv = module.conv if isinstance(module, ConvBranch) else module
        if not isinstance(conv, nn.Conv2d):
            continue
        reason = unfit_conv(conv, tied)
        if reason is None and hooked(module):
            reason = "a hook on it would be lost; remove it to expand"
        if reason is None and not name and conv is module:
            reason = "it is the whole model; put it into an nn.Sequential to expand it"
        if reason is not None:
            reasons[name] = reason
        elif conv is module:
            traced[name] = conv
        else:
            targets[name] = Replaceable(_geometry(conv))
    if traced:
        try:
            flows = trace(model, example_inputs)
        except GeometryError as error:
            return targets, _refusals({**reasons, **dict.fromkeys(traced, str(error))})
        for name, conv in traced.items():
            try:
                norm = follower(name, flows)
                if norm is not None:
                    _check_norm(model, name, norm, tied)
                targets[name] = Replaceable(_geometry(conv), norm)
            except GeometryError as error:
                reasons[name] = str(error)
    return targets, _refusals(reasons)


def _refusals(reasons: Mapping[str, str]) -> tuple[Refusal, ...]:
    return tuple(Refusal(where, why) for where, why in reasons.items())


def _geometry(conv: nn.Conv2d) -> Geometry:
    return conv_kernel(conv, conv.weight.dtype).geometry


def _check_norm(model: nn.Module, name: str, norm: str, tied: Mapping[int, int]) -> None:
    """Raise unless a block in the place of `name` can take over the batch normalisation `norm`."""
    reason = unfit_norm(model.get_submodule(norm), tied)
    if reason is not None:
        raise GeometryError(f"the batch normalisation {norm} after it cannot be taken over: {reason}")
    for around in sorted(_ancestors(name) ^ _ancestors(norm)):
        if hooked(model.get_submodule(around)):
            raise GeometryError(f"a hook on {around} would see another tensor; remove it to expand")


def _ancestors(name: str) -> set[str]:
    parts = name.split(".")
    return {".".join(parts[:end]) for end in range(len(parts))}


def _watch(model: nn.Module, names: Iterable[str], see: Callable[[str, Tensor], None], example_inputs: Inputs) -> None:
    """Run `model` in evaluation mode and show `see` the input of each named module as it comes."""
    runs = copied(model).eval()
    for name in names:
        runs.get_submodule(name).register_forward_pre_hook(lambda _, given, name=name: see(name, *given[:1]))
    with torch.no_grad():
        runs(*arguments(example_inputs))
