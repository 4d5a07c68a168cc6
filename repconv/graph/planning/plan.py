"""Regions of affine steps, and which of their tensors are worth writing.

A `Step` makes one tensor as a sum of convolutions of others. A tensor that something non-linear or an output reads is
written whatever happens; each other one is either written or virtual, that is, substituted into those who read it.
Writing all of them is the graph as it was. `plan` looks for the cheapest choice, priced from shapes alone.
"""

from __future__ import annotations

import contextlib
import gc
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ...proof.report import GraphRefusal
from ..core.cost import MOVE, Cost
from ..core.step import Step
from ..maps.carried import Carried
from .choice import Choice, InexactError
from .dialect import Dialect
from .emission import Emission
from .refusals import Region, reasons
from .stock import Shared, Stock, shared, store_less

MOVE_FIRST_MULTIPLY_ADDS = 1e-6
"""The weight of traffic when multiply-adds alone must not rise."""

ROUNDS = 8
"""Passes over a region's tensors; prices fall in the first two or three."""

PATIENCE, PATIENCE_A_STEP = 200_000, 20
"""How many terms of expressions are computed for a graph, and how many more for each step of a region, before the best
choice so far is taken: in a chain of thousands of steps every try computes thousands of expressions anew. Half as many
more are computed to say why the rest stays."""


@dataclass(frozen=True)
class Plan:
    """What to write instead of the steps: `rewritten` tensors as their emission says; `virtual` ones not at all.

    Every other tensor stays with the node that made it. `origins`: the names of the nodes a rewritten tensor came from.
    `shared`: the weights that several nodes read before.
    """

    rewritten: Mapping[str, Emission]
    virtual: frozenset[str]
    origins: Mapping[str, tuple[str, ...]]
    refusals: tuple[GraphRefusal, ...]
    before: Cost
    after: Cost
    shared: tuple[Shared, ...] = ()

    def is_cheaper(self, other: Plan) -> bool:
        """True if it costs less than one of the same graph in other words, and multiplies no more."""
        mine, theirs = self.after, other.after
        within = mine.multiply_adds <= theirs.multiply_adds and mine.convolutions <= theirs.convolutions
        return within and mine.price() < theirs.price() * (1 - 1e-9)


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Look for no circles of objects meanwhile.

    Planning a chain of 3,000 convolutions makes millions of small values that live until its end, and looking through
    them again and again took more than half of its time.
    """
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


@_uncollected()
def plan(
    steps: Sequence[Step],
    needed: Mapping[str, str],
    names: Mapping[str, str],
    placed: Mapping[str, Carried],
    dialect: Dialect,
    besides: Collection[str] = (),
) -> Plan:
    """Choose, region by region, what to write.

    Args:
        steps: in the order they run.
        needed: tensors that must exist, and why: read by something that is no step, or an output.
        names: what reports call the nodes that make tensors.
        placed: the layout and sizes of every tensor a step reads or makes.
        dialect: of the graph that is written.
        besides: what nodes read that make no step, once for each of them; it is stored whatever is chosen.
    """
    made = {step.output: step for step in steps}
    read = {name for step in steps for name in step.reads}
    fixed = {name for name in made if name in needed or name not in read}
    rewritten: dict[str, Emission] = {}
    virtual: set[str] = set()
    origins: dict[str, tuple[str, ...]] = {}
    refusals: list[GraphRefusal] = []
    before = after = Cost()
    patience = PATIENCE
    weights = [weight for step in steps for weight in step.stored]
    stock = Stock(weights, besides)
    for region in regions(steps, fixed):
        choice = Choice(region, fixed, placed, dialect)
        most = patience + PATIENCE_A_STEP * len(region)
        stored = [weight for step in region for weight in step.stored]
        stock.remove(stored)
        chosen = solve(choice, most)
        if chosen.virtual and stock.shares(stored):
            store_less(chosen, stock, most)
        patience = max(0, patience - choice.effort)
        limit = sum((step.cost for step in region), Cost())
        refusals += reasons(Region(chosen, made, needed, names, limit, max(most, choice.effort) + most // 2))
        before += limit
        for step in region:
            name = step.output
            if name in chosen.virtual:
                virtual.add(name)
            elif not chosen.is_kept(name):
                rewritten[name] = chosen.emission(name)
                origins[name] = tuple(dict.fromkeys(s.where for s in chosen.closure(name)))
        after += chosen.total()
        stock.add(chosen.stored())
    gone = virtual | rewritten.keys()
    stay = [name for step in steps if step.output not in gone for name, _ in step.stored]
    several = shared(weights, besides, stay)
    return Plan(rewritten, frozenset(virtual), origins, tuple(refusals), before, after, several)


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
        for name in step.reads:
            if name in maker and name not in fixed:
                root[find(index)] = find(maker[name])
    found: dict[int, list[Step]] = defaultdict(list)
    for index, step in enumerate(steps):
        found[find(index)].append(step)
    return list(found.values())


def solve(choice: Choice, most: int) -> Choice:
    """Take the cheapest choice found that needs no more multiply-adds than the nodes as they stand.

    most: the effort after which no other is looked for.
    """
    original = sum((step.cost for step in choice.steps), Cost())
    best, best_price = set[str](), original.price()
    for move in (MOVE, MOVE_FIRST_MULTIPLY_ADDS):
        for start in (_start(choice), set[str]()):
            if choice.effort > most or not _search(choice, start, move, original, most):
                break
            total = choice.total()
            cheaper = total.price() < best_price * (1 - 1e-9)
            within = total.multiply_adds <= original.multiply_adds and total.convolutions <= original.convolutions
            if cheaper and within:
                best, best_price = set(choice.virtual), total.price()
        if best or len(choice.steps) < 2:
            break
    choice.choose(best)
    _keep_nodes(choice)
    return choice


def _keep_nodes(choice: Choice) -> None:
    """Leave pools and changes of layout with their nodes where writing them anew gains nothing."""
    for step in choice.steps:
        pools = any(term.pool or term.pooled for term in step.terms)
        moves = step.only_moves and step.terms[0].form.is_identity and choice.is_verbatim(step.output)
        if step.output not in choice.virtual or not (pools or moves):
            continue
        affected = choice.affected([step.output])
        before, many = choice.cost(affected), choice.operations(affected)
        undo = choice.change({step.output}, set())
        affected = choice.affected([step.output])
        try:
            after, many_now = choice.cost(affected), choice.operations(affected)
        except InexactError:
            undo()
            continue
        fits = after.multiply_adds <= before.multiply_adds and after.convolutions <= before.convolutions
        if not fits or after.price() > before.price() * (1 + 1e-9) or many_now > many:
            undo()


def _start(choice: Choice) -> set[str]:
    """All virtual, but for sums that several steps read: substituting those repeats the sum for each."""
    sums = {s.output for s in choice.steps if len(s.inputs) > 1 and len(choice.readers[s.output]) > 1}
    return set(choice.free) - sums


def _search(choice: Choice, start: set[str], move: float, limit: Cost, most: int) -> bool:
    """Flip while the price falls, never further past the multiply-adds and convolutions of `limit`.

    Returns whether the choice is exact; it may not be where the effort rose past `most`.
    """
    choice.choose(start)
    # What one step needs written may make another, seen before, inexact in its turn; fewer are virtual each time.
    while sum(_repair(choice, step) for step in choice.steps):
        if choice.effort > most:
            return False
    groups = [[name] for name in choice.free]
    for step in choice.steps:
        group = [name for name in step.inputs if name in choice.by_output and name not in choice.fixed]
        if len(group) > 1:
            groups += [group]
    room = limit - choice.total()
    for _ in range(ROUNDS):
        before = room
        for group in groups:
            if choice.effort > most:
                return True
            room -= _flip(choice, group, move, room)
        if room == before:
            break
    return True


def _repair(choice: Choice, step: Step) -> bool:
    """Write what makes `step` inexact, its inputs' own expressions being exact. Returns whether anything was."""
    repaired = False
    while True:
        try:
            choice.expression(step.output)
            if step.output not in choice.virtual:
                choice.emission(step.output)
        except InexactError as error:
            choice.change({error.inner}, set())
            repaired = True
        else:
            return repaired


