"""Every kind of reason why something stays: a graph where it is given, and one, minimally changed, that folds."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional

from repconv.benchmarks.studies.graph.networks import to_onnx
from repconv.benchmarks.studies.graph.reasons import of_onnx, of_program, unexplained
from repconv.graph import foresee_onnx, fuse_onnx
from repconv.graph.core.reasons import Kind
from repconv.graph.planning import plan
from repconv.graph.program.fuse import rewrite
from repconv.proof.report import GraphRefusal, Refusal

PAD = "pads=[1,1,1,1]"
WEIGHTS = {
    "w1": (4, 4, 1, 1), "w1b": (4, 4, 1, 1), "w3": (4, 4, 3, 3), "w3b": (4, 4, 3, 3), "w8": (4, 4, 8, 8), "b": (4,),
    "down1": (1, 4, 1, 1), "down3": (1, 4, 3, 3), "up": (4, 1, 1, 1), "g": (4,), "s": (4,), "m": (4,), "ma": (4, 4),
    "mb": (4, 4), "channel": (1, 4, 1, 1), "pixel": (1, 4, 8, 8), "wide": (4, 65536), "thin": (4, 16),
}  # fmt: skip
CONSTANTS = {
    "v": np.full(4, 2, np.float32), "nv": np.full(4, -2, np.float32), "one": np.ones((), np.float32),
    "half": np.full((), 0.5, np.float32), "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64),
    "big": np.full((4, 4, 1, 1), 3e4, np.float32), "bigger": np.full(4, 3e4, np.float32),
    "to_wide": np.array([1, 512, 128], np.int64), "to_thin": np.array([1, 4, 4], np.int64),
    "heads": np.array([0, 0, 2, 2], np.int64), "parts": np.array([[1, 2], [3, 4]], np.float32),
    "whole": np.arange(144, dtype=np.int16).reshape(4, 4, 3, 3).astype(np.int8), "two": np.full(4, 2, np.float32),
    "border": np.full((1, 4, 1, 8), 2, np.float32),
    "columns": np.full((1, 4, 10, 1), 2, np.float32),
}  # fmt: skip


def number(name: str) -> np.ndarray:
    if name in CONSTANTS:
        return CONSTANTS[name]
    return np.random.default_rng(len(name)).uniform(0.2, 1, WEIGHTS[name]).astype(np.float32)


@dataclass(frozen=True)
class Text:
    """A graph of lines `y = Op <attribute=value> (inputs)`. given: weights that are inputs. sparse: one stored so."""

    lines: str
    size: tuple[object, ...] = (1, 4, 8, 8)
    outputs: tuple[str, ...] = ("y",)
    given: tuple[str, ...] = ()
    sparse: str = ""
    half: bool = False
    patience: int = plan.PATIENCE

    def model(self) -> onnx.ModelProto:
        parsed = onnx.parser.parse_graph(f"g (float x) => (float y) {{ {self.lines} }}")
        for node in parsed.node:
            node.name = node.output[0]
        kind = TensorProto.FLOAT16 if self.half else TensorProto.FLOAT
        read = dict.fromkeys(name for node in parsed.node for name in node.input)
        held = {name: number(name) for name in read if name in WEIGHTS or name in CONSTANTS}
        if self.half:
            held = {n: a.astype(np.float16) if a.dtype == np.float32 else a for n, a in held.items()}
        graph = helper.make_graph(
            parsed.node,
            "reasons",
            [
                helper.make_tensor_value_info("x", kind, self.size),
                *(helper.make_tensor_value_info(name, kind, held[name].shape) for name in self.given),
            ],
            [helper.make_tensor_value_info(name, kind, None) for name in self.outputs],
            [numpy_helper.from_array(value, name) for name, value in held.items() if name != self.sparse],
        )
        if self.sparse:
            places = np.array([0, 5, 10], np.int64)
            values = numpy_helper.from_array(np.ones(3, np.float32), self.sparse)
            where = numpy_helper.from_array(places, "places")
            graph.sparse_initializer.append(helper.make_sparse_tensor(values, where, held[self.sparse].shape))
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


CONV = "p = Conv (x, w1)"
NORM = "y = BatchNormalization (p, g, s, m, v)"
BRANCHES = f"p = Conv <{PAD}> (x, w3) q = Conv (x, w1) y = Add (p, q)"
STRIPS = (
    "p = Conv (x, w1, two) a = Concat <axis=2> (border, p, border) c = Concat <axis=3> (columns, a, columns) "
    "y = Conv (c, w3)"
)
CHAIN = " ".join(f"t{i + 1} = Conv <{PAD}> (t{i}, w3)" for i in range(40))
ONNX: dict[Kind, tuple[Text, Text]] = {
    Kind.TRAINING: (
        Text(f"{CONV} y, mean, var = BatchNormalization <training_mode=1> (p, g, s, m, v)"), Text(f"{CONV} {NORM}"),
    ),
    Kind.OWN_STATISTICS: (Text(f"{CONV} y = InstanceNormalization (p, g, s)"), Text(f"{CONV} {NORM}")),
    Kind.PRODUCT: (Text(f"{CONV} y = Mul (p, x)"), Text(f"{CONV} y = Mul (p, channel)")),
    Kind.QUOTIENT: (Text(f"{CONV} y = Div (channel, p)"), Text(f"{CONV} y = Div (p, channel)")),
    Kind.ACTIVATION: (
        Text("e = Erf (x) f = Add (e, one) h = Mul (x, f) k = Mul (h, half) y = Conv (k, w1)"),
        Text("e = Sin (x) f = Add (e, one) h = Mul (x, f) k = Mul (h, half) y = Conv (k, w1)"),
    ),
    Kind.VARYING: (Text(BRANCHES, given=("w3",)), Text(BRANCHES)),
    Kind.SPARSE: (Text(BRANCHES, sparse="w1"), Text(BRANCHES)),
    Kind.QUANTISED: (
        Text(f"w = DequantizeLinear (whole, half) {BRANCHES.replace('w3', 'w')}"),
        Text(f"f = Cast <to=1> (whole) w = Mul (f, half) {BRANCHES.replace('w3', 'w')}"),
    ),
    Kind.TYPE: (
        Text(f"{CONV} c = Cast <to=11> (p) d = Cast <to=1> (c) {NORM.replace('(p', '(d')}"),
        Text(f"{CONV} d = Identity (p) {NORM.replace('(p', '(d')}"),
    ),
    Kind.NOT_BY_CHANNEL: (Text(f"{CONV} y = Add (p, pixel)"), Text(f"{CONV} y = Add (p, channel)")),
    Kind.SIZES: (Text(f"{CONV} q = Conv (x, w8) y = Add (p, q)"), Text(f"{CONV} q = Conv (x, w1b) y = Add (p, q)")),
    Kind.AXES: (
        Text(f"{CONV} q = Transpose <perm=[0,2,1,3]> (p) y = Add (p, q)", (1, 4, 4, 4)),
        Text(f"{CONV} q = Transpose <perm=[0,1,2,3]> (p) y = Add (p, q)", (1, 4, 4, 4)),
    ),
    Kind.LAYOUT: (
        Text("p = Gemm (x, ma) y = Gemm <transA=1> (p, mb)", (4, 4)), Text("p = Gemm (x, ma) y = Gemm (p, mb)", (4, 4)),
    ),
    Kind.NO_CHANNELS: (
        Text("p = Mul (x, half) y = Mul (p, half)", (4,)), Text("p = Mul (x, half) y = Mul (p, half)", (1, 4)),
    ),
    Kind.PIXELS: (
        Text(f"{CONV} q = Transpose <perm=[0,1,3,2]> (p) y = Conv (q, w1b)"),
        Text(f"{CONV} q = Transpose <perm=[0,1,2,3]> (p) y = Conv (q, w1b)"),
    ),
    Kind.OPEN_SIZE: (
        Text(f"p = Conv <auto_pad='SAME_UPPER', strides=[2,2]> (x, w3) {NORM}".replace("'", '"'), (1, 4, "h", "w")),
        Text(f"p = Conv <auto_pad='SAME_UPPER', strides=[2,2]> (x, w3) {NORM}".replace("'", '"')),
    ),
    Kind.PADDED_WITH: (
        Text('p = Pad <mode="reflect"> (x, pads) y = Conv (p, w3)'),
        Text('p = Pad <mode="constant"> (x, pads) y = Conv (p, w3)'),
    ),
    Kind.UNEQUAL_WINDOWS: (
        Text(f"p = AveragePool <kernel_shape=[3,3], {PAD}> (x) q = Conv <{PAD}> (x, w3) y = Add (p, q)"),
        Text(
            f"p = AveragePool <kernel_shape=[3,3], {PAD}, count_include_pad=1> (x) q = Conv <{PAD}> (x, w3) "
            "y = Add (p, q)"
        ),
    ),
    Kind.NOT_FINITE: (Text(f"{CONV} {NORM.replace(' v)', ' nv)')}"), Text(f"{CONV} {NORM}")),
    Kind.MISFIT: (
        Text("p = Conv <strides=[1,1,1]> (x, w1) y = Conv (p, w1b)"),
        Text("p = Conv <strides=[1,1]> (x, w1) y = Conv (p, w1b)"),
    ),
    Kind.MATRIX: (
        Text("p = Gemm (x, wide) q = Reshape (p, to_wide) y = ReduceMean <axes=[2], keepdims=0> (q)", (1, 4)),
        Text("p = Gemm (x, thin) q = Reshape (p, to_thin) y = ReduceMean <axes=[2], keepdims=0> (q)", (1, 4)),
    ),
    Kind.NEEDED: (
        Text(f"{CONV} {NORM} z = Relu (p)", outputs=("y", "z")), Text(f"{CONV} {NORM} z = Relu (y)", outputs=("z",)),
    ),
    Kind.BIAS_PADDED: (
        Text(f"p = Conv (x, w1, b) y = Conv <{PAD}> (p, w3)"), Text(f"p = Conv (x, w1) y = Conv <{PAD}> (p, w3)"),
    ),
    Kind.BIAS_SPREAD: (
        Text("p = Conv (x, w1, b) y = ConvTranspose <strides=[2,2]> (p, w3)"),
        Text("p = Conv (x, w1) y = ConvTranspose <strides=[2,2]> (p, w3)"),
    ),
    Kind.BORDER: (
        Text(f"p = Conv <{PAD}> (x, w3) y = Conv <{PAD}> (p, w3b)"), Text(f"{CONV} y = Conv <{PAD}> (p, w3b)"),
    ),
    Kind.STRIDES: (
        Text("p = Conv <strides=[2,2]> (x, w1) y = ConvTranspose <strides=[2,2]> (p, w3)"),
        Text("p = Conv <strides=[1,1]> (x, w1) y = ConvTranspose <strides=[2,2]> (p, w3)"),
    ),
    Kind.AVERAGED: (
        Text(f"p = Conv <{PAD}> (x, w3) y = GlobalAveragePool (p)"), Text(f"{CONV} y = GlobalAveragePool (p)"),
    ),
    Kind.BORDER_VALUE: (
        Text(f"{CONV} q = Pad (p, pads, one) y = Conv (q, w3)"), Text(f"{CONV} q = Pad (p, pads) y = Conv (q, w3)"),
    ),
    Kind.PIECE_READ: (Text(f"{STRIPS} z = Relu (a)", outputs=("y", "z")), Text(STRIPS)),
    Kind.NOT_ADDED: (
        Text("p = Conv <strides=[2,2]> (x, w1) q = Conv <strides=[7,7], pads=[6,6,8,8]> (x, w1b) y = Add (p, q)"),
        Text("p = Conv <strides=[2,2]> (x, w1) q = Conv <strides=[2,2]> (x, w1b) y = Add (p, q)"),
    ),
    Kind.OTHER_TENSORS: (
        Text(f"a = Relu (x) {CONV} q = Conv (a, w1b) y = Add (p, q)"),
        Text(f"a = Relu (x) {CONV} q = Conv (x, w1b) y = Add (p, q)", outputs=("y", "a")),
    ),
    Kind.NOT_CHEAPER: (
        Text(f"p = Conv <{PAD}> (x, down3) y = Conv (p, up)"), Text(f"p = Conv <{PAD}> (x, w3) y = Conv (p, w1)"),
    ),
    Kind.MORE: (Text("p = Conv (x, down1) y = Conv (p, up)"), Text("p = Conv (x, w1) y = Conv (p, w1b)")),
    Kind.ROUNDABOUT: (
        Text("p = MatMul (x, ma) f = Reshape (p, heads) y = Mul (f, parts)", ("n", "t", 4)),
        Text("p = MatMul (x, ma) f = Reshape (p, heads) y = Mul (f, parts)", ("n", 9, 4)),
    ),
    Kind.TOO_LARGE: (
        Text(f"{CHAIN} y = Relu (t40)".replace("t0", "x"), patience=0), Text(f"{CONV} y = Conv (p, w1b)", patience=0),
    ),
    Kind.NARROW: (
        Text("p = Conv (x, big) y = BatchNormalization (p, bigger, s, m, v)", half=True),
        Text("p = Conv (x, big) y = BatchNormalization (p, bigger, s, m, v)"),
    ),
}  # fmt: skip


def dequantised(whole: Tensor) -> Tensor:
    from torch.ao.quantization.fx import _decomposed  # noqa: F401  # it registers the operation

    return torch.ops.quantized_decomposed.dequantize_per_tensor(whole, 0.5, 0, -128, 127, torch.int8)


class Net(nn.Module):
    """A function of an image and of layers that it names."""

    def __init__(self, function: Callable[[Net, Tensor], object]) -> None:
        super().__init__()
        self.function = function
        self.c1, self.c1b, self.c3 = (nn.Conv2d(4, 4, k, padding=k // 2, bias=False) for k in (1, 1, 3))
        self.biased, self.c8 = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 8)
        self.down1, self.down3 = nn.Conv2d(4, 1, 1, bias=False), nn.Conv2d(4, 1, 3, padding=1, bias=False)
        self.up, self.spread = nn.Conv2d(1, 4, 1, bias=False), nn.ConvTranspose2d(4, 4, 3, 2, bias=False)
        self.second, self.seventh = (nn.Conv2d(4, 4, 1, s, bias=False) for s in (2, 7))
        self.second_too, self.group = nn.Conv2d(4, 4, 1, 2, bias=False), nn.GroupNorm(2, 4)
        self.norm, self.odd_norm = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.each_batch = nn.BatchNorm2d(4, track_running_stats=False)
        self.register_buffer("channel", torch.full((1, 4, 1, 1), 2.0))
        self.register_buffer("pixel", torch.rand(1, 4, 8, 8))
        self.register_buffer("whole", torch.arange(16, dtype=torch.int8).view(4, 4, 1, 1))
        nn.init.constant_(self.odd_norm.running_var, -2)

    def forward(self, x: Tensor) -> object:
        return self.function(self, x)


Program = Callable[[Net, Tensor], object]
PROGRAMS: dict[Kind, tuple[Program, Program]] = {
    Kind.TRAINING: (lambda n, x: n.each_batch(n.c1(x)), lambda n, x: n.norm(n.c1(x))),
    Kind.OWN_STATISTICS: (lambda n, x: n.group(n.c1(x)), lambda n, x: n.norm(n.c1(x))),
    Kind.PRODUCT: (lambda n, x: n.c1(x) * x, lambda n, x: n.c1(x) * n.channel),
    Kind.QUOTIENT: (lambda n, x: n.channel / n.c1(x), lambda n, x: n.c1(x) / n.channel),
    Kind.VARYING: (
        lambda n, x: n.c1(x) + functional.conv2d(x, x[:1].mean((2, 3), keepdim=True).expand(4, 4, 1, 1)),
        lambda n, x: n.c1(x) + functional.conv2d(x, n.channel.expand(4, 4, 1, 1)),
    ),
    Kind.QUANTISED: (
        lambda n, x: n.c1(x) + functional.conv2d(x, dequantised(n.whole)),
        lambda n, x: n.c1(x) + functional.conv2d(x, n.whole * 0.5),
    ),
    Kind.TYPE: (lambda n, x: n.norm(n.c1(x).double().float()), lambda n, x: n.norm(n.c1(x).float())),
    Kind.NOT_BY_CHANNEL: (lambda n, x: n.c1(x) + n.pixel, lambda n, x: n.c1(x) + n.channel),
    Kind.SIZES: (lambda n, x: n.c1(x) + n.c8(x), lambda n, x: n.c1(x) + n.c1b(x)),
    Kind.AXES: (
        lambda n, x: (y := n.c1(x[:, :, :4, :4])) + y.permute(0, 2, 1, 3),
        lambda n, x: (y := n.c1(x[:, :, :4, :4])) + y.permute(0, 1, 2, 3),
    ),
    Kind.LAYOUT: (
        lambda n, x: functional.adaptive_avg_pool2d(n.c1(x).permute(0, 2, 3, 1), 1),
        lambda n, x: functional.adaptive_avg_pool2d(n.c1(x), 1),
    ),
    Kind.PIXELS: (lambda n, x: n.c1b(n.c1(x).permute(0, 1, 3, 2)), lambda n, x: n.c1b(n.c1(x).permute(0, 1, 2, 3))),
    Kind.PADDED_WITH: (
        lambda n, x: n.c1(functional.pad(n.c1b(x), (1, 1, 1, 1), "reflect")),
        lambda n, x: n.c1(functional.pad(n.c1b(x), (1, 1, 1, 1))),
    ),
    Kind.UNEQUAL_WINDOWS: (
        lambda n, x: functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False) + n.c3(x),
        lambda n, x: functional.avg_pool2d(x, 3, 1, 1) + n.c3(x),
    ),
    Kind.NOT_FINITE: (lambda n, x: n.odd_norm(n.c1(x)), lambda n, x: n.norm(n.c1(x))),
    Kind.NEEDED: (lambda n, x: (n.norm(y := n.c1(x)), y.relu()), lambda n, x: n.norm(n.c1(x)).relu()),
    Kind.BIAS_PADDED: (lambda n, x: n.c3(n.biased(x)), lambda n, x: n.c3(n.c1(x))),
    Kind.BIAS_SPREAD: (lambda n, x: n.spread(n.biased(x)), lambda n, x: n.spread(n.c1(x))),
    Kind.BORDER: (lambda n, x: n.c3(n.c3(x)), lambda n, x: n.c3(n.c1(x))),
    Kind.STRIDES: (lambda n, x: n.spread(n.second(x)), lambda n, x: n.spread(n.c1(x))),
    Kind.AVERAGED: (lambda n, x: n.c3(x).mean((2, 3)), lambda n, x: n.c1(x).mean((2, 3))),
    Kind.BORDER_VALUE: (
        lambda n, x: n.c3(functional.pad(n.c1(x), (1, 1, 1, 1), value=1.0))[:, :, 1:-1, 1:-1],
        lambda n, x: n.c3(functional.pad(n.c1(x), (1, 1, 1, 1), value=0.0))[:, :, 1:-1, 1:-1],
    ),
    Kind.NOT_ADDED: (
        lambda n, x: n.second(x) + n.seventh(functional.pad(x, (6, 8, 6, 8)))[:, :, :4, :4],
        lambda n, x: n.second(x) + n.second_too(x),
    ),
    Kind.OTHER_TENSORS: (lambda n, x: n.c1(x) + n.c1b(x.relu()), lambda n, x: n.c1(x) + n.c1b(x)),
    Kind.NOT_CHEAPER: (lambda n, x: n.up(n.down3(x)), lambda n, x: n.c1(n.c3(x))),
    Kind.MORE: (lambda n, x: n.up(n.down1(x)), lambda n, x: n.c1b(n.c1(x))),
}
ONLY_ONNX = {
    Kind.SPARSE: "programs hold dense tensors", Kind.ACTIVATION: "programs hold GELU as one operation",
    Kind.MISFIT: "torch.export runs the program", Kind.NO_CHANNELS: "as ONNX's, which the table has",
    Kind.OPEN_SIZE: "programs say what they pad", Kind.MATRIX: "as ONNX's", Kind.PIECE_READ: "as ONNX's",
    Kind.ROUNDABOUT: "as ONNX's", Kind.TOO_LARGE: "as ONNX's", Kind.NARROW: "its own test below",
}  # fmt: skip


def kinds(refusals: tuple[Refusal, ...]) -> set[str]:
    assert all(isinstance(each, GraphRefusal) and each.folds_if and each.beside for each in refusals), refusals
    assert not any(set("{}") & {*each.why, *each.folds_if} for each in refusals), refusals
    return {each.kind for each in refusals if isinstance(each, GraphRefusal)}


@pytest.mark.parametrize("kind", Kind, ids=lambda kind: kind.label)
def test_each_kind_is_given_in_onnx_and_not_once_that_differs(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    stays, folds = ONNX[kind]
    monkeypatch.setattr(plan, "PATIENCE", stays.patience)
    if not stays.patience:
        monkeypatch.setattr(plan, "PATIENCE_A_STEP", 1)
    before = stays.model()
    fused, report = fuse_onnx(before, prove=False)
    assert kind.label in kinds(report.refusals), report.refusals
    assert not unexplained(of_onnx(before, fused, report), report.refusals)
    if kind is not Kind.NARROW:  # which comes of the numbers
        assert kinds(foresee_onnx(before).refusals) == kinds(report.refusals)
    _, report = fuse_onnx(folds.model(), prove=False)
    assert kind.label not in kinds(report.refusals), report.refusals
    assert report.layers


def program(function: Program, *, half: bool = False) -> torch.export.ExportedProgram:
    net, x = Net(function).eval(), torch.rand(2, 4, 8, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.export(net.half() if half else net, (x.half() if half else x,))


@pytest.mark.parametrize("kind", PROGRAMS, ids=lambda kind: kind.label)
def test_each_kind_is_given_in_a_program_and_not_once_that_differs(kind: Kind) -> None:
    stays, folds = (rewrite(program(function)) for function in PROGRAMS[kind])
    assert kind.label in kinds(stays.report.refusals), stays.report.refusals
    assert not unexplained(of_program(stays), stays.report.refusals)
    assert kind.label not in kinds(folds.report.refusals), folds.report.refusals
    assert folds.report.layers


def test_numbers_too_large_for_a_programs_type_leave_it_as_it_is() -> None:
    def large(net: Net, x: Tensor) -> Tensor:
        return net.c1(x) * 3e4 * 3e4

    report = rewrite(program(large, half=True)).report
    assert kinds(report.refusals) == {Kind.NARROW.label}
    report = rewrite(program(large)).report
    assert report.layers
    assert not report.refusals


OTHERWISE = {
    Kind.VARYING: "of a computed weight the size is unknown, too", Kind.PADDED_WITH: "of a computed padding, too",
    Kind.QUANTISED: "no exporter of torch's takes the operation",
    Kind.TRAINING: "statistics of each batch become six nodes", Kind.OWN_STATISTICS: "a group norm becomes five",
}  # fmt: skip
BOTH = [kind for kind in PROGRAMS if kind not in OTHERWISE]
"""What torch's exporter writes as it stands."""


