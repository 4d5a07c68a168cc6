"""How many different engines come of one ONNX model, built again and again by TensorRT-RTX, with no GPU?

    python benchmarks/studies/export/engine_bytes.py [--builds 12] [--output FILE]

The shipped network in fp16 with a batch of 1 to 16, for SM86 and SM89. Once at addresses as the system draws them, once
as `repconv export` builds: at fixed ones (`export/engines/worker.py`), in surroundings that vary.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections import Counter
from pathlib import Path
from unittest import mock

import onnx

from repconv.benchmarks.environment import environment
from repconv.benchmarks.studies.common import asking, head, positive, write_result
from repconv.export import BuildSettings, Span, to_onnx
from repconv.export.engines.builder import build_engine

CHECKPOINT = Path("repconv/assets/irep_resnet_cifar10.pt")
SETTINGS = BuildSettings(precision="fp16", batch=Span(1, 4, 16), capabilities=("SM86", "SM89"))


def digest(model: onnx.ModelProto, *, fixed: bool) -> str:
    """SHA-256 of an engine of the model.

    Raises:
        SystemExit: its addresses were not fixed, or could not be left random.
    """
    spans = (Span.of(32), Span.of(32))
    built = build_engine(model, "tensorrt-rtx", SETTINGS, spans, fixed_addresses=fixed)
    if built.details["addresses_fixed"] != fixed:
        raise SystemExit("this system does not let a process choose whether addresses are random")
    return hashlib.sha256(built.files[".engine"]).hexdigest()


def main() -> None:
    """Build, count, print, and write JSON."""
    parser = asking(__doc__, "engine_bytes")
    parser.add_argument("--builds", type=positive, default=12)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        to_onnx(CHECKPOINT, Path(folder) / "model.onnx", SETTINGS)
        model = onnx.load(Path(folder) / "model.onnx")
    rows = {}
    for fixed in (False, True):
        found: Counter[str] = Counter()
        for number in range(arguments.builds):
            with mock.patch.dict(
                "os.environ", {"A_VARIABLE": "x" * 1000 * number, "MALLOC_ARENA_MAX": str(1 + number)}
            ):
                found[digest(model, fixed=fixed)] += 1
        name = "addresses fixed" if fixed else "addresses as the system draws them"
        rows[name] = dict(found)
        print(f"{name}: {arguments.builds} builds, {len(found)} different: {sorted(found.values())}", flush=True)
    content = head(__file__, "repconv.engine-bytes/1", f"--builds {arguments.builds}")
    write_result(arguments.output, {**content, "sha256_of_engines": rows, "environment": environment()})


if __name__ == "__main__":
    main()
