"""The second objective of a search: what branches cost, and what that changes."""

from __future__ import annotations

import dataclasses
import itertools
import json

import pytest
import torch

from repconv import SearchError, create_model
from repconv.blocks.probing import count_flops
from repconv.search import session as sessions
from repconv.search.config import SCHEMA, SearchConfig
from repconv.search.costs.prices import Prices
from repconv.search.costs.pricing import ROUNDS, price
from repconv.search.folder import POPULATIONS, PRICES, RESULT, RunFolder
from repconv.search.presets import PRESETS
from repconv.search.reports.report import report
from repconv.search.run import run
from repconv.search.session import Session
from repconv.search.settings import settings_to_dict
from repconv.search.strategies import State, create_strategy
from repconv.search.strategies.protocol import SearchPlan
from repconv.search.supernet.architecture import Architecture
from repconv.search.supernet.supernet import Supernet, subnetwork

pytest.importorskip("torchvision", reason="torchvision is not installed")
pytest.importorskip("sklearn", reason="scikit-learn is not installed")

SMALL = dataclasses.replace(
    PRESETS["smoke"].config, width=2, blocks=(1,), train_images=200, population=3, epochs=3, warmup_epochs=1,
    generation_epochs=1, batch=32, device="cpu", seed=3,
)  # fmt: skip


@pytest.fixture(scope="module")
def supernet() -> Supernet:
    torch.manual_seed(0)
    return Supernet(create_model("irep_resnet18", width=4, blocks=(1, 1), in_channels=1))


def alternating(supernet: Supernet) -> Architecture:
    return Architecture(supernet.space, tuple(i % 3 > 0 for i in range(len(supernet.space.slots))))


def test_flops_of_an_architecture_are_those_of_its_network(supernet) -> None:
    images = torch.randn(2, 1, 12, 12)
    prices = price(supernet, "flops", images)
    for chosen in (alternating(supernet), Architecture.full(supernet.space)):
        assert prices.cost(chosen) == count_flops(subnetwork(supernet.model, chosen), (1, 12, 12))
    assert prices.share(Architecture.full(supernet.space)) == 1
    skips = [cost for slot, cost in zip(supernet.space.slots, prices.slots, strict=True) if slot.branch == "skip"]
    assert set(skips) == {0.0}


def test_branches_cost_one_each(supernet) -> None:
    prices = price(supernet, "branches", torch.zeros(1))
    assert prices.cost(alternating(supernet)) == alternating(supernet).size


