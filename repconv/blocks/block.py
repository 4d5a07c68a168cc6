"""`RepBlock`: a sum of branches that stands for one 3x3 convolution (equations 9 and 10 of the paper)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from functools import reduce
from operator import add
from typing import Literal, NamedTuple, final

import torch
from torch import Tensor, nn

from ..algebra.geometry import Geometry, Pair, pair
from ..algebra.kernels import Kernel, combine
from ..errors import GeometryError
from .branches import Branch, NormedBranch, branch_kind
from .statistics.normalisation import Statistics, norms_affine, running_statistics
from .statistics.sampling import Sampling
from .statistics.windows import positions
from .training_cost import cheaper_joined


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
        fixed, searched = self.branch_set.fixed, self.chosen(active)
        one = self._joined(x, self.sampling, (*fixed, *searched)) if self.training and self.sampling else ()
        terms: list[Tensor] = []
        if one and self.sampling is not None:
            # Kernels are computed in float32 at least, whatever autocast would make of it.
            with torch.autocast(x.device.type, enabled=False):
                statistics = self.sampling.of(x, pair(self.geometry.stride))
                kernel = self._kernel(one, statistics, torch.promote_types(x.dtype, torch.float32))
            terms.append(kernel.to(dtype=x.dtype)(x))
        terms += [self.branches[name](x) for name in fixed if name not in one]
        gated: list[Tensor] = [self.alpha[n].sigmoid() * self.branches[n](x) for n in searched if n not in one]
        if gated and self.beta is not None:
            terms.append(self.beta.sigmoid() * reduce(add, gated))
        return reduce(add, terms)

    def _joined(self, x: Tensor, sampling: Sampling, names: tuple[str, ...]) -> tuple[str, ...]:
        """Those of the branches that go as one convolution: the ones that gain; all, if every position is asked for."""
        if sampling.positions is None:
            return names
        total = positions(x, pair(self.geometry.stride))
        return cheaper_joined({name: self._branch(name) for name in names}, self.geometry, total, sampling.count(total))

    def kernel(
        self,
        statistics: Statistics = running_statistics,
        dtype: torch.dtype = torch.float64,
        active: Collection[str] | None = None,
    ) -> Kernel:
        """The one 3x3 convolution this block is; arguments as in `Branch.kernel` and `forward`."""
        return self._kernel((*self.branch_set.fixed, *self.chosen(active)), statistics, dtype)

    def _kernel(self, names: Sequence[str], statistics: Statistics, dtype: torch.dtype) -> Kernel:
        """The convolution that the named branches are, fixed ones first."""
        branches = [self._branch(name) for name in names]
        norms = [branch.norm for branch in branches]
        given = [branch.before(statistics, dtype) for branch in branches]
        moments = statistics(norms, given)
        scale, shift = norms_affine(norms, moments, dtype)
        searched = [name for name in names if name in self.branch_set.searchable]
        if searched:
            ones = scale.new_ones(len(names) - len(searched))
            gates = torch.cat(
                [ones, torch.stack([self.alpha[n] for n in searched]).to(dtype).sigmoid() * self._beta(dtype)]
            )
            scale, shift = scale * gates[:, None], shift * gates[:, None]
        kernels = [before.whole() if before.pooled else before.kernel for before in moments.given]
        rates = [before.rate for before in given]
        return combine(kernels, scale, rates=rates, within=self.geometry).shift(shift.sum(0))

    def gate(self, name: str, dtype: torch.dtype = torch.float64) -> Tensor:
        """sigmoid(beta) * sigmoid(alpha) of a searchable branch, a scalar."""
        beta = self._beta(dtype)
        alpha: Tensor = self.alpha[name]
        return beta * alpha.to(dtype).sigmoid()

    def _beta(self, dtype: torch.dtype) -> Tensor:
        """sigmoid(beta)."""
        if self.beta is None:
            raise GeometryError("this block has no searchable branch, hence no gates")
        return self.beta.to(dtype).sigmoid()

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

    def _branch(self, name: str) -> NormedBranch:
        branch = self.branches[name]
        assert isinstance(branch, NormedBranch)  # noqa: S101  # ModuleDict forgets what it holds
        return branch


def set_statistics(model: nn.Module, statistics: Literal["full", "sampled"] | Sampling = "sampled") -> None:
    """Say how every `RepBlock` of `model` gets its batch statistics in training; nothing else is changed.

    Args:
        model: any module that holds blocks.
        statistics: "full": each branch is computed and normalised, as PyTorch would. "sampled": a block trains as one
            convolution, its branches' statistics taken from their kernels and a sample of positions, where that is
            faster (see `Sampling`, whose settings may be given instead).

    Raises:
        GeometryError: neither of these.
    """
    if statistics not in ("full", "sampled") and not isinstance(statistics, Sampling):
        raise GeometryError(f'statistics are "full", "sampled" or a Sampling, got {statistics!r}')
    chosen = {"full": None, "sampled": Sampling()}.get(statistics) if isinstance(statistics, str) else statistics
    for block in model.modules():
        if isinstance(block, RepBlock):
            block.sampling = chosen
