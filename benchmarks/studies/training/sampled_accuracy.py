"""What taking batch statistics from a sample costs in accuracy: the same small network and recipe, several seeds each.

    python benchmarks/studies/training/sampled_accuracy.py --train cifar10-train.zip --test cifar10-test.zip \
        --run runs/sampled

One run after the other; stopped, it goes on where it was. Results are written after each run, and runs of the same
settings that are in the output already are not repeated.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from repconv import Sampling, create_model, set_statistics
from repconv.benchmarks.environment import environment
from repconv.benchmarks.studies.common import head, read_result, some_of, write_result
from repconv.benchmarks.studies.training.cifar10 import read_zip
from repconv.benchmarks.studies.training.cifar10_fit import Recipe, accuracy, fit, training

VARIANTS: dict[str, Sampling | None] = {
    "plain": None, "full": None, "sampled": Sampling(),
    **{f"sampled:{n}": Sampling(n, share=1.0, least=128) for n in (64, 128, 256, 512, 1024, 2048, 8192)},
}  # fmt: skip
"""The plain network, branch by branch, one convolution as by default, and with so many samples a channel."""

SCHEMA = "repconv.sampled_accuracy/1"
BLOCKS, WIDTH, IMAGES = (1, 1, 1), 8, 20000


def network(variant: str, seed: int) -> nn.Module:
    """A fresh network, channels last."""
    torch.manual_seed(seed)
    name = "resnet18" if variant == "plain" else "irep_resnet18"
    model = create_model(name, num_classes=10, width=WIDTH, blocks=BLOCKS)
    sampling = VARIANTS[variant]
    set_statistics(model, "full" if sampling is None else sampling)
    return model.to(memory_format=torch.channels_last)


def known(output: Path) -> list[dict[str, object]]:
    """The runs an output holds; another process may have added to it."""
    return (read_result(output, SCHEMA) or {"runs": []})["runs"]  # type: ignore[no-any-return]  # of a file


def main() -> None:
    """Train, measure, write JSON after each run."""
    parser = training(__doc__, "runs/sampled", "sampled_accuracy")
    parser.add_argument("--variants", type=some_of(tuple(VARIANTS), "variant"), default=tuple(VARIANTS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.run.mkdir(parents=True, exist_ok=True)
    images, labels = read_zip(arguments.train)
    kept = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:IMAGES]
    images, labels = images[kept], labels[kept]
    test_images, test_labels = read_zip(arguments.test)
    for seed in range(arguments.seeds):
        for variant in arguments.variants:
            recipe = Recipe(epochs=arguments.epochs, batch=128, lr=0.2, seed=seed)
            settings = {
                "variant": variant, "recipe": asdict(recipe), "images": IMAGES, "width": WIDTH, "blocks": list(BLOCKS),
                "sampling": asdict(sampling) if (sampling := VARIANTS[variant]) else None,
            }  # fmt: skip
            if any(row["settings"] == settings for row in known(arguments.output)):
                continue
            print(variant, seed, flush=True)
            started = time.monotonic()
            model = network(variant, seed)
            losses = fit(model, images, labels, recipe, arguments.run / f"{variant}-{seed}.pt", every=100)
            last = losses[-len(losses) // recipe.epochs :]
            row = {
                "settings": settings, "test_top1": accuracy(model, test_images, test_labels),
                "train_loss_last_epoch": sum(last) / len(last), "test_images": len(test_labels),
                "seconds": round(time.monotonic() - started), "environment": environment(),
            }  # fmt: skip
            print(json.dumps({k: row[k] for k in ("test_top1", "train_loss_last_epoch", "seconds")}), flush=True)
            write_result(arguments.output, {**head(__file__, SCHEMA), "runs": [*known(arguments.output), row]})


if __name__ == "__main__":
    main()
