"""docs/peers.md from the JSON of `benchmarks/studies/graph/peers.py` alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..common import command_of, markdown_table

HEAD = ("tool", "convolutions", "BN", "additions", "error", "one image, over repconv's", "seconds taken")
"""Columns of every network's table."""


def page(content: Mapping[str, Any]) -> str:
    """The whole page."""
    taken = content["networks"][0]["environment"]
    return f"""# The same networks through other tools

Measured on {taken["cores"]} cores of an {taken["processor"]}, threads: {content["threads"]};
`benchmarks/results/peers.json`, by `{command_of(content)}`. Weights, statistics, scales and shifts are random. The
machine was busy (its load is in the file): counts and errors do not mind, ratios hold as far as their intervals say,
and seconds taken are upper bounds.

* **convolutions, BN, additions**: nodes left in the ONNX file (of modules: exported after the tool). For OpenVINO,
  the convolutions of the graph it runs.
* **error**: of the result in the runtime it is timed in, against the unfused network in float64, over the output's root
  mean square. The detector's is that of its box coordinates, which are large beside its scores.
* **one image**: time over that of repconv's file with a 95 % interval, both in onnxruntime at its default settings, one
  pair of sessions at a time, in turns; below 1 the other is faster. onnxruntime optimises every file it opens, so the
  rows of files that keep their branches are its own optimiser's, too. OpenVINO's row: both files in OpenVINO, float32.
* **seconds taken**: the least of three, without exporting; onnxruntime's and OpenVINO's are for reading, optimising and
  compiling. `repconv fuse` with an example traces the network with torch.export first. Tools that know an architecture
  swap its modules in place, search nothing, and take less time.

{as_markdown(content)}"""


def as_markdown(content: Mapping[str, Any]) -> str:
    """A table a network."""
    parts = (f"## {n['model']}\n\n{markdown_table(HEAD, map(_cells, n['rows']))}" for n in content["networks"])
    return "\n\n".join(parts) + "\n"


def _cells(row: Mapping[str, Any]) -> list[str]:
    name = f"{row['tool']} {row['version']}" if "version" in row else row["tool"]
    if row["tool"] == "as exported":
        name = row["tool"]
    if "reason" in row:
        return [name, f"not possible: {row['reason'].replace('|', '/')}", *[""] * (len(HEAD) - 2)]
    left = f"{row['convolutions']}"
    if "repconv_convolutions" in row:
        left += f" ({row['repconv_convolutions']} of repconv's file)"
    counts = ["" if row[key] is None else str(row[key]) for key in ("batch_norms", "adds")]
    return [name, left, *counts, f"{row['error']:.1e}", _latency(row), _seconds(row)]


def _latency(row: Mapping[str, Any]) -> str:
    if "latency" not in row:
        return "1"
    found = row["latency"]
    low, high = found["interval_95"]
    return f"{found['over_repconv']:.2f} [{low:.2f}, {high:.2f}]"


def _seconds(row: Mapping[str, Any]) -> str:
    return f"{min(row['seconds']):.2g}" if row["seconds"] else ""
