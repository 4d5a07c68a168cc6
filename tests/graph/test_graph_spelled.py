"""Random networks of pieces as authors spell them: fused in every form, compared in float64 at several sizes."""

from __future__ import annotations

import random

import pytest
import torch

from repconv.benchmarks.studies.graph import random_graphs
from repconv.benchmarks.studies.graph.drawn.draw import Draw
from repconv.benchmarks.studies.graph.drawn.pieces import IMAGES, TOKENS, grown
from repconv.benchmarks.studies.graph.drawn.spelled import SUMS
from repconv.benchmarks.studies.graph.random_graphs import FORMS, GOOD, Outcome, summed, tried


def failed(seeds: range) -> list[Outcome]:
    return [found for seed in seeds if (found := tried(seed)).verdict not in GOOD]


def test_some_networks_are_right_in_every_form() -> None:
    assert not failed(range(len(FORMS), 2 * len(FORMS)))


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("seeds", [range(s, s + 100) for s in (2000, 2100, 2200)])
def test_many_networks_are_right(seeds: range) -> None:
    assert not failed(seeds)


@pytest.mark.parametrize("name", [*IMAGES, *TOKENS])
def test_every_piece_runs_on_some_tensor_and_is_the_same_for_the_same_choices(name: str) -> None:
    kind = IMAGES.get(name) or TOKENS[name]
    x = torch.randn(2, 6, 8, 6) if name in IMAGES else torch.randn(2, 7, 6)
    made = []
    for _ in range(2):
        torch.manual_seed(0)
        choices = random.Random(1)
        for _ in range(20):  # what does not fit is drawn again
            try:
                made.append(kind(Draw(choices, x)).eval()(x))
                break
            except (ValueError, RuntimeError):
                continue
    assert torch.equal(*made)


@pytest.mark.parametrize("total", SUMS.values(), ids=SUMS)
def test_sums_keep_the_size_of_what_they_add(total: object) -> None:
    piece = torch.nn.Module()
    piece.g, piece.by_channel, piece.hot = torch.randn(3), torch.randn(3, 6), torch.eye(3)[1]
    y = [torch.randn(2, 6, 5, 4) for _ in range(3)]
    assert total(piece, y).shape == y[0].shape


def test_a_network_is_the_same_for_the_same_seed() -> None:
    (first, x, names), (again, y, same) = grown(7, 3), grown(7, 3)
    assert names == same
    assert torch.equal(x, y)
    assert torch.equal(first(x), again(y))


def test_a_wrong_value_a_refusal_and_a_crash_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    right = random_graphs._fused  # what is replaced

    def off(given: object) -> object:
        (before, after), report, said = right(given)
        return (before, lambda x: [1.001 * y for y in after(x)]), report, said

    def refused(given: object) -> object:
        return (*right(given)[:2], "VerificationError: no")

    def crashed(_: object) -> object:
        raise RuntimeError("it broke")

    verdicts = []
    for replaced in (off, refused, crashed, right):
        monkeypatch.setattr(random_graphs, "_fused", replaced)
        verdicts.append(tried(0))
    assert [each.verdict for each in verdicts] == ["wrong", "refused", "crashed", "right"]
    told = summed(verdicts)
    assert told["verdicts"] == {"wrong": 1, "refused": 1, "crashed": 1, "right": 1}
    assert told["graphs"] == 4
