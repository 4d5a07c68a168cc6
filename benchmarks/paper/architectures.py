"""The pictures of the appendix: which branches an architecture keeps.

    python benchmarks/paper/architectures.py

The searched IRep-ResNet50 is drawn from what the paper's text tells of its picture: the first eight blocks keep every
branch but one, which the eighth lacks, and the last eight keep one, in the ninth. Its search space (nine kinds without
`2x2_d2`, half of the branches kept) has room for exactly that many. Of the other two networks the text tells nothing.
"""

from __future__ import annotations

from pathlib import Path

import torch

from repconv import create_model, load
from repconv.benchmarks.paper.published.tables import FAITHFUL, IMPOSSIBLE, SCALED
from repconv.benchmarks.studies.common import PICTURES, asking, head, write_result
from repconv.files.whole import write_whole
from repconv.search.reports.picture import space_grid, svg
from repconv.search.strategies.evolution import random_architecture
from repconv.search.supernet.architecture import Architecture
from repconv.search.supernet.space import SearchSpace, SpaceBlock

SCHEMA = "repconv.paper.architectures/1"
SHIPPED = Path(__file__).parent.parent.parent / "repconv" / "assets" / "irep_resnet_cifar10.pt"
IMAGENET_KINDS = ("1x3", "3x1", "1x1", "1x1_3x3", "avg", "skip", "1x2_d2", "2x1_d2")
"""What the ImageNet search chooses from: all kinds but `2x2_d2` and the fixed `3x3`."""

_KEPT, _OPEN, _OUT, _FIXED = "#2f7ebc", "#e0b93c", "#eef0f2", "#54606c"


def imagenet_space() -> SearchSpace:
    """The space of the paper's ImageNet search on ResNet-50."""
    with torch.device("meta"):
        return SearchSpace.of(create_model("irep_resnet50", branches=IMAGENET_KINDS))


def searched_resnet50(space: SearchSpace) -> Architecture:
    """The searched network as far as the text tells; of what it leaves open the first kind is taken."""
    kept: dict[str, tuple[str, ...]] = {}
    for i, block in enumerate(space.blocks):
        kinds = block.searchable
        kept[block.name] = kinds if i < 7 else kinds[1:] if i == 7 else kinds[:1] if i == 8 else ()
    return Architecture(space, space.mask(kept))


def cifar_architecture(space: SearchSpace) -> Architecture:
    """Two thirds of the branches, at random: those that were searched are not in the text."""
    return random_architecture(space, space.budget(2 / 3), torch.Generator().manual_seed(0))


def picture_of_the_text(space: SearchSpace) -> str:
    """IRep-ResNet50 with what the text leaves open in a colour of its own."""

    def cell(block: SpaceBlock, kind: str) -> tuple[str, str] | None:
        if kind in block.fixed:
            return _FIXED, "fixed"
        if kind not in block.searchable:
            return None
        place = space.blocks.index(block)
        if place in (7, 8):
            return _OPEN, "all but one of these is kept" if place == 7 else "one of these is kept"
        return (_KEPT, "kept") if place < 7 else (_OUT, "left out")

    return space_grid(space, cell, "IRep-ResNet50 as the text tells; yellow: all but one kept, then one kept")


def main() -> None:
    """Draw, write pictures and JSON."""
    parser = asking(__doc__, "paper_architectures")
    parser.add_argument("--pictures", type=Path, default=PICTURES, help="folder (%(default)s)")
    arguments = parser.parse_args()
    arguments.pictures.mkdir(parents=True, exist_ok=True)
    space = imagenet_space()
    searched = searched_resnet50(space)
    shipped = Architecture.full(SearchSpace.of(load(SHIPPED).model))
    write_whole(
        {
            arguments.pictures / "irep_resnet50.svg": picture_of_the_text(space).encode(),
            arguments.pictures / "shipped.svg": svg(shipped, "the network that ships: every branch").encode(),
        }
    )
    write_result(
        arguments.output,
        {
            **head(__file__, SCHEMA),
            "irep_resnet50": {
                "verdict": FAITHFUL,
                "blocks": len(space.blocks),
                "slots": len(space.slots),
                "budget": space.budget(1 / 2),
                "kept_by_the_text": searched.size,
                "picture": "irep_resnet50.svg",
                "why": "as the text tells, which leaves open which branch the eighth block lacks and which "
                "the ninth keeps",
            },
            "irep_vgg16, irep_resnet18": {
                "verdict": IMPOSSIBLE,
                "why": "their pictures are not described in the text, and searching takes 8 and 16 GPU-days",
            },
            "shipped": {
                "verdict": SCALED,
                "why": "not searched: width 16, six units, every branch",
                "picture": "shipped.svg",
                "slots": len(shipped.space.slots),
            },
        },
    )
    print(
        f"IRep-ResNet50: the text keeps {searched.size} branches; half of {len(space.slots)} are {space.budget(1 / 2)}"
    )


if __name__ == "__main__":
    main()
