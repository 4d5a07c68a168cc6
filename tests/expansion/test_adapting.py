"""Branches that join a block or leave it: its function stays, and so do the parameters that stay."""

from __future__ import annotations

import pytest
import torch

from repconv import GeometryError, RepBlock
from repconv.blocks.branches import BRANCHES
from repconv.expansion.adapting import join, leave, new_branches, put_kinds

SHAPES = {"same": (6, 6, 1, 1), "strided": (4, 8, 2, 1), "grouped": (8, 8, 1, 4), "depthwise": (8, 8, 1, 8)}


def trained(shape: str, randomise, dtype: torch.dtype = torch.float64) -> tuple[RepBlock, torch.Tensor]:
    """A block of a 3x3 branch with numbers far from where they start, in evaluation, and an input."""
    torch.manual_seed(0)
    i, o, stride, groups = SHAPES[shape]
    block = randomise(RepBlock(i, o, stride=stride, groups=groups)).eval().to(dtype)
    return block, torch.randn(8, i, 9, 11, dtype=dtype) + 0.5


def fitting(block: RepBlock) -> list[str]:
    return [name for name, kind in BRANCHES.items() if name != "3x3" and kind.unfit(block.geometry) is None]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 3e-5)])
def test_what_joins_and_what_leaves_changes_nothing(shape, dtype, tolerance, randomise) -> None:
    block, x = trained(shape, randomise, dtype)
    before = block(x).detach()
    parameters = dict(block.named_parameters())
    scale = float(before.abs().max())
    kinds = fitting(block)

    def error() -> float:
        return float((block(x) - before).detach().abs().max()) / scale

    join(block, new_branches(block, kinds, x, 0.5), x)
    assert block.branch_set.fixed == ("3x3", *kinds)
    assert error() <= tolerance
    with torch.no_grad():  # they give something by the time they leave
        for kind in kinds:
            block.branches[kind].norm.bias.uniform_(-1, 1)
            block.branches[kind].norm.weight.mul_(2)
    before = block(x).detach()
    leave(block, kinds[::2], x)
    assert error() <= tolerance
    leave(block, kinds[1::2], x)
    assert error() <= tolerance
    assert block.branch_set.fixed == tuple(block.branches) == ("3x3",)
    assert all(dict(block.named_parameters())[name] is held for name, held in parameters.items())


def test_new_branches_have_the_scale_and_statistics_asked_for_and_learn(randomise) -> None:
    block, x = trained("same", randomise)
    made = new_branches(block, fitting(block), x, 0.01)
    root = float(block.branches["3x3"].bn.weight.detach().square().mean().sqrt())
    join(block, made, x)
    for kind, branch in made.items():
        assert not branch.training
        assert float(branch.norm.weight.detach().abs().max()) <= 0.01 * root * 1.0001
        y = branch(x).detach()
        assert float(y.mean((0, 2, 3)).abs().max()) <= 1e-9, kind  # their statistics are those of x
        deviation = y.std((0, 2, 3), correction=0) / branch.norm.weight.detach()
        assert torch.allclose(deviation, torch.ones_like(deviation), rtol=1e-3), kind
    (block.train()(x).square().mean()).backward()
    assert all(branch.norm.weight.grad.abs().max() > 0 for branch in made.values())


def test_the_scale_of_a_channel_that_was_off_comes_back(randomise) -> None:
    block, x = trained("same", randomise)
    with torch.no_grad():
        block.branches["3x3"].bn.weight.zero_()
    before = block(x).detach()
    join(block, new_branches(block, ["1x1"], x, 0.1), x)
    assert torch.allclose(block(x), before, atol=1e-12)


def test_branches_are_put_in_the_order_asked_for_and_held_ones_stay() -> None:
    block = RepBlock(4, 4, fixed=("3x3", "1x1"))
    held = dict(block.branches.items())
    put_kinds(block, ("3x3", "skip", "1x1"))
    assert block.branch_set.fixed == tuple(block.branches) == ("3x3", "skip", "1x1")
    assert block.branches["1x1"] is held["1x1"]
    put_kinds(block, ("3x3",))
    assert block.branches["3x3"] is held["3x3"]
    assert list(block.state_dict()) == [name for name in block.state_dict() if ".3x3." in name]


def test_what_cannot_join_or_leave_is_refused(randomise) -> None:
    block, x = trained("same", randomise)
    made = new_branches(block, ["1x1"], x, 0.1)
    join(block, made, x)
    with pytest.raises(GeometryError, match="has a branch 1x1 already"):
        join(block, made, x)
    for kind in ("3x3", "avg"):
        with pytest.raises(GeometryError, match=f"{kind} cannot leave the block: expected one of 1x1"):
            leave(block, [kind], x)
    without = RepBlock(6, 6, fixed=("1x1",)).eval().double()
    with pytest.raises(GeometryError, match="around its fixed 3x3 branch; its fixed branches are 1x1"):
        new_branches(without, ["1x3"], x, 0.1)
    strided, y = trained("strided", randomise)
    with pytest.raises(GeometryError, match="'skip' needs stride 1"):
        new_branches(strided, ["skip"], y, 0.1)
