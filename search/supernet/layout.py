"""The memory layout a network trains in: channels last, where its backward pass is known to be right."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from repconv import list_models

_VECTOR = 8
"""Floats in a vector of AVX2. oneDNN's 1x1 convolution there copies what a stride leaves of fewer channels into a
workspace by whole vectors, and its backward pass by weights (torch 2.14.1) writes past the end of that."""


def memory_format(model: nn.Module, name: str, device: torch.device, *, wanted: bool) -> torch.memory_format:
    """Channels last where `wanted` and safe: on a GPU, and this package's networks without `unsafe` layers on a CPU.

    What networks by others run is not known, and a layer that writes past its memory ends the process, or spoils
    numbers in silence.

    Args:
        model: to be trained.
        name: its name: of this package where it is one of `list_models()`.
        device: where it is to be trained.
        wanted: the setting `channels_last`.
    """
    safe = device.type != "cpu" or (name in list_models() and next(unsafe(model), None) is None)
    return torch.channels_last if wanted and safe else torch.contiguous_format


def unsafe(model: nn.Module) -> Iterator[str]:
    """Names of the layers whose backward pass in channels last writes past its memory on a CPU."""
    for name, module in model.named_modules():
        if not isinstance(module, nn.Conv2d):
            continue
        few = module.in_channels // module.groups < _VECTOR
        if few and module.kernel_size == (1, 1) and max(module.stride) > 1:
            yield name


def said_of(chosen: torch.memory_format, name: str, *, wanted: bool) -> str | None:
    """What a user is told where it is not what the setting says."""
    if not wanted or chosen == torch.channels_last:
        return None
    return f"{name} trains in contiguous memory: on a CPU, torch's backward pass in channels last may write past it"
