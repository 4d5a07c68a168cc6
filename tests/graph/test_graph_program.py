"""The same core on programs that torch.export wrote."""

from __future__ import annotations

import io
import warnings
from collections import Counter
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

import repconv
from repconv.benchmarks.studies.graph.networks import randomise
from repconv.graph import fuse_program
from repconv.graph.program.fuse import rewrite
from repconv.graph.program.proof.prove import program_regions
from repconv.graph.program.writer import _identity


def kinds(program: torch.export.ExportedProgram) -> Counter[str]:
    return Counter(str(n.target) for n in program.graph.nodes if n.op == "call_function")


def export(model: nn.Module, x: Tensor, **options: object) -> torch.export.ExportedProgram:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.export(model, (x,), **options)


class InPlace(nn.Module):
    """A sum written over its first term, as many re-parameterised models do."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        out = self.first(x)
        out += self.second(x)
        return self.norm(out).relu_()


def test_a_network_of_blocks_is_what_fuse_makes_of_it() -> None:
    model, x = randomise(repconv.create_model("irep_resnet18", width=8, blocks=(1,))), torch.randn(2, 3, 16, 16)
    program, report = fuse_program(export(model, x))
    direct, known = repconv.fuse(model)
    assert report.after.convolutions == known.after.convolutions
    assert report.after.batch_norms == known.after.batch_norms == 0
    with torch.no_grad():
        ours, theirs = program.module()(x), direct(x)
    assert float((ours - theirs).abs().max() / theirs.abs().max()) < 1e-5


def test_open_sizes_stay_open_and_the_result_saves() -> None:
    model, x = randomise(InPlace()), torch.randn(2, 4, 9, 8)
    auto = torch.export.Dim.AUTO
    program, report = fuse_program(export(model, x, dynamic_shapes=({0: auto, 2: auto, 3: auto},)))
    assert kinds(program)["aten.conv2d.default"] == report.after.convolutions == 1
    assert not any("batch_norm" in kind or "add" in kind for kind in kinds(program))
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    other = torch.randn(3, 4, 7, 12)
    with torch.no_grad():
        wanted = model.double()(other.double())
        got = torch.export.load(buffer).module()(other)
    assert float((got - wanted).abs().max()) < 1e-5


class Named(nn.Module):
    """With an input that is given by its name alone."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor, *, scores: Tensor) -> Tensor:
        return self.norm(self.convolution(x)).relu() + scores


def test_open_sizes_of_named_inputs_stay_open() -> None:
    model, auto = randomise(Named()), torch.export.Dim.AUTO
    given = torch.randn(2, 3, 8, 8), torch.randn(2, 4, 6, 6)
    sizes = {"x": {0: auto}, "scores": {0: auto}}
    program, _ = fuse_program(torch.export.export(model, given[:1], {"scores": given[1]}, dynamic_shapes=sizes))
    x, scores = torch.randn(5, 3, 8, 8), torch.randn(5, 4, 6, 6)
    with torch.no_grad():
        wanted = model.double()(x.double(), scores=scores.double())
        assert float((program.module()(x, scores=scores) - wanted).abs().max()) < 1e-5


def test_float64_agrees_to_rounding() -> None:
    model, x = randomise(InPlace()).double(), torch.randn(2, 4, 9, 8, dtype=torch.float64)
    program, _ = fuse_program(export(model, x))
    with torch.no_grad():
        assert float((program.module()(x) - model(x)).abs().max()) < 1e-12


@pytest.mark.parametrize("mode", ["reflect", "circular"])
def test_other_padding_modes_stay_what_they_are(mode: str) -> None:
    branch = nn.Conv2d(4, 4, 3, padding=1, padding_mode=mode)
    model, x = nn.Sequential(branch, nn.BatchNorm2d(4), nn.ReLU()), torch.randn(1, 4, 8, 8)
    program, _ = fuse_program(export(randomise(model), x))
    with torch.no_grad():
        assert float((program.module()(x) - model(x)).abs().max()) < 1e-5


def test_a_program_with_nothing_to_gain_is_returned_as_it_is() -> None:
    program = export(nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU()).eval(), torch.randn(1, 4, 8, 8))
    same, report = fuse_program(program)
    assert same is program
    assert not report.layers


def test_fuse_with_example_inputs_is_the_same_core() -> None:
    model, x = randomise(nn.Sequential(InPlace(), InPlace())), torch.randn(2, 4, 9, 8)
    program, report = repconv.fuse(model, x)
    assert report.after.convolutions == 2
    assert [layer.geometry for layer in report.layers] == ["3x3, 4 -> 4"] * 2
    assert report.layers[0].before.convolutions == 2
    assert report.after.flops < report.before.flops
    with torch.no_grad():
        assert float((program.module()(x) - model.double()(x.double())).abs().max()) < 1e-5


