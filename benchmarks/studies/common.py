"""What measuring scripts share: what each is asked, what its result begins with, and how that is kept and written."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

from repconv.files.whole import write_whole

ROOT = Path(__file__).resolve().parent.parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PICTURES = ROOT / "docs" / "pictures"


def asking(doc: str | None, output: str = "") -> argparse.ArgumentParser:
    """The parser of a script: its docstring is its help; with `output`, a result's name, it asks for the file."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    if output:
        parser.add_argument("--output", type=Path, default=RESULTS / f"{output}.json", help="JSON file (%(default)s)")
    return parser


def head(script: str, schema: str = "", asked: str = "") -> dict[str, object]:
    """What a result begins with: its schema, if it has one, and the command, of a script's `__file__` and options."""
    command = f"python {Path(script).resolve().relative_to(ROOT).as_posix()} {asked}".rstrip()
    return {**({"schema": schema} if schema else {}), "command": command}


def write_result(path: Path, content: Mapping[str, object]) -> None:
    """Write `content` to `path`, whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    write_whole({path: (json.dumps(content) + "\n").encode()})


def kept_rows(path: Path, schema: str, key: str, rows: str = "rows") -> dict[str, Any]:
    """The rows a result holds from before, by what each says under `key`; none where there is no such result."""
    return {row[key]: row for row in (read_result(path, schema) or {rows: []})[rows]}


def read_result(path: Path, schema: str) -> Any:  # noqa: ANN401  # of a file
    """The content of a result, None where there is no such file or it is of another schema."""
    if not path.exists():
        return None
    content = json.loads(path.read_text(encoding="utf-8"))
    return content if content.get("schema") == schema else None


def markdown_table(heading: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """A table in Markdown, without its last line break."""
    lines = [f"| {' | '.join(map(str, cells))} |" for cells in (heading, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(heading), *lines[1:]])


def wrapped(text: str) -> str:
    """Paragraphs broken into lines anew, after numbers were put in."""
    return "\n\n".join(
        fill(" ".join(block.split()), 120, break_long_words=False, break_on_hyphens=False)
        if block[0].isalnum()
        else block
        for block in text.split("\n\n")
    )


def write_table(page: Path, name: str, text: str) -> None:
    """Write `text` between a page's marks of a result, `<!-- NAME: start -->` and `<!-- NAME: end -->`.

    Raises:
        ValueError: the page has no such marks.
        OutputError: it cannot be written.
    """
    start, end = f"<!-- {name}: start -->", f"<!-- {name}: end -->"
    before, _, rest = page.read_text(encoding="utf-8").partition(start)
    _, found, after = rest.partition(end)
    if not found:
        raise ValueError(f"{page.name}: expected {start} and {end}")
    write_whole({page: f"{before}{start}\n\n{text}\n\n{end}{after}".encode()})


def command_of(content: Mapping[str, Any]) -> str:
    """The command that wrote a result, with the path its script has today: a result is not touched when a script moves.

    Raises:
        FileNotFoundError: no script of that name is left.
    """
    program, script, *options = str(content["command"]).split(" ")
    found = next((ROOT / "benchmarks").rglob(Path(script).name), None)
    if found is None:
        raise FileNotFoundError(f"no {Path(script).name} under benchmarks/, which a result names as its script")
    return " ".join([program, found.relative_to(ROOT).as_posix(), *options])


def some_of(known: Sequence[str], what: str = "network") -> Callable[[str], list[str]]:
    """Names with commas between, each a known one, for argparse."""

    def chosen(text: str) -> list[str]:
        names = text.split(",")
        unknown = sorted(set(names) - set(known))
        if unknown:
            raise argparse.ArgumentTypeError(f"no {what} {', '.join(unknown)}; they are {', '.join(known)}")
        return names

    return chosen


def positive(text: str) -> int:
    """A whole number of at least 1, for argparse."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return number


def existing(text: str) -> Path:
    """The path of a file that is there, for argparse."""
    if not Path(text).is_file():
        raise argparse.ArgumentTypeError(f"there is no file {text!r}")
    return Path(text)


def resident(key: str) -> int:
    """A memory figure of this process from /proc, in bytes: VmRSS now, VmHWM at its highest."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(key))
