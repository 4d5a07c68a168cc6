"""A choice of which tensors of a region are virtual, and what the others then are and cost."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial, reduce
from operator import add

from ...errors import GeometryError
from ..core.constant import Bias, Constant
from ..core.cost import Cost
from ..core.expression import Expression, Term, merge, respond, substitute
from ..core.ordering import dependencies_first
from ..core.reasons import Kind, Reason, reason_of
from ..core.step import Offset, Step, Stored
from ..maps.carried import Carried
from .dialect import Dialect
from .emission import Emission, Keep, emission


class InexactError(Exception):
    """Substituting `inner` at `where` would not be exact, for a reason."""

    def __init__(self, where: str, inner: str, why: Reason) -> None:
        super().__init__(str(why))
        self.where = where
        self.inner = inner
        self.why = why


@dataclass
class Choice:
    """Which tensors of a region's `steps` are virtual; those of `fixed` never are.

    placed: the layouts of all tensors. dialect: of the graph that is written.
    """

    steps: Sequence[Step]
    fixed: Collection[str]
    placed: Mapping[str, Carried]
    dialect: Dialect
    virtual: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.by_output = {step.output: step for step in self.steps}
        self.free = [s.output for s in self.steps if s.output not in self.fixed]
        self.readers: dict[str, list[Step]] = defaultdict(list)
        for step in self.steps:
            for name in step.reads:
                if name in self.by_output:
                    self.readers[name].append(step)
        self._expressions: dict[str, Expression] = {}
        self._emissions: dict[str, Emission] = {}
        self.effort = 0
        """What was computed so far, in terms of expressions."""

    def choose(self, virtual: Collection[str]) -> None:
        """Start again from another choice."""
        self.virtual = set(virtual)
        self._expressions.clear()
        self._emissions.clear()

    def affected(self, names: Collection[str]) -> list[str]:
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

    def change(self, to_write: set[str], to_hide: set[str]) -> Callable[[], None]:
        """Write some tensors and make others virtual; what is given back undoes it."""
        known = self.virtual, self._expressions.copy(), self._emissions.copy()

        def undo() -> None:
            self.virtual, self._expressions, self._emissions = known

        changed = to_write | to_hide
        stale = set(self.affected(changed))
        self.virtual = (self.virtual - to_write) | to_hide
        for name in stale | set(self.affected(changed)):
            self._expressions.pop(name, None)
            self._emissions.pop(name, None)
        return undo

    def is_verbatim(self, name: str) -> bool:
        """True if the node stays as it is: nothing it reads is virtual."""
        return not any(source in self.virtual for source in self.by_output[name].reads)

    def expression(self, name: str) -> Expression:
        """`name` in terms of tensors that are written.

        Raises:
            InexactError: substituting a virtual tensor would not be exact.
        """
        if name not in self._expressions:
            for each in dependencies_first(name, self._missing):
                self._expressions[each] = self._express(self.by_output[each])
        return self._expressions[name]

    def _missing(self, name: str) -> list[str]:
        """What must be expressed before `name`."""
        inputs = self.by_output[name].inputs
        return [source for source in inputs if source in self.virtual and source not in self._expressions]

    def _express(self, step: Step) -> Expression:
        """A step's output, what it reads and is virtual substituted."""
        found = self._substituted(step)
        self.effort += len(step.terms) + len(found.terms)
        return found

    def _substituted(self, step: Step) -> Expression:
        if any(name not in self.virtual for name in step.needs):
            hidden = [name for name in (step.output, *step.reads) if name in self.virtual]
            if hidden:
                raise InexactError(step.where, hidden[0], Kind.PIECE_READ())
        if step.border is not None:
            return self._bordered(step, step.border)
        terms: list[Term] = []
        through: list[tuple[Term, Bias]] = []
        for term in step.terms:
            if term.source not in self.virtual:
                terms.append(term)
                continue
            inner = self._expressions[term.source]
            try:
                terms += substitute(term, inner, self.by_output[term.source].where)
            except GeometryError as error:
                raise InexactError(step.where, term.source, _why(error)) from None
            if not inner.bias.is_surely_zero:
                through.append((term, inner.bias))
        compute = partial(_bias, step.offset, through) if through or step.offset else None
        return Expression(merge(terms), Bias(compute, step.rounding, [bias for _, bias in through]))

    def _bordered(self, step: Step, border: Constant) -> Expression:
        """A tensor padded with what it is there itself: its linear part padded with zeros, plus its bias everywhere."""
        (term,) = step.terms
        if step.output not in self.virtual and self.is_verbatim(step.output):
            return Expression(step.terms, Bias(None, step.rounding))  # nobody writes it anew
        if term.source not in self.virtual:
            # As it stands it is its author's nodes; otherwise it would be a sum of two tensors for the border's sake.
            where = step.output if step.output in self.virtual else next(n for n in step.needs if n in self.virtual)
            said = "its border holds numbers that are not zero, with which no convolution pads"
            raise InexactError(step.where, where, Kind.BORDER_VALUE(said=said))
        inner = self._expressions[term.source]
        if not inner.bias.minus(border).is_zero:
            what = self.by_output[term.source].where
            said = f"its border would have to hold what {what} makes of zeros, and holds other numbers"
            raise InexactError(step.where, term.source, Kind.BORDER_VALUE(said=said))
        try:
            terms = [term.after(each) for each in inner.terms]
        except GeometryError as error:
            raise InexactError(step.where, term.source, _why(error)) from None
        return Expression(merge(terms), inner.bias)

    def emission(self, name: str) -> Emission:
        """How `name` is written under this choice.

        Raises:
            InexactError: as `expression`, or it cannot be written in its tensors' layouts.
        """
        if name not in self._emissions:
            step = self.by_output[name]
            self._emissions[name] = self._alone(step) if self.is_verbatim(name) else self._write(step)
        return self._emissions[name]

    def is_kept(self, name: str) -> bool:
        """True if what is written is the node as it is.

        Raises:
            InexactError: as `emission`.
        """
        return any(isinstance(each, Keep) for each in self.emission(name).operations)

    def _alone(self, step: Step) -> Emission:
        """The node as it is; or its tensor written anew of the same, where that spares computing its operands."""
        kept = Emission((Keep(step.output, step.cost, step.stored),), Bias(None, step.rounding))
        if not step.computes_operands:
            return kept
        try:
            anew = self._write(step)
        except InexactError:
            return kept
        change = anew.cost - kept.cost
        is_cheaper = change.price() < -1e-9 * kept.cost.price()
        return anew if is_cheaper and change.multiply_adds <= 0 and change.convolutions <= 0 else kept

    def _write(self, step: Step) -> Emission:
        found = self.expression(step.output)
        try:
            sources = [self.placed[term.source] for term in found.terms]
            return emission(self.placed[step.output], found, sources, self.dialect)
        except GeometryError as error:
            inner = next((source for source in step.inputs if source in self.virtual), step.output)
            raise InexactError(step.where, inner, _why(error)) from None

    def cost(self, names: Iterable[str]) -> Cost:
        """What those of `names` cost that are written.

        Raises:
            InexactError: as `emission`.
        """
        return sum((self.emission(name).cost for name in names if name not in self.virtual), Cost())

    def operations(self, names: Iterable[str]) -> int:
        """How many operations those of `names` take that are written.

        Raises:
            InexactError: as `emission`.
        """
        return sum(len(self.emission(name).operations) for name in names if name not in self.virtual)

    def stored(self) -> list[Stored]:
        """The weights that the whole region reads under this choice, once for each reader.

        Raises:
            InexactError: as `emission`.
        """
        return [weight for name in self.by_output if name not in self.virtual for weight in self.emission(name).stored]

    def total(self) -> Cost:
        """What the whole region costs under this choice."""
        return self.cost(self.by_output)

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


def _why(error: GeometryError) -> Reason:
    return reason_of(error, Kind.ROUNDABOUT) or Kind.ROUNDABOUT(said=str(error))


def _bias(offset: Offset | None, through: Sequence[tuple[Term, Bias]]) -> Constant:
    """The constant part."""
    parts = [respond(term, bias) for term, bias in through]
    if offset is not None:
        parts.append(offset())
    return reduce(add, parts)