@pytest.mark.parametrize("kind", BOTH, ids=lambda kind: kind.label)
def test_both_representations_give_a_network_the_same_kinds(kind: Kind) -> None:
    for function in PROGRAMS[kind]:
        net, x = Net(function).eval(), torch.rand(2, 4, 8, 8)
        of_a_program = rewrite(program(function)).report
        assert kinds(of_a_program.refusals) == kinds(foresee_onnx(to_onnx(net, x)).refusals)


def test_what_is_written_without_a_convolution_is_told() -> None:
    held = {name: np.full((1, 1, 1, 1), 2, np.float32) for name in "vw"}
    nodes = [helper.make_node("Conv", [a, b], [c], c) for a, b, c in (("x", "v", "p"), ("p", "w", "y"))]
    sides = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, 1, 8, 8)) for name in "xy"]
    weights = [numpy_helper.from_array(value, name) for name, value in held.items()]
    graph = helper.make_graph(nodes, "scale", sides[:1], sides[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    fused, report = fuse_onnx(model)
    assert [node.op_type for node in fused.graph.node] == ["Mul"]
    assert [(x.geometry, x.branches, x.multiplies) for x in report.layers] == [("a scale", ("p", "y"), False)]
    assert "1 tensor into a scale" in str(report)
    assert report.agreement is not None
    assert [each.where for each in report.agreement.blocks] == [report.layers[0].name]
    assert foresee_onnx(model).layers[0].geometry == "a scale"


def test_a_refusal_says_what_is_and_what_would_have_to_differ_with_both_prices() -> None:
    (refusal,) = foresee_onnx(ONNX[Kind.NOT_CHEAPER][0].model()).refusals
    assert refusal.beside == ("p",)
    assert refusal.why == (
        "not cheaper: 2 convolutions with 2,560 multiply-adds and 680 numbers moved (price 13,440) as it stands, "
        "1 convolution with 9,216 multiply-adds and 656 numbers moved (price 19,712) folded"
    )
    assert refusal.folds_if == "the price falls, which is multiply-adds plus 16 for each number moved"
    assert refusal.details["prices"] == {
        "as_it_is": {"convolutions": 2, "multiply_adds": 2560, "numbers_moved": 680, "price": 13440},
        "folded": {"convolutions": 1, "multiply_adds": 9216, "numbers_moved": 656, "price": 19712},
    }


def test_the_page_has_every_kind() -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "graph.md"
    rows = [line.split(" | ") for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    told = {row[0].removeprefix("| "): row[-1].removesuffix(" |") for row in rows}
    assert {kind.label: kind.folds_if for kind in Kind}.items() <= told.items()


def test_every_kind_has_its_row() -> None:
    assert ONNX.keys() == set(Kind)
    assert PROGRAMS.keys() | ONLY_ONNX.keys() == set(Kind)
    assert not PROGRAMS.keys() & ONLY_ONNX.keys()
