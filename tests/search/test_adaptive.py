"""The streamed adaptive batch equals the form that holds all graphs (equations 4 to 8)."""

from __future__ import annotations

import gc
import math
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from repconv import SearchError, create_model
from repconv.search.supernet.adaptive import WEIGHTINGS, accumulate, weights_of
from repconv.search.supernet.architecture import Architecture
from repconv.search.supernet.supernet import Supernet

losses = st.lists(st.floats(-20, 20), min_size=1, max_size=6)


def held(terms: list[Tensor], weighting: str) -> None:
    """All graphs at once, as the paper writes it: dw = sum_j p_j dL_j/dw with p_j constant."""
    values = torch.stack(terms).detach().double()
    p = {
        "softmax": lambda: values.exp() / values.exp().sum(),
        "uniform": lambda: torch.full_like(values, 1 / len(terms)),
        "literal": lambda: values / values.exp().sum(),
    }[weighting]()
    sum(w * term for w, term in zip(p.tolist(), terms, strict=True)).backward()


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@settings(max_examples=50)
@given(losses, st.booleans())
def test_streamed_equals_held(weighting: str, values: list[float], turned: bool) -> None:
    values = values[::-1] if turned else values
    weight = nn.Parameter(torch.tensor(values, dtype=torch.float64))
    streamed, other = nn.Parameter(weight.detach().clone()), nn.Parameter(torch.ones((), dtype=torch.float64))
    terms = [weight[j] * weight.detach().cos().sum() + weight.sum() - weight.sum().detach() for j in range(len(values))]
    held(terms, weighting)
    batch = accumulate(
        [streamed, other],
        [
            lambda j=j: streamed[j] * streamed.detach().cos().sum() + streamed.sum() - streamed.sum().detach()
            for j in range(len(values))
        ],
        weighting,
    )
    scale = float(weight.grad.abs().max())
    assert torch.allclose(streamed.grad, weight.grad, rtol=1e-9, atol=1e-12 * max(scale, 1e-300))
    assert other.grad is None
    assert batch.weights == pytest.approx(weights_of(batch.losses, weighting), rel=1e-9)


def test_the_weights_are_those_of_the_paper() -> None:
    values = [0.5, 2.0, 1.0]
    total = sum(map(math.exp, values))
    assert weights_of(values, "softmax") == pytest.approx([math.exp(v) / total for v in values])
    assert weights_of(values, "literal") == pytest.approx([v / total for v in values])
    assert weights_of(values, "uniform") == pytest.approx([1 / 3] * 3)


@pytest.mark.parametrize("order", [1, -1])
def test_huge_losses_do_not_overflow(order: int) -> None:
    """exp(900) is no float; the largest loss so far is what keeps every exponent at most 0."""
    weight = nn.Parameter(torch.tensor([900.0, 899.0, 1.0][::order], dtype=torch.float64))
    batch = accumulate([weight], [lambda j=j: weight[j] for j in range(3)])
    expected = torch.tensor([900.0, 899.0, 1.0][::order], dtype=torch.float64).softmax(0)
    assert torch.allclose(weight.grad, expected, rtol=1e-12, atol=0)
    assert batch.weights == pytest.approx(expected.tolist())


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_a_supernet_learns_the_same_from_streamed_and_held_graphs(weighting: str, randomise) -> None:
    model = randomise(create_model("irep_resnet18", width=4, blocks=(1, 1))).double()
    supernet = Supernet(model)
    x, y = torch.randn(6, 3, 8, 8, dtype=torch.float64), torch.arange(6)
    draws = torch.Generator().manual_seed(1)
    # A quarter of the branches each, so that some take part in none.
    drawn = [
        Architecture(supernet.space, tuple((torch.rand(len(supernet.space.slots), generator=draws) < 0.25).tolist()))
        for _ in range(3)
    ]
    parameters = list(model.parameters())
    held([functional.cross_entropy(supernet(a, x), y) for a in drawn], weighting)
    expected = {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}
    accumulate(parameters, [lambda a=a: functional.cross_entropy(supernet(a, x), y) for a in drawn], weighting)
    unused = [n for n, g in expected.items() if g is None]
    assert unused
    for name, parameter in model.named_parameters():
        if name in unused:
            assert parameter.grad is None
        else:
            assert torch.allclose(parameter.grad, expected[name], rtol=1e-7, atol=1e-11), name


def test_only_one_graph_lives_at_a_time() -> None:
    weight = nn.Parameter(torch.ones(4))
    alive: list[weakref.ref[Tensor]] = []

    def run() -> Tensor:
        gc.collect()
        assert not [ref for ref in alive if ref() is not None], "the graph before this one still lives"
        inner = weight * 2
        alive.append(weakref.ref(inner))
        return (inner * inner).sum()

    accumulate([weight], [run] * 4)
    assert len(alive) == 4


def test_gradients_of_before_do_not_count() -> None:
    weight = nn.Parameter(torch.ones(()))
    weight.grad = torch.full((), 5.0)
    accumulate([weight], [lambda: weight * 2])
    assert weight.grad.item() == pytest.approx(2)


def test_losses_that_are_not_finite_or_missing_are_refused() -> None:
    weight = nn.Parameter(torch.ones(()))
    with pytest.raises(SearchError, match=r"not finite \(1, nan\); lower the learning rate"):
        accumulate([weight], [lambda: weight * 1, lambda: weight * math.nan, lambda: weight * 1])
    with pytest.raises(SearchError, match="at least one sub-network"):
        accumulate([weight], [])
