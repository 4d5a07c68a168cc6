"""The power of the proof as a table in a page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..common import markdown_table

DTYPES = ("float32", "float16", "bfloat16")
KINDS = ("weights scaled", "border column of taps", "one bias shifted")
START, END = "<!-- proof_power.json: start -->", "<!-- proof_power.json: end -->"


def between(text: str, table: str) -> str:
    """`text` with `table` between the two marks."""
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}\n\n{table}\n{END}{after}"


def power_table(content: Mapping[str, Any]) -> str:
    """What was refused of what is right, and found of what is wrong, by type."""
    pieces = {tuple(key.split(", ")): piece for key, piece in content["pieces"].items() if "right" in piece}
    of = {d: [piece for key, piece in pieces.items() if key[1] == d] for d in DTYPES}
    names = {d: {key[0] for key in pieces if key[1] == d} for d in DTYPES}
    right = markdown_table(
        ("type", "networks", "right folds", "refused", "regions", "regions refused"),
        [
            (
                d,
                f"{len(names[d])}",
                f"{sum(p['right'] for p in of[d]):,}",
                f"{sum(len(p['refused']) for p in of[d]):,}",
                f"{sum(p['regions'] for p in of[d]):,}",
                f"{sum(p['refused_regions'] for p in of[d]):,}",
            )
            for d in DTYPES
        ],
    )
    deltas = sorted({float(d) for p in pieces.values() for d in p["wrong"]["weights scaled"]})
    wrong = markdown_table(
        ("wrong by d", "type", *(f"{d:g}" for d in deltas), "all found from"),
        [
            (kind, d, *(_found(of[d], kind, f"{delta:g}") for delta in deltas), _from(of[d], kind, deltas))
            for kind in KINDS
            for d in DTYPES
        ],
    )
    swapped = ", ".join(f"{_found(of[d], 'channels swapped', '1')} in {d}" for d in DTYPES)
    return f"{right}\n\n{wrong}\n\nTwo channels swapped: found {swapped}.\n"


def _sums(pieces: list[Any], kind: str, delta: str) -> tuple[int, int]:
    rows = [p["wrong"][kind][delta] for p in pieces]
    return sum(r[0] for r in rows), sum(r[1] for r in rows)


def _found(pieces: list[Any], kind: str, delta: str) -> str:
    found, tried = _sums(pieces, kind, delta)
    return f"{found}/{tried}" if tried else "-"


def _from(pieces: list[Any], kind: str, deltas: list[float]) -> str:
    """The smallest delta from which on nothing was missed."""
    whole = None
    for delta in reversed(deltas):
        found, tried = _sums(pieces, kind, f"{delta:g}")
        if found < tried:
            break
        whole = delta
    return "none" if whole is None else f"**{whole:g}**"
