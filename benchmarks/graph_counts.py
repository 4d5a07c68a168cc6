"""What graph fusing leaves of timm's re-parameterisable networks, beside their authors' own conversions.

    python benchmarks/graph_counts.py [--models repvgg_a0,...] [--output benchmarks/results/graph_counts.json]

Batch normalisation statistics and layer scales are random, or the comparison would be vacuous. Errors are those of the
ONNX files in onnxruntime against the float64 network, over the output's root mean square.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib
import io
import json
import time
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from repconv.benchmarks.environment import environment
from repconv.graph import fuse_onnx, fuse_program

MODELS = ("repvgg_a0", "mobileone_s0", "fastvit_t8", "repvit_m0_9", "ghostnetv3_050", "lcnetv2_small",
          "repghostnet_050")  # fmt: skip
KINDS = {"convolutions": "Conv", "batch_norms": "BatchNormalization", "adds": "Add"}


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random statistics, scales and shifts, so that nothing is an identity by accident."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(tensor: Tensor, low: float, high: float) -> None:
        tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                for buffer, low, high in ((module.running_mean, -0.3, 0.3), (module.running_var, 0.5, 1.5)):
                    if buffer is not None:
                        uniform(buffer, low, high)
                if module.affine:
                    uniform(module.weight, 0.5, 1.5)
                    uniform(module.bias, -0.3, 0.3)
        for name, parameter in model.named_parameters():
            if "gamma" in name or "layer_scale" in name:
                uniform(parameter, 0.5, 1.5)
    return model.eval()


def to_onnx(model: nn.Module, x: Tensor) -> onnx.ModelProto:
    """The network as exported, batch normalisation unfolded."""
    buffer = io.BytesIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model, (x,), buffer, dynamo=False, opset_version=18,  # type: ignore[arg-type]  # file objects, too
            training=torch.onnx.TrainingMode.PRESERVE, input_names=["x"], output_names=["y"],
        )  # fmt: skip
    return onnx.load_from_string(buffer.getvalue())


def count(model: onnx.ModelProto) -> dict[str, int]:
    """Nodes of the kinds that fusing removes."""
    found = Counter(node.op_type for node in model.graph.node)
    return {name: found[kind] for name, kind in KINDS.items()} | {"nodes": len(model.graph.node)}


def error(model: onnx.ModelProto, x: Tensor, wanted: Tensor) -> float:
    """Largest difference over the root mean square of the reference."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    got = session.run(None, {"x": x.numpy()})[0]
    reference = wanted.numpy()
    return float(np.abs(got - reference).max() / np.sqrt((reference**2).mean()))


def flops(model: nn.Module, x: Tensor) -> int:
    """Two a multiply-add, of the PyTorch network."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x)
    return int(counter.get_total_flops())


def measure(name: str) -> dict[str, object]:
    """One row."""
    timm = importlib.import_module("timm")
    convert = importlib.import_module("timm.utils.model").reparameterize_model
    torch.manual_seed(0)
    fresh = timm.create_model(name, pretrained=False)
    model, x = randomise(fresh), torch.randn(1, *fresh.pretrained_cfg["input_size"])
    author = convert(copy.deepcopy(model))
    original = to_onnx(model, x)
    started = time.perf_counter()
    fused, report = fuse_onnx(original)
    seconds = time.perf_counter() - started
    program, from_program = fuse_program(torch.export.export(model, (x,)))
    author_onnx = to_onnx(author, x)
    reference = copy.deepcopy(model).double()
    with torch.no_grad():
        wanted = reference(x.double())
        exact, _ = fuse_program(torch.export.export(reference, (x.double(),)))
        apart = float((exact.module()(x.double()) - wanted).abs().max() / wanted.square().mean().sqrt())
        in_torch = float((program.module()(x) - wanted).abs().max() / wanted.square().mean().sqrt())
    fused_flops, original_flops = report.after.flops, report.before.flops
    return {
        "model": name, "input": list(x.shape), "seconds": round(seconds, 2),
        "original": count(original) | {"error": error(original, x, wanted), "conv_flops": original_flops},
        "fused": count(fused) | {"error": error(fused, x, wanted), "conv_flops": fused_flops},
        "fused_program": {
            "convolutions": from_program.after.convolutions, "batch_norms": from_program.after.batch_norms,
            "flops": flops(program.module(), x), "error": in_torch, "float64_error": apart,
        },
        "author": count(author_onnx) | {"error": error(author_onnx, x, wanted), "flops": flops(author, x)},
    }  # fmt: skip


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--output", default="benchmarks/results/graph_counts.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name in arguments.models.split(","):
        rows.append(measure(name))
        row = rows[-1]
        print(name, f"{row['seconds']} s")
        for form in ("original", "fused", "fused_program", "author"):
            print(f"  {form:14}", row[form], flush=True)
        found = {"schema": "repconv.graph_counts/1", "environment": environment(), "rows": rows}
        Path(arguments.output).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
