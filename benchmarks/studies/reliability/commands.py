"""The commands that faults are injected into, small, and what each must leave."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from repconv import create_model, save
from repconv.search.folder import CHECKPOINT, CONFIG, METRICS, RESULT

OLD = b"what was there before"

_SMALL = {
    "network": "irep_resnet18", "width": 4, "blocks": 1, "data": "digits", "train_images": 200, "validation_share": 0.2,
    "population": 4, "epochs": 4, "warmup_epochs": 1, "generation_epochs": 1, "architectures": 2, "batch": 32,
    "positions": 300, "checkpoint_steps": 2, "workers": 1,
}  # fmt: skip
_SHORT = {"train_images": 200, "epochs": 4, "batch": 32, "checkpoint_steps": 2, "workers": 1, "ema": 0.9}


def _settings(values: Mapping[str, object]) -> list[str]:
    return [part for key, value in values.items() for part in ("--set", f"{key}={value}")]


@dataclass(frozen=True)
class Command:
    """A command: its line, the files it writes, and how to go on with it where it writes a run's folder.

    worker: part of the line of a process that it starts, if it starts any.
    """

    line: tuple[str, ...]
    outputs: tuple[str, ...] = ()
    resume: tuple[str, ...] = ()
    worker: str = ""

    @property
    def is_run(self) -> bool:
        """Whether it writes the folder of a run."""
        return bool(self.resume)


_RETRAIN = ("retrain", "best.arch.json", "--preset", "smoke", *_settings(_SHORT), "-o", "run")
SUBJECTS: Mapping[str, Command] = {
    "fuse": Command(("fuse", "m.pt", "-o", "out.onnx", "--json", "out.json"), ("out.onnx", "out.json")),
    "export": Command(
        ("export", "m.pt", "--to", "openvino", "-o", "out.xml", "--json", "out.json"),
        ("out.xml", "out.bin", "out.json"),
    ),
    "bench": Command(
        ("bench", "m.pt", "--backend", "torch", "--rounds", "2", "--sessions", "1", "--seconds", "0.1", "--calls", "4",
         "--warmup", "0.1", "--json", "out.json", "--html", "out.html"),
        ("out.json", "out.html"), worker="harness.worker",
    ),
    "search": Command(
        ("search", "run", *_settings(_SMALL), "-o", "run"), resume=("search", "resume", "run"), worker="python"
    ),
    "retrain": Command(_RETRAIN, resume=_RETRAIN, worker="python"),
}  # fmt: skip


def inputs(folder: Path) -> None:
    """What all of them read."""
    torch.manual_seed(0)
    save(create_model("irep_resnet18", width=8, blocks=(1, 1)).eval(), folder / "m.pt", input_shape=(3, 16, 16))


def stands(subject: Command, folder: Path, whole: Mapping[str, str], *, done: bool) -> list[str]:
    """What is wrong with the outputs: neither what was there before nor whole; or old although it was done.

    whole: fingerprints of what an undisturbed run writes, of those that are twice the same.
    """
    wrong = []
    for name in subject.outputs:
        path = folder / name
        content = path.read_bytes() if path.exists() else None
        if content is None:
            wrong.append(f"{name} is gone")
        elif content == OLD:
            wrong += [f"{name} is the old one though it said done"] if done else []
        elif not _is_whole(path, content, whole):
            wrong.append(f"{name} is neither the old one nor a whole new one")
    return wrong


def _is_whole(path: Path, content: bytes, whole: Mapping[str, str]) -> bool:
    if path.name in whole:
        return fingerprint(content) == whole[path.name]
    if path.suffix == ".json":
        try:
            return "schema" in json.loads(content)
        except ValueError:
            return False
    return content.rstrip().endswith(b"</html>")


def fingerprint(content: bytes) -> str:
    """Of an output."""
    return hashlib.sha256(content).hexdigest()


def left(folder: Path) -> dict[str, Any]:
    """Everything a run leaves that is to be the same, bit for bit."""
    checkpoint = torch.load(folder / CHECKPOINT, weights_only=True)
    del checkpoint["metrics_bytes"]  # times have more or fewer digits
    lines = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
    texts = [folder / RESULT, folder / CONFIG, *folder.glob("*.svg"), *folder.glob("populations/*")]
    return {
        "checkpoint": checkpoint,
        "metrics": [{k: v for k, v in line.items() if not k.startswith("seconds")} for line in lines],
        "files": {str(file.relative_to(folder)): file.read_text() for file in texts},
        "networks": {
            file.name: torch.load(file, weights_only=True) for file in folder.glob("*.pt") if file.name != CHECKPOINT
        },
        "names": sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if "tensorboard" not in file.parts),
    }


def equal(one: object, other: object) -> bool:
    """Tensors to the bit."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


def differing(folder: Path, expected: Mapping[str, Any]) -> list[str]:
    """What of a finished run is not as that of an undisturbed one."""
    try:
        found = left(folder)
    except (OSError, ValueError) as error:
        return [f"the run cannot be read: {error}"]
    return [f"the run's {key} differ" for key, value in expected.items() if not equal(value, found[key])]
