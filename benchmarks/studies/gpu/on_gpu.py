"""Everything that needs a GPU, in under nine minutes: engines, latency, accuracy, training and search, and the tests.

    python benchmarks/studies/gpu/on_gpu.py [--only PIECE,...] [--output FILE] [--device cpu]

Each piece runs in a process of its own for a bounded time; one that fails, overruns or lacks a package is recorded with
its reason, and the others go on. The whole goes to benchmarks/results/gpu.json (`repconv.gpu/1`), and into docs/gpu.md;
a part of the pieces, or `--device cpu`, which runs those that a processor can do too with little of everything, goes to
build/gpu.json alone. Exit code: 0; 1 if a piece failed or overran; 3, and nothing is written, where there is no GPU.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from repconv.benchmarks.environment import environment
from repconv.benchmarks.studies.common import RESULTS, ROOT, head, some_of, write_result, write_table
from repconv.benchmarks.studies.gpu.accuracy import accuracy
from repconv.benchmarks.studies.gpu.device import described, lacking, tested
from repconv.benchmarks.studies.gpu.engines import engines
from repconv.benchmarks.studies.gpu.evaluating import evaluation
from repconv.benchmarks.studies.gpu.latency import latency
from repconv.benchmarks.studies.gpu.learning import agreement, training
from repconv.benchmarks.studies.gpu.page import MARK, SCHEMA, measured
from repconv.benchmarks.studies.gpu.running import FAILED, OVERRAN, Outcome, Piece, do_all, in_a_process, tell

RESULT = RESULTS / "gpu.json"
PAGE = ROOT / "docs" / "gpu.md"
PART = ROOT / "build" / "gpu.json"
TOTAL_S = 520.0
"""Nine minutes less what it takes to start and to write."""
EXIT_WITHOUT_GPU = 3

PIECES = {
    piece.name: piece
    for piece in (
        Piece("device", "the GPU and its driver", 20, described, on_cpu=True),
        Piece("accuracy", "the shipped images in PyTorch, unfused and fused, by precision", 50, accuracy, on_cpu=True),
        Piece("engines-tensorrt", "engines built, compared, loaded and run", 140, lambda _: engines("tensorrt")),
        Piece("latency-tensorrt", "one image through engines", 110, partial(latency, "tensorrt")),
        Piece("latency-torch", "one image in PyTorch", 60, partial(latency, "torch"), on_cpu=True),
        Piece("agreement", "a training step as one convolution is that of its branches", 30, agreement, on_cpu=True),
        Piece("training", "training steps", 50, training, on_cpu=True),
        Piece("evaluation", "candidates of a search", 40, evaluation, on_cpu=True),
        Piece("latency-onnxruntime", "one image in onnxruntime", 60, partial(latency, "onnxruntime"), on_cpu=True),
        Piece("engines-tensorrt-rtx", "engines, likewise", 120, lambda _: engines("tensorrt-rtx")),
        Piece("latency-tensorrt-rtx", "one image through engines", 90, partial(latency, "tensorrt-rtx")),
        Piece("latency-graphs", "one image, CUDA graphs of PyTorch", 60, partial(latency, "torch", recorded=True)),
        Piece("tests", "pytest -m gpu", 150, tested),
    )
}
"""In the order in which they are done: the time suffices for those before `latency-onnxruntime` at their limits."""


def main() -> int:
    """Do the pieces, write what came of them, and return the exit code."""
    chosen = _parser().parse_args()
    device = chosen.device
    if chosen.one:
        tell(PIECES[chosen.one], device)
        return 0
    problem = lacking() if device == "cuda" else None
    if problem is not None:
        print(f"make gpu needs an NVIDIA GPU: {problem}", file=sys.stderr)
        return EXIT_WITHOUT_GPU
    pieces = [PIECES[name] for name in chosen.only or PIECES if device == "cuda" or PIECES[name].on_cpu]
    whole = device == "cuda" and not chosen.only
    began, outcomes = time.monotonic(), []
    for outcome in do_all(pieces, device, TOTAL_S, in_a_process(__file__)):
        print(_line(outcome), flush=True)
        outcomes.append(outcome)
    path = chosen.output or (RESULT if whole else PART)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = _content(device, outcomes, time.monotonic() - began)
    write_result(path, content)
    print(f"wrote {path}")
    if whole and path == RESULT:
        write_table(PAGE, MARK, measured(content))
        print(f"wrote {PAGE}")
    return int(any(outcome.state in (FAILED, OVERRAN) for outcome in outcomes))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--only", type=some_of(list(PIECES), "piece"), help=f"of {', '.join(PIECES)}")
    parser.add_argument("--output", type=Path, help="JSON file")
    parser.add_argument("--one", choices=PIECES, help=argparse.SUPPRESS)
    return parser


def _content(device: str, outcomes: list[Outcome], seconds: float) -> Mapping[str, Any]:
    asked = "" if device == "cuda" else "--device cpu"
    return {
        **head(__file__, SCHEMA, asked),
        "device": device,
        "seconds": round(seconds, 1),
        "limit_s": TOTAL_S,
        "pieces": [{"what": PIECES[outcome.piece].what, **outcome.to_dict()} for outcome in outcomes],
        "environment": {**environment(), "torch_threads": torch.get_num_threads()},
    }


def _line(outcome: Outcome) -> str:
    said = "" if outcome.said is None else f": {outcome.said}"
    return f"{outcome.piece}: {outcome.state}, {len(outcome.rows)} rows, {outcome.seconds:.0f} s{said}"


if __name__ == "__main__":
    sys.exit(main())
