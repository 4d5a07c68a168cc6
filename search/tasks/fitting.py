"""Whether images are as their task says, and whether a network takes them and answers as the task wants."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from repconv.errors import SearchError, first_line

from ..supernet.evaluate import in_words, judged
from ..supernet.supernet import evaluating
from .task import Task


def require_fitting(task: Task, model: nn.Module, name: str) -> None:
    """Insist on it, by the first two training images.

    Args:
        task: of any loss; only where it is cross entropy is it known what a network has to answer.
        model: on the CPU; it is run in evaluation mode.
        name: its own.

    Raises:
        SearchError: an image has another shape than `input_shape` or no label of a class, the network does not take it,
            or it answers otherwise than with a number a class, or more; `correct` makes nothing of that.
    """
    images, labels = zip(*(task.labelled(task.train, i % len(task.train)) for i in range(2)), strict=True)
    with torch.random.fork_rng([]), torch.no_grad(), evaluating(model):
        _shaped(task, task.augment, images)
        seen = _shaped(task, task.prepare, images)
        try:
            answer = model(seen)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise SearchError(
                f"{name} does not take the task's images of {_by(task.input_shape)}: {first_line(error)}"
            ) from error
    if task.loss is functional.cross_entropy:
        _require_classes(answer, len(task.class_names), name)
    judged(task.correct, answer, torch.tensor(labels))


def _require_classes(answer: object, classes: int, name: str) -> None:
    if not isinstance(answer, Tensor) or answer.dim() != 2:
        raise SearchError(
            f"{name} gives {in_words(answer)} of two images, and cross entropy takes [2, {classes}]; give the task a "
            "loss"
        )
    if answer.shape[1] < classes:
        raise SearchError(
            f"{name} gives {answer.shape[1]} numbers an image, and the task has {classes} classes; its head has to "
            f"give {classes}"
        )


def _shaped(task: Task, way: Callable[[Tensor], Tensor], images: Sequence[Tensor]) -> Tensor:
    """The images as the network gets them, [n, c, h, w]."""
    seen = [task.normalize(way(image)) for image in images]
    for image, made in zip(images, seen, strict=True):
        if tuple(made.shape) != tuple(task.input_shape):
            raise SearchError(
                f"the task's input_shape is {_by(task.input_shape)}, and an image of {_by(image.shape)} becomes "
                f"{_by(made.shape)}; `augment` and `prepare` have to give that shape, or it is another"
            )
    return torch.stack(seen)


def _by(shape: torch.Size | tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
