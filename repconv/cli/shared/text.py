"""Plain-text tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

import click

from ...blocks.forecast import Forecast
from ...graph.planning.foresight import Foresight
from ...proof.report import Diverged, FusionReport, GraphRefusal, Refusal, Size


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


_ERRORS = (
    "  error: of the stored numbers against what they were made of, in float64, whatever the layer reads, by the test\n"
    "  that comes nearest to what is allowed: once rounding each bias, or as often each weight of one output"
)


def fusion_tables(report: FusionReport, foretold: Forecast | None = None) -> str:
    """What was fused layer by layer, what was not, and the network before and after."""
    parts = []
    if report.layers:
        errors = {c.where: c for c in (report.agreement.blocks if report.agreement else ())}
        weights = {layer.name: layer for layer in (foretold.layers if foretold else ())}
        rows = [["layer", "branches", "becomes", "error", "allowed", *(["range", "int8"] if weights else [])]]
        for layer in report.layers:
            found = errors.get(layer.name)
            rows.append(
                [
                    layer.name or "(the model)",
                    f"{len(layer.branches)}: {' '.join(layer.branches)}" if layer.branches else "conv + BN",
                    layer.geometry,
                    f"{found.error.to_scale:.1e}" if found else "",
                    f"{found.tolerance:.1e}" if found else "",
                ]
            )
            if layer.name in weights:
                growth, cost = weights[layer.name].range_growth, weights[layer.name].fused
                rows[-1] += [
                    "" if growth is None else f"x{growth:.2f}",
                    f"{cost.int8_per_tensor:.1%} {cost.int8_per_channel:.1%}",
                ]
        parts.append(table(rows, right=(3, 4, 5, 6)))
        if errors:
            parts.append(_ERRORS)
        if weights:
            parts.append(
                "  range: largest weight over that of the 3x3 branch alone; int8: error of the weights with one scale\n"
                "  a tensor and with one a channel"
            )
    parts += [f"  left as it is: {r.where}: {r.why}" for r in report.refusals]
    kept = len(report.refusals)
    parts.append(size_table((len(report.blocks) + kept, kept), report.before, report.after))
    return "\n\n".join(parts)


def fused_tables(report: FusionReport, foretold: Forecast | None = None, *, as_graph: bool) -> str:
    """What `fuse` shows: layer by layer of modules, convolution by convolution of a graph; what was not compared."""
    shown = graph_tables(report) if as_graph else fusion_tables(report, foretold)
    return f"{shown}\n\n{refusal_list('not measured', report.unmeasured)}" if report.unmeasured else shown


def graph_tables(report: FusionReport) -> str:
    """What each convolution of a graph was made of, what stays as it is and why, and the sizes before and after."""
    parts = []
    if report.layers:
        errors = {c.where: c for c in (report.agreement.blocks if report.agreement else ())}
        rows = [["layer", "made of", "becomes", "error", "allowed"]]
        for layer in report.layers:
            found = errors.get(layer.name)
            rows.append(
                [
                    _short(layer.name),
                    _made_of(layer.branches),
                    layer.geometry,
                    f"{found.error.to_scale:.1e}" if found else "",
                    f"{found.tolerance:.1e}" if found else "",
                ]
            )
        parts.append(table(rows, right=(3, 4)))
        parts.append(_ERRORS)
    kinds = [refusal for refusal in report.refusals if isinstance(refusal, GraphRefusal)]
    others = [refusal for refusal in report.refusals if not isinstance(refusal, GraphRefusal)]
    if kinds:
        parts.append(refusal_groups("left as it is", kinds))
    if others:
        parts.append(refusal_list("left as it is", others))
    parts += _diverged("shared weights that became several", report.diverged)
    parts.append(size_table(None, report.before, report.after))
    return "\n\n".join(parts)


def foresight_tables(found: Foresight) -> str:
    """What fusing a graph would write and leave, and the counts before and after."""
    parts = []
    if found.layers:
        rows = [["would become one", "made of", "as"]]
        rows += [[_short(layer.name), _made_of(layer.nodes), layer.geometry] for layer in found.layers]
        parts.append(table(rows))
    else:
        parts.append("  nothing in it fuses: no region of it would become cheaper")
    if found.refusals:
        parts.append(refusal_groups("would stay as it is", found.refusals))
    parts += _diverged("shared weights that would become several", found.diverged)
    counts = [["", "before", "after"], ["convolutions", *map(str, found.convolutions)]]
    counts.append(["batch norms", *map(str, found.batch_norms)])
    parts.append(table(counts, right=(1, 2)))
    return "\n\n".join(parts)


def _diverged(title: str, weights: Sequence[Diverged]) -> list[str]:
    """What shared weights became, the largest growth first, and all of it together."""
    if not weights:
        return []
    found = sorted(weights, key=lambda each: -each.added_bytes)
    rows = [["weight", "nodes", "became", "bytes"]]
    rows += [[_short(w.weight), str(w.readers), str(w.weights), f"{w.added_bytes:+,}"] for w in found]
    rows.append(["together", "", "", f"{sum(w.added_bytes for w in found):+,}"])
    return [f"  {title}, as what is folded in differs\n{table(rows, right=(1, 2, 3))}"]


def _made_of(nodes: Sequence[str]) -> str:
    """How many nodes, and the first and the last."""
    if not nodes:
        return "conv + BN"
    ends = [_short(nodes[0]), _short(nodes[-1])] if len(nodes) > 1 else [_short(node) for node in nodes]
    return f"{len(nodes)}: {' .. '.join(ends)}"


def _short(name: str, width: int = 44) -> str:
    return name if len(name) <= width else f"..{name[2 - width :]}"


def refusal_list(title: str, refusals: Sequence[Refusal]) -> str:
    """Each reason once, after the first places it holds for."""
    return "\n".join([f"  {title}", *_reasons(refusals, "  ", most=len(refusals))])


_NODES_SHOWN = 5
"""Of a kind of reason, and of one reason; the JSON has all of them."""


def refusal_groups(title: str, refusals: Sequence[GraphRefusal]) -> str:
    """The reasons why nodes of a graph stay by kind: how many, what would have to differ, and the first of them."""
    kinds: dict[str, list[GraphRefusal]] = {}
    for refusal in refusals:
        kinds.setdefault(refusal.kind, []).append(refusal)
    counted = f"{len(refusals)} reason{'s' * (len(refusals) > 1)} of {len(kinds)} kind{'s' * (len(kinds) > 1)}"
    lines = [f"  {title}: {counted}"]
    for kind, found in sorted(kinds.items(), key=lambda item: -len(item[1])):
        heading = f"{kind} ({len(found)}): folds if {found[0].folds_if}"
        lines += ["", click.wrap_text(heading, 116, "  ", "    "), *_reasons(found, "    ", most=_NODES_SHOWN)]
    return "\n".join(lines)


def _reasons(refusals: Sequence[Refusal], indent: str, *, most: int) -> list[str]:
    """The most frequent reasons first, each after the first places it holds for."""
    places: dict[str, list[str]] = {}
    for refusal in refusals:
        places.setdefault(refusal.why, []).append(_short(refusal.where))
    ordered = sorted(places.items(), key=lambda item: -len(item[1]))
    lines = []
    for why, where in ordered[:most]:
        more = f" and {len(where) - _NODES_SHOWN} more" if len(where) > _NODES_SHOWN else ""
        said = f"{', '.join(where[:_NODES_SHOWN])}{more}: {why}"
        lines.append(click.wrap_text(said, 116, f"{indent}- ", f"{indent}  "))
    left = sum(len(where) for _, where in ordered[most:])
    return [*lines, *([f"{indent}- and {left} more"] if left else [])]


def size_table(blocks: tuple[int, int] | None, before: Size, after: Size) -> str:
    """A network before and after: its multi-branch blocks and its sizes, where known."""
    rows = [["", "before", "after"]]
    if blocks is not None:
        rows.append(["multi-branch blocks", *map(str, blocks)])
    for label, values in (
        ("convolutions", (before.convolutions, after.convolutions)),
        ("batch norms", (before.batch_norms, after.batch_norms)),
        ("parameters", (before.parameters, after.parameters)),
        ("FLOPs an image", (before.flops, after.flops)),
    ):
        if None not in values:
            rows.append([label, *(f"{value:,}" for value in values)])
    return table(rows, right=(1, 2))
