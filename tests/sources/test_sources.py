"""What a user may name as SOURCE, and what is said of what cannot be used."""

import sys

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from repconv import BackendError, CheckpointError, SourceError, create_model, fuse, save
from repconv.cli.fuse import command as fuse_by_command
from repconv.export.from_source import fuse_source
from repconv.models.libraries import create_named
from repconv.sources.checkpoint import Checkpoint
from repconv.sources.source import READERS, Format, open_source


@pytest.fixture
def model(randomise):
    return randomise(create_model("irep_resnet18", num_classes=7, width=4)).eval()


X = torch.linspace(-1, 1, 3 * 8 * 8).reshape(1, 3, 8, 8)


class Wrapper(nn.Module):
    """What DataParallel, torch.compile and Lightning do to names."""

    def __init__(self, inner: nn.Module, name: str) -> None:
        super().__init__()
        self.add_module(name, inner)


LAYOUTS = {
    "bare": lambda m: m.state_dict(),
    "state_dict": lambda m: {"state_dict": m.state_dict(), "epoch": 3},
    "model": lambda m: {"model": m.state_dict(), "optimizer": {"lr": 0.1}},
    "DataParallel": lambda m: {"state_dict": Wrapper(m, "module").state_dict()},
    "compiled": lambda m: Wrapper(m, "_orig_mod").state_dict(),
    "DataParallel of compiled": lambda m: Wrapper(Wrapper(m, "_orig_mod"), "module").state_dict(),
    "EMA": lambda m: {"model_ema": m.state_dict(), "model": {k: v * 0 for k, v in m.state_dict().items()}},
    "averaged": lambda m: torch.optim.swa_utils.AveragedModel(m).state_dict(),
    "Lightning": lambda m: {
        "state_dict": {**Wrapper(m, "model").state_dict(), "criterion.weight": torch.ones(7)},
        "pytorch-lightning_version": "2.0",
    },
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_are_found_in_their_wrapping(layout, model, tmp_path):
    path = tmp_path / "m.pth"
    torch.save(LAYOUTS[layout](model), path)
    source = open_source(str(path), model="irep_resnet18")
    assert torch.equal(source.checkpoint.model(X), model(X))
    assert len(source.sha256) == 64


def test_safetensors_of_a_state_dict(model, tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "m.safetensors"
    save_file({f"module.{n}": t.contiguous() for n, t in model.state_dict().items()}, path)
    found = open_source(str(path), model="irep_resnet18").checkpoint.model.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in model.state_dict().items())


def test_averaged_weights_come_first_and_are_said(model, tmp_path):
    path = tmp_path / "m.pth"
    torch.save(LAYOUTS["EMA"](model), path)
    assert "also there: model; --state-key chooses" in open_source(str(path), model="irep_resnet18").notes[0]
    chosen = open_source(str(path), model="irep_resnet18", state_key="model").checkpoint.model
    assert not torch.equal(chosen.fc.weight, model.fc.weight)


FACTORY = """
import torch
from torch import nn
from repconv import create_model, expand

def make():
    return create_model("irep_resnet18", num_classes=7, width=4)

def broken():
    return torch.ones(1)

def failing():
    raise RuntimeError("no licence")

nothing = 3
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    (tmp_path / "usercode").mkdir()
    (tmp_path / "usercode" / "nets.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in [n for n in sys.modules if n.startswith("usercode")]:
        del sys.modules[name]


def test_a_factory_is_found_from_the_working_directory(project, model):
    torch.save(model.state_dict(), "m.pth")
    for source in (
        open_source("usercode.nets:make@m.pth"),
        open_source("m.pth", model="usercode.nets:make"),
    ):
        assert torch.equal(source.checkpoint.model(X), model(X))
    assert "random" in open_source("usercode.nets:make").notes[0]
    assert str(project) not in sys.path


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("usercode.nets:mak", r"no 'mak' in it; it has .*make"),
        ("usercode.none:make", r"usercode.none:make failed: ModuleNotFoundError: No module named 'usercode.none'"),
        ("usercode.nets:broken", r"returned a Tensor, expected a torch.nn.Module"),
        ("usercode.nets:failing", r"failed: RuntimeError: no licence \(nets.py, line 13\)"),
        ("usercode.nets:nothing", r"is a int, expected a function"),
        ("usercode.nets:make@none.pth", r"no weight file none.pth"),
        ("timm:test_resnet@none.pth.tar", r"no weight file none.pth.tar"),
        ("torchvision:resnet18@folder/none", r"no weight file folder/none"),
    ],
)
@pytest.mark.usefixtures("project")
def test_what_a_factory_gets_wrong_is_said_with_where(source, words):
    with pytest.raises(SourceError, match=words):
        open_source(source)


def test_library_models_by_name():
    pytest.importorskip("torchvision", reason="torchvision is not installed")
    net = open_source("torchvision:resnet18").checkpoint.model
    assert net(torch.zeros(1, 3, 32, 32)).shape == (1, 1000)
    assert not net.training
    with pytest.raises(SourceError, match=r"torchvision has no model 'resnet1'; near it: .*resnet1"):
        open_source("torchvision:resnet1")


def test_a_library_backbone_fetches_no_weights_that_nobody_asked_for(monkeypatch):
    torchvision = pytest.importorskip("torchvision", reason="torchvision is not installed")

    def fetched(*_, **__):
        raise AssertionError("it looks for weights")

    monkeypatch.setattr(torchvision.models.WeightsEnum, "get_state_dict", fetched)
    net = create_named("torchvision:lraspp_mobilenet_v3_large(num_classes=3)")
    assert net.spec.arguments == {"num_classes": 3}
    with pytest.raises(SourceError, match="it looks for weights"):
        create_named("torchvision:lraspp_mobilenet_v3_large(weights_backbone='DEFAULT')")


def test_timm_models_by_name():
    pytest.importorskip("timm", reason="timm is not installed")
    assert open_source("timm:repvgg_a0").checkpoint.model(torch.zeros(1, 3, 32, 32)).shape == (1, 1000)
    with pytest.raises(SourceError, match=r"timm has no model 'repvgg_a'; near it: repvgg_a0"):
        open_source("timm:repvgg_a")


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_a_missing_library_is_named_with_its_installation(library, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(BackendError, match=f"{library} is not installed; install it with: pip install {library}"):
        open_source(f"{library}:resnet18")


def _saved(path, state):
    torch.save(state, path)
    return str(path)


def test_weights_without_a_network_are_told_what_to_add(model, tmp_path):
    with pytest.raises(SourceError, match=r"name it with --model: one of .* or --model package.module:factory"):
        open_source(_saved(tmp_path / "m.pth", model.state_dict()))


def test_a_checkpoint_needs_no_model(model, tmp_path):
    save(model, tmp_path / "m.pt")
    with pytest.raises(SourceError, match="describes its own network; leave out --model"):
        open_source(str(tmp_path / "m.pt"), model="resnet18")


MISFITS = {
    "missing": (lambda s: {k: v for k, v in s.items() if k != "fc.bias"}, r"1 missing \(fc.bias\)"),
    "extra": (lambda s: {**s, "fc.weigth": torch.ones(1)}, r"1 unexpected \(fc.weigth, nearest fc.weight\)"),
    "shape": (lambda s: {**s, "fc.bias": torch.ones(3)}, r"fc.bias: \(3,\) in the file, \(7,\) in the network"),
    "nan": (lambda s: {**s, "fc.bias": torch.full((7,), float("nan"))}, r"NaN or Inf in fc.bias"),
    "not a state": (lambda _: {"epoch": 3}, r"no tensors in it; its keys are epoch"),
    "list": (lambda _: [1, 2], r"holds a list, expected a state dict"),
}


@pytest.mark.parametrize("name", MISFITS)
def test_weights_that_do_not_fit_are_listed(name, model, tmp_path):
    spoil, words = MISFITS[name]
    with pytest.raises(CheckpointError, match=words):
        open_source(_saved(tmp_path / "m.pth", spoil(dict(model.state_dict()))), model="irep_resnet18")


def test_the_model_that_would_fit_better_is_named(tmp_path):
    state = create_model("repvgg_vgg16", width=4).state_dict()
    with pytest.raises(CheckpointError, match=r"try --model repvgg_vgg16"):
        open_source(_saved(tmp_path / "m.pth", state), model="irep_resnet18")


@pytest.mark.parametrize(
    ("name", "sizes", "image"),
    [
        ("irep_resnet18", {"blocks": (1, 2)}, (3, 32, 32)),
        ("repvgg_vgg16", {"blocks": (1, 3, 2)}, (3, 32, 32)),
        ("vgg16", {"blocks": (2, 1), "in_channels": 1}, (1, 32, 32)),
        ("acnet_resnet50", {"blocks": (1, 1), "stem": "imagenet"}, (3, 224, 224)),
    ],
)
def test_the_sizes_of_a_network_are_read_off_its_weights(name, sizes, image, tmp_path):
    made = create_model(name, width=4, num_classes=5, **sizes)
    torch.save(made.state_dict(), tmp_path / "m.pt")
    found = open_source(str(tmp_path / "m.pt"), model=name).checkpoint
    assert {"in_channels": 3, **found.model.spec.arguments} == {"in_channels": 3, **made.spec.arguments}
    assert found.input_shape == image
    other = "dbb_resnet18" if "resnet" in name else "dbb_vgg16"
    with pytest.raises(CheckpointError, match=f"the names fit {name}: try --model {name}"):
        open_source(str(tmp_path / "m.pt"), model=other)


def test_tied_weights_stay_tied(tmp_path, monkeypatch):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
            self.b.weight = self.a.weight

    monkeypatch.setitem(sys.modules, "tied_nets", type(sys)("tied_nets"))
    sys.modules["tied_nets"].Tied = Tied
    net = open_source(_saved(tmp_path / "m.pth", Tied().state_dict()), model="tied_nets:Tied").checkpoint.model
    assert net.a.weight is net.b.weight


def test_a_source_without_a_description_fuses(model, tmp_path):
    source = open_source(_saved(tmp_path / "m.pth", model.state_dict()), model="irep_resnet18")
    fused, report = fuse(source.checkpoint.model)
    assert report.after.batch_norms == 0
    torch.testing.assert_close(fused(X), model(X), rtol=1e-3, atol=1e-3)


def test_a_format_is_one_reader_for_every_command(tmp_path, monkeypatch, command_line) -> None:
    """`.seed` files hold a number that makes the network; nothing but the table of readers knows of them."""

    def read(path, *_):
        torch.manual_seed(int(path.read_text()))
        network = create_model("irep_resnet18", width=2, blocks=(1,)).eval()
        return Checkpoint(model=network, fused=False, input_shape=(3, 8, 8)), (f"made of {path.read_text()}",)

    monkeypatch.setitem(READERS, ".seed", Format(read))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.seed").write_text("7")
    opened = open_source("m.seed")
    assert (opened.size, opened.is_graph, opened.notes) == ((3, 8, 8), False, ("made of 7",))
    for arguments in (("inspect", "m.seed"), ("fuse", "m.seed", "-o", "m.onnx"), ("verify", "m.seed", "m.onnx")):
        code, out, err = command_line(*arguments)
        assert code == 0, out + err
        assert "m.seed: made of 7" in err


def test_a_graph_format_is_one_row_too(tmp_path, monkeypatch) -> None:
    """`.mul` files hold weights of a convolution that an ONNX model is made of; it is fused to such a model."""

    def read(path, *_):
        weights = [onnx.numpy_helper.from_array(np.full((2, 2, 1, 1), float(path.read_text()), np.float32), "w")]
        ends = [onnx.helper.make_tensor_value_info(name, 1, [1, 2, 2, 2]) for name in "xy"]
        nodes = [onnx.helper.make_node("Conv", [a, "w"], [b]) for a, b in ("xh", "hy")]
        graph = onnx.helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
        return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9), ()

    monkeypatch.setitem(READERS, ".mul", Format(read, graph=True, fused=(".onnx",)))
    (tmp_path / "m.mul").write_text("3")
    fuse_by_command.main([str(tmp_path / "m.mul")], standalone_mode=False)
    (conv,) = onnx.load(tmp_path / "m.fused.onnx").graph.node
    assert conv.op_type == "Conv"
    with pytest.raises(SourceError, match=r"of a \.mul file \.onnx are made, no \.pt2"):
        fuse_source(tmp_path / "m.mul", ".pt2")


def test_what_a_graph_declares_is_read_off_it(tmp_path) -> None:
    network = torch.nn.Conv2d(3, 2, 1).eval()
    batch = ({0: torch.export.Dim("n")},)
    torch.export.save(
        torch.export.export(network, (torch.zeros(2, 3, 6, 5),), dynamic_shapes=batch), tmp_path / "m.pt2"
    )
    weights = [onnx.numpy_helper.from_array(np.ones((2, 3, 1, 1), np.float32), "w")]
    ends = [onnx.helper.make_tensor_value_info(n, 1, ["n", c, 6, 5]) for n, c in (("x", 3), ("y", 2))]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Conv", ["x", "w"], ["y"])], "g", ends[:1], ends[1:], weights)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    onnx.helper.set_model_props(model, {"normalization": '{"mean": [0.1, 0.2, 0.3], "std": [1, 1, 1]}'})
    onnx.save(model, tmp_path / "m.onnx")
    for name, said in (("m.pt2", None), ("m.onnx", (0.1, 0.2, 0.3))):
        opened = open_source(tmp_path / name)
        assert [(i.dtype, i.shape) for i in opened.inputs] == [(torch.float32, (None, 3, 6, 5))]
        assert (opened.size, opened.is_graph, opened.channels) == ((3, 6, 5), True, 3)
        assert (None if opened.normalization is None else opened.normalization.mean) == said
        with pytest.raises(SourceError, match="is a graph, and a network in PyTorch is needed"):
            _ = opened.checkpoint
        with pytest.raises(SourceError, match="holds its own"):
            open_source(tmp_path / name, model="irep_resnet18")
