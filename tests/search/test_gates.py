"""Gates that learn from images of their own, to the first and second order, and what branches cost them."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from repconv import RepBlock, create_model
from repconv.search.config import SCHEMA
from repconv.search.folder import RunFolder
from repconv.search.gates.bilevel import RADIUS, second_order
from repconv.search.gates.charge import charge
from repconv.search.presets import PRESETS
from repconv.search.run import run
from repconv.search.session import Session
from repconv.search.settings import settings_to_dict
from repconv.search.strategies.evolution import random_architecture
from repconv.search.strategies.training import Dropped, Training, perturbed_best, training_from_dict
from repconv.search.supernet.architecture import Architecture
from repconv.search.supernet.space import SearchSpace
from repconv.search.supernet.supernet import Gates, Supernet
from repconv.search.tasks.task import Task, halves, training_batches
from repconv.sources.checkpoint import Normalization

TINY = dataclasses.replace(
    PRESETS["smoke"].config, width=2, blocks=(1,), train_images=125, epochs=3, warmup_epochs=1, generation_epochs=1,
    batch=20, strategy="darts",
)  # fmt: skip


def supernet(randomise) -> Supernet:
    return Supernet(randomise(create_model("irep_resnet18", width=2, blocks=(1,))).double().train())


def images(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(8, 3, 8, 8, generator=generator, dtype=torch.float64), torch.arange(8) % 10


class TestSecondOrder:
    @pytest.mark.parametrize("remembered", [False, True])
    @pytest.mark.parametrize(("radius", "tolerance"), [(1e-6, 1e-6), (RADIUS, 0.1)])
    def test_it_is_the_gradient_of_the_loss_after_an_update_by_the_gates(
        self, randomise, monkeypatch, remembered: bool, radius: float, tolerance: float
    ) -> None:
        """Autograd through the update itself, with the optimiser's momentum and weight decay.

        Exact with a small radius; with theirs to a tenth of its norm, since weights so far away cross kinks of ReLU.
        """
        monkeypatch.setattr("repconv.search.gates.bilevel.RADIUS", radius)
        net, rate = supernet(randomise), 0.05
        (x, y), (u, v) = images(0), images(1)
        gates, weights = net.gate_parameters(), net.weights()
        optimiser = torch.optim.SGD(weights, rate, momentum=0.9, weight_decay=0.01)
        names = {id(p): n for n, p in net.model.named_parameters()}

        def gradients(a: Tensor, b: Tensor) -> None:
            net.model.zero_grad()
            functional.cross_entropy(net.model(a), b).backward()

        if remembered:
            gradients(u, v)
            optimiser.step()
        loss = functional.cross_entropy(net.model(x), y)
        slopes = torch.autograd.grad(loss, weights, create_graph=True)
        moved = {}
        for weight, slope in zip(weights, slopes, strict=True):
            buffer = optimiser.state[weight]["momentum_buffer"] if remembered else torch.zeros_like(weight)
            moved[names[id(weight)]] = weight - rate * (0.9 * buffer + slope + 0.01 * weight)
        after = functional_call(net.model, moved, (u,))
        exact = torch.cat([g.reshape(1) for g in torch.autograd.grad(functional.cross_entropy(after, v), gates)])
        fixed = {name: value.detach() for name, value in moved.items()}
        direct = functional.cross_entropy(functional_call(net.model, fixed, (u,)), v)
        first = torch.cat([g.reshape(1) for g in torch.autograd.grad(direct, gates)])

        before = [p.detach().clone() for p in (*weights, *gates)]
        memory = [optimiser.state[w]["momentum_buffer"].clone() for w in weights if remembered]
        second_order(
            learn=lambda: gradients(x, y),
            judge=lambda: gradients(u, v),
            weights=weights,
            gates=gates,
            optimiser=optimiser,
            rate=rate,
        )
        found = torch.stack([g.grad for g in gates])
        error = float((found - exact).norm())
        assert error <= tolerance * float(exact.norm())
        if radius < RADIUS:
            assert error <= tolerance * float((first - exact).norm()), "what the second order adds is exact, too"
        assert all(torch.equal(a, b) for a, b in zip(before, (*weights, *gates), strict=True))
        assert len(optimiser.state) == len(memory)
        assert all(torch.equal(optimiser.state[w]["momentum_buffer"], m) for w, m in zip(weights, memory, strict=False))

    def test_every_pass_draws_the_same_and_so_does_what_follows(self) -> None:
        """With `L_learn = a n w` and `L_judge = w^2 / 2` the gradient by `a` is `-rate n (w - rate a n)`."""
        weight, gate, rate = nn.Parameter(torch.tensor([2.0]).double()), nn.Parameter(torch.tensor([3.0]).double()), 0.1
        optimiser = torch.optim.SGD([weight], rate)
        drawn = []

        def gradients(loss: Tensor) -> None:
            weight.grad = gate.grad = None
            loss.backward()

        def learn() -> None:
            drawn.append(torch.rand(1, dtype=torch.float64))
            gradients((gate * drawn[-1] * weight).sum())

        torch.manual_seed(5)
        second_order(
            learn=learn, judge=lambda: gradients((torch.rand(1) * 0 + 0.5 * weight.square() + 0 * gate).sum()),
            weights=[weight], gates=[gate], optimiser=optimiser, rate=rate,
        )  # fmt: skip
        noise = drawn[0]
        assert len(drawn) == 3
        torch.testing.assert_close(gate.grad, -rate * noise * (2.0 - rate * 3.0 * noise))
        torch.testing.assert_close(torch.rand(1, dtype=torch.float64), noise)

    def test_branches_that_take_no_part_are_left_alone(self, randomise) -> None:
        net = supernet(randomise)
        part = random_architecture(net.space, 5, torch.Generator().manual_seed(1))
        weights, gates = net.weights(), net.gate_parameters()
        optimiser = torch.optim.SGD(weights, 0.1, momentum=0.9)

        def gradients(a: Tensor, b: Tensor) -> None:
            for parameter in (*weights, *gates):
                parameter.grad = None
            functional.cross_entropy(net(part, a), b).backward()

        second_order(
            learn=lambda: gradients(*images(0)), judge=lambda: gradients(*images(1)),
            weights=weights, gates=gates, optimiser=optimiser, rate=0.1,
        )  # fmt: skip
        alive = [net.blocks[s.block].alpha[s.branch].grad is not None for s in net.space.slots]
        assert alive == list(part.mask)


class TestHalves:
    @given(st.integers(2, 41), st.integers(2, 9), st.integers(0, 3))
    @settings(max_examples=60, deadline=None)
    def test_both_halves_fill_an_epochs_updates_and_share_no_image(self, count: int, batch: int, epoch: int) -> None:
        batch = min(batch, count)
        task = _numbered(count)
        steps, seen = count // batch, []
        for half in halves(range(count)):
            found = list(training_batches(task, half, batch=batch, seed=3, epoch=epoch, steps=steps))
            assert [len(x) for x, _ in found] == [batch] * steps
            seen.append([int(i) for _, y in found for i in y])
            often = [seen[-1].count(i) for i in half]
            assert max(often) - min(often) <= 1, "the images are gone through one after the other"
            rest = [
                int(i)
                for _, y in training_batches(
                    task, half, batch=batch, seed=3, epoch=epoch, steps=steps, first=steps // 2
                )
                for i in y
            ]
            assert rest == seen[-1][steps // 2 * batch :], "an interruption changes nothing"
        assert not set(seen[0]) & set(seen[1])

    def test_another_epoch_has_another_order_and_other_looks(self) -> None:
        task = _numbered(12)
        looks = set()
        for epoch in range(3):
            for x, y in training_batches(task, range(6), batch=6, seed=0, epoch=epoch, steps=2):
                looks |= set(zip(x.flatten().tolist(), y.tolist(), strict=True))
        assert len(looks) == 36, "every image looks another way every time"

    def test_the_weights_never_see_an_image_that_the_gates_learn_from(self) -> None:
        pytest.importorskip("sklearn", reason="scikit-learn is not installed")
        session = Session(TINY)
        seen: dict[str, set[int]] = {"weights": set(), "gates": set()}
        task = session.task
        for epoch in range(3):
            session.task = dataclasses.replace(task, train=_Watched(task.train, seen["weights"]))
            assert len(list(session.batches(epoch, 0, 1, "first"))) == session.steps_an_epoch
            session.task = dataclasses.replace(task, train=_Watched(task.train, seen["gates"]))
            with session.held_out(epoch, 0, 1, "first") as held:
                assert len(list(held)) == session.steps_an_epoch
        assert not seen["weights"] & seen["gates"]
        assert seen["weights"] | seen["gates"] == set(session.split.train)
        assert not (seen["weights"] | seen["gates"]) & set(session.split.validation)


def _numbered(count: int) -> Task:
    """Of as many images: each looks as torch's generator draws it, and its target is its position."""
    return Task(
        train=[(torch.zeros(1, 1, 1), i) for i in range(count)],
        test=None,
        class_names=tuple(map(str, range(count))),
        input_shape=(1, 1, 1),
        normalization=Normalization(mean=(0.0,), std=(1.0,)),
        augment=lambda image: image + torch.rand(1, dtype=torch.float64),
        prepare=lambda image: image,
    )


