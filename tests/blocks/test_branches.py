"""The ten kinds of branch, a literal row each, and what every one of them must satisfy."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from repconv import BRANCHES, FusionError, GeometryError
from repconv.algebra.geometry import Geometry
from repconv.blocks.branches import Branch, ConvBranch, PoolBranch, SeriesBranch, SkipBranch, branch_kind

Randomise = Callable[[nn.Module], nn.Module]
Apart = Callable[[Tensor, Tensor], float]
Pair = tuple[int, int]


class Row(NamedTuple):
    """What is known of a kind by hand: the taps it fills, and its parameters at 4 -> 8 channels in 2 groups.

    The parameters of `skip`, which cannot change the channels, are those at 8 -> 8.
    """

    support: str
    parameters: int
    parameters_with_bias: int


ROWS = {
    "3x3": Row("### ### ###", 8 * 2 * 9 + 16, 168),
    "1x3": Row("... ### ...", 8 * 2 * 3 + 16, 72),
    "3x1": Row(".#. .#. .#.", 8 * 2 * 3 + 16, 72),
    "1x1": Row("... .#. ...", 8 * 2 * 1 + 16, 40),
    "1x1_3x3": Row("### ### ###", (4 * 2 * 1 + 8) + (8 * 2 * 9 + 16), 188),
    "avg": Row("### ### ###", (8 * 2 * 1 + 16) + 16, 56),
    "skip": Row("... .#. ...", 16, 16),
    "1x2_d2": Row("... #.# ...", 8 * 2 * 2 + 16, 56),
    "2x1_d2": Row(".#. ... .#.", 8 * 2 * 2 + 16, 56),
    "2x2_d2": Row("#.# ... #.#", 8 * 2 * 4 + 16, 88),
}


def build(name: str, i: int, o: int, *, stride: Pair = (1, 1), groups: int = 1, bias: bool = False) -> Branch:
    """A branch of a 3x3 convolution with padding 1."""
    return branch_kind(name).build(Geometry(i, o, (3, 3), stride, (1, 1, 1, 1), groups), bias)


def test_every_kind_has_its_row() -> None:
    assert list(ROWS) == list(BRANCHES)


@pytest.mark.parametrize("name", ROWS)
class TestEveryKind:
    def test_fills_the_taps_of_its_row_and_no_others(self, name: str) -> None:
        kernel = build(name, 4, 4, groups=2).eval().kernel().enlarge((3, 3), (1, 1, 1, 1))
        filled = (kernel.weight != 0).flatten(0, 1).any(0)
        assert " ".join("".join("#" if tap else "." for tap in row) for row in filled.tolist()) == ROWS[name].support

    def test_has_the_parameters_of_its_row(self, name: str) -> None:
        i = 8 if name == "skip" else 4
        counts = [sum(p.numel() for p in build(name, i, 8, groups=2, bias=b).parameters()) for b in (False, True)]
        assert counts == [ROWS[name].parameters, ROWS[name].parameters_with_bias]

    @pytest.mark.parametrize("make_unfit", ["training mode", "track_running_stats=False"])
    def test_without_fixed_statistics_it_is_no_kernel(self, name: str, make_unfit: str) -> None:
        """Whichever of its normalisations has none."""
        norms = [n for n, m in build(name, 4, 4).named_modules() if isinstance(m, nn.BatchNorm2d)]
        assert norms
        for norm in norms:
            branch = build(name, 4, 4).eval()
            if make_unfit == "training mode":
                branch.get_submodule(norm).train()
            else:
                branch.set_submodule(norm, nn.BatchNorm2d(4, affine=False, track_running_stats=False).eval())
            with pytest.raises(FusionError, match=make_unfit):
                branch.kernel()

    def test_keeps_gradients_through_its_kernel(self, name: str) -> None:
        """A block is trained as one convolution through them."""
        branch = build(name, 4, 4, bias=True).eval()
        branch.kernel(dtype=torch.float32).weight.square().sum().backward()
        weights = [p.grad for n, p in branch.named_parameters() if n.endswith("weight")]
        assert all(g is not None and g.abs().max() > 0 and g.dtype == torch.float32 for g in weights)


STRIDES = [(1, 1), (2, 2), (1, 2), (3, 1)]


@pytest.mark.parametrize(("name", "stride"), [(n, s) for n in ROWS for s in STRIDES if n != "skip" or s == (1, 1)])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
def test_a_branch_is_its_kernel_at_every_pixel(
    name: str, stride: Pair, groups: int, bias: bool, randomise: Randomise, apart: Apart
) -> None:
    """Borders and tiny images included, to rounding in float64."""
    i, o = (4, 4) if name == "skip" else (4, 8)
    branch = randomise(build(name, i, o, stride=stride, groups=groups, bias=bias)).double().eval()
    assert isinstance(branch, Branch)
    kernel = branch.kernel()
    assert (kernel.stride, kernel.groups, kernel.weight.dtype) == (stride, groups, torch.float64)
    for size in ((1, 1), (1, 4), (2, 2), (6, 7)):
        x = torch.randn(2, i, *size, dtype=torch.float64)
        assert apart(kernel(x), branch(x)) <= 1e-12


class TestKindsThatDoNotFit:
    @pytest.mark.parametrize(
        "geometry", [Geometry(4, 8), Geometry(4, 4, stride=(2, 2)), Geometry(4, 4, stride=(1, 2))], ids=str
    )
    def test_a_skip_keeps_the_shape(self, geometry: Geometry) -> None:
        reason = branch_kind("skip").unfit(geometry)
        assert reason == f"needs stride 1 and as many output as input channels, the block is {geometry}"

    def test_every_other_kind_fits_every_block(self) -> None:
        assert [n for n, kind in BRANCHES.items() if kind.unfit(Geometry(4, 8, (3, 3), (3, 2))) is not None] == ["skip"]

    @pytest.mark.parametrize(
        ("name", "hint"), [("1x1-3x3", r"did you mean '1x1_3x3'\?"), ("pool", "the kinds are 3x3, ")]
    )
    def test_an_unknown_kind_is_refused_with_the_names(self, name: str, hint: str) -> None:
        with pytest.raises(GeometryError, match=f"unknown branch kind '{name}'.*{hint}"):
            branch_kind(name)


TWO_STEPS = ["1x1_3x3", "avg"]


def parts(branch: Branch) -> tuple[nn.Conv2d, nn.BatchNorm2d, nn.BatchNorm2d]:
    """The inner convolution and normalisation, and the outer normalisation, of a two-step branch."""
    assert isinstance(branch, SeriesBranch | PoolBranch)
    outer = branch.outer.bn if isinstance(branch, SeriesBranch) else branch.bn
    return branch.inner.conv, branch.inner.bn, outer


def slowly(branch: Branch, x: Tensor, stride: Pair) -> tuple[Tensor, Tensor, Tensor]:
    """The two-step branch in training, transcribed from its equation.

    The border is what the first step makes of a zero pixel: its convolution gives the bias, its normalisation uses
    the statistics of this batch. Returns the inner convolution's output, the last normalisation's input, the output.
    """
    conv, inner, outer = parts(branch)

    def normalise(y: Tensor, mean: Tensor, variance: Tensor, norm: nn.BatchNorm2d) -> Tensor:
        mean, variance, weight, bias = (t[:, None, None] for t in (mean, variance, norm.weight, norm.bias))
        return (y - mean) / torch.sqrt(variance + norm.eps) * weight + bias

    def moments(y: Tensor) -> tuple[Tensor, Tensor]:
        mean = y.mean((0, 2, 3))
        return mean, (y - mean[:, None, None]).square().mean((0, 2, 3))

    first = functional.conv2d(x, conv.weight, conv.bias, groups=conv.groups)
    statistics = moments(first)
    answer = torch.zeros(conv.out_channels, dtype=x.dtype) if conv.bias is None else conv.bias
    border = normalise(answer[:, None, None], *statistics, inner)
    n, m, h, w = first.shape
    framed = border.expand(n, m, h + 2, w + 2).clone()
    framed[:, :, 1:-1, 1:-1] = normalise(first, *statistics, inner)
    if isinstance(branch, SeriesBranch):
        third = branch.outer.conv
        second = functional.conv2d(framed, third.weight, third.bias, stride, groups=third.groups)
    else:
        second = functional.avg_pool2d(framed, 3, stride)
    return first, second, normalise(second, *moments(second), outer)


@pytest.mark.parametrize("name", TWO_STEPS)
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("stride", [(1, 1), (2, 2)], ids=str)
class TestBordersInTraining:
    def made(self, name: str, stride: Pair, groups: int, bias: bool, randomise: Randomise) -> Branch:
        branch = randomise(build(name, 4, 6, stride=stride, groups=groups, bias=bias)).double()
        assert isinstance(branch, Branch)
        return branch

    def test_values_and_gradients_are_those_of_the_equation(
        self, name: str, stride: Pair, groups: int, bias: bool, randomise: Randomise
    ) -> None:
        branch = self.made(name, stride, groups, bias, randomise)
        x = torch.randn(3, 4, 4, 5, dtype=torch.float64, requires_grad=True)
        wanted = [x, *branch.parameters()]
        _, _, expected = slowly(branch, x, stride)
        actual = branch(x)
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
        direction = torch.randn_like(expected)
        torch.testing.assert_close(
            torch.autograd.grad(actual, wanted, direction),
            torch.autograd.grad(expected, wanted, direction),
            rtol=1e-10,
            atol=1e-10,
        )

    @pytest.mark.parametrize("momentum", [0.1, 1.0, None], ids=lambda m: f"momentum {m}")
    def test_running_statistics_move_as_batch_norm_moves_them(
        self, name: str, stride: Pair, groups: int, bias: bool, momentum: float | None, randomise: Randomise
    ) -> None:
        """Over two steps; border pixels count for the outer normalisation only."""
        branch = self.made(name, stride, groups, bias, randomise)
        _, inner, outer = parts(branch)
        inner.momentum = outer.momentum = momentum
        by_hand = copy.deepcopy(inner), copy.deepcopy(outer)
        for _ in range(2):
            x = torch.randn(3, 4, 4, 5, dtype=torch.float64)
            first, second, _ = slowly(branch, x, stride)
            branch(x)
            by_hand[0](first)
            by_hand[1](second)
        for norm, expected in zip((inner, outer), by_hand, strict=True):
            torch.testing.assert_close(
                dict(norm.named_buffers()), dict(expected.named_buffers()), rtol=1e-12, atol=1e-12
            )


@pytest.mark.parametrize("name", TWO_STEPS)
def test_one_value_a_channel_has_no_batch_statistics(name: str) -> None:
    with pytest.raises(GeometryError, match="more than one value a channel in training, got 1"):
        build(name, 2, 2)(torch.randn(1, 2, 1, 1))


@pytest.mark.parametrize("name", TWO_STEPS)
def test_a_frozen_normalisation_stays_as_it_is_in_training(name: str, randomise: Randomise, apart: Apart) -> None:
    branch = randomise(build(name, 4, 4, bias=True)).double()
    assert isinstance(branch, Branch)
    _, inner, outer = parts(branch)
    inner.eval()
    outer.eval()
    before = copy.deepcopy(branch.state_dict())
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    assert apart(branch(x), branch.kernel()(x)) <= 1e-12
    torch.testing.assert_close(branch.state_dict(), before, rtol=0, atol=0)


def test_a_skip_is_a_diagonal_in_its_groups(randomise: Randomise) -> None:
    """Each output channel sees its own input channel: column o mod (c / g) of row o."""
    branch = randomise(SkipBranch(6, groups=2)).eval()
    assert isinstance(branch, SkipBranch)
    nn.init.ones_(branch.bn.weight)
    positions = branch.kernel().weight[:, :, 0, 0].nonzero().tolist()
    assert positions == [[0, 0], [1, 1], [2, 2], [3, 0], [4, 1], [5, 2]]


@pytest.mark.parametrize(("size", "padding"), [((7, 7), None), ((5, 3), (1, 2)), ((1, 1), (0, 0))])
def test_a_plain_convolution_of_any_size_is_a_branch(
    size: Pair, padding: Pair | None, randomise: Randomise, apart: Apart
) -> None:
    """The networks' own convolutions outside blocks fold the same way."""
    branch = randomise(ConvBranch(4, 6, size, stride=(2, 1), padding=padding, groups=2)).double().eval()
    assert isinstance(branch, ConvBranch)
    x = torch.randn(2, 4, 9, 8, dtype=torch.float64)
    assert apart(branch.kernel()(x), branch(x)) <= 1e-12
