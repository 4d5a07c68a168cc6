"""The reference of a network in float64, whatever its `forward` makes."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from repconv import compare
from repconv.proof.float64 import float64_reference


def _autocast(net, x):
    with torch.autocast("cpu", torch.bfloat16):
        return net.conv(x[:, :3])


def _written(_, x):
    out = torch.empty(x.shape, dtype=torch.float32)
    out[:, :] = x
    return out


MADE = {
    "zeros": (lambda _, x: torch.cat([x, torch.zeros(x.shape)], 1), 1e-5),
    "eye": (lambda _, x: x @ torch.eye(x.shape[-1]), 1e-5),
    "arange": (lambda _, x: x * torch.arange(x.shape[-1], dtype=torch.float32) / 7, 1e-5),
    "linspace": (lambda _, x: x * torch.linspace(0, 1, x.shape[-1]), 1e-5),
    "a number": (lambda _, x: x.float() * torch.tensor([0.1]), 1e-5),
    "its own type": (lambda _, x: torch.ones(4, 1, 1).to(x.dtype) / 3 * x, 1e-5),
    "a plain attribute": (lambda net, x: x * net.plain, 1e-5),
    "a plain convolution": (lambda _, x: functional.conv2d(x, torch.ones(2, 4, 1, 1) / 3, torch.ones(2)), 1e-5),
    "written into": (_written, 1e-5),
    "scattered": (lambda _, x: torch.zeros(x.shape).scatter_(1, torch.zeros(x.shape, dtype=torch.int64), x), 1e-5),
    "softmax in float32": (lambda _, x: functional.softmax(x, 1, dtype=torch.float32), 1e-5),
    "complex": (lambda _, x: torch.fft.fft2(x).abs(), 1e-5),
    "sampled": (lambda _, x: functional.grid_sample(
        x, functional.affine_grid(torch.eye(2, 3)[None], [1, 4, 5, 5], align_corners=False), align_corners=False,
    ), 1e-5),
    "halved": (lambda _, x: x.half().float(), 8e-3),
    "autocast": (_autocast, 6e-2),
    "fake quantised by channel": (lambda _, x: torch.fake_quantize_per_channel_affine(
        x, torch.full((4,), 1.0), torch.zeros(4, dtype=torch.int32), 1, -128, 127), 1e-5),
}  # fmt: skip


class Made(nn.Module):
    def __init__(self, end) -> None:
        super().__init__()
        self.conv, self.plain, self.end = nn.Conv2d(3, 4, 3), torch.randn(4, 1, 1), end

    def forward(self, x):
        return self.end(self, self.conv(x))


@pytest.mark.parametrize("name", MADE)
def test_whatever_forward_makes_is_float64_and_the_network_stays_as_it_is(name: str) -> None:
    end, rounding = MADE[name]
    net, x = Made(end).eval(), torch.randn(1, 3, 7, 7)
    with torch.no_grad():
        own = net(x)
    found = float64_reference(net)(x)
    assert found.dtype == torch.float64
    assert float((found - own.double()).abs().max()) <= rounding * float(own.double().square().mean().sqrt())
    assert net.conv.weight.dtype == net.plain.dtype == torch.float32
    assert torch.get_default_dtype() == torch.float32
    result = compare(net, net, x, original=net)
    assert result.passed, result.verdict


@pytest.mark.parametrize("name", [n for n, (_, rounding) in MADE.items() if rounding == 1e-5 and "fake" not in n])
def test_nothing_of_it_is_rounded_to_float32(name: str) -> None:
    found = float64_reference(Made(MADE[name][0]).eval())(torch.randn(1, 3, 7, 7))
    assert not torch.equal(found, found.float().double())


def test_integers_and_inputs_of_several_types_are_taken() -> None:
    embedding = nn.Embedding(5, 3)

    def net(index, half, single):
        return embedding(index) + half[:, None] * single

    given = (torch.tensor([1, 4]), torch.randn(2).half(), torch.randn(2, 3))
    assert float64_reference(net)(*given).dtype == torch.float64
    assert compare(net, net, given).passed


def test_what_cannot_be_run_in_float64_is_compared_with_the_original_and_says_so() -> None:
    def picky(x):
        if x.dtype != torch.float32:
            raise TypeError("float32 only, please")
        return x * 2

    result = compare(picky, picky, torch.ones(3), original=picky)
    assert result.passed
    assert "float32 only, please" in result.verdict
    assert not compare(picky, lambda x: x * 2.001, torch.ones(3), original=picky).passed


def test_two_float32_modules_are_compared() -> None:
    """`repconv.compare(model, fused, x)`, the reference in float64 by itself."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    (found,) = compare(model, model, torch.randn(1, 3, 8, 8)).end_to_end
    assert 0 < found.error.to_scale < 1e-5


def test_float32_is_computed_in_float32_whatever_the_user_allowed() -> None:
    before = torch.get_float32_matmul_precision()
    seen = []

    def network(x):
        seen.append((torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision))
        seen.append((torch.backends.mkldnn.matmul.fp32_precision, torch.backends.mkldnn.conv.fp32_precision))
        return x * 2

    torch.set_float32_matmul_precision("medium")
    try:
        assert compare(network, network, torch.ones(3), original=network).passed
        assert torch.get_float32_matmul_precision() == "medium"
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    finally:
        torch.set_float32_matmul_precision(before)
    assert seen
    assert set(seen) == {("ieee", "ieee")}
