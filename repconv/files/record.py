"""What a result is of: fingerprints of files and versions of packages."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from .whole import sha256

_PACKAGES = (
    "repconv", "torch", "torchvision", "timm", "onnx", "onnxruntime", "onnxruntime-gpu", "onnxsim", "numpy", "openvino",
    "nncf", "tensorrt", "tensorrt-rtx",
)  # fmt: skip


def versions() -> dict[str, str]:
    """Of Python and the packages results depend on; those not installed are left out."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
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
    """A file's name, size in bytes and SHA-256."""
    return {"path": str(path), "bytes": path.stat().st_size, "sha256": sha256(path)}
