"""Who else was using the processor while something was measured: Linux tells, elsewhere nothing is known."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

BUSY = 0.05
"""Share of the cores' time taken by others that is told."""
STOLEN = 0.01
"""Share of the cores' time taken by a hypervisor that is told."""


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Seconds of processor time since the machine started, of the cores this process may use.

    busy: by anything here; stolen: by other machines on the same hardware; throttled: held back by a container's quota.
    """

    cores: int
    busy_s: float
    stolen_s: float
    throttled_s: float


def usage(root: Path = Path("/")) -> Usage | None:
    """Now; None where the system does not tell."""
    try:
        lines = (root / "proc/stat").read_text().splitlines()
        allowed = os.sched_getaffinity(0)
        tick = os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError):
        return None
    busy = stolen = 0.0
    cores = 0
    for line in lines:
        name, *fields = line.split()
        if not name.startswith("cpu") or not name[3:].isdecimal() or int(name[3:]) not in allowed:
            continue
        # user nice system idle iowait irq softirq steal: proc_stat(5)
        times = [int(field) / tick for field in fields]
        cores += 1
        busy += sum(times[:3]) + sum(times[5:7])
        stolen += times[7]
    return Usage(cores=cores, busy_s=busy, stolen_s=stolen, throttled_s=_throttled_s(root)) if cores else None


def _throttled_s(root: Path) -> float:
    try:
        lines = (root / "sys/fs/cgroup/cpu.stat").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1e6 for line in lines if line.startswith("throttled_usec")), 0.0)


@dataclass(frozen=True)
class Others:
    """Shares of the cores' time while something was measured, and seconds this container was held back."""

    others: float
    stolen: float
    throttled_s: float

    @property
    def warnings(self) -> list[str]:
        """What of it is worth saying."""
        found = []
        if self.others > BUSY:
            found.append(f"other load: other processes took {self.others:.0%} of the cores' time")
        if self.stolen > STOLEN:
            found.append(f"stolen time: the hypervisor gave {self.stolen:.0%} of the cores' time to other machines")
        if self.throttled_s > 0:
            found.append(f"quota: this container was held back for {self.throttled_s:.1f} s by its processor quota")
        return found


def others(before: Usage | None, after: Usage | None, wall_s: float, own_s: float) -> Others | None:
    """What others took between two looks, `wall_s` apart, of which `own_s` of processor time was the measurement's."""
    if before is None or after is None or wall_s <= 0:
        return None
    whole = wall_s * after.cores
    busy = after.busy_s - before.busy_s - own_s
    return Others(
        max(0.0, busy / whole),
        max(0.0, (after.stolen_s - before.stolen_s) / whole),
        max(0.0, after.throttled_s - before.throttled_s),
    )


def governor_warnings(cpus: Sequence[int], root: Path = Path("/")) -> list[str]:
    """Whether the processor's clock is left to vary."""
    found = set()
    for cpu in cpus:
        try:
            found.add((root / f"sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_governor").read_text().strip())
        except OSError:
            continue
    odd = sorted(found - {"performance"})
    return [f"clocks: the processor's governor is {', '.join(odd)}; set it to performance"] if odd else []


def process_seconds(pid: int, root: Path = Path("/")) -> float:
    """Processor time a process and its finished children have used; 0 where nothing is known."""
    try:
        fields = (root / f"proc/{pid}/stat").read_text().rpartition(")")[2].split()
        # Fields 14 to 17 of proc_pid_stat(5): utime stime cutime cstime; the first after the name is field 3.
        return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, AttributeError):
        return 0.0
