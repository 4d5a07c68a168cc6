"""Networks of MNN: its converter tries no connection and installs nothing, what it says is not believed."""

from __future__ import annotations

import platform
import re
import signal
import subprocess
import sys

import pytest
import torch
from torch import nn

from repconv.errors import BuildError, SourceError
from repconv.export import BuildSettings, Preprocessing, Span, export
from repconv.export.artefacts.open import open_artefact
from repconv.export.runtimes import mnn
from repconv.export.runtimes.phones import mnn_net

SIZE = (Span.of(16), Span.of(16))
here = pytest.mark.edge("MNN")

GUARD = """
import ctypes, struct
rows = [(0x20, 0, 0, 0)]  # the number of the system call
for number in (41, 57, 58, 59, 322):  # socket, fork, vfork, execve, execveat on x86-64
    rows += [(0x15, 0, 1, number), (0x06, 0, 0, 0x80000000)]  # end the process
rows += [(0x06, 0, 0, 0x7FFF0000)]  # go on
code = b"".join(struct.pack("<HBBI", *row) for row in rows)
held = ctypes.create_string_buffer(code)
class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]
library = ctypes.CDLL(None, use_errno=True)
program = Program(len(rows), ctypes.addressof(held))
if library.prctl(38, 1, 0, 0, 0) or library.prctl(22, 2, ctypes.byref(program), 0, 0):
    raise SystemExit(77)
"""
"""From here on the kernel ends the process where it asks for a socket, or for another program (seccomp)."""


def guarded(code: str, *arguments: str, cwd: object) -> int:
    command = [sys.executable, "-P", "-c", GUARD + code, *arguments]
    done = subprocess.run(command, cwd=str(cwd), capture_output=True, text=True, check=False)
    if done.returncode == 77:
        pytest.skip("this system knows no seccomp")
    return done.returncode


@here
@pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"), reason="the guard is that of Linux on x86-64"
)
def test_nothing_is_installed_and_no_connection_is_tried(theirs, tmp_path) -> None:
    asked = -signal.SIGSYS
    for code in ("import socket; socket.socket()", "import os; os.execv('/bin/true', ['true'])"):
        assert guarded(code, cwd=tmp_path) == asked, "what the guard sees"
    record = export(theirs, "mnn", tmp_path / "m.mnn", BuildSettings(image=SIZE))
    export(theirs, "onnx", tmp_path / "m.onnx", BuildSettings(image=SIZE))
    convert = ("-f", "ONNX", "--modelFile", "m.onnx", "--MNNModel", "n.mnn", "--bizCode", "x")
    assert guarded(mnn_net._CONVERTS, *convert, cwd=tmp_path) == 0
    assert (tmp_path / "n.mnn").stat().st_size > 1000
    run = mnn_net._ATTEMPT.format(module=mnn_net.__name__, given=("output",), shape=(1, 3, 16, 16), half=False)
    assert guarded("def limit_memory(_): pass\n" + run, "m.mnn", "1", cwd=tmp_path) == 0
    assert record.verified


@here
def test_the_command_that_reports_home_is_never_imported(theirs, tmp_path) -> None:
    export(theirs, "mnn", tmp_path / "m.mnn", BuildSettings(image=SIZE))
    assert not [name for name in sys.modules if name.startswith("MNN.tools")]
    assert "MNN.tools" not in mnn_net._CONVERTS


