"""docs/zoo.md and its picture from the zoo's rows alone.

python benchmarks/studies/zoo/page.py [--check]
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from repconv.benchmarks.studies.common import PICTURES, ROOT, asking, command_of, markdown_table, read_result, wrapped
from repconv.benchmarks.studies.zoo.families import FAMILIES, MULTI_BRANCH
from repconv.benchmarks.studies.zoo.findings import KINDS, OURS, Row, by_kind, is_done, reasons, speed_up
from repconv.benchmarks.studies.zoo.measuring import COUNTED
from repconv.benchmarks.studies.zoo.picture import Bar, bars
from repconv.benchmarks.studies.zoo.zoo import SCHEMA
from repconv.files.whole import write_whole
from repconv.graph.core.reasons import Kind

PAGE = ROOT / "docs" / "zoo.md"
PICTURE = PICTURES / "zoo.svg"
NOT_TIMED = "not measured yet"
MOST_REASONS = 10


def page(content: Mapping[str, Any]) -> str:
    """The whole page."""
    rows = content["rows"]
    return "\n\n".join(
        (wrapped(_introduction(content)), _findings(rows), _families(rows), _reasons(rows))
    ) + "\n"  # fmt: skip


def picture(content: Mapping[str, Any]) -> str:
    """Families by speed-up, or where none is timed yet by what is left of convolutions and norms."""
    rows = [row for row in content["rows"] if is_done(row)]
    timed = [row for row in rows if "latency" in row]
    found = [
        Bar(row["family"], 1 / row["latency"]["ratio"], _inverse(row["latency"]["interval_95"]), _is_multi_branch(row))
        for row in timed
    ] or [Bar(row["family"], _left(row), None, _is_multi_branch(row)) for row in rows]
    what = "one image in onnxruntime, unfused over fused" if timed else "convolutions and norms left, after over before"
    return bars(found, f"{what} (blue: multi-branch families)", 1.0)


def _inverse(interval: Sequence[float]) -> tuple[float, float]:
    return 1 / interval[1], 1 / interval[0]


def _is_multi_branch(row: Row) -> bool:
    return row["family"] in MULTI_BRANCH


def _form(row: Row) -> Row:
    """The file's part, or the program's where there is no file."""
    found: Row = row["onnx"] if "after" in row.get("onnx", {}) else row.get("program", {})
    return found


def _left(row: Row) -> float:
    before, after = _form(row)["before"], _form(row)["after"]
    kinds = ("convolutions", "batch_norms")
    return float(sum(after[kind] for kind in kinds) / max(1, sum(before[kind] for kind in kinds)))


def _introduction(content: Mapping[str, Any]) -> str:
    rows = content["rows"]
    every = sum(map(len, FAMILIES.values()))
    taken = rows[0]["environment"]
    versions = taken["versions"]
    timed = [row for row in rows if "latency" in row]
    branches = [row for row in timed if _is_multi_branch(row)]
    fused = speed_up(branches)
    speed = (
        f"Latency is {NOT_TIMED}: it takes a quiet machine, and `--latency`."
        if not timed
        else f"{len(timed)} are timed."
        + (
            ""
            if fused is None
            else f" Over {len(branches)} multi-branch families one image takes {fused:.2f} times as long unfused as "
            "fused, the geometric mean."
        )
    )
    return f"""# The zoo: every family

One network, the smallest, of every convolutional or hybrid family of timm, torchvision (classification, segmentation,
and of detectors what runs on a whole image: backbone, pyramid and heads) and ultralytics, with random statistics,
gammas, shifts and layer scales, fused as a program of torch.export and as the ONNX file that torch's exporter writes,
and proved. {sum(map(is_done, rows))} of {every} are done; {every - len(rows)} are still to be done. {speed}

Every number is from `benchmarks/results/zoo.json`, by `{command_of(content)}`, each
network in a process of its own, on one thread of {taken["processor"]}, torch {versions["torch"]}, onnxruntime
{versions["onnxruntime"]}. `make zoo` does those that are left and writes this page."""


def _findings(rows: Sequence[Row]) -> str:
    found = by_kind(rows)
    table = markdown_table(
        ("", "what", "networks"),
        [(kind, KINDS[kind], len(dict(found[kind]))) for kind in KINDS if kind != "slower" or _are_timed(rows)],
    )
    listed = [
        (network, kind, ": ".join((said.replace("|", "\\|")[:260], *_why(network, kind))))
        for kind in KINDS
        for network, said in found[kind]
    ]  # fmt: skip
    tail = (
        "Nothing to tell of any.\n"
        if not listed
        else "All of them; `python benchmarks/studies/zoo/zoo.py --one NETWORK` does one again and keeps nothing.\n\n"
        + markdown_table(("network", "", "what was said"), listed)
    )
    ours = sum(len(found[kind]) for kind in OURS)
    return f"""## What is not right

