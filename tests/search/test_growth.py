"""Training that grows and cuts branches: what it decides, that nothing changes by it, that it goes on where it was."""

from __future__ import annotations

import dataclasses
import json
import math
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from repconv import GeometryError, SearchError, load
from repconv.search.folder import RESULT, RunFolder
from repconv.search.retrain import FUSED, RETRAINED, retrain
from repconv.search.retrain_config import SCHEMA, RetrainConfig
from repconv.search.retraining.growth import KINDS, Change, Growth, kinds_to_grow, most_salient, weak
from repconv.search.retraining.trainer import Trainer
from repconv.search.settings import settings_to_dict

pytest.importorskip("torchvision", reason="torchvision is not installed")
pytest.importorskip("sklearn", reason="scikit-learn is not installed")

SCRIPT = Path(__file__).with_name("grow_together.py")
CONFIG = RetrainConfig(
    network="irep_resnet18", width=2, blocks=(1,), data="digits", train_images=128, epochs=8, batch=32, cutout=2,
    drop_path=0.0, ema=0.8, learning_rate=0.3, grow_epochs=2, grow_blocks=2, grow_until=0.9, cut_below=0.5,
    checkpoint_steps=3, measure_epochs=2, device="cpu",
)  # fmt: skip


def after(updates: int, **changes: object) -> Trainer:
    """A trainer that has done so many updates of its first epoch."""
    trainer = Trainer(None, dataclasses.replace(CONFIG, **changes))
    for step, (x, y) in zip(range(updates), trainer.batches(0, 0), strict=False):
        trainer.update(x, y, step)
    return trainer


def test_the_most_salient_blocks_that_lack_something_grow() -> None:
    lacking = {"a": ["1x1"], "b": [], "c": ["1x1", "avg"], "d": ["skip"]}
    saliency = {"a": 0.2, "b": 0.9, "c": 0.5, "d": 0.5}
    assert most_salient(saliency, lacking, 1) == {"c": ("1x1", "avg")}
    assert most_salient(saliency, lacking, 2) == {"c": ("1x1", "avg"), "d": ("skip",)}
    assert most_salient(saliency, lacking, 9).keys() == {"a", "c", "d"}


def test_small_branches_are_cut_where_they_are_apart() -> None:
    assert weak({"1x1": 0.3, "avg": 0.05, "skip": 0.02}, 0.1) == ("avg", "skip")
    assert weak({"1x1": 0.011, "avg": 0.01, "skip": 0.012}, 0.1) == (), "new ones are alike"
    assert weak({"1x1": 0.9, "avg": 0.3, "skip": 0.2}, 0.1) == (), "none is small"
    assert weak({"1x1": 0.09, "avg": 0.01}, 0.1) == ("avg",), "the larger half stays"
    assert weak({"1x1": 0.01}, 0.1) == ()
    assert weak({"1x1": 0.3, "avg": 0.05}, 0.0) == (), "0 cuts none"


def test_saliency_is_the_mean_of_weights_times_gradients() -> None:
    trainer = Trainer(None, CONFIG)
    growth, expected = trainer.growth, dict.fromkeys(trainer.blocks, 0.0)
    assert growth is not None
    signed = dict(expected)
    for step, (x, y) in enumerate(trainer.batches(0, 0)):
        weights = {name: trainer.model.get_submodule(name).branches["3x3"].conv.weight for name in expected}
        held = {name: weight.detach().clone() for name, weight in weights.items()}
        trainer.config = dataclasses.replace(trainer.config, clip=0.0)  # else .grad is clipped when it is read here
        trainer.update(x, y, step)
        for name, weight in weights.items():
            product = held[name] * weight.grad
            expected[name] += float(product.abs().sum()) / trainer.steps_an_epoch
            signed[name] += float(product.sum()) / trainer.steps_an_epoch
    assert growth.saliency() == pytest.approx(expected, rel=1e-5)
    # Without the absolute value there is nothing before a batch normalisation: it does not see the size of a filter.
    assert all(abs(signed[name]) < 1e-3 * expected[name] for name in expected)


@pytest.mark.parametrize(
    ("network", "branches", "kinds"),
    [
        ("resnet18", (), KINDS),
        ("repvgg_resnet18", (), ("1x1", "skip")),
        ("irep_vgg16", (), ("skip", "1x3", "3x1", "1x1", "1x1_3x3", "avg", "1x2_d2", "2x1_d2", "2x2_d2")),
        ("resnet18", ("3x3", "avg"), ("avg",)),
    ],
)
def test_a_network_grows_what_its_name_stands_for(network, branches, kinds) -> None:
    assert kinds_to_grow(network, branches) == kinds


