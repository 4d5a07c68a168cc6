"""Files as training scripts leave them: what is beside the weights, where they are, and what the network is called."""

import argparse
import collections
import datetime
import enum
import pathlib
import sys
import types

import numpy as np
import pytest
import torch
from torch import nn

from repconv import CheckpointError, SourceError, create_model, load, save
from repconv.models.libraries import create_named, parsed
from repconv.sources.source import open_source

X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model(randomise):
    torch.manual_seed(0)
    return randomise(create_model("irep_resnet18", width=4, blocks=(1,))).eval()


class Colour(enum.Enum):
    RED = 1


class Config:
    def __init__(self):
        self.rate = 0.1


HOLD_VALUES = {
    "namespace": argparse.Namespace(lr=0.1, path=pathlib.Path("a"), nested=argparse.Namespace(x=1)),
    "simple namespace": types.SimpleNamespace(a=1),
    "numpy scalar": np.float64(81.2),
    "numpy array": {"hist": np.arange(3), "names": np.array(["a", "b"]), "half": np.float16(1)},
    "path": [pathlib.Path("a/b"), pathlib.PurePosixPath("c")],
    "time": {"at": datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC), "took": datetime.timedelta(1)},
    "defaultdict": collections.defaultdict(list, {"a": [1]}),
    "ordered": collections.OrderedDict(a=1),
    "set": {"a", "b"},
    "complex": 1 + 2j,
    "device": {"device": torch.device("cpu"), "dtype": torch.float32, "size": torch.Size([1])},
}


@pytest.mark.parametrize("name", HOLD_VALUES)
def test_what_holds_values_beside_the_weights_does_not_matter(name, model, tmp_path):
    content = {"model": model.state_dict(), "epoch": 3, "args": HOLD_VALUES[name]}
    torch.save(content, tmp_path / "m.pth")
    assert torch.equal(open_source(str(tmp_path / "m.pth"), model="irep_resnet18").checkpoint.model(X), model(X))


@pytest.mark.parametrize("form", ["archive", "legacy"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (lambda s: {"model": s, "config": {"train": [Config()]}}, f"{__name__}.Config under 'config.train.0'"),
        (lambda s: {"model": s, "colour": Colour}, f"{__name__}.Colour under 'colour'"),
        (lambda _: {"model": nn.Sequential(nn.ReLU())}, "torch.nn.modules.container.Sequential under 'model'"),
        (lambda _: nn.Sequential(nn.ReLU()), "a whole torch.nn.modules.container.Sequential"),
    ],
)  # fmt: skip
def test_what_is_not_read_is_named_by_class_and_key(content, said, form, model, tmp_path):
    path = tmp_path / "m.pth"
    torch.save(content(model.state_dict()), path, _use_new_zipfile_serialization=form == "archive")
    with pytest.raises(CheckpointError, match="never executed") as error:
        open_source(str(path), model="irep_resnet18")
    assert said in str(error.value)


def test_stand_ins_run_nothing_even_when_called_as_functions(tmp_path):
    class Calls:
        def __reduce__(self):
            return getattr, (pathlib.Path, "touch")

    torch.save({"model": {"w": torch.ones(1)}, "x": Calls()}, tmp_path / "m.pth")
    with pytest.raises(CheckpointError):  # the weights do not fit, and that is all
        open_source(str(tmp_path / "m.pth"), model="irep_resnet18")
    assert [p.name for p in tmp_path.iterdir()] == ["m.pth"]


def other(state):
    return {name: t * 0.5 if t.is_floating_point() else t for name, t in state.items()}


@pytest.mark.parametrize("first", ["state_dict", "model", "params", "net", "module", "weights"])
@pytest.mark.parametrize("second", ["ema_model", "params_ema", "state_dict_ema"])
def test_averaged_weights_and_others_are_both_said(first, second, model, tmp_path):
    state = model.state_dict()
    torch.save({first: other(state), second: state}, tmp_path / "m.pth")
    found = open_source(str(tmp_path / "m.pth"), model="irep_resnet18")
    assert torch.equal(found.checkpoint.model(X), model(X))
    assert f"--state-key {first}" in found.notes[0]
    chosen = open_source(str(tmp_path / "m.pth"), model="irep_resnet18", state_key=first).checkpoint.model
    assert torch.equal(chosen.fc.weight, model.fc.weight * 0.5)


