"""Networks of ncnn: its options said, its return codes looked at, and what pnnx cannot do told in words."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from repconv.errors import BuildError, OutputError, SourceError, VerificationError
from repconv.export import BuildSettings, Preprocessing, Span, export
from repconv.export.artefacts.open import open_artefact
from repconv.export.onnx.quiet import logged
from repconv.export.runtimes.phones import ncnn_net
from repconv.export.runtimes.phones.ncnn_files import layers_of, sizes_of, weights_of, with_sizes
from repconv.files.record import installed

SIZE = (Span.of(16), Span.of(16))
here = pytest.mark.edge("ncnn", "pnnx")


# What needs no ncnn

PARAM = """7767517
4 4
Input in0 0 1 in0
Convolution c 1 1 in0 1 0=4 1=3 5=1 6=108
PReLU p 1 1 1 2 0=4
InnerProduct h 1 1 2 out0 0=2 1=1 2=8
"""


def content_of(*marks: int) -> bytes:
    """Weights of PARAM, each weight with one of the marks."""
    conv, linear = marks
    width = {0: 4, 0x01306B47: 2}
    sizes = [(conv, 108, 4 + 4), (linear, 8, 2)]
    return b"".join(m.to_bytes(4, "little") + bytes(width[m] * n) + bytes(4 * plain) for m, n, plain in sizes)


def test_weights_are_told_by_their_marks_or_not_at_all() -> None:
    layers = layers_of(PARAM)
    assert [layer.kind for layer in layers] == ["Input", "Convolution", "PReLU", "InnerProduct"]
    assert (layers[1].takes, layers[1].gives, layers[1].number(6)) == (("in0",), ("1",), 108)
    assert weights_of(layers, content_of(0, 0)) == {"float32 Convolution": 1, "float32 InnerProduct": 1}
    half = content_of(0x01306B47, 0)
    assert weights_of(layers, half) == {"float16 Convolution": 1, "float32 InnerProduct": 1}
    for wrong in (half[:-1], half + b"0", b"", b"\1" + half[1:]):
        assert weights_of(layers, wrong) is None
    assert weights_of([layer for layer in layers if layer.kind != "PReLU"], half) is None


@pytest.mark.parametrize(
    "text", ["", "7767516\n", PARAM + "ReLU r", PARAM + "ReLU r 1 1 a", PARAM + "ReLU r 1 1 a b 0"]
)
def test_what_is_no_network_is_told(text: str) -> None:
    with pytest.raises(ValueError, match=r"begin with 7767517|is no layer"):
        layers_of(text)


def test_its_weights_do_not_replace_those_of_openvino(checkpoint, tmp_path) -> None:
    (tmp_path / "m.xml").write_text("IR")
    with pytest.raises(OutputError, match=r"m\.param: .*m\.bin, which belongs to it, belongs to .*m\.xml already"):
        export(checkpoint, "ncnn", tmp_path / "m.param")


def test_its_weights_are_no_input_of_the_same_command(checkpoint, tmp_path, command_line) -> None:
    source = shutil.copy(checkpoint, tmp_path / "m.bin")
    code, _, said = command_line("export", source, "--to", "ncnn", "-o", tmp_path / "m.param")
    assert (code, "is the source itself" in said) == (2, True), said


def test_sizes_stand_in_the_first_line_of_a_network() -> None:
    for sizes in ((3, 16, 24), (3, None, None), (7, 20), (3, 4, None, 6), (5,)):
        text = with_sizes(PARAM, sizes)
        assert sizes_of(layers_of(text)) == sizes
        assert [(layer.kind, layer.name) for layer in layers_of(text)] == [(n.kind, n.name) for n in layers_of(PARAM)]
    assert "Input in0 0 1 in0 0=24 1=16 2=3" in with_sizes(PARAM, (3, 16, 24))
    assert sizes_of(layers_of(PARAM)) is None


# What ncnn itself does


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A small network in float32, of images of 3x16x16."""
    torch.manual_seed(2)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
    )
    out = tmp_path_factory.mktemp("ncnn") / "m.param"
    export(network.eval(), "ncnn", out, BuildSettings(image=SIZE))
    return out


