"""`compare` and `verify`: they pass rounding, and fail everything else."""

import math

import pytest
import torch
from torch import nn

from repconv import VerificationError, compare, create_model, fuse
from repconv.agreement import Agreement, difference
from repconv.verify import count_flops, probes, verify


def test_errors_are_relative_to_scale_and_to_channels():
    wanted = torch.zeros(1, 2, 1, 4)
    wanted[0, 0, 0] = torch.tensor([10.0, -10.0, 10.0, -10.0])
    wanted[0, 1, 0] = torch.tensor([0.1, -0.1, 0.1, -0.1])
    got = wanted.clone()
    got[0, 1, 0, 0] += 0.05
    found = difference(wanted, got)
    assert found.max_absolute == pytest.approx(0.05)
    assert found.to_scale == pytest.approx(0.05 / math.sqrt(50.005))
    assert found.to_channel == pytest.approx(0.5)


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", [0, 1])
def test_nan_and_inf_fail(broken, side):
    outputs = [torch.ones(1, 2, 2, 2), torch.ones(1, 2, 2, 2)]
    outputs[side][0, 0, 0, 0] = broken
    x = torch.zeros(1)
    result = compare(lambda _: outputs[0], lambda _: outputs[1], x, original=lambda _: outputs[1])
    assert not result.passed
    with pytest.raises(VerificationError, match="NaN or Inf"):
        Agreement((), (result,)).require("it")


def test_both_nan_is_no_agreement():
    both = torch.full((1, 2), math.nan)
    assert not compare(lambda _: both, lambda _: both, torch.zeros(1)).passed


def test_nothing_compared_is_no_agreement():
    assert not Agreement().passed


def test_shapes_must_match():
    with pytest.raises(ValueError, match="differ in shape"):
        difference(torch.zeros(1, 2), torch.zeros(1, 3))


def test_the_originals_own_error_widens_the_tolerance_and_is_the_reason():
    x = torch.ones(4)
    result = compare(lambda t: t, lambda t: t + 1.5e-3, x, original=lambda t: t + 1e-3)
    assert result.passed
    assert result.tolerance == pytest.approx(2e-3, rel=1e-3)
    assert "own error" in result.reason
    assert not compare(lambda t: t, lambda t: t + 3e-3, x, original=lambda t: t + 1e-3).passed
    assert not compare(lambda t: t, lambda t: t + 1.5e-3, x).passed


def test_a_mistake_in_one_tap_of_one_block_is_found_there(randomise):
    model = randomise(create_model("irep_resnet18", width=4, blocks=(1, 1))).eval()
    fused, _ = fuse(model)
    with torch.no_grad():
        fused.get_submodule("stages.1.0.conv1").weight[0, 0, 0, 0] += 1e-2
    agreement = verify(model, fused, probes((3, 16, 16)))
    assert not agreement.passed
    assert [c.where for c in agreement.blocks if not c.passed] == ["stages.1.0.conv1"]
    assert "NOT equal" in agreement.verdict


def test_probes_cover_batches_and_odd_sizes():
    shapes = [tuple(x.shape) for x in probes((3, 32, 32))]
    assert {s[0] for s in shapes} == {1, 2}
    assert any(s[2] % 2 and s[3] % 2 for s in shapes)
    assert all(torch.equal(a, b) for a, b in zip(probes((3, 8, 8)), probes((3, 8, 8)), strict=True))


def test_flops_count_two_a_multiply_add():
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Flatten(), nn.Linear(8 * 16, 5))
    assert count_flops(net, (3, 4, 4)) == 2 * (8 * 3 * 9 * 16 + 8 * 16 * 5)
