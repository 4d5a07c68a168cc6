"""A benchmark's result as one HTML file: times, ratios, what was fused, how exactly, and everything asked for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape

from repconv.blocks.inspection import Inspection
from repconv.pages.drawing import FIXED_COLOUR, Cell, distributions, dots, grid, shade
from repconv.pages.page import bullets, facts, figure, html_table, page
from repconv.proof.report import FusionReport

from .results import BenchResult, Compared, Measured, Row
from .turns.noise import gathered, ratio_verdict


def bench_report(result: BenchResult) -> str:
    """The whole page."""
    names = ", ".join(source.label for source in result.sources)
    return page(
        f"{names}: latency and equivalence",
        [
            _headline(result),
            *_noise(result),
            "<h2>Latency</h2>",
            *_latency(result),
            "<h2>Compared</h2>",
            _ratios(result),
            *(part for source in result.sources for part in _source(source)),
            "<h2>Settings asked for</h2>",
            facts(result.settings.to_dict()),
            "<h2>Settings observed</h2>",
            _observed(result),
            "<h2>Machine</h2>",
            _machine(result),
        ],
    )


def _headline(result: BenchResult) -> str:
    cards = [_card(c) for c in result.compared if c.over.form == "unfused"]
    judged = [row for row in result.rows if row.evidence is not None]
    if judged:
        word, mark = ("differs", "bad") if result.differing else ("same network", "good")
        said = f"{len(judged) - len(result.differing)} of {len(judged)} subjects give what the source gives"
        cards.append(f'<div class="card"><b class="{mark}">{word}</b>{said}</div>')
    return f'<div class="cards">{"".join(cards)}</div>'


def _card(c: Compared) -> str:
    ratio = c.ratio
    number = f"{ratio.value:.1f}" if ratio.value >= 1.95 else f"{ratio.value:.2f}"
    said = f"{ratio.low:.2f} to {ratio.high:.2f}, {c.over.backend}, batch {c.over.batch}, {c.over.precision}"
    return f'<div class="card"><b>{number} times</b>as fast fused as unfused<br><small>{escape(said)}</small></div>'


def _noise(result: BenchResult) -> list[str]:
    problems = [f"{row.key.name}: {row.evidence.verdict}" for row in result.differing if row.evidence is not None]
    problems += [f"{row.key.name}: {row.failure}" for row in result.failed]
    parts = [bullets(problems, mark="bad")] if problems else []
    warnings = gathered(result.all_warnings)
    if warnings:
        parts += ["<h2>Noise</h2>", bullets(warnings)]
    else:
        parts.append('<p class="soft">No sign of noise in the times.</p>')
    return [*parts, bullets(result.notes, mark="soft")]


def _latency(result: BenchResult) -> Iterable[str]:
    groups: dict[tuple[str, int, str], list[Row]] = {}
    for row in result.rows:
        groups.setdefault((row.key.source, row.key.batch, row.key.precision), []).append(row)
    for (source, batch, precision), rows in groups.items():
        yield f"<h3>{escape(source)}, batch {batch}, {escape(precision)}</h3>"
        backends = list(dict.fromkeys(row.key.backend for row in rows))
        ordered = sorted(rows, key=lambda row: backends.index(row.key.backend))
        yield html_table(
            (
                "backend",
                "form",
                "median ms",
                "mean ms",
                "p90",
                "p95",
                "p99",
                "spread",
                "images/s",
                "memory MB",
                "file MB",
                "same",
            ),
            [_row(row) for row in ordered],
            right=range(2, 11),
        )
        for backend in backends:
            lanes = [
                (f"{row.key.form}: {t.median_ms:.3f} ms", [1e3 * s for s in t.samples_s], t.median_ms)
                for row in rows
                if row.key.backend == backend and (t := row.latency) is not None
            ]
            if lanes:
                calls = ", ".join(f"{len(values):,}" for _, values, _ in lanes)
                yield figure(distributions(lanes, "milliseconds"), f"{backend}: times of {calls} calls; bars: medians")


def _row(row: Row) -> list[object]:
    where = row.key.backend if row.device == "cpu" else f"{row.key.backend} ({row.device})"
    memory = "" if row.memory_bytes is None else f"{row.memory_bytes / 1e6:.0f}"
    seen = row.evidence
    same = "" if seen is None else f"{'yes' if seen.passed else 'NO'}, {seen.max_error:.1e}"
    ends = [memory, f"{row.artefact_bytes / 1e6:.2f}", same]
    t = row.latency
    if t is None:
        return [where, row.key.form, "failed", *[""] * 6, *ends]
    times = [f"{ms:.3f}" for ms in (t.median_ms, t.mean_ms, t.p90_ms, t.p95_ms, t.p99_ms)]
    return [where, row.key.form, *times, f"{t.cv:.0%}", f"{t.throughput(row.key.batch):,.0f}", *ends]


def _ratios(result: BenchResult) -> str:
    rows = [
        (
            c.name,
            c.over.backend,
            c.over.batch,
            c.over.precision,
            f"{c.ratio.value:.3f}",
            f"{c.ratio.low:.3f} to {c.ratio.high:.3f}",
            ratio_verdict(c.ratio),
        )
        for c in result.compared
    ]
    heading = ("ratio of medians", "backend", "batch", "precision", "ratio", "95 % interval", "")
    return html_table(heading, rows, right=(2, 4, 5))


def _source(source: Measured) -> Iterable[str]:
    yield f"<h2>{escape(source.label)}</h2>"
    known = {"input": "x".join(map(str, source.size)), "bytes": source.bytes, "sha256": source.sha256}
    yield facts({key: value for key, value in known.items() if value is not None})
    if source.report is not None:
        yield from _fusion(source.report)
        yield from _errors(source.report)
    if source.inspection is not None:
        yield from _architecture(source.inspection)


def _fusion(report: FusionReport) -> Iterable[str]:
    yield "<h3>What was fused</h3>"
    before, after = report.before, report.after
    sizes = [
        (name, f"{was:,}", f"{now:,}")
        for name, was, now in (
            ("convolutions", before.convolutions, after.convolutions),
            ("batch norms", before.batch_norms, after.batch_norms),
            ("parameters", before.parameters, after.parameters),
            ("FLOPs an image", before.flops, after.flops),
        )
        if was is not None and now is not None
    ]
    yield html_table(("", "before", "after"), sizes, right=(1, 2))
    errors = {c.where: c for c in (report.agreement.blocks if report.agreement else ())}
    rows = []
    for layer in report.layers:
        seen = errors.get(layer.name)
        rows.append(
            (
                layer.name or "(the model)",
                f"{len(layer.branches)}: {' '.join(layer.branches)}" if layer.branches else "conv + BN",
                layer.geometry,
                f"{layer.before.parameters:,}",
                f"{layer.after.parameters:,}",
                f"{seen.error.to_scale:.1e}" if seen else "",
                f"{seen.own.to_scale:.1e}" if seen and seen.own else "",
            )
        )
    if rows:
        heading = ("layer", "made of", "becomes", "parameters", "after", "error", "unfused")
        yield html_table(heading, rows, right=(3, 4, 5, 6))
    yield bullets(f"left as it is: {refusal.where}: {refusal.why}" for refusal in report.refusals)


def _errors(report: FusionReport) -> Iterable[str]:
    agreement = report.agreement
    if agreement is None or not agreement.comparisons:
        return
    yield "<h3>Error by block</h3>"
    yield f"<p>{escape(agreement.verdict)}</p>"
    rows = [(c.where, (c.error.to_scale, c.own.to_scale if c.own else None)) for c in agreement.blocks]
    picture = dots(rows, ("fused", "unfused"), "largest difference from float64, of the output's scale")
    if picture:
        yield figure(picture, "each block on the activations it really gets; unfused: its branches in float32")


def _architecture(found: Inspection) -> Iterable[str]:
    blocks = {layer.name or "(the model)": layer for layer in found.layers if layer.fixed or layer.gates}
    if not blocks:
        return
    kinds = list(
        dict.fromkeys([k for b in blocks.values() for k in b.fixed] + [k for b in blocks.values() for k in b.gates])
    )
    most = max((gate for layer in blocks.values() for gate in layer.gates.values()), default=1.0)

    def cell(name: str, kind: str) -> Cell | None:
        layer = blocks[name]
        if kind in layer.fixed:
            return FIXED_COLOUR, "fixed"
        return (shade(layer.gates[kind] / most), f"gate {layer.gates[kind]:.3f}") if kind in layer.gates else None

    yield "<h3>Architecture</h3>"
    yield figure(
        grid(list(blocks), kinds, cell, "branches of each block"),
        f"grey: always there; blue: behind a gate, from 0 (white) to {most:.2f} (blue): what the branch is multiplied "
        "with; blank: not in the block",
    )


def _observed(result: BenchResult) -> str:
    rows = [
        (
            row.key.backend,
            row.key.form,
            row.key.batch,
            row.key.precision,
            row.device,
            "; ".join(f"{key.replace('_', ' ')} {value}" for key, value in row.observed.items()),
        )
        for row in result.rows
    ]
    return html_table(("backend", "form", "batch", "precision", "device", "read back"), rows, right=(2,))


def _machine(result: BenchResult) -> str:
    found: dict[str, object] = {}
    for key, value in result.environment.items():
        found |= {f"{key}: {k}": v for k, v in value.items()} if isinstance(value, Mapping) else {key: value}
    if result.others is not None:
        found["processor time taken by others"] = f"{result.others.others:.1%}"
        found["processor time stolen"] = f"{result.others.stolen:.1%}"
    if result.gpu:
        found |= {f"GPU {key}": value for key, value in result.gpu[-1].to_dict().items()}
        found["GPU clocks seen"] = f"{min(g.sm_mhz for g in result.gpu)} to {max(g.sm_mhz for g in result.gpu)} MHz"
    found["seconds it took"] = f"{result.seconds:.0f}"
    return facts(found)
