"""`repconv search sweep`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..shared.command import Command, Reads, WritesFolder
from ..shared.ending import going_on_is_said
from ..shared.options import json_option
from ..shared.progress import Epochs, duration

if TYPE_CHECKING:
    from repconv.search.resuming import Report
    from repconv.search.sweeps.plan import SweepPlan, SweepRun
    from repconv.search.sweeps.schedule import Failure, Hands
    from repconv.search.sweeps.summary import SweepSummary

_EPILOG = (
    "Example: repconv search sweep --preset cifar10-small --data imagefolder:cifar10.zip --vary strategy=des,random "
    "--vary ratio=1/3,2/3 --seeds 3 --retrain cifar10-small -o runs/sweep"
)
_KILLED = 4
"""The exit code where a run's process was killed, as where something lost a process elsewhere."""


def _written() -> tuple[str, ...]:
    """The files beside the runs' folders."""
    from repconv.search.sweeps.folder import FILES

    return FILES


@click.command(cls=Command, epilog=_EPILOG)
@click.option("--preset", "preset_name", default="smoke", show_default=True, help="Of the searches, as of search run.")
@click.option("--data", type=Reads(), help="Training images of all, as of search run.")
@click.option(
    "--set", "settings", type=Reads(), multiple=True, metavar="KEY=VALUE", help="Change a setting of all searches."
)
@click.option(
    "--vary",
    type=Reads(),
    multiple=True,
    metavar="KEY=V,V...",
    help="Search with each of these values; repeated, with every combination. Between values that hold commas put ;.",
)
@click.option(
    "--seeds", type=click.IntRange(min=1), default=1, show_default=True, help="Every combination with N seeds, 0 on."
)
@click.option("--retrain", "retrain_preset", help="Retrain what is found, from this preset of repconv retrain.")
@click.option(
    "--retrain-set", type=Reads(), multiple=True, metavar="KEY=VALUE", help="Change a setting of the retrainings."
)
@click.option(
    "--top",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Retrain the N best of each search, or as many as it finds.",
)
@click.option(
    "--processes", type=click.IntRange(min=1), default=1, show_default=True, help="Runs at a time on this machine."
)
@click.option(
    "-o",
    "--output",
    type=WritesFolder(_written),
    help="Folder of the sweep: new, or one of this very line to go on with.",
)
@click.option("--dry-run", is_flag=True, help="List the runs, and estimate their time on two updates of each kind.")
@click.option("--only", metavar="RUN", help="Do this run of the sweep alone, in this process.")
@click.option("--with-parent", is_flag=True, hidden=True, help="End where standard input does.")
@json_option
def command(
    preset_name: str,
    data: str | None,
    settings: tuple[str, ...],
    vary: tuple[str, ...],
    seeds: int,
    retrain_preset: str | None,
    retrain_set: tuple[str, ...],
    top: int,
    processes: int,
    output: str | None,
    dry_run: bool,
    only: str | None,
    with_parent: bool,
    json_file: str | None,
) -> None:
    """Search with every combination of settings and seeds, retrain what is found, and compare.

    Every run is a folder of its own below OUTPUT, as of search run and retrain, and works in a process of its own.
    Interrupted, the same line goes on; finished runs are left as they are. A run that fails does not stop the others.
    Started by torchrun or accelerate launch with a folder that all machines see, the processes share the runs.
    """
    from repconv.search.settings import given
    from repconv.search.sweeps.plan import RetrainingPlan, SweepPlan, varied

    from ...errors import OutputError, SearchError

    if retrain_preset is None and (retrain_set or top > 1):
        raise SearchError("--retrain-set and --top are of retrainings: name their preset, such as --retrain cifar10")
    retrain = None
    if retrain_preset is not None:
        retrain = RetrainingPlan(preset=retrain_preset, settings=given(retrain_set), top=top)
    plan = SweepPlan(
        preset=preset_name,
        settings=given([*([f"data={data}"] if data else []), *settings]),
        vary=varied(vary),
        seeds=seeds,
        retrain=retrain,
    )
    if dry_run:
        _foresee(plan, processes, json_file)
        return
    if output is None:
        raise OutputError("a sweep needs a folder to write: give -o FOLDER, or --dry-run to only look")
    if only is not None:
        _one(Path(output), plan, only, with_parent=with_parent)
        return
    failures = _shared_out(Path(output), plan, processes, json_file)
    if failures:
        code = next(iter(failures.values())).code
        click.get_current_context().exit(code if code > 0 else _KILLED)


