"""Search spaces of any network, architectures over them, JSON by names, pictures."""

from __future__ import annotations

import json
import random
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from repconv import RepBlock, SearchError, create_model, expand
from repconv.search.reports.picture import heat_map, svg, terminal
from repconv.search.supernet.architecture import SCHEMA, Architecture, architecture_from_dict, read_json
from repconv.search.supernet.space import SearchSpace, Slot, SpaceBlock

SMALL = SearchSpace(
    (SpaceBlock("stem", ("3x3",), ("1x1", "avg")), SpaceBlock("a.conv", ("3x3", "skip"), ("1x3", "3x1", "1x1_3x3")))
)
masks = st.tuples(*[st.booleans()] * len(SMALL.slots))


def test_the_slots_of_our_own_networks_are_the_searchable_branches_of_every_block() -> None:
    with torch.device("meta"):
        model = create_model("irep_resnet18", width=4)
    space = SearchSpace.of(model)
    blocks = {n: m for n, m in model.named_modules() if isinstance(m, RepBlock)}
    assert [b.name for b in space.blocks] == list(blocks)
    assert space.slots == tuple(Slot(n, kind) for n, m in blocks.items() for kind in m.branch_set.searchable)
    assert [space.blocks[i].name for i in space.owners] == [slot.block for slot in space.slots]
    # 17 blocks of nine searchable kinds; the stem and the three blocks that change the shape have no skip.
    assert len(space.slots) == 17 * 9 - 4
    assert space.kinds[0] == "3x3"
    assert hash(space) == hash(SearchSpace.of(model))


def test_the_space_of_anybodys_network_with_blocks() -> None:
    block = RepBlock(3, 3, branches=["1x1"])
    shared = nn.Sequential(block, nn.ReLU(), block, RepBlock(3, 4, fixed=["3x3", "1x1"]))
    space = SearchSpace.of(shared)
    assert [(b.name, b.searchable) for b in space.blocks] == [("0", ("1x1",)), ("3", ())]
    plain = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
    assert SearchSpace.of(expand(plain, branches=["1x1", "avg"])).slots == (Slot("0", "1x1"), Slot("0", "avg"))
    assert SearchSpace.of(RepBlock(3, 3, branches=["1x1"])).slots == (Slot("", "1x1"),)


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (nn.Sequential(nn.Conv2d(3, 3, 3)), "Sequential holds no blocks to search; make .* repconv.expand"),
        (nn.Sequential(RepBlock(3, 3)), "nothing to search: no block has searchable branches"),
        (nn.Sequential(RepBlock(3, 3, fixed=[], branches=["1x1"])), "0 has no fixed branch"),
    ],
)
def test_networks_that_cannot_be_searched(model: nn.Module, says: str) -> None:
    with pytest.raises(SearchError, match=says):
        SearchSpace.of(model)


@pytest.mark.parametrize(("ratio", "budget"), [(2 / 3, 3), (1 / 2, 2), (1, 5), (0.7, 4), (0.11, 1)])
def test_the_budget_is_the_rounded_share_of_all_slots(ratio: float, budget: int) -> None:
    assert SMALL.budget(ratio) == budget


@pytest.mark.parametrize("ratio", [0, -1, 1.01, float("nan"), 0.05])
def test_budgets_that_make_no_sense(ratio: float) -> None:
    with pytest.raises(SearchError, match="ratio"):
        SMALL.budget(ratio)


@given(masks)
def test_an_architecture_survives_json_and_any_order_of_names(mask: tuple[bool, ...]) -> None:
    architecture = Architecture(SMALL, mask)
    content = json.loads(json.dumps(architecture.to_dict()))
    assert architecture_from_dict(content) == architecture
    assert hash(architecture_from_dict(content)) == hash(architecture)
    # Names, not positions: a file that lists blocks and branches backwards means the same.
    turned = {
        name: {key: kinds[::-1] for key, kinds in block.items()} for name, block in reversed(content["blocks"].items())
    }
    backwards = architecture_from_dict({"schema": SCHEMA, "blocks": turned})
    assert backwards.on(SMALL) == architecture
    assert sum(map(len, architecture.active.values())) == architecture.size == sum(mask)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([], "not of schema repconv.arch/1, got 'list'"),
        ({"schema": "repconv.arch/9"}, "got 'repconv.arch/9'"),
        ({"schema": SCHEMA}, "makes no sense: KeyError"),
        ({"schema": SCHEMA, "blocks": {"a": {"fixed": "3x3", "searchable": [], "active": []}}}, "list of branch names"),
        ({"schema": SCHEMA, "blocks": {"a": {"fixed": ["3x3"], "searchable": ["1x1"], "active": ["avg"]}}},
         "file.json: a has no searchable branch 'avg'; it has 1x1"),
    ],
)  # fmt: skip
def test_files_that_are_no_architecture(content: object, says: str) -> None:
    with pytest.raises(SearchError, match=says):
        architecture_from_dict(content, "file.json")


