"""A network run at an architecture: what is computed, what learns, and that nothing stays behind."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from repconv import RepBlock, SearchError, create_model, expand, fuse, load, save
from repconv.search.supernet.architecture import Architecture
from repconv.search.supernet.space import SearchSpace
from repconv.search.supernet.supernet import Gates, Supernet, evaluating, subnetwork


class Own(nn.Module):
    """A user's network: one block called twice, another inside a branch of its own, keyword arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.first = RepBlock(3, 4, branches=["1x1", "avg"])
        self.again = RepBlock(4, 4, branches=["skip", "1x3", "1x1_3x3"])
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor, scale: Tensor) -> dict[str, Tensor]:
        y = self.again(torch.relu(self.again(torch.relu(self.first(x)))))
        return {"logits": self.head(y.mean((2, 3))) * scale}


def drawn(space: SearchSpace, seed: int) -> Architecture:
    generator = torch.Generator().manual_seed(seed)
    return Architecture(space, tuple((torch.rand(len(space.slots), generator=generator) < 0.5).tolist()))


@pytest.fixture
def resnet(randomise):
    return randomise(create_model("irep_resnet18", width=4, blocks=(1, 1))).double()


@pytest.mark.parametrize("training", [True, False])
def test_running_at_an_architecture_is_running_the_network_of_its_branches(resnet, apart, training) -> None:
    supernet = Supernet(resnet)
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    for seed in range(5):
        architecture = drawn(supernet.space, seed)
        alone = subnetwork(resnet, architecture).train(training)
        resnet.train(training)
        assert apart(supernet(architecture, x), alone(x)) < 1e-12
    assert apart(supernet(Architecture.full(supernet.space), x), resnet(x)) < 1e-12


def test_any_network_any_call(apart) -> None:
    model = Own().double()
    supernet = Supernet(model)
    x, scale = torch.randn(2, 3, 6, 6, dtype=torch.float64), torch.tensor(2.0)
    architecture = Architecture(supernet.space, supernet.space.mask({"first": ["avg"], "again": ["1x3"]}))
    model.eval()
    out = supernet(architecture, x, scale)["logits"]
    assert apart(out, subnetwork(model, architecture)(x, scale)["logits"]) < 1e-12
    assert apart(out, model(x, scale)["logits"]) > 1e-3


def test_branches_left_out_are_not_run_and_learn_nothing(resnet) -> None:
    supernet = Supernet(resnet)
    architecture = drawn(supernet.space, 3)
    ran = set()
    for name, block in supernet.blocks.items():
        for kind, branch in block.branches.items():
            branch.register_forward_hook(lambda *_, slot=(name, kind): ran.add(slot))
    before = copy.deepcopy(resnet.state_dict())
    supernet(architecture, torch.randn(2, 3, 8, 8, dtype=torch.float64)).sum().backward()
    active = {(name, kind) for name, kinds in architecture.active.items() for kind in kinds}
    fixed = {(block.name, kind) for block in supernet.space.blocks for kind in block.fixed}
    assert ran == active | fixed
    for name, block in supernet.blocks.items():
        for kind, branch in block.branches.items():
            used = (name, kind) in ran
            assert all((p.grad is not None) == used for p in branch.parameters())
            if kind in block.alpha:
                assert (block.alpha[kind].grad is not None) == used
            moved = [
                key
                for key in before
                if key.startswith(f"{name}.branches.{kind}.") and not torch.equal(before[key], resnet.state_dict()[key])
            ]
            assert bool(moved) == used, "only branches that ran move their running statistics"
        assert block.beta is None or (block.beta.grad is not None) == bool(architecture.active[name])


def test_nothing_stays_in_the_model_even_when_it_fails(resnet) -> None:
    supernet = Supernet(resnet.eval())
    x = torch.randn(1, 3, 8, 8, dtype=torch.float64)
    expected, keys = resnet(x), set(vars(resnet))
    supernet(drawn(supernet.space, 0), x)
    with pytest.raises(RuntimeError):
        supernet(drawn(supernet.space, 0), x[:, :2])
    assert torch.equal(resnet(x), expected)
    assert set(vars(resnet)) == keys
    assert not any(m._forward_pre_hooks for m in resnet.modules())
    fuse(resnet)


def test_an_architecture_of_another_network_is_refused(resnet) -> None:
    other = SearchSpace.of(RepBlock(3, 3, branches=["1x1"]))
    with pytest.raises(SearchError, match="the architecture is of another network"):
        Supernet(resnet)(Architecture.full(other), torch.zeros(1, 3, 8, 8))


def test_gates_are_read_set_and_told_from_weights(resnet) -> None:
    supernet = Supernet(resnet)
    slots, blocks = len(supernet.space.slots), len(supernet.space.blocks)
    values = Gates(tuple(i / 8 for i in range(slots)), tuple(-i / 8 for i in range(blocks)))
    supernet.put_gates(values)
    assert supernet.gates() == values
    parameters = {id(p) for p in resnet.parameters()}
    gates, weights = ({id(p) for p in group} for group in (supernet.gate_parameters(), supernet.weights()))
    assert gates | weights == parameters
    assert not gates & weights
    assert len(gates) == slots + blocks
    with pytest.raises(SearchError, match=f"expected {slots} alphas"):
        supernet.put_gates(Gates((0.0,), values.beta))


def test_a_block_without_searchable_branches_has_no_gate() -> None:
    supernet = Supernet(nn.Sequential(RepBlock(3, 3, branches=["1x1"]), RepBlock(3, 3)))
    assert supernet.gates() == Gates((0.0,), (0.0, 0.0))
    supernet.put_gates(Gates((1.0,), (2.0, 3.0)))
    assert supernet.gates() == Gates((1.0,), (2.0, 0.0))


def test_a_sub_network_is_saved_loaded_and_fused(tmp_path, randomise, apart) -> None:
    model = randomise(create_model("irep_resnet18", width=4, blocks=(1, 1))).eval()
    space = SearchSpace.of(model)
    architecture = Architecture(space, space.mask({"stem": ["1x1"]}))
    alone = subnetwork(model, architecture)
    save(alone, tmp_path / "sub.pt")
    again = load(tmp_path / "sub.pt").model
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(again(x), alone(x))
    assert apart(fuse(again)[0](x), Supernet(model)(architecture, x)) < 1e-4
    blocks = [m for m in again.modules() if isinstance(m, RepBlock)]
    assert [b.branch_set.searchable for b in blocks] == [("1x1",)] + [()] * (len(blocks) - 1)
    assert all((b.beta is None) == (not b.branch_set.searchable) for b in blocks)


def test_an_expanded_network_with_trained_weights_is_a_supernet_that_computes_the_same(apart) -> None:
    plain = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU()).eval()
    x = torch.randn(2, 3, 8, 8)
    model = expand(plain, branches=["1x1", "avg"], preserve=True, example_inputs=x)
    supernet = Supernet(model)
    assert apart(supernet(Architecture.full(supernet.space), x), plain(x)) < 1e-5


def test_evaluating_gives_every_module_its_mode_back() -> None:
    model = nn.Sequential(RepBlock(3, 3, branches=["1x1"]), nn.Dropout(), nn.BatchNorm2d(3))
    model[2].eval()
    seen = []
    with pytest.raises(ZeroDivisionError), evaluating(model):
        seen.append(1 / sum(m.training for m in model.modules()))
    assert not seen
    assert [m.training for m in model] == [True, True, False]
