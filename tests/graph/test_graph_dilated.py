"""Convolutions whose taps are far apart are folded without the zeros between them: those of DeepLab need gigabytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from repconv.algebra.kernels import Kernel
from repconv.benchmarks.studies.graph.networks import randomise, to_onnx
from repconv.graph import fuse_onnx, fuse_program


class Scaled(nn.Module):
    """One factor a channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.rand(1, channels, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def dilated(groups: int = 1) -> nn.Module:
    return nn.Conv2d(6, 12, 3, padding=(36, 12), dilation=(36, 12), groups=groups, bias=False)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "a norm behind": lambda: nn.Sequential(dilated(), nn.BatchNorm2d(12)),
    "of groups": lambda: nn.Sequential(dilated(3), nn.BatchNorm2d(12)),
    "factors before": lambda: nn.Sequential(Scaled(6), dilated(2), nn.BatchNorm2d(12)),
    "factors on both sides": lambda: nn.Sequential(Scaled(6), dilated(), Scaled(12), nn.BatchNorm2d(12)),
    "a matrix before": lambda: nn.Sequential(nn.Conv2d(6, 6, 1, bias=False), dilated(), nn.BatchNorm2d(12)),
    "a matrix behind": lambda: nn.Sequential(dilated(), nn.Conv2d(12, 12, 1), nn.BatchNorm2d(12)),
    "matrices of groups": lambda: nn.Sequential(
        nn.Conv2d(6, 6, 1, groups=2, bias=False), dilated(2), nn.Conv2d(12, 12, 1, groups=2), nn.BatchNorm2d(12)
    ),
    "a shift before": lambda: nn.Sequential(
        nn.Conv2d(6, 6, 1), nn.Conv2d(6, 12, 3, dilation=(36, 12)), nn.Conv2d(12, 12, 1), nn.BatchNorm2d(12)
    ),
    "transposed": lambda: nn.Sequential(
        nn.ConvTranspose2d(6, 12, 3, padding=20, dilation=20, bias=False), nn.BatchNorm2d(12)
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_far_taps_are_never_written_out(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = randomise(nn.Sequential(nn.ReLU(), NETWORKS[name](), nn.ReLU())).eval()
    x = torch.randn(2, 6, 80, 40)
    with torch.no_grad():
        wanted = network(x)
    model = to_onnx(network, x)
    program = torch.export.export(network, (x,))

    as_it_is = Kernel.dilate

    def watched(kernel: Kernel, by: Sequence[int]) -> Kernel:
        assert max(by) == 1 or max(kernel.size) == 1, "the zeros between the taps are written out"
        return as_it_is(kernel, by)

    monkeypatch.setattr(Kernel, "dilate", watched)
    fused, report = fuse_program(program)
    assert (report.after.convolutions, report.after.batch_norms) == (1, 0)
    torch.testing.assert_close(fused.module()(x), wanted, rtol=0, atol=1e-4)
    after, _ = fuse_onnx(model)
    kinds = [node.op_type for node in after.graph.node]
    assert "BatchNormalization" not in kinds
    assert "Mul" not in kinds
    got = onnxruntime.InferenceSession(after.SerializeToString()).run(None, {"x": x.numpy()})[0]
    np.testing.assert_allclose(got, wanted.numpy(), rtol=0, atol=1e-4)
