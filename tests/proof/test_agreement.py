"""`compare` and `verify`: they pass rounding, and fail everything else."""

import json
import math
from collections import namedtuple
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from repconv import VerificationError, compare, create_model, fuse
from repconv.blocks.probing import count_flops, probes
from repconv.blocks.proof import prove_blocks
from repconv.proof.agreement import Agreement
from repconv.proof.comparing import difference


def test_errors_are_relative_to_scale_and_to_channels():
    wanted = torch.zeros(1, 2, 1, 4)
    wanted[0, 0, 0] = torch.tensor([10.0, -10.0, 10.0, -10.0])
    wanted[0, 1, 0] = torch.tensor([0.1, -0.1, 0.1, -0.1])
    got = wanted.clone()
    got[0, 1, 0, 0] += 0.05
    found = difference(wanted, got)
    assert found.max_absolute == pytest.approx(0.05)
    assert found.to_scale == pytest.approx(0.05 / math.sqrt(50.005))
    assert found.to_channel == pytest.approx(0.5)


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", [0, 1])
def test_nan_and_inf_fail(broken, side):
    outputs = [torch.ones(1, 2, 2, 2), torch.ones(1, 2, 2, 2)]
    outputs[side][0, 0, 0, 0] = broken
    x = torch.zeros(1)
    result = compare(lambda _: outputs[0], lambda _: outputs[1], x, original=lambda _: outputs[1])
    assert not result.passed
    with pytest.raises(VerificationError, match="NaN or Inf"):
        result.require("it")


def test_both_nan_is_no_agreement():
    both = torch.full((1, 2), math.nan)
    assert not compare(lambda _: both, lambda _: both, torch.zeros(1)).passed


def test_nothing_compared_is_no_agreement():
    assert not Agreement().passed


def test_shapes_must_match():
    with pytest.raises(ValueError, match="differ in shape"):
        difference(torch.zeros(1, 2), torch.zeros(1, 3))


def test_the_originals_own_error_widens_the_tolerance_and_is_the_reason():
    x = torch.ones(4)
    result = compare(lambda t: t, lambda t: t + 1.5e-4, x, original=lambda t: t + 1e-4)
    assert result.passed
    (found,) = result.end_to_end
    assert found.tolerance == pytest.approx(2e-4, rel=1e-3)
    assert "own error" in found.reason
    assert not compare(lambda t: t, lambda t: t + 3e-4, x, original=lambda t: t + 1e-4).passed
    assert not compare(lambda t: t, lambda t: t + 1.5e-4, x).passed


def test_a_mistake_in_one_tap_of_one_block_is_found_there(randomise):
    model = randomise(create_model("irep_resnet18", width=4, blocks=(1, 1))).eval()
    fused, _ = fuse(model)
    with torch.no_grad():
        fused.get_submodule("stages.1.0.conv1").weight[0, 0, 0, 0] += 1e-2
    agreement = prove_blocks(model, fused, probes((3, 16, 16))).agreement
    assert not agreement.passed
    assert [c.where for c in agreement.blocks if not c.passed] == ["stages.1.0.conv1"]
    assert "NOT equal" in agreement.verdict


def test_probes_cover_batches_and_odd_sizes():
    shapes = [tuple(x.shape) for x in probes((3, 32, 32))]
    assert {s[0] for s in shapes} == {1, 2}
    assert any(s[2] % 2 and s[3] % 2 for s in shapes)
    assert all(torch.equal(a, b) for a, b in zip(probes((3, 8, 8)), probes((3, 8, 8)), strict=True))


def test_flops_count_two_a_multiply_add():
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Flatten(), nn.Linear(8 * 16, 5))
    assert count_flops(net, (3, 4, 4)) == 2 * (8 * 3 * 9 * 16 + 8 * 16 * 5)


@dataclass
class Detections:
    boxes: torch.Tensor
    labels: torch.Tensor


Pair = namedtuple("Pair", "left right")  # as users have it

NESTED = {
    "tensor": (lambda x: x, [""]),
    "tuple": (lambda x: (x, x + 1), ["[0]", "[1]"]),
    "list in a dictionary": (lambda x: {"out": [x, {"boxes": x}], "aux": x}, ["out[0]", "out[1].boxes", "aux"]),
    "named tuple": (lambda x: Pair(x, (x,)), ["left", "right[0]"]),
    "dataclass": (lambda x: [Detections(x, x.sign().long())], ["[0].boxes", "[0].labels"]),
    "nothing and numbers": (lambda _: {"loss": None, "count": 3, "scale": 0.5}, ["count", "scale"]),
    "arrays": (lambda x: [x.numpy()], ["[0]"]),
}


