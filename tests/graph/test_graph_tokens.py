"""Products by matrices between layouts: of tokens, heads and channels-last blocks, from ONNX and as programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from repconv.benchmarks.studies.graph.networks import randomise, specimen, to_onnx
from repconv.graph import fuse_onnx, fuse_program
from repconv.graph.core.dims import told
from repconv.graph.maps.arrangement import changes
from repconv.graph.maps.carried import Carried
from repconv.graph.maps.layout import BATCH, Atom, Layout


class Normed(nn.Module):
    """A product by a matrix, and batch normalisation of all tokens at once, as LeViT's authors write it."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(channels, out, bias=False), nn.BatchNorm1d(out)

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x)
        return self.norm(x.flatten(0, 1)).reshape_as(x)


class Attention(nn.Module):
    """Queries of every second row and column, keys and values, each of two heads; what they make is projected."""

    def __init__(self) -> None:
        super().__init__()
        self.both, self.queries, self.projection = Normed(8, 16), Normed(8, 8), Normed(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[0]
        keys, values = self.both(x).view(n, 24, 2, 8).split([4, 4], 3)
        few = x.view(n, 4, 6, 8)[:, ::2, ::2].reshape(n, 6, 8)
        queries = self.queries(few).view(n, 6, 2, 4).permute(0, 2, 1, 3)
        seen = (queries @ keys.permute(0, 2, 3, 1)).softmax(-1) @ values.permute(0, 2, 1, 3)
        return self.projection(functional.hardswish(seen.transpose(1, 2).reshape(n, 6, 8)))


class ChannelsLast(nn.Module):
    """ConvNeXt's block: its layer scale comes after the channels are first again."""

    def __init__(self) -> None:
        super().__init__()
        self.depthwise, self.norm = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.LayerNorm(8)
        self.wide, self.narrow = nn.Linear(8, 32), nn.Linear(32, 8)
        self.gamma = nn.Parameter(torch.rand(8, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        return x + self.gamma * self.narrow(functional.hardswish(self.wide(y))).permute(0, 3, 1, 2)


class Scaled(nn.Module):
    """A matrix times tokens, moved there `first` or moved back `then`, and a factor a channel."""

    def __init__(self, first: Callable[[Tensor], Tensor], then: Callable[[Tensor], Tensor], *shape: int) -> None:
        super().__init__()
        self.first, self.then, self.linear = first, then, nn.Linear(8, 8)
        self.factors = nn.Parameter(torch.rand(shape) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return functional.hardswish(self.then(self.linear(self.first(x))) * self.factors)


def as_it_is(x: Tensor) -> Tensor:
    return x


IMAGE = (8, 4, 6)
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], dict[str, int]]] = {
    "heads": (Attention, (24, 8), {"linear": 3, "move": 4}),
    "channels last": (ChannelsLast, IMAGE, {"conv": 1, "linear": 2, "move": 2}),
    "moved, then multiplied": (lambda: Scaled(lambda x: x.permute(0, 2, 3, 1), as_it_is, 8), IMAGE,
                               {"linear": 1, "move": 1}),
    "flattened, then multiplied": (lambda: Scaled(lambda x: x.flatten(2).transpose(1, 2), as_it_is, 8), IMAGE,
                                   {"linear": 1, "move": 1, "reshape": 1}),
    "multiplied, then moved": (lambda: Scaled(as_it_is, lambda x: x.permute(0, 3, 1, 2), 8, 1, 1), (4, 6, 8),
                               {"linear": 1, "move": 1}),
}  # fmt: skip
WORDS = {
    "Conv": "conv", "conv2d": "conv", "MatMul": "linear", "Gemm": "linear", "linear": "linear",
    "BatchNormalization": "norm", "_native_batch_norm_legit_no_training": "norm", "batch_norm": "norm", "Mul": "mul",
    "mul": "mul", "Transpose": "move", "transpose": "move", "permute": "move", "Reshape": "reshape",
    "view": "reshape", "reshape": "reshape", "flatten": "reshape",
}  # fmt: skip


def counted(kinds: list[str], wanted: dict[str, int]) -> dict[str, int]:
    """How many operations there are of each kind; of reshapes, which cost nothing, only where that is wanted."""
    found = Counter(WORDS[kind] for kind in kinds if kind in WORDS)
    return {word: n for word, n in found.items() if word != "reshape" or word in wanted}


@pytest.mark.parametrize(("batch", "is_open"), [(1, False), (3, False), (3, True)], ids=["1", "3", "open"])
@pytest.mark.parametrize("name", CASES)
def test_matrices_stay_matrices_and_take_what_is_behind_them(name: str, batch: int, is_open: bool) -> None:
    torch.manual_seed(0)
    make, shape, wanted = CASES[name]
    model, x = randomise(make()).eval(), torch.randn(batch, *shape)
    axes, sizes = ({"x": {0: "n"}}, ({0: torch.export.Dim("n", max=64)},)) if is_open else (None, None)

    fused, report = fuse_onnx(to_onnx(model, x, dynamic_axes=axes))
    assert report.agreement.passed
    computed = {"linear": 2} if name == "heads" else {}  # products of two tensors are MatMuls as well
    kinds = [node.op_type for node in fused.graph.node]
    assert counted(kinds, wanted) == dict(Counter(wanted) + Counter(computed)), report.refusals

    program, report = fuse_program(torch.export.export(model, (x,), dynamic_shapes=sizes))
    assert report.agreement.passed
    kinds = [
        str(node.target).removeprefix("aten.").split(".")[0]
        for node in program.graph.nodes
        if node.op == "call_function"
    ]
    assert counted(kinds, wanted) == wanted, report.refusals
    for given in (x, torch.randn(2, *shape)) if axes else (x,):
        torch.testing.assert_close(program.module()(given), model(given).detach(), rtol=0, atol=3e-5)
        (made,) = onnxruntime.InferenceSession(fused.SerializeToString()).run(None, {"x": given.numpy()})
        torch.testing.assert_close(torch.from_numpy(made), model(given).detach(), rtol=0, atol=3e-5)


class Halves(nn.Module):
    """Channels in two halves as images of their own, convolved and together again; then the halves change places."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.then, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        n, c, h, w = y.shape
        y = self.last(self.then(y.view(n * 2, c // 2, h, w))).view_as(y)
        for _ in range(2):
            a, b = y.flatten(2).chunk(2, 1)
            y = torch.cat([b, a], 1).view_as(y)
        return y.relu()


def test_a_view_as_another_tensor_copies_where_memory_lies_otherwise() -> None:
    torch.manual_seed(0)
    model, x = Halves().eval(), torch.randn(2, 3, 8, 8)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("n", max=64)},))
    fused, report = fuse_program(program)
    assert report.layers
    assert report.agreement.passed
    for given in (x, torch.randn(3, 3, 8, 8)):
        torch.testing.assert_close(fused.module()(given), model(given).detach(), rtol=0, atol=3e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The tensor attributes:UserWarning")
@pytest.mark.parametrize("name", ["levit_128s", pytest.param("iformer_t", marks=pytest.mark.exhaustive)])
def test_a_network_of_an_open_batch_folds_as_one_of_a_fixed_batch(name: str) -> None:
    found = specimen(name)
    model, x = found.model, torch.cat([found.x, found.x])
    sizes = ({0: torch.export.Dim("n", max=64)},)
    programs = [
        fuse_program(torch.export.export(model, (x,), dynamic_shapes=each), prove=False) for each in (None, sizes)
    ]
    files = [fuse_onnx(to_onnx(model, x, dynamic_axes=each), prove=False) for each in (None, {"x": {0: "n"}})]
    for (_, fixed), (_, opened) in (programs, files):
        assert opened.before.batch_norms
        assert (opened.after.batch_norms, opened.after.convolutions) == (0, fixed.after.convolutions)


def test_flops_are_known_of_convolutions_between_changes_of_layout() -> None:
    model, x = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)).eval(), torch.randn(1, *IMAGE)
    turned = Scaled(model, lambda x: x, 8).eval()
    turned.linear = nn.Identity()
    turned.then = lambda y: y.permute(0, 2, 3, 1)
    _, report = fuse_program(torch.export.export(turned, (x,)))
    assert report.after.flops == report.before.flops == 2 * 8 * 8 * 9 * 24


def test_axes_of_one_channel_each_are_told_apart_when_they_move() -> None:
    one, rows, columns = (Atom("channels", 1),), (Atom("pixel", 0),), (Atom("pixel", 1),)
    layouts = Layout(((BATCH,), one, rows, one, columns)), Layout(((BATCH,), columns, one, one, rows))
    (kind, order), *rest = changes(*(Carried("x", layout, told((2, 1, 5, 4))) for layout in layouts))
    assert (kind, sorted(order), rest) == ("permute", [0, 1, 2, 3, 4], [])
    assert torch.zeros(2, 1, 5, 1, 4).permute(order).shape == (2, 4, 1, 1, 5)
