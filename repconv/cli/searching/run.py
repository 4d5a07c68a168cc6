"""`repconv search run`."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..shared.command import Command, Reads, WritesFolder
from ..shared.options import json_option
from .resume import files_of_a_run, run_to_its_end

if TYPE_CHECKING:
    from repconv.search.config import SearchConfig
    from repconv.search.presets import Preset
    from repconv.search.reports.estimate import Estimate

_EPILOG = "Example: repconv search run --preset cifar10-small --data imagefolder:cifar10.zip -o runs/a --set ratio=1/2"


@click.command(cls=Command, epilog=_EPILOG)
@click.option("--preset", "preset_name", default="smoke", show_default=True, help="Settings to start from; see below.")
@click.option(
    "--data",
    type=Reads(),
    help="Training images: cifar10:PATH, cifar100:PATH, imagefolder:PATH, digits or package.module:factory.",
)
@click.option(
    "--set", "settings", type=Reads(), multiple=True, metavar="KEY=VALUE", help="Change a setting; may be repeated."
)
@click.option("--no-age", is_flag=True, help="Scores without the age term, the paper's ablation.")
@click.option(
    "-o", "--output", type=WritesFolder(files_of_a_run), help="Folder of the run, new. Needed but for a dry run."
)
@click.option("--dry-run", is_flag=True, help="Show settings, space, and an estimate measured on two updates.")
@json_option
def command(
    preset_name: str,
    data: str | None,
    settings: tuple[str, ...],
    no_age: bool,
    output: str | None,
    dry_run: bool,
    json_file: str | None,
) -> None:
    """Search which branches a network's blocks should have.

    Presets: cifar10-resnet18, cifar10-vgg16, imagenet-resnet50 (the paper's), cifar10-small, smoke. A run writes its
    folder as it goes; interrupted, it goes on with repconv search resume FOLDER.
    """
    from repconv.benchmarks.environment import environment
    from repconv.search.config import SCHEMA
    from repconv.search.folder import RunFolder
    from repconv.search.presets import preset
    from repconv.search.processes import joined
    from repconv.search.settings import changed, settings_to_dict

    from ...errors import OutputError, SearchError

    chosen = preset(preset_name)
    given = [*([f"data={data}"] if data else []), *settings, *(["age=false"] if no_age else [])]
    config = changed(chosen.config, given)
    if not config.data:
        raise SearchError(f"preset {preset_name} needs images: give --data, such as --data cifar10:PATH")
    if dry_run:
        _foresee(preset_name, chosen, config, json_file)
        return
    if output is None:
        raise OutputError("a run needs a folder to write: give -o FOLDER, or --dry-run to only look")
    folder = RunFolder(Path(output))
    with joined(config.device) as (processes, _), ExitStack() as started:
        if processes.first:
            asked = settings_to_dict(config, SCHEMA)
            started.enter_context(RunFolder.starting(folder.path, asked, {"preset": preset_name, **environment()}))
        processes.gathered([output])  # until then the others have no folder to read
        run_to_its_end(folder, json_file, processes, [config.data, config.network])


def _foresee(preset_name: str, chosen: Preset, config: SearchConfig, json_file: str | None) -> None:
    """Print what a run would do."""
    import dataclasses

    from repconv.search.config import SCHEMA
    from repconv.search.reports.estimate import estimate
    from repconv.search.session import Session
    from repconv.search.settings import settings_to_dict

    from ..shared.record import write_json
    from ..shared.text import table

    usual = dataclasses.asdict(chosen.config)
    rows = [["setting", "value", "whose"]]
    for key, value in dataclasses.asdict(config).items():
        text = (
            ", ".join(map(str, value))
            if isinstance(value, tuple)
            else f"{value:.4g}"
            if isinstance(value, float)
            else str(value)
        )
        rows.append([key, text or "-", "yours" if value != usual[key] else chosen.origin(key)])
    click.echo(f"{preset_name}: {chosen.what}\n\n{table(rows)}\n")
    session = Session(config)
    for note in session.notes:
        click.echo(f"repconv: {note}", err=True)
    counts = f"{len(session.split.train):,} images to learn from, {len(session.split.validation):,} to judge by"
    click.echo(f"  {counts}, {'x'.join(map(str, session.task.input_shape))} each")
    found = estimate(session)
    click.echo(_estimate(found, session.device.type))
    if json_file is not None:
        write_json(
            json_file,
            "repconv.search-estimate/1",
            {
                "preset": preset_name,
                "config": settings_to_dict(config, SCHEMA),
                "estimate": {**dataclasses.asdict(found), "seconds": found.seconds},
                "device": session.device.type,
            },
        )


def _estimate(found: Estimate, device: str) -> str:
    hours, minutes = divmod(round(found.seconds / 60), 60)
    return (
        f"  {found.slots} searchable branches, {found.budget} of them active in an architecture\n"
        f"  {found.updates:,} updates of {found.seconds_an_update:.3f} s, {found.generations} generations, "
        f"{found.evaluations:,} candidates of {found.seconds_a_candidate:.3f} s\n"
        f"  about {hours} h {minutes:02d} min on this {device}, {found.peak_bytes / 2**30:.2f} GiB of memory, "
        "measured on two updates and one batch of candidates"
    )
