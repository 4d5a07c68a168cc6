"""`repconv verify`: two artefacts in their own runtimes, and where they first differ."""

import json
import os
import re
import sys
import zipfile

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from repconv import SourceError, create_model, fuse, load, save
from repconv.export import BuildSettings, Span, to_openvino
from repconv.export.artefacts import artefact as artefacts
from repconv.export.artefacts.open import open_artefact
from repconv.export.comparing.compare import inputs_for, verify_artefacts
from repconv.export.comparing.locate import locate
from repconv.export.onnx.exporter import to_onnx
from repconv.export.runtimes import engine_runtime
from repconv.files.whole import sha256
from repconv.sources.checkpoint import Normalization

BROKEN = "stages.1.0.conv1"


@pytest.fixture(scope="module")
def files(tmp_path_factory, randomise):
    """One network as every kind of artefact, and the same with one tap of one layer changed."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("artefacts")
    model = randomise(create_model("irep_resnet18", width=4, blocks=(1, 1))).eval()
    save(model, folder / "m.pt", input_shape=(3, 16, 16))
    fused, _ = fuse(model)
    save(fused, folder / "f.safetensors")
    x = torch.randn(2, 3, 16, 16)
    onnx.save(to_onnx(fused, x, opset=17, dynamic_batch=True), folder / "f.onnx")
    onnx.save(to_onnx(fused, x[:1], opset=17), folder / "fixed.onnx")
    torch.export.save(torch.export.export(fused, (x,), dynamic_shapes=({0: torch.export.Dim("n")},)), folder / "f.pt2")
    with torch.no_grad():
        fused.get_submodule(BROKEN).weight[0, 0, 0, 0] += 0.5
    save(fused, folder / "broken.pt", input_shape=(3, 16, 16))
    broken = to_onnx(fused, x, opset=17, dynamic_batch=True)
    onnx.save(broken, folder / "broken.onnx")
    torch.export.save(torch.export.export(fused, (x[:1],)), folder / "broken.pt2")
    renamed = {tensor.name: f"w{i}" for i, tensor in enumerate(broken.graph.initializer)}
    renamed |= {name: f"t{i}" for i, node in enumerate(broken.graph.node[:-1]) for name in node.output}
    for tensor in broken.graph.initializer:
        tensor.name = renamed[tensor.name]
    for node in broken.graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]
    del broken.graph.value_info[:]
    onnx.save(broken, folder / "renamed.onnx")
    return folder


@pytest.fixture
def run(command_line, monkeypatch, files):
    monkeypatch.chdir(files)
    return lambda *arguments: command_line("verify", *arguments)


@pytest.mark.newer
@pytest.mark.parametrize("a", ["m.pt", "f.safetensors", "f.onnx", "f.pt2"])
@pytest.mark.parametrize("b", ["m.pt", "f.onnx", "f.pt2", "fixed.onnx"])
def test_forms_of_one_network_are_equal_in_every_pair_of_runtimes(a, b, files):
    one, other = open_artefact(str(files / a)), open_artefact(str(files / b))
    agreement, _ = verify_artefacts(one, other, inputs_for(one, other))
    assert agreement.passed, agreement.verdict
    batches = {c.shape[0] for c in agreement.end_to_end}
    assert batches == {1} if b == "fixed.onnx" else len(batches) > 1


@pytest.mark.parametrize("a", ["m.pt", "f.onnx", "f.pt2"])
@pytest.mark.parametrize("b", ["broken.pt", "broken.onnx", "broken.pt2", "renamed.onnx"])
def test_the_layer_that_differs_is_located(a, b, files):
    one, other = open_artefact(str(files / a)), open_artefact(str(files / b))
    inputs = inputs_for(one, other)
    agreement, _ = verify_artefacts(one, other, inputs)
    assert not agreement.passed
    found = locate(one, other, inputs[0])
    assert found.first is not None
    assert found.steps[found.first].where.split(" and ")[0] == BROKEN
    assert ("by name" in found.method) == (b != "renamed.onnx")


@pytest.mark.parametrize("name", ["f.onnx", "f.pt2", "f.safetensors"])
def test_nothing_is_located_where_nothing_differs(name, files):
    one, other = open_artefact(str(files / "m.pt")), open_artefact(str(files / name))
    assert locate(one, other, inputs_for(one, other)[0]).first is None


def test_the_command_prints_a_table_and_a_verdict(run):
    code, out, err = run("m.pt", "f.onnx", "--locate", "--json", "r.json")
    assert (code, err) == (0, "")
    for words in (
        "A  m.pt, run by PyTorch",
        "B  f.onnx, run by onnxruntime",
        "m.pt in float64",
        "3x3x16x16",
        "equal: ",
    ):
        assert words in out
    assert "no difference" in out
    assert max(map(len, out.splitlines())) <= 120


def test_a_difference_is_exit_1_and_shown_where_it_arises(run, files):
    code, out, _ = run("m.pt", "broken.onnx", "--locate", "--json", "r.json")
    assert code == 1
    assert "NOT equal" in out
    assert re.search(rf"> +{re.escape(BROKEN)} .*DIFFERS", out)
    assert max(map(len, out.splitlines())) <= 120
    record = json.loads((files / "r.json").read_text())
    assert record["schema"] == "repconv.verify/1"
    assert record["agreement"]["passed"] is False
    assert record["located"]["steps"][record["located"]["first"]]["where"] == BROKEN
    assert {record[side]["runtime"] for side in "ab"} == {"PyTorch", "onnxruntime"}


def test_open_sizes_are_tried_with_odd_ones(run):
    _, out, _ = run("m.pt", "f.safetensors", "--input-shape", "3,20,24")
    assert "1x3x20x24" in out
    assert "2x3x21x27" in out


def _in_place():
    relu = nn.ReLU(inplace=True)  # one module, called twice, as in torchvision
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), relu, nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), relu)
    net[1].running_var.uniform_(0.5, 2)
    net[4].running_mean.uniform_(-1, 1)
    return net.eval()


def test_folded_normalisations_and_in_place_activations_mislead_nobody(tmp_path):
    """Exporters fold a normalisation into the weight named after the convolution."""
    net = _in_place()
    with torch.no_grad():
        broken = _in_place()
        broken.load_state_dict(net.state_dict())
        broken[3].weight[0, 0, 0, 0] += 0.5
    a = artefacts.Artefact(
        name="a",
        kind=artefacts.PYTORCH,
        run=artefacts.module_run(net),
        trace=artefacts.module_trace(net),
        inputs=(artefacts.Input("x", torch.float32, (None, 3, None, None)),),
        model=net,
        input_size=(3, 9, 9),
    )
    for opset in (17, 18):
        onnx.save(to_onnx(broken, torch.randn(1, 3, 9, 9), opset=opset), tmp_path / "b.onnx")
        b = open_artefact(str(tmp_path / "b.onnx"))
        found = locate(a, b, inputs_for(a, b)[0])
        assert found.first is not None
        assert found.steps[found.first].where.startswith("4"), found.steps


class Two(nn.Module):
    def forward(self, x):
        return {"high": x * 2, "low": x.sign()}


def test_several_outputs_are_compared_by_order(run, tmp_path):
    torch.export.save(torch.export.export(Two(), (torch.randn(1, 3, 4, 4),)), tmp_path / "two.pt2")
    code, out, _ = run(tmp_path / "two.pt2", tmp_path / "two.pt2")
    assert code == 0
    assert "[0]" in out
    assert "[1]" in out


REFUSED = {
    "no file": (("none.onnx", "m.pt"), "none.onnx: no such file"),
    "no size": (("f.safetensors", "f.safetensors"), "--input-shape 3,224,224"),
    "other sizes": (("fixed.onnx", "m.pt", "--input-shape", "3,20,20"), "after its batch, got --input-shape 3,20,20"),
    "needless model": (("m.pt", "f.onnx", "--model", "resnet18"), "--model names code that neither A nor B needs"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_is_exit_2_in_words(name, run):
    arguments, words = REFUSED[name]
    code, out, err = run(*arguments)
    assert (code, words in err) == (2, True), err
    assert "Traceback" not in out + err


def test_a_state_dict_is_verified_with_its_model(run, files):
    network = create_model("resnet18", width=4, blocks=(2, 2, 2, 2), num_classes=10).eval()
    torch.save({"state_dict": network.state_dict()}, files / "sd.pt")
    save(fuse(network)[0], files / "sd.fused.pt", input_shape=(3, 16, 16))
    code, out, err = run("sd.pt", "sd.fused.pt", "--model", "resnet18")
    assert code == 0, out + err


class Planted:
    """Pickled, it would create a file when read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def _rewritten(source, target, change):
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))