def _flip(choice: Choice, group: Sequence[str], move: float, room: Cost) -> Cost:
    """Flip all of `group` to written, or to virtual if it is; keep that if the price falls. Returns what changed.

    room: what may still be added.
    """
    written, unwritten = set(group) & choice.virtual, set(group) - choice.virtual
    affected = choice.affected(group)
    before = choice.cost(affected)
    undo = choice.change(written, set()) if written else choice.change(set(), unwritten)
    try:
        after = choice.cost(affected)
    except InexactError:
        undo()
        return Cost()
    change = after - before
    if _fits(change, room) and _is_better(before, after, move):
        return change
    undo()
    return Cost()


def _fits(change: Cost, room: Cost) -> bool:
    pairs = (change.multiply_adds, room.multiply_adds), (change.convolutions, room.convolutions)
    return all(more <= max(left, 0) for more, left in pairs)


def _is_better(before: Cost, after: Cost, move: float) -> bool:
    change = after - before
    falls = change.price(move) < -1e-9 * before.price(move)
    # Two convolutions for one may save traffic on paper (a sum before a strided depthwise convolution); they cost
    # a kernel launch and a weight, and a user counts them.
    more = change.convolutions > 0 and change.multiply_adds > 0
    fewer = change.convolutions < 0 and change.multiply_adds < 0
    return (falls and not more) or fewer
