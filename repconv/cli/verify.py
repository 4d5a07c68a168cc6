"""`repconv verify`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from repconv.export.targets import TARGETS

from .shared.command import Command, Reads
from .shared.options import InputShape, json_option, source_options

if TYPE_CHECKING:
    from repconv.export.comparing.locate import Located

    from ..proof.agreement import Agreement, Comparison

_AROUND = 3
"""How many steps before and after the first difference are shown."""


_FILES = ", ".join(dict.fromkeys(f"{target.suffix} ({target.title})" for target in TARGETS.values()))


@click.command(
    cls=Command,
    epilog="Example: repconv verify checkpoint.pt fused.onnx --locate",
    help=f"""Compare A and B, each run in its own runtime, and say whether they are the same network.

    A and B are what `repconv export` writes, {_FILES}, .pt2 programs (torch.export), or whatever `repconv fuse` takes
    (PyTorch): checkpoints, state dicts of a network named by --model, models by name.

    Exit code 1 if they differ by more than rounding in the less precise of the two, which int8 always does, or by more
    than --atol + --rtol allow where one is given; 3 where one of them cannot run here.
    """,
)
@click.argument("a", type=Reads(source=True))
@click.argument("b", type=Reads(source=True))
@click.option(
    "--input-shape", "--image", "input_shape", type=InputShape(), help="Shape of one input, if none is recorded."
)
@click.option(
    "--inputs",
    "inputs_text",
    type=Reads(),
    help="Compare on these: a FILE.npz of one array [n, ...] an input, or a folder or zip of images.  [default: noise]",
)
@click.option("--images", type=click.IntRange(1), default=64, show_default=True, help="At most so many of --inputs.")
@click.option("--atol", type=click.FloatRange(0), help="Absolute error that passes, whatever rounding explains.")
@click.option("--rtol", type=click.FloatRange(0), help="Error that passes, relative to the output's largest number.")
@click.option("--locate", is_flag=True, help="Compare layer by layer, and show where the two first differ.")
@source_options
@json_option
def command(
    a: str,
    b: str,
    input_shape: tuple[int, ...] | None,
    inputs_text: str | None,
    images: int,
    atol: float | None,
    rtol: float | None,
    locate: bool,
    model_name: str | None,
    state_key: str | None,
    json_file: str | None,
) -> None:
    """Open both, compare, print."""
    from repconv.export.artefacts.open import open_both
    from repconv.export.comparing.compare import Allowed, inputs_for, verify_artefacts
    from repconv.export.comparing.locate import locate as find
    from repconv.export.inputs.given import read_inputs

    from .shared.record import write_json

    first, second = open_both(a, b, model=model_name, state_key=state_key)
    for artefact in (first, second):
        for note in artefact.notes:
            click.echo(f"repconv: {artefact.name}: {note}", err=True)
    if inputs_text is None:
        inputs = inputs_for(first, second, input_shape)
    else:
        norm = first.normalization or second.normalization
        if norm is None and Path(inputs_text).suffix != ".npz":
            said = "neither records how images are normalised; they are given as numbers from 0 to 1"
            click.echo(f"repconv: {said}", err=True)
        inputs = read_inputs(inputs_text, first, second, input_shape, norm, limit=images)
    allowed = None if atol is None and rtol is None else Allowed(atol or 0.0, rtol or 0.0)
    agreement, reference = verify_artefacts(first, second, inputs, allowed)
    for label, artefact in zip("AB", (first, second), strict=True):
        click.echo(f"  {label}  {artefact.name}, run by {artefact.kind}")
    click.echo(f"  measured against {reference}\n")
    click.echo(_agreement_table(agreement))
    click.echo("\n" + click.wrap_text(agreement.verdict, 116, "  ", "  "))
    located = find(first, second, inputs[0]) if locate else None
    if located is not None:
        click.echo("\n" + _located_table(located, agreement))
    if json_file is not None:
        write_json(
            json_file,
            "repconv.verify/1",
            {
                "a": first.to_dict(),
                "b": second.to_dict(),
                "settings": {
                    "input_shape": input_shape,
                    "locate": locate,
                    "inputs": inputs_text,
                    "atol": atol,
                    "rtol": rtol,
                },
                "reference": reference,
                "agreement": agreement.to_dict(),
                **({} if located is None else {"located": located.to_dict()}),
            },
        )
    if not agreement.passed:
        raise click.exceptions.Exit(1)


def _agreement_table(agreement: Agreement) -> str:
    from .shared.text import table

    has_reference = any(c.own for c in agreement.comparisons)
    paths = any(c.path for c in agreement.comparisons)
    rows = [["input", *(["output"] if paths else []), "error", *(["own"] if has_reference else []), "allowed", ""]]
    rows += [
        [
            c.where,
            *([c.path] if paths else []),
            _error(c),
            *([f"{c.own.to_scale:.1e}" if c.own else ""] if has_reference else []),
            f"{c.tolerance:.1e}",
            "equal" if c.passed else f"DIFFERS{f': {c.mismatch}' if c.mismatch else ''}",
        ]
        for c in agreement.comparisons
    ]
    numbers = range(2 if paths else 1, len(rows[0]) - 1)
    note = "  error: largest difference, relative to the output's scale"
    if has_reference:
        note += "; own: the same for the reference in its own precision"
    return table(rows, right=tuple(numbers)) + "\n" + note


def _error(c: Comparison) -> str:
    return "" if c.mismatch else f"{c.error.to_scale:.1e}" if c.error.finite else "NaN/Inf"


def _located_table(located: Located, agreement: Agreement) -> str:
    from .shared.text import table

    if not located.steps:
        return "  no intermediate tensors of the two could be matched"
    first = located.first
    head = f"  {len(located.steps)} intermediate tensors compared, matched {located.method}"
    if first is None or agreement.passed:
        return f"{head}\n  {'no difference' if agreement.passed else 'none differs here: the difference arises later'}"
    start, end = max(0, first - _AROUND), min(len(located.steps), first + _AROUND + 1)
    rows = [["", "at", "shape", "error", "allowed", ""]]
    for index in range(start, end):
        step = located.steps[index]
        said = "" if step.passed else "no counterpart" if index in located.excused else step.mismatch or "DIFFERS"
        rows.append(
            [
                ">" if index == first else "",
                _short(step.where),
                "x".join(map(str, step.shape)),
                _error(step),
                f"{step.tolerance:.1e}",
                said,
            ]
        )
    said = f"  first difference at {located.steps[first].where}, number {first + 1} of them"
    return f"{head}\n{said}\n\n{table(rows, right=(3, 4))}"


def _short(name: str, width: int = 64) -> str:
    return name if len(name) <= width else f"{name[: width // 2 - 1]}..{name[1 - width // 2 :]}"
