"""Retraining a searched architecture: what it starts from, what is dropped, where it ends."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from repconv import OutputError, RepBlock, SearchError, VerificationError, create_model, load, save
from repconv.blocks import fold as fusion
from repconv.blocks.branches import BRANCHES
from repconv.search.folder import RESULT, RunFolder
from repconv.search.reports.found import Found, read_found
from repconv.search.retrain import FUSED, RETRAINED, retrain
from repconv.search.retrain_config import RETRAIN_PRESETS, RetrainConfig, complete, retrain_preset
from repconv.search.retraining.cutout import Cutout
from repconv.search.retraining.start import searched_network
from repconv.search.retraining.trainer import Trainer
from repconv.search.supernet.architecture import Architecture
from repconv.search.supernet.space import SearchSpace
from repconv.search.supernet.supernet import Gates, Supernet
from repconv.search.tasks.data import open_data

pytest.importorskip("torchvision", reason="torchvision is not installed")
pytest.importorskip("sklearn", reason="scikit-learn is not installed")

NETWORK = {"name": "irep_resnet18", "width": 2, "blocks": [1], "fixed": [], "branches": []}
TINY = RetrainConfig(
    data="digits", train_images=100, epochs=2, batch=32, cutout=2, drop_path=0.5, checkpoint_steps=2, learning_rate=0.1
)


@pytest.fixture(scope="module")
def found() -> Found:
    space = SearchSpace.of(create_model("irep_resnet18", width=2, blocks=(1,), in_channels=1))
    slots = len(space.slots)
    architecture = Architecture(space, tuple(i % 3 > 0 for i in range(slots)))
    return Found(
        architecture=architecture,
        network=NETWORK,
        gates=Gates(tuple(i / 10 for i in range(slots)), (0.1, 0.2, 0.3)),
        accuracy=0.5,
    )


def begun(path, name: str = "run") -> RunFolder:
    return RunFolder.create(path / name, {}, {})


def test_a_found_architecture_survives_json_and_any_order(found, tmp_path) -> None:
    content = json.loads(json.dumps(found.to_dict()))
    (tmp_path / "a.json").write_text(json.dumps(content))
    assert read_found(tmp_path / "a.json") == found
    content["blocks"] = dict(reversed(content["blocks"].items()))
    (tmp_path / "b.json").write_text(json.dumps(content))
    turned = read_found(tmp_path / "b.json")
    assert turned != found
    assert turned.on(found.architecture.space) == found
    del content["gates"]["stem"]
    (tmp_path / "c.json").write_text(json.dumps(content))
    with pytest.raises(SearchError, match=r"c.json holds an architecture but not what a search adds \(KeyError"):
        read_found(tmp_path / "c.json")


def test_a_fold_that_differs_is_not_written(found, tmp_path, monkeypatch) -> None:
    honest = fusion.cast_like

    def wrong(branch, kernel):
        conv = honest(branch, kernel)
        with torch.no_grad():
            conv.weight *= 1.05
        return conv

    monkeypatch.setattr(fusion, "cast_like", wrong)
    folder = begun(tmp_path)
    with pytest.raises(VerificationError, match="NOT equal"):
        retrain(folder, found, dataclasses.replace(TINY, epochs=1))
    assert not {FUSED, RETRAINED, RESULT} & {path.name for path in folder.path.iterdir()}


def test_from_scratch_weights_are_fresh_and_gates_as_searched(found) -> None:
    torch.manual_seed(0)
    model = searched_network(found, open_data("digits"))
    active = found.architecture.active
    for name, block in ((n, m) for n, m in model.named_modules() if isinstance(m, RepBlock)):
        assert block.branch_set.searchable == active[name]
    searched = dict(zip(found.architecture.space.slots, found.gates.alpha, strict=True))
    inside = Supernet(model)
    for slot, value in zip(inside.space.slots, inside.gates().alpha, strict=True):
        assert value == pytest.approx(searched[slot])
    assert inside.gates().beta == pytest.approx(found.gates.beta)


def test_from_the_supernet_weights_go_on(found, tmp_path, randomise) -> None:
    supernet = randomise(create_model("irep_resnet18", width=2, blocks=(1,), in_channels=1)).eval()
    save(supernet, tmp_path / "supernet.pt")
    model = searched_network(found, open_data("digits"), str(tmp_path / "supernet.pt")).eval()
    x = torch.randn(3, 1, 8, 8)
    assert torch.equal(model(x), Supernet(supernet)(found.architecture, x))


def test_it_ends_with_a_checkpoint_its_fused_form_and_the_accuracy_of_both(found, tmp_path) -> None:
    folder, seen = begun(tmp_path), []
    retrain(folder, found, TINY, seen.append)
    result = folder.read_json(RESULT)
    assert result["measured_on"] == "test"
    assert result["images"] == 360
    assert abs(result["accuracy"] - result["fused_accuracy"]) <= 1 / 360
    multi, fused = load(folder.path / RETRAINED), load(folder.path / FUSED)
    assert multi.metrics["test_accuracy"] == pytest.approx(result["accuracy"])
    assert fused.fused
    assert not multi.fused
    x = torch.randn(2, 1, 8, 8)
    assert torch.allclose(multi.model(x), fused.model(x), rtol=1e-3, atol=1e-4)
    assert [record["epoch"] for record in seen] == [1, 2]
    assert seen[1]["loss"] < seen[0]["loss"]


@pytest.mark.slow
def test_an_interrupted_run_goes_on_to_the_same_end(found, tmp_path, monkeypatch) -> None:
    config = dataclasses.replace(TINY, ema=0.9)
    whole, broken = begun(tmp_path, "whole"), begun(tmp_path, "broken")
    retrain(whole, found, config)
    update = Trainer.update

    def stops(self, x, y, step):
        if step == 5:
            raise KeyboardInterrupt
        return update(self, x, y, step)

    monkeypatch.setattr(Trainer, "update", stops)
    with pytest.raises(KeyboardInterrupt):
        retrain(broken, found, config)
    monkeypatch.undo()
    torch.manual_seed(123)
    retrain(broken, found, config)
    for name in (RETRAINED, FUSED, RESULT):
        assert (whole.path / name).read_bytes() == (broken.path / name).read_bytes()
    strip = [{k: v for k, v in r.items() if not k.startswith("seconds")} for f in (whole, broken) for r in f.metrics()]
    assert strip[:2] == strip[2:]


@pytest.mark.slow
def test_drop_path_grows_and_drops_whole_branches_of_a_mini_batch(found) -> None:
    trainer = Trainer(found, dataclasses.replace(TINY, epochs=100))
    total = 100 * trainer.steps_an_epoch
    (x, y), *_ = trainer.batches(0, 0)
    sizes: list[int] = []
    supernet = trainer.supernet
    trainer.supernet = lambda architecture, images: (sizes.append(architecture.size), supernet(architecture, images))[1]
    trainer.supernet.space = supernet.space
    for step in (0, total - 1):
        for _ in range(40):
            trainer.update(x, y, step)
    slots = len(supernet.space.slots)
    assert sizes[:40] == [slots] * 40
    assert sum(sizes[40:]) / 40 / slots == pytest.approx(0.5, abs=0.07)


def test_an_average_of_weights_is_kept(found) -> None:
    trainer = Trainer(found, dataclasses.replace(TINY, ema=0.9, drop_path=0.0))
    (x, y), *_ = trainer.batches(0, 0)
    held = []
    for step in range(3):
        trainer.update(x, y, step)
        held.append(next(trainer.model.parameters()).detach().clone())
    average = held[0]
    for later in held[1:]:
        average = 0.9 * average + 0.1 * later
    assert torch.allclose(next(trainer.result().parameters()), average, atol=1e-6)


def test_an_architecture_without_branches_trains_too(found, tmp_path) -> None:
    space = found.architecture.space
    none = dataclasses.replace(found, architecture=Architecture(space, (False,) * len(space.slots)))
    retrain(begun(tmp_path), none, dataclasses.replace(TINY, epochs=1))


SETS = {
    "resnet18": {},
    "repvgg_resnet18": {"3x3", "1x1", "skip"},
    "acnet_resnet18": {"3x3", "1x3", "3x1"},
    "dbb_resnet18": {"3x3", "1x1", "1x1_3x3", "avg"},
    "irep_resnet18": set(BRANCHES),
}


@pytest.mark.parametrize("name", SETS)
def test_a_network_is_trained_by_its_name_with_its_own_branches(name, tmp_path) -> None:
    folder, seen = begun(tmp_path), []
    config = dataclasses.replace(TINY, network=name, width=2, blocks=(1,), epochs=1, drop_path=0.0)
    retrain(folder, None, config, seen.append)
    result = folder.read_json(RESULT)
    assert {kind for kinds in result["blocks"].values() for kind in kinds} == set(SETS[name])
    assert result["active_branches"] == (3 * 9 - 1 if name.startswith("irep") else 0)  # no skip in the stem
    assert result["search_validation_accuracy"] is None
    assert load(folder.path / RETRAINED).model.spec.name == name
    assert load(folder.path / FUSED).fused


def test_the_branches_of_a_named_network_may_be_chosen() -> None:
    config = dataclasses.replace(TINY, network="resnet18", width=2, blocks=(1,), fixed=("3x3",), branches=("1x3",))
    trainer = Trainer(None, config)
    assert set(trainer.blocks.values()) == {("3x3", "1x3")}
    assert trainer.notes == ()
    (note,) = Trainer(None, dataclasses.replace(config, branches=())).notes
    assert "nothing is dropped" in note


def test_accuracy_under_way_is_measured_and_changes_nothing(found, tmp_path) -> None:
    config = dataclasses.replace(TINY, epochs=3, ema=0.5)
    plain, measured = begun(tmp_path, "plain"), begun(tmp_path, "measured")
    retrain(plain, found, config)
    retrain(measured, found, dataclasses.replace(config, measure_epochs=1))
    lines = [record for record in measured.metrics() if record["kind"] == "accuracy"]
    assert [(r["epoch"], r["images"], r["measured_on"]) for r in lines] == [(n, 360, "test") for n in (1, 2, 3)]
    assert lines[-1]["accuracy"] == measured.read_json(RESULT)["accuracy"]
    assert [r["kind"] for r in measured.metrics()] == ["epoch", "accuracy"] * 3
    for name in (RETRAINED, FUSED):
        assert (plain.path / name).read_bytes() == (measured.path / name).read_bytes()


def test_gates_do_not_decay(found) -> None:
    trainer = Trainer(found, TINY)
    weights, gates = trainer.optimiser.param_groups
    assert (weights["weight_decay"], gates["weight_decay"]) == (3e-4, 0)
    assert len(gates["params"]) == found.architecture.size + 3


@pytest.mark.parametrize("seed", range(20))
def test_cutout_puts_a_square_to_zero(seed) -> None:
    torch.manual_seed(seed)
    image = torch.ones(2, 9, 12)
    cut = Cutout(4)(image)
    hole = (cut[0] == 0).nonzero()
    assert torch.equal(cut[0], cut[1])
    rows, columns = (hole[:, i].unique().numel() for i in (0, 1))
    assert rows * columns == len(hole)
    assert 2 <= rows <= 4
    assert 2 <= columns <= 4
    assert image.min() == 1


def test_the_papers_retraining_is_that_of_the_paper() -> None:
    config = retrain_preset("cifar10").config
    written = {"epochs": 600, "batch": 96, "learning_rate": 0.05, "weight_decay": 3e-4, "clip": 5, "cutout": 16,
               "drop_path": 0.08}  # fmt: skip
    assert {key: getattr(config, key) for key in written} == written
    assert retrain_preset("imagenet").config.epochs == 120
    names = {field.name for field in dataclasses.fields(RetrainConfig)}
    assert all(found.paper <= names for found in RETRAIN_PRESETS.values())
    with pytest.raises(SearchError, match=r"unknown preset 'cifar' \(did you mean 'cifar10'"):
        retrain_preset("cifar")


def test_a_preset_that_goes_on_from_a_supernet_needs_one() -> None:
    with pytest.raises(SearchError, match=r"preset imagenet goes on from the weights of a search: .* --set supernet="):
        complete("imagenet", ["data=imagefolder:there"])
    assert complete("imagenet", ["data=imagefolder:there", "supernet=s.pt"]).supernet == "s.pt"
    with pytest.raises(SearchError, match="preset imagenet needs images: give --data"):
        complete("imagenet", [])
    assert complete("smoke", []).data == "digits"
    assert complete("imagenet", ["data=imagefolder:there", "network=resnet50"]).network == "resnet50"


def test_what_makes_no_sense_is_refused(found, tmp_path) -> None:
    with pytest.raises(SearchError, match="drop_path is at least 0 and below 1"):
        RetrainConfig(drop_path=1.0)
    with pytest.raises(SearchError, match="loss is not finite"):
        retrain(begun(tmp_path), found, dataclasses.replace(TINY, learning_rate=1e30, clip=0.0))
    with pytest.raises(SearchError, match=r"network is described by blocks, branches"):
        searched_network(dataclasses.replace(found, network={}), open_data("digits"))
    with pytest.raises(OutputError, match="holds a run already"):
        begun(tmp_path)
    with pytest.raises(SearchError, match="width, blocks are of a network that is trained by its name"):
        Trainer(found, dataclasses.replace(TINY, width=2, blocks=(1,)))
    with pytest.raises(SearchError, match="nothing to train: expected an architecture"):
        Trainer(None, TINY)
    with pytest.raises(SearchError, match=r"supernet=s\.pt is what a found architecture goes on from"):
        Trainer(None, dataclasses.replace(TINY, network="resnet18", supernet="s.pt"))
