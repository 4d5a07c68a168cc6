"""Multi-branch networks as their authors published them, read from checkouts of their repositories beside this one.

None of their code is here: a row names the repository, how its network is made and how its author converts it. A study
takes the folder that holds the checkouts (`--checkouts DIR`), each under its repository's name; what is not there is
skipped, with the address to clone.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import io
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import nn


@dataclass(frozen=True)
class Published:
    """A repository of GitHub, how its network is made, and what its author makes of that."""

    repository: str
    build: Callable[[], nn.Module]
    convert: Callable[[nn.Module], nn.Module]
    input_shape: tuple[int, ...]
    mode: Callable[[nn.Module], nn.Module] = nn.Module.eval
    """What puts it into the form with branches: some fold them whenever they are evaluated."""
    dynamo: bool = False
    """Only torch's newer exporter can write it as ONNX."""


class MissingCheckoutError(Exception):
    """The folder holds no checkout of that repository."""


@contextlib.contextmanager
def importing(folder: Path) -> Iterator[None]:
    """Modules of `folder` can be imported, and are forgotten afterwards: repositories share names such as `models`."""
    absent = {"imp": types.ModuleType("imp")}  # imported there, used nowhere, and gone from Python 3.12
    absent |= {"torchsummaryX": types.ModuleType("torchsummaryX")}
    absent["torchsummaryX"].summary = None  # type: ignore[attr-defined]
    absent = {name: module for name, module in absent.items() if name not in sys.modules}
    sys.modules.update(absent)
    try:
        with mock.patch.object(sys, "path", [str(folder), *sys.path]), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        for name in [name for name, module in sys.modules.items() if name in absent or _within(module, folder)]:
            del sys.modules[name]


def _within(module: types.ModuleType, folder: Path) -> bool:
    """Whether the module is one of the folder's (a package without an `__init__.py` has a place and no file)."""
    spec = getattr(module, "__spec__", None)
    places = [getattr(spec, "origin", None), *(getattr(spec, "submodule_search_locations", None) or ())]
    return any(str(place).startswith(str(folder)) for place in places)


def published(row: Published, checkouts: Path | None) -> tuple[nn.Module, Callable[[nn.Module], nn.Module]]:
    """The network of a row of `PUBLISHED`, and what converts a copy of it as its author does.

    Raises:
        MissingCheckoutError: there is no checkout of its repository; the message says where it is to be had.
    """
    name = row.repository.rpartition("/")[2]
    folder = None if checkouts is None else (checkouts / name).resolve()
    if folder is None or not folder.is_dir():
        raise MissingCheckoutError(f"--checkouts has no folder {name}: git clone https://github.com/{row.repository}")
    with importing(folder):
        model = row.build()

    def converted(trained: nn.Module) -> nn.Module:
        with importing(folder):
            return row.convert(copy.deepcopy(trained))

    return model, converted


def switched(model: nn.Module) -> nn.Module:
    """Every block told to `switch_to_deploy`, in their authors' order: what a block drops is not visited."""
    for module in model.modules():
        if hasattr(module, "switch_to_deploy"):
            module.switch_to_deploy()  # type: ignore[operator]  # of their classes
    return model


def _of_blocks(kind: str, network: str) -> Callable[[], nn.Module]:
    """A network of the repositories whose `convnet_utils` makes every convolution a block of one kind."""

    def build() -> nn.Module:
        utils: Any = importlib.import_module("convnet_utils")
        utils.switch_conv_bn_impl(kind)
        model: nn.Module = utils.build_model(network)
        return model

    return build


def _acnet_cropped() -> nn.Module:
    """Asymmetric blocks whose padding is less than half of the kernel, so that their input is cropped."""
    block: Any = importlib.import_module("acnet.acb").ACBlock
    layers = [block(3, 16, 3, padding=0), nn.ReLU(), block(16, 16, 5, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, block(16, 32, 3, stride=2, padding=1), nn.ReLU(), block(32, 32, 5, padding=0))


def _dyrep() -> nn.Module:
    """A ResNet-18 whose 3x3 convolutions are DyRep's blocks with all their branches, each before its normalisation."""
    block: Any = importlib.import_module("lib.models.utils.dbb.dbb_block").DiverseBranchBlock
    network: nn.Module = importlib.import_module("lib.models.resnet").resnet18()
    for parent in [*network.modules()]:
        for name, layer in [*parent.named_children()]:
            if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3):
                grown = block(
                    layer.in_channels, layer.out_channels, 3, stride=layer.stride, padding=1, branches=[1] * 7
                )
                setattr(parent, name, grown)
    return network


