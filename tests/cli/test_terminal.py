"""Standard output shows the work and cannot change it; how commands end that do not come to their own end."""

import errno
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import repconv.cli
from repconv import create_model, save
from repconv.cli.shared.ending import Ended, ended_by_signals
from repconv.cli.shared.terminal import Spared

REPCONV = str(Path(sys.executable).with_name("repconv"))


@pytest.fixture
def network(tmp_path):
    model = create_model("irep_resnet18", width=2, blocks=(1,)).eval()
    save(model, tmp_path / "m.pt", input_shape=(3, 8, 8))
    return tmp_path


def shell(line, folder):
    """Exit code and standard error; the code is that of repconv, not of the shell's last part."""
    done = subprocess.run(
        ["/bin/bash", "-c", f"set -o pipefail; {line}"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "REPCONV": REPCONV},
        check=False,
    )
    return done.returncode, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("| true", ""),
        ("> /dev/full", "standard output could not be written (No space left on device)"),
        (">&- 2>&- <&-", ""),
    ],
)
def test_what_standard_output_is_changes_neither_files_nor_exit_code(where, said, network):
    code, err = shell(f"$REPCONV fuse m.pt -o f.onnx --json r.json {where}", network)
    assert (code, "Traceback" in err, said in err) == (0, False, True), err
    assert (network / "f.onnx").stat().st_size > 1000
    assert json.loads((network / "r.json").read_text())["output"]["verified"]


@pytest.mark.slow
@pytest.mark.parametrize("where", ["2> /dev/full | true"])
def test_a_difference_is_exit_1_and_misuse_2_whatever_standard_output_is(where, network):
    other = create_model("irep_resnet18", width=2, blocks=(1,)).eval()
    save(other, network / "n.pt", input_shape=(3, 8, 8))
    assert shell(f"$REPCONV verify m.pt n.pt {where}", network)[0] == 1
    assert shell(f"$REPCONV fuse none.pt {where}", network)[0] == 2


@pytest.mark.parametrize("where", ["| true", "> /dev/full", ">&-"])
def test_help_does_not_fail(where, tmp_path):
    code, err = shell(f"$REPCONV --help {where}", tmp_path)
    assert (code, "Traceback" in err) == (0, False)


class Failing(io.StringIO):
    def __init__(self, number):
        super().__init__()
        self.number = number

    def write(self, _):
        raise OSError(self.number, os.strerror(self.number))


@pytest.mark.parametrize("number", [errno.EPIPE, errno.ENOSPC, errno.EIO, errno.EBADF])
def test_a_spared_stream_takes_everything_and_keeps_the_first_reason(number):
    stream = Spared(Failing(number))
    assert stream.write("a") == 1
    stream.flush()
    assert stream.lost.errno == number


def test_control_characters_reach_no_terminal():
    kept = io.StringIO()
    Spared(kept).write("\rname \x1b[31mred\x07\r\u202eend\n\ttab")
    assert kept.getvalue() == "\rname \\x1b[31mred\\x07\\r\\u202eend\n\ttab"


def test_what_an_encoding_lacks_is_an_escape():
    kept = io.BytesIO()
    stream = Spared(io.TextIOWrapper(kept, encoding="ascii"))
    stream.write("\u2581\n")
    stream.flush()
    assert kept.getvalue() == b"\\u2581\n"


def test_json_on_standard_output_is_nothing_but_json(command_line, network):
    code, out, err = command_line("inspect", "m.pt", "--json", "-")
    assert code == 0
    assert json.loads(out)["schema"] == "repconv.inspect/1"
    assert "convolutions" in err
    assert not (network / "-").exists()
    code, out, err = command_line("inspect", "m.pt", "--json", "-", "-q")
    assert (json.loads(out)["schema"], err) == ("repconv.inspect/1", "")


@pytest.mark.usefixtures("network")
@pytest.mark.parametrize("line", [("inspect", "-"), ("fuse", "m.pt", "-o", "-"), ("bench", "m.pt", "--html", "-")])
def test_a_dash_is_refused_in_words(line, command_line):
    code, _, err = command_line(*line)
    assert (code, "name a file" in err) == (2, True)


@pytest.mark.usefixtures("network")
def test_quiet_says_nothing_but_why_it_failed(command_line):
    assert command_line("inspect", "m.pt", "-q") == (0, "", "")
    code, out, err = command_line("inspect", "none.pt", "--quiet")
    assert (code, out, "none.pt: no such file" in err) == (2, "", True)


def test_verbose_shows_where_it_failed(command_line):
    assert "Traceback" in command_line("inspect", "none.pt", "-v")[2]
    assert "Traceback" not in command_line("inspect", "none.pt")[2]


def test_h_and_V(command_line):  # noqa: N802  # the option
    assert command_line("-h")[1] == command_line("--help")[1]
    assert command_line("fuse", "-h")[1] == command_line("fuse", "--help")[1]
    assert command_line("-V")[1] == command_line("--version")[1]