class _Watched:
    def __init__(self, images, seen: set[int]) -> None:
        self.images, self.seen = images, seen

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, position: int):
        self.seen.add(position)
        return self.images[position]


class TestUpdate:
    def test_gates_learn_from_what_is_held_out_and_then_weights_from_their_own(self) -> None:
        pytest.importorskip("sklearn", reason="scikit-learn is not installed")
        config = dataclasses.replace(TINY, momentum=0.0, weight_decay=0.0)
        session, twin = Session(config), Session(config)
        full = Architecture.full(session.supernet.space)
        (x, y), *_ = session.batches(0, 0, 1, "first")
        with session.held_out(0, 0, 1, "first") as held:
            u, v = next(held)
        session.update(x, y, [full], 0, Training(gates="first"), (u, v))
        model = twin.supernet.model.train()
        before = {name: value.clone() for name, value in model.named_buffers()}
        slopes = torch.autograd.grad(twin.task.loss(twin.supernet(full, u), v), twin.gates)
        with torch.no_grad():
            for gate, slope in zip(twin.gates, slopes, strict=True):
                gate.sub_(config.gate_learning_rate * slope.sign())  # Adam's first step
            for name, value in model.named_buffers():
                value.copy_(before[name])
        slopes = torch.autograd.grad(twin.task.loss(twin.supernet(full, x), y), twin.weights)
        for one, other, slope in zip(session.weights, twin.weights, slopes, strict=True):
            assert torch.allclose(one, other - 0.1 * slope, atol=1e-5)
        for one, other in zip(session.gates, twin.gates, strict=True):
            assert torch.allclose(one, other, atol=1e-4)
        statistics = dict(model.named_buffers())
        for name, value in session.supernet.model.named_buffers():
            assert torch.allclose(value, statistics[name], atol=1e-5), name
            assert not torch.equal(value, before[name]), "of the weights' images"

    def test_a_charge_moves_gates_and_not_the_weights(self) -> None:
        pytest.importorskip("sklearn", reason="scikit-learn is not installed")
        session, twin = Session(TINY), Session(TINY)
        full = Architecture.full(session.supernet.space)
        (x, y), *_ = session.batches(0, 0, 1)
        charges = tuple(0.01 * i for i in range(len(full.mask)))
        session.update(x, y, [full], 0, Training(charges=charges))
        twin.update(x, y, [full], 0)
        for one, other in zip(session.weights, twin.weights, strict=True):
            assert torch.equal(one, other)
        for each, slot in zip(charges, full.space.slots, strict=True):
            ours, theirs = (s.supernet.blocks[slot.block].alpha[slot.branch].grad for s in (session, twin))
            assert float(ours - theirs) == pytest.approx(each * 0.125, abs=1e-6)  # s(0) s'(0)

    def test_gates_begin_anew_without_memory_and_the_search_says_when(self, tmp_path, monkeypatch) -> None:
        """P-DARTS in three generations, a stage each: gates at nought, and the next step of Adam is its first."""
        pytest.importorskip("sklearn", reason="scikit-learn is not installed")
        monkeypatch.setattr("repconv.search.run._tensorboard", lambda *_: None)
        begin, seen = Session.begin_gates, []

        def watched(session: Session) -> None:
            moved = any(session.supernet.gates().alpha)
            begin(session)
            seen.append((moved, session.supernet.gates() == session.initial, len(session.gate_optimiser.state)))

        monkeypatch.setattr(Session, "begin_gates", watched)
        config = dataclasses.replace(TINY, strategy="pdarts", epochs=4)
        run(RunFolder.create(tmp_path / "run", settings_to_dict(config, SCHEMA), {}))
        assert seen == [(True, True, 0)] * 3


