"""A run's report as one HTML file: convergence, population, ages, gates by layer and kind, the best architectures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from repconv.errors import SearchError
from repconv.pages.page import facts, figure, html_table, page

from ..config import config_from_dict
from ..folder import CONFIG, ENVIRONMENT, POPULATIONS, RESULT, RunFolder
from ..strategies import State, state_from_dict
from ..supernet.records import MACHINE, POPULATION, SEARCH
from ..supernet.space import SearchSpace
from .chart import chart
from .compare import RunOutcome
from .found import read_found
from .measured import scores_and_accuracies, survivors, times
from .picture import heat_map, svg


def report(folder: RunFolder, retrained: Sequence[RunOutcome] = ()) -> str:
    """The report of a finished run, or of one that is under way as far as it got.

    retrained: trainings of what it found, whose accuracies are set beside its scores.

    Raises:
        SearchError: a file of the run is damaged, or one of `retrained` is no training of what a search found.
    """
    for one in retrained:
        if one.score is None:
            what = "a search" if one.kind == "search" else "a network trained by its name"
            raise SearchError(
                f"{one.path} is {what}: it has no score to set beside its accuracy; expected a retraining of what "
                f"{folder.path} found"
            )
    config = config_from_dict(folder.read_json(CONFIG), str(folder.path / CONFIG))
    records = folder.metrics()
    epochs = [r for r in records if r["kind"] == "epoch"]
    generations = [r for r in records if r["kind"] == "generation"]
    parts: list[str] = []
    finished = (folder.path / RESULT).exists()
    if not finished:
        parts.append(f"<p><b>Under way:</b> {len(epochs)} of {config.epochs} epochs.</p>")
    elif (last := folder.read_json(RESULT, SEARCH).get("ended_early")) is not None:
        parts.append(
            f"<p><b>Ended early:</b> after generation {last} of {config.generations}, since {config.patience} "
            "brought no better accuracy.</p>"
        )
    if epochs:
        parts += [
            "<h2>Convergence</h2>",
            figure(
                chart(
                    "loss of the sub-networks trained",
                    "epoch",
                    [
                        ("training loss", [(r["epoch"], r["loss"]) for r in epochs]),
                    ],
                )
            ),
        ]
    if generations:
        parts += [
            "<h2>Population</h2>",
            figure(
                chart(
                    "validation accuracy, fused",
                    "generation",
                    [
                        (name, [(r["generation"], r[f"{name}_accuracy"]) for r in generations])
                        for name in ("best", "mean", "worst")
                    ],
                    within=(0.0, 1.0),
                )
            ),
        ]
        parts.append(
            figure(
                chart(
                    "age in generations",
                    "generation",
                    [
                        ("mean age", [(r["generation"], r["mean_age"]) for r in generations]),
                    ],
                    within=(0.0, math.inf),
                ),
                "An architecture is born at age 1 and is a generation older whenever it lives on.",
            )
        )
        parts += survivors(generations)
        parts += times(epochs, generations, config.warmup_epochs)
    if retrained:
        parts += ["<h2>Scores, and accuracies when trained</h2>", *scores_and_accuracies(retrained)]
    if finished:
        parts += _result(folder)
    else:
        parts += _under_way(folder)
    parts += ["<h2>Settings</h2>", facts(folder.read_json(CONFIG))]
    parts += ["<h2>Machine</h2>", facts(folder.read_json(ENVIRONMENT, MACHINE))]
    return page(f"Search: {config.strategy} on {config.network}", parts)


def _result(folder: RunFolder) -> list[str]:
    """The best architectures, and the gates at the end."""
    result = folder.read_json(RESULT, SEARCH)
    best = read_found(folder.path / "best.arch.json")
    space = best.architecture.space
    rows = [
        (i + 1, f"{a['accuracy']:.4f}", a["age"] or "", sum(map(len, a["active"].values())))
        for i, a in enumerate(result["architectures"])
    ]
    heading = f"best architecture, validation accuracy {best.accuracy:.4f}"
    return [
        "<h2>Best architectures</h2>",
        figure(svg(best.architecture, heading)),
        html_table(("rank", "validation accuracy", "age", "active branches"), rows),
        *_costs(result),
        *_gates(space, State(gates=best.gates)),
        *_shares(space, result),
    ]


def _costs(result: Mapping[str, Any]) -> list[str]:
    """Accuracy against cost, of a search that had a second objective."""
    prices = result.get("prices")
    if prices is None:
        return []
    full = prices["fixed"] + sum(price for kinds in prices["slots"].values() for price in kinds.values())
    points = [(a["cost"] / full, a["accuracy"]) for a in result["architectures"]]
    return [
        figure(
            chart(
                "validation accuracy",
                f"share of the full network's {prices['unit']}",
                [("found", points)],
                within=(0.0, 1.0),
                joined=False,
            ),
            f"What was found, by accuracy and by what its branches cost while it is trained ({prices['unit']}, as a "
            f"share of the {full:.4g} of the network with every branch). Fused, all cost the same.",
        )
    ]


def _under_way(folder: RunFolder) -> list[str]:
    """The gates of the last generation, where there is one."""
    files = sorted((folder.path / POPULATIONS).glob("*.json"))
    if not files:
        return []
    last = folder.read_json(f"{POPULATIONS}/{files[-1].name}", POPULATION)
    space = SearchSpace.of_records(last["space"])
    return _gates(space, state_from_dict(last, space))


def _gates(space: SearchSpace, state: State) -> list[str]:
    factors = state.gates.factors(space)
    values = dict(zip(space.slots, factors, strict=True))
    return [
        "<h2>Gates by layer and kind</h2>",
        figure(heat_map(space, values, "s(beta) s(alpha): what each branch is multiplied with", high=max(factors))),
    ]


def _shares(space: SearchSpace, result: Mapping[str, Any]) -> list[str]:
    """In how much of the final population each branch is active."""
    architectures = result["architectures"]
    values = {
        slot: sum(slot.branch in a["active"].get(slot.block, ()) for a in architectures) / len(architectures)
        for slot in space.slots
    }
    return [
        "<h2>Share of the final population with each branch</h2>",
        figure(heat_map(space, values, "0 white, all blue")),
    ]
