"""Which backends work on this machine, and what would make the others work."""

from __future__ import annotations

from .artefacts.runtime import Diagnosis, runtime_of, tried
from .targets import TARGETS

PYTORCH_GPU = "pip install torch with CUDA (https://pytorch.org/get-started), on a machine with an NVIDIA GPU"


def backends() -> list[Diagnosis]:
    """Every backend, tried, not only looked up."""
    targets = [line for target in TARGETS.values() for line in runtime_of(target).look(target)]
    return [_torch(), *targets, tried("Pillow", "pillow", "reads image folders", _formats)]


def _torch() -> Diagnosis:
    import torch

    devices = ["CPU"] + [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    said = "reference of every verification" if len(devices) > 1 else "reference of every verification; sees no GPU"
    return Diagnosis(name="PyTorch", works=True, version=torch.__version__, devices=tuple(devices), said=said)


def _formats() -> tuple[str, ...]:
    from PIL import features

    return tuple(name for name in ("jpg", "webp") if features.check(name))
