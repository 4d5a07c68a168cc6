"""The paper's tables and figures: networks of cells, bad arguments, and pages that are what the JSON gives."""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from repconv.benchmarks.paper import architectures, document, figure2, figure3, inference
from repconv.benchmarks.paper.inference_tables import inference_tables
from repconv.benchmarks.paper.published.amoebanet import AMOEBANET_OPERATIONS
from repconv.benchmarks.paper.published.amoebanet_cells import AMOEBANET_A_CELLS, AMOEBANET_B_CELLS
from repconv.benchmarks.paper.published.cells import (
    OPERATIONS,
    Cell,
    CellNetwork,
    FactorizedReduction,
    cifar_network,
    imagenet_network,
)
from repconv.benchmarks.paper.published.genotypes import DARTS_V2, GENOTYPES, CellPlan
from repconv.benchmarks.paper.published.tables import FAITHFUL, IMPOSSIBLE, SCALED, TABLE_2, TABLE_3
from repconv.benchmarks.paper.sessions import measured
from repconv.benchmarks.studies.common import RESULTS, ROOT, command_of
from repconv.benchmarks.studies.graph import peers, peers_table
from repconv.errors import GeometryError

COUNTS = [
    (cifar_network, "darts_v2", 3.3), (cifar_network, "p_darts", 3.4), (cifar_network, "cars_i", 3.6),
    (imagenet_network, "darts_v2", 4.7), (imagenet_network, "p_darts", 4.9), (imagenet_network, "cars_i", 5.1),
]  # fmt: skip
"""Millions of parameters as their authors, and the paper, print them."""


@pytest.mark.parametrize(("make", "name", "millions"), COUNTS)
def test_networks_of_cells_have_the_published_number_of_parameters(make, name, millions):
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in make(GENOTYPES[name]).parameters())
    assert round(count / 1e6, 1) == pytest.approx(millions)


def test_the_second_order_cells_of_darts_have_exactly_what_its_code_prints():
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in cifar_network(DARTS_V2).parameters()) == 3_349_342


@pytest.mark.parametrize(
    ("genotype", "operations"),
    [
        *((genotype, OPERATIONS) for genotype in GENOTYPES.values()),
        (AMOEBANET_A_CELLS, AMOEBANET_OPERATIONS),
        (AMOEBANET_B_CELLS, AMOEBANET_OPERATIONS),
    ],
)
def test_an_operation_reads_what_came_before_it(genotype, operations):
    for plan in (genotype.normal, genotype.reduction):
        for i, pair in enumerate(plan.pairs):
            assert all(kind in operations and 0 <= state < 2 + i for kind, state in pair)
        read = {state for pair in plan.pairs for _, state in pair}
        assert set(plan.concatenated) | read >= set(range(2 + len(plan.pairs)))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kind", OPERATIONS)
