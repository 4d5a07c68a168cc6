"""One affine operation of a graph, whichever kind of graph it is."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import cached_property

from .constant import Constant
from .cost import Cost
from .expression import Term

Offset = Callable[[], Constant]
Stored = tuple[Hashable, int]
"""A weight: what tells its numbers from others, see `Addend.key`, and how many there are."""

COMPUTE = frozenset((
    "Conv", "ConvTranspose", "BatchNormalization", "Add", "Sub", "Sum", "Mean", "Mul", "Div", "Neg", "Gemm", "MatMul",
    "Einsum", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "linear",
    "batch_norm", "_native_batch_norm_legit_no_training", "add", "sub", "rsub", "mul", "div", "neg", "matmul", "mm",
    "einsum",
))  # fmt: skip
"""Kinds of nodes, of ONNX models and of programs, that multiply, add or normalise."""

AVERAGE = frozenset((
    "AveragePool", "GlobalAveragePool", "ReduceMean", "ReduceSum", "avg_pool1d", "avg_pool2d", "avg_pool3d",
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "mean", "sum",
))  # fmt: skip
"""Kinds of nodes that average or sum."""


@dataclass(frozen=True)
class Step:
    """One affine node output: `output = sum of terms + offset`.

    where: the node's name, for reports. kind: what it is, such as "Conv". offset: gives the constant, None for zero.
    cost: of the node as it stands, with what is computed of constants for it alone, if any is (`computes_operands`).
    rounding: the most by which a cast to the tensor's type changes a number, relative to it. border: what the padding
    of its one term holds, None for zeros. needs: tensors besides that the node as it stands reads, by way of others
    that nothing else reads.
    """

    output: str
    where: str
    kind: str
    terms: tuple[Term, ...]
    cost: Cost
    offset: Offset | None = None
    rounding: float = 2**-24
    border: Constant | None = None
    needs: tuple[str, ...] = ()
    computes_operands: bool = False

    @cached_property
    def stored(self) -> tuple[Stored, ...]:
        """The weights that its node as it stands multiplies by."""
        return tuple((term.key, term.form.weights) for term in self.terms if isinstance(term.key, str))

    @cached_property
    def reads(self) -> tuple[str, ...]:
        """The tensors of its terms, and those it needs besides as it stands."""
        return tuple(dict.fromkeys((*self.inputs, *self.needs)))

    @property
    def computes(self) -> bool:
        """True for what multiplies, adds or normalises."""
        return self.kind in COMPUTE

    @property
    def only_moves(self) -> bool:
        """True for what moves numbers of one tensor, beside zeros alone: neighbours are looked for behind it."""
        return not self.computes and self.kind not in AVERAGE and len(self.inputs) == 1 and self.border is None

    @cached_property
    def inputs(self) -> tuple[str, ...]:
        """The tensors it reads."""
        return tuple(dict.fromkeys(term.source for term in self.terms))
