"""Graphs of a fixed batch, of several inputs, of integers, dictionaries and keywords: they work, or it is said how."""

import io

import onnx
import pytest
import torch
from torch import nn

from repconv.graph import fuse_program

IMAGE, DEPTH = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.ones(4, 1, 8, 8)
BENCH = ["--rounds", "2", "--sessions", "1", "--seconds", "0.01", "--calls", "2", "--warmup", "0.01"]


class Block(nn.Module):
    """Two branches and a norm."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(channels, 4, 3, padding=1), nn.Conv2d(channels, 4, 1)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x):
        return torch.relu(self.norm(self.a(x) + self.b(x)))


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = Block(), Block(1)

    def forward(self, image, depth):
        return self.one(image) + self.two(depth)


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.block = nn.Embedding(50, 8), Block(1)

    def forward(self, ids):
        return self.block(self.words(ids).unsqueeze(1))


class Pair(nn.Embedding):
    def __init__(self) -> None:
        super().__init__(9, 4)

    def forward(self, first, second):
        return super().forward(first) + super().forward(second)


class Dictionary(Block):
    def forward(self, batch):
        return {"y": super().forward(batch["image"] * batch["scale"])}


class Keyword(Block):
    def forward(self, x, *, scale, shift):
        return super().forward(x * scale + shift)


SUBJECTS = {
    "fixed": (Block, (IMAGE,), {}),
    "two": (Two, (IMAGE, DEPTH), {}),
    "tokens": (Tokens, (torch.zeros(4, 8, dtype=torch.int64),), {}),
    "dictionary": (Dictionary, ({"image": IMAGE, "scale": torch.ones(1)},), {}),
    "keyword": (Keyword, (IMAGE,), {"shift": torch.zeros(1), "scale": torch.full((1,), 2.0)}),
}


def program(name: str) -> torch.export.ExportedProgram:
    kind, given, named = SUBJECTS[name]
    torch.manual_seed(0)
    return torch.export.export(kind().eval(), given, named, strict=False)


@pytest.fixture
def files(tmp_path, monkeypatch):
    """All of them as programs, and those that older exporters take as ONNX."""
    monkeypatch.chdir(tmp_path)
    for name, (kind, given, _) in SUBJECTS.items():
        torch.export.save(program(name), f"{name}.pt2")
        if name in ("fixed", "two", "tokens"):
            torch.manual_seed(0)
            stream = io.BytesIO()
            torch.onnx.export(kind().eval(), given, stream, dynamo=False)
            onnx.save(onnx.load_from_string(stream.getvalue()), f"{name}.onnx")
    return tmp_path


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.usefixtures("files")
def test_every_graph_is_inspected_fused_and_compared(command_line):
    for file in [f"{name}.pt2" for name in SUBJECTS] + ["fixed.onnx", "two.onnx", "tokens.onnx"]:
        out = f"fused{file[file.index('.') :]}"
        for line in (("inspect", file), ("fuse", file, "-o", out), ("verify", file, out)):
            code, said, err = command_line(*line)
            assert code == 0, (line, said, err)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.usefixtures("files")
def test_a_fixed_batch_is_told_and_what_takes_no_image_is_shown_another_way(command_line):
    for file in ("fixed.onnx", "fixed.pt2"):
        for line in (("export", file, "--to", "onnx", "-o", "e.onnx"), ("bench", file, *BENCH)):
            code, _, err = command_line(*line)
            assert (code, "a batch of 4, not 1; give --batch 4" in err) == (2, True), err
        code, _, err = command_line("export", file, "--to", "onnx", "-o", "e.onnx", "--batch", "4")
        assert code == 0, err
    for file in ("two.onnx", "two.pt2", "tokens.onnx", "tokens.pt2", "dictionary.pt2", "keyword.pt2"):
        for line in (("export", file, "--to", "onnx", "-o", "e.onnx"), ("bench", file, *BENCH)):
            code, _, err = command_line(*line)
            assert (code, f"`repconv fuse {file} -o fused.{file.partition('.')[2]}`" in err) == (
                2,
                True,
            )
    code, _, err = command_line("fuse", "two.pt2", "-o", "f.onnx")
    assert (code, "Write a program, -o fused.pt2" in err) == (2, True), err


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.usefixtures("files")
def test_a_program_of_a_fixed_batch_is_measured_in_pytorch(command_line):
    code, out, err = command_line("bench", "fixed.pt2", "--batch", "4", "--backend", "torch", *BENCH)
    assert code == 0, (out, err)


def test_networks_of_several_inputs_by_name_are_given_as_programs(command_line, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "two_inputs.py").write_text(
        "from torch import nn\nclass Net(nn.Conv2d):\n    def __init__(self): super().__init__(3, 4, 3)\n"
        "    def forward(self, image, depth): return super().forward(image + depth)\n"
    )
    size = ("--input-shape", "3,8,8")
    export = ("export", "two_inputs:Net", "--to", "onnx", "-o", "e.onnx", "--image", "8,8")
    fuse, verify = ("fuse", "two_inputs:Net", "-o", "f.pt2"), ("verify", "two_inputs:Net", "two_inputs:Net")
    for line in ((*fuse, *size), (*verify, *size), export):
        code, _, err = command_line(*line)
        assert (code, "its forward takes (image, depth)" in err, "torch.export.save" in err) == (2, True, True), err


OTHER = """
from torch import nn
class Dictionary(nn.Conv2d):
    def __init__(self): super().__init__(3, 4, 3)
    def forward(self, batch): return super().forward(batch["image"])
