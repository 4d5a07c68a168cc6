"""Cross-layer equalisation changes ranges and nothing else."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from repconv.export.int8.equalise import equalise
from repconv.export.onnx.exporter import to_onnx


class Residual(nn.Module):
    """A stem, blocks that add to its stream, depthwise and grouped convolutions, a linear head."""

    def __init__(self, width: int, groups: int, act: nn.Module) -> None:
        super().__init__()
        self.stem, self.act = nn.Conv2d(3, width, 3, padding=1), act
        self.one, self.two = nn.Conv2d(width, width, 3, padding=1, groups=groups), nn.Conv2d(width, width, 1)
        self.depth = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.pool, self.head = nn.MaxPool2d(2), nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.stem(x))
        x = self.act(x + self.two(self.act(self.one(x))))
        return self.head(self.pool(self.act(self.depth(x))).mean((2, 3)))


def run(model: onnx.ModelProto, x: Tensor) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"input": x.numpy()})[0]


def network(width: int, groups: int, seed: int, act: nn.Module | None = None) -> onnx.ModelProto:
    torch.manual_seed(seed)
    model = Residual(width, groups, act or nn.ReLU()).eval()
    with torch.no_grad():
        for part in model.modules():
            if isinstance(part, nn.Conv2d):
                part.weight.mul_(10 ** (torch.rand(part.weight.shape[0], 1, 1, 1) * 4 - 2))
    return to_onnx(model, torch.zeros(1, 3, 8, 8), opset=18)


def spread(model: onnx.ModelProto) -> float:
    """How many times larger the widest output channel of a weight is than the narrowest."""
    weight = next(numpy_helper.to_array(t) for t in model.graph.initializer if list(t.dims[1:]) == [3, 3, 3])
    by_channel = np.abs(weight).max((1, 2, 3))
    return float(by_channel.max() / by_channel.min())


@pytest.mark.parametrize("seed", [0])
@pytest.mark.parametrize(("width", "groups"), [(4, 1), (8, 2)])
def test_the_function_stays_and_ranges_even_out(width: int, groups: int, seed: int) -> None:
    before = network(width, groups, seed)
    after, streams = equalise(before)
    assert streams == 3, "the residual stream, the inside of the block, and what the head reads"
    x = torch.randn(2, 3, 8, 8)
    wanted, got = run(before, x[:1]), run(after, x[:1])
    assert np.abs(got - wanted).max() <= 2e-5 * np.sqrt(np.square(wanted).mean())


def test_ranges_of_channels_even_out() -> None:
    before = network(8, 1, 3)
    after, _ = equalise(before)
    assert spread(after) < spread(before) / 5


@pytest.mark.slow
@pytest.mark.parametrize("act", [nn.SiLU(), nn.ReLU6()], ids=lambda a: type(a).__name__)
def test_what_does_not_hand_scales_on_is_left_alone(act: nn.Module) -> None:
    before = network(4, 1, 0, act)
    after, streams = equalise(before)
    assert streams == 0
    assert after.SerializeToString() == before.SerializeToString()


def test_what_is_written_is_the_scaled_float64_value_cast_once() -> None:
    generator = np.random.default_rng(0)
    first, second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 5, 3, bias=False)
    first.weight.data *= torch.from_numpy(10.0 ** generator.uniform(-3, 3, (8, 1, 1, 1))).float()
    first.weight.data[0] = 0  # a dead channel is left as it is
    made, streams = equalise(to_onnx(nn.Sequential(first, nn.ReLU(), second).eval(), torch.zeros(1, 3, 9, 9), opset=18))
    assert streams == 1
    w1, b1, w2 = (p.detach().double().numpy() for p in (first.weight, first.bias, second.weight))
    scale = np.sqrt(np.abs(w1).max((1, 2, 3)) / np.abs(w2).max((0, 2, 3)))
    scale[0] = 1
    wanted = (w1 / scale[:, None, None, None], b1 / scale, w2 * scale[:, None, None])
    held = [numpy_helper.to_array(t) for t in made.graph.initializer]
    for value in wanted:
        assert any(found.shape == value.shape and np.array_equal(found, value.astype(np.float32)) for found in held)
