"""What an artefact is asked to be: precision, sizes, and what stands in front of the network."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from repconv.errors import SourceError

from .proof.classes import MAX_CHANGED, MAX_LOST

PRECISIONS = ("fp32", "fp16", "bf16", "int8")

BF16_OPSET = 22
"""The first opset whose convolutions and poolings take bfloat16."""

DEFAULT_OPSET = 18
DEFAULT_CAPABILITIES = ("SM80", "SM86", "SM89", "SM120")
"""Without SM75, for which TensorRT-RTX compiles neither float32 matrix products nor bf16."""


@dataclass(frozen=True)
class Span:
    """A size: at least, usually (what is tuned for), at most. Equal numbers are a fixed size.

    Raises:
        SourceError: not 1 <= least <= usual <= most.
    """

    least: int
    usual: int
    most: int

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.usual <= self.most:
            raise SourceError(
                f"{self.least}:{self.usual}:{self.most} is no range: expected MIN:OPT:MAX with "
                "1 <= MIN <= OPT <= MAX, such as 1:8:32"
            )

    @classmethod
    def of(cls, size: int) -> Span:
        """A fixed size."""
        return cls(size, size, size)

    @classmethod
    def parse(cls, text: str) -> Span:
        """Read `N` or `MIN:OPT:MAX`.

        Raises:
            SourceError: it is neither.
        """
        parts = text.strip().split(":")
        if len(parts) not in (1, 3) or not all(re.fullmatch(r"\d{1,9}", part) for part in parts):
            raise SourceError(f"{text!r} is no size: expected N or MIN:OPT:MAX, such as 8 or 1:8:32")
        numbers = [int(part) for part in parts]
        return cls(*(3 * numbers if len(numbers) == 1 else numbers))

    @property
    def fixed(self) -> bool:
        """True where only one size is meant."""
        return self.least == self.most

    def __str__(self) -> str:
        """As `parse` reads it."""
        return str(self.usual) if self.fixed else f"{self.least}:{self.usual}:{self.most}"


def parse_image(text: str) -> tuple[Span, ...]:
    """Read `H,W`, each a number or a range, with channels or not, with a batch of 1 before them or not; of any axes.

    Raises:
        SourceError: anything else.
    """
    parts = text.split(",") if "," in text else text.split("x")
    if len(parts) > 5:
        raise SourceError(
            f"{text!r} is no size of an input: expected H,W such as 224,224 or 128:224:512,128:224:512, or C,H,W"
        )
    return tuple(map(Span.parse, parts))


@dataclass(frozen=True)
class Preprocessing:
    """What is done to an image inside the artefact: `(pixels / full - mean) / std`, in the network's channel order.

    mean, std: one number a channel, of images in [0, 1], in the network's order.
    uint8: the artefact takes bytes, `full` is 255; else floats, `full` is 1.
    bgr: the artefact takes channels in the reverse of the network's order.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    uint8: bool = False
    bgr: bool = False

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or not self.mean:
            raise SourceError(f"mean {self.mean} and std {self.std}: expected one number a channel in each")
        if not all(s > 0 for s in self.std):
            raise SourceError(f"std {self.std}: expected numbers above 0")

    @property
    def full(self) -> float:
        """The number that stands for full intensity in what the artefact takes."""
        return 255.0 if self.uint8 else 1.0


@dataclass(frozen=True)
class Quantization:
    """How int8 is done.

    per_channel: a scale for each output channel of a weight, else one a weight.
    equalise: cross-layer equalisation first.
    keep_float: layers that stay float32: so many of those furthest off, or these, by name.
    reduce_range: weights of 7 bits, for kernels whose sums of 8-bit products saturate.
    """

    per_channel: bool = True
    equalise: bool = False
    keep_float: int | tuple[str, ...] = 0
    reduce_range: bool = False


