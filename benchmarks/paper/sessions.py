"""What a result of `inference.py` holds: networks measured together, and those added later, beside a reference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Measured(NamedTuple):
    """The row of a network, and by name all rows of the session it was measured in: ratios are taken within one."""

    row: Mapping[str, Any]
    session: Mapping[str, Mapping[str, Any]]


def measured(content: Mapping[str, Any]) -> dict[str, Measured]:
    """By network, in the order they were measured; a reference measured again stays that of the first session."""
    found: dict[str, Measured] = {}
    for session in (content, *content.get("added", ())):
        rows = {row["network"]: row for row in session["rows"]}
        found |= {name: Measured(row, rows) for name, row in rows.items() if name not in found}
    return found
