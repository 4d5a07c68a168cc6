"""What a score costs and is worth: ways of measuring the candidates of one supernet, side by side.

    python benchmarks/studies/search/scoring.py RUN [--architectures 24] [--output FILE]

RUN is the folder of a finished search. Architectures of its budget are drawn and measured on its validation images:
with the supernet's statistics or with their own, from more or fewer images, from every position or a sample, in float32
and bfloat16, in batches of 64 and 512. Every way is compared with statistics of 2,048 images from every position by
Kendall's tau. CPU seconds are the process's own, on one thread, and hold where others compute beside.
"""

from __future__ import annotations

import re
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, pstdev
from typing import Any

import torch

from repconv import load
from repconv.benchmarks.environment import environment
from repconv.benchmarks.studies.common import asking, head, positive, write_result
from repconv.search.config import config_from_dict
from repconv.search.folder import CONFIG, SUPERNET, RunFolder
from repconv.search.strategies.evolution import first_population
from repconv.search.supernet.bank import EvaluationSettings
from repconv.search.supernet.evaluate import evaluate
from repconv.search.supernet.precision import rank_correlation
from repconv.search.supernet.supernet import Supernet
from repconv.search.tasks.data import open_data
from repconv.search.tasks.network import set_positions
from repconv.search.tasks.task import EvaluationBatches, split

SCHEMA = "repconv.scoring/1"
GOOD = "own, 2048 images, all positions"


@dataclass(frozen=True, kw_only=True)
class Way:
    """How candidates are measured.

    images: from which statistics are taken, 0 for the supernet's, in batches of settling. positions: of those a channel
        and batch, 0 for all.
    """

    batch: int = 64
    dtype: str = "float32"
    images: int = 0
    positions: int = 0
    settling: int = 64

    @property
    def name(self) -> str:
        """For rows."""
        seen = f"{self.positions} positions" if self.positions else "all positions"
        batches = f" in batches of {self.settling}" if self.settling != 64 else ""
        shown = f"own, {self.images} images{batches}, {seen}" if self.images else "the supernet's"
        return ", ".join(
            [shown, *([self.dtype] if self.dtype != "float32" else []), *([] if self.batch == 64 else ["batch 512"])]
        )


WAYS = (
    Way(images=2048),
    Way(batch=512),
    Way(),
    Way(dtype="bfloat16"),
    *(Way(images=images, positions=positions) for images in (128, 256, 512) for positions in (64, 256, 1024)),
    Way(images=256, positions=256, dtype="bfloat16"),
    Way(images=256, positions=512, settling=128),
    Way(images=256, positions=1024, settling=256),
)


def main() -> None:
    """Measure each way once."""
    parser = asking(__doc__, "scoring")
    parser.add_argument("run", type=Path, help="folder of a finished search")
    parser.add_argument("--ways", default="", help="only those whose name this regular expression finds, and the best")
    parser.add_argument("--architectures", type=positive, default=24, help="(%(default)s)")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    folder = RunFolder.open(chosen.run)
    config = config_from_dict(folder.read_json(CONFIG), str(folder.path / CONFIG))
    supernet = Supernet(load(folder.path / SUPERNET).model)
    task = open_data(config.data, config.test_data, image_size=config.image_size)
    parts = split(len(task.train), config.validation_share, config.seed, config.train_images)
    budget = supernet.space.budget(config.ratio)
    candidates = first_population(supernet.space, budget, chosen.architectures, torch.Generator().manual_seed(0))

    def batches(positions: tuple[int, ...], size: int) -> EvaluationBatches:
        return EvaluationBatches(task, task.train, positions, batch=size, keep_bytes=2e9)

    judged = {size: batches(parts.validation, size) for size in (64, 512)}
    for kept in judged.values():
        list(kept)  # reading images is not what is compared
    rows: dict[str, Any] = {}
    scores: dict[str, tuple[float, ...]] = {}
    for way in (way for way in WAYS if way.name == GOOD or re.search(chosen.ways, way.name)):
        set_positions(supernet.model, way.positions)
        settings = EvaluationSettings(getattr(torch, way.dtype))
        settling = list(batches(parts.train[: way.images], way.settling)) if way.images else []
        start = time.process_time()
        found = evaluate(supernet, candidates, judged[way.batch], settings, reestimation=settling)
        scores[way.name] = found.accuracies
        rows[way.name] = {
            **asdict(way),
            "cpu_seconds": time.process_time() - start,
            "accuracies": found.accuracies,
            "mean": mean(found.accuracies),
            "spread": pstdev(found.accuracies),
            "reestimation_share": found.reestimate_s / found.seconds,
        }
        print(way.name, f"{rows[way.name]['cpu_seconds']:.1f} s", flush=True)
    for name, row in rows.items():
        row["tau"] = rank_correlation(scores[name], scores[GOOD])
    ways = f" --ways '{chosen.ways}'" if chosen.ways else ""
    asked = f"RUN --architectures {chosen.architectures}{ways}"
    about = {**head(__file__, SCHEMA, asked), "environment": environment(), "search": config.provenance}
    write_result(chosen.output, {**about, "validation_images": len(parts.validation), "rows": rows})


if __name__ == "__main__":
    main()
