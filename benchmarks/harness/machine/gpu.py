"""What NVIDIA's management library says of the GPU: name, driver, clocks, power. Without it, or a GPU, nothing."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

CLOCK_RANGE = 0.05
"""Range of the clock over its largest value that is told."""

REASONS = {
    0x0000000000000004: "the power limit", 0x0000000000000008: "hardware slow-down", 0x0000000000000020: "heat",
    0x0000000000000040: "heat (hardware)", 0x0000000000000080: "the power brake",
}  # fmt: skip
"""Bits of nvmlDeviceGetCurrentClocksEventReasons that slow a GPU down (NVML API reference)."""


@dataclass(frozen=True, kw_only=True)
class GpuState:
    """One look at the GPU.

    name, driver; sm_mhz, memory_mhz: clocks now; sm_max_mhz: the most it can; power_w, power_limit_w; temperature_c;
    others: processes on it besides those given; slowed_by: why the clock is held down, in words.
    """

    name: str
    driver: str
    sm_mhz: int
    memory_mhz: int
    sm_max_mhz: int
    power_w: float
    power_limit_w: float
    temperature_c: int
    others: int
    slowed_by: tuple[str, ...]

    def to_dict(self) -> dict[str, object]:
        """Plain containers for JSON."""
        return asdict(self)


def gpu_state(index: int = 0, own: Sequence[int] = ()) -> GpuState | None:
    """A look at the GPU of that index; None without nvidia-ml-py, a driver or a GPU.

    Args:
        index: as the driver counts.
        own: process ids that belong to the measurement.
    """
    try:
        import pynvml
    except ImportError:
        return None
    nvml: Any = pynvml
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return None
    try:
        device = nvml.nvmlDeviceGetHandleByIndex(index)
        bits = 0
        with contextlib.suppress(nvml.NVMLError):
            bits = nvml.nvmlDeviceGetCurrentClocksEventReasons(device)
        running = []
        with contextlib.suppress(nvml.NVMLError):
            running = [p.pid for p in nvml.nvmlDeviceGetComputeRunningProcesses(device)]
        return GpuState(
            name=str(nvml.nvmlDeviceGetName(device)),
            driver=str(nvml.nvmlSystemGetDriverVersion()),
            sm_mhz=int(nvml.nvmlDeviceGetClockInfo(device, nvml.NVML_CLOCK_SM)),
            memory_mhz=int(nvml.nvmlDeviceGetClockInfo(device, nvml.NVML_CLOCK_MEM)),
            sm_max_mhz=int(nvml.nvmlDeviceGetMaxClockInfo(device, nvml.NVML_CLOCK_SM)),
            power_w=nvml.nvmlDeviceGetPowerUsage(device) / 1e3,
            power_limit_w=nvml.nvmlDeviceGetPowerManagementLimit(device) / 1e3,
            temperature_c=int(nvml.nvmlDeviceGetTemperature(device, nvml.NVML_TEMPERATURE_GPU)),
            others=len(set(running) - set(own)),
            slowed_by=tuple(words for bit, words in REASONS.items() if bits & bit),
        )
    except nvml.NVMLError:
        return None
    finally:
        nvml.nvmlShutdown()


def visible_gpu() -> int:
    """The driver's index of the first GPU this process may see."""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    return int(first) if first.isdecimal() else 0


def clock_warnings(states: Sequence[GpuState]) -> list[str]:
    """Whether the clock moved, was held down, or the GPU was shared, over looks taken while it worked."""
    if not states:
        return []
    found = []
    clocks = [state.sm_mhz for state in states]
    if max(clocks) - min(clocks) > CLOCK_RANGE * max(clocks):
        found.append(f"clocks: the GPU ran at {min(clocks)} to {max(clocks)} MHz; lock them: nvidia-smi -lgc")
    reasons = sorted({reason for state in states for reason in state.slowed_by})
    if reasons:
        found.append(f"clocks: the GPU was slowed down by {', '.join(reasons)}")
    if any(state.others for state in states):
        found.append("other load: other processes are on the GPU")
    return found
