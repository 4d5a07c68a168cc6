"""Random graphs of affine operations, run in onnxruntime before and after fusing."""

from __future__ import annotations

from collections import Counter
from math import prod

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from repconv.benchmarks.studies.graph.reasons import of_onnx, unexplained
from repconv.graph import fuse_onnx
from repconv.graph.core.reasons import Kind

SIZES = [(2, 13, 12), (2, 13, 12), (1, 12, 12), (3, 8, 10), (3, 1, 9), (1, 6, 1), (2, 14), (2, 5, 7, 6), (1, 4, 6, 4)]
"""Batch and sides of the inputs, of one to three axes."""

Shape = tuple[int, ...]


class Draft:
    """A random graph under construction; `shapes` are the channels and sides of every tensor."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.batch, *sides = SIZES[seed // 14 % len(SIZES)]
        self.axes = len(sides)
        self.shapes: dict[str, Shape] = {"x": (4, *sides)}
        self.inputs = ["x"]

    def constant(self, *shape: int) -> str:
        name = f"w{len(self.weights)}"
        values = self.random.uniform(-1, 1, shape).astype(np.float32)
        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def integers(self, *values: int) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.array(values, np.int64), name))
        return name

    def add(self, kind: str, inputs: list[str], shape: Shape, **attributes: object) -> None:
        name = f"t{len(self.shapes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], f"{kind}_{name}", **attributes))
        self.shapes[name] = shape

    def pick(self, values: list) -> object:
        return values[int(self.random.integers(len(values)))]

    def grow(self) -> None:
        source = self.pick(list(self.shapes)[-6:])
        c, *sides = shape = self.shapes[source]
        kind = self.pick(
            [
                "conv",
                "conv",
                "conv",
                "bn",
                "bn",
                "add",
                "add",
                "sub",
                "shift",
                "scale",
                "relu",
                "pool",
                "pad",
                "concat",
                "split",
                "slice",
                "neg",
                "identity",
                "sum",
                "bordered",
                "div",
                "transposed",
                "tiles",
                "strip",
                "global",
                "mean",
            ]
        )
        if kind == "conv":
            o = int(self.pick([2, 4, 6]))
            groups = int(self.pick([g for g in (1, 1, 2, c) if c % g == 0 and o % g == 0]))
            size = [int(self.pick([1, 1, 2, 3])) for _ in sides]
            dilations = [int(self.pick([1, 1, 2])) for _ in sides]
            strides = [int(self.pick([1, 1, 1, 2]))] * self.axes
            reach = [d * (k - 1) for d, k in zip(dilations, size, strict=True)]
            pads = [int(self.pick([0, r // 2, r - r // 2])) for r in (*reach, *reach)]
            out = [(n + pads[a] + pads[a + self.axes] - reach[a] - 1) // strides[a] + 1 for a, n in enumerate(sides)]
            if min(out) < 1:
                return
            inputs = [source, self.constant(o, c // groups, *size)]
            if self.random.random() < 0.5:
                inputs.append(self.constant(o))
            self.add("Conv", inputs, (o, *out), group=groups, dilations=dilations, strides=strides, pads=pads)
        elif kind == "transposed" and prod(sides) < 400:
            self.transposed(source)
        elif kind == "tiles":
            self.tiles(source)
        elif kind == "global":
            self.add("GlobalAveragePool", [source], (c, *(1 for _ in sides)))
        elif kind == "mean":
            self.add("ReduceMean", [source], (c, *(1 for _ in sides)), axes=[*range(2, 2 + len(sides))], keepdims=1)
        elif kind == "strip":
            self.strip(source)
        elif kind == "bordered" and min(sides) > 2:
            # DBB: what a shift takes away before zeros are padded comes back afterwards.
            border, around, wide = (
                self.constant(c, *(1,) * self.axes),
                (0, 0, *(1,) * self.axes),
                [n + 2 for n in sides],
            )
            self.add("Sub", [source, border], shape)
            name = list(self.shapes)[-1]
            self.add("Pad", [name, self.integers(*around, *around)], (c, *wide))
            self.add("Add", [list(self.shapes)[-1], border], (c, *wide))
        elif kind == "bn":
            mean, scale, shift = (self.constant(c) for _ in range(3))
            variance = f"w{len(self.weights)}"
            values = self.random.uniform(0.3, 2, c).astype(np.float32)
            self.weights.append(numpy_helper.from_array(values, variance))
            self.add("BatchNormalization", [source, scale, shift, mean, variance], shape)
        elif kind in ("add", "sub", "sum"):
            same = [n for n, s in self.shapes.items() if s == shape]
            others = [str(self.pick(same)) for _ in range(2 if kind == "sum" else 1)]
            self.add(kind.capitalize(), [source, *others], shape)
        elif kind in ("shift", "scale", "div"):
            flat = (1,) * self.axes
            constant = self.constant(*self.pick([(), (1,), (c, *flat), (1, c, *flat)]))
            inputs = [source, constant]
            if kind != "div" and self.random.random() < 0.5:
                inputs.reverse()
            operation = {"shift": self.pick(["Add", "Sub"]), "scale": "Mul", "div": "Div"}[kind]
            self.add(str(operation), inputs, shape)
        elif kind == "relu":
            self.add("Relu", [source], shape)
        elif kind == "pool" and min(sides) > 3:
            pads = [int(self.random.integers(2)) for _ in range(2 * self.axes)]
            stride = int(self.pick([1, 2]))
            out = [(n + pads[a] + pads[a + self.axes] - 2) // stride + 1 for a, n in enumerate(sides)]
            self.add(
                "AveragePool",
                [source],
                (c, *out),
                kernel_shape=[2] * self.axes,
                strides=[stride] * self.axes,
                pads=pads,
                count_include_pad=int(self.random.integers(2)),
            )
        elif kind == "pad":
            before, after = self.random.integers(-1, 2, (2, self.axes)).tolist()
            out = [n + b + a for n, b, a in zip(sides, before, after, strict=True)]
            if min(out) < 2:
                return
            self.add("Pad", [source, self.integers(0, 0, *before, 0, 0, *after)], (c, *out))
        elif kind == "concat" and c < 8:
            same = [n for n, s in self.shapes.items() if s[1:] == shape[1:] and s[0] < 8]
            other = str(self.pick(same))
            self.add("Concat", [source, other], (c + self.shapes[other][0], *sides), axis=1)
        elif kind == "split" and c % 2 == 0:
            first, second = f"t{len(self.shapes)}", f"t{len(self.shapes) + 1}"
            self.nodes.append(
                helper.make_node(
                    "Split", [source, self.integers(c // 2, c // 2)], [first, second], f"Split_{first}", axis=1
                )
            )
            self.shapes[first] = self.shapes[second] = (c // 2, *sides)
        elif kind == "slice" and sides[-1] > 4:
            start, end, step = self.integers(0, 1), self.integers(max(c // 2, 1), sides[-1]), self.integers(1, 1)
            out = (max(c // 2, 1), *sides[:-1], sides[-1] - 1)
            self.add("Slice", [source, start, end, self.integers(1, self.axes + 1), step], out)
        elif kind in ("neg", "identity"):
            self.add(kind.capitalize(), [source], shape)

    def transposed(self, source: str) -> None:
        c, *sides = self.shapes[source]
        groups = int(self.pick([g for g in (1, 1, 2, c) if c % g == 0]))
        o = groups * int(self.pick([1, 2]))
        size, strides, dilations = ([int(self.pick(values)) for _ in sides] for values in ([1, 2, 3], [1, 2], [1, 2]))
        pads = [int(self.random.integers(2)) for _ in range(2 * self.axes)]
        more = [int(self.random.integers(s)) for s in strides]
        out = [
            (n - 1) * strides[a] + dilations[a] * (size[a] - 1) + 1 + more[a] - pads[a] - pads[a + self.axes]
            for a, n in enumerate(sides)
        ]
        if min(out) < 1:
            return
        inputs = [
            source,
            self.constant(c, o // groups, *size),
            *([self.constant(o)] if self.random.random() < 0.3 else []),
        ]
        known = {"group": groups, "strides": strides, "dilations": dilations, "pads": pads, "output_padding": more}
        self.add("ConvTranspose", inputs, (o, *out), **known)

    def tiles(self, source: str) -> None:
        """Every other pixel of each axis, joined as channels in any order; a Focus layer has all four."""
        c, *sides = self.shapes[source]
        if any(n % 2 for n in sides) or c > 4:
            return
        axes, halves = range(self.axes), [n // 2 for n in sides]
        parts = []
        for place in self.random.permutation(2**self.axes)[: int(self.pick([2, 4]))].tolist():
            starts, ends = self.integers(*(place >> axis & 1 for axis in axes)), self.integers(*sides)
            along, steps = self.integers(*(2 + axis for axis in axes)), self.integers(*(2 for _ in axes))
            self.add("Slice", [source, starts, ends, along, steps], (c, *halves))
            parts.append(list(self.shapes)[-1])
        self.add("Concat", parts, (c * len(parts), *halves), axis=1)

    def strip(self, source: str) -> None:
        """Convolutions that pad one axis each, one after another."""
        c, *sides = self.shapes[source]
        for axis in self.random.permutation(self.axes).tolist():
            size = [3 if axis == other else 1 for other in range(self.axes)]
            pads = [k // 2 for k in size]
            self.add("Conv", [source, self.constant(c, c, *size)], (c, *sides), pads=pads * 2)
            source = list(self.shapes)[-1]

    def model(self, *, open_size: bool) -> onnx.ModelProto:
        read = {name for node in self.nodes for name in node.input}
        outputs = [name for name in self.shapes if name not in read]
        outputs += [n for n in list(self.shapes)[1:] if n in read and self.random.random() < 0.05]
        side = ["n", 4, "h", "w"] if open_size else [self.batch, *self.shapes["x"]]
        if open_size and self.axes != 2:
            side = ["n", 4, "h", *self.shapes["x"][2:]]
        graph = helper.make_graph(
            self.nodes,
            "random",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, side)],
            [
                helper.make_tensor_value_info(
                    n, TensorProto.FLOAT, [None] * (2 + self.axes) if open_size else [self.batch, *self.shapes[n]]
                )
                for n in outputs
                if n != "x"
            ],
            self.weights,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def run(model: onnx.ModelProto, x: np.ndarray) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})


def check(seed: int) -> Counter[str]:
    draft = Draft(seed)
    while len(draft.nodes) < 3 + seed % 14:
        draft.grow()
    model = draft.model(open_size=bool(seed % 2))
    before = model.SerializeToString()
    fused, report = fuse_onnx(model)
    assert model.SerializeToString() == before, "the model given was changed"
    x = np.random.default_rng(seed).standard_normal((draft.batch, *draft.shapes["x"])).astype(np.float32)
    for wanted, got in zip(run(model, x), run(fused, x), strict=True):
        assert wanted.shape == got.shape
        scale = np.abs(wanted).max(initial=1)
        np.testing.assert_allclose(got, wanted, rtol=0, atol=3e-5 * scale)
    assert report.after.convolutions <= report.before.convolutions
    if report.before.flops is not None and report.after.flops is not None:
        assert report.after.flops <= report.before.flops
    assert not unexplained(of_onnx(model, fused, report), report.refusals)
    return Counter(refusal.kind for refusal in report.refusals)


@settings(max_examples=40, derandomize=True, deadline=None)
@given(st.integers(0, 10**6))
def test_random_graphs_compute_the_same_after_fusing(seed: int) -> None:
    check(seed)


@pytest.mark.slow
@pytest.mark.parametrize("count", [200, pytest.param(1000, marks=pytest.mark.exhaustive)])
def test_many_random_graphs_and_why_some_stay(count: int) -> None:
    why = sum((check(seed) for seed in range(count)), Counter[str]())
    often = (Kind.BIAS_PADDED, Kind.UNEQUAL_WINDOWS, Kind.NOT_CHEAPER, Kind.BORDER)
    assert all(why[kind.label] >= count // 100 for kind in often), why
