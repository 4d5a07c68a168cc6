"""The JSON a command leaves behind: versioned, with fingerprints and versions."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from ...files.record import file_record, versions
from ...files.whole import whole_file
from .terminal import write_standard_output

_NUMBERS = re.compile(r"\[\s+((?:-?[\d.eE+-]+,?\s+)+)\]")

__all__ = ["file_record", "versions", "write_json"]


def write_json(path: str, schema: str, content: Mapping[str, object]) -> None:
    """Write `content` under its `schema`, with versions, to a file, or to standard output where it is `-`.

    Raises:
        OutputError: the file cannot be written.
    """
    text = json.dumps({"schema": schema, "versions": versions(), **content}, indent=1)
    # Lists of numbers, thousands of samples among them, stand in one line.
    text = _NUMBERS.sub(lambda found: "[" + " ".join(found[1].split()) + "]", text)
    if path == "-":
        write_standard_output(f"{text}\n")
        return
    with whole_file(path, stands="what else the command wrote is whole") as stream:
        stream.write(text.encode() + b"\n")
