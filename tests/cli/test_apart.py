"""No command writes over what it reads, nor over another of its outputs, however the two are spelled."""

import itertools
import os

import click
import numpy as np
import onnx
import pytest

import repconv.cli
from repconv.cli.shared.command import Command, Reads, Writes, WritesFolder, parts
from repconv.errors import OutputError
from repconv.files.apart import Place, named, require_apart, written_with
from repconv.files.whole import whole_file

NAMES_NO_FILE = {
    "arguments", "state_key", "set_name", "branches",
    "fixed", "backends", "precision", "keep_float", "sm", "preset_name", "retrain_preset", "only",
}  # fmt: skip
"""Parameters of plain text that name no file; a new one that names none is added here."""


def walk(group, prefix=()):
    for name in group.list_commands(click.Context(group)):
        command = group.get_command(click.Context(group), name)
        if isinstance(command, click.Group):
            yield from walk(command, (*prefix, name))
        else:
            yield (*prefix, name), command


COMMANDS = dict(walk(repconv.cli._repconv))
INPUTS, OUTPUTS = (Reads,), (Writes, WritesFolder)


def of_kinds(command, kinds):
    return [p for p in command.params if isinstance(p.type, kinds)]


PAIRS = [
    (words, first.name, second.name)
    for words, command in COMMANDS.items()
    for first, second in itertools.chain(
        itertools.product(of_kinds(command, INPUTS), of_kinds(command, OUTPUTS)),
        itertools.combinations(of_kinds(command, OUTPUTS), 2),
    )
]


def test_every_command_checks_and_every_text_is_known_to_name_files_or_not():
    for words, command in COMMANDS.items():
        assert isinstance(command, Command), words
        for p in command.params:
            plain = isinstance(p.type, (click.Path, click.types.StringParamType)) and not isinstance(p.type, OUTPUTS)
            assert not plain or p.name in NAMES_NO_FILE, (words, p.name)
    assert len(PAIRS) > 60


def spelled(parameter, value):
    return [value] if isinstance(parameter, click.Argument) else [parameter.opts[-1], value]


def line(words, values):
    """The command with these values, and something for whatever else it needs."""
    arguments = list(words)
    for p in COMMANDS[words].params:
        value = values.get(p.name)
        if value is None and p.required:
            value = p.type.choices[0] if isinstance(p.type, click.Choice) else f"other.{p.name}"
        arguments += [] if value is None else spelled(p, str(value))
    return arguments


@pytest.mark.parametrize(("words", "first", "second"), PAIRS)
def test_no_pair_of_files_of_a_command_may_be_one(words, first, second, command_line, tmp_path):
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "kept.bin", *(tmp_path / f"other.{name}" for name in ("source", "a", "b"))):
        path.write_bytes(b"kept")
    (tmp_path / "link").symlink_to("kept.bin")
    os.link(tmp_path / "kept.bin", tmp_path / "hard")
    kinds = {p.name: p.type for p in COMMANDS[words].params}
    for one, other in values(kinds[first], kinds[second]):
        for path in {one, other} - {"folder"}:
            (tmp_path / path).exists() or path == "KEPT.BIN" or (tmp_path / path).write_bytes(b"kept")
        before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
        code, out, err = command_line(*line(words, {first: one, second: other}))
        assert code == 2, (other, out, err)
        assert "name another output" in err or "give each a file of its own" in err, err
        assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def values(first, second):
    """The same file in two spellings: a file, or one in a folder that the command reads or writes."""
    for folder, is_first in ((first, True), (second, False)):
        if getattr(folder, "inside", None) is not None:
            pairs = [("folder", f"folder/{name}") for name in folder.inside() if name != "populations"]
            return pairs if is_first else [(file, named) for named, file in pairs]
    return [("kept.bin", again) for again in ("kept.bin", "./folder/../kept.bin", "link", "hard", "KEPT.BIN")]


@pytest.mark.parametrize(
    ("text", "files"),
    [
        ("w.pt", ["w.pt"]),
        ("timm:resnet18@w.pt", ["w.pt"]),
        ("nets:net@w.pt", ["w.pt", "nets.py"]),
        ("pack.nets:net", ["pack/nets.py"]),
        ("pack/nets.py:net", ["pack/nets.py"]),
        ("supernet=w.pt", ["w.pt"]),
        ("network=nets:net", ["nets.py"]),
        ("imagefolder:images", ["images"]),
        ("data=imagefolder:images", ["images"]),
        ("m.xml", ["m.xml", "m.bin"]),
        ("m.engine", ["m.engine", "m.engine.json"]),
        ("m.onnx", ["m.onnx", "weights"]),
        ("timm:images", []),  # a folder of that name is none that is read
    ],
)
def test_what_a_text_names(text, files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("images", "pack"):
        (tmp_path / folder).mkdir()
    for name in ("w.pt", "nets.py", "pack/nets.py", "m.xml", "m.engine"):
        (tmp_path / name).touch()
    tensor = onnx.numpy_helper.from_array(np.ones((400,), np.float32), "w")
    graph = onnx.helper.make_graph([], "g", [], [onnx.helper.make_tensor_value_info("w", 1, [400])], [tensor])
    onnx.save(onnx.helper.make_model(graph), "m.onnx", save_as_external_data=True, location="weights")
    assert sorted(map(str, named(text, parts()))) == sorted(files)


def test_side_files_count_and_those_of_one_output_belong_together(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outputs = [Place(path, "-o") for path in written_with(tmp_path / "k.xml", parts())]
    require_apart([], outputs)
    for name in ("k.bin", "K.BIN"):
        with pytest.raises(OutputError, match="one file"):
            require_apart([], [*outputs, Place(tmp_path / name, "--json")])
    (tmp_path / "images").mkdir()
    image = tmp_path / "images" / "a.png"
    require_apart([Place(tmp_path / "images", "--data")], [Place(image, "--json")])  # a new one replaces none
    image.touch()
    with pytest.raises(OutputError, match="source itself"):
        require_apart([Place(tmp_path / "images", "--data")], [Place(image, "--json")])


def test_an_output_that_may_be_chosen_counts(command_line, tmp_path):
    (tmp_path / "m.pt").write_bytes(b"kept")
    code, _, err = command_line("fuse", "m.pt", "--json", "m.fused.pt")
    assert (code, "named for two outputs" in err) == (2, True)


def test_a_link_is_followed(tmp_path):
    (tmp_path / "old").write_bytes(b"old")
    (tmp_path / "link").symlink_to("old")
    with whole_file(tmp_path / "link") as stream:
        stream.write(b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "old").read_bytes() == b"new"


def test_what_cannot_be_written_is_said_before_any_work(command_line, tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.onnx").touch()
    code, _, err = command_line("verify", "a.onnx", "b.onnx", "--json", "none/r.json")
    assert (code, "there is no folder none" in err) == (2, True)
