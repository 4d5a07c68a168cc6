"""Fusing proves itself: what is compared, what is said not to be, and that nothing wrong is handed out."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

import repconv
from repconv import VerificationError, fusing
from repconv.blocks.block import RepBlock
from repconv.export.from_source import FuseSettings, fuse_source
from repconv.graph import fuse_onnx, fuse_program
from repconv.graph.onnx import fuse as onnx_model
from repconv.graph.onnx.writer import Nodes
from repconv.graph.program import writer as exported_program
from repconv.proof.report import FusionReport

Damage = Callable[[nn.Conv2d], None]


def scaled(conv: nn.Conv2d) -> None:
    conv.weight.mul_(1.05)


def shifted(conv: nn.Conv2d) -> None:
    assert conv.bias is not None
    conv.bias[0] += conv.weight.abs().sum()


def swapped(conv: nn.Conv2d) -> None:
    conv.weight[[0, 1]] = conv.weight[[1, 0]]


DAMAGES: dict[str, Damage] = {"weights 5 % off": scaled, "a bias off": shifted, "channels swapped": swapped}


def blocks(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    model = repconv.create_model("repvgg_resnet18", width=4, blocks=(1, 1))
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            with torch.no_grad():
                part.running_mean.normal_()
                part.running_var.uniform_(0.5, 2)
    return model.eval().to(dtype)


class Branches(nn.Module):
    """Somebody else's: a 3x3 and a 1x1 branch with a normalisation each, added."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.Conv2d(3, 4, 1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norms[0](self.first(x)) + self.norms[1](self.second(x)))


def foreign() -> nn.Module:
    torch.manual_seed(0)
    return Branches().eval()


