"""Accuracy of many architectures of one supernet, each as a single-path network.

All candidates share one supernet, so a candidate's folded kernel is a sum of kernels folded once:
`K(m) = K_F + sum_o m_o * s(beta) * s(alpha_o) * K_o`. `KernelBank` folds them; a candidate is that sum written into a
plain network, whose evaluation costs what a plain network costs.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from repconv.algebra.kernels import Kernel, combine
from repconv.blocks.branches import Branch
from repconv.blocks.copies import copied
from repconv.blocks.fold import fold, fuse_blocks, outermost_branches, refuse_hooks, to_conv2d
from repconv.errors import SearchError
from repconv.progress import counted

from .architecture import Architecture
from .supernet import Supernet, evaluating, subnetwork

Correct = Callable[[object, Tensor], Tensor]
"""Whether each answer is right, [n] booleans, of a network's output and the targets."""
Batches = Iterable[tuple[Tensor, Tensor]]
"""Images [n, c, h, w] as the network takes them, and targets [n]; read once a candidate."""


def top_1(output: object, targets: Tensor) -> Tensor:
    """Whether the largest logit of output [n, classes] is that of targets [n].

    Raises:
        SearchError: the output is no tensor; such networks need a metric of their own.
    """
    if not isinstance(output, Tensor):
        raise SearchError(f"top-1 needs logits as one tensor, the network gave {type(output).__name__}; give a metric")
    return output.argmax(1) == targets


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


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What evaluating a population gave: one accuracy an architecture, and where the time went, in seconds.

    fold_s: kernels of all branches; reestimate_s: batch statistics of each candidate, 0 without; write_s: candidates'
    own kernels; run_s: images through them.
    """

    accuracies: tuple[float, ...]
    fold_s: float
    reestimate_s: float
    write_s: float
    run_s: float

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.fold_s + self.reestimate_s + self.write_s + self.run_s


@dataclass(frozen=True)
class _BankBlock:
    """A block's folded kernels: the fixed branches summed, and every searchable one times its gates."""

    fixed: Kernel
    branches: dict[str, Kernel]


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
        blocks: dict[str, _BankBlock] = {}
        single: dict[nn.Module, nn.Module] = {}
        with evaluating(supernet.model), torch.no_grad():
            for name, branch in outermost_branches(supernet.model):
                if name not in supernet.blocks:
                    single[branch] = fold(branch)
                    continue
                block = supernet.blocks[name]
                refuse_hooks(block)
                fixed = block.kernel(active=()).to(dtype=keep)
                folded = {
                    kind: (_branch(block, kind).kernel() * block.gate(kind)).to(dtype=keep)
                    for kind in block.branch_set.searchable
                }
                blocks[name] = _BankBlock(fixed, folded)
                single[block] = to_conv2d(fixed)
            net = copied(supernet.model, single)
        self.net = settings.prepared(net)
        self._blocks = blocks
        self._convolutions = {name: _conv(net, name) for name in blocks}

    @torch.no_grad()
    def write(self, architecture: Architecture) -> nn.Module:
        """`net`, its kernels those of `architecture`; the same module each time.

        Raises:
            SearchError: the architecture is of another network.
        """
        active = architecture.on(self.space).active
        for name, block in self._blocks.items():
            kernel = combine([block.fixed, *(block.branches[kind] for kind in active[name])])
            conv = self._convolutions[name]
            conv.weight.copy_(kernel.weight)
            if conv.bias is not None:
                conv.bias.copy_(kernel.bias)
        return self.net


def single_path(model: nn.Module, architecture: Architecture) -> nn.Module:
    """The slow path: the sub-network of `architecture`, fused as any model is, in float64 and cast once.

    Raises:
        FusionError: as `repconv.fuse`.
    """
    fused, _ = fuse_blocks(subnetwork(model, architecture).eval())
    return fused


def accuracy(net: nn.Module, batches: Batches, settings: EvaluationSettings, correct: Correct = top_1) -> float:
    """The share of right answers of `net`, in evaluation.

    Raises:
        SearchError: no images.
    """
    with torch.inference_mode():
        right = [(correct(net(settings.of(x)), y.to(settings.device)).sum(), len(y)) for x, y in batches]
        hits, seen = sum(int(n) for n, _ in right), sum(n for _, n in right)
    if not seen:
        raise SearchError("there are no images to measure accuracy on; the validation split is empty")
    return hits / seen


def evaluate(
    supernet: Supernet,
    architectures: Sequence[Architecture],
    batches: Batches,
    settings: EvaluationSettings = EvaluationSettings(),  # frozen
    *,
    correct: Correct = top_1,
    reestimation: Batches = (),
    clock: Callable[[], float] = time.perf_counter,
) -> Evaluation:
    """The accuracy of every architecture, as a single-path network with the supernet's weights.

    Args:
        supernet: not changed.
        architectures: any of its space.
        batches: validation images and targets.
        settings: dtype and memory format.
        correct: which answers are right.
        reestimation: training images: where there are any, every candidate's running statistics are replaced by its
            own averages over them before it is folded, which costs a multi-branch forward pass each.
        clock: seconds.

    Raises:
        SearchError: an architecture of another network, or no images.
    """
    settled = list(reestimation)
    start = clock()
    bank = None if settled else KernelBank(supernet, settings)
    times = {"fold": clock() - start, "reestimate": 0.0, "write": 0.0, "run": 0.0}
    accuracies = []
    for architecture in counted(architectures, "candidates"):
        start = clock()
        if bank is not None:
            net = bank.write(architecture)
        else:
            # Its statistics are its own, so nothing folded for another candidate holds for it.
            with own_statistics(supernet, architecture, settled):
                times["reestimate"] += clock() - start
                start = clock()
                net = settings.prepared(single_path(supernet.model, architecture))
        times["write"] += clock() - start
        start = clock()
        accuracies.append(accuracy(net, batches, settings, correct))
        times["run"] += clock() - start
    return Evaluation(
        accuracies=tuple(accuracies),
        fold_s=times["fold"],
        reestimate_s=times["reestimate"],
        write_s=times["write"],
        run_s=times["run"],
    )


@contextmanager
def own_statistics(supernet: Supernet, architecture: Architecture, batches: Batches) -> Iterator[None]:
    """For as long as it is entered, the running statistics are averages over `batches` run at `architecture`.

    Afterwards they are what they were.
    """
    norms = [m for m in supernet.model.modules() if isinstance(m, nn.BatchNorm2d) and m.running_mean is not None]
    before = [(norm, norm.momentum, copy.deepcopy(dict(norm.named_buffers()))) for norm in norms]
    modes = [(module, module.training) for module in supernet.model.modules()]
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a cumulative average
            norm.train()
        with torch.no_grad():
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


def _branch(block: nn.Module, kind: str) -> Branch:
    branch = block.get_submodule(f"branches.{kind}")
    assert isinstance(branch, Branch)  # noqa: S101  # ModuleDict forgets what it holds
    return branch


def _conv(net: nn.Module, name: str) -> nn.Conv2d:
    conv = net.get_submodule(name)
    assert isinstance(conv, nn.Conv2d)  # noqa: S101  # put there by KernelBank
    return conv
