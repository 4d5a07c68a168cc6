"""One network of every convolutional family of timm, torchvision and ultralytics: fused as a program and as ONNX.

    python benchmarks/studies/zoo/zoo.py [--only REGEX] [--minutes 30] [--latency] [--again] [--list]

Each network runs in a process of its own on one thread, bounded in processor time and memory; its row is kept as soon
as it ends, so what was interrupted goes on. `--latency` times the files of finished rows, before and after fusing, in
turns: that takes a quiet machine. Libraries that are not installed are left out, with a word. The page
docs/zoo.md is written from the rows by `python benchmarks/studies/zoo/page.py`.
"""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from typing import Any

from repconv.benchmarks.environment import environment
from repconv.benchmarks.studies.common import asking, head, kept_rows, positive, write_result
from repconv.benchmarks.studies.zoo.families import FAMILIES, Member, members
from repconv.benchmarks.studies.zoo.measuring import FORMS, measured, timed

SCHEMA = "repconv.zoo/1"
CPU_LIMIT_S = 240
"""Of a network's process, beyond which it is stopped; the parts that are known stay."""
WALL_LIMIT_S = 900
MEMORY_LIMIT = 10 << 30
"""Bytes of data that it may hold."""


def in_a_process(name: str, *options: str) -> Iterator[tuple[str, Any]]:
    """The parts that a process of its own says, and `stopped` where it did not come to its end."""
    command = [sys.executable, __file__, "--one", name, *options]
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with subprocess.Popen(  # noqa: S603  # this script
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environ
    ) as process:
        try:
            out, err = process.communicate(timeout=WALL_LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
    for line in out.splitlines():
        if line.startswith("{"):
            yield from json.loads(line).items()
    if process.returncode:
        yield "stopped", _how(process.returncode, err)


def _how(code: int, err: str) -> str:
    """How a process ended that did not end well."""
    if code == -signal.SIGXCPU:
        return f"more than {CPU_LIMIT_S} s of a processor"
    if code == -signal.SIGKILL:
        return f"more than {WALL_LIMIT_S} s, or more memory than there is"
    last = next(iter(reversed(err.strip().splitlines())), "")
    return f"signal {-code}" if code < 0 else last[:300] or f"exit code {code}"


def row(member: Member, said: Callable[[str], Iterator[tuple[str, Any]]] = in_a_process) -> dict[str, Any]:
    """Everything of one network but its latency."""
    began = time.monotonic()
    parts = dict(said(member.name))
    return {
        "network": member.name, "family": member.family, **parts,
        "seconds": round(time.monotonic() - began, 1), "environment": environment(),
    }  # fmt: skip


def _one(name: str, *, latency: bool, side: int | None) -> None:
    """In the process of one network: print its parts, a line each."""
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_LIMIT_S, CPU_LIMIT_S + 5))
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_LIMIT, MEMORY_LIMIT))
    for part, found in (("latency", timed(name)),) if latency else measured(name, side):
        print(json.dumps({part: found}), flush=True)


def left(chosen: Any, rows: Mapping[str, Any]) -> list[Member]:  # noqa: ANN401  # of argparse
    """The members that are asked for and not done."""
    found = [member for member in members() if re.search(chosen.only, member.name)]
    if chosen.latency:
        return [
            m for m in found if fused_file(rows.get(m.name, {})) and (chosen.again or "latency" not in rows[m.name])
        ]
    return [member for member in found if chosen.again or member.name not in rows]


def fused_file(row: Mapping[str, Any]) -> bool:
    """Whether a row has an ONNX file that fusing changed, so that there are two to time."""
    return bool(row.get("onnx", {}).get("layers"))


def main() -> None:
    """Measure what is left, network by network."""
    parser = asking(__doc__, "zoo")
    parser.add_argument("--only", default="", metavar="REGEX", help="networks whose name it finds: timm:rep, ssd")
    parser.add_argument("--minutes", type=positive, help="start none after so long")
    parser.add_argument("--latency", action="store_true", help="time the finished ones instead")
    parser.add_argument("--again", action="store_true", help="what is done, too")
    parser.add_argument("--list", action="store_true", help="name those left, and do none")
    parser.add_argument("--one", metavar="NETWORK", help="print the parts of one, in this process, and keep nothing")
    parser.add_argument("--side", type=positive, help="with --one: pixels of its image a side")
    chosen = parser.parse_args()
    if chosen.one:
        _one(chosen.one, latency=chosen.latency, side=chosen.side)
        return
    rows = kept_rows(chosen.output, SCHEMA, "network")
    todo = left(chosen, rows)
    print(f"{len(todo)} of {sum(map(len, FAMILIES.values()))} networks are left", flush=True)
    until = time.monotonic() + 60 * chosen.minutes if chosen.minutes else float("inf")
    for member in todo:
        if chosen.list:
            print(member.name)
        elif find_spec(member.library) is None:
            print(f"{member.name}: {member.library} is not installed")
        elif time.monotonic() < until:
            if chosen.latency:
                rows[member.name] |= dict(in_a_process(member.name, "--latency"))
            else:
                rows[member.name] = row(member)
            print(member.name, said_of(rows[member.name]), flush=True)
            order = {each.name: place for place, each in enumerate(members())}
            ordered = sorted(rows.values(), key=lambda found: order.get(found["network"], len(order)))
            write_result(chosen.output, {**head(__file__, SCHEMA), "rows": ordered})


def said_of(row: Mapping[str, Any]) -> str:
    """A row in a line: counts, seconds, and what went wrong."""
    parts = [f"{row['seconds']} s"]
    for form in FORMS:
        found = row.get(form, {})
        if "after" in found:
            counts = (f"{found['before'][key]} -> {found['after'][key]}" for key in ("convolutions", "batch_norms"))
            parts.append(f"{form} {', '.join(counts)}, {found['fuse']['cpu_s']} s")
        if "prove" in found:
            parts.append(f"proof {found['prove']['passed']} {found['prove']['cpu_s']} s, error {found.get('error')}")
        if "failure" in found:
            parts.append(f"{form} {found['failure']}")
    if "latency" in row:
        parts.append(f"fused over unfused {row['latency']['ratio']:.3f} {row['latency']['interval_95']}")
    return "; ".join([*parts, *([f"stopped: {row['stopped']}"] if "stopped" in row else [])])


if __name__ == "__main__":
    main()
