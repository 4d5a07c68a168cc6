"""Processes that load images leave nothing behind, also where they are killed."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

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


def blank() -> Task:
    return Task(
        train=Blank(), test=None, class_names=("a", "b"), input_shape=(3, 4, 4), augment=same, prepare=same,
        normalization=Normalization((0.0,) * 3, (1.0,) * 3),
    )  # fmt: skip


@pytest.mark.parametrize("kill", [False, True])
def test_a_killed_worker_leaves_no_folder(kill: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    batches = training_batches(blank(), range(64), batch=4, seed=0, epoch=0, workers=1)
    next(batches)
    assert not [*tmp_path.glob("pymp-*")]
    if kill:
        for child in multiprocessing.active_children():
            os.kill(child.pid, signal.SIGKILL)
        with pytest.raises((RuntimeError, ConnectionError, EOFError)):
            list(batches)
    else:
        assert len([*batches]) == 15
    assert not [*tmp_path.glob("pymp-*"), *tmp_path.glob("repconv-*")]


def test_a_worker_missed_only_at_the_end_is_missed_by_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    unraisable: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
    end = _MultiProcessingDataLoaderIter._shutdown_workers

    def ended(self: _MultiProcessingDataLoaderIter) -> None:
        begun = not self._shutdown
        end(self)
        if begun:
            raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Killed.")

    monkeypatch.setattr(_MultiProcessingDataLoaderIter, "_shutdown_workers", ended)
    batches = training_batches(blank(), range(64), batch=4, seed=0, epoch=0, workers=1)
    next(batches)
    batches.close()
    del batches
    gc.collect()
    assert not unraisable
