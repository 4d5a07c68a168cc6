"""`RepBlock`: gates, masks and what it refuses."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from repconv import BRANCHES, FusionError, GeometryError, RepBlock
from repconv.algebra.geometry import Geometry
from repconv.blocks.block import BranchSet
from repconv.blocks.statistics.sampling import Sampling

Randomise = Callable[[nn.Module], nn.Module]
Apart = Callable[[Tensor, Tensor], float]

KINDS = tuple(BRANCHES)
SEARCHABLE = KINDS[1:]
MASKS: list[tuple[str, ...] | None] = [None, (), ("avg",), ("skip", "1x3", "1x1_3x3")]
dtypes = pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)


def full(randomise: Randomise, **arguments: int | bool) -> RepBlock:
    """A 4 -> 4 block of `3x3` and nine searchable kinds in float64, nothing at its initial value."""
    block = randomise(RepBlock(4, 4, branches=SEARCHABLE, **arguments)).double()
    assert isinstance(block, RepBlock)
    return block


def picture(n: int = 2, height: int = 5, width: int = 6) -> Tensor:
    return torch.randn(n, 4, height, width, dtype=torch.float64)


class TestGates:
    def test_every_gate_starts_at_zero(self) -> None:
        """Hence every searchable branch at a quarter."""
        block = RepBlock(4, 4, branches=SEARCHABLE)
        assert block.beta is not None
        assert block.beta.item() == 0
        assert {name: alpha.item() for name, alpha in block.alpha.items()} == dict.fromkeys(SEARCHABLE, 0)
        assert {block.gate(name).item() for name in SEARCHABLE} == {0.25}

    def test_the_output_is_the_explicit_formula(self, randomise: Randomise, apart: Apart) -> None:
        """y = sum over fixed B(x) + sigmoid(beta) * sum of sigmoid(alpha) B(x), in training and evaluation."""
        block = randomise(RepBlock(4, 4, fixed=("3x3", "skip"), branches=("1x1", "avg", "2x2_d2"))).double()
        assert isinstance(block, RepBlock)
        with torch.no_grad():
            block.beta.fill_(0.7)
            for name, value in (("1x1", -1.2), ("avg", 0.4), ("2x2_d2", 3.0)):
                block.alpha[name].fill_(value)
        # 1 / (1 + exp(-z)) of 0.7, -1.2, 0.4 and 3.0.
        beta, gates = (
            0.6681877721681662,
            {"1x1": 0.23147521650098238, "avg": 0.598687660112452, "2x2_d2": 0.9525741268224334},
        )
        for training in (True, False):
            block.train(training)
            x, b = picture(), block.branches
            searched = sum(gate * b[name](x) for name, gate in gates.items())
            assert apart(block(x), b["3x3"](x) + b["skip"](x) + beta * searched) <= 1e-12
        assert apart(block(x), block.kernel()(x)) <= 1e-12

    def test_fixed_branches_have_no_gate(self) -> None:
        block = RepBlock(4, 4, fixed=("3x3", "1x1", "skip"))
        assert block.beta is None
        assert not block.alpha
        assert not [name for name, _ in block.named_parameters() if not name.startswith("branches.")]
        with pytest.raises(GeometryError, match="no searchable branch, hence no gates"):
            block.gate("1x1")

    def test_only_searchable_branches_have_one(self) -> None:
        block = RepBlock(4, 4, fixed=("3x3", "skip"), branches=("1x1", "avg"))
        assert {n for n, _ in block.named_parameters() if "." not in n or n.startswith("alpha")} == {
            "beta",
            "alpha.1x1",
            "alpha.avg",
        }


@pytest.mark.parametrize("active", MASKS, ids=str)
class TestMask:
    def test_the_kernel_of_a_mask_is_its_forward(
        self, active: Sequence[str] | None, randomise: Randomise, apart: Apart
    ) -> None:
        block, x = full(randomise, bias=True).eval(), picture()
        assert apart(block.kernel(active=active)(x), block(x, active=active)) <= 1e-12

    def test_a_mask_is_the_block_of_only_those_branches(
        self, active: Sequence[str] | None, randomise: Randomise, apart: Apart
    ) -> None:
        """And the others are not computed: their statistics do not move."""
        block, x = full(randomise), picture()
        chosen = SEARCHABLE if active is None else active
        small = RepBlock(4, 4, branches=chosen).double()
        kept = {n: t for n, t in block.state_dict().items() if n in small.state_dict()}
        small.load_state_dict(kept)
        before = copy.deepcopy(block.state_dict())
        assert apart(block(x, active=active), small(x)) <= 1e-12
        moved = {n.split(".")[1] for n, t in block.state_dict().items() if not torch.equal(t, before[n])}
        assert moved == {"3x3", *chosen}

    @pytest.mark.parametrize("sampling", [None, Sampling(None), Sampling(12)], ids=str)
    def test_branches_outside_a_mask_get_no_gradient_at_all(
        self, active: Sequence[str] | None, sampling: Sampling | None, randomise: Randomise
    ) -> None:
        """None, not zero: momentum and weight decay must not move them, nor their gates."""
        block = full(randomise, bias=True)
        block.sampling = sampling
        block(picture(), active=active).square().sum().backward()
        chosen = SEARCHABLE if active is None else active
        expected = {
            name
            for name, _ in block.named_parameters()
            if (name == "beta" and chosen) or (name != "beta" and name.split(".")[1] in ("3x3", *chosen))
        }
        assert {name for name, p in block.named_parameters() if p.grad is not None} == expected


class TestRefusals:
    def test_a_mask_of_branches_the_block_cannot_switch(self) -> None:
        block = RepBlock(4, 4, branches=("1x1", "avg")).eval()
        for call in (lambda: block(picture().float(), active=("3x3",)), lambda: block.kernel(active=("3x3",))):
            with pytest.raises(GeometryError, match="not a searchable branch of this block: 3x3; it has 1x1, avg"):
                call()

    def test_a_mask_that_leaves_nothing(self) -> None:
        with pytest.raises(GeometryError, match="without fixed branches needs at least one active branch"):
            RepBlock(4, 4, fixed=(), branches=("1x1",))(picture().float(), active=())

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ({"fixed": ("3x3", "5x5")}, "unknown branch kind '5x5'"),
            ({"fixed": ("3x3", "1x1"), "branches": ("1x1",)}, "each at most once; got 3x3, 1x1, 1x1"),
            ({"fixed": ("3x3", "3x3")}, "each at most once; got 3x3, 3x3"),
            ({"fixed": "3x3"}, r"a collection of names, such as \['3x3'\], got '3x3'"),
            ({"branches": "avg"}, r"a collection of names, such as \['avg'\], got 'avg'"),
            ({"fixed": ()}, "a block needs branches, each at most once; got none"),
            ({"branches": ("skip",), "stride": 2}, "branch 'skip' needs stride 1 and as many output as input"),
            ({"branches": ("skip",), "out_channels": 8}, "branch 'skip' needs stride 1 .* the block is 4->8"),
            ({"groups": 3}, "3 groups must divide both 4 input and 4 output channels"),
        ],
        ids=str,
    )
    def test_a_block_that_cannot_be(self, arguments: dict[str, object], words: str) -> None:
        with pytest.raises(GeometryError, match=words):
            RepBlock(**{"in_channels": 4, "out_channels": 4, **arguments})

    def test_the_kernel_of_a_block_in_training_mode(self) -> None:
        with pytest.raises(FusionError, match=r"in training mode normalises by each batch.*call model\.eval\(\) first"):
            RepBlock(4, 4).kernel()

    def test_the_kernel_of_a_block_without_running_statistics(self) -> None:
        block = RepBlock(4, 4).eval()
        block.branches["3x3"].bn = nn.BatchNorm2d(4, track_running_stats=False).eval()
        with pytest.raises(FusionError, match=r"track_running_stats=False normalises by each batch.*re-estimate them"):
            block.kernel()


def test_a_set_leaves_out_what_does_not_fit() -> None:
    wanted = BranchSet(("3x3", "skip"), ("1x1", "avg"))
    assert wanted.fitting(Geometry(4, 8, (3, 3))) == BranchSet(("3x3",), ("1x1", "avg"))
    assert wanted.fitting(Geometry(4, 4, (3, 3))) == wanted


@pytest.mark.parametrize("fixed", [("1x1",), ("1x3",), ("1x1", "3x1")], ids=str)
def test_a_block_of_small_branches_is_still_a_3x3(fixed: tuple[str, ...]) -> None:
    kernel = RepBlock(4, 8, fixed=fixed, stride=2, groups=2).eval().kernel()
    assert kernel.geometry == Geometry(4, 8, (3, 3), (2, 2), (1, 1, 1, 1), 2)


class TestFormats:
    @dtypes
    @pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
    def test_the_output_has_the_dtype_of_the_block(self, dtype: torch.dtype, training: bool) -> None:
        block = RepBlock(4, 4, branches=SEARCHABLE, bias=True).to(dtype).train(training)
        y = block(picture().to(dtype))
        assert y.dtype == dtype
        assert torch.isfinite(y).all()

    @pytest.mark.parametrize("sampling", [None, Sampling(None), Sampling(12)], ids=str)
    @pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
    def test_channels_last_stays_channels_last(self, sampling: Sampling | None, training: bool) -> None:
        """Of every branch too, or the sum would copy."""
        block = RepBlock(4, 4, branches=SEARCHABLE, bias=True).to(memory_format=torch.channels_last).train(training)
        block.sampling = sampling
        x = picture().float().to(memory_format=torch.channels_last)
        for module in (block, *block.branches.values()):
            y = module(x)
            assert y.is_contiguous(memory_format=torch.channels_last)
            assert not y.is_contiguous()
