"""Every artefact of six networks: does it build, is it verified, how large is it?

    python benchmarks/studies/export/exports.py [--models shipped,...] [--output FILE] [--again]

Each row is one `repconv export` command, which the JSON holds, with the record it wrote. Rows that are there are kept
(`--again` makes them anew), so an interrupted run goes on. Scales and shifts of all networks but the shipped one are
random, or fusing would be vacuous; their int8 is calibrated on the same kind of noise they are compared on. The
statistics of timm's networks are those of noise: with random ones the activations of repvgg_a0 grow beyond fp16, which
`repconv export` refuses. TensorRT-RTX engines are for SM86 and SM89.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

from repconv import create_model
from repconv.benchmarks.environment import environment
from repconv.benchmarks.studies.common import asking, head, read_result, some_of, write_result
from repconv.benchmarks.studies.graph.networks import Specimen, randomise, specimen

SCHEMA = "repconv.exports/1"
MODELS = ("shipped", "irep_resnet18", "irep_resnet50", "repvgg_a0", "mobileone_s0", "fastvit_t8")
ARTEFACTS = (
    ("onnx", "fp32"), ("onnx", "fp16"), ("onnx", "int8"), ("openvino", "fp32"), ("openvino", "fp16"),
    ("openvino", "int8"), ("tensorrt-rtx", "fp32"), ("tensorrt-rtx", "fp16"),
)  # fmt: skip
SUFFIX = {"onnx": ".onnx", "openvino": ".xml", "tensorrt-rtx": ".engine"}
ASSETS = Path("repconv/assets")
CHECKPOINT = ASSETS / "irep_resnet_cifar10.pt"
TIMEOUT_S = 1200
LOOSE = {("mobileone_s0", "openvino", "int8"): "0.7"}
"""Tolerances beyond the usual ones. With random weights nothing damps errors in mobileone_s0: fp16, 8 times finer than
int8, is already off by 3 %, and NNCF's int8 by 53 to 57 % whichever way it takes ranges."""


def irep_resnet18() -> nn.Module:
    """IRep-ResNet18 for CIFAR-10 with random statistics."""
    return randomise(create_model("irep_resnet18"))


def irep_resnet50() -> nn.Module:
    """IRep-ResNet50 with random statistics."""
    return specimen("repconv:irep_resnet50").model


def settled(one: Specimen) -> nn.Module:
    """A network whose batch normalisations hold the statistics of noise, as a trained one's are those of images."""
    norms = [part for part in one.model.modules() if isinstance(part, nn.BatchNorm2d)]
    usual = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None  # the mean over all batches
        norm.reset_running_stats()
    one.model.train()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        one.model(torch.randn(8, *one.x.shape[1:], generator=generator))
    for norm, momentum in zip(norms, usual, strict=True):
        norm.momentum = momentum
    return one.model.eval()


def repvgg_a0() -> nn.Module:
    """timm's, with random scales and the statistics of noise."""
    return settled(specimen("repvgg_a0"))


def mobileone_s0() -> nn.Module:
    """timm's, with random scales and the statistics of noise."""
    return settled(specimen("mobileone_s0"))


def fastvit_t8() -> nn.Module:
    """timm's, with random scales, layer scales too, and the statistics of noise."""
    return settled(specimen("fastvit_t8"))


IMAGES = {"irep_resnet18": "32,32", "irep_resnet50": "224,224", "repvgg_a0": "224,224", "mobileone_s0": "224,224",
          "fastvit_t8": "256,256"}  # fmt: skip


def arguments_of(model: str, target: str, precision: str) -> list[str]:
    """The command line that makes one artefact, without its output."""
    if model == "shipped":
        made = [str(CHECKPOINT), "--to", target, "--precision", precision]
        sheet = str(ASSETS / "cifar10_test_sheet.npz")
        made += ["--calibrate", sheet] if precision == "int8" else ["--evaluate", sheet]
    else:
        made = [f"repconv.benchmarks.studies.export.exports:{model}", "--image", IMAGES[model], "--to", target]
        made += ["--precision", precision]
        made += ["--random-calibration", "--calibration-images", "16"] if precision == "int8" else []
        loose = LOOSE.get((model, target, precision))
        made += ["--tolerance", loose] if loose else []
    return made + (["--sm", "SM86,SM89"] if target == "tensorrt-rtx" else [])


def run(arguments: list[str], suffix: str) -> dict[str, object]:
    """Run `repconv export` and return what it recorded, or why it failed."""
    command = Path(sys.executable).with_name("repconv")
    with tempfile.TemporaryDirectory() as folder:
        out, record = Path(folder) / f"model{suffix}", Path(folder) / "record.json"
        started = time.perf_counter()
        done = subprocess.run(  # noqa: S603  # our own command
            [command, "export", *arguments, "-o", out, "--json", record],
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT_S,
        )
        seconds = time.perf_counter() - started
        told = f"repconv export {' '.join(arguments)} -o model{suffix}"
        if done.returncode:
            return {"command": told, "exit_code": done.returncode, "said": done.stderr.strip().splitlines()[-1]}
        content = json.loads(record.read_text(encoding="utf-8"))
    content["details"].pop("layers", None)
    if "quantization" in content["details"]:
        content["details"]["quantization"]["layers"] = content["details"]["quantization"]["layers"][:5]
    if content["evidence"] is not None:
        content["evidence"]["calls"] = content["evidence"]["calls"][:4]
    for output in content["outputs"]:
        output["path"] = Path(output["path"]).name
    return {"command": told, "exit_code": 0, "seconds": seconds, "record": content}


def in_a_line(row: dict[str, object]) -> str:
    """A row in a line."""
    record = row.get("record")
    if not isinstance(record, dict):
        return f"exit code {row['exit_code']}: {row['said']}"
    seen = record["evidence"]
    error = "" if seen is None else f", max {seen['max_error']:.1e}, rms {seen['rms_error']:.1e}"
    accuracy = "" if seen is None or seen["accuracy"] is None else f", accuracy {seen['accuracy']:.2%}"
    return f"{record['status']}{error}{accuracy}, {sum(o['bytes'] for o in record['outputs']):,} bytes"


def main() -> None:
    """Make what is missing, print, and write JSON after each row."""
    parser = asking(__doc__, "exports")
    parser.add_argument("--models", type=some_of(MODELS), default=MODELS)
    parser.add_argument("--again", action="store_true", help="make rows anew that are there")
    arguments = parser.parse_args()
    rows = (read_result(arguments.output, SCHEMA) or {"rows": {}})["rows"]
    wanted: dict[str, tuple[list[str], str]] = {}
    for model in arguments.models:
        for target, precision in ARTEFACTS:
            wanted[f"{model}/{target}/{precision}"] = arguments_of(model, target, precision), SUFFIX[target]
    for key, (made, suffix) in wanted.items():
        if arguments.again or rows.get(key, {}).get("exit_code") != 0:
            rows[key] = run(made, suffix) | {"environment": environment()}
            write_result(arguments.output, {**head(__file__, SCHEMA), "rows": rows})
        print(f"{key}: {in_a_line(rows[key])}", flush=True)


if __name__ == "__main__":
    main()
