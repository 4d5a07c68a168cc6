"""Which backends work on this machine, and what would make the others work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

from repconv.files.record import installed

from .engines.builder import INSTALL, probe_engines

PYTORCH_GPU = "pip install torch with CUDA (https://pytorch.org/get-started), on a machine with an NVIDIA GPU"


@dataclass(frozen=True)
class Backend:
    """One backend: whether it works, its version, what it runs or builds for, and else the line that mends it."""

    name: str
    works: bool
    version: str | None
    devices: tuple[str, ...]
    said: str
    remedy: str | None = None

    def to_dict(self) -> dict[str, object]:
        """Plain containers for JSON."""
        return asdict(self)


def backends() -> list[Backend]:
    """Every backend, tried, not only looked up."""
    return [look() for look in (_torch, _onnxruntime, _openvino, _nncf, _pillow, _rtx, _tensorrt)]


def _torch() -> Backend:
    import torch

    devices = ["CPU"] + [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    said = "reference of every verification" if len(devices) > 1 else "reference of every verification; sees no GPU"
    return Backend("PyTorch", True, torch.__version__, tuple(devices), said)


def _onnxruntime() -> Backend:
    import onnxruntime

    providers = tuple(p.removesuffix("ExecutionProvider") for p in onnxruntime.get_available_providers())
    return Backend("onnxruntime", True, onnxruntime.__version__, providers, "runs ONNX files and quantises them")


def _optional(name: str, package: str, install: str, use: str, tried: Callable[[], tuple[str, ...]]) -> Backend:
    known = installed(package)
    if known is None:
        return Backend(name, False, None, (), f"not installed; {use}", install)
    try:
        devices = tried()
    except Exception as error:  # noqa: BLE001  # a damaged installation raises anything
        said = f"installed, but fails: {next(iter(str(error).splitlines()), type(error).__name__)}"
        return Backend(name, False, known, (), said, f"{install} --force-reinstall")
    return Backend(name, True, known, devices, use)


def _openvino() -> Backend:
    def devices() -> tuple[str, ...]:
        import openvino

        core = openvino.Core()
        found = []
        for device in core.available_devices:
            able = [c for c in core.get_property(device, "OPTIMIZATION_CAPABILITIES") if c in ("FP16", "BF16", "INT8")]
            found.append(f"{device} ({', '.join(sorted(able))})")
        return tuple(found)

    return _optional("OpenVINO", "openvino", "pip install openvino", "builds and runs OpenVINO IR", devices)


def _nncf() -> Backend:
    return _optional("NNCF", "nncf", "pip install nncf", "quantises OpenVINO IR to int8", tuple)


def _pillow() -> Backend:
    def formats() -> tuple[str, ...]:
        from PIL import features

        return tuple(name for name in ("jpg", "webp") if features.check(name))

    return _optional("Pillow", "pillow", "pip install pillow", "reads image folders", formats)


def _rtx() -> Backend:
    return _engines("TensorRT-RTX", "tensorrt-rtx", "builds engines ahead of time, with no GPU")


def _tensorrt() -> Backend:
    return _engines("TensorRT", "tensorrt", "builds engines for the GPU of this machine")


def _engines(name: str, target: str, use: str) -> Backend:
    found = probe_engines(target)
    if found.problem is None:
        return Backend(name, True, found.version, found.capabilities, use)
    if found.missing:
        return Backend(name, False, None, (), f"not installed; {use}", INSTALL[target])
    remedy = "install the NVIDIA driver, on a machine with an NVIDIA GPU" if target == "tensorrt" else INSTALL[target]
    return Backend(name, False, installed(target), (), f"installed, but cannot build: {found.problem}", remedy)