class TestCharge:
    def test_its_gradient_is_that_of_the_formula_and_of_branches_in_use_alone(self, randomise) -> None:
        net = supernet(randomise)
        part = random_architecture(net.space, 9, torch.Generator().manual_seed(2))
        charges = [0.1 * (i + 1) for i in range(len(net.space.slots))]
        x, y = images(0)

        def loss() -> Tensor:
            net.model.zero_grad()
            return functional.cross_entropy(net(part, x), y)

        term = sum(
            price
            * torch.sigmoid(net.blocks[slot.block].beta)
            * torch.sigmoid(net.blocks[slot.block].alpha[slot.branch])
            for price, slot, on in zip(charges, net.space.slots, part.mask, strict=True)
            if on
        )
        (loss() + term).backward()
        together = [None if g.grad is None else g.grad.clone() for g in net.gate_parameters()]
        loss().backward()
        weights = [None if w.grad is None else w.grad.clone() for w in net.weights()]
        charge(net, charges)
        for gate, wanted in zip(net.gate_parameters(), together, strict=True):
            assert (gate.grad is None) == (wanted is None)
            assert wanted is None or torch.allclose(gate.grad, wanted, rtol=1e-9)
        assert any(g is None for g in together)
        for weight, wanted in zip(net.weights(), weights, strict=True):
            assert (weight.grad is None and wanted is None) or torch.equal(weight.grad, wanted)


