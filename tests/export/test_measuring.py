"""An artefact of a network that amplifies rounding is judged over many calls, not by the worst of them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from repconv.benchmarks.studies.proof.proof_networks import network
from repconv.export import BuildSettings, Span
from repconv.export.measuring import compare_with_source, probe_calls
from repconv.export.proof.evidence import Evidence
from repconv.export.subject import Subject, open_subject

SETTINGS = BuildSettings(image=(Span.of(12), Span.of(12)))


@pytest.fixture(scope="module")
def subject() -> Subject:
    torch.manual_seed(0)
    chaotic, _ = network("chaotic")
    return open_subject(chaotic, SETTINGS)


def measured(subject: Subject, module: nn.Module, seed: int) -> Evidence:
    """The module as an artefact, its inputs off by a few roundings, as another runtime's first layer makes them."""
    generator = torch.Generator().manual_seed(seed)

    def run(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with torch.no_grad():
            off = 2.0**-22 * torch.randn(x.shape, generator=generator)
            return (module(x * (1 + off)),)

    return compare_with_source(
        subject, run, probe_calls(subject, SETTINGS, None, seed=seed), SETTINGS, runtime="none", origin="noise"
    )


def test_what_amplifies_rounding_is_not_refused_by_chance(subject: Subject) -> None:
    found = [measured(subject, subject.network, seed) for seed in range(6)]
    assert all(evidence.passed for evidence in found)
    # A call alone would have refused some.
    assert any(c.pooled is not None for evidence in found for c in evidence.comparisons)


@pytest.mark.parametrize("by", [1e-3, 1e-2])
def test_a_wrong_weight_is_found_through_it(subject: Subject, by: float) -> None:
    wrong = copy.deepcopy(subject.network)
    conv = next(module for module in wrong.modules() if isinstance(module, nn.Conv2d))
    with torch.no_grad():
        conv.weight.mul_(1 + by)
    assert not any(measured(subject, wrong, seed).passed for seed in range(4))
