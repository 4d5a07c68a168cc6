"""What other tools make of the same networks: convolutions left, error, latency of one image, time taken.

    python benchmarks/studies/graph/peers.py [--models repvgg_a0,...] [--rounds 24] [--keep]

Statistics, scales and shifts are random. Errors are those of the result in the runtime it is timed in, against the
unfused network in float64, over the output's root mean square. Latency is that of the tool's result over that of
`repconv.graph.fuse_onnx`'s, both in onnxruntime (OpenVINO: both in OpenVINO), one pair of sessions at a time, in
turns; onnxruntime optimises every file it opens. A tool that is not installed, or cannot take a network, says so.
"""

from __future__ import annotations

import copy
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor

from repconv.benchmarks.environment import environment
from repconv.benchmarks.harness.turns.timing import calls_lasting, ratio
from repconv.benchmarks.studies.common import (
    ROOT,
    asking,
    head,
    kept_rows,
    positive,
    read_result,
    some_of,
    write_result,
)
from repconv.benchmarks.studies.graph.graph_counts import relative, runner, session
from repconv.benchmarks.studies.graph.networks import Specimen, specimen, to_onnx
from repconv.benchmarks.studies.graph.peer_tools import (
    TOOLS,
    DeclinedError,
    FileTool,
    ModuleTool,
    first_line,
    openvino_compiled,
    openvino_convolutions,
)
from repconv.benchmarks.studies.graph.peers_table import as_markdown, page
from repconv.benchmarks.studies.speed.pairs import SAMPLE_S, paired
from repconv.files.whole import write_whole
from repconv.graph import fuse_onnx
from repconv.proof.float64 import FastGroupedDouble

SCHEMA = "repconv.peers/1"
MODELS = ("repconv:irep_resnet18", "repvgg_a0", "mobileone_s0", "fastvit_t8", "ultralytics:yolov9t")
OPENVINO = "OpenVINO"
REPEATS, ENOUGH_S = 3, 10
"""How often a tool is timed, on a fresh copy each time, and seconds after which once is enough."""


def seconds_of(work: Callable[[], object]) -> tuple[float, object]:
    """How long, and what came."""
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


def applied(tool: ModuleTool | FileTool, one: Specimen, original: onnx.ModelProto) -> tuple[list[float], object]:
    """Seconds of each run of the tool on a fresh copy, and the last result.

    Raises:
        Exception: whatever the tool raises.
    """
    seconds, result = [], None
    for _ in range(REPEATS):
        if isinstance(tool, ModuleTool):
            model = copy.deepcopy(one.model)
            with torch.no_grad():
                took, result = seconds_of(partial(tool.work, model, one.x))
        else:
            file = copy.deepcopy(original)
            took, result = seconds_of(partial(tool.work, file))
        seconds.append(took)
        if sum(seconds) > ENOUGH_S:
            break
    return seconds, result


def counts(model: onnx.ModelProto) -> dict[str, int | None]:
    """Convolutions (those of onnxruntime's own dialect, too), batch normalisations and additions."""
    found = Counter(node.op_type for node in model.graph.node)
    return {
        "convolutions": found["Conv"] + found["FusedConv"],
        "batch_norms": found["BatchNormalization"],
        "adds": found["Add"],
    }


def latency(
    make_ours: Callable[[], Callable[[], object]], make_theirs: Callable[[], Callable[[], object]], rounds: int
) -> dict[str, object]:
    """Milliseconds of each, and theirs over ours with its 95 % interval."""
    calls = calls_lasting(make_ours(), SAMPLE_S)
    timed = paired({"repconv": make_ours, "peer": make_theirs}, rounds, calls)
    found = ratio(timed["peer"], timed["repconv"])
    return {
        "repconv_ms": timed["repconv"].median_ms,
        "peer_ms": timed["peer"].median_ms,
        "over_repconv": found.value,
        "interval_95": [found.low, found.high],
        "calls_a_sample": calls,
        "samples_s": {name: list(report.samples_s) for name, report in timed.items()},
    }


