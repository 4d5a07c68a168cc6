"""What trains in channels last, and what must not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from repconv import create_model
from repconv.search.supernet.layout import memory_format, said_of, unsafe

CPU, LAST, CONTIGUOUS = torch.device("cpu"), torch.channels_last, torch.contiguous_format


@pytest.mark.parametrize(
    ("conv", "is_unsafe"),
    [
        (nn.Conv2d(3, 12, 1, 2), True),
        (nn.Conv2d(12, 12, 1, (1, 2), groups=3), True),
        (nn.Conv2d(3, 12, 1), False),
        (nn.Conv2d(3, 12, 3, 2), False),
        (nn.Conv2d(8, 12, 1, 2), False),
    ],
    ids=str,
)
def test_strided_1x1_convolutions_of_few_channels_are_unsafe(conv, is_unsafe) -> None:
    assert list(unsafe(nn.Sequential(nn.ReLU(), conv))) == (["1"] if is_unsafe else [])


@pytest.mark.parametrize(
    ("name", "width", "device", "wanted", "expected"),
    [
        ("irep_resnet18", 8, "cpu", True, LAST),
        ("irep_resnet18", 8, "cpu", False, CONTIGUOUS),
        ("irep_resnet18", 4, "cpu", True, CONTIGUOUS),  # its second stage begins with a stride, on four channels
        ("irep_resnet18", 4, "cuda", True, LAST),
        ("own:net", 8, "cpu", True, CONTIGUOUS),
        ("own:net", 8, "cuda", True, LAST),
    ],
)
def test_channels_last_where_it_is_wanted_and_safe(name, width, device, wanted, expected) -> None:
    model = create_model("irep_resnet18", width=width, blocks=(1, 1))
    chosen = memory_format(model, name, torch.device(device), wanted=wanted)
    assert chosen == expected
    assert (said_of(chosen, name, wanted=wanted) is None) == (chosen == LAST or not wanted)
