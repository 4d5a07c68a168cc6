"""The networks: their sizes, their names, and what `expand` keeps."""

from __future__ import annotations

import copy
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from typing import Any, Literal

import pytest
import torch
from torch import nn

from repconv import BRANCHES, GeometryError, RepBlock, create_model, expand, list_models
from repconv.blocks import branches
from repconv.blocks.branches import ConvBranch
from repconv.models import zoo
from repconv.models.zoo import BASES, SETS

TINY: dict[str, Any] = {"width": 4, "num_classes": 3}


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def blocks(model: nn.Module) -> dict[str, RepBlock]:
    return {name: module for name, module in model.named_modules() if isinstance(module, RepBlock)}


class TestSize:
    """Exact counts of the networks as published; the method's own figures, in millions, beside them."""

    @pytest.mark.parametrize(
        ("name", "arguments", "count", "millions"),
        [
            ("vgg16", {}, 14_728_266, 14.73),
            ("resnet18", {}, 11_173_962, 11.17),
            ("resnet18", {"stem": "imagenet", "num_classes": 1000}, 11_689_512, 11.69),
            ("resnet34", {}, 21_797_672, 21.80),
            ("resnet50", {}, 25_557_032, 25.56),
        ],
    )
    def test_plain_networks_have_their_published_size(
        self, name: str, arguments: dict[str, Any], count: int, millions: float
    ) -> None:
        with torch.device("meta"):
            assert parameters(create_model(name, **arguments)) == count
        assert round(count / 1e6, 2) == millions

    @pytest.mark.parametrize(
        ("name", "convolutions"), [("vgg16", 13), ("resnet18", 17), ("resnet34", 32), ("resnet50", 16)]
    )
    def test_a_block_stands_for_each_3x3(self, name: str, convolutions: int) -> None:
        assert len(blocks(create_model(f"irep_{name}", **TINY))) == convolutions

    def test_the_stem_for_small_images_is_a_block_too(self) -> None:
        small = blocks(create_model("irep_resnet18", stem="cifar", **TINY))
        large = blocks(create_model("irep_resnet18", stem="imagenet", **TINY))
        assert set(small) - set(large) == {"stem"}

    @pytest.mark.parametrize("name", ["vgg16", "resnet18", "resnet50"])
    def test_the_number_of_parameters_is_what_the_branches_say(self, name: str) -> None:
        """Every branch counted by hand, from the block's channels."""
        bias = name == "vgg16"

        def conv(i: int, o: int, taps: int) -> int:
            return i * o * taps + bias * o + 2 * o

        def count(kind: str, i: int, o: int) -> int:
            if kind == "skip":
                return 2 * i
            if kind == "1x1_3x3":
                return conv(i, i, 1) + conv(i, o, 9)
            if kind == "avg":
                return conv(i, o, 1) + 2 * o
            height, width = kind.split("_", 1)[0].split("x")
            return conv(i, o, int(height) * int(width))

        plain, multi = create_model(name, **TINY), create_model(f"irep_{name}", **TINY)
        extra = 0
        for block in blocks(multi).values():
            i, o = block.geometry.in_channels, block.geometry.out_channels
            extra += sum(count(kind, i, o) for kind in block.branches if kind != "3x3") + len(block.alpha) + 1
        assert parameters(multi) == parameters(plain) + extra


