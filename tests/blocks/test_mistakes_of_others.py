"""What other tools for the same job got wrong, a test each that fails if we get it wrong, too."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from repconv import BRANCHES, GeometryError, RepBlock, expand, fuse
from repconv.algebra.kernels import identity
from repconv.blocks.branches import ConvBranch, SkipBranch, conv_kernel

Randomise = Callable[[nn.Module], nn.Module]
Apart = Callable[[Tensor, Tensor], float]

KINDS = tuple(BRANCHES)
SEARCHABLE = KINDS[1:]


def image(channels: int = 4, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(3, channels, 7, 6, dtype=torch.float64).to(dtype)


@pytest.fixture
def ready(randomise: Randomise) -> Callable[[nn.Module], nn.Module]:
    """A module in float64 and evaluation mode, nothing at its initial value."""
    return lambda module: randomise(module).double().eval()


def convolutions(model: nn.Module) -> int:
    return sum(isinstance(m, nn.Conv2d) for m in model.modules())


# What went wrong without a word.


@pytest.mark.parametrize("groups", [1, 2, 4, 8])
def test_an_identity_in_groups_is_on_the_right_diagonal(groups: int, ready: Randomise, apart: Apart) -> None:
    """YOLOv7 indexed the weight's input axis by the channel, not by the channel within its group."""
    x = image(8)
    assert torch.equal(identity(8, groups=groups)(x), x)
    block = ready(RepBlock(8, 8, groups=groups, fixed=("skip",)))
    assert apart(fuse(block)[0](x), block(x)) <= 1e-12


@pytest.mark.parametrize("dilation", [(2, 2), (1, 3)])
def test_a_dilation_survives(dilation: tuple[int, int], ready: Randomise, apart: Apart) -> None:
    """RepVGG, YOLOv6 and MobileOne make the fused convolution without it."""
    branch = ready(ConvBranch(4, 4, (3, 3), dilation=dilation))
    x = image()
    assert apart(fuse(branch)[0](x), branch(x)) <= 1e-12


@pytest.mark.parametrize("dilation", [(2, 2), (1, 2)])
@pytest.mark.parametrize("padding", [None, (1, 1)], ids=["centred", "padding 1"])
def test_a_dilated_convolution_is_not_expanded_as_if_it_were_not(
    dilation: tuple[int, int], padding: tuple[int, int] | None
) -> None:
    """A 3x3 block could not stand for it."""
    model = nn.Sequential(ConvBranch(4, 4, (3, 3), padding=padding, dilation=dilation))
    with pytest.raises(GeometryError, match="nothing to expand"):
        expand(model, branches=("1x1",))


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_padding_that_is_not_zero_is_refused_and_kept(mode: str, ready: Randomise, apart: Apart) -> None:
    """YOLOv6 drops `padding_mode`: zeros instead of the image's mirror."""
    branch = ConvBranch(4, 4, (3, 3))
    branch.conv = nn.Conv2d(4, 4, 3, padding=1, padding_mode=mode)
    ready(branch)
    with pytest.raises(GeometryError, match=f"padding_mode='{mode}'"):
        conv_kernel(branch.conv, torch.float64)
    model = nn.Sequential(branch, nn.ReLU(), ready(ConvBranch(4, 4, (3, 3)))).eval()
    fused, report = fuse(model)
    x = image()
    assert apart(fused(x), model(x)) <= 1e-12
    assert [(r.where, mode in r.why) for r in report.refusals] == [("0", True)]
    assert isinstance(expand(model, branches=("1x1",))[0], ConvBranch)


@pytest.mark.parametrize("name", KINDS)
def test_a_normalisation_without_affine_has_scale_one_and_shift_zero(name: str, ready: Randomise, apart: Apart) -> None:
    """optimum gave it the bias 1."""
    block = RepBlock(4, 4, fixed=(name,), bias=True)
    for path, module in list(block.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            block.set_submodule(path, nn.BatchNorm2d(4, affine=False))
    ready(block)
    x = image()
    assert apart(fuse(block)[0](x), block(x)) <= 1e-12


class Shared(nn.Module):
    """One block and one convolution, each at two places."""

    def __init__(self) -> None:
        super().__init__()
        self.block = RepBlock(4, 4, branches=SEARCHABLE)
        self.again = self.block
        self.conv = ConvBranch(4, 4, (1, 1))
        self.once = nn.Sequential(self.conv, nn.ReLU(), self.conv)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.block(x))
        return self.once(self.again(torch.relu(self.block(x))) + x)


def test_a_module_used_twice_is_folded_once_and_still_shared(ready: Randomise, apart: Apart) -> None:
    """torch.fx folded a normalisation into the shared convolution at each of its uses."""
    model = ready(Shared())
    fused, _ = fuse(model)
    x = image()
    assert apart(fused(x), model(x)) <= 1e-12
    assert fused.again is fused.block
    assert fused.once[0] is fused.once[2] is fused.conv
    assert convolutions(fused) == 2


def test_one_convolution_under_two_normalisations_is_folded_into_neither(ready: Randomise, apart: Apart) -> None:
    """torch.fx, too: the second normalisation saw the first one's scale. Here two branches hold one convolution."""
    left, right = ConvBranch(4, 4, (3, 3)), ConvBranch(4, 4, (3, 3))
    right.conv = left.conv
    model = ready(nn.Sequential(left, nn.ReLU(), right))
    x = image()
    assert apart(fuse(model)[0](x), model(x)) <= 1e-12


def test_a_normalisation_that_follows_no_convolution_stays(ready: Randomise, apart: Apart) -> None:
    """RepViT's helper turns what is left over into an identity."""
    model = ready(
        nn.Sequential(
            nn.BatchNorm2d(4), RepBlock(4, 4, branches=SEARCHABLE), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4)
        )
    )
    fused, _ = fuse(model)
    x = image()
    assert apart(fused(x), model(x)) <= 1e-12


