"""What a random piece of a network is drawn for, and of: layers of as many axes as its image has."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")

CONVOLUTIONS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
SPREAD: dict[int, Any] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
NORMS: dict[int, Any] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


class Piece(nn.Module):
    """A function of its own parts, parameters and buffers, and of a tensor."""

    def __init__(self, run: Callable[[Any, Tensor], Tensor], **parts: object) -> None:
        """`parts` are kept under their names, lists of modules too."""
        super().__init__()
        self.run = run
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, nn.ModuleList(part) if isinstance(part, list) else part)

    def forward(self, x: Tensor) -> Tensor:
        """What `run` makes."""
        return self.run(self, x)


@dataclass(frozen=True)
class Draw:
    """What a piece is drawn for: the tensor that it reads, and where choices come from."""

    random: random.Random
    x: Tensor

    @property
    def channels(self) -> int:
        """Of an image, on its second axis."""
        return self.x.shape[1]

    @property
    def axes(self) -> int:
        """Of pixels."""
        return self.x.dim() - 2

    def pick(self, *values: T) -> T:
        """One of some values."""
        return self.random.choice(values)

    def divisor(self, *numbers: int) -> int:
        """A number of groups that divides all of some numbers."""
        return self.random.choice([n for n in (1, 1, 2, 3, 4, 6) if not any(number % n for number in numbers)])

    def number(self, *sides: int) -> nn.Parameter:
        """Random numbers of some size."""
        return nn.Parameter(torch.randn(sides))

    def along(self, *, first: int | None = None) -> tuple[int, ...]:
        """The size that broadcasts one number a channel against an image."""
        return (first or self.channels, *(1,) * self.axes)

    def conv(self, o: int | None = None, k: int | None = None, i: int | None = None, **more: Any) -> nn.Module:  # noqa: ANN401
        """A convolution, of the same size if nothing else is said."""
        k = self.pick(1, 3) if k is None else k
        i, o = i or self.channels, o or self.channels
        settings = {"padding": k // 2, "bias": self.pick(True, False), **more}
        made: nn.Module = CONVOLUTIONS[self.axes](i, o, k, **settings)
        return made

    def norm(self, channels: int | None = None, axes: int | None = None) -> nn.Module:
        """A batch normalisation that is no identity."""
        made: nn.Module = NORMS[axes or self.axes](channels or self.channels)
        for tensor, low, high in (
            (made.running_mean, -1, 1), (made.running_var, 0.3, 3), (made.weight, 0.5, 2), (made.bias, -1, 1),
        ):  # fmt: skip
            nn.init.uniform_(torch.as_tensor(tensor), low, high)
        return made
