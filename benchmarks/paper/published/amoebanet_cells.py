"""The cells of AmoebaNet-A and AmoebaNet-B as their authors' code has them, as facts.

From github.com/tensorflow/tpu, models/official/amoeba_net/model_specs.py, in the form of `genotypes.py`: there state 0
is the last cell's output and 1 that of the cell before, here the other way round, and `skip_connect` is "none". That
code concatenates all five sums of A's reduction, those too that other pairs read, and so do the published counts. It
computes B's `dil_2_separable_5x5_2` without dilation, and so does this.
"""

from __future__ import annotations

from .genotypes import CellPlan, Genotype

AMOEBANET_A_CELLS = Genotype(
    normal=CellPlan(
        (
            (("avg_pool_3x3", 1), ("max_pool_3x3", 1)),
            (("sep_conv_3x3", 0), ("skip_connect", 0)),
            (("skip_connect", 1), ("avg_pool_3x3", 0)),
            (("sep_conv_3x3", 1), ("sep_conv_5x5", 2)),
            (("avg_pool_3x3", 5), ("sep_conv_3x3", 1)),
        ),
        (0, 3, 4, 6),
    ),
    reduction=CellPlan(
        (
            (("sep_conv_3x3", 0), ("avg_pool_3x3", 1)),
            (("max_pool_3x3", 1), ("sep_conv_7x7", 2)),
            (("max_pool_3x3", 0), ("max_pool_3x3", 1)),
            (("sep_conv_3x3", 4), ("conv_1x7_7x1", 1)),
            (("avg_pool_3x3", 0), ("sep_conv_7x7", 1)),
        ),
        (2, 3, 4, 5, 6),
    ),
    source="Real et al., AmoebaNet-A (2019); github.com/tensorflow/tpu, amoeba_net_a",
)

AMOEBANET_B_CELLS = Genotype(
    normal=CellPlan(
        (
            (("conv_1x1", 0), ("max_pool_3x3", 0)),
            (("skip_connect", 0), ("sep_conv_3x3", 1)),
            (("conv_1x1", 0), ("sep_conv_3x3", 1)),
            (("conv_1x1", 2), ("skip_connect", 2)),
            (("avg_pool_3x3", 0), ("conv_1x1", 5)),
        ),
        (1, 3, 4, 6),
    ),
    reduction=CellPlan(
        (
            (("max_pool_2x2", 1), ("max_pool_3x3", 1)),
            (("skip_connect", 2), ("conv_3x3", 0)),
            (("sep_conv_5x5", 2), ("max_pool_3x3", 2)),
            (("skip_connect", 3), ("sep_conv_3x3", 0)),
            (("avg_pool_3x3", 4), ("conv_1x1", 3)),
        ),
        (5, 6),
    ),
    source="Real et al., AmoebaNet-B (2019); github.com/tensorflow/tpu, amoeba_net_b",
)
