"""YOLO networks of ultralytics, as `yolo export` and as torch's exporter write them, fused and proved.

    python benchmarks/studies/graph/yolo.py [--networks yolov8n,...]

Built from their descriptions, nothing is downloaded; statistics, scales and shifts are random. The time is that of one
image in onnxruntime on one thread, in seconds of the processor, fused over as exported, in turns. Needs
`pip install ultralytics`.
"""

from __future__ import annotations

import os
import time
import warnings
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import onnx
import torch

from repconv.benchmarks.environment import environment
from repconv.benchmarks.harness.turns.timing import ratio, time_in_turns
from repconv.benchmarks.studies.common import asking, head, some_of, write_result
from repconv.benchmarks.studies.graph.graph_counts import count, session
from repconv.benchmarks.studies.graph.networks import randomise
from repconv.files.held import temporary_folder
from repconv.graph import fuse_onnx

SCHEMA = "repconv.yolo/1"
NETWORKS = ("yolov8n", "yolov9t", "yolov10n", "yolo11n")
YOLO_EXPORT, TORCH_EXPORT = "yolo export", "torch.onnx.export"
SIDE, OPSET, ROUNDS = 320, 18, 40
COUNTED = ("convolutions", "batch_norms", "adds", "nodes")


def exported(network: str, how: str, folder: Path) -> onnx.ModelProto:
    """The ONNX file of a network with random numbers."""
    torch.manual_seed(0)
    model = import_module("ultralytics").YOLO(f"{network}.yaml")
    randomise(model.model)
    path = folder / f"{network}.onnx"
    if how == YOLO_EXPORT:
        before = Path.cwd()
        os.chdir(folder)  # where it writes
        try:
            made = model.export(format="onnx", imgsz=SIDE, opset=OPSET, simplify=False, verbose=False)
            return onnx.load(made)
        finally:
            os.chdir(before)
    head_of_network = model.model.model[-1]
    head_of_network.export, head_of_network.format = True, "onnx"
    x = torch.rand(1, 3, SIDE, SIDE)
    with torch.no_grad():
        model.model(x)  # its head computes anchors in the first run
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model.model, (x,), path, opset_version=OPSET, external_data=False, verbose=False)
    return onnx.load(path)


def row(network: str, how: str) -> dict[str, Any]:
    """What fusing leaves of a file, what its proof says, and the time of an image; no errors where nothing folds."""
    with temporary_folder() as folder:
        model = exported(network, how, folder)
    start = time.process_time()
    fused, report = fuse_onnx(model)
    seconds = time.process_time() - start
    name = model.graph.input[0].name
    x = torch.rand(1, 3, SIDE, SIDE).numpy()
    runs = {key: partial(session(each).run, None, {name: x}) for key, each in (("fused", fused), ("as it was", model))}
    timed = time_in_turns(runs, rounds=ROUNDS, clock=time.process_time)
    found = ratio(timed["fused"], timed["as it was"])
    counts = {key: count(each) for key, each in (("before", model), ("after", fused))}
    agreement = report.agreement
    assert agreement is not None  # noqa: S101  # it was proved
    worst = max(agreement.end_to_end, key=lambda each: each.error.to_scale, default=None)
    return {
        "network": network,
        "made_by": how,
        **{key: {kind: found_counts[kind] for kind in COUNTED} for key, found_counts in counts.items()},
        "passed": None if worst is None else agreement.passed,
        "compared": len(agreement.blocks) + len(agreement.end_to_end),
        "error": None if worst is None else worst.error.to_scale,
        "own_error": None if worst is None or worst.own is None else worst.own.to_scale,
        "fuse_and_prove_cpu_s": seconds,
        "ratio": found.value,
        "interval_95": [found.low, found.high],
        "median_ms": {key: each.median_ms for key, each in timed.items()},
    }


def main() -> None:
    """Measure, print, write JSON."""
    parser = asking(__doc__, "yolo")
    parser.add_argument("--networks", type=some_of(NETWORKS), default=list(NETWORKS))
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for network in chosen.networks:
        for how in (YOLO_EXPORT, TORCH_EXPORT):
            rows.append(row(network, how))
            print(rows[-1], flush=True)
    version = str(import_module("ultralytics").__version__)
    about = {"ultralytics": version, "side": SIDE, "opset": OPSET, "rounds": ROUNDS, "threads": 1}
    write_result(chosen.output, {**head(__file__, SCHEMA), **about, "environment": environment(), "rows": rows})


if __name__ == "__main__":
    main()
