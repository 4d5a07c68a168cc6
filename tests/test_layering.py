"""The house: rooms on floors, imports one way, no circles, few modules a room; who breaks it is named."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAPPED = ("search", "export", "benchmarks")
"""Rooms in folders of their own beside `repconv/`."""

LAYERS = (
    ("errors", "limits", "names", "pages", "progress"),
    ("algebra", "proof", "files"),
    ("blocks", "graph"),
    ("expansion",),
    ("models",),
    ("sources", "fusing"),
    ("search", "export"),
    ("benchmarks",),
    ("cli",),
)
"""The rooms of `repconv`, lowest floor first. One imports from floors below its own only, or from itself.

Errors aside, which anyone may import, neighbours on a floor do not know each other.
"""
MOST_FLOORS = 7
MOST_MODULES = 10
HEIGHT = {unit: height for height, row in enumerate(LAYERS) for unit in row}


def read() -> dict[str, Path]:
    """Every module of the package by the name it installs under."""
    found = {}
    for top in ("repconv", *MAPPED):
        for path in sorted((ROOT / top).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts if top == "repconv" else ("repconv", *parts))
            found[name.removesuffix(".__init__")] = path
    return found


MODULES = read()
TREES = {name: ast.parse(path.read_text(encoding="utf-8"), str(path)) for name, path in MODULES.items()}
HOMES = ast.literal_eval(
    next(n.value for n in TREES["repconv"].body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "_HOMES")
)
PUBLIC = {name: home for home, names in HOMES.items() for name in names.split()}


def unit(module: str) -> str:
    """`repconv.models.zoo` belongs to `models`."""
    return module.split(".")[1]


def package(module: str) -> str:
    """The mapped package a module is in: `repconv`, or one of the folders beside it."""
    return unit(module) if module != "repconv" and unit(module) in MAPPED else "repconv"


def resolve(module: str, node: ast.ImportFrom) -> str:
    """The absolute name of what `from ... import` imports from."""
    if not node.level:
        return node.module or ""
    parts = module.split(".")
    if MODULES[module].name != "__init__.py":
        parts = parts[:-1]
    base = parts[: len(parts) - node.level + 1]
    return ".".join([*base, *([node.module] if node.module else [])])


def imports(module: str) -> Iterator[tuple[int, str, bool]]:
    """Line, target module, and whether it is relative, of every import from this package anywhere in `module`."""
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name, False) for alias in node.names if alias.name.startswith("repconv."))
        elif isinstance(node, ast.ImportFrom):
            origin = resolve(module, node)
            if origin != "repconv" and not origin.startswith("repconv."):
                continue
            for alias in node.names:
                home = f"{origin}.{alias.name}"
                if origin == "repconv" and home not in MODULES:
                    home = f"repconv{PUBLIC.get(alias.name, '.' + alias.name)}"
                yield node.lineno, home if home in MODULES or origin == "repconv" else origin, bool(node.level)


def is_script(module: str) -> bool:
    """Run by its path, `python benchmarks/NAME.py`, so that it has no package to be relative to."""
    return any(isinstance(n, ast.If) and "__main__" in ast.unparse(n.test) for n in TREES[module].body)


def names(offences: list[str]) -> str:
    return "\n" + "\n".join(offences)


def test_every_module_has_a_place_in_the_order() -> None:
    homeless = sorted({unit(module) for module in MODULES if module != "repconv"} - set(HEIGHT))
    assert not homeless, f"give {', '.join(homeless)} a place in LAYERS"


def test_imports_point_one_way() -> None:
    offences = []
    for module in MODULES:
        if module == "repconv":
            continue
        for line, target, _ in imports(module):
            mine, theirs = unit(module), unit(target)
            # Whoever imports `repconv.fuse` has imported `repconv`, which imports nothing by itself.
            if theirs in HEIGHT and (mine == theirs or theirs == "errors" or HEIGHT[theirs] < HEIGHT[mine]):
                continue
            offences.append(f"{MODULES[module].relative_to(ROOT)}:{line}: {mine} may not import {theirs} ({target})")
    assert not offences, names(offences)


def test_the_house_has_few_floors() -> None:
    floors = [row for row in LAYERS if not set(row) <= set(MAPPED)]
    assert len(floors) <= MOST_FLOORS, floors


def test_a_room_holds_few_modules() -> None:
    held: dict[Path, list[str]] = {}
    for path in MODULES.values():
        if path.name != "__init__.py":
            held.setdefault(path.parent.relative_to(ROOT), []).append(path.stem)
    crowded = [f"{room}: {len(found)} modules" for room, found in held.items() if len(found) > MOST_MODULES]
    assert not crowded, names(crowded)


def crossings() -> dict[str, dict[str, str]]:
    """For every two rooms or modules side by side in a package, the first import from one to the other."""
    found: dict[str, dict[str, str]] = {}
    for module in MODULES:
        for line, target, _ in imports(module) if module != "repconv" else ():
            mine, theirs = module.split("."), target.split(".")
            shared = next((k for k, (a, b) in enumerate(zip(mine, theirs, strict=False)) if a != b), None)
            if shared is not None:  # else one holds the other
                here, there = (".".join(parts[: shared + 1]) for parts in (mine, theirs))
                found.setdefault(here, {}).setdefault(there, f"{MODULES[module].relative_to(ROOT)}:{line}")
    return found


def circles(edges: dict[str, dict[str, str]]) -> list[str]:
    """Every import that leads back to where it comes from, and the way back."""
    offences = []
    for start, leading in edges.items():
        for first, where in leading.items():
            ways, seen = [[first]], {first}
            while ways:
                way = ways.pop(0)
                if way[-1] == start:
                    offences.append(f"{where}: {' -> '.join([start, *way])}")
                    break
                further = [there for there in edges.get(way[-1], {}) if there not in seen]
                seen.update(further)
                ways += [[*way, there] for there in further]
    return offences


def test_no_imports_go_in_a_circle() -> None:
    found = circles(crossings())
    assert not found, names(found)


def test_a_circle_is_seen() -> None:
    assert circles({"a": {"b": "a.py:1"}, "b": {"c": "b.py:1"}, "c": {"a": "c.py:1"}, "d": {"a": "d.py:1"}}) == [
        "a.py:1: a -> b -> c -> a",
        "b.py:1: b -> c -> a -> b",
        "c.py:1: c -> a -> b -> c",
    ]


def test_the_package_itself_imports_nothing_at_run_time() -> None:
    guarded = next(n for n in TREES["repconv"].body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING")
    inside = {id(node) for node in ast.walk(guarded)}
    eager = [
        ast.unparse(node)
        for node in ast.walk(TREES["repconv"])
        if isinstance(node, ast.Import | ast.ImportFrom) and id(node) not in inside
    ]
    light = {"__future__", *sys.stdlib_module_names}
    assert [line for line in eager if line.split()[1].split(".")[0] not in light] == ["from .names import public"]
    assert {target for _, target, _ in imports("repconv.names")} == set()


def test_imports_are_relative_inside_a_mapped_package_and_absolute_across() -> None:
    offences = []
    for module, path in MODULES.items():
        for line, target, relative in imports(module):
            inside = package(module) == package(target)
            if inside != relative and not (inside and is_script(module)):
                form = "relative" if inside else "absolute"
                offences.append(f"{path.relative_to(ROOT)}:{line}: import {target} in its {form} form")
    assert not offences, names(offences)


def test_only_the_command_line_and_the_benchmark_scripts_print() -> None:
    offences = [
        f"{MODULES[module].relative_to(ROOT)}:{node.lineno}"
        for module, tree in TREES.items()
        if module == "repconv" or unit(module) not in ("cli", "benchmarks")
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert not offences, names(offences)


def narrows_a_type(test: ast.expr) -> bool:
    """`isinstance(...)` or `... is not None`: said to the type checker, of something the code itself guarantees."""
    if isinstance(test, ast.Compare):
        return len(test.ops) == 1 and isinstance(test.ops[0], ast.IsNot) and ast.unparse(test.comparators[0]) == "None"
    return isinstance(test, ast.Call) and isinstance(test.func, ast.Name) and test.func.id == "isinstance"


def test_no_users_mistake_is_an_assertion() -> None:
    offences = [
        f"{MODULES[module].relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)}"
        for module, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Assert) and not narrows_a_type(node.test)
    ]
    assert not offences, names(offences)


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("from ..search.supernet import space", "repconv.search.supernet.space"),
        ("from repconv import load", "repconv.sources.checkpoint"),
        ("import repconv.cli", "repconv.cli"),
        ("def f():\n    from ..errors import GeometryError", "repconv.errors"),
    ],
)
def test_this_test_sees_every_form_of_import(source: str, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TREES, "repconv.models.zoo", ast.parse(source))
    monkeypatch.setitem(MODULES, "repconv.search.supernet.space", ROOT / "search" / "supernet" / "space.py")
    assert [found for _, found, _ in imports("repconv.models.zoo")] == [target]