def _one(root: Path, plan: SweepPlan, name: str, *, with_parent: bool) -> None:
    """Do one run here."""
    from repconv.benchmarks.environment import environment
    from repconv.search.settings import unknown
    from repconv.search.sweeps.doing import carry_out
    from repconv.search.sweeps.folder import planned
    from repconv.search.sweeps.workers import end_with_parent

    from ...errors import SearchError

    if with_parent:
        end_with_parent()
    runs = {one.name: one for one in plan.runs}
    if name not in runs:
        raise SearchError(unknown("run", name, runs))
    one = runs[name]
    said = {"preset": plan.preset} if one.kind == "search" else {}
    planned(root, plan)
    with going_on_is_said("the same line again"):
        carry_out(root, one, {**said, **environment()}, _report_to)


def _report_to(epochs: int) -> Report:
    from .resume import show_generation

    def others(record: Mapping[str, Any]) -> None:
        if record["kind"] == "generation":
            show_generation(record)

    return Epochs(epochs, others)


def _shared_out(root: Path, plan: SweepPlan, processes: int, json_file: str | None) -> Mapping[str, Failure]:
    """Do all runs with the other processes of the launcher; the first one shows and writes what came of it.

    Returns what failed, by name; in the others nothing, so that they do not end the first.
    """
    from repconv.search.sweeps.crew import launched
    from repconv.search.sweeps.folder import planned
    from repconv.search.sweeps.schedule import do_all

    crew = launched()
    folder = planned(root, plan) if crew.first else None
    with folder.held() if folder is not None else nullcontext():
        crew.meet()
        with going_on_is_said("the same line again"):
            failures = do_all(root, plan.runs, crew, _hands(root, min(processes, len(plan.runs))))
        failed = _conclude(root, plan, failures, json_file) if crew.first else {}
        crew.part()
    return failed


def _hands(root: Path, processes: int) -> Hands:
    """How this process works: at so many runs at once, each by this very command line with `--only`."""
    import os

    from repconv.search.sweeps.folder import LOGS
    from repconv.search.sweeps.schedule import Hands
    from repconv.search.sweeps.workers import RunProcess, surroundings, visible_gpus

    here, beside = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    line = [
        sys.executable,
        "-P",
        "-c",
        "from repconv.cli import main; main()",
        *sys.argv[1:],
        "--with-parent",
        "--only",
    ]
    gpus, cores = visible_gpus(), len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()

    def start(one: SweepRun, place: int) -> RunProcess:
        around = surroundings(
            os.environ,
            slot=here * processes + place,
            slots=beside * processes,
            cores=cores or 1,
            gpus=gpus if one.config.device in ("auto", "cuda") else (),
        )
        return RunProcess([*line, one.name], root / LOGS / f"{one.name}.log", around)

    return Hands(start=start, places=processes, say=lambda said: click.echo(f"repconv: {said}", err=True))


def _conclude(
    root: Path, plan: SweepPlan, failures: Mapping[str, Failure], json_file: str | None
) -> Mapping[str, Failure]:
    """Write and show what came of it; returns what failed, or is damaged."""
    from repconv.search.folder import RunFolder
    from repconv.search.sweeps.folder import PAGE, RESULT
    from repconv.search.sweeps.summary import SweepSummary

    from ..shared.record import write_json
    from .compare import shown

    found = SweepSummary(root, plan, failures)
    content, folder = found.to_dict(), RunFolder(root)
    folder.write_json(RESULT, content)
    folder.write_text(PAGE, found.page())
    for compared in found.comparisons.values():
        click.echo(f"{shown(compared)}\n")
    click.echo(_ended(found))
    click.echo(f"  wrote {root / RESULT} and {root / PAGE}")
    if json_file is not None:
        write_json(json_file, content.pop("schema"), content)
    return found.failures


def _ended(found: SweepSummary) -> str:
    """How many runs came to their end, and why others did not."""
    lines = [f"  {found.counts}"]
    lines += [f"  failed: {name}: {failure.why}" for name, failure in found.failures.items()]
    return "\n".join(lines)


def _foresee(plan: SweepPlan, processes: int, json_file: str | None) -> None:
    """List the runs and what they would take."""
    import dataclasses

    from repconv.search.sweeps.foresight import foresee

    from ..shared.record import write_json
    from ..shared.text import table

    click.echo("\n".join(f"  {one.name}" for one in plan.runs) + "\n")
    found = foresee(plan)
    rows = [["runs", "of", "each", "all"]]
    for row in found:
        what = "searches" if row.kind == "search" else "retrainings"
        rows.append([f"{row.runs} {what}", row.group or plan.preset, duration(row.seconds), duration(row.all_s)])
    click.echo(table(rows, right=(2, 3)))
    seconds = sum(row.all_s for row in found)
    at_once = f", {duration(seconds / processes)} where {processes} at a time cost nothing" if processes > 1 else ""
    click.echo(f"\n  {len(plan.runs)} runs, about {duration(seconds)} one after the other{at_once}")
    if json_file is not None:
        content = {"plan": plan.to_dict(), "groups": [dataclasses.asdict(row) for row in found], "seconds": seconds}
        write_json(json_file, "repconv.sweep-estimate/1", content)
