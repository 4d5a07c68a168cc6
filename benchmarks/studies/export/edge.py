"""Runtimes of phones, on this machine: the shipped network and six made for phones, with branches, fused, by authors.

    python benchmarks/studies/export/edge.py [--only mobileone_s0] [--seconds 1] [--table]

Each piece is one network in one runtime: one `repconv bench`, which builds every form, compares it with the unfused
network, and times them in turns, a batch of 1 on one thread. Finished pieces are kept, so an interrupted run goes on.
It takes a quiet machine: where others compute, the longer of two forms is interrupted more often, and ratios come out
too large. Needs the extra `edge`; runtimes that are not installed are left out, with a word.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from repconv.benchmarks.environment import environment
from repconv.benchmarks.harness.turns.timing import LatencyReport, ratio
from repconv.benchmarks.studies.common import (
    ROOT,
    asking,
    head,
    kept_rows,
    markdown_table,
    read_result,
    write_result,
    write_table,
)
from repconv.benchmarks.studies.export.edge_networks import NAMES, OF_TIMM, SIDE

SCHEMA = "repconv.edge/1"
PAGE = ROOT / "docs" / "phones.md"
SHIPPED = "repconv/assets/irep_resnet_cifar10.pt"
RUNTIMES = {"ncnn": "ncnn", "mnn": "MNN", "litert": "ai_edge_litert", "executorch": "executorch"}
"""By the module that has to be there; those that build in seconds first."""
LIMIT_S = 2400
SESSIONS = 3
FACTORY = "repconv.benchmarks.studies.export.edge_networks"


def pieces() -> Iterator[tuple[str, str]]:
    """Network and runtime."""
    for runtime in RUNTIMES:
        for name in ("shipped", *NAMES):
            yield name, runtime


def piece(name: str, runtime: str, rounds: int, seconds: float) -> dict[str, Any]:
    """What one network comes to in one runtime."""
    sources = [SHIPPED] if name == "shipped" else [f"{FACTORY}:{name}"]
    sources += [f"{FACTORY}:{name}_folded"] if name in OF_TIMM else []
    size = [] if name == "shipped" else ["--input-shape", f"3,{SIDE},{SIDE}"]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "bench.json"
        line = [
            "repconv", "bench", *sources, *size, "--backend", runtime, "--against", "unfused", "--threads", "1",
            "--rounds", str(rounds), "--sessions", str(SESSIONS), "--seconds", str(seconds), "--json", str(file),
        ]  # fmt: skip
        command = [str(Path(sys.executable).with_name("repconv")), *line[1:]]
        try:
            ended = subprocess.run(  # noqa: S603  # our own command
                command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S, check=False
            )
        except subprocess.TimeoutExpired:
            return {"command": " ".join(line[:-2]), "failure": f"not done in {LIMIT_S} s"}
        if not file.exists():
            return {"command": " ".join(line[:-2]), "failure": ended.stderr.strip().splitlines()[-1]}
        content = json.loads(file.read_text(encoding="utf-8"))
    found = {_form(row): row for row in content["rows"]}
    forms = {form: _measured(row) for form, row in found.items() if form is not None}
    timed = {form: _latency(row) for form, row in found.items() if form is not None and row["latency"]}
    ratios = {
        f"{above} / {below}": ratio(timed[above], timed[below], sessions=SESSIONS).to_dict()
        for above, below in (("unfused", "fused"), ("fused", "author's"))
        if above in timed and below in timed
    }
    return {
        "command": " ".join(line[:-2]), "versions": content["versions"], "other_load": content["other_load"],
        "forms": forms, "ratios": ratios, "seconds": content["seconds"],
    }  # fmt: skip


def _form(row: Mapping[str, Any]) -> str | None:
    """Unfused or fused; the author's single-path form as it came out, once."""
    if not str(row["source"]).endswith("_folded"):
        return str(row["form"])
    return "author's" if row["form"] == "fused" else None


def _measured(row: Mapping[str, Any]) -> dict[str, Any]:
    evidence = row["evidence"] or {}
    return {
        "failure": row["failure"], "error": evidence.get("max_error"), "same": row["same"], "observed": row["observed"],
        "bytes": row["artefact_bytes"], "median_ms": row["latency"] and row["latency"]["median_ms"],
    }  # fmt: skip


def _latency(row: Mapping[str, Any]) -> LatencyReport:
    kept = row["latency"]
    return LatencyReport(kept["name"], tuple(kept["samples_s"]), tuple(kept["rounds"]))


def table_of(content: Mapping[str, Any]) -> str:
    """A row a network and runtime: convolutions and errors of every form, and how much faster fused is."""
    heading = ("network", "runtime", "convolutions", "error", "unfused / fused", "fused / author's")
    rows = []
    for row in sorted(content["pieces"], key=lambda row: (("shipped", *NAMES).index(row["network"]), row["runtime"])):
        if "failure" in row:
            rows.append((row["network"], row["runtime"], row["failure"], "", "", ""))
            continue
        forms = [row["forms"].get(form) for form in ("unfused", "fused", "author's")]
        rows.append(
            (
                row["network"],
                row["runtime"],
                " -> ".join("-" if form is None else _convolutions(form) for form in forms[:2]),
                ", ".join(
                    "-" if form is None or form["error"] is None else f"{form['error']:.0e}" for form in forms[:2]
                ),
                *(_ratio(row["ratios"].get(name)) for name in heading[4:]),
            )
        )
    return markdown_table(heading, rows)


def _convolutions(form: Mapping[str, Any]) -> str:
    """How many convolutions its runtime's file holds, as read back; MNN stores a linear layer as one."""
    observed = form["observed"] or {}
    kinds = str(observed.get("convolutions") or observed.get("weights") or "").split(", ")
    layers = [kind for kind in kinds if "convolutions" in observed or "Conv" in kind]
    return str(sum(int(layer.split()[0]) for layer in layers)) if layers else "-"


def _ratio(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "-"
    low, high = found["interval_95"]
    return f"{found['value']:.2f} ({low:.2f} to {high:.2f})"


def main() -> None:
    """Measure what is missing, piece by piece."""
    parser = asking(__doc__, "edge")
    parser.add_argument("--only", default="", help="pieces whose name holds this: mobileone_s0, litert")
    parser.add_argument("--rounds", type=int, default=12, help="turns of every form (%(default)s)")
    parser.add_argument("--seconds", type=float, default=1.0, help="timed at least, each form (%(default)s)")
    parser.add_argument("--table", action="store_true", help="write the table of the page, and measure nothing")
    chosen = parser.parse_args()
    if chosen.table:
        write_table(PAGE, chosen.output.name, table_of(read_result(chosen.output, SCHEMA)))
        return
    os.environ["OMP_NUM_THREADS"] = "1"
    kept = kept_rows(chosen.output, SCHEMA, "piece", "pieces")
    for name, runtime in pieces():
        title = f"{name}, {runtime}"
        if chosen.only not in title or title in kept:
            continue
        if find_spec(RUNTIMES[runtime]) is None:
            print(f"{title}: {RUNTIMES[runtime]} is not installed")
            continue
        found = piece(name, runtime, chosen.rounds, chosen.seconds)
        print(title, found.get("failure") or found["ratios"], flush=True)
        kept[title] = {"piece": title, "network": name, "runtime": runtime, **found}
        content = {**head(__file__, SCHEMA), "environment": environment(), "pieces": list(kept.values())}
        write_result(chosen.output, content)


if __name__ == "__main__":
    main()
