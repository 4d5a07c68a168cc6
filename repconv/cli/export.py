"""`repconv export`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from repconv.export.settings import DEFAULT_CAPABILITIES, PRECISIONS
from repconv.export.targets import TARGETS, having

from .shared.command import Command, Reads, Writes
from .shared.options import BatchRange, ImageRange, Numbers, checked_output, json_option, source_options

if TYPE_CHECKING:
    from repconv.export.record import ExportRecord
    from repconv.export.settings import Span

    from ..sources.source import Source

_SUFFIXES = ", ".join(f"{target.suffix} ({target.name})" for target in TARGETS.values())
_WORST_SHOWN = 5
"""Layers of an int8 model that are printed; the JSON has all."""


@click.command(
    cls=Command,
    epilog="Example: repconv export checkpoint.pt --to onnx -o model.onnx --precision int8 "
    "--calibrate imagefolder:images.zip --json model.json",
)
@click.argument("source", type=Reads(source=True))
@click.option("--to", "target", type=click.Choice(list(TARGETS)), required=True, help="Runtime to build for.")
@click.option("-o", "--output", type=Writes(), required=True, help=f"To write: {_SUFFIXES}.")
@click.option("--precision", type=click.Choice(PRECISIONS), default="fp32", show_default=True)
@click.option("--batch", type=BatchRange(), default="1", show_default=True, help="Images a call, or a range.")
@click.option(
    "--image",
    "--input-shape",
    "image",
    type=ImageRange(),
    help="Height and width, or every size of another input; each a number or a range, channels before them or not.  "
    "[default: the source's]",
)
@click.option("--opset", type=click.IntRange(13, 26), help="ONNX opset.  [default: 18; 22 for bf16]")
@click.option("--fp32-io", is_flag=True, help="fp16, bf16: keep inputs and outputs float32.")
@click.option(
    "--channels-last", is_flag=True, help=f"{having('channels_last')}: take images as height, width, channels."
)
@click.option("--no-fuse", is_flag=True, help="Export SOURCE as it is, branches and all.")
@click.option(
    "--calibrate", type=Reads(), help="int8: images, as imagefolder:FOLDER, imagefolder:FILE.zip or FILE.npz."
)
@click.option("--calibration-images", type=click.IntRange(1), default=256, show_default=True, help="At most so many.")
@click.option("--random-calibration", is_flag=True, help="int8: calibrate on noise, for a file that is only timed.")
@click.option("--per-tensor", is_flag=True, help="int8: one scale a weight instead of one a channel.")
@click.option("--reduce-range", is_flag=True, help="int8: weights of 7 bits, for x86 processors without VNNI.")
@click.option("--equalise", is_flag=True, help="int8: cross-layer equalisation first.")
@click.option("--keep-float", metavar="N|NAME,...", help="int8: leave the N layers furthest off, or these, in float32.")
@click.option(
    "--max-lost",
    type=click.FloatRange(0, 100),
    default=5,
    show_default=True,
    help="int8: points of accuracy, if labelled.",
)
@click.option(
    "--max-changed",
    type=click.FloatRange(0, 100),
    default=25,
    show_default=True,
    help="int8: % of images that may change class.",
)
@click.option(
    "--evaluate",
    type=Reads(),
    help="Images to compare on, as --calibrate.  [default: calibration images kept back, or noise]",
)
@click.option("--images", type=click.IntRange(1), default=64, show_default=True, help="At most so many to compare on.")
@click.option(
    "--preprocess", is_flag=True, help="Normalise inside the artefact, with what SOURCE records or --mean, --std."
)
@click.option("--mean", type=Numbers(), help="Of images in [0, 1], one a channel.")
@click.option("--std", type=Numbers(), help="Of images in [0, 1], one a channel.")
@click.option("--uint8", is_flag=True, help="With --preprocess: the artefact takes bytes.")
@click.option("--bgr", is_flag=True, help="With --preprocess: the artefact takes channels in reverse order.")
@click.option(
    "--sm",
    help=f"{having('capabilities')}: compute capabilities, such as SM86,SM89.  "
    f"[default: {','.join(DEFAULT_CAPABILITIES)}]",
)
@click.option("--timing-cache", type=Writes(path_type=Path), help=f"{having('timing_cache')}: read and written.")
@click.option("--tolerance", type=float, help="Error accepted.  [default: by precision]")
@click.option("--dump-on-failure", type=Writes(path_type=Path), help="Where the worst call goes, .npz.")
@click.option("--log", type=Writes(path_type=Path), help="Where all goes that the libraries that convert say.")
@click.option("--require-verified", is_flag=True, help="Exit 1 if it cannot be run here.")
@source_options
@json_option
def command(
    source: str,
    target: str,
    output: str,
    precision: str,
    batch: Span,
    image: tuple[Span, ...] | None,
    opset: int | None,
    fp32_io: bool,
    channels_last: bool,
    no_fuse: bool,
    calibrate: str | None,
    calibration_images: int,
    random_calibration: bool,
    per_tensor: bool,
    reduce_range: bool,
    equalise: bool,
    keep_float: str | None,
    max_lost: float,
    max_changed: float,
    evaluate: str | None,
    images: int,
    preprocess: bool,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    uint8: bool,
    bgr: bool,
    sm: str | None,
    timing_cache: Path | None,
    tolerance: float | None,
    dump_on_failure: Path | None,
    log: Path | None,
    require_verified: bool,
    model_name: str | None,
    state_key: str | None,
    json_file: str | None,
) -> None:
    """Build SOURCE for a runtime, at the precision asked for, and run it there against the unfused network.

    SOURCE is what `repconv fuse` takes: a checkpoint, a network by name, an .onnx file or a .pt2 program. It is fused
    first. What differs by more than its precision allows is not written (exit code 1). What cannot be run here, such as
    an engine without a GPU, is written and said to be "built, not run".
    """
    from repconv.export.exporting import export
    from repconv.export.inputs.data import Data
    from repconv.export.record import SCHEMA
    from repconv.export.settings import BuildSettings, Quantization, check_capabilities
    from repconv.export.subject import preprocessing_of

    from ..errors import SourceError
    from ..sources.source import open_source
    from .shared.record import write_json
    from .shared.text import paragraph

    out = checked_output(output, [TARGETS[target].suffix])
    ways = {
        "--per-tensor": per_tensor, "--reduce-range": reduce_range, "--equalise": equalise, "--keep-float": keep_float,
    }  # fmt: skip
    _refuse_idle(target, precision, sm, ways)
    if not preprocess and (uint8 or bgr or mean is not None or std is not None):
        raise SourceError("--mean, --std, --uint8 and --bgr say what --preprocess puts into the artefact; add it")
    given: str | Source = source
    preprocessing = None
    if preprocess:
        given = open_source(source, model=model_name, state_key=state_key)
        preprocessing = preprocessing_of(given, mean, std, uint8=uint8, bgr=bgr)
    settings = BuildSettings(
        precision=precision,
        batch=batch,
        image=image,
        opset=opset,
        fp32_io=fp32_io,
        channels_last=channels_last,
        fuse=not no_fuse,
        preprocessing=preprocessing,
        quantization=Quantization(not per_tensor, equalise, _layers(keep_float), reduce_range),
        capabilities=DEFAULT_CAPABILITIES if sm is None else check_capabilities(sm.split(",")),
        timing_cache=timing_cache,
        tolerance=tolerance,
        max_lost=max_lost / 100,
        max_changed=max_changed / 100,
    )
    with _kept(log):
        record = export(
            given,
            target,
            out,
            settings,
            Data(calibrate, evaluate, calibration_images, images, random_calibration),
            model=model_name,
            state_key=state_key,
            dump_on_failure=dump_on_failure,
            require_verified=require_verified,
            say=lambda doing: click.echo(f"repconv: {doing}", err=True),
        )
    for note in record.notes:
        click.echo(f"repconv: {source}: {note}", err=True)
    click.echo(_summary(record))
    click.echo("\n" + paragraph(record.verdict))
    for written in record.outputs:
        click.echo(f"  wrote {written['path']}: {written['bytes']:,} bytes, sha256 {str(written['sha256'])[:16]}")
    if json_file is not None:
        write_json(json_file, SCHEMA, record.to_dict())


@contextmanager
def _kept(log: Path | None) -> Iterator[None]:
    """Write what libraries say inside to a file, whether or not it ends well."""
    from repconv.export.onnx.quiet import logged

    from ..files.whole import write_whole

    if log is None:
        yield
        return
    with logged() as said:
        try:
            yield
        finally:
            write_whole({log: "".join(said).encode()})


def _layers(text: str | None) -> int | tuple[str, ...]:
    """A number of layers, or their names."""
    if text is None or text.strip().isdecimal():
        return int(text or 0)
    return tuple(name.strip() for name in text.split(","))


def _refuse_idle(target: str, precision: str, sm: str | None, ways: Mapping[str, object]) -> None:
    """Options that would change nothing; `ways` of doing int8."""
    from ..errors import SourceError

    if sm is not None and "capabilities" not in TARGETS[target].options:
        raise SourceError(f"--sm is for {having('capabilities')}, not {target}")
    idle = next((option for option, value in ways.items() if value), None)
    if precision != "int8" and idle is not None:
        raise SourceError(f"{idle} is for int8, not {precision}")


def _summary(record: ExportRecord) -> str:
    """What was built, as a table of facts, and the worst layers of an int8 model."""
    from .shared.text import table

    facts = {
        "status": record.status, "runtime": record.runtime, "precision": record.settings.precision,
        "input": record.input_shape, **{key.replace("_", " "): value for key, value in record.observed.items()},
    }  # fmt: skip
    if record.fusion is not None:
        facts["fused"] = "convolutions {} to {}".format(*record.fusion["convolutions"])  # type: ignore[misc]  # a pair
    if record.evidence is not None and record.evidence.accuracy is not None:
        seen = record.evidence
        facts["accuracy"] = f"{seen.accuracy:.1%}, before {seen.accuracy_before:.1%}, of {seen.labelled} images"
    text = "\n".join(f"  {key:<20} {value}" for key, value in facts.items())
    layers = record.details.get("quantization", {}).get("layers", [])  # type: ignore[attr-defined]  # plain containers
    if not layers:
        return text
    rows = [["worst layers", "kind", "rms error alone", "with all before"]]
    rows += [
        [layer["name"], layer["kind"], f"{layer['alone']:.1%}", f"{layer['error']:.1%}"]
        for layer in layers[:_WORST_SHOWN]
    ]
    return f"{text}\n\n{table(rows, right=(2, 3))}"