class TestNames:
    def test_a_new_kind_of_branch_changes_no_network_there_is(self, monkeypatch) -> None:
        monkeypatch.setattr(branches, "BRANCHES", {**BRANCHES, "5x5": BRANCHES["3x3"]})
        again = module_from_spec(spec_from_file_location("repconv.models.again", zoo.__file__))
        again.__spec__.loader.exec_module(again)
        assert again.SETS == SETS
        ten = {"3x3", "1x3", "3x1", "1x1", "1x1_3x3", "avg", "skip", "1x2_d2", "2x1_d2", "2x2_d2"}
        assert {*SETS["irep"].fixed, *SETS["irep"].searchable} == ten

    def test_names_are_a_base_or_a_set_and_a_base(self) -> None:
        assert list_models() == [*BASES, *(f"{prefix}_{base}" for prefix in SETS for base in BASES)]
        assert {
            "vgg16",
            "irep_resnet18",
            "irep_resnet50",
            "irep_vgg16",
            "repvgg_vgg16",
            "acnet_resnet18",
            "dbb_resnet50",
        } <= {*list_models()}

    @pytest.mark.parametrize("name", list_models())
    def test_every_listed_network_runs(self, name: str) -> None:
        model = create_model(name, **TINY)
        assert model.training
        image = torch.randn(2, 3, 33, 39)
        assert model.eval()(image).shape == (2, 3)
        kinds = {kind for block in blocks(model).values() for kind in block.branches}
        prefix = name.rpartition("_")[0]
        assert kinds == ({*SETS[prefix].fixed, *SETS[prefix].searchable} if prefix else set())

    @pytest.mark.parametrize("name", [n for n in list_models() if "_" in n])
    def test_only_the_searched_networks_have_gates(self, name: str) -> None:
        searched = name.startswith("irep_")
        for block in blocks(create_model(name, **TINY)).values():
            assert (block.beta is not None) is searched
            assert bool(block.alpha) is searched

    def test_the_paper_fixes_the_skip_of_a_vgg(self) -> None:
        first, second, *_ = blocks(create_model("irep_vgg16", **TINY)).values()
        assert second.branch_set.fixed == ("3x3", "skip")
        assert first.branch_set.fixed == ("3x3",), "the first block changes the number of channels"
        for block in blocks(create_model("irep_resnet18", **TINY)).values():
            assert block.branch_set.fixed == ("3x3",)

    @pytest.mark.parametrize(
        ("name", "near"), [("irep_resnet81", "irep_resnet18"), ("resnet-50", "resnet50"), ("IRep_VGG16", "irep_vgg16")]
    )
    def test_an_unknown_name_is_refused_with_the_nearest_one(self, name: str, near: str) -> None:
        with pytest.raises(
            GeometryError, match=f"unknown model '{name}' \\(did you mean '{near}'\\?\\); the names are"
        ):
            create_model(name)

    def test_an_unknown_branch_is_refused_with_the_nearest_one(self) -> None:
        with pytest.raises(GeometryError, match=r"unknown branch kind '1x1-3x3' \(did you mean '1x1_3x3'\?\)"):
            create_model("resnet18", branches=("1x1-3x3",), **TINY)


