"""Is a fused network as fast as the plain network it stands for? ResNet-18 and ResNet-50, batch 1, float32.

The plain network's batch normalisations are folded, too, so both are single-path; in onnxruntime their graphs must be
identical. Subjects take turns in one process.

    python benchmarks/studies/speed/fused_vs_plain.py
"""

from __future__ import annotations

import json
from functools import partial

import onnx
import torch

from repconv import create_model, fuse
from repconv.benchmarks.environment import environment
from repconv.benchmarks.harness.turns.timing import ratio, time_in_turns
from repconv.benchmarks.studies.common import asking, head, write_result
from repconv.export.onnx.exporter import onnx_function, to_onnx

CASES = {
    "resnet18": ((1, 3, 32, 32), 400),
    "resnet50": ((1, 3, 224, 224), 80),
}
"""Image and number of rounds by base network."""


def structure(model: onnx.ModelProto) -> list[tuple[object, ...]]:
    """Nodes with their attributes, and shapes of weights: everything but names and numbers."""
    weights = {w.name: tuple(w.dims) for w in model.graph.initializer}
    return [
        (
            node.op_type,
            sorted(a.SerializeToString() for a in node.attribute),
            [weights[name] for name in node.input if name in weights],
        )
        for node in model.graph.node
    ]


def main() -> None:
    """Measure, print, write JSON."""
    arguments = asking(__doc__, "fused_vs_plain").parse_args()
    torch.manual_seed(0)
    results = []
    for base, (shape, rounds) in CASES.items():
        x = torch.randn(shape)
        networks = {name: fuse(create_model(name).eval())[0] for name in (base, f"irep_{base}")}
        files = {name: to_onnx(model, x, opset=17) for name, model in networks.items()}
        sessions = {name: onnx_function(proto.SerializeToString()) for name, proto in files.items()}
        same = structure(files[base]) == structure(files[f"irep_{base}"])
        for runtime, forms in (("torch eager", networks), ("onnxruntime", sessions)):
            with torch.inference_mode():
                timed = time_in_turns({name: partial(run, x) for name, run in forms.items()}, rounds=rounds, warmup=10)
            found = ratio(timed[f"irep_{base}"], timed[base])
            row = {
                "network": base,
                "input": list(shape),
                "runtime": runtime,
                "identical_graphs": same,
                "plain_median_ms": timed[base].median_ms,
                "fused_median_ms": timed[f"irep_{base}"].median_ms,
                "fused_over_plain": found.value,
                "interval_95": [found.low, found.high],
                "rounds": rounds,
            }
            print(json.dumps(row), flush=True)
            results.append({**row, "samples": [report.to_dict() for report in timed.values()]})
    write_result(arguments.output, {**head(__file__), "environment": environment(), "results": results})


if __name__ == "__main__":
    main()
