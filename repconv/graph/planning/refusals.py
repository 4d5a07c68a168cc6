"""Why branches that a user would have expected to become one stay several, in words."""

from __future__ import annotations

from collections.abc import Sequence

from ...errors import GeometryError
from ...proof.report import Refusal
from ..core.cost import Cost
from ..core.expression import Term
from ..core.step import Step
from .choice import Choice, InexactError


def reasons(chosen: Choice) -> list[Refusal]:
    """Why tensors that stayed could not be substituted, and which sums of branches stayed for their price."""
    priced = _priced(chosen)  # it may find one more reason of the first kind
    exact = [refusal for (_, inner), refusal in chosen.inexact.items() if inner not in chosen.virtual]
    return [*exact, *priced]


def _priced(chosen: Choice) -> list[Refusal]:
    """A refusal for each outermost sum whose branches read one tensor and were not joined."""
    found: list[Refusal] = []
    covered: set[str] = set()
    for step in reversed(chosen.steps):
        if step.output in covered or not _is_sum(step):
            continue
        ancestors = _ancestors(chosen, step)
        inside = ancestors - chosen.virtual
        if not inside or not _has_branches(chosen, step, inside):
            continue
        covered |= ancestors
        refusal = _compare(chosen, step, inside)
        if refusal is not None:
            found.append(refusal)
    return found[::-1]


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


def _compare(chosen: Choice, step: Step, inside: set[str]) -> Refusal | None:
    """The price of the sum as it stands beside that of its branches as one.

    None if joining them is not exact, or there is no convolution.
    """
    before = chosen.total()
    if not before.convolutions:
        return None
    undo = chosen.change(set(), inside)
    try:
        joined = chosen.expression(step.output)
        after = chosen.total()
    except InexactError as error:
        chosen.note(error)
        return None
    finally:
        undo()
    twice = _not_added(joined.terms)
    if twice:
        return Refusal(step.where, f"its branches cannot be added: {twice}")
    return Refusal(step.where, f"not cheaper: {_shown(before)} as it stands, {_shown(after)} with its branches joined")


def _not_added(terms: Sequence[Term]) -> str:
    """Why two terms of one tensor are not one convolution; nothing if there are no such two."""
    known: dict[str, Term] = {}
    for term in terms:
        if term.source in known:
            try:
                known[term.source].plus(term)
            except GeometryError as error:
                return str(error)
        known[term.source] = term
    return ""


def _shown(cost: Cost) -> str:
    plural = "" if cost.convolutions == 1 else "s"
    return (
        f"{cost.convolutions} convolution{plural} with {cost.multiply_adds:,.0f} multiply-adds and "
        f"{cost.moved:,.0f} numbers moved"
    )
