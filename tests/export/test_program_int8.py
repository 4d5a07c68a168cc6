"""int8 of what is built from programs: the ONNX targets' equalisation and choice of layers, by the twin's names."""

from __future__ import annotations

import copy

import pytest
import torch
from onnx import numpy_helper
from torch import nn

from repconv.errors import BuildError, SourceError
from repconv.export import BuildSettings, Data, Quantization, Span, export
from repconv.export.program import int8
from repconv.export.program.exporter import to_program
from repconv.export.targets import TARGETS

SIZES = (Span.of(1), Span.of(3), Span.of(16), Span.of(16))


@pytest.fixture
def uneven() -> nn.Module:
    """Channels a thousand times as large as others between two layers: equalisation moves them."""
    torch.manual_seed(2)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), nn.Conv2d(8, 6, 1)
    ).eval()
    with torch.no_grad():
        network[0].weight[:4] *= 1000
        network[2].weight[:4] /= 1000
    return network


def numbers(program) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in program.state_dict.items()}


@pytest.mark.parametrize("batch", [Span.of(1), Span(1, 2, 8)])
def test_a_twin_holds_the_weights_of_its_program_under_their_names(theirs, batch: Span) -> None:
    program, _ = to_program(theirs, [batch, *SIZES[1:]])
    model = int8.twin(program, torch.zeros(1, 3, 16, 16))
    held = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    layers = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm")]
    assert len(layers) == 3
    for node in layers:
        for name in node.input[1:]:
            assert (held[name] == program.state_dict[name].detach().numpy()).all()


def test_an_equalised_program_computes_what_it_did_with_even_weights(uneven) -> None:
    program, _ = to_program(uneven, SIZES)
    before = numbers(program)
    ready = int8.prepared(program, [torch.randn(1, 3, 16, 16)], Quantization(equalise=True), SIZES)
    assert ready.equalised == 2
    assert all(torch.equal(before[name], tensor) for name, tensor in numbers(program).items()), (
        "the input never changes"
    )
    x = torch.randn(1, 3, 16, 16).double()
    exact, made = (copy.deepcopy(p.module()).double() for p in (program, ready.program))
    with torch.no_grad():
        wanted = exact(x)
        torch.testing.assert_close(made(x), wanted, rtol=1e-5, atol=1e-6 * float(wanted.abs().max()))
    after = numbers(ready.program)
    name = next(name for name, tensor in before.items() if tensor.shape == (8, 3, 3, 3))
    largest = [found[name].abs().amax((1, 2, 3)) for found in (before, after)]
    assert float(largest[0].max() / largest[0].min()) > 500
    assert float(largest[1].max() / largest[1].min()) < 100


def test_layers_that_stay_float_are_told_by_the_names_of_their_weights(uneven) -> None:
    program, _ = to_program(uneven, SIZES)
    calibration = [torch.randn(1, 3, 16, 16)]
    assert int8.prepared(program, calibration, Quantization(), SIZES).program is program
    model = int8.twin(program, calibration[0])
    names = [node.name for node in model.graph.node if node.op_type == "Conv"]
    ready = int8.prepared(program, calibration, Quantization(keep_float=(names[1],)), SIZES)
    assert [program.state_dict[name].shape for name in ready.weights] == [(8, 1, 3, 3)]
    with pytest.raises(SourceError, match=f"no layer 'nowhere' to keep in float; the layers are {names[0]}"):
        int8.prepared(program, calibration, Quantization(keep_float=("nowhere",)), SIZES)


def test_weights_that_are_none_of_the_program_s_are_refused_with_the_way_out(uneven, monkeypatch) -> None:
    program, _ = to_program(uneven, SIZES)
    found = int8.twin(program, torch.zeros(1, 3, 16, 16))
    for node in found.graph.node:
        node.input[:] = [f"other.{name}" if name in program.state_dict else name for name in node.input]
    for tensor in found.graph.initializer:
        tensor.name = f"other.{tensor.name}" if tensor.name in program.state_dict else tensor.name
    monkeypatch.setattr(int8, "twin", lambda *_: found)
    with pytest.raises(BuildError, match=r"other weights of the program's \(other\..*leave out --equalise"):
        int8.prepared(program, [torch.zeros(1, 3, 16, 16)], Quantization(equalise=True), SIZES)


EDGE = [
    pytest.param("executorch", marks=pytest.mark.edge("executorch")),
    pytest.param("litert", marks=pytest.mark.edge("litert_torch", "ai_edge_quantizer")),
]
NOISE = Data(calibration_images=16, random_calibration=True)


@pytest.mark.parametrize("target", EDGE)
@pytest.mark.parametrize("per_channel", [True, pytest.param(False, marks=pytest.mark.exhaustive)])
def test_every_convolution_is_int8_and_the_bytes_are_the_same(target, per_channel: bool, checkpoint, tmp_path) -> None:
    settings = BuildSettings(precision="int8", quantization=Quantization(per_channel=per_channel))
    suffix = TARGETS[target].suffix
    records = [export(checkpoint, target, tmp_path / f"{name}{suffix}", settings, NOISE) for name in "ab"]
    assert all(record.verified for record in records)
    kind = {"executorch": "int8 in XNNPACK", "litert": "int8"}[target]
    assert records[0].fusion is not None
    assert records[0].observed["convolutions"] == f"{records[0].fusion['convolutions'][1]} {kind}"
    assert records[0].observed["outside"] == "nothing"
    assert records[0].observed["tensor"].startswith("float32 1x3x16x16")
    assert records[0].outputs[-1]["sha256"] == records[1].outputs[-1]["sha256"]


@pytest.mark.parametrize("target", EDGE)
def test_layers_are_left_in_float_and_weights_equalised(target, uneven, tmp_path) -> None:
    out = tmp_path / f"m{TARGETS[target].suffix}"
    way = Quantization(per_channel=False, equalise=True, keep_float=1)
    settings = BuildSettings(precision="int8", image=SIZES[2:], quantization=way)
    record = export(uneven, target, out, settings, NOISE)
    assert record.details["equalised_streams"] == 2
    assert len(record.details["kept_float"]) == 1
    counts = [part.split()[:2] for part in record.observed["convolutions"].split(", ")]
    assert counts == [["1", "float32"], ["2", "int8"]]


@pytest.mark.edge("litert_torch", "ai_edge_quantizer")
def test_ranges_of_litert_do_not_depend_on_the_order_of_images(uneven) -> None:
    """Left alone, the quantiser takes a moving average of each batch's extremes."""
    from repconv.export.artefacts.runtime import build

    program, _ = to_program(uneven, SIZES)
    batches = [scale * torch.randn(1, 3, 16, 16) for scale in (1.0, 5.0, 0.2, 1.0)]
    found = [
        build(program, "litert", BuildSettings(precision="int8"), SIZES[2:], given).make().files[".tflite"]
        for given in (batches, batches[::-1])
    ]
    assert found[0] == found[1]
