"""Plain-text tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

import click

from ..forecasting import Forecast
from ..report import FusionReport, Size


def table(rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> str:
    """Rows as aligned columns, the first row a heading; columns in `right` are aligned right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  " + "  ".join(cells).rstrip())
    lines.insert(1, "  " + "-" * (sum(widths) + 2 * len(widths) - 2))
    return "\n".join(lines)


def paragraph(text: str) -> str:
    """Text as lines a terminal shows whole."""
    return click.wrap_text(text, 116, "  ", "  ")


def fusion_tables(report: FusionReport, foretold: Forecast | None = None) -> str:
    """What was fused layer by layer, what was not, and the network before and after."""
    parts = []
    if report.layers:
        errors = {c.where: c for c in (report.agreement.blocks if report.agreement else ())}
        weights = {layer.name: layer for layer in (foretold.layers if foretold else ())}
        rows = [["layer", "branches", "becomes", "error", "unfused", *(["range", "int8"] if weights else [])]]
        for layer in report.layers:
            found = errors.get(layer.name)
            rows.append([
                layer.name or "(the model)",
                f"{len(layer.branches)}: {' '.join(layer.branches)}" if layer.branches else "conv + BN",
                layer.geometry,
                f"{found.error.to_scale:.1e}" if found else "",
                f"{found.own.to_scale:.1e}" if found and found.own else "",
            ])  # fmt: skip
            if layer.name in weights:
                growth, cost = weights[layer.name].range_growth, weights[layer.name].fused
                rows[-1] += [
                    "" if growth is None else f"x{growth:.2f}",
                    f"{cost.int8_per_tensor:.1%} {cost.int8_per_channel:.1%}",
                ]
        parts.append(table(rows, right=(3, 4, 5, 6)))
        if errors:
            parts.append(
                "  error: largest difference from float64, relative to the layer's output; unfused: the same for the\n"
                "  branches it was made of, in the same precision"
            )
        if weights:
            parts.append(
                "  range: largest weight over that of the 3x3 branch alone; int8: error of the weights with one scale\n"
                "  a tensor and with one a channel"
            )
    parts += [f"  left as it is: {r.where}: {r.why}" for r in report.refusals]
    kept = len(report.refusals)
    parts.append(size_table(len(report.blocks) + kept, kept, report.before, report.after))
    return "\n\n".join(parts)


def size_table(blocks: int, kept: int, before: Size, after: Size) -> str:
    """A network before and after: its multi-branch blocks, how many of them stay, and its sizes, where known."""
    rows = [["", "before", "after"], ["multi-branch blocks", str(blocks), str(kept)]]
    for label, values in (
        ("convolutions", (before.convolutions, after.convolutions)),
        ("batch norms", (before.batch_norms, after.batch_norms)),
        ("parameters", (before.parameters, after.parameters)),
        ("FLOPs an image", (before.flops, after.flops)),
    ):
        if None not in values:
            rows.append([label, *(f"{value:,}" for value in values)])
    return table(rows, right=(1, 2))
