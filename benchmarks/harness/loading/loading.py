"""Which function loads a form in which runtime; each runtime is imported where it is used."""

from __future__ import annotations

from repconv.export.artefacts.loaded import How, Job, Loaded


def load(loader: str, job: Job, how: How) -> Loaded:
    """The form in the runtime of that name, see `Backend.loader`."""
    if loader in ("torch", "torch.compile"):
        from .torch_loading import load_torch, without_tf32

        without_tf32()
        return load_torch(job, how, compiled=loader == "torch.compile")
    if loader in ("onnxruntime", "onnxruntime-tensorrt"):
        from .onnxruntime_loading import load_onnxruntime

        return load_onnxruntime(job, how, tensorrt=loader == "onnxruntime-tensorrt")
    if loader == "openvino":
        from .openvino_loading import load_openvino

        return load_openvino(job, how)
    from .engine_loading import load_engine

    return load_engine(job, how)


def import_runtime(loader: str) -> None:
    """Import what `load` will, without running anything.

    Raises:
        ImportError, or whatever a damaged installation raises.
    """
    if loader in ("torch", "torch.compile"):
        from . import torch_loading as _torch_loading  # noqa: F401
    elif loader in ("onnxruntime", "onnxruntime-tensorrt"):
        from . import onnxruntime_loading as _onnxruntime_loading  # noqa: F401
    elif loader == "openvino":
        import openvino as _openvino  # noqa: F401

        from . import openvino_loading as _openvino_loading  # noqa: F401
    else:
        from . import engine_loading as _engine_loading  # noqa: F401
