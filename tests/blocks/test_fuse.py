"""`fuse`: what comes out is the same function, single-path, an ordinary module, and the input is untouched."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from repconv import FusionError, RepBlock, create_model, fuse
from repconv.blocks.probing import probes
from repconv.blocks.proof import prove_blocks
from repconv.models.zoo import SETS


def small(name: str, randomise, **arguments) -> nn.Module:
    return randomise(create_model(name, width=4, **arguments)).eval()


NETWORKS = {
    "irep_resnet18": {"blocks": (1, 1)},
    "irep_resnet34": {"blocks": (1, 1), "num_classes": 3},
    "irep_resnet50": {"blocks": (1, 1), "num_classes": 3},
    "irep_vgg16": {"blocks": (1, 2)},
    "repvgg_vgg16": {"blocks": (1, 2)},
    "acnet_resnet18": {"blocks": (1, 1)},
    "dbb_resnet50": {"blocks": (1, 1), "num_classes": 3},
    "resnet18": {"blocks": (1, 1)},
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_every_network_fuses_to_its_plain_network_and_agrees(name, dtype, randomise):
    model = small(name, randomise, **NETWORKS[name]).to(dtype)
    fused, report = fuse(model)
    plain = create_model(name.rpartition("_")[2], width=4, **NETWORKS[name])
    convolutions = sum(isinstance(m, nn.Conv2d) for m in plain.modules())
    assert report.after.convolutions == convolutions == len(report.layers)
    assert report.after.batch_norms == 0
    assert not report.refusals
    agreement = prove_blocks(model, fused, probes((3, 16, 16), dtype=dtype)).agreement
    assert agreement.passed, agreement.verdict
    assert len(agreement.blocks) == convolutions


@pytest.mark.parametrize("prefix", SETS)
def test_fused_parameters_are_those_of_a_plain_network_with_biases(prefix):
    base = create_model("resnet18", width=4)
    fused, _ = fuse(create_model(f"{prefix}_resnet18", width=4).eval())
    norms = sum(m.num_features for m in base.modules() if isinstance(m, nn.BatchNorm2d))
    assert sum(p.numel() for p in fused.parameters()) == sum(p.numel() for p in base.parameters()) - norms


def test_the_input_is_not_changed(randomise):
    model = small("irep_resnet18", randomise, blocks=(1, 1))
    before = copy.deepcopy(model.state_dict())
    types = [type(m) for m in model.modules()]
    fuse(model)
    assert [type(m) for m in model.modules()] == types
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_the_result_shares_no_memory_with_the_input(randomise):
    model = small("irep_resnet18", randomise, blocks=(1, 1))
    fused, _ = fuse(model)
    owned = {t.untyped_storage().data_ptr() for t in model.state_dict().values()}
    assert not owned & {t.untyped_storage().data_ptr() for t in fused.state_dict().values()}


def test_repeated_runs_give_identical_bytes(randomise):
    model = small("irep_resnet18", randomise, blocks=(1, 1))
    contents = []
    for _ in range(2):
        buffer = io.BytesIO()
        torch.save(fuse(model)[0].state_dict(), buffer)
        contents.append(buffer.getvalue())
    assert contents[0] == contents[1]


def test_the_result_trains(randomise):
    fused, _ = fuse(small("irep_resnet18", randomise, blocks=(1, 1)))
    fused.train()
    fused(torch.randn(2, 3, 8, 8)).square().sum().backward()
    for name, parameter in fused.named_parameters():
        assert parameter.requires_grad, name
        assert parameter.grad is not None, name


def test_the_result_is_an_ordinary_module(randomise):
    fused, _ = fuse(small("irep_resnet18", randomise, blocks=(1, 1)))
    x = torch.randn(2, 3, 9, 7)
    wanted = fused(x)
    for form in (pickle.loads(pickle.dumps(fused)), copy.deepcopy(fused)):  # noqa: S301  # our own bytes
        assert torch.equal(form(x), wanted)


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning", "ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("name", ["irep_resnet18", "irep_vgg16", "irep_resnet50"])
def test_the_result_scripts(name, randomise):
    fused, _ = fuse(small(name, randomise, **NETWORKS[name]))
    x = torch.randn(2, 3, 33, 35)
    torch.testing.assert_close(torch.jit.script(fused)(x), fused(x))


@pytest.mark.slow
def test_the_result_compiles(randomise):
    fused, _ = fuse(small("irep_resnet18", randomise, blocks=(1, 1)))
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(torch.compile(fused, backend="aot_eager")(x), fused(x))


def test_memory_format_and_dtype_are_kept(randomise):
    model = small("irep_resnet18", randomise, blocks=(1, 1)).to(torch.bfloat16).to(memory_format=torch.channels_last)
    fused, _ = fuse(model)
    for module in fused.modules():
        if isinstance(module, nn.Conv2d):
            assert module.weight.dtype == torch.bfloat16
            assert module.weight.is_contiguous(memory_format=torch.channels_last)


def test_training_mode_is_refused_in_words():
    model = create_model("irep_resnet18", width=4, blocks=(1,))
    with pytest.raises(FusionError, match=r"training mode.*model.eval\(\)"):
        fuse(model)
    model.eval().get_submodule("stages.0.0.conv1").train()
    with pytest.raises(FusionError, match=r"at stages.0.0.conv1"):
        fuse(model)


def test_a_norm_without_running_statistics_is_refused_where_it_stands():
    model = create_model("irep_resnet18", width=4, blocks=(1,)).eval()
    block = model.get_submodule("stages.0.0.conv2")
    block.branches["1x1"].bn = nn.BatchNorm2d(4, track_running_stats=False).eval()
    with pytest.raises(FusionError, match=r"stages.0.0.conv2: .*track_running_stats=False"):
        fuse(model)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_broken_statistics_are_refused_where_they_stand(value):
    model = create_model("irep_resnet18", width=4, blocks=(1,)).eval()
    model.get_submodule("stages.0.0.conv2").branches["3x3"].bn.running_var[1] = value
    if value == float("inf"):
        fused, _ = fuse(model)  # an infinite variance is a zero scale: a finite, if useless, network
        assert all(torch.isfinite(p).all() for p in fused.parameters())
    else:
        with pytest.raises(FusionError, match=r"stages.0.0.conv2: .*NaN or Inf"):
            fuse(model)


def test_a_weight_too_large_for_half_precision_is_refused():
    block = RepBlock(2, 2).eval()
    block.branches["3x3"].bn.weight.data.fill_(6e4)
    block.branches["3x3"].conv.weight.data.fill_(3.0)
    with pytest.raises(FusionError, match="does not fit float16; fuse in float32"):
        fuse(block.half())


def test_a_forward_hook_is_kept_and_said(randomise):
    model = small("irep_resnet18", randomise, blocks=(1, 1))
    seen = []
    model.get_submodule("stages.0.0.conv1").register_forward_hook(lambda *_: seen.append(1))
    fused, report = fuse(model)
    assert [(r.where, "hook" in r.why) for r in report.refusals] == [("stages.0.0.conv1", True)]
    x = torch.randn(1, 3, 8, 8)
    seen.clear()  # the proof ran them, too
    torch.testing.assert_close(fused(x), model(x), rtol=1e-4, atol=1e-4)
    assert len(seen) == 2


def test_a_block_alone_is_a_model(randomise):
    block = randomise(RepBlock(3, 5, branches=("1x1", "avg"))).eval()
    fused, report = fuse(block)
    assert type(fused) is nn.Conv2d
    assert report.layers[0].branches == ("3x3", "1x1", "avg")
    x = torch.randn(1, 3, 4, 4)
    torch.testing.assert_close(fused(x), block(x))
