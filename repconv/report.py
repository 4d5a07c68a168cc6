"""What fusing did to a model, as values."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

from .agreement import Agreement
from .refusal import Refusal


@dataclass(frozen=True)
class Size:
    """How large a network is; `flops` (two a multiply-add) are for one image, None where no image size is known."""

    convolutions: int
    batch_norms: int
    parameters: int
    flops: int | None = None


@dataclass(frozen=True)
class FusedLayer:
    """One convolution of the result and what it was made of.

    `branches` names the kinds of a block, and is empty for a plain convolution with batch normalisation.
    """

    name: str
    geometry: str
    branches: tuple[str, ...]
    before: Size
    after: Size


@dataclass(frozen=True)
class FusionReport:
    """What was fused, what was not and why, how large the model was and is, and, once measured, how far apart."""

    layers: tuple[FusedLayer, ...]
    refusals: tuple[Refusal, ...]
    before: Size
    after: Size
    agreement: Agreement | None = None

    @property
    def blocks(self) -> tuple[FusedLayer, ...]:
        """The layers that were multi-branch blocks."""
        return tuple(layer for layer in self.layers if layer.branches)

    def with_agreement(self, agreement: Agreement) -> FusionReport:
        """The same report with the measured agreement."""
        return replace(self, agreement=agreement)

    def with_flops(self, before: int, after: int) -> FusionReport:
        """The same report with the floating-point operations of one image."""
        return replace(self, before=replace(self.before, flops=before), after=replace(self.after, flops=after))

    def to_dict(self) -> dict[str, object]:
        """Plain containers for JSON."""
        return {**asdict(self), "agreement": None if self.agreement is None else self.agreement.to_dict()}