@here
def test_success_is_not_believed_and_the_file_is_looked_for(tmp_path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    with pytest.raises(BuildError, match=r"MNN's converter cannot convert the model: .*without m\.mnn"):
        mnn_net.mnnconvert(tmp_path, ["-f", "ONNX", "--modelFile", "bad.onnx", "--MNNModel", "m.mnn"], ["m.mnn"])


@here
def test_batches_and_open_sizes_are_proved_at_both_ends_and_said_in_the_file(theirs, tmp_path) -> None:
    sides = (Span(16, 16, 24), Span.of(16))
    record = export(theirs, "mnn", tmp_path / "m.mnn", BuildSettings(batch=Span(1, 2, 5), image=sides))
    assert record.evidence is not None
    assert {"1x3x16x16", "5x3x24x16"} <= {comparison.where for comparison in record.evidence.comparisons}
    found = open_artefact(str(tmp_path / "m.mnn"))
    assert found.inputs[0].shape == (None, 3, None, 16)
    x = torch.randn(3, 3, 20, 16)
    torch.testing.assert_close(found.run((x,))[0], theirs(x), rtol=1e-4, atol=1e-4)
    with pytest.raises(SourceError, match="it cannot be run on an input of 1x5x16x16"):
        found.run((torch.ones(1, 5, 16, 16),))


@here
def test_half_precision_is_rounded_and_not_cut_off(tmp_path) -> None:
    """Cut off, every weight is a little too small: by 2^-11 of itself on average, and never too large."""
    weights = torch.linspace(0.5, 1, 64).reshape(4, 16, 1, 1)
    layer = nn.Conv2d(16, 4, 1, bias=False)
    layer.weight.data = weights
    x = torch.ones(1, 16, 8, 8)
    settings = BuildSettings(precision="fp16", image=(Span.of(8), Span.of(8)), channels=16)
    export(layer.eval(), "mnn", tmp_path / "m.mnn", settings)
    found = open_artefact(str(tmp_path / "m.mnn"))
    assert 'precision "low"' in found.kind
    given = found.run((x,))[0][0, :, 0, 0]
    torch.testing.assert_close(given, weights.half().float().sum(1).flatten(), rtol=2e-7, atol=0)


@here
def test_weights_of_another_type_than_asked_for_are_an_error(theirs, tmp_path, monkeypatch) -> None:
    told = mnn.mnnconvert
    monkeypatch.setattr(
        mnn, "mnnconvert", lambda folder, words, wanted: told(folder, [w for w in words if w != "--fp16"], wanted)
    )
    with pytest.raises(BuildError, match=r"asked for float16 weights, MNN has \d float32 Convolution"):
        export(theirs, "mnn", tmp_path / "m.mnn", BuildSettings(precision="fp16", image=SIZE))
    assert not list(tmp_path.iterdir())


@here
def test_several_outputs_come_in_their_order(tmp_path) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.first = nn.Conv2d(3, 2, 3), nn.Conv2d(3, 5, 3)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.last(x), self.first(x).relu()

    network = Two().eval()
    assert export(network, "mnn", tmp_path / "m.mnn", BuildSettings(image=SIZE)).verified
    x = torch.randn(1, 3, 16, 16)
    for found, wanted in zip(open_artefact(str(tmp_path / "m.mnn")).run((x,)), network(x), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@here
def test_damaged_files_answer_in_words(theirs, tmp_path, monkeypatch) -> None:
    export(theirs, "mnn", tmp_path / "m.mnn", BuildSettings(image=SIZE))
    content, bad = (tmp_path / "m.mnn").read_bytes(), tmp_path / "bad.mnn"
    for damaged in (b"", b"no network" * 100, content[: len(content) // 2], content[:8] + bytes(64) + content[72:]):
        bad.write_bytes(damaged)
        with pytest.raises(SourceError, match=r"bad\.mnn: not a network that MNN loads: \w"):
            open_artefact(str(bad))
    found = open_artefact(str(tmp_path / "m.mnn"))
    monkeypatch.setattr(mnn_net, "_ATTEMPT", "import os; os.abort()")
    with pytest.raises(SourceError, match=r"MNN ends on it \(exit code -6\), so it is damaged; build it anew"):
        found.run((torch.ones(1, 3, 16, 16),))


@here
def test_nothing_it_says_reaches_the_terminal(theirs, tmp_path, capfd) -> None:
    export(theirs, "mnn", tmp_path / "m.mnn", BuildSettings(image=SIZE))
    open_artefact(str(tmp_path / "m.mnn")).run((torch.ones(1, 3, 16, 16),))
    shown = capfd.readouterr()
    assert not re.search("precision|supports|Convert", shown.out + shown.err)


@here
def test_preprocessing_is_inside_and_bytes_are_refused(theirs, tmp_path) -> None:
    settings = BuildSettings(image=SIZE, preprocessing=Preprocessing((0.4, 0.5, 0.6), (0.2, 0.3, 0.25), bgr=True))
    assert export(theirs, "mnn", tmp_path / "m.mnn", settings).verified
    settings = BuildSettings(image=SIZE, preprocessing=Preprocessing((0.4,) * 3, (0.2,) * 3, uint8=True))
    with pytest.raises(SourceError, match="MNN takes float32 images only; leave out --uint8"):
        export(theirs, "mnn", tmp_path / "m.mnn", settings)


@here
def test_threads_are_set_and_read_back(theirs, tmp_path) -> None:
    export(theirs, "mnn", tmp_path / "m.mnn", BuildSettings(image=SIZE))
    for threads in (1, 2):
        assert mnn_net.load_mnn(tmp_path / "m.mnn", ("output",), half=False, threads=threads).threads == threads
