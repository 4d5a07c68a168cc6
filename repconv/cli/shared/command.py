"""What every command does before its work, telling its files apart, and how loud it is."""

from __future__ import annotations

import ast
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.shell_completion import CompletionItem

from ...progress import watched
from .progress import watch
from .terminal import shown_on, unsaid

if TYPE_CHECKING:
    from ...files.apart import Place

    _Text = click.ParamType[str]
else:  # click before 8.4 has no types to name
    _Text = click.ParamType

T = TypeVar("T", str, Path)
DASH = "-"

_QUIET = click.Option(["-q", "--quiet"], is_flag=True, help="Print nothing but why it failed.")
_VERBOSE = click.Option(["-v", "--verbose"], is_flag=True, help="Where it fails, show the traceback, too.")


def parts() -> dict[str, tuple[str, ...]]:
    """Of an artefact by its suffix, the suffixes of the files that belong to it."""
    from repconv.export.targets import TARGETS

    return {target.suffix: target.beside for target in TARGETS.values()}


def is_folder(value: str | Path) -> bool:
    """Whether an artefact of this name is a folder."""
    from repconv.export.targets import of_suffix

    target = of_suffix(Path(value).suffix)
    return target is not None and target.folder


class Reads(_Text):
    """Text that may name files to read: a SOURCE, images, code, `KEY=VALUE`.

    Args:
        inside: the names of the files in it that count, where it names a run's folder.
        source: whether it must name something that is there.
    """

    name = "text"

    def __init__(self, inside: Callable[[], Sequence[str]] | None = None, *, source: bool = False) -> None:
        self.inside = inside
        self.source = source

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:  # noqa: ANN401  # click's signature
        """Return it as it is."""
        if value == DASH:
            self.fail("standard input is not read; name a file", param, ctx)
        return str(value)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG002  # click's signature
        """Files."""
        return [CompletionItem(incomplete, type="file")]

    def files(self, value: str) -> list[Path]:
        """What it reads of the value."""
        from ...files.apart import named

        return named(value, parts()) if self.inside is None else [Path(value, name) for name in self.inside()]


class Writes(click.Path):
    """A file to write.

    Args:
        unnamed: the files that may be written where the option is not given, of all parameters by name.
        dash: whether `-` is standard output.
        path_type: `str` or `Path`.
    """

    def __init__(
        self,
        unnamed: Callable[[Mapping[str, Any]], Iterable[Path]] | None = None,
        *,
        dash: bool = False,
        path_type: type[T] = str,  # type: ignore[assignment]  # the default of a type variable
    ) -> None:
        super().__init__(readable=False, path_type=path_type)
        self.name = "file"  # a folder is refused with the others that cannot be written
        self.unnamed = unnamed
        self.dash = dash

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ANN401  # click's signature
        """Return it as its type."""
        if value == DASH and not self.dash:
            self.fail("it is written whole or not at all, so not to standard output; name a file", param, ctx)
        return super().convert(value, param, ctx)

    def files(self, value: str | Path) -> list[Path]:
        """What it writes of the value."""
        from ...files.apart import written_with

        return [] if value == DASH else written_with(Path(value), parts())


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
    """A command whose parameters of the types above are files apart, or it does nothing; `-q` and `-v` are its own."""

    def __init__(self, *arguments: Any, **named: Any) -> None:  # noqa: ANN401  # click's signature
        super().__init__(*arguments, **named)
        taken = {p.name for p in self.params}
        self.params += [option for option in (_QUIET, _VERBOSE) if option.name not in taken]

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401  # click's signature
        """Run it.

        Raises:
            SourceError: a source is not there.
            OutputError: an output is an input or another output, or cannot be written.
        """
        from ...errors import RepconvError

        quiet, verbose = (ctx.params.pop(option.name or "", False) for option in (_QUIET, _VERBOSE))
        with ExitStack() as stack:
            if quiet:
                stack.enter_context(shown_on(None))
                stack.enter_context(unsaid())
            elif any(value == DASH for p in self.params for value in self._values(ctx, p)):
                stack.enter_context(shown_on(sys.stderr))
            shown = None if quiet else watch()
            if shown is not None:
                stack.enter_context(watched(shown))
            try:
                self._give(ctx, ctx.params.pop("arguments", ()))
                self._check(ctx)
                return super().invoke(ctx)
            except RepconvError:
                if verbose:
                    traceback.print_exc()
                raise

    def _give(self, ctx: click.Context, arguments: Sequence[str]) -> None:
        """Write arguments behind the name of each network that is made by name: `timm:NAME(num_classes=10)`.

        Raises:
            SourceError: they are no `KEY=VALUE`, or no network is made by name.
        """
        if not arguments:
            return
        from ...errors import SourceError

        said = f"({', '.join(map(_as_argument, arguments))})"
        given = False
        for parameter in self.params:
            key, kind = str(parameter.name), parameter.type
            if not isinstance(kind, Reads) or not (kind.source or key == "model_name") or ctx.params.get(key) is None:
                continue
            value = ctx.params[key]
            changed = tuple(_called(text, said) for text in self._values(ctx, parameter))
            given = given or changed != self._values(ctx, parameter)
            ctx.params[key] = changed if isinstance(value, tuple) else changed[0]
        if not given:
            raise SourceError("--arg is for networks made by name: timm:NAME, torchvision:NAME, package.module:factory")

    def _check(self, ctx: click.Context) -> None:
        """Refuse what cannot be read or written, before any work."""
        from ...files.apart import require_apart
        from ...files.whole import require_writable

        for parameter in self.params:
            kind = parameter.type
            if isinstance(kind, Reads):
                for value in self._values(ctx, parameter):
                    _require_readable(value, source_only=kind.source)
        written = list(self._places(ctx, (Writes, WritesFolder)))
        require_apart(self._places(ctx, (Reads,)) if written else (), written)
        folders = [
            Path(value) for p in self.params for value in self._values(ctx, p) if isinstance(p.type, WritesFolder)
        ]
        for parameter in self.params:
            for value in self._values(ctx, parameter) if isinstance(parameter.type, Writes) else ():
                if value != DASH and Path(value).parent not in folders:
                    require_writable(value, folder=is_folder(value))

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


def _as_argument(text: str) -> str:
    """`KEY=VALUE` as Python writes it; what is no number or list is a text."""
    from ...errors import SourceError

    key, equals, value = text.partition("=")
    if not equals or not key.isidentifier():
        raise SourceError(f"--arg {text}: expected KEY=VALUE, such as num_classes=10")
    try:
        return f"{key}={ast.literal_eval(value)!r}"
    except (ValueError, SyntaxError):
        return f"{key}={value!r}"


def _called(text: str, arguments: str) -> str:
    """A network's name, weights behind it or not, with arguments."""
    name, at, weights = text.partition("@")
    return text if ":" not in name or Path(text).exists() else f"{name}{arguments}{at}{weights}"


def _require_readable(source: str, *, source_only: bool) -> None:
    """Insist that no pipe or device is named, and that a SOURCE that can only be a file is there."""
    from ...errors import SourceError
    from ...files.apart import irregular

    endless = irregular(source)
    if endless is not None:
        raise SourceError(f"{endless} is no regular file, but a pipe or a device; name a file")
    if not source_only or ":" in source or Path(source).exists():
        return
    from ...sources.source import FORMS

    raise SourceError(f"{source}: no such file; SOURCE is {FORMS}")


def _spelled(parameter: click.Parameter) -> str:
    """As users write it."""
    return max(parameter.opts, key=len) if isinstance(parameter, click.Option) else parameter.human_readable_name
