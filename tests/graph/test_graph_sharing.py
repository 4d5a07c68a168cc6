"""Weights are stored once: what is written anew is no copy of anything in the file."""

from __future__ import annotations

import io
import json
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.export import ExportedProgram

import repconv
from repconv.algebra.geometry import Geometry
from repconv.files.onnx import save_large
from repconv.graph import foresee_onnx, foresee_program, fuse_onnx, fuse_program
from repconv.graph.core.expression import Addend, Term
from repconv.graph.core.form import Form
from repconv.graph.core.step import Stored
from repconv.graph.onnx.proof.float64 import evaluate
from repconv.graph.planning.foresight import Foresight
from repconv.graph.planning.stock import Stock
from repconv.proof.report import FusionReport

Command = Callable[..., tuple[int, str, str]]
C = 24
SIDES = (9, 6, 5, 4)
KINDS = {"3x3": (C, C, 3, 3), "1x1": (C, C, 1, 1), "depthwise": (C, 1, 3, 3)}
OVERHEAD = 200
"""Bytes of a file that a tensor's name, shape and type may take, besides its numbers."""


@dataclass(frozen=True)
class Use:
    """A convolution of an input of its own: which weight and which normalisation, None for none."""

    weight: str = "3x3"
    norm: int | None = 0
    copied: bool = False
    """True to read the copy of the weight that the file stores under a second name."""