def test_a_pickle_planted_in_a_program_stays_unexecuted(files, tmp_path):
    mark, payload = tmp_path / "mark", tmp_path / "payload.pt"
    torch.save((Planted(mark),), payload)
    bad = tmp_path / "bad.pt2"
    _rewritten(files / "f.pt2", bad, lambda n, c: payload.read_bytes() if "sample_inputs" in n else c)
    with pytest.raises(SourceError, match="sample inputs hold pickled objects"):
        open_artefact(str(bad))
    assert not mark.exists()


PLANTS = {
    "a function": ("torch.ops.aten.relu.default", "torch.os.system", "it calls torch.os.system"),
    "an operator that writes": ("torch.ops.aten.relu.default", "torch.ops.aten.save.default", "it calls"),
    "a size": ("Symbol('s", "__import__('s", "it has a size"),
    "a guard": ('"guards_code": []', '"guards_code": ["__import__(\'os\').abort()"]', "it has a guard"),
}


@pytest.mark.parametrize("name", PLANTS)
def test_code_planted_in_a_program_is_refused(name, files, tmp_path):
    old, new, words = PLANTS[name]

    def change(entry, content):
        if not entry.endswith("models/model.json"):
            return content
        assert old.encode() in content
        return content.replace(old.encode(), new.encode())

    _rewritten(files / "f.pt2", tmp_path / "bad.pt2", change)
    with pytest.raises(SourceError, match=words):
        open_artefact(str(tmp_path / "bad.pt2"))


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
@pytest.mark.parametrize("keep", [0, 0.5, 0.99])
def test_a_truncated_file_is_refused(suffix, keep, files, tmp_path):
    whole = (files / f"f{suffix}").read_bytes()
    (tmp_path / f"cut{suffix}").write_bytes(whole[: int(keep * len(whole))])
    with pytest.raises(SourceError, match=r"not a (readable|valid)"):
        open_artefact(str(tmp_path / f"cut{suffix}"))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_openvino_ir_is_compared_in_the_precision_it_records(run, files, tmp_path, precision: str) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed")
    made = tmp_path / "m.xml"
    to_openvino(files / "m.pt", made, BuildSettings(precision=precision, batch=Span(1, 2, 8)))
    code, out, err = run("m.pt", made, "--json", tmp_path / "r.json")
    assert code == 0, err
    assert re.search(rf"B  \S+m\.xml, run by OpenVINO in ({precision.replace('fp', 'f')}|bf16|f32)", out)
    assert json.loads((tmp_path / "r.json").read_text())["b"]["sha256"]
    code, out, _ = run(made, "broken.onnx")
    # One tap of one layer is within what half precision is allowed.
    assert (code, "DIFFERS" in out) == ((1, True) if precision == "fp32" else (0, False))
    code, _, err = run("m.pt", made, "--locate")
    assert code == 2
    assert "shows nothing of what is inside" in err
    made.with_suffix(".bin").unlink()
    code, _, err = run("m.pt", made)
    assert code == 2
    assert "not readable IR" in err


