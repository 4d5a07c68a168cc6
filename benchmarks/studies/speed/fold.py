"""How long and how much memory folding IRep-ResNet-50 with all ten branches takes, and how fast the help starts.

python benchmarks/studies/speed/fold.py
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from repconv import create_model, fuse
from repconv.benchmarks.environment import environment
from repconv.benchmarks.studies.common import asking, head, resident, write_result


def help_seconds(runs: int = 9) -> list[float]:
    """Wall time of `repconv --help` as a whole process."""
    command = Path(sys.executable).with_name("repconv")
    samples = []
    for _ in range(runs):
        start = time.perf_counter()
        subprocess.run([command, "--help"], check=True, capture_output=True)  # noqa: S603  # our own command
        samples.append(time.perf_counter() - start)
    return samples


def main() -> None:
    """Measure, print, write JSON."""
    arguments = asking(__doc__, "fold").parse_args()
    torch.manual_seed(0)
    model = create_model("irep_resnet50").eval()
    stored = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of building the model
    before = resident("VmRSS")
    _, report = fuse(model, prove=False)
    peak = resident("VmHWM")
    samples = []
    for _ in range(7):
        start = time.perf_counter()
        fuse(model, prove=False)
        samples.append(time.perf_counter() - start)
    helps = help_seconds()
    result = {
        **head(__file__),
        "environment": {**environment(), "torch_threads": torch.get_num_threads()},
        "model": "irep_resnet50, 16 blocks of nine or ten branches",
        "convolutions": [report.before.convolutions, report.after.convolutions],
        "fold_s": samples,
        "fold_median_s": statistics.median(samples),
        "model_bytes": stored,
        "peak_over_model": (stored + peak - before) / stored,
        "help_s": helps,
        "help_median_s": statistics.median(helps),
    }
    print(json.dumps(result, indent=1))
    write_result(arguments.output, result)


if __name__ == "__main__":
    main()
