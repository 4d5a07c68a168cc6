"""Blocks drawn at random: in evaluation a block is its kernel, in every dtype.

| drawn | from |
|---|---|
| branches | any non-empty subset of the ten kinds, each fixed or searchable (`skip` where it fits) |
| stride | 1, 2, 3 in each direction, independently |
| channels | 1 to 12 on either side, not necessarily equal |
| groups | every common divisor of the two, depthwise included |
| image | 1x1 to 9x9, 1 to 3 of them, standard normal |
| convolution bias | without, with |
| dtype | float64, float32, float16, bfloat16 |
| weights | as torch initialises them, uniform in +-1 / sqrt(fan in) |
| running mean, variance | uniform in +-3; 1e-3 to 1e2, uniform in its logarithm |
| BN weight, bias | uniform in +-2, one weight in five exactly 0; uniform in +-2 |
| eps | 1e-12, 1e-5, 1e-3, 1e-1 |
| alpha, beta | normal, standard deviation 2 |
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from repconv import BRANCHES, Kernel, RepBlock
from repconv.algebra.geometry import Geometry

Randomise = Callable[[nn.Module], nn.Module]
Apart = Callable[[Tensor, Tensor], float]
Draw = Callable[[st.SearchStrategy[Any]], Any]

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Case:
    """What is drawn; the numbers follow from the seed."""

    channels: tuple[int, int]
    groups: int
    stride: tuple[int, int]
    bias: bool
    fixed: tuple[str, ...]
    searchable: tuple[str, ...]
    image: tuple[int, int, int]
    dtype: torch.dtype
    eps: float
    seed: int

    def build(self, randomise: Randomise) -> tuple[RepBlock, Tensor]:
        """The block, in evaluation mode, and images for it, in the case's dtype."""
        torch.manual_seed(self.seed)
        i, o = self.channels
        block = RepBlock(
            i, o, stride=self.stride, groups=self.groups, bias=self.bias, fixed=self.fixed, branches=self.searchable
        )
        randomise(block)
        for module in block.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = self.eps
        n, height, width = self.image
        return block.to(self.dtype).eval(), torch.randn(n, i, height, width, dtype=torch.float64).to(self.dtype)


