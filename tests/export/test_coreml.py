"""Packages of Core ML: read back and computed by rules, each held to PyTorch; the sizes, the names and the bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from repconv.errors import BuildError, SourceError, VerificationError
from repconv.export import BuildSettings, Span, export
from repconv.export.artefacts.open import open_artefact
from repconv.export.program.exporter import to_program
from repconv.export.runtimes.phones.mil import Package, load_package
from repconv.export.runtimes.phones.mil_rules import RULES

SIZE = (Span.of(16), Span.of(16))
here = pytest.mark.edge("coremltools")


class Of(nn.Module):
    """What functions make of an image, and layers besides."""

    def __init__(self, *does: Callable[[Tensor], Tensor | Sequence[Tensor]]) -> None:
        super().__init__()
        self.does = nn.ModuleList(d if isinstance(d, nn.Module) else Function(d) for d in does)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(does(x) for does in self.does)


class Function(nn.Module):
    def __init__(self, does: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.does = does

    def forward(self, x: Tensor) -> Tensor:
        return self.does(x)


def norm(channels: int) -> nn.Module:
    made = nn.BatchNorm2d(channels)
    for tensor in (made.running_mean, made.weight.data, made.bias.data):
        tensor.normal_()
    made.running_var.uniform_(0.5, 2)
    return made


def slopes() -> nn.Module:
    made = nn.PReLU(4)
    made.weight.data = torch.linspace(-0.5, 0.5, 4)
    return made


def scaled_by_row() -> nn.Module:
    made = nn.LayerNorm(8)
    made.weight.data, made.bias.data = torch.linspace(1, 2, 8), torch.linspace(-1, 1, 8)
    return made


def parts(x: Tensor) -> Tensor:
    first, second = x.split([1, 3], 1)
    return torch.cat((second, first * 2), 1)


def halves(x: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return first - 2 * second


WINDOWS = Of(
    nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=2),
    nn.Conv2d(4, 4, 3, padding="same", padding_mode="zeros", groups=4, bias=False),
    nn.Conv2d(4, 4, (2, 3), padding="same", dilation=(1, 2)),
    nn.MaxPool2d(3, 2, 1), nn.MaxPool2d((2, 3), (1, 2)), nn.AvgPool2d(3, 2, 1), nn.AvgPool2d(2, 1),
    nn.AvgPool2d(3, 2, 1, count_include_pad=False), norm(4), nn.AdaptiveAvgPool2d(1),
    nn.Upsample(scale_factor=2), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)),
)  # fmt: skip
ACTIVATIONS = Of(
    nn.ReLU(), nn.ReLU6(), nn.Sigmoid(), nn.Tanh(), nn.Hardsigmoid(), nn.Hardswish(), nn.SiLU(), nn.GELU(),
    nn.GELU(approximate="tanh"), nn.LeakyReLU(0.2), slopes(), nn.Softmax(1), lambda x: x.clamp(-0.3, 0.7),
    scaled_by_row(),
)  # fmt: skip
ARITHMETIC = Of(
    lambda x: x + x.transpose(2, 3) + 1.5, lambda x: x - x.transpose(2, 3), lambda x: x * x.transpose(2, 3),
    lambda x: x / (x * x + 1), lambda x: torch.maximum(x, x.transpose(2, 3)),
    lambda x: torch.minimum(x, x.transpose(2, 3)), lambda x: (x * x + 1) ** 1.5, lambda x: torch.sqrt(x * x + 1),
    lambda x: torch.rsqrt(x * x + 1), lambda x: x.sum((2, 3)), lambda x: x.amax(1, keepdim=True), lambda x: x.mean(1),
)  # fmt: skip
MOVEMENT = Of(
    lambda x: x.reshape(1, 2, 16, 8), lambda x: x.permute(0, 2, 3, 1), lambda x: x[:, 1:3, ::2, 1:7:3],
    lambda x: x[:, 1], lambda x: x.mean((2, 3), keepdim=True).squeeze(3) + 1, lambda x: x.mean(1).unsqueeze(1) * 2,
    parts, halves, lambda x: x @ x.transpose(2, 3), lambda x: torch.softmax(x @ x, -1),
)  # fmt: skip
NETWORKS = {"windows": WINDOWS, "activations": ACTIVATIONS, "arithmetic": ARITHMETIC, "movement": MOVEMENT}


def package_of(network: nn.Module, precision: str, folder: Path) -> Package:
    module = import_module("repconv.export.runtimes.coreml")
    program, _ = to_program(network.eval(), [Span.of(1), Span.of(4), Span.of(8), Span.of(8)], fuse=False)
    return load_package(module._laid_out(folder, module._converted(program, BuildSettings(precision=precision))))


@here
def test_every_rule_is_what_pytorch_computes(tmp_path) -> None:
    """In float32; the half-precision package besides has a cast at each end."""
    met = set()
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for name, network in NETWORKS.items():
        package = package_of(network, "fp32", tmp_path / name)
        assert package.without_rule() == (), name
        wanted = network.double()(x.double())
        for index, (found, right) in enumerate(zip(package.run(x), wanted, strict=True)):
            torch.testing.assert_close(
                found.double(), right, rtol=1e-6, atol=1e-6, msg=lambda m, n=f"{name} {index}": f"{n}: {m}"
            )
        network.float()
        met |= {op.op_type for op in package.operations}
    assert RULES.keys() - met == {"cast"}, "every rule is met"


@here
def test_half_precision_rounds_every_tensor_the_package_stores_so(tmp_path) -> None:
    network = Of(nn.Conv2d(4, 4, 1), lambda x: x + 2**-12)
    package = package_of(network, "fp16", tmp_path)
    assert {op.op_type for op in package.operations} == {"cast", "conv", "add"}
    assert package.weights() == {"float16 conv": 1}
    x = torch.ones(1, 4, 8, 8)
    _, added = package.run(x)
    assert added.dtype == torch.float32
    assert torch.equal(added, torch.ones(1, 4, 8, 8)), "1 + 2^-12 is no half"


@here
@pytest.mark.parametrize(
    ("does", "words"),
    [
        (nn.MaxPool2d(3, 2, ceil_mode=True), "there is no rule for pooling with a ceiling"),
        (lambda x: x.flip(3), "there is no rule for reverse"),
        (lambda x: x.cumsum(1), "there is no rule for cumsum"),
        (nn.Upsample(scale_factor=1.5), "there is no rule for scaling an image by 1.5|there is no rule for upsample"),
    ],
)
def test_what_no_rule_computes_is_refused_with_the_way_out(does, words: str, tmp_path) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), *Of(does).does).eval()
    with pytest.raises(BuildError, match=f"cannot be computed here: ({words}).*; build it there, or for another"):
        export(network, "coreml", tmp_path / "m.mlpackage", BuildSettings(image=SIZE))
    assert not list(tmp_path.iterdir())


@here
def test_it_is_built_and_not_run_and_what_was_shown_is_said(theirs, tmp_path) -> None:
    sides = (Span(16, 16, 24), Span.of(16))
    record = export(theirs, "coreml", tmp_path / "m.mlpackage", BuildSettings(batch=Span(1, 2, 5), image=sides))
    assert (record.status, record.verified, record.evidence) == ("built, not run", False, None)
    assert record.stand_in is not None
    assert {"1x3x16x16", "5x3x24x16"} <= {comparison.where for comparison in record.stand_in.comparisons}
    assert "Core ML runs on macOS only; what its package says is equal in PyTorch by rules in float64" in record.verdict
    assert "not Apple's kernels" in record.verdict
    assert record.observed["tensor"].endswith("float32 5x3x24x16")
    assert record.observed["operations"].count("conv") == 1
    found = open_artefact(str(tmp_path / "m.mlpackage"))
    assert found.inputs[0].shape == (None, 3, None, 16)
    assert "not Apple's kernels" in found.kind
    with pytest.raises(VerificationError, match=r"built, not run \(Core ML runs on macOS only\), and it had to be"):
        export(theirs, "coreml", tmp_path / "n.mlpackage", BuildSettings(image=SIZE), require_verified=True)
    assert not (tmp_path / "n.mlpackage").exists()


@here
def test_a_damaged_package_answers_in_words(theirs, tmp_path) -> None:
    out = tmp_path / "m.mlpackage"
    export(theirs, "coreml", out, BuildSettings(image=SIZE))
    for name in ("Manifest.json", "Data/com.apple.CoreML/model.mlmodel"):
        content = (out / name).read_bytes()
        for damaged in (b"", b"no package", content[: len(content) // 2]):
            (out / name).write_bytes(damaged)
            with pytest.raises(SourceError, match=r"m\.mlpackage: not a package that coremltools reads: "):
                open_artefact(str(out))
        (out / name).write_bytes(content)
    (tmp_path / "file.mlpackage").write_bytes(b"")
    with pytest.raises(SourceError, match=r"file\.mlpackage: not a package"):
        open_artefact(str(tmp_path / "file.mlpackage"))


class Model:
    """In place of Core ML's: `predict` gives what the rules give."""

    def __init__(self, path: str, *, compute_units: object) -> None:
        assert str(compute_units).endswith("CPU_ONLY"), "on the processor, whose sums are float32"
        self.package = load_package(Path(path))

    def predict(self, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = self.package.run(torch.from_numpy(given[self.package.taken]))
        return {name: y.numpy() for name, y in zip(self.package.given, found, strict=True)}


@here
def test_where_macos_is_core_ml_itself_runs_it(theirs, tmp_path, monkeypatch) -> None:
    module, read = import_module("repconv.export.runtimes.coreml"), import_module("coremltools").models.MLModel
    monkeypatch.setattr(module.sys, "platform", "darwin")
    predicting = module._predicting

    def made(path: str, **more: object) -> object:
        return Model(path, **more) if "compute_units" in more else read(path, **more)

    def played(files: dict[str, bytes], package: Package) -> object:
        with monkeypatch.context() as patched:
            patched.setattr(import_module("coremltools").models, "MLModel", made)
            return predicting(files, package)

    monkeypatch.setattr(module, "_predicting", played)
    record = export(theirs, "coreml", tmp_path / "m.mlpackage", BuildSettings(image=SIZE))
    assert record.verified
    assert record.runtime.startswith("Core ML by coremltools")
    assert open_artefact(str(tmp_path / "m.mlpackage")).kind == record.runtime
