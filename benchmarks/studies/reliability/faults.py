"""Faults at many moments of every command, and what is left: old output or new, nobody, nothing else, words.

    python benchmarks/studies/reliability/faults.py [--only search] [--moments 20]

Each run is forked from a process that has imported everything (so that moments fall into work), at the moments of equal
parts of the time that an undisturbed run takes. Faults:

* `SIGKILL`, `SIGTERM` to the command's process, `SIGINT` to all of its session, as Ctrl-C does.
* `full disk`: a tmpfs of a part of what the command needs, for its folder and TMPDIR. `read-only`: the same, made
  read-only while it runs. Both take root.
* `two at once`: the same line again, a moment later; of a search, once `run` and once `resume`.
* `killed worker`: SIGKILL to a process that it started, where it starts any.

Runs of a fault share a folder, so that what piles up is seen; a search or a retraining is then gone on with, with room,
and compared with the undisturbed one to the bit. Finished pieces are kept in the result.
"""

from __future__ import annotations

import importlib
import io
import os
import shutil
import signal
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from repconv.benchmarks.environment import environment
from repconv.benchmarks.studies.common import (
    ROOT,
    asking,
    head,
    kept_rows,
    markdown_table,
    positive,
    read_result,
    write_result,
    write_table,
)
from repconv.benchmarks.studies.reliability.commands import (
    OLD,
    SUBJECTS,
    Command,
    differing,
    fingerprint,
    inputs,
    left,
    stands,
)
from repconv.benchmarks.studies.reliability.forked import Outcome, Running, small_disk

SCHEMA = "repconv.reliability-faults/1"
PAGE = ROOT / "docs" / "reliability.md"
ROOM = 64 << 20
"""Bytes of a disk that is not full."""
IMPORTS = (
    "onnx", "onnxruntime", "onnxscript", "openvino", "torch.onnx", "torch.export", "torch._dynamo", "sklearn.datasets",
    "torchvision.transforms.v2", "torch.utils.tensorboard", "torch.utils.data", "repconv.export.from_source",
    "repconv.export.exporting", "repconv.export.runtimes.openvino", "repconv.graph.onnx.fuse", "repconv.search.run",
    "repconv.search.retrain", "repconv.search.reports.picture", "repconv.benchmarks.harness.bench",
    "repconv.benchmarks.harness.page", "repconv.cli.fuse", "repconv.cli.export", "repconv.cli.bench",
    "repconv.cli.retrain", "repconv.cli.searching.run", "repconv.cli.searching.resume",
)  # fmt: skip
CODES: Mapping[str, frozenset[int]] = {
    "SIGKILL": frozenset({-signal.SIGKILL}), "SIGTERM": frozenset({128 + signal.SIGTERM}),
    "SIGINT": frozenset({130}), "full disk": frozenset({2}), "read-only": frozenset({2}),
    "two at once": frozenset({2}), "killed worker": frozenset({2, 4}),
}  # fmt: skip
"""Exit codes a fault may end in, besides 0: it was done before, or did not need what failed."""


@dataclass(frozen=True)
class Undisturbed:
    """A run that nothing happened to: what it takes and leaves, fingerprints of outputs that are twice the same."""

    seconds: float
    size: int
    whole: Mapping[str, str]
    run: Mapping[str, Any]


@dataclass(frozen=True)
class Scene:
    """Where the runs of a fault are: `work` is the command's folder, `temporary` its TMPDIR."""

    work: Path
    temporary: Path

    @classmethod
    def made(cls, folder: Path, given: Path, subject: Command) -> Scene:
        """In `folder`, with copies of what is given and old outputs."""
        place = cls(folder / "work", folder / "tmp")
        place.temporary.mkdir(parents=True)
        shutil.copytree(given, place.work)
        for name in subject.outputs:
            (place.work / name).write_bytes(OLD)
        return place

    def strays(self, subject: Command, given: Path) -> list[str]:
        """Files nobody asked for."""
        known = {file.name for file in given.iterdir()} | set(subject.outputs) | ({"run"} if subject.is_run else set())
        found = [file.name for file in self.work.iterdir() if file.name not in known]
        return found + [f"TMPDIR/{file.name}" for file in self.temporary.iterdir()]


