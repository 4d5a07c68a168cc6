"""Time and peak memory of fusing, of this checkout beside an earlier commit, in turns.

    python benchmarks/studies/graph/fuse_cost.py [--before COMMIT] [--rounds 5] [--only CASE] [--output FILE]

`module` is `repconv.fuse(irep_resnet18, x)` in a process that has imported everything; `file` is the whole process of
`repconv fuse` on an ONNX file of 30 million parameters (RepVGG's branches, as another author would export them), with
its proof; `program` is `fuse_program`, without proof, of GhostNetV3 of torch.export (326 batch norms); `proof` is the
proof alone of five ONNX files of the zoo, beside what it takes to run its probes: two random inputs through both files
in onnxruntime and through the original in float64, compared.
CPU seconds are the process's own, user and system, and hold where other processes run besides; wall seconds stand
beside them. Memory is the most the process held, of `module` and `program` beyond what it held before.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import onnx
import torch
from torch import nn

from repconv.benchmarks.environment import environment
from repconv.benchmarks.studies.common import ROOT, asking, head, markdown_table, write_result
from repconv.benchmarks.studies.graph.networks import randomise, to_onnx
from repconv.files.whole import write_whole

SCHEMA = "repconv.fuse_cost/1"
PROBES = "probes_cpu_seconds"
BEFORE = "04a8af6"
"""The last commit that knew affine operations by their spelling."""

_START = """
import json, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
def held(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(key))
"""

_MODULE = """
import torch, onnx, onnxruntime, repconv, repconv.graph
torch.manual_seed(0)
model, x = repconv.create_model("irep_resnet18").eval(), torch.randn(1, 3, 32, 32)
Path("/proc/self/clear_refs").write_text("5")
before, start, used = held("VmRSS"), time.perf_counter(), time.process_time()
repconv.fuse(model, x)
seconds, used = time.perf_counter() - start, time.process_time() - used
print(json.dumps({"seconds": seconds, "cpu_seconds": used, "bytes": held("VmHWM") - before}))
"""

_PROGRAM = """
import timm, torch
from repconv.graph import fuse_program
torch.manual_seed(0)
program = torch.export.export(timm.create_model("ghostnetv3_050").eval(), (torch.randn(1, 3, 224, 224),))
Path("/proc/self/clear_refs").write_text("5")
before, start, used = held("VmRSS"), time.perf_counter(), time.process_time()
fuse_program(program, prove=False)
seconds, used = time.perf_counter() - start, time.process_time() - used
print(json.dumps({"seconds": seconds, "cpu_seconds": used, "bytes": held("VmHWM") - before}))
"""

_PROOF = """
import torch
from repconv.benchmarks.studies.zoo.measuring import as_onnx
from repconv.benchmarks.studies.zoo.subjects import subject
from repconv.graph import fuse_onnx
from repconv.graph.onnx.fuse import proof_of
from repconv.graph.onnx.proof.prove import ModelPair, random_feeds
torch.set_num_threads(1)
model, _ = as_onnx(subject(sys.argv[2]))
fused, report = fuse_onnx(model, prove=False)
used = time.process_time()
pair = ModelPair(model, fused)
for given in random_feeds(model)[0]:
    pair.compare(given)
probes = time.process_time() - used
del pair
Path("/proc/self/clear_refs").write_text("5")
before, start, used = held("VmRSS"), time.perf_counter(), time.process_time()
proof = proof_of(model, fused, report, None)
seconds, used = time.perf_counter() - start, time.process_time() - used
if not proof.agreement.passed:
    sys.exit(f"{sys.argv[2]}: {proof.agreement.verdict}")
took = {"seconds": seconds, "cpu_seconds": used, "probes_cpu_seconds": probes}
print(json.dumps({**took, "bytes": held("VmHWM") - before}))
"""

_FILE = """
from repconv.cli import main
start = time.perf_counter()
code = 0
try:
    sys.argv = ["repconv", "fuse", sys.argv[2], "-o", sys.argv[2] + ".fused.onnx"]
    main()
except SystemExit as left:
    code = left.code
