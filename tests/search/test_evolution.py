"""The equations of differentiable evolution against direct transcriptions, and the edges of small spaces."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from repconv import SearchError
from repconv.search.strategies import evolution
from repconv.search.strategies.evolution import (
    Breeding,
    age_share,
    age_term,
    breed,
    check_age,
    disturbed_factors,
    first_population,
)
from repconv.search.supernet.architecture import Architecture
from repconv.search.supernet.space import SearchSpace, SpaceBlock
from repconv.search.supernet.supernet import Gates

SPACE = SearchSpace(
    (
        SpaceBlock("a", ("3x3",), ("1x1", "avg", "skip")),
        SpaceBlock("b", ("3x3",), ()),
        SpaceBlock("c", ("3x3",), ("1x3", "3x1")),
    )
)
ZERO = Gates((0.0,) * 5, (0.0,) * 3)
GATES = Gates((1.2, -0.4, 0.3, -2.0, 0.9), (0.5, 99.0, -1.5))
seeds = st.integers(0, 2**32)
probabilities = st.floats(0, 1)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x))


class TestAge:
    @pytest.mark.parametrize(("limit", "start"), [(10, -0.0055), (5, -0.0125)])
    def test_a_newborn_is_hardly_penalised(self, limit: float, start: float) -> None:
        assert age_term(1, scale=0.05, limit=limit, offset=0.01) == pytest.approx(start, abs=5e-5)

    @pytest.mark.parametrize("age", range(1, 10))
    def test_it_is_equation_14(self, age: int) -> None:
        eta, a, mu = 0.05, 10, 0.1  # those of figure 2, which a run would refuse
        written = eta * (1 / (age - a - mu) - math.log10(age))
        assert age_term(age, scale=eta, limit=a, offset=mu) == pytest.approx(written, rel=1e-12)

    def test_it_falls_with_age_and_nothing_lives_from_the_limit_on(self) -> None:
        terms = [age_term(age, scale=0.05, limit=5, offset=0.01) for age in range(1, 8)]
        assert terms == sorted(terms, reverse=True)
        assert terms[4:] == [-math.inf] * 3
        assert all(math.isfinite(term) for term in terms[:4])

    @pytest.mark.parametrize("limit", [2.5, 5, 7.25, 10])
    def test_as_a_share_it_is_the_same_curve_from_0_to_minus_1(self, limit: float) -> None:
        settings = {"scale": 0.05, "limit": limit, "offset": 0.01}
        last = math.ceil(limit) - 1
        shares = [age_share(age, **settings) for age in range(1, last + 1)]
        assert (shares[0], shares[-1]) == (0, -1)
        terms = [age_term(age, **settings) for age in range(1, last + 1)]
        fall = terms[0] - terms[-1]
        assert shares == pytest.approx([(term - terms[0]) / fall for term in terms])
        assert age_share(last + 1, **settings) == -math.inf

    def test_where_nothing_grows_older_a_share_is_0(self) -> None:
        assert age_share(1, scale=0.05, limit=2, offset=0.01) == 0

    def test_an_age_below_one_is_refused(self) -> None:
        with pytest.raises(SearchError, match="from 1 on, got 0"):
            age_term(0, scale=0.05, limit=10, offset=0.01)

    @pytest.mark.parametrize(
        ("values", "says"),
        [
            ({"limit": 1.0}, "limit a is above 1, got 1"),
            ({"limit": math.nan}, "limit a is above 1"),
            ({"scale": 0.0}, "eta is above 0 and below 1"),
            ({"scale": 1.0}, "eta is above 0 and below 1"),
            ({"offset": 0.0}, r"mu is above 0 and below eta / \(1 - eta\) = 0.05263, got 0"),
            ({"offset": 0.06}, "mu is above 0"),
        ],
    )
    def test_what_a_run_refuses(self, values: dict[str, float], says: str) -> None:
        check_age(scale=0.05, limit=10, offset=0.01)
        with pytest.raises(SearchError, match=says):
            check_age(**{"scale": 0.05, "limit": 10, "offset": 0.01, **values})


class TestDisturbance:
    def test_the_range_is_equations_11_and_12(self) -> None:
        low, high = evolution.disturbance_range(torch.tensor(GATES.alpha), torch.tensor([0.0, 0.7]))
        for start, (found_low, found_high) in zip((0.0, 0.7), zip(low, high, strict=True), strict=True):
            shares = [logistic(a) for a in GATES.alpha]
            assert float(found_low) == pytest.approx(logistic(start) - max(shares), abs=1e-6)
            assert float(found_high) == pytest.approx(logistic(start) - min(shares), abs=1e-6)

    def test_the_factors_are_the_product_of_both_disturbed_gates(self) -> None:
        """Equation (13)'s rank argument, transcribed with the same uniform draws."""
        draws = rng(3)
        u_alpha = torch.rand(5, generator=draws, dtype=torch.float64).tolist()
        u_beta = torch.rand(3, generator=draws, dtype=torch.float64).tolist()
        shares = [logistic(a) for a in GATES.alpha]
        blocks = [logistic(GATES.beta[i]) for i in (0, 2)]  # the block in between has nothing to search
        written = []
        for slot, block in enumerate((0, 0, 0, 2, 2)):
            low, high = 0.5 - max(blocks), 0.5 - min(blocks)
            of_block = logistic(GATES.beta[block]) + low + (high - low) * u_beta[block]
            low, high = 0.5 - max(shares), 0.5 - min(shares)
            of_branch = shares[slot] + low + (high - low) * u_alpha[slot]
            written.append(max(of_block, 1e-6) * max(of_branch, 1e-6))
        assert disturbed_factors(SPACE, GATES, ZERO, rng(3)).tolist() == pytest.approx(written, rel=1e-12)

    def test_one_draw_a_block_is_shared_by_its_branches(self) -> None:
        gates = Gates((0.0,) * 5, (2.0, 0.0, -2.0))  # equal alphas are not disturbed at all
        factors = disturbed_factors(SPACE, gates, ZERO, rng()).tolist()
        assert len(set(factors[:3])) == len(set(factors[3:])) == 1
        assert factors[0] != factors[3]

    @given(seeds, st.lists(st.floats(-30, 30), min_size=8, max_size=8))
    def test_factors_are_never_negative_whatever_the_gates(self, seed: int, values: list[float]) -> None:
        gates = Gates(tuple(values[:5]), tuple(values[5:]))
        assert float(disturbed_factors(SPACE, gates, ZERO, rng(seed)).min()) >= 1e-12

    def test_without_the_floor_they_would_be(self) -> None:
        gates = Gates((4.0, -4.0, 1.0, -4.0, -4.0), (3.0, 0.0, -3.0))
        open_ended = [disturbed_factors(SPACE, gates, ZERO, rng(s), floor=-math.inf).min() for s in range(200)]
        assert min(open_ended) < 0

    def test_at_the_start_every_slot_is_alike(self) -> None:
        assert disturbed_factors(SPACE, ZERO, ZERO, rng()).tolist() == [0.25] * 5