def undisturbed(subject: Command, given: Path, base: Path) -> Undisturbed:
    """Run it twice, the second time as it is measured."""

    def once(folder: Path) -> tuple[Scene, Outcome, dict[str, str]]:
        place = Scene.made(folder, given, subject)
        ended = Running(subject.line, place.work, place.temporary).ended()
        if ended.code:
            raise SystemExit(f"{' '.join(subject.line)} fails by itself:\n{ended.said}")
        return place, ended, {name: fingerprint((place.work / name).read_bytes()) for name in subject.outputs}

    first, (place, ended, prints) = once(base / "first"), once(base / "second")
    files = [file for file in place.work.rglob("*") if file.is_file() and not (given / file.name).exists()]
    return Undisturbed(
        ended.seconds,
        sum(-(-file.stat().st_size // 4096) * 4096 for file in files),
        {name: value for name, value in prints.items() if first[2][name] == value},
        left(place.work / "run") if subject.is_run else {},
    )


def trial(
    fault: str, part: float, subject: Command, known: Undisturbed, given: Path, place: Scene
) -> tuple[Outcome, list[str]]:
    """One fault, at this part of the run; how it ended, and what is wrong."""
    wrong: list[str] = []
    at = part * known.seconds
    with ExitStack() as stack:
        again: Callable[[str], bool] = lambda _: True  # noqa: E731
        if fault in ("full disk", "read-only"):
            size = int(part * known.size) if fault == "full disk" else ROOM
            disk = place.work.parent / "disk"
            disk.mkdir(exist_ok=True)
            again = stack.enter_context(small_disk(disk, ROOM))
            place = Scene.made(disk / "in", given, subject)
            used = sum(-(-f.stat().st_size // 4096) * 4096 for f in disk.rglob("*") if f.is_file())
            again(f"size={used + size}" if fault == "full disk" else f"size={ROOM}")
        running = Running(subject.line, place.work, place.temporary)
        second = None
        if fault.startswith("SIG") and running.wait_until(at):
            number = signal.Signals[fault]
            (os.killpg if fault == "SIGINT" else os.kill)(running.pid, number)
        elif fault == "read-only" and running.wait_until(at):
            while not again("ro") and running.wait_until(0):  # a file is open for writing just now
                pass
        elif fault == "two at once":
            running.wait_until(at)
            line = subject.resume if subject.is_run and int(part * 1000) % 2 else subject.line
            second = Running(line, place.work, place.temporary)
        elif fault == "killed worker":
            running.wait_until(at)
            for pid in list(running.others())[:1]:
                os.kill(pid, signal.SIGKILL)
        ended = running.ended()
        allowed = CODES[fault] | {0}
        for one in (ended, *([second.ended()] if second is not None else [])):
            if one.code not in allowed:
                wrong.append("it hung" if one.code is None else f"exit code {one.code}")
            if one.code and one.code > 0:
                wrong += ["a traceback"] if "Traceback" in one.said else []
                wrong += [] if "repconv: " in one.said else ["no words"]
            wrong += [f"left running: {line}" for line in one.orphans]
        if second is not None and ended.code:
            wrong.append(f"the first of two ended with {ended.code}")
        wrong += stands(subject, place.work, known.whole, done=ended.code == 0)
        if fault != "SIGKILL":  # after which the next run clears up
            wrong += [f"stray: {name}" for name in place.strays(subject, given)]
        if subject.is_run:
            again(f"rw,size={ROOM}")
            wrong += _gone_on_with(subject, known, place)
    return ended, wrong


def _gone_on_with(subject: Command, known: Undisturbed, place: Scene) -> list[str]:
    """What is wrong with a run that is gone on with to its end; its folder is removed."""
    begun = (place.work / "run" / "config.json").exists()
    ended = Running(subject.resume if begun else subject.line, place.work, place.temporary).ended()
    wrong = [f"going on: exit code {ended.code}"] if ended.code else differing(place.work / "run", known.run)
    shutil.rmtree(place.work / "run", ignore_errors=True)
    return wrong


def piece(name: str, fault: str, moments: int, known: Undisturbed, given: Path, base: Path) -> dict[str, Any]:
    """All moments of a fault, and a run after them, which has to leave nothing but its outputs."""
    subject = SUBJECTS[name]
    place = Scene.made(base / fault.replace(" ", "_"), given, subject)
    ends: Counter[str] = Counter()
    seen: set[str] = set()
    wrong = []
    for number in range(moments):
        part = (number + 0.5) / moments
        ended, found = trial(fault, part, subject, known, given, place)
        ends[str(ended.code)] += 1
        new = [what for what in found if not (what.startswith("stray") and what in seen)]  # what stays is said once
        seen.update(new)
        wrong += [{"part": round(part, 3), "what": what, "said": ended.said[-600:]} for what in new]
    if fault == "SIGKILL":
        ended = Running(subject.line, place.work, place.temporary).ended()
        wrong += [{"part": 1, "what": f"piled up: {what}", "said": ""} for what in place.strays(subject, given)]
    shutil.rmtree(place.work.parent)
    return {
        "piece": f"{name}, {fault}", "command": name, "fault": fault, "moments": moments,
        "seconds": known.seconds, "ended": dict(sorted(ends.items())), "wrong": wrong,
    }  # fmt: skip


def _warm_up() -> None:
    """Import what takes long, and have torch's exporter make its tables."""
    torch.set_num_threads(1)
    for name in IMPORTS:
        importlib.import_module(name)
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 3), torch.nn.BatchNorm2d(1), torch.nn.ReLU()).eval()
    with redirect_stdout(io.StringIO()), warnings.catch_warnings(action="ignore"):
        torch.onnx.export(model, (torch.zeros(1, 1, 8, 8),), dynamo=True)
        torch.export.export(model, (torch.zeros(1, 1, 8, 8),)).run_decompositions()


def pieces() -> Iterator[tuple[str, str]]:
    """Command and fault."""
    for name in sorted(SUBJECTS, key=lambda name: name == "bench"):  # which takes longest
        for fault in CODES:
            if fault != "killed worker" or SUBJECTS[name].worker:
                yield name, fault


def table_of(content: Mapping[str, Any]) -> str:
    """Exit codes by fault and command, and what was wrong."""
    found = {(row["command"], row["fault"]): row for row in content["pieces"]}

    def cell(name: str, fault: str) -> str:
        row = found.get((name, fault))
        if row is None:
            return "-"
        ends = ", ".join(f"{code} ({count})" for code, count in row["ended"].items())
        return f"{ends}{'; ' + str(len(row['wrong'])) + ' wrong' if row['wrong'] else ''}"

    rows = [(fault, *(cell(name, fault) for name in SUBJECTS)) for fault in CODES]
    moments, wrong = sum(row["moments"] for row in found.values()), sum(len(row["wrong"]) for row in found.values())
    return f"{markdown_table(('fault', *SUBJECTS), rows)}\n\n{moments} faults; {wrong} findings."


def main() -> None:
    """Do what is missing, piece by piece."""
    parser = asking(__doc__, "reliability_faults")
    parser.add_argument("--only", default="", help="pieces whose name holds this: search, SIGKILL")
    parser.add_argument("--moments", type=positive, default=20, help="of each fault and command (%(default)s)")
    parser.add_argument("--table", action="store_true", help="write the table of the page, and measure nothing")
    chosen = parser.parse_args()
    if chosen.table:
        write_table(PAGE, chosen.output.name, table_of(read_result(chosen.output, SCHEMA)))
        return
    _warm_up()
    kept = kept_rows(chosen.output, SCHEMA, "piece", "pieces")
    known: dict[str, Undisturbed] = {}
    with tempfile.TemporaryDirectory() as text:
        base, given = Path(text), Path(text) / "given"
        given.mkdir()
        inputs(given)
        first = Scene.made(base / "searched", given, SUBJECTS["search"])
        if Running(SUBJECTS["search"].line, first.work, first.temporary).ended().code:
            raise SystemExit("the search for an architecture fails by itself")
        shutil.copy(first.work / "run" / "best.arch.json", given)
        for name, fault in pieces():
            if chosen.only not in f"{name}, {fault}" or f"{name}, {fault}" in kept:
                continue
            if name not in known:
                (base / name).mkdir()
                known[name] = undisturbed(SUBJECTS[name], given, base / name)
            found = piece(name, fault, chosen.moments, known[name], given, base / name)
            print(found["piece"], found["ended"], len(found["wrong"]), "wrong", flush=True)
            kept[found["piece"]] = found
            write_result(
                chosen.output,
                {**head(__file__, SCHEMA), "environment": environment(), "pieces": list(kept.values())},
            )


if __name__ == "__main__":
    main()