def graph(uses: Sequence[Use], dtype: type = np.float32) -> onnx.ModelProto:
    """A network whose heads share weights."""
    random = np.random.default_rng(0)
    held = {name: random.uniform(-1, 1, shape) for name, shape in KINDS.items()}
    held |= {f"{name} copied": value for name, value in held.items()}
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes, inputs, outputs = [], [], []
    for index, use in enumerate(uses):
        side, made = SIDES[index], f"c{index}"
        shape = KINDS[use.weight]
        settings = {"pads": [shape[2] // 2] * 4, "group": C // shape[1]}
        weight = f"{use.weight} copied" if use.copied else use.weight
        nodes.append(helper.make_node("Conv", [f"x{index}", weight], [made], made, **settings))
        if use.norm is not None:
            norm = [f"{use.norm}.{part}" for part in ("scale", "shift", "mean", "variance")]
            for name in norm:
                held.setdefault(name, random.uniform(0.5, 1.5, C))
            nodes.append(helper.make_node("BatchNormalization", [made, *norm], [f"n{index}"], f"n{index}"))
        nodes.append(helper.make_node("Relu", [nodes[-1].output[0]], [f"y{index}"], f"y{index}"))
        inputs.append(helper.make_tensor_value_info(f"x{index}", kind, [1, C, side, side]))
        outputs.append(helper.make_tensor_value_info(f"y{index}", kind, [1, C, side, side]))
    read = {name for node in nodes for name in node.input}
    weights = [numpy_helper.from_array(v.astype(dtype), name) for name, v in held.items() if name in read]
    made = helper.make_graph(nodes, "heads", inputs, outputs, weights)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


class Heads(nn.Module):
    """The same as a module; `Use.copied` reads a parameter of the same numbers."""

    def __init__(self, uses: Sequence[Use]) -> None:
        super().__init__()
        self.uses = uses
        self.weights = nn.ParameterDict()
        for use in uses:
            self.weights[self.name(use)] = self.weights.get(use.weight, nn.Parameter(torch.randn(KINDS[use.weight])))
            if use.copied:
                self.weights[self.name(use)] = nn.Parameter(self.weights[self.name(use)].detach().clone())
        self.norms = nn.ModuleDict({str(use.norm): nn.BatchNorm2d(C) for use in uses if use.norm is not None})
        for norm in self.norms.values():
            for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)

    @staticmethod
    def name(use: Use) -> str:
        return f"{use.weight} copied" if use.copied else use.weight

    def forward(self, *images: Tensor) -> list[Tensor]:
        made = []
        for use, image in zip(self.uses, images, strict=True):
            weight = self.weights[self.name(use)]
            out = nn.functional.conv2d(image, weight, padding=weight.shape[2] // 2, groups=C // weight.shape[1])
            made.append((out if use.norm is None else self.norms[str(use.norm)](out)).relu())
        return made


def export(model: nn.Module, *images: Tensor) -> ExportedProgram:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.export(model.eval(), images)


def to_onnx(model: nn.Module, *images: Tensor) -> onnx.ModelProto:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, images, buffer, dynamo=False)
    return onnx.load_from_string(buffer.getvalue())


def images(count: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.randn(1, C, side, side, dtype=dtype) for side in SIDES[:count]]


def stored(model: onnx.ModelProto | ExportedProgram) -> dict[str, tuple[object, ...]]:
    """Type, shape and bytes of every tensor in a file, by name."""
    if isinstance(model, ExportedProgram):
        arrays = {name: value.detach().numpy() for name, value in model.state_dict.items()}
    else:
        arrays = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    return {name: (value.dtype, value.shape, value.tobytes()) for name, value in arrays.items()}


def size(model: onnx.ModelProto | ExportedProgram) -> int:
    """Bytes of its file."""
    buffer = io.BytesIO()
    if isinstance(model, ExportedProgram):
        torch.export.save(model, buffer)
    else:
        onnx.save(model, buffer)
    return len(buffer.getvalue())


def in_float64(model: onnx.ModelProto) -> list[np.ndarray]:
    random = np.random.default_rng(1)
    feeds = {
        v.name: random.standard_normal([d.dim_value for d in v.type.tensor_type.shape.dim]) for v in model.graph.input
    }
    return evaluate(model, feeds, [value.name for value in model.graph.output])


def weight_bytes(model: onnx.ModelProto | ExportedProgram) -> int:
    """Of the weights of convolutions in a file."""
    return sum(len(content) for _, shape, content in stored(model).values() if len(shape) == 4)


def assert_growth_is_said(
    before: onnx.ModelProto | ExportedProgram,
    after: onnx.ModelProto | ExportedProgram,
    report: FusionReport,
    foreseen: Foresight,
) -> None:
    """Weights grow by what the report says, and as was foreseen."""
    assert weight_bytes(after) - weight_bytes(before) == sum(each.added_bytes for each in report.diverged)
    assert foreseen.diverged == report.diverged
    assert bool(report.diverged) == ("shared weights" in str(report))


def assert_stored_once(before: onnx.ModelProto | ExportedProgram, after: onnx.ModelProto | ExportedProgram) -> None:
    """What is written is no copy of anything; what was in the file stays as it was, or goes."""
    old, new = stored(before), stored(after)
    written = [value for name, value in new.items() if name not in old]
    stay = {name: value for name, value in new.items() if name in old}
    assert all(value == old[name] for name, value in stay.items())
    assert len({*written} - {*stay.values()}) == len(written)


USES = st.lists(
    st.builds(Use, st.sampled_from(sorted(KINDS)), st.sampled_from([None, 0, 0, 1, 2]), st.booleans()),
    min_size=1, max_size=4,
)  # fmt: skip


@settings(max_examples=40, derandomize=True, deadline=None)
@given(USES)
def test_any_shared_weights_are_stored_once_in_onnx(uses: list[Use]) -> None:
    before = graph(uses, np.float64)
    after, report = fuse_onnx(before)
    assert report.agreement is not None
    assert not report.layers or report.agreement.passed
    assert report.after.batch_norms == 0
    assert_stored_once(before, after)
    if not any(use.copied for use in uses):
        assert_growth_is_said(before, after, report, foresee_onnx(before))
    read = {name for node in after.graph.node for name in node.input}
    assert stored(after).keys() <= read
    for wanted, got in zip(in_float64(before), in_float64(after), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-12 * np.abs(wanted).max())


@settings(max_examples=10, derandomize=True, deadline=None)
@given(USES)
def test_any_shared_weights_are_stored_once_in_programs(uses: list[Use]) -> None:
    model, given = Heads(uses).double(), images(len(uses), torch.float64)
    before = export(model, *given)
    after, report = fuse_program(before)
    assert report.agreement is not None
    assert not report.layers or report.agreement.passed
    assert report.after.batch_norms == 0
    assert_stored_once(before, after)
    if not any(use.copied for use in uses):
        assert_growth_is_said(before, after, report, foresee_program(before))
    with torch.no_grad():
        for wanted, got in zip(model(*given), after.module()(*given), strict=True):
            assert float((got - wanted).abs().max() / wanted.abs().max().clamp(min=1e-9)) < 1e-12


@pytest.mark.parametrize("way", ["onnx", "program"])
def test_the_file_grows_by_what_differs(way: str) -> None:
    def fused(*norms: int) -> int:
        uses = [Use(norm=norm) for norm in norms]
        if way == "onnx":
            return size(fuse_onnx(graph(uses))[0])
        return size(fuse_program(export(Heads(uses), *images(len(uses))))[0])

    weight = 4 * C * C * 9
    alike, two, three = fused(0, 0, 0), fused(0, 1, 0), fused(0, 1, 2)
    each = weight + 4 * C
    for grown in (two - alike, three - two):
        assert each <= grown < each + (OVERHEAD if way == "onnx" else 4096)
    if way == "onnx":
        assert fused(0, 0, 0) < size(graph([Use()] * 3)) < weight * 2


def test_a_module_called_twice_is_stored_once() -> None:
    """The same layers on two images, as in a network that compares them; `repconv.fuse` and both kinds of file."""

    class Twins(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(
                nn.Conv2d(C, C, 3), nn.BatchNorm2d(C), nn.ReLU(), nn.Flatten(), nn.Linear(C * 49, 4)
            )

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x) - self.body(x.flip(3))

    model, image = Twins().eval(), images(1)[0]
    nn.init.uniform_(model.body[1].running_var, 0.5, 1.5)
    fused, report = repconv.fuse(model, image)
    assert report.after.parameters == sum(t.numel() for t in fused.state_dict.values())
    assert report.after.parameters == report.before.parameters - 2 * C
    assert_stored_once(export(model, image), fused)
    with torch.no_grad():
        assert float((fused.module()(image) - model(image)).abs().max()) < 1e-5


def test_a_weight_that_stays_is_read_where_what_is_written_equals_it() -> None:
    """Padding that a convolution takes up leaves its numbers; another node reads them, too."""
    before = graph([Use(norm=None), Use(norm=None), Use(norm=None, copied=True)])
    before.graph.initializer.append(numpy_helper.from_array(np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64), "pads"))
    before.graph.node.insert(0, helper.make_node("Pad", ["x0", "pads"], ["padded"], "pad"))
    before.graph.node[1].input[0] = "padded"
    next(a for a in before.graph.node[1].attribute if a.name == "pads").ints[:] = [0] * 4
    after, _ = fuse_onnx(before)
    assert [node.op_type for node in after.graph.node] == ["Conv", "Relu"] * 3
    assert [node.input[1] for node in after.graph.node if node.op_type == "Conv"] == ["3x3", "3x3", "3x3 copied"]
    assert stored(after) == {name: value for name, value in stored(before).items() if name != "pads"}