class TestDrawing:
    def test_a_gate_with_noise_is_above_nought_as_often_as_its_factor_says(self) -> None:
        """A budget of one of two slots: the chance that the first wins is that of a difference of two logistics."""
        space = SearchSpace.of(nn.Sequential(RepBlock(2, 2, branches=("1x1", "1x3", "3x1"))))
        within = Architecture(space, (True, True, False))
        gates, generator = Gates((1.0, -1.0, 9.0), (0.5,)), torch.Generator().manual_seed(0)
        one, other = (torch.tensor(f, dtype=torch.float64).logit() for f in gates.factors(space)[:2])
        ratio = math.exp(float(other - one))
        chance = (1 - ratio + ratio * math.log(ratio)) / (1 - ratio) ** 2  # of logistic draws so far apart
        drawn = [perturbed_best(within, gates, 1, generator).mask for _ in range(4000)]
        assert not any(mask[2] for mask in drawn), "what is not in it is never drawn"
        assert sum(mask[0] for mask in drawn) / 4000 == pytest.approx(chance, abs=0.03)

    @given(st.floats(0.05, 0.9), st.floats(0.01, 0.9), st.floats(0, 1))
    def test_chances_fall_by_as_large_a_part_with_every_update(self, first: float, last: float, share: float) -> None:
        dropped = Dropped((0,), first, last)
        assert dropped.chance(0) == pytest.approx(first)
        assert dropped.chance(1) == pytest.approx(last)
        assert dropped.chance(share / 2) ** 2 == pytest.approx(first * dropped.chance(share))

    def test_only_its_slots_are_dropped_and_as_often_as_it_says(self) -> None:
        space = SearchSpace.of(nn.Sequential(RepBlock(2, 2, branches=("1x1", "1x3", "skip"))))
        full, generator = Architecture.full(space), torch.Generator().manual_seed(0)
        left = [Dropped((2,), 0.4, 0.1).of(full, 0.5, generator).mask for _ in range(3000)]
        assert all(mask[:2] == (True, True) for mask in left)
        assert sum(not mask[2] for mask in left) / 3000 == pytest.approx(0.2, abs=0.03)

    def test_a_training_survives_its_containers(self) -> None:
        for one in (
            Training(),
            Training(
                gates="second", charges=(0.1, 0.2), dropped=Dropped((1, 2), 0.3, 0.1), perturbed=True, afresh=True
            ),
        ):
            assert training_from_dict(one.to_dict()) == one


def test_a_share_of_a_generation_goes_from_none_to_nearly_all_in_each() -> None:
    from types import SimpleNamespace

    from repconv.search.run import _share_of_generation

    config = SimpleNamespace(warmup_epochs=2, generation_epochs=2)
    session = SimpleNamespace(config=config, steps_an_epoch=3, steps=21)  # 2 of warm-up, 2, 2 and 1 epochs
    shares = [_share_of_generation(session, step) for step in range(6, 21)]
    assert shares == pytest.approx([i / 6 for i in range(6)] * 2 + [i / 3 for i in range(3)])
    assert all(a < b or b == 0 for a, b in itertools.pairwise(shares))
