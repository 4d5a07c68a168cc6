"""What came of a sweep, finished or under way: its runs, both comparisons, and a page that shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from repconv.errors import SearchError
from repconv.files.record import versions
from repconv.pages.intervals import NumberGroup, intervals
from repconv.pages.page import bullets, facts, figure, html_table, page

from ..folder import RunFolder
from ..reports.compare import RunComparison, RunOutcome, WithInterval, compare, labels, outcome
from ..reports.measured import scores_and_accuracies
from .doing import finished, standing
from .plan import SweepPlan, SweepRun
from .schedule import Failure

SCHEMA = "repconv.sweep-result/1"
_DAMAGED = 2
"""The exit code of bad input."""
_KINDS = {"search": "searches", "retrain": "retrainings"}
_SAYS = {
    "search": "validation accuracy of the best architecture a search found, with the supernet's weights, %",
    "retrain": "accuracy of retrained architectures, fused, %",
}


class SweepSummary:
    """What there is of a sweep's runs.

    Args:
        root: the sweep's folder.
        plan: the sweep.
        failures: runs that failed just now. What finished and is damaged since is added to them.
    """

    def __init__(self, root: Path, plan: SweepPlan, failures: Mapping[str, Failure] | None = None) -> None:
        self.plan = plan
        self.failures = dict(failures or {})
        self.standings = {one.name: standing(root, one) for one in plan.runs}
        self.outcomes: dict[str, RunOutcome] = {}
        for one in plan.runs:
            if finished(root, one):
                try:
                    self.outcomes[one.name] = outcome(RunFolder(root / one.name))
                except SearchError as error:
                    self.failures[one.name] = Failure(_DAMAGED, str(error))
        self.comparisons = {
            kind: compare(found) for kind in _KINDS if len(found := self._of(kind)) > 1
        }  # by kind, of those with two runs or more

    @property
    def complete(self) -> bool:
        """Whether nothing is left to do."""
        return not self.failures and all(there.state in ("finished", "left out") for there in self.standings.values())

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, with their schema."""
        return {
            "schema": SCHEMA,
            "versions": versions(),
            "complete": self.complete,
            "runs": [self._run(one) for one in self.plan.runs],
            **{
                name: self.comparisons[kind].to_dict() if kind in self.comparisons else None
                for kind, name in _KINDS.items()
            },
        }

    def page(self) -> str:
        """One HTML file."""
        plan = self.plan
        varies = " x ".join([*(f"{len(values)} of {key}" for key, values in plan.vary.items()), f"{plan.seeds} seeds"])
        parts = [f"<p>{'Finished' if self.complete else '<b>Under way</b>'}: {escape(self.counts)}.</p>"]
        for kind, name in _KINDS.items():
            if kind in self.comparisons:
                parts += [f"<h2>{name.capitalize()}</h2>", *_compared(self.comparisons[kind])]
        failed = [f"{name}: {failure.why}" for name, failure in self.failures.items()]
        if failed:
            parts += ["<h2>Failed</h2>", bullets(failed, mark="bad")]
        rows = [self._row(one) for one in plan.runs]
        parts += ["<h2>Runs</h2>", html_table(("run", "state", "minutes", "accuracy, %"), rows, right=(2, 3))]
        asked = {key: value for key, value in plan.to_dict().items() if key not in ("schema", *_KINDS.values())}
        return page(f"Sweep of {plan.preset}: {varies}", [*parts, "<h2>Plan</h2>", facts(asked)])

    def _of(self, kind: str) -> list[RunOutcome]:
        return [found for found in self.outcomes.values() if found.kind == kind]

    @property
    def counts(self) -> str:
        """How many runs there are, and how many of them are in which state, in words."""
        states = [self._state(one.name) for one in self.plan.runs]
        known = ("finished", "failed", "under way", "waiting", "left out")
        return f"{len(states)} runs, " + ", ".join(f"{states.count(s)} {s}" for s in known if s in states)

    def _state(self, name: str) -> str:
        return "failed" if name in self.failures else self.standings[name].state

    def _run(self, one: SweepRun) -> dict[str, Any]:
        failure, found = self.failures.get(one.name), self.outcomes.get(one.name)
        return {
            "name": one.name,
            "kind": one.kind,
            "state": self._state(one.name),
            "seconds": self.standings[one.name].seconds,
            "accuracy": None if found is None else found.accuracy,
            "score": None if found is None else found.score,
            "error": None if failure is None else failure.why,
        }

    def _row(self, one: SweepRun) -> tuple[str, str, str, str]:
        there, found = self.standings[one.name], self.outcomes.get(one.name)
        state = self._state(one.name) + (f", {there.share:.0%}" if there.state == "under way" else "")
        minutes = f"{there.seconds / 60:.1f}" if there.seconds else ""
        return one.name, state, minutes, "" if found is None else f"{100 * found.accuracy:.2f}"


def _compared(found: RunComparison) -> list[str]:
    """A picture and tables of one kind of runs."""
    by_group: dict[str, list[float]] = {}
    for one, label in zip(found.runs, labels([one.settings for one in found.runs]), strict=True):
        by_group.setdefault(label, []).append(100 * one.accuracy)
    groups = [
        NumberGroup(
            name=label,
            values=by_group[label],
            middle=100 * row.value,
            interval=None if row.interval is None else (100 * row.interval[0], 100 * row.interval[1]),
        )
        for label, row in found.groups.items()
    ]
    parts = [
        figure(
            intervals(groups, _SAYS[found.kind]),
            "A pale dot is a run, a stroke a group's mean, the bar its 95 % interval over seeds (Student's t); a bar "
            "without an end goes on beyond the picture. Whether two groups differ, the paired differences tell.",
        ),
        _table(("", "mean, %", "95 % interval", "seeds"), found.groups, 100),
    ]
    if found.telling:
        parts.append(_table(("difference over common seeds", "points", "95 % interval", "seeds"), found.telling, 100))
    if found.correlation:
        parts += scores_and_accuracies(found.runs)
        heading = ("do scores in the search tell the accuracy?", "Kendall's tau", "95 % interval", "runs")
        parts.append(_table(heading, found.correlation, 1))
    return parts


def _table(heading: Sequence[str], rows: Mapping[str, WithInterval], unit: int) -> str:
    shown = [(label, f"{unit * row.value:.2f}", _ends(row.interval, unit), row.count) for label, row in rows.items()]
    return html_table(heading, shown, right=(1, 3))


def _ends(interval: tuple[float, float] | None, unit: int) -> str:
    return "-" if interval is None else " to ".join(f"{unit * end:.2f}" for end in interval)
