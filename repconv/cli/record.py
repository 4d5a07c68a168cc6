"""The JSON a command leaves behind: versioned, with fingerprints and versions."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ..files import sha256, whole_file

_PACKAGES = ("repconv", "torch", "onnx", "onnxruntime", "onnxsim", "numpy")


def versions() -> dict[str, str]:
    """Of Python and the packages results depend on; those not installed are left out."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def file_record(path: Path) -> dict[str, object]:
    """A file's name, size in bytes and SHA-256."""
    return {"path": str(path), "bytes": path.stat().st_size, "sha256": sha256(path)}


def write_json(path: str, schema: str, content: Mapping[str, object]) -> None:
    """Write `content` under its `schema`, with versions.

    Raises:
        OutputError: the file cannot be written.
    """
    text = json.dumps({"schema": schema, "versions": versions(), **content}, indent=1)
    with whole_file(path) as stream:
        stream.write(text.encode() + b"\n")
