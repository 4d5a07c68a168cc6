"""`repconv search resume`, and what it shares with `run`: a run's progress and its end."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import click

from ..shared.command import Command, Reads
from ..shared.ending import going_on_is_said
from ..shared.options import json_option
from ..shared.progress import Epochs

if TYPE_CHECKING:
    from repconv.search.folder import RunFolder
    from repconv.search.processes import Processes


def files_of_a_run() -> tuple[str, ...]:
    """What a run's folder holds, by name; imported late, since torch is slow."""
    from repconv.search.folder import FILES

    return FILES


@click.command(cls=Command, epilog="Example: repconv search resume runs/small")
@click.argument("folder", type=Reads(files_of_a_run))
@click.option(
    "--data", type=Reads(), help="The run's data again, where they are package.module:factory: your own code."
)
@click.option(
    "--network", type=Reads(), help="The run's network again, where it is package.module:factory: your own code."
)
@json_option
def command(folder: str, data: str | None, network: str | None, json_file: str | None) -> None:
    """Go on with the run in FOLDER from its last checkpoint; on a CPU it ends as if nothing had happened."""
    from repconv.search.config import config_from_dict
    from repconv.search.folder import CONFIG, RunFolder
    from repconv.search.processes import joined

    opened = RunFolder.open(Path(folder))
    config = config_from_dict(opened.read_json(CONFIG), str(opened.path / CONFIG))
    with joined(config.device) as (processes, _):
        own_code = [name for name in (data, network) if name is not None]
        run_to_its_end(opened, json_file, processes, own_code)


def run_to_its_end(folder: RunFolder, json_file: str | None, processes: Processes, own_code: Collection[str]) -> None:
    """Run a search; the first process shows its progress and what it found.

    own_code: what the user named on the command line, which may be run.
    """
    from repconv.search.config import config_from_dict
    from repconv.search.folder import BEST, CONFIG, RESULT
    from repconv.search.reports.found import read_found
    from repconv.search.reports.picture import terminal
    from repconv.search.run import run
    from repconv.search.supernet.records import SEARCH
    from repconv.search.tasks.data import is_own_data
    from repconv.search.tasks.network import is_own_network

    from ..shared.record import file_record, write_json

    config = config_from_dict(folder.read_json(CONFIG), str(folder.path / CONFIG))
    own = {"data": (is_own_data, config.data), "network": (is_own_network, config.network)}
    named = [f" --{option} {name}" for option, (is_own, name) in own.items() if is_own(name)]
    with going_on_is_said(f"repconv search resume {folder.path}{''.join(named)}"):
        run(folder, Epochs(config.epochs, show_generation), own_code=own_code)
    if not processes.first:
        return
    best, result = read_found(folder.path / BEST), folder.read_json(RESULT, SEARCH)
    click.echo(f"\n{terminal(best.architecture)}\n")
    name = str(best.network["name"])
    again = f" --network {name}" if is_own_network(name) else ""
    click.echo(
        f"  best of {len(result['architectures'])}: validation accuracy {best.accuracy:.4f} as a single-path network\n"
        f"  wrote {folder.path / BEST}; train it with: repconv retrain {quote(str(folder.path / BEST))}{again}"
    )
    if json_file is not None:
        write_json(
            json_file,
            "repconv.search-run/1",
            {
                "run": str(folder.path),
                "best": file_record(folder.path / BEST),
                "result": result,
            },
        )


def show_generation(record: Mapping[str, Any]) -> None:
    """What selection found, in words."""
    from repconv.search.reports.history import measuring_s

    click.echo(
        f"generation {record['generation']}: {record['measured']} measured in {measuring_s(record):.1f} s, "
        f"population of {record['population']}: best {record['best_accuracy']:.4f}, "
        f"mean {record['mean_accuracy']:.4f}, mean age {record['mean_age']:.1f}, "
        f"{record['survivors']} of {record['parents']} parents live on",
        err=True,
    )
