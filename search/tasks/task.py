"""`Task`: what a network is to learn, from what, and how an answer is judged."""

from __future__ import annotations

import multiprocessing
import operator
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any, final

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader

from repconv.errors import SearchError
from repconv.files.held import temporary_folder
from repconv.sources.checkpoint import Normalization

from ..supernet.evaluate import Correct, in_words, top_1
from .images import LabelledImages

_PRIME = 1_000_003


@dataclass(frozen=True, eq=False, kw_only=True)
class Task:
    """Images and how they are used. A user's own `package.module:factory` returns one.

    train, test: labelled images, test None where there are none; the test images are looked at once, at the end of
    retraining. input_shape: (c, h, w) as the network gets them. augment, prepare: an image uint8 [c, h, w] to the
    network's size, in training (drawing from torch's generator) and in evaluation. loss: of the network's output and
    targets [n]. correct: which answers are right.
    """

    train: LabelledImages
    test: LabelledImages | None
    class_names: tuple[str, ...]
    input_shape: tuple[int, int, int]
    normalization: Normalization
    augment: Callable[[Tensor], Tensor]
    prepare: Callable[[Tensor], Tensor]
    loss: Callable[[Any, Tensor], Tensor] = functional.cross_entropy
    correct: Correct = top_1

    def labelled(self, images: LabelledImages, position: int) -> tuple[Tensor, Any]:
        """One of its images and the target, which where the loss is cross entropy is the number of a class.

        Raises:
            SearchError: it is not.
        """
        image, label = images[position]
        classes = len(self.class_names)
        if self.loss is functional.cross_entropy and not _is_class(label, classes):
            raise SearchError(
                f"image {position} has the label {label!r}, and class_names names {classes} classes: expected a whole "
                f"number from 0 to {classes - 1}; or give the task a loss that takes it"
            )
        return image, label

    def loss_of(self, output: object, targets: Tensor) -> Tensor:
        """The loss, one number.

        Raises:
            SearchError: it is something else.
        """
        found: object = self.loss(output, targets)
        if not isinstance(found, Tensor) or found.numel() != 1:
            raise SearchError(
                f"the task's loss gives {in_words(found)} for {len(targets)} images; expected a tensor of one number, "
                "their mean"
            )
        return found

    def normalize(self, image: Tensor) -> Tensor:
        """uint8 [c, h, w] -> float32 with the training images' mean 0 and deviation 1."""
        mean, std = self._normalizing
        return (image.float() / 255 - mean) / std

    @cached_property
    def _normalizing(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation, [c, 1, 1]."""
        mean, std = (torch.tensor(v)[:, None, None] for v in (self.normalization.mean, self.normalization.std))
        return mean, std


def _is_class(label: Any, classes: int) -> bool:  # noqa: ANN401  # whatever the user's images give
    try:
        return 0 <= operator.index(label) < classes
    except TypeError:
        return False


@dataclass(frozen=True)
class Split:
    """Positions in a task's training images: those to learn from, and those held out to judge architectures."""

    train: tuple[int, ...]
    validation: tuple[int, ...]


def halves(positions: Sequence[int]) -> tuple[Sequence[int], Sequence[int]]:
    """The first half, the larger one of an odd number, and the rest."""
    middle = -(-len(positions) // 2)
    return positions[:middle], positions[middle:]


def split(count: int, share: float, seed: int, limit: int = 0) -> Split:
    """A random `share` of `count` images held out.

    Args:
        count: of training images.
        share: held out, of all that are used.
        seed: another one holds out others.
        limit: images to use in all, 0 for every one.

    Raises:
        SearchError: one of the two would be empty.
    """
    used = min(limit, count) if limit else count
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:used].tolist()
    held_out = round(share * used)
    if not 0 < held_out < used:
        raise SearchError(
            f"a validation share of {share} of {used} images leaves {used - held_out} to learn from and {held_out} to "
            "judge by; both need some"
        )
    return Split(tuple(order[held_out:]), tuple(order[:held_out]))


@final
class _Keyed:
    """Training images by (epoch, position): what a sample looks like depends on these and the seed alone.

    So it does not matter which process draws it, in what order, or after how many interruptions.
    """

    def __init__(
        self, task: Task, images: LabelledImages, *, seed: int, also: Callable[[Tensor], Tensor] | None
    ) -> None:
        self.task, self.images, self.seed, self.also = task, images, seed, also

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        epoch, position = key
        image, label = self.task.labelled(self.images, position)
        before = torch.random.get_rng_state()
        torch.default_generator.manual_seed(((self.seed * _PRIME + epoch) * _PRIME + position) % 2**63)
        try:
            seen = self.task.normalize(self.task.augment(image))
            return (seen if self.also is None else self.also(seen)), label
        finally:
            torch.random.set_rng_state(before)


def epoch_order(positions: Sequence[int], seed: int, epoch: int) -> list[int]:
    """The order in which an epoch goes through `positions`: a function of seed and epoch alone."""
    generator = torch.Generator().manual_seed((seed * _PRIME + epoch) % 2**63)
    return [positions[i] for i in torch.randperm(len(positions), generator=generator).tolist()]


def training_batches(
    task: Task,
    positions: Sequence[int],
    *,
    batch: int,
    seed: int,
    epoch: int,
    first: int = 0,
    workers: int = 0,
    also: Callable[[Tensor], Tensor] | None = None,
    images: range | None = None,
    steps: int | None = None,
) -> Generator[tuple[Tensor, Tensor]]:
    """An epoch's whole batches from the `first` on: images [batch, c, h, w] and targets [batch].

    `also` is applied to normalised images (cutout). The rest that fills no batch is left out, as BN wants. `images`:
    which of each batch, by their place in it; None is all. `steps`: how many batches; more than the images fill go
    through them again, in another order and as they look in another epoch. None is as many as they fill once.
    """
    steps = len(positions) // batch if steps is None else steps
    passes = max(1, -(-steps * batch // len(positions)))
    numbers = [passes * epoch + number for number in range(passes)]
    order = [(number, position) for number in numbers for position in epoch_order(positions, seed, number)]
    here = range(batch) if images is None else images
    keys = [[order[start + i] for i in here] for start in range(0, steps * batch, batch)]
    loader: DataLoader[Any] = DataLoader(
        _Keyed(task=task, images=task.train, seed=seed, also=also),  # type: ignore[arg-type]  # a map-style dataset in all but its base class
        batch_sampler=keys[first:],
        num_workers=workers,
        generator=torch.Generator(),  # else it would draw a seed from torch's own
    )
    with _folder_of(workers):
        read = iter(loader)
        try:
            yield from ((x, y) for x, y in read)
        finally:
            _end_workers(read)


def _end_workers(read: object) -> None:
    """End the processes that load; one that was killed meanwhile is missed by nobody, or the error is under way."""
    end = getattr(read, "_shutdown_workers", None)  # else left to `__del__`, which prints what is raised there
    if end is not None:
        with suppress(RuntimeError):  # of torch's handler of SIGCHLD
            end()


@contextmanager
def _folder_of(workers: int) -> Iterator[None]:
    """One folder for what Python puts into one of each worker's, which stays where that is killed."""
    # Workers inherit what it says.
    told: dict[str, object] = multiprocessing.current_process()._config  # type: ignore[attr-defined]  # noqa: SLF001
    if not workers or told.get("tempdir") is not None:
        yield
        return
    with temporary_folder() as folder:
        told["tempdir"] = str(folder)
        try:
            yield
        finally:
            told["tempdir"] = None


@final
class EvaluationBatches:
    """Images without augmentation in whole order, again and again; small ones are kept as they come out."""

    def __init__(
        self, task: Task, images: LabelledImages, positions: Sequence[int], *, batch: int, keep_bytes: float
    ) -> None:
        self.task, self.images, self.positions, self.batch = task, images, positions, batch
        c, h, w = task.input_shape
        self._kept: list[tuple[Tensor, Tensor]] | None = [] if 4 * c * h * w * len(positions) <= keep_bytes else None

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Images [n, c, h, w] and targets [n]."""
        if self._kept:
            yield from self._kept
            return
        kept = []
        for start in range(0, len(self.positions), self.batch):
            pairs = [self.task.labelled(self.images, p) for p in self.positions[start : start + self.batch]]
            x = torch.stack([self.task.normalize(self.task.prepare(image)) for image, _ in pairs])
            one = (x, torch.tensor([label for _, label in pairs]))
            if self._kept is not None:
                kept.append(one)
            yield one
        self._kept = kept or None
