"""The price of what is written is the multiply-adds, the numbers moved and the products counted in what was written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import onnx
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from torch import Tensor, fx

from repconv.errors import GeometryError
from repconv.graph.core.constant import Bias, Constant
from repconv.graph.core.cost import Cost
from repconv.graph.core.expression import Expression, Term
from repconv.graph.core.pool import Pool
from repconv.graph.core.terms import (
    average_term,
    convolution_term,
    grid_term,
    matrix_term,
    scale_term,
    select_term,
    transposed_term,
)
from repconv.graph.maps.carried import Carried
from repconv.graph.maps.layout import BATCH, Atom, Layout, plain, with_channels_at
from repconv.graph.onnx import writer as onnx_writer
from repconv.graph.planning.emission import Emission, emission
from repconv.graph.program import writer as program_writer

C = 4
CHANNELS = (Atom("channels", C),)
ROWS, COLUMNS = (Atom("pixel", 0),), (Atom("pixel", 1),)
LAYOUTS = {
    "plain": plain(C, 2),
    "last": with_channels_at(3, C, 4),
    "tokens": Layout(((BATCH,), (*ROWS, *COLUMNS), CHANNELS)),
    "flattened": Layout(((BATCH,), (*CHANNELS, *ROWS, *COLUMNS))),
    "heads": Layout(((BATCH,), (Atom("channels", 2),), ROWS, COLUMNS, (Atom("channels", 2),))),
}
GONE = {"vector": plain(C, 0), "one pixel": plain(C, 2)}
"""Layouts of an image of one pixel."""


def random(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.5


def convolved(o: int = C, taps: tuple[int, int] = (3, 3), groups: int = 1, **settings: object) -> Term:
    shape = (o, C // groups, *taps)
    return convolution_term("s0", random(*shape), shape, groups=groups, **settings)


def transposed(**settings: object) -> Term:
    return transposed_term("s0", random(C, C, 3, 2), (C, C, 3, 2), **settings)


KINDS: dict[str, Callable[[], Term]] = {
    "1x1": lambda: convolved(taps=(1, 1)), "3x3": lambda: convolved(padding=(1, 1, 1, 1)),
    "depthwise": lambda: convolved(groups=C, padding=(1, 1, 1, 1)), "uneven": lambda: convolved(padding=(0, 1, 2, 1)),
    "dilated": lambda: convolved(dilation=(2, 1), padding=(2, 1, 2, 1)),
    "cropped": lambda: convolved(padding=(-1, 0, 0, 1)),
    "strided": lambda: convolved(stride=(2, 2), padding=(1, 1, 1, 1)), "whole": lambda: convolved(taps=(6, 5)),
    "transposed": lambda: transposed(stride=(2, 1)),
    "transposed, cropped": lambda: transposed(stride=(2, 3), crop=(1, 0, 0, 1)),
    "average": lambda: average_term("s0", C, (2, 2), stride=(2, 2), padding=(0, 1, 0, 1)),
    "grid": lambda: grid_term("s0", C, stride=(1, 2), padding=(1, 0, 0, 1)),
    "scale": lambda: scale_term("s0", random(C)()), "itself": lambda: Term.itself("s0", C),
    "pool": lambda: Term.average("s0", C, Pool()), "pooled matrix": lambda: KINDS["matrix"]().with_pool(Pool(), None),
    "windows": lambda: average_term("s0", C, (2, 2), stride=(2, 1), padding=(0, 0, 0, 0)),
    "1x1 of windows": lambda: KINDS["1x1"]().after(KINDS["windows"]()),
    "matrix": lambda: matrix_term("s0", random(C, C), (C, C)), "select": lambda: select_term("s0", C, (3, 1, 0, 2)),
}  # fmt: skip

TABLE = (
    *((kind, "plain", "plain", True, ()) for kind in KINDS), *((kind, "plain", "plain", False, ()) for kind in KINDS),
    *((kind, "last", "last", True, ()) for kind in ("1x1", "3x3", "uneven", "scale", "itself")),
    ("1x1", "tokens", "tokens", True, ("itself",)), ("1x1", "tokens", "tokens", True, ("matrix",)),
    ("uneven", "tokens", "last", True, ()), ("whole", "flattened", "vector", True, ()),
    ("whole", "last", "one pixel", True, ()), ("3x3", "plain", "tokens", True, ("scale", "itself")),
    ("pool", "plain", "one pixel", True, ()), ("pooled matrix", "last", "vector", True, ("scale",)),
    ("pooled matrix", "plain", "vector", True, ()), ("pooled matrix", "tokens", "one pixel", True, ("itself",)),
    ("matrix", "heads", "plain", True, ("select",)), ("scale", "last", "plain", True, ("itself",)),
)  # fmt: skip
"""What the first term is, the layouts of its source and of what is made, whether there is a bias, the other terms."""


def write(
    kind: str, read: str, made: str, others: Sequence[str], dialect: object, *, biased: bool
) -> tuple[Emission, dict[str, Carried], Carried]:
    """The emission of `kind` and pointwise others, its sources, and what it makes.

    Raises:
        GeometryError: it cannot be written.
    """
    dims = (1, C, 6, 5)
    first = KINDS[kind]().of_sides(dims[2:])
    sources = {"s0": Carried("s0", LAYOUTS[read], dims)}
    size = first.makes(dims)
    output = Carried("y", {**LAYOUTS, **GONE}[made], size)
    terms = [first]
    for number, other in enumerate(others, 1):
        term = KINDS[other]()
        term = Term(f"s{number}", term.form, [*term.few()])
        sources[term.source] = Carried(term.source, {**LAYOUTS, **GONE}[made], size)
        terms.append(term)
    bias = Bias((lambda: Constant.stored(random(C)())) if biased else None, 2**-24)
    return emission(output, Expression(tuple(terms), bias), list(sources.values()), dialect), sources, output


def shape(tensor: Carried) -> list[int]:
    return [side for side in tensor.size if isinstance(side, int)]


def counted_in_onnx(written: Emission, sources: dict[str, Carried], output: Carried) -> Cost:
    nodes = onnx_writer.emit(
        "y", "y", written, element_type=TensorProto.FLOAT, names=onnx_writer.Names({"y", *sources}), opset=17
    )
    read = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape(tensor)) for name, tensor in sources.items()]
    made = [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape(output))]
    graph = helper.make_graph(nodes.nodes, "written", read, made, nodes.weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    sizes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in (*read, *made, *graph.value_info)}
    sizes |= {t.name: list(t.dims) for t in nodes.weights}
    held = {t.name for t in nodes.weights}
    assert [n for _, n in written.stored] == [prod(sizes[name]) for name in nodes.multiplied]
    total = Cost()
    products = {node.output[0] for node in nodes.nodes if node.op_type == "MatMul"}
    for node in nodes.nodes:
        if node.op_type == "Add" and node.input[0] in products and node.input[1] in held:
            continue  # the bias of the product, which is one kernel with it
        operands = [sizes[name] for name in node.input if name not in held]
        weights = [sizes[name] for name in node.input if name in held]
        channels = -1 if node.op_type == "MatMul" else 1
        total += cost_of(KIND_OF[node.op_type], operands, weights, sizes[node.output[0]], channels)
    return total


def counted_in_program(written: Emission, sources: dict[str, Carried], output: Carried) -> Cost:
    module = fx.GraphModule({}, fx.Graph())
    nodes = {name: module.graph.placeholder(name) for name in sources}
    for name, source in sources.items():
        nodes[name].meta["val"] = torch.empty(shape(source))
    nodes["y"] = module.graph.call_function(torch.zeros, ((1,),))
    nodes["y"].meta["val"] = torch.empty(shape(output))
    module.graph.output(nodes["y"])
    weights = program_writer.emit(module, nodes, "y", written, [nodes["y"]]).weights
    assert [n for _, n in written.stored] == [getattr(module, str(node.target)).numel() for node in weights]
    module.graph.eliminate_dead_code()
    values: dict[fx.Node, Tensor] = {}
    total = Cost()
    for node in module.graph.nodes:
        if node.op == "placeholder":
            values[node] = torch.zeros(shape(sources[node.name]))
        elif node.op == "get_attr":
            values[node] = getattr(module, str(node.target)).detach()
        elif node.op == "call_function":
            values[node] = node.target(*fx.node.map_arg(node.args, values.__getitem__))
            held = [list(values[n].shape) for n in node.all_input_nodes if n.op == "get_attr"]
            read = [list(values[n].shape) for n in node.all_input_nodes if n.op != "get_attr"]
            again = read * 2 if "add" in str(node.target) and len(node.all_input_nodes) == 1 else read
            channels = -1 if "linear" in str(node.target) else 1
            total += cost_of(str(node.target).split(".")[1], again, held, list(values[node].shape), channels)
        else:
            assert tuple(values[node.args[0]].shape) == tuple(shape(output))
    return total


KIND_OF = {
    "Conv": "conv2d", "ConvTranspose": "conv_transpose2d", "Gemm": "linear", "MatMul": "linear", "Mul": "mul",
    "Add": "add", "Transpose": "permute", "Reshape": "reshape", "Identity": "reshape",
    "AveragePool": "pool", "GlobalAveragePool": "pool", "ReduceMean": "pool",
}  # fmt: skip


def cost_of(kind: str, read: Sequence[list[int]], weights: Sequence[list[int]], made: list[int], channels: int) -> Cost:
    """Of one operation, from the shapes of the tensors and weights it reads and of what it makes, bias not counted."""
    if kind == "reshape":
        return Cost()
    moved = sum(map(prod, read)) + prod(made)
    if not kind.startswith(("conv", "linear")):
        assert kind in ("mul", "add", "permute", "pad", "pool", "mean", "avg_pool2d"), kind
        return Cost(0, moved)
    over = read[0] if "transpose" in kind else made
    applied = prod(over) / over[channels] * prod(weights[0])
    return Cost(applied, moved + prod(weights[0]), 1)


WAYS = {
    "onnx": (onnx_writer.DIALECT, counted_in_onnx), "program": (program_writer.DIALECT, counted_in_program),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_what_is_written_costs_its_price(way: str) -> None:
    dialect, count = WAYS[way]
    for kind, read, made, biased, others in TABLE:
        written, sources, output = write(kind, read, made, others, dialect, biased=biased)
        assert count(written, sources, output) == written.cost, (kind, read, made, biased, others)


@settings(max_examples=60, derandomize=True, deadline=None)
@given(
    st.sampled_from(sorted(KINDS)), st.sampled_from(sorted(LAYOUTS)), st.sampled_from(sorted(LAYOUTS)),
    st.lists(st.sampled_from(["1x1", "scale", "itself", "matrix", "select", "depthwise"]), max_size=3), st.booleans(),
)  # fmt: skip
def test_anything_that_is_written_costs_its_price(
    kind: str, read: str, made: str, others: list[str], biased: bool
) -> None:
    for dialect, count in WAYS.values():
        try:
            written, sources, output = write(kind, read, made, others, dialect, biased=biased)
        except GeometryError:
            assume(False)
        assert count(written, sources, output) == written.cost
