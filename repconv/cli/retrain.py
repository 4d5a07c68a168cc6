"""`repconv retrain`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import json_option

if TYPE_CHECKING:
    from repconv.search.folder import RunFolder


@click.command(epilog="Example: repconv retrain runs/a/best.arch.json --preset cifar10 --data cifar10:PATH -o runs/b")
@click.argument("architecture")
@click.option("--preset", "preset_name", default="smoke", show_default=True, help="Settings to start from; see below.")
@click.option("--data", help="Training images, as of repconv search run.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Change a setting; may be repeated.")
@click.option("-o", "--output", required=True, help="Folder of the run: new, or one of this very line to go on with.")
@json_option
def command(
    architecture: str, preset_name: str, data: str | None, settings: tuple[str, ...], output: str, json_file: str | None
) -> None:
    """Train the searched ARCHITECTURE (a repconv.arch/1 file of a search), then fuse it.

    Presets: cifar10, imagenet (the paper's), cifar10-small, smoke. Writes a checkpoint and its fused form with the
    accuracy of both. Interrupted, the same line goes on from the last checkpoint.
    """
    from repconv.search.folder import RESULT
    from repconv.search.found import read_found
    from repconv.search.retrain import FUSED, RETRAINED, retrain
    from repconv.search.retrain_config import SCHEMA, retrain_preset
    from repconv.search.settings import changed, settings_to_dict

    from ..errors import SearchError
    from .record import file_record, write_json

    found = read_found(architecture)
    config = changed(retrain_preset(preset_name).config, [*([f"data={data}"] if data else []), *settings])
    if not config.data:
        raise SearchError(f"preset {preset_name} needs images: give --data, such as --data cifar10:PATH")
    folder = _folder(Path(output), {**settings_to_dict(config, SCHEMA), "architecture": found.to_dict()})
    retrain(folder, found, config, _show)
    result = folder.read_json(RESULT)
    click.echo(
        f"\n  {result['measured_on']} accuracy on {result['images']:,} images: {result['accuracy']:.4f}, "
        f"fused {result['fused_accuracy']:.4f}\n  wrote {folder.path / RETRAINED} and {folder.path / FUSED}"
    )
    if json_file is not None:
        write_json(json_file, "repconv.retrain/1", {
            "run": str(folder.path), "source": file_record(Path(architecture)), "result": result,
            "outputs": [file_record(folder.path / name) for name in (RETRAINED, FUSED)],
        })  # fmt: skip


def _folder(path: Path, wanted: Mapping[str, Any]) -> RunFolder:
    """A new folder, or the one of the same settings and architecture.

    Raises:
        OutputError: it holds another run.
    """
    from repconv.benchmarks.environment import environment
    from repconv.search.folder import CONFIG, RunFolder

    from ..errors import OutputError

    if not (path / CONFIG).exists():
        return RunFolder.create(path, wanted, environment())
    folder = RunFolder.open(path)
    if folder.read_json(CONFIG) != wanted:
        raise OutputError(f"{path} holds a run with other settings or another architecture; name another folder")
    return folder


def _show(record: Mapping[str, Any]) -> None:
    click.echo(
        f"epoch {record['epoch']}: loss {record['loss']:.4f}, learning rate {record['learning_rate']:.4g}, "
        f"{record['seconds_a_step']:.3f} s an update"
    )
