"""Every format that is read, with code hidden wherever its parser could run it: the code never runs.

The code makes a folder, `canary`. What torch's own reader does with the same files shows that the code is live.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from repconv import create_model, save
from repconv.sources.checkpoint import digest

CANARY = "canary"
CODE = f"__import__('os').mkdir('{CANARY}')"
MODULE = "canary_of_test"
IMPORT = f"{MODULE}:make"

Parts = dict[str, bytes]


class Planted:
    """Pickled, it is a call that makes the canary."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (CANARY,)


def planted() -> bytes:
    """As torch saves it, larger than any sample inputs here."""
    stream = io.BytesIO()
    torch.save((Planted(), torch.zeros(40_000)), stream)
    return stream.getvalue()


@pytest.fixture
def run(command_line, monkeypatch, tmp_path: Path):
    """The command line in a folder with a module whose import, too, makes the canary."""
    (tmp_path / f"{MODULE}.py").write_text(f"{CODE}\ndef make():\n    raise SystemExit\nclass E: x = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    return command_line


def refused(answer: tuple[int, str, str]) -> None:
    code, _, err = answer
    assert "Traceback" not in err
    assert not Path(CANARY).exists(), "the file ran code"
    assert (code, err.startswith("repconv: ")) == (2, True), err


class Scaled(nn.Module):
    """A network with an input that has a name."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: torch.Tensor, scale: torch.Tensor | None = None) -> torch.Tensor:
        out = self.conv(x)
        return out if scale is None else out * scale


@pytest.fixture(scope="module")
def program() -> Parts:
    """The parts of a `.pt2` file, with its folder in their names."""
    stream = io.BytesIO()
    inputs = (torch.randn(1, 3, 8, 8),)
    torch.export.save(torch.export.export(Scaled().eval(), inputs, {"scale": torch.ones(1)}), stream)
    with zipfile.ZipFile(stream) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zipped(parts: Parts) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return stream.getvalue()


def directory(content: bytes) -> tuple[int, int]:
    """Where the directory begins, and its size."""
    size, start = struct.unpack_from("<2I", content, content.rfind(b"PK\5\6") + 12)
    return start, size


def two_directories(shown: Parts, hidden: Parts) -> bytes:
    """Python counts the directory's size back from the end record, torch goes to the offset that stands in it."""
    front, back = zipped(hidden), zipped(shown)
    (front_start, size), (back_start, back_size) = directory(front), directory(back)
    assert size == back_size
    entries = bytearray(back[back_start : back_start + size])
    at = 0
    while at < size:
        name, extra, comment = struct.unpack_from("<3H", entries, at + 28)
        offset = struct.unpack_from("<I", entries, at + 42)[0]
        struct.pack_into("<I", entries, at + 42, front_start + offset - back_start)
        at += 46 + name + extra + comment
    end = bytearray(back[back_start + size :])
    struct.pack_into("<I", end, 16, front_start)
    return front[: front_start + size] + back[:back_start] + bytes(entries) + bytes(end)


def changed(parts: Parts, ending: str, change: Callable[[bytes], bytes]) -> Parts:
    """`parts` with those of that ending changed, which must make a difference."""
    new = {name: change(content) if name.endswith(ending) else content for name, content in parts.items()}
    assert new != parts
    return new


def said(old: str, new: str) -> Callable[[Parts], bytes]:
    """The program with `new` where its JSON says `old`."""
    return lambda parts: zipped(
        changed(parts, "models/model.json", lambda content: content.replace(old.encode(), new.encode()))
    )


def inside(change: Callable[[dict], None]) -> Callable[[Parts], bytes]:
    """The program with its JSON changed in place."""

    def apply(content: bytes) -> bytes:
        known = json.loads(content)
        change(known)
        return json.dumps(known).encode()

    return lambda parts: zipped(changed(parts, "models/model.json", apply))


def renamed(value, old: str, new: str):
    """JSON with every text and key that is `old` now `new`."""
    if isinstance(value, dict):
        return {renamed(key, old, new): renamed(part, old, new) for key, part in value.items()}
    if isinstance(value, list):
        return [renamed(part, old, new) for part in value]
    return new if value == old else value


def structured(spec: object) -> Callable[[Parts], bytes]:
    """The program whose outputs are described so."""

    def change(known: dict) -> None:
        known["graph_module"]["module_call_graph"][0]["signature"]["out_spec"] = json.dumps([1, spec])

    return inside(change)


def spec(kind: str, context: object) -> dict[str, object]:
    leaf = {"type": None, "context": None, "children_spec": []}
    return {"type": kind, "context": context, "children_spec": [leaf]}


def legacy(kind: str) -> Callable[[Parts], bytes]:
    """Weights or constants as one pickle, as torch once wrote them."""
    return lambda parts: zipped({**parts, f"{folder(parts)}/data/{kind}/model.pt": planted()})


def folder(parts: Parts) -> str:
    return next(iter(parts)).partition("/")[0]


def with_inputs(parts: Parts) -> Parts:
    return changed(parts, "data/sample_inputs/model.pt", lambda _: planted())


def second_model(parts: Parts) -> bytes:
    """Another program whose legacy weights have the name of a plain weight of the first."""
    more = {
        name.replace("model_", "weight_0_").replace("/model.", "/weight_0."): content
        for name, content in parts.items()
        if "model" in name.rpartition("/")[2]
    }
    return zipped({**parts, **more, f"{folder(parts)}/data/weights/weight_0.pt": planted()})


def config(**entry: object) -> Callable[[Parts], bytes]:
    """The list of weights saying so of every one, and the file it then names."""

    def change(content: bytes) -> bytes:
        known = json.loads(content)
        for held in known["config"].values():
            held.update(entry)
        return json.dumps(known).encode()

    return lambda parts: zipped(
        {
            **changed(parts, "model_weights_config.json", change),
            f"{folder(parts)}/data/weights/{entry.get('path_name', 'weight_0')}": planted(),
        }
    )


def twice(first: bool) -> Callable[[Parts], bytes]:
    """The planted sample inputs beside the real ones under one name."""

    def write(parts: Parts) -> bytes:
        name = next(name for name in parts if "sample_inputs" in name)
        contents = (planted(), parts[name]) if first else (parts[name], planted())
        aside = name[:-1] + "?"  # of one length, so that the bytes can be replaced
        rest = {key: content for key, content in parts.items() if key != name}
        return zipped({**rest, name: contents[0], aside: contents[1]}).replace(aside.encode(), name.encode())

    return write


OLD = {
    "version": b"8.8", "serialized_exported_program.json": b"{}", "serialized_state_dict.pt": b"",
    "serialized_constants.pt": b"", "serialized_example_inputs.pt": b"",
}  # fmt: skip

PROGRAMS: dict[str, Callable[[Parts], bytes]] = {
    "a pickle as sample inputs": lambda p: zipped(with_inputs(p)),
    "pickled weights": legacy("weights"),
    "pickled constants": legacy("constants"),
    "a weight that says it is pickled": config(use_pickle=True),
    "a weight of another kind": config(path_name="opaque_obj_0", use_pickle=True),
    "another model": second_model,
    "duplicates, first": twice(first=True),
    "duplicates, last": twice(first=False),
    "two directories": lambda p: two_directories(p, with_inputs(p)),
    "an archive before": lambda p: zipped(with_inputs(p)) + zipped(p),
    "an archive after": lambda p: zipped(p) + zipped(with_inputs(p)),
    "the old format": lambda _: zipped({**OLD, "serialized_state_dict.pt": planted()}),
    "the old format within": lambda p: zipped({**p, **OLD, "serialized_state_dict.pt": planted()}),
    "a path as a name": lambda p: zipped({**p, f"{folder(p)}/../{CANARY}": b""}),
    "a library": lambda p: zipped({**p, f"{folder(p)}/data/aotinductor/model/a.so": b""}),
    "an input": inside(lambda known: known.update(renamed(known, "scale", f"scale={CODE}"))),
    "an argument": inside(
        lambda known: known["graph_module"]["module_call_graph"][0]["signature"].update(
            forward_arg_names=["x", f"scale={CODE}"]
        )
    ),
    "an input's key": said(r"\\\"scale\\\"", rf"\\\"scale={CODE}\\\""),
    "an output's enumeration": structured(
        spec("builtins.dict", json.dumps([{"__enum__": True, "fqn": f"{MODULE}:E", "name": "x"}]))
    ),
    "an output's factory": structured(
        spec("collections.defaultdict", {
            "default_factory_module": MODULE, "default_factory_name": "make", "dict_context": ["x"],
        })
    ),
    "a size": said('"as_int": 8}', '"as_expr": {"expr_str": "' + CODE + '"}}'),
    "a guard": said('"guards_code": []', f'"guards_code": ["{CODE}"]'),
    "a function": said("torch.ops.aten.conv2d.default", "torch.os.system"),
    "a parameter": said("conv.weight", f"conv.w') or {CODE} or ('"),
}  # fmt: skip
LIVE = {
    "a pickle as sample inputs", "pickled weights", "pickled constants", "a weight that says it is pickled",
    "two directories", "another model", "an input", "an output's enumeration", "an output's factory", "a size",
}  # fmt: skip
"""Those that torch itself is seen to run; of the others the danger is another version's, or another reader's."""
COMMANDS = {
    "inspect": ("inspect", "{}"),
    "fuse": ("fuse", "{}", "-o", "out.onnx"),
    "verify": ("verify", "{}", "{}"),
    "export": ("export", "{}", "--to", "onnx", "-o", "out.onnx", "--image", "8,8"),
    "bench": ("bench", "{}", "--image", "8,8"),
    "expand": ("expand", "{}", "-o", "out.pt"),
}


def line(command: str, file: str) -> list[str]:
    return [part.format(file) for part in COMMANDS[command]]


@pytest.mark.newer
@pytest.mark.usefixtures("run")
@pytest.mark.parametrize("name", sorted(LIVE))
def test_torch_itself_runs_what_is_planted_in_a_program(name: str, program: Parts, tmp_path: Path) -> None:
    (tmp_path / "bad.pt2").write_bytes(PROGRAMS[name](program))
    with contextlib.suppress(Exception):  # after the code ran, much may fail
        torch.export.load(tmp_path / "bad.pt2").module()
    assert Path(CANARY).exists()


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_runs_no_code(name: str, run, program: Parts, tmp_path: Path) -> None:
    (tmp_path / "bad.pt2").write_bytes(PROGRAMS[name](program))
    for command in COMMANDS:
        refused(run(*line(command, "bad.pt2")))


@pytest.mark.newer
def test_the_program_without_a_canary_is_read(run, program: Parts, tmp_path: Path) -> None:
    (tmp_path / "good.pt2").write_bytes(zipped(program))
    code, out, err = run("inspect", "good.pt2")
    assert code == 0, err
    assert "Conv" in out or "conv" in out


def state() -> dict[str, torch.Tensor]:
    return create_model("irep_resnet18", width=2, blocks=(1,)).state_dict()


def saved(content: object) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


def unzipped(content: bytes) -> Parts:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def factory_checkpoint() -> dict[str, object]:
    """A checkpoint whose network would be made by the planted module, in order otherwise."""
    save(create_model("irep_resnet18", width=2, blocks=(1,)), "made.pt")
    content = torch.load("made.pt", weights_only=True)
    content["model"] = {"name": IMPORT, "arguments": {}}
    description = {key: value for key, value in content.items() if key != "state"}
    return {**content, "digest": digest(description, content["state"])}


def safely_made() -> bytes:
    content = factory_checkpoint()
    tensors = content.pop("state")
    save_file(tensors, "made.safetensors", {"repconv": json.dumps(content), "format": "pt"})
    return Path("made.safetensors").read_bytes()


def two_states() -> bytes:
    plain, evil = saved(state()), saved({**state(), "evil": Planted(), "more": torch.zeros(9000)})
    shown, hidden = unzipped(plain), unzipped(evil)
    hidden = {name: hidden.get(name, b"") for name in shown}
    return two_directories(shown, {**hidden, next(iter(hidden)): hidden[next(iter(hidden))] + bytes(40_000)})


WEIGHTS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "a pickled object": (".pt", lambda: saved({**state(), "x": Planted()})),
    "a bare pickle": (".pt", lambda: pickle.dumps(Planted())),
    "an archive of a bare pickle": (".pt", lambda: zipped({"archive/data.pkl": pickle.dumps(Planted())})),
    "a script": (".pt", lambda: zipped({"archive/constants.pkl": pickle.dumps(Planted()), "archive/data.pkl": b""})),
    "two directories": (".pt", two_states),
    "an archive before": (".pt", lambda: saved({"x": Planted()}) + saved(state())),
    "an archive after": (".pt", lambda: saved(state()) + saved({"x": Planted()})),
    "a factory": (".pt", lambda: saved(factory_checkpoint())),
    "a factory, safely": (".safetensors", safely_made),
    "a pickle of another suffix": (".safetensors", lambda: pickle.dumps(Planted())),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_weight_file_runs_no_code(name: str, run, tmp_path: Path) -> None:
    suffix, make = WEIGHTS[name]
    (tmp_path / f"bad{suffix}").write_bytes(make())
    for command in COMMANDS:
        refused(run(*line(command, f"bad{suffix}")))
        refused(run(*line(command, f"bad{suffix}"), "--model", "irep_resnet18"))


def arrays(**held: object) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **{name: np.asarray(value) for name, value in held.items()})
    return stream.getvalue()


