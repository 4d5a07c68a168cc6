"""The part of docs/paper.md on Tables 2 and 3, from the JSON of `inference.py`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..harness.turns.timing import LatencyReport, Ratio, ratio
from ..studies.common import command_of, markdown_table
from .published.tables import IMPOSSIBLE, REFERENCES, TABLE_2, TABLE_3, PaperRow
from .sessions import Measured, measured

RUNTIMES = ("torch", "onnxruntime")
MULTI_BRANCH = ("repvgg_", "acnet_", "dbb_", "irep_")
"""How the names of networks that are fused before they are deployed begin."""


def inference_tables(content: Mapping[str, Any]) -> str:
    """Both tables, the networks they lack, and what they say, as Markdown."""
    ours = measured(content)
    two, three = (
        _inference_table(rows, ours, reference) for rows, reference in ((TABLE_2, TABLE_2[-2]), (TABLE_3, TABLE_3[-1]))
    )
    darts = ours["darts_v2"].row
    small, cells = (
        [_deployed(ours[name], runtime).value for runtime in RUNTIMES] for name in ("darts_v2", "darts_v2_imagenet")
    )
    printed = {row.network for row in (*TABLE_2, *TABLE_3)}
    more = [one for name, one in ours.items() if name not in printed]
    return f"""## Tables 2 and 3: parameters and inference of one image

Batch 1, float32, networks of full size, unfused -> fused. "x IRep": the network as it is deployed (multi-branch
ones fused, plain ones and cells as trained) over the table's IRep network, fused, with a 95 % interval; the paper's is
of its own milliseconds. Cells are built from their published
genotypes (`benchmarks/paper/published/genotypes.py` names the sources) and fused as graphs, which folds batch
normalisation and
leaves every convolution: ReLU and pooling stand between most, and a depthwise one merged into the 1x1 after it would do
more arithmetic.
AmoebaNets are their authors' networks, by N and F, in their own wiring.
Top-1 of every row is {IMPOSSIBLE}: each takes GPU-days to train.
`benchmarks/results/paper_inference.json`, by `{command_of(content)}`, {content["threads"]} threads,
{content["rounds"]} rounds.{_added(content)}

### Table 2: CIFAR-10

{two}

### Table 3: ImageNet

The paper prints a second "Table 2" over it.

{three}

On CIFAR-10 the cells of DARTS take {small[0]:.1f} times as long as the fused IRep-ResNet18 in torch, {small[1]:.1f}
times in onnxruntime; the paper has {31 / 3.93:.1f}. Their {darts["unfused"]["convolutions"]} convolutions do no more
arithmetic than ResNet-18's 20, so it is the number of operations that costs, and a runtime with little overhead an
operation takes most of that back. On ImageNet, where a network of cells does an eighth of ResNet-50's multiply-adds, it
is the faster one on this processor: {cells[0]:.2f} and {cells[1]:.2f} times the fused IRep-ResNet50's, against
{67.4 / 15.6:.1f} in the paper. Fused networks of a base cost the same whatever their branches were. The paper's
ResNet-50 takes 38.8 ms and its fused IRep-ResNet50, the same convolutions, 15.6; folding batch normalisation alone
gains no such factor here.

Networks the paper's tables do not have; `amoebanet_a` is AmoebaNet-A's cells in the wiring DARTS trains them in:

{markdown_table(_HEAD[:1] + _HEAD[2:-2], [_ours(one) for one in more])}"""


def _added(content: Mapping[str, Any]) -> str:
    """A sentence for each session after the first: what was measured in it, beside which reference."""
    said = ""
    for session in content.get("added", ()):
        names = [row["network"] for row in session["rows"] if row["network"] not in REFERENCES.values()]
        taken = session["environment"]
        said += (
            f"\n{', '.join(f'`{name}`' for name in names)}: measured later, in turns with the IRep network alone "
            f"({taken['cores']} cores of an {taken['processor']}, {session['threads']} threads, "
            f"{session['rounds']} rounds)."
        )
    return said


_HEAD = (
    "network", "paper: M, ms, x IRep", "M parameters", "G multiply-adds", "convolutions", "ms, torch",
    "ms, onnxruntime", "x IRep, torch", "x IRep, onnxruntime", "verdict", "note",
)  # fmt: skip


_NONE = ("",) * 7
_NOT_YET = ("", "", "", "not measured yet", "not measured yet", "", "")


def _inference_table(rows: Sequence[PaperRow], ours: Mapping[str, Measured], reference: PaperRow) -> str:
    lines = []
    for row in rows:
        paper = f"{row.parameters_m}, {row.inference_ms}, {row.inference_ms / reference.inference_ms:.2f}"
        found = _NONE if row.network is None else _ours(ours[row.network])[1:] if row.network in ours else _NOT_YET
        lines.append((row.name, paper, *found, row.verdict, row.why))
    return markdown_table(_HEAD, lines)


def _deployed(one: Measured, runtime: str) -> Ratio:
    """A network, fused if it is multi-branch, over the fused IRep network of its table in the same session."""
    row, reference = one.row, one.session[REFERENCES[one.row["data"]]]
    form = "fused" if row["network"].startswith(MULTI_BRANCH) else "unfused"
    samples = [
        LatencyReport(of["network"], tuple(of["latency"][runtime]["samples_s"][which]))
        for of, which in ((row, form), (reference, "fused"))
    ]
    return ratio(*samples)


def _ours(one: Measured) -> tuple[str, ...]:
    """Our columns of a network, its own name first."""
    row = one.row
    forms = [row[form] for form in ("unfused", "fused")]
    ratios = []
    for runtime in RUNTIMES:
        found = _deployed(one, runtime)
        ratios.append(f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]")
    times = [
        f"{row['latency'][runtime]['unfused_ms']:.1f} -> {row['latency'][runtime]['fused_ms']:.1f}"
        for runtime in RUNTIMES
    ]
    return (
        row["network"],
        _arrow(f"{form['parameters'] / 1e6:.2f}" for form in forms),
        _arrow(f"{form['multiply_adds'] / 1e9:.3g}" for form in forms),
        _arrow(str(form["convolutions"]) for form in forms),
        *times,
        *ratios,
    )


def _arrow(values: Iterable[str]) -> str:
    before, after = values
    return before if before == after else f"{before} -> {after}"
