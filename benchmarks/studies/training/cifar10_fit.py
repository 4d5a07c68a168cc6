"""Training a small network on CIFAR-10, stopped and resumed at any step."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..common import asking, existing
from .cifar10 import augment, normalize


@dataclass(frozen=True)
class Recipe:
    """SGD with Nesterov momentum 0.9, one cycle of the learning rate, random crops and flips."""

    epochs: int
    batch: int
    lr: float
    seed: int
    weight_decay: float = 5e-4
    label_smoothing: float = 0.05


def training(doc: str | None, run: str, output: str = "") -> argparse.ArgumentParser:
    """The parser of a script that trains: zips of images, and a folder of states."""
    parser = asking(doc, output)
    parser.add_argument("--train", type=existing, required=True, help="zip of training images in folders by class")
    parser.add_argument("--test", type=existing, required=True, help="zip of test images in folders by class")
    parser.add_argument("--run", type=Path, default=Path(run), help="folder of the run (%(default)s)")
    return parser


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Top-1 accuracy of `model` in evaluation on uint8 images."""
    model.eval()
    with torch.inference_mode():
        hits = sum(
            int((model(normalize(x)).argmax(1) == y).sum())
            for x, y in zip(images.split(500), labels.split(500), strict=True)
        )
    return hits / len(labels)


def write(path: Path, value: object) -> None:
    """Save beside, then rename: an interrupted run leaves the old file."""
    torch.save(value, path.with_suffix(".part"))
    path.with_suffix(".part").replace(path)


def fit(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    recipe: Recipe,
    state_file: Path,
    *,
    every: int = 20,
    say: Callable[[str], None] = print,
) -> list[float]:
    """Train `model` on uint8 images, going on from `state_file` if there is one; returns the loss of every step.

    every: steps between two saved states.
    """
    decay = [p for p in model.parameters() if p.dim() > 1]
    rest = [p for p in model.parameters() if p.dim() <= 1]
    optimiser = torch.optim.SGD(
        [{"params": decay, "weight_decay": recipe.weight_decay}, {"params": rest, "weight_decay": 0.0}],
        lr=recipe.lr,
        momentum=0.9,
        nesterov=True,
    )
    per_epoch = len(images) // recipe.batch
    steps = recipe.epochs * per_epoch
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.lr, total_steps=steps, pct_start=0.25)
    generator = torch.Generator().manual_seed(recipe.seed)
    done, order, losses = 0, torch.randperm(len(images), generator=generator), list[float]()
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        schedule.load_state_dict(state["schedule"])
        generator.set_state(state["generator"])
        torch.set_rng_state(state["rng"])
        done, order, losses = state["step"], state["order"], state["losses"]
    model.train()
    started, first = time.monotonic(), done
    while done < steps:
        position = done % per_epoch
        if position == 0 and done:
            order = torch.randperm(len(images), generator=generator)
        pick = order[position * recipe.batch : (position + 1) * recipe.batch]
        logits = model(normalize(augment(images[pick], generator)))
        loss = functional.cross_entropy(logits, labels[pick], label_smoothing=recipe.label_smoothing)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        losses.append(float(loss.detach()))
        done += 1
        if done % every == 0 or done == steps:
            seconds = (time.monotonic() - started) / (done - first)
            record = {"step": done, "steps": steps, "loss": round(losses[-1], 4)}
            say(json.dumps({**record, "seconds_per_step": round(seconds, 3)}))
            write(
                state_file,
                {
                    "model": model.state_dict(),
                    "optimiser": optimiser.state_dict(),
                    "schedule": schedule.state_dict(),
                    "generator": generator.get_state(),
                    "rng": torch.get_rng_state(),
                    "step": done,
                    "order": order,
                    "losses": losses,
                },
            )
    return losses
