"""`expand` of any network: what follows a convolution is read from the data flow, and the function is kept."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, prune

from repconv import BRANCHES, GeometryError, RepBlock, compare, create_model, expand, expandable, fuse, load, save
from repconv.blocks.branches import ConvBranch
from repconv.blocks.proof import prove_blocks

SEARCHABLE = tuple(name for name in BRANCHES if name != "3x3")


def conv(i: int = 4, o: int = 4, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(i, o, 3, **{"padding": 1, "bias": False, **options})


def image(channels: int = 4, size: int = 8) -> Tensor:
    return torch.randn(4, channels, size, size)


def convolutions(model: nn.Module) -> int:
    return sum(isinstance(module, nn.Conv2d) for module in model.modules())


def settled(model: nn.Module, x: Tensor) -> nn.Module:
    """Numbers far from the initial ones, and the statistics of x: as after training."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        if norm.affine:
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, 0, 0.3)
        norm.momentum = None
    model.train()
    with torch.no_grad():
        model(x)
    for norm in norms:
        norm.momentum = 0.1
    return model.eval()


def off(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).detach().abs().max() / expected.detach().abs().max())


def train_a_little(model: nn.Module, x: Tensor, steps: int = 3) -> dict[str, Tensor]:
    """Gradients of the first step, by parameter; losses are finite and every block's weights move."""
    model.train()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    goal, gradients = None, {}
    for _ in range(steps):
        optimizer.zero_grad()
        y = model(x)
        goal = torch.randn_like(y) if goal is None else goal
        loss = (y - goal).square().mean()
        assert math.isfinite(float(loss.detach()))
        loss.backward()
        gradients = gradients or {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        optimizer.step()
    for name, block in blocks(model).items():
        for kind in block.branches:
            prefix = f"{name}.branches.{kind}." if name else f"branches.{kind}."
            after = {n: p for n, p in model.named_parameters() if n.startswith(prefix)}
            assert any(not torch.equal(p, before[n]) for n, p in after.items()), prefix
    return gradients


def blocks(model: nn.Module) -> dict[str, RepBlock]:
    return {name: module for name, module in model.named_modules() if isinstance(module, RepBlock)}


def check_whole_life(model: nn.Module, x: Tensor, expected_blocks: int, *, steps: int = 3, **options: Any) -> nn.Module:
    """Expanded it computes the same, it trains, and fused it is as large as it was and equal block by block."""
    model = settled(model, x)
    state = copy.deepcopy(model.state_dict())
    multi = expand(model, preserve=True, **options)
    assert len(blocks(multi)) == expected_blocks
    with torch.no_grad():
        assert off(multi(x), model(x)) < 2e-4
    gradients = train_a_little(multi, x, steps)
    for name, block in blocks(multi).items():
        for inner, parameter in block.named_parameters(prefix=name):
            assert parameter.requires_grad
            assert inner in gradients, inner
            assert bool(gradients[inner].any()), inner
    fused, report = fuse(multi.eval())
    assert convolutions(fused) == convolutions(model)
    assert all(refusal.why.startswith("not looked at: ") for refusal in report.refusals)
    agreement = prove_blocks(multi, fused, [x]).agreement
    assert len(agreement.blocks) == expected_blocks
    assert agreement.passed, agreement.verdict
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    return multi


# Whole networks


def test_torchvision_resnet18():
    models = pytest.importorskip("torchvision.models", reason="torchvision is optional")
    check_whole_life(models.resnet18(num_classes=10), image(3, 32), 16, branches=("1x1", "skip"), steps=2)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_torchvision_resnet18_with_all_branches_and_example_inputs():
    models = pytest.importorskip("torchvision.models", reason="torchvision is optional")
    x = image(3, 64)
    check_whole_life(models.resnet18(), x, 16, branches=SEARCHABLE, example_inputs=x)


TIMM = {
    "regnetx_002": 14,
    "mobilenetv3_small_050": 4,
    "dla34": 26,
    "selecsls42": 22,
    "cspresnet50": 16,
    "densenet121": 58,
    "res2net50_14w_8s": 112,
}
"""Networks of different authors, and how many 3x3 convolutions of theirs a block can stand for."""


LARGE = ("dla34", "selecsls42", "cspresnet50", "res2net50_14w_8s")


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.exhaustive) if n in LARGE else n for n in TIMM])
def test_timm(name: str):
    timm = pytest.importorskip("timm", reason="timm is optional")
    check_whole_life(
        timm.create_model(name, pretrained=False), image(3, 64), TIMM[name], branches=("1x1", "1x3", "skip")
    )


