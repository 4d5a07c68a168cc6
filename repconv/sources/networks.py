"""Networks in PyTorch as users name them: weight files, and names with or without weights."""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import CheckpointError, GeometryError, SourceError
from ..models.libraries import Factory, create_named, image_shape, is_own_code, parsed
from ..models.zoo import create_model, list_models
from .checkpoint import Checkpoint, from_content, is_checkpoint, own_code_of
from .state_dicts import find_state, put_state, read_content, strip_prefix

SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".tar", ".safetensors")
FIRST = re.compile(r"(?:^|\.)(?:stem|features\.0)\.(?:branches\.3x3\.)?(?:conv\.)?weight$")
"""The weight of a network's first convolution, multi-branch, plain or fused."""

Read = tuple[Checkpoint, tuple[str, ...]]
"""A network, and notes on how it was read."""


def of_weights(path: Path, model: str | None, state_key: str | None) -> Read:
    """A weight file: a repconv checkpoint, or a state dict of the network `model`; arguments, errors: `open_source`."""
    content, metadata = read_content(path)
    if is_checkpoint(content, metadata):
        own_code = own_code_of(content, metadata, path)
        if model is not None and parsed(model)[0] != own_code:
            needs = f"the network of {own_code}" if own_code else "its own network"
            raise SourceError(f"{path} is a repconv checkpoint, which describes {needs}; leave out --model {model}")
        return from_content(content, metadata, path, own_code=model), ()
    if model is None:
        raise SourceError(
            f"{path} holds weights without their network; name it with --model: one of repconv.list_models(), such "
            "as --model irep_resnet18, or, for your own, --model model.py:Net or --model package.module:factory"
        )
    state, note = find_state(content, path, state_key)
    network = create_named(model) if ":" in model else _named(model, state)
    return _checkpoint(network), _said(note, _fill(network, state, path, model))


def describes_itself(text: str) -> bool:
    """Whether a source needs no `model`, so that one `model` can serve another."""
    path = Path(text)
    if path.suffix not in SUFFIXES or not path.is_file():
        return True
    try:
        content, metadata = read_content(path)
        return is_checkpoint(content, metadata) and own_code_of(content, metadata, path) is None
    except CheckpointError:
        return False


def by_name(source: str, state_key: str | None) -> tuple[Path | None, Read]:
    """`timm:`, `torchvision:` or a factory, with `@weights` that are a file or the library's own; the file, if any."""
    name, _, weights = source.partition("@")
    file = Path(weights) if weights and Path(weights).exists() else None
    own = weights if weights and file is None else None
    if own is not None and (is_own_code(name) or Path(own).suffix in SUFFIXES or len(Path(own).parts) > 1):
        raise SourceError(f"{source}: no weight file {weights}")
    network = create_named(name, own)
    if file is None:
        warning = "no weights named: they are random, or whatever the factory makes"
        return None, (_checkpoint(network), () if own else (warning,))
    content, _ = read_content(file)
    state, note = find_state(content, file, state_key)
    classes = None if is_own_code(name) else _classes(network, state)
    if classes is None:
        return file, (_checkpoint(network), _said(note, _fill(network, state, file, name)))
    network = create_named(name, own, {"num_classes": classes})
    told = f"{classes} classes, as its last layer has them"
    return file, (_checkpoint(network), _said(note, told, _fill(network, state, file, name)))


def _classes(network: nn.Module, state: Mapping[str, Tensor]) -> int | None:
    """The number of classes the weights are for, where nothing but that differs from the network; else None."""
    wanted = network.state_dict()
    with contextlib.suppress(CheckpointError):
        found = strip_prefix(state, list(wanted)).state
        changes = {
            (tuple(wanted[name].shape), tuple(tensor.shape))
            for name, tensor in found.items()
            if name in wanted and wanted[name].shape != tensor.shape
        }
        counts = {(before[:1], after[:1]) for before, after in changes}
        if len(counts) == 1 and all(before[1:] == after[1:] and len(before) for before, after in changes):
            return next(iter(counts))[1][0]
    return None


def _said(*notes: str) -> tuple[str, ...]:
    return tuple(note for note in notes if note)


def _checkpoint(network: nn.Module) -> Checkpoint:
    return Checkpoint(model=network.eval(), fused=False, input_shape=image_shape(network))


def _named(name: str, state: Mapping[str, Tensor]) -> nn.Module:
    """A network of this package of the sizes `state` shows, on the meta device until filled."""
    first = next((t for key, t in state.items() if FIRST.search(key) and t.dim() == 4), None)
    head = next((t for key, t in state.items() if key.endswith("fc.weight") and t.dim() == 2), None)
    residual = "resnet" in name
    try:
        with torch.device("meta"):
            return create_model(
                name,
                width=None if first is None else first.shape[0],
                in_channels=None if first is None else first.shape[1],
                num_classes=None if head is None else head.shape[0],
                blocks=_blocks(state, residual=residual),
                stem=("cifar" if first.shape[2:] != (7, 7) else "imagenet") if first is not None and residual else None,
            )
    except GeometryError as error:
        raise SourceError(f"--model {name}: {error}") from error


def _blocks(state: Mapping[str, Tensor], *, residual: bool) -> list[int] | None:
    """Residual units or VGG convolutions a stage, as the names in `state` have it; None if they are other names."""
    pattern = re.compile(r"(?:^|\.)stages\.(\d+)\.(\d+)\." if residual else r"(?:^|\.)features\.(\d+)\.")
    found = sorted({tuple(map(int, m.groups())) for m in map(pattern.search, state) if m})
    if residual:
        stages = [stage for stage, _ in found]
    else:
        # A convolution and its ReLU take two places, the pooling after a stage a third.
        places = [place for (place,) in found]
        steps = [after - before - 2 for before, after in itertools.pairwise(places)]
        stages = [0, *itertools.accumulate(steps)] if places else []
    return [stages.count(stage) for stage in sorted(set(stages))] or None


def _fill(network: nn.Module, state: Mapping[str, Tensor], path: Path, name: str) -> str:
    """Put `state` into `network`; returns a note. A misfit names the model that would fit better, if one does."""
    try:
        stripped = strip_prefix(state, list(network.state_dict()), str(path))
        put_state(network, stripped.state, str(path), stripped.left_out)
    except CheckpointError as error:
        better = _better_name(state, name)
        hint = f"; the names fit {better}: try --model {better}" if better else _arguments_of(name)
        raise CheckpointError(f"{error}{hint}") from None
    return stripped.note


def _arguments_of(name: str) -> str:
    """What to say of a misfit where the network's own code takes arguments."""
    given = [p.name for p in Factory(parsed(name)[0]).parameters] if is_own_code(name) else []
    return f"; {name} takes {', '.join(given)}: give what it was trained with, as --arg KEY=VALUE" if given else ""


def _better_name(state: Mapping[str, Tensor], tried: str) -> str | None:
    """The model of this package whose names `state` has exactly, if there is one other than `tried`."""
    for name in list_models():
        with contextlib.suppress(SourceError):
            names = list(_named(name, state).state_dict())
            if name != tried and set(strip_prefix(state, names).state) == set(names):
                return name
    return None
