"""Why neighbours that a user would have expected to become one stay several, told from the choice that was made.

Each reason is what comes out when the two are joined from that choice: it is not exact, or it is not cheaper.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from ...errors import GeometryError
from ...proof.report import GraphRefusal
from ..core.cost import Cost
from ..core.expression import Term
from ..core.reasons import Kind, Reason, reason_of
from ..core.step import Step
from .choice import Choice, InexactError
from .neighbours import Pair, pairs


@dataclass(frozen=True)
class Region:
    """A choice that was made of a region.

    makers: of all tensors that steps of the graph make. needed: those that must exist, and why, in words. names: what
    reports call the nodes that make tensors, inputs left out. limit: what the region cost as it was given. most: the
    effort after which no more is looked at.
    """

    chosen: Choice
    makers: Mapping[str, Step]
    needed: Mapping[str, str]
    names: Mapping[str, str]
    limit: Cost
    most: int

    @property
    def is_exhausted(self) -> bool:
        """True if no more is looked at."""
        return self.chosen.effort > self.most


def reasons(region: Region) -> list[GraphRefusal]:
    """Why neighbours of a region stay apart: a sum of branches in one, other neighbours pair by pair.

    Where joining some turns out to gain something, which the search did not try, they are joined.
    """
    while True:
        outcomes: dict[tuple[str, ...], _Outcome] = {}
        found = _explained(region, outcomes)
        gain = next((tensors for tensors, outcome in outcomes.items() if outcome.gains(region)), None)
        if gain is None:
            return _merged(found)
        region.chosen.change(set(), set(gain))


def _explained(region: Region, outcomes: dict[tuple[str, ...], _Outcome]) -> list[GraphRefusal]:
    """A reason for every two neighbours. outcomes: what was looked at for that, by the tensors that were hidden."""
    chosen = region.chosen
    found: list[GraphRefusal] = []
    covered: set[str] = set()
    for step, refusal, tensors in _branches(region, outcomes):
        found.append(refusal)
        covered |= {step.output, *tensors}
    for pair in pairs(chosen, region.makers):
        if pair.needed or not covered.issuperset((*pair.tensors, pair.reader.output)):
            found += [_apart(region, pair, outcomes)]
    for step in chosen.steps:
        if step.output not in chosen.virtual and step.output not in covered and not chosen.is_verbatim(step.output):
            found += _written_apart(region, step)
    return found


def _merged(found: Sequence[GraphRefusal]) -> list[GraphRefusal]:
    """Each reason of a node once, with all the neighbours it is given for."""
    merged: dict[tuple[str, str], GraphRefusal] = {}
    for each in found:
        known = merged.setdefault((each.where, each.why), each)
        beside = tuple(dict.fromkeys((*known.beside, *each.beside)))
        merged[each.where, each.why] = replace(known, beside=beside)
    return list(merged.values())


def _apart(region: Region, pair: Pair, outcomes: dict[tuple[str, ...], _Outcome]) -> GraphRefusal:
    """Why two neighbours are not one."""
    maker, reader = pair.maker.where, pair.reader.where
    if pair.needed:
        at = region.makers[pair.needed]
        return Kind.NEEDED(maker=at.where, reader=region.needed[pair.needed]).at(reader, (at.where, maker))
    if region.is_exhausted:
        return _impatient(region).at(reader, (maker,))
    outcome = _join(region, pair.tensors, outcomes)
    if outcome.error is None:
        return (_unmerged(region, pair, outcome) or outcome.priced(region)).at(reader, (maker,))
    if reader in outcome.spoiled:
        return outcome.error.why.at(outcome.error.where, (reader, maker))
    return Kind.NEEDED(maker=maker, reader=f"read by {outcome.error.where}, which it cannot be one with").at(
        reader, (maker,)
    )


@dataclass(frozen=True)
class _Outcome:
    """What comes of hiding some tensors: an error, and the names of what is written that it spoils; or two prices.

    sources: what the tensors go back to then.
    """

    before: Cost
    after: Cost
    sources: frozenset[str]
    error: InexactError | None = None
    spoiled: frozenset[str] = frozenset()

    @property
    def falls(self) -> bool:
        """True if the price does."""
        return (self.after - self.before).price() < -1e-9 * self.before.price()

    def more(self, region: Region) -> list[str]:
        """What there would be more of than may be."""
        change = self.after - self.before
        room = region.limit - region.chosen.total()
        both = change.multiply_adds > 0 and change.convolutions > 0
        return [
            word
            for word, rise, left in (
                ("multiply-adds", change.multiply_adds, room.multiply_adds),
                ("convolutions", change.convolutions, room.convolutions),
            )
            if both or rise > max(left, 0)
        ]

    def gains(self, region: Region) -> bool:
        """True if it is exact, cheaper, and allowed."""
        return self.error is None and self.falls and not self.more(region)

    def priced(self, region: Region, changed: str = "folded") -> Reason:
        """The two prices, and which number of them forbids it."""
        after = "the same" if self.after == self.before else _shown(self.after)
        words = {"before": _shown(self.before), "after": after, "changed": changed}
        prices = {"as_it_is": _numbers(self.before), "folded": _numbers(self.after)}
        if self.falls:
            return Kind.MORE(what=" and ".join(self.more(region)), **words, prices=prices)
        return Kind.NOT_CHEAPER(**words, prices=prices)


def _join(region: Region, tensors: Iterable[str], outcomes: dict[tuple[str, ...], _Outcome]) -> _Outcome:
    """What comes of hiding tensors that are written; looked at once."""
    key = tuple(sorted(tensors))
    if key not in outcomes:
        outcomes[key] = _joined(region.chosen, key)
    return outcomes[key]


def _joined(chosen: Choice, tensors: tuple[str, ...]) -> _Outcome:
    """Hide tensors that are written, look, and write them again."""
    affected = chosen.affected(tensors)
    before = chosen.cost(affected)
    undo = chosen.change(set(), set(tensors))
    try:
        after = chosen.cost(affected)
        sources = {term.source for name in tensors for term in chosen.expression(name).terms}
        return _Outcome(before, after, frozenset(sources))
    except InexactError as error:
        spoiled = {
            chosen.by_output[name].where
            for name in affected
            if name not in chosen.virtual and any(step.where == error.where for step in chosen.closure(name))
        }
        return _Outcome(before, before, frozenset(), error, frozenset(spoiled))
    finally:
        undo()


def _unmerged(region: Region, pair: Pair, outcome: _Outcome) -> Reason | None:
    """That a sum stays one, of tensors which go back to different ones; None if that is not why."""
    chosen, reader = region.chosen, pair.reader
    others = {term.source for term in chosen.expression(reader.output).terms} - {*pair.tensors}
    if not others or others & outcome.sources or outcome.falls:
        return None
    return _of_different(region, reader)


def _of_different(region: Region, step: Step) -> Reason:
    sources = dict.fromkeys(term.source for term in region.chosen.expression(step.output).terms)
    names = [region.names.get(name, name) for name in sources]
    joins = step.kind in ("Concat", "cat", "stack")
    return Kind.OTHER_TENSORS(does="joins" if joins else "adds", tensors=" and ".join(names))


def _written_apart(region: Region, step: Step) -> Iterator[GraphRefusal]:
    """Why what is written for a tensor is a sum of several."""
    terms = region.chosen.expression(step.output).terms
    if len(terms) < 2 or all(term.form.is_identity for term in terms):
        return
    beside = (each.where for each in region.chosen.closure(step.output) if each.computes)
    yield (_not_added(terms) or _of_different(region, step)).at(step.where, beside)


def _branches(
    region: Region, outcomes: dict[tuple[str, ...], _Outcome]
) -> Iterator[tuple[Step, GraphRefusal, set[str]]]:
    """A refusal for each outermost sum whose branches read one tensor and were not joined; the tensors it covers."""
    chosen = region.chosen
    covered: set[str] = set()
    for step in reversed(chosen.steps):
        if region.is_exhausted:
            return
        if step.output in covered or not _is_sum(step):
            continue
        ancestors = _ancestors(chosen, step)
        inside = ancestors - chosen.virtual
        if not inside or not _has_branches(chosen, step, inside):
            continue
        covered |= ancestors
        outcome = _join(region, inside, outcomes)
        if outcome.error is not None:
            continue  # its neighbours have reasons of their own
        beside = [chosen.by_output[name].where for name in sorted(inside)]
        unlike = _unlike(chosen, step, inside)
        if unlike is not None:
            yield step, unlike.at(step.where, beside), inside & {*step.inputs}
        elif outcome.before.convolutions:
            yield step, outcome.priced(region, "with its branches joined").at(step.where, beside), inside


def _is_sum(step: Step) -> bool:
    return len(step.inputs) > 1 and all(term.form.is_diagonal for term in step.terms)


def _ancestors(chosen: Choice, step: Step) -> set[str]:
    """Tensors `step` is made of that need not be written."""
    seen: set[str] = set()
    pending = [*step.inputs]
    while pending:
        name = pending.pop()
        if name in chosen.by_output and name not in chosen.fixed and name not in seen:
            seen.add(name)
            pending += chosen.by_output[name].inputs
    return seen


def _has_branches(chosen: Choice, step: Step, inside: set[str]) -> bool:
    """True if two tensors that `step` is still the sum of go back to the same tensor."""
    reached: set[str] = set()
    for name in dict.fromkeys(term.source for term in chosen.expression(step.output).terms):
        sources = _sources(chosen, name, inside)
        if reached & sources:
            return True
        reached |= sources
    return False


def _sources(chosen: Choice, name: str, inside: set[str]) -> set[str]:
    """The tensors that `name` goes back to once everything in between is substituted."""
    found: set[str] = set()
    seen: set[str] = set()
    pending = [name]
    while pending:
        source = pending.pop()
        if source in seen:
            continue
        seen.add(source)
        if source in inside or source in chosen.virtual:
            pending += chosen.by_output[source].inputs
        else:
            found.add(source)
    return found


def _unlike(chosen: Choice, step: Step, inside: set[str]) -> Reason | None:
    """Why the branches of a sum could not be added once all of them are substituted."""
    undo = chosen.change(set(), inside)
    try:
        return _not_added(chosen.expression(step.output).terms)
    finally:
        undo()


def _not_added(terms: Sequence[Term]) -> Reason | None:
    """Why two terms of one tensor are not one convolution; None if there are no such two."""
    known: dict[str, Term] = {}
    for term in terms:
        if term.source in known:
            try:
                known[term.source].plus(term)
            except GeometryError as error:
                return reason_of(error, Kind.NOT_ADDED)
        known[term.source] = term
    return None


def _impatient(region: Region) -> Reason:
    steps = region.chosen.steps
    return Kind.TOO_LARGE(steps=len(steps), first=steps[0].where, last=steps[-1].where)


def _shown(cost: Cost) -> str:
    plural = "" if cost.convolutions == 1 else "s"
    return (
        f"{cost.convolutions} convolution{plural} with {cost.multiply_adds:,.0f} multiply-adds and "
        f"{cost.moved:,.0f} numbers moved (price {cost.price():,.0f})"
    )


def _numbers(cost: Cost) -> dict[str, float]:
    return {
        "convolutions": cost.convolutions,
        "multiply_adds": cost.multiply_adds,
        "numbers_moved": cost.moved,
        "price": cost.price(),
    }