def test_an_operation_keeps_channels_and_divides_the_image_by_its_stride(kind, stride):
    y = OPERATIONS[kind](4, stride).eval()(torch.randn(2, 4, 8, 12))
    assert y.shape == (2, 4, 8 // stride, 12 // stride)


@pytest.mark.parametrize(("sides", "channels"), [((6, 8), 4), ((7, 8), 5), ((5, 5), 4)])
def test_a_factorised_reduction_sees_even_and_odd_pixels(sides, channels):
    torch.manual_seed(0)
    reduction, x = FactorizedReduction(3, channels).eval(), torch.randn(2, 3, *sides)
    nn.init.normal_(reduction.norm.running_mean)
    beyond = functional.pad(x.relu(), (0, sides[1] % 2, 0, sides[0] % 2))
    halves = [
        functional.conv2d(beyond[:, :, start::2, start::2], conv.weight)
        for start, conv in enumerate((reduction.even, reduction.odd))
    ]
    assert torch.allclose(reduction(x), reduction.norm(torch.cat(halves, 1)), atol=1e-6)


def test_a_cell_adds_pairs_and_concatenates_sums():
    torch.manual_seed(0)
    plan = CellPlan(((("skip_connect", 0), ("skip_connect", 1)), (("skip_connect", 2), ("skip_connect", 0))), (3, 2))
    cell = Cell(plan, (3, 5), 4, halves=False, after_reduction=False).eval()
    a, b = torch.randn(1, 3, 4, 4), torch.randn(1, 5, 4, 4)
    first, second = cell.first(a), cell.second(b)
    assert torch.allclose(cell(a, b), torch.cat([2 * first + second, first + second], 1), atol=1e-6)


@pytest.mark.parametrize(("stem", "side"), [("cifar", 16), ("imagenet", 64)])
def test_a_network_of_cells_gives_logits(stem, side):
    net = CellNetwork(GENOTYPES["amoebanet_a"], stem=stem, cells=4, width=4, num_classes=7).eval()
    with torch.inference_mode():
        assert net(torch.randn(2, 3, side, side)).shape == (2, 7)


@pytest.mark.parametrize("arguments", [{"stem": "mnist"}, {"cells": 2}, {"width": 5}])
def test_a_network_of_cells_that_cannot_be_is_refused(arguments):
    with pytest.raises(GeometryError, match="a network of cells"):
        CellNetwork(DARTS_V2, **arguments)


def test_what_the_text_tells_of_the_searched_network_is_half_of_its_space():
    space = architectures.imagenet_space()
    kept = architectures.searched_resnet50(space)
    assert kept.size == space.budget(1 / 2)
    counts = [(len(kept.active[block.name]), len(block.searchable)) for block in space.blocks]
    assert all(on == of for on, of in counts[:7])
    assert counts[7][0] == counts[7][1] - 1
    assert [on for on, _ in counts[8:]] == [1, *[0] * 7]


def test_every_row_of_the_paper_has_a_network_or_a_reason():
    known = inference.names()
    for row in (*TABLE_2, *TABLE_3):
        assert row.verdict in (FAITHFUL, SCALED, IMPOSSIBLE)
        assert row.verdict == FAITHFUL or row.why
        assert (row.network is None) == (row.verdict == IMPOSSIBLE)
        assert row.network is None or row.network in known


def result(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def test_the_page_is_what_the_results_give():
    assert document.PAGE.read_text(encoding="utf-8") == document.page(document.read_results())


def test_the_page_of_peers_is_what_the_results_give():
    text = (ROOT / "docs" / "peers.md").read_text(encoding="utf-8")
    assert text == peers_table.page(result("peers"))


def test_pictures_of_the_page_are_there():
    text = document.PAGE.read_text(encoding="utf-8")
    pictures = [line.partition("](")[2].rstrip(")") for line in text.splitlines() if line.startswith("![")]
    assert len(pictures) == (4 if (RESULTS / "paper_figure3.json").exists() else 3)
    for name in pictures:
        assert 0 < (document.PAGE.parent / name).stat().st_size < 300_000


@pytest.mark.parametrize(
    ("name", "schema"),
    [
        ("paper_inference", inference.SCHEMA), ("paper_architectures", architectures.SCHEMA),
        ("paper_figure2", figure2.SCHEMA), ("peers", peers.SCHEMA),
    ],
)  # fmt: skip
def test_a_result_names_its_schema_and_command(name, schema):
    content = result(name)
    assert content["schema"] == schema
    assert (ROOT / command_of(content).split()[1]).is_file()


def test_inference_holds_networks_of_the_tables_in_both_forms():
    content = result("paper_inference")
    assert set(measured(content)) <= set(inference.names())
    rounds = {row["network"]: s["rounds"] for s in (content, *content.get("added", ())) for row in s["rows"]}
    for row in (row for s in (content, *content.get("added", ())) for row in s["rows"]):
        for runtime in ("torch", "onnxruntime"):
            found = row["latency"][runtime]
            assert len(found["samples_s"]["unfused"]) == len(found["samples_s"]["fused"]) == rounds[row["network"]]
            for key in ("unfused_over_fused", "unfused_over_reference"):
                assert found[key]["low"] <= found[key]["value"] <= found[key]["high"]
        if row["network"] in inference.OURS["cifar10"]:
            assert row["fused"]["convolutions"] == (13 if "vgg" in row["network"] else 20)


def test_a_network_that_is_not_measured_yet_says_so():
    content = result("paper_inference")
    lacking = [row for row in (*TABLE_2, *TABLE_3) if row.network and row.network not in measured(content)]
    lines = [line for line in inference_tables(content).splitlines() if "not measured yet" in line]
    assert [line.split(" | ")[0].removeprefix("| ") for line in lines] == [row.name for row in lacking]


@pytest.fixture
def clockless(monkeypatch):
    """What `inference.py` is asked to measure, in place of measuring it."""
    asked = []
    latency = {
        runtime: {"unfused_ms": 2.0, "fused_ms": 1.0, "samples_s": {"unfused": [2e-3] * 9, "fused": [1e-3] * 9}}
        for runtime in ("torch", "onnxruntime")
    }

    def latencies(networks, rounds):  # noqa: ARG001  # as it is called
        asked.append([network.name for network in networks])
        return {network.name: latency for network in networks}

    def build(name, data):
        return inference.Network(
            name=name, data=data, model=nn.Identity(), fused=nn.Identity(), files={}, x=torch.ones(1)
        )

    monkeypatch.setattr(inference, "latencies", latencies)
    monkeypatch.setattr(inference, "build", build)
    form = {"parameters": 1, "multiply_adds": 1, "convolutions": 1}
    monkeypatch.setattr(
        inference, "unclocked", lambda one: {"network": one.name, "data": one.data, "unfused": form, "fused": form}
    )
    monkeypatch.setattr(inference, "parameter_counts", list)
    return asked


def test_keep_measures_what_is_missing_beside_the_reference_and_touches_nothing_else(tmp_path, monkeypatch, clockless):
    output = tmp_path / "found.json"

    def main(*arguments):
        monkeypatch.setattr(sys, "argv", ["inference.py", "--output", str(output), *arguments])
        inference.main()
        return json.loads(output.read_text(encoding="utf-8"))

    known = list(inference.names())
    late = ["p_darts", "cars_i_imagenet", "amoebanet_b_n3_f62"]
    first = main("--networks", ",".join(name for name in known if name not in late))
    clockless.clear()
    content = main("--keep")
    assert clockless == [["irep_resnet18", "p_darts"], ["irep_resnet50", "cars_i_imagenet", "amoebanet_b_n3_f62"]]
    added = content.pop("added")
    assert content == first
    assert [len(session["rows"]) for session in added] == [5]
    again = main("--keep")
    assert again == first | {"added": added}
    assert len(clockless) == 2
    found = measured(again)
    assert set(found) == set(known)
    assert set(found["p_darts"].session) == {"irep_resnet18", "irep_resnet50", *late}
    assert set(found["irep_resnet18"].session) == set(known) - set(late)
    text = inference_tables(again)
    assert "not measured yet" not in text
    assert "`p_darts`, `cars_i_imagenet`, `amoebanet_b_n3_f62`: measured later, in turns with the IRep" in text


def test_a_peer_has_numbers_or_a_reason():
    for network in result("peers")["networks"]:
        assert {row["tool"] for row in network["rows"]} == {*peers.TOOLS, peers.OPENVINO}
        for row in network["rows"]:
            assert ("reason" in row) != ("convolutions" in row)


@pytest.mark.parametrize(
    ("script", "arguments", "says"),
    [
        (inference, ["--networks", "vgg16,lenet"], "no network lenet; they are vgg16,"),
        (inference, ["--rounds", "0"], "expected a whole number of at least 1, got '0'"),
        (peers, ["--models", "lenet"], "no network lenet; they are repconv:irep_resnet18,"),
        (peers, ["--rounds", "many"], "expected a whole number of at least 1, got 'many'"),
        (figure3, ["--plain", "nowhere.pt"], "there is no file 'nowhere.pt'"),
        (
            figure3,
            ["--images", "3,200", "--plain", str(architectures.SHIPPED)],
            "--images are numbers from 0 to 199 with commas between, got '3,200'",
        ),
    ],
)
def test_bad_arguments_get_words(script, arguments, says, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [Path(script.__file__).name, *arguments])
    with pytest.raises(SystemExit) as ended:
        script.main()
    assert ended.value.code == 2
    assert says in capsys.readouterr().err


def test_figure_2_is_equation_14(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["figure2.py", "--pictures", str(tmp_path), "--output", str(tmp_path / "f.json")])
    figure2.main()
    points = json.loads((tmp_path / "f.json").read_text())["points"]
    assert points[0] == [1.0, pytest.approx(0.05 / (1 - 10 - 0.1))]
    assert all(later < earlier for (_, earlier), (_, later) in pairwise(points))
    assert (tmp_path / "figure2.svg").read_bytes() == (ROOT / "docs" / "pictures" / "figure2.svg").read_bytes()


def test_a_map_is_coloured_from_its_least_to_its_largest():
    picture = figure3.coloured(torch.tensor([[0.0, 1.0], [2.0, 4.0]]))
    assert picture.shape == (figure3.SIDE, figure3.SIDE, 3)
    assert picture[0, 0].tolist() == [20, 16, 60]
    assert picture[-1, -1].tolist() == [250, 220, 70]
    assert figure3.coloured(torch.ones(2, 2)).max() == 60
