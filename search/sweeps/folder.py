"""The folder of a sweep: its plan, which is one for ever, and what is written beside its runs."""

from __future__ import annotations

import json
from pathlib import Path

from repconv.errors import OutputError

from ..folder import CONFIG, RunFolder
from .plan import SweepPlan, plan_from_dict

PLAN, RESULT, PAGE, LOGS = "sweep.json", "sweep-result.json", "sweep.html", "logs"
"""Files of it, and the folder where its runs say what they do."""
FILES = (PLAN, RESULT, PAGE)


def is_sweep(path: Path) -> bool:
    """Whether a sweep was begun there."""
    return (path / PLAN).is_file()


def read_plan(path: Path) -> SweepPlan:
    """The plan of the sweep there.

    Raises:
        SearchError: it cannot be read, or makes no sense.
    """
    return plan_from_dict(RunFolder(path).read_json(PLAN), str(path / PLAN))


def planned(path: Path, plan: SweepPlan) -> RunFolder:
    """The folder of this very plan, new or begun.

    Raises:
        OutputError: it cannot be written, or holds a run or another sweep.
        SearchError: the plan in it is damaged.
    """
    folder, wanted = RunFolder(path), plan.to_dict()
    if (path / CONFIG).exists():
        raise OutputError(f"{path} holds a single run, not a sweep; name another folder")
    if is_sweep(path):
        there = read_plan(path).to_dict()
        differing = [key for key, value in wanted.items() if there[key] != value and key not in _FOLLOWING]
        if differing:
            said = "; ".join(f"{key} is {_said(there[key])} there and {_said(wanted[key])} here" for key in differing)
            raise OutputError(f"{path} holds a sweep of another plan ({said}); name another folder")
        return folder
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder {path}: {error.strerror or error}") from error
    folder.write_json(PLAN, wanted)
    return folder


_FOLLOWING = ("schema", "searches", "retrainings")
"""What follows from the rest."""


def _said(value: object) -> str:
    return "none" if value is None else json.dumps(value)
