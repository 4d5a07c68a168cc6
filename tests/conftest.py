"""What the tests share: one thread, a seed a test, modules whose every number matters, and a browser for pages."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from repconv import RepBlock
from repconv.cli import main

Randomise = Callable[[nn.Module], nn.Module]
Apart = Callable[[Tensor, Tensor], float]


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def _randomise(module: nn.Module) -> nn.Module:
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            with torch.no_grad():
                if part.running_mean is not None and part.running_var is not None:
                    part.running_mean.uniform_(-3, 3)
                    part.running_var.uniform_(-3, 2).copy_(10**part.running_var)
                if part.affine:
                    # Every fifth scale is zero, as after pruning or a zero-gamma start.
                    part.weight.uniform_(-2, 2).mul_(torch.rand_like(part.weight) > 0.2)
                    part.bias.uniform_(-2, 2)
        if isinstance(part, RepBlock):
            with torch.no_grad():
                for gate in (part.beta, *part.alpha.values()):
                    if gate is not None:
                        gate.normal_(0, 2)
    return module


@pytest.fixture(scope="session")
def randomise() -> Randomise:
    """Give every batch normalisation and gate inside a module values far from the ones they start with.

    Means within 3 of 0, variances from 1e-3 to 1e2, scales and shifts within 2 of 0, one scale in five exactly 0,
    gates before their logistic function of standard deviation 2.
    """
    return _randomise


@pytest.fixture
def command_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> Iterator[Callable[..., tuple[int, str, str]]]:
    """Run the command line in an empty folder; returns exit code, standard output and standard error.

    Modules named `..._of_test`, which commands imported from there, are forgotten afterwards.
    """
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["repconv", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capfd.readouterr()
        return int(ended.value.code or 0), out, err

    yield call
    for name in [name for name in sys.modules if name.endswith("_of_test")]:
        del sys.modules[name]


@pytest.fixture(scope="session")
def apart() -> Apart:
    """The largest difference of two tensors in float64, relative to the second one's largest value, at least 1."""

    def relative(actual: Tensor, expected: Tensor) -> float:
        assert actual.shape == expected.shape
        actual, expected = actual.detach().double(), expected.detach().double()
        return float((actual - expected).abs().max() / expected.abs().max().clamp(min=1))

    return relative


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip


@dataclass(frozen=True)
class Seen:
    """One page at one width: requests besides the page itself, errors, and pixels by which it is too wide."""

    fetched: tuple[str, ...]
    errors: tuple[str, ...]
    overflow: int
    tables: int
    pictures: int


def _look(path: Path, width: int, shot: Path | None = None, *, dark: bool = False) -> Seen:
    """Open a file; `shot` gets a picture of all of it. Skips where there is no browser or nothing to drive it."""
    if CHROMIUM is None:
        pytest.skip("chromium is not installed: apt-get install chromium")
    driver = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    fetched: list[str] = []
    errors: list[str] = []
    with driver.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=list(FLAGS))
        try:
            page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme="dark" if dark else "light")
            page.on("request", lambda request: fetched.append(request.url))
            page.on("pageerror", lambda error: errors.append(str(error)))
            page.on("console", lambda said: errors.append(said.text) if said.type in ("error", "warning") else None)
            page.goto(path.resolve().as_uri(), wait_until="networkidle")
            overflow = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            tables, pictures = (page.locator(kind).count() for kind in ("table", "svg"))
            if shot is not None:
                page.screenshot(path=str(shot), full_page=True)
        finally:
            browser.close()
    own = path.resolve().as_uri()
    return Seen(tuple(url for url in fetched if url != own), tuple(errors), int(overflow), tables, pictures)


@pytest.fixture(scope="session")
def look() -> Callable[..., Seen]:
    """Open an HTML file in headless Chromium, see `_look`."""
    return _look