def image(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.fixture
def damaged_blocks(monkeypatch: pytest.MonkeyPatch) -> Callable[[Damage], None]:
    """What every fold casts is spoilt, once in each result."""

    def spoil(damage: Damage) -> None:
        honest = fusing.fuse_blocks

        def wrong(model: nn.Module, *rest: object) -> tuple[nn.Module, FusionReport]:
            fused, report = honest(model, *rest)  # type: ignore[arg-type]
            with torch.no_grad():
                damage(next(m for m in fused.modules() if isinstance(m, nn.Conv2d)))
            return fused, report

        monkeypatch.setattr(fusing, "fuse_blocks", wrong)

    return spoil


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("given", [(), (image(),)], ids=["alone", "with an example"])
def test_a_right_fold_holds_its_proof(given: tuple[Tensor, ...], dtype: torch.dtype) -> None:
    model = blocks(dtype)
    _, report = repconv.fuse(model, *(x.to(dtype) for x in given))
    assert report.agreement is not None
    assert report.agreement.passed
    assert {c.where for c in report.agreement.blocks} >= {layer.name for layer in report.layers}
    assert report.agreement.end_to_end
    assert not report.unmeasured


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("given", [(), (image(),)], ids=["alone", "with an example"])
def test_a_wrong_fold_of_blocks_is_an_error_with_the_report(
    given: tuple[Tensor, ...], damage: str, damaged_blocks: Callable[[Damage], None]
) -> None:
    damaged_blocks(DAMAGES[damage])
    with pytest.raises(VerificationError, match="NOT equal") as caught:
        repconv.fuse(blocks(), *given)
    report = caught.value.report
    assert isinstance(report, FusionReport)
    assert report.agreement is not None
    assert [c.where for c in report.agreement.blocks if not c.passed] == ["stem"]
    assert "NOT equal" in str(report)
    assert pickle.loads(pickle.dumps(caught.value)).report == report  # noqa: S301  # our own


@pytest.mark.parametrize("given", [(), (image(),)], ids=["alone", "with an example"])
def test_unproved_is_asked_for_and_said(
    given: tuple[Tensor, ...], damaged_blocks: Callable[[Damage], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged_blocks(scaled)
    monkeypatch.setattr(nn.Module, "double", None)  # no reference is made
    _, report = repconv.fuse(blocks(), *given, prove=False)
    assert report.agreement is None
    assert [refusal.why for refusal in report.unmeasured] == ["not compared with what it was made of: prove=False"]
    assert "prove=False" in str(report)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_blocks_of_an_unknown_network_are_proved_one_by_one(
    dtype: torch.dtype, damaged_blocks: Callable[[Damage], None]
) -> None:
    model = nn.Sequential(RepBlock(3, 4, stride=2), nn.ReLU(), RepBlock(4, 4)).eval().to(dtype)
    _, report = repconv.fuse(model)
    assert report.agreement is not None
    assert [c.where for c in report.agreement.blocks] == ["0", "2"]
    assert not report.agreement.end_to_end
    assert ["repconv.fuse(model, x)" in refusal.why for refusal in report.unmeasured] == [True]
    damaged_blocks(shifted)
    with pytest.raises(VerificationError):
        repconv.fuse(model)


def test_somebody_elses_network_without_an_example_is_not_passed_over_in_silence() -> None:
    with pytest.warns(UserWarning, match=r"nothing was fused: not looked at: 2 convolutions and 2 batch norm") as seen:
        fused, report = repconv.fuse(foreign())
    assert seen[0].filename == __file__
    assert [refusal.where for refusal in report.refusals] == ["Branches"]
    assert "repconv.fuse(model, x)" in report.refusals[0].why
    assert type(fused) is Branches
    mixed = nn.Sequential(RepBlock(3, 3), foreign()).eval()
    _, report = repconv.fuse(mixed)
    assert [refusal.why[:42] for refusal in report.refusals] == ["not looked at: 2 convolutions and 2 batch n"[:42]]


def test_a_wrong_program_is_an_error_with_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = exported_program._held

    def wrong(module: torch.fx.GraphModule, name: str, value: Tensor, like: Tensor) -> torch.fx.Node:
        return honest(module, name, value * 1.05, like)

    program, x = fusing.exported_program(foreign(), image()), image()
    assert fuse_program(program)[1].agreement.passed  # type: ignore[union-attr]
    monkeypatch.setattr(exported_program, "_held", wrong)
    for call in (lambda: fuse_program(program), lambda: repconv.fuse(foreign(), x)):
        with pytest.raises(VerificationError, match="NOT equal") as caught:
            call()
        assert not caught.value.report.agreement.passed
    assert fuse_program(program, prove=False)[1].agreement is None


def branches_onnx(shape: list[int | str]) -> onnx.ModelProto:
    draw = np.random.default_rng(0).standard_normal
    weights = {"w3": draw((4, 3, 3, 3)), "w1": draw((4, 3, 1, 1))}
    nodes = [
        helper.make_node("Conv", ["x", "w3"], ["a"], "conv3", pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["x", "w1"], ["b"], "conv1"),
        helper.make_node("Add", ["a", "b"], ["c"], "add"),
        helper.make_node("Relu", ["c"], ["y"], "relu"),
    ]
    graph = helper.make_graph(
        nodes,
        "branches",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [shape[0], 4, *shape[2:]])],
        [numpy_helper.from_array(w.astype(np.float32), name) for name, w in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("shape", [[1, 3, 8, 8], ["n", 3, "h", "w"]], ids=["fixed", "open"])
def test_a_wrong_onnx_model_is_an_error_with_the_report(
    shape: list[int | str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = branches_onnx(shape)
    _, report = fuse_onnx(model)
    assert report.agreement is not None
    assert report.agreement.passed
    assert len(report.agreement.blocks) == 1
    honest = onnx_model.emit

    def wrong(*given: object, **options: object) -> Nodes:
        made = honest(*given, **options)  # type: ignore[arg-type]
        for tensor in made.weights:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.05), tensor.name))
        return made

    monkeypatch.setattr(onnx_model, "emit", wrong)
    with pytest.raises(VerificationError, match="NOT equal") as caught:
        fuse_onnx(model)
    assert not caught.value.report.agreement.passed
    feeds = [{"x": np.zeros((1, 3, 8, 8), np.float32)}]
    with pytest.raises(VerificationError, match="1 of 2 comparisons failed"):
        fuse_onnx(model, feeds)  # zeros show nothing end to end; what is proven of a region holds for all inputs
    assert fuse_onnx(model, prove=False)[1].unmeasured[0].why.endswith("prove=False")


def test_an_onnx_model_that_does_not_run_on_drawn_inputs_says_so_and_takes_others() -> None:
    model = branches_onnx([1, 3, "h", "w"])
    size = numpy_helper.from_array(np.array([1, 4, 9 * 7], np.int64), "size")  # only 9 x 7 pixels fit
    model.graph.initializer.append(size)
    model.graph.node.append(helper.make_node("Reshape", ["y", "size"], ["z"], "reshape"))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("z", TensorProto.FLOAT, [1, 4, 63]))
    _, report = fuse_onnx(model)
    assert report.layers
    assert report.agreement.passed  # type: ignore[union-attr]
    assert not report.agreement.end_to_end  # type: ignore[union-attr]
    assert "feeds=" in report.unmeasured[0].why
    _, report = fuse_onnx(model, [{"x": np.ones((1, 3, 9, 7), np.float32)}])
    assert report.agreement.passed  # type: ignore[union-attr]
    assert not report.unmeasured


class MakesFloat32(nn.Module):
    """Multiplies by a float32 tensor that it makes as it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.block = RepBlock(3, 3)
        self.mix = nn.Parameter(torch.randn(16, 16))

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x) @ (torch.eye(16) @ self.mix.float()).to(torch.float32)


class OnlyFloat32(MakesFloat32):
    """Refuses all else."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype != torch.float32:
            raise TypeError("float32 only, please")
        return super().forward(x)


def test_a_network_that_makes_float32_tensors_runs_in_float64_all_the_same() -> None:
    _, report = fusing.fuse_modules(MakesFloat32().eval(), [image()])
    assert report.agreement is not None
    assert [c.dtype for c in report.agreement.end_to_end] == ["float64", "float32"]
    assert report.agreement.passed
    assert not report.unmeasured


def test_a_network_that_does_not_run_in_float64_is_its_own_reference_and_that_is_said() -> None:
    _, report = fusing.fuse_modules(OnlyFloat32().eval(), [image()])
    assert report.agreement is not None
    assert report.agreement.passed
    assert len(report.agreement.end_to_end) == 1
    assert ["does not run in float64" in refusal.why for refusal in report.unmeasured] == [True]


class ThenOne(nn.Module):
    """A block and a 1x1 convolution with nothing between: the block's convolution goes on folding in the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.last = RepBlock(3, 4), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.block(x))


def test_blocks_that_go_on_folding_in_the_graph_are_rounded_once() -> None:
    model, x = ThenOne().eval(), image()
    program, report = repconv.fuse(model, x)
    assert report.after.convolutions == 1
    assert report.before.convolutions == sum(isinstance(m, nn.Conv2d) for m in model.modules())
    exact = model.block.kernel()
    outer = model.last.weight.double()[:, :, 0, 0]
    wanted = torch.einsum("oc,cikl->oikl", outer, exact.weight).float()
    weight = next(p for p in program.parameters() if p.dim() == 4)
    assert torch.equal(weight, wanted)
    assert len(report.layers) == 1


def lines() -> Iterator[FusionReport]:
    yield repconv.fuse(blocks())[1]
    yield repconv.fuse(blocks(), image(), prove=False)[1]
    yield repconv.fuse(foreign(), image())[1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield repconv.fuse(foreign())[1]


def test_a_report_prints_as_a_summary() -> None:
    for report in lines():
        text = str(report)
        assert len(text.splitlines()) <= 15
        assert max(map(len, text.splitlines())) <= 116
        assert f"{report.before.convolutions} -> {report.after.convolutions}" in text
        assert f"{report.before.parameters:,} -> {report.after.parameters:,}" in text
        assert len(repr(report).splitlines()) == 1
        assert len(repr(report)) < 120
    shown = str(repconv.fuse(blocks())[1])
    assert "the source's own error" in shown
    assert shown.count("worst ") == 2


def test_a_report_in_a_notebook_is_a_table_with_every_name_escaped() -> None:
    refusals = tuple(repconv.Refusal(f"<b>{i}", f"why {i}: <script>") for i in range(5))
    _, report = repconv.fuse(blocks(), prove=False)
    shown = FusionReport(report.layers, refusals, report.before, report.after)._repr_html_()
    assert shown.startswith("<table>")
    assert "<script>" not in shown
    assert "&lt;script&gt;" in shown
    assert "4 more" in shown


def test_one_function_makes_every_format_of_a_module_and_leaves_it_alone() -> None:
    model = blocks()
    state = copy.deepcopy(model.state_dict())
    for suffix, kind in ((".pt", nn.Module), (".onnx", onnx.ModelProto), (".pt2", torch.export.ExportedProgram)):
        fused = fuse_source(model, suffix, FuseSettings((3, 16, 16)))
        assert isinstance(fused.model, kind)
        assert fused.report.agreement is not None
        assert fused.report.agreement.passed
    with pytest.raises(repconv.SourceError, match="records no shape of its input"):
        fuse_source(model, ".pt")
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
