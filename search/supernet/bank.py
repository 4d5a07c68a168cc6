"""The single-path networks that architectures of one supernet are measured as.

All candidates share one supernet, so a candidate's folded kernel is a sum of kernels folded once:
`K(m) = K_F + sum_o m_o * s(beta) * s(alpha_o) * K_o`. `KernelBank` folds them; a candidate is that sum written into a
plain network, whose evaluation costs what a plain network costs. `SettledBank` does the same with batch statistics that
are the candidate's own, for which its kernels are folded anew.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from repconv.algebra.kernels import Kernel, combine
from repconv.blocks.branches import Branch
from repconv.blocks.copies import copied
from repconv.blocks.fold import fold, fuse_blocks, outermost_branches, refuse_hooks, to_conv2d

from .architecture import Architecture
from .supernet import Supernet, evaluating, subnetwork

Batches = Iterable[tuple[Tensor, Tensor]]
"""Images [n, c, h, w] as the network takes them, and targets [n]; read once a candidate."""


@dataclass(frozen=True)
class EvaluationSettings:
    """How candidates run.

    dtype: of the single-path network, float32 or bfloat16; channels_last: its memory format; device: where it runs.
    """

    dtype: torch.dtype = torch.float32
    channels_last: bool = True
    device: torch.device = torch.device("cpu")  # noqa: RUF009  # a value

    @property
    def memory_format(self) -> torch.memory_format:
        """The memory format of the network and of images."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def of(self, x: Tensor) -> Tensor:
        """Images [n, c, h, w] in this dtype and memory format."""
        return x.to(device=self.device, dtype=self.dtype, memory_format=self.memory_format)

    def prepared(self, net: nn.Module) -> nn.Module:
        """`net` itself, in evaluation, without gradients, in this dtype and memory format."""
        net.eval().requires_grad_(False)
        return net.to(device=self.device, dtype=self.dtype, memory_format=self.memory_format)  # type: ignore[call-overload, no-any-return]


@final
class KernelBank:
    """A supernet's kernels, folded once, and a plain single-path network that becomes any candidate.

    Holds the supernet as it was when folded. Kernels are folded in float64 and kept in `keep`.

    Raises:
        FusionError: statistics are missing. GeometryError: a branch is not one convolution, or carries a hook.
    """

    def __init__(
        self,
        supernet: Supernet,
        settings: EvaluationSettings = EvaluationSettings(),  # frozen
        keep: torch.dtype = torch.float32,
    ) -> None:
        self.space = supernet.space
        self.net, fixed = _single_path(supernet, settings)
        with evaluating(supernet.model), torch.no_grad():
            self._fixed = {name: kernel.to(dtype=keep) for name, kernel in fixed.items()}
            self._branches = {
                name: {
                    kind: (_branch(block, kind).kernel() * block.gate(kind)).to(dtype=keep)
                    for kind in block.branch_set.searchable
                }
                for name, block in supernet.blocks.items()
            }

    def settled(self, architecture: Architecture) -> AbstractContextManager[None]:  # noqa: ARG002  # as `SettledBank`
        """Nothing: the statistics are the supernet's."""
        return nullcontext()

    @torch.no_grad()
    def write(self, architecture: Architecture) -> nn.Module:
        """`net`, its kernels those of `architecture`; the same module each time.

        Raises:
            SearchError: the architecture is of another network.
        """
        active = architecture.on(self.space).active
        for name, branches in self._branches.items():
            _put(self.net, name, combine([self._fixed[name], *(branches[kind] for kind in active[name])]))
        return self.net