Of {len(rows)} networks; {ours} findings are of fusing, the others of exporters and of the networks themselves.

{table}

{tail}"""


_BEHIND_A_POOL = (
    "a factor for each channel moves behind the pool over all pixels, where it is one number, not one a pixel"
)
WHY_MORE = {
    "timm:csatv2": "attention over one channel: a linear layer from 1 to 3 and a split become three factors",
    "timm:levit_128s": "a norm behind a product of three axes becomes the addition of that product's bias",
    "timm:rdnet_tiny": "a 1x1 convolution behind a Transpose of channels is a product before it, its bias an addition",
    "timm:repvit_m0_9": _BEHIND_A_POOL,
    "timm:starnet_s050": _BEHIND_A_POOL,
    "timm:visformer_tiny": _BEHIND_A_POOL,
}
"""Where a count rises for good reason, looked at in the fused graph."""


def _why(network: str, kind: str) -> list[str]:
    return [WHY_MORE[network]] if kind == "more" and network in WHY_MORE else []


def _are_timed(rows: Sequence[Row]) -> bool:
    return any("latency" in row for row in rows)


def _families(rows: Sequence[Row]) -> str:
    heading = (
        "family", "network", "convolutions", "linears", "batch norms", "other norms", "adds", "muls",
        "fuse", "prove", "error", "latency",
    )  # fmt: skip
    table = markdown_table(heading, [_line(row) for row in rows if is_done(row)])
    timed = "" if _are_timed(rows) else f" It is {NOT_TIMED}."
    return f"""## Family by family

{wrapped(_COLUMNS + timed)}

![Families](pictures/{PICTURE.name})

{table}"""


_COLUMNS = """Nodes before -> after, of the ONNX file; in brackets those of the program where they differ. Linears are
products by a constant matrix, however they are written. *fuse* and *prove*: seconds of a processor and megabytes beyond
what was held, for the file; those of the program stand in the JSON. *error*: the fused file in onnxruntime beside the
unfused one, against the network in float64, over the output's root mean square. Families in bold
train with several branches. *latency*: of one image, fused over unfused, with a 95 % interval."""


def _line(row: Row) -> tuple[str, ...]:
    part, program = _form(row), row.get("program", {})
    cells = []
    for key in COUNTED:
        said = _change(part, key)
        other = _change(program, key) if "after" in program else said
        cells.append(said if other == said else f"{said} [{other}]")
    timed = row.get("latency")
    return (
        f"**{row['family']}**" if _is_multi_branch(row) else row["family"],
        f"`{row['network']}`",
        *cells,
        _spent(part.get("fuse")),
        _spent(part.get("prove")),
        _error(row, part),
        "" if timed is None else f"{timed['ratio']:.3f} [{timed['interval_95'][0]:.3f}, {timed['interval_95'][1]:.3f}]",
    )


def _change(part: Row, key: str) -> str:
    before, after = part["before"][key], part["after"][key]
    return f"{before}" if before == after else f"{before} -> {after}"


def _spent(part: Row | None) -> str:
    return "-" if part is None else f"{part['cpu_s']:.1f} s, {part['peak_mb']:.0f} MB"


def _error(row: Row, part: Row) -> str:
    error, own = part.get("error"), part.get("own_error", row["source"]["own_error"])
    return "-" if error is None or own is None else f"{error:.0e}, {own:.0e}"


def _reasons(rows: Sequence[Row]) -> str:
    given = {kind.label: kind.folds_if for kind in Kind}
    found = reasons(rows, "onnx")
    table = markdown_table(
        ("reason", "how often", "networks", "most in", "it folds if"),
        [(kind, often, many, f"`{most}`", given[kind]) for kind, often, many, most in found[:MOST_REASONS]],
    )
    return f"""## Why what stays, stays

The most frequent of {len(found)} kinds of reasons in the files, and what it would take;
[graph.md](graph.md#why-something-stays) explains them.

{table}"""


def files(content: Mapping[str, Any]) -> dict[Path, bytes]:
    """The page and its picture."""
    return {PAGE: page(content).encode(), PICTURE: picture(content).encode()}


def main() -> None:
    """Write the page, or say whether it is what would be written."""
    parser = asking(__doc__, "zoo")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where something would change")
    chosen = parser.parse_args()
    content = read_result(chosen.output, SCHEMA)
    if content is None:
        sys.exit(f"no rows in {chosen.output}: run python benchmarks/studies/zoo/zoo.py first")
    written = files(content)
    if chosen.check:
        sys.exit(any(not file.exists() or file.read_bytes() != what for file, what in written.items()))
    write_whole(written)
    print(f"wrote {', '.join(str(file.relative_to(ROOT)) for file in written)}")


if __name__ == "__main__":
    main()
