"""What rounds on purpose is replayed: right forms of such networks are equal, wrong ones are not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import repconv
from repconv.errors import VerificationError


class Rounding(nn.Module):
    """Blocks of two branches with a decision between them, at steps that some values lie next to."""

    def __init__(self, decide) -> None:
        super().__init__()
        self.decide = decide
        self.first, self.norm = nn.Conv2d(4, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.left, self.right = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)

    def forward(self, x):
        x = self.decide(self.norm(self.first(x)))
        return self.left(x) + self.right(x)


DECISIONS = {
    "round": lambda x: torch.round(x * 50) / 50,
    "floor": lambda x: torch.floor(x * 50) / 50,
    "sign": torch.sign,
    "greater": lambda x: (x > 0.1).to(x.dtype) * 2 - 1,
    "whole numbers": lambda x: (x * 50).to(torch.int32).to(x.dtype) / 50,
    "fake quantisation": lambda x: torch.fake_quantize_per_tensor_affine(x, 0.02, 0, -127, 127),
    "argmax": lambda x: x * (x.argmax(1, keepdim=True) > 3).to(x.dtype),
}


def network(name: str, seed: int) -> Rounding:
    torch.manual_seed(seed)
    model = Rounding(DECISIONS[name]).eval()
    model.norm.running_mean.normal_()
    model.norm.running_var.uniform_(0.5, 2)
    return model


@pytest.mark.parametrize("name", DECISIONS)
def test_right_folds_are_equal_whatever_falls_on_the_other_side(name: str) -> None:
    for seed in range(3):
        _, report = repconv.fuse(network(name, seed), torch.randn(1, 4, 24, 24))
        assert report.agreement is not None
        assert report.agreement.passed


def moved(model: Rounding, by: float):
    """The model with one number of its normalisation off."""
    other = network("round", 0)
    other.decide = model.decide
    other.load_state_dict(model.state_dict())
    other.norm.bias.data[0] += by
    return other


@pytest.mark.parametrize("name", ["round", "fake quantisation", "greater"])
def test_a_shift_before_a_decision_is_seen_before_it(name: str) -> None:
    model, x = network(name, 0), torch.randn(1, 4, 24, 24)
    same = repconv.compare(model, moved(model, 0.0), x)
    assert same.passed
    for by in (1e-3, 0.5):
        off = repconv.compare(model, moved(model, by), x)
        assert not off.passed
        assert any(not c.passed for c in off.end_to_end if c.path.startswith("before"))
    with pytest.raises(VerificationError):
        off.require("the shifted network")


def test_a_value_beside_a_step_flips_and_is_counted() -> None:
    def reference(x):
        return torch.round(x)

    x = torch.full((1, 1000), 0.5)
    found = repconv.compare(lambda x: reference(x + 1e-7), lambda x: reference(x - 1e-7), x)
    assert found.passed
    assert "1,000 of 1,000 values of round" in " ".join(c.reason for c in found.end_to_end)


def test_another_threshold_is_another_decision() -> None:
    x = torch.arange(12.0).reshape(3, 4)
    assert not repconv.compare(lambda t: t > 3, lambda t: t > 4, x).passed


def test_what_is_decided_may_be_an_output() -> None:
    def network(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return x > 0.5, x.argmax(1), torch.round(x * 8)

    x = torch.rand(2, 50)
    assert repconv.compare(network, network, x, original=network).passed


def test_networks_that_decide_otherwise_are_compared_as_they_are() -> None:
    x = torch.full((1, 10), 0.5)
    found = repconv.compare(torch.round, lambda x: x, x)
    assert not found.passed
