"""What is made of times: intervals, warnings about noise, and turns, on made-up clocks and players."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from repconv.benchmarks.harness.loading.turn import take_turn
from repconv.benchmarks.harness.machine.gpu import GpuState, clock_warnings, visible_gpu
from repconv.benchmarks.harness.machine.machine import Usage, governor_warnings, others, usage
from repconv.benchmarks.harness.player import PlayerLost
from repconv.benchmarks.harness.results import Key, pairs
from repconv.benchmarks.harness.settings import BenchSettings
from repconv.benchmarks.harness.turns.noise import drift, ratio_warning, series_warnings
from repconv.benchmarks.harness.turns.timing import LatencyReport, Ratio, ratio
from repconv.benchmarks.harness.turns.turns import Seat, play
from repconv.errors import BuildError, SourceError


def series(generator, median=1.0, noise=0.01, place=0.0, sessions=1, rounds=30) -> LatencyReport:
    """Round medians with noise, and what all rounds of a session share."""
    shared = np.repeat(generator.normal(0, place, sessions), rounds // sessions)
    return LatencyReport("x", tuple(median * np.exp(shared + generator.normal(0, noise, rounds))))


@pytest.mark.parametrize(
    ("sessions", "place", "least"),
    [(1, 0.0, 0.92), (6, 0.0, 0.92), (6, 0.015, 0.90), (10, 0.015, 0.90)],
)
def test_the_interval_covers_the_true_ratio(sessions, place, least) -> None:
    """About 95 times in 100; of few sessions a little less or more, of 200 trials within three deviations of that."""
    hits = 0
    for seed in range(200):
        generator = np.random.default_rng(seed)
        a, b = (series(generator, median, 0.01, place, sessions) for median in (2.0, 1.0))
        found = ratio(a, b, sessions=sessions, draws=300, seed=seed)
        hits += found.low <= 2.0 <= found.high
    assert hits / 200 >= least


def test_what_sessions_share_widens_the_interval() -> None:
    generator = np.random.default_rng(0)
    a, b = (series(generator, 1.0, 0.001, 0.02, 6) for _ in range(2))
    assert ratio(a, b, sessions=6).half_width > 1.2 * ratio(a, b).half_width


def test_samples_of_a_round_count_as_one() -> None:
    report = LatencyReport("x", (1.0, 2.0, 9.0, 3.0, 3.0), (3, 2))
    assert report.by_round == ((1.0, 2.0, 9.0), (3.0, 3.0))
    assert report.round_medians_s == (2.0, 3.0)
    assert report.median_ms == pytest.approx(2500)
    assert report.throughput(8) == pytest.approx(3.2)
    with pytest.raises(ValueError, match="do not make up 2"):
        LatencyReport("x", (1.0, 2.0), (3,))
    with pytest.raises(ValueError, match="do not divide"):
        ratio(report, report, sessions=3)


@pytest.mark.parametrize("seed", range(20))
def test_a_quiet_series_is_not_warned_about(seed) -> None:
    assert series_warnings(series(np.random.default_rng(seed))) == []


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("sign", [1, -1])
def test_an_injected_drift_is_told(seed, sign) -> None:
    quiet = series(np.random.default_rng(seed))
    slope = 1 + sign * 0.12 * np.arange(30) / 30
    found = series_warnings(LatencyReport("x", tuple(np.array(quiet.samples_s) * slope)))
    assert [said for said in found if said.startswith("drift") and ("slower" if sign > 0 else "faster") in said]


def test_other_noise_is_told() -> None:
    generator = np.random.default_rng(0)
    assert any(said.startswith("unsteady") for said in series_warnings(series(generator, noise=0.1)))
    calls = [1.0] * 97 + [5.0] * 3
    assert any(said.startswith("held up") for said in series_warnings(LatencyReport("x", tuple(calls), (100,))))
    assert drift([1.0, 1.0]) is None, "too few to tell"
    assert ratio_warning("a / b", Ratio(1.0, 0.99, 1.02)) is None
    assert "too noisy to tell" in str(ratio_warning("a / b", Ratio(1.0, 0.9, 1.1)))
    assert "surely above 1" in str(ratio_warning("a / b", Ratio(7.99, 7.1, 9.54)))
    assert "surely below 1" in str(ratio_warning("a / b", Ratio(0.5, 0.4, 0.6)))


def test_processor_time_of_others_is_what_is_left_of_all(tmp_path) -> None:
    before, after = (
        Usage(cores=2, busy_s=100.0, stolen_s=1.0, throttled_s=0.0),
        Usage(cores=2, busy_s=112.0, stolen_s=1.5, throttled_s=0.25),
    )
    found = others(before, after, wall_s=10.0, own_s=8.0)
    assert found is not None
    assert (found.others, found.stolen, found.throttled_s) == pytest.approx((0.2, 0.025, 0.25))
    assert [said.split(":")[0] for said in found.warnings] == ["other load", "stolen time", "quota"]
    quiet = others(before, Usage(cores=2, busy_s=108.1, stolen_s=1.0, throttled_s=0.0), 10.0, 8.0)
    assert quiet is not None
    assert quiet.warnings == []
    assert others(None, after, 1.0, 0.0) is None
    assert usage(tmp_path) is None
    governor = tmp_path / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"
    governor.parent.mkdir(parents=True)
    governor.write_text("powersave\n")
    assert "powersave" in governor_warnings([0, 1], tmp_path)[0]
    governor.write_text("performance\n")
    assert governor_warnings([0], tmp_path) == []


def test_a_gpu_whose_clock_moves_is_told(monkeypatch) -> None:
    steady = GpuState(
        name="a GPU",
        driver="1",
        sm_mhz=1700,
        memory_mhz=900,
        sm_max_mhz=1900,
        power_w=200.0,
        power_limit_w=300.0,
        temperature_c=50,
        others=0,
        slowed_by=(),
    )
    slow = replace(steady, sm_mhz=1400, power_w=300.0, temperature_c=80, others=1, slowed_by=("the power limit",))
    assert clock_warnings([]) == clock_warnings([steady, steady]) == []
    said = " ".join(clock_warnings([steady, slow]))
    assert "1400 to 1700 MHz" in said
    assert "the power limit" in said
    assert "other processes" in said
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1")
    assert visible_gpu() == 3


def test_a_turn_lasts_as_long_and_as_many_calls_as_asked() -> None:
    calls: list[int] = []

    def clock(call) -> float:
        call()
        return 0.01

    assert len(take_turn(lambda: calls.append(1), clock, 0.05, 2)) == 5
    assert len(calls) == 7, "two are not kept"
    assert len(take_turn(lambda: None, clock, 0.01, 20)) == 20


class Fake:
    """A player on a made-up clock, that may be lost at a turn or refuse to be loaded again."""

    def __init__(self, lost_at: int = -1, refuses: bool = False) -> None:
        self.events: list[str] = []
        self._turns = itertools.count()
        self._lost_at = lost_at
        self._refuses = refuses

    def load(self, subject) -> dict[str, object]:
        if self._refuses:
            raise BuildError("it cannot be loaded again")
        self.events.append(f"load {subject}")
        return {}

    def warm(self, subject, seconds) -> None:  # noqa: ARG002  # the interface
        self.events.append(f"warm {subject}")

    def turn(self, subject, seconds, calls) -> tuple[float, ...]:  # noqa: ARG002
        if next(self._turns) == self._lost_at:
            raise PlayerLost("its process was ended by signal 9 (SIGKILL)")
        self.events.append(f"turn {subject}")
        return (0.001,) * calls


SETTINGS = BenchSettings(backends=("torch",), rounds=6, sessions=2, calls=12, seconds=0.1)


def test_subjects_take_turns_in_changing_order_and_are_loaded_anew_each_session() -> None:
    player = Fake()
    done: list[float] = []
    played = play([Seat(name, player, name) for name in "abc"], SETTINGS, done.append)
    assert {name: report.rounds for name, report in played.reports.items()} == dict.fromkeys("abc", (2,) * 6)
    assert done == pytest.approx([i / 6 for i in range(1, 7)])
    turns = [event[-1] for event in player.events if event.startswith("turn")]
    rounds = ["".join(turns[i : i + 3]) for i in range(0, 18, 3)]
    assert all(sorted(r) == ["a", "b", "c"] for r in rounds)
    assert len(set(rounds)) > 1
    assert sum(event.startswith("load") for event in player.events) == 3, "once each, before the second session"


def test_a_lost_player_takes_its_subjects_along_and_no_others() -> None:
    lost, well = Fake(lost_at=3), Fake()
    places = [Seat("a", lost, "a"), Seat("b", lost, "b"), Seat("c", well, "c")]
    played = play(places, SETTINGS)
    assert set(played.reports) == {"c"}
    assert set(played.failures) == {"a", "b"}
    assert "SIGKILL" in played.failures["a"]


def test_a_subject_that_cannot_be_loaded_again_is_dropped() -> None:
    played = play([Seat("a", Fake(refuses=True), "a"), Seat("b", Fake(), "b")], SETTINGS)
    assert set(played.reports) == {"b"}
    assert played.failures == {"a": "it cannot be loaded again"}


def test_what_is_compared() -> None:
    keys = [
        Key(source=source, form=form, backend="torch", batch=1, precision="fp32")
        for source in "st"
        for form in ("unfused", "fused", "plain")
    ]
    names = [(over.source, over.form, under.source, under.form) for over, under in pairs(keys, ["plain"])]
    assert names == [
        ("s", "unfused", "s", "fused"),
        ("s", "fused", "s", "plain"),
        ("t", "unfused", "t", "fused"),
        ("t", "fused", "t", "plain"),
        ("t", "fused", "s", "fused"),
    ]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"rounds": 0}, "rounds 0"), ({"batches": (0,)}, "batch 0"), ({"batches": ()}, "no batches"),
        ({"batches": (1, 1)}, "named twice"), ({"precisions": ("fp8",)}, "precision 'fp8'"),
        ({"seconds": 0.0}, "expected more than 0"), ({"seconds": float("nan")}, "expected more than 0"),
        ({"rounds": 7, "sessions": 3}, "do not divide"), ({"device": "tpu"}, "device 'tpu'"),
        ({"threads": 0}, "threads"), ({"image": (0, 8)}, "image 0"), ({"backends": ()}, "no backends"),
    ],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(wrong, said) -> None:
    with pytest.raises(SourceError, match=said):
        BenchSettings(**{"backends": ("torch",), **wrong})
