"""Cells that other searches published, as facts: which operation reads which state.

States 0 and 1 of a cell are the outputs of the cells before the last and last; state 2 + i is the sum of pair i of
operations, each named with the state it reads. The cell's output concatenates the states that are listed. All are in
the form of `genotypes.py` of DARTS's own code (github.com/quark0/darts, cnn/genotypes.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

Edge = tuple[str, int]
"""An operation, and the state it reads."""

Pair = tuple[Edge, Edge]


@dataclass(frozen=True)
class CellPlan:
    """Pairs of operations whose outputs are added, and the states that are concatenated."""

    pairs: tuple[Pair, ...]
    concatenated: tuple[int, ...]


@dataclass(frozen=True)
class Genotype:
    """The two cells of a network, and where they were published."""

    normal: CellPlan
    reduction: CellPlan
    source: str


DARTS_V2 = Genotype(
    normal=CellPlan(
        (
            (("sep_conv_3x3", 0), ("sep_conv_3x3", 1)),
            (("sep_conv_3x3", 0), ("sep_conv_3x3", 1)),
            (("sep_conv_3x3", 1), ("skip_connect", 0)),
            (("skip_connect", 0), ("dil_conv_3x3", 2)),
        ),
        (2, 3, 4, 5),
    ),
    reduction=CellPlan(
        (
            (("max_pool_3x3", 0), ("max_pool_3x3", 1)),
            (("skip_connect", 2), ("max_pool_3x3", 1)),
            (("max_pool_3x3", 0), ("skip_connect", 2)),
            (("skip_connect", 2), ("max_pool_3x3", 1)),
        ),
        (2, 3, 4, 5),
    ),
    source="Liu et al., DARTS (2019), second order; github.com/quark0/darts, DARTS_V2",
)

P_DARTS = Genotype(
    normal=CellPlan(
        (
            (("skip_connect", 0), ("dil_conv_3x3", 1)),
            (("skip_connect", 0), ("sep_conv_3x3", 1)),
            (("sep_conv_3x3", 1), ("sep_conv_3x3", 3)),
            (("sep_conv_3x3", 0), ("dil_conv_5x5", 4)),
        ),
        (2, 3, 4, 5),
    ),
    reduction=CellPlan(
        (
            (("avg_pool_3x3", 0), ("sep_conv_5x5", 1)),
            (("sep_conv_3x3", 0), ("dil_conv_5x5", 2)),
            (("max_pool_3x3", 0), ("dil_conv_3x3", 1)),
            (("dil_conv_3x3", 1), ("dil_conv_5x5", 3)),
        ),
        (2, 3, 4, 5),
    ),
    source="Chen et al., Progressive DARTS (2019); github.com/chenxin061/pdarts, PDARTS",
)

CARS_I = Genotype(
    normal=CellPlan(
        (
            (("sep_conv_3x3", 0), ("sep_conv_3x3", 1)),
            (("skip_connect", 0), ("sep_conv_5x5", 1)),
            (("skip_connect", 2), ("sep_conv_3x3", 3)),
            (("sep_conv_3x3", 0), ("dil_conv_5x5", 4)),
        ),
        (2, 3, 4, 5),
    ),
    reduction=CellPlan(
        (
            (("dil_conv_3x3", 0), ("skip_connect", 1)),
            (("max_pool_3x3", 0), ("max_pool_3x3", 2)),
            (("skip_connect", 1), ("sep_conv_5x5", 3)),
            (("dil_conv_3x3", 1), ("max_pool_3x3", 4)),
        ),
        (2, 3, 4, 5),
    ),
    source="Yang et al., CARS (2020); github.com/huawei-noah/CARS, CARS_I",
)

AMOEBANET_A = Genotype(
    normal=CellPlan(
        (
            (("avg_pool_3x3", 0), ("max_pool_3x3", 1)),
            (("sep_conv_3x3", 0), ("sep_conv_5x5", 2)),
            (("sep_conv_3x3", 0), ("avg_pool_3x3", 3)),
            (("sep_conv_3x3", 1), ("skip_connect", 1)),
            (("skip_connect", 0), ("avg_pool_3x3", 1)),
        ),
        (4, 5, 6),
    ),
    reduction=CellPlan(
        (
            (("avg_pool_3x3", 0), ("sep_conv_3x3", 1)),
            (("max_pool_3x3", 0), ("sep_conv_7x7", 2)),
            (("sep_conv_7x7", 0), ("avg_pool_3x3", 1)),
            (("max_pool_3x3", 0), ("max_pool_3x3", 1)),
            (("conv_7x1_1x7", 0), ("sep_conv_3x3", 5)),
        ),
        (3, 4, 6),
    ),
    source="Real et al., AmoebaNet-A (2019), as DARTS trains it; github.com/quark0/darts, AmoebaNet",
)

GENOTYPES = MappingProxyType({
    "darts_v2": DARTS_V2, "p_darts": P_DARTS, "cars_i": CARS_I, "amoebanet_a": AMOEBANET_A,
})  # fmt: skip