@here
def test_without_pnnx_the_line_that_installs_it(checkpoint, monkeypatch, command_line) -> None:
    monkeypatch.setitem(sys.modules, "pnnx", None)
    code, _, said = command_line("export", checkpoint, "--to", "ncnn", "-o", "m.param")
    assert (code, "install it with: pip install pnnx" in said) == (3, True), said


@here
def test_weights_that_are_of_another_type_than_asked_for_are_an_error(checkpoint, tmp_path, monkeypatch) -> None:
    """pnnx stores half precision where it is not told otherwise, and exits with 0."""
    module = import_module("repconv.export.runtimes.ncnn")
    told = module.converted
    monkeypatch.setattr(module, "converted", lambda command, *more, **named: told(command[:2], *more, **named))
    with pytest.raises(BuildError, match=r"asked for float32 weights, ncnn has .* float16 Convolution"):
        export(checkpoint, "ncnn", tmp_path / "m.param")
    assert not list(tmp_path.iterdir())


@here
def test_its_own_options_are_said_and_off_for_float32(theirs, tmp_path) -> None:
    record = export(theirs, "ncnn", tmp_path / "m.param", BuildSettings(image=SIZE))
    assert record.details["converter"] == f"pnnx {installed('pnnx')}"
    assert record.observed == {
        "weights": "2 float32 Convolution, 1 float32 InnerProduct",
        "computed_in": "float32: use_fp16_packed, use_fp16_storage, use_fp16_arithmetic are off",
        "names": "in0 was input, out0 was output",
    }
    native = ncnn_net.load_net(tmp_path / "m.param", half=False).native
    assert not any(getattr(native.opt, option) for option in (*ncnn_net.HALVES, *ncnn_net.OTHER_HALVES))
    own = import_module("ncnn").Net().opt
    assert all(getattr(own, option) for option in ncnn_net.HALVES), "on by default: why they are said"
    half = export(theirs, "ncnn", tmp_path / "h.param", BuildSettings(precision="fp16", image=SIZE))
    assert half.observed["computed_in"] in (
        "float16",
        "float32 on this processor, float16 where ncnn has kernels for it",
    )
    assert "with half precision" in open_artefact(str(tmp_path / "h.param")).kind
    assert "with no half precision" in open_artefact(str(tmp_path / "m.param")).kind


@here
def test_batches_and_open_sizes_are_proved_at_both_ends(theirs, tmp_path) -> None:
    sides = (Span(16, 16, 24), Span(16, 20, 24))
    record = export(theirs, "ncnn", tmp_path / "m.param", BuildSettings(batch=Span(1, 2, 5), image=sides))
    assert record.evidence is not None
    assert {"1x3x16x16", "5x3x24x24"} <= {comparison.where for comparison in record.evidence.comparisons}
    found = open_artefact(str(tmp_path / "m.param"))
    assert found.inputs[0].shape == (None, 3, None, None)
    x = torch.randn(3, 3, 18, 23)
    torch.testing.assert_close(found.run((x,))[0], theirs(x), rtol=1e-4, atol=1e-5)


@here
def test_images_of_a_batch_do_not_mix(made) -> None:
    found, x = open_artefact(str(made)), torch.randn(4, 3, 16, 16)
    (together,) = found.run((x,))
    for index, image in enumerate(x):
        torch.testing.assert_close(together[index : index + 1], found.run((image[None],))[0], rtol=1e-5, atol=1e-6)


@here
def test_preprocessing_is_inside_and_bytes_are_refused(theirs, tmp_path) -> None:
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
    settings = BuildSettings(image=SIZE, preprocessing=Preprocessing(mean, std, bgr=True))
    assert export(theirs, "ncnn", tmp_path / "m.param", settings).verified
    settings = BuildSettings(image=SIZE, preprocessing=Preprocessing(mean, std, uint8=True))
    with pytest.raises(SourceError, match="takes float32 images only; leave out --uint8"):
        export(theirs, "ncnn", tmp_path / "m.param", settings)


