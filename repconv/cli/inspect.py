"""`repconv inspect`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from .shared.command import Command, Reads
from .shared.options import InputShape, json_option, source_options

if TYPE_CHECKING:
    from ..blocks.inspection import InspectedLayer, Inspection
    from ..graph.planning.foresight import Foresight
    from ..sources.source import Source

_BARS = "▁▂▃▄▅▆▇█"
_METADATA_SHOWN = 80
"""Characters of an ONNX metadata value; the JSON has all of it."""


@click.command(cls=Command, epilog="Example: repconv inspect checkpoint.pt")
@click.argument("source", type=Reads(source=True))
@click.option(
    "--input-shape", "--image", "input_shape", type=InputShape(), help="Shape of one input, if SOURCE does not say one."
)
@source_options
@json_option
def command(
    source: str,
    input_shape: tuple[int, ...] | None,
    model_name: str | None,
    state_key: str | None,
    json_file: str | None,
) -> None:
    """Show what is inside SOURCE, block by block, and what fusing would make of it, without computing it.

    Of an .onnx file also opset, inputs, outputs, operators and metadata.
    """
    from ..blocks.inspection import inspect
    from ..errors import SourceError
    from ..sources.source import is_graph, open_source
    from .shared.record import file_record, write_json
    from .shared.text import foresight_tables

    if is_graph(source) and input_shape is not None:
        raise SourceError(f"--input-shape is for networks; {source} declares its inputs itself")
    loaded = open_source(source, model=model_name, state_key=state_key)
    for note in loaded.notes:
        click.echo(f"repconv: {source}: {note}", err=True)
    if loaded.is_graph:
        _inspect_graph(loaded, json_file)
        return
    found = inspect(loaded.checkpoint.model)
    facts = _facts(loaded)
    click.echo("\n".join(f"  {key:<14} {value}" for key, value in facts.items()) + "\n")
    shape = input_shape or loaded.checkpoint.input_shape
    traced = not found.layers and not loaded.checkpoint.fused
    foreign = _foresee(loaded, shape) if traced and shape is not None else None
    if traced and shape is None:
        click.echo("  not looked at: tracing its graph takes an image; give its shape, such as --input-shape 3,224,224")
    else:
        click.echo(_picture(found) if foreign is None else foresight_tables(foreign))
    if json_file is not None:
        write_json(
            json_file,
            "repconv.inspect/1",
            {
                "source": {"name": source, **(file_record(loaded.path) if loaded.path else {})},
                "facts": facts,
                "inspection": found.to_dict(),
                **({} if foreign is None else {"graph": foreign.to_dict()}),
            },
        )


def _foresee(loaded: Source, shape: tuple[int, ...]) -> Foresight | None:
    """What fusing its graph would do, for a network without blocks; None, and why is said, if it cannot be traced."""
    from repconv.export.from_source import foresee

    from ..errors import FusionError, SourceError

    try:
        return foresee(loaded, shape)
    except (FusionError, SourceError) as error:
        click.echo(f"repconv: {loaded.name}: {error}", err=True)
        return None


def _inspect_graph(loaded: Source, json_file: str | None) -> None:
    """An ONNX model or a program."""
    from repconv.export.from_source import foresee

    from .shared.record import file_record, write_json
    from .shared.text import foresight_tables

    more = _show_onnx(loaded)
    found = foresee(loaded)
    click.echo(foresight_tables(found))
    if json_file is not None:
        write_json(
            json_file,
            "repconv.inspect/1",
            {
                "source": {"name": loaded.name, **(file_record(loaded.path) if loaded.path else {})},
                **more,
                "graph": found.to_dict(),
            },
        )


def _show_onnx(loaded: Source) -> dict[str, object]:
    """Print what an ONNX model is, and return it for the JSON."""
    from onnx import ModelProto

    from repconv.export.onnx.summary import summarise_onnx

    from .shared.text import table

    if not isinstance(loaded.held, ModelProto):
        return {}
    found = summarise_onnx(loaded.held)
    facts = {
        "form": "ONNX", "written by": found.producer,
        "opset": ", ".join(f"{v}" if k == "ai.onnx" else f"{k} {v}" for k, v in found.opsets.items()),
        "inputs": "; ".join(found.inputs), "outputs": "; ".join(found.outputs), "parameters": f"{found.parameters:,}",
        **{key: value if len(value) <= _METADATA_SHOWN else f"{value[:_METADATA_SHOWN]} ..."
           for key, value in found.metadata.items()},
    }  # fmt: skip
    width = max(14, *map(len, facts))
    click.echo("\n".join(f"  {key:<{width}} {value}" for key, value in facts.items() if value) + "\n")
    rows = [["operator", "nodes"], *([kind, str(count)] for kind, count in found.nodes.items())]
    click.echo(table(rows, right=(1,)) + "\n")
    return {"facts": facts, "onnx": found.to_dict()}


def _facts(loaded: Source) -> dict[str, str]:
    """What the file says of itself; what it does not say is left out."""
    from ..blocks.probing import dtype_of
    from ..models.spec import ModelSpec

    known = loaded.checkpoint
    spec = getattr(known.model, "spec", None)
    arguments = ", ".join(f"{k}={v}" for k, v in spec.arguments.items()) if isinstance(spec, ModelSpec) else ""
    facts = {
        "network": f"{spec.name} ({arguments})" if isinstance(spec, ModelSpec) else type(known.model).__name__,
        "form": "fused" if known.fused else "training",
        "dtype": str(dtype_of(known.model)).removeprefix("torch."),
        "input": "x".join(map(str, known.input_shape)) if known.input_shape else "",
        "normalization": f"mean {known.normalization.mean}, std {known.normalization.std}"
        if known.normalization
        else "",
        "classes": f"{len(known.class_names)}: {', '.join(known.class_names[:10])}" if known.class_names else "",
        "metrics": ", ".join(f"{k} {v:g}" for k, v in known.metrics.items()),
    }
    return {key: value for key, value in facts.items() if value}


def _picture(found: Inspection) -> str:
    """One row a layer, one column a kind of branch."""
    from ..blocks.branches import BRANCHES
    from .shared.text import size_table, table

    kinds = [kind for kind in BRANCHES if any(kind in (*la.fixed, *la.gates) for la in found.layers)]
    if not found.layers:
        return "  nothing in it fuses: no blocks of branches, no convolutions of this package with batch normalisation"
    rows = [["layer", *kinds, "becomes"]]
    rows += [[la.name or "(the model)", *(_mark(la, kind) for kind in kinds), _becomes(la)] for la in found.layers]
    lines = [table(rows), ""]
    if kinds:
        lines += [
            f"  fixed: a branch without a gate; {_BARS[0]} to {_BARS[-1]} and the number: its gate, from 0 to 1",
            "",
        ]
    blocks = [la for la in found.layers if la.fixed or la.gates]
    kept = sum(la.refusal is not None for la in blocks)
    return "\n".join([*lines, size_table((len(blocks), kept), found.before, found.after)])


def _mark(layer: InspectedLayer, kind: str) -> str:
    if kind in layer.fixed:
        return "fixed"
    if kind not in layer.gates:
        return "."
    gate = layer.gates[kind]
    return f"{_BARS[min(len(_BARS) - 1, int(gate * len(_BARS)))]} {gate:.2f}"


def _becomes(layer: InspectedLayer) -> str:
    if layer.refusal:
        return f"stays: {layer.refusal}"
    return layer.geometry.label
