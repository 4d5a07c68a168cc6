"""Tables 2, 3 and 4 of the paper as printed, and which network of ours stands for a row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

FAITHFUL, SCALED, IMPOSSIBLE = "faithful", "scaled down", "not possible here"


@dataclass(frozen=True)
class PaperRow:
    """A row of Table 2 or 3.

    Attributes:
        name: as printed.
        top1: per cent.
        parameters_m: millions.
        inference_ms: one image in float32 on an A100.
        network: ours, a key of the networks of `inference.py`; None if there is none.
        verdict: how close ours is, for the columns of parameters and inference.
        why: the reason of a verdict that is not `faithful`, or what to know of one that is.
    """

    name: str
    top1: float
    parameters_m: float
    inference_ms: float
    network: str | None
    verdict: str = FAITHFUL
    why: str = ""


_GOLD = (
    "every cell of GOLD-NAS's network differs; looked for in its paper, its authors' repositories and public code, "
    "where github.com/sunsmarterjie/GOLD_NAS, unofficial and for CIFAR-10, lists cells of another number of parameters"
)
_NO_MASK = "the searched branches are in a picture that the text does not have; ours keeps a random two thirds of them"

TABLE_2 = (
    PaperRow("VGG", 94.12, 14.73, 2.14, "vgg16"),
    PaperRow("ResNet-18", 96.21, 11.69, 4.12, "resnet18", why="11.69 M is the ImageNet form; CIFAR-10's has 11.17 M"),
    PaperRow("RepVGG", 94.62, 14.73, 1.76, "repvgg_vgg16"),
    PaperRow("ACNet", 94.47, 14.73, 1.76, "acnet_vgg16"),
    PaperRow("DARTS (second)", 97.24, 3.3, 31, "darts_v2"),
    PaperRow("P-DARTS", 97.5, 3.4, 33, "p_darts"),
    PaperRow("RepNAS (VGG)", 95.43, 11.69, 1.76, None, IMPOSSIBLE,
        "which branches it found is not published; fused, it is the VGG above (which has 14.73 M, not 11.69 M)"),
    PaperRow("GOLD-NAS", 97.39, 3.67, 40, None, IMPOSSIBLE, _GOLD),
    PaperRow("CARS", 97.38, 3.6, 27, "cars_i"),
    PaperRow("AmoebaNet-A", 96.60, 3.2, 38, "amoebanet_a_n6_f36", FAITHFUL,
        "N = 6, F = 36: 3.2 M and 96.66 % by its authors; 96.60 % is theirs for F = 32, which has 2.6 M"),
    PaperRow("IRep-ResNet18", 96.61, 11.69, 3.93, "irep_resnet18", SCALED, f"unfused only: {_NO_MASK}"),
    PaperRow("IRep-VGG16", 95.65, 14.73, 1.76, "irep_vgg16", SCALED, f"unfused only: {_NO_MASK}"),
)  # fmt: skip
"""CIFAR-10, images of 32x32."""

TABLE_3 = (
    PaperRow("ResNet-50", 76.10, 25.56, 38.8, "resnet50"),
    PaperRow("DyRep", 77.08, 25.56, 15.6, None, IMPOSSIBLE,
        "its branches come and go in training; fused, it is the ResNet-50 above"),
    PaperRow("DBB", 76.71, 25.56, 15.6, "dbb_resnet50"),
    PaperRow("DARTS (second)", 73.30, 4.7, 67.4, "darts_v2_imagenet"),
    PaperRow("P-DARTS", 75.60, 4.9, 62.3, "p_darts_imagenet"),
    PaperRow("GOLD-NAS", 76.10, 6.4, 39.4, None, IMPOSSIBLE, _GOLD),
    PaperRow("CARS", 75.20, 5.1, 59.9, "cars_i_imagenet"),
    PaperRow("AmoebaNet-B", 74.50, 5.1, 218, "amoebanet_b_n3_f62", FAITHFUL,
        "N = 3, F = 62: 74.0 % and 5.3 M in DARTS' Table 3, where 74.5 % and 5.1 M are AmoebaNet-A's (N = 4, F = 50: "
        "`amoebanet_a_n4_f50`)"),
    PaperRow("IRep-ResNet50", 77.92, 25.56, 15.6, "irep_resnet50", FAITHFUL,
        "the branches the text tells of; it leaves open which one the eighth block lacks and which the ninth keeps"),
)  # fmt: skip
"""ImageNet, images of 224x224."""

REFERENCES = {"cifar10": "irep_resnet18", "imagenet": "irep_resnet50"}
"""Whose latency, fused, a table's others are divided by."""

RATIOS = ("1/6", "1/3", "1/2", "2/3", "5/6", "1")
TABLE_4 = {
    "IRep-VGG16": (94.22, 94.58, 95.40, 95.65, 95.64, 95.64),
    "IRep-ResNet18": (96.28, 96.47, 96.47, 96.61, 95.50, 96.52),
}
"""Top-1 on CIFAR-10 by the share of branches kept."""

SEARCHED: Mapping[str, str] = {
    "DARTS (second)": "darts-second", "P-DARTS": "pdarts", "RepNAS (VGG)": "repnas", "GOLD-NAS": "gold", "CARS": "cars",
    "AmoebaNet-A": "aging", "IRep-ResNet18": "des",
}  # fmt: skip
"""Rows of Table 2 whose search is a strategy here."""

PARAMETERS: tuple[tuple[str, float | None, str, Mapping[str, object], str], ...] = (
    ("VGG-16", 14.73, "vgg16", {}, "convolutions with bias, batch normalisation, one layer of 512 x 10"),
    ("ResNet-18", 11.69, "resnet18", {"stem": "imagenet", "num_classes": 1000},
     "ImageNet: 7x7 stem, a thousand classes"),
    ("ResNet-18", None, "resnet18", {}, "CIFAR-10: 3x3 stem, ten classes"),
    ("ResNet-50", 25.56, "resnet50", {}, "ImageNet: 7x7 stem, a thousand classes"),
)  # fmt: skip
"""Network, the paper's millions (None: not in the paper), ours by name and arguments, and what form that is."""