@pytest.mark.parametrize(
    "content",
    [
        lambda a, b: {"student": a, "teacher": b},
        lambda a, b: {"generator": {"weights": a}, "discriminator": {"weights": b}},
        lambda a, b: {"state_dict": {f"{p}.{k}": v for p, s in (("student", a), ("teacher", b)) for k, v in s.items()}},
        lambda a, b: {f"{p}.{k}": v for p, s in (("student", a), ("teacher", b)) for k, v in s.items()},
    ],
)
def test_several_places_are_refused_with_keys_that_work(content, model, tmp_path):
    state = model.state_dict()
    torch.save(content(state, other(state)), tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match="say which: --state-key ") as error:
        open_source(str(tmp_path / "m.pth"), model="irep_resnet18")
    keys = [part.split()[0] for part in str(error.value).split("--state-key ")[1:]]
    assert len(keys) == 2
    found = [
        open_source(str(tmp_path / "m.pth"), model="irep_resnet18", state_key=key).checkpoint.model for key in keys
    ]
    assert torch.equal(found[0](X), model(X))
    assert torch.equal(found[1].fc.weight, model.fc.weight * 0.5)


def test_one_place_is_found_whatever_it_is_called(model, tmp_path):
    torch.save({"generator": {"inner": model.state_dict()}, "optimizer": {"state": {0: {"m": X}}}}, tmp_path / "m.pth")
    found = open_source(str(tmp_path / "m.pth"), model="irep_resnet18")
    assert torch.equal(found.checkpoint.model(X), model(X))
    assert "'generator.inner'" in found.notes[0]


def test_what_is_missing_stands_beside_what_it_may_be_called(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "head_of_test.py").write_text(
        "from collections import OrderedDict\nfrom torch import nn\n"
        "def net(): return nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 4, 3), linear=nn.Linear(4, 2)))\n"
    )
    state = create_named("head_of_test:net").state_dict()
    renamed = {name.replace("linear", "head.fc").replace("conv", "backbone.conv"): t for name, t in state.items()}
    torch.save(renamed, tmp_path / "m.pth")
    with pytest.raises(CheckpointError) as error:
        open_source("head_of_test:net@m.pth")
    lines = " ".join(str(error.value).split())
    assert "2 missing" in lines
    assert "linear.weight 2x4 <- head.fc.weight 2x4" in lines
    assert "linear.bias 2 <- head.fc.bias 2" in lines
    del sys.modules["head_of_test"]


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_torchscript_is_said_and_no_advice_to_trust_it(tmp_path):
    torch.jit.save(torch.jit.trace(nn.ReLU(), torch.ones(1)), tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match="TorchScript") as error:
        open_source(str(tmp_path / "m.pt"), model="irep_resnet18")
    assert "weights_only" not in str(error.value)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".bin"])
def test_every_suffix_of_weights_is_written_and_read(suffix, model, tmp_path, command_line):
    path = tmp_path / f"m{suffix}"
    save(model, path, input_shape=(3, 16, 16))
    assert torch.equal(load(path).model(X), model(X))
    assert command_line("fuse", path.name, "-q")[0] == 0
    assert load(tmp_path / f"m.fused{suffix}").fused
    torch.save(model.state_dict(), path)
    with pytest.raises(CheckpointError, match="load_state_dict"):
        load(path)


CODE = """
from torch import nn
class Tiny(nn.Sequential):
    def __init__(self, width=4, kind="a", sizes=(1,)):
        super().__init__(nn.Conv2d(3, width, 3, bias=False), nn.BatchNorm2d(width))
        self.kind, self.sizes = kind, sizes
"""


