"""The networks of the zoo, with random statistics, gammas, shifts and scales, each with an image."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from repconv.models.libraries import create_named, image_shape

from ..graph.networks import randomise

_DETECTION_SIDE = 320
"""Pixels a side of detectors' images, but for those made for one size."""
_SIDES = {"ssd300_vgg16": 300}


@dataclass(frozen=True)
class Subject:
    """A network in evaluation mode, that gives a tuple of tensors, and an image [1, 3, h, w]."""

    model: nn.Module
    x: Tensor


class Flat(nn.Module):
    """A network with the tensors it gives, in a dictionary or otherwise, one after another."""

    def __init__(self, network: nn.Module) -> None:
        """`network` takes one image."""
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """What the network gives, as a tuple."""
        return tuple(tensors(self.network(x)))


class Convolutional(nn.Module):
    """What of a torchvision detector runs on a whole image: backbone, pyramid and the heads over its levels.

    Anchors, suppression, and what runs on boxes alone (the second stage) are left out: their number follows the image.
    """

    def __init__(self, detector: Any) -> None:  # noqa: ANN401  # of torchvision, which has no common class
        """`detector` of torchvision, one stage or two."""
        super().__init__()
        self.backbone = detector.backbone
        self.head = detector.rpn.head if hasattr(detector, "rpn") else detector.head

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """The heads' outputs."""
        found = self.backbone(x)
        return tuple(tensors(self.head(list(found.values()) if isinstance(found, dict) else [found])))


def tensors(value: object) -> Iterator[Tensor]:
    """Every floating-point tensor of nested containers, in order."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from tensors(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from tensors(part)


def subject(name: str, side: int | None = None) -> Subject:
    """The network `timm:...`, `torchvision:...` or `ultralytics:...` with seeded random numbers.

    Args:
        name: a library and one of its networks.
        side: pixels of the image a side; None: what the network is made for.

    Raises:
        ModuleNotFoundError: the library is not installed.
        SourceError: it has no such network.
    """
    torch.manual_seed(0)
    library, _, entry = name.partition(":")
    model, usual = _detector(entry) if library == "torchvision" else (None, 0)
    if library == "ultralytics":
        model, usual = _ultralytics(entry), _DETECTION_SIDE
    if model is None:
        network = create_named(name)
        known = image_shape(network)
        model, usual = Flat(network), 224 if known is None else known[1]
    unsettle(randomise(model))
    return Subject(model.eval(), torch.randn(1, 3, side or usual, side or usual))


def _detector(entry: str) -> tuple[nn.Module | None, int]:
    """What of a torchvision detector is fused, and its image's side; None where `entry` is something else."""
    models: Any = importlib.import_module("torchvision.models")
    if entry not in models.list_models(module=models.detection):
        return None, 0
    network = models.get_model(entry, weights=None, weights_backbone=None)
    return Convolutional(network), _SIDES.get(entry, _DETECTION_SIDE)


def _ultralytics(entry: str) -> nn.Module:
    """A detector of ultralytics by its description's name, as it is exported."""
    tasks: Any = importlib.import_module("ultralytics.nn.tasks")
    network = tasks.DetectionModel(f"{entry}.yaml", verbose=False)
    network.model[-1].export, network.model[-1].format = True, "onnx"
    with torch.no_grad():
        network.eval()(torch.zeros(1, 3, _DETECTION_SIDE, _DETECTION_SIDE))  # its head computes anchors first
    return Flat(network)


def unsettle(model: nn.Module, seed: int = 1) -> nn.Module:
    """Random numbers for every parameter that is one number all over, as gammas, shifts and scales begin; in place.

    Ones and other numbers come to lie between 0.5 and 1.5, zeros between -0.3 and 0.3; a matrix or kernel of zeros is
    drawn as wide as keeps the size of what it reads.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if (
                not parameter.numel()
                or not parameter.is_floating_point()
                or bool((parameter != parameter.flatten()[0]).any())
            ):
                continue
            drawn = torch.rand(parameter.shape, generator=generator)
            if parameter.flatten()[0] != 0:
                parameter.copy_(drawn + 0.5)
            elif parameter.squeeze().dim() > 1:
                fan_in = parameter.numel() / parameter.shape[0]
                parameter.copy_((drawn - 0.5) * math.sqrt(12 / fan_in))
            else:
                parameter.copy_(0.6 * drawn - 0.3)
    return model
