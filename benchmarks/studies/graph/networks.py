"""Networks of other authors for the graph benchmarks, with random statistics and their authors' own conversions."""

from __future__ import annotations

import contextlib
import copy
import importlib
import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from repconv import create_model, fuse

from .authors import PUBLISHED, published

RE_PARAMETERISED = (
    "repvgg_a0", "repvgg_b1g4", "mobileone_s0", "mobileone_s4", "fastvit_t8", "fastvit_mci0", "repvit_m0_9",
    "ghostnetv3_050", "lcnetv2_small", "repghostnet_050", "ultralytics:yolov9t", "ultralytics:yolov10n",
    "ultralytics:yolov5n_focus", "repconv:irep_resnet50",
)  # fmt: skip
"""Of timm, ultralytics where installed, and this package: multi-branch networks with a conversion of their own."""

ORDINARY = (
    "torchvision:resnet50", "torchvision:mobilenet_v2", "torchvision:mobilenet_v3_large", "torchvision:efficientnet_b0",
    "torchvision:convnext_tiny", "torchvision:regnet_y_400mf", "torchvision:densenet121", "levit_128s",
    "edgenext_xx_small", "convnext_atto",
)  # fmt: skip
"""Networks with nothing multi-branch in them, which fusing must not make worse."""


OF_AUTHORS = tuple(f"authors:{name}" for name in PUBLISHED)
"""Read from checkouts of their authors' repositories."""


@dataclass(frozen=True)
class Specimen:
    """A network in evaluation mode, its author's conversion (None if there is none), and an input.

    dynamo: only torch's newer exporter can write it as ONNX.
    """

    name: str
    model: nn.Module
    author: nn.Module | None
    x: Tensor
    dynamo: bool = False

    def onnx(self, model: nn.Module) -> onnx.ModelProto:
        """The network, or another form of it, as ONNX."""
        return (to_onnx_dynamo if self.dynamo else to_onnx)(model, self.x)


def specimen(name: str, checkouts: Path | None = None) -> Specimen:
    """The network of a name in the tuples above, with random statistics.

    Raises:
        ModuleNotFoundError: its library is not installed.
        MissingCheckoutError: `checkouts` has no checkout of its authors' repository.
    """
    torch.manual_seed(0)
    library, _, entry = name.rpartition(":")
    if library == "authors":
        row = PUBLISHED[entry]
        network, convert = published(row, checkouts)
        model = row.mode(randomise(network))
        return Specimen(name, model, convert(model).eval(), torch.randn(row.input_shape), dynamo=row.dynamo)
    if library == "repconv":
        model = randomise(create_model(entry))
        side = 224 if entry.endswith(("resnet34", "resnet50")) else 32  # the data each is made for
        return Specimen(name, model, fuse(model)[0], torch.randn(1, 3, side, side))
    if library == "torchvision":
        models = importlib.import_module("torchvision.models")
        return Specimen(name, randomise(models.get_model(entry, weights=None)), None, torch.randn(1, 3, 224, 224))
    if library == "ultralytics":
        tasks = importlib.import_module("ultralytics.nn.tasks")
        network = tasks.DetectionModel(
            _with_focus(tasks) if entry == "yolov5n_focus" else f"{entry}.yaml", verbose=False
        )
        network.model[-1].export, network.model[-1].format = True, "onnx"
        model, x = randomise(network), torch.randn(1, 3, 320, 320)
        with torch.no_grad():
            model(x)  # its head computes anchors in the first run
        return Specimen(name, model, copy.deepcopy(network).fuse(verbose=False).eval(), x)
    fresh = importlib.import_module("timm").create_model(entry, pretrained=False)
    convert = importlib.import_module("timm.utils.model").reparameterize_model
    model = randomise(fresh)
    return Specimen(name, model, convert(copy.deepcopy(model)), torch.randn(1, *fresh.pretrained_cfg["input_size"]))


def _with_focus(tasks: Any) -> dict[str, Any]:  # noqa: ANN401  # a module of ultralytics
    """YOLOv5n as it was before its sixth release: a Focus layer, space to depth and a 3x3 convolution, comes first."""
    description: dict[str, Any] = tasks.yaml_model_load("yolov5n.yaml")
    description["backbone"][0] = [-1, 1, "Focus", [64, 3]]
    return description


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random statistics, scales and shifts, so that nothing is an identity by accident."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(tensor: Tensor, low: float, high: float) -> None:
        tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                for buffer, low, high in ((module.running_mean, -0.3, 0.3), (module.running_var, 0.5, 1.5)):
                    if buffer is not None:
                        uniform(buffer, low, high)
                if module.affine:
                    uniform(module.weight, 0.5, 1.5)
                    uniform(module.bias, -0.3, 0.3)
        for name, parameter in model.named_parameters():
            if "gamma" in name or "layer_scale" in name:
                uniform(parameter, 0.5, 1.5)
    return model.eval()


def to_onnx(model: nn.Module, x: Tensor, opset: int = 18, **options: Any) -> onnx.ModelProto:  # noqa: ANN401
    """The network as torch's older exporter writes it, normalisation unfolded; `options` are the exporter's."""
    buffer = io.BytesIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (x,),
            buffer,  # type: ignore[arg-type]  # file objects, too
            dynamo=False,
            opset_version=opset,
            training=torch.onnx.TrainingMode.PRESERVE,
            input_names=["x"],
            output_names=["y"],
            **options,
        )
    return onnx.load_from_string(buffer.getvalue())


def to_onnx_dynamo(model: nn.Module, x: Tensor, opset: int = 18) -> onnx.ModelProto:
    """The network as torch's newer exporter writes it, nothing folded."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        exported = torch.onnx.export(
            model,
            (x,),
            dynamo=True,
            optimize=False,
            opset_version=opset,
            verbose=False,
            input_names=["x"],
            output_names=["y"],
        )
    if exported is None:
        raise RuntimeError("torch's exporter gave nothing")
    return exported.model_proto
