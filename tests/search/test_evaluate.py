"""A candidate from the kernel bank is the candidate's sub-network, fused."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import nn

from repconv import RepBlock, Sampling, SearchError, create_model, expand, set_statistics
from repconv.search.strategies.evolution import first_population
from repconv.search.supernet.architecture import Architecture
from repconv.search.supernet.bank import EvaluationSettings, KernelBank, SettledBank, own_statistics, single_path
from repconv.search.supernet.evaluate import accuracy, evaluate, top_1
from repconv.search.supernet.supernet import Supernet, subnetwork

NETWORKS = {
    "resnet18": lambda: create_model("irep_resnet18", width=4, blocks=(1, 1)),
    "resnet50": lambda: create_model("irep_resnet50", num_classes=10, width=4, blocks=(1, 1)),
    "vgg16": lambda: create_model("irep_vgg16", width=4),
    "foreign": lambda: expand(
        nn.Sequential(
            nn.Conv2d(3, 6, 3, 2, 1, groups=3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 1), nn.BatchNorm2d(4),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        ),
        branches=["1x1", "avg", "1x1_3x3", "2x2_d2"],
    ),
}  # fmt: skip


def population(supernet: Supernet, count: int) -> tuple[Architecture, ...]:
    budget = supernet.space.budget(0.5)
    return first_population(supernet.space, budget, count, torch.Generator().manual_seed(0))


@pytest.fixture(params=NETWORKS)
def supernet(request, randomise) -> Supernet:
    return Supernet(randomise(NETWORKS[request.param]()))


def pictures(count: int = 3, size: int = 33) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("channels_last", [True, False])
def test_a_candidate_of_the_bank_equals_the_slow_path_and_the_sub_network(supernet, apart, channels_last) -> None:
    model = supernet.model.double()
    settings = EvaluationSettings(torch.float64, channels_last)
    bank = KernelBank(supernet, settings, keep=torch.float64)
    x = pictures().double()
    for architecture in (*population(supernet, 4), Architecture.full(supernet.space)):
        net = bank.write(architecture)
        slow = single_path(model, architecture)
        assert apart(net(settings.of(x)), slow(x)) < 1e-9
        assert apart(slow(x), subnetwork(model, architecture).eval()(x)) < 1e-9
        assert not any(isinstance(m, RepBlock) for m in net.modules())


def test_in_float32_the_bank_folds_in_float64_and_rounds_once_a_branch(supernet) -> None:
    bank = KernelBank(supernet, EvaluationSettings(channels_last=False))
    (architecture,) = population(supernet, 1)
    net, slow = bank.write(architecture), single_path(supernet.model, architecture)
    for (name, ours), (_, theirs) in zip(net.named_parameters(), slow.named_parameters(), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5 * float(theirs.detach().abs().max())), name


def test_writing_one_candidate_leaves_nothing_of_the_one_before(randomise) -> None:
    supernet = Supernet(randomise(create_model("irep_resnet18", width=4, blocks=(1, 1))))
    bank = KernelBank(supernet)
    first, second = population(supernet, 2)
    once = copy.deepcopy(bank.write(first).state_dict())
    bank.write(second)
    again = bank.write(first).state_dict()
    assert all(torch.equal(once[name], again[name]) for name in once)


def test_the_bank_is_of_the_moment_and_leaves_the_supernet_alone(supernet) -> None:
    supernet.model.train()
    before, modes = copy.deepcopy(supernet.model.state_dict()), [m.training for m in supernet.model.modules()]
    (architecture,) = population(supernet, 1)
    bank = KernelBank(supernet)
    weights = copy.deepcopy(bank.write(architecture).state_dict())
    assert [m.training for m in supernet.model.modules()] == modes
    assert all(torch.equal(before[name], value) for name, value in supernet.model.state_dict().items())
    with torch.no_grad():
        for parameter in supernet.model.parameters():
            parameter.zero_()
    again = bank.write(architecture).state_dict()
    assert all(torch.equal(weights[name], again[name]) for name in weights)


def test_accuracies_are_those_of_the_slow_path(supernet) -> None:
    x = pictures(60)
    y = torch.arange(60) % supernet.model.eval()(x).shape[1]
    batches = [(x[:40], y[:40]), (x[40:], y[40:])]
    architectures = population(supernet, 5)
    settings = EvaluationSettings()
    found = evaluate(supernet, architectures, batches, settings)
    slow = [accuracy(settings.prepared(single_path(supernet.model, a)), batches, settings) for a in architectures]
    assert found.accuracies == pytest.approx(slow, abs=1.01 / 60)
    assert 0 < sum(found.accuracies) < 5


def test_bfloat16_gives_nearly_the_same_answers() -> None:
    supernet = Supernet(create_model("irep_resnet18", width=8, blocks=(1, 1)))
    x = pictures(64, 16)
    architectures = population(supernet, 3)
    y = single_path(supernet.model, architectures[0])(x).argmax(1)
    exact = evaluate(supernet, architectures, [(x, y)])
    rough = evaluate(supernet, architectures, [(x, y)], EvaluationSettings(torch.bfloat16))
    assert exact.accuracies[0] == 1
    assert rough.accuracies == pytest.approx(exact.accuracies, abs=0.15)


def test_statistics_are_reestimated_for_a_candidate_and_put_back(randomise, apart) -> None:
    model = randomise(create_model("irep_resnet18", width=4, blocks=(1, 1))).double().train()
    supernet = Supernet(model)
    (architecture,) = population(supernet, 1)
    x = torch.randn(20, 3, 8, 8, dtype=torch.float64)
    before = copy.deepcopy(model.state_dict())
    with own_statistics(supernet, architecture, [(x, None)]):
        inside = subnetwork(model, architecture).eval()
        assert all(m.training for m in model.modules())
    assert all(torch.equal(before[n], v) for n, v in model.state_dict().items())
    assert all(m.momentum == 0.1 for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    # With the statistics of these very images, evaluation is training (but for the unbiased variance).
    alone = subnetwork(model, architecture).train()
    assert apart(inside(x), alone(x)) < 0.02
    assert apart(subnetwork(model, architecture).eval()(x), alone(x)) > 0.1


def test_reestimating_changes_accuracies_and_its_time_is_told(randomise) -> None:
    supernet = Supernet(randomise(create_model("irep_resnet18", width=4, blocks=(1, 1))))
    x = pictures(60, 8)
    architectures = population(supernet, 3)
    with torch.no_grad():
        y = supernet.model.train()(x).argmax(1)
    supernet.model.eval()
    ticks = itertools.count()
    plain = evaluate(supernet, architectures, [(x, y)], clock=lambda: float(next(ticks)))
    assert plain.reestimate_s == 0
    assert plain.fold_s == 1
    settled = evaluate(supernet, architectures, [(x, y)], reestimation=[(x, y)], clock=lambda: float(next(ticks)))
    assert settled.reestimate_s == 3
    assert settled.fold_s == 1
    assert settled.seconds == 1 + 3 + 3 + 3
    with own_statistics(supernet, architectures[0], [(x, y)]):
        inside = single_path(supernet.model, architectures[0])
    settings = EvaluationSettings()
    assert settled.accuracies[0] == accuracy(settings.prepared(inside), [(x, y)], settings)


def test_settling_draws_alike_for_every_candidate_and_leaves_generators_alone(randomise) -> None:
    supernet = Supernet(randomise(create_model("irep_resnet18", width=4, blocks=(1, 1))))
    set_statistics(supernet.model, Sampling(16))
    bank, x = SettledBank(supernet, [(pictures(16), None)]), pictures(5)
    one, other = population(supernet, 2)
    before, seen = torch.get_rng_state(), []
    for architecture in (one, other, one):
        with bank.settled(architecture):
            seen.append(bank.write(architecture)(x).clone())
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(seen[0], seen[2])
    assert not torch.equal(seen[0], seen[1])


def test_a_sample_of_positions_settles_nearly_as_all_do(randomise, apart) -> None:
    supernet = Supernet(randomise(create_model("irep_resnet18", width=4, blocks=(1, 1))))
    (architecture,), x = population(supernet, 1), pictures(64)
    given: dict[str, torch.Tensor] = {}
    for name, statistics in (("all", "full"), ("sample", Sampling(256))):
        set_statistics(supernet.model, statistics)
        bank = SettledBank(supernet, [(x, None)])
        with bank.settled(architecture):
            given[name] = bank.write(architecture)(x).clone()
    shared = KernelBank(supernet).write(architecture)(x)
    assert 0 < apart(given["sample"], given["all"]) < 0.2 < apart(shared, given["all"])


def test_a_settled_candidate_equals_the_slow_path_with_its_statistics(supernet, apart) -> None:
    x, before = pictures(6), copy.deepcopy(supernet.model.state_dict())
    settings = EvaluationSettings(channels_last=False)
    bank = SettledBank(supernet, [(x, x)], settings)
    for architecture in (*population(supernet, 2), Architecture.full(supernet.space)):
        with bank.settled(architecture):
            slow = single_path(supernet.model, architecture)
            assert apart(bank.write(architecture)(x), slow(x)) < 1e-4
    assert all(torch.equal(before[name], value) for name, value in supernet.model.state_dict().items())


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(SearchError, match="validation split is empty"):
        accuracy(nn.Identity(), [], EvaluationSettings())
    with pytest.raises(SearchError, match="network gave dict; give a metric"):
        top_1({}, torch.zeros(1))
