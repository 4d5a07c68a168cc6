"""Checkpoints rebuild their network from the file alone, or say in words why not."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from repconv import CheckpointError, OutputError, create_model, expand, fuse, load, save
from repconv.models.zoo import SETS
from repconv.sources.checkpoint import Normalization, digest

SUFFIXES = [".pt", ".safetensors"]
FORMS = {
    "multi-branch": lambda: create_model("irep_resnet18", width=4, blocks=(1, 2)).eval(),
    "fixed branches": lambda: create_model("dbb_vgg16", width=4, blocks=(1, 2)).eval(),
    "own branches": lambda: create_model("resnet50", width=4, blocks=(1, 1), fixed=(), branches=("1x1", "avg")).eval(),
    "plain": lambda: create_model("resnet34", width=4, blocks=(1, 1), stem="cifar", num_classes=7).eval(),
    "fused": lambda: fuse(create_model("irep_vgg16", width=4, blocks=(2,)).eval())[0],
    "expanded by hand": lambda: expand(create_model("resnet18", width=4, blocks=(1,)), branches=["3x1"]).eval(),
}


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("form", FORMS)
def test_a_network_comes_back_with_its_description(form, suffix, tmp_path, randomise):
    model = randomise(FORMS[form]())
    path = tmp_path / f"m{suffix}"
    described = {
        "class_names": ("cat", "dog"),
        "normalization": Normalization((0.5,), (0.25,)),
        "input_shape": (3, 32, 32),
        "metrics": {"top1": 0.5},
    }
    save(model, path, **described)
    back = load(path)
    x = torch.randn(2, 3, 17, 15)
    assert torch.equal(back.model(x), model(x))
    assert back.fused == (form == "fused")
    assert not any(m.training for m in back.model.modules())
    assert {key: getattr(back, key) for key in described} == described
    assert {n: p.requires_grad for n, p in back.model.named_parameters()} == {
        n: True for n, _ in model.named_parameters()
    }


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_loads_in_a_fresh_process(suffix, tmp_path, randomise):
    path = tmp_path / f"m{suffix}"
    model = randomise(FORMS["multi-branch"]())
    save(model, path)
    code = (
        f"import repconv, torch; print(float(repconv.load({str(path)!r}).model(torch.ones(1, 3, 8, 8)).detach().sum()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert float(done.stdout) == pytest.approx(float(model(torch.ones(1, 3, 8, 8)).detach().sum()), rel=1e-6)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_equal_models_give_equal_bytes_under_any_name(suffix, tmp_path):
    model = FORMS["multi-branch"]()
    for name in ("a", "b"):
        save(model, tmp_path / f"{name}{suffix}")
    assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_half_storage_comes_back_in_the_models_dtype(suffix, tmp_path, randomise):
    model = randomise(FORMS["multi-branch"]())
    save(model, tmp_path / f"full{suffix}")
    save(model, tmp_path / f"half{suffix}", storage_dtype=torch.float16)
    assert (tmp_path / f"half{suffix}").stat().st_size < 0.95 * (tmp_path / f"full{suffix}").stat().st_size
    back = load(tmp_path / f"half{suffix}").model
    for name, tensor in back.state_dict().items():
        wanted = model.state_dict()[name]
        assert tensor.dtype == wanted.dtype
        assert torch.equal(tensor, wanted.half().to(wanted.dtype) if wanted.is_floating_point() else wanted)


def test_every_set_of_branches_saves(tmp_path):
    for prefix in SETS:
        save(create_model(f"{prefix}_resnet18", width=4, blocks=(1,)).eval(), tmp_path / "m.pt")
        assert load(tmp_path / "m.pt").model.spec.name == f"{prefix}_resnet18"


def test_a_loaded_network_can_be_saved_and_fused_again(tmp_path):
    save(FORMS["multi-branch"](), tmp_path / "a.pt")
    save(load(tmp_path / "a.pt").model, tmp_path / "b.pt")
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()
    fused, _ = fuse(load(tmp_path / "b.pt").model)
    save(fused, tmp_path / "c.pt")
    assert load(tmp_path / "c.pt").fused


def _edited(path, **changes) -> None:
    """Change a file knowingly: its digest is made to fit."""
    content = {**torch.load(path, weights_only=True), **changes}
    state = content.pop("state")
    torch.save({**content, "digest": digest(content, state), "state": state}, path)


def _flipped(path, position: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(position * len(content))] ^= 0x10
    path.write_bytes(content)


def _poisoned(path, name: str, value: float) -> None:
    state = torch.load(path, weights_only=True)["state"]
    state[name].view(-1)[0] = value
    _edited(path, state=state)


REFUSALS = {
    "newer": (lambda p: _edited(p, version=99), r"format version 99.*upgrade repconv"),
    "version of words": (lambda p: _edited(p, version="x"), r"version is 'x', expected a whole number"),
    "other format": (lambda p: _edited(p, format="x"), r"not a repconv checkpoint"),
    "empty": (lambda p: p.write_bytes(b""), r"the file is empty"),
    "truncated": (lambda p: p.write_bytes(p.read_bytes()[:1000]), r"the file is damaged: .*cut short"),
    "bit flip in a weight": (lambda p: _flipped(p, 0.5), r"the file is damaged: .* fails its check sum"),
    "text": (lambda p: p.write_text("hello"), r"not a readable file of tensors"),
    "image": (lambda p: p.write_bytes(b"\xff\xd8\xff\xe0" + bytes(range(256))), r"not a readable file of tensors"),
    "bare state": (lambda p: torch.save({"w": torch.ones(1)}, p), r"not a repconv checkpoint"),
    "pickled module": (lambda p: torch.save(nn.ReLU(), p), r"never executed here.*torch.save\(model.state_dict\(\)"),
    "unknown model": (
        lambda p: _edited(p, model={"name": "irep_resnet19", "arguments": {}}),
        r"did you mean 'irep_resnet18'",
    ),
    "unknown branch": (
        lambda p: _edited(p, blocks={"stem": {"fixed": ["4x4"], "branches": []}}),
        r"unknown branch kind '4x4'",
    ),
    "no weights": (lambda p: _edited(p, state={}), r"missing \(.* and \d+ more\)"),
    "no description": (lambda p: _edited(p, blocks=None), r"the description of the model makes no sense"),
    "changed without its digest": (
        lambda p: torch.save({**torch.load(p, weights_only=True), "class_names": ["x"]}, p),
        r"do not match their digest",
    ),
    "NaN": (lambda p: _poisoned(p, "fc.weight", float("nan")), r"NaN or Inf in fc.weight"),
    "Inf": (lambda p: _poisoned(p, "fc.bias", float("inf")), r"NaN or Inf in fc.bias"),
    "negative variance": (
        lambda p: _poisoned(p, "stem.branches.3x3.bn.running_var", -1.0),
        r"negative running variance in stem.branches",
    ),
    "endless": (
        lambda p: _edited(p, model={"name": "vgg16", "arguments": {"blocks": [10**9], "num_classes": 2}}),
        r"blocks\[0\] is 1000000000, expected a whole number",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_bad_files_are_refused_in_words(name, tmp_path):
    spoil, words = REFUSALS[name]
    path = tmp_path / "m.pt"
    save(FORMS["multi-branch"](), path)
    spoil(path)
    with pytest.raises(CheckpointError, match=words):
        load(path)


@pytest.mark.parametrize("position", [0.001, 0.2, 0.9])
def test_a_flipped_bit_in_a_safetensors_file_is_found(position, tmp_path):
    path = tmp_path / "m.safetensors"
    save(FORMS["multi-branch"](), path)
    _flipped(path, position)
    with pytest.raises(CheckpointError):
        load(path)


def test_numbers_too_large_for_half_storage_are_refused(tmp_path):
    model = FORMS["plain"]()
    model.fc.weight.data[0, 0] = 1e6
    with pytest.raises(CheckpointError, match=r"fc.weight holds numbers too large to be stored as torch.float16"):
        save(model, tmp_path / "m.pt", storage_dtype=torch.float16)
    assert not list(tmp_path.iterdir())


def test_a_planted_payload_stays_unexecuted(tmp_path):
    class Payload:
        def __reduce__(self):
            return (exec, (f"open({str(tmp_path / 'owned')!r}, 'w')",))

    path = tmp_path / "m.pt"
    torch.save({"format": "repconv.checkpoint", "version": 1, "state": Payload()}, path)
    with pytest.raises(CheckpointError, match="never executed"):
        load(path)
    assert not (tmp_path / "owned").exists()


def test_missing_files_and_other_suffixes_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        load(tmp_path / "none.pt")
    (tmp_path / "d.pt").mkdir()
    with pytest.raises(CheckpointError, match="is a directory"):
        load(tmp_path / "d.pt")
    with pytest.raises(CheckpointError, match=r"or .safetensors, got '.exe'"):
        save(FORMS["plain"](), tmp_path / "m.exe")


def test_a_foreign_module_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"made neither by repconv\.create_model nor by name"):
        save(nn.Sequential(nn.Conv2d(3, 3, 3)), tmp_path / "m.pt")
    assert not list(tmp_path.iterdir())


def test_an_unwritable_output_leaves_what_was_there(tmp_path):
    target = tmp_path / "m.pt"
    target.mkdir()
    (target / "kept").write_text("x")
    with pytest.raises(OutputError, match="is a directory"):
        save(FORMS["plain"](), target)
    with pytest.raises(OutputError, match="nothing was written"):
        save(FORMS["plain"](), tmp_path / "none" / "m.pt")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["kept", "m.pt"]


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path):
    from repconv.files.whole import whole_file

    path = tmp_path / "m.pt"
    path.write_bytes(b"old")

    def interrupted() -> None:
        with whole_file(path) as stream:
            stream.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["m.pt"]
