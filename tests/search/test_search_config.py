"""Settings: checked, named, and the paper's told from ours."""

from __future__ import annotations

import dataclasses
import json

import pytest

from repconv import SearchError
from repconv.search.config import FORMER, SCHEMA, SearchConfig, config_from_dict
from repconv.search.presets import PRESETS, preset
from repconv.search.settings import changed, settings_from_dict, settings_to_dict


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_survives_json(name: str) -> None:
    config = preset(name).config
    assert settings_from_dict(SearchConfig, SCHEMA, json.loads(json.dumps(settings_to_dict(config, SCHEMA)))) == config


def test_the_papers_settings_are_those_of_the_paper() -> None:
    resnet, imagenet = preset("cifar10-resnet18").config, preset("imagenet-resnet50").config
    written = {
        "ratio": 2 / 3, "population": 128, "architectures": 5, "generation_epochs": 10, "epochs": 500,
        "learning_rate": 0.1, "gate_learning_rate": 0.03, "gate_beta_1": 0.5, "gate_beta_2": 0.999, "crossover": 0.5,
        "mutation": 0.5, "age_scale": 0.05, "age_limit": 10, "age_offset": 0.01,
    }  # fmt: skip
    assert {key: getattr(resnet, key) for key in written} == written
    assert preset("cifar10-vgg16").config == dataclasses.replace(resnet, network="irep_vgg16")
    changed = {"ratio": 1 / 2, "architectures": 1, "batch": 256, "warmup_epochs": 5, "epochs": 100,
               "gate_learning_rate": 1e-4, "age_limit": 5}  # fmt: skip
    assert {key: getattr(imagenet, key) for key in changed} == changed
    assert "2x2_d2" not in imagenet.branches
    assert len(imagenet.branches) == 8
    for name in ("cifar10-resnet18", "imagenet-resnet50"):
        assert preset(name).origin("age_scale") == "paper"
        assert preset(name).origin("momentum") == "ours"
    names = {field.name for field in dataclasses.fields(SearchConfig)}
    assert all(found.paper <= names for found in PRESETS.values())


def test_settings_are_read_in_their_types() -> None:
    config = changed(
        SearchConfig(),
        [
            "ratio=1/2",
            "blocks=1,2",
            "branches=1x1, avg",
            "age=no",
            "epochs=60",
            "clip=5",
            "weighting=uniform",
            "data=digits",
        ],
    )
    assert (config.ratio, config.blocks, config.branches, config.age) == (0.5, (1, 2), ("1x1", "avg"), False)
    assert (config.epochs, config.clip, config.weighting, config.data) == (60, 5.0, "uniform", "digits")


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("populaton=3", r"unknown setting 'populaton' \(did you mean 'population'\?\)"),
        ("population", "a setting is key=value, got 'population'"),
        ("population=many", "population is a whole number, got 'many'"),
        ("population=0", "population is at least 1, got 0"),
        ("ratio=x/2", "ratio is a number, got 'x'"),
        ("ratio=1/0", "ratio is above 0 and at most 1, got nan"),
        ("ratio=1.5", "ratio is above 0"),
        ("age=maybe", "age is true or false, got 'maybe'"),
        ("weighting=softmx", "weighting is one of softmax, uniform, literal"),
        ("strategy=desk", r"unknown strategy 'desk' \(did you mean 'des'"),
        ("epochs=50", "epochs count the warm-up"),
        ("age_limit=1", "age limit a is above 1"),
        ("age_offset=0.5", "mu is above 0"),
        ("momentum=1", "momentum is at least 0 and below 1"),
        ("mutation=-1", "mutation is a chance"),
        ("learning_rate=nan", "learning_rate is at least 0, got nan"),
    ],
)
def test_settings_that_make_no_sense(setting: str, says: str) -> None:
    with pytest.raises(SearchError, match=says):
        changed(SearchConfig(), [setting])


def test_files_that_are_no_configuration() -> None:
    good = settings_to_dict(SearchConfig(), SCHEMA)
    with pytest.raises(SearchError, match=r"x.json is not of schema"):
        settings_from_dict(SearchConfig, SCHEMA, {}, "x.json")
    with pytest.raises(SearchError, match=r"x.json: unknown setting 'epoch' \(did you mean 'epochs'"):
        settings_from_dict(SearchConfig, SCHEMA, {**good, "epoch": 3}, "x.json")
    with pytest.raises(SearchError, match=r"x.json: batch is at least 2, got 1"):
        settings_from_dict(SearchConfig, SCHEMA, {**good, "batch": 1}, "x.json")


def test_a_configuration_of_before_means_what_it_did() -> None:
    since = ("offspring", "disturbance", "age_unit", "evaluation_batch", "evaluation_dtype", "reestimation_images")
    now = settings_to_dict(SearchConfig(), SCHEMA)
    former = {name: value for name, value in now.items() if name not in since} | {"schema": FORMER}
    config = config_from_dict(former)
    assert (config.age_unit, config.disturbance, config.offspring) == ("accuracy", "range", 1.0)
    assert (config.evaluation_batch, config.reestimation_images) == (512, 0)


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(SearchError, match=r"unknown preset 'smok' \(did you mean 'smoke'"):
        preset("smok")


def test_generations_cover_every_epoch_after_the_warm_up() -> None:
    assert SearchConfig().generations == 45
    assert SearchConfig(epochs=10, warmup_epochs=1, generation_epochs=4).generations == 3
