"""A run's report as one HTML file: convergence, population, ages, gates by layer and kind, the best architectures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from repconv.pages.drawing import COLOURS
from repconv.pages.page import facts, figure, html_table, page

from ..config import config_from_dict
from ..folder import CONFIG, ENVIRONMENT, POPULATIONS, RESULT, RunFolder
from ..strategies import State, state_from_dict
from ..supernet.records import MACHINE, POPULATION, SEARCH
from ..supernet.space import SearchSpace
from .found import read_found
from .picture import heat_map, svg

Line = tuple[str, Sequence[tuple[float, float]]]
"""A name and points (x, y)."""

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _BOTTOM, _TOP = 500, 240, 62, 92, 34, 26


def report(folder: RunFolder) -> str:
    """The report of a finished run, or of one that is under way as far as it got.

    Raises:
        SearchError: a file of the run is damaged.
    """
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
                )
            )
        )
        parts += _survivors(generations)
    if finished:
        parts += _result(folder)
    else:
        parts += _under_way(folder)
    parts += ["<h2>Settings</h2>", facts(folder.read_json(CONFIG))]
    parts += ["<h2>Machine</h2>", facts(folder.read_json(ENVIRONMENT, MACHINE))]
    return page(f"Search: {config.strategy} on {config.network}", parts)


def _survivors(generations: Sequence[Mapping[str, Any]]) -> list[str]:
    """How many parents live on, of runs that say so: what selection decides, where accuracy does."""
    points = [(r["generation"], r["survivors"] / r["parents"]) for r in generations if r.get("parents")]
    if not points:
        return []
    return [
        figure(
            chart("parents that live on", "generation", [("share", points)], within=(0.0, 1.0)),
            "Parents and children are measured together and the best live on. Where the share is 0 in every "
            "generation, children win whatever they are worth: age decides, and accuracy does not.",
        )
    ]


def chart(
    title: str,
    across: str,
    lines: Sequence[Line],
    within: tuple[float, float] = (-math.inf, math.inf),
    *,
    joined: bool = True,
) -> str:
    """Lines over a common axis as SVG; values that are not finite are left out.

    within: what the values can be, beyond which their axis does not reach. joined: whether points of a line are.
    """
    kept = [(name, [(x, y) for x, y in points if math.isfinite(y)]) for name, points in lines]
    xs, ys = ([p[axis] for _, points in kept for p in points] for axis in (0, 1))
    if not xs:
        return f"<p>{escape(title)}: no numbers yet</p>"
    (low_x, high_x), (low_y, high_y) = _range(xs), _range(ys, *within)

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            _LEFT + (x - low_x) / (high_x - low_x) * (_WIDTH - _LEFT - _RIGHT),
            _HEIGHT - _BOTTOM - (y - low_y) / (high_y - low_y) * (_HEIGHT - _BOTTOM - _TOP),
        )

    ink = 'fill="currentColor"'
    left, bottom = place(low_x, low_y)
    right, top = place(high_x, high_y)
    size = f'width="{_WIDTH}" height="{_HEIGHT}" viewBox="0 0 {_WIDTH} {_HEIGHT}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">',
        f'<text x="{left}" y="16" {ink}>{escape(title)}</text>',
        f'<path d="M{left:.1f} {top:.1f}V{bottom:.1f}H{right:.1f}" fill="none" stroke="#888"/>',
    ]
    parts += [
        f'<text x="{left - 6:.1f}" y="{place(low_x, y)[1] + 4:.1f}" text-anchor="end" {ink}>{y:.4g}</text>'
        for y in (low_y, high_y)
    ]
    parts += [
        f'<text x="{place(x, low_y)[0]:.1f}" y="{bottom + 15:.1f}" text-anchor="middle" {ink}>{x:.4g}</text>'
        for x in (low_x, high_x)
    ]
    middle = (left + right) / 2
    parts.append(f'<text x="{middle:.1f}" y="{bottom + 28:.1f}" text-anchor="middle" {ink}>{escape(across)}</text>')
    for i, (name, points) in enumerate(kept):
        colour = COLOURS[i % len(COLOURS)]
        spots = [place(x, y) for x, y in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
        if joined:
            parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colour}"/>' for x, y in spots]
        parts.append(f'<text x="{right + 12:.1f}" y="{top + 16 * i + 8:.1f}" fill="{colour}">{escape(name)}</text>')
    return "".join([*parts, "</svg>"])


def _range(values: Sequence[float], least: float = -math.inf, most: float = math.inf) -> tuple[float, float]:
    """The smallest and largest, apart even if they are the same, but not beyond what there is."""
    low, high = min(values), max(values)
    return (low, high) if high > low else (max(least, low - 0.5), min(most, high + 0.5))


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
