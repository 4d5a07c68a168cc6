"""Train the small IRep-ResNet that ships with the package, on CIFAR-10.

    python benchmarks/train_cifar10.py --train cifar10-train.zip --test cifar10-test.zip --run runs/shipped

Stops and goes on: run the same line again and it continues from the last saved step. The test images are looked at
once, at the end.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from repconv import RepBlock, create_model
from repconv.benchmarks.cifar10 import CLASSES, MEAN, STD, augment, normalize, read_zip
from repconv.benchmarks.environment import environment
from repconv.files import sha256
from repconv.sampling import Sampling

MODEL = {"num_classes": 10, "width": 16, "blocks": (2, 2, 2)}


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Top-1 accuracy of `model` in evaluation on uint8 images."""
    model.eval()
    with torch.inference_mode():
        hits = sum(
            int((model(normalize(x)).argmax(1) == y).sum())
            for x, y in zip(images.split(500), labels.split(500), strict=True)
        )
    return hits / len(labels)


def set_sampling(model: nn.Module, sampling: Sampling | None) -> None:
    """Train every block as one convolution, with batch statistics from a sample; None: branch by branch."""
    for block in model.modules():
        if isinstance(block, RepBlock):
            block.sampling = sampling


def reestimate(model: nn.Module, images: Tensor) -> None:
    """Replace the running statistics by the averages over `images`, every position counted."""
    set_sampling(model, None)
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


def write(path: Path, value: object) -> None:
    """Save beside, then rename: an interrupted run leaves the old file."""
    torch.save(value, path.with_suffix(".part"))
    path.with_suffix(".part").replace(path)


def train(arguments: argparse.Namespace) -> nn.Module:
    """Train to the last step and return the model, in evaluation, its statistics re-estimated."""
    images, labels = read_zip(arguments.train)
    torch.manual_seed(arguments.seed)
    model = create_model("irep_resnet18", **MODEL).to(memory_format=torch.channels_last)  # type: ignore[arg-type]
    set_sampling(model, Sampling(arguments.positions))
    decay = [p for p in model.parameters() if p.dim() > 1]
    rest = [p for p in model.parameters() if p.dim() <= 1]
    optimiser = torch.optim.SGD(
        [{"params": decay, "weight_decay": 5e-4}, {"params": rest, "weight_decay": 0.0}],
        lr=arguments.lr, momentum=0.9, nesterov=True,
    )  # fmt: skip
    per_epoch = len(images) // arguments.batch
    steps = arguments.epochs * per_epoch
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, arguments.lr, total_steps=steps, pct_start=0.25)
    generator = torch.Generator().manual_seed(arguments.seed)
    state_file = arguments.run / "state.pt"
    done, order = 0, torch.randperm(len(images), generator=generator)
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        schedule.load_state_dict(state["schedule"])
        generator.set_state(state["generator"])
        torch.set_rng_state(state["rng"])
        done, order = state["step"], state["order"]
    model.train()
    started, first = time.monotonic(), done
    while done < steps:
        position = done % per_epoch
        if position == 0 and done:
            order = torch.randperm(len(images), generator=generator)
        pick = order[position * arguments.batch : (position + 1) * arguments.batch]
        logits = model(normalize(augment(images[pick], generator)))
        loss = functional.cross_entropy(logits, labels[pick], label_smoothing=0.05)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        done += 1
        if done % 20 == 0 or done == steps:
            seconds = (time.monotonic() - started) / (done - first)
            record = {"step": done, "steps": steps, "loss": round(float(loss), 4)}
            print(json.dumps({**record, "seconds_per_step": round(seconds, 3)}), flush=True)
            write(state_file, {
                "model": model.state_dict(), "optimiser": optimiser.state_dict(), "schedule": schedule.state_dict(),
                "generator": generator.get_state(), "rng": torch.get_rng_state(), "step": done, "order": order,
            })  # fmt: skip
    reestimate(model, images[torch.randperm(len(images), generator=generator)[:10000]])
    return model.eval()


def main() -> None:
    """Train, measure on the test images, write the checkpoint in float16."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, required=True, help="zip of training images in folders by class")
    parser.add_argument("--test", type=Path, required=True, help="zip of test images in folders by class")
    parser.add_argument("--run", type=Path, default=Path("runs/shipped"), help="folder of the run (%(default)s)")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--lr", type=float, default=0.4)
    parser.add_argument("--positions", type=int, default=1024, help="samples a channel for batch statistics")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.run.mkdir(parents=True, exist_ok=True)
    model = train(arguments)
    write(arguments.run / "final.pt", model.state_dict())
    from repconv import load, save
    from repconv.checkpoint import Normalization

    out = arguments.run / "irep_resnet_cifar10.pt"
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
        "command": "python benchmarks/train_cifar10.py --train cifar10-train.zip --test cifar10-test.zip",
        "environment": environment(),
        "model": {"name": "irep_resnet18", **MODEL},
        "settings": settings,
        "test_images": len(labels),
        "metrics": metrics,
        "bytes": out.stat().st_size,
        "sha256": sha256(out),
    }
    text = json.dumps(result, indent=1)
    (arguments.run / "result.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
