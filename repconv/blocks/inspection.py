"""What is inside a network and what fusing would make of it, from shapes alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch
from torch import nn

from ..algebra.geometry import Geometry
from ..errors import GeometryError
from ..proof.report import Size
from .block import RepBlock
from .branches import Branch, ConvBranch, conv_kernel
from .fold import no_statistics, outermost_branches, refuse_hooks, size


@dataclass(frozen=True, kw_only=True)
class InspectedLayer:
    """A block of branches, or a convolution with its batch normalisation, and why it would stay as it is, if it would.

    gates: sigmoid(beta) * sigmoid(alpha) of each searchable branch.
    """

    name: str
    geometry: Geometry
    fixed: tuple[str, ...]
    gates: Mapping[str, float]
    parameters: int
    refusal: str | None

    @property
    def parameters_after(self) -> int:
        """Weights and biases of the one convolution this layer becomes."""
        o, i, kh, kw = self.geometry.weight_shape
        return self.parameters if self.refusal else o * i * kh * kw + o


@dataclass(frozen=True)
class Inspection:
    """The layers that fuse, and the network's size before and after."""

    layers: tuple[InspectedLayer, ...]
    before: Size
    after: Size

    def to_dict(self) -> dict[str, object]:
        """Plain containers for JSON."""
        return asdict(self)


def inspect(model: nn.Module) -> Inspection:
    """What `fuse(model)` would do, without folding or running anything; the model may be in training mode."""
    layers = tuple(_layer(name, branch) for name, branch in outermost_branches(model))
    before = size(model)
    folded = [branch for (_, branch), layer in zip(outermost_branches(model), layers, strict=True) if not layer.refusal]
    sizes = [size(branch) for branch in folded]
    after = Size(
        convolutions=before.convolutions - sum(s.convolutions for s in sizes) + len(folded),
        batch_norms=before.batch_norms - sum(s.batch_norms for s in sizes),
        parameters=before.parameters - sum(layer.parameters - layer.parameters_after for layer in layers),
    )
    return Inspection(layers, before, after)


def _layer(name: str, branch: Branch) -> InspectedLayer:
    refusal = None
    try:
        refuse_hooks(branch)
        geometry = _geometry(branch)
    except GeometryError as error:
        refusal = str(error)
        geometry = _geometry(branch, strict=False)
    fixed: tuple[str, ...] = ()
    gates: dict[str, float] = {}
    if isinstance(branch, RepBlock):
        fixed = branch.branch_set.fixed
        with torch.no_grad():
            gates = {kind: float(branch.gate(kind)) for kind in branch.branch_set.searchable}
    return InspectedLayer(
        name=name,
        geometry=geometry,
        fixed=fixed,
        gates=gates,
        parameters=sum(p.numel() for p in branch.parameters()),
        refusal=refusal,
    )


def _geometry(branch: Branch, *, strict: bool = True) -> Geometry:
    if isinstance(branch, RepBlock):
        return branch.geometry
    if isinstance(branch, ConvBranch) and strict:
        return conv_kernel(branch.conv, branch.conv.weight.dtype).geometry
    if isinstance(branch, ConvBranch):
        conv = branch.conv
        (kh, kw), (rows, columns) = conv.kernel_size, conv.stride
        return Geometry(conv.in_channels, conv.out_channels, (kh, kw), (rows, columns), groups=conv.groups)
    with torch.no_grad():
        return branch.kernel(no_statistics).geometry
