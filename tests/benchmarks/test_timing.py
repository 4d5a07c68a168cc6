"""The timing harness: turns, samples, ratios."""

import pytest

from repconv.benchmarks.harness.turns.timing import LatencyReport, ratio, time_in_turns
from repconv.benchmarks.studies.speed.pairs import SESSIONS, paired


def test_subjects_take_turns_after_their_warm_up():
    calls: list[str] = []
    reports = time_in_turns(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=3, warmup=2, per_round=2
    )
    assert calls == ["a", "a", "b", "b"] + ["a", "a", "b", "b"] * 3
    assert {name: len(r.samples_s) for name, r in reports.items()} == {"a": 3, "b": 3}


def test_statistics_are_derived_from_samples_in_seconds():
    report = LatencyReport("a", (0.001, 0.002, 0.009))
    assert report.median_ms == pytest.approx(2)
    assert report.p95_ms == pytest.approx(8.3)


def test_a_ratio_has_an_interval_around_it_and_is_exact_without_noise():
    slow = LatencyReport("slow", tuple(0.002 + 0.0001 * (i % 5) for i in range(40)))
    fast = LatencyReport("fast", tuple(0.001 + 0.00005 * (i % 5) for i in range(40)))
    found = ratio(slow, fast)
    assert found.low <= found.value <= found.high
    assert found.value == pytest.approx(2)
    assert found.high - found.low < 0.2


def test_pairs_run_in_sessions_made_anew_in_either_order():
    opened: list[str] = []

    def maker(name):
        def make():
            opened.append(name)
            return int

        return make

    reports = paired({"a": maker("a"), "b": maker("b")}, rounds=2 * SESSIONS, calls=1)
    assert opened == ["b", "a", "a", "b"] * (SESSIONS // 2)
    assert {name: len(report.samples_s) for name, report in reports.items()} == dict.fromkeys("ab", 2 * SESSIONS)


def test_bad_use_is_refused():
    with pytest.raises(ValueError, match="need subjects, rounds and calls"):
        time_in_turns({}, rounds=1)
    with pytest.raises(ValueError, match="need subjects, rounds and calls"):
        time_in_turns({"a": int}, rounds=0)
    with pytest.raises(ValueError, match="same rounds"):
        ratio(LatencyReport("a", (1.0,)), LatencyReport("b", (1.0, 2.0)))
