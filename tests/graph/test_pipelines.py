"""Fusing as a step of other projects' pipelines: torch's and onnx_ir's passes, and before quantisation."""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import onnxruntime as ort
import pytest
import timm
import torch
from onnx_ir.passes import Sequential, functionalize
from onnx_ir.passes.common import InlinePass, RemoveUnusedNodesPass
from onnxscript.optimizer import optimize_ir
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx.passes.infra.pass_manager import PassManager

import repconv
from repconv.benchmarks.studies.graph.networks import randomise
from repconv.errors import VerificationError
from repconv.graph import FusePass, OnnxFusePass, fuse_before_quantization
from repconv.graph.program import fuse as program_fuse
from repconv.proof.report import FusionReport

CHECKPOINT = Path(repconv.__file__).parent / "assets" / "irep_resnet_cifar10.pt"
AUTO = torch.export.Dim.AUTO


class Branches(nn.Module):
    """Two convolutions and three normalisations that are two convolutions, and a linear."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4))
        self.narrow = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.body = nn.Sequential(nn.Conv2d(4, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Hardswish())
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body((self.wide(x) + self.narrow(x)).relu()).mean((2, 3)))


def shipped() -> tuple[nn.Module, Tensor]:
    return repconv.load(CHECKPOINT).model.eval(), torch.randn(2, 3, 32, 32)


def of_timm() -> tuple[nn.Module, Tensor]:
    return randomise(timm.create_model("test_byobnet", num_classes=10)), torch.randn(2, 3, 64, 64)


NETWORKS = [
    pytest.param(lambda: (randomise(Branches()), torch.randn(2, 3, 9, 8)), 2, id="branches"),
    pytest.param(of_timm, 22, id="timm", marks=pytest.mark.slow),
    pytest.param(shipped, 15, id="shipped", marks=[pytest.mark.slow, pytest.mark.exhaustive]),
]
"""What makes a network and what it takes, and the convolutions that are left of it."""

Network = Callable[[], tuple[nn.Module, Tensor]]


def exported(model: nn.Module, x: Tensor, **options: object) -> ExportedProgram:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.export(model, (x,), **options)


def kinds(graph: torch.fx.Graph) -> Counter[str]:
    """Operations by their name, the convolutions of every number of axes together."""
    names = [str(node.target).split(".")[1] for node in graph.nodes if str(node.target).startswith("aten.")]
    return Counter("convolution" if name.startswith("conv") else name for name in names)


def norms(found: Counter[str]) -> int:
    return sum(count for kind, count in found.items() if "batch_norm" in kind)


def error(got: Any, model: nn.Module, *given: Tensor) -> float:
    """Of `got`, relative to the largest number that the model gives in float64."""
    with torch.no_grad():
        wanted = copy.deepcopy(model).double()(*(x.double() for x in given))
    return float((torch.as_tensor(got).double() - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize(("network", "convolutions"), NETWORKS)
def test_a_pass_manager_takes_the_pass(network: Network, convolutions: int) -> None:
    model, x = network()
    module = exported(model, x).module()
    before = kinds(module.graph)
    step = FusePass()
    result = PassManager([step])(module)
    after = kinds(result.graph_module.graph)
    assert result.modified
    assert norms(before) > norms(after) == 0
    assert after["convolution"] == convolutions == step.reports[0].after.convolutions
    assert step.reports[0].agreement.passed
    assert kinds(module.graph) == before, "what was given stays"
    with torch.no_grad():
        assert error(result.graph_module(x), model, x) < 1e-5


def test_a_second_run_changes_nothing() -> None:
    step = FusePass()
    result = PassManager([step], steps=3)(exported(randomise(Branches()), torch.randn(2, 3, 9, 8)).module())
    assert result.modified
    assert [bool(report.layers) for report in step.reports] == [True, False]
    again = step(result.graph_module)
    assert not again.modified
    assert again.graph_module is result.graph_module


def test_open_sizes_of_a_graph_module_stay_open() -> None:
    model, x = randomise(Branches()), torch.randn(2, 3, 9, 8)
    module = exported(model, x, dynamic_shapes=({0: AUTO, 3: AUTO},)).module()
    fused = FusePass()(module).graph_module
    other = torch.randn(5, 3, 9, 13)
    with torch.no_grad():
        assert error(fused(other), model, other) < 1e-5


def test_a_traced_module_is_fused_with_an_example() -> None:
    model, x = randomise(Branches()), torch.randn(2, 3, 9, 8)
    step = FusePass([(x,)], prove=False)
    result = step(torch.fx.symbolic_trace(model))
    assert kinds(result.graph_module.graph)["convolution"] == 2
    assert step.reports[0].agreement is None
    with torch.no_grad():
        assert error(result.graph_module(x), model, x) < 1e-5


def test_a_program_gives_a_program() -> None:
    model, x = randomise(Branches()), torch.randn(2, 3, 9, 8)
    program = exported(model, x)
    result = FusePass()(program)
    assert result.modified
    assert kinds(result.exported_program.graph)["convolution"] == 2
    again = FusePass()(result.exported_program)
    assert not again.modified
    assert again.exported_program is result.exported_program


def test_a_program_decomposed_to_core_aten_stays_so() -> None:
    model, x = randomise(Branches()), torch.randn(2, 3, 9, 8)
    program = exported(model, x).run_decompositions()
    fused = FusePass()(program).exported_program
    names = {str(node.target) for node in fused.graph.nodes if node.op == "call_function"}
    assert {"aten.convolution.default", "aten.addmm.default"} <= names
    assert not names & {"aten.conv2d.default", "aten.linear.default", "aten.hardswish.default"}
    assert kinds(fused.graph)["convolution"] == 2
    assert norms(kinds(fused.graph)) == 0
    with torch.no_grad():
        assert error(fused.module()(x), model, x) < 1e-5


class Turned(nn.Module):
    """Every way to write a product that core ATen knows, transposed convolutions of one to three axes before."""

    def __init__(self) -> None:
        super().__init__()
        self.spread = nn.ModuleList(
            nn.Sequential(kind(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2), norm(6))
            for kind, norm in (
                (nn.ConvTranspose1d, nn.BatchNorm1d),
                (nn.ConvTranspose2d, nn.BatchNorm2d),
                (nn.ConvTranspose3d, nn.BatchNorm3d),
            )
        )
        self.weight, self.square = nn.Parameter(torch.randn(6, 6)), nn.Parameter(torch.randn(6, 6))
        self.bias, self.rows = nn.Parameter(torch.randn(6)), nn.Parameter(torch.randn(2, 6))

    def forward(self, *given: Tensor) -> Tensor:
        total = sum(part(x).flatten(2).mean(2) for part, x in zip(self.spread, given, strict=True))
        total = torch.addmm(self.bias, total, self.weight.t())
        total = torch.addmm(self.bias, total, self.square) + torch.addmm(self.rows, total, self.weight.t())
        return torch.addmm(self.bias, total, self.weight.transpose(0, 1), beta=2)


def test_core_aten_is_read_as_what_it_was() -> None:
    model = randomise(Turned())
    given = tuple(torch.randn(2, 4, *[5] * axes) for axes in (1, 2, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(model, given).run_decompositions()
    fused, report = program_fuse.fuse_program(program)
    assert report.before.convolutions == report.after.convolutions == 3
    assert norms(kinds(fused.graph)) == 0
    with torch.no_grad():
        assert error(fused.module()(*given), model, *given) < 1e-5


def test_what_cannot_be_fused_is_refused_in_words() -> None:
    model, x = randomise(Branches()), torch.randn(2, 3, 9, 8)
    program = exported(model, x)
    traced = torch.fx.symbolic_trace(model)
    for given, said in (
        (program.graph_module, "takes its weights as inputs.*program.module()"),
        (traced, r"input x names no size; give an example: FusePass\(inputs=\[\(x,\)\]\)"),
        (model, "takes a graph module or an exported program, got a Branches"),
        (exported(nn.Embedding(4, 4), torch.tensor([1, 2])).module(), "is a torch.int64 tensor; give an example"),
    ):
        with pytest.raises(repconv.FusionError, match=said):
            FusePass()(given)
    with pytest.raises(repconv.FusionError, match=r"torch\.export cannot follow the graph module"):
        FusePass([(x[:, :2],)])(traced)


def test_a_wrong_result_is_not_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    again = program_fuse.export_again

    def wrong(*given: Any) -> ExportedProgram:
        program = again(*given)
        with torch.no_grad():
            next(iter(program.parameters())).mul_(1.01)
        return program

    monkeypatch.setattr(program_fuse, "export_again", wrong)
    module = exported(randomise(Branches()), torch.randn(2, 3, 9, 8)).module()
    with pytest.raises(Exception, match="running the 'FusePass' pass") as raised:
        PassManager([FusePass()])(module)
    assert isinstance(raised.value.__cause__, VerificationError)
    assert not raised.value.__cause__.report.agreement.passed


@pytest.mark.parametrize(("network", "convolutions"), NETWORKS)
def test_a_program_to_be_quantised(network: Network, convolutions: int) -> None:
    model, x = network()
    reports: list[FusionReport] = []
    program = exported(model, x)
    fused = fuse_before_quantization(program, on_report=reports.append)
    found = kinds(fused.graph)
    assert found["convolution"] == convolutions == reports[0].after.convolutions
    assert norms(found) == 0
    assert "conv2d" in {str(n.target).split(".")[1] for n in fused.graph.nodes if n.op == "call_function"}
    with torch.no_grad():
        assert error(fused.module()(x), model, x) < 1e-5
    assert fuse_before_quantization(fused) is fused


def modules(program: ExportedProgram) -> list[list[str]]:
    """The modules that each product by a weight belongs to, from the outside in."""
    return [
        [name for name, _ in (node.meta.get("nn_module_stack") or {}).values()]
        for node in program.graph.nodes
        if str(node.target) in ("aten.conv2d.default", "aten.linear.default")
    ]


def test_what_is_written_belongs_to_the_modules_it_was_made_of() -> None:
    program = exported(nn.Sequential(randomise(Branches())).eval(), torch.randn(2, 3, 9, 8))
    fused = fuse_before_quantization(program, prove=False)
    assert modules(fused) == [["", "0"], ["", "0", "0.body", "0.body.0"], ["", "0", "0.head"]]
    again = fuse_before_quantization(exported(fused.module(), torch.randn(2, 3, 9, 8)), prove=False)
    assert modules(again) == modules(fused)


def test_a_quantised_program_is_refused() -> None:
    class Rounded(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.fake_quantize_per_tensor_affine(x, 0.1, 0, -128, 127)

    with pytest.raises(
        repconv.FusionError, match=r"quantised already: 1 operations round, first fake_quant.*before prepare_pt2e"
    ):
        fuse_before_quantization(exported(Rounded(), torch.randn(3)))


# Models of onnx_ir


def ir_model(model: nn.Module, x: Tensor) -> onnx_ir.Model:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(model, (x,), dynamo=True, optimize=False, verbose=False)
    return onnx_ir.from_proto(program.model_proto)


def run(model: onnx_ir.Model, x: Tensor) -> np.ndarray:
    session = ort.InferenceSession(onnx_ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]


def operations(model: onnx_ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


@pytest.mark.parametrize(("network", "convolutions"), NETWORKS)
@pytest.mark.parametrize("first", ["fused first", "optimised first"])
def test_the_pass_beside_those_of_onnxscript(first: str, network: Network, convolutions: int) -> None:
    net, x = network()
    model = ir_model(net, x)
    assert operations(model)["BatchNormalization"] > 0
    step = OnnxFusePass()
    if first == "optimised first":
        optimize_ir(model)
    result = Sequential(InlinePass(), step, RemoveUnusedNodesPass())(model)
    assert result.model is model
    if first == "fused first":
        optimize_ir(model)
    left = operations(model)
    assert left["Conv"] == convolutions == step.reports[0].after.convolutions
    assert left["BatchNormalization"] == 0
    assert step.reports[0].agreement.passed == bool(step.reports[0].layers), "onnxscript may leave nothing to do"
    assert error(run(model, x), net, x) < 1e-5
    assert not step(model).modified


def test_a_model_can_be_kept() -> None:
    model = ir_model(randomise(Branches()), torch.randn(2, 3, 9, 8))
    before = operations(model)
    made = functionalize(OnnxFusePass(prove=False))(model)
    assert made.modified
    assert operations(model) == before
    assert operations(made.model)["Conv"] == 2


def test_weights_beside_the_file_are_read(tmp_path: Path) -> None:
    net, x = randomise(Branches()), torch.randn(2, 3, 9, 8)
    onnx_ir.save(ir_model(net, x), tmp_path / "m.onnx", external_data="m.data", size_threshold_bytes=0)
    model = onnx_ir.load(tmp_path / "m.onnx")
    assert OnnxFusePass()(model).modified
    assert error(run(model, x), net, x) < 1e-5
    broken = onnx_ir.load(tmp_path / "m.onnx")
    (tmp_path / "m.data").unlink()
    with pytest.raises(repconv.FusionError, match="cannot be written as ONNX"):
        OnnxFusePass()(broken)


def test_what_else_a_model_says_stays() -> None:
    model = ir_model(randomise(Branches()), torch.randn(2, 3, 9, 8))
    model.metadata_props["labels"] = "a,b"
    model.graph.name = "network"
    names = [[v.name for v in side] for side in (model.graph.inputs, model.graph.outputs)]
    opsets = dict(model.opset_imports)
    OnnxFusePass(prove=False)(model)
    assert model.metadata_props["labels"] == "a,b"
    assert model.graph.name == "network"
    assert [[v.name for v in side] for side in (model.graph.inputs, model.graph.outputs)] == names
    assert dict(model.opset_imports) == opsets
    onnx.checker.check_model(onnx_ir.to_proto(model))
