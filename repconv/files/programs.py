"""Reading `.pt2` programs without executing what they hold.

`torch.export.load` unpickles, evaluates strings and looks up functions by name. So an archive is read here first, and
goes to torch only if all of that is plain: no pickled objects, symbolic sizes made of numbers and symbols, and only
ATen operators and arithmetic as functions.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ..errors import SourceError

_OPERATOR = re.compile(r"torch\.ops\.aten\.(?!__|save\b|load\b|from_file\b)\w+\.(?!__)\w+")
_ARITHMETIC = re.compile(
    r"_operator\.(add|sub|mul|truediv|floordiv|mod|neg|pow|getitem|eq|ne|lt|le|gt|ge|and_|or_|not_)"
    r"|math\.\w+|torch\.sym_\w+|torch\._sym_sqrt"
)
_WORDS = re.compile(r"[A-Za-z_]\w*")
_SIZE_WORDS = frozenset(
    _WORDS.findall(
        "Symbol Integer Rational Add Mul Pow Mod PythonMod FloorDiv CeilDiv CleanDiv IntTrueDiv Max Min Eq Ne Lt Le Gt "
        "Ge And Or Not Equality Unequality LessThan GreaterThan StrictLessThan StrictGreaterThan positive nonnegative "
        "negative integer true false True False"
    )
)
_GUARD_WORDS = frozenset(_WORDS.findall("L size stride ndim and or not True False None Mod Max Min"))


def read_program(path: Path) -> torch.export.ExportedProgram:
    """The program in a `.pt2` file.

    Raises:
        SourceError: not a readable program, or one that reading would execute code of.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            problem = next(_problems(archive), None)
    except (zipfile.BadZipFile, OSError, ValueError, RecursionError, KeyError, AttributeError) as error:
        raise SourceError(f"{path}: not a readable .pt2 program ({error})") from error
    if problem is not None:
        raise SourceError(
            f"{path}: {problem}; programs are read only if that executes nothing. Save it again with "
            "torch.export.save, from a network of plain tensors and ATen operators"
        )
    try:
        return torch.export.load(path)
    except Exception as error:  # torch raises many types for a damaged file
        first = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise SourceError(f"{path}: torch {torch.__version__} cannot read this program ({first})") from error


def _problems(archive: zipfile.ZipFile) -> Iterator[str]:
    """What in the archive would be executed by reading or running it, in words."""
    names = archive.namelist()
    if archive.testzip() is not None or not any(name.endswith("archive_format") for name in names):
        raise ValueError("parts of the archive are damaged or missing")
    for name in names:
        inside = name.partition("/")[2]
        if inside.startswith("models/") and inside.endswith(".json"):
            yield from _in_program(json.loads(archive.read(name)))
        elif inside.startswith(("data/weights/", "data/constants/")) and inside.endswith(".json"):
            for tensor, entry in json.loads(archive.read(name))["config"].items():
                if entry.get("use_pickle") or not str(entry.get("path_name")).startswith(("weight_", "tensor_")):
                    yield f"it keeps {tensor} as a pickled object"
        elif inside.startswith("data/sample_inputs/"):
            try:
                torch.load(io.BytesIO(archive.read(name)), map_location="cpu", weights_only=True)
            except Exception:  # noqa: BLE001  # whatever is wrong with it, torch would unpickle it next
                yield "its sample inputs hold pickled objects"
        elif not inside.startswith((".data/", "data/weights/weight_", "data/constants/tensor_")) and inside not in (
            "archive_format", "archive_version", "byteorder", "version",
        ):  # fmt: skip
            yield f"it holds {inside or name}, which is no part of a plain program"


def _in_program(value: Any, key: str = "") -> Iterator[str]:  # noqa: ANN401  # JSON
    if isinstance(value, dict):
        for name, part in value.items():
            if key == "range_constraints" and not re.fullmatch(r"[su]\d+", name):
                yield f"it has a size called {name[:40]!r}"
            yield from _in_program(part, name)
    elif isinstance(value, list):
        for part in value:
            yield from _in_program(part, key)
    elif isinstance(value, str):
        if (
            key in ("target", "as_operator")
            and _is_function(value)
            and not (_OPERATOR.fullmatch(value) or _ARITHMETIC.fullmatch(value))
        ):
            yield f"it calls {value[:60]}, which is no ATen operator"
        elif key == "expr_str" and not _plain(value, _SIZE_WORDS, r"'[su]\d+'|\b[su]\d+\b", r"[\d\s(),=.+*/<>&|~-]*"):
            yield f"it has a size {value[:60]!r}"
        elif key == "guards_code" and not _plain(value, _GUARD_WORDS, r"'\w+'", r"[\d\s()\[\],=.+*/%<>!-]*"):
            yield f"it has a guard {value[:60]!r}"


def _is_function(target: str) -> bool:
    """Targets of inputs and parameters are names of values; those of calls begin with a module or `#`."""
    return target.startswith(("torch", "_operator", "math", "#"))


def _plain(text: str, words: frozenset[str], symbols: str, rest: str) -> bool:
    """Made of these words, symbols and signs only."""
    text = re.sub(symbols, "0", text)
    return set(_WORDS.findall(text)) <= words and re.fullmatch(rest, _WORDS.sub("", text)) is not None
