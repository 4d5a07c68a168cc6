"""The network a search or a retraining works on, from its name and the task."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from repconv import create_model, list_models
from repconv.blocks.block import RepBlock, set_statistics
from repconv.blocks.statistics.sampling import Sampling
from repconv.errors import SearchError
from repconv.expansion.expand import expand
from repconv.models.libraries import is_own_code
from repconv.models.zoo import SETS
from repconv.sources.source import open_source

from .fitting import require_fitting
from .task import Task

USUAL = SETS["irep"]
"""What a plain network is expanded with unless told otherwise: the paper's space."""


def build_network(
    name: str,
    task: Task,
    *,
    width: int = 0,
    blocks: Sequence[int] = (),
    fixed: Sequence[str] = (),
    branches: Sequence[str] = (),
) -> nn.Module:
    """A multi-branch network for `task`, in training mode, its new weights drawn from torch's generator.

    Args:
        name: one of `repconv.list_models()`, which gets the task's channels and classes; or what `open_source` takes.
            A plain network of trained weights is expanded so that it computes the same.
        task: what it is to learn.
        width: channels of the first stage of one of our own, 0 for its own.
        blocks: units a stage of one of our own, empty for its own.
        fixed: kinds of branches without a gate, empty for the network's own, or `3x3` for a plain one.
        branches: searchable kinds, empty for the network's own, or the paper's nine for a plain one.

    Raises:
        SearchError: settings the network cannot have.
        SourceError, CheckpointError, GeometryError, BackendError: as `open_source` and `expand`.
    """
    if name in list_models():
        usual = (USUAL.fixed, USUAL.searchable) if "_" not in name else ((), ())
        return named_network(
            name,
            task,
            width=width,
            blocks=blocks,
            fixed=tuple(fixed) or usual[0],
            branches=tuple(branches) or usual[1],
        )
    if width or blocks:
        raise SearchError(
            f"width={width} and blocks={','.join(map(str, blocks))} are for the networks of repconv.list_models(), not "
            f"for {name}; a preset may have set them: --set width=0 --set blocks= leaves them out"
        )
    model = open_source(name).checkpoint.model
    require_fitting(task, model, name)
    if any(isinstance(module, RepBlock) for module in model.modules()):
        if fixed or branches:
            raise SearchError(f"{name} has blocks already; leave out fixed and branches, or name a plain network")
        return model.train()
    example = example_images(task)
    return expand(
        model,
        fixed=tuple(fixed) or USUAL.fixed,
        branches=tuple(branches) or USUAL.searchable,
        preserve=True,
        example_inputs=example,
    ).train()


def named_network(
    name: str,
    task: Task,
    *,
    width: int = 0,
    blocks: Sequence[int] = (),
    fixed: Sequence[str] = (),
    branches: Sequence[str] = (),
) -> nn.Module:
    """A network of `repconv.list_models()` for `task`, plain where its name is; arguments as of `build_network`.

    Raises:
        GeometryError: an unknown name, or arguments the network cannot have.
        SearchError: it does not fit the task.
    """
    network = create_model(
        name,
        num_classes=len(task.class_names),
        in_channels=task.input_shape[0],
        width=width or None,
        blocks=tuple(blocks) or None,
        fixed=tuple(fixed) or None,
        branches=tuple(branches) or None,
    )
    require_fitting(task, network, name)
    return network


def is_own_network(name: str) -> bool:
    """Whether making the network of this name runs code of the user's."""
    return name not in list_models() and not Path(name).exists() and is_own_code(name.partition("@")[0])


def example_images(task: Task, count: int = 64) -> Tensor:
    """The first training images as the network gets them, [n, c, h, w]."""
    return torch.stack([task.normalize(task.prepare(task.train[i][0])) for i in range(min(count, len(task.train)))])


def set_positions(model: nn.Module, positions: int) -> None:
    """Batch statistics of every block from at most `positions` a channel (see `Sampling`); 0: branch by branch."""
    set_statistics(model, Sampling(positions) if positions else "full")
