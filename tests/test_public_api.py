"""The names users may rely on, and that reaching them costs nothing before they are used."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import repconv

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