@final
class SettledBank:
    """A supernet's candidates with batch statistics of their own, each written into the same single-path network.

    A candidate's statistics are averages over `batches`, run at it in training mode, with every position or a sample of
    them as the blocks are set; then its kernels are folded in float64.

    Raises:
        FusionError, GeometryError: as `KernelBank`.
    """

    def __init__(
        self,
        supernet: Supernet,
        batches: Batches,
        settings: EvaluationSettings = EvaluationSettings(),  # frozen
    ) -> None:
        self.supernet, self.batches = supernet, batches
        self.net, _ = _single_path(supernet, settings)
        self._branches = dict(outermost_branches(supernet.model))
        self._norms = [
            (name, norm)
            for name, norm in supernet.model.named_modules()
            if isinstance(norm, nn.BatchNorm2d) and not any(name.startswith(f"{b}.") for b in self._branches)
        ]

    def settled(self, architecture: Architecture) -> AbstractContextManager[None]:
        """For as long as it is entered, the supernet's statistics are the candidate's."""
        return own_statistics(self.supernet, architecture, self.batches)

    @torch.no_grad()
    def write(self, architecture: Architecture) -> nn.Module:
        """`net`, with the kernels and statistics of `architecture` while it is settled; the same module each time.

        Raises:
            SearchError: the architecture is of another network.
        """
        active = architecture.on(self.supernet.space).active
        with evaluating(self.supernet.model):
            for name, branch in self._branches.items():
                chosen = self.supernet.blocks.get(name)
                kernel = branch.kernel() if chosen is None else chosen.kernel(active=active[name])
                _put(self.net, name, kernel)
            for name, norm in self._norms:
                for held, value in norm.named_buffers():
                    self.net.get_submodule(name).get_buffer(held).copy_(value)
        return self.net


def single_path(model: nn.Module, architecture: Architecture) -> nn.Module:
    """The slow path: the sub-network of `architecture`, fused as any model is, in float64 and cast once.

    Raises:
        FusionError: as `repconv.fuse`.
    """
    fused, _ = fuse_blocks(subnetwork(model, architecture).eval())
    return fused


@contextmanager
def own_statistics(supernet: Supernet, architecture: Architecture, batches: Batches) -> Iterator[None]:
    """For as long as it is entered, the running statistics are averages over `batches` run at `architecture`.

    Blocks take them as they do in training, from every position or a sample, which is the same for every candidate and
    in every process. Afterwards they are what they were.
    """
    norms = [m for m in supernet.model.modules() if isinstance(m, nn.BatchNorm2d) and m.running_mean is not None]
    before = [(norm, norm.momentum, copy.deepcopy(dict(norm.named_buffers()))) for norm in norms]
    modes = [(module, module.training) for module in supernet.model.modules()]
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a cumulative average
            norm.train()
        for block in supernet.blocks.values():
            block.training = True  # itself alone: it then takes its branches' statistics as it does in training
        with torch.no_grad(), _alike(supernet.model):
            for x, _ in batches:
                supernet(architecture, x)
        for module, training in modes:
            module.training = training
        yield
    finally:
        for module, training in modes:
            module.training = training
        for norm, momentum, buffers in before:
            norm.momentum = momentum
            for name, value in buffers.items():
                norm.get_buffer(name).copy_(value)


@contextmanager
def _alike(model: nn.Module) -> Iterator[None]:
    """Whatever is drawn is drawn alike, and torch's own generators go on as if nothing had been."""
    device = next(model.parameters()).device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        yield


def _single_path(supernet: Supernet, settings: EvaluationSettings) -> tuple[nn.Module, dict[str, Kernel]]:
    """A plain network, a convolution in the place of every block and branch, and what the blocks' fixed branches are.

    The convolutions are those of the fixed branches, in a copy; candidates are written into it.
    """
    fixed: dict[str, Kernel] = {}
    single: dict[nn.Module, nn.Module] = {}
    with evaluating(supernet.model), torch.no_grad():
        for name, branch in outermost_branches(supernet.model):
            block = supernet.blocks.get(name)
            if block is None:
                single[branch] = fold(branch)
                continue
            refuse_hooks(block)
            fixed[name] = block.kernel(active=())
            single[block] = to_conv2d(fixed[name])
        net = copied(supernet.model, single)
    return settings.prepared(net), fixed


def _put(net: nn.Module, name: str, kernel: Kernel) -> None:
    """Write a kernel into the convolution of that name."""
    conv = net.get_submodule(name)
    assert isinstance(conv, nn.Conv2d)  # noqa: S101  # put there by `_single_path`
    conv.weight.copy_(kernel.weight)
    if conv.bias is not None:
        conv.bias.copy_(kernel.bias)


def _branch(block: nn.Module, kind: str) -> Branch:
    branch = block.get_submodule(f"branches.{kind}")
    assert isinstance(branch, Branch)  # noqa: S101  # ModuleDict forgets what it holds
    return branch
