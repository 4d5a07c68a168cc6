"""What rounds on purpose is replayed: right forms of such networks are equal, wrong ones are not."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.ao.quantization.fx import _decomposed  # noqa: F401  # defines its operations
from torch.nn import functional

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


DECOMPOSED = torch.ops.quantized_decomposed


def _unpooled(x):
    values, indices = functional.max_pool2d(x, 2, return_indices=True)
    return functional.max_unpool2d(values, indices, 2)


DECISIONS = {
    "round": lambda x: torch.round(x * 50) / 50,
    "floor": lambda x: torch.floor(x * 50) / 50,
    "sign": torch.sign,
    "greater": lambda x: (x > 0.1).to(x.dtype) * 2 - 1,
    "whole numbers": lambda x: (x * 50).to(torch.int32).to(x.dtype) / 50,
    "fake quantisation": lambda x: torch.fake_quantize_per_tensor_affine(x, 0.02, 0, -127, 127),
    "argmax": lambda x: x * (x.argmax(1, keepdim=True) > 3).to(x.dtype),
    "where a maximum lies": lambda x: x * (x.max(1, keepdim=True).indices > 3).to(x.dtype),
    "sorted by the first channel": lambda x: x.flatten(2)[:, :, x[0, 0].flatten().sort().indices].reshape(x.shape),
    "unpooled": _unpooled,
    "rounded in place": lambda x: x.mul(50).round_().div(50),
    "floor division": lambda x: torch.div(x, 0.02, rounding_mode="floor") * 0.02,
    "whole multiples": lambda x: x - torch.remainder(x, 0.02),
    "heaviside": lambda x: torch.heaviside(x, torch.full((), 0.5, dtype=x.dtype)),
    "threshold": lambda x: functional.threshold(x, 0.1, -1.0),
    "quantised": lambda x: torch.quantize_per_tensor(x, 0.02, 64, torch.quint8).dequantize(),
    "quantised for export": lambda x: DECOMPOSED.dequantize_per_tensor(
        DECOMPOSED.quantize_per_tensor(x.float(), 0.02, 0, -128, 127, torch.int8), 0.02, 0, -128, 127, torch.int8),
    "masked": lambda x: torch.where(x.masked_fill(x < 0.1, -torch.inf) == -torch.inf, 0.0, 1.0).to(x.dtype),
}  # fmt: skip


def network(name: str, seed: int) -> Rounding:
    torch.manual_seed(seed)
    model = Rounding(DECISIONS[name]).eval()
    model.norm.running_mean.normal_()
    model.norm.running_var.uniform_(0.5, 2)
    return model


@pytest.mark.parametrize("name", DECISIONS)
def test_right_folds_are_equal_whatever_falls_on_the_other_side(name: str) -> None:
    for seed in range(2):
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


def test_between_jumps_a_remainder_is_compared_as_it_is() -> None:
    x = torch.linspace(0.25, 0.75, 101).reshape(1, -1)
    off = repconv.compare(lambda t: torch.remainder(t, 1.0), lambda t: torch.remainder(t, 1.0) + 1e-3, x)
    assert [c.path for c in off.end_to_end if not c.passed] == [""]
    around = torch.tensor([[0.999999, 1.000001, 2.5]])
    flipped = repconv.compare(lambda t: torch.remainder(t, 1.0), lambda t: torch.remainder(t + 2e-6, 1.0), around)
    assert flipped.passed, flipped.verdict


def test_a_step_is_that_of_its_channel() -> None:
    """Half of a coarse channel's step is fifty of a fine one's."""
    scale = torch.tensor([1.0, 0.01])

    def network(by: float):
        return lambda t: torch.fake_quantize_per_channel_affine(
            t + by * torch.tensor([[0.0], [1.0]]).to(t.dtype), scale, torch.zeros(2, dtype=torch.int32), 1, -128, 127
        )

    x = torch.full((1, 2, 5), 0.105)
    assert repconv.compare(network(-1e-7), network(1e-7), x).passed
    found = repconv.compare(network(0.0), network(0.5), x)
    assert any("more than one step" in (c.mismatch or "") for c in found.end_to_end)


def test_where_maxima_lie_is_no_decision_if_nobody_asks() -> None:
    x = torch.zeros(1, 1, 4, 4)
    found = repconv.compare(
        lambda t: functional.max_pool2d(t + 1e-7 * torch.arange(16.0).reshape(4, 4), 2),
        lambda t: functional.max_pool2d(t - 1e-7 * torch.arange(16.0).reshape(4, 4), 2),
        x + 1,
    )
    assert found.passed
    assert len(found.comparisons) == 1
    asked = repconv.compare(
        lambda t: functional.max_pool2d(t, 2, return_indices=True), lambda t: (t[..., :2, :2], 0), x
    )
    assert not asked.passed


def test_what_the_original_is_off_by_before_a_decision_excuses_the_candidate() -> None:
    """Ill-conditioned before the decision, 1e-4 off in either form."""

    def network(by):
        return lambda t: ((t + by).double() if t.dtype == torch.float64 else t + by) > 0.5

    x = torch.rand(1, 4000)
    assert repconv.compare(network(0.0), network(1e-4), x, original=network(-1e-4)).passed
    assert not repconv.compare(network(0.0), network(1e-3), x, original=network(-1e-4)).passed


def test_a_source_that_overflows_in_its_own_type_tells_nothing() -> None:
    def network(t):
        return (t * 6e4) * 2 / 1e5

    found = repconv.compare(network, network, torch.rand(1, 9).half() + 1, original=network)
    assert not found.passed
    assert "the source itself gives NaN or Inf in float16" in found.verdict
    assert found.verdict.startswith("cannot tell")


def test_networks_that_decide_otherwise_are_compared_as_they_are() -> None:
    x = torch.full((1, 10), 0.5)
    found = repconv.compare(torch.round, lambda x: x, x)
    assert not found.passed