def as_spread(gates: Gates, seed: int) -> torch.Tensor:
    return disturbed_factors(SPACE, gates, ZERO, rng(seed), disturbance="spread")


class TestDisturbanceAsSpread:
    @given(seeds, st.lists(st.floats(-30, 30), min_size=8, max_size=8))
    def test_factors_lie_between_0_and_1(self, seed: int, values: list[float]) -> None:
        factors = as_spread(Gates(tuple(values[:5]), tuple(values[5:])), seed)
        assert bool(((factors >= 0) & (factors <= 1)).all())

    def test_it_is_as_large_as_the_gates_are_apart(self) -> None:
        gates = Gates((0.0,) * 5, (0.5, 9.0, -0.5))  # the block in between has nothing to search
        factors = torch.stack([as_spread(gates, seed) for seed in range(4000)])
        disturbed = (2 * factors[:, [0, 3]]).logit() - torch.tensor([0.5, -0.5])
        assert disturbed.std(0).tolist() == pytest.approx([0.5, 0.5], rel=0.05)
        assert disturbed.mean(0).tolist() == pytest.approx([0, 0], abs=0.04)
        assert float(disturbed.abs().max()) <= 0.5 * math.sqrt(3) + 1e-9

    def test_one_gate_far_from_the_others_leaves_their_ranking(self) -> None:
        """Of 20 blocks one is at 9, the others from -2 to -1.05: by ranges, half of those are at the floor."""
        space = SearchSpace(tuple(SpaceBlock(f"b{i}", ("3x3",), ("1x1",)) for i in range(20)))
        gates = Gates((0.0,) * 20, (9.0, *(-2 + 0.05 * i for i in range(19))))
        start = Gates((0.0,) * 20, (0.0,) * 20)
        floor = 1e-6 * 0.5 * 1.001

        def at_the_floor(disturbance: str) -> float:
            drawn = [disturbed_factors(space, gates, start, rng(s), disturbance=disturbance) for s in range(200)]
            return float((torch.stack(drawn) <= floor).double().mean())

        assert at_the_floor("range") > 0.25
        assert at_the_floor("spread") == 0

    def test_at_the_start_every_slot_is_alike(self) -> None:
        assert as_spread(ZERO, 0).tolist() == [0.25] * 5


