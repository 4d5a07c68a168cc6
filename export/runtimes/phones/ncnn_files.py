"""Networks of ncnn as files: `.param`, a text of a layer a line, and `.bin`, the weights in the order of the layers.

Neither says how precise the network is as a whole: each weight has a mark of its own, and the rest are options of who
runs it. So the weights are walked through, and what is told is only told where the walk ends with the file.

ncnn does not look at the size of an input: of one with more channels than a network takes it computes something. So the
sizes a network was proved for stand in its first line, where ncnn itself would say them, 0 for a side that is open.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

MAGIC = "7767517"
_TYPES = {0: "float32", 0x01306B47: "float16", 0x000D4B38: "int8", 0x0002C056: "float32"}
"""Of a weight by its mark, the first 4 bytes."""
_WIDTHS = {"float32": 4, "float16": 2, "int8": 1}


@dataclass(frozen=True, kw_only=True)
class ParamLayer:
    """A line: what kind of layer, its name, the names of what it takes and gives, and its parameters by number."""

    kind: str
    name: str
    takes: tuple[str, ...]
    gives: tuple[str, ...]
    numbers: Mapping[int, str]

    def number(self, key: int, usual: int = 0) -> int:
        """A parameter that is an integer."""
        return int(self.numbers.get(key, usual))


def layers_of(text: str) -> list[ParamLayer]:
    """The layers of a `.param` file.

    Raises:
        ValueError: it is none, with what is wrong.
    """
    lines = [line.split() for line in text.splitlines() if line.strip()]
    if not lines or lines[0] != [MAGIC]:
        raise ValueError(f"it does not begin with {MAGIC}")
    found = []
    for words in lines[2:]:
        try:
            kind, name, taken, given = words[0], words[1], int(words[2]), int(words[3])
            names = words[4 : 4 + taken + given]
            pairs = [word.split("=", 1) for word in words[4 + taken + given :]]
            numbers = {int(key): value for key, value in pairs}
        except (IndexError, ValueError):
            raise ValueError(f"{' '.join(words)!r} is no layer") from None
        if len(names) != taken + given:
            raise ValueError(f"{' '.join(words)!r} is no layer")
        found.append(
            ParamLayer(kind=kind, name=name, takes=tuple(names[:taken]), gives=tuple(names[taken:]), numbers=numbers)
        )
    return found


_SIDES = {1: (0,), 2: (1, 0), 3: (2, 1, 0), 4: (2, 11, 1, 0)}
"""The numbers of the parameters of `Input` that are its sizes [c, ...], by how many there are."""


def with_sizes(text: str, sizes: Sequence[int | None]) -> str:
    """A `.param` file that says the sizes [c, ...] of its input; None for what is open."""
    said = " ".join(f"{key}={size or 0}" for key, size in sorted(zip(_SIDES[len(sizes)], sizes, strict=True)))
    return "".join(
        f"{line.rstrip()} {said}\n" if line.split()[:1] == ["Input"] else line for line in text.splitlines(True)
    )


def sizes_of(layers: Sequence[ParamLayer]) -> tuple[int | None, ...] | None:
    """The sizes [c, ...] of the input as `with_sizes` writes them; None where a file does not say."""
    said = next((layer for layer in layers if layer.kind == "Input"), None)
    keys = next((keys for keys in _SIDES.values() if said is not None and set(keys) == set(said.numbers)), None)
    return None if keys is None or said is None else tuple(said.number(key) or None for key in keys)


def _convolution(layer: ParamLayer) -> tuple[int, int]:
    return layer.number(6), layer.number(0) * layer.number(5)


_MARKED: dict[str, Callable[[ParamLayer], tuple[int, int]]] = {
    **dict.fromkeys(
        [f"{kind}{axes}" for kind in ("Convolution", "ConvolutionDepthWise", "Deconvolution", "DeconvolutionDepthWise")
         for axes in ("", "1D", "3D")],
        _convolution,
    ),
    "InnerProduct": lambda layer: (layer.number(2), layer.number(0) * layer.number(1)),
}  # fmt: skip
"""Layers that compute sums of products: how many numbers a weight with a mark has, and a bias without one."""
_PLAIN: dict[str, Callable[[ParamLayer], int]] = {
    "PReLU": lambda layer: layer.number(0),
    "Scale": lambda layer: layer.number(0) * (1 + layer.number(1)),
    "BatchNorm": lambda layer: 4 * layer.number(0),
    "LayerNorm": lambda layer: 2 * layer.number(0) * layer.number(2, 1),
    "GroupNorm": lambda layer: 2 * layer.number(1) * layer.number(3, 1),
    "InstanceNorm": lambda layer: 2 * layer.number(0) * layer.number(2, 1),
    "MemoryData": lambda layer: max(layer.number(0), 1) * max(layer.number(1), 1) * max(layer.number(2), 1)
    * max(layer.number(11), 1),
}  # fmt: skip
"""Others that have numbers: how many, all float32, without a mark."""


def weights_of(layers: list[ParamLayer], content: bytes) -> Counter[str] | None:
    """How many weights of which type and layer a `.bin` file has; None where not all layers are known."""
    found: Counter[str] = Counter()
    at = 0
    for layer in layers:
        if layer.kind in _MARKED:
            count, plain = _MARKED[layer.kind](layer)
            if len(content) < at + 4:
                return None
            (mark,) = struct.unpack_from("<I", content, at)
            if mark not in _TYPES:
                return None
            kind = _TYPES[mark]
            at += 4 + (count * _WIDTHS[kind] + 3) // 4 * 4 + 4 * plain
            found[f"{kind} {layer.kind}"] += 1
        elif layer.kind in _PLAIN:
            at += 4 * _PLAIN[layer.kind](layer)
    return found if at == len(content) else None