seconds = time.perf_counter() - start
print(json.dumps({"seconds": seconds, "cpu_seconds": time.process_time(), "bytes": held("VmHWM"), "code": code or 0}))
"""

PROVED = ("repghostnet_050", "mobileone_s0", "resnet18", "darknet17", "levit_128s")
"""Networks of timm whose files are proved."""

CASES: Mapping[str, Mapping[str, tuple[str, str | None]]] = {
    "module": {"module": (_MODULE, None)},
    "file": {"file": (_FILE, None)},
    "program": {"program": (_PROGRAM, None)},
    "proof": {f"proof of {name}": (_PROOF, f"timm:{name}") for name in PROVED},
}
"""What is measured, by name: rows, each some code and what it is given, None for the ONNX file of branches."""


class Branches(nn.Module):
    """RepVGG's three branches over 512 channels."""

    def __init__(self, channels: int) -> None:
        """`channels` in and out."""
        super().__init__()
        self.full = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels))
        self.point = nn.Sequential(nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels))
        self.skip = nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Shape as it came."""
        return torch.relu(self.full(x) + self.point(x) + self.skip(x))


def subject(path: Path, channels: int = 512, blocks: int = 11) -> int:
    """Write the network as ONNX, norms kept; returns how many parameters it has."""
    network = nn.Sequential(nn.Conv2d(3, channels, 1), *(Branches(channels) for _ in range(blocks)))
    randomise(network)
    onnx.save(to_onnx(network, torch.randn(1, 3, 16, 16)), str(path))
    return sum(parameter.numel() for parameter in network.parameters())


def laid_out(checkout: Path, tree: Path) -> Path:
    """The package of a checkout as it installs, as links below `tree`."""
    (tree / "repconv").mkdir(parents=True)
    for part in (*(checkout / "repconv").iterdir(), *(checkout / name for name in ("search", "export", "benchmarks"))):
        (tree / "repconv" / part.name).symlink_to(part)
    return tree


def earlier(commit: str, folder: Path) -> Path:
    """The files of a commit below `folder`."""
    folder.mkdir()
    packed = subprocess.run(["git", "archive", commit], cwd=ROOT, check=True, capture_output=True).stdout  # noqa: S603, S607
    subprocess.run(["tar", "-x"], cwd=folder, input=packed, check=True)  # noqa: S607  # what git just packed
    return folder


def measured(code: str, tree: Path, *more: str) -> dict[str, float]:
    """What a new process says of itself, on one thread."""
    told = subprocess.run(  # noqa: S603  # code of this file
        [sys.executable, "-c", _START + code, str(tree), *more],
        check=True, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    return dict(json.loads(told.stdout.splitlines()[-1]))


def main() -> None:
    """Measure, print, write JSON and a table beside it."""
    parser = asking(__doc__, "fuse_cost")
    parser.add_argument("--before", default=BEFORE, metavar="COMMIT", help="the commit to compare with (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=CASES, help="one of the cases (module and file)")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        path = folder / "branches.onnx"
        parameters = subject(path)
        trees = {
            "before": laid_out(earlier(asked.before, folder / "earlier"), folder / "before"),
            "now": laid_out(ROOT, folder / "now"),
        }
        wanted = [asked.only] if asked.only else ["module", "file"]
        cases = {row: (code, given or str(path)) for name in wanted for row, (code, given) in CASES[name].items()}
        samples: dict[str, dict[str, list[dict[str, float]]]] = {name: {side: [] for side in trees} for name in cases}
        for index in range(asked.rounds):
            sides = list(trees.items())[:: 1 if index % 2 else -1]
            for name, (code, given) in cases.items():
                for side, tree in sides:
                    samples[name][side].append(measured(code, tree, given))
                    print(name, side, samples[name][side][-1], flush=True)
        result = {
            **head(__file__, SCHEMA, _asked(asked)),
            "environment": environment(),
            "file": {"parameters": parameters, "bytes": path.stat().st_size},
            "samples": samples,
            "median": {
                name: {side: _medians(found) for side, found in sides.items()} for name, sides in samples.items()
            },
        }
    write_result(asked.output, result)
    write_whole({asked.output.with_suffix(".md"): _table(result).encode()})


def _asked(asked: argparse.Namespace) -> str:
    """The options that measure this again."""
    only = f" --only {asked.only}" if asked.only else ""
    return f"--before {asked.before} --rounds {asked.rounds}{only}"


def _medians(samples: list[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.median(sample[key] for sample in samples) for key in samples[0]}


def _table(result: dict[str, object]) -> str:
    """Medians, before and now, and their ratio; of proofs, how many times their probes they take, too."""
    rows = []
    for name, sides in result["median"].items():  # type: ignore[attr-defined]  # plain containers
        was, now = sides["before"], sides["now"]
        columns = [
            (was[key] / unit, now[key] / unit, now[key] / was[key])
            for key, unit in (("cpu_seconds", 1), ("seconds", 1), ("bytes", 1e6))
        ]
        if PROBES in now:
            columns.append(tuple(side["cpu_seconds"] / side[PROBES] for side in (was, now)))
        rows.append([name, *(f"{value:.2f}" for column in columns for value in column)])
    heading = [f"{what} {when}".strip() for what in ("CPU s", "wall s", "MB") for when in ("before", "now", "ratio")]
    over = ["CPU over its probes before", "now"]
    return markdown_table(["", *heading, *over][: len(rows[0])], rows) + "\n"


if __name__ == "__main__":
    main()
