"""Copies with other modules in the places of some: what is shared stays so, what is replaced is never copied."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from repconv import GeometryError, fuse
from repconv.blocks.copies import copied


class Held(nn.Module):
    """What deepcopy cannot copy."""

    def __init__(self) -> None:
        super().__init__()
        self.state = torch.ones(2, requires_grad=True) * 2


def test_what_is_replaced_is_not_copied_and_what_is_shared_stays_shared() -> None:
    held, kept, new = Held(), nn.Linear(2, 2), nn.Identity()
    model = nn.Sequential(held, kept, held, kept)
    found = copied(model, {held: new})
    assert found[0] is found[2] is new
    assert found[1] is found[3] is not kept
    assert model[0] is held
    assert copied(held, {held: new}) is new


def test_what_cannot_be_copied_is_said_whoever_copies() -> None:
    for attempt in (copied, fuse):
        with pytest.raises(GeometryError, match=r"Sequential cannot be copied \(RuntimeError: Only Tensors created"):
            attempt(nn.Sequential(Held(), nn.Conv2d(3, 3, 1)).eval())
