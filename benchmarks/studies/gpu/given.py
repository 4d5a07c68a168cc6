"""What the pieces work on: the shipped network, the shipped images, and how much of everything on which device."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from repconv import load
from repconv.export.inputs.images import read_images

from ...harness.settings import BenchSettings
from ..common import ROOT

CHECKPOINT = ROOT / "repconv" / "assets" / "irep_resnet_cifar10.pt"
SHEET = CHECKPOINT.with_name("cifar10_test_sheet.npz")
SHIPPED, RESNET50 = "irep_resnet_cifar10", "irep_resnet50"
"""Networks: the one that ships, for 32 pixels, and one of random weights, for 224."""


@dataclass(frozen=True, kw_only=True)
class Amount:
    """How much is done.

    images: of the sheet. settling: those from which candidates take their statistics; the others judge them.
    precisions: of accuracy, training and evaluation. candidates: evaluated. width, batch, rounds: of the network that
    takes training steps, of a step, and how many steps are timed. latencies: networks and precisions, those that tell
    most first, since a backend that builds for long may not come to the last. turns: of latency.
    """

    images: int
    settling: int
    precisions: tuple[str, ...]
    candidates: int
    width: int
    batch: int
    rounds: int
    latencies: tuple[tuple[str, str], ...]
    turns: BenchSettings


AMOUNTS = {
    "cuda": Amount(
        images=200,
        settling=64,
        precisions=("fp32", "fp16", "bf16"),
        candidates=16,
        width=64,
        batch=128,
        rounds=20,
        latencies=((SHIPPED, "fp16"), (SHIPPED, "fp32"), (RESNET50, "fp16")),
        turns=BenchSettings(("torch",), device="cuda", rounds=16, sessions=2, seconds=0.5, calls=50, warmup_s=0.2),
    ),
    "cpu": Amount(
        images=24,
        settling=8,
        precisions=("fp32",),
        candidates=2,
        width=8,
        batch=4,
        rounds=2,
        latencies=((SHIPPED, "fp32"),),
        turns=BenchSettings(("torch",), rounds=2, sessions=1, seconds=0.1, calls=2, warmup_s=0.01),
    ),
}
"""By device: on a processor just enough for every line to be run."""


def sheet(count: int) -> tuple[Tensor, Tensor]:
    """`count` shipped images as the network takes them, [n, 3, 32, 32], and their labels [n]."""
    known = load(CHECKPOINT)
    assert known.input_shape is not None  # noqa: S101  # it ships so
    found = read_images(str(SHEET), known.input_shape, known.normalization, limit=count, class_names=known.class_names)
    assert found.labels is not None  # noqa: S101  # likewise
    return found.inputs, found.labels
