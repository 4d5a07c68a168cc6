"""Tensors of any layout: each movement equals torch's, and random graphs of movements compute the same after fusing."""

from __future__ import annotations

from dataclasses import replace
from math import prod

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional

import repconv
from repconv.errors import GeometryError
from repconv.graph import fuse_onnx, fuse_program
from repconv.graph.core.dims import symbol, told
from repconv.graph.core.expression import Term
from repconv.graph.core.reasons import StaysError
from repconv.graph.maps import carried
from repconv.graph.maps.arrangement import changes
from repconv.graph.maps.carried import Carried, Made
from repconv.graph.maps.layout import BATCH, Layout, permuted, plain, with_channels_at
from repconv.graph.onnx.proof.prove import region_comparisons

SIZES = {"batch": (3, 1), "rows": (5, 1), "columns": (4, 7)}
DEPTHS = [(), (), (1,), (2,)]
"""The sides of images besides rows and columns."""


def laid_out(value: Tensor, layout: Layout) -> Tensor:
    """[n, c, h, w] as the tensor that has this layout."""
    digits = [w for axis, w in zip(layout.axes, layout.widths, strict=True) if any(a.kind == "channels" for a in axis)]
    apart = value.reshape(value.shape[0], *(digits or [1]), *value.shape[2:])
    count, order, shape = len(digits or [1]), [], []
    digit = 1
    for axis in layout.axes:
        side = 1
        for atom in axis:
            if atom.kind == "channels" and digit - 1 < len(digits):
                order.append(digit)
                side *= digits[digit - 1]
                digit += 1
            elif atom.kind != "channels":
                place = 0 if atom.kind == "batch" else 1 + count + atom.number
                order.append(place)
                side *= apart.shape[place]
        shape.append(side)
    rest = [place for place in range(apart.dim()) if place not in order]
    assert all(apart.shape[place] == 1 for place in rest)
    return apart.permute(order + rest).reshape(shape)


def applied(made: Made, sources: dict[str, Tensor]) -> Tensor:
    """What the terms make of [n, c, pixels] tensors, laid out."""
    return laid_out(sum(made_by(term, sources[term.source]) for term in made.terms), made.layout)


def made_by(term: Term, x: Tensor) -> Tensor:
    """What a term makes of a tensor [n, c, pixels]."""
    if term.pool:
        x = x.mean(tuple(range(2, x.dim())), keepdim=True)
    return term.kernel.of_axes(x.dim() - 2)(x)


def named(name: str, value: Tensor, layout: Layout) -> Carried:
    return Carried(name, layout, told(value.shape))


MOVES = {
    "permute": (lambda t: carried.permute(t, (2, 0, 1, 3)), lambda x: x.permute(2, 0, 1, 3)),
    "split": (lambda t: carried.reshape(t, (t.size[0], 2, 3, *t.size[2:])), lambda x: x.unflatten(1, (2, 3))),
    "tokens": (lambda t: carried.reshape(t, (*t.size[:2], t.size[2] * t.size[3])), lambda x: x.flatten(2)),
    "insert": (lambda t: carried.insert_axes(t, (0, 5)), lambda x: x[None, ..., None]),
    "take": (lambda t: carried.take(t, 1, (5, 0, 0, -2)), lambda x: x[:, [5, 0, 0, 4]]),
    "one": (lambda t: carried.take(t, 1, (3,), keeps_axis=False), lambda x: x[:, 3]),
    "flip": (lambda t: carried.on_channels(t, 1, lambda i: i.flip(1)), lambda x: x.flip(1)),
    "roll": (lambda t: carried.on_channels(t, 1, lambda i: i.roll(2, 1)), lambda x: x.roll(2, 1)),
    "channels": (lambda t: carried.cut(t, 1, 1, -1, 2), lambda x: x[:, 1:-1:2]),
    "columns": (lambda t: carried.cut(t, 3, 1, None, 2), lambda x: x[..., 1::2]),
    "sum": (lambda t: carried.total(t, (1,), mean=False, keep=True), lambda x: x.sum(1, keepdim=True)),
    "mean": (lambda t: carried.total(t, (-3,), mean=True, keep=False), lambda x: x.mean(1)),
    "einsum": (
        lambda t: carried.einsum(t, "nchw,kc->nkhw", 0, [None, torch.arange(12.0).reshape(2, 6)]),
        lambda x: torch.einsum("nchw,kc->nkhw", x, torch.arange(12.0).reshape(2, 6).double()),
    ),
    "join": (lambda t: carried.join([t, t], 1), lambda x: torch.cat([x, x], 1)),
}


