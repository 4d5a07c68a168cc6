"""What is asked of a network before it is compared."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from repconv.blocks.probing import count_flops


class LooksAtNorm(nn.Module):
    """A network that reads numbers of its norm, as those that pad a border with them do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) * self.norm.weight.view(1, -1, 1, 1)


def test_flops_are_counted_without_norms_and_leave_them() -> None:
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    for network in (plain, LooksAtNorm().eval()):
        norm = next(module for module in network.modules() if isinstance(module, nn.BatchNorm2d))
        before = norm.running_mean.clone()
        assert count_flops(network, (3, 8, 6)) == 2 * 6 * 4 * 4 * 27
        assert torch.equal(norm.running_mean, before)
        assert norm in [*network.modules()]


def test_a_network_in_training_learns_nothing_from_being_counted() -> None:
    network = LooksAtNorm().train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    count_flops(network, (3, 8, 6))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
