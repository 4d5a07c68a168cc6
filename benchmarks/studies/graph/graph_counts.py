"""What graph fusing leaves of other authors' networks, beside their own conversions, and how fast it is.

    python benchmarks/studies/graph/graph_counts.py [--models repvgg_a0,...] [--rounds 60] [--checkouts DIR]

Rows of models measured before are kept in the output. Networks named `authors:...` are read from checkouts of their
authors' repositories in DIR (`authors.py` names them); without it they are skipped. Batch normalisation statistics and
layer scales are random, or the comparison would be vacuous. Errors of files are those in onnxruntime against the
float64 network, over the output's root mean square. Latency is of one image in onnxruntime, in turns with what it is
compared with: the author's conversion, or the network as exported where there is none.
"""

from __future__ import annotations

import copy
import json
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from repconv.benchmarks.environment import environment
from repconv.benchmarks.harness.turns.timing import calls_lasting, ratio
from repconv.benchmarks.studies.common import asking, head, kept_rows, markdown_table, write_result
from repconv.benchmarks.studies.graph.authors import MissingCheckoutError
from repconv.benchmarks.studies.graph.networks import OF_AUTHORS, ORDINARY, RE_PARAMETERISED, Specimen, specimen
from repconv.benchmarks.studies.speed.pairs import SAMPLE_S, SESSIONS, paired
from repconv.files.whole import write_whole
from repconv.fusing import exported_program
from repconv.graph import fuse_onnx
from repconv.graph.onnx.facts import Facts
from repconv.graph.onnx.fuse import measure as size_of
from repconv.graph.program.fuse import export_again, rewrite
from repconv.graph.program.proof.prove import Rewritten, program_regions
from repconv.proof.float64 import FastGroupedDouble

SCHEMA = "repconv.graph_counts/3"
COUNTS = ("convolutions", "batch_norms", "adds", "muls", "conv_flops")
KINDS = {"batch_norms": "BatchNormalization", "adds": "Add", "muls": "Mul"}


def count(model: onnx.ModelProto) -> dict[str, int | None]:
    """Convolutions (2-D, depthwise included), what fusing removes, and flops of the convolutions."""
    found = Counter(node.op_type for node in model.graph.node)
    size = size_of(model, Facts(model))
    counts = {"convolutions": size.convolutions, **{name: found[kind] for name, kind in KINDS.items()}}
    return {**counts, "nodes": len(model.graph.node), "conv_flops": size.flops}


def session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """The model in onnxruntime, on as many threads as torch uses."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    # Or its threads would spin on, into the turn of what it is compared with.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def error(model: onnx.ModelProto, x: Tensor, wanted: Tensor) -> float:
    """Largest difference over the root mean square of the reference."""
    got = session(model).run(None, {"x": x.numpy()})[0]
    return relative(torch.from_numpy(got), wanted)


def relative(got: Tensor, wanted: Tensor) -> float:
    """Largest difference over the root mean square of `wanted`."""
    return float((got.double() - wanted).abs().max() / wanted.square().mean().sqrt())


def flops(model: nn.Module, x: Tensor) -> int:
    """Two a multiply-add, of convolutions and linear layers of the PyTorch network."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x)
    return int(counter.get_total_flops())


def program_calls(module: nn.Module, operation: str) -> int:
    """How often an exported program calls an operation of ATen, in place or not: additions are "add"."""
    names = (str(node.target) for node in module.graph.nodes)  # type: ignore[union-attr]
    return sum(name.startswith((f"aten.{operation}.", f"aten.{operation}_.")) for name in names)


def program_of(model: nn.Module, x: Tensor) -> torch.export.ExportedProgram:
    """The network through torch.export, in evaluation mode."""
    return exported_program(copy.deepcopy(model).eval(), (x,))


