"""What every command does before its work: its files are told apart."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from ...files.apart import Place

    _Text = click.ParamType[str]
else:  # click before 8.4 has no types to name
    _Text = click.ParamType

T = TypeVar("T", str, Path)


class Reads(_Text):
    """Text that may name files to read: a SOURCE, images, code, `KEY=VALUE`.

    Args:
        inside: the names of the files in it that count, where it names a run's folder.
    """

    name = "text"

    def __init__(self, inside: Callable[[], Sequence[str]] | None = None) -> None:
        self.inside = inside

    def files(self, value: str) -> list[Path]:
        """What it reads of the value."""
        from ...files.apart import named

        return named(value) if self.inside is None else [Path(value, name) for name in self.inside()]


class Writes(click.Path):
    """A file to write.

    Args:
        unnamed: the files that may be written where the option is not given, of all parameters by name.
        path_type: `str` or `Path`.
    """

    def __init__(
        self,
        unnamed: Callable[[Mapping[str, Any]], Iterable[Path]] | None = None,
        *,
        path_type: type[T] = str,  # type: ignore[assignment]  # the default of a type variable
    ) -> None:
        super().__init__(readable=False, path_type=path_type)
        self.name = "file"  # a folder is refused with the others that cannot be written
        self.unnamed = unnamed

    def files(self, value: str | Path) -> list[Path]:
        """What it writes of the value."""
        from ...files.apart import written_with

        return written_with(Path(value))


class WritesFolder(click.Path):
    """A folder to write.

    Args:
        inside: the files that are written in it, by name.
        path_type: `str` or `Path`.
    """

    def __init__(
        self,
        inside: Callable[[], Sequence[str]],
        *,
        path_type: type[T] = str,  # type: ignore[assignment]  # the default of a type variable
    ) -> None:
        super().__init__(file_okay=False, readable=False, path_type=path_type)
        self.inside = inside

    def files(self, value: str | Path) -> list[Path]:
        """What it writes of the value; the folder itself is no file to write."""
        return [Path(value), *(Path(value, name) for name in self.inside())]


class Command(click.Command):
    """A command whose parameters of the types above are files apart, or it does nothing."""

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401  # click's signature
        """Run it.

        Raises:
            OutputError: an output is an input or another output, or cannot be written.
        """
        from ...files.apart import require_apart
        from ...files.whole import require_writable

        written = list(self._places(ctx, (Writes, WritesFolder)))
        require_apart(self._places(ctx, (Reads,)) if written else (), written)
        folders = [
            Path(value) for p in self.params for value in self._values(ctx, p) if isinstance(p.type, WritesFolder)
        ]
        for parameter in self.params:
            for value in self._values(ctx, parameter) if isinstance(parameter.type, Writes) else ():
                if Path(value).parent not in folders:
                    require_writable(value)
        return super().invoke(ctx)

    def _places(self, ctx: click.Context, kinds: tuple[type[Reads | Writes | WritesFolder], ...]) -> Iterator[Place]:
        from ...files.apart import Place

        for parameter in self.params:
            kind = parameter.type
            if not isinstance(kind, kinds):
                continue
            said = _spelled(parameter)
            values = self._values(ctx, parameter)
            yield from (Place(path, said) for value in values for path in kind.files(value))
            if isinstance(kind, Writes) and kind.unnamed is not None and not values:
                yield from (Place(path, f"{said}, which is not given") for path in kind.unnamed(ctx.params))

    @staticmethod
    def _values(ctx: click.Context, parameter: click.Parameter) -> tuple[Any, ...]:
        value = ctx.params.get(str(parameter.name))
        return () if value is None else value if isinstance(value, tuple) else (value,)


def _spelled(parameter: click.Parameter) -> str:
    """As users write it."""
    return max(parameter.opts, key=len) if isinstance(parameter, click.Option) else parameter.human_readable_name
