"""The folder of a sweep: its plan, which is one for ever, and what is written beside its runs."""

from __future__ import annotations

import json
from pathlib import Path

from repconv.errors import OutputError

from ..folder import CONFIG, SWEEP_PLAN, RunFolder
from .plan import SweepPlan, plan_from_dict

PLAN, RESULT, PAGE, LOGS = SWEEP_PLAN, "sweep-result.json", "sweep.html", "logs"
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
        kept = {key: (there[key], value) for key, value in wanted.items() if key not in _FOLLOWING}
        # The order of what varies is in the names of runs.
        differing = [k for k, (a, b) in kept.items() if a != b or (k == "vary" and list(a) != list(b))]
        if differing:
            pairs = {key: [_said(value) for value in kept[key]] for key in differing}
            said = "; ".join(f"{key} is {a} there and {b} here" for key, (a, b) in pairs.items())
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