def test_ir_without_openvino_is_exit_3_with_the_line_that_installs_it(run, tmp_path, monkeypatch) -> None:
    (tmp_path / "m.xml").write_text("<net/>")
    monkeypatch.setitem(sys.modules, "openvino", None)
    code, _, err = run("m.pt", tmp_path / "m.xml")
    assert code == 3
    assert "pip install openvino" in err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to run it on")
def test_an_engine_without_a_gpu_is_exit_3_and_one_without_its_json_exit_2(run, tmp_path) -> None:
    engine = tmp_path / "m.engine"
    engine.write_bytes(b"engine")
    code, _, err = run("m.pt", engine)
    assert code == 2
    assert "has no m.engine.json beside it" in err
    told = {
        "schema": "repconv.engine/1", "engine": "m.engine", "target": "tensorrt", "version": "0", "versions": {},
        "sha256": sha256(engine), "bytes": 6, "onnx_sha256": "", "source": "m.pt", "source_sha256": None,
        "capabilities": [], "gpu": None, "precision": "fp16", "observed": {},
        "tensors": [{"name": "input", "dtype": "HALF", "shape": [-1, 3, 16, 16]}], "batch": "1:2:8",
        "verified": False, "not_run": None,
    }  # fmt: skip
    here = engine_runtime.version_here("tensorrt") or "0"
    (tmp_path / "m.engine.json").write_text(json.dumps({**told, "version": here}))
    code, _, err = run("m.pt", engine)
    assert code == 3
    assert "cannot run here: no GPU" in err