def test_latency_is_a_median_over_interleaved_rounds_and_leaves_no_trace(supernet) -> None:
    """On a clock by which run k of a round takes k + 1 s, but for the first round and a third, which are slow."""
    runs = 1 + len(supernet.space.slots)
    slow = {0, *range(3, ROUNDS // 2)}

    def ticks():
        now = 0.0
        for turn in itertools.count():
            yield now
            now += (turn % runs + 1) * (100 if turn // runs in slow else 1)
            yield now

    clock = ticks()
    state = {name: value.clone() for name, value in supernet.model.state_dict().items()}
    modes = [module.training for module in supernet.model.modules()]
    drawn = torch.get_rng_state()
    prices = price(supernet, "latency", torch.randn(4, 1, 12, 12, generator=torch.Generator()), lambda: next(clock))
    assert prices.fixed == 1
    assert prices.slots == tuple(float(k + 2) for k in range(runs - 1))
    assert next(clock) == pytest.approx(sum(range(1, runs + 1)) * (1 + ROUNDS + 99 * len(slow)))
    assert all(torch.equal(state[name], value) for name, value in supernet.model.state_dict().items())
    assert [module.training for module in supernet.model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), drawn)


def test_prices_survive_json(supernet) -> None:
    prices = price(supernet, "flops", torch.randn(2, 1, 12, 12))
    content = json.loads(json.dumps(prices.to_dict(supernet.space)))
    assert content["unit"] == "FLOPs an image"
    assert Prices.of_record(content, supernet.space, "here") == prices
    del content["slots"]["stem"]["1x1"]
    with pytest.raises(SearchError, match="here has no price of '1x1'"):
        Prices.of_record(content, supernet.space, "here")


def plan(supernet: Supernet, prices: Prices | None, strength: float = 1.0) -> SearchPlan:
    slots = len(supernet.space.slots)
    return SearchPlan(
        space=supernet.space, budget=slots // 2, population=4, children=8, generations=3, initial=supernet.gates(),
        age=False, prices=prices, cost_strength=strength,
    )  # fmt: skip


def told(name: str, the_plan: SearchPlan, scores: list[float] | None = None) -> State:
    """The state after one generation of a population of twelve, drawn alike every time."""
    strategy, generator = create_strategy(name, the_plan), torch.Generator().manual_seed(0)
    wide = dataclasses.replace(the_plan, population=12)
    question = create_strategy(name, wide).ask(State(gates=the_plan.initial), generator)
    return strategy.tell(question.state, scores or [0.5 + i / 1000 for i in range(12)], the_plan.initial)


@pytest.mark.parametrize("name", ["des", "random", "aging", "cars"])
def test_a_strength_of_zero_or_no_objective_changes_nothing(name, supernet) -> None:
    prices = price(supernet, "branches", torch.zeros(1)) if name == "cars" else price(
        supernet, "flops", torch.randn(2, 1, 12, 12)
    )  # fmt: skip
    assert told(name, plan(supernet, prices, 0.0)) == told(name, plan(supernet, None))


@pytest.mark.parametrize("name", ["des", "random"])
def test_at_equal_accuracy_the_cheap_live_on(name, supernet) -> None:
    prices = price(supernet, "flops", torch.randn(2, 1, 12, 12))
    state = told(name, plan(supernet, prices, 1e6))
    everyone = told(name, dataclasses.replace(plan(supernet, prices, 1e6), population=12)).members
    cheapest = sorted(prices.cost(m.architecture) for m in everyone)[:4]
    assert sorted(prices.cost(m.architecture) for m in state.members) == cheapest


def test_scores_lose_so_many_standard_deviations(supernet) -> None:
    prices = price(supernet, "flops", torch.randn(2, 1, 12, 12))
    scores = [0.5, 0.7] * 6  # standard deviation 0.1
    for member in told("random", plan(supernet, prices, 2.0), scores).members:
        assert member.score == pytest.approx((member.accuracy or 0) - 2 * 0.1 * prices.share(member.architecture))


def test_cars_sorts_by_error_and_cost(supernet) -> None:
    slots = len(supernet.space.slots)
    dear = Prices(objective="latency", fixed=0.0, slots=tuple(1.0 + (i == 0) * 1000 for i in range(slots)))
    kept = told("cars", plan(supernet, dear), [0.5] * 12).members
    assert not kept[0].architecture.mask[0]


def test_strategies_without_scores_take_no_objective() -> None:
    with pytest.raises(SearchError, match=r"objective=flops is for strategies that score .*; gold follows the gates"):
        SearchConfig(strategy="gold", objective="flops")
    with pytest.raises(SearchError, match="cost_strength is at least 0"):
        SearchConfig(objective="flops", cost_strength=-1)


def test_a_run_prices_once_and_says_what_everything_costs(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("repconv.search.run._tensorboard", lambda *_: None)
    config = dataclasses.replace(SMALL, objective="latency")
    folder = RunFolder.create(tmp_path / "run", settings_to_dict(config, SCHEMA), {})
    update = Session.update

    def stops(self, x, y, architectures, step, *others):
        if step == 8:
            raise KeyboardInterrupt
        return update(self, x, y, architectures, step, *others)

    monkeypatch.setattr(Session, "update", stops)
    with pytest.raises(KeyboardInterrupt):
        run(folder)
    monkeypatch.setattr(Session, "update", update)
    monkeypatch.setattr(sessions, "price", None)  # nothing is timed again
    prices = folder.read_json(PRICES, "repconv.prices/1")
    run(folder)
    result = folder.read_json(RESULT)
    assert result["prices"] == prices
    assert prices["fixed"] > 0
    assert min(cost for kinds in prices["slots"].values() for cost in kinds.values()) > 0
    for found in result["architectures"]:
        active = [prices["slots"][name][kind] for name, kinds in found["active"].items() for kind in kinds]
        assert found["cost"] == pytest.approx(prices["fixed"] + sum(active))
    population = folder.read_json(f"{POPULATIONS}/0002.json", "repconv.population/1")
    assert {member["cost"] for member in population["members"]} == {a["cost"] for a in result["architectures"]}
    assert all(r["mean_cost"] > 0 for r in folder.metrics() if r["kind"] == "generation")
    page = report(folder)
    assert "share of the full network&#x27;s seconds a batch" in page