class TestArguments:
    @pytest.mark.parametrize("stem", ["cifar", "imagenet"])
    @pytest.mark.parametrize("counts", [(1,), (2, 1), (1, 1, 1, 1, 1)])
    @pytest.mark.parametrize("name", ["resnet18", "dbb_resnet50"])
    def test_any_stem_and_number_of_stages(
        self, name: str, counts: tuple[int, ...], stem: Literal["cifar", "imagenet"]
    ) -> None:
        model = create_model(name, stem=stem, blocks=counts, **TINY).eval()
        assert len(model.stages) == len(counts)
        assert [len(stage) for stage in model.stages] == list(counts)
        assert model(torch.randn(1, 3, 32, 32)).shape == (1, 3)

    @pytest.mark.parametrize("width", [1, 3, 24])
    @pytest.mark.parametrize("name", ["vgg16", "irep_resnet18", "resnet50"])
    def test_any_width(self, name: str, width: int) -> None:
        model = create_model(name, width=width, num_classes=7).eval()
        first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
        assert first.out_channels == width
        assert model(torch.randn(1, 3, 32, 32)).shape == (1, 7)

    def test_widths_double_by_stage(self) -> None:
        resnet = create_model("resnet18", width=5)
        assert [stage[-1].conv2.conv.out_channels for stage in resnet.stages] == [5, 10, 20, 40]
        vgg = [m.conv.out_channels for m in create_model("vgg16").modules() if isinstance(m, ConvBranch)]
        assert vgg == [64, 64, 128, 128, 256, 256, 256, *[512] * 6]

    @pytest.mark.parametrize("name", ["vgg16", "acnet_resnet18"])
    def test_any_number_of_image_channels(self, name: str) -> None:
        assert create_model(name, in_channels=1, **TINY).eval()(torch.randn(1, 1, 32, 32)).shape == (1, 3)

    @pytest.mark.parametrize(
        ("name", "arguments", "message"),
        [
            ("vgg16", {"stem": "cifar"}, "vgg16 has no argument stem; it has blocks, in_channels, num_classes, width"),
            ("resnet18", {"stem": "cifar10"}, "stem is 'imagenet' or 'cifar', got 'cifar10'"),
            ("resnet18", {"blocks": ()}, "blocks are whole numbers of at least 1, one a stage, got"),
            ("resnet18", {"blocks": (2, 0)}, "blocks are whole numbers of at least 1, one a stage, got"),
            ("vgg16", {"blocks": (0,)}, "blocks are whole numbers of at least 1, one a stage, got"),
            ("resnet18", {"blocks": 3}, "blocks are whole numbers of at least 1, one a stage, got 3"),
            ("vgg16", {"width": 0}, "vgg16: width is a whole number of at least 1, got 0"),
            ("resnet50", {"num_classes": 1.5}, "num_classes is a whole number of at least 1, got 1.5"),
            ("resnet18", {"branches": "1x1", "width": 4}, r"collection of names, such as \['1x1'\], got '1x1'"),
            ("resnet18", {"fixed": ("skip",), "width": 4}, r"stem: a block needs branches"),
            ("resnet18", {"branches": ("1x1", "1x1"), "width": 4}, "each at most once; got 3x3, 1x1, 1x1"),
        ],
    )
    def test_what_cannot_be_built_is_refused_in_words(self, name: str, arguments: dict[str, Any], message: str) -> None:
        with pytest.raises(GeometryError, match=message):
            create_model(name, **arguments)

    def test_branches_may_be_chosen(self) -> None:
        model = create_model("irep_resnet18", fixed=("3x3", "1x1"), branches=("avg",), **TINY)
        assert {block.branch_set for block in blocks(model).values()} == {(("3x3", "1x1"), ("avg",))}
        plain = create_model("resnet18", branches=("avg",), **TINY)
        assert {block.branch_set for block in blocks(plain).values()} == {(("3x3",), ("avg",))}


