"""What the tests of runtimes share: a small network of ours, one of others, and the command line as users start it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import nn

from repconv import create_model, save


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What `edge` stands for: slow, and skipped by the name of what is missing."""
    for item in items:
        needed = [package for mark in item.iter_markers("edge") for package in mark.args]
        missing = [package for package in needed if find_spec(package) is None]
        if needed:
            item.add_marker(pytest.mark.slow)
        if missing:
            item.add_marker(pytest.mark.skip(reason=f"not installed: {', '.join(missing)}"))


Run = Callable[..., tuple[int, str]]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    """A small network of this package, of images of 3x16x16."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("small") / "m.pt"
    save(create_model("irep_resnet18", width=4, blocks=(1,)).eval(), path, input_shape=(3, 16, 16))
    return path


@pytest.fixture(scope="session")
def small_program(tmp_path_factory) -> Path:
    """The program of a convolution and a norm, of images of 3x16x16."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    path = tmp_path_factory.mktemp("program") / "m.pt2"
    torch.export.save(torch.export.export(module, (torch.randn(1, 3, 16, 16),), strict=False), path)
    return path


class Theirs(nn.Module):
    """A network of others: nothing of it is a block of this package, its branches merge in the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.long, self.short = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.Conv2d(8, 8, 1, bias=False)
        self.norm, self.head = nn.BatchNorm2d(8), nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).relu()
        return self.head(self.norm(self.long(x) + self.short(x)).relu().mean((2, 3)))


@pytest.fixture
def theirs() -> nn.Module:
    """Three convolutions of others, two once fused."""
    torch.manual_seed(1)
    network = Theirs()
    network.norm.running_mean.normal_()
    network.norm.running_var.uniform_(0.5, 2)
    return network.eval()


def _run(*arguments: object, before: str = "") -> tuple[int, str]:
    code = f"{before}\nfrom repconv.cli import main\nmain()"
    command = [sys.executable, "-P", "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, " ".join((done.stdout + done.stderr).split())


@pytest.fixture(scope="session")
def run() -> Run:
    """The command line in a process of its own, perhaps after a line of code: exit code, all it says in one line."""
    return _run


@pytest.fixture(scope="session")
def doctor() -> str:
    """What `doctor` says here, in one line; it imports every runtime, so once is enough."""
    return _run("doctor")[1]
