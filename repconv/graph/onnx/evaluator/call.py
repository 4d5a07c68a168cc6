"""One call of an ONNX operation on arrays, and what convolutions and pools read of it alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class Call:
    """An operation at `opset` on `inputs`, None for those left out; `outputs` are asked for."""

    opset: int
    inputs: Sequence[Array | None]
    attributes: Mapping[str, Any]
    outputs: int

    def get(self, name: str, default: Any = None) -> Any:  # noqa: ANN401  # as the attribute has it
        """An attribute."""
        value = self.attributes.get(name)
        return default if value is None else value

    def input(self, index: int) -> Array | None:
        """An input, None where it is left out."""
        return self.inputs[index] if index < len(self.inputs) else None

    def given(self, index: int) -> Array:
        """An input that has to be there.

        Raises:
            ValueError: it is not.
        """
        value = self.input(index)
        if value is None:
            raise ValueError(f"its input {index} is missing")
        return value


@dataclass(frozen=True)
class Window:
    """A window that moves over an image: one number an axis.

    pads: before and after; the same in numbers where the operation leaves them to `auto_pad`.
    """

    size: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]

    @property
    def extent(self) -> tuple[int, ...]:
        """Pixels from the first tap to the last."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.size, self.dilations, strict=True))


def window(call: Call, sides: Sequence[int], size: Sequence[int]) -> Window:
    """The window of a convolution or a pool over an image of `sides`; `size` where no `kernel_shape` says."""
    size = tuple(call.get("kernel_shape", size))
    strides = tuple(call.get("strides", [1] * len(size)))
    dilations = tuple(call.get("dilations", [1] * len(size)))
    found = Window(size, strides, dilations, declared_pads(call, len(size)))
    automatic = call.get("auto_pad", "NOTSET")
    if not automatic.startswith("SAME"):
        return found
    totals = [
        max(0, (-(-side // s) - 1) * s + e - side) for side, s, e in zip(sides, strides, found.extent, strict=True)
    ]
    return Window(size, strides, dilations, tuple(halved(total, upper=automatic == "SAME_UPPER") for total in totals))


def declared_pads(call: Call, axes: int) -> tuple[tuple[int, int], ...]:
    """The attribute `pads` as pairs; it counts for nothing beside an `auto_pad`."""
    pads = [0] * 2 * axes if call.get("auto_pad", "NOTSET") != "NOTSET" else call.get("pads", [0] * 2 * axes)
    return tuple(zip(pads[:axes], pads[axes:], strict=True))


def halved(total: int, *, upper: bool) -> tuple[int, int]:
    """Padding before and after; an odd pixel goes after the image if `upper`."""
    less, more = total // 2, total - total // 2
    return (less, more) if upper else (more, less)


def padded(x: Array, pads: Sequence[tuple[int, int]], value: float | bool = 0) -> Array:
    """`x` [n, c, ...] with its last axes padded by `value`; negative pads crop."""
    whole = [(0, 0)] * (x.ndim - len(pads)) + list(pads)
    crop = tuple(slice(max(0, -a), side - max(0, -b)) for side, (a, b) in zip(x.shape, whole, strict=True))
    wide = [(max(0, a), max(0, b)) for a, b in whole]
    return np.pad(x[crop], wide, constant_values=value)