@pytest.mark.parametrize("name", NESTED)
def test_every_tensor_of_an_output_is_compared_under_its_path(name):
    function, paths = NESTED[name]
    result = compare(function, function, torch.randn(2, 3))
    assert result.passed
    assert [c.path for c in result.end_to_end] == paths


def test_one_wrong_leaf_is_the_one_that_fails():
    def wrong(x):
        return {"out": {"boxes": x + 1e-3, "scores": x}}

    result = compare(lambda x: {"out": {"boxes": x, "scores": x}}, wrong, torch.randn(4), where="detector")
    assert [c.path for c in result.end_to_end if not c.passed] == ["out.boxes"]
    assert "NOT equal: 1 of 2 comparisons failed, the worst detector, out.boxes" in result.verdict


MISFITS = {
    "missing": (lambda x: {"a": x}, "b with an output that only the reference has"),
    "extra": (lambda x: {"a": x, "b": x, "c": x}, "c with an output that only the candidate has"),
    "shape": (lambda x: {"a": x, "b": x[:1]}, "b with the candidate's shape 1x3 instead of 2x3"),
    "type": (lambda x: {"a": x, "b": x.long()}, "b with the candidate's type int64 instead of float64"),
}


@pytest.mark.parametrize("name", MISFITS)
def test_outputs_that_do_not_match_fail_in_words(name):
    candidate, words = MISFITS[name]
    result = compare(lambda x: {"a": x, "b": x}, candidate, torch.randn(2, 3))
    assert not result.passed
    assert words in result.verdict
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False))["passed"] is False


def test_integers_must_be_equal_whatever_their_width():
    x = torch.arange(12.0).reshape(3, 4)
    assert compare(lambda t: t.argmax(1), lambda t: t.argmax(1).int(), x).passed
    wrong = compare(lambda t: t.long(), lambda t: t.long() + (t == 11), x)
    assert not wrong.passed
    assert "integers must be equal" in wrong.verdict
    assert not compare(lambda t: t > 3, lambda t: t > 4, x).passed


def test_no_detections_on_either_side_agree():
    assert compare(lambda x: x[:0], lambda x: x[:0], torch.randn(2, 4)).passed


INPUTS = {
    "tuple is positional": ((torch.ones(2), torch.tensor([3])), lambda x, n: x * n),
    "dictionary is named": ({"x": torch.ones(2), "n": torch.tensor([3])}, lambda *, n, x: x * n),
    "list is one argument": ([torch.ones(2), torch.tensor([3])], lambda xs: xs[0] * xs[1]),
}


@pytest.mark.parametrize("name", INPUTS)
def test_floating_inputs_become_float64_for_the_reference_and_others_stay(name):
    inputs, function = INPUTS[name]
    seen = []

    def noting(*args, **named):
        given = args[0] if args and isinstance(args[0], list) else args
        seen.append([t.dtype for t in (*given, *(named[k] for k in ("x", "n") if k in named))])
        return function(*args, **named)

    assert compare(noting, function, inputs).passed
    assert seen == [[torch.float64, torch.int64]]


def test_a_reference_of_one_dtype_is_given_the_inputs_as_they_are():
    def float32_only(x):
        if x.dtype != torch.float32:
            raise TypeError("expected float32")
        return np.asarray(x * 2)

    with pytest.raises(TypeError, match="expected float32") as raised:
        compare(float32_only, lambda x: x * 2, torch.ones(3))
    assert "reference_dtype=None" in raised.value.__notes__[0]
    result = compare(float32_only, lambda x: x * 2, torch.ones(3), reference_dtype=None)
    assert result.passed
    assert result.end_to_end[0].tolerance == 2e-5
    assert "the reference rounds, too" in result.end_to_end[0].reason


def test_what_cannot_be_compared_is_named():
    with pytest.raises(TypeError, match=r"out.name is a str; expected a tensor"):
        compare(lambda _: {"out": {"name": "cat"}}, lambda x: x, torch.ones(1))
    with pytest.raises(ValueError, match="no tolerance is known for float8_e5m2"):
        compare(lambda x: x, lambda x: x, torch.ones(2).to(torch.float8_e5m2))


def test_nothing_inside_an_output_is_no_agreement():
    assert not compare(lambda _: {}, lambda _: {}, torch.ones(1)).passed