@pytest.mark.parametrize("size", [0, 1])
@pytest.mark.parametrize(("made", "moved"), MOVES.values(), ids=MOVES)
def test_a_movement_is_what_torch_makes_of_an_index_tensor(made: object, moved: object, size: int) -> None:
    n, h, w = (values[size] for values in SIZES.values())
    index = torch.arange(float(n * 6 * h * w)).double().reshape(n, 6, h, w)
    tensor = named("x", index, plain(6, 2))
    torch.testing.assert_close(applied(made(tensor), {"x": index}), moved(index), rtol=0, atol=1e-9)


def drawn_image(data: st.DataObject) -> Tensor:
    """[n, 12, h, w], or of three axes, each element another number."""
    n, *sides = (data.draw(st.sampled_from(values)) for values in SIZES.values())
    sides += data.draw(st.sampled_from(DEPTHS))
    return torch.arange(float(n * 12 * prod(sides))).reshape(n, 12, *sides)


def steps(draw: st.DrawFn, tensor: Carried, value: Tensor) -> tuple[Made, Tensor]:
    """One movement that is drawn, and what it makes of a tensor."""
    rank = value.dim()
    kind = draw(st.sampled_from(["permute", "split", "merge", "insert", "drop", "take", "cut", "sum"]))
    axis = draw(st.integers(0, rank - 1))
    if kind == "permute":
        order = draw(st.permutations(range(rank)))
        return carried.permute(tensor, order), value.permute(order)
    if kind == "split":
        parts = draw(st.sampled_from([k for k in range(1, value.shape[axis] + 1) if value.shape[axis] % k == 0]))
        shape = (*value.shape[:axis], parts, value.shape[axis] // parts, *value.shape[axis + 1 :])
        return carried.reshape(tensor, shape), value.reshape(shape)
    if kind == "merge":
        shape = (*value.shape[:axis], prod(value.shape[axis : axis + 2]), *value.shape[axis + 2 :])
        return carried.reshape(tensor, shape), value.reshape(shape)
    if kind == "insert":
        return carried.insert_axes(tensor, [axis]), value.unsqueeze(axis)
    if kind == "drop":
        return carried.drop_axes(tensor, None), value.squeeze()
    places = draw(st.lists(st.integers(0, value.shape[axis] - 1), min_size=1, max_size=5))
    if kind == "take":
        return carried.take(tensor, axis, places), value.index_select(axis, torch.tensor(places))
    if kind == "cut":
        return carried.cut(tensor, axis, places[0], None, len(places)), value[
            (slice(None),) * axis + (slice(places[0], None, len(places)),)
        ]
    return carried.total(tensor, [axis], mean=True, keep=False), value.mean(axis)


@settings(max_examples=100, derandomize=True, deadline=None)
@given(st.data())
def test_a_chain_of_movements_is_what_torch_makes_of_an_index_tensor(data: st.DataObject) -> None:
    carrier = drawn_image(data).double()
    pixels = carrier.dim() - 2
    layout = data.draw(st.sampled_from([plain(12, pixels), with_channels_at(pixels + 1, 12, pixels + 2)]))
    tensor, value = named("x", carrier, layout), laid_out(carrier, layout)
    for _ in range(data.draw(st.integers(1, 5))):
        try:
            made, value = data.draw(st.composite(steps)(tensor, value))
        except GeometryError:
            continue
        carrier = sum(made_by(term, carrier) for term in made.terms)
        assert made.terms[0].makes(tensor.dims) == told(carrier.shape)
        tensor = named("x", carrier, made.layout)
        torch.testing.assert_close(laid_out(carrier, made.layout), value, rtol=0, atol=1e-9)
        assert tensor.size == tuple(value.shape)


@settings(max_examples=100, derandomize=True, deadline=None)
@given(st.permutations(range(4)), st.lists(st.integers(0, 2), min_size=1, max_size=3))
def test_a_reshape_of_an_open_batch_is_what_it_is_of_a_known_one(order: list[int], merged: list[int]) -> None:
    """However many images: a side that holds them together with something else is whatever the others leave."""
    known = named("x", torch.zeros(3, 12, 5, 4), permuted(plain(12, 2), order)[0])
    opened = replace(known, dims=(symbol("n"), *known.dims[1:]))
    shape = list(known.size)
    for axis in merged:
        shape[axis : axis + 2] = [prod(shape[axis : axis + 2])]
    layout = carried.reshape(known, shape).layout
    open_shape = [
        side if BATCH not in axis else symbol("n" if axis == (BATCH,) else "n times something")
        for axis, side in zip(layout.axes, shape, strict=True)
    ]
    assert carried.reshape(opened, open_shape).layout == layout
    assert carried.reshape(replace(opened, layout=layout), opened.size).layout == opened.layout
    with pytest.raises(StaysError, match="more than one side"):
        carried.reshape(opened, [symbol("a"), symbol("b"), *open_shape])


@settings(max_examples=200, derandomize=True, deadline=None)
@given(st.data())
def test_a_change_of_layout_gives_the_other_layout(data: st.DataObject) -> None:
    carrier = drawn_image(data)
    tensor = named("x", carrier, plain(12, carrier.dim() - 2))
    other = tensor
    for _ in range(3):
        shape = [side for side in other.size if isinstance(side, int)]
        try:
            made = data.draw(st.composite(steps)(other, torch.zeros(shape)))[0]
        except (GeometryError, ValueError):
            continue
        if made.terms[0].form.is_identity:
            other = Carried("x", made.layout, other.dims)
    value = laid_out(carrier, tensor.layout)
    for kind, numbers in changes(tensor, other):
        value = value.permute(numbers) if kind == "permute" else value.reshape(numbers)
    torch.testing.assert_close(value.reshape(laid_out(carrier, other.layout).shape), laid_out(carrier, other.layout))


KINDS = [
    "conv", "conv", "norm", "norm", "relu", "transpose", "back", "split", "merge", "stack", "sum", "gather", "matmul",
    "scale", "shift", "add", "unsqueeze", "squeeze", "slice", "einsum", "mean", "around",
]  # fmt: skip


class Draft:
    """A random graph of affine operations on tensors of any rank; shapes by name."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        n, h, w = int(self.pick([1, 3])), int(self.pick([1, 4])), int(self.pick([3, 5]))
        self.shapes: dict[str, tuple[int, ...]] = {"x": (n, 4, h, w, *self.pick(DEPTHS))}

    def pick(self, values: list) -> object:
        return values[int(self.random.integers(len(values)))]

    def constant(self, *shape: int) -> str:
        return self.hold(self.random.uniform(-1, 1, shape).astype(np.float32))

    def hold(self, value: np.ndarray) -> str:
        self.weights.append(numpy_helper.from_array(value, f"w{len(self.weights)}"))
        return self.weights[-1].name

    def integers(self, *values: int) -> str:
        return self.hold(np.array(values, np.int64))

    def add(self, kind: str, inputs: list[str], shape: tuple[int, ...], **attributes: object) -> None:
        name = f"t{len(self.shapes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], f"{kind}_{name}", **attributes))
        self.shapes[name] = shape

    def grow(self) -> None:
        source = str(self.pick(list(self.shapes)[-4:]))
        shape = self.shapes[source]
        rank = len(shape)
        axis = int(self.random.integers(rank))
        kind = self.pick(KINDS)
        if kind == "conv" and rank in (3, 4, 5):
            o, k = int(self.pick([2, 4])), [int(self.pick([1, 1, 3])) for _ in shape[2:]]
            pads = [side // 2 for side in k]
            inputs = [
                source,
                self.constant(o, shape[1], *k),
                *([self.constant(o)] if self.random.random() < 0.5 else []),
            ]
            self.add("Conv", inputs, (shape[0], o, *shape[2:]), pads=pads * 2)
        elif kind == "norm" and rank in (2, 3, 4, 5):
            vectors = [self.constant(shape[1]) for _ in range(3)]
            variance = self.hold(self.random.uniform(0.3, 2, shape[1]).astype(np.float32))
            self.add("BatchNormalization", [source, *vectors, variance], shape)
        elif kind == "relu":
            self.add("Relu", [source], shape)
        elif kind in ("transpose", "back"):
            order = (
                [int(i) for i in self.random.permutation(rank)]
                if kind == "transpose"
                else [0, *range(2, rank), 1][:rank]
            )
            self.add("Transpose", [source], tuple(shape[i] for i in order), perm=order)
        elif kind == "split" and shape[axis] % 2 == 0 and rank < 6:
            new = (*shape[:axis], 2, shape[axis] // 2, *shape[axis + 1 :])
            self.add("Reshape", [source, self.integers(*new)], new)
        elif kind == "merge" and rank > 2:
            new = (*shape[:axis], prod(shape[axis : axis + 2]), *shape[axis + 2 :])
            self.add("Reshape", [source, self.integers(*new)], new)
        elif kind == "stack" and rank < 5:
            same = [name for name, other in self.shapes.items() if other == shape]
            names = []
            for other in (source, str(self.pick(same))):
                self.add("Unsqueeze", [other, self.integers(axis)], (*shape[:axis], 1, *shape[axis:]))
                names.append(list(self.shapes)[-1])
            self.add("Concat", names, (*shape[:axis], 2, *shape[axis:]), axis=axis)
        elif kind == "sum" and rank > 2:
            new, how = (*shape[:axis], *shape[axis + 1 :]), self.pick(["ReduceSum", "ReduceMean"])
            self.add(str(how), [source, self.integers(axis)], new, keepdims=0)
        elif kind == "around" and rank == 4:
            # As converted from TensorFlow: channels last, and transposes around the convolution.
            n, h, w, c = shape
            self.add("Transpose", [source], (n, c, h, w), perm=[0, 3, 1, 2])
            self.add("Conv", [list(self.shapes)[-1], self.constant(4, c, 3, 3)], (n, 4, h, w), pads=[1, 1, 1, 1])
            self.add("Transpose", [list(self.shapes)[-1]], (n, h, w, 4), perm=[0, 2, 3, 1])
            self.add(str(self.pick(["Relu", "Sigmoid"])), [list(self.shapes)[-1]], (n, h, w, 4))
            if self.random.random() < 0.3:
                self.add("Mul", list(self.shapes)[-2:], (n, h, w, 4))
        elif kind == "mean" and rank > 2:
            left = [0, 1 + int(self.random.integers(rank - 1))]
            axes, keep = [i for i in range(rank) if i not in left], int(self.pick([0, 1]))
            new = tuple(side if i in left else 1 for i, side in enumerate(shape) if i in left or keep)
            self.add("ReduceMean", [source, self.integers(*axes)], new, keepdims=keep)
        elif kind == "gather":
            places = [int(i) for i in self.random.integers(shape[axis], size=int(self.pick([1, 2, 4])))]
            self.add(
                "Gather", [source, self.integers(*places)], (*shape[:axis], len(places), *shape[axis + 1 :]), axis=axis
            )
        elif kind == "matmul" and rank > 1:
            self.add("MatMul", [source, self.constant(shape[-1], 4)], (*shape[:-1], 4))
        elif kind in ("scale", "shift"):
            form = [side if self.random.random() < 0.4 else 1 for side in shape]
            self.add("Mul" if kind == "scale" else "Add", [source, self.constant(*form)], shape)
        elif kind == "add":
            same = [name for name, other in self.shapes.items() if other == shape]
            self.add("Add", [source, str(self.pick(same))], shape)
        elif kind == "unsqueeze" and rank < 5:
            self.add("Unsqueeze", [source, self.integers(axis)], (*shape[:axis], 1, *shape[axis:]))
        elif kind == "squeeze" and 1 in shape and rank > 2:
            axis = shape.index(1)
            self.add("Squeeze", [source, self.integers(axis)], (*shape[:axis], *shape[axis + 1 :]))
        elif kind == "slice" and shape[axis] > 1:
            last = -(-(shape[axis] - 1) // 2)
            arguments = [self.integers(i) for i in (1, shape[axis], axis, 2)]
            self.add("Slice", [source, *arguments], (*shape[:axis], last, *shape[axis + 1 :]))
        elif kind == "einsum" and rank < 6:
            letters = "abcdef"[:rank]
            out = letters.replace(letters[axis], "z")
            self.add(
                "Einsum",
                [source, self.constant(shape[axis], 3)],
                (*shape[:axis], 3, *shape[axis + 1 :]),
                equation=f"{letters},{letters[axis]}z->{out}",
            )

    def model(self) -> onnx.ModelProto:
        read = {name for node in self.nodes for name in node.input}
        outputs = [n for n in list(self.shapes)[1:] if n not in read or self.random.random() < 0.05]
        known = [helper.make_tensor_value_info(n, TensorProto.FLOAT, self.shapes[n]) for n in ("x", *outputs)]
        graph = helper.make_graph(self.nodes, "random", known[:1], known[1:], self.weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def run(model: onnx.ModelProto, x: np.ndarray) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model.SerializeToString(), options).run(None, {"x": x})


def products(model: onnx.ModelProto) -> int:
    return sum(node.op_type in ("Conv", "Gemm", "MatMul", "Einsum") for node in model.graph.node)


def check(seed: int) -> bool:
    """Whether anything was fused, once both graphs computed the same."""
    draft = Draft(seed)
    while len(draft.nodes) < 4 + seed % 12:
        draft.grow()
    model = draft.model()
    fused, report = fuse_onnx(model)
    x = np.random.default_rng(seed).standard_normal(draft.shapes["x"]).astype(np.float32)
    for wanted, got in zip(run(model, x), run(fused, x), strict=True):
        assert wanted.shape == got.shape
        np.testing.assert_allclose(got, wanted, rtol=0, atol=3e-5 * np.abs(wanted).max(initial=1))
    if report.before.flops is not None:
        assert report.after.flops is not None
    assert products(fused) <= products(model)
    return [n.op_type for n in model.graph.node] != [n.op_type for n in fused.graph.node]


@settings(max_examples=60, derandomize=True, deadline=None)
@given(st.integers(0, 10**6))
def test_random_graphs_of_any_layout_compute_the_same_after_fusing(seed: int) -> None:
    check(seed)


@pytest.mark.slow
@pytest.mark.parametrize("count", [400, pytest.param(2000, marks=pytest.mark.exhaustive)])
def test_many_random_graphs_of_any_layout(count: int) -> None:
    assert sum(map(check, range(count))) > count // 4


def channels_last(blocks: int, activation: str, shape: tuple[int, ...]) -> onnx.ModelProto:
    """Convolutions of channels last, each between transposes, with a residual sum from the second on."""
    draft = Draft(0)
    draft.shapes = {"x": shape}
    last = "x"
    for number in range(blocks):
        before = last
        draft.add("Transpose", [last], shape, perm=[0, 3, 1, 2])
        draft.add("Conv", [list(draft.shapes)[-1], draft.constant(4, 4, 3, 3)], shape, pads=[1, 1, 1, 1])
        draft.add("Transpose", [list(draft.shapes)[-1]], shape, perm=[0, 2, 3, 1])
        draft.add("Mul", [list(draft.shapes)[-1], draft.constant(4)], shape)
        draft.add("Add", [list(draft.shapes)[-1], before if number else draft.constant(4)], shape)
        draft.add("Sigmoid" if activation == "Swish" else activation, [list(draft.shapes)[-1]], shape)
        if activation == "Swish":
            draft.add("Mul", list(draft.shapes)[-2:], shape)
        last = list(draft.shapes)[-1]
    model = draft.model()
    del model.graph.output[:-1]
    return model


@pytest.mark.parametrize("activation", ["Relu", "Swish"])
def test_transposes_around_every_convolution_go_but_for_the_outermost(activation: str) -> None:
    for shape in ((1, 5, 7, 4), (3, 1, 1, 4)):
        model = channels_last(3, activation, shape)
        fused, report = fuse_onnx(model)
        kinds = [node.op_type for node in fused.graph.node]
        assert kinds.count("Transpose") == 2, kinds
        assert "Mul" not in kinds or activation == "Swish"
        assert all(found.passed for found in report.agreement.comparisons)
        assert not report.unmeasured
        x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        for wanted, got in zip(run(model, x), run(fused, x), strict=True):
            np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max(initial=1))


def test_a_wrong_weight_beyond_a_moved_activation_is_found() -> None:
    """Regions are compared across the activation's new axes: the pair is the author's tensor and that one, turned."""
    model = channels_last(2, "Relu", (1, 5, 7, 4))
    fused, _ = fuse_onnx(model)
    altered = onnx.ModelProto()
    altered.CopyFrom(fused)
    weight = next(t for t in altered.graph.initializer if len(t.dims) == 4)
    value = numpy_helper.to_array(weight).copy()
    value[1, 2, 0, 1] *= 1.001
    weight.CopyFrom(numpy_helper.from_array(value, weight.name))
    feeds = [{"x": np.zeros((1, 5, 7, 4), np.float32)}]
    for after, right in ((fused, True), (altered, False)):
        regions, unmeasured = region_comparisons(model, after, feeds[0], str)
        assert not unmeasured
        assert all(region.passed for region in regions) == right


def test_an_activation_without_a_transpose_behind_stays_where_it_is() -> None:
    """One transpose more or less is no gain; the author's axes stay."""
    draft = Draft(0)
    draft.shapes = {"x": (1, 5, 7, 4)}
    draft.add("Relu", ["x"], (1, 5, 7, 4))
    draft.add("Transpose", ["t1"], (1, 4, 5, 7), perm=[0, 3, 1, 2])
    draft.add("Conv", ["t2", draft.constant(4, 4, 1, 1)], (1, 4, 5, 7))
    model = draft.model()
    assert list(fuse_onnx(model)[0].graph.node) == list(model.graph.node)


class Module(nn.Module):
    """Parts, and a function of them and x."""

    def __init__(self, forward: object, **parts: nn.Module | Tensor) -> None:
        super().__init__()
        self.run = forward
        for name, part in parts.items():
            setattr(self, name, nn.Parameter(part) if isinstance(part, Tensor) else part)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def norm(module: nn.Module) -> nn.Module:
    for value, low, high in ((module.running_mean, -1, 1), (module.running_var, 0.3, 3), (module.weight, 0.5, 2)):
        nn.init.uniform_(value, low, high)
    return module


def convolutions() -> dict[str, nn.Module]:
    return {"a": nn.Conv2d(6, 6, 3, padding=1), "b": nn.Conv2d(6, 6, 1)}


SPELLINGS = {
    "stack, mean": (lambda: Module(lambda m, x: torch.stack([m.a(x), m.b(x)], 2).mean(2), **convolutions()), 1),
    "cat, view, einsum": (lambda: Module(
        lambda m, x: torch.einsum("nkchw,kc->nchw", torch.cat([m.a(x), m.b(x)], 1).unflatten(1, (2, 6)), m.g),
        **convolutions(), g=torch.randn(2, 6)), 1),
    "matmul of tokens": (lambda: Module(
        lambda m, x: (m.a(x).flatten(2).transpose(1, 2) @ m.g).transpose(1, 2).unflatten(2, (8, 7)),
        **convolutions(), g=torch.randn(6, 4)), 1),
    "shuffle": (lambda: Module(
        lambda m, x: m.n(m.a(x).unflatten(1, (2, 3)).transpose(1, 2).flatten(1, 2)), **convolutions(),
        n=norm(nn.BatchNorm2d(6))), 1),
    "index, flip": (lambda: Module(lambda m, x: m.n(m.a(x[:, [2, 1, 0, 3, 5, 4]]).flip(1)), **convolutions(),
                                   n=norm(nn.BatchNorm2d(6))), 1),
    "channels last around convolutions": (lambda: Module(
        lambda m, x: functional.silu(m.b(functional.silu(
            m.a(x.permute(0, 3, 1, 2).permute(0, 2, 3, 1).permute(0, 3, 1, 2)).permute(0, 2, 3, 1) * m.g
        ).permute(0, 3, 1, 2))), a=nn.Conv2d(7, 6, 3, padding=1), b=nn.Conv2d(6, 6, 1), g=torch.randn(6)), 2),
    "channels last": (lambda: Module(
        lambda m, x: (m.b(functional.gelu(m.a(x.permute(0, 2, 3, 1)))) * m.g).permute(0, 3, 1, 2) + x,
        a=nn.Linear(6, 12), b=nn.Linear(12, 6), g=torch.randn(6)), 2),
    "tokens, flat norm": (lambda: Module(
        lambda m, x: m.n(m.a(x.flatten(2).transpose(1, 2)).flatten(0, 1)).view(x.shape[0], 56, 6),
        a=nn.Linear(6, 6), n=norm(nn.BatchNorm1d(6))), 1),
    "norm, flatten, linear": (lambda: Module(
        lambda m, x: m.a(m.n(functional.relu(x)).flatten(1)), a=nn.Linear(6 * 56, 4), n=norm(nn.BatchNorm2d(6))), 1),
    "channels last, flatten, linear": (lambda: Module(
        lambda m, x: m.a(m.n(functional.relu(x)).permute(0, 3, 2, 1).flatten(1)), a=nn.Linear(6 * 56, 4),
        n=norm(nn.BatchNorm2d(6))), 1),
    "norm, flatten rows, linear": (lambda: Module(
        lambda m, x: m.a(m.n(functional.relu(x)).permute(0, 3, 1, 2).flatten(2)), a=nn.Linear(6 * 8, 4),
        n=norm(nn.BatchNorm2d(6))), 1),
    "transposed, norm, 1x1": (lambda: Module(
        lambda m, x: m.b(m.n(m.a(x))) + m.c(x), a=nn.ConvTranspose2d(6, 6, 4, 2, 1), b=nn.Conv2d(6, 4, 1),
        c=nn.ConvTranspose2d(6, 4, 2, 2), n=norm(nn.BatchNorm2d(6))), 1),
    "tiles": (lambda: Module(
        lambda m, x: m.n(m.a(torch.cat([x[:, :, i::2, j:-1:2] for i in (0, 1) for j in (0, 1)], 1))),
        a=nn.Conv2d(24, 6, 3, padding=(1, 0), bias=False), n=norm(nn.BatchNorm2d(6))), 1),
    "1-D": (lambda: Module(
        lambda m, x: m.n(m.a(x)) + m.b(x), a=nn.Conv1d(6, 6, 5, padding=4, dilation=2), b=nn.Conv1d(6, 6, 1),
        n=norm(nn.BatchNorm1d(6))), 1),
}  # fmt: skip


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", SPELLINGS)
def test_a_spelling_becomes_as_few_operations_as_its_plain_form(name: str, batch: int) -> None:
    torch.manual_seed(0)
    make, most = SPELLINGS[name]
    model, x = make().eval(), torch.randn(batch, 6, *((56,) if name == "1-D" else (8, 7)))
    fused, _ = repconv.fuse(model, (x,))
    names = [str(n.target).split(".")[1] for n in fused.graph.nodes if n.op == "call_function"]
    assert sum(name.startswith(("conv", "linear", "matmul", "einsum")) for name in names) == most
    left = {"batch_norm", "mul", "sum", "mean", "stack", "cat", "index", "flip"} & set(names)
    assert not left, names
    assert sum(name == "add" for name in names) <= 1, names
    torch.testing.assert_close(fused.module()(x), model(x).detach(), rtol=0, atol=3e-5)


class ViewOfTokens(nn.Module):
    """Tokens that are viewed as rows, which their linear layer leaves side by side in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 8, 3), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.linear(self.conv(x).flatten(2).transpose(1, 2)).relu()
        return tokens.view(len(tokens), -1)


def test_a_view_of_what_lies_elsewhere_in_memory_now_is_a_copy() -> None:
    fused, report = fuse_program(torch.export.export(ViewOfTokens().eval(), (torch.randn(2, 3, 6, 6),)))
    assert report.agreement is not None
    assert report.agreement.passed
    assert "aten.linear.default" not in {str(node.target) for node in fused.graph.nodes}