def test_fuse_says_what_torch_export_cannot_follow() -> None:
    class Looks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if float(x.sum()) > 0 else -x

    with pytest.raises(repconv.FusionError, match=r"torch\.export cannot follow Looks"):
        repconv.fuse(Looks().eval(), torch.randn(1, 4, 8, 8))
    with pytest.raises(repconv.FusionError, match=r"training mode \(at its root\); call model.eval\(\)"):
        repconv.fuse(InPlace(), torch.randn(1, 4, 8, 8))


def test_a_module_that_computes_with_data_of_parameters_folds() -> None:
    """torch.export follows it by its other way only: a border of `.data`, as DyRep's blocks pad theirs."""

    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm, self.second = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            y, norm = self.norm(self.first(x)), self.norm
            value = norm.bias.data - norm.running_mean * norm.weight.data / torch.sqrt(norm.running_var + norm.eps)
            value = value + self.first.bias.data * norm.weight.data / torch.sqrt(norm.running_var + norm.eps)
            border = value.view(1, -1, 1, 1).expand(y.shape[0], -1, 1, y.shape[3])
            y = torch.cat([border, y, border], dim=2)
            border = value.view(1, -1, 1, 1).expand(y.shape[0], -1, y.shape[2], 1)
            return self.second(torch.cat([border, y, border], dim=3))

    model, x = randomise(Padded()), torch.randn(2, 4, 9, 8)
    program, report = repconv.fuse(model, x)
    assert report.after.convolutions == 1
    with torch.no_grad():
        assert float((program.module()(x) - model.double()(x.double())).abs().max()) < 1e-5


def test_every_region_is_measured_against_what_it_stands_for() -> None:
    model, x = randomise(nn.Sequential(InPlace(), InPlace())), torch.randn(2, 4, 9, 8)
    rewritten = rewrite(export(model, x))
    found = program_regions(rewritten, (x,))
    assert [c.where for c in found] == [layer.name for layer in rewritten.report.layers]
    assert all(c.passed and 0 < c.error.to_scale < 1e-6 for c in found)
    weight = next(p for name, p in rewritten.after.named_parameters() if name.endswith("_weight"))
    with torch.no_grad():
        weight[0, 0, 0, 0] += 0.1
    first, second = program_regions(rewritten, (x,))
    assert not first.passed
    assert second.passed, "proven whatever the first gives"


class Parted(nn.Module):
    """Two halves of the channels, one convolution each, joined again."""

    def __init__(self, part: Callable[[Tensor], Sequence[Tensor]]) -> None:
        super().__init__()
        self.part = part
        self.before = nn.Conv2d(6, 6, 1, bias=False)
        self.after = nn.ModuleList(nn.Conv2d(3, 3, 3, padding=1, bias=False) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.part(x)[:2]
        return (self.after[0](first) + self.after[1](second)).relu()


class Cut(nn.Module):
    """A convolution, rows and columns of it, another convolution beside one that needs no cutting."""

    def __init__(self, part: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.part, self.first, self.norm = part, nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.part(self.first(x))).relu()


PARTS: dict[str, Callable[[Tensor], Sequence[Tensor]]] = {
    "split": lambda x: x.split(3, 1), "split in sizes": lambda x: x.split([3, 3], 1), "chunk": lambda x: x.chunk(2, 1),
    "chunk counted from behind": lambda x: x.chunk(2, -3), "slices": lambda x: (x[:, :3], x[:, 3:]),
    "two of three": lambda x: (x.split([3, 2, 1], 1)[0], x[:, 1:4]),
}  # fmt: skip
KEPT: dict[str, Callable[[Tensor], Sequence[Tensor]]] = {
    "parts of the batch": lambda x: [torch.cat([p, p])[:, 1:4] for p in x.split(1)],
    "rows backwards": lambda x: [x.flip(2)[:, :3], x[:, 3:]],
}
CUTS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "rows": (lambda x: x[:, :, 1:-1], lambda x: x[:, :, [2, 1, 0]]),
    "every second column": (lambda x: x[..., ::2], lambda x: x.roll(1, 3)),
    "all rows but the last": (lambda x: x[:, :, :-1], lambda x: x[:1].expand(2, -1, -1, -1)),
    "eight of nine rows": (lambda x: x.split([8, 1], 2)[0], lambda x: x.split([1, 8], 2)[1].flip(2)),
}