def result_row(
    name: str, one: Specimen, original: onnx.ModelProto, fused: onnx.ModelProto, wanted: Tensor, rounds: int
) -> dict[str, object]:
    """Everything measured of one tool on one network, or why it was not."""
    tool = TOOLS[name]
    try:
        installed = version(tool.package)
    except PackageNotFoundError:
        return {"tool": name, "reason": f"{tool.package} is not installed"}
    found: dict[str, object] = {"tool": name, "version": installed}
    try:
        seconds, result = applied(tool, one, original)
        file = to_onnx(result, one.x) if isinstance(tool, ModuleTool) else result  # type: ignore[arg-type]
        feed: dict[str, object] = {"x": one.x.numpy()}
        got = session(file).run(None, feed)[0]  # type: ignore[arg-type]
    except DeclinedError as declined:
        return found | {"reason": str(declined)}
    except Exception as error:  # noqa: BLE001  # what a tool raises is what the table says
        return found | {"reason": first_line(error)}
    found |= {"seconds": seconds if name != "as exported" else [], **counts(file)}  # type: ignore[arg-type]
    found["error"] = relative(torch.from_numpy(got), wanted)
    if name != "repconv fuse_onnx":
        found["latency"] = latency(partial(runner, fused, feed), partial(runner, file, feed), rounds)  # type: ignore[arg-type]
    return found


def openvino_row(
    one: Specimen, original: onnx.ModelProto, fused: onnx.ModelProto, wanted: Tensor, rounds: int
) -> dict[str, object]:
    """OpenVINO's own transformations, and its latency of the original over that of our file."""
    try:
        found: dict[str, object] = {"tool": OPENVINO, "version": version("openvino")}
    except PackageNotFoundError:
        return {"tool": OPENVINO, "reason": "openvino is not installed"}
    image = [one.x.numpy()]

    def opened(file: onnx.ModelProto) -> Callable[[], object]:
        return partial(openvino_compiled(file).create_infer_request().infer, image)

    seconds = [seconds_of(partial(openvino_compiled, original))[0] for _ in range(REPEATS)]
    compiled = openvino_compiled(original)
    got = np.array(next(iter(compiled(image).values())))
    return found | {
        "seconds": seconds,
        "convolutions": openvino_convolutions(compiled),
        "repconv_convolutions": openvino_convolutions(openvino_compiled(fused)),
        "batch_norms": None,
        "adds": None,
        "error": relative(torch.from_numpy(got), wanted),
        "latency": latency(partial(opened, fused), partial(opened, original), rounds),
    }


def rows(name: str, rounds: int, known: Mapping[str, dict[str, object]]) -> Iterator[dict[str, object]]:
    """Every tool on one network; those of `known`, by tool, as they are.

    Raises:
        ModuleNotFoundError: the network's library is not installed.
    """
    one = specimen(name)
    original = to_onnx(one.model, one.x)
    fused, _ = fuse_onnx(original, prove=False)
    with torch.no_grad(), FastGroupedDouble():
        wanted = copy.deepcopy(one.model).double()(one.x.double())
    for tool in TOOLS:
        yield known.get(tool) or result_row(tool, one, original, fused, wanted, rounds)
    yield known.get(OPENVINO) or openvino_row(one, original, fused, wanted, rounds)


def main() -> None:
    """Measure, print, write JSON after each row and a table at the end."""
    parser = asking(__doc__, "peers")
    parser.add_argument("--models", type=some_of(MODELS), default=MODELS, help="with commas between (all)")
    parser.add_argument("--rounds", type=positive, default=24)
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "peers.md")
    parser.add_argument("--keep", action="store_true", help="do not measure again what the output holds")
    arguments = parser.parse_args()
    networks = kept_rows(arguments.output, SCHEMA, "model", "networks")
    told = {**head(__file__, SCHEMA), "threads": torch.get_num_threads(), "rounds": arguments.rounds}
    for name in arguments.models:
        before = networks.get(name, {"rows": []})["rows"] if arguments.keep else []
        known = {row["tool"]: row for row in before}
        found: list[dict[str, object]] = []
        networks[name] = {"model": name, "environment": environment(), "rows": found}
        try:
            for row in rows(name, arguments.rounds, known):
                print(name, {key: value for key, value in row.items() if key != "latency"}, flush=True)
                found.append(row)
                there = [networks[key] for key in MODELS if key in networks]
                write_result(arguments.output, {**told, "networks": there})
        except ModuleNotFoundError as missing:
            del networks[name]
            print(f"{name}: skipped, {missing.name} is not installed")
    content = read_result(arguments.output, SCHEMA)
    if content is not None:
        write_whole({arguments.page: page(content).encode()})
        print(as_markdown(content))


if __name__ == "__main__":
    main()
