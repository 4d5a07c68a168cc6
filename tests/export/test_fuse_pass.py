"""`FusePass` as ExecuTorch and torchao call it: in the edge dialect, and before quantisation."""

from __future__ import annotations

import copy
from collections import Counter
from importlib import import_module

import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from repconv.benchmarks.studies.graph.networks import randomise
from repconv.errors import FusionError
from repconv.graph import FusePass, fuse_before_quantization

pytestmark = [pytest.mark.edge("executorch"), pytest.mark.filterwarnings("ignore")]


class Branched(nn.Module):
    """Three convolutions and normalisations that are two convolutions, what a partitioner keeps whole, and a linear."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.narrow = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8))
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Hardswish())
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body((self.wide(x) + self.narrow(x)).relu()).mean((2, 3)))


@pytest.fixture
def given() -> tuple[nn.Module, Tensor, ExportedProgram]:
    model, x = randomise(Branched()), torch.randn(2, 3, 9, 8)
    return model, x, torch.export.export(model, (x,))


def kinds(program: ExportedProgram) -> Counter[str]:
    """Operations of a program in the edge dialect, in its delegates, too."""
    graphs = [program.graph_module]
    for _, part in program.graph_module.named_children():
        if hasattr(part, "original_module"):
            graphs.append(part.original_module.graph_module)
    targets = [node.target for graph in graphs for node in graph.graph.nodes if node.op == "call_function"]
    assert all(hasattr(t, "_op") or "aten" not in str(t) for t in targets), "whole in the edge dialect"
    return Counter(str(target._op).split(".")[1] for target in targets if hasattr(target, "_op"))


def error(content: bytes, model: nn.Module, x: Tensor) -> float:
    method = import_module("executorch.runtime").Runtime.get().load_program(content).load_method("forward")
    with torch.no_grad():
        wanted = copy.deepcopy(model).double()(x.double())
    return float((method.execute([x])[0].double() - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("delegated", [True, False])
def test_it_is_one_of_transform_passes(delegated: bool, given) -> None:
    model, x, program = given
    exir = import_module("executorch.exir")
    xnnpack = import_module("executorch.backends.xnnpack.partition.xnnpack_partitioner")
    step = FusePass()
    partitioner = [xnnpack.XnnpackPartitioner()] if delegated else []
    edge = exir.to_edge_transform_and_lower(program, transform_passes=[step], partitioner=partitioner)
    found = kinds(edge.exported_program())
    assert found["convolution"] == step.reports[0].after.convolutions == 2
    assert found["_native_batch_norm_legit_no_training"] == 0
    assert found["hardswish"] == delegated, "what the partitioner keeps whole stays so"
    assert step.reports[0].agreement.passed
    assert error(edge.to_executorch().buffer, model, x) < 1e-5


def test_it_transforms_an_edge_program_once(given) -> None:
    model, x, program = given
    exir = import_module("executorch.exir")
    edge = exir.to_edge(program)
    step = FusePass()
    fused = edge.transform([step])
    assert kinds(edge.exported_program())["_native_batch_norm_legit_no_training"] == 3, "what was given stays"
    assert kinds(fused.exported_program())["_native_batch_norm_legit_no_training"] == 0
    assert kinds(fused.exported_program())["convolution"] == 2
    again = step(fused.exported_program())
    assert not again.modified
    assert again.exported_program is fused.exported_program()
    assert error(fused.to_executorch().buffer, model, x) < 1e-5


def test_what_was_fused_is_quantised_and_found_by_its_module(given) -> None:
    model, x, program = given
    way = import_module("executorch.backends.xnnpack.quantizer.xnnpack_quantizer")
    steps = import_module("torchao.quantization.pt2e.quantize_pt2e")
    belongs = import_module("torchao.quantization.pt2e.quantizer.utils").get_module_name_filter("body")
    quantizer = way.XNNPACKQuantizer().set_global(way.get_symmetric_quantization_config(is_per_channel=True))
    fused = fuse_before_quantization(program)
    assert [belongs(node) for node in products(fused.module())] == [False, True, False]
    prepared = steps.prepare_pt2e(fused.module(), quantizer)
    prepared(x)
    made = steps.convert_pt2e(prepared)
    assert ["dequantize" in str(node.args[1].target) for node in products(made)] == [True] * 3
    with torch.no_grad():
        assert float((made(x) - model(x)).abs().max() / model(x).abs().max()) < 0.05
    with pytest.raises(FusionError, match=r"quantised already: .* operations round"):
        fuse_before_quantization(torch.export.export(made, (x,)))


def products(module: torch.fx.GraphModule) -> list[torch.fx.Node]:
    kinds = ("aten.conv2d.default", "aten.linear.default")
    return [node for node in module.graph.nodes if str(node.target) in kinds]