def test_an_input_that_may_be_overridden_is_not_read_instead() -> None:
    """Until IR version 4 initialisers were inputs, too, and whoever runs the model may give other numbers."""
    before = graph([Use(norm=None), Use()])
    scale = np.ones(C, np.float32)
    for name, value in zip(before.graph.node[-2].input[1:], (scale, 0 * scale, 0 * scale, scale), strict=True):
        held = next(t for t in before.graph.initializer if t.name == name)
        held.CopyFrom(numpy_helper.from_array(value, name))
    before.graph.node[-2].attribute.append(helper.make_attribute("epsilon", 0.0))
    before.graph.node[2].input[1] = "own"
    own = next(t for t in before.graph.initializer if t.name == "3x3")
    before.graph.initializer.append(numpy_helper.from_array(numpy_helper.to_array(own), "own"))
    plain, _ = fuse_onnx(before)
    assert {node.input[1] for node in plain.graph.node if node.op_type == "Conv"} == {"3x3"}
    before.graph.input.append(helper.make_tensor_value_info("3x3", TensorProto.FLOAT, KINDS["3x3"]))
    after, _ = fuse_onnx(before)
    first, second = (node.input[1] for node in after.graph.node if node.op_type == "Conv")
    assert first == "3x3" != second
    assert stored(after)[first] == stored(after)[second]


