"""The GPU: whether there is one, what it is, and what the tests that need one say."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree

import torch

from repconv.errors import BackendError, VerificationError
from repconv.export.doctor import PYTORCH_GPU
from repconv.export.runtimes.engine_runtime import gpu_here
from repconv.files.held import temporary_folder

from ...harness.machine.gpu import gpu_state, visible_gpu
from ..common import ROOT
from .running import Rows

DRIVER = "libcuda.so.1"
"""What NVIDIA's driver brings, on Linux."""


def lacking() -> str | None:
    """What is missing for anything to run on a GPU, in one sentence; None where nothing is."""
    if torch.cuda.is_available():
        return None
    if torch.version.cuda is None:
        return f"PyTorch {torch.__version__} is built without CUDA; {PYTORCH_GPU}"
    try:
        ctypes.CDLL(DRIVER)
    except OSError:
        return f"no NVIDIA driver is installed ({DRIVER} is not there), so PyTorch sees no GPU; {PYTORCH_GPU}"
    return (
        f"an NVIDIA driver is installed, but PyTorch {torch.__version__} sees no GPU: there is none, it is hidden "
        f"(CUDA_VISIBLE_DEVICES), or the driver is too old for CUDA {torch.version.cuda}"
    )


def described(device: str) -> Rows:
    """One row: name, compute capability, memory, versions and clocks of a GPU; of a processor that it is one."""
    here = gpu_here() if device == "cuda" else None
    if here is None:
        yield {"device": device, "torch": torch.__version__}
        return
    state = gpu_state(visible_gpu())
    yield {
        "device": device,
        **here,
        "memory_bytes": torch.cuda.get_device_properties(0).total_memory,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "state": None if state is None else state.to_dict(),
    }


def tested(_: str) -> Rows:
    """One row of what pytest says of the tests marked `gpu`, but for those of engines, which are pieces of their own.

    Raises:
        BackendError: pytest is not installed.
        VerificationError: tests failed.
    """
    pytest = Path(sys.executable).with_name("pytest")
    if not pytest.exists():
        raise BackendError("pytest is not installed beside this Python; make .venv/bin/.installed-dev")
    with temporary_folder() as folder:
        report = folder / "gpu.xml"
        asked = ("-m", "gpu", "-k", "not test_engines", "--junit-xml", str(report), "-q")
        done = subprocess.run([pytest, *asked], cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S603  # our own
        if not report.exists():
            raise VerificationError(f"pytest wrote no report: {done.stdout[-300:]}{done.stderr[-300:]}")
        row = counted_tests(report.read_text(encoding="utf-8"))
    yield row
    if row["failed"]:
        raise VerificationError(f"failed: {', '.join(map(str, row['failed']))}")  # type: ignore[call-overload]


def counted_tests(report: str) -> Mapping[str, object]:
    """What a report in JUnit's XML says: `passed` tests, names of those that `failed`, and reasons of the `skipped`."""
    cases = list(ElementTree.fromstring(report).iter("testcase"))  # noqa: S314  # of our own run
    failed = [str(case.get("name")) for case in cases if {"failure", "error"} & {part.tag for part in case}]
    skipped = Counter(str(part.get("message")) for case in cases for part in case.iter("skipped"))
    passed = len(cases) - len(failed) - sum(skipped.values())
    return {"passed": passed, "failed": failed, "skipped": dict(skipped)}
