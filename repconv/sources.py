"""What a user names on the command line, as something loaded: one loader for all commands."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from .checkpoint import Checkpoint, from_content, is_checkpoint
from .errors import BackendError, CheckpointError, GeometryError, SourceError
from .files import sha256
from .models.zoo import create_model, list_models
from .states import find_state, put_state, read_content, strip_prefix

SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".tar", ".safetensors")
FORMS = (
    f"a weight file ({' '.join(SUFFIXES)}), timm:NAME[@WEIGHTS], torchvision:NAME[@WEIGHTS] or "
    "package.module:factory[@WEIGHTS]"
)


@dataclass(frozen=True)
class Source:
    """A loaded network, in evaluation mode on the CPU.

    name: as the user gave it; path and sha256: of the weight file, None without one; notes: what the user should know
    of how it was read.
    """

    name: str
    path: Path | None
    sha256: str | None
    checkpoint: Checkpoint
    notes: tuple[str, ...] = ()


def open_source(source: str, *, model: str | None = None, state_key: str | None = None) -> Source:
    """Load what `source` names.

    Args:
        source: a repconv checkpoint, a state dict (bare, or wrapped as training scripts do), or a model by name.
        model: for a state dict: a name of `list_models()` or `package.module:factory`.
        state_key: the key in the file under which the weights are.

    Raises:
        SourceError: it names nothing that can be loaded.
        CheckpointError: the file cannot be read, or does not fit the network.
        BackendError: it needs a package that is not installed.
    """
    path = Path(source)
    if path.is_dir():
        raise SourceError(f"{source} is a directory; name the weight file in it")
    if not path.exists() and ":" in source:
        if model is not None:
            raise SourceError(f"--model is for weight files; {source} names its own network")
        return _by_name(source, state_key)
    if not path.exists():
        raise SourceError(f"{source}: no such file; SOURCE is {FORMS}")
    if path.suffix not in SUFFIXES:
        raise SourceError(f"{source}: {path.suffix or 'no suffix'!r} is no known format; SOURCE is {FORMS}")
    content, metadata = read_content(path)
    if is_checkpoint(content, metadata):
        if model is not None:
            raise SourceError(f"{source} is a repconv checkpoint, which describes its own network; leave out --model")
        return Source(source, path, sha256(path), from_content(content, metadata, path))
    if model is None:
        raise SourceError(
            f"{source} holds weights without their network; name it with --model: one of repconv.list_models(), such "
            "as --model irep_resnet18, or --model package.module:factory"
        )
    state, note = find_state(content, path, state_key)
    network = _factory(model)() if ":" in model else _named(model, state)
    notes = (note, _fill(network, state, path, model))
    return Source(source, path, sha256(path), Checkpoint(network.eval(), fused=False), tuple(n for n in notes if n))


def _by_name(source: str, state_key: str | None) -> Source:
    """`timm:`, `torchvision:` or a factory, with `@weights` that are a file or the library's own."""
    name, _, weights = source.partition("@")
    home, _, entry = name.partition(":")
    file = Path(weights) if weights and Path(weights).exists() else None
    own = weights if weights and file is None else None
    if home == "timm":
        network = _timm(entry, own)
    elif home == "torchvision":
        network = _torchvision(entry, own)
    elif own is not None:
        raise SourceError(f"{source}: no weight file {weights}")
    else:
        network = _factory(name)()
    if file is None:
        warning = "no weights named: they are random, or whatever the factory makes"
        return Source(source, None, None, Checkpoint(network.eval(), fused=False), () if own else (warning,))
    content, _ = read_content(file)
    state, note = find_state(content, file, state_key)
    notes = tuple(n for n in (note, _fill(network, state, file, name)) if n)
    return Source(source, file, sha256(file), Checkpoint(network.eval(), fused=False), notes)


