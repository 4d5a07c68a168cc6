"""What a checkpoint may say of itself: one schema, looked at before anything believes it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import prod

from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from ..errors import CheckpointError
from ..limits import LARGEST_INPUT
from .schema import Rule, each, many, number, optional, plain, record, text, truth, whole

DTYPES = ("float16", "bfloat16", "float32", "float64")
_LARGEST_SIDE = 2**20
_SMALL_NUMBERS, _SMALL_TENSORS = 2**20, 2**10
_TIMES = 8
"""A network of blocks is built as a plain one first, then with blocks, then with those folded."""

_BLOCK = record(
    {"fixed": many(text()), "branches": many(text())},
    {
        "norm": optional(text()),
        "own_bias": truth(),
        "bias": truth(),
        "eps": number(positive=True),
        "momentum": optional(number()),
    },
)


def complaint(description: Mapping[str, object], numbers: int) -> str:
    """What in a checkpoint's description makes no sense; "" where all does.

    Args:
        description: as it was read.
        numbers: in the tensors beside it. No argument of a network is larger, or its weights would be.
    """
    said = _schema(max(numbers, 2**12))(description, "")
    shape = description.get("input_shape")
    if not said and isinstance(shape, list | tuple) and prod(shape) > LARGEST_INPUT:
        said = f"input_shape is {list(shape)}, expected at most {LARGEST_INPUT:,} numbers in an image"
    norm = description.get("normalization")
    if not said and isinstance(norm, Mapping) and len(norm["mean"]) != len(norm["std"]):
        said = f"normalization has {len(norm['mean'])} means and {len(norm['std'])} standard deviations"
    return said


def _schema(largest: int) -> Rule:
    return record(
        {
            "model": record({"name": text(), "arguments": each(plain(largest))}),
            "blocks": each(_BLOCK),
            "folded": many(text()),
            "dtype": text(*DTYPES),
            "class_names": many(text()),
            "normalization": optional(record({"mean": many(number()), "std": many(number(positive=True))})),
            "input_shape": optional(many(whole(1, _LARGEST_SIDE), least=1, most=5)),
            "metrics": each(number()),
        },
        {"absorbed": each(text())},
    )


@contextmanager
def no_larger_than(state: Mapping[str, Tensor]) -> Iterator[None]:
    """Stop building a network as soon as it has many more weights than `state` could fill.

    Raises:
        CheckpointError: from inside, when that many have been made.
    """
    most_tensors = _TIMES * len(state) + _SMALL_TENSORS
    most_numbers = _TIMES * sum(t.numel() for t in state.values()) + _SMALL_NUMBERS
    tensors = numbers = 0

    def count(_: nn.Module, name: str, made: nn.Parameter | None) -> None:
        nonlocal tensors, numbers
        tensors, numbers = tensors + 1, numbers + (0 if made is None else made.numel())
        if tensors > most_tensors or numbers > most_numbers:
            raise CheckpointError(
                f"the description of the model makes no sense: it is of more weights than the file's {len(state)} "
                f"tensors (building it stopped at a {name} of {0 if made is None else made.numel():,} numbers)"
            )

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()
