"""Train the small IRep-ResNet that ships with the package, on CIFAR-10, or the plain network beside it.

    python benchmarks/studies/training/train_cifar10.py --train cifar10-train.zip --test cifar10-test.zip \
        --run runs/shipped
    python benchmarks/studies/training/train_cifar10.py ... --network resnet18 --run runs/plain

Stops and goes on: run the same line again and it continues from the last saved step. The test images are looked at
once, at the end.
"""

from __future__ import annotations

import argparse
import json

import torch
from torch import Tensor, nn

from repconv import Sampling, create_model, set_statistics
from repconv.benchmarks.environment import environment
from repconv.benchmarks.studies.common import head, write_result
from repconv.benchmarks.studies.training.cifar10 import CLASSES, MEAN, STD, normalize, read_zip
from repconv.benchmarks.studies.training.cifar10_fit import Recipe, accuracy, fit, training, write
from repconv.files.whole import sha256

MODEL = {"num_classes": 10, "width": 16, "blocks": (2, 2, 2)}
NETWORKS = ("irep_resnet18", "resnet18")


def reestimate(model: nn.Module, images: Tensor) -> None:
    """Replace the running statistics by the averages over `images`, every position counted."""
    set_statistics(model, "full")
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    model.train()
    with torch.no_grad():
        for batch in images.split(500):
            model(normalize(batch))
    for norm in norms:
        norm.momentum = 0.1


def train(arguments: argparse.Namespace) -> nn.Module:
    """Train to the last step and return the model, in evaluation, its statistics re-estimated."""
    images, labels = read_zip(arguments.train)
    torch.manual_seed(arguments.seed)
    model = create_model(arguments.network, **MODEL).to(memory_format=torch.channels_last)  # type: ignore[arg-type]
    set_statistics(model, Sampling(arguments.positions) if arguments.positions else "sampled")
    recipe = Recipe(epochs=arguments.epochs, batch=arguments.batch, lr=arguments.lr, seed=arguments.seed)
    fit(model, images, labels, recipe, arguments.run / "state.pt")
    generator = torch.Generator().manual_seed(arguments.seed)
    reestimate(model, images[torch.randperm(len(images), generator=generator)[:10000]])
    return model.eval()


def main() -> None:
    """Train, measure on the test images, write the checkpoint in float16."""
    parser = training(__doc__, "runs/shipped")
    parser.add_argument("--network", default=NETWORKS[0], choices=NETWORKS)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--lr", type=float, default=0.4)
    parser.add_argument("--positions", type=int, help="at most so many samples a channel for batch statistics")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.run.mkdir(parents=True, exist_ok=True)
    model = train(arguments)
    write(arguments.run / "final.pt", model.state_dict())
    from repconv import load, save
    from repconv.sources.checkpoint import Normalization

    out = arguments.run / f"{arguments.network.removesuffix('18')}_cifar10.pt"
    described = {
        "class_names": CLASSES,
        "normalization": Normalization(MEAN, STD),
        "input_shape": (3, 32, 32),
        "storage_dtype": torch.float16,
    }
    save(model, out, **described)  # type: ignore[arg-type]
    images, labels = read_zip(arguments.test)
    # What ships is what is measured: the stored, rounded weights.
    metrics = {"test_top1": accuracy(load(out).model.to(memory_format=torch.channels_last), images, labels)}
    save(model, out, metrics=metrics, **described)  # type: ignore[arg-type]
    settings = {key: getattr(arguments, key) for key in ("epochs", "batch", "lr", "positions", "seed")}
    result = {
        **head(__file__, "", f"--train cifar10-train.zip --test cifar10-test.zip --network {arguments.network}"),
        "environment": environment(),
        "model": {"name": arguments.network, **MODEL},
        "settings": settings,
        "test_images": len(labels),
        "metrics": metrics,
        "bytes": out.stat().st_size,
        "sha256": sha256(out),
    }
    write_result(arguments.run / "result.json", result)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