class TestOperators:
    @given(seeds, st.integers(0, 5))
    def test_the_best_of_the_whole_net_are_kept(self, seed: int, budget: int) -> None:
        factors = torch.rand(5, generator=rng(seed), dtype=torch.float64)
        mask = evolution.keep_best(factors, budget, rng())
        expected = {i for _, i in sorted(((-f, i) for i, f in enumerate(factors.tolist())))[:budget]}
        assert {i for i, on in enumerate(mask.tolist()) if on} == expected

    def test_ties_break_at_random(self) -> None:
        factors = torch.tensor([0.5, 0.5, 0.9, 0.5], dtype=torch.float64)
        drawn = Counter(tuple(evolution.keep_best(factors, 2, rng(s)).tolist()) for s in range(3000))
        assert len(drawn) == 3
        assert all(mask[2] and abs(n - 1000) < 120 for mask, n in drawn.items())

    @given(seeds)
    def test_a_crossed_child_has_each_slot_from_either_side(self, seed: int) -> None:
        one, two = torch.rand(2, 40, generator=rng(seed)) < 0.5
        child = evolution.crossover(one, two, rng(seed))
        assert bool(((child == one) | (child == two)).all())

    def test_crossing_and_mutating_take_their_share(self) -> None:
        one = torch.zeros(20000, dtype=torch.bool)
        assert float(evolution.crossover(one, ~one, rng()).float().mean()) == pytest.approx(0.5, abs=0.02)
        assert float(evolution.mutate(one, 0.05, rng()).float().mean()) == pytest.approx(0.05, abs=0.01)
        assert torch.equal(evolution.mutate(one, 0.0, rng()), one)
        assert torch.equal(evolution.mutate(one, 1.0, rng()), ~one)

    @given(seeds, st.integers(0, 12))
    def test_repair_drops_the_worst_active_or_adds_the_best_other(self, seed: int, budget: int) -> None:
        draws = rng(seed)
        factors = torch.rand(12, generator=draws, dtype=torch.float64)
        mask = torch.rand(12, generator=draws) < 0.5
        repaired = evolution.repair(mask, factors, budget, rng())
        assert int(repaired.sum()) == budget
        before, after = (set(m.nonzero().flatten().tolist()) for m in (mask, repaired))
        lost, came = before - after, after - before
        assert not (lost and came)
        assert all(factors[i] < factors[j] for i in lost for j in after)
        assert all(factors[i] > factors[j] for i in came for j in set(range(12)) - after)


class TestPopulations:
    def test_the_first_one_is_uniform_over_architectures_of_the_size(self) -> None:
        drawn = Counter(a.mask for s in range(2000) for a in first_population(SPACE, 2, 1, rng(s)))
        assert len(drawn) == 10
        assert all(sum(mask) == 2 and abs(n - 200) < 60 for mask, n in drawn.items())

    @given(seeds, st.integers(1, 5), st.integers(1, 12))
    def test_it_is_distinct_and_as_small_as_the_space(self, seed: int, budget: int, count: int) -> None:
        found = first_population(SPACE, budget, count, rng(seed))
        assert len(set(found)) == len(found) == min(count, math.comb(5, budget))
        assert {a.size for a in found} == {budget}

    def test_ratio_one_has_one_architecture_and_no_children(self) -> None:
        (only,) = first_population(SPACE, 5, 128, rng())
        assert only == Architecture.full(SPACE)
        assert breed([only], 128, 5, GATES, ZERO, rng()) == ()

    @given(seeds, st.integers(1, 4), probabilities, probabilities, probabilities)
    def test_children_are_new_distinct_and_of_the_budget(self, seed, budget, cross, mutation, flip) -> None:
        parents = first_population(SPACE, budget, 3, rng(seed))
        settings = Breeding(crossover=cross, mutation=mutation, flip=flip)
        children = breed(parents, 4, budget, GATES, ZERO, rng(seed), settings)
        assert not set(children) & set(parents)
        assert len(set(children)) == len(children) <= 4
        assert all(child.size == budget for child in children)

    def test_an_exhausted_space_ends_after_a_bounded_number_of_draws(self) -> None:
        everything = [
            Architecture(SPACE, tuple(i in on for i in range(5))) for on in itertools.combinations(range(5), 2)
        ]
        assert breed(everything, 50, 2, GATES, ZERO, rng()) == ()
        assert set(breed(everything[1:], 50, 2, GATES, ZERO, rng())) == {everything[0]}

    def test_the_same_seed_breeds_the_same_children(self) -> None:
        parents = first_population(SPACE, 2, 3, rng())
        assert breed(parents, 4, 2, GATES, ZERO, rng(7)) == breed(parents, 4, 2, GATES, ZERO, rng(7))

    def test_gates_lead_breeding(self) -> None:
        """Without crossing and mutating, branches with high gates are chosen more often than ones with low gates."""
        gates = Gates((3.0, -3.0, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0))
        parents = [Architecture(SPACE, (False, True, False, False, True))]
        alone = Breeding(crossover=0, mutation=0)
        chosen = Counter(
            slot
            for s in range(500)
            for child in breed(parents, 1, 2, gates, ZERO, rng(s), alone)
            for slot, on in enumerate(child.mask)
            if on
        )
        assert chosen[0] > 1.5 * chosen[2] > 2 * chosen[1]


@given(st.lists(st.one_of(st.floats(-1, 1), st.just(-math.inf)), max_size=12), st.integers(0, 12))
def test_selection_keeps_the_highest_scores_and_never_the_dead(scores: list[float], count: int) -> None:
    kept = evolution.best(scores, count)
    alive = sorted((s for s in scores if s != -math.inf), reverse=True)
    assert [scores[i] for i in kept] == alive[:count]
    assert len(set(kept)) == len(kept)


def test_among_equals_the_preferred_come_first() -> None:
    assert evolution.best([0.5, 0.5, 0.7, 0.5], 3, prefer={3}) == [2, 3, 0]
