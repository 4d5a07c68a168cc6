"""Reading `.pt2` programs without executing what they hold.

`torch.export.load` unpickles, evaluates strings, imports modules and looks up functions by name, and running a program
executes source text made of the names in it. So an archive is read here, part by part, and torch gets a fresh archive
of the parts that were read: no pickled objects, sizes made of numbers and symbols, names made of letters, and only
ATen operators and arithmetic as functions.
"""

from __future__ import annotations

import io
import json
import os
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ...errors import SourceError, first_line
from .archives import Archive
from .sizes import complaint_of_nodes, complaint_of_text

_OPERATOR = re.compile(r"torch\.ops\.aten\.(?!__|save\b|load\b|from_file\b)\w+\.(?!__)\w+")
_ARITHMETIC = re.compile(
    r"_operator\.(add|sub|mul|truediv|floordiv|mod|neg|pow|getitem|eq|ne|lt|le|gt|ge|and_|or_|not_)"
    r"|math\.(trunc|floor|ceil|sqrt)|torch\.sym_\w+|torch\._sym_sqrt"
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
_SYMBOL = re.compile(r"[su]\d+")
_NAME = re.compile(r"\w*")
"""Of a value: it becomes a variable of the source text that torch generates."""
_PATH = re.compile(r"[^\"'\\\r\n(){}=]*")
"""Of a module, parameter or type: they are put between quotes in that text."""
_TEXTS = frozenset({
    "as_string", "as_strings", "stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "custom", "from_node",
})  # fmt: skip
"""Arguments, which torch writes as literals, and where a node came from: never evaluated, so they may say anything."""
_FACTORIES = frozenset({"list", "dict", "set", "int", "float", "str", "tuple"})

_PARTS = re.compile(
    r"models/model\.json|data/(weights|constants)/model_\1_config\.json|data/sample_inputs/model\.pt"
    r"|data/weights/weight_\d+|data/constants/tensor_\d+|archive_format|archive_version|byteorder"
    r"|(\.data/)?version|\.data/serialization_id"
)
"""What a program is made of. Any other name may make torch read it otherwise, such as `data/weights/model.pt`."""
_NUMBERS = re.compile(rb"\d{1,9}\n?")
_FORCE, _FORBID = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"


class _NotPlainError(Exception):
    """What in a program would be executed by reading or running it, in words."""


def open_program(path: Path) -> torch.export.ExportedProgram:
    """The program in a `.pt2` file.

    Raises:
        SourceError: not a readable program, or one that reading would execute code of.
    """
    try:
        with path.open("rb") as stream:
            parts = dict(_plain_parts(Archive(stream)))
    except _NotPlainError as problem:
        raise SourceError(
            f"{path}: {problem}; programs are read only if that executes nothing and ends. Save it again with "
            "torch.export.save, from a network of plain tensors and ATen operators"
        ) from None
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError, MemoryError) as error:
        raise SourceError(f"{path}: not a readable .pt2 program ({first_line(error)})") from error
    try:
        with _never_unpickling(), warnings.catch_warnings():
            # torch 2.9 reads weights from bytes that cannot be written, warns, and copies them.
            warnings.filterwarnings("ignore", message="The given buffer is not writable")
            return torch.export.load(_archived(parts))
    except Exception as error:  # torch raises many types for a damaged file
        raise SourceError(
            f"{path}: torch {torch.__version__} cannot read this program ({first_line(error)})"
        ) from error


