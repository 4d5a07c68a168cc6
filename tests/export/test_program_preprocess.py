"""Preprocessing in front of a program: exact, folded where it may be, in the runtimes that are built from programs."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from repconv.errors import SourceError
from repconv.export import BuildSettings, Data, Preprocessing, Span, export
from repconv.export.program.exporter import to_program
from repconv.export.program.preprocess import preprocess_program
from repconv.export.targets import TARGETS

MEAN, STD = (0.4, 0.1, 0.6), (0.2, 0.3, 0.05)


class Both(nn.Module):
    """The image is read by a convolution and by a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x) + x


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.a(x) * self.b(x)


class Thrice(nn.Module):
    """One weight for the image and for what was made of it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(self.conv(x).relu())


NETWORKS = {
    "padded": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU()), {"scale"}),
    "unpadded": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), {"scale", "shift"}),
    "no bias": (lambda: nn.Conv2d(3, 4, 3, bias=False), {"scale"}),
    "two convolutions": (Two, {"scale"}),
    "grouped": (lambda: nn.Conv2d(3, 6, 3, groups=3), set()),
    "padded by name": (lambda: nn.Conv2d(3, 4, 3, padding="same"), set()),
    "another reader": (Both, set()),
    "a shared weight": (Thrice, set()),
    "no convolution": (lambda: nn.Sequential(nn.ReLU(), nn.Conv2d(3, 4, 3)), set()),
}


@pytest.mark.parametrize("bgr", [False, True])
@pytest.mark.parametrize("uint8", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_it_is_what_normalising_before_is(name: str, uint8: bool, bgr: bool) -> None:
    make, folded = NETWORKS[name]
    torch.manual_seed(0)
    network = make().eval()
    sizes = [Span(1, 2, 4), *map(Span.of, (3, 8, 8))]
    program, _ = to_program(network, sizes, fuse=False)
    before = {key: tensor.detach().clone() for key, tensor in program.state_dict.items()}
    made, found = preprocess_program(program, Preprocessing(MEAN, STD, uint8, bgr), sizes)
    assert set(found) == folded | ({"order"} if bgr and folded else set())
    assert all(torch.equal(before[key], tensor) for key, tensor in program.state_dict.items()), (
        "the input never changes"
    )
    pixels = torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8)
    given = pixels if uint8 else pixels.float() / 255
    mean, std = (torch.tensor(numbers).reshape(1, -1, 1, 1).double() for numbers in (MEAN, STD))
    with torch.no_grad():
        wanted = copy.deepcopy(network).double()((pixels.double() / 255 - mean) / std)
        got = made.module()(given.flip(1) if bgr else given)
    torch.testing.assert_close(got.double(), wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))


def test_other_channels_are_refused() -> None:
    sizes = list(map(Span.of, (1, 3, 8, 8)))
    program, _ = to_program(nn.Conv2d(3, 4, 3).eval(), sizes)
    with pytest.raises(SourceError, match="mean and std are of 1 channels, the network takes 3x8x8"):
        preprocess_program(program, Preprocessing((0.5,), (1.0,)), sizes)


EDGE = [
    pytest.param("executorch", "fp32", marks=pytest.mark.edge("executorch")),
    pytest.param("executorch", "fp16", marks=pytest.mark.edge("executorch")),
    pytest.param("executorch", "int8", marks=pytest.mark.edge("executorch")),
    pytest.param("litert", "fp16", marks=pytest.mark.edge("litert_torch", "ai_edge_quantizer")),
    pytest.param("litert", "int8", marks=pytest.mark.edge("litert_torch", "ai_edge_quantizer")),
]


@pytest.mark.parametrize(("target", "precision"), EDGE)
def test_an_artefact_takes_bytes_in_reverse_order(target: str, precision: str, theirs, tmp_path) -> None:
    out = tmp_path / f"m{TARGETS[target].suffix}"
    size = (Span.of(16), Span.of(16))
    settings = BuildSettings(precision=precision, image=size, preprocessing=Preprocessing(MEAN, STD, True, True))
    record = export(theirs, target, out, settings, Data(random_calibration=precision == "int8", calibration_images=16))
    assert record.verified
    assert record.details["preprocessing_folded"] == ["scale", "order"], "the padding keeps the shift before it"
    assert record.observed["tensor"].startswith("uint8 1x3x16x16")
