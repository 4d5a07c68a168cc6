"""The names users may rely on, and that reaching them costs nothing before they are used."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

import repconv
from repconv.export.onnx.summary import summarise_onnx
from repconv.graph import fuse_onnx

PUBLIC = [
    "BRANCHES",
    "BackendError",
    "BuildError",
    "CheckpointError",
    "FusionError",
    "FusionReport",
    "GeometryError",
    "Kernel",
    "OutputError",
    "Refusal",
    "RepBlock",
    "RepconvError",
    "Sampling",
    "SearchError",
    "SourceError",
    "VerificationError",
    "compare",
    "create_model",
    "expand",
    "expandable",
    "forecast",
    "fuse",
    "list_models",
    "load",
    "save",
    "set_statistics",
]
"""Written out: adding or dropping a public name is a decision, and shows in a diff of this list."""


def fresh(program: str, folder: Path) -> str:
    """What `program` prints in a new interpreter started away from the checkout."""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_public_names_are_these() -> None:
    assert repconv.__all__ == PUBLIC
    assert set(PUBLIC) <= set(dir(repconv))


PACKAGES = ("repconv", "repconv.export", "repconv.graph")


@pytest.mark.parametrize("package", PACKAGES)
def test_the_lists_of_names_agree(package: str) -> None:
    """The table of homes, and the imports only type checkers run."""
    module = importlib.import_module(package)
    tree = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))
    guarded = next(n for n in tree.body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING")
    typed: dict[str, list[str]] = {}
    for node in guarded.body:
        assert isinstance(node, ast.ImportFrom)
        assert all(alias.asname == alias.name for alias in node.names), "or it is not exported for type checkers"
        typed.setdefault(f".{node.module}", []).extend(alias.name for alias in node.names)
    assert {home: sorted(names) for home, names in typed.items()} == {
        home: sorted(names.split()) for home, names in module._HOMES.items()
    }
    assert sorted(name for names in typed.values() for name in names) == module.__all__


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_resolves(name: str) -> None:
    value = getattr(repconv, name)
    assert not inspect.ismodule(value)
    if name.endswith("Error"):
        assert issubclass(value, repconv.RepconvError)


def test_every_error_is_public() -> None:
    from repconv import errors

    defined = {name for name, value in vars(errors).items() if inspect.isclass(value)}
    assert defined == {name for name in PUBLIC if name.endswith("Error")}


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'repconv' has no attribute 'fold'"):
        _ = repconv.fold


def test_importing_the_package_does_not_import_torch(tmp_path: Path) -> None:
    program = (
        "import repconv, sys; dir(repconv); print([m for m in ('torch', 'numpy', 'onnx', 'click') if m in sys.modules])"
    )
    assert fresh(program, tmp_path) == "[]"


def test_a_function_is_not_replaced_by_the_module_of_its_name(tmp_path: Path) -> None:
    """Importing `repconv.x` sets an attribute `x` of the package to the module, so no module has a function's name."""
    program = (
        "import importlib, pkgutil, repconv\n"
        "for found in pkgutil.iter_modules(repconv.__path__):\n"
        "    importlib.import_module('repconv.' + found.name)\n"
        "print(all(callable(f) or name == 'BRANCHES' for name in repconv.__all__ for f in [getattr(repconv, name)]))\n"
    )
    assert fresh(program, tmp_path) == "True"


def test_everything_public_is_documented() -> None:
    missing = []
    for name in PUBLIC:
        value = getattr(repconv, name)
        if not callable(value):
            continue
        if not inspect.getdoc(value) or (inspect.isclass(value) and not value.__dict__.get("__doc__")):
            missing.append(name)
        if inspect.isclass(value):
            missing += [
                f"{name}.{member}"
                for member, held in vars(value).items()
                if not member.startswith("_") and (inspect.isfunction(held) or isinstance(held, property))
                if not inspect.getdoc(held)
            ]
    assert not missing, f"no docstring: {', '.join(missing)}"


@pytest.mark.parametrize("package", PACKAGES[1:])
def test_the_names_of_other_packages_resolve_and_are_documented(package: str) -> None:
    module = importlib.import_module(package)
    for name in module.__all__:
        value = getattr(module, name)
        assert not inspect.ismodule(value), f"{name} is hidden by a module of its name"
        assert inspect.getdoc(value)
    with pytest.raises(AttributeError, match=rf"'{package}' has no attribute 'to_tflite'"):
        _ = module.to_tflite


def test_the_version_is_that_of_the_package() -> None:
    assert repconv.__version__ == importlib.metadata.version("repconv")


@pytest.mark.parametrize(
    ("given", "way"),
    [
        ("x.pth", "repconv.fuse(repconv.load('x.pth').model)"),
        (Path("x.pth"), "repconv fuse x.pth"),
        ({"conv.weight": 1}, "load these weights into their network first"),
        (torch.nn.Conv2d, "make it first: Conv2d(...)"),
        (onnx.ModelProto(), "repconv.graph.fuse_onnx"),
        (torch.export.export(torch.nn.Identity(), (torch.ones(1),)), "repconv.graph.fuse_program"),
        (None, "got a NoneType"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_fuse_says_what_it_takes_and_the_way_there(given: Any, way: str) -> None:
    with pytest.raises(repconv.FusionError) as error:
        repconv.fuse(given)
    assert "fuse takes a torch.nn.Module" in str(error.value)
    assert way in str(error.value)


def test_parameters_are_counted_as_pytorch_counts_them(tmp_path: Path) -> None:
    """Running means and variances are no parameters, in an ONNX model neither."""
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.BatchNorm2d(4)).eval()
    wanted = sum(p.numel() for p in network.parameters())
    state = {name: tensor.numpy() for name, tensor in network.state_dict().items() if tensor.is_floating_point()}
    weights = [onnx.numpy_helper.from_array(array, name) for name, array in state.items()]
    weights.append(onnx.numpy_helper.from_array(np.array([1, -1]), "flat"))
    norm = [f"2.{part}" for part in ("weight", "bias", "running_mean", "running_var")]
    nodes = [
        onnx.helper.make_node("Conv", ["x", "0.weight", "0.bias"], ["c"], pads=[1, 1, 1, 1]),
        onnx.helper.make_node("Relu", ["c"], ["r"]),
        onnx.helper.make_node("BatchNormalization", ["r", *norm], ["b"]),
        onnx.helper.make_node("Reshape", ["b", "flat"], ["y"]),
    ]
    ends = [
        onnx.helper.make_tensor_value_info(name, 1, shape) for name, shape in (("x", [1, 3, 8, 8]), ("y", [1, 256]))
    ]
    graph = onnx.helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    file = tmp_path / "m.onnx"
    onnx.save(model, file)
    summary = summarise_onnx(model)
    assert summary.nodes["BatchNormalization"] == 1
    assert summary.parameters == wanted
    assert fuse_onnx(file)[1].before.parameters == wanted


def test_a_report_is_short_on_a_line_and_a_table_in_a_notebook() -> None:
    _, report = repconv.fuse(repconv.create_model("irep_resnet18", width=2, blocks=(2, 2)).eval())
    assert len(repr(report)) < 120
    assert "\n" not in repr(report)
    assert report._repr_html_().startswith("<table>")
