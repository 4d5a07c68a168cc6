"""Graphs on the command line: any ONNX file, any program, anybody's network, fused, measured and written."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn

from repconv.errors import FusionError
from repconv.export.from_source import fuse_source
from repconv.files.onnx import save_large
from repconv.graph import foresee_onnx, foresee_program, fuse_onnx
from repconv.graph.onnx.proof.float64 import evaluate
from repconv.graph.onnx.proof.prove import prove_onnx

NETWORK = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels))
        self.b = nn.Sequential(nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels))
        self.c = nn.BatchNorm2d(channels)

    def forward(self, x):
        return torch.relu(self.a(x) + self.b(x) + self.c(x))

class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.blocks, self.head = nn.Conv2d(3, 8, 3, 2, 1), nn.Sequential(Block(8), Block(8)), nn.Linear(8, 5)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))

def network():
    torch.manual_seed(0)
    model = Network()
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 2)
            nn.init.uniform_(part.weight, 0.5, 1.5)
    return model.eval()
"""


@pytest.fixture
def run(command_line, tmp_path):
    """Run the command line in a folder with a user's module; returns exit code, standard output and standard error."""
    (tmp_path / "branchy_of_test.py").write_text(NETWORK)
    return command_line


@pytest.fixture
def network() -> nn.Module:
    found: dict[str, object] = {}
    exec(NETWORK, found)  # noqa: S102  # the text above
    make = found["network"]
    assert callable(make)
    return make()


def kinds(path: Path) -> dict[str, int]:
    nodes = onnx.load(path).graph.node
    return {kind: sum(n.op_type == kind for n in nodes) for kind in ("Conv", "BatchNormalization", "Add")}


def session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


SOURCE = ("branchy_of_test:network", "--input-shape", "3,20,24")


@pytest.mark.newer
@pytest.mark.parametrize("opset", [13, 18, 22])
def test_a_users_network_becomes_a_single_path_onnx_file(opset: int, run, tmp_path, network):
    code, out, err = run("fuse", *SOURCE, "-o", "f.onnx", "--opset", opset, "--dynamic-batch", "--json", "r.json")
    assert code == 0, err
    assert "equal: all" in out
    assert kinds(tmp_path / "f.onnx") == {"Conv": 3, "BatchNormalization": 0, "Add": 0}
    x = torch.randn(5, 3, 20, 24)
    (got,) = session(tmp_path / "f.onnx").run(None, {"input": x.numpy()})
    with torch.no_grad():
        assert float((torch.from_numpy(got) - network.double()(x.double())).abs().max()) < 1e-5
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["schema"] == "repconv.fuse/1"
    layers = report["report"]["layers"]
    assert [(layer["geometry"], layer["before"]["convolutions"]) for layer in layers] == [("3x3, 8 -> 8", 2)] * 2
    assert any("blocks.0" in node for node in layers[0]["branches"])
    assert [c["where"] for c in report["report"]["agreement"]["blocks"]] == [layer["name"] for layer in layers]


def test_a_program_and_an_onnx_file_of_anybody_are_fused_by_file(run, tmp_path, network):
    x = torch.randn(2, 3, 20, 24)
    torch.export.save(torch.export.export(network, (x,)), tmp_path / "net.pt2")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # this exporter is deprecated, and what most files in the wild come from
        torch.onnx.export(
            network,
            (x,),
            tmp_path / "net.onnx",
            dynamo=False,
            training=torch.onnx.TrainingMode.PRESERVE,
            input_names=["image"],
            output_names=["logits"],
            dynamic_axes={"image": [0, 2, 3]},
        )
    assert kinds(tmp_path / "net.onnx")["BatchNormalization"] == 6
    code, _, err = run("fuse", "net.onnx")
    assert code == 2
    assert "--input-shape 3,224,224" in err, "height and width are open"
    code, out, err = run("fuse", "net.onnx", "--input-shape", "3,20,24")
    assert code == 0, err
    assert "equal: all" in out
    assert kinds(tmp_path / "net.fused.onnx") == {"Conv": 3, "BatchNormalization": 0, "Add": 0}
    assert [i.name for i in session(tmp_path / "net.fused.onnx").get_inputs()] == ["image"]
    code, out, err = run("fuse", "net.pt2")
    assert code == 0, err
    code, _, err = run("fuse", "net.pt2", "-o", "other.onnx")
    assert code == 0, err
    assert kinds(tmp_path / "other.onnx") == {"Conv": 3, "BatchNormalization": 0, "Add": 0}
    assert run("verify", "net.pt2", "net.fused.pt2")[0] == 0
    assert run("verify", "net.onnx", "net.fused.onnx", "--input-shape", "3,20,24")[0] == 0
    assert run("verify", "branchy_of_test:network", "net.fused.pt2")[0] == 0
    code, out, _ = run("fuse", "net.fused.onnx", "-o", "again.onnx", "--input-shape", "3,20,24")
    assert code == 0
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "net.fused.onnx").read_bytes()


