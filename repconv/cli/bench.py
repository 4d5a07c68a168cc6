"""`repconv bench`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from repconv.export.settings import PRECISIONS
from repconv.export.targets import TARGETS

from .shared.command import Command, Reads, Writes
from .shared.options import WholeNumbers, json_option, source_options

if TYPE_CHECKING:
    from repconv.benchmarks.harness.results import BenchResult

_TIMED = [timed for target in TARGETS.values() for timed in target.timed]


@click.command(
    cls=Command,
    epilog="Example: repconv bench checkpoint.pt --backend torch,onnxruntime --batch 1,8 --json bench.json "
    "--html bench.html",
)
@click.argument("sources", type=Reads(source=True), nargs=-1, metavar="SOURCE...")
@click.option(
    "--backend",
    "backends",
    multiple=True,
    help=f"What runs it: torch, torch.compile, {', '.join(timed.name for timed in _TIMED)}; several separated by "
    f"commas.  [default: torch{''.join(f', {timed.name}' for timed in _TIMED if timed.usual)}, where installed]",
)
@click.option("--batch", type=WholeNumbers(1, "1,8"), default="1", show_default=True, help="Images a call.")
@click.option("--precision", default="fp32", show_default=True, help=f"{', '.join(PRECISIONS)}; several by commas.")
@click.option(
    "--against",
    type=Reads(),
    help="What fused networks are compared with: plain, unfused or a FILE.  [default: unfused, and the "
    "plain network of the same shape where it is known]",
)
@click.option(
    "--image",
    "--input-shape",
    "image",
    type=WholeNumbers(1, "224,224"),
    help="Height and width, if SOURCE does not say; or channels, height and width.",
)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=30, show_default=True, help="Turns of every subject.")
@click.option("--seconds", type=float, default=2.0, show_default=True, help="Timed at least, each subject.")
@click.option("--calls", type=click.IntRange(1), default=60, show_default=True, help="Timed at least, each subject.")
@click.option("--warmup", "warmup_s", type=float, default=0.5, show_default=True, help="Seconds before each session.")
@click.option(
    "--sessions",
    type=click.IntRange(1),
    default=6,
    show_default=True,
    help="How often every subject is loaded anew; they share the rounds.",
)
@click.option("--threads", type=click.IntRange(1), help="Of each backend's pool.  [default: each backend's own choice]")
@click.option("--pin", "cpus", type=WholeNumbers(0, "0,1"), default=(), help="Cores the backends may use.")
@click.option("--transfers", is_flag=True, help="On a GPU: time copying images in and results out, too.")
@click.option("--cuda-graphs", is_flag=True, help="On a GPU: record the calls once and replay them.")
@click.option("--cuda-events", is_flag=True, help="On a GPU: PyTorch and engines are timed by the GPU's own clock.")
@click.option("-o", "--output", type=Writes(), help="Write the tables to this Markdown file.")
@click.option("--html", "html_file", type=Writes(), help="Write a report to this HTML file.")
@source_options
@json_option
def command(
    sources: tuple[str, ...],
    backends: tuple[str, ...],
    batch: tuple[int, ...],
    precision: str,
    against: str | None,
    image: tuple[int, ...] | None,
    device: str,
    rounds: int,
    seconds: float,
    calls: int,
    warmup_s: float,
    sessions: int,
    threads: int | None,
    cpus: tuple[int, ...],
    transfers: bool,
    cuda_graphs: bool,
    cuda_events: bool,
    output: str | None,
    html_file: str | None,
    model_name: str | None,
    state_key: str | None,
    json_file: str | None,
) -> None:
    """Measure the latency of SOURCEs, unfused, fused and against the plain network, on several backends in turns.

    SOURCE is a repconv checkpoint, a state dict of a network named by --model, timm:NAME[@WEIGHTS],
    torchvision:NAME[@WEIGHTS], package.module:factory[@WEIGHTS], an .onnx file or a .pt2 program.

    Every fused network is compared with its source first. Exit code 1 if one differs by more than rounding, 3 if a
    backend is missing, 4 if one failed.
    """
    from repconv.benchmarks.harness.backends import default_backends
    from repconv.benchmarks.harness.bench import bench
    from repconv.benchmarks.harness.results import SCHEMA
    from repconv.benchmarks.harness.settings import BenchSettings

    from ..errors import SourceError
    from .shared.bench_text import differing, findings, markdown, tables
    from .shared.record import write_json

    if not sources:
        raise SourceError("no SOURCE to measure; name a file, or a network such as timm:resnet18")
    names = tuple(name.strip() for text in backends for name in text.split(",") if name.strip())
    if backends and not names:
        raise SourceError("--backend names none; leave it out, or name one such as onnxruntime")
    settings = BenchSettings(
        backends=names or default_backends(device, sources),
        batches=batch,
        precisions=tuple(p.strip() for p in precision.split(",")),
        against=against,
        image=image,
        device=device,
        rounds=rounds,
        seconds=seconds,
        calls=calls,
        warmup_s=warmup_s,
        sessions=_sessions(rounds, sessions),
        threads=threads,
        cpus=cpus,
        transfers=transfers,
        cuda_graphs=cuda_graphs,
        cuda_events=cuda_events,
    )
    result = bench(
        sources,
        settings,
        model=model_name,
        state_key=state_key,
        say=lambda doing: click.echo(f"repconv: {doing}", err=True),
    )
    for note in result.notes:
        click.echo(f"repconv: {note}", err=True)
    click.echo(tables(result))
    click.echo(findings(result))
    if output is not None:
        _write(output, markdown(result, _command()))
    if html_file is not None:
        from repconv.benchmarks.harness.page import bench_report

        _write(html_file, bench_report(result))
    if json_file is not None:
        write_json(json_file, SCHEMA, {"command": _command(), **result.to_dict()})
    _leave(result, differing(result))


def _sessions(rounds: int, asked: int) -> int:
    """As asked; few rounds are one session each, where nothing else was asked."""
    chosen = click.get_current_context().get_parameter_source("sessions")
    if chosen is click.core.ParameterSource.DEFAULT and rounds % asked:
        return next(n for n in range(min(asked, rounds), 0, -1) if rounds % n == 0)
    return asked


def _command() -> str:
    """What was typed, without the folders of this machine."""
    import shlex

    return shlex.join(["repconv", *(Path(w).name if Path(w).is_absolute() else w for w in sys.argv[1:])])


def _write(path: str, text: str) -> None:
    from ..files.whole import whole_file

    with whole_file(path) as stream:
        stream.write(text.encode())


def _leave(result: BenchResult, said: list[str]) -> None:
    """Exit codes 1 and 4."""
    for line in said:
        click.echo(f"repconv: {line}", err=True)
    if result.differing:
        raise click.exceptions.Exit(1)
    if result.failed:
        raise click.exceptions.Exit(4)
