"""The tensors in nested outputs and inputs: dictionaries, tuples, lists and dataclasses of them, each with its path."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

Function = Callable[..., Any]
"""A user's callable: tensors in, tensors out, both nested as `leaves` takes them."""


Inputs = Tensor | tuple[Any, ...]
"""What a network is called with: one tensor, or a tuple of positional arguments."""


def arguments(inputs: Inputs) -> tuple[Any, ...]:
    """The positional arguments `inputs` stand for."""
    return (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)


def leaves(value: object, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor in `value` with its path, such as `out.boxes` or `[0]`; the path of a lone tensor is empty.

    Arrays and numbers count as tensors, None as nothing.

    Raises:
        TypeError: something in it is none of these.
    """
    if isinstance(value, Tensor):
        yield path, value
    elif value is None:
        return
    elif isinstance(value, np.ndarray | np.generic | bool | int | float | complex):
        yield path, torch.as_tensor(np.array(value))  # a copy: torch warns of arrays it may not write
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from leaves(part, _member(path, key) if isinstance(key, str) else f"{path}[{key!r}]")
    elif isinstance(value, tuple) and isinstance(getattr(value, "_fields", None), tuple):  # a named tuple
        yield from leaves(dict(zip(value._fields, value, strict=True)), path)  # type: ignore[attr-defined]
    elif isinstance(value, tuple | list):
        for index, part in enumerate(value):
            yield from leaves(part, f"{path}[{index}]")
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from leaves(getattr(value, field.name), _member(path, field.name))
    else:
        raise TypeError(
            f"{path or 'the output'} is a {type(value).__name__}; expected a tensor, or a dictionary, tuple, list or "
            "dataclass of tensors"
        )


def _member(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def cast(value: object, dtype: torch.dtype) -> Any:  # noqa: ANN401  # what it was given, of the same nesting
    """`value` with every floating-point tensor in it in `dtype`; all else is passed unchanged."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, Mapping):
        return {key: cast(part, dtype) for key, part in value.items()}
    if type(value) in (tuple, list):
        return type(value)(cast(part, dtype) for part in value)  # type: ignore[call-arg, attr-defined]
    return value


def call(function: Function, inputs: object) -> Any:  # noqa: ANN401  # whatever it returns
    """Call `function`: a tuple is its positional arguments, a dictionary its named ones, all else its one argument."""
    if isinstance(inputs, tuple):
        return function(*inputs)
    if isinstance(inputs, Mapping):
        return function(**inputs)
    return function(inputs)


def of_tensors(program: ExportedProgram, module: nn.Module | None = None) -> nn.Module:
    """A program as a module of its tensors in a row, whatever tuples, dictionaries and keywords its own code takes.

    Args:
        program: says how its tensors are nested.
        module: of the program; None: as it makes it.
    """
    module, spec = program.module() if module is None else module, program.call_spec.in_spec
    if spec is None:
        return module
    row = [object() for _ in range(spec.num_leaves)]
    given, named = torch.utils._pytree.tree_unflatten(row, spec)  # noqa: SLF001  # torch.export's own way
    return module if not named and list(given) == row else OfTensors(module, spec)


class OfTensors(nn.Module):
    """What `of_tensors` makes of a program that takes anything but tensors in a row."""

    def __init__(self, module: nn.Module, spec: Any) -> None:  # noqa: ANN401  # of torch's private tree
        super().__init__()
        self.module, self.spec = module, spec
        self.training = False  # not eval(), which the module of a program refuses

    def forward(self, *tensors: object) -> object:
        """The program's outputs, nested as its own code nests them."""
        given, named = torch.utils._pytree.tree_unflatten(list(tensors), self.spec)  # noqa: SLF001  # as above
        return self.module(*given, **named)
