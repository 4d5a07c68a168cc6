"""AmoebaNets of the paper's tables: the published counts, shapes, and what a cell computes."""

from __future__ import annotations

import pytest
import torch

from repconv.benchmarks.paper.published.amoebanet import AMOEBANET_OPERATIONS, AmoebaCell, AmoebaNet
from repconv.benchmarks.paper.published.amoebanet_cells import AMOEBANET_A_CELLS, AMOEBANET_B_CELLS
from repconv.benchmarks.paper.published.genotypes import CellPlan
from repconv.benchmarks.studies.graph.graph_counts import flops
from repconv.errors import GeometryError

AMOEBANETS = [
    (AMOEBANET_A_CELLS, "cifar", 6, 32, 32, 2.6, None), (AMOEBANET_A_CELLS, "cifar", 6, 36, 32, 3.2, None),
    (AMOEBANET_A_CELLS, "imagenet", 4, 50, 224, 5.1, 555), (AMOEBANET_B_CELLS, "imagenet", 3, 62, 224, 5.3, 555),
    (AMOEBANET_A_CELLS, "imagenet", 6, 190, 331, 86.7, 23_100),
]  # fmt: skip
"""Stem, N, F, the image's side, millions of parameters and of multiply-adds: Real et al. (2019), DARTS' Table 3."""


@pytest.mark.parametrize(("genotype", "stem", "repeats", "width", "side", "millions", "operations"), AMOEBANETS)
def test_amoebanets_have_the_published_parameters_and_multiply_adds(
    genotype, stem, repeats, width, side, millions, operations
):
    classes = 1000 if stem == "imagenet" else 10
    with torch.device("meta"):
        net = AmoebaNet(genotype, stem=stem, repeats=repeats, width=width, num_classes=classes).eval()
        counted = None if operations is None else flops(net, torch.empty(1, 3, side, side)) / 2e6
    assert round(sum(parameter.numel() for parameter in net.parameters()) / 1e6, 1) == pytest.approx(millions)
    digits = -2 if side == 331 else 0  # 23.1 B
    assert counted is None or round(counted, digits) == operations


@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
@pytest.mark.parametrize("genotype", [AMOEBANET_A_CELLS, AMOEBANET_B_CELLS])
def test_an_amoebanet_gives_logits_of_images_of_any_side(genotype, stem):
    net = AmoebaNet(genotype, stem=stem, repeats=1, width=18, num_classes=7).eval()
    with torch.inference_mode():
        for side in (32, 45):
            assert net(torch.randn(2, 3, side, side)).shape == (2, 7)


@pytest.mark.parametrize("arguments", [{"stem": "mnist"}, {"repeats": 0}, {"stem": "imagenet", "width": 12}])
def test_an_amoebanet_that_cannot_be_is_refused(arguments):
    with pytest.raises(GeometryError, match="an AmoebaNet"):
        AmoebaNet(AMOEBANET_A_CELLS, **arguments)


@pytest.mark.parametrize("kind", AMOEBANET_OPERATIONS)
@pytest.mark.parametrize("side", [8, 9])
def test_an_operation_of_amoebanet_halves_and_changes_channels(kind, side):
    y = AMOEBANET_OPERATIONS[kind](6, 8, 2).eval()(torch.randn(2, 6, side, side))
    assert y.shape == (2, 8, (side + 1) // 2, (side + 1) // 2)


def test_a_cell_of_amoebanet_concatenates_an_input_too():
    torch.manual_seed(0)
    plan = CellPlan(((("skip_connect", 0), ("skip_connect", 1)), (("conv_1x1", 2), ("skip_connect", 2))), (0, 3))
    a, b = torch.randn(1, 3, 4, 4), torch.randn(1, 5, 4, 4)
    cell = AmoebaCell(plan, (3, 5), 4, halves=False, after_reduction=False, begins=False).eval()
    first, second = cell.first(a), cell.second(b)
    end = cell.operations[2](first + second) + first + second
    assert torch.allclose(cell(a, b), torch.cat([first, end], 1), atol=1e-6)
    begins = AmoebaCell(plan, (5, 5), 4, halves=False, after_reduction=False, begins=True).eval()
    assert torch.equal(begins(b, b)[:, :4], begins.ends[0](b))