def fused_program(model: nn.Module, x: Tensor) -> tuple[Rewritten, nn.Module]:
    """The network through torch.export, rewritten, and what runs of it."""
    program = program_of(model, x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rewritten = rewrite(program)
        return rewritten, export_again(program, rewritten).module()


def program_row(one: Specimen, reference: nn.Module, wanted: Tensor) -> dict[str, object]:
    """The same network through torch.export: counts, and how exact the collapse is in float64."""
    rewritten, module = fused_program(one.model, one.x)
    with torch.no_grad(), FastGroupedDouble():
        in_float32 = relative(module(one.x), wanted)
    after = rewritten.report.after
    return {
        "convolutions": after.convolutions,
        "batch_norms": after.batch_norms,
        "adds": program_calls(module, "add"),
        "muls": program_calls(module, "mul"),
        "conv_flops": after.flops,
        "flops": flops(module, one.x),
        "error": in_float32,
        **_in_float64(one, reference, wanted),
    }


def _in_float64(one: Specimen, reference: nn.Module, wanted: Tensor) -> dict[str, object]:
    """How exact the collapse is; None of a network whose own code makes float32 of float64."""
    try:
        exact, module = fused_program(reference, one.x.double())
    except RuntimeError:
        return {"float64_error": None, "float64_worst_region": None, "regions": None}
    with torch.no_grad(), FastGroupedDouble():
        error = relative(module(one.x.double()), wanted)
        regions = program_regions(exact, (one.x.double(),))
    worst = max((c.error.to_scale for c in regions), default=0.0)
    return {"float64_error": error, "float64_worst_region": worst, "regions": len(regions)}


def latency(fused: onnx.ModelProto, other: onnx.ModelProto, x: Tensor, rounds: int) -> dict[str, object]:
    """Milliseconds of one image, and the ratio of medians with its 95 % interval."""
    feed = {"x": x.numpy()}
    models = {"fused": fused, "other": other}
    calls = calls_lasting(runner(other, feed), SAMPLE_S)
    timed = paired({name: partial(runner, model, feed) for name, model in models.items()}, rounds, calls)
    found = ratio(timed["fused"], timed["other"])
    return {
        "fused_ms": timed["fused"].median_ms,
        "other_ms": timed["other"].median_ms,
        "ratio": found.value,
        "interval_95": [found.low, found.high],
        "rounds": len(timed["fused"].samples_s),
        "sessions": SESSIONS,
        "calls_a_sample": calls,
        "samples_s": {name: list(report.samples_s) for name, report in timed.items()},
    }


def runner(model: onnx.ModelProto, feed: Mapping[str, object]) -> Callable[[], object]:
    """What runs `feed` in a new session."""
    return partial(session(model).run, None, feed)


def graph_seconds(model: onnx.ModelProto) -> float:
    """How long fusing takes."""
    started = time.perf_counter()
    fuse_onnx(model, prove=False)
    return time.perf_counter() - started


def row(name: str, rounds: int, checkouts: Path | None) -> dict[str, object]:
    """Everything measured of one network."""
    one = specimen(name, checkouts)
    original = one.onnx(one.model)
    fused, _ = fuse_onnx(original, prove=False)
    reference = copy.deepcopy(one.model).double()
    with torch.no_grad(), FastGroupedDouble():
        wanted = reference(one.x.double())
    found: dict[str, object] = {
        "model": name, "input": list(one.x.shape),
        "original": count(original) | {"error": error(original, one.x, wanted), "flops": flops(one.model, one.x)},
        "fused": count(fused) | {"error": error(fused, one.x, wanted)},
        "fused_program": program_row(one, reference, wanted),
    }  # fmt: skip
    author = None if one.author is None else one.onnx(one.author)
    if author is not None and one.author is not None:
        found["author"] = count(author) | {
            "error": error(author, one.x, wanted),
            "flops": flops(one.author, one.x),
            "program_adds": program_calls(program_of(one.author, one.x).module(), "add"),
        }
    if rounds:
        found["graph_seconds"] = sorted(round(graph_seconds(original), 3) for _ in range(3))
        found["environment"] = environment()
        found["latency"] = {
            "compared_with": "original" if author is None else "author",
            **latency(fused, original if author is None else author, one.x, rounds),
        }
    return found


def verdict(found: dict[str, Any]) -> list[str]:
    """What a row falls short of; empty if nothing."""
    fused, program, original = found["fused"], found["fused_program"], found["original"]
    other = found.get("author", original)
    short = [
        f"{key} {fused[key]} > {other[key]}"
        for key in ("convolutions", "batch_norms", "adds", "conv_flops")
        if (fused[key] or 0) > (other[key] or 0)
    ]
    for form, before in found.get("before", {}).items():
        now = {key: found[form][key] or 0 for key in before}
        short += [f"{form} {key} {now[key]} > {n} before" for key, n in before.items() if n and now[key] > n]
    short += [
        f"program {key} {program[key]} > {other[key]}"
        for key in ("convolutions", "batch_norms", "conv_flops")
        if (program[key] or 0) > (other[key] or 0)
    ]
    if program["adds"] > other.get("program_adds", program["adds"]):
        short.append(f"program adds {program['adds']} > {other['program_adds']}")
    if fused["error"] > 2 * original["error"]:
        short.append(f"error {fused['error']:.1e} > 2 x {original['error']:.1e}")
    if program["float64_error"] is not None and min(program["float64_error"], program["float64_worst_region"]) > 1e-9:
        short.append(f"float64 {program['float64_error']:.1e}")
    timed = found.get("latency")
    if isinstance(timed, dict) and (timed["ratio"] > 1.03 or timed["interval_95"][1] > 1.06):
        short.append(f"latency {timed['ratio']:.3f} {timed['interval_95']}")
    return short


def as_markdown(rows: Sequence[dict[str, Any]]) -> str:
    """A table of rows: counts as "original, author's, fused" and the same network through torch.export."""
    heading = ("network", "convolutions", "BN", "adds", "muls", "GFLOPs", "torch.export", "error", "latency")
    lines = []
    for row in rows:
        forms = [row[form] for form in ("original", "author", "fused") if form in row]
        program, timed = row["fused_program"], row.get("latency")
        counts = [", ".join(str(form.get(key, "")) for form in forms) for key in COUNTS[:-1]]
        flops = [form["flops"] for form in (*forms[:-1], program)]
        exact = "" if program["float64_error"] is None else f"; {program['float64_error']:.0e}"
        found = [
            row["model"], *counts, ", ".join(f"{each / 1e9:.3g}" for each in flops),
            f"{program['convolutions']}, {program['batch_norms']}, {program['adds']}{exact}",
            f"{row['fused']['error'] / row['original']['error']:.2f}",
            f"{timed['ratio']:.3f} [{timed['interval_95'][0]:.3f}, {timed['interval_95'][1]:.3f}]" if timed else "",
        ]  # fmt: skip
        lines.append(found)
    legend = (
        "Convolutions, batch normalisations, additions, multiplications and flops: as exported, the author's own "
        "conversion (if there is one), fused. torch.export: convolutions, batch normalisations and additions of the "
        "fused program; its error in float64. error: of the fused file in onnxruntime over that of the original. "
        "latency: of one image against the author's conversion, or the original where there is none, with a 95 % "
        "interval. FMEN's author converts weights by a script for CUDA: there the counts alone are compared. "
        "Rep-TDNN's author moves shifts past zero padding, which is not exact at its ends: such norms stay here."
    )
    origin = "Written by `python benchmarks/studies/graph/graph_counts.py`."
    return "\n".join((markdown_table(heading, lines), "", legend, "", origin)) + "\n"


def kept(row: Mapping[str, Any]) -> dict[str, object]:
    """What stays of a row that is measured again: times, and the counts of the first time, which must not rise."""
    found = {key: row[key] for key in ("graph_seconds", "latency", "environment", "before") if key in row}
    if row and "before" not in row:
        forms = ("fused", "fused_program")
        found["before"] = {form: {key: row[form][key] for key in COUNTS if key in row[form]} for form in forms}
    return found


def main() -> None:
    """Measure, print, and write JSON and a table after each row."""
    parser = asking(__doc__, "graph_counts")
    order = [*RE_PARAMETERISED, *OF_AUTHORS, *ORDINARY]
    parser.add_argument("--models", default=",".join(order))
    parser.add_argument("--rounds", type=int, default=60, help="of timing; 0: times measured before are kept")
    parser.add_argument("--checkouts", type=Path, help="folder with checkouts of authors' repositories")
    arguments = parser.parse_args()
    rows = kept_rows(arguments.output, SCHEMA, "model")
    for name in arguments.models.split(","):
        try:
            rows[name] = kept(rows.get(name, {})) | row(name, arguments.rounds, arguments.checkouts)
        except (ModuleNotFoundError, MissingCheckoutError) as missing:
            print(f"{name}: skipped, {missing}")
            continue
        for form in ("original", "fused", "fused_program", "author"):
            if form in rows[name]:
                print(f"{name} {form:14}", json.dumps(rows[name][form]))
        print(name, "; ".join(verdict(rows[name])) or "all within", flush=True)
        ordered = sorted(rows.values(), key=lambda r: order.index(r["model"]) if r["model"] in order else len(order))
        write_result(arguments.output, {**head(__file__, SCHEMA), "rows": ordered, "seed": 0, "numpy": np.__version__})
        write_whole({arguments.output.with_suffix(".md"): as_markdown(ordered).encode()})


if __name__ == "__main__":
    main()