def _timm(entry: str, weights: str | None) -> nn.Module:
    try:
        import timm
    except ImportError:
        raise BackendError("timm is not installed; install it with: pip install timm") from None
    if not timm.is_model(entry):
        near = timm.list_models(f"*{entry}*")[:3]
        raise SourceError(f"timm has no model {entry!r}" + (f"; near it: {', '.join(near)}" if near else ""))
    tagged = entry if weights in (None, "pretrained") else f"{entry}.{weights}"
    with _foreign(f"timm:{tagged}"):
        network: nn.Module = timm.create_model(tagged, pretrained=weights is not None)
    return network


def _torchvision(entry: str, weights: str | None) -> nn.Module:
    try:
        from torchvision import models
    except ImportError:
        raise BackendError("torchvision is not installed; install it with: pip install torchvision") from None
    if entry not in models.list_models():
        near = [n for n in models.list_models() if entry in n][:3]
        raise SourceError(f"torchvision has no model {entry!r}" + (f"; near it: {', '.join(near)}" if near else ""))
    with _foreign(f"torchvision:{entry}"):
        network: nn.Module = models.get_model(entry, weights=weights)
    return network


class _Factory:
    """A user's `package.module:factory`, resolved from the working directory."""

    def __init__(self, name: str) -> None:
        self.name = name
        module, _, attribute = name.partition(":")
        with _working_directory(), _foreign(name):
            found: object = importlib.import_module(module)
        for part in attribute.split("."):
            if part not in dir(found):
                known = [n for n in dir(found) if not n.startswith("_")]
                raise SourceError(f"{name}: no {part!r} in it; it has {', '.join(known[:8]) or 'nothing'}")
            found = getattr(found, part)
        self.call = found

    def __call__(self) -> nn.Module:
        if isinstance(self.call, nn.Module):
            return self.call
        if not callable(self.call):
            raise SourceError(f"{self.name} is a {type(self.call).__name__}, expected a function that makes a network")
        with _working_directory(), _foreign(self.name):
            network = self.call()
        if not isinstance(network, nn.Module):
            raise SourceError(f"{self.name} returned a {type(network).__name__}, expected a torch.nn.Module")
        return network


def _factory(name: str) -> _Factory:
    return _Factory(name)


@contextlib.contextmanager
def _working_directory() -> Iterator[None]:
    """Let imports find the user's modules."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)


@contextlib.contextmanager
def _foreign(name: str) -> Iterator[None]:
    """Somebody else's code: what it raises is reported with where, instead of a traceback."""
    try:
        yield
    except Exception as error:  # anything may come out of it
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        at = f" ({Path(trace.tb_frame.f_code.co_filename).name}, line {trace.tb_lineno})" if trace else ""
        raise SourceError(f"{name} failed: {type(error).__name__}: {error}{at}") from error


def _named(name: str, state: Mapping[str, Tensor]) -> nn.Module:
    """A network of this package of the width and number of classes `state` shows, on the meta device until filled."""
    first = next((t for t in state.values() if t.dim() == 4), None)
    head = next((t for key, t in state.items() if key.endswith("fc.weight") and t.dim() == 2), None)
    try:
        with torch.device("meta"):
            return create_model(
                name,
                width=None if first is None else first.shape[0],
                num_classes=None if head is None else head.shape[0],
            )
    except GeometryError as error:
        raise SourceError(f"--model {name}: {error}") from error


def _fill(network: nn.Module, state: Mapping[str, Tensor], path: Path, name: str) -> str:
    """Put `state` into `network`; returns a note. A misfit names the model that would fit better, if one does."""
    stripped, note = strip_prefix(state, list(network.state_dict()))
    try:
        put_state(network, stripped, str(path))
    except CheckpointError as error:
        better = _better_name(state, name)
        hint = f"; the names fit {better}: try --model {better}" if better else ""
        raise CheckpointError(f"{error}{hint}") from None
    return note


def _better_name(state: Mapping[str, Tensor], tried: str) -> str | None:
    """The model of this package whose names `state` has exactly, if there is one other than `tried`."""
    for name in list_models():
        with torch.device("meta"):
            names = list(create_model(name, width=1, num_classes=1).state_dict())  # names depend on neither
        if name != tried and set(strip_prefix(state, names)[0]) == set(names):
            return name
    return None
