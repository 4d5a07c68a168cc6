"""Preprocessing inside the artefact equals preprocessing before it; folded only where that is exact."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from repconv.errors import SourceError
from repconv.export.onnx.exporter import to_onnx
from repconv.export.onnx.preprocess import preprocess
from repconv.export.settings import Preprocessing

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

NETWORKS = {
    "padded": (lambda: nn.Conv2d(3, 4, 3, padding=1), ("scale",)),
    "padded, no bias": (lambda: nn.Conv2d(3, 4, 3, padding=1, bias=False), ("scale",)),
    "unpadded": (lambda: nn.Conv2d(3, 4, 3), ("scale", "shift")),
    "unpadded, no bias": (lambda: nn.Conv2d(3, 4, 2, stride=2, bias=False), ("scale", "shift")),
    "grouped": (lambda: nn.Conv2d(3, 3, 3, padding=1, groups=3), ()),
    "no convolution": (nn.ReLU, ()),
}


@pytest.mark.parametrize("uint8", [False, True])
@pytest.mark.parametrize("bgr", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_pixels_in_equal_normalised_images_in(name: str, bgr: bool, uint8: bool) -> None:
    make, folds = NETWORKS[name]
    network = nn.Sequential(make(), nn.Softsign()).eval()
    pixels = torch.randint(0, 256, (2, 3, 9, 9), dtype=torch.uint8)
    mean, std = (torch.tensor(v)[:, None, None] for v in (MEAN, STD))
    with torch.no_grad():
        wanted = network((pixels.float() / 255 - mean) / std)
    asked = Preprocessing(MEAN, STD, uint8=uint8, bgr=bgr)
    done = preprocess(to_onnx(network, torch.zeros(2, 3, 9, 9), opset=18), asked)
    assert set(done.folded) == set(folds) | ({"order"} if bgr and folds else set())
    given = (pixels.flip(1) if bgr else pixels).numpy()
    session = onnxruntime.InferenceSession(done.model.SerializeToString(), providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {"input": given if uint8 else given.astype(np.float32) / 255})
    torch.testing.assert_close(torch.from_numpy(got), wanted, rtol=1e-4, atol=1e-5)


def test_the_number_of_channels_must_fit() -> None:
    model = to_onnx(nn.Conv2d(4, 4, 3).eval(), torch.zeros(1, 4, 9, 9), opset=18)
    with pytest.raises(SourceError, match="of 3 channels, the network takes 4"):
        preprocess(model, Preprocessing(MEAN, STD))


@pytest.mark.parametrize("bgr", [False, True])
def test_what_is_folded_is_the_float64_value_cast_once(bgr: bool) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 16, 3).eval()
    order = slice(None, None, -1 if bgr else 1)
    scale, shift = 1 / (np.array(STD) * 255)[order], (np.array(MEAN) * 255)[order]
    weight = conv.weight.detach().double().numpy()[:, order] * scale[:, None, None]
    with torch.no_grad():  # what is left of the bias is a millionth of its parts, where float32 has lost it
        conv.bias.copy_(torch.from_numpy((weight.sum((2, 3)) @ shift) * (1 + 1e-6)))
    bias = conv.bias.detach().double().numpy() - weight.sum((2, 3)) @ shift
    made = preprocess(
        to_onnx(conv, torch.zeros(1, 3, 9, 9), opset=18), Preprocessing(MEAN, STD, uint8=True, bgr=bgr)
    ).model
    held = {len(t.dims): numpy_helper.to_array(t) for t in made.graph.initializer}
    assert np.array_equal(held[4], weight.astype(np.float32))
    np.testing.assert_allclose(held[1], bias, rtol=1e-7)
