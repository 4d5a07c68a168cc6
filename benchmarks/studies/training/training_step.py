"""A training step (forward, backward, SGD) of a multi-branch network against the plain one, and its memory.

    python benchmarks/studies/training/training_step.py [--rounds 7] [--cases resnet18:16:64:float32,...] \
        [--output FILE]

Seconds are those of one thread at work (`time.process_time`), so that other load on the machine counts little.
For each base, width, batch and dtype, and each set of branches, branch by branch ("full") and as by default with
sampled statistics: its network and the plain one in turns, by themselves in a process, since what else is held changes
a step's time. float32, or bfloat16 by autocast. Multiply-adds are those of convolutions and matrix products in a whole
step: what would be left were all else free. Memory is what a process that trains grows by at its highest, in a process
of its own for each. Results are written after each case.

glibc gives large blocks back to the system each time, and taking them again costs more than computing with them;
MALLOC_TRIM_THRESHOLD_ and MALLOC_TOP_PAD_ are set for every process here, as a training script would.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from repconv import create_model, set_statistics
from repconv.benchmarks.environment import environment
from repconv.benchmarks.harness.turns.timing import ratio, time_in_turns
from repconv.benchmarks.studies.common import asking, head, kept_rows, positive, resident, write_result

SCHEMA = "repconv.training_step/2"
MALLOC = {
    "MALLOC_TRIM_THRESHOLD_": "4294967296", "MALLOC_TOP_PAD_": "268435456", "MALLOC_MMAP_THRESHOLD_": "33554432",
}  # fmt: skip
CASES = (
    *(f"resnet18:{width}:{batch}:float32" for width in (16, 64) for batch in (64, 128)),
    *(f"vgg16:64:{batch}:float32" for batch in (64, 128)),
    "resnet18:16:64:bfloat16",
)
SETS = ("irep", "repvgg", "acnet", "dbb")


def step_of(name: str, width: int, batch: int, dtype: str, statistics: str, device: str = "cpu") -> Callable[[], None]:
    """One step of training a fresh network on random images, channels last."""
    torch.manual_seed(0)
    model = create_model(name, num_classes=10, width=width).train()
    model = model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if statistics:
        set_statistics(model, statistics)  # type: ignore[arg-type]  # "full" or "sampled"
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    x = torch.randn(batch, 3, 32, 32).to(device=device, memory_format=torch.channels_last)
    labels = torch.randint(10, (batch,)).to(device)

    def step() -> None:
        optimiser.zero_grad()
        with torch.autocast(device, dtype=torch.bfloat16, enabled=dtype == "bfloat16"):
            logits = model(x)
        functional.cross_entropy(logits.float(), labels).backward()
        optimiser.step()

    return step


def subjects(case: str) -> dict[str, tuple[str, str]]:
    """Network and statistics of everything measured beside the plain one: other sets only at float32, batch 64."""
    base, _, batch, dtype = case.split(":")
    found = {}
    for prefix in SETS if (batch, dtype) == ("64", "float32") else SETS[:1]:
        for statistics in ("full", "sampled"):
            found[f"{prefix} {statistics}"] = (f"{prefix}_{base}", statistics)
    return found


def multiply_adds(step: Callable[[], None]) -> int:
    """Of the convolutions and matrix products of a step, backward ones and those of statistics among them."""
    in_place = {torch.ops.aten.baddbmm_: lambda _, a, b, **__: 2 * a[0] * a[1] * a[2] * b[2]}
    counter = FlopCounterMode(display=False, custom_mapping=in_place)
    with counter:
        step()
    return counter.get_total_flops() // 2


def asked(what: str, described: str) -> str:
    """What this script prints in a process of its own, with allocation as above."""
    command = [sys.executable, __file__, what, described]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ | MALLOC)  # noqa: S603
    return done.stdout


def print_peak(described: str) -> None:
    """By how much the process's largest resident size exceeds that at the start, in MiB; on Linux."""
    _, width, batch, dtype, name, statistics = described.split(":")
    step_of("resnet18", 16, 1, dtype, "")()  # what PyTorch itself allocates in a first step
    Path("/proc/self/clear_refs").write_text("5")  # the largest so far is forgotten
    before = resident("VmRSS")
    step = step_of(name, int(width), int(batch), dtype, statistics)
    for _ in range(3):
        step()
    print((resident("VmHWM") - before) / 2**20)


def print_pair(described: str) -> None:
    """A network's steps and the plain one's, in turns: seconds, their ratio, multiply-adds, as JSON."""
    base, width, batch, dtype, name, statistics, rounds = described.split(":")
    of = {"plain": (base, ""), "other": (name, statistics)}
    steps = {key: step_of(of_name, int(width), int(batch), dtype, how) for key, (of_name, how) in of.items()}
    timed = time_in_turns(steps, rounds=int(rounds), warmup=1, clock=time.process_time)
    plain, other = timed["plain"], timed["other"]
    found, products = ratio(other, plain), {key: multiply_adds(step) for key, step in steps.items()}
    told = {
        "step_ms": other.median_ms, "plain_ms": plain.median_ms,
        "to_plain": found.value, "interval_95": [found.low, found.high],
        "multiply_adds": products["other"], "multiply_adds_to_plain": products["other"] / products["plain"],
        "samples_s": list(other.samples_s), "plain_samples_s": list(plain.samples_s),
    }  # fmt: skip
    print(json.dumps(told))


def measured(case: str, rounds: int) -> dict[str, object]:
    """Seconds a step, multiply-adds and memory of all subjects of a case, and their ratios to the plain network's."""
    plain = float(asked("--peak", f"{case}:{case.partition(':')[0]}:"))
    row: dict[str, object] = {"case": case, "plain": {"peak_mib": plain}}
    for key, (name, how) in subjects(case).items():
        told = json.loads(asked("--pair", f"{case}:{name}:{how}:{rounds}"))
        memory = float(asked("--peak", f"{case}:{name}:{how}"))
        row[key] = told | {"peak_mib": memory, "memory_to_plain": memory / plain}
        print(
            f"{case:26} {key:16} {told['step_ms']:9.1f} ms  x {told['to_plain']:5.2f}  "
            f"multiply-adds x {told['multiply_adds_to_plain']:.2f}  memory x {memory / plain:.2f}",
            flush=True,
        )
    return row | {"environment": environment()}


def main() -> None:
    """Measure, print, and write JSON after each case."""
    parser = asking(__doc__, "training_step")
    parser.add_argument("--cases", default=",".join(CASES), help="base:width:batch:dtype, separated by commas")
    parser.add_argument("--rounds", type=positive, default=7)
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    parser.add_argument("--pair", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.peak:
        print_peak(arguments.peak)
        return
    if arguments.pair:
        print_pair(arguments.pair)
        return
    for case in arguments.cases.split(","):
        rows = kept_rows(arguments.output, SCHEMA, "case")
        rows.pop(case, None)
        rows[case] = measured(case, arguments.rounds)
        settings = {"rounds": arguments.rounds, "threads": 1, "clock": "process_time", "malloc": MALLOC}
        write_result(arguments.output, {**head(__file__, SCHEMA), "settings": settings, "rows": list(rows.values())})


if __name__ == "__main__":
    main()
