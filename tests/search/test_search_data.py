"""Data by name, splits and batches that depend on seed, epoch and position alone."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from repconv import SearchError
from repconv.search.tasks.crops import CropAndFlip
from repconv.search.tasks.data import open_data
from repconv.search.tasks.images import HeldImages, StoredImages, held, image_folder
from repconv.search.tasks.task import EvaluationBatches, Split, Task, epoch_order, split, training_batches

image = pytest.importorskip("PIL.Image", reason="pillow is not installed")
pytest.importorskip("torchvision", reason="torchvision is not installed")
pytest.importorskip("sklearn", reason="scikit-learn is not installed")


def write_images(folder: Path, size: tuple[int, int] = (8, 8), names: tuple[str, ...] = ("cat", "dog")) -> None:
    random = np.random.default_rng(0)
    for i, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for j in range(3 + i):
            pixels = random.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
            image.fromarray(pixels).save(folder / name / f"{j}.png")


def zipped(folder: Path, out: Path) -> Path:
    with zipfile.ZipFile(out, "w") as archive:
        for file in folder.rglob("*.png"):
            archive.write(file, file.relative_to(folder.parent))
        archive.writestr("README.txt", "no image")
    return out


@pytest.fixture(scope="module")
def digits() -> Task:
    return open_data("digits")


def test_digits_are_whole_and_normalised(digits) -> None:
    assert (len(digits.train), len(digits.test), digits.input_shape) == (1437, 360, (1, 8, 8))
    seen = torch.stack([digits.normalize(digits.train[i][0]) for i in range(1437)])
    assert abs(float(seen.mean())) < 1e-5
    assert float(seen.std(correction=0)) == pytest.approx(1, abs=1e-5)
    assert [int((digits.train.labels == c).sum()) > 100 for c in range(10)] == [True] * 10


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_image_folders_and_zips_hold_the_same(tmp_path, form) -> None:
    write_images(tmp_path / "pets")
    path = tmp_path / "pets" if form == "folder" else zipped(tmp_path / "pets", tmp_path / "pets.zip")
    task = open_data(f"imagefolder:{path}")
    assert task.class_names == ("cat", "dog")
    assert task.train.labels.tolist() == [0] * 3 + [1] * 4
    pixels = np.array(image.open(tmp_path / "pets" / "dog" / "2.png"))
    assert np.array_equal(task.train[5][0].permute(1, 2, 0).numpy(), pixels)
    assert task.test is None
    assert task.input_shape == (3, 8, 8)


def test_a_zip_is_read_once_until_it_changes(tmp_path) -> None:
    write_images(tmp_path / "animals")
    archive = zipped(tmp_path / "animals", tmp_path / "animals.zip")
    first = open_data(f"imagefolder:{archive}")
    assert open_data(f"imagefolder:{archive}").train is first.train
    write_images(tmp_path / "animals", names=("fox",))
    zipped(tmp_path / "animals", archive)
    assert open_data(f"imagefolder:{archive}").class_names == ("cat", "dog", "fox")


def test_folders_named_train_and_val_are_kept_apart(tmp_path) -> None:
    write_images(tmp_path / "data" / "train")
    write_images(tmp_path / "data" / "val")
    for path in (tmp_path / "data", zipped(tmp_path / "data", tmp_path / "data.zip")):
        task = open_data(f"imagefolder:{path}")
        assert (len(task.train), len(task.test)) == (7, 7)


def test_test_images_of_another_place_are_numbered_as_the_training_ones(tmp_path) -> None:
    write_images(tmp_path / "a" / "train")
    write_images(tmp_path / "b" / "test", names=("dog",))
    task = open_data(f"imagefolder:{tmp_path / 'a'}", f"imagefolder:{tmp_path / 'b'}")
    assert task.test.labels.tolist() == [1] * 3
    write_images(tmp_path / "c" / "test", names=("cow",))
    with pytest.raises(SearchError, match="class 'cow', which the training data does not have"):
        open_data(f"imagefolder:{tmp_path / 'a'}", f"imagefolder:{tmp_path / 'c'}")


def test_large_images_are_read_when_asked_for_and_cropped(tmp_path) -> None:
    write_images(tmp_path / "large", size=(90, 70))
    task = open_data(f"imagefolder:{zipped(tmp_path / 'large', tmp_path / 'large.zip')}", image_size=48)
    assert isinstance(task.train, StoredImages)
    assert held(task.train) is None
    assert task.augment(task.train[0][0]).shape == task.prepare(task.train[0][0]).shape == (3, 48, 48)
    again = pickle.loads(pickle.dumps(task.train))  # noqa: S301  # as worker processes get it
    assert torch.equal(again[2][0], task.train[2][0])


@pytest.mark.parametrize(("size", "side"), [((34, 45), 32), ((90, 70), 64), ((400, 300), 224), ((5, 9), 5)], ids=str)
def test_the_size_that_images_are_cropped_to_is_read_off_them(size, side, tmp_path) -> None:
    write_images(tmp_path / "a", size=size)
    write_images(tmp_path / "a", names=("fox",), size=(size[0] + 1, size[1]))  # not all of one size
    task = open_data(f"imagefolder:{tmp_path / 'a'}")
    assert task.input_shape == (3, side, side)
    assert task.augment(task.train[0][0]).shape == task.prepare(task.train[0][0]).shape == (3, side, side)
    assert open_data(f"imagefolder:{tmp_path / 'a'}", image_size=16).input_shape == (3, 16, 16)


def test_cifar_in_torchvisions_format(tmp_path, monkeypatch) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        content = {"data": np.full((4, 3072), 7, np.uint8), "labels": [0, 1, 2, 3]}
        (folder / name).write_bytes(pickle.dumps(content))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    with pytest.raises(SearchError, match=r"expected the folder that holds cifar-10-batches-py.*imagefolder:PATH"):
        open_data(f"cifar10:{tmp_path}")  # made-up files do not have the true check sums
    monkeypatch.setattr("torchvision.datasets.CIFAR10._check_integrity", lambda _: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    for path in (tmp_path, folder):
        task = open_data(f"cifar10:{path}")
        assert (len(task.train), len(task.test), task.input_shape) == (20, 4, (3, 32, 32))
        assert task.class_names == tuple("abcdefghij")
        assert task.train.labels.tolist() == [0, 1, 2, 3] * 5
    with pytest.raises(SearchError, match="cifar-100-python"):
        open_data(f"cifar100:{tmp_path}")


def test_a_users_own_task(tmp_path, monkeypatch) -> None:
    (tmp_path / "task_of_test.py").write_text(
        "import dataclasses\n"
        "from repconv.search.tasks.data import open_data\n"
        "def own():\n    return dataclasses.replace(open_data('digits'), class_names=('mine',))\n"
        "def bad():\n    return 3\n"
        "def fails():\n    raise KeyError('no file')\n"
    )
    monkeypatch.chdir(tmp_path)
    assert open_data("task_of_test:own").class_names == ("mine",)
    with pytest.raises(SearchError, match=r"made a int, expected a repconv.search.tasks.task.Task"):
        open_data("task_of_test:bad")
    with pytest.raises(SearchError, match="task_of_test:fails failed: KeyError: 'no file'"):
        open_data("task_of_test:fails")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("cifar11", "unknown data 'cifar11'; data is cifar10:PATH"),
        ("imagefolder:none.zip", "none.zip: no such folder or zip"),
        ("imagefolder:.", r"found \d+ images of \d classes"),
    ],
)
def test_data_that_is_not_there(name: str, says: str, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SearchError, match=says):
        open_data(name)


def test_broken_files_are_named(tmp_path) -> None:
    write_images(tmp_path / "pets")
    (tmp_path / "pets" / "dog" / "0.png").write_bytes(b"not a picture")
    with pytest.raises(SearchError, match=r"dog/0.png is no readable image"):
        open_data(f"imagefolder:{tmp_path / 'pets'}")
    (tmp_path / "bad.zip").write_bytes(b"no zip")
    with pytest.raises(SearchError, match="neither a folder nor a readable zip"):
        image_folder(tmp_path / "bad.zip")


def test_a_split_is_by_seed_and_has_no_image_twice() -> None:
    one = split(100, 0.1, seed=3)
    assert sorted(one.train + one.validation) == list(range(100))
    assert len(one.validation) == 10
    assert split(100, 0.1, seed=3) == one != split(100, 0.1, seed=4)
    few = split(100, 0.25, seed=3, limit=20)
    assert (len(few.train), len(few.validation)) == (15, 5)
    with pytest.raises(SearchError, match="leaves 3 to learn from and 0 to judge by"):
        split(3, 0.1, seed=0)
    assert isinstance(one, Split)


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (8, 8), (28, 20)])
def test_crops_and_flips_are_torchvisions(height: int, width: int, flip: bool) -> None:
    image = torch.randint(1, 256, (3, height, width), dtype=torch.uint8)
    v2 = pytest.importorskip("torchvision.transforms.v2", reason="torchvision is not installed")
    steps = [v2.RandomCrop((height, width), padding=height // 8), *([v2.RandomHorizontalFlip()] if flip else [])]
    drawn = []
    for way in (v2.Compose(steps), CropAndFlip(height // 8, flip)):
        torch.manual_seed(0)
        drawn.append(torch.stack([way(image) for _ in range(200)]))
    assert torch.equal(*drawn)
    assert len(drawn[0].unique(dim=0)) > 8


def test_what_a_sample_looks_like_depends_on_seed_epoch_and_position_alone(digits) -> None:
    positions = list(range(50))

    def epoch(number: int, first: int = 0, workers: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return list(training_batches(digits, positions, batch=16, seed=5, epoch=number, first=first, workers=workers))

    state = torch.get_rng_state()
    whole = epoch(1)
    assert torch.equal(torch.get_rng_state(), state), "drawing images must not disturb the training's own draws"
    assert [len(y) for _, y in whole] == [16, 16, 16]
    torch.manual_seed(99)
    for (x, y), (x2, y2) in zip(whole[1:], epoch(1, first=1), strict=True):
        assert torch.equal(x, x2)
        assert torch.equal(y, y2)
    assert not torch.equal(whole[0][0], epoch(2)[0][0])
    assert sorted(epoch_order(positions, 5, 1)) == positions


@pytest.mark.slow
def test_worker_processes_draw_the_same(digits) -> None:
    alone, beside = (
        list(training_batches(digits, range(40), batch=8, seed=1, epoch=0, workers=workers)) for workers in (0, 2)
    )
    assert all(torch.equal(a[0], b[0]) for a, b in zip(alone, beside, strict=True))


@pytest.mark.parametrize("keep", [0, 1e9])
def test_evaluation_batches_are_the_same_every_time(digits, keep) -> None:
    batches = EvaluationBatches(digits, digits.train, [5, 3, 9], batch=2, keep_bytes=keep)
    first, again = list(batches), list(batches)
    assert [y.tolist() for _, y in first] == [[digits.train[5][1], digits.train[3][1]], [digits.train[9][1]]]
    assert all(torch.equal(a[0], b[0]) for a, b in zip(first, again, strict=True))
    assert (first[0][0] is again[0][0]) == bool(keep)
    assert torch.equal(first[1][0][0], digits.normalize(digits.train[9][0]))
    assert isinstance(digits.train, HeldImages)
