"""What contributors are told, and what their tools run, is what the Makefile and the layering test hold."""

from __future__ import annotations

import importlib.util
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
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
