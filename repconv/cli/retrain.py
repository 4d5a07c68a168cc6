"""`repconv retrain`."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import click

from .shared.command import Command, Reads, WritesFolder
from .shared.ending import going_on_is_said
from .shared.options import json_option
from .shared.progress import Epochs


def _written() -> list[str]:
    """The files of a retraining's folder."""
    from repconv.search.folder import CHECKPOINT, CONFIG, ENVIRONMENT, METRICS, RESULT
    from repconv.search.retrain import FUSED, RETRAINED

    return [CONFIG, ENVIRONMENT, METRICS, CHECKPOINT, RESULT, RETRAINED, FUSED]


@click.command(
    cls=Command, epilog="Example: repconv retrain runs/a/best.arch.json --preset cifar10 --data cifar10:PATH -o runs/b"
)
@click.argument("architecture", type=Reads())
@click.option("--preset", "preset_name", default="smoke", show_default=True, help="Settings to start from; see below.")
@click.option("--data", type=Reads(), help="Training images, as of repconv search run.")
@click.option(
    "--network",
    type=Reads(),
    help="The architecture's network again, where it is package.module:factory: your own code.",
)
@click.option(
    "--set", "settings", type=Reads(), multiple=True, metavar="KEY=VALUE", help="Change a setting; may be repeated."
)
@click.option(
    "-o",
    "--output",
    type=WritesFolder(_written),
    required=True,
    help="Folder of the run: new, or one of this very line to go on with.",
)
@json_option
def command(
    architecture: str,
    preset_name: str,
    data: str | None,
    network: str | None,
    settings: tuple[str, ...],
    output: str,
    json_file: str | None,
) -> None:
    """Train the searched ARCHITECTURE (a repconv.arch/1 file of a search), then fuse it.

    Presets: cifar10, imagenet (the paper's), cifar10-small, smoke. Writes a checkpoint and its fused form with the
    accuracy of both. Interrupted, the same line goes on from the last checkpoint. The preset imagenet goes on from the
    weights of the search and needs them: --set supernet=FILE.
    """
    from repconv.benchmarks.environment import environment
    from repconv.search.folder import RESULT, RunFolder
    from repconv.search.processes import joined
    from repconv.search.reports.found import read_found
    from repconv.search.retrain import FUSED, RETRAINED, retrain
    from repconv.search.retrain_config import SCHEMA, complete
    from repconv.search.settings import settings_to_dict
    from repconv.search.supernet.records import RETRAIN

    from .shared.record import file_record, write_json

    found = read_found(architecture)
    config = complete(preset_name, [*([f"data={data}"] if data else []), *settings])
    folder = RunFolder(Path(output))
    with joined(config.device) as (processes, _), ExitStack() as started:
        if processes.first:
            wanted = {**settings_to_dict(config, SCHEMA), "architecture": found.to_dict()}
            started.enter_context(RunFolder.starting(folder.path, wanted, environment(), resume=True))
        processes.gathered([output])  # until then the others have no folder to read
        with going_on_is_said("the same line again"):
            retrain(folder, found, config, Epochs(config.epochs), own_code=network)
    if not processes.first:
        return
    result = folder.read_json(RESULT, RETRAIN)
    click.echo(
        f"\n  {result['measured_on']} accuracy on {result['images']:,} images: {result['accuracy']:.4f}, "
        f"fused {result['fused_accuracy']:.4f}\n  wrote {folder.path / RETRAINED} and {folder.path / FUSED}"
    )
    if json_file is not None:
        write_json(
            json_file,
            "repconv.retrain/1",
            {
                "run": str(folder.path),
                "source": file_record(Path(architecture)),
                "result": result,
                "outputs": [file_record(folder.path / name) for name in (RETRAINED, FUSED)],
            },
        )