@contextmanager
def _never_unpickling() -> Iterator[None]:
    """Have torch read tensors alone, where its own code asks for any object whatever (a second wall)."""
    before = {name: os.environ.get(name) for name in (_FORCE, _FORBID)}
    os.environ[_FORCE] = "1"
    os.environ.pop(_FORBID, None)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _archived(parts: Mapping[str, bytes]) -> io.BytesIO:
    """An archive of these parts, stored."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in parts.items():
            archive.writestr(f"archive/{name}", content)
    stream.seek(0)
    return stream


def _plain_parts(archive: Archive) -> Iterator[tuple[str, bytes]]:
    """The parts of a program by their name in it, each written anew from what was read of it where that is a structure.

    Raises:
        _NotPlainError: something in it would be executed.
        ValueError: it is damaged or no program.
    """
    names = {name: name.partition("/")[2] for name in archive.members}
    if len({name.partition("/")[0] for name in names}) != 1 or "archive_format" not in names.values():
        raise ValueError("no program in one folder of the archive")
    for name, part in names.items():
        if not _PARTS.fullmatch(part):
            raise _NotPlainError(f"it holds {part or name}, which is no part of a plain program")
    for name, part in names.items():
        yield part, _plain(part, archive.read(name))


def _plain(part: str, content: bytes) -> bytes:
    if part.endswith(".json"):
        value = json.loads(content.decode())
        for problem in _in_program(value) if part.startswith("models/") else _in_config(value):
            raise _NotPlainError(problem)
        return json.dumps(value).encode()
    if part.startswith("data/sample_inputs/"):
        return _plain_inputs(content)
    if part in ("archive_version", "version", ".data/version") and not _NUMBERS.fullmatch(content):
        raise ValueError(f"its {part} is no number")
    return content


def _plain_inputs(content: bytes) -> bytes:
    """Sample inputs of tensors and plain values, saved by this torch."""
    if not content:
        return content
    Archive(io.BytesIO(content)).check()
    try:
        inputs = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception:  # noqa: BLE001  # whatever is wrong with it, torch would unpickle it next
        raise _NotPlainError("its sample inputs hold pickled objects") from None
    stream = io.BytesIO()
    torch.save(inputs, stream)
    return stream.getvalue()


def _in_config(value: Any) -> Iterator[str]:  # noqa: ANN401  # JSON
    """Problems of the list of weights or constants."""
    for tensor, entry in value["config"].items():
        if entry.get("use_pickle") or not re.fullmatch(r"(weight|tensor)_\d+", str(entry.get("path_name"))):
            yield f"it keeps {tensor[:60]} as a pickled object"
        yield from _in_program(entry)


def _in_program(value: Any, key: str = "") -> Iterator[str]:  # noqa: ANN401  # JSON
    """Problems of a part of a program.

    Args:
        value: of JSON.
        key: the innermost name it stands under.
    """
    if isinstance(value, dict):
        if said := complaint_of_nodes(value.get("nodes") or ()):
            yield f"it computes with sizes that become too large: {said}"
        for name, part in value.items():
            if key == "range_constraints" and not _SYMBOL.fullmatch(name):
                yield f"it has a size called {name[:40]!r}"
            if not _PATH.fullmatch(name):
                yield f"it has a name {name[:60]!r}"
            yield from _in_program(part, name)
    elif isinstance(value, list):
        for part in value:
            yield from _in_program(part, key)
    elif isinstance(value, str):
        yield from _in_text(value, key)


def _in_text(value: str, key: str) -> Iterator[str]:
    shown = repr(value[:60])
    if key in _TEXTS:
        return
    if key == "expr_str":
        if not _made_of(value, _SIZE_WORDS, r"'[su]\d+'|\b[su]\d+\b", r"[\d\s(),=.+*/<>&|~-]*"):
            yield f"it has a size {shown}"
        elif said := complaint_of_text(value):
            yield f"it has a size {shown}: {said}"
    elif key == "guards_code":
        if not _made_of(value, _GUARD_WORDS, r"'\w+'", r"[\d\s()\[\],=.+*/%<>!-]*"):
            yield f"it has a guard {shown}"
        elif said := complaint_of_text(value):
            yield f"it has a guard {shown}: {said}"
    elif key in ("in_spec", "out_spec"):
        yield from _in_structure(json.loads(value))
    elif key in ("target", "as_operator") and _is_function(value):
        if not (_OPERATOR.fullmatch(value) or _ARITHMETIC.fullmatch(value)):
            yield f"it calls {value[:60]}, which is no ATen operator"
    elif not (_NAME if key in ("name", "as_name", "forward_arg_names") else _PATH).fullmatch(value):
        yield f"it has a name {shown}"


def _in_structure(value: Any) -> Iterator[str]:  # noqa: ANN401  # JSON
    """Problems of a description of nested inputs or outputs, whose keys torch writes as arguments of a function.

    It may name a class to import, of an enumeration or for missing entries of a dictionary.
    """
    if isinstance(value, dict):
        factory = value.get("default_factory_name")
        if "__enum__" in value or (
            "default_factory_module" in value
            and (value["default_factory_module"] != "builtins" or factory not in _FACTORIES)
        ):
            yield f"its inputs or outputs are of {str(value.get('fqn') or factory)[:60]!r}, which would be imported"
        for part in value.items():
            yield from _in_structure(list(part))
    elif isinstance(value, list):
        for part in value:
            yield from _in_structure(part)
    elif isinstance(value, str):
        try:
            nested = json.loads(value)
        except ValueError:
            nested = None
        if isinstance(nested, dict | list | str):
            yield from _in_structure(nested)
        elif nested is None and not _PATH.fullmatch(value):
            yield f"its inputs or outputs have a name {value[:60]!r}"


def _is_function(target: str) -> bool:
    """Targets of inputs and parameters are names of values; those of calls begin with a module or `#`."""
    return target.startswith(("torch", "_operator", "math", "#"))


def _made_of(text: str, words: frozenset[str], symbols: str, rest: str) -> bool:
    """Made of these words, symbols and signs only."""
    text = re.sub(symbols, "0", text)
    return set(_WORDS.findall(text)) <= words and re.fullmatch(rest, _WORDS.sub("", text)) is not None
