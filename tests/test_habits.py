"""What contributors are told, and what their tools run, is what the Makefile and the layering test hold."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MOST_POSITIONAL = 3
BY_POSITION = {
    "BenchSettings",
    "BuildSettings",
    "Data",
    "ExportRecord",
    "FusionReport",
    "Preprocessing",
    "Quantization",
}
"""Public classes with more arguments: those who call them by position may go on."""
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def words_after(start: str) -> list[str]:
    """What stands on the Makefile's line that begins so."""
    return next(line.removeprefix(start).split() for line in MAKEFILE.splitlines() if line.startswith(start))


def test_help_tells_of_every_target_in_plain_text() -> None:
    told = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout  # noqa: S607
    assert sorted(re.findall(r"^  make (\S+)  ", told, re.MULTILINE)) == sorted(words_after(".PHONY:"))
    assert told.isascii()
    assert "\x1b" not in told


def test_a_commit_is_held_to_what_make_check_looks_at_before_its_tests() -> None:
    hooks = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    assert re.findall(r"entry: (.*)", hooks) == [
        f"make {target}" for target in words_after("check:") if target != "test"
    ]


def test_contributors_read_the_layers_that_are_held() -> None:
    spec = importlib.util.spec_from_file_location("layering", ROOT / "tests" / "test_layering.py")
    assert spec is not None
    assert spec.loader is not None
    layering = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(layering)
    told = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"^> (errors.*)$", told, re.MULTILINE)
    assert [tuple(row.split(", ")) for row in line.split(" \u00b7 ")] == list(layering.LAYERS)


def test_the_modules_on_the_drawn_journeys_are_there() -> None:
    text = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    journeys = re.findall(r"^### A journey: [^\n]*\n\n```\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    named = [path for drawn in journeys for path in re.findall(r"[a-z_0-9/]+/[a-z_0-9]+\.py", drawn)]
    assert len(journeys) == 2
    assert len(named) > 12
    assert [path for path in named if not (ROOT / path).exists() and not (ROOT / "repconv" / path).exists()] == []


def by_position(node: ast.ClassDef) -> list[str]:
    """The arguments that a class as it stands here takes by position."""
    for made in node.body:
        if isinstance(made, ast.FunctionDef) and made.name == "__init__":
            return [argument.arg for argument in [*made.args.posonlyargs, *made.args.args][1:]]
    kinds = [ast.unparse(kind) for kind in node.decorator_list if "dataclass" in ast.unparse(kind)]
    if not kinds or "kw_only=True" in kinds[0]:
        return []
    fields = [
        (field.target.id, f"{ast.unparse(field.annotation)} = {ast.unparse(field.value) if field.value else ''}")
        for field in node.body
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
    ]
    marks = [place for place, (_, said) in enumerate(fields) if said.startswith("KW_ONLY")]
    return [
        name for name, said in fields[: (marks or [None])[0]] if "ClassVar" not in said and "init=False" not in said
    ]


@cache
def classes() -> list[tuple[str, ast.ClassDef]]:
    """Every class of the package, those of measuring scripts aside, and where it stands."""
    rooms = [ROOT / room for room in ("repconv", "search", "export", "benchmarks/harness")]
    return [
        (f"{path.relative_to(ROOT).as_posix()}:{node.lineno}", node)
        for room in rooms
        for path in sorted(room.rglob("*.py"))
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef)
    ]


def test_many_arguments_of_a_class_are_given_by_name() -> None:
    """The algebra and the graph are held to none of this: `Kernel` and its kin are written as formulas are."""
    offences = [
        f"{where}: {node.name} takes {', '.join(found)} by position; from the fourth on they take keywords"
        for where, node in classes()
        if not where.startswith(("repconv/graph/", "repconv/algebra/")) and node.name not in BY_POSITION
        if len(found := by_position(node)) > MOST_POSITIONAL
    ]
    assert not offences, "\n".join(offences)


def test_arguments_by_position_are_seen() -> None:
    seen = {
        "class A:\n def __init__(self, a, b, *, c): ...": ["a", "b"],
        "@dataclass(frozen=True)\nclass B:\n a: int\n b: ClassVar[int]\n c: int = field(init=False)\n d: int": [
            "a",
            "d",
        ],
        "@dataclass\nclass C:\n a: int\n _: KW_ONLY\n b: int": ["a"],
        "@dataclass(kw_only=True)\nclass D:\n a: int": [],
    }
    assert {text: by_position(ast.parse(text).body[0]) for text in seen} == seen


def test_two_classes_have_two_names() -> None:
    homes: dict[str, list[str]] = {}
    for where, node in classes():
        if not node.name.startswith("_"):
            homes.setdefault(node.name, []).append(where)
    shared = {name: found for name, found in homes.items() if len(found) > 1}
    assert not shared, shared
