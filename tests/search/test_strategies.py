"""Every strategy, asked and told: what all promise, and what each is."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Callable
from fractions import Fraction
from statistics import pstdev

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from repconv import SearchError
from repconv.search.strategies import STRATEGIES, Member, SearchPlan, State, create_strategy, state_from_dict
from repconv.search.strategies.evolution import Breeding, age_term, first_population
from repconv.search.strategies.evolving.cars import rises
from repconv.search.strategies.evolving.fronts import crowding, fronts, merged
from repconv.search.supernet.architecture import Architecture
from repconv.search.supernet.space import SearchSpace, SpaceBlock
from repconv.search.supernet.supernet import Gates

KINDS = ("1x1", "avg", "1x3", "3x1")
SPACE = SearchSpace(tuple(SpaceBlock(f"layer{i}", ("3x3",), KINDS) for i in range(5)))
ZERO = Gates((0.0,) * 20, (0.0,) * 5)
GOOD = (0, 3, 4, 9, 10, 15)
LEARNT = Gates(tuple(2.0 if i in GOOD else -2.0 for i in range(20)), (0.0,) * 5)
AGES = {"scale": 0.05, "limit": 4.0, "offset": 0.01}
Score = Callable[[Architecture], float]
every = pytest.mark.parametrize("name", STRATEGIES)


def plan(**changes: object) -> SearchPlan:
    usual = SearchPlan(space=SPACE, budget=10, population=8, children=8, generations=6, initial=ZERO)
    return dataclasses.replace(usual, **changes)


def first(count: int) -> tuple[Architecture, ...]:
    return first_population(SPACE, 10, count, torch.Generator().manual_seed(3))


def goodness(architecture: Architecture) -> float:
    return sum(architecture.mask[i] for i in GOOD) / len(GOOD)


def searched(
    name: str, wanted: SearchPlan, score: Score = goodness, gates: Gates = LEARNT, seed: int = 0
) -> list[State]:
    """The state after each generation."""
    strategy, generator = create_strategy(name, wanted), torch.Generator().manual_seed(seed)
    state, states = State(gates=wanted.initial), []
    for _ in range(wanted.generations):
        question = strategy.ask(state, generator)
        assert question.train
        assert [m.architecture for m in question.state.asked] == list(question.measure)
        state = strategy.tell(question.state, [score(a) for a in question.measure], gates)
        states.append(state)
    return states


@every
def test_what_is_found_is_within_the_budget_and_no_larger_than_the_population(name: str) -> None:
    wanted = plan()
    states = searched(name, wanted)
    found = create_strategy(name, wanted).outcome(states[-1])
    assert 1 <= len(set(found)) == len(found) <= wanted.population
    assert all(a.size <= wanted.budget for a in found)
    assert [s.generation for s in states] == list(range(1, 7))
    assert not states[-1].asked


@every
@pytest.mark.parametrize("changes", [{}, {"population": 3, "children": 1}, {"children": 0}], ids=str)
def test_no_more_is_measured_than_it_says(name: str, changes: dict[str, int]) -> None:
    wanted, measured = plan(**changes), 0
    strategy, generator = create_strategy(name, wanted), torch.Generator().manual_seed(0)
    state = State(gates=wanted.initial)
    for _ in range(wanted.generations):
        question = strategy.ask(state, generator)
        measured += len(question.measure)
        state = strategy.tell(question.state, [goodness(a) for a in question.measure], LEARNT)
    measured += len(strategy.outcome(state))
    assert measured <= strategy.measurements
    assert changes or name == "cars" or measured == strategy.measurements  # a front may be smaller


@every
def test_the_same_seed_gives_the_same_search(name: str) -> None:
    assert searched(name, plan()) == searched(name, plan())


@every
def test_asking_and_telling_change_no_state(name: str) -> None:
    strategy = create_strategy(name, plan())
    states = searched(name, plan())
    before = json.dumps(states[2].to_dict())
    question = strategy.ask(states[2], torch.Generator().manual_seed(5))
    strategy.tell(question.state, [0.5] * len(question.measure), ZERO)
    assert json.dumps(states[2].to_dict()) == before
    with pytest.raises(dataclasses.FrozenInstanceError):
        states[2].generation = 0


@every
def test_a_state_survives_json(name: str) -> None:
    strategy = create_strategy(name, plan())
    for state in searched(name, plan()):
        asked = strategy.ask(state, torch.Generator().manual_seed(1)).state
        for one in (state, asked):
            assert state_from_dict(json.loads(json.dumps(one.to_dict())), SPACE) == one


@every
def test_the_wrong_number_of_scores_is_refused(name: str) -> None:
    strategy = create_strategy(name, plan())
    question = strategy.ask(State(gates=ZERO), torch.Generator().manual_seed(0))
    with pytest.raises(SearchError, match="scores were asked for, got"):
        strategy.tell(question.state, [0.5] * (len(question.measure) + 1), ZERO)


@every
def test_a_space_of_one_architecture_does_not_loop_for_ever(name: str) -> None:
    wanted = plan(budget=20, population=128, children=128, generations=15)
    states = searched(name, wanted)
    found = create_strategy(name, wanted).outcome(states[-1])
    if name != "cars":  # whose architectures may be smaller than the budget
        assert found == (Architecture.full(SPACE),)
    assert found


@pytest.mark.parametrize("name", ["des", "random", "aging", "aging-rescored", "cars"])
def test_populations_get_better(name: str) -> None:
    states = searched(name, plan(generations=30), gates=ZERO)
    first, last = (max(m.accuracy for m in s.members) for s in (states[0], states[-1]))
    assert last > first or last == 1


@pytest.mark.parametrize("name", ["des", "random", "aging", "aging-rescored", "cars"])
def test_what_lives_on_is_a_generation_older_and_what_is_new_is_1(name: str) -> None:
    states = searched(name, plan(generations=8))
    ages = [{member.architecture: member.age for member in state.members} for state in states]
    for before, now in itertools.pairwise(ages):
        assert now == {architecture: 1 + before.get(architecture, 0) for architecture in now}
    assert max(ages[-1].values()) > 1


def test_learnt_gates_make_des_faster_than_random_search() -> None:
    mean = {
        name: sum(max(m.accuracy for m in searched(name, plan(), seed=s)[2].members) for s in range(10)) / 10
        for name in ("des", "random")
    }
    assert mean["des"] > mean["random"] + 0.05


class TestDes:
    def test_ages_count_generations_survived_and_scores_are_equation_15(self) -> None:
        states = searched("des", plan(age_limit=5.0, age_unit="accuracy"))
        for before, after in itertools.pairwise(states):
            ages = {m.architecture: m.age for m in before.members}
            for member in after.members:
                assert member.age == ages.get(member.architecture, 0) + 1
                term = age_term(member.age, scale=0.05, limit=5, offset=0.01)
                assert member.score == pytest.approx(member.accuracy + term)

    def test_the_best_of_parents_and_children_live_on(self) -> None:
        strategy = create_strategy("des", plan(age_unit="accuracy"))
        state = searched("des", plan())[0]
        question = strategy.ask(state, torch.Generator().manual_seed(1))
        ages = [m.age for m in question.state.asked]
        assert ages == [2] * 8 + [1] * 8
        accuracies = [i / 16 for i in range(16)]
        survivors = strategy.tell(question.state, accuracies, LEARNT).members
        terms = {age: age_term(age, scale=0.05, limit=10, offset=0.01) for age in (1, 2)}
        written = sorted((a + terms[e] for a, e in zip(accuracies, ages, strict=True)), reverse=True)[:8]
        assert [m.score for m in survivors] == pytest.approx(written)

    @pytest.mark.parametrize("strength", [0.0, 0.5, 2.0])
    def test_in_units_of_the_spread_a_life_costs_so_many_standard_deviations(self, strength: float) -> None:
        strategy = create_strategy("des", plan(age_limit=4.0, age_strength=strength))
        asked = tuple(Member(a, age=age) for a, age in zip(first(6), (3, 2, 1, 1, 2, 1), strict=True))
        scores = [0.70, 0.71, 0.69, 0.70, 0.72, 0.705]
        kept = strategy.tell(State(gates=ZERO, asked=asked), scores, LEARNT).members
        spread, fall = pstdev(scores), age_term(1, **AGES) - age_term(3, **AGES)
        for member in kept:
            term = (age_term(member.age, **AGES) - age_term(1, **AGES)) / fall
            assert member.score == pytest.approx(member.accuracy + strength * spread * term)
        oldest = next(m for m in kept if m.age == 3)
        assert oldest.score == pytest.approx(0.70 - strength * spread)

    @pytest.mark.parametrize(("unit", "live_on"), [("accuracy", 0), ("spread", 6)])
    def test_parents_live_on_by_accuracy_however_close_accuracies_are(self, unit: str, live_on: int) -> None:
        """The six best of eight parents, among children that are all a little worse, of accuracies 0.6 points apart."""
        wanted = plan(age_unit=unit, children=16, age_limit=5.0, age_strength=0.5)
        asked = [Member(a, age=2) for a in first(8)] + [Member(a) for a in first(24)[8:]]
        scores = [0.800 + 0.001 * i for i in range(8)] + [0.8015] * 16
        state = create_strategy("des", wanted).tell(State(gates=ZERO, asked=tuple(asked)), scores, LEARNT)
        assert sum(m.age == 2 for m in state.members) == live_on

    def test_nothing_lives_past_the_age_limit(self) -> None:
        favourite: list[Architecture] = []

        def score(architecture: Architecture) -> float:
            favourite[:] = favourite or [architecture]
            return 1.0 if architecture == favourite[0] else 0.1

        wanted = plan(age_limit=4.0, generations=7, breeding=Breeding(attempts=1))
        lived = [any(m.architecture == favourite[0] for m in s.members) for s in searched("des", wanted, score)]
        # Told at ages 1, 2, 3; at 4 it is gone.
        assert lived[:4] == [True, True, True, False]
        favourite.clear()
        ageless = searched("des", dataclasses.replace(wanted, age=False), score)
        assert all(any(m.architecture == favourite[0] for m in s.members) for s in ageless)
        assert all(m.score == m.accuracy for s in ageless for m in s.members)

    def test_a_population_that_would_die_out_is_born_again(self) -> None:
        states = searched("des", plan(budget=20, age_limit=3.0, generations=5))
        assert [[m.age for m in s.members] for s in states] == [[1], [2], [1], [2], [1]]


class TestAging:
    def test_children_exchange_one_branch_and_the_oldest_leave(self) -> None:
        states = searched("aging", plan())
        for before, after in itertools.pairwise(states):
            old = [m.architecture for m in before.members]
            now = [m.architecture for m in after.members]
            assert now[: len(old) - 2] == old[2:]
            for child in now[-2:]:
                differing = [sum(a != b for a, b in zip(child.mask, one.mask, strict=True)) for one in old]
                assert min(differing) == 2
                assert child.size == 10
        assert max(m.age for m in states[-1].members) <= 5

    @pytest.mark.parametrize("name", ["aging", "aging-rescored"])
    def test_as_published_a_member_keeps_its_first_score_and_rescored_it_has_the_newest(self, name: str) -> None:
        """Accuracy rises by 0.1 a generation, as shared weights learn: published, age alone tells members apart."""
        wanted, generator = plan(), torch.Generator().manual_seed(0)
        strategy, state = create_strategy(name, wanted), State(gates=ZERO)
        for generation in range(wanted.generations):
            question = strategy.ask(state, generator)
            state = strategy.tell(question.state, [0.1 * generation] * len(question.measure), ZERO)
            for member in state.members:
                born = generation + 1 - member.age
                assert member.accuracy == pytest.approx(0.1 * (generation if name == "aging-rescored" else born))
            assert [m.age for m in state.members] == sorted((m.age for m in state.members), reverse=True)


VALUES = st.integers(0, 5).map(float)


class TestCars:
    @given(st.lists(st.tuples(VALUES, VALUES), min_size=1, max_size=14))
    def test_a_points_front_is_the_longest_chain_of_points_that_dominate_each_other_down_to_it(self, points) -> None:
        def chain(i: int) -> int:
            a = points[i]
            above = [j for j, b in enumerate(points) if b != a and b[0] <= a[0] and b[1] <= a[1]]
            return 1 + max((chain(j) for j in above), default=-1)

        found = fronts(points)
        assert [sorted(front) for front in found] == found
        assert {i: k for k, front in enumerate(found) for i in front} == {i: chain(i) for i in range(len(points))}

    @given(st.lists(st.tuples(VALUES, VALUES, VALUES), min_size=1, max_size=14), st.integers(1, 14))
    def test_merging_keeps_whole_stages_of_both_sortings_and_then_some_of_the_next(self, values, count) -> None:
        lists = [[(a, c) for a, _, c in values], [(b, c) for _, b, c in values]]
        kept = merged(lists, count)
        assert len(set(kept)) == len(kept) == min(count, len(values))
        sortings = [fronts(points) for points in lists]
        best = [min(next(k for k, f in enumerate(s) if i in f) for s in sortings) for i in range(len(values))]
        last = max(best[i] for i in kept)
        assert {i for i, stage in enumerate(best) if stage < last} <= set(kept)

    def test_a_larger_network_that_learns_fast_lives_beside_smaller_more_accurate_ones(self) -> None:
        """It is dominated by error and size, and on the first front by error and rise only because it rises most."""
        masks = [Architecture(SPACE, tuple(i < size for i in range(20))) for size in (3, 6, 9)]
        before = tuple(Member(a, accuracy=v) for a, v in zip(masks, (0.79, 0.795, 0.5), strict=True))
        scores = [0.80, 0.80, 0.70]
        kept = create_strategy("cars", plan(population=2)).tell(State(gates=ZERO, asked=before), scores, ZERO).members
        assert [m.architecture.size for m in kept] == [3, 9]
        slow = [0.80, 0.81, 0.51]
        kept = create_strategy("cars", plan(population=2)).tell(State(gates=ZERO, asked=before), slow, ZERO).members
        assert [m.architecture.size for m in kept] == [3, 6]

    def test_a_newborn_is_taken_to_rise_as_the_living_did(self) -> None:
        masks = first(4)
        asked = [*(Member(a, accuracy=v) for a, v in zip(masks, (0.5, 0.6, 0.7), strict=False)), Member(masks[3])]
        assert rises(asked, [0.55, 0.75, 0.71, 0.2]) == pytest.approx([0.05, 0.15, 0.01, 0.05])
        assert rises([Member(a) for a in masks], [0.1] * 4) == [0.0] * 4

    def test_fronts_by_hand(self) -> None:
        points = [(0.1, 5.0), (0.2, 3.0), (0.3, 4.0), (0.2, 5.0), (0.4, 6.0), (0.1, 5.0)]
        assert fronts(points) == [[0, 1, 5], [2, 3], [4]]

    def test_crowding_by_hand(self) -> None:
        assert crowding([(0.0, 10.0), (0.5, 4.0), (1.0, 0.0), (0.1, 8.0)]) == pytest.approx(
            [math.inf, 0.9 + 0.8, math.inf, 0.5 + 0.6]
        )
        assert crowding([(0.5, 3.0)]) == [math.inf]

    def test_small_architectures_live_beside_accurate_ones(self) -> None:
        sizes = {m.architecture.size for m in searched("cars", plan(generations=20))[-1].members}
        assert len(sizes) > 2
        assert max(sizes) <= 10


class TestGradientAndGold:
    def test_gradient_keeps_the_largest_gates_and_trains_everything(self) -> None:
        strategy = create_strategy("gradient", plan(budget=6))
        assert strategy.ask(State(gates=ZERO), torch.Generator()).train == (Architecture.full(SPACE),)
        (found,) = strategy.outcome(searched("gradient", plan(budget=6))[-1])
        assert [i for i, on in enumerate(found.mask) if on] == list(GOOD)

    def test_the_gate_of_the_block_counts(self) -> None:
        gates = Gates(ZERO.alpha, (0.0, 3.0, -3.0, 0.0, 0.0))
        (found,) = create_strategy("gradient", plan(budget=4)).outcome(State(gates=gates))
        assert found.active["layer1"] == KINDS

    def test_gold_prunes_evenly_and_trains_the_result_as_it_is(self) -> None:
        states = searched("gold", plan(budget=6, generations=6))
        sizes = [m.architecture.size for s in states for m in s.members]
        assert sizes == [17, 14, 11, 8, 6, 6]
        assert [i for i, on in enumerate(states[-1].members[0].architecture.mask) if on] == list(GOOD)
        masks = [{a for a, on in enumerate(s.members[0].architecture.mask) if on} for s in states]
        assert all(later <= earlier for earlier, later in itertools.pairwise(masks))
        assert [s.members[0].architecture.size for s in searched("gold", plan(generations=1))] == [10]


class TestGold:
    def fallen(self, *slots: int) -> Gates:
        return Gates(tuple(-6.0 if i in slots else 0.01 * i for i in range(20)), (0.0,) * 5)

    def told(self, wanted: SearchPlan, gates: Gates, state: State | None = None) -> State:
        strategy = create_strategy("gold", wanted)
        question = strategy.ask(state or State(gates=wanted.initial), torch.Generator())
        return strategy.tell(question.state, [0.5], gates)

    def test_every_gate_that_fell_is_pruned_but_never_below_the_budget(self) -> None:
        wanted = plan(budget=10, generations=11)  # an even pace prunes one a generation
        state = self.told(wanted, self.fallen(1, 2, 7))
        assert [i for i, on in enumerate(state.members[0].architecture.mask) if not on] == [1, 2, 7]
        state = self.told(wanted, self.fallen(*range(16)), state)
        assert state.members[0].architecture.size == 10
        assert all(state.members[0].architecture.mask[i] for i in range(16, 20))

    def test_the_charge_is_raised_where_pruning_is_slow_and_nothing_is_paid_at_the_budget(self) -> None:
        wanted = plan(budget=10, generations=11)
        strategy, state = create_strategy("gold", wanted), State(gates=ZERO)
        paid, sizes = [], []
        for generation in range(11):
            question = strategy.ask(state, torch.Generator())
            paid.append(sum(question.training.charges))
            sizes.append(question.train[0].size)
            fell = range(4) if generation == 3 else ()
            state = strategy.tell(question.state, [0.5], self.fallen(*fell))
        assert sizes == list(range(20, 9, -1))
        raised = [after / before for before, after in itertools.pairwise(p for p in paid if p)]
        assert raised == pytest.approx([2.0] * 3 + [1.0] + [2.0] * 5), "the fourth time a gate fell by itself"
        assert paid[-1] == 0
        assert paid[0] == pytest.approx(0.1)

    def test_charges_are_half_by_flops_and_half_the_same_for_all(self) -> None:
        flops = tuple(float(i) for i in range(20))
        charges = create_strategy("gold", plan(flops=flops)).ask(State(gates=ZERO), torch.Generator()).training.charges
        assert charges == pytest.approx([0.1 * (0.5 / 20 + 0.5 * i / 190) for i in range(20)])


SKIPPING = SearchSpace(tuple(SpaceBlock(f"layer{i}", ("3x3",), ("skip", *KINDS)) for i in range(6)))
gate_values = st.lists(st.integers(-20, 20).map(lambda v: v / 5), min_size=30, max_size=30)


class TestPDarts:
    @given(gate_values, st.integers(1, 30), st.integers(1, 9))
    @settings(max_examples=60)
    def test_candidates_are_cut_in_every_block_towards_the_budget_with_few_skips(self, values, budget, count) -> None:
        gates = Gates(tuple(values), (0.0,) * 6)
        initial = Gates((0.0,) * 30, (0.0,) * 6)
        wanted = SearchPlan(space=SKIPPING, budget=budget, population=1, children=0, generations=count, initial=initial)
        strategy, state = create_strategy("pdarts", wanted), State(gates=initial)
        trained, begun = [], []
        for _ in range(count):
            question = strategy.ask(state, torch.Generator())
            (left,) = question.train
            trained.append(left)
            begun.append(question.training.afresh)
            assert question.training.gates == "first"
            state = strategy.tell(question.state, [0.5], gates)
        (found,) = strategy.outcome(state)
        stages = min(3, count)
        assert sum(begun) == stages
        assert begun[0]
        for before, after, anew in zip(trained, trained[1:], begun[1:], strict=False):
            assert all(a or not b for a, b in zip(before.mask, after.mask, strict=True))
            assert anew or before == after
        by_stage = [left for left, anew in zip(trained, begun, strict=True) if anew]
        for done, left in enumerate(by_stage):
            share = 1 - (1 - Fraction(budget, 30)) * Fraction(done, stages)
            assert {len(kinds) for kinds in left.active.values()} == {math.ceil(share * 5)}
            for number in range(6):
                ranked = sorted(values[5 * number : 5 * number + 5], reverse=True)
                kept = [v for v, on in list(zip(values, left.mask, strict=True))[5 * number : 5 * number + 5] if on]
                assert sorted(kept, reverse=True) == ranked[: len(kept)]
        assert found.size == budget
        assert all(a or not b for a, b in zip(trained[-1].mask, found.mask, strict=True))
        skips = sum("skip" in kinds for kinds in found.active.values())
        others = sum(len(kinds) - ("skip" in kinds) for kinds in trained[-1].active.values())
        assert skips <= max(2, budget - others)

    def test_skip_connections_are_dropped_less_and_less_within_a_stage(self) -> None:
        wanted = SearchPlan(
            space=SKIPPING, budget=20, population=1, children=0, generations=6,
            initial=Gates((0.0,) * 30, (0.0,) * 6),
        )  # fmt: skip
        strategy, state = create_strategy("pdarts", wanted), State(gates=wanted.initial)
        chances = []
        for _ in range(6):
            question = strategy.ask(state, torch.Generator())
            dropped = question.training.dropped
            chances.append(dropped and (dropped.first, dropped.last))
            assert not dropped or {SKIPPING.slots[i].branch for i in dropped.slots} == {"skip"}
            gates = Gates(tuple(1.0 if s.branch == "skip" else 0.0 for s in SKIPPING.slots), (0.0,) * 6)
            state = strategy.tell(question.state, [0.5], gates)
        assert chances[:2] == [None, None]
        halfway = math.exp(-1.5)
        expected = [(p * a, p * a * halfway) for p in (0.4, 0.7) for a in (1, halfway)]
        assert [c for pair in chances[2:] for c in pair] == pytest.approx([c for pair in expected for c in pair])


def test_repnas_draws_the_budget_of_each_mini_batch_from_the_whole_net_by_its_gates() -> None:
    strategy, generator = create_strategy("repnas", plan(budget=6)), torch.Generator().manual_seed(0)
    question = strategy.ask(State(gates=ZERO), generator)
    assert question.train == (Architecture.full(SPACE),)

    def often(gates: Gates) -> list[float]:
        masks = [
            question.training.drawn(question.train, 1, gates=lambda: gates, budget=6, share=0.0, generator=generator)[
                0
            ].mask
            for _ in range(2000)
        ]
        assert {sum(mask) for mask in masks} == {6}
        return [sum(column) / 2000 for column in zip(*masks, strict=True)]

    assert often(ZERO) == pytest.approx([0.3] * 20, abs=0.05), "at first all alike"
    learnt = often(LEARNT)
    assert min(learnt[i] for i in GOOD) > 2 * max(v for i, v in enumerate(learnt) if i not in GOOD)
    assert strategy.outcome(searched("repnas", plan(budget=6))[-1])[0].mask == tuple(i in GOOD for i in range(20))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"budget": 0}, "budget is 1 to 20"),
        ({"budget": 21}, "budget is 1 to 20"),
        ({"population": 0}, "population is at least 1"),
        ({"generations": 0}, "generations is at least 1"),
        ({"breeding": Breeding(mutation=1.5)}, "mutation is a chance from 0 to 1, got 1.5"),
        ({"age_limit": 1.0}, "age limit a is above 1"),
        ({"age_offset": 0.1}, "mu is above 0 and below"),
    ],
)
def test_plans_that_make_no_sense(changes: dict[str, object], says: str) -> None:
    with pytest.raises(SearchError, match=says):
        plan(**changes)
    if "age_limit" in changes or "age_offset" in changes:
        plan(**changes, age=False)


def test_an_unknown_strategy_names_the_nearest() -> None:
    with pytest.raises(SearchError, match=r"unknown strategy 'dse' \(did you mean 'des'\?\); they are des, random"):
        create_strategy("dse", plan())
    assert Member(Architecture.full(SPACE)).age == 1