class Tokens(nn.Embedding):
    def __init__(self): super().__init__(9, 4)
"""


@pytest.mark.parametrize("name", ["Dictionary", "Tokens"])
def test_networks_by_name_that_take_no_image_are_told_how_they_are_given(name, command_line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "no_image.py").write_text(OTHER)
    named = (f"no_image:{name}", "--input-shape", "3,8,8")
    called = f"{name} itself fails when it is called with a tensor of 1x3x8x8, float32: "
    for command, *more in (
        ("fuse", "-o", "f.onnx"),
        ("fuse", "-o", "f.pt2"),
        ("export", "--to", "onnx", "-o", "e.onnx"),
    ):
        code, _, err = command_line(command, *named, *more)
        assert (code, called in err, "torch.export.save" in err) == (2, True, True), err
    code, _, err = command_line("inspect", *named)
    assert (code, called in err) == (0, True), err
    assert {path.name for path in tmp_path.iterdir()} <= {"no_image.py", "__pycache__"}


def test_an_open_size_is_asked_for_by_the_name_of_its_input(command_line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    size, ids = torch.export.Dim("size", min=2), torch.zeros(2, 8, dtype=torch.int64)
    both = torch.export.export(Pair().eval(), (ids, ids), dynamic_shapes=({1: size}, {1: size}))
    torch.export.save(torch.export.export(nn.Embedding(9, 4), (ids,), dynamic_shapes=({1: size},)), "one.pt2")
    torch.export.save(both, "both.pt2")
    code, _, err = command_line("verify", "one.pt2", "one.pt2")
    assert (code, "is declared as ? after its batch, and '?' is open; give a size" in err) == (2, True), err
    assert command_line("verify", "one.pt2", "one.pt2", "--input-shape", "7")[0] == 0
    code, _, err = command_line("verify", "both.pt2", "both.pt2")
    assert (code, "leave sizes other than the batch open: first (2x?), second (2x?)" in err) == (2, True), err


@pytest.mark.parametrize("name", ["dictionary", "keyword", "two"])
def test_a_program_is_fused_right_whatever_its_tensors_stand_in(name):
    _, given, named = SUBJECTS[name]
    before = program(name)
    after, report = fuse_program(before)
    assert report.layers
    assert report.agreement.passed
    assert len(report.agreement.end_to_end) > 0
    torch.testing.assert_close(after.module()(*given, **named), before.module()(*given, **named), rtol=1e-4, atol=1e-5)
