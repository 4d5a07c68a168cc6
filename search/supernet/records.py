"""What the JSON files of a run have to be before anything believes them, by their schema."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from repconv.errors import SearchError
from repconv.sources.schema import Rule, each, finite, many, optional, record, text, whole

_MANY = 2**53
_COUNT = whole(0, _MANY)
_SIDE = whole(0, 2**14)
_KINDS = many(text())
_SPACE = many(record({"name": text(), "fixed": _KINDS, "searchable": _KINDS}))
_GATES = record({"alpha": many(finite()), "beta": many(finite())})
_MEMBER = record({"age": _COUNT, "accuracy": optional(finite()), "score": optional(finite()), "active": each(_KINDS)})
_STATE = {"gates": _GATES, "generation": _COUNT, "members": many(_MEMBER), "asked": many(_MEMBER)}
_MEMORY = {"memory": many(finite())}
_FOUND = record({"accuracy": finite(), "age": optional(_COUNT), "active": each(_KINDS)}, {"cost": finite()})

STATE, POPULATION, SEARCH, RETRAIN = "a state", "repconv.population/1", "repconv.search/1", "repconv.retrain/1"
SWEEP = "repconv.sweep/1"
FOUND, MACHINE, EPOCH, GENERATION = "what a search adds", "a machine", "epoch", "generation"
ACCURACY, GROWTH, PRICED = "accuracy", "growth", "repconv.prices/1"
RULES: Mapping[str, Rule] = {
    STATE: record(_STATE, _MEMORY),
    POPULATION: record({"schema": text(POPULATION), "space": _SPACE, **_STATE}, _MEMORY),
    SEARCH: record(
        {"schema": text(SEARCH), "space": _SPACE, "gates": _GATES, "architectures": many(_FOUND, least=1)},
        {"ended_early": optional(_COUNT)},
    ),
    RETRAIN: record({
        "schema": text(RETRAIN), "measured_on": text(), "images": _COUNT, "accuracy": finite(),
        "fused_accuracy": finite(),
    }),
    SWEEP: record({
        "schema": text(SWEEP), "preset": text(), "settings": each(text()), "vary": each(many(text())),
        "seeds": whole(1, _MANY),
        "retrain": optional(record({"preset": text(), "settings": each(text()), "top": whole(1, _MANY)})),
    }),
    FOUND: record(
        {
            "network": record({"name": text()}, {
                "width": _SIDE, "blocks": many(_SIDE), "fixed": _KINDS, "branches": _KINDS,
            }),
            "gates": each(record({"beta": finite(), "alpha": each(finite())})),
            "validation_accuracy": finite(),
        },
        {"search": record({"strategy": text(), "seed": whole(0, 2**63 - 1)})},
    ),
    MACHINE: each(lambda *_: ""),
    EPOCH: record({"epoch": _COUNT, "loss": finite()}, {"step": _COUNT, "seconds_a_step": finite()}),
    PRICED: record({
        "schema": text(PRICED), "objective": text("branches", "flops", "latency"), "fixed": finite(),
        "slots": each(each(finite())),
    }),
    GROWTH: record({"epoch": _COUNT, "grown": each(_KINDS), "cut": each(_KINDS), "saliency": each(finite())}),
    ACCURACY: record({"epoch": _COUNT, "accuracy": finite(), "images": _COUNT}),
    GENERATION: record(
        {
            "epoch": _COUNT, "generation": _COUNT, "population": _COUNT, "measured": _COUNT,
            **dict.fromkeys(
                ("best_accuracy", "mean_accuracy", "worst_accuracy", "mean_age", "mean_size"), finite()
            ),
        },
        {
            "parents": _COUNT, "survivors": _COUNT, "bfloat16_tau": finite(),
            **{f"seconds_{part}": finite() for part in ("fold", "reestimate", "write", "run")},
        },
    ),
}  # fmt: skip
"""What content of each schema, or of each kind of line in the metrics, has to be."""


def require(content: Any, schema: str, where: str) -> Any:  # noqa: ANN401  # of a file
    """The content of a file, which is as its schema says.

    Raises:
        SearchError: it is not; the message says where in it, and what was expected.
    """
    said = RULES[schema](content, "")
    if said:
        raise SearchError(f"{where} makes no sense: {said}; it was changed or damaged after it was written")
    return content