def test_weights_beside_the_file_are_stored_once(tmp_path: Path) -> None:
    save_large(graph([Use()] * 3), tmp_path / "before.onnx")
    after, _ = fuse_onnx(tmp_path / "before.onnx")
    save_large(after, tmp_path / "after.onnx")
    assert (tmp_path / "after.onnx.data").stat().st_size == 4 * C * C * 9
    again = onnx.load(tmp_path / "after.onnx")
    assert stored(again) == stored(after)


class Between(nn.Module):
    """A scale between two convolutions, which goes into either at the same price, on two images."""

    def __init__(self, first: int, second: int, scales: int) -> None:
        super().__init__()
        self.first = nn.ModuleList(nn.Conv2d(C, C, 3, padding=1, bias=False) for _ in range(first))
        self.second = nn.ModuleList(nn.Conv2d(C, 2 * C, 1, bias=False) for _ in range(second))
        self.scales = nn.ParameterList(torch.rand(C, 1, 1) + 0.5 for _ in range(scales))

    def forward(self, *images: Tensor) -> list[Tensor]:
        made = []
        for index, image in enumerate(images):
            first, second, scale = (parts[index % len(parts)] for parts in (self.first, self.second, self.scales))
            made.append(second(first(image) * scale).relu())
        return made


FIRST, SECOND = C * C * 9, 2 * C * C
BETWEEN = {
    "nothing shared": ((2, 2, 2), 2 * FIRST + 2 * SECOND), "the first shared": ((1, 2, 2), FIRST + 2 * SECOND),
    "the second shared": ((2, 1, 2), 2 * FIRST + SECOND), "both, and the scale": ((1, 1, 1), FIRST + SECOND),
    "both, not the scale": ((1, 1, 2), FIRST + 2 * SECOND),
    "the second and the scale": ((2, 1, 1), 2 * FIRST + SECOND),
}  # fmt: skip
"""How many there are of each part, and the fewest numbers that weights can be stored in with no scale left."""


@pytest.mark.parametrize("case", BETWEEN)
def test_of_what_costs_the_same_that_which_stores_less(case: str) -> None:
    counts, fewest = BETWEEN[case]
    model = Between(*counts).eval()
    program = export(model, *images(2))
    fused, report = fuse_program(program)
    kinds = [str(node.target) for node in fused.graph.nodes if node.op == "call_function"]
    assert kinds == ["aten.conv2d.default", "aten.conv2d.default", "aten.relu.default"] * 2
    assert weight_bytes(fused) == 4 * fewest
    assert_growth_is_said(program, fused, report, foresee_program(program))
    made, _ = fuse_onnx(to_onnx(model, *images(2)))
    assert Counter(node.op_type for node in made.graph.node) == {"Conv": 4, "Relu": 2}
    assert weight_bytes(made) == 4 * fewest


WEIGHTS = st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, 3)), max_size=6)


@settings(max_examples=200, derandomize=True, deadline=None)
@given(WEIGHTS, WEIGHTS, WEIGHTS, st.sets(st.sampled_from("abcd")))
def test_a_stock_counts_each_weight_once(
    others: list[Stored], before: list[Stored], after: list[Stored], besides: set[str]
) -> None:
    def numbers(read: list[Stored]) -> int:
        return sum(n for key, n in set(read) if key not in besides)

    stock = Stock([*others, *before], besides)
    stock.remove(before)
    for read in (before, after):
        assert stock.added(read) == numbers([*others, *read]) - numbers(others)
        assert stock.shares(read) == any([*others, *read].count(w) > 1 or w[0] in besides for w in read)
    stock.add(after)
    assert stock.added([*others, *after]) == 0


