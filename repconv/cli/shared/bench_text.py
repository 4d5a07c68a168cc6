"""A benchmark's result as tables, for the terminal and in Markdown."""

from __future__ import annotations

import click

from repconv.benchmarks.harness.results import BenchResult, Row
from repconv.benchmarks.harness.turns.noise import gathered, ratio_verdict
from repconv.export.targets import TARGETS

from .text import table

Rows = list[list[str]]


def tables(result: BenchResult) -> str:
    """Rows and ratios as aligned columns."""
    parts = []
    for title, rows in _groups(result):
        parts += [f"  {title}\n", table(rows, right=range(2, 9)), ""]
    ratios = _ratios(result)
    if len(ratios) > 1:
        parts += [table(ratios, right=(2,)), ""]
    parts.append(click.wrap_text(legend(result), 116, "  ", "  "))
    return "\n".join(parts)


def legend(result: BenchResult) -> str:
    """What the columns are."""
    settings = result.settings
    text = (
        "median: of the medians of rounds; p95, p99: of all calls; spread: standard deviation of all calls over their "
        "mean; memory: the most that loading and calling took; same: whether it gives what the source gives, and its "
        "largest error relative to the output; ratios are of medians, with a 95 % interval over rounds"
    )
    if any(row.device == "cuda" for row in result.rows):
        text += f"; copies to and from the GPU are {'in' if settings.transfers else 'not in'} the times"
    return text + "."


def findings(result: BenchResult) -> str:
    """What is to be said of noise: each kind once, with the worst cases."""
    found = gathered(result.all_warnings)
    if not found:
        return "\n  quiet: no sign of noise in the times"
    return "\n".join(["", "  noise", *(click.wrap_text(said, 116, "  - ", "    ") for said in found)])


def differing(result: BenchResult) -> list[str]:
    """What differs from its source, and what failed."""
    found = [f"{row.key.name}: {row.evidence.verdict}" for row in result.differing if row.evidence is not None]
    return [*found, *(f"{row.key.name}: {row.failure}" for row in result.failed)]


def markdown(result: BenchResult, command: str) -> str:
    """The same as Markdown, with the command and the machine."""
    machine = result.environment
    fence = "``" if "`" in command else "`"
    where = f"{machine['processor']}, {machine['cores']} cores; {_packages(result)}."
    parts = [f"{fence}{command}{fence}", _no_html(where)]
    for title, rows in _groups(result):
        parts += [f"{_no_html(title)}:", _markdown_table(rows)]
    ratios = _ratios(result)
    if len(ratios) > 1:
        parts.append(_markdown_table(ratios))
    parts += [legend(result), "\n".join(f"* {_no_html(said)}" for said in gathered(result.all_warnings))]
    return "\n\n".join(parts) + "\n"


def _packages(result: BenchResult) -> str:
    known = result.environment["versions"]
    names = ("torch", *(target.packages[0] for target in TARGETS.values()))
    return ", ".join(f"{name} {known[name]}" for name in names if isinstance(known, dict) and name in known)


def _markdown_table(rows: Rows) -> str:
    head, *body = [[_no_html(cell).replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join([f"| {' | '.join(head)} |", "|" + "---|" * len(head), *(f"| {' | '.join(row)} |" for row in body)])


def _no_html(text: str) -> str:
    """Text in Markdown that may hold names: pages show Markdown's HTML as it stands, scripts among it."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _groups(result: BenchResult) -> list[tuple[str, Rows]]:
    """One table a source, batch size and precision."""
    found = []
    sizes = {source.label: "x".join(map(str, source.size)) for source in result.sources}
    for source, batch, precision in dict.fromkeys((r.key.source, r.key.batch, r.key.precision) for r in result.rows):
        rows = [
            ["backend", "form", "median ms", "p95 ms", "p99 ms", "spread", "images/s", "memory MB", "file MB", "same"]
        ]
        mine = [r for r in result.rows if (r.key.source, r.key.batch, r.key.precision) == (source, batch, precision)]
        backends = list(dict.fromkeys(r.key.backend for r in mine))
        rows += [_row(row) for row in sorted(mine, key=lambda r: backends.index(r.key.backend))]
        found.append((f"{source}, batch {batch}, {precision}, {sizes[source]}", rows))
    return found


def _row(row: Row) -> list[str]:
    name = row.key.backend if row.device == "cpu" else f"{row.key.backend} ({row.device})"
    memory = "" if row.memory_bytes is None else f"{row.memory_bytes / 1e6:.0f}"
    ends = [memory, f"{row.artefact_bytes / 1e6:.2f}", _same(row)]
    if row.latency is None:
        return [name, row.key.form, "failed", "", "", "", "", *ends]
    t = row.latency
    times = [f"{t.median_ms:.3f}", f"{t.p95_ms:.3f}", f"{t.p99_ms:.3f}", f"{t.cv:.0%}"]
    return [name, row.key.form, *times, f"{t.throughput(row.key.batch):,.0f}", *ends]


def _same(row: Row) -> str:
    seen = row.evidence
    if seen is None:
        return ""
    if not seen.finite:
        return "NO: NaN or Inf"
    error = seen.rms_error if seen.tolerance.measure == "rms" else seen.max_error
    return f"{'yes' if seen.passed else 'NO'}, {error:.0e}"


def _ratios(result: BenchResult) -> Rows:
    rows = [["compared", "backend", "ratio", "95 % interval", ""]]
    several = len({(r.key.batch, r.key.precision) for r in result.rows}) > 1 or len(result.sources) > 1
    for c in result.compared:
        where = f", {c.under.source}, batch {c.over.batch}, {c.over.precision}" if several else ""
        digits = 3 if c.ratio.value < 3 else 2
        rows.append(
            [
                c.name,
                c.over.backend + where,
                f"{c.ratio.value:.{digits}f}",
                f"{c.ratio.low:.{digits}f} to {c.ratio.high:.{digits}f}",
                ratio_verdict(c.ratio),
            ]
        )
    return rows
