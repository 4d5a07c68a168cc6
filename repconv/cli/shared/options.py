"""Option types the commands share."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from .command import Reads, Writes

if TYPE_CHECKING:
    from repconv.export.settings import Span

    _Shape = click.ParamType[tuple[int, ...]]
    _Batch = click.ParamType["Span"]
    _Image = click.ParamType[tuple["Span", ...]]
    _WholeNumbers = click.ParamType[tuple[int, ...]]
    _Numbers = click.ParamType[tuple[float, ...]]
else:  # click before 8.4 has no types to name
    _Shape = _Batch = _Image = _WholeNumbers = _Numbers = click.ParamType


class InputShape(_Shape):
    """`3,224,224` or `3x224x224`, with or without a leading batch of 1; what it means depends on who takes it."""

    name = "C,H,W"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:  # noqa: ANN401  # click's signature
        """Return the numbers, which `blocks.probing.example_shape` understands."""
        if isinstance(value, tuple):
            return value
        parts = re.split(r"[,x]", str(value))
        if len(parts) > 5 or not all(p.isdecimal() and int(p) for p in parts):
            self.fail(
                f"{value!r} is no shape of an input, like 3,224,224 or 1x3x224x224 of an image, 80,300 of a sequence "
                "of 80 channels, 3,16,112,112 of a clip of 16 images",
                param,
                ctx,
            )
        return tuple(map(int, parts))


class BatchRange(_Batch):
    """`N` or `MIN:OPT:MAX`."""

    name = "N|MIN:OPT:MAX"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Span:  # noqa: ANN401  # click's signature
        """Return the range."""
        from repconv.export.settings import Span

        from ...errors import SourceError

        if isinstance(value, Span):
            return value
        try:
            return Span.parse(str(value))
        except SourceError as error:
            self.fail(str(error), param, ctx)


class ImageRange(_Image):
    """`H,W`, each a number or `MIN:OPT:MAX`, or `C,H,W`."""

    name = "H,W"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Span, ...]:  # noqa: ANN401  # click's signature
        """Return height and width, or channels and both."""
        from repconv.export.settings import parse_image

        from ...errors import SourceError

        if isinstance(value, tuple):
            return value
        try:
            return parse_image(str(value))
        except SourceError as error:
            self.fail(str(error), param, ctx)


class WholeNumbers(_WholeNumbers):
    """Whole numbers from `least` on, separated by commas.

    Args:
        least: the smallest that makes sense.
        example: for messages.
    """

    name = "N,N"

    def __init__(self, least: int, example: str) -> None:
        self._least = least
        self._example = example

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:  # noqa: ANN401  # click's signature
        """Return the numbers."""
        if isinstance(value, tuple):
            return value
        parts = [part.strip() for part in str(value).split(",")]
        if not all(part.isdecimal() and int(part) >= self._least for part in parts):
            self.fail(f"{value!r}: expected whole numbers from {self._least} on, such as {self._example}", param, ctx)
        return tuple(map(int, parts))


class Numbers(_Numbers):
    """Numbers separated by commas, one a channel."""

    name = "R,G,B"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:  # noqa: ANN401  # click's signature
        """Return the numbers."""
        if isinstance(value, tuple):
            return value
        try:
            return tuple(float(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not a list of numbers like 0.485,0.456,0.406", param, ctx)


def checked_output(output: str, formats: Sequence[str]) -> Path:
    """Refuse, before anything is computed, an output of another format."""
    from ...errors import OutputError

    out = Path(output)
    if out.suffix not in formats:
        raise OutputError(f"{out}: the output ends in {', '.join(formats)}, got {out.suffix or 'no suffix'!r}")
    return out


F = TypeVar("F", bound=Callable[..., object])


def source_options(command: F) -> F:
    """How to read a SOURCE that does not describe itself."""
    for option in (
        click.option(
            "--arg",
            "arguments",
            multiple=True,
            metavar="KEY=VALUE",
            help="Argument of the factory of a network by name, such as num_classes=10; may be repeated.",
        ),
        click.option("--state-key", help="Key in the file under which the weights are, if there are several."),
        click.option(
            "--model",
            "model_name",
            type=Reads(),
            help="Network of a bare state dict: a name, or package.module:factory.",
        ),
    ):
        command = option(command)
    return command


json_option = click.option(
    "--json",
    "json_file",
    type=Writes(dash=True),
    help="Write everything measured to this JSON file; -: to standard output.",
)
