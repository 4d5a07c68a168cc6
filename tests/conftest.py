"""What the tests share: one thread, a seed a test, and modules whose every number matters."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from repconv import RepBlock

Randomise = Callable[[nn.Module], nn.Module]
Apart = Callable[[Tensor, Tensor], float]


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def _randomise(module: nn.Module) -> nn.Module:
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            with torch.no_grad():
                if part.running_mean is not None and part.running_var is not None:
                    part.running_mean.uniform_(-3, 3)
                    part.running_var.uniform_(-3, 2).copy_(10**part.running_var)
                if part.affine:
                    # Every fifth scale is zero, as after pruning or a zero-gamma start.
                    part.weight.uniform_(-2, 2).mul_(torch.rand_like(part.weight) > 0.2)
                    part.bias.uniform_(-2, 2)
        if isinstance(part, RepBlock):
            with torch.no_grad():
                for gate in (part.beta, *part.alpha.values()):
                    if gate is not None:
                        gate.normal_(0, 2)
    return module


@pytest.fixture(scope="session")
def randomise() -> Randomise:
    """Give every batch normalisation and gate inside a module values far from the ones they start with.

    Means within 3 of 0, variances from 1e-3 to 1e2, scales and shifts within 2 of 0, one scale in five exactly 0,
    gates before their logistic function of standard deviation 2.
    """
    return _randomise


@pytest.fixture(scope="session")
def apart() -> Apart:
    """The largest difference of two tensors in float64, relative to the second one's largest value, at least 1."""

    def relative(actual: Tensor, expected: Tensor) -> float:
        assert actual.shape == expected.shape
        actual, expected = actual.detach().double(), expected.detach().double()
        return float((actual - expected).abs().max() / expected.abs().max().clamp(min=1))

    return relative