class Between(nn.Module):
    def __init__(self, does: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.first, self.does, self.last = nn.Conv2d(3, 4, 3), does, nn.Conv2d(4, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.does(self.first(x)))


@here
@pytest.mark.parametrize(
    ("does", "words"),
    [
        (lambda x: x.cumsum(-1), r"ncnn cannot load what pnnx made: .*not exists or registered; --log FILE keeps all"),
        (lambda x: x.sort(1)[0], r"pnnx cannot convert the model: it ended with signal 11, without .*; --log FILE"),
    ],
)
def test_what_pnnx_or_ncnn_has_not_is_told_with_the_log(does, words: str, tmp_path) -> None:
    with logged() as said, pytest.raises(BuildError, match=words):
        export(Between(does).eval(), "ncnn", tmp_path / "m.param", BuildSettings(image=SIZE))
    assert "optlevel = 2" in "".join(said)
    assert not list(tmp_path.iterdir())


@here
def test_a_failed_conversion_is_exit_code_4_and_its_log_is_kept_on_demand(tmp_path, command_line) -> None:
    network = Between(lambda x: x.sort(1)[0]).eval()
    torch.export.save(torch.export.export(network, (torch.randn(1, 3, 16, 16),), strict=False), tmp_path / "m.pt2")
    code, out, err = command_line("export", "m.pt2", "--to", "ncnn", "-o", "m.param", "--log", "m.log")
    assert (code, "--log FILE keeps all it says" in err, "optlevel = 2" in out + err) == (4, True, False), err
    assert "optlevel = 2" in (tmp_path / "m.log").read_text()
    assert not (tmp_path / "m.param").exists()


@here
def test_damaged_files_answer_in_words(made, tmp_path) -> None:
    param, content = made.read_text(), made.with_suffix(".bin").read_bytes()
    bad = tmp_path / "bad.param"
    for text, weights in (
        (param, content[: len(content) // 2]), (param, b""), ("", content), (param[9:], content),
        (param.replace("Convolution", "Confusion"), content), (param.replace("6=216", "6=216000000"), content),
    ):  # fmt: skip
        bad.write_text(text)
        bad.with_suffix(".bin").write_bytes(weights)
        with pytest.raises(SourceError, match=r"bad\.param: not a network that ncnn loads: .*its \.bin belongs beside"):
            open_artefact(str(bad))
    bad.with_suffix(".bin").unlink()
    with pytest.raises(SourceError, match=r"bad\.param: not a network that ncnn loads: No such file"):
        open_artefact(str(bad))
    bad.write_text(param)
    bad.with_suffix(".bin").write_bytes(content[:4] + (np.frombuffer(content[4:], np.float32) * 2).tobytes())
    x = torch.ones(1, 3, 16, 16)
    wanted, found = (open_artefact(str(path)).run((x,))[0] for path in (made, bad))
    assert not torch.allclose(found, wanted, rtol=1e-2), "it loads, runs, and differs"


@here
def test_what_ends_the_process_ends_another_one(made, monkeypatch) -> None:
    found = open_artefact(str(made))
    monkeypatch.setattr(ncnn_net, "_ATTEMPT", "import os; os.abort()")
    with pytest.raises(SourceError, match=r"ncnn ends on it \(exit code -6\), so it is damaged; build it anew"):
        found.run((torch.ones(1, 3, 16, 16),))


@here
def test_an_input_of_other_sizes_is_refused_where_ncnn_computes_something(made) -> None:
    found = open_artefact(str(made))
    assert found.inputs[0].shape == (None, 3, 16, 16)
    native = ncnn_net.load_net(made, half=False)
    assert native.run(np.ones((1, 4, 16, 16), np.float32))[0].shape == (1, 5), "of channels it does not have"
    for shape in ((1, 4, 16, 16), (1, 3, 16, 17), (1, 3, 16)):
        with pytest.raises(SourceError, match="it takes images of 3x16x16, got "):
            found.run((torch.ones(shape),))


@here
def test_half_precision_that_overflows_is_named_before_it_is_built(theirs, tmp_path) -> None:
    with torch.no_grad():
        theirs.stem.weight.mul_(1e5)
    with pytest.raises(VerificationError, match="fp16 ends at 65504"):
        export(theirs, "ncnn", tmp_path / "m.param", BuildSettings(precision="fp16", image=SIZE))


@here
def test_threads_are_set_and_read_back(made) -> None:
    for threads in (1, 2):
        assert ncnn_net.load_net(made, half=False, threads=threads).threads == threads
