"""Every command takes inputs of any number of pixel axes, by a shape with its batch or without."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch

from repconv.benchmarks.studies.graph.networks import to_onnx
from repconv.blocks.probing import example_shape
from repconv.errors import SourceError
from repconv.export.settings import BuildSettings, parse_image

Command = Callable[..., tuple[int, str, str]]
NETS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, axes, channels):
        super().__init__()
        torch.manual_seed(0)
        conv = {0: nn.Linear, 1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[axes]
        norm = {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[axes]
        self.a = conv(channels, 8, 3, padding=1) if axes else conv(channels, 8)
        self.b = conv(channels, 8, 1) if axes else conv(channels, 8)
        self.n, self.head, self.axes = norm(8), nn.Linear(8, 5), axes

    def forward(self, x):
        y = torch.relu(self.n(self.a(x) + self.b(x)))
        return self.head(y.mean(tuple(range(2, 2 + self.axes))) if self.axes else y)

def rows(): return Net(0, 12)
def sequences(): return Net(1, 8)
def images(): return Net(2, 3)
def clips(): return Net(3, 3)
"""
SHAPES = {"rows": "12", "sequences": "8,20", "images": "12,10", "clips": "3,6,8,8"}


@pytest.mark.parametrize("kind", [k if k == "sequences" else pytest.param(k, marks=pytest.mark.slow) for k in SHAPES])
def test_every_command_takes_it(kind: str, command_line: Command, tmp_path: Path) -> None:
    (tmp_path / "nets_of_test.py").write_text(NETS)
    source, shape = f"nets_of_test:{kind}", ("--input-shape", SHAPES[kind])
    for arguments in (
        ("inspect", source, *shape),
        ("fuse", source, "-o", "a.onnx", *shape, "--dynamic-batch"),
        ("fuse", source, "-o", "a.pt2", *shape),
        ("fuse", "a.onnx", "-o", "again.onnx"),
        ("export", source, "--to", "onnx", "-o", "b.onnx", "--batch", "1:2:3", *shape),
        ("verify", source, "a.onnx", *shape),
        ("verify", "a.pt2", "b.onnx"),
    ):
        code, _, said = command_line(*arguments)
        assert code == 0, (arguments, said)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", ["sequences", *(pytest.param(k, marks=pytest.mark.exhaustive) for k in ("rows", "clips"))]
)
def test_it_is_timed_and_built_for_another_runtime(kind: str, command_line: Command, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    (tmp_path / "nets_of_test.py").write_text(NETS)
    source, shape = f"nets_of_test:{kind}", ("--input-shape", SHAPES[kind])
    backends = ("--backend", "onnxruntime,torch", "--rounds", "2", "--seconds", "0.1")
    for arguments in (
        ("export", source, "--to", "openvino", "-o", "b.xml", *shape),
        ("bench", source, *shape, *backends),
    ):
        code, _, said = command_line(*arguments)
        assert code == 0, (arguments, said)


@pytest.mark.parametrize("kind", ["sequences", "clips"])
def test_open_sides_are_given(kind: str, command_line: Command, tmp_path: Path) -> None:
    found: dict[str, object] = {}
    exec(compile(NETS, "nets", "exec"), found)  # noqa: S102  # the text above
    shape = tuple(map(int, SHAPES[kind].split(",")))
    open_sides = {axis: f"side{axis}" for axis in range(len(shape) + 1) if axis != 1}
    model = to_onnx(found[kind]().eval(), torch.zeros(1, *shape), dynamic_axes={"x": open_sides})
    onnx.save(model, tmp_path / "open.onnx")
    code, _, said = command_line("fuse", "open.onnx", "-o", "fused.onnx")
    assert code == 2
    assert f"--input-shape {shape[0]},100" in said
    for given in (SHAPES[kind], f"1,{SHAPES[kind]}"):
        code, _, said = command_line("fuse", "open.onnx", "-o", "fused.onnx", "--input-shape", given)
        assert code == 0, said
    code, _, said = command_line("verify", "open.onnx", "fused.onnx", "--input-shape", SHAPES[kind], "--json", "v.json")
    assert code == 0, said
    assert {"sequences": "2x8x23", "clips": "2x3x7x11x13"}[kind] in (tmp_path / "v.json").read_text()
    code, _, said = command_line("fuse", "open.onnx", "-o", "other.onnx", "--input-shape", "2,3,4,5,6")
    assert code == 2
    assert "and the shape given is 2,3,4,5,6" in said


def test_what_numbers_mean() -> None:
    for given, axes, wanted in (
        ((224, 200), 2, (3, 224, 200)), ((1, 9, 8), 2, (1, 9, 8)), ((1, 4, 9, 8), 2, (4, 9, 8)),
        ((80, 300), 1, (80, 300)),
        ((1, 80, 300), 1, (80, 300)), ((1, 6, 9, 8), 3, (1, 6, 9, 8)), ((1, 1, 6, 9, 8), 3, (1, 6, 9, 8)),
        ((12,), 0, (12,)), ((1, 12), 0, (12,)), ((5, 6), None, (3, 5, 6)), ((7, 5, 6), None, (7, 5, 6)),
    ):  # fmt: skip
        assert example_shape(given, axes) == wanted
    for given, axes in (((224,), 2), ((2, 3, 9, 8), 2), ((80,), 1), ((9, 8), 3)):
        with pytest.raises(SourceError, match="and the shape given is"):
            example_shape(given, axes, "net")


def test_sizes_to_build_for_are_settled_by_what_is_built() -> None:
    for text, axes, channels, image in (
        ("224,200", 2, None, "224,200"), ("3,224,200", 2, 3, "224,200"), ("1,3,8:16:32,8", 2, 3, "8:16:32,8"),
        ("80,8:100:300", 1, 80, "8:100:300"), ("16,8,8", 3, None, "16,8,8"), ("3,16,8,8", 3, 3, "16,8,8"),
        ("12", 0, 12, ""),
    ):  # fmt: skip
        settled = BuildSettings(image=parse_image(text)).of_axes(axes, "net")
        assert (settled.channels, ",".join(map(str, settled.image or ()))) == (channels, image)
    with pytest.raises(SourceError, match="net takes 1 sizes, with the channels 2; got --input-shape 3,4,5"):
        BuildSettings(image=parse_image("3,4,5")).of_axes(1, "net")
    with pytest.raises(SourceError, match="channels is one number, not a range"):
        BuildSettings(image=parse_image("1:2:3,4")).of_axes(1, "net")