@pytest.mark.parametrize(("name", "taps"), [("1x3", (1, 3)), ("3x1", (3, 1))])
def test_a_1x3_comes_out_inside_a_3x3(name: str, taps: tuple[int, int], ready: Randomise, apart: Apart) -> None:
    """DBB's transform pads the short side by the long side's amount and gives a 1x5."""
    block = ready(RepBlock(4, 4, fixed=(name,), bias=True))
    kernel = block.kernel()
    rows, columns = (torch.count_nonzero(kernel.weight.abs().sum((0, 1, axis))).item() for axis in (3, 2))
    assert (rows, columns) == taps
    fused, _ = fuse(block)
    x = image()
    assert fused.weight.shape == (4, 4, 3, 3)
    assert apart(fused(x), block(x)) <= 1e-12


class SqueezeExcite(nn.Module):
    """Channels weighted by what their means say."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, 2, 1), nn.Conv2d(2, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        weights = torch.sigmoid(self.up(torch.relu(self.down(x.mean((2, 3), keepdim=True)))))
        return x * weights


class Unit(nn.Module):
    """A user's own: block, squeeze and excite, activation."""

    def __init__(self) -> None:
        super().__init__()
        self.block = RepBlock(4, 4, branches=SEARCHABLE)
        self.se = SqueezeExcite(4)
        self.act = nn.Hardswish()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.se(self.block(x))) + x


def test_what_stands_beside_a_block_is_kept(ready: Randomise, apart: Apart) -> None:
    """mmpretrain dropped the squeeze-and-excite when it fused."""
    model = ready(nn.Sequential(Unit(), Unit()))
    fused, _ = fuse(model)
    x = image()
    assert apart(fused(x), model(x)) <= 1e-12
    assert [type(m) for m in fused.modules()].count(SqueezeExcite) == 2
    assert [type(m) for m in fused.modules()].count(nn.Hardswish) == 2


def test_a_convolution_whose_output_has_a_second_user_keeps_it(ready: Randomise, apart: Apart) -> None:
    """Folders that look at the next node only change what the second user sees."""

    class Fork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
            self.block = RepBlock(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(self.block(x))
            return self.bn(y) + y

    model = ready(Fork())
    x = image()
    assert apart(fuse(model)[0](x), model(x)) <= 1e-12


# What stopped with an error.


@pytest.mark.parametrize("stride", [2, (2, 1), 3], ids=str)
def test_blocks_with_a_stride_fuse(stride: int | tuple[int, int], ready: Randomise, apart: Apart) -> None:
    """RepNAS could not."""
    block = ready(RepBlock(4, 8, stride=stride, branches=[n for n in SEARCHABLE if n != "skip"]))
    x = image()
    assert apart(fuse(block)[0](x), block(x)) <= 1e-12


@pytest.mark.parametrize(
    ("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 1.5e-2), (torch.float16, 2e-3)]
)
def test_models_of_every_dtype_fuse_and_keep_it(
    dtype: torch.dtype, limit: float, randomise: Randomise, apart: Apart
) -> None:
    """RepVGG and timm mixed a float32 identity or zero into the sum and failed, or came back as float32."""
    model = randomise(RepBlock(4, 4, branches=SEARCHABLE, bias=True)).to(dtype).eval()
    fused, _ = fuse(model)
    x = image(dtype=dtype)
    assert {p.dtype for p in fused.parameters()} == {dtype} == {fused(x).dtype}
    assert apart(fused(x), copy.deepcopy(model).double()(x.double())) <= limit


def test_fusing_twice_is_fusing_once(ready: Randomise) -> None:
    """Others fail on the attributes the first call deleted."""
    model = ready(nn.Sequential(Unit(), ConvBranch(4, 4, (1, 1))))
    once, _ = fuse(model)
    with pytest.warns(UserWarning, match="nothing was fused"):
        twice, report = fuse(once)
    x = image()
    assert torch.equal(twice(x), once(x))
    assert not report.layers
    assert [refusal.why[:13] for refusal in report.refusals] == ["not looked at"]
    assert report.before == report.after


def test_fusing_leaves_its_input_as_it_was(ready: Randomise) -> None:
    """`switch_to_deploy` deletes the branches of the model it is given; a second look at it is too late."""
    model = ready(Shared())
    x, state = image(), copy.deepcopy(model.state_dict())
    before = model(x)
    fused, _ = fuse(model)
    with torch.no_grad():
        for parameter in fused.parameters():
            parameter.zero_()
    assert torch.equal(model(x), before)
    torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)


@pytest.mark.parametrize("name", KINDS)
def test_fused_weights_can_be_trained(name: str, ready: Randomise) -> None:
    """DBB and MobileOne froze them with `detach_`; a model fused for fine-tuning then did not learn."""
    fused, _ = fuse(ready(nn.Sequential(RepBlock(4, 4, fixed=(name,)), nn.ReLU(), ConvBranch(4, 4, (1, 1)))))
    assert all(isinstance(p, nn.Parameter) and p.requires_grad and p.is_leaf for p in fused.parameters())
    fused(image()).square().sum().backward()
    assert all(p.grad is not None for p in fused.parameters())
    assert fused[2].weight.grad.abs().max() > 0


def test_a_skip_alone_fuses_to_a_convolution(ready: Randomise, apart: Apart) -> None:
    """It has no convolution to take the shape from."""
    branch = ready(SkipBranch(6, groups=3))
    fused, _ = fuse(branch)
    x = image(6)
    assert isinstance(fused, nn.Conv2d)
    assert apart(fused(x), branch(x)) <= 1e-12