def test_inspect_tells_beforehand_what_fuse_does(run, tmp_path, network):
    x = torch.randn(2, 3, 20, 24)
    program = torch.export.export(network, (x,))
    torch.export.save(program, tmp_path / "net.pt2")
    torch.onnx.export(network, (x,), tmp_path / "net.onnx", dynamo=True, optimize=False, verbose=False)
    for name, foreseen in (("net.onnx", foresee_onnx(tmp_path / "net.onnx")), ("net.pt2", foresee_program(program))):
        code, out, err = run("inspect", name, "--json", "i.json")
        assert code == 0, err
        assert "would become one" in out
        assert json.loads((tmp_path / "i.json").read_text())["graph"] == json.loads(json.dumps(foreseen.to_dict()))
        assert foreseen.convolutions == (5, 3)
        assert foreseen.batch_norms == (6, 0)
    _, report = fuse_onnx(onnx.load(tmp_path / "net.onnx"))
    foreseen = foresee_onnx(tmp_path / "net.onnx")
    assert [layer.geometry for layer in foreseen.layers] == [layer.geometry for layer in report.layers]
    assert [layer.nodes for layer in foreseen.layers] == [layer.branches for layer in report.layers]


@pytest.mark.slow
def test_inspect_foresees_a_network_by_name(run):
    pytest.importorskip("timm", reason="timm is optional")
    code, out, err = run("inspect", "timm:repvgg_a0")
    assert code == 0, err
    assert "convolutions      44     22" in out


MISUSES = {
    "opset of a file": (("net.onnx", "--opset", "18"), "--opset: a fused .onnx file keeps the opset"),
    "batch of a file": (("net.onnx", "--dynamic-batch"), "--dynamic-batch: a fused .onnx file keeps"),
    "other output": (("net.onnx", "-o", "f.pt"), "the output ends in .onnx, got '.pt'"),
    "model": (("net.onnx", "--model", "resnet18"), "--model is for weights without their network"),
    "missing": (("none.onnx", "-o", "f.onnx"), "none.onnx: no such file"),
    "itself": (("net.onnx", "-o", "net.onnx"), "is the source itself"),
    "checkpoint": (("branchy_of_test:network", "-o", "f.pt", "--input-shape", "3,20,24"), "write a graph instead"),
    "no shape": (("branchy_of_test:network", "-o", "f.onnx"), "records no shape of its input"),
    "strict": (("fused.onnx", "--strict"), "nothing to fuse in it"),
}


@pytest.mark.parametrize("case", MISUSES)
def test_misuse_is_answered_in_words(case: str, run, tmp_path):
    conv = helper.make_node("Conv", ["x", "w"], ["y"], "conv", pads=[1, 1, 1, 1])
    graph = helper.make_graph(
        [conv],
        "g",
        [helper.make_tensor_value_info("x", 1, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("y", 1, [1, 4, 8, 8])],
        [numpy_helper.from_array(np.ones((4, 3, 3, 3), np.float32), "w")],
    )
    for name in ("net.onnx", "fused.onnx"):
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        onnx.save(model, tmp_path / name)
    before = sorted(p.name for p in tmp_path.iterdir())
    arguments, words = MISUSES[case]
    code, _, err = run("fuse", *arguments)
    assert code == 2, err
    assert words in err
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "__pycache__") == before


