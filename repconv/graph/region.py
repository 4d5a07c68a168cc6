"""Regions of affine steps, and which of their tensors are worth writing.

A `Step` makes one tensor as a sum of convolutions of others. A tensor that something non-linear or an output reads is
written whatever happens; each other one is either written or virtual, that is, substituted into those who read it.
Writing all of them is the graph as it was. `plan` looks for the cheapest choice, priced from shapes alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from torch import Tensor

from ..errors import GeometryError
from ..refusal import Refusal
from .cost import MOVE, Cost, Size, emission
from .expression import Bias, Expression, Term, merge, respond, substitute

MOVE_FIRST_MULTIPLY_ADDS = 1e-6
"""The weight of traffic when multiply-adds alone must not rise."""

ROUNDS = 8
"""Passes over a region's tensors; prices fall in the first two or three."""

Offset = Callable[[], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Step:
    """One affine node output: `output = sum of terms + offset`.

    where: the node's name, for reports. offset: gives the constant, [o] in float64, and the sum of its parts'
    magnitudes; None for zero. cost: of the node as it stands. kind: what the node is, such as "Conv".
    """

    output: str
    where: str
    kind: str
    terms: tuple[Term, ...]
    cost: Cost
    offset: Offset | None = None
    rounding: float = 2**-23

    @property
    def inputs(self) -> tuple[str, ...]:
        """The tensors it reads."""
        return tuple(dict.fromkeys(term.source for term in self.terms))


@dataclass(frozen=True)
class Plan:
    """What to write instead of the steps: `rewritten` tensors by their expression; `virtual` ones not at all.

    Every other tensor stays with the node that made it. `origins`: the names of the nodes a rewritten tensor came from.
    """

    rewritten: Mapping[str, Expression]
    virtual: frozenset[str]
    origins: Mapping[str, tuple[str, ...]]
    refusals: tuple[Refusal, ...]
    before: Cost
    after: Cost


def plan(steps: Sequence[Step], needed: Collection[str], sizes: Mapping[str, Size]) -> Plan:
    """Choose, region by region, what to write.

    Args:
        steps: in the order they run.
        needed: tensors that must exist: read by something that is no step, or an output.
        sizes: of every tensor a step reads or makes.
    """
    made = {step.output for step in steps}
    read = {name for step in steps for name in step.inputs}
    fixed = {name for name in made if name in needed or name not in read}
    rewritten: dict[str, Expression] = {}
    virtual: set[str] = set()
    origins: dict[str, tuple[str, ...]] = {}
    refusals: list[Refusal] = []
    before = after = Cost()
    for region in regions(steps, fixed):
        chosen = Region(region, fixed, sizes).solve()
        for step in region:
            name = step.output
            if name in chosen.virtual:
                virtual.add(name)
            elif not chosen.is_verbatim(name):
                rewritten[name] = chosen.expression(name)
                origins[name] = tuple(dict.fromkeys(s.where for s in chosen.closure(name)))
        refusals += chosen.reasons()
        before += sum((step.cost for step in region), Cost())
        after += chosen.total()
    return Plan(rewritten, frozenset(virtual), origins, tuple(refusals), before, after)


def regions(steps: Sequence[Step], fixed: Collection[str]) -> list[list[Step]]:
    """Steps that a tensor which may be virtual connects, in the order they run."""
    maker = {step.output: index for index, step in enumerate(steps)}
    root = list(range(len(steps)))

    def find(i: int) -> int:
        while root[i] != i:
            root[i] = root[root[i]]
            i = root[i]
        return i

    for index, step in enumerate(steps):
        for name in step.inputs:
            if name in maker and name not in fixed:
                root[find(index)] = find(maker[name])
    found: dict[int, list[Step]] = defaultdict(list)
    for index, step in enumerate(steps):
        found[find(index)].append(step)
    return list(found.values())


@dataclass
class Region:
    """One region and a choice of virtual tensors; `solve` finds the choice."""

    steps: Sequence[Step]
    fixed: Collection[str]
    sizes: Mapping[str, Size]
    virtual: set[str] = field(default_factory=set)
    inexact: dict[tuple[str, str], Refusal] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.by_output = {step.output: step for step in self.steps}
        self.free = [s.output for s in self.steps if s.output not in self.fixed]
        self.readers: dict[str, list[Step]] = defaultdict(list)
        for step in self.steps:
            for name in step.inputs:
                if name in self.by_output:
                    self.readers[name].append(step)
        self._expressions: dict[str, Expression] = {}
        self._costs: dict[str, Cost] = {}

    def solve(self) -> Region:
        """Take the cheapest choice found that needs no more multiply-adds than the nodes as they stand."""
        original = sum((step.cost for step in self.steps), Cost())
        best, best_price = set[str](), original.price()
        for move in (MOVE, MOVE_FIRST_MULTIPLY_ADDS):
            for start in (self._start(), set[str]()):
                self._search(start, move)
                total = self.total()
                cheaper = total.price() < best_price * (1 - 1e-9)
                within = total.multiply_adds <= original.multiply_adds and total.convolutions <= original.convolutions
                if cheaper and within:
                    best, best_price = set(self.virtual), total.price()
            if best or len(self.steps) < 2:
                break
        self._choose(best)
        return self

    def _start(self) -> set[str]:
        """All virtual, but for sums that several steps read: substituting those repeats the sum for each."""
        sums = {s.output for s in self.steps if len(s.inputs) > 1 and len(self.readers[s.output]) > 1}
        return set(self.free) - sums

    def _search(self, start: set[str], move: float) -> None:
        self._choose(start)
        for step in self.steps:
            self._repair(step)
        groups = [[name] for name in self.free]
        for step in self.steps:
            group = [name for name in step.inputs if name in self.by_output and name not in self.fixed]
            if len(group) > 1:
                groups += [group]
        for _ in range(ROUNDS):
            changed = [self._flip(group, move) for group in groups]
            if not any(changed):
                return

    def _choose(self, virtual: set[str]) -> None:
        self.virtual = set(virtual)
        self._expressions.clear()
        self._costs.clear()

    def _repair(self, step: Step) -> None:
        """Write what makes `step` inexact; its inputs' own expressions are exact by now."""
        while True:
            try:
                self.expression(step.output)
            except _InexactError as error:
                self.inexact[step.where, error.inner] = Refusal(step.where, str(error))
                self._set({error.inner}, set())
            else:
                return

    def _flip(self, group: Sequence[str], move: float) -> bool:
        """Flip all of `group` to written, or to virtual if it is; keep that if the price falls."""
        written, unwritten = set(group) & self.virtual, set(group) - self.virtual
        to_write, to_hide = (written, set[str]()) if written else (set[str](), unwritten)
        affected = self._affected(group)
        before = sum((self.cost(name) for name in affected if name not in self.virtual), Cost())
        known = self._expressions.copy(), self._costs.copy()
        self._set(to_write, to_hide)
        try:
            after = sum((self.cost(name) for name in affected if name not in self.virtual), Cost())
        except _InexactError as error:
            self.inexact.setdefault((error.where, error.inner), Refusal(error.where, str(error)))
            after = None
        if after is not None and _is_better(before, after, move):
            return True
        self.virtual = (self.virtual - to_hide) | to_write
        self._expressions, self._costs = known
        return False

    def _affected(self, names: Collection[str]) -> list[str]:
        """`names` and what is expressed through them, up to the next tensors that are written."""
        seen = dict.fromkeys(names)
        pending = list(names)
        while pending:
            for step in self.readers[pending.pop()]:
                if step.output not in seen:
                    seen[step.output] = None
                    if step.output in self.virtual:
                        pending.append(step.output)
        return list(seen)

    def _set(self, to_write: set[str], to_hide: set[str]) -> None:
        changed = to_write | to_hide
        stale = set(self._affected(changed))
        self.virtual = (self.virtual - to_write) | to_hide
        for name in stale | set(self._affected(changed)):
            self._expressions.pop(name, None)
            self._costs.pop(name, None)

    def is_verbatim(self, name: str) -> bool:
        """True if the node stays as it is: nothing it reads is virtual."""
        return not any(source in self.virtual for source in self.by_output[name].inputs)

    def expression(self, name: str) -> Expression:
        """`name` in terms of tensors that are written.

        Raises:
            _InexactError: substituting a virtual tensor would not be exact.
        """
        if name not in self._expressions:
            step = self.by_output[name]
            terms: list[Term] = []
            through: list[tuple[Term, Bias]] = []
            for term in step.terms:
                if term.source not in self.virtual:
                    terms.append(term)
                    continue
                inner = self.expression(term.source)
                try:
                    terms += substitute(term, inner, self.by_output[term.source].where)
                except GeometryError as error:
                    raise _InexactError(step.where, term.source, str(error)) from None
                if not inner.bias.is_surely_zero:
                    through.append((term, inner.bias))
            compute = partial(_bias, step.offset, through) if through or step.offset else None
            self._expressions[name] = Expression(merge(terms), Bias(compute, step.rounding))
        return self._expressions[name]

    def cost(self, name: str) -> Cost:
        """What writing `name` costs under this choice."""
        if name not in self._costs:
            if self.is_verbatim(name):
                self._costs[name] = self.by_output[name].cost
            else:
                found = self.expression(name)
                forms = [(term.form, self.sizes[term.source]) for term in found.terms]
                biased = not found.bias.is_surely_zero
                self._costs[name] = emission(forms, self.sizes[name], biased=biased)
        return self._costs[name]

    def total(self) -> Cost:
        """What the whole region costs under this choice."""
        return sum((self.cost(s.output) for s in self.steps if s.output not in self.virtual), Cost())

    def reasons(self) -> list[Refusal]:
        """Why tensors that stayed could not be substituted, where that is not their price."""
        return [refusal for (_, inner), refusal in self.inexact.items() if inner not in self.virtual]

    def closure(self, name: str) -> list[Step]:
        """The steps that writing `name` stands for, in order."""
        seen = {name}
        pending = [name]
        while pending:
            for source in self.by_output[pending.pop()].inputs:
                if source in self.virtual and source not in seen:
                    seen.add(source)
                    pending.append(source)
        return [step for step in self.steps if step.output in seen]


def _is_better(before: Cost, after: Cost, move: float) -> bool:
    change = after - before
    falls = change.price(move) < -1e-9 * before.price(move)
    # Two convolutions for one may save traffic on paper (a sum before a strided depthwise convolution); they cost
    # a kernel launch and a weight, and a user counts them.
    more = change.convolutions > 0 and change.multiply_adds > 0
    fewer = change.convolutions < 0 and change.multiply_adds < 0
    return (falls and not more) or fewer


class _InexactError(Exception):
    """Substituting `inner` at `where` would not be exact, for the reason in the message."""

    def __init__(self, where: str, inner: str, why: str) -> None:
        super().__init__(why)
        self.where = where
        self.inner = inner


def _bias(offset: Offset | None, through: Sequence[tuple[Term, Bias]]) -> tuple[Tensor, Tensor]:
    """The constant part and the sum of its parts' magnitudes, [o] each."""
    parts = [respond(term, bias) for term, bias in through]
    if offset is not None:
        parts.append(offset())
    value, magnitude = parts[0]
    for more, size in parts[1:]:
        value, magnitude = value + more, magnitude + size
    return value, magnitude
