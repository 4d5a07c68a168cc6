"""`repconv retrain`."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .shared.command import Command, Reads, WritesFolder
from .shared.ending import going_on_is_said
from .shared.options import json_option
from .shared.progress import Epochs

if TYPE_CHECKING:
    from repconv.search.processes import Processes
    from repconv.search.reports.found import Found
    from repconv.search.retrain_config import RetrainConfig


def _written() -> list[str]:
    """The files of a retraining's folder."""
    from repconv.search.folder import CHECKPOINT, CONFIG, ENVIRONMENT, METRICS, RESULT
    from repconv.search.retrain import FUSED, RETRAINED

    return [CONFIG, ENVIRONMENT, METRICS, CHECKPOINT, RESULT, RETRAINED, FUSED]


@click.command(
    cls=Command, epilog="Example: repconv retrain runs/a/best.arch.json --preset cifar10 --data cifar10:PATH -o runs/b"
)
@click.argument("architecture", metavar="ARCHITECTURE", type=Reads())
@click.option("--preset", "preset_name", default="smoke", show_default=True, help="Settings to start from; see below.")
@click.option(
    "--top",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Train the N best of a result or a population, each into a folder of its own, OUTPUT/1 on.",
)
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
    top: int,
    data: str | None,
    network: str | None,
    settings: tuple[str, ...],
    output: str,
    json_file: str | None,
) -> None:
    """Train the searched ARCHITECTURE, or a network by its name, then fuse it.

    An architecture is best.arch.json of a search, or the best of its folder, its result.json or a
    populations/NNNN.json. A network is a name of repconv.list_models(), such as repvgg_resnet18, trained with all of
    its branches; --set width= and --set blocks= make it smaller, --set fixed= and --set branches= choose its branches.

    Presets: cifar10, imagenet (the paper's), cifar10-small, smoke. Writes a checkpoint and its fused form with the
    accuracy of both. Interrupted, the same line goes on from the last checkpoint. The preset imagenet goes on from the
    weights of the search and needs them: --set supernet=FILE.
    """
    from repconv.search.processes import joined
    from repconv.search.retrain_config import complete
    from repconv.search.retraining.start import subjects

    from .shared.record import file_record, write_json

    found, name = subjects(architecture, top)
    given = [*([f"data={data}"] if data else []), *([f"network={name}"] if name else [])]
    config = complete(preset_name, [*given, *settings])
    folders = [Path(output, str(rank)) for rank in range(1, top + 1)] if top > 1 else [Path(output)]
    with joined(config.device) as (processes, _):
        done = [_retrained(*one, config, processes, network) for one in zip(found, folders, strict=True)]
    if json_file is not None and processes.first:
        content = {"runs": done} if top > 1 else done[0]
        source = {"name": name} if name else file_record(Path(architecture))
        write_json(json_file, "repconv.retrain/1", {"source": source, **content})


def _retrained(
    found: Found | None, path: Path, config: RetrainConfig, processes: Processes, network: str | None
) -> dict[str, Any]:
    """Train one network, as far as it is not; the first process shows what came of it."""
    from repconv.benchmarks.environment import environment
    from repconv.search.folder import RESULT, RunFolder
    from repconv.search.retrain import FUSED, RETRAINED, retrain
    from repconv.search.retrain_config import SCHEMA, RetrainConfig
    from repconv.search.settings import settings_to_dict
    from repconv.search.supernet.records import RETRAIN

    from .shared.record import file_record

    folder = RunFolder(path)
    with ExitStack() as started:
        if processes.first:
            wanted = settings_to_dict(config, SCHEMA) | ({} if found is None else {"architecture": found.to_dict()})
            usual = settings_to_dict(RetrainConfig(), SCHEMA)
            started.enter_context(RunFolder.starting(path, wanted, environment(), usual, resume=True))
        processes.gathered([str(path)])  # until then the others have no folder to read
        with going_on_is_said("the same line again"):
            retrain(folder, found, config, Epochs(config.epochs, _under_way), own_code=network)
    result = folder.read_json(RESULT, RETRAIN) if processes.first else {}
    if processes.first:
        click.echo(
            f"\n  {result['measured_on']} accuracy on {result['images']:,} images: {result['accuracy']:.4f}, "
            f"fused {result['fused_accuracy']:.4f}\n  wrote {path / RETRAINED} and {path / FUSED}"
        )
    written = [file_record(path / name) for name in (RETRAINED, FUSED)] if processes.first else []
    return {"run": str(path), "result": result, "outputs": written}


def _under_way(record: Mapping[str, Any]) -> None:
    """Show what was measured, or grown and cut, between epochs."""
    if record["kind"] == "growth":
        said = [f"{name or 'the network'} gets {', '.join(kinds)}" for name, kinds in record["grown"].items()]
        said += [f"{name or 'the network'} loses {', '.join(kinds)}" for name, kinds in record["cut"].items()]
        text = "; ".join(said) or "nothing to grow or to cut"
    else:
        text = f"{record['measured_on']} accuracy {record['accuracy']:.4f} on {record['images']:,} images"
    click.echo(f"epoch {record['epoch']}: {text}", err=True)
