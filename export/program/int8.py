"""int8 of programs: equalisation, and which layers stay float, by the program's twin in ONNX.

The exporter hands weights on under their names, bit for bit. So what is worked out on the ONNX model of a program, by
the same code and from the same images as for ONNX targets, holds of the program's weights of the same names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor
from torch.export import ExportedProgram

from repconv.errors import BuildError
from repconv.proof.leaves import of_tensors

from ..int8.equalise import equalise
from ..int8.quantize import kept_float
from ..onnx.exporter import exported, finished
from ..settings import Quantization, Span
from .exporter import input_type, sized, with_tensors


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A program that is ready for a quantiser, and what it leaves alone.

    program: float32. equalised: how many streams were. kept: layers that stay float, as the twin calls them;
    weights: the names of their weights in the program.
    """

    program: ExportedProgram
    equalised: int = 0
    kept: tuple[str, ...] = ()
    weights: frozenset[str] = frozenset()

    def to_dict(self) -> dict[str, object]:
        """Plain containers for the record."""
        return {"equalised_streams": self.equalised, "kept_float": list(self.kept)}


def twin(program: ExportedProgram, example: Tensor) -> onnx.ModelProto:
    """The ONNX model of a program of one input; errors as `exported`."""
    return finished(exported(of_tensors(program), example))


def prepared(
    program: ExportedProgram, calibration: Sequence[Tensor], asked: Quantization, sizes: Sequence[Span]
) -> Prepared:
    """`program`, of one input of these sizes, with what `asked` says done before it is quantised.

    Raises:
        SourceError: a layer that is to stay float is none of the twin's, or as many as there are.
        BuildError: there is no twin, or its weights are none of the program's.
    """
    if not asked.equalise and not asked.keep_float:
        return Prepared(program=program)
    model = twin(program, calibration[0])
    kept = kept_float(model, calibration, asked)
    weights = frozenset(node.input[1] for node in model.graph.node if node.name in kept)
    _require_known(weights, program)
    if not asked.equalise:
        return Prepared(program=program, kept=kept, weights=weights)
    made, streams = equalise(model)
    return Prepared(program=_with_weights(program, model, made, sizes), equalised=streams, kept=kept, weights=weights)


def _with_weights(
    program: ExportedProgram, before: onnx.ModelProto, after: onnx.ModelProto, sizes: Sequence[Span]
) -> ExportedProgram:
    """`program` with the weights in which two models of its twin's names differ."""
    old = {tensor.name: tensor for tensor in before.graph.initializer}
    moved = {t.name: t for t in after.graph.initializer if t.raw_data != old[t.name].raw_data}
    _require_known(moved, program)
    tensors = {name: torch.from_numpy(numpy_helper.to_array(tensor).copy()) for name, tensor in moved.items()}
    return sized(with_tensors(program, tensors), sizes, input_type(program))


def _require_known(
    names: Sequence[str] | frozenset[str] | dict[str, onnx.TensorProto], program: ExportedProgram
) -> None:
    unknown = sorted(set(names) - program.state_dict.keys())
    if unknown:
        raise BuildError(
            f"the exporter made other weights of the program's ({', '.join(unknown[:3])}), so its layers cannot be "
            "told apart; leave out --equalise and --keep-float"
        )
