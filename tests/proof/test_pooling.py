"""End to end is a test of stated power: right folds of chaotic networks pass, wrong ones do not; silence is said."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from repconv.benchmarks.studies.proof.looks import refused
from repconv.proof import pooling
from repconv.proof.agreement import Agreement, Comparison, Difference
from repconv.proof.comparing import CEILINGS, compare_tensors, explained
from repconv.proof.pooling import MOST_CALLS, compare_calls, pooled


def compared(error: float, own: float, *, floor: float = 1e-5) -> Comparison:
    """One call's comparison in float32, of these errors to scale."""
    errors, owns = (Difference(max_absolute=e, to_scale=e, to_channel=e, rms=e) for e in (error, own))
    return Comparison(
        where="",
        shape=(),
        dtype="float32",
        error=errors,
        own=owns,
        tolerance=max(floor, 2 * own),
        reason="",
        ceiling=CEILINGS[torch.float32],
    )


def one_direction(generator: np.random.Generator, factor: float) -> Comparison:
    """Errors of a network that amplifies rounding along one direction: one normal number each."""
    got, own = np.abs(generator.standard_normal(2)) * 1e-4
    return compared(factor * float(got), float(own))


def verdict(generator: np.random.Generator, factor: float) -> bool:
    found = compare_calls(lambda _: [one_direction(generator, factor)], [torch.zeros(1), torch.zeros(1)])
    return Agreement(end_to_end=found).passed


def test_right_folds_of_chaotic_networks_are_not_refused() -> None:
    generator = np.random.default_rng(0)
    assert all(verdict(generator, 1.0) for _ in range(2_000))


def test_single_calls_alone_would_refuse_them() -> None:
    generator = np.random.default_rng(0)
    refused = sum(not one_direction(generator, 1.0).passed for _ in range(2_000))
    assert refused > 400


def test_what_is_off_by_more_is_refused() -> None:
    generator = np.random.default_rng(0)
    refused = sum(not verdict(generator, 40.0) for _ in range(200))
    assert refused == 200


def test_calls_are_added_only_while_the_matter_is_open() -> None:
    asked: list[int] = []

    def compare(_: torch.Tensor) -> list[Comparison]:
        asked.append(1)
        return [compared(1e-6, 1e-6)]

    compare_calls(compare, [torch.zeros(1)] * 2)
    assert len(asked) == 2
    asked.clear()

    def off(_: torch.Tensor) -> list[Comparison]:
        asked.append(1)
        return [compared(3e-4, 1e-4)]

    found = compare_calls(off, [torch.zeros(1)] * 2)
    assert len(asked) == MOST_CALLS
    assert Agreement(end_to_end=found).passed  # 3 times the own error, of 6.8 that chance allows


def turned(call: int, ours: set[int], theirs: set[int]) -> Comparison:
    """A network of near ties: now and then rounding turns one over, in either run."""
    found = compared(*(0.8 if call in calls else 1e-6 for calls in (ours, theirs)))
    return replace(found, undecided="an ill-conditioned network") if call in theirs else found


def judged_after(ours: set[int], theirs: set[int], *, proven: bool) -> tuple[Agreement, int]:
    asked: list[int] = []

    def compare(_: torch.Tensor) -> list[Comparison]:
        asked.append(len(asked))
        return [turned(asked[-1], ours, theirs)]

    block = replace(compared(1e-8, 1e-8), where="block")
    found = compare_calls(compare, [torch.zeros(1)] * 2, proven=proven)
    return Agreement((block,), found), len(asked)


def test_a_tie_that_rounding_turns_over_is_no_difference_where_the_original_turns_one_over_too() -> None:
    agreement, calls = judged_after({1}, {5}, proven=True)
    assert agreement.passed
    assert calls == 6
    assert agreement.undecided is not None
    assert "in another call, an ill-conditioned network" in {c.undecided for c in agreement.end_to_end}
    assert not Agreement(end_to_end=agreement.end_to_end).passed, "there are no blocks to carry the verdict"


def test_a_candidate_that_alone_is_off_is_refused_after_all_calls() -> None:
    agreement, calls = judged_after({1}, set(), proven=True)
    assert not agreement.passed
    assert calls == MOST_CALLS


def test_what_is_not_proven_by_itself_is_refused_at_once() -> None:
    agreement, calls = judged_after({1}, {5}, proven=False)
    assert not agreement.passed
    assert calls == 2


def test_calls_that_take_long_are_not_repeated_and_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pooling, "MOST_SECONDS", 0)
    found = compare_calls(lambda _: [compared(3e-4, 1e-4)], [torch.zeros(1)] * 3)
    assert len(found) == 3
    assert "over 3 calls, no more being made after 0 s" in found[0].reason


