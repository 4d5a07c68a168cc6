"""Whatever a user names, opened as something that runs, in its own runtime."""

from __future__ import annotations

from pathlib import Path

from repconv.errors import SourceError
from repconv.models.spec import ModelSpec
from repconv.sources.source import FORMS, open_source

from ..runtimes.compiled import engine_artefact, openvino_artefact
from .artefact import PYTORCH, Artefact, Input, dtype_of, module_run, module_trace, onnx_artefact, program_artefact

FILES = (".onnx", ".pt2", ".xml", ".engine")
"""Suffixes of files that runtimes run."""


def open_artefact(text: str, *, model: str | None = None, state_key: str | None = None) -> Artefact:
    """What `text` names: a file of a runtime (one of `FILES`), or anything `open_source` takes.

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
    if path.suffix in FILES:
        if path.is_dir():
            raise SourceError(f"{text} is a directory; name a file")
        if not path.exists():
            raise SourceError(f"{text}: no such file; SOURCE is an .onnx file, a .pt2 program, {FORMS}")
        return _of_file(text, path)
    source = open_source(text, model=model, state_key=state_key)
    network = source.checkpoint.model
    own = isinstance(getattr(network, "spec", None), ModelSpec)
    channels = source.checkpoint.input_shape[0] if source.checkpoint.input_shape else None
    shape = (None, channels, None, None) if own else None
    return Artefact(
        text,
        PYTORCH,
        module_run(network),
        module_trace(network),
        (Input("input", dtype_of(network), shape),),
        network,
        source.checkpoint.input_shape,
        source.path,
        source.sha256,
        source.notes,
    )


def _of_file(text: str, path: Path) -> Artefact:
    if path.suffix == ".onnx":
        return onnx_artefact(text, path)
    if path.suffix == ".pt2":
        return program_artefact(text, path)
    return openvino_artefact(text, path) if path.suffix == ".xml" else engine_artefact(text, path)
