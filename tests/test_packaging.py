"""What setup.cfg promises is what the folders hold and what a wheel carries."""

from __future__ import annotations

import configparser
import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TOP = ("repconv", "search", "export", "benchmarks")


def setup_cfg() -> dict[str, dict[str, str]]:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    return {name: dict(section) for name, section in config.items()}


def listed_folders() -> dict[str, str]:
    """The packages setup.cfg maps and their folders, `/` between names."""
    return dict(line.split(" = ") for line in setup_cfg()["options"]["package_dir"].strip().splitlines())


def code() -> Iterator[Path]:
    """Every module of the checkout, relative to its root."""
    for top in TOP:
        yield from (path.relative_to(ROOT) for path in (ROOT / top).rglob("*.py"))


def installed_name(path: Path) -> str:
    """Where a file of the checkout lands in site-packages."""
    return (path if path.parts[0] == "repconv" else "repconv" / path).as_posix()


def test_every_folder_with_code_is_listed_once() -> None:
    listed = setup_cfg()["options"]["packages"].split()
    assert len(listed) == len(set(listed)), "setup.cfg lists a package twice"
    assert set(listed) == set(listed_folders()), "packages and package_dir of setup.cfg name different packages"
    held = {path.parent.as_posix() for path in code()}
    assert set(listed_folders().values()) == held, "setup.cfg lists other folders than those that hold .py files"


def test_packages_are_named_after_their_folders() -> None:
    for package, folder in listed_folders().items():
        assert package.replace(".", "/") == installed_name(Path(folder)), f"{package} is mapped to {folder}"


def test_every_package_has_an_init() -> None:
    assert [f for f in listed_folders().values() if not (ROOT / f / "__init__.py").is_file()] == []


def test_the_checkout_holds_no_top_level_package_but_ours() -> None:
    # A generic name such as `search` must not be importable from a user's working directory as a top-level package.
    assert (ROOT / "repconv" / "py.typed").is_file()
    assert not [path.name for path in ROOT.glob("*.py")]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a source distribution built from a copy of the checkout without its leftovers."""
    tree, out = tmp_path_factory.mktemp("tree") / "repconv", tmp_path_factory.mktemp("dist")
    # Not the checkout itself: setuptools would take what an earlier build left in build/lib for part of the package.
    leftovers = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for top in TOP:
        shutil.copytree(ROOT / top, tree / top, ignore=leftovers)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    run([sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(tree)], out)
    (built,) = out.glob("*.whl")
    return built


def run(command: list[str], folder: Path, **environment: str) -> str:
    """The output of `command`, run in `folder` with nothing of the checkout in reach."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        command, cwd=folder, env={**clean, **environment}, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.slow
def test_a_wheel_carries_every_module_and_its_data(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        carried = {name for name in archive.namelist() if ".dist-info/" not in name}
        metadata = {name.split("/", 1)[1]: name for name in archive.namelist() if ".dist-info/" in name}
        licence = archive.read(metadata["licenses/LICENSE"]).decode()
        points = archive.read(metadata["entry_points.txt"]).decode()
    assets = {path.relative_to(ROOT) for path in (ROOT / "repconv" / "assets").glob("*") if path.is_file()}
    expected = {installed_name(path) for path in (*code(), *assets, Path("repconv/py.typed"))}
    assert carried == expected
    assert "MIT" in licence
    assert "repconv = repconv.cli:main" in points


@pytest.mark.slow
def test_a_wheel_installs_and_imports_away_from_the_checkout(wheel: Path, tmp_path: Path) -> None:
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    run([sys.executable, "-m", "pip", "install", "--no-deps", "--target", str(site), str(wheel)], elsewhere)
    modules = sorted(
        installed_name(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for path in code()
        if path.name != "__main__.py"
    )
    # -S leaves out the editable install's hook; the folder of the dependencies then has to be named.
    program = (
        "import importlib, pathlib, sys\n"
        "site = pathlib.Path(sys.argv[1])\n"
        "for name in sys.argv[2:]:\n"
        "    module = importlib.import_module(name)\n"
        "    assert site in pathlib.Path(module.__file__).parents, module.__file__\n"
    )
    dependencies = str(Path(pytest.__file__).resolve().parent.parent)
    run(
        [sys.executable, "-S", "-c", program, str(site), *modules],
        elsewhere,
        PYTHONPATH=os.pathsep.join((str(site), dependencies)),
    )


def test_the_lowest_versions_are_those_of_setup_cfg() -> None:
    spec = importlib.util.spec_from_file_location("lowest", ROOT / "tests" / "lowest.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    wanted = setup["options"]["install_requires"].split()
    assert [pin.replace("==", ">=") for pin in module.lowest()] == wanted
    assert {pin.partition("==")[0] for pin in module.tools()} == set(module.TOOLS)
