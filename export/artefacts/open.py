"""Whatever a user names, opened as something that runs, in its own runtime."""

from __future__ import annotations

from pathlib import Path

from repconv.errors import SourceError
from repconv.sources.networks import describes_itself
from repconv.sources.source import FORMS, READERS, open_source

from ..targets import TARGETS, of_suffix
from .artefact import Artefact, artefact_of
from .runtime import runtime_of


def open_artefact(text: str, *, model: str | None = None, state_key: str | None = None) -> Artefact:
    """What `text` names: anything `open_source` takes, or a file that a target's runtime runs.

    Args:
        text: a file or a name.
        model: for a state dict: a name of `list_models()` or `package.module:factory`.
        state_key: the key in the file under which the weights are.

    Raises:
        SourceError: it names nothing that runs.
        CheckpointError: the file cannot be read, or does not fit the network.
        BackendError: it needs a package that is not installed, or a GPU.
    """
    path = Path(text)
    target = None if path.suffix in READERS else of_suffix(path.suffix)
    if target is None:
        return artefact_of(open_source(text, model=model, state_key=state_key))
    if path.is_dir() and not target.folder:
        raise SourceError(f"{text} is a directory; name a file")
    if not path.exists():
        files = " ".join(dict.fromkeys(row.suffix for row in TARGETS.values() if row.suffix not in READERS))
        raise SourceError(f"{text}: no such file; SOURCE is a file of a runtime ({files}), {FORMS}")
    return runtime_of(target).open(text, path)


def open_both(a: str, b: str, *, model: str | None = None, state_key: str | None = None) -> tuple[Artefact, Artefact]:
    """Two artefacts; `model` is for whichever of them does not bring its own network; errors as `open_artefact`."""
    alone = {text: describes_itself(text) for text in (a, b)}
    if model is not None and all(alone.values()):
        raise SourceError("--model names code that neither A nor B needs: both bring their own network")
    first, second = (open_artefact(text, model=None if alone[text] else model, state_key=state_key) for text in (a, b))
    return first, second
