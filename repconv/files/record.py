"""What a result is of: fingerprints of files and versions of packages."""

from __future__ import annotations

import platform
import re
from functools import cache
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from .whole import sha256

_BESIDE = ("repconv", "onnxruntime-gpu")
"""The package itself, and what may stand in place of one it requires."""


@cache
def _packages() -> tuple[str, ...]:
    """What results may depend on: all that the package requires, for any use but its development."""
    asked = (line for line in requires("repconv") or () if 'extra == "dev"' not in line)
    return tuple(dict.fromkeys([*_BESIDE, *(re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in asked)]))


def versions() -> dict[str, str]:
    """Of Python and the packages results may depend on; those not installed are left out."""
    found = {"python": platform.python_version()}
    for name in _packages():
        known = installed(name)
        if known is not None:
            found[name] = known
    return found


def installed(name: str) -> str | None:
    """The version of a package, None if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def file_record(path: Path) -> dict[str, object]:
    """Name, size in bytes and SHA-256 of a file, or of a folder with all in it."""
    files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
    return {"path": str(path), "bytes": sum(file.stat().st_size for file in files), "sha256": sha256(path)}
