"""Table 1 of the paper: what evaluating a population costs, multi-branch and as single-path networks.

    python benchmarks/paper/table1.py

VGG-16 and ResNet-18 for CIFAR-10, two thirds of the branches active, float32, channels last, and the same images, batch
and candidates on both sides; the multi-branch side skips branches outside the mask. Measured, in turns: a batch through
a multi-branch candidate, through the same candidate folded, through a plain network of the same shape with its batch
normalisations folded; writing a candidate's kernels; folding the supernet. A population of P then takes

    multi-branch: P * batches * batch;  single-path: fold + P * (write + batches * batch);  plain: P * batches * batch

for the 5,000 images a search holds out of CIFAR-10 (candidates and batches are alike, so that nothing is gained by
waiting for all of them: the paper's 256 multi-branch VGGs took it an hour and a half on an A100).
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from itertools import cycle

import torch

from repconv import create_model, fuse
from repconv.benchmarks.environment import environment
from repconv.benchmarks.harness.turns.timing import ratio, time_in_turns
from repconv.benchmarks.studies.common import asking, head, positive, write_result
from repconv.search.strategies.evolution import first_population
from repconv.search.supernet.bank import EvaluationSettings, KernelBank
from repconv.search.supernet.supernet import Supernet

POPULATIONS = (64, 128, 256)
IMAGES = 5000
PAPER = {"vgg16": (63.7, 62.7, 65.8), "resnet18": (55.9, 56.1, 57.8)}
"""Per cent less time, for the three populations (its first figure recomputes to 63.0)."""


def case(base: str, width: int, batch: int, rounds: int) -> dict[str, object]:
    """One network: its samples, and the times of the three populations."""
    torch.manual_seed(0)
    model = create_model(f"irep_{base}", width=width).eval().to(memory_format=torch.channels_last)
    supernet, settings = Supernet(model), EvaluationSettings()
    budget = supernet.space.budget(2 / 3)
    candidates = first_population(supernet.space, budget, 8, torch.Generator().manual_seed(0))
    plain = settings.prepared(fuse(create_model(base, width=width).eval())[0])
    bank = KernelBank(supernet, settings)
    bank.write(candidates[0])
    x = settings.of(torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(1)))
    drawn, written = cycle(candidates), cycle(candidates)
    subjects: dict[str, Callable[[], object]] = {
        "multi_branch": lambda: supernet(next(drawn), x),
        "single_path": lambda: bank.net(x),
        "plain": lambda: plain(x),
        "write": lambda: bank.write(next(written)),
    }
    with torch.inference_mode():
        timed = time_in_turns(subjects, rounds=rounds, warmup=1)
    fold = time_in_turns({"fold": lambda: KernelBank(supernet, settings)}, rounds=3, warmup=1)["fold"]
    seconds = {name: statistics.median(found.samples_s) for name, found in timed.items()}
    fold_s, batches = statistics.median(fold.samples_s), IMAGES / batch
    rows = []
    for population, paper in zip(POPULATIONS, PAPER[base], strict=True):
        multi = population * batches * seconds["multi_branch"]
        single = fold_s + population * (seconds["write"] + batches * seconds["single_path"])
        alone = population * batches * seconds["plain"]
        rows.append(
            {
                "population": population,
                "multi_branch_s": multi,
                "single_path_s": single,
                "plain_s": alone,
                "less_time_percent": 100 * (1 - single / multi),
                "over_plain_percent": 100 * (single / alone - 1),
                "paper_less_time_percent": paper,
            }
        )
    speed, cost = (ratio(timed[a], timed[b]) for a, b in (("multi_branch", "single_path"), ("single_path", "plain")))
    return {
        "network": base,
        "width": width,
        "batch": batch,
        "rounds": rounds,
        "active_branches": budget,
        "branches": len(supernet.space.slots),
        "batch_s": seconds,
        "fold_s": fold_s,
        "multi_branch_over_single_path": vars(speed),
        "single_path_over_plain": vars(cost),
        "populations": rows,
        "samples": [found.to_dict() for found in (*timed.values(), fold)],
    }


def main() -> None:
    """Measure, print, write JSON."""
    parser = asking(__doc__, "table1")
    parser.add_argument("--networks", nargs="+", default=sorted(PAPER), choices=sorted(PAPER))
    parser.add_argument("--widths", nargs="+", type=positive, default=[16, 64])
    parser.add_argument("--batch", type=positive, default=64)
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--keep", action="store_true", help="measure nothing if the output is there")
    arguments = parser.parse_args()
    if arguments.keep and arguments.output.exists():
        print(f"{arguments.output} is kept")
        return
    results = []
    for width in arguments.widths:
        for base in arguments.networks:
            found = case(base, width, arguments.batch, arguments.rounds)
            results.append(found)
            print(json.dumps({key: value for key, value in found.items() if key != "samples"}), flush=True)
    about = {"images": IMAGES, "threads": torch.get_num_threads(), "environment": environment()}
    write_result(arguments.output, {**head(__file__), **about, "results": results})


if __name__ == "__main__":
    main()