@dataclass(frozen=True)
class BuildSettings:
    """What was asked for.

    batch: images a call. image: height and width, or as many sizes as the input has pixel axes; None: what the source
    records. channels: of the input, where the source does not say; where it does, they must be the same.
    opset: of the ONNX form every artefact is made of; None: 18, for bf16 22, of an ONNX source its own.
    fp32_io: inputs and outputs of a half-precision artefact stay float32.
    channels_last: the artefact takes its input as [n, ..., c], for runtimes that compute so.
    fuse: fold branches first.
    capabilities: TensorRT-RTX only, compute capabilities to build for. timing_cache: TensorRT only, a file that is read
    if it exists and written.
    tolerance: on the measure `tolerances.py` names for the precision; None: the one it gives.
    max_lost, max_changed: int8: share of labelled images that may become wrong, and of images whose class may change.

    Raises:
        SourceError: an unknown precision, or settings that exclude one another.
    """

    precision: str = "fp32"
    batch: Span = field(default_factory=lambda: Span.of(1))
    image: tuple[Span, ...] | None = None
    channels: int | None = None
    opset: int | None = None
    fp32_io: bool = False
    fuse: bool = True
    preprocessing: Preprocessing | None = None
    quantization: Quantization = field(default_factory=Quantization)
    capabilities: tuple[str, ...] = DEFAULT_CAPABILITIES
    timing_cache: Path | None = None
    tolerance: float | None = None
    max_lost: float = MAX_LOST
    max_changed: float = MAX_CHANGED
    channels_last: bool = False

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise SourceError(f"precision {self.precision!r}: expected {', '.join(PRECISIONS)}")
        if self.fp32_io and self.precision not in ("fp16", "bf16"):
            raise SourceError(f"{self.precision} inputs and outputs are float32 anyway; fp32 io is for fp16 and bf16")
        if self.precision == "bf16" and self.opset is not None and self.opset < BF16_OPSET:
            raise SourceError(f"bf16 convolutions need ONNX opset {BF16_OPSET}, got {self.opset}")
        if self.tolerance is not None and not self.tolerance > 0:
            raise SourceError(f"a tolerance of {self.tolerance}: expected a number above 0")
        for name, share in (("max_lost", self.max_lost), ("max_changed", self.max_changed)):
            if not 0 <= share <= 1:
                raise SourceError(f"{name} of {share}: expected a share from 0 to 1")

    @property
    def wanted_opset(self) -> int:
        """The opset to export at."""
        return self.opset or (BF16_OPSET if self.precision == "bf16" else DEFAULT_OPSET)

    def sides(self, size: Sequence[int]) -> tuple[Span, ...]:
        """The sizes of an input's pixel axes: those asked for, or those of the usual one (c, ...)."""
        return self.image or tuple(map(Span.of, size[1:]))

    def of_axes(self, axes: int, name: str) -> BuildSettings:
        """The same for what has so many pixel axes: of one size more than those, the first is the channels.

        Raises:
            SourceError: `name` takes another number of sizes, or a range of channels is asked for.
        """
        if self.image is None or len(self.image) == axes:
            return self
        asked = self.image[1:] if len(self.image) == axes + 2 and str(self.image[0]) == "1" else self.image
        given = ",".join(map(str, self.image))
        if len(asked) != axes + 1:
            raise SourceError(f"{name} takes {axes} sizes, with the channels {axes + 1}; got --input-shape {given}")
        if not asked[0].fixed:
            raise SourceError(f"--input-shape {given}: the number of channels is one number, not a range")
        return replace(self, image=asked[1:], channels=asked[0].usual)

    def to_dict(self) -> dict[str, object]:
        """Plain containers for JSON."""
        return {
            **asdict(self),
            "batch": str(self.batch),
            "opset": self.opset,
            "image": None if self.image is None else ",".join(map(str, self.image)),
            "timing_cache": None if self.timing_cache is None else self.timing_cache.name,
        }


def check_capabilities(asked: Sequence[str]) -> tuple[str, ...]:
    """Compute capabilities as TensorRT-RTX names them, `SM86` for `sm_86`, `8.6` and `86`.

    Raises:
        SourceError: none, or one that is no capability.
    """
    found = []
    for text in asked:
        match = re.fullmatch(r"(?:sm_?)?(\d{1,2})\.?(\d)", text.strip(), re.IGNORECASE)
        if match is None:
            raise SourceError(f"{text!r} is no compute capability; expected one such as SM86 or 8.6")
        found.append(f"SM{match[1]}{match[2]}")
    if not found:
        raise SourceError("no compute capability to build for; name at least one, such as SM86")
    return tuple(dict.fromkeys(found))
