"""`repconv expand`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from .shared.command import Command, Reads, Writes
from .shared.options import InputShape, checked_output, json_option, source_options

if TYPE_CHECKING:
    from torch import nn

    from ..proof.report import Refusal


@click.command(cls=Command, epilog="Example: repconv expand timm:resnet18@pretrained -o multi.pt --set irep")
@click.argument("source", type=Reads(source=True))
@click.option("-o", "--output", type=Writes(), required=True, help="Checkpoint to write, .pt or .safetensors.")
@click.option("--set", "set_name", default="irep", show_default=True, help="Branches: irep, repvgg, acnet or dbb.")
@click.option("--branches", help="Searchable branches instead, separated by commas: 1x1,1x3,skip.")
@click.option("--fixed", help="Branches without a gate instead, separated by commas.")
@click.option(
    "--preserve/--fresh",
    default=True,
    show_default=True,
    help="Keep what the network computes, or let new branches start as PyTorch does.",
)
@click.option(
    "--input-shape",
    "--image",
    "input_shape",
    type=InputShape(),
    help="Shape of one input, where SOURCE says none.",
)
@source_options
@json_option
def command(
    source: str,
    output: str,
    set_name: str,
    branches: str | None,
    fixed: str | None,
    preserve: bool,
    input_shape: tuple[int, ...] | None,
    model_name: str | None,
    state_key: str | None,
    json_file: str | None,
) -> None:
    """Replace the 3x3 convolutions of SOURCE, and the batch normalisation after each, by blocks of branches to train.

    SOURCE is a checkpoint, a state dict of a network named by --model, or timm:NAME[@WEIGHTS],
    torchvision:NAME[@WEIGHTS] or package.module:factory[@WEIGHTS]. Train what was written with
    repconv.load(OUT).model, and fold it with repconv fuse OUT.
    """
    from ..blocks.probing import dtype_of, example_shape, pixel_axes, probes
    from ..expansion.expand import expand, expandable
    from ..proof.comparing import compare
    from ..sources.checkpoint import SUFFIXES, save
    from ..sources.source import open_source
    from .shared.record import file_record, write_json
    from .shared.text import paragraph

    out = checked_output(output, SUFFIXES)
    wanted = _branch_set(set_name, branches, fixed)
    loaded = open_source(source, model=model_name, state_key=state_key)
    for note in loaded.notes:
        click.echo(f"repconv: {source}: {note}", err=True)
    known = loaded.checkpoint
    shape = known.input_shape if input_shape is None else example_shape(input_shape, pixel_axes(known.model), source)
    inputs = None if shape is None else probes(shape, dtype=dtype_of(known.model))
    example = None if inputs is None else inputs[0]
    model = expand(known.model, fixed=wanted[0], branches=wanted[1], preserve=preserve, example_inputs=example)
    _, refusals = expandable(known.model, example)
    click.echo(_tables(known.model, model, refusals) + "\n")
    agreement = None
    if preserve and inputs is not None:
        agreement = compare(known.model, model.eval(), inputs[0], original=known.model, where="expanded, in evaluation")
        click.echo(paragraph(agreement.verdict))
        agreement.require("the expanded network")
    elif preserve:
        click.echo("  not run: no image shape is known; give --input-shape to have it compared")
    save(
        model.eval(),
        out,
        class_names=known.class_names,
        normalization=known.normalization,
        input_shape=shape,
        metrics=known.metrics if preserve else None,
    )
    written = file_record(out)
    click.echo(f"\n  wrote {out}: {written['bytes']:,} bytes, sha256 {str(written['sha256'])[:16]}")
    if json_file is not None:
        write_json(
            json_file,
            "repconv.expand/1",
            {
                "source": {"name": source, **(file_record(loaded.path) if loaded.path else {})},
                "settings": {"fixed": wanted[0], "branches": wanted[1], "preserve": preserve, "input_shape": shape},
                "blocks": {name: kinds for name, kinds, _ in _blocks(model)},
                "refusals": [vars(refusal) for refusal in refusals],
                "agreement": None if agreement is None else agreement.to_dict(),
                "output": written,
            },
        )


def _branch_set(set_name: str, branches: str | None, fixed: str | None) -> tuple[list[str], list[str]]:
    """Fixed and searchable kinds."""
    from ..errors import GeometryError
    from ..models.zoo import SETS

    if set_name not in SETS:
        raise GeometryError(f"--set {set_name}: no such set of branches; the sets are {', '.join(SETS)}")
    given = SETS[set_name]
    if branches is None and fixed is None:
        return list(given.fixed), list(given.searchable)
    return _kinds(fixed) or ["3x3"], _kinds(branches)


def _kinds(text: str | None) -> list[str]:
    return [kind.strip() for kind in (text or "").split(",") if kind.strip()]


def _blocks(model: nn.Module) -> list[tuple[str, list[str], str]]:
    """Name, kinds of branches and geometry of every block."""
    from ..blocks.block import RepBlock

    return [
        (name, [*block.branch_set.fixed, *block.branch_set.searchable], block.geometry.label)
        for name, block in model.named_modules()
        if isinstance(block, RepBlock)
    ]


def _tables(before: nn.Module, after: nn.Module, refusals: tuple[Refusal, ...]) -> str:
    """The blocks, the convolutions that stay and why, and the sizes before and after."""
    from ..blocks.fold import size
    from .shared.text import refusal_list, size_table, table

    blocks = _blocks(after)
    rows = [["block", "stands for", "branches"]]
    rows += [[name, shape, f"{len(kinds)}: {' '.join(kinds)}"] for name, kinds, shape in blocks]
    parts = [table(rows)]
    if refusals:
        parts.append(refusal_list("convolutions that stay", refusals))
    sizes = size(before), size(after)
    parts.append(size_table((len(_blocks(before)), len(blocks)), *sizes))
    return "\n\n".join(parts)
