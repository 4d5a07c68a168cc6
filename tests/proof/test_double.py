"""The fast float64 reference is PyTorch's own."""

import pytest
import torch
from torch.nn import functional

from repconv.proof.float64 import FastGroupedDouble


@pytest.mark.parametrize(("groups", "made"), [(1, 12), (2, 12), (6, 12), (6, 6)])
@pytest.mark.parametrize(
    ("stride", "padding", "dilation"), [(1, 0, 1), (1, 2, (2, 1)), (2, 1, 1), ((1, 2), (2, 0), (2, 1))]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_grouped_convolutions_are_what_they_are_outside(groups, made, stride, padding, dilation, dtype):
    x, weight = torch.randn(2, 6, 9, 8, dtype=dtype), torch.randn(made, 6 // groups, 3, 2, dtype=dtype)
    for bias in (None, torch.randn(made, dtype=dtype)):
        wanted = functional.conv2d(x, weight, bias, stride, padding, dilation, groups)
        with FastGroupedDouble():
            found = functional.conv2d(x, weight, bias, stride, padding, dilation, groups)
        assert found.shape == wanted.shape
        assert torch.allclose(found, wanted, rtol=1e-12 if dtype == torch.float64 else 1e-4, atol=1e-5)
        if dtype == torch.float32 or groups == 1:
            assert torch.equal(found, wanted), "only grouped float64 is replaced"


def test_transposed_ones_stay():
    x, weight = torch.randn(1, 4, 5, 5).double(), torch.randn(4, 2, 3, 3).double()
    with FastGroupedDouble():
        found = functional.conv_transpose2d(x, weight, groups=2)
    assert torch.equal(found, functional.conv_transpose2d(x, weight, groups=2))
