"""The measured part of docs/gpu.md, from benchmarks/results/gpu.json alone.

python benchmarks/studies/gpu/page.py
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from repconv.benchmarks.studies.common import (
    RESULTS,
    ROOT,
    asking,
    command_of,
    markdown_table,
    read_result,
    write_table,
)
from repconv.benchmarks.studies.gpu.running import DONE

SCHEMA = "repconv.gpu/1"
MARK = "gpu"
NOT_YET = "Not measured yet: no machine with a GPU has run `make gpu`."
Row = Mapping[str, Any]
"""Of a piece, or a part of one, as the JSON holds it."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A table of the page.

    pieces: the first word of the names of those whose rows it has. words: what is shown. cells: of a row.
    """

    pieces: str
    title: str
    words: str
    heading: Sequence[str]
    cells: Callable[[Row], Sequence[str]]


def measured(content: Row | None) -> str:
    """The text between the page's marks; None: nothing was measured."""
    if content is None:
        return NOT_YET
    parts = [_introduction(content), _outcomes(content)]
    for table in TABLES:
        rows = _rows(content, table.pieces)
        if rows:
            shown = markdown_table(table.heading, map(table.cells, rows))
            parts.append(f"### {table.title}\n\n{table.words}\n\n{shown}")
    return "\n\n".join(parts)


def _rows(content: Row, pieces: str) -> list[Row]:
    """The rows of all pieces whose name begins with that word."""
    return [row for piece in content["pieces"] if piece["piece"].split("-")[0] == pieces for row in piece["rows"]]


def _introduction(content: Row) -> str:
    gpu = next(iter(_rows(content, "device")), {})
    driver = (gpu.get("state") or {}).get("driver")
    known = (
        gpu.get("name", "a GPU that did not say its name"),
        gpu.get("capability"),
        driver and f"driver {driver}",
        gpu.get("cuda") and f"CUDA {gpu['cuda']}",
        gpu.get("torch") and f"torch {gpu['torch']}",
    )
    done = sum(piece["state"] == DONE for piece in content["pieces"])
    return (
        f"On {', '.join(str(part) for part in known if part)}: {done} of {len(content['pieces'])} pieces done in "
        f"{content['seconds']:.0f} s. `{command_of(content)}`, `benchmarks/results/gpu.json`."
    )


def _outcomes(content: Row) -> str:
    return markdown_table(
        ("piece", "what", "", "seconds", "why"),
        [
            (piece["piece"], piece["what"], piece["state"], f"{piece['seconds']:.0f}", _plain(piece["said"] or ""))
            for piece in content["pieces"]
        ],
    )


def _engine(row: Row) -> tuple[str, ...]:
    return (
        row["target"],
        row["precision"],
        row["observed"].get("convolutions", ""),
        f"{row['bytes'] / 1e6:.1f}",
        f"{row['max_error']:.0e}",
        f"{row['rms_error']:.0e}",
        _percent(row["top1_agreement"]),
        _percent(row["accuracy_before"]),
        f"{_percent(row['accuracy'])} of {row['images']}",
        f"{row['median_ms']:.3f}",
    )


def _latency(row: Row) -> tuple[str, ...]:
    return (
        row["network"],
        row["precision"],
        row["backend"] + (", CUDA graphs" if row["recorded"] else ""),
        *(_milliseconds(row, form) for form in ("unfused", "fused", "plain")),
        *(_ratio(row["ratios"].get(name)) for name in ("unfused / fused", "fused / plain")),
    )


def _milliseconds(row: Row, form: str) -> str:
    if form in row["failures"]:
        return _plain(row["failures"][form])
    return f"{row['median_ms'][form]:.3f}" if form in row["median_ms"] else ""


def _accuracy(row: Row) -> tuple[str, ...]:
    return (
        row["form"],
        row["precision"],
        f"{row['right']} of {row['images']}",
        _percent(row["top1_agreement"]),
        f"{row['rms_error']:.0e}",
    )


def _agreement(row: Row) -> tuple[str, ...]:
    return (row["dtype"], *(f"{row['apart'][what]:.0e}" for what in ("gradient", "running statistic")))


def _training(row: Row) -> tuple[str, ...]:
    over, peak = row["over_plain"], row["peak_mib"] or {}
    return (
        row["dtype"],
        f"{row['width']}, {row['batch']}",
        f"{row['median_ms']['plain']:.1f} ms",
        *(f"x {_ratio(over[key])}" for key in ("branch by branch", "sampled")),
        *(f"{peak[key]:.0f}" if key in peak else "" for key in ("plain", "branch by branch", "sampled")),
    )


def _evaluation(row: Row) -> tuple[str, ...]:
    return (
        row["dtype"],
        str(row["candidates"]),
        f"{row['most_images_apart']} of {row['images']}",
        f"{row['kendall_tau']:.2f}",
        f"{row['reestimate_s']:.2f}",
        f"{row['fold_s'] + row['write_s']:.2f}",
        f"{row['run_s']:.3f}",
        f"{row['branch_by_branch_s']:.3f}",
    )


def _plain(said: str) -> str:
    """Words for a cell of a table."""
    return " ".join(said.replace("|", "\\|").split())


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"


def _ratio(found: Row | None) -> str:
    if found is None:
        return ""
    low, high = found["interval_95"]
    return f"{found['value']:.2f} [{low:.2f}, {high:.2f}]"


TABLES = (
    Shown(
        pieces="engines",
        title="Engines of the shipped network",
        words="For 1 to 16 images, against the unfused network on the shipped images; errors are over the rms of its\n"
        "scores, of int8 on the half that did not calibrate. *ms*: one image, the way to the GPU and back included.",
        heading=(
            "", "precision", "convolutions", "MB", "worst error", "rms error", "same class", "right before", "after",
            "ms",
        ),
        cells=_engine,
    ),
    Shown(
        pieces="latency",
        title="One image",
        words="Milliseconds, medians in turns, each form compared with its source first; ratios with 95 % intervals.",
        heading=(
            "network", "precision", "backend", "unfused", "fused", "plain", "unfused / fused", "fused / plain",
        ),
        cells=_latency,
    ),
    Shown(
        pieces="accuracy",
        title="The shipped images in PyTorch",
        words="Against the unfused network in float32 on the processor. float32 is not TF32 here.",
        heading=("form", "precision", "right", "same class", "rms error"),
        cells=_accuracy,
    ),
    Shown(
        pieces="agreement",
        title="One convolution trains as its branches",
        words="How far a step as one convolution of every position is from that of the branches, at worst.",
        heading=("", "gradients", "running statistics"),
        cells=_agreement,
    ),
    Shown(
        pieces="training",
        title="Training steps",
        words="ResNet-18: the plain network's step, those of ten branches over it, and the memory each takes.",
        heading=(
            "", "width, batch", "plain", "branch by branch", "sampled", "MiB: plain", "branch by branch", "sampled",
        ),
        cells=_training,
    ),
    Shown(
        pieces="evaluation",
        title="Candidates of a search",
        words="Of the shipped network, with statistics of their own, against the processor's float32: the most\n"
        "images by which the right answers of one differ, and Kendall's tau. Seconds for all of them.",
        heading=("", "candidates", "images apart", "tau", "statistics", "kernels", "images", "branch by branch"),
        cells=_evaluation,
    ),
)  # fmt: skip


def main() -> None:
    """Write the page's part."""
    asking(__doc__).parse_args()
    write_table(ROOT / "docs" / "gpu.md", MARK, measured(read_result(RESULTS / "gpu.json", SCHEMA)))


if __name__ == "__main__":
    main()
