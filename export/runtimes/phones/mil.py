"""Packages of Core ML read back from their files, and computed by rules where Core ML is not."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repconv.errors import BuildError, SourceError, first_line

from ...onnx.quiet import heard, quiet
from ...targets import TARGETS
from .mil_rules import RULES

_DTYPES = {np.float16: torch.float16, np.float32: torch.float32}


@dataclass(frozen=True, kw_only=True)
class Package:
    """A package of one network with one input.

    program: of MIL, with its weights. taken, given: names of the input and the outputs.
    least, most: sizes of the input; they differ where open.
    """

    program: Any
    taken: str
    given: tuple[str, ...]
    least: tuple[int, ...]
    most: tuple[int, ...]

    @property
    def operations(self) -> list[Any]:
        """What it computes, in order; constants aside."""
        return [op for op in self.program.functions["main"].operations if op.op_type != "const"]

    def weights(self) -> Counter[str]:
        """How many weights of which type, by the operation that multiplies with them."""
        found = [(op.inputs["weight"].val, op.op_type) for op in self.operations if "weight" in op.inputs]
        return Counter(f"{value.dtype} {kind}" for value, kind in found if value is not None)

    def without_rule(self) -> tuple[str, ...]:
        """Operations that no rule computes."""
        return tuple(sorted({op.op_type for op in self.operations} - RULES.keys()))

    def run(self, x: Tensor) -> list[Tensor]:
        """Outputs for one input: sums in float64, every tensor rounded to the type it has in the package.

        Raises:
            BuildError: an operation has no rule.
        """
        (start,) = self.program.functions["main"].inputs.values()
        known: dict[str, Tensor] = {start.name: x.double()}
        for op in self.operations:
            if op.op_type not in RULES:
                raise BuildError(f"there is no rule for {op.op_type}")
            given = {name: _value(var, known) for name, var in op.inputs.items() if var is not None}
            found = RULES[op.op_type](given)
            for var, value in zip(op.outputs, [found] if isinstance(found, Tensor) else found, strict=True):
                known[var.name] = value.to(_dtype(var)).double()
        outputs = self.program.functions["main"].outputs
        return [known[var.name].to(_dtype(var)) for var in outputs]


def _dtype(var: Any) -> torch.dtype:  # noqa: ANN401  # of coremltools, which has no types
    types = import_module("coremltools.converters.mil.mil").types
    kind = types.nptype_from_builtin(var.dtype)
    if kind not in _DTYPES:
        raise BuildError(f"{var.name} is of type {np.dtype(kind).name}, for which there are no rules")
    return _DTYPES[kind]


def _value(var: Any, known: Mapping[str, Tensor]) -> Any:  # noqa: ANN401  # as above
    """What an operation is given: a tensor that was computed or is a weight, else plain numbers."""
    if isinstance(var, (list, tuple)):
        return [_value(each, known) for each in var]
    if var.val is None:
        return known[var.name]
    value = np.asarray(var.val)
    if value.dtype.kind == "f" and value.ndim:
        return torch.from_numpy(value.astype(np.float64))
    return value.tolist()


def load_package(path: Path) -> Package:
    """What stands in a package's files; coremltools' own reader would write its manifest anew.

    Raises:
        BackendError: coremltools is not installed.
        SourceError: it cannot be read, or is none of one network with one input of numbers.
    """
    imported()
    try:
        manifest = json.loads((path / "Manifest.json").read_text(encoding="utf-8"))
        root = manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"]
        with quiet(), heard([]):
            back = import_module("coremltools.converters.mil.frontend.milproto.load")
            spec = import_module("coremltools.proto.Model_pb2").Model()
            spec.ParseFromString((path / "Data" / root).read_bytes())
            program = back.load(
                spec,
                specification_version=spec.specificationVersion,
                file_weights_dir=str((path / "Data" / root).with_name("weights")),
            )
    except Exception as error:  # of a damaged package it raises anything
        raise SourceError(f"it cannot be read: {first_line(error)}") from error
    inputs, outputs = spec.description.input, spec.description.output
    if len(inputs) != 1 or list(program.functions) != ["main"]:
        raise SourceError(f"it takes {len(inputs)} inputs; packages of one network with one input are read")
    taken = inputs[0].type.multiArrayType
    shape = tuple(int(side) for side in taken.shape)
    ranges: Sequence[Any] = taken.shapeRange.sizeRanges
    return Package(
        program=program,
        taken=inputs[0].name,
        given=tuple(output.name for output in outputs),
        least=tuple(int(r.lowerBound) for r in ranges) or shape,
        most=tuple(int(r.upperBound) for r in ranges) or shape,
    )


def imported() -> Any:  # noqa: ANN401  # optional, so without types
    """coremltools.

    Raises:
        BackendError: it is not installed.
    """
    with quiet(), heard([]):
        return TARGETS["coreml"].imported()
