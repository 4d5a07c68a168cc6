"""Accuracy of many architectures of one supernet, each as a single-path network.

Its statistics are the supernet's, or its own; see `bank`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from repconv.errors import SearchError
from repconv.progress import counted

from .architecture import Architecture
from .bank import Batches, EvaluationSettings, KernelBank, SettledBank
from .supernet import Supernet

Correct = Callable[[object, Tensor], Tensor]
"""Whether each answer is right, [n] booleans, of a network's output and the targets."""


def top_1(output: object, targets: Tensor) -> Tensor:
    """Whether the largest logit of output [n, classes] is that of targets [n].

    Raises:
        SearchError: the output is no tensor; such networks need a metric of their own.
    """
    if not isinstance(output, Tensor):
        raise SearchError(f"top-1 needs logits as one tensor, the network gave {type(output).__name__}; give a metric")
    return output.argmax(1) == targets


def in_words(value: object) -> str:
    """What kind of value that is, a tensor with its shape."""
    return f"a tensor {list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def judged(correct: Correct, output: object, targets: Tensor) -> Tensor:
    """Whether each answer is right, [n].

    Raises:
        SearchError: `correct` says something else.
    """
    found: object = correct(output, targets)
    if not isinstance(found, Tensor) or found.numel() != len(targets):
        raise SearchError(
            f"the task's `correct` gives {in_words(found)} for {len(targets)} images; expected a tensor "
            f"[{len(targets)}], true where the answer is right"
        )
    return found


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


def accuracy(net: nn.Module, batches: Batches, settings: EvaluationSettings, correct: Correct = top_1) -> float:
    """The share of right answers of `net`, in evaluation.

    Raises:
        SearchError: no images, or `correct` does not say of each whether it is right.
    """
    with torch.inference_mode():
        right = [(judged(correct, net(settings.of(x)), y.to(settings.device)).sum(), len(y)) for x, y in batches]
        hits, seen = sum(int(n) for n, _ in right), sum(n for _, n in right)
    if not seen:
        raise SearchError("there are no images to measure accuracy on; the validation split is empty")
    return hits / seen


def evaluate(
    supernet: Supernet,
    architectures: Sequence[Architecture],
    batches: Batches,
    settings: EvaluationSettings = EvaluationSettings(),  # noqa: B008  # frozen
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
    bank = SettledBank(supernet, settled, settings) if settled else KernelBank(supernet, settings)
    times = {"fold": clock() - start, "reestimate": 0.0, "write": 0.0, "run": 0.0}
    accuracies = []
    for architecture in counted(architectures, "candidates"):
        start = clock()
        with bank.settled(architecture):
            times["reestimate"] += clock() - start
            start = clock()
            net = bank.write(architecture)
            times["write"] += clock() - start
        start = clock()
        accuracies.append(accuracy(net, batches, settings, correct))
        times["run"] += clock() - start
    return Evaluation(
        accuracies=tuple(accuracies),
        fold_s=times["fold"],
        reestimate_s=times["reestimate"] if settled else 0.0,
        write_s=times["write"],
        run_s=times["run"],
    )