@pytest.mark.parametrize(
    ("arrays", "code", "words"),
    [
        ({"input": (5, 3, 16, 16)}, 0, "equal: all"),
        ({"x": (2, 3, 16, 16), "labels": (2,)}, 0, "equal: all"),
        ({"images": (3, 3, 16, 16)}, 0, "equal: all"),
        ({"a": (2, 3, 16, 16), "b": (2, 3, 16, 16)}, 2, "expected one array an input (input), found a, b"),
        ({"x": (2, 4, 16, 16)}, 2, "an array of 2x4x16x16, the artefacts take nx3x16x16"),
        ({}, 2, "expected one array an input"),
    ],
)
def test_the_users_own_arrays_are_what_is_compared(arrays, code, words, run, tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "given.npz", **{name: rng.normal(size=shape).astype("f4") for name, shape in arrays.items()})
    got, out, err = run("m.pt", "f.onnx", "--inputs", tmp_path / "given.npz")
    assert (got, words in out + err) == (code, True), out + err
    if got == 0:
        rows = next(shape[0] for name, shape in arrays.items() if name != "labels")
        assert f"{rows}x3x16x16" in out
        assert "1x3x16x16" not in out  # no random ones


def test_a_difference_that_only_the_users_inputs_show(files, run, tmp_path):
    """A network that differs where its input is above 100, which noise never is."""

    class Hot(nn.Module):
        def forward(self, x):
            return torch.where(x > 100, x + 1, x)

    x = torch.zeros(1, 3, 16, 16)
    onnx.save(to_onnx(nn.Identity(), x, opset=17), files / "plain.onnx")
    onnx.save(to_onnx(Hot(), x, opset=17), files / "hot.onnx")
    np.savez(tmp_path / "given.npz", input=np.full((2, 3, 16, 16), 101, "f4"))
    assert run("plain.onnx", "hot.onnx")[0] == 0
    assert run("plain.onnx", "hot.onnx", "--inputs", tmp_path / "given.npz")[0] == 1
    for tolerance, code in (("--rtol=0.02", 0), ("--rtol=0.001", 1), ("--atol=1.5", 0), ("--atol=0.5", 1)):
        assert run("plain.onnx", "hot.onnx", "--inputs", tmp_path / "given.npz", tolerance)[0] == code


def test_images_are_normalised_as_the_source_says(files, run, tmp_path):
    image = pytest.importorskip("PIL.Image")
    (tmp_path / "images" / "a").mkdir(parents=True)
    for index in range(3):
        image.new("RGB", (20, 16), (index * 40, 90, 200)).save(tmp_path / "images" / "a" / f"{index}.png")
    code, out, err = run("m.pt", "f.onnx", "--inputs", tmp_path / "images", "--images", "2")
    assert (code, "2x3x16x16" in out) == (0, True)
    assert "numbers from 0 to 1" in err
    normal = Normalization((0.5, 0.5, 0.5), (0.1, 0.1, 0.1))
    save(load(files / "m.pt").model, files / "normal.pt", input_shape=(3, 16, 16), normalization=normal)
    assert "numbers from 0 to 1" not in run("f.onnx", "normal.pt", "--inputs", f"imagefolder:{tmp_path / 'images'}")[2]


@pytest.mark.parametrize("what", ["pipe", "/dev/zero", "nets:net@pipe"])
@pytest.mark.parametrize("option", [(), ("--inputs",)])
def test_nothing_that_may_never_end_is_read(what, option, run, files):
    if not (files / "pipe").exists():
        os.mkfifo(files / "pipe")
    code, _, err = run("m.pt", "f.onnx", *option, what) if option else run("m.pt", what)
    assert (code, "is no regular file, but a pipe or a device" in err) == (2, True)
