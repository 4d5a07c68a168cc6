"""`repconv expand`, and checkpoints of networks that are not this package's own."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from torch import nn

from repconv import CheckpointError, RepBlock, expand, fuse, load, save
from repconv.models.libraries import create_named

FACTORY = """
from torch import nn

def network():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=True), nn.BatchNorm2d(8, eps=1e-3, momentum=0.03), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8, affine=False), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"), nn.Conv2d(8, 8, 3, padding=1), nn.Flatten(2),
    )
"""


@pytest.fixture
def run(command_line, tmp_path):
    """Run the command line in a folder with a user's module; returns exit code, standard output and standard error."""
    (tmp_path / "mynet_of_test.py").write_text(FACTORY)
    return command_line


def test_a_users_network_is_expanded_saved_trained_fused_and_verified(run, tmp_path):
    name = "mynet_of_test:network"
    code, out, _ = run("expand", name, "-o", "m.pt", "--input-shape", "3,16,16", "--json", "r.json")
    assert code == 0
    assert "equal: all 1" in out
    assert "padding_mode='reflect', a block pads with zeros" in out
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["schema"] == "repconv.expand/1"
    assert list(report["blocks"]) == ["0", "3", "7"]
    assert report["agreement"]["passed"] is True
    code, _, err = run("fuse", "m.pt", "-o", "f.onnx")
    assert code == 2
    assert f"--model {name}" in err
    assert not (tmp_path / "f.onnx").exists()
    code, out, err = run("fuse", "m.pt", "-o", "f.onnx", "--model", name)
    assert code == 0, err
    assert "equal: all" in out
    code, out, _ = run("fuse", "m.pt", "-o", "f.pt", "--model", name)
    assert code == 0
    assert "fp16 holds all" in out
    assert run("verify", "m.pt", "f.onnx", "--model", name)[0] == 0
    assert run("verify", "f.pt", "f.onnx", "--model", name)[0] == 0
    fused = load(tmp_path / "f.pt", own_code=name)
    assert fused.fused
    assert fused.input_shape == (3, 16, 16)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.model.modules())


def test_code_of_a_user_is_not_run_unasked(run, tmp_path):
    assert run("expand", "mynet_of_test:network", "-o", "m.pt", "--input-shape", "3,16,16")[0] == 0
    sys.modules.pop("mynet_of_test")
    (tmp_path / "mynet_of_test.py").write_text("raise SystemExit('executed')")
    with pytest.raises(CheckpointError, match=r"m\.pt: the network is made by mynet_of_test:network, which .* unasked"):
        load(tmp_path / "m.pt")
    code, _, err = run("inspect", "m.pt", "--model", "other:network")
    assert code == 2
    assert "describes the network of mynet_of_test:network" in err


@pytest.mark.parametrize(
    "name", ["timm:mobilenetv3_small_050", pytest.param("torchvision:resnet18", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_networks_of_libraries_come_back_from_their_file(name: str, suffix: str, tmp_path):
    pytest.importorskip(name.partition(":")[0], reason=f"{name.partition(':')[0]} is optional")
    x = torch.randn(2, 3, 32, 32)
    multi = expand(create_named(name), branches=["1x1", "skip"], preserve=True, example_inputs=x).eval()
    fused, _ = fuse(multi)
    again = expand(fused, branches=["avg"], preserve=True, example_inputs=x).eval()
    for form, model in {"multi": multi, "fused": fused, "again": again}.items():
        path = tmp_path / f"{form}{suffix}"
        save(model, path, input_shape=(3, 32, 32))
        back = load(path)
        assert torch.equal(back.model(x), model(x))
        assert back.fused == (form == "fused")
        save(back.model, tmp_path / f"second{suffix}", input_shape=(3, 32, 32))
        assert path.read_bytes() == (tmp_path / f"second{suffix}").read_bytes()


def test_half_precision_networks_come_back_in_half_precision(tmp_path):
    pytest.importorskip("torchvision", reason="torchvision is optional")
    model = expand(create_named("torchvision:resnet18"), branches=["1x1"]).eval().to(torch.bfloat16)
    save(model, tmp_path / "m.pt")
    back = load(tmp_path / "m.pt").model
    assert {t.dtype for t in back.parameters()} == {torch.bfloat16}
    assert all(torch.equal(back.state_dict()[name], tensor) for name, tensor in model.state_dict().items())


def test_what_a_file_could_not_bring_back_is_not_saved(tmp_path):
    pytest.importorskip("torchvision", reason="torchvision is optional")
    model = expand(create_named("torchvision:resnet18"), branches=["1x1"]).eval()
    changed = {
        "eps": (lambda m: setattr(m.bn1, "eps", 0.1), r"bn1: its eps is 0\.1"),
        "head": (lambda m: setattr(m, "fc", nn.Linear(512, 7)), r"fc\.bias is \(7,\), expected \(1000,\)"),
        "norms": (lambda m: setattr(_norm(m), "eps", 0.1), r"differ in eps or momentum"),
        "gone": (lambda m: delattr(m.layer1[0], "conv1"), r"has no module layer1\.0\.conv1"),
    }
    for edit, words in changed.values():
        broken = load_copy(model)
        edit(broken)
        with pytest.raises(CheckpointError, match=words):
            save(broken, tmp_path / "m.pt")
        assert not (tmp_path / "m.pt").exists()


def load_copy(model: nn.Module) -> nn.Module:
    import copy

    return copy.deepcopy(model)


def _norm(model: nn.Module) -> nn.BatchNorm2d:
    block = next(module for module in model.modules() if isinstance(module, RepBlock))
    return next(module for module in block.modules() if isinstance(module, nn.BatchNorm2d))


REFUSED = {
    "set": (["--set", "rep"], "--set rep: no such set of branches; the sets are"),
    "kind": (["--branches", "1x1,4x4"], "unknown branch kind '4x4'"),
    "suffix": (["-o", "m.onnx"], "m.onnx: the output ends in .pt, .pth, .ckpt, .bin, .safetensors"),
    "preserve without 3x3": (["--fixed", "1x1"], "needs '3x3' among the fixed branches"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_mistakes_are_answered_in_words(case: str, run, tmp_path):
    arguments, words = REFUSED[case]
    code, _, err = run("expand", "mynet_of_test:network", "-o", "m.pt", "--input-shape", "3,16,16", *arguments)
    assert code == 2
    assert words in err
    assert not list(tmp_path.glob("m.*"))


def test_nothing_to_expand_is_said(run, tmp_path):
    (tmp_path / "mynet_of_test.py").write_text("from torch import nn\nnetwork = nn.Sequential(nn.Conv2d(3, 4, 5))")
    code, _, err = run("expand", "mynet_of_test:network", "-o", "m.pt")
    assert code == 2
    assert "nothing to expand" in err
    assert "a 5x5 kernel, a block stands for 3x3" in err
