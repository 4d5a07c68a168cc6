"""Bad input to the command line: exit 2 in words, no traceback, and nothing left behind."""

import json
import os
import random
import resource
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from repconv import CheckpointError, RepconvError, create_model, save
from repconv.sources.source import open_source


@pytest.fixture(scope="module")
def files(tmp_path_factory, randomise):
    """A good checkpoint in both formats, and a bare state dict, as bytes by name."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("good")
    model = randomise(create_model("irep_resnet18", width=2, blocks=(1,), num_classes=3)).eval()
    for suffix in (".pt", ".safetensors"):
        save(model, folder / f"m{suffix}", input_shape=(3, 8, 8), class_names=("a", "b", "c"), metrics={"top1": 0.5})
    torch.save(model.state_dict(), folder / "state.pth")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def command(*arguments, cwd, **options) -> subprocess.CompletedProcess[str]:
    """The installed command as its own process."""
    program = Path(sys.executable).with_name("repconv")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [program, *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment,
        timeout=300,
        check=False,
        **options,
    )


CASES = {
    "pickled module": lambda p, _: torch.save(nn.Sequential(nn.ReLU()), p),
    "truncated": lambda p, good: p.write_bytes(good[: len(good) // 2]),
    "empty": lambda p, _: p.write_bytes(b""),
    "other format": lambda p, _: p.write_bytes(b"\x08\x07\x12\x07pytorch" * 50),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ["m.pt", "m.safetensors"])
def test_bad_files_end_the_command_in_words(case, name, files, tmp_path):
    CASES[case](tmp_path / name, files[name])
    done = command("fuse", name, "-o", "out.pt", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(f"repconv: {name}: ")
    assert "Traceback" not in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.newer
def test_a_full_disk_leaves_the_old_file(files, tmp_path):
    """The file size limit stands for the disk: the write fails half-way, with what the system says."""
    (tmp_path / "m.pt").write_bytes(files["m.pt"])
    (tmp_path / "out.pt").write_bytes(b"old")
    done = command(
        "fuse",
        "m.pt",
        "-o",
        "out.pt",
        cwd=tmp_path,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000)),
    )
    assert done.returncode == 2, done.stderr
    assert "cannot write out.pt: File too large; nothing was written" in done.stderr
    assert (tmp_path / "out.pt").read_bytes() == b"old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.pt", "out.pt"]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_file_system_leaves_nothing(files, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", small], check=False)  # noqa: S607
    if mounted.returncode:
        pytest.skip("this machine does not let tests mount a file system")
    try:
        (tmp_path / "m.pt").write_bytes(files["m.pt"])
        done = command("fuse", "m.pt", "-o", "small/out.pt", cwd=tmp_path)
        assert done.returncode == 2, done.stderr
        assert "cannot write small/out.pt: No space left on device; nothing was written" in done.stderr
        assert not list(small.iterdir())
    finally:
        subprocess.run(["umount", small], check=True)  # noqa: S607


def flip(content: bytes, draw: random.Random) -> bytes:
    data = bytearray(content)
    for _ in range(draw.randint(1, 8)):
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    return bytes(data)


def cut(content: bytes, draw: random.Random) -> bytes:
    return content[: draw.randrange(len(content))]


def splice(content: bytes, draw: random.Random) -> bytes:
    a, b = sorted(draw.randrange(len(content)) for _ in range(2))
    return content[:a] + content[b:]


def noise(content: bytes, draw: random.Random) -> bytes:
    a = draw.randrange(len(content))
    return content[:a] + draw.randbytes(draw.randint(1, 200)) + content[a:]


def header(content: bytes, draw: random.Random) -> bytes:
    """Change the JSON header of a safetensors file: the description in it, or an entry of the tensor table."""
    if content[8:9] != b"{":
        return flip(content, draw)
    length = struct.unpack("<Q", content[:8])[0]
    table = json.loads(content[8 : 8 + length])
    if draw.random() < 0.7 and "__metadata__" in table:
        description = json.loads(table["__metadata__"]["repconv"])
        key = draw.choice(list(description))
        description[key] = draw.choice([None, -1, 10**12, "x", [], {}, [[]], {"a": 1}, True, description["model"]])
        table["__metadata__"]["repconv"] = draw.choice([json.dumps(description), "{", "[]", "null", "[" * 5000])
    else:
        entry = table[draw.choice([k for k in table if k != "__metadata__"])]
        entry[draw.choice(list(entry))] = draw.choice([None, "F64", [0, 10**15], [-1], [10**9, 10**9], "BOOL"])
    text = json.dumps(table).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


@pytest.mark.parametrize("count", [60, pytest.param(900, marks=pytest.mark.slow)])
def test_mutated_files_give_words_or_a_correct_result(count, files, tmp_path):
    """Never a crash, a hang or another exception; what still loads is the network that was saved."""
    draw = random.Random(0)
    right = open_source(str(_put(tmp_path / "m.pt", files["m.pt"]))).checkpoint.model.state_dict()
    words: list[str] = []
    for _ in range(count):
        name = draw.choice(sorted(files))
        mutate = draw.choice([flip, cut, splice, noise, header])
        path = _put(tmp_path / f"mutant{Path(name).suffix}", mutate(files[name], draw))
        try:
            found = open_source(str(path), model=None if name.startswith("m") else "irep_resnet18")
        except RepconvError as error:
            words.append(str(error))
        else:
            state = found.checkpoint.model.state_dict()
            assert all(torch.equal(state[key], value) for key, value in right.items())
    assert len(words) > count / 2
    assert all(str(tmp_path) in message and len(message) > len(str(tmp_path)) + 20 for message in words)


def _put(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_a_payload_in_a_state_dict_stays_unexecuted(tmp_path):
    class Payload:
        def __reduce__(self):
            return (os.system, (f"touch {tmp_path / 'owned'}",))

    torch.save({"state_dict": {"w": Payload()}}, tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match="never executed"):
        open_source(str(tmp_path / "m.pth"), model="resnet18")
    assert not (tmp_path / "owned").exists()