def test_sums_that_differ_in_cropping_are_not_known_to_be_alike() -> None:
    def cropped(rows: int) -> Term:
        form = Form(Geometry(C, C, (5, 5), padding=(rows,) * 4))
        addend = Addend(form, lambda: torch.ones(C, C, 5, 5), key="w")
        return Term("x", form, [addend, addend])

    assert cropped(-1).key == cropped(-1).key != cropped(-2).key


def test_a_weight_times_a_factor_of_its_node_is_another() -> None:
    nodes, outputs = [], []
    for index, alpha in enumerate((1.0, 2.0)):
        nodes.append(helper.make_node("Gemm", [f"x{index}", "w"], [f"p{index}"], alpha=alpha, transB=1))
        nodes.append(helper.make_node("Mul", [f"p{index}", "scale"], [f"y{index}"]))
        outputs.append(helper.make_tensor_value_info(f"y{index}", TensorProto.FLOAT, [1, C]))
    inputs = [helper.make_tensor_value_info(f"x{index}", TensorProto.FLOAT, [1, C]) for index in range(2)]
    draw = np.random.default_rng(0)
    held = {"w": draw.random((C, C)), "scale": draw.random(C) + 1}
    weights = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in held.items()]
    made = helper.make_graph(nodes, "graph", inputs, outputs, weights)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    fused, report = fuse_onnx(model)
    assert [node.op_type for node in fused.graph.node] == ["Gemm", "Gemm"]
    assert sum(len(shape) == 2 for _, shape, _ in stored(fused).values()) == 2
    assert [(each.weights, each.added_bytes) for each in report.diverged] == [(2, 4 * C * C)]


def test_commands_say_what_a_file_grows_by(command_line: Command, tmp_path: Path) -> None:
    onnx.save(graph([Use(norm=0), Use(norm=1), Use("1x1", norm=1), Use("1x1", norm=1)]), tmp_path / "heads.onnx")
    code, said, err = command_line("inspect", "heads.onnx", "--json", "inspect.json")
    assert code == 0, err
    assert "shared weights that would become several" in said
    code, said, err = command_line("fuse", "heads.onnx", "-o", "fused.onnx", "--json", "fuse.json")
    assert code == 0, err
    table = said.partition("shared weights that became several")[2]
    grown = {"weight": "3x3", "readers": 2, "weights": 2, "added_bytes": 4 * C * C * 9}
    assert f"{grown['added_bytes']:+,}" in table
    assert json.loads((tmp_path / "inspect.json").read_text())["graph"]["diverged"] == [grown]
    assert json.loads((tmp_path / "fuse.json").read_text())["report"]["diverged"] == [grown]


def test_looking_at_a_weights_size_is_no_reader_of_it() -> None:
    """PyTorch's exporter makes a bias of zeros as long as the weight, by Shape."""
    weight = numpy_helper.from_array(np.random.default_rng(0).standard_normal((C, C, 1, 1)).astype(np.float32), "w")
    zero = numpy_helper.from_array(np.zeros(1, np.float32), "zero")
    nodes = [
        helper.make_node("Shape", ["w"], ["size"], start=0, end=1),
        helper.make_node("Expand", ["zero", "size"], ["bias"]),
        helper.make_node("Conv", ["x", "w", "bias"], ["a"]),
        helper.make_node("Add", ["a", "x"], ["y"]),
    ]
    image = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, C, 5, 5]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", image[:1], image[1:], [weight, zero])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    after, report = fuse_onnx(proto)
    assert [node.op_type for node in after.graph.node] == ["Conv"]
    assert report.diverged == ()