@pytest.mark.parametrize("name", [*PARTS, *KEPT])
def test_parts_of_the_channels_are_read_by_one_convolution(name: str) -> None:
    model, x = randomise(Parted({**PARTS, **KEPT}[name])), torch.randn(2, 6, 8, 7)
    program, report = fuse_program(export(model, x))
    if name in PARTS:
        assert kinds(program) == {"aten.conv2d.default": 1, "aten.relu.default": 1}, report.refusals
    else:
        assert report.after.convolutions == 2
    with torch.no_grad():
        assert float((program.module()(x) - model(x)).abs().max()) < 1e-5


@pytest.mark.parametrize("open_size", [False, True], ids=["fixed", "open"])
@pytest.mark.parametrize("name", CUTS)
def test_rows_and_columns_are_taken_by_the_convolution(name: str, open_size: bool) -> None:
    x, auto = torch.randn(2, 6, 9, 8), torch.export.Dim.AUTO
    open_size = open_size and "of nine" not in name
    sizes = ({2: auto, 3: auto},) if open_size else None
    for part, is_fused in zip(CUTS[name], (True, False), strict=True):
        model = randomise(Cut(part))
        program, report = fuse_program(export(model, x, dynamic_shapes=sizes))
        found = set(kinds(program)) - {"aten.pad.default"}  # two sides padded differently
        assert (found == {"aten.conv2d.default", "aten.relu.default"}) == is_fused, report.refusals
        for image in (x, torch.randn(2, 6, 12, 11)) if open_size else (x,):
            with torch.no_grad():
                assert float((program.module()(image) - model(image)).abs().max()) < 1e-5


class Concatenated(nn.Module):
    """A 1x1 convolution of two tensors side by side, as the necks of detectors have them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(128, 16, 1, bias=False), nn.BatchNorm2d(16)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat([nn.functional.interpolate(x, scale_factor=2), x.repeat(1, 1, 2, 2).relu()], 1)
        return self.norm(self.conv(both)).relu()


def test_a_search_that_saves_traffic_does_not_split_convolutions() -> None:
    """Two convolutions added would save writing the concatenation, and be one more than there was."""
    program, report = fuse_program(export(randomise(Concatenated()), torch.randn(1, 64, 20, 20)))
    assert kinds(program)["aten.conv2d.default"] == 1
    assert report.after.batch_norms == 0


def test_what_only_zeros_would_read_is_not_written_and_not_proven() -> None:
    class Residual(nn.Module):
        """A branch that ends in a normalisation of weight 0, as residual blocks are often initialised."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
            self.second, self.last = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
            nn.init.zeros_(self.last.weight)

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(x + self.last(self.second(torch.relu(self.norm(self.first(x))))))

    fused, report = repconv.fuse(Residual().eval(), torch.randn(1, 4, 8, 8))
    assert report.agreement is not None
    assert report.agreement.passed
    assert report.after.convolutions == 0
    x = torch.randn(1, 4, 8, 8)
    torch.testing.assert_close(fused.module()(x), torch.relu(x))


class Turned(nn.Module):
    """A normalised image that is read as it is, and turned twice: two tensors that one node writes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        return y.relu() + y.transpose(2, 3).transpose(2, 3).sigmoid()


def test_of_two_tensors_that_one_node_writes_the_first_is_proven_by_what_it_reads() -> None:
    x = torch.randn(1, 3, 4, 3)
    rewritten = rewrite(export(randomise(Turned()).eval(), x))
    written = list(rewritten.pairs.values())
    assert len(set(written)) < len(written)
    assert all(region.passed for region in program_regions(rewritten, [x]))


class Sloped(nn.Module):
    """A slope a channel, by Python's numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("slopes", torch.tensor(-1.0).view(1, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(self.slopes > 0, x, x * 0.1) * 2


def test_numbers_in_the_code_are_read_in_float64() -> None:
    x = torch.randn(3, 1, 4, 3, dtype=torch.float64)
    program, _ = fuse_program(export(Sloped().double(), x))
    assert kinds(program) == {"aten.mul.Tensor": 1}
    torch.testing.assert_close(program.module()(x), x * 0.2, rtol=1e-15, atol=0)


def test_a_number_that_keeps_the_stride_of_a_longer_axis_is_the_same_number() -> None:
    number = torch.tensor([2.0, 3.0])[::2]
    assert number.stride() == (2,)
    assert _identity(number) == _identity(torch.tensor([2.0])) != _identity(torch.tensor([3.0]))
