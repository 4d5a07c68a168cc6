"""A start that makes no sense is refused in words, and leaves nothing."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn

from repconv import OutputError, SearchError
from repconv.search.config import SearchConfig
from repconv.search.folder import CONFIG, METRICS, RunFolder
from repconv.search.retrain_config import RetrainConfig
from repconv.search.supernet.bank import EvaluationSettings
from repconv.search.supernet.evaluate import accuracy
from repconv.search.tasks.fitting import require_fitting
from repconv.search.tasks.images import HeldImages
from repconv.search.tasks.task import EvaluationBatches, Task, training_batches
from repconv.sources.checkpoint import Normalization


def same(image: torch.Tensor) -> torch.Tensor:
    return image


TASK = Task(
    train=HeldImages(torch.zeros(8, 3, 6, 6, dtype=torch.uint8), torch.arange(8) % 4), test=None,
    class_names=("a", "b", "c", "d"), input_shape=(3, 6, 6), augment=same, prepare=same,
    normalization=Normalization((0.0,) * 3, (1.0,) * 3),
)  # fmt: skip


def head(classes: int, channels: int = 3) -> nn.Module:
    return nn.Sequential(nn.Conv2d(channels, classes, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())


class Pair(nn.Module):
    def forward(self, x):
        return {"logits": x.mean((2, 3))}


REFUSED = {
    "a larger shape": (
        {"input_shape": (3, 8, 8)},
        head(4),
        "is 3x8x8, and an image of 3x6x6 becomes 3x6x6",
    ),
    "augment crops": ({"augment": lambda image: image[:, 1:]}, head(4), "an image of 3x6x6 becomes 3x5x6"),
    "prepare crops": ({"prepare": lambda image: image[:, :, 2:]}, head(4), "an image of 3x6x6 becomes 3x6x4"),
    "too few classes": (
        {},
        head(3),
        "3 numbers an image, and the task has 4 classes; its head has to give 4",
    ),
    "other channels": ({}, head(4, channels=1), "net does not take the task's images of 3x6x6: Given groups=1"),
    "a dictionary": (
        {},
        Pair(),
        r"a dict of two images, and cross entropy takes \[2, 4\]; give the task a loss",
    ),
    "a map": (
        {},
        nn.Conv2d(3, 4, 3),
        r"a tensor \[2, 4, 4, 4\] of two images, and cross entropy takes \[2, 4\]",
    ),
    "a metric that judges no image": (
        {"correct": lambda answer, y: float((answer.argmax(1) == y).float().mean())},
        head(4),
        "`correct` gives a float for 2 images",
    ),
    "no metric for an answer": ({"loss": lambda *_: torch.zeros(())}, Pair(), "top-1 needs logits as one tensor"),
    "labels that are words": (
        {"train": [(torch.zeros(3, 6, 6, dtype=torch.uint8), "a")] * 2},
        head(4),
        "image 0 has the label 'a', and class_names names 4 classes: expected a whole number from 0 to 3",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_task_and_a_network_that_do_not_fit_are_refused(name: str) -> None:
    changes, network, says = REFUSED[name]
    require_fitting(TASK, head(4), "net")
    with pytest.raises(SearchError, match=says):
        require_fitting(dataclasses.replace(TASK, **changes), network, "net")


def test_a_loss_of_its_own_may_take_any_answer_and_nothing_is_changed() -> None:
    network = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(), Pair())
    kept, before = torch.get_rng_state(), {k: v.clone() for k, v in network.state_dict().items()}
    task = dataclasses.replace(
        TASK,
        loss=lambda answer, y: answer["logits"].sum() + y.sum(),
        correct=lambda answer, y: answer["logits"][:, 0] > y,
    )
    require_fitting(task, network, "net")
    assert torch.equal(torch.get_rng_state(), kept)
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())
    assert all(module.training for module in network.modules())


def test_a_label_beyond_the_classes_is_refused_where_it_is_read() -> None:
    task = dataclasses.replace(TASK, class_names=("a", "b", "c"))  # images 3 and 7 are of class 3
    says = "image 3 has the label 3, and class_names names 3 classes"
    with pytest.raises(SearchError, match=says):
        list(training_batches(task, range(7), batch=7, seed=0, epoch=0))
    with pytest.raises(SearchError, match=says):
        list(EvaluationBatches(task, task.train, range(8), batch=8, keep_bytes=0))
    own = dataclasses.replace(task, loss=lambda answer, y: answer.mean() + y.sum())  # which may know what to do
    assert len(list(EvaluationBatches(own, own.train, range(8), batch=8, keep_bytes=0))) == 1


def test_a_loss_is_one_number_and_every_answer_is_judged() -> None:
    each = dataclasses.replace(TASK, loss=lambda answer, y: (answer - y[:, None]).mean(1))
    with pytest.raises(SearchError, match=r"loss gives a tensor \[2\] for 2 images; expected a tensor of one number"):
        each.loss_of(torch.zeros(2, 4), torch.zeros(2))
    images = [(torch.zeros(2, 3, 6, 6), torch.zeros(2))]
    for found, says in ((0.5, "a float"), (torch.ones(2, 4), r"a tensor \[2, 4\]")):
        with pytest.raises(SearchError, match=rf"`correct` gives {says} for 2 images; expected a tensor \[2\]"):
            accuracy(head(4), images, EvaluationSettings(), lambda *_, found=found: found)


@pytest.mark.parametrize("kind", [SearchConfig, RetrainConfig])
def test_a_seed_that_no_generator_takes_is_refused(kind: type) -> None:
    assert kind(seed=2**63 - 1).seed == 2**63 - 1
    with pytest.raises(SearchError, match=r"seed is below 2\^63"):
        kind(seed=2**63)


def refused(path: Path, learnt: str = "", *, resume: bool = False) -> None:
    """A start that fails, after something was written if `learnt` names it."""
    with RunFolder.starting(path, {"a": 1}, {}, resume=resume) as folder:
        assert (path / CONFIG).exists()
        if learnt:
            (folder.path / learnt).touch()
        raise SearchError("no")


@pytest.mark.parametrize("deep", ["run", "new/er/run"])
def test_a_refused_start_leaves_no_folder(tmp_path: Path, deep: str) -> None:
    with pytest.raises(SearchError):
        refused(tmp_path / deep)
    assert not any(tmp_path.iterdir())


def test_what_was_there_or_was_learnt_stays(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(SearchError):
        refused(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]
    with pytest.raises(SearchError):
        refused(tmp_path, METRICS)
    kept = {file.name for file in tmp_path.iterdir()}
    assert kept >= {CONFIG, METRICS}
    with pytest.raises(SearchError):
        refused(tmp_path, resume=True)
    assert {file.name for file in tmp_path.iterdir()} == kept


def test_a_preset_made_for_others_tells_what_to_leave_out(command_line, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = command_line(
        "search", "run", "--preset", "smoke", "--set", "network=torchvision:resnet18", "-o", "run"
    )
    assert (code, "--set width=0 --set blocks= leaves them out" in err) == (2, True), err
    assert not any(tmp_path.iterdir())


def test_a_run_begun_before_a_setting_was_there_goes_on(tmp_path: Path) -> None:
    """With what that setting usually is; and whatever is told of where its architecture comes from."""
    usual = {"a": 1, "new": 0}
    RunFolder.create(tmp_path, {"a": 2, "architecture": {"blocks": 1, "search": {"seed": 1}}}, {})
    for seed in (1, 2):
        now = {"a": 2, "new": 0, "architecture": {"blocks": 1, "search": {"seed": seed, "new": 0}}}
        assert RunFolder.create_or_resume(tmp_path, now, {}, usual).path == tmp_path
    for other in ({"new": 1}, {"a": 3}, {"architecture": {"blocks": 2, "search": {"seed": 1}}}):
        with pytest.raises(OutputError, match="other settings"):
            RunFolder.create_or_resume(tmp_path, {**now, **other}, {}, usual)