@pytest.mark.parametrize("ema", [0.0, 0.8])
def test_an_adaptation_changes_neither_the_network_nor_its_average_nor_what_the_optimiser_knows(ema) -> None:
    trainer = after(4, ema=ema)
    models = [trainer.model, *([trainer.average.module] if ema else [])]
    (x, _), *_ = trainer.batches(0, 0)
    for change in (
        Change({"stem": ("1x1", "1x1_3x3", "avg"), "stages.0.0.conv1": ("skip", "2x2_d2")}, {}),
        Change({"stages.0.0.conv2": ("1x3",)}, {"stem": ("1x1_3x3",), "stages.0.0.conv1": ("skip", "2x2_d2")}),
    ):
        before = [model.eval()(x).detach() for model in models]
        momentum = {p: trainer.optimiser.state[p]["momentum_buffer"].clone() for p in trainer.optimiser.state}
        drawn = torch.get_rng_state()
        trainer.growth.change = lambda *_, change=change: change
        said = trainer.adapt(2)
        assert torch.equal(torch.get_rng_state(), drawn)
        assert (said["grown"], said["cut"]) == (change.grown, change.cut)
        for model, was in zip(models, before, strict=True):
            error = float((model.eval()(x) - was).detach().abs().max() / was.abs().max())
            assert 0 < error <= 1e-5
        held = trainer.optimiser.param_groups[0]["params"]
        assert list(map(id, held)) == list(map(id, trainer.model.parameters()))
        kept = {p: m for p, m in momentum.items() if any(p is now for now in held)}
        assert set(trainer.optimiser.state) == set(kept)
        assert all(torch.equal(trainer.optimiser.state[p]["momentum_buffer"], m) for p, m in kept.items())
        assert len(kept) == len(held) - sum(
            sum(1 for _ in trainer.model.get_submodule(f"{name}.branches.{kind}").parameters())
            for name, kinds in change.grown.items()
            for kind in kinds
        )
        assert trainer.growth.saliency() == dict.fromkeys(trainer.blocks, 0.0)
        trainer.model.train()
        for step, (x, y) in enumerate(trainer.batches(1, 0)):
            trainer.update(x, y, step)
    if ema:
        assert {n: p.shape for n, p in models[0].named_parameters()} == {
            n: p.shape for n, p in models[1].named_parameters()
        }


def test_structure_is_adapted_now_and_then_and_not_at_the_end() -> None:
    trainer = Trainer(None, dataclasses.replace(CONFIG, epochs=12, grow_epochs=2, grow_until=5 / 6))
    assert [epoch for epoch in range(1, 13) if trainer.adapts_after(epoch)] == [2, 4, 6, 8, 10]
    trainer.config = dataclasses.replace(trainer.config, grow_until=0.99, epochs=4)
    assert [epoch for epoch in range(1, 5) if trainer.adapts_after(epoch)] == [2]
    assert not Trainer(None, dataclasses.replace(CONFIG, grow_epochs=0)).adapts_after(2)


def test_it_grows_from_a_plain_network_to_a_checkpoint_and_its_fused_form(tmp_path) -> None:
    folder = RunFolder.create(tmp_path / "run", {}, {})
    retrain(folder, None, dataclasses.replace(CONFIG, epochs=3, grow_epochs=1, ema=0.0))
    lines = folder.metrics()
    first, second = (line for line in lines if line["kind"] == "growth")
    assert (first["epoch"], len(first["grown"]), first["cut"]) == (1, 2, {})
    assert set(first["grown"]) == set(sorted(first["saliency"], key=first["saliency"].get)[-2:])
    blocks = folder.read_json(RESULT)["blocks"]
    held = {name: {"3x3"} for name in blocks}
    for line in (first, second):
        for name, kinds in line["grown"].items():
            held[name] |= set(kinds)
        for name, kinds in line["cut"].items():
            held[name] -= set(kinds)
    assert {name: set(kinds) for name, kinds in blocks.items()} == held
    result = folder.read_json(RESULT)
    assert abs(result["accuracy"] - result["fused_accuracy"]) <= 1 / 360
    assert load(folder.path / FUSED).fused
    assert not load(folder.path / RETRAINED).fused


def test_what_cannot_grow_is_refused_in_words() -> None:
    with pytest.raises(SearchError, match="a network that grows starts from its 3x3 convolutions alone"):
        Trainer(None, dataclasses.replace(CONFIG, fixed=("3x3", "1x1")))
    with pytest.raises(GeometryError, match="unknown branch kind '1x2'"):
        Trainer(None, dataclasses.replace(CONFIG, branches=("1x2",)))
    with pytest.raises(SearchError, match="has no 3x3 convolution that could grow"):
        Growth(torch.nn.Linear(2, 2), KINDS)
    with pytest.raises(SearchError, match="grow_until is at least 0 and below 1"):
        RetrainConfig(grow_until=math.inf)
    with pytest.raises(SearchError, match="expected kinds that fit beside its 3x3, got none"):
        Trainer(None, dataclasses.replace(CONFIG, branches=("3x3",)))
    with pytest.raises(SearchError, match="1x1 comes twice"):
        Trainer(None, dataclasses.replace(CONFIG, branches=("1x1", "avg", "1x1")))
    (note,) = Trainer(None, dataclasses.replace(CONFIG, drop_path=0.1)).notes
    assert "nothing is dropped" in note


@pytest.mark.parametrize("changes", [{"grow_epochs": CONFIG.epochs}, {"grow_until": 0.0}])
def test_it_says_where_nothing_will_ever_grow(changes) -> None:
    assert Trainer(None, CONFIG).notes == ()
    (note,) = Trainer(None, dataclasses.replace(CONFIG, **changes)).notes
    assert "the plain network is trained" in note


def lines(folder: Path) -> list[dict[str, object]]:
    found = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in line.items() if not key.startswith("seconds")} for line in found]


@pytest.mark.slow
@pytest.mark.parametrize("fatal", [25, pytest.param(10, marks=pytest.mark.exhaustive)])
def test_a_growing_run_that_is_killed_ends_bit_identical(fatal: int, tmp_path) -> None:
    settings = tmp_path / "settings.json"
    settings.write_text(json.dumps(settings_to_dict(CONFIG, SCHEMA)))

    def go(name: str, fatal: int) -> int:
        return subprocess.run([sys.executable, SCRIPT, tmp_path / name, settings, str(fatal)], check=False).returncode

    assert go("whole", -1) == 0
    assert any(line["kind"] == "growth" and line["cut"] for line in lines(tmp_path / "whole")), "something is cut, too"
    assert go("killed", fatal) == -signal.SIGKILL
    assert go("killed", -1) == 0
    for file in (RETRAINED, FUSED, RESULT):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "killed" / file).read_bytes()
    assert lines(tmp_path / "whole") == lines(tmp_path / "killed")