@pytest.mark.slow
def test_timm_code_that_only_export_follows():
    timm = pytest.importorskip("timm", reason="timm is optional")
    model = timm.create_model("vgg11_bn", pretrained=False, num_classes=10, mlp_ratio=0.01)
    targets, refusals = expandable(model)
    assert not targets
    assert sum("give example_inputs to let torch.export try" in r.why for r in refusals) == 8
    x = image(3, 64)
    check_whole_life(model, x, 8, branches=("1x1", "1x1_3x3"), example_inputs=x)


def test_timm_normalisation_with_activation_leaves_its_activation():
    layers = pytest.importorskip("timm.layers", reason="timm is optional")
    norm = layers.BatchNormAct2d(4, act_layer=nn.Hardswish, drop_layer=nn.Dropout2d)
    multi = check_whole_life(nn.Sequential(conv(), norm, nn.Conv2d(4, 2, 1)), image(), 1, branches=SEARCHABLE)
    assert isinstance(multi[1].drop, nn.Dropout2d)
    assert isinstance(multi[1].act, nn.Hardswish)
    assert not list(multi[1].parameters())
    assert type(multi[0].branches["3x3"].bn) is nn.BatchNorm2d


# Users' own code


class Functional(nn.Module):
    """A batch normalisation without its module's call, as many write it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = conv(), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        bn = self.bn
        y = functional.batch_norm(
            self.conv(x), bn.running_mean, bn.running_var, bn.weight, bn.bias, self.training, bn.momentum or 0.1, bn.eps
        )
        return functional.relu(y)


class OutOfOrder(nn.Module):
    """Names and their order say nothing of the data flow."""

    def __init__(self) -> None:
        super().__init__()
        self.bn1, self.conv2, self.bn2, self.conv1 = nn.BatchNorm2d(4), conv(), nn.BatchNorm2d(4), conv()
        self.alias = self.conv2

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        y = functional.relu(self.bn2(self.conv1(x)))
        y = self.conv2(y)
        n, c = y.shape[:2]
        y = self.bn1(y).reshape(n, c, y.size(2), -1)
        return y if mask is None else y * mask


class Branching(nn.Module):
    """torch.fx cannot follow an `if` on data; torch.export can, for one shape."""

    def __init__(self) -> None:
        super().__init__()
        self.order, self.shared = OutOfOrder(), nn.Sequential(conv(), nn.BatchNorm2d(4))
        self.functional = Functional()

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] > 1:
            x = self.functional(self.order(x))
        return self.shared(functional.relu(self.shared(x)))


class Auxiliary(nn.Module):
    """In training another head reads the convolution's output."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.head, self.other = conv(), nn.BatchNorm2d(4), conv(4, 4), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        z = self.other(self.head(self.bn(y)))
        return z + y.mean() if self.training else z


def test_functional_normalisation_stays_and_the_block_takes_the_convolution_alone():
    multi = check_whole_life(Functional(), image(), 1, branches=SEARCHABLE)
    assert isinstance(multi.bn, nn.BatchNorm2d)
    assert expandable(Functional())[0]["conv"].norm is None


def test_pairs_are_found_by_data_flow():
    model = OutOfOrder()
    targets, _ = expandable(model)
    assert {name: target.norm for name, target in targets.items()} == {"conv2": "bn1", "conv1": "bn2"}
    multi = check_whole_life(model, image(), 2, branches=SEARCHABLE)
    assert multi.alias is multi.conv2
    assert isinstance(multi.bn1, nn.Identity)


def test_export_finds_what_fx_cannot():
    model = Branching()
    targets, refusals = expandable(model, image())
    assert {name: target.norm for name, target in targets.items()} == {
        "order.conv2": "order.bn1",
        "order.conv1": "order.bn2",
        "functional.conv": None,
    }
    assert [(r.where, "called 2 times" in r.why) for r in refusals] == [("shared.0", True)]
    check_whole_life(model, image(), 3, branches=SEARCHABLE, example_inputs=image())


def test_both_modes_count():
    targets, refusals = expandable(Auxiliary())
    assert set(targets) == {"head"}
    assert [(r.where, r.why) for r in refusals] == [
        ("conv", "its output has a second user before the batch normalisation bn")
    ]


@pytest.mark.parametrize("examples", [False, True])
@pytest.mark.parametrize("options", [{}, {"groups": 2}, {"stride": 2}, {"bias": True}, {"padding": "same"}])
@pytest.mark.parametrize("affine", [True, False])
def test_geometries(options: dict[str, Any], affine: bool, examples: bool):
    model = nn.Sequential(conv(4, 8, **options), nn.BatchNorm2d(8, affine=affine), nn.ReLU(), nn.Conv2d(8, 2, 1))
    x = image()
    given = {"example_inputs": x} if examples else {}
    check_whole_life(model, x, 1, branches=SEARCHABLE[:4], fixed=("3x3", *SEARCHABLE[4:6]), **given)


