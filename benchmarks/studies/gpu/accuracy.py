"""The shipped network on the shipped CIFAR-10 images in PyTorch on a device, in every precision."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from repconv import fuse, load
from repconv.errors import VerificationError
from repconv.export.proof.tolerances import DTYPES
from repconv.proof.float64 import full_precision

from ..export.int8_accuracy import row
from .given import AMOUNTS, CHECKPOINT, sheet
from .running import Rows

ALLOWED = 1e-4
"""rms error of float32 on the device against float32 on the processor."""


def accuracy(device: str) -> Rows:
    """Rows of unfused and fused, a precision each: images right, and errors against the unfused one on the processor.

    Raises:
        VerificationError: in float32 more than rounding differs.
    """
    amount = AMOUNTS[device]
    network = load(CHECKPOINT).model.eval()
    images, labels = sheet(amount.images)
    wanted = _scores(network, images, "cpu", torch.float32)
    for form, module in (("unfused", network), ("fused", fuse(network, prove=False)[0])):
        for precision in amount.precisions:
            got = _scores(module, images, device, DTYPES[precision])
            found = {"form": form, "precision": precision, **row(got, wanted, labels)}
            yield found
            if precision == "fp32" and not float(str(found["rms_error"])) < ALLOWED:
                raise VerificationError(
                    f"{form} in float32 on {device}: rms error {found['rms_error']} against the processor's, allowed "
                    f"{ALLOWED}"
                )


def _scores(module: nn.Module, images: Tensor, device: str, dtype: torch.dtype) -> Tensor:
    """Class scores [n, 10] in float32, on the processor."""
    placed = copy.deepcopy(module).to(device=device, dtype=dtype)
    with torch.inference_mode(), full_precision():
        return torch.cat([placed(x.to(device=device, dtype=dtype)) for x in images.split(100)]).float().cpu()
