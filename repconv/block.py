"""`RepBlock`: a sum of branches that stands for one 3x3 convolution (equations 9 and 10 of the paper)."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import reduce
from operator import add
from typing import NamedTuple, final

import torch
from torch import Tensor, nn

from .branches import Branch, Statistics, branch_kind, running_statistics
from .errors import GeometryError
from .geometry import Geometry, Pair
from .kernels import Kernel, combine
from .sampling import Sampling


class BranchSet(NamedTuple):
    """Names of a block's branches: `fixed` ones carry no gate, `searchable` ones do."""

    fixed: tuple[str, ...]
    searchable: tuple[str, ...] = ()

    @classmethod
    def of(cls, fixed: Iterable[str], searchable: Iterable[str]) -> BranchSet:
        """From any collections of names.

        Raises:
            GeometryError: a bare string, which would be read letter by letter.
        """
        for names in (fixed, searchable):
            if isinstance(names, str):
                raise GeometryError(f"branches are given as a collection of names, such as [{names!r}], got {names!r}")
        return cls(tuple(fixed), tuple(searchable))

    def fitting(self, target: Geometry) -> BranchSet:
        """The branches of this set that can be part of a block of geometry `target`."""
        return BranchSet(*(tuple(n for n in names if branch_kind(n).unfit(target) is None) for names in self))


@final
class RepBlock(Branch):
    """A 3x3 convolution with padding 1, trained as a sum of branches.

    y = sum of the fixed branches + sigmoid(beta) * sum over searchable o of sigmoid(alpha_o) * B_o(x)

    In evaluation the block equals the one convolution `kernel()` returns. `beta` is one scalar a block, `alpha` one a
    searchable branch, all 0 at the start.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        stride: of the convolution the block stands for.
        groups: of that convolution, and of every branch.
        bias: whether the convolutions inside the branches have a bias.
        fixed: kinds (names in `BRANCHES`) without a gate.
        branches: searchable kinds, each with a gate.

    Raises:
        GeometryError: an unknown kind, one named twice, one that does not fit (`skip` needs stride 1 and as many
            output as input channels), or no branch at all.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: int | Pair = 1,
        groups: int = 1,
        bias: bool = False,
        fixed: Iterable[str] = ("3x3",),
        branches: Iterable[str] = (),
    ) -> None:
        super().__init__()
        steps = (stride, stride) if isinstance(stride, int) else stride
        self.geometry = Geometry(in_channels, out_channels, (3, 3), steps, (1, 1, 1, 1), groups)
        self.branch_set = BranchSet.of(fixed, branches)
        names = self.branch_set.fixed + self.branch_set.searchable
        if not names or len(set(names)) < len(names):
            raise GeometryError(f"a block needs branches, each at most once; got {', '.join(names) or 'none'}")
        for name in names:
            reason = branch_kind(name).unfit(self.geometry)
            if reason is not None:
                raise GeometryError(f"branch {name!r} {reason}")
        self.branches = nn.ModuleDict({n: branch_kind(n).build(self.geometry, bias) for n in names})
        self.alpha = nn.ParameterDict({n: nn.Parameter(torch.zeros(())) for n in self.branch_set.searchable})
        self.beta = nn.Parameter(torch.zeros(())) if self.branch_set.searchable else None
        self.sampling: Sampling | None = None

    def forward(self, x: Tensor, active: Collection[str] | None = None) -> Tensor:
        """x [n, i, h, w] -> [n, o, h', w'].

        Args:
            x: the input.
            active: the searchable branches that take part, all of them if None. Others are not computed, and their
                parameters get no gradient.
        """
        if self.sampling is not None and self.training:
            kernel = self.kernel(self.sampling.of(x), torch.promote_types(x.dtype, torch.float32), active)
            return kernel.to(dtype=x.dtype)(x)
        terms: list[Tensor] = [self.branches[name](x) for name in self.branch_set.fixed]
        gated: list[Tensor] = [self.alpha[n].sigmoid() * self.branches[n](x) for n in self.chosen(active)]
        if gated and self.beta is not None:
            terms.append(self.beta.sigmoid() * reduce(add, gated))
        return reduce(add, terms)

    def kernel(
        self,
        statistics: Statistics = running_statistics,
        dtype: torch.dtype = torch.float64,
        active: Collection[str] | None = None,
    ) -> Kernel:
        """The one 3x3 convolution this block is; arguments as in `Branch.kernel` and `forward`."""
        searched = self.chosen(active)
        kernels = [self._branch(name).kernel(statistics, dtype) for name in (*self.branch_set.fixed, *searched)]
        factors = [None] * len(self.branch_set.fixed) + [self.gate(name, dtype) for name in searched]
        # A zero 3x3 of the block's own geometry, so that a block of small branches is still a 3x3.
        shape = self.geometry
        zero = Kernel(
            kernels[0].weight.new_zeros(1).expand(shape.weight_shape), torch.zeros_like(kernels[0].bias),
            shape.stride, shape.padding, shape.groups,
        )  # fmt: skip
        return combine([zero, *kernels], [None, *factors])

    def gate(self, name: str, dtype: torch.dtype = torch.float64) -> Tensor:
        """sigmoid(beta) * sigmoid(alpha) of a searchable branch, a scalar."""
        if self.beta is None:
            raise GeometryError("this block has no searchable branch, hence no gates")
        alpha: Tensor = self.alpha[name]
        return self.beta.to(dtype).sigmoid() * alpha.to(dtype).sigmoid()

    def chosen(self, active: Collection[str] | None) -> tuple[str, ...]:
        """The searchable branches in `active`, in the block's order.

        Raises:
            GeometryError: `active` names a branch this block cannot switch, or nothing would be left of the block.
        """
        searchable = self.branch_set.searchable
        if active is None:
            return searchable
        unknown = set(active) - set(searchable)
        if unknown:
            raise GeometryError(
                f"not a searchable branch of this block: {', '.join(sorted(unknown))}; "
                f"it has {', '.join(searchable) or 'none'}"
            )
        if not active and not self.branch_set.fixed:
            raise GeometryError("a block without fixed branches needs at least one active branch")
        return tuple(n for n in searchable if n in active)

    def _branch(self, name: str) -> Branch:
        branch = self.branches[name]
        assert isinstance(branch, Branch)  # noqa: S101  # ModuleDict forgets what it holds
        return branch
