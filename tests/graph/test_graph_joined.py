"""What scales or shifts joined channels, as a part of what makes each of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import onnx
import pytest
import torch
from torch import Tensor, nn

from repconv.graph import fuse_onnx, fuse_program
from repconv.graph.onnx.nodes import label

Randomise = Callable[[nn.Module], nn.Module]


class Joined(nn.Module):
    """Convolutions of pieces of an input that are joined, and what follows before the activation."""

    def __init__(self, follows: str, *, pixels: int = 2, widths: Sequence[int] = (6, 10), reads: str = "") -> None:
        super().__init__()
        convolution = {1: nn.Conv1d, 2: nn.Conv2d}[pixels]
        self.parts = nn.ModuleList(convolution(4, o, 2 * k + 1, padding=k) for k, o in enumerate(widths, 1))
        self.bn = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d}[pixels](sum(widths))
        shape = (1, sum(widths), *(1,) * pixels)
        self.scale, self.shift = (nn.Parameter(torch.rand(shape) + 0.5) for _ in range(2))
        self.follows, self.reads = follows, reads

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        made = [part(piece) for part, piece in zip(self.parts, x.relu().chunk(len(self.parts), 1), strict=True)]
        y = joined = torch.cat(made, 1)
        for each in self.follows.split():
            y = {
                "norm": self.bn, "scale": lambda y: y * self.scale, "shift": lambda y: self.shift - y,
                "number": lambda y: 0.5 * y + 0.25,
            }[each](y)  # fmt: skip
        beside = {"": (), "part": (made[0],), "joined": (joined,)}[self.reads]
        return (y.relu(), *(other.sigmoid() for other in beside)) if beside else y.relu()


Build = Callable[[], Joined]

CASES = [
    pytest.param(partial(Joined, "norm"), id="norm"),
    pytest.param(partial(Joined, "norm scale number shift"), id="a chain"),
    pytest.param(partial(Joined, "scale norm", widths=(3, 5, 8)), id="three parts"),
    pytest.param(partial(Joined, "shift norm", pixels=1), id="signals"),
]
STAY = [
    pytest.param(partial(Joined, "norm", reads="part"), id="a part is read elsewhere"),
    pytest.param(partial(Joined, "norm", reads="joined"), id="what is joined is read elsewhere"),
]


def example(network: Joined) -> Tensor:
    pixels = network.scale.dim() - 2
    return torch.randn(2, 4 * len(network.parts), *(9, 8)[:pixels])


def exported(network: Joined) -> onnx.ModelProto:
    return torch.onnx.export(network, (example(network),), dynamo=True, verbose=False).model_proto


def kinds(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


@pytest.mark.parametrize("build", CASES)
def test_it_is_a_part_of_every_convolution_of_an_onnx_model(build: Build, randomise: Randomise) -> None:
    network = randomise(build()).eval()
    given = exported(network)
    model, report = fuse_onnx(given)
    assert report.agreement is not None
    assert report.agreement.passed
    left = [kind for kind in kinds(model) if kind not in ("Split", "Constant")]
    assert left == ["Relu", *["Conv"] * len(network.parts), "Concat", "Relu"]
    told = {name for each in report.refusals for name in (each.where, *each.beside)}
    authored = {label(node) for node in given.graph.node}
    assert told | {name for layer in report.layers for name in layer.branches} <= authored


@pytest.mark.parametrize("decomposed", [False, True])
@pytest.mark.parametrize("build", CASES)
def test_it_is_a_part_of_every_convolution_of_a_program(build: Build, decomposed: bool, randomise: Randomise) -> None:
    network = randomise(build()).eval()
    program = torch.export.export(network, (example(network),))
    program = program.run_decompositions() if decomposed else program
    fused, report = fuse_program(program)
    assert report.agreement is not None
    assert report.agreement.passed
    left = {str(node.target).split(".")[1] for node in fused.graph.nodes if str(node.target).startswith("aten.")}
    assert left <= {"relu", "split", "split_with_sizes", "chunk", "conv1d", "conv2d", "convolution", "cat"}


@pytest.mark.parametrize("build", STAY)
def test_it_stays_where_somebody_else_reads_on_the_way(build: Build, randomise: Randomise) -> None:
    network = randomise(build()).eval()
    model, _ = fuse_onnx(exported(network))
    assert kinds(model).count("BatchNormalization") == 1
    fused, _ = fuse_program(torch.export.export(network, (example(network),)))
    assert sum("batch_norm" in str(node.target) for node in fused.graph.nodes) == 1
