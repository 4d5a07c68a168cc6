"""What the scripts of this folder share: where results lie, how they are written, what a script asks for."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from repconv.files.whole import write_whole

ROOT = Path(__file__).resolve().parent.parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PICTURES = ROOT / "docs" / "pictures"


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """Write `content` to `path`, whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    write_whole({path: (json.dumps(content) + "\n").encode()})


def read_json(path: Path, schema: str) -> Any:  # noqa: ANN401  # of a file
    """The content of a result, None where there is no such file or it is of another schema."""
    if not path.exists():
        return None
    content = json.loads(path.read_text(encoding="utf-8"))
    return content if content.get("schema") == schema else None


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