@st.composite
def cases(draw: Draw) -> Case:
    """A case; see the table at the top."""
    groups = draw(st.sampled_from([1, 1, 1, 2, 3, 4, 5, 6, 12]))
    width = st.integers(1, 12 // groups)
    stride = draw(st.sampled_from([(1, 1)] * 3 + [(a, b) for a in (1, 2, 3) for b in (1, 2, 3)]))
    i = groups * draw(width)
    o = i if draw(st.booleans()) else groups * draw(width)
    target = Geometry(i, o, (3, 3), stride, (1, 1, 1, 1), groups)
    fits = [name for name, kind in BRANCHES.items() if kind.unfit(target) is None]
    roles = draw(st.lists(st.sampled_from(["fixed", "searchable", "absent"]), min_size=len(fits), max_size=len(fits)))
    chosen = {r: tuple(n for n, role in zip(fits, roles, strict=True) if role == r) for r in ("fixed", "searchable")}
    if not chosen["fixed"] + chosen["searchable"]:
        chosen["fixed"] = (draw(st.sampled_from(fits)),)
    side = st.integers(1, 9)
    return Case(
        (i, o),
        groups,
        stride,
        draw(st.booleans()),
        chosen["fixed"],
        chosen["searchable"],
        (draw(st.integers(1, 3)), draw(side), draw(side)),
        draw(st.sampled_from(DTYPES)),
        draw(st.sampled_from([1e-12, 1e-5, 1e-3, 1e-1])),
        draw(st.integers(0, 2**20)),
    )


def law(case: Case, randomise: Randomise, apart: Apart) -> None:
    """A block is its kernel, to what the dtype allows; the reference is the unfused block in float64.

    float64: 1e-12 of the output's scale. float32: the larger of 1e-5 of it and twice the unfused block's own error.
    float16, bfloat16: at every pixel, one unit in the last place of |K| * |x| + |b|, half for rounding the weights once
    and half for rounding the output, sums being kept in float32 (measured: 0.91). No bound relative to the output alone
    holds: where large terms cancel, an output of 1.3 was off by 4e-3, and the unfused block, by luck, by 6e-4.
    """
    with torch.no_grad():
        block, x = case.build(randomise)
        kernel = block.kernel()
        assert kernel.geometry == block.geometry
        assert kernel.weight.dtype == torch.float64
        unfused, rounded = block(x), kernel.to(dtype=case.dtype)
        assert (unfused.dtype, rounded.weight.dtype) == (case.dtype, case.dtype)
        # Sums of halves are kept in float64 and rounded once: on processors with AMX, torch 2.14.1's own bfloat16
        # convolution of few columns with a stride reads memory that is not the image's.
        fused = rounded(x) if case.dtype.itemsize > 2 else rounded.to(dtype=torch.float64)(x.double()).to(case.dtype)
        reference = unfused if case.dtype == torch.float64 else copy.deepcopy(block).double()(x.double())
        error = apart(fused, reference)
        if case.dtype == torch.float64:
            assert error <= 1e-12
        elif case.dtype == torch.float32:
            assert error <= max(1e-5, 2 * apart(unfused, reference))
        else:
            sizes = Kernel(kernel.weight.abs(), kernel.bias.abs(), kernel.stride, kernel.padding, kernel.groups)
            unit = torch.finfo(case.dtype).eps * sizes(x.double().abs())
            # 1e-6: weights too small for float16's normal numbers; 1 %: rounding of rounded numbers.
            assert ((fused.double() - reference).abs() <= 1.01 * unit + 1e-6).all()


common = {"derandomize": True, "deadline": None, "database": None, "suppress_health_check": [HealthCheck.too_slow]}


CANCELLING = Case(
    (1, 1), 1, (2, 2), True, ("1x3", "3x1", "avg"), ("3x3", "1x2_d2", "2x2_d2"), (1, 2, 2), torch.float16, 1e-12, 113
)
"""Large terms, small output."""


@settings(max_examples=150, **common)
@given(case=cases())
@example(case=CANCELLING)
def test_a_drawn_block_is_its_kernel(case: Case, randomise: Randomise, apart: Apart) -> None:
    law(case, randomise, apart)


@pytest.mark.slow
@settings(max_examples=500, **common)
@given(case=cases())
def test_hundreds_of_drawn_blocks_are_their_kernels(case: Case, randomise: Randomise, apart: Apart) -> None:
    law(case, randomise, apart)


@pytest.mark.slow
@pytest.mark.exhaustive
@settings(max_examples=2200, **common)
@given(case=cases())
def test_thousands_of_drawn_blocks_are_their_kernels(case: Case, randomise: Randomise, apart: Apart) -> None:
    law(case, randomise, apart)


def test_the_draw_reaches_what_the_table_names() -> None:
    """Otherwise the law could hold by never being tried."""
    drawn: list[Case] = []

    @settings(max_examples=400, **common)
    @given(case=cases())
    def collect(case: Case) -> None:
        drawn.append(case)

    collect()
    assert {c.dtype for c in drawn} == set(DTYPES)
    assert {n for c in drawn for n in c.fixed} == {n for c in drawn for n in c.searchable} == set(BRANCHES)
    assert {c.stride for c in drawn} == {(a, b) for a in (1, 2, 3) for b in (1, 2, 3)}
    assert any(c.channels == (c.groups, c.groups) and c.groups > 1 for c in drawn), "depthwise"
    assert any(c.groups > 1 and c.channels[0] != c.channels[1] for c in drawn), "groups, in != out"
    assert any(c.image[1:] == (1, 1) for c in drawn), "images of one pixel"
    assert any(not c.fixed for c in drawn), "no fixed branch"
    assert {c.bias for c in drawn} == {False, True}