@pytest.mark.parametrize("place", ["tiny_of_test.py", "pack_of_test/tiny.py"])
def test_a_file_of_code_and_its_arguments(place, tmp_path, command_line):
    file = tmp_path / place
    file.parent.mkdir(exist_ok=True)
    file.write_text(CODE)
    module = place.removesuffix(".py").replace("/", ".")
    for name in (f"{place}:Tiny", f"./{place}:Tiny", f"{module}:Tiny"):
        assert parsed(name)[0] == f"{module}:Tiny"
        made = create_named(f"{name}(width=6, kind='b', sizes=[1, 2])")
        assert (made[0].out_channels, made.kind, made.sizes) == (6, "b", [1, 2])
        assert (made.spec.name, made.spec.arguments["width"]) == (f"{module}:Tiny", 6)
    torch.save(made.state_dict(), tmp_path / "w.pth")
    line = ("inspect", f"{place}:Tiny@w.pth", "--image", "8,8")
    code, _, err = command_line(*line)
    assert (code, "6x3x3x3" in err.replace("(6, 3, 3, 3)", "6x3x3x3")) == (2, True)
    assert command_line(*line, "--arg", "width=6", "--arg", "kind=silu")[0] == 0
    assert command_line("inspect", "w.pth", "--model", f"{place}:Tiny", "--arg", "width=6", "--image", "8,8")[0] == 0
    code, _, err = command_line("inspect", "w.pth", "--arg", "width=6")
    assert (code, "--arg is for networks made by name" in err) == (2, True)
    code, _, err = command_line(*line, "--arg", "width")
    assert (code, "expected KEY=VALUE" in err) == (2, True)


def test_arguments_that_are_missing_are_named(tmp_path, command_line):
    (tmp_path / "needy_of_test.py").write_text(CODE.replace("width=4", "width"))
    name = "needy_of_test.py:Tiny"
    torch.save(create_named("needy_of_test.py:Tiny(width=6)").state_dict(), tmp_path / "w.pth")
    code, _, err = command_line("inspect", "w.pth", "--model", name)
    assert (code, "needy_of_test:Tiny takes width, kind, sizes; give --arg width=VALUE" in err) == (2, True)
    code, _, err = command_line("inspect", "w.pth", "--model", name, "--arg", "width=5")
    assert code == 2
    assert "takes width, kind, sizes: give what it was trained with, as --arg KEY=VALUE" in " ".join(err.split())


@pytest.mark.parametrize("name", ["m:f(1)", "m:f(a=__import__('os'))", "m:f(a=b)", "m:f(a=1", "m:f(**{})x"])
def test_arguments_are_literals(name):
    with pytest.raises(SourceError, match="expected arguments"):
        parsed(name)


def test_weights_say_how_many_classes(tmp_path):
    pytest.importorskip("torchvision")
    net = create_named("torchvision:squeezenet1_1(num_classes=7)").eval()
    torch.save(net.state_dict(), tmp_path / "ft.pth")
    found = open_source(f"torchvision:squeezenet1_1@{tmp_path / 'ft.pth'}")
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(found.checkpoint.model(x), net(x))
    assert "7 classes" in " ".join(found.notes)
    assert found.checkpoint.model.spec.arguments == {"num_classes": 7}


def test_averaged_weights_come_first_where_they_are_nested_too(model, tmp_path):
    """As timm, YOLO and DINO scripts keep them: the average in a dictionary of its own, beside the last weights."""
    last = {name: torch.zeros_like(value) for name, value in model.state_dict().items()}
    ema = {"decay": 0.999, "module": model.state_dict()}
    content = {"epoch": 3, "model": last, "ema": ema, "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}}
    torch.save({**content, "args": argparse.Namespace(lr=0.1)}, tmp_path / "m.pth")
    opened = open_source(str(tmp_path / "m.pth"), model="irep_resnet18")
    assert torch.equal(opened.checkpoint.model(X), model(X))
    assert "weights under 'ema.module' (also there: model" in " ".join(opened.notes)
