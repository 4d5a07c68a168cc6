"""`repconv inspect` says what `fuse` will do before anything is computed."""

import json

import onnx
import pytest
import torch
from click.testing import CliRunner

from repconv import create_model, fuse, save
from repconv.blocks.branches import ConvBranch
from repconv.blocks.inspection import inspect
from repconv.cli.inspect import command
from repconv.errors import SourceError
from repconv.export.onnx.exporter import to_onnx


@pytest.mark.parametrize("name", ["irep_resnet18", "irep_vgg16", "dbb_resnet50", "acnet_resnet34", "resnet18"])
def test_what_is_foretold_is_what_fusing_does(name):
    model = create_model(name, width=4, blocks=(1, 1)).eval()
    foretold = inspect(model)
    _, report = fuse(model)
    assert (foretold.before, foretold.after) == (report.before, report.after)
    assert [layer.name for layer in foretold.layers] == [layer.name for layer in report.layers]
    assert [(*layer.fixed, *layer.gates) for layer in foretold.layers] == [layer.branches for layer in report.layers]
    assert [layer.parameters_after for layer in foretold.layers] == [layer.after.parameters for layer in report.layers]


def test_what_would_stay_says_why():
    model = create_model("irep_resnet18", width=4, blocks=(1,)).eval()
    model.get_submodule("stages.0.0.conv1").register_forward_hook(lambda *_: None)
    model.stem = ConvBranch(3, 4, (3, 3)).eval()
    model.stem.conv.padding_mode = "reflect"
    foretold = {layer.name: layer.refusal for layer in inspect(model).layers}
    assert "forward hook" in foretold["stages.0.0.conv1"]
    assert "padding_mode='reflect'" in foretold["stem"]
    assert foretold["stages.0.0.conv2"] is None
    assert (inspect(model).before, inspect(model).after) == (fuse(model)[1].before, fuse(model)[1].after)


def test_gates_are_shown_as_they_are():
    model = create_model("irep_resnet18", width=4, blocks=(1,)).eval()
    block = model.get_submodule("stages.0.0.conv1")
    with torch.no_grad():
        block.beta.fill_(2.0)
        block.alpha["avg"].fill_(-1.0)
    gates = inspect(model).layers[1].gates
    assert gates["avg"] == pytest.approx(0.8808 * 0.2689, abs=1e-4)
    assert gates["1x1"] == pytest.approx(0.8808 * 0.5, abs=1e-4)


def test_the_command_shows_facts_branches_and_sizes(tmp_path):
    path = tmp_path / "m.pt"
    model = create_model("irep_resnet18", width=4, blocks=(1,)).eval()
    save(model, path, class_names=("cat", "dog"), input_shape=(3, 8, 8), metrics={"top1": 0.5})
    done = CliRunner().invoke(command, [str(path), "--json", str(tmp_path / "r.json")])
    assert done.exit_code == 0
    for words in ("irep_resnet18", "2: cat, dog", "top1 0.5", "3x8x8", "fixed", "0.25", "3x3, 4 -> 4", "multi-branch"):
        assert words in done.output
    assert max(map(len, done.output.splitlines())) <= 130
    assert json.loads((tmp_path / "r.json").read_text())["schema"] == "repconv.inspect/1"


def test_a_fused_checkpoint_says_so(tmp_path):
    save(fuse(create_model("irep_resnet18", width=4, blocks=(1,)).eval())[0], tmp_path / "f.pt")
    done = CliRunner().invoke(command, [str(tmp_path / "f.pt")])
    assert "form           fused" in done.output
    assert "nothing in it fuses" in done.output


def test_an_onnx_file_shows_its_outside_operators_and_metadata(tmp_path):
    fused, _ = fuse(create_model("irep_resnet18", width=4, blocks=(1,)).eval())
    proto = to_onnx(fused, torch.randn(1, 3, 8, 8), opset=17, dynamic_batch=True, metadata={"class_names": '["cat"]'})
    onnx.save(proto, tmp_path / "f.onnx")
    done = CliRunner().invoke(command, [str(tmp_path / "f.onnx"), "--json", str(tmp_path / "r.json")])
    assert done.exit_code == 0, done.output
    for words in ("opset          17", "input: float32 ", "x 3 x 8 x 8", "output: float32", "class_names", "Conv"):
        assert words in done.output
    record = json.loads((tmp_path / "r.json").read_text())
    assert record["schema"] == "repconv.inspect/1"
    assert record["onnx"]["nodes"]["Conv"] == sum(isinstance(m, torch.nn.Conv2d) for m in fused.modules())
    assert record["onnx"]["parameters"] == sum(
        onnx.numpy_helper.to_array(tensor).size for tensor in proto.graph.initializer
    )


@pytest.mark.parametrize("content", [b"", b"no protobuf", None])
def test_a_file_that_is_no_onnx_model_is_refused(content, tmp_path):
    path = tmp_path / "f.onnx"
    if content is not None:
        path.write_bytes(content)
    result = CliRunner().invoke(command, [str(path)])
    assert isinstance(result.exception, SourceError)
    assert "f.onnx" in str(result.exception)


@pytest.mark.newer
def test_a_network_of_unknown_image_shape_is_not_called_unfusable(tmp_path, monkeypatch):
    (tmp_path / "unsized_net_of_test.py").write_text(
        "from torch import nn\ndef network():\n    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()\n"
    )
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(command, ["unsized_net_of_test:network"])
    assert "give its shape, such as --input-shape 3,224,224" in done.output
    assert "nothing in it fuses" not in done.output
    done = CliRunner().invoke(command, ["unsized_net_of_test:network", "--input-shape", "3,8,8"])
    assert "would become one" in done.output
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3)).eval()
    onnx.save(to_onnx(network, torch.zeros(1, 3, 8, 8)), "f.onnx")
    result = CliRunner().invoke(command, ["f.onnx", "--input-shape", "3,8,8"])
    assert "declares its inputs itself" in str(result.exception)