def branches(width: int = 16) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    weights = {"a": rng.normal(size=(width, width, 3, 3)), "b": rng.normal(size=(width, width, 1, 1))}
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["p"], "one", pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["x", "b"], ["q"], "two"),
        helper.make_node("Add", ["p", "q"], ["s"], "sum"),
        helper.make_node("Relu", ["s"], ["y"], "relu"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", 1, [1, width, 8, 8])],
        [helper.make_tensor_value_info("y", 1, [1, width, 8, 8])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def test_a_wrong_number_in_a_fused_file_is_found_where_it_is():
    before = branches()
    after, report = fuse_onnx(before)
    given = {"x": np.random.default_rng(1).normal(size=(1, 16, 8, 8)).astype(np.float32)}
    right = prove_onnx(before, after, [given])
    assert right.agreement.passed
    assert [c.where for c in right.agreement.blocks] == ["s"]
    weight = after.graph.initializer[0]
    wrong = numpy_helper.to_array(weight).copy()
    wrong[1, 2, 0, 0] += 0.01
    weight.CopyFrom(numpy_helper.from_array(wrong, weight.name))
    found = prove_onnx(before, after, [given]).agreement
    assert not found.passed
    assert not found.blocks[0].passed
    assert len(report.layers) == 1


def test_what_cannot_be_evaluated_in_float64_is_said():
    model = branches()
    model.graph.node[-1].op_type = "Unheard"
    model.graph.node[-1].domain = "of.test"
    model.opset_import.append(helper.make_opsetid("of.test", 1))
    with pytest.raises(FusionError, match="cannot be evaluated in float64"):
        evaluate(model, {"x": np.zeros((1, 16, 8, 8), np.float32)}, ["y"])


def test_weights_in_another_file_are_read_and_may_be_written(tmp_path, monkeypatch, run):
    before = branches()
    save_large(before, tmp_path / "big.onnx")
    assert (tmp_path / "big.onnx.data").stat().st_size > 4 * 16 * 16 * 9
    fused = fuse_source(tmp_path / "big.onnx", ".onnx")
    assert fused.report.after.convolutions == 1
    monkeypatch.setattr("repconv.files.onnx._LARGEST_MESSAGE", 100)
    code, _, err = run("fuse", "big.onnx", "-o", "out.onnx")
    assert code == 0, err
    (tmp_path / "big.onnx.data").unlink(missing_ok=True)
    assert kinds(tmp_path / "out.onnx")["Conv"] == 1
    assert (tmp_path / "out.onnx.data").exists()
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".out")]


class Two(nn.Module):
    """Two outputs in a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.a(x) + self.b(x)
        return {"features": y.relu(), "mean": y.mean((2, 3))}


def test_networks_of_several_outputs(run, tmp_path):
    text = "from tests_two import Two\nnetwork = Two().eval()\n"
    (tmp_path / "branchy_of_test.py").write_text(text)
    module = type(sys)("tests_two")
    module.Two = Two
    sys.modules["tests_two"] = module
    try:
        for out in ("f.onnx", "f.pt2"):
            code, said, err = run("fuse", *SOURCE, "-o", out)
            assert code == 0, err
            assert "equal: all 5" in said
    finally:
        del sys.modules["tests_two"]


def test_an_onnx_model_is_fused_without_pytorchs_compiler(tmp_path):
    """Importing torch._dynamo takes longer than fusing a small model."""
    rng = np.random.default_rng(0)
    weights = [rng.standard_normal((6, 1, *kernel)).astype(np.float32) for kernel in ((3, 3), (1, 1))]
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["a"], pads=[1] * 4, group=6),
        helper.make_node("Conv", ["x", "w1"], ["b"], group=6),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ]
    image = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 6, 9, 9]) for name in "xy")
    held = [numpy_helper.from_array(weight, f"w{index}") for index, weight in enumerate(weights)]
    graph = helper.make_graph(nodes, "g", [next(image)], [next(image)], held)
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), str(path))
    code = "import atexit, sys; from repconv.cli import main\n"
    code += "atexit.register(lambda: print('torch._dynamo' in sys.modules))\nmain()"
    line = [sys.executable, "-c", code, "fuse", str(path), "-o", str(tmp_path / "f.onnx"), "-q"]
    assert subprocess.run(line, capture_output=True, text=True, check=True).stdout.split() == ["False"]
    assert [node.op_type for node in onnx.load(tmp_path / "f.onnx").graph.node] == ["Conv"]