class TestExpand:
    @pytest.mark.parametrize("name", ["vgg16", "resnet18", "resnet50"])
    def test_the_input_is_unchanged_and_shares_nothing_with_the_copy(self, name: str) -> None:
        plain = create_model(name, **TINY)
        before = copy.deepcopy(plain.state_dict())
        multi = expand(plain, branches=("1x1", "skip"))
        for tensor in multi.state_dict().values():
            tensor.zero_()
        assert not blocks(plain)
        assert plain.state_dict().keys() == before.keys()
        assert all(torch.equal(plain.state_dict()[key], value) for key, value in before.items())

    @pytest.mark.parametrize("name", ["vgg16", "resnet18", "resnet50"])
    def test_the_3x3_branch_takes_over_what_it_replaces(
        self, name: str, randomise: Callable[[nn.Module], nn.Module]
    ) -> None:
        plain = randomise(create_model(name, **TINY))
        multi = expand(plain, branches=tuple(kind for kind in BRANCHES if kind != "3x3"))
        for path, block in blocks(multi).items():
            old, new = plain.get_submodule(path).state_dict(), block.branches["3x3"].state_dict()
            assert old.keys() == new.keys()
            assert all(torch.equal(old[key], new[key]) for key in old)
        # Whatever is no 3x3 convolution is carried over under its own name.
        inside = tuple(f"{path}." for path in blocks(multi))
        for key, value in multi.state_dict().items():
            if not key.startswith(inside):
                assert torch.equal(plain.state_dict()[key], value)

    def test_a_block_of_only_its_3x3_computes_the_same(self, randomise: Callable[[nn.Module], nn.Module]) -> None:
        plain = randomise(create_model("resnet18", **TINY)).eval()
        image = torch.randn(2, 3, 17, 19)
        assert torch.equal(expand(plain)(image), plain(image))

    def test_mode_and_dtype_are_kept(self) -> None:
        plain = create_model("resnet18", **TINY).double().eval()
        multi = expand(plain, branches=("1x1_3x3", "avg"))
        assert not any(module.training for module in multi.modules())
        assert {p.dtype for p in multi.parameters()} == {torch.float64}

    def test_channels_last_is_kept(self) -> None:
        plain = create_model("resnet18", **TINY).to(memory_format=torch.channels_last)
        for block in blocks(expand(plain, branches=("1x3", "1x1_3x3"))).values():
            for module in block.modules():
                if isinstance(module, nn.Conv2d):
                    assert module.weight.is_contiguous(memory_format=torch.channels_last)

    def test_skip_is_left_out_exactly_where_it_does_not_fit(self) -> None:
        for block in blocks(create_model("irep_resnet18", **TINY)).values():
            geometry = block.geometry
            fits = geometry.stride == (1, 1) and geometry.in_channels == geometry.out_channels
            assert ("skip" in block.branches) is fits
            assert len(block.branches) == (10 if fits else 9)

    def test_expanding_twice_finds_nothing_left(self) -> None:
        multi = create_model("repvgg_vgg16", **TINY)
        with pytest.raises(GeometryError, match="nothing to expand: VGG holds no ConvBranch"):
            expand(multi, branches=("1x1",))

    def test_a_model_without_our_convolutions_is_refused(self) -> None:
        with pytest.raises(GeometryError, match="nothing to expand: Conv2d holds no ConvBranch"):
            expand(nn.Conv2d(3, 3, 3, padding=1))

    def test_a_shared_convolution_stays_shared(self) -> None:
        conv = ConvBranch(4, 4, (3, 3))
        multi = expand(nn.Sequential(conv, nn.ReLU(), conv), branches=("1x1",))
        assert isinstance(multi[0], RepBlock)
        assert multi[0] is multi[2]

    def test_a_convolution_alone_becomes_a_block(self) -> None:
        block = expand(ConvBranch(4, 6, (3, 3), stride=(2, 1), groups=2), branches=("1x1", "skip"))
        assert isinstance(block, RepBlock)
        assert block.branch_set == (("3x3",), ("1x1",))
        assert (block.geometry.stride, block.geometry.groups) == ((2, 1), 2)

    @pytest.mark.parametrize(
        "conv",
        [
            ConvBranch(4, 4, (1, 1)),
            ConvBranch(4, 4, (5, 5)),
            ConvBranch(4, 4, (3, 3), padding=(0, 0)),
            ConvBranch(4, 4, (3, 3), dilation=(2, 2)),
            ConvBranch(4, 4, (2, 2), dilation=(2, 2)),
        ],
        ids=lambda conv: f"{conv.conv.kernel_size}-{conv.conv.padding}-{conv.conv.dilation}",
    )
    def test_other_convolutions_are_left_alone(self, conv: ConvBranch) -> None:
        multi = expand(nn.Sequential(conv, ConvBranch(4, 4, (3, 3))), branches=("1x1",))
        assert isinstance(multi[0], ConvBranch)
        assert isinstance(multi[1], RepBlock)

    def test_reflecting_convolutions_are_left_alone(self) -> None:
        reflecting = ConvBranch(4, 4, (3, 3))
        reflecting.conv.padding_mode = "reflect"
        multi = expand(nn.Sequential(reflecting, ConvBranch(4, 4, (3, 3))), branches=("1x1",))
        assert isinstance(multi[0], ConvBranch)