@pytest.mark.parametrize("line", [("fuse",), ("fuse", "-o", "x.exe"), ("inspect",), ("verify", "b.pt"), ("bench",)])
def test_a_file_that_is_not_there_is_said_first(line, command_line):
    command, *more = line
    code, _, err = command_line(command, "nothere.onnx", *more)
    assert (code, "nothere.onnx: no such file" in err) == (2, True)


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (ZeroDivisionError("a fault"), 70, "please report it"),
        (MemoryError(), 2, "not enough memory"),
        (OSError(errno.ENOSPC, "No space left on device", "events"), 2, "cannot write events: No space left on device"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to"), 2, "not enough memory"),
        (BrokenPipeError(errno.EPIPE, "a worker has died"), 70, "a worker has died"),
    ],
)
def test_no_unforeseen_end_looks_like_a_difference(error, code, words, command_line, monkeypatch):
    def fails(*_):
        raise error

    monkeypatch.setattr(repconv.cli._repconv, "invoke", fails)
    got, _, err = command_line("doctor")
    assert (got, words in err) == (code, True)


SEARCH = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
from repconv.cli import main
import repconv.search.run
def stopped(*_, **__):
    os.kill(os.getpid(), signal.{name})
    import time; time.sleep(60)
repconv.search.run.run = stopped
sys.argv = ["repconv", "search", "run", "-o", "a", "--set", "train_images=200"]
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_is_its_exit_code_and_a_search_says_how_to_go_on(name, tmp_path):
    pytest.importorskip("sklearn")
    done = subprocess.run(
        [sys.executable, "-c", SEARCH.format(name=name)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 128 + getattr(signal, name), done.stderr
    assert "go on where it was with: repconv search resume a" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_a_signal_cuts_off_prints_no_traceback_of_its_own(capfd):
    class HalfMade:
        def __del__(self):
            raise AttributeError("no attribute '_shutdown'")

    def cut_off():
        kept = HalfMade()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)
        return kept

    hook, code = sys.unraisablehook, 0
    with ended_by_signals():
        try:
            cut_off()
        except Ended as ended:
            code = ended.exit_code
    assert code == 143
    assert "Traceback" not in capfd.readouterr().err
    assert sys.unraisablehook is hook


@pytest.mark.slow
def test_a_bench_that_is_ended_leaves_nothing_in_the_temporary_folder(network):
    (network / "tmp").mkdir()
    line = [REPCONV, "bench", "m.pt", "--backend", "torch"]
    with subprocess.Popen(line, cwd=network, env={**os.environ, "TMPDIR": str(network / "tmp")}) as process:
        deadline = time.monotonic() + 120
        while not any((network / "tmp").iterdir()) and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(1)
        process.terminate()
        assert process.wait(60) == 128 + signal.SIGTERM
    assert not list((network / "tmp").iterdir())


def test_completion_is_clicks(tmp_path):
    asked = {**os.environ, "_REPCONV_COMPLETE": "bash_complete", "COMP_WORDS": "repconv fu", "COMP_CWORD": "1"}
    done = subprocess.run([REPCONV], env=asked, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert "plain,fuse" in done.stdout
    script = subprocess.run(
        [REPCONV], env={**os.environ, "_REPCONV_COMPLETE": "bash_source"}, capture_output=True, text=True, check=False
    )
    assert "complete" in script.stdout


@pytest.mark.slow
@pytest.mark.usefixtures("network")
def test_image_and_input_shape_are_one_option(command_line):
    torch.save(create_model("irep_resnet18", width=2, blocks=(1,)).state_dict(), "w.pt")
    for shape, option in (("8,8", "--input-shape"), ("3,8,8", "--image"), ("1x3x8x8", "--image")):
        assert command_line("inspect", "w.pt", "--model", "irep_resnet18", option, shape)[0] == 0
        assert command_line("export", "m.pt", "--to", "onnx", "-o", "m.onnx", option, shape)[0] == 0
    code, _, err = command_line("export", "m.pt", "--to", "onnx", "-o", "m.onnx", "--input-shape", "1,8,8")
    assert (code, "takes 3 channels, got images of 1" in err) == (2, True)


def test_the_default_output_can_hold_the_source(command_line, network):
    Path("nets_of_test.py").write_text(
        "from torch import nn\ndef net(): return nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4))\n"
    )
    sys.path.insert(0, str(network))
    from nets_of_test import net

    torch.save(net().state_dict(), "w.pth")
    assert command_line("fuse", "w.pth", "--model", "nets_of_test:net", "--image", "8,8")[0] == 0
    assert (network / "w.fused.onnx").exists()
    (network / "w.fused.onnx").unlink()
    assert command_line("fuse", "nets_of_test:net@w.pth", "--image", "8,8")[0] == 0
    assert (network / "w.fused.onnx").exists()
    code, _, err = command_line("fuse", "nets_of_test:net@w.pth", "--image", "8,8", "--json", "w.fused.onnx")
    assert (code, "named for two outputs" in err) == (2, True)
    sys.path.remove(str(network))
