"""Why an operation stays as it is: every kind of reason, what it says, and what would have to differ.

Readers refuse single operations, the planner pairs of neighbours; both raise or make a `Reason` of this table, so that
ONNX models and programs give the same kinds, and nothing is said anywhere that the table does not hold.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum

from ...algebra.geometry import BorderError, StridesError, SumError
from ...errors import GeometryError
from ...proof.report import GraphRefusal
from .cost import MOVE

UNCOUNTED = "it averages without counting padded pixels, so its weights differ at the border"
HANGING = "with ceil_mode its last windows hang over the border and average fewer pixels"
OWN_DIVISOR = "it divides by a number of its own, and not by how many pixels a window has"
BY_BATCH = "normalises by the statistics of each batch, which is no fixed convolution"
AN_INPUT = "an input of the graph, so it may change from run to run"
COMPUTED = "computed by the graph, not a constant"
"""Words that both readers use."""


class Kind(Enum):
    """A kind of reason: its name, a template of what is, and the rest of "folds if ...".

    Names are stable: reports and their JSON hold them.
    """

    # An operation that is no fixed affine map, or is not known to be one.
    TRAINING = (
        "training",
        "it is in training mode and {does}",
        "it is exported in evaluation mode",
    )
    OWN_STATISTICS = (
        "own statistics",
        "it normalises by statistics of what it reads, which no constant replaces",
        "it normalises by fixed statistics, as batch normalisation in evaluation mode does",
    )
    PRODUCT = (
        "product",
        "it {does} two tensors that are both computed",
        "one of the two is a constant",
    )
    QUOTIENT = (
        "quotient",
        "it divides by a tensor that is computed",
        "what it divides by is a constant",
    )
    ACTIVATION = (
        "activation",
        "it is the last factor of an activation written out, which runtimes recognise by it",
        "the activation is one operation",
    )
    VARYING = (
        "varying operand",
        "its {what} is {how}",
        "the operand is stored as a constant",
    )
    SPARSE = (
        "sparse operand",
        "its {what} {name!r} is stored as a sparse tensor",
        "it is stored as a dense one",
    )
    QUANTISED = (
        "quantised operand",
        "it reads {name!r}, stored as quantised integers that take fewer bytes and that runtimes compute with",
        "it is fused in floating-point numbers, and quantised afterwards",
    )
    TYPE = (
        "type",
        "it converts one type to another, which rounds",
        "all of it is of one type",
    )
    NOT_BY_CHANNEL = (
        "constant by pixel",
        "its constant of shape {shape} {how}",
        "the constant is one number a channel, or the same at every pixel of every image",
    )
    SIZES = (
        "sizes",
        "it {does} tensors that may differ in size (broadcasting): {sizes}",
        "the sizes are known and equal",
    )
    AXES = (
        "channel axes",
        "it {does} tensors whose channels are on different axes",
        "their channels are on the same axis",
    )
    LAYOUT = (
        "layout",
        "{what} otherwise than [n, c, pixels] or with the channels last",
        "what it reads and makes is laid out so",
    )
    NO_CHANNELS = (
        "no channels",
        "it reads {name!r}, of which no axis of channels is known",
        "the shape is known, with a batch and a number of channels",
    )
    PIXELS = (
        "pixels",
        "{does}",
        "it leaves images and pixels where they are, and changes channels alone",
    )
    OPEN_SIZE = (
        "open size",
        "{what} depends on the open input size",
        "that size is fixed",
    )
    PADDED_WITH = (
        "padding",
        "it pads {how}, which is not padding images with zeros",
        "it pads rows and columns with zeros",
    )
    UNEQUAL_WINDOWS = (
        "windows",
        "{how}",
        "every window averages the same number of pixels, padded zeros counted",
    )
    NOT_FINITE = (
        "not finite",
        "{what}",
        "the number is finite",
    )
    MISFIT = (
        "misfit",
        "its attributes or inputs are not understood: {said}",
        "they are what the operation takes",
    )
    MATRIX = (
        "large matrix",
        "its matrix over {channels} x {made} channels is too large to look for",
        "it has fewer channels",
    )

    # Neighbours that each are affine.
    NEEDED = (
        "read elsewhere",
        "what {maker} makes is {reader}, so it is written anyway",
        "nothing else reads it",
    )
    BIAS_PADDED = (
        "bias, then padding",
        "{maker} has a bias and is padded with zeros afterwards: where padding shows, the two are not one convolution",
        "there is no bias, no padding, or the padding comes first",
    )
    BIAS_SPREAD = (
        "bias, then transposed",
        "{maker} has a bias and a transposed convolution afterwards, which makes several numbers of a constant",
        "there is no bias, or the transposed convolution has a stride of 1",
    )
    BORDER = (
        "padding between",
        "{said}",
        "the outer one does not pad, or the inner one has a single tap or sees only padding past its outermost windows",
    )
    STRIDES = (
        "stride and transposed",
        "{said}",
        "one of the two has a stride of 1",
    )
    AVERAGED = (
        "pool of windows",
        "what is averaged is no matrix at every pixel, which alone may come after the average as well: {said}",
        "the convolution before it is 1x1, with neither stride nor padding",
    )
    BORDER_VALUE = (
        "border value",
        "{said}",
        "the border holds zeros, or what the tensor itself is there",
    )
    PIECE_READ = (
        "piece read",
        "a piece that it is put together of is read elsewhere, too",
        "nothing else reads the piece",
    )
    NOT_ADDED = (
        "unlike branches",
        "its branches cannot be added: {said}",
        "they have the same stride and make outputs of one size",
    )
    OTHER_TENSORS = (
        "different tensors",
        "it {does} {tensors}, which go back to different tensors",
        "all of them go back to one tensor",
    )
    NOT_CHEAPER = (
        "not cheaper",
        "not cheaper: {before} as it stands, {after} {changed}",
        "the price falls, which is multiply-adds plus {move} for each number moved",
    )
    MORE = (
        "more of something",
        "not without more {what}: {before} as it stands, {after} {changed}",
        "neither multiply-adds nor convolutions rise, however much the price falls",
    )
    ROUNDABOUT = (
        "movement between",
        "it cannot be written in the layouts of its neighbours: {said}",
        "they divide their axes alike, or all but one of the sizes are fixed",
    )
    TOO_LARGE = (
        "too large to try",
        "a region of {steps} steps, {first} to {last}, is too large to try all of; the best choice so far was taken",
        "nothing else keeps it, once something that is not affine divides the region",
    )
    NARROW = (
        "narrow type",
        "{said}; the whole graph was left as it is",
        "it is fused in float32, and cast afterwards",
    )

    @property
    def label(self) -> str:
        """Its name, as reports hold it."""
        return str(self.value[0])

    @property
    def folds_if(self) -> str:
        """What would have to differ."""
        return str(self.value[2]).format(move=f"{MOVE:g}")

    def __call__(self, **details: object) -> Reason:
        """A reason of this kind."""
        return Reason(self, details)


NEVER_AFFINE = frozenset(kind.label for kind in (Kind.PRODUCT, Kind.QUOTIENT, Kind.OWN_STATISTICS))
"""Kinds of what is another operation: two of these next to each other have nothing to become one of."""


@dataclass(frozen=True)
class Reason:
    """A kind, and what its template is filled with."""

    kind: Kind
    details: Mapping[str, object]

    def __str__(self) -> str:
        """What is, in words."""
        return str(self.kind.value[1]).format(**self.details)

    def at(self, where: str, beside: Iterable[str] = ()) -> GraphRefusal:
        """As a report holds it; beside: the neighbours that the node at `where` is not one with."""
        others = tuple(name for name in dict.fromkeys(beside) if name != where)
        kind, folds_if = self.kind.label, self.kind.folds_if
        return GraphRefusal(where, str(self), kind=kind, folds_if=folds_if, beside=others, details=self.details)


class StaysError(GeometryError):
    """What is no affine step, or not one convolution with its neighbour.

    reason: None where nobody would expect it to be: numbers that are sizes or places, and operations that only look
    alike.
    """

    def __init__(self, reason: Reason | None = None) -> None:
        super().__init__("" if reason is None else str(reason))
        self.reason = reason


def reason_of(error: GeometryError, otherwise: Kind) -> Reason | None:
    """Why something that would not be exact stays; `otherwise` for what says of itself no more than its words."""
    if isinstance(error, StaysError):
        return error.reason
    known = {BorderError: Kind.BORDER, StridesError: Kind.STRIDES, SumError: Kind.NOT_ADDED}
    return known.get(type(error), otherwise)(said=str(error))
