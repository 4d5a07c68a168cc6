"""Training a block as one convolution: statistics from kernels and windows instead of branch outputs."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from repconv import BRANCHES, GeometryError, RepBlock, Sampling, create_model, fuse, set_statistics
from repconv.algebra.geometry import Geometry
from repconv.blocks.statistics.windows import positions, windows
from repconv.blocks.training_cost import cheaper_joined

Randomise = Callable[[nn.Module], nn.Module]
Apart = Callable[[Tensor, Tensor], float]

SEARCHABLE = tuple(BRANCHES)[1:]
MASKS: list[tuple[str, ...] | None] = [None, (), ("avg",), ("skip", "1x3", "1x1_3x3")]
dtypes = pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
shapes = pytest.mark.parametrize(("stride", "groups"), [(1, 1), (1, 2), (2, 1), (2, 2), ((1, 2), 4)], ids=str)


def picture(n: int = 2, height: int = 5, width: int = 6) -> Tensor:
    return torch.randn(n, 4, height, width, dtype=torch.float64)


def pair(stride: int | tuple[int, int], groups: int, randomise: Randomise) -> tuple[RepBlock, RepBlock]:
    """Two equal blocks in training, momentum None in one normalisation of each, another without scale and shift."""
    names = [n for n in SEARCHABLE if n != "skip" or stride == 1]
    block = randomise(RepBlock(4, 4, stride=stride, groups=groups, bias=True, branches=names)).double().train()
    assert isinstance(block, RepBlock)
    block.branches["3x3"].bn.momentum = None
    block.branches["1x3"].bn = nn.BatchNorm2d(4, affine=False, eps=1e-3).double()
    return block, copy.deepcopy(block)


def always(block: RepBlock, sampling: Sampling) -> RepBlock:
    """The block as one convolution, even where branch by branch is faster, as it is in everything this small."""
    block.sampling = sampling
    block._joined = lambda _x, _sampling, names: names
    return block


class TestWindows:
    @pytest.mark.parametrize("stride", [(1, 1), (2, 2), (1, 3)], ids=str)
    @pytest.mark.parametrize("reach", [0, 1])
    def test_all_positions_are_what_unfold_gives(self, stride: tuple[int, int], reach: int) -> None:
        x = picture(3, 5, 7)
        size = 2 * reach + 1
        found = windows(x, stride=stride, reach=reach, count=positions(x, stride), dtype=torch.float64)
        columns = functional.unfold(x, size, padding=reach, stride=stride)
        expected = columns.unflatten(1, (4, size, size)).permute(0, 4, 2, 3, 1).flatten(0, 1)
        torch.testing.assert_close(found[:1], expected.mean(0, keepdim=True))
        torch.testing.assert_close(found[1:] + found[:1], expected)

    @pytest.mark.parametrize("stride", [(1, 1), (2, 2)], ids=str)
    def test_the_mean_is_of_all_positions_however_few_are_drawn(self, stride: tuple[int, int]) -> None:
        x = picture(3, 5, 7)
        total = positions(x, stride)
        few, all_of_them = (
            windows(x, stride=stride, reach=1, count=count, dtype=torch.float64) for count in (2, total)
        )
        assert len(few) == 3
        torch.testing.assert_close(few[0], all_of_them[0])

    def test_one_position_of_each_run_is_drawn_and_every_one_as_often(self) -> None:
        """20 positions in 8 runs of two and a half; 4000 draws, so each comes up 1600 times, give or take 31."""
        x = torch.arange(20.0).reshape(1, 1, 4, 5)
        seen = torch.zeros(20)
        for _ in range(4000):
            found = windows(x, stride=(1, 1), reach=0, count=8, dtype=torch.float64).flatten()
            drawn = (found[1:] + found[0]).round().long()
            assert (drawn >= torch.arange(8) * 20 // 8).all()
            assert (drawn <= (torch.arange(8) * 20 + 19) // 8).all()
            seen += torch.bincount(drawn, minlength=20)
        assert (seen - 1600).abs().max() < 5 * 31

    def test_gradients_are_those_of_finite_differences(self) -> None:
        x = picture(2, 3, 4).requires_grad_()

        def drawn(inputs: Tensor) -> Tensor:
            torch.manual_seed(3)
            return windows(inputs, stride=(1, 2), reach=1, count=5, dtype=torch.float64)

        assert torch.autograd.gradcheck(drawn, x)

    @pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
    def test_the_memory_format_makes_no_difference(self, layout: torch.memory_format) -> None:
        x = picture()
        results = []
        for images in (x, x.contiguous(memory_format=layout)):
            torch.manual_seed(1)
            results.append(windows(images, stride=(1, 1), reach=1, count=9, dtype=torch.float64))
        assert torch.equal(*results)


@shapes
class TestEveryPosition:
    """With every position taken, one convolution is the branch-by-branch form."""

    @pytest.mark.parametrize("active", MASKS, ids=str)
    def test_outputs_gradients_and_running_statistics_agree(
        self, stride: int, groups: int, active: Sequence[str] | None, randomise: Randomise
    ) -> None:
        block, single = pair(stride, groups, randomise)
        single.sampling = Sampling(None)
        active = None if active is None else [n for n in active if n in block.branch_set.searchable]
        results = []
        x = picture(3)
        direction = torch.randn_like(copy.deepcopy(block).eval()(x))
        for form in (block, single):
            inputs = x.clone().requires_grad_()
            y = form(inputs, active=active)
            y.backward(direction)
            gradients = {name: p.grad for name, p in form.named_parameters()}
            results.append((y.detach(), inputs.grad, gradients, form.state_dict()))
        torch.testing.assert_close(results[1], results[0], rtol=1e-10, atol=1e-10)

    def test_frozen_normalisations_keep_their_statistics(
        self, stride: int, groups: int, randomise: Randomise, apart: Apart
    ) -> None:
        """In evaluation mode inside a block in training, as when fine-tuning: both forms use the running ones."""
        block, single = pair(stride, groups, randomise)
        always(single, Sampling(7, share=1.0))
        for form in (block, single):
            for name, module in form.named_modules():
                if isinstance(module, nn.BatchNorm2d) and "3x3" not in name:
                    module.eval()
        before = copy.deepcopy(single.state_dict())
        x = picture(4)
        for module in (*block.modules(), *single.modules()):
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        assert apart(single(x), block(x)) <= 1e-10
        torch.testing.assert_close(single.state_dict(), before, rtol=0, atol=0)


@shapes
class TestSample:
    def test_running_means_are_exact(self, stride: int, groups: int, randomise: Randomise, apart: Apart) -> None:
        """A mean is linear in the input. Only what stands behind an inner, sampled variance cannot be exact."""
        block, single = pair(stride, groups, randomise)
        x = picture(3)
        block(x)
        always(single, Sampling(5, share=1.0))(x)
        for name, buffer in block.named_buffers():
            if name.endswith("running_mean") and not name.startswith(("branches.avg.bn", "branches.1x1_3x3.outer")):
                assert apart(single.get_buffer(name), buffer) <= 1e-10, name

    def test_variances_are_right_on_average(self, stride: int, groups: int, randomise: Randomise) -> None:
        """400 draws of 12 positions: the mean of the variances is within five of its own deviations."""
        block, single = pair(stride, groups, randomise)
        always(single, Sampling(12, share=1.0))
        for form in (block, single):
            for module in form.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.momentum = 1.0
        x = picture(3)
        block(x)
        norms = [name for name, m in block.named_modules() if isinstance(m, nn.BatchNorm2d) and "outer" not in name]
        norms.remove("branches.avg.bn")
        draws = {name: [] for name in norms}
        with torch.no_grad():
            for _ in range(400):
                single(x)
                for name in norms:
                    draws[name].append(single.get_buffer(f"{name}.running_var").clone())
        for name in norms:
            drawn = torch.stack(draws[name])
            error = drawn.mean(0) - block.get_buffer(f"{name}.running_var")
            assert (error.abs() <= 5 * drawn.std(0) / 400**0.5 + 1e-9).all(), name

    def test_statistics_move_and_gradients_are_finite(self, stride: int, groups: int, randomise: Randomise) -> None:
        single, _ = pair(stride, groups, randomise)
        always(single, Sampling(40, share=1.0))
        before = copy.deepcopy(single.state_dict())
        single(picture(8, 9, 9)).square().sum().backward()
        for name, buffer in single.named_buffers():
            assert not torch.equal(buffer, before[name]), name
        for name, parameter in single.named_parameters():
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name


class TestWhichWay:
    """A block trains as one convolution where that is the cheaper way."""

    @pytest.mark.parametrize(
        ("channels", "total", "alone"),
        [(16, 128 * 32 * 32, ()), (64, 64 * 32 * 32, ()), (512, 64 * 4 * 4, ()), (512, 64 * 2 * 2, ("1x1_3x3",))],
    )
    def test_as_measured(self, channels: int, total: int, alone: tuple[str, ...]) -> None:
        with torch.device("meta"):
            block = RepBlock(channels, channels, branches=SEARCHABLE)
        branches = {name: block._branch(name) for name in (*block.branch_set.fixed, *block.branch_set.searchable)}
        together = cheaper_joined(branches, block.geometry, total, Sampling().count(total))
        assert together == tuple(name for name in branches if name not in alone)

    def test_a_block_that_is_cheaper_branch_by_branch_is_exact(self, randomise: Randomise) -> None:
        block, single = pair(1, 1, randomise)
        single.sampling = Sampling(5, share=1.0)
        x = picture(3)
        assert torch.equal(single(x), block(x))

    @pytest.mark.parametrize("alone", [("3x3",), ("1x1_3x3", "avg"), ("3x3", "skip", "1x3")], ids=str)
    def test_some_branches_join_and_others_do_not(self, alone: tuple[str, ...], randomise: Randomise) -> None:
        """With every position taken it makes no difference which."""
        block, mixed = pair(1, 1, randomise)
        mixed.sampling = Sampling(1000, share=1.0)
        mixed._joined = lambda _x, _sampling, names: tuple(name for name in names if name not in alone)
        results = []
        x = picture(3)
        for form in (block, mixed):
            inputs = x.clone().requires_grad_()
            y = form(inputs)
            y.square().sum().backward()
            gradients = {name: p.grad for name, p in form.named_parameters()}
            results.append((y.detach(), inputs.grad, gradients, form.state_dict()))
        torch.testing.assert_close(results[1], results[0], rtol=1e-9, atol=1e-9)

    def test_masked_branches_cost_nothing(self) -> None:
        """The 3x3 alone is one convolution anyway: taking its statistics from a sample only adds to it."""
        block = RepBlock(64, 64, branches=SEARCHABLE)
        target = Geometry(64, 64, (3, 3), padding=(1, 1, 1, 1))
        assert not cheaper_joined({"3x3": block._branch("3x3")}, target, 1000, 500)


class TestSettings:
    def test_counts(self) -> None:
        assert Sampling(None).count(10**6) == 10**6
        assert Sampling(1000, share=1.0).count(10**6) == 1000
        assert Sampling(1000, share=0.1, least=10).count(2000) == 200
        assert Sampling(1000, share=0.1, least=300).count(2000) == 300
        assert Sampling(1000, share=0.1, least=300).count(200) == 200

    @pytest.mark.parametrize("wrong", [{"positions": 0}, {"share": 0.0}, {"share": 1.5}, {"least": 0}], ids=str)
    def test_numbers_out_of_range_are_refused(self, wrong: dict[str, float]) -> None:
        with pytest.raises(GeometryError, match=r"at least one position.*got Sampling"):
            Sampling(**wrong)

    def test_the_mode_of_a_model(self) -> None:
        model = create_model("irep_resnet18", width=4, blocks=(1,))
        blocks = [m for m in model.modules() if isinstance(m, RepBlock)]
        for mode, expected in (("sampled", Sampling()), (Sampling(64), Sampling(64)), ("full", None)):
            set_statistics(model, mode)
            assert [b.sampling for b in blocks] == [expected] * len(blocks)
        with pytest.raises(GeometryError, match=r'"full", "sampled" or a Sampling, got \'some\''):
            set_statistics(model, "some")

    def test_a_checkpoint_moves_between_modes(self, apart: Apart) -> None:
        """The same names and numbers, and evaluation and fusing do not care."""
        model, x = create_model("irep_resnet18", width=4, blocks=(1,)), torch.randn(16, 3, 16, 16)
        set_statistics(model, Sampling(32))
        for _ in range(3):
            model(x)
        other = create_model("irep_resnet18", width=4, blocks=(1,))
        other.load_state_dict(model.state_dict())
        with torch.no_grad():
            assert torch.equal(other.eval()(x), model.eval()(x))
            assert apart(fuse(model)[0](x), other(x)) < 1e-5

    def test_evaluation_does_not_sample(self, randomise: Randomise) -> None:
        block, _ = pair(1, 1, randomise)
        x = picture()
        expected = block.eval()(x)
        assert torch.equal(always(block, Sampling(4))(x), expected)


@dtypes
@pytest.mark.parametrize("taken", [None, 12])
def test_a_block_of_any_dtype_trains_as_one_convolution(dtype: torch.dtype, taken: int | None) -> None:
    block = always(RepBlock(4, 4, branches=SEARCHABLE, bias=True).to(dtype), Sampling(taken, share=1.0))
    y = block(picture().to(dtype))
    y.float().square().sum().backward()
    assert y.dtype == dtype
    assert all(
        p.grad is not None and p.grad.dtype == dtype and torch.isfinite(p.grad).all() for p in block.parameters()
    )


@pytest.mark.parametrize("taken", [None, 40])
def test_autocast_leaves_statistics_in_float32(taken: int | None, randomise: Randomise, apart: Apart) -> None:
    block = randomise(RepBlock(4, 4, branches=SEARCHABLE)).train()
    assert isinstance(block, RepBlock)
    wide, narrow = (always(copy.deepcopy(block), Sampling(taken, share=1.0)) for _ in range(2))
    x = picture(4).float()
    torch.manual_seed(2)
    expected = wide(x)
    torch.manual_seed(2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = narrow(x)
        y.float().sum().backward()
    assert y.dtype == torch.bfloat16
    assert apart(y.float(), expected) < 2e-2
    torch.testing.assert_close(narrow.state_dict(), wide.state_dict())
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in narrow.parameters())


def test_channels_last_stays_channels_last() -> None:
    block = RepBlock(4, 4, branches=SEARCHABLE).to(memory_format=torch.channels_last)
    x = picture().float().contiguous(memory_format=torch.channels_last).requires_grad_()
    y = always(block, Sampling(12, share=1.0))(x)
    y.square().sum().backward()
    assert x.grad is not None
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert x.grad.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch.compile warns of its own doings
@pytest.mark.parametrize("taken", [pytest.param(None, marks=pytest.mark.exhaustive), 64])
def test_torch_compile_takes_it_whole(taken: int | None, randomise: Randomise) -> None:
    """One graph, and in it the same numbers."""
    block = randomise(RepBlock(4, 4, branches=SEARCHABLE)).double().train()
    assert isinstance(block, RepBlock)
    eager, compiled = (always(copy.deepcopy(block), Sampling(taken, share=1.0)) for _ in range(2))
    results = []
    for run, form in ((eager, eager), (torch.compile(compiled, fullgraph=True, backend="aot_eager"), compiled)):
        torch.manual_seed(4)
        x = picture(3).requires_grad_()
        y = run(x)
        y.square().sum().backward()
        gradients = {name: p.grad for name, p in form.named_parameters()}
        results.append((x, y.detach(), x.grad, gradients, form.state_dict()))
    torch.testing.assert_close(results[1], results[0], rtol=1e-9, atol=1e-9)


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without torch.distributed")
def test_two_processes_train_one_block(tmp_path: Path) -> None:
    """Each draws its own positions; weights stay equal, and those of a masked branch where they were."""
    worker = Path(__file__).with_name("train_one_of_two.py")
    processes = [subprocess.Popen([sys.executable, str(worker), str(rank), str(tmp_path)]) for rank in (0, 1)]
    assert [process.wait(120) for process in processes] == [0, 0]
    before, first, second = (
        torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("before", "after0", "after1")
    )
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    for name, value in first.items():
        assert torch.equal(value, before[name]) == ("1x3" in name.split(".")), name
