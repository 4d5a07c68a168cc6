"""Processes that load images leave nothing behind, also where they are killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from repconv.search.tasks.task import Task, training_batches
from repconv.sources.checkpoint import Normalization


@dataclass(frozen=True)
class Blank:
    """Black images of one class."""

    count: int = 64

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.zeros(3, 4, 4, dtype=torch.uint8), index % 2


def same(image: Tensor) -> Tensor:
    return image


@pytest.mark.parametrize("kill", [False, True])
def test_a_killed_worker_leaves_no_folder(kill: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    task = Task(
        train=Blank(), test=None, class_names=("a", "b"), input_shape=(3, 4, 4), augment=same, prepare=same,
        normalization=Normalization((0.0,) * 3, (1.0,) * 3),
    )  # fmt: skip
    batches = training_batches(task, range(64), batch=4, seed=0, epoch=0, workers=1)
    next(batches)
    assert not [*tmp_path.glob("pymp-*")]
    if kill:
        for child in multiprocessing.active_children():
            os.kill(child.pid, signal.SIGKILL)
        with pytest.raises((RuntimeError, ConnectionError)):
            list(batches)
    else:
        assert len([*batches]) == 15
    assert not [*tmp_path.glob("pymp-*"), *tmp_path.glob("repconv-*")]
