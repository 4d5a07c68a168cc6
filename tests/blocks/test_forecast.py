"""`forecast`: what fp16 and int8 will make of a fused network."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

from repconv import FusionError, RepBlock, create_model, forecast, fuse
from repconv.blocks.forecast import FP16_MAX, weigh


def batch() -> torch.Tensor:
    return torch.randn(2, 3, 16, 16)


@pytest.fixture
def model(randomise) -> nn.Module:
    return randomise(create_model("irep_resnet18", width=4, blocks=(1, 1))).eval()


class TestWeights:
    def test_one_scale_a_channel_is_never_worse_than_one_for_all(self):
        weight = torch.randn(8, 4, 3, 3) * torch.logspace(-3, 0, 8)[:, None, None, None]
        found = weigh(weight)
        assert found.peak == float(weight.abs().max())
        assert 0 < found.int8_per_channel < found.int8_per_tensor < 1
        # Uniform steps of peak / 127 have an error of step / sqrt(12).
        rms = float(weight[-1].square().mean().sqrt())
        last = weigh(weight[-1:])
        assert last.int8_per_tensor == last.int8_per_channel
        assert last.int8_per_tensor == pytest.approx(last.peak / 127 / math.sqrt(12) / rms, rel=0.3)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
    def test_numbers_int8_holds_have_no_error(self, dtype):
        weight = torch.arange(-127, 125, dtype=torch.float64).reshape(4, 7, 3, 3).to(dtype)
        assert weigh(weight).int8_per_tensor < 1e-12

    def test_zero_weights_cost_nothing(self):
        found = weigh(torch.zeros(2, 2, 3, 3))
        assert (found.peak, found.int8_per_tensor, found.int8_per_channel) == (0, 0, 0)


class TestLayers:
    def test_every_folded_layer_is_told(self, model):
        fused, report = fuse(model)
        told = forecast(model, fused, report, [batch()])
        assert [layer.name for layer in told.layers] == [layer.name for layer in report.layers]
        for layer, done in zip(told.layers, report.layers, strict=True):
            assert (layer.own is not None) == bool(done.branches)
            assert layer.fused.peak == float(fused.get_submodule(layer.name).weight.detach().abs().max())
            assert (layer.range_growth is not None) == bool(done.branches)
        assert not told.unseen
        assert told.verdict.startswith("fp16 holds all: activations reach")
        assert "with one scale a tensor" in told.verdict

    def test_growth_is_against_the_3x3_alone(self):
        block = RepBlock(4, 4, fixed=("3x3", "skip")).eval()
        with torch.no_grad():
            block.branches["3x3"].conv.weight.fill_(0.5)
            block.branches["skip"].bn.weight.fill_(9.5)
        fused, report = fuse(block)
        (layer,) = forecast(block, fused, report, [torch.randn(1, 4, 5, 5)]).layers
        assert layer.own is not None
        assert layer.range_growth == pytest.approx(20, rel=1e-4)
        # 0.5 beside 10: a step is 10 / 127.
        assert layer.fused.int8_per_tensor > 4 * layer.own.int8_per_tensor

    def test_the_gate_of_a_searchable_3x3_counts(self):
        block = RepBlock(4, 4, fixed=("1x1",), branches=("3x3",)).eval()
        fused, report = fuse(block)
        (layer,) = forecast(block, fused, report, [torch.randn(1, 4, 5, 5)]).layers
        scale = 1 / math.sqrt(1 + 1e-5)
        assert layer.own is not None
        assert layer.own.peak == pytest.approx(
            float(block.branches["3x3"].conv.weight.detach().abs().max()) / 4 * scale
        )

    def test_a_block_without_a_3x3_has_nothing_to_compare_with(self):
        block = RepBlock(4, 4, fixed=("1x1",)).eval()
        (layer,) = forecast(block, *fuse(block), [torch.randn(1, 4, 5, 5)]).layers
        assert layer.own is None
        assert layer.range_growth is None


class TestHalfPrecision:
    @pytest.mark.parametrize("what", ["weight", "bias", "input", "output"])
    def test_what_does_not_fit_is_named(self, what):
        block = RepBlock(2, 2).eval()
        x = torch.ones(1, 2, 4, 4)
        with torch.no_grad():
            conv, norm = block.branches["3x3"].conv, block.branches["3x3"].bn
            conv.weight.fill_(0.1)
            if what == "weight":
                conv.weight.fill_(7e4)
                x *= 1e-3
            elif what == "bias":
                norm.bias.fill_(7e4)
                conv.weight.zero_()
            elif what == "input":
                conv.weight.fill_(1e-3)
                x *= 7e4
            else:
                x *= 6e4
        told = forecast(block, *fuse(block), [x])
        assert told.fp16_overflows == told.layers
        assert f"{what} of" in (told.layers[0].fp16_overflow or "")
        assert "fp16 overflows at the model" in told.verdict

    def test_the_largest_of_all_inputs_counts(self):
        block = RepBlock(2, 2).eval()
        small, large = torch.ones(1, 2, 4, 4), torch.full((1, 2, 4, 4), 3.0)
        for inputs in ([small, large], [large, small]):
            assert forecast(block, *fuse(block), inputs).layers[0].input_peak == 3

    def test_nan_activations_are_no_all_clear(self):
        block = RepBlock(2, 2).eval()
        x = torch.ones(1, 2, 4, 4)
        x[0, 0, 0, 0] = math.nan
        told = forecast(block, *fuse(block), [x, torch.ones(1, 2, 4, 4)])
        assert "an input of nan" in told.verdict
        assert json.loads(json.dumps(told.to_dict(), allow_nan=False))["layers"][0]["input_peak"] is None

    def test_the_bound_is_that_of_the_dtype(self):
        assert torch.finfo(torch.float16).max == FP16_MAX


def test_layers_the_inputs_never_reach_are_said():
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = RepBlock(3, 3), RepBlock(3, 3)

        def forward(self, x):
            return self.used(x)

    net = Half().eval()
    told = forecast(net, *fuse(net), [batch()])
    assert told.unseen == ("unused",)
    assert "layers the inputs never reached: 1" in told.verdict


def test_it_is_plain_json(model):
    told = forecast(model, *fuse(model), [batch()])
    read = json.loads(json.dumps(told.to_dict(), allow_nan=False))
    assert read["verdict"] == told.verdict
    assert read["layers"][0]["fused"]["peak"] == told.layers[0].fused.peak


def test_nothing_folded_is_nothing_to_forecast():
    net = nn.Sequential(nn.Conv2d(3, 3, 3)).eval()
    with pytest.warns(UserWarning, match="nothing was fused"):
        result = fuse(net)
    assert forecast(net, *result, [batch()]).verdict == "nothing was folded, so there is nothing to forecast"


def test_networks_that_do_not_belong_together_are_refused(model):
    fused, report = fuse(model)
    with pytest.raises(FusionError, match="not the folded convolution the report names"):
        forecast(model, model, report, [batch()])
    with pytest.raises(FusionError, match="the network has no stem, which the report names"):
        forecast(nn.Sequential(), fused, report, [batch()])


def test_neither_network_is_changed(model):
    fused, report = fuse(model)
    before = {name: tensor.clone() for name, tensor in (*model.state_dict().items(), *fused.state_dict().items())}
    forecast(model, fused, report, [batch()])
    after = dict((*model.state_dict().items(), *fused.state_dict().items()))
    assert all(torch.equal(before[name], after[name]) for name in after)
    assert not any(module._forward_hooks for module in fused.modules())