def test_channels_with_scale_zero_can_be_trained_again():
    model = settled(nn.Sequential(conv(), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)), image())
    with torch.no_grad():
        model[1].weight[:3] = torch.tensor([0.0, -1.0, 1e-12])
    multi = expand(model, branches=SEARCHABLE, preserve=True)
    x = image()
    with torch.no_grad():
        assert off(multi(x), model(x)) < 1e-5
    own = multi[0].branches["3x3"]
    assert bool((own.bn.weight != 0).all())
    assert bool(own.bn.weight[1] < 0)
    gradients = train_a_little(multi, x)
    assert bool((gradients["0.branches.3x3.conv.weight"].flatten(1).abs().amax(1) > 0).all())


def test_only_the_3x3_is_kept_to_the_bit():
    model = settled(nn.Sequential(conv(bias=True), nn.BatchNorm2d(4, eps=1e-3), nn.ReLU()), image())
    x = image()
    for preserve in (False, True):
        multi = expand(model, preserve=preserve)
        assert isinstance(multi[1], nn.Identity)
        with torch.no_grad():
            assert torch.equal(multi(x), model(x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtype_mode_momentum_and_memory_format_are_kept(dtype: torch.dtype):
    model = nn.Sequential(conv(), nn.BatchNorm2d(4, momentum=0.01)).to(dtype, memory_format=torch.channels_last)
    model[1].eval()
    multi = expand(model, branches=SEARCHABLE, preserve=True)
    assert multi[0].training
    for module in multi[0].modules():
        if isinstance(module, nn.BatchNorm2d):
            assert not module.training
            assert module.momentum == 0.01
        if isinstance(module, nn.Conv2d):
            assert module.weight.is_contiguous(memory_format=torch.channels_last)
    assert {p.dtype for p in multi.parameters()} == {dtype}
    x = image().to(dtype)
    assert off(multi.eval()(x), model.eval()(x)) < (1e-10 if dtype == torch.float64 else 5e-2)


def test_statistics_of_new_branches_fit_their_inputs():
    """In training mode, on the images given, the network hardly changes either."""
    x = 3 + 2 * image()
    model = settled(nn.Sequential(conv(), nn.BatchNorm2d(4), nn.ReLU(), conv(), nn.BatchNorm2d(4)), x)
    multi = expand(model, branches=SEARCHABLE, preserve=True, example_inputs=x)
    with torch.no_grad():
        expected = model(x)
        assert off(multi(x), expected) < 1e-5
        assert off(multi.train()(x), expected) < 0.1


def test_kinds_without_a_gate_are_made_up_for():
    model = settled(nn.Sequential(conv(), nn.BatchNorm2d(4)), image())
    multi = expand(model, fixed=("3x3", *SEARCHABLE), preserve=True)
    x = image()
    with torch.no_grad():
        assert off(multi(x), model(x)) < 1e-5


def test_preserving_without_a_fixed_3x3_is_refused():
    with pytest.raises(GeometryError, match=r"needs '3x3' among the fixed branches.*got 1x1"):
        expand(nn.Sequential(conv()), fixed=("1x1",), branches=("3x3",), preserve=True)


# After fusing


@pytest.mark.parametrize("name", ["irep_resnet18", "repvgg_vgg16", "resnet18"])
def test_a_fused_network_trains_on_and_is_expanded_again(name: str, tmp_path):
    x = image(3, 16)
    model = settled(create_model(name, width=4, blocks=(1, 1), num_classes=3), x)
    fused, _ = fuse(model)
    save(fused, tmp_path / "fused.pt")
    assert load(tmp_path / "fused.pt").fused
    train_a_little(fused, x)
    with torch.no_grad():
        expected = fused.eval()(x)
    multi = expand(fused, branches=SEARCHABLE, preserve=True, example_inputs=x)
    with torch.no_grad():
        assert off(multi(x), expected) < 1e-4
    train_a_little(multi, x)
    again, _ = fuse(multi.eval())
    assert convolutions(again) == convolutions(fused)
    assert prove_blocks(multi, again, [x]).agreement.passed
    save(multi, tmp_path / "multi.pt")
    read = load(tmp_path / "multi.pt")
    assert not read.fused
    with torch.no_grad():
        assert torch.equal(read.model(x), multi(x))


def test_a_convolution_alone_is_kept_exactly_and_its_bias_too():
    model = nn.Sequential(conv(bias=True), nn.ReLU(), conv(bias=True))
    for options in ({}, {"branches": SEARCHABLE, "preserve": True}):
        multi = expand(model, **options).eval()
        x = image()
        assert off(multi(x), model(x)) < 1e-5


# Refusals


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.other = conv(), nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.other(self.conv(self.bn(self.conv(x))))


class SharedNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = conv(), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.bn(self.conv(x)))


class SecondUser(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = conv(), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.bn(y) + y


class ReadElsewhere(nn.Module):
    def __init__(self, what: str) -> None:
        super().__init__()
        self.conv, self.bn, self.what = conv(), nn.BatchNorm2d(4), what

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.conv(x))
        if self.what == "conv":
            return y + functional.conv2d(x, self.conv.weight, padding=1)
        return y * self.bn.weight[:, None, None]


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = conv()

    def forward(self, x: Tensor) -> Tensor:
        return x + 1


class OwnConv(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


class OwnNorm(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


def tied() -> nn.Module:
    model = nn.Sequential(conv(), nn.BatchNorm2d(4), conv(), nn.BatchNorm2d(4))
    model[2].weight = model[0].weight
    return model


def tied_norms() -> nn.Module:
    model = nn.Sequential(conv(), nn.BatchNorm2d(4), nn.BatchNorm2d(4))
    model[2].weight = model[1].weight
    return model


def hooked(where: str) -> nn.Module:
    model = nn.Sequential(nn.Sequential(conv()), nn.BatchNorm2d(4))
    model.get_submodule(where).register_forward_hook(lambda *_: None)
    return model


def followed(first: nn.Module, norm: nn.Module | None = None) -> nn.Module:
    return nn.Sequential(first, norm or nn.BatchNorm2d(4))


def patched() -> nn.Module:
    model = followed(conv())
    model[0].forward = torch.relu  # type: ignore[method-assign]
    return model


def branch(**options: Any) -> ConvBranch:
    made = ConvBranch(4, 4, (3, 3))
    made.conv = conv(**options)
    return made


REFUSED: dict[str, tuple[Callable[[], nn.Module], str, str]] = {
    "a shared convolution": (Twice, "conv", "it is called 2 times, so it is shared"),
    "a shared normalisation": (SharedNorm, "conv", "the batch normalisation bn after it is called 2 times"),
    "a second user": (SecondUser, "conv", "its output has a second user before the batch normalisation bn"),
    "a weight read elsewhere": (lambda: ReadElsewhere("conv"), "conv", "its weight is read by other code"),
    "a scale read elsewhere": (lambda: ReadElsewhere("bn"), "conv", "weights or statistics of bn after it are read"),
    "never called": (Unused, "conv", "it is never called"),
    "tied weights": (tied, "0", "its weight or bias is tied to another module's"),
    "tied scales": (tied_norms, "0", "its weights or statistics are tied to another module's"),
    "reflect padding": (lambda: followed(conv(padding_mode="reflect")), "0", "padding_mode='reflect', a block pads"),
    "circular padding": (lambda: branch(padding_mode="circular"), "", "padding_mode='circular'"),
    "dilation": (lambda: followed(conv(dilation=2)), "0", "dilation 2x2, a block stands for"),
    "no padding": (lambda: followed(conv(padding=0)), "0", "padding 0x0, not 1"),
    "valid padding": (lambda: followed(conv(padding="valid")), "0", "padding valid, not 1"),
    "another kernel": (lambda: followed(nn.Conv2d(4, 4, 5, padding=2)), "0", "a 5x5 kernel, a block stands for 3x3"),
    "weight norm": (lambda: followed(parametrizations.weight_norm(conv())), "0", "computed from other parameters"),
    "spectral norm": (lambda: followed(parametrizations.spectral_norm(conv())), "0", "computed from other"),
    "pruning": (lambda: followed(prune.l1_unstructured(conv(), "weight", 0.5)), "0", "computed from other parameters"),
    "a hook": (lambda: hooked("0.0"), "0.0", "a hook on it would be lost; remove it to expand"),
    "a hook on the normalisation": (lambda: hooked("1"), "0.0", "a hook on it would be lost; remove it to expand"),
    "a hook between": (lambda: hooked("0"), "0.0", "a hook on 0 would see another tensor; remove it to expand"),
    "another convolution class": (lambda: followed(OwnConv(4, 4, 3, padding=1)), "0", "a OwnConv may compute"),
    "another normalisation class": (lambda: followed(conv(), OwnNorm(4)), "0", "a OwnNorm may compute something else"),
    "another forward": (patched, "0", "a Conv2d may compute something else"),
    "no running statistics": (
        lambda: followed(conv(), nn.BatchNorm2d(4, track_running_stats=False)), "0", "it keeps no running statistics",
    ),
    "code that cannot be traced": (Branching, "functional.conv", "give example_inputs to let torch.export"),
    "the model itself": (conv, "", "it is the whole model; put it into an nn.Sequential"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_is_said_and_kept(case: str):
    make, where, words = REFUSED[case]
    model = make()
    targets, refusals = expandable(model)
    assert where not in targets
    (refusal,) = [r for r in refusals if r.where == where]
    assert words in refusal.why
    with pytest.raises(GeometryError, match=r"nothing to expand: .* holds no ConvBranch or Conv2d") as caught:
        expand(model, branches=("1x1",))
    if len(refusals) == 1:
        assert words in str(caught.value)


class NeedsExport(nn.Module):
    """`if` on a shape: torch.fx gives up."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) if x.shape[0] > 1 else x


FLOW = [case for case in list(REFUSED)[:6] if case != "never called"]


@pytest.mark.parametrize("case", [*FLOW, "pairs", "functional", "both modes"])
def test_both_ways_of_tracing_say_the_same(case: str):
    known = {"pairs": OutOfOrder, "functional": Functional, "both modes": Auxiliary}
    model = known[case] if case in known else REFUSED[case][0]
    by_fx, refused = expandable(model())
    by_export, also = expandable(NeedsExport(model()), image())
    assert {f"inner.{name}": target.geometry for name, target in by_fx.items()} == {
        name: target.geometry for name, target in by_export.items()
    }
    assert [target.norm and f"inner.{target.norm}" for target in by_fx.values()] == [t.norm for t in by_export.values()]
    assert [(f"inner.{r.where}", r.why.replace("bn", "inner.bn")) for r in refused] == [(r.where, r.why) for r in also]


def test_what_is_refused_stays_beside_what_is_not():
    model = settled(nn.Sequential(SecondUser(), conv(padding_mode="reflect"), nn.BatchNorm2d(4), conv()), image())
    multi = expand(model, branches=SEARCHABLE, preserve=True)
    assert list(blocks(multi)) == ["3"]
    assert isinstance(multi[2], nn.BatchNorm2d)
    x = image()
    assert off(multi(x), model(x)) < 1e-5


def test_what_neither_way_of_tracing_follows_is_said():
    class Numbers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = conv(), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.bn(self.conv(x)) if float(x.sum()) > 0 else x

    _, (refusal,) = expandable(Numbers(), image())
    assert refusal.why.startswith("in evaluation mode torch.fx cannot follow the code (")
    assert "nor can torch.export (" in refusal.why


def test_what_cannot_be_copied_is_said():
    class Lock(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn, self.state = conv(), nn.BatchNorm2d(4), torch.ones(2, requires_grad=True) * 2

        def forward(self, x: Tensor) -> Tensor:
            return self.bn(self.conv(x))

    _, (refusal,) = expandable(Lock())
    assert "Lock cannot be copied (RuntimeError" in refusal.why


class Detector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(conv(), nn.BatchNorm2d(4), nn.ReLU())

    def forward(self, x: Tensor, targets: Tensor | None = None) -> Tensor:
        y = self.backbone(x)
        if not self.training:
            return y
        if targets is None:
            raise ValueError("targets should not be none when in training mode")
        return (y - targets).square().mean()


def test_a_network_whose_training_needs_targets_is_told_so_and_its_backbone_expands() -> None:
    model = Detector().eval()
    _, (refusal,) = expandable(model, image())
    assert "targets should not be none when in training mode" in refusal.why
    assert "expand the part of it that takes images alone, such as its backbone" in refusal.why
    assert "torch.fx" not in refusal.why
    assert expandable(model.backbone, image())[0]


def test_no_digits_are_lost_to_branches_that_are_made_up_for() -> None:
    """A depthwise branch whose output hardly varies on the example: its norm would make its kernel the larger."""
    torch.manual_seed(1)
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, padding=1), nn.ReLU()]
    for _ in range(8):
        layers += [nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    model = nn.Sequential(*layers).eval()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for values in (norm.running_mean, norm.weight.data, norm.bias.data):
                values.normal_()
            norm.running_var.uniform_(0.05, 3)
    x = torch.randn(1, 3, 16, 16)
    found = expand(model, preserve=True, fixed=["3x3"], branches=SEARCHABLE, example_inputs=x).eval()
    (comparison,) = compare(model, found, x, original=model).comparisons
    assert comparison.error.to_scale < 1.5e-6
