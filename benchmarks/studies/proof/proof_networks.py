"""Small networks for the power of the proof: this package's, timm's, and written by hand."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import torch
from torch import Tensor, nn

from repconv import create_model


def _normed(i: int, o: int, k: int = 3, stride: int = 1, groups: int = 1, *, bias: bool = False) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(i, o, k, stride, k // 2, groups=groups, bias=bias), nn.BatchNorm2d(o))


class _Ended(nn.Sequential):
    """Layers, then the mean over the image and a linear layer."""

    def __init__(self, *layers: nn.Module, channels: int) -> None:
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5))


class _Residual(nn.Module):
    """Two branches and a normed identity; the sum is normed again."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.a, self.b = _normed(channels, channels), _normed(channels, channels, 1, bias=True)
        self.c, self.last = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.last(self.a(x) + self.b(x) + self.c(x)))


class _Inception(nn.Module):
    """Halves of the channels, branches of several sizes and a pooled one, joined and mixed."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.a, self.b = _normed(half, half), nn.Sequential(_normed(half, half, 1), _normed(half, half, 1))
        self.pool, self.mix = nn.AvgPool2d(3, 1, 1), _normed(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, 1)
        return torch.relu(self.mix(torch.cat([self.a(first) + self.pool(first), self.b(second)], 1)))


class _Gated(nn.Module):
    """A strided convolution, and two gated branches of one more."""

    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.a, self.b, self.c = _normed(i, o, 3, 2), _normed(i, o, 1, 2), _normed(i, o, 5, 2)
        self.gate = nn.Parameter(torch.tensor([0.4, -1.3]))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.silu(self.a(x) + self.gate[0].sigmoid() * self.b(x) + self.gate[1].sigmoid() * self.c(x))


class _Shuffled(nn.Module):
    """Half of the channels go through, half through a separable branch; then they are shuffled."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.branch = nn.Sequential(
            _normed(half, half, 1), nn.ReLU(), _normed(half, half, groups=half), _normed(half, half, 1), nn.ReLU()
        )

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, 1)
        both = torch.stack([left, self.branch(right)], 2)
        return both.flatten(1, 2)


class _Dense(nn.Module):
    """Norms before convolutions, each of which reads all that came before."""

    def __init__(self, channels: int, growth: int, layers: int) -> None:
        super().__init__()
        wide = [channels + i * growth for i in range(layers)]
        self.norms = nn.ModuleList(nn.BatchNorm2d(i) for i in wide)
        self.convs = nn.ModuleList(_normed(i, growth) for i in wide)

    def forward(self, x: Tensor) -> Tensor:
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = torch.cat([x, conv(torch.relu(norm(x)))], 1)
        return x


def _plain() -> nn.Module:
    return _Ended(_normed(3, 12, bias=True), nn.ReLU(), _normed(12, 16, 3, 2), nn.ReLU(), channels=16)


def _separable() -> nn.Module:
    return _Ended(
        _normed(3, 16, 3, 2),
        nn.ReLU6(),
        _normed(16, 16, 5, groups=16),
        nn.ReLU6(),
        _normed(16, 24, 1),
        nn.Hardswish(),
        channels=24,
    )


def _chaotic() -> nn.Module:
    """Deep, of a gain that makes neighbours part: every rounding is amplified end to end."""
    layers: list[nn.Module] = [_normed(3, 8)]
    for _ in range(24):
        layers += [nn.Tanh(), _normed(8, 8)]
    model = _Ended(*layers, channels=8)
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.Conv2d):
                layer.weight.normal_(0, 2.5 / (9 * layer.in_channels) ** 0.5)
    return model


def _own(name: str) -> Callable[[], nn.Module]:
    return lambda: create_model(name, width=8, blocks=(1, 1), num_classes=5)


def _timm(name: str) -> Callable[[], nn.Module]:
    return lambda: importlib.import_module("timm").create_model(name, pretrained=False, num_classes=5)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "plain": (_plain, 17), "separable": (_separable, 21), "chaotic": (_chaotic, 12),
    "residual": (lambda: _Ended(_normed(3, 8), _Residual(8), _Residual(8), channels=8), 15),
    "inception": (lambda: _Ended(_normed(3, 8), nn.ReLU(), _Inception(8), _Inception(8), channels=8), 16),
    "gated": (lambda: _Ended(_Gated(3, 8), _Gated(8, 12), channels=12), 23),
    "shuffled": (lambda: _Ended(_normed(3, 8), nn.ReLU(), _Shuffled(8), _Shuffled(8), channels=8), 14),
    "dense": (lambda: _Ended(_normed(3, 6), _Dense(6, 4, 3), channels=18), 13),
    "repvgg": (_own("repvgg_resnet18"), 19), "acnet": (_own("acnet_resnet18"), 19),
    "dbb": (_own("dbb_resnet18"), 19),
    "mobileone_s0": (_timm("mobileone_s0"), 64), "repvgg_a0": (_timm("repvgg_a0"), 64),
    "repghostnet_050": (_timm("repghostnet_050"), 64), "repvit_m0_9": (_timm("repvit_m0_9"), 64),
    "irep": (_own("irep_resnet18"), 19),
}  # fmt: skip
"""What makes each, and the side of its images."""


def is_own(name: str) -> bool:
    """True for a network of this package's blocks."""
    return name in ("irep", "repvgg", "acnet", "dbb")


def network(name: str) -> tuple[nn.Module, Tensor]:
    """A network in evaluation mode, and an image for it."""
    torch.manual_seed(0)
    make, side = NETWORKS[name]
    model = make().eval()
    return model, torch.randn(1, 3, side, side)
