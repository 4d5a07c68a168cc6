"""What is written for a tensor, operation by operation: the price, both writers and foresight read this list.

`T = sum_s K_s * s + b` becomes a convolution, a matrix or a scale a source, between changes of layout, and the sum of
those. Of a tensor that stays with its node that is one operation, too. Everything here follows from forms and layouts;
numbers are computed when a writer asks for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod

from torch import Tensor

from ...algebra.geometry import halves, with_flat
from ...errors import GeometryError
from ..core.constant import Bias
from ..core.cost import Cost, Size, averaging, convolution, elements, elementwise
from ..core.dims import nominal
from ..core.expression import Expression, Term
from ..core.form import Form
from ..core.pool import Pool
from ..core.step import Stored
from ..core.terms import turned_around
from ..maps.arrangement import Change, arrange, broadcasts
from ..maps.carried import Carried
from .dialect import Dialect

Operand = str | int
"""A tensor of the graph by its name, or what an earlier operation of the list makes by its position."""


@dataclass(frozen=True)
class Operation:
    """One operation on `source`, and what it costs."""

    source: Operand
    cost: Cost


@dataclass(frozen=True)
class Keep(Operation):
    """The node that makes `source`, as it stands, of the weights that it has."""

    stored: tuple[Stored, ...] = ()


@dataclass(frozen=True)
class Same(Operation):
    """The tensor under another name."""


@dataclass(frozen=True)
class Move(Operation):
    """A change of layout."""

    change: Change


@dataclass(frozen=True)
class Average(Operation):
    """The mean over `axes`, all those of pixels, of windows or of everything.

    pool: the windows of an image [n, c, pixels]; of all pixels `axes` stay, as single elements, if it `keeps` them.
    is_image: the source is [n, c, pixels].
    """

    pool: Pool
    axes: tuple[int, ...]
    keeps: bool
    is_image: bool


@dataclass(frozen=True)
class Pad(Operation):
    """Zeros around [n, c, pixels], before and after, by pixel axis."""

    before: tuple[int, ...]
    after: tuple[int, ...]


@dataclass(frozen=True)
class Add(Operation):
    """The sum with another tensor."""

    other: Operand


@dataclass(frozen=True)
class Shift(Operation):
    """The constant added, one number a channel; `widths` is the shape that broadcasts against the tensor."""

    widths: tuple[int, ...]


@dataclass(frozen=True)
class Scale(Operation):
    """One factor a channel; `widths` is the shape that broadcasts against the source."""

    widths: tuple[int, ...]
    term: Term

    @property
    def factors(self) -> Tensor:
        """Of shape `widths`, in float64."""
        return self.term.kernel.weight.reshape(self.widths)


@dataclass(frozen=True)
class Layer(Operation):
    """What multiplies and adds. form: of `term` as it is written. biased: True if it adds the constant."""

    term: Term
    form: Form
    biased: bool


@dataclass(frozen=True)
class Matrix(Layer):
    """A matrix times the last axis, that of channels or of a flattened image; flat: of a tensor of two axes.

    Where a product by a matrix adds no constant, one added right behind is no pass of its own: runtimes make one kernel
    of the two, as of a convolution and its bias.
    """

    flat: bool

    @property
    def weight(self) -> Tensor:
        """[o, i] in float64."""
        return self.term.uncropped().regroup(1).weight.flatten(1)


@dataclass(frozen=True)
class Convolution(Layer):
    """A convolution of so many pixel axes, with padding of at least 0; or a transposed one."""

    pixels: int

    @property
    def is_transposed(self) -> bool:
        """True for one that puts the pixels of its source apart."""
        return self.form.geometry.is_transposed

    @property
    def weight(self) -> Tensor:
        """[o, i/g, k...], of a transposed one [i, o/g, k...]: in float64, without the zeros a dilation stands for."""
        taps = self.term.taps()
        taps = taps.reshape(*taps.shape[:2], *with_flat(taps.shape[2:], self.pixels, 1))
        return turned_around(taps, self.form.geometry.groups) if self.is_transposed else taps

    @property
    def stride(self) -> list[int]:
        """By pixel axis; of a transposed one, how far it puts the pixels of its source apart."""
        geometry = self.form.geometry
        return list((geometry.up if self.is_transposed else geometry.stride)[: self.pixels])

    @property
    def crop(self) -> tuple[list[int], list[int]]:
        """Of a transposed one, what it crops on both sides, and the rows and columns that it leaves after those."""
        before, after = self.padding
        cut = [k - 1 - b for k, b in zip(self.form.geometry.size, before, strict=False)]
        return cut, [a - b for a, b in zip(after, before, strict=True)]

    @property
    def dilation(self) -> list[int]:
        """By pixel axis."""
        return list(self.form.dilation[: self.pixels])

    @property
    def padding(self) -> tuple[list[int], list[int]]:
        """Before and after, by pixel axis."""
        before, after = halves(self.form.geometry.padding)
        return list(before[: self.pixels]), list(after[: self.pixels])


@dataclass(frozen=True)
class Emission:
    """How one tensor is written: the last of the operations makes it, of what those before it make.

    bias: the constant that a convolution, a matrix or a shift among them adds.
    """

    operations: tuple[Operation, ...]
    bias: Bias

    @cached_property
    def cost(self) -> Cost:
        """What all of it costs."""
        return sum((each.cost for each in self.operations), Cost())

    @cached_property
    def stored(self) -> tuple[Stored, ...]:
        """The weights it takes, of layers and of nodes that stay."""
        weights = [(layer.term.key, layer.form.weights) for layer in self.layers]
        return (*weights, *(weight for each in self.operations if isinstance(each, Keep) for weight in each.stored))

    @property
    def layers(self) -> list[Layer]:
        """Convolutions, and matrices times the last axis."""
        return [each for each in self.operations if isinstance(each, Layer)]

    @property
    def reads(self) -> list[str]:
        """The tensors of the graph that its operations read."""
        operands = [
            operand for each in self.operations for operand in (each.source, each.other if isinstance(each, Add) else 0)
        ]
        return [operand for operand in operands if isinstance(operand, str)]

    def forget(self) -> None:
        """Let go of the numbers of its layers; see `Term.forget`."""
        for layer in self.layers:
            layer.term.forget()

    @property
    def label(self) -> str:
        """What a table shows of one without layers: `a scale and a constant`."""
        words = (_WORDS[type(each)] for each in self.operations if type(each) in _WORDS)
        return " and ".join(dict.fromkeys(words)) or "the tensor it reads"

    @property
    def weights(self) -> int:
        """How many numbers scales and constants of their own hold."""
        return sum(prod(each.widths) for each in self.operations if isinstance(each, Scale | Shift))

    def settled(self) -> tuple[Operation, ...]:
        """The operations without a shift that turns out to be by zeros; its numbers are computed for that."""
        *before, last = self.operations
        if not isinstance(last, Shift) or self.bias.value is not None:
            return self.operations
        return tuple(before) or (Same(last.source, Cost()),)


_WORDS: dict[type[Operation], str] = {
    Scale: "a scale", Shift: "a constant", Add: "a sum", Average: "an average", Move: "movement", Pad: "padding",
}  # fmt: skip


def emission(output: Carried, found: Expression, sources: Sequence[Carried], dialect: Dialect) -> Emission:
    """How to write a tensor.

    Args:
        output: the tensor.
        found: what it is.
        sources: the tensors of its terms.
        dialect: of the graph it is written in.

    Raises:
        GeometryError: it cannot be written in its tensors' layouts, see `arrange`.
    """
    biased = not found.bias.is_surely_zero
    size = nominal(output.dims)
    operations: list[Operation] = []

    def write(operation: Operation) -> int:
        operations.append(operation)
        return len(operations) - 1

    def move(place: Operand, changes: Sequence[Change], tensor: Carried) -> Operand:
        for change in changes:
            cost = elementwise(1, nominal(tensor.dims)) if change[0] == "permute" else Cost()
            place = write(Move(place, cost, change))
        return place

    def pad(place: Operand, form: Form, read: Size, pixels: int) -> tuple[Operand, Form, Size]:
        """Zeros by an operation of their own, and what is left to do."""
        before, after = halves(form.geometry.padding)
        sides = with_flat(read[1:], len(before), 1)
        larger = read[0], *(n + first + last for n, first, last in zip(sides, before, after, strict=True))
        cost = Cost(0.0, elements(read) + elements(larger))
        bare = replace(form, geometry=replace(form.geometry, padding=(0,) * len(form.geometry.padding)))
        return write(Pad(place, cost, tuple(before[:pixels]), tuple(after[:pixels]))), bare, larger

    def average(term: Term, source: Carried) -> tuple[Operand, Carried]:
        """The pool that a term reads; of a tensor itself nothing is written."""
        if term.pool is None or source.dims[2:] == (1,) * len(source.dims[2:]):
            return source.name, source
        keeps = source.is_plain or len(source.layout.axes) == len(output.layout.axes)
        made = source.without_pixels(keep=keeps)
        if term.pool.size:
            if not source.is_plain:
                raise GeometryError("windows of pixels are averaged of [n, c, pixels] only")
            made = Carried(source.name, source.layout, term.pool.through(source.dims))
        cost = averaging(nominal(source.dims), nominal(made.dims))
        return write(Average(source.name, cost, term.pool, source.axes_of_pixels, keeps, source.is_plain)), made

    def part(term: Term, given: Carried, *, takes_bias: bool) -> tuple[Operand, bool]:
        """What a term makes, and whether the constant is added there."""
        place, source = average(term, given)
        way = arrange(term.form, source, output)
        place = move(place, way.before, source)
        if term.form.is_identity:
            return move(place, way.after, output), False
        if term.form.is_diagonal:
            place = write(Scale(place, elementwise(1, size), source.layout.widths, term))
            return move(place, way.after, output), False
        form = term.form.without_cropping()
        read: Size = nominal(source.dims)
        if way.pixels:
            form = form.of_axes(max(way.pixels, 2))
            if not dialect.pads_unevenly and _is_uneven(form):
                place, form, read = pad(place, form, read, way.pixels)
            cost = convolution(form, read, size)
            place = write(Convolution(place, cost, term, form, takes_bias, way.pixels))
        else:
            form = form.ungrouped()
            place = write(Matrix(place, convolution(form, read, size), term, form, takes_bias, way.flat))
        return move(place, way.after, output), takes_bias

    def cheapest(term: Term, source: Carried, *, takes_bias: bool) -> tuple[Operand, bool]:
        """A term as a convolution, or as one of a pool where that multiplies less, which `plan` asks for first."""
        found = part(term, source, takes_bias=takes_bias)
        if term.pooled is None:
            return found
        direct = operations[start:]
        del operations[start:]
        other = part(term.pooled, source, takes_bias=takes_bias)
        pooled = operations[start:]
        less, more = (sum((each.cost for each in way), Cost()) for way in (pooled, direct))
        if (less.multiply_adds, less.price()) < (more.multiply_adds, more.price()):
            return other
        operations[start:] = direct
        return found

    parts: list[Operand] = []
    is_left = biased
    # Convolutions first: the first of them takes the bias.
    for term, source in sorted(zip(found.terms, sources, strict=True), key=_rank):
        start = len(operations)
        place, took = cheapest(term, source, takes_bias=is_left)
        is_left = is_left and not took
        parts.append(place)
    total, *others = parts
    for other in others:
        total = write(Add(total, elementwise(2, size), other))
    if is_left:
        broadcasts(output)
        write(Shift(total, elementwise(1, size), output.layout.widths))
    return Emission(tuple(operations) or (Same(total, Cost()),), found.bias)


def _rank(pair: tuple[Term, Carried]) -> int:
    form = pair[0].form
    return 2 if form.is_identity else int(form.is_diagonal)


def _is_uneven(form: Form) -> bool:
    """True for a convolution that pads otherwise before than after."""
    before, after = halves(form.geometry.padding)
    return not form.geometry.is_transposed and before != after