def pixels() -> np.ndarray:
    return np.zeros((2, 8, 8, 3), np.uint8)


def npy(header: str) -> bytes:
    text = header.encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


ARRAYS: dict[str, Callable[[], bytes]] = {
    "an object": lambda: arrays(images=np.array([Planted()], dtype=object)),
    "another object": lambda: arrays(images=pixels(), labels=np.array([Planted(), 1], dtype=object)),
    "a pickle": lambda: zipped({"images.npy": pickle.dumps(Planted())}),
    "a header": lambda: zipped({"images.npy": npy("{'descr': " + CODE + ", 'fortran_order': False, 'shape': ()}\n")}),
    "an archive before": lambda: arrays(images=np.array([Planted()], dtype=object)) + arrays(images=pixels()),
    "an archive after": lambda: arrays(images=pixels()) + arrays(images=np.array([Planted()], dtype=object)),
    "a bare pickle": lambda: pickle.dumps(Planted()),
    "two directories": lambda: two_directories(
        {"images.npy": b"x"}, {"images.npy": pickle.dumps(Planted()) + bytes(900)}
    ),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_run_no_code(name: str, run, tmp_path: Path) -> None:
    save(create_model("irep_resnet18", width=2, blocks=(1,)), tmp_path / "m.pt")
    (tmp_path / "bad.npz").write_bytes(ARRAYS[name]())
    export = ("export", "m.pt", "--to", "onnx", "-o", "out.onnx", "--image", "8,8")
    refused(run(*export, "--evaluate", "bad.npz"))
    if name == "two directories":
        refused(run(*export, "--precision", "int8", "--calibrate", "bad.npz"))
        refused(run(*export, "--evaluate", "imagefolder:bad.npz"))


def graph(change: Callable[[onnx.ModelProto], None]) -> bytes:
    stream = io.BytesIO()
    torch.onnx.export(nn.Conv2d(3, 4, 3).eval(), (torch.ones(1, 3, 8, 8),), stream, dynamo=False)
    model = onnx.load_from_string(stream.getvalue())
    change(model)
    return model.SerializeToString()


def custom_domain(model: onnx.ModelProto) -> None:
    model.graph.node[0].domain = MODULE
    model.opset_import.add(domain=MODULE, version=1)


def outside(location: str) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        weight = model.graph.initializer[0]
        weight.ClearField("raw_data")
        weight.data_location = onnx.TensorProto.EXTERNAL
        weight.external_data.add(key="location", value=location)

    return change


GRAPHS: dict[str, Callable[[onnx.ModelProto], None]] = {
    "weights outside": outside("../weights.bin"),
    "weights at an absolute path": outside("/etc/hostname"),
    "a pickle": lambda m: m.metadata_props.add(key="x", value=""),
    "an operation of nobody": custom_domain,
    "a function without a body": lambda m: setattr(m.graph.node[0], "op_type", "PyOp"),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", GRAPHS)
def test_a_graph_runs_no_code(name: str, run, tmp_path: Path) -> None:
    content = pickle.dumps(Planted()) if name == "a pickle" else graph(GRAPHS[name])
    (tmp_path / "bad.onnx").write_bytes(content)
    (tmp_path.parent / "weights.bin").write_bytes(bytes(432))
    for command in ("verify", "export", "bench") if name == "an operation of nobody" else COMMANDS:
        refused(run(*line(command, "bad.onnx")))
    # Nothing in an operation of nobody is run by looking at it.
    run("inspect", "bad.onnx")
    assert not Path(CANARY).exists()


IR = (
    '<?xml version="1.0"?>{doctype}<net name="a" version="11" extensions="{so}"><layers>{layers}</layers><edges/></net>'
)
LAYER = '<layer id="0" name="x" type="Evil" version="{so}"><data extension="{so}" library="{so}"/></layer>'


@pytest.mark.parametrize("doctype", ["", '<!DOCTYPE net [<!ENTITY x SYSTEM "file:///etc/hostname">]>'])
def test_ir_loads_no_library(doctype: str, run, tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed")
    so = tmp_path / "evil.so"
    so.write_bytes(b"\x7fELF")
    (tmp_path / "bad.xml").write_text(IR.format(doctype=doctype, so=so, layers=LAYER.format(so=so)))
    (tmp_path / "bad.bin").write_bytes(b"")
    refused(run("verify", "bad.xml", "bad.xml"))


@pytest.mark.parametrize("target", ["os", MODULE, "tensorrt"])
def test_the_json_of_an_engine_imports_nothing(target: str, run, tmp_path: Path) -> None:
    (tmp_path / "bad.engine").write_bytes(pickle.dumps(Planted()))
    (tmp_path / "bad.engine.json").write_text(
        json.dumps({"schema": "repconv.engine/1", "target": target, "engine": "bad.engine", "module": MODULE})
    )
    refused(run("verify", "bad.engine", "bad.engine"))


def begun(tmp_path: Path, **settings: str) -> None:
    """The folder of a run that was interrupted, whose configuration says so."""
    (tmp_path / "run" / "populations").mkdir(parents=True)
    content = {"schema": "repconv.search-config/1", "data": "digits", "device": "cpu", **settings}
    (tmp_path / "run" / "config.json").write_text(json.dumps(content))
    (tmp_path / "run" / "environment.json").write_text("{}")


NAMED = {
    "data": {"data": IMPORT},
    "data called as a kind": {"data": f"digits:{IMPORT}"},
    "data of a library": {"data": "timm:create_model"},
    "a network": {"network": IMPORT},
    "a network and weights": {"network": f"{IMPORT}@x.pt"},
}


@pytest.mark.parametrize("name", NAMED)
def test_a_run_folder_runs_no_code(name: str, run, tmp_path: Path) -> None:
    begun(tmp_path, **NAMED[name])
    refused(run("search", "resume", "run"))
    option, value = next((f"--{key}", value) for key, value in NAMED[name].items())
    code, _, err = run("search", "resume", "run")
    assert f"say so: {option} {value}" in err
    refused(run("search", "resume", "run", option, "another:name"))
    code, _, _ = run("search", "report", "run")
    assert (code, Path(CANARY).exists()) == (0, False)


def test_what_the_user_names_is_run(run, tmp_path: Path) -> None:
    begun(tmp_path, data=IMPORT)
    with contextlib.suppress(SystemExit):
        run("search", "resume", "run", "--data", IMPORT)
    assert Path(CANARY).exists()


def found(name: object) -> dict[str, object]:
    """An architecture of a small network, made by `name`."""
    kinds = {"fixed": ["3x3"], "searchable": ["1x1"], "active": ["1x1"]}
    return {
        "schema": "repconv.arch/1",
        "blocks": {"stem": kinds},
        "validation_accuracy": 0.5,
        "network": {"name": name, "width": 0, "blocks": [], "fixed": [], "branches": []},
        "gates": {"stem": {"beta": 0.0, "alpha": {"1x1": 0.0}}},
    }


def test_an_architecture_runs_no_code(run, tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    (tmp_path / "a.arch.json").write_text(json.dumps(found(IMPORT)))
    retrain = ("retrain", "a.arch.json", "--set", "device=cpu")
    answer = run(*retrain, "-o", "run")
    refused(answer)
    assert f"say so: --network {IMPORT}" in answer[2]
    refused(run(*retrain, "-o", "other", "--network", "another:name"))
    (tmp_path / "s.pt").write_bytes(saved(factory_checkpoint()))
    (tmp_path / "b.arch.json").write_text(json.dumps(found("irep_resnet18")))
    refused(run("retrain", "b.arch.json", "-o", "third", "--set", "supernet=s.pt"))
    refused(run("retrain", "b.arch.json", "-o", "fourth", "--data", "imagefolder:s.pt"))


@pytest.mark.parametrize("content", [pickle.dumps(Planted()), saved(Planted())], ids=["bare", "saved"])
def test_the_checkpoint_of_a_run_runs_no_code(content: bytes, run, tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    small = {"width": 2, "blocks": [1], "train_images": 200, "population": 3, "epochs": 2, "warmup_epochs": 1}
    begun(tmp_path, **small, batch=32)
    (tmp_path / "run" / "checkpoint.pt").write_bytes(content)
    refused(run("search", "resume", "run"))