def test_the_chances_of_all_looks_are_as_said() -> None:
    generator = np.random.default_rng(1)
    assert refused(2.0, 200_000, generator) <= 30  # 1e-4 in all, 20, and three standard deviations
    assert refused(10.0, 1_000, generator) > 900


def test_more_calls_are_of_the_same_kind() -> None:
    given = (torch.arange(4), torch.zeros(2, 3, dtype=torch.float16))
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    compare_calls(lambda x: seen.append(x) or [compared(3e-4, 1e-4)], [given] * 2)
    for whole, real in seen[2:]:
        assert sorted(whole.tolist()) == [0, 1, 2, 3]
        assert real.dtype == torch.float16
        assert real.shape == (2, 3)
        assert real.std() > 0


def test_no_limit_is_above_the_ceiling() -> None:
    found = pooled([compared(9e-3, 9e-4)] * 4)
    assert not Agreement(end_to_end=found).passed
    assert max(c.pooled[1] for c in found if c.pooled) <= 2 * CEILINGS[torch.float32]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_an_own_error_above_the_ceiling_is_no_tolerance(dtype: torch.dtype) -> None:
    wanted = torch.ones(1, 100, dtype=torch.float64)
    own = (wanted * (1 + 2 * CEILINGS[dtype])).to(dtype)
    got = (wanted * (1 + 1.5 * CEILINGS[dtype])).to(dtype)
    found = compare_tensors(wanted, got, own)
    assert not found.passed
    assert found.undecided is not None
    assert "broken reference" in found.undecided
    alone = Agreement(end_to_end=(found,))
    assert not alone.passed
    assert alone.verdict.startswith("cannot tell")
    proven = compare_tensors(wanted, wanted.to(dtype), None)
    carried = Agreement((proven,), (found,))
    assert carried.passed
    assert "blocks carry the verdict" in carried.verdict
    assert not Agreement((proven,), (found,), partial=True).passed
    assert not Agreement((compare_tensors(wanted, 2 * wanted.to(dtype), None),), (found,)).passed


def test_an_error_beside_zeros_has_no_scale() -> None:
    zeros = torch.zeros(1, 10, dtype=torch.float64)
    found = compare_tensors(zeros, torch.full((1, 10), 1e-9), zeros.float())
    assert found.undecided is not None
    assert not Agreement(end_to_end=(found,)).passed
    assert compare_tensors(zeros, zeros.float(), zeros.float()).passed
    proven = compare_tensors(zeros + 1, torch.ones(1, 10), None)
    assert Agreement((proven,), (found,)).passed


def test_a_type_the_code_asks_for_sets_the_ceiling() -> None:
    wanted = torch.ones(1, 100, dtype=torch.float64)
    own = (wanted * (1 + 2 * CEILINGS[torch.float32])).float()
    assert compare_tensors(wanted, own, own).undecided is not None
    assert compare_tensors(wanted, own, own, asked={torch.bfloat16}).undecided is None


def test_rounding_the_stored_numbers_is_an_excuse_for_what_it_makes_only() -> None:
    wanted = torch.linspace(1, 2, 100, dtype=torch.float64)[None]
    got, own = (wanted * (1 + 2e-4)).float(), wanted.float()
    found = compare_tensors(wanted, got, own)
    assert not found.passed
    assert explained(found, wanted, wanted * (1 + 1.5e-4)).passed
    assert not explained(found, wanted, wanted * (1 + 1e-5)).passed
    beyond = explained(found, wanted, wanted * (1 + 3e-3))
    assert not beyond.passed
    assert beyond.undecided is not None


@pytest.mark.slow
def test_a_deep_random_network_is_fused_whatever_it_amplifies() -> None:
    import repconv

    class Deep(nn.Module):
        """Residual blocks without any damping: rounding grows with each."""

        def __init__(self) -> None:
            super().__init__()
            self.convs = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1, bias=False) for _ in range(24))
            self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(24))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for conv, norm in zip(self.convs, self.norms, strict=True):
                x = x + torch.sin(20 * norm(conv(x)))
            return x

    for seed in range(4):
        torch.manual_seed(seed)
        model = Deep().eval()
        _, report = repconv.fuse(model, torch.randn(1, 8, 9, 9))
        assert report.agreement is not None
        assert report.agreement.passed
        silent = report.agreement.undecided
        assert silent is not None, "the network was meant to amplify rounding beyond what can be told"
        assert silent.own is not None
        assert silent.own.to_scale > 1e-3
        assert "carry the verdict" in report.agreement.verdict
    assert math.isfinite(silent.error.to_scale)
