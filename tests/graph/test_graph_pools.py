"""Averages of pixels commute with matrices at every pixel: where that is cheaper, a norm folds behind the pool."""

from __future__ import annotations

import io
import warnings
from collections import Counter
from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from repconv.graph import fuse_onnx, fuse_program
from repconv.graph.core.terms import average_term


class Module(nn.Module):
    """Parts, and a function of them and x."""

    def __init__(self, forward: Callable[..., Tensor], **parts: nn.Module | Tensor) -> None:
        super().__init__()
        self.run = forward
        for name, part in parts.items():
            setattr(self, name, nn.Parameter(part) if isinstance(part, Tensor) else part)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def norm(kind: type[nn.Module] = nn.BatchNorm2d) -> nn.Module:
    module = kind(6)
    for value, low, high in ((module.running_mean, -1, 1), (module.running_var, 0.3, 3), (module.bias, -1, 1)):
        nn.init.uniform_(value, low, high)
    return module


POOLED = {
    "norm, pool, linear": lambda: Module(
        lambda m, x: m.l(functional.adaptive_avg_pool2d(m.n(x.relu()), 1).flatten(1)), n=norm(), l=nn.Linear(6, 4)),
    "1x1, mean, linear": lambda: Module(
        lambda m, x: m.l(m.c(x.relu()).mean((2, 3))), c=nn.Conv2d(6, 6, 1), l=nn.Linear(6, 4)),
    "scale, mean of kept axes, 1x1": lambda: Module(
        lambda m, x: m.c((x.relu() * m.g + 1).mean((2, 3), keepdim=True)), c=nn.Conv2d(6, 4, 1), g=torch.rand(6, 1, 1)),
    "tokens, norm, mean, linear": lambda: Module(
        lambda m, x: m.l(m.n(x.relu().flatten(2)).transpose(1, 2).mean(1)), n=norm(nn.BatchNorm1d), l=nn.Linear(6, 4)),
    "channels last, scale, mean, linear": lambda: Module(
        lambda m, x: m.l((x.relu().permute(0, 2, 3, 1) * m.g).mean((1, 2))), l=nn.Linear(6, 4), g=torch.rand(6)),
    "norm, windows, 1x1": lambda: Module(
        lambda m, x: m.c(functional.avg_pool2d(m.n(functional.pad(x.relu(), (1, 1, 1, 1))), 2)), n=norm(),
        c=nn.Conv2d(6, 4, 1)),
    "norm, pool": lambda: Module(lambda m, x: functional.adaptive_avg_pool2d(m.n(x.relu()), 1).sigmoid(), n=norm()),
    "sum of a 1x1, pool": lambda: Module(
        lambda m, x: (x.relu() + m.n(m.c(x.sigmoid()))).mean((2, 3)), n=norm(), c=nn.Conv2d(6, 6, 1)),
}  # fmt: skip


def exported(model: nn.Module, x: Tensor) -> onnx.ModelProto:
    held = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model, (x,), held, dynamo=False, opset_version=17, input_names=["x"],
            training=torch.onnx.TrainingMode.PRESERVE, do_constant_folding=False,
        )  # fmt: skip
    return onnx.load_from_string(held.getvalue())


def left(program: torch.export.ExportedProgram) -> Counter[str]:
    return Counter(str(n.target).removeprefix("aten.").split(".")[0] for n in program.graph.nodes)


@pytest.mark.parametrize("name", POOLED)
def test_what_is_affine_before_a_pool_is_folded_behind_it(name: str) -> None:
    model, x = POOLED[name]().eval().double(), torch.randn(3, 6, 7, 5).double()
    with torch.no_grad():
        wanted = model(x)
    fused, _ = fuse_program(torch.export.export(model, (x,), strict=False))
    torch.testing.assert_close(fused.module()(x), wanted, rtol=0, atol=1e-12)
    kinds = left(fused)
    assert not any("norm" in kind for kind in kinds), kinds
    assert kinds["conv2d"] + kinds["linear"] <= 1, kinds
    before = exported(model.float(), x.float())
    after, _ = fuse_onnx(before)
    assert "BatchNormalization" not in {node.op_type for node in after.graph.node}
    got = onnxruntime.InferenceSession(after.SerializeToString()).run(None, {"x": x.float().numpy()})[0]
    np.testing.assert_allclose(got, wanted.numpy(), rtol=0, atol=1e-5)


def test_a_pool_with_nothing_to_fold_stays_as_it_is() -> None:
    model = nn.Sequential(nn.Conv2d(6, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)).eval()
    program = torch.export.export(model, (torch.randn(1, 6, 8, 8),), strict=False)
    assert fuse_program(program)[0] is program


def test_a_pool_of_an_image_whose_sides_are_open() -> None:
    model, sides = POOLED["norm, pool, linear"]().eval(), {2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    program = torch.export.export(model, (torch.randn(2, 6, 8, 9),), dynamic_shapes=(sides,), strict=False)
    fused, _ = fuse_program(program)
    assert "batch_norm" not in str(fused.graph)
    x = torch.randn(2, 6, 5, 11)
    torch.testing.assert_close(fused.module()(x), model(x).detach(), rtol=0, atol=1e-5)


def test_what_sees_its_neighbours_is_not_averaged_before() -> None:
    """A norm may change places with the pool, a 3x3 convolution may not, and its reason says so."""
    model = nn.Sequential(nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1), norm(), nn.AdaptiveAvgPool2d(1)).eval()
    x = torch.randn(1, 6, 7, 5)
    fused, report = fuse_program(torch.export.export(model, (x,), strict=False))
    assert report.after.convolutions == 1
    assert report.after.batch_norms == 0
    assert any("what is averaged is no matrix at every pixel" in refusal.why for refusal in report.refusals)
    torch.testing.assert_close(fused.module()(x), model(x).detach(), rtol=0, atol=1e-5)


def test_a_pool_whose_windows_are_single_pixels_is_none() -> None:
    """VGG's adaptive pool at the size it was trained with: the linear layer behind it keeps its numbers."""
    assert average_term("x", 6, (1, 1), stride=(1, 1), padding=(0, 0, 0, 0)).form.is_identity, "nothing to multiply by"
    model = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d((7, 5)), nn.Flatten(), nn.Linear(6 * 7 * 5, 4)).eval()
    x = torch.randn(2, 6, 7, 5)
    with torch.no_grad():
        wanted = model(x)
    fused, _ = fuse_program(torch.export.export(model, (x,), strict=False))
    assert "pool" not in str(fused.graph)
    torch.testing.assert_close(fused.module()(x), wanted)
    after, _ = fuse_onnx(exported(model, x))
    assert "AveragePool" not in {node.op_type for node in after.graph.node}
    (weight,) = (t for t in after.graph.initializer if len(t.dims) == 2)
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(weight), model[3].weight.detach().numpy())
    got = onnxruntime.InferenceSession(after.SerializeToString()).run(None, {"x": x.numpy()})[0]
    np.testing.assert_allclose(got, wanted.numpy(), rtol=0, atol=1e-5)