def _ecbsr() -> nn.Module:
    ecbsr: Any = importlib.import_module("models.ecbsr").ECBSR
    model: nn.Module = ecbsr(4, 16, with_idt=True, act_type="prelu", scale=2, colors=1)
    return model


def _plain_sr(trained: nn.Module) -> nn.Module:
    plain: nn.Module = importlib.import_module("models.plainsr").PlainSR(4, 16, act_type="prelu", scale=2, colors=1)
    for block, layer in zip(trained.backbone, plain.backbone, strict=True):  # type: ignore[arg-type]  # both are lists
        kernel, bias = block.rep_params()
        layer.conv3x3.weight.data, layer.conv3x3.bias.data = kernel.detach(), bias.detach()
        if layer.act is not None:
            layer.act.load_state_dict(block.act.state_dict())
    return plain


_FMEN = SimpleNamespace(
    down_blocks=4, up_blocks=[2, 1, 1, 1, 1], n_feats=50, mid_feats=16, scale=[4], backbone_expand_ratio=2,
    attention_expand_ratio=2, n_colors=3,
)  # fmt: skip


def _fmen() -> nn.Module:
    model: nn.Module = importlib.import_module("train_fmen").TRAIN_FMEN(_FMEN)
    return model


def _fmen_plain(_: nn.Module) -> nn.Module:
    """Its author's plain network, for the number of its layers: the weights are converted by a script for CUDA."""
    model: nn.Module = importlib.import_module("test_fmen").TEST_FMEN(_FMEN)
    return model


class _Embedding(nn.Module):
    """The speaker embedding of CS-Rep's network, which is given out twice there."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        embedding: torch.Tensor = self.network(x)[0]
        return embedding


def _rep_tdnn() -> nn.Module:
    return _Embedding(importlib.import_module("rep_tdnn").Xvector().embedding_net)


def _rep_tdnn_plain(trained: nn.Module) -> nn.Module:
    trained.network.rep_all()  # type: ignore[operator, union-attr]
    return trained


DBB, OREPA = "DingXiaoH/DiverseBranchBlock", "JUGGHM/OREPA_CVPR2022"
PUBLISHED = {
    "dbb_resnet18": Published(DBB, _of_blocks("DBB", "ResNet-18"), switched, (1, 3, 224, 224)),
    "dbb_mobilenet": Published(DBB, _of_blocks("DBB", "MobileNet"), switched, (1, 3, 224, 224)),
    "acnet_cropped": Published("DingXiaoH/ACNet", _acnet_cropped, switched, (1, 3, 64, 64)),
    "orepa_resnet18": Published(OREPA, _of_blocks("OREPA", "ResNet-18"), switched, (1, 3, 224, 224), dynamo=True),
    "orepa_repvgg_a0": Published(OREPA, _of_blocks("OREPA_VGG", "RepVGG-A0"), switched, (1, 3, 224, 224), dynamo=True),
    "dyrep_resnet18": Published("hunto/image_classification_sota", _dyrep, switched, (1, 3, 224, 224)),
    "ecbsr": Published("xindongzhang/ECBSR", _ecbsr, _plain_sr, (1, 1, 96, 96), nn.Module.train),
    "fmen": Published("NJU-Jet/FMEN", _fmen, _fmen_plain, (1, 3, 64, 64)),
    "rep_tdnn": Published("zrtlemontree/CS-Rep", _rep_tdnn, _rep_tdnn_plain, (1, 161, 300)),
}
"""By name: blocks of DBB, ACNet, OREPA, DyRep, ECBSR and FMEN, and a network of one pixel axis (Rep-TDNN)."""
