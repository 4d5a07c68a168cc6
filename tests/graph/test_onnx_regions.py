"""What the proof of regions says of every ONNX operation that is read as affine."""

from __future__ import annotations

from repconv.graph.onnx.proof.regions import _OF_IMAGES
from repconv.graph.onnx.reader import _READERS

MOVES_AXES = {
    "Einsum", "Expand", "Flatten", "Gather", "GatherND", "MatMul", "Mean", "ReduceMean", "ReduceSum", "Reshape",
    "Squeeze", "Transpose", "Unsqueeze",
}  # fmt: skip
"""A region with one of them is proven as a map of all its images together: axes may be others behind them, or nobody
has shown that they stay."""


def test_every_operation_that_is_read_gives_rows_of_images_or_is_known_not_to() -> None:
    """A new one belongs on one of the two lists: on the wrong one, a row of images is compared that is none."""
    assert _READERS.keys() == _OF_IMAGES | MOVES_AXES
    assert not _OF_IMAGES & MOVES_AXES