def test_an_architecture_of_another_network_names_the_first_difference() -> None:
    architecture = Architecture.full(SMALL)
    other = SearchSpace((SMALL.blocks[0], SpaceBlock("a.conv", ("3x3",), ("1x3", "3x1", "1x1_3x3"))))
    with pytest.raises(SearchError, match=r"a.conv has the fixed branches 3x3, the architecture 3x3, skip"):
        architecture.on(other)
    with pytest.raises(SearchError, match=r"the network has no block 'a.conv'"):
        architecture.on(SearchSpace(SMALL.blocks[:1]))
    with pytest.raises(SearchError, match="expected 5, got 2"):
        Architecture(SMALL, (True, False))
    with pytest.raises(SearchError, match=r"no block 'a.con' \(did you mean 'a.conv'\?\)"):
        SMALL.mask({"a.con": ["1x3"]})


def test_files_that_cannot_be_read(tmp_path) -> None:
    with pytest.raises(SearchError, match=r"cannot read .*none.json: No such file"):
        read_json(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(SearchError, match="is no JSON"):
        read_json(tmp_path / "bad.json")


def test_the_terminal_picture_has_a_row_a_block_and_a_mark_a_branch() -> None:
    architecture = Architecture(SMALL, (True, False, False, True, True))
    assert terminal(architecture).splitlines() == [
        "       3x3 skip 1x1 avg 1x3 3x1 1x1_3x3 active",
        "stem    #        o   .                     1/2",
        "a.conv  #   #            .   o     o       2/3",
        "3 of 5 branches active; # fixed, o active, . left out",
    ]


def test_the_drawn_pictures_are_svg_with_a_cell_a_branch() -> None:
    architecture = Architecture(SMALL, (True, False, False, True, True))
    for text in (svg(architecture, "a < b"), heat_map(SMALL, dict.fromkeys(SMALL.slots, 0.25), "gates")):
        root = ElementTree.fromstring(text)  # noqa: S314  # our own output
        cells = root.findall(".//{http://www.w3.org/2000/svg}rect[@rx]")
        assert len(cells) == len(SMALL.slots) + 3
    root = ElementTree.fromstring(svg(architecture))  # noqa: S314
    says = [
        cell.findtext("{http://www.w3.org/2000/svg}title")
        for cell in root.iter("{http://www.w3.org/2000/svg}rect")
        if len(cell)
    ]
    assert says.count("stem 1x1: active") == 1
    assert sum(text.endswith(": active") for text in says if text) == 3


def mutated(text: str, draw: random.Random) -> str:
    """Letters changed, the end cut off, pieces repeated, or a value replaced by one of another kind."""
    way = draw.randrange(5)
    at, to = sorted(draw.randrange(len(text)) for _ in range(2))
    if way == 0:
        return text[:at] + draw.choice('{}[]",:x0\x00\u00e9') + text[at + 1 :]
    if way == 1:
        return text[:at]
    if way == 2:
        return text[:to] + text[at:]
    if way == 3:
        return draw.choice(["", "null", "[]", "{}", "[" * 100_000, '{"schema": "repconv.arch/1"}', "1e999", "NaN"])
    content = json.loads(text)
    block = draw.choice(list(content["blocks"].values()))
    holder = draw.choice([content, content["blocks"], block])
    holder[draw.choice([*holder, "new"])] = draw.choice([None, 3, "3x3", [], ["3x3", "3x3"], [1], {}, {"fixed": []}])
    return json.dumps(content)


def test_mutated_json_gives_words_or_an_architecture(tmp_path: Path) -> None:
    draw = random.Random(0)
    text = json.dumps(Architecture(SMALL, (True, False, True, True, False)).to_dict())
    path, words = tmp_path / "m.json", []
    for _ in range(500):
        path.write_text(mutated(text, draw), encoding="utf-8")
        try:
            found = architecture_from_dict(read_json(path), str(path))
        except SearchError as error:
            words.append(str(error))
        else:
            assert len(found.mask) == len(found.space.slots)
    assert len(words) > 250
    assert all(str(path) in message for message in words)
