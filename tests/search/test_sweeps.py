"""Many runs as one: what is planned, how runs are shared out and end, what is shown of them."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import torch

from repconv import OutputError, SearchError, create_model
from repconv.pages.intervals import NumberGroup, intervals
from repconv.progress import watched
from repconv.search.config import SCHEMA
from repconv.search.folder import METRICS, RESULT, RunFolder
from repconv.search.settings import given, settings_to_dict
from repconv.search.strategies.evolution import first_population
from repconv.search.supernet.space import SearchSpace
from repconv.search.sweeps import folder as sweep_folder
from repconv.search.sweeps.crew import Crew
from repconv.search.sweeps.doing import Standing, found_fewer, seconds_left, standing
from repconv.search.sweeps.plan import RetrainingPlan, SweepPlan, plan_from_dict, varied
from repconv.search.sweeps.schedule import Failure, Hands, do_all
from repconv.search.sweeps.summary import SweepSummary
from repconv.search.sweeps.workers import RunProcess, surroundings

TINY = {"width": "2", "blocks": "1"}
PLAN = SweepPlan(
    preset="smoke", settings=TINY, vary={"strategy": ("des", "random"), "ratio": ("1/3", "2/3")}, seeds=2,
    retrain=RetrainingPlan(preset="smoke", settings={"epochs": "2"}, top=2),
)  # fmt: skip
SPACE = SearchSpace.of(create_model("irep_resnet18", width=2, blocks=(1,), in_channels=1))


def changed(**changes: object) -> SweepPlan:
    return dataclasses.replace(PLAN, **changes)


class TestPlan:
    def test_every_combination_with_every_seed_seed_by_seed(self) -> None:
        runs = changed(settings={**TINY, "seed": "5"}).searches
        assert [one.name for one in runs[:5]] == [
            "searches/strategy=des,ratio=1-3,seed=5",
            "searches/strategy=des,ratio=2-3,seed=5",
            "searches/strategy=random,ratio=1-3,seed=5",
            "searches/strategy=random,ratio=2-3,seed=5",
            "searches/strategy=des,ratio=1-3,seed=6",
        ]
        assert [(one.config.strategy, one.config.seed) for one in runs[3:5]] == [("random", 5), ("des", 6)]
        assert runs[1].config.ratio == pytest.approx(2 / 3)
        assert {one.config.width for one in runs} == {2}

    def test_retrainings_follow_their_search(self) -> None:
        first, second, *_ = PLAN.retrainings
        assert (first.name, second.name) == tuple(f"retrained/strategy=des,ratio=1-3,seed=0/{i}" for i in (1, 2))
        assert (second.of, second.rank, second.config.epochs) == (PLAN.searches[0], 2, 2)
        assert PLAN.retrainings[-1].config.seed == 1
        assert first.config.data == "digits"
        (other,) = SweepPlan(
            preset="smoke", settings={"data": "imagefolder:a.zip", "image_size": "40"}, vary={}, seeds=1,
            retrain=RetrainingPlan(preset="imagenet", settings={"image_size": "48"}, top=1),
        ).retrainings  # fmt: skip
        assert (other.config.data, other.config.image_size) == ("imagefolder:a.zip", 48)
        assert other.config.supernet == "searches/seed=0/supernet.pt"

    def test_values_that_hold_commas_stand_between_semicolons(self) -> None:
        assert varied(["blocks=1,1;2,2", "ratio=1/2"]) == {"blocks": ("1,1", "2,2"), "ratio": ("1/2",)}
        plan = SweepPlan(preset="smoke", settings={}, vary=varied(["blocks=1,1;2,2"]))
        assert [one.config.blocks for one in plan.searches] == [(1, 1), (2, 2)]

    def test_names_suit_file_systems_and_are_apart(self) -> None:
        values = ("imagefolder:/a b/c.zip", "imagefolder:/a_b/c.zip", "imagefolder:" + "x" * 300)
        names = [one.name for one in SweepPlan(preset="smoke", settings={}, vary={"data": values}).searches]
        assert len(set(names)) == 3
        assert all(re.fullmatch(r"searches/[A-Za-z0-9.,=+-]{1,200}", name) for name in names)

    def test_it_comes_back_from_its_file(self) -> None:
        content = json.loads(json.dumps(PLAN.to_dict()))
        assert plan_from_dict(content, "sweep.json").to_dict() == PLAN.to_dict()
        assert content["retrainings"][0] == PLAN.retrainings[0].name
        with pytest.raises(SearchError, match=r"sweep.json makes no sense: seeds is .*expected a whole number"):
            plan_from_dict({**content, "seeds": "2"}, "sweep.json")

    @pytest.mark.parametrize(
        ("changes", "says"),
        [
            ({"vary": {"seed": ("1", "2")}}, "seeds are not varied but counted"),
            ({"vary": {"width": ("2", "4")}}, "width: varied and set"),
            ({"vary": {"ratio": ()}}, "ratio varies over no value"),
            ({"vary": {"ratio": ("1/2", "0.5")}}, "ratio=1-2,seed=0 and searches/ratio=0.5,seed=0 are one search"),
            ({"vary": {"ratio": ("1/2", "2")}}, "ratio is above 0 and at most 1"),
            ({"vary": {"raito": ("1/2",)}}, "did you mean 'ratio'"),
            ({"preset": "cifar10-small"}, "preset cifar10-small needs images"),
            ({"seeds": 0}, "at least one seed, got 0"),
            ({"seeds": 10**9}, "100,000 at most"),
            ({"retrain": RetrainingPlan(preset="smoke", settings={"seed": "1"}, top=1)}, "has the seed of its search"),
            ({"retrain": RetrainingPlan(preset="smok", settings={}, top=1)}, "did you mean 'smoke'"),
            ({"retrain": RetrainingPlan(preset="smoke", settings={"width": "8"}, top=1)}, "width is of a network that"),
            ({"retrain": RetrainingPlan(preset="smoke", settings={"grow_epochs": "1"}, top=1)}, "from a plain network"),
        ],
    )
    def test_what_makes_no_sense_is_refused_before_anything_runs(self, changes, says) -> None:
        with pytest.raises(SearchError, match=says):
            _ = changed(**changes).retrainings

    def test_texts_that_are_no_settings(self) -> None:
        with pytest.raises(SearchError, match="a setting is key=value, got 'ratio'"):
            given(["ratio"])
        with pytest.raises(SearchError, match="ratio varies twice"):
            varied(["ratio=1", "ratio=2"])


def finish(root: Path, one, accuracies=(0.5, 0.4)) -> None:
    """What a run leaves that came to its end."""
    folder = RunFolder.create(root / one.name, settings_to_dict(one.config, SCHEMA), {})
    if one.kind == "retrain":
        folder.write_json(RESULT, {})
        return
    masks = first_population(SPACE, SPACE.budget(0.5), 9, torch.Generator())
    found = [{"accuracy": a, "age": 1, "active": m.active} for a, m in zip(accuracies, masks, strict=False)]
    gates = {"alpha": [0.0] * len(SPACE.slots), "beta": [0.0] * len(SPACE.blocks)}
    space = [dataclasses.asdict(block) for block in SPACE.blocks]
    folder.write_json(RESULT, {"schema": "repconv.search/1", "space": space, "gates": gates, "architectures": found})


class Pretender:
    """A run that takes two looks, and then has finished, or failed."""

    def __init__(self, root: Path, one, code: int = 0) -> None:
        self.root, self.one, self.code, self.looks, self.ended, self.asked = root, one, code, 0, False, False

    def poll(self) -> int | None:
        self.looks += 1
        if self.looks < 2:
            return None
        if not self.code and self.looks == 2:
            finish(self.root, self.one)
        return self.code

    def ask_to_end(self) -> None:
        self.asked = True

    def end(self) -> None:
        self.ended = True

    def why(self) -> str:
        return "no luck"


class Stage:
    """Begins pretenders, and remembers them."""

    def __init__(self, root: Path, failing: str = "") -> None:
        self.root, self.failing = root, failing
        self.begun: list[tuple[str, int]] = []
        self.workers: list[Pretender] = []
        self.at_once = 0

    def __call__(self, one, place: int) -> Pretender:
        self.begun.append((one.name, place))
        worker = Pretender(self.root, one, code=3 if one.name == self.failing else 0)
        self.workers.append(worker)
        self.at_once = max(self.at_once, sum(not worker.ended for worker in self.workers))
        return worker


class Store:
    """What a launcher's store does, of which processes on this machine see one."""

    def __init__(self) -> None:
        self.held: dict[str, bytes] = {}
        self.lock = threading.Lock()

    def add(self, key: str, amount: int) -> int:
        with self.lock:
            value = int(self.held.get(key, b"0")) + amount
            self.held[key] = str(value).encode()
            return value

    def set(self, key: str, value: str) -> None:
        self.held[key] = value.encode()

    def get(self, key: str) -> bytes:
        return self.held[key]

    def check(self, keys: list[str]) -> bool:
        return all(key in self.held for key in keys)


def hands(stage, places: int = 2, **others) -> Hands:
    return Hands(start=stage, places=places, sleep=others.pop("sleep", lambda _: None), **others)


class TestSchedule:
    def test_searches_first_then_what_they_found_so_many_at_a_time(self, tmp_path) -> None:
        stage = Stage(tmp_path)
        assert do_all(tmp_path, PLAN.runs, Crew(), hands(stage, 3)) == {}
        assert [name for name, _ in stage.begun] == [one.name for one in PLAN.runs]
        assert {place for _, place in stage.begun} == {0, 1, 2}
        assert stage.at_once == 3
        again = Stage(tmp_path)
        assert do_all(tmp_path, PLAN.runs, Crew(), hands(again)) == {}
        assert again.begun == []

    def test_a_run_that_fails_stops_its_retrainings_alone(self, tmp_path) -> None:
        failing, said = PLAN.searches[1].name, []
        stage = Stage(tmp_path, failing)
        failures = do_all(tmp_path, PLAN.runs, Crew(), hands(stage, say=said.append))
        assert failures == {failing: Failure(3, "no luck")}
        assert len(stage.begun) == len(PLAN.runs) - 2
        assert f"{failing}: no luck" in said
        again = Stage(tmp_path)  # the next call tries once more
        assert do_all(tmp_path, PLAN.runs, Crew(), hands(again)) == {}
        assert [name for name, _ in again.begun] == [failing, *(one.name for one in PLAN.retrainings[2:4])]

    def test_fewer_found_than_asked_for_are_retrained(self, tmp_path) -> None:
        finish(tmp_path, PLAN.searches[0], accuracies=(0.5,))
        stage = Stage(tmp_path)
        assert do_all(tmp_path, PLAN.runs, Crew(), hands(stage)) == {}
        first, second, *_ = PLAN.retrainings
        assert first.name in dict(stage.begun)
        assert second.name not in dict(stage.begun)
        assert found_fewer(tmp_path, second)
        assert standing(tmp_path, second).state == "left out"

    def test_an_interruption_ends_what_was_begun_and_the_rest_goes_on_after_it(self, tmp_path) -> None:
        def interrupted(_: float) -> None:
            raise KeyboardInterrupt

        stage = Stage(tmp_path)
        with pytest.raises(KeyboardInterrupt):
            do_all(tmp_path, PLAN.runs, Crew(), hands(stage, sleep=interrupted))
        assert len(stage.workers) == 2
        assert all(worker.asked and worker.ended for worker in stage.workers)
        assert do_all(tmp_path, PLAN.runs, Crew(), hands(Stage(tmp_path))) == {}

    def test_processes_of_a_launcher_share_the_runs_and_all_know_what_failed(self, tmp_path) -> None:
        store, failing = Store(), PLAN.searches[2].name
        stages = [Stage(tmp_path, failing) for _ in range(2)]
        found: dict[int, object] = {}

        def work(rank: int) -> None:
            crew = Crew(store, rank, 2)
            crew.meet()
            found[rank] = do_all(tmp_path, PLAN.runs, crew, hands(stages[rank], 1, sleep=lambda _: time.sleep(0.001)))
            crew.part()

        threads = [threading.Thread(target=work, args=(rank,)) for rank in (1, 0)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        begun = [name for stage in stages for name, _ in stage.begun]
        lost = {one.name for one in PLAN.retrainings if one.of.name == failing}
        assert sorted(begun) == sorted({one.name for one in PLAN.runs} - lost)
        assert all(stage.begun for stage in stages)
        assert found[0] == found[1] == {failing: Failure(3, "no luck")}

    def test_the_time_left_is_told(self, tmp_path) -> None:
        (tmp_path / PLAN.searches[0].name).mkdir(parents=True)
        folder = RunFolder(tmp_path / PLAN.searches[0].name)
        for epoch in (1, 2, 3):
            folder.append_metrics({"kind": "epoch", "epoch": epoch, "step": 4 * epoch, "loss": 1, "seconds_a_step": 2})
        seen: list = []

        def stops(_: float) -> None:
            raise KeyboardInterrupt

        with watched(seen.append), pytest.raises(KeyboardInterrupt):
            do_all(tmp_path, PLAN.runs, Crew(), hands(Stage(tmp_path), sleep=stops))
        (told,) = seen
        # 24 s for 3 of 12 epochs; seven others of 96 s; two at a time.
        assert (told.done, told.total, told.left_s) == (0, len(PLAN.runs), (72 + 7 * 96) / 2)
        assert told.without == "retraining"


def test_time_left_is_that_of_a_runs_own_pace_else_of_its_groups_else_of_its_kinds() -> None:
    runs = PLAN.searches[:3] + PLAN.searches[4:5]
    done = Standing(state="finished", share=1.0, seconds=100)
    half = Standing(state="under way", share=0.5, seconds=20)
    waits = Standing(state="waiting")
    assert seconds_left(runs, [waits] * 4, 2) is None
    # The third takes the mean of 100 and 40, the fourth is of the first one's group.
    assert seconds_left(runs, [done, half, waits, waits], 1) == 20 + 70 + 100
    assert seconds_left(runs, [done, half, waits, waits], 9) == 100  # the longest alone
    assert seconds_left(runs, [done] * 4, 1) == 0


def test_a_process_has_its_share_of_the_machine_and_joins_nobody() -> None:
    launched = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "x", "TORCHELASTIC_RUN_ID": "y", "HOME": "/h"}
    found = surroundings({**launched, "OMP_NUM_THREADS": "1"}, slot=3, slots=4, cores=10, gpus=("0", "2"))
    assert found == {"HOME": "/h", "OMP_NUM_THREADS": "2", "CUDA_VISIBLE_DEVICES": "2"}
    assert surroundings({"OMP_NUM_THREADS": "5"}, slot=0, slots=4, cores=2, gpus=("0",)) == {"OMP_NUM_THREADS": "5"}
    assert surroundings({}, slot=0, slots=4, cores=2, gpus=()) == {"OMP_NUM_THREADS": "1"}


class TestProcess:
    @staticmethod
    def begun(code: str, log: Path) -> RunProcess:
        return RunProcess([sys.executable, "-c", code], log, dict(os.environ))

    @staticmethod
    def code_of(worker: RunProcess) -> int:
        for _ in range(600):
            if (code := worker.poll()) is not None:
                return code
            time.sleep(0.05)
        raise TimeoutError

    def test_why_it_failed_is_its_own_last_words(self, tmp_path) -> None:
        log = tmp_path / "logs" / "a.log"
        for words, said in (("repconv: no data", "no data"), ("", "exit code 2")):
            worker = self.begun(f"import sys; print({words!r}); print(' '); sys.exit(2)", log)
            assert self.code_of(worker) == 2
            worker.end()
            assert worker.why() == f"{said} (log: {log})"
        worker = self.begun("import os; os.kill(os.getpid(), 9)", log)
        assert self.code_of(worker) == -9
        worker.end()
        assert worker.why().startswith("ended by SIGKILL; too little memory")
        assert log.read_text().count("no data") == 1

    def test_a_log_that_cannot_be_written(self, tmp_path) -> None:
        (tmp_path / "logs").touch()
        with pytest.raises(OutputError, match="cannot write"):
            self.begun("", tmp_path / "logs" / "a.log")

    def test_it_ends_where_its_parent_is_killed(self, tmp_path) -> None:
        child = (
            "from repconv.search.sweeps.workers import end_with_parent; import os, time; end_with_parent(); "
            "print(os.getpid(), flush=True); time.sleep(300)"
        )
        log = tmp_path / "a.log"
        parent = (
            "import os, sys, time, pathlib; from repconv.search.sweeps.workers import RunProcess; "
            f"RunProcess([sys.executable, '-c', {child!r}], pathlib.Path({str(log)!r}), dict(os.environ)); "
            "time.sleep(300)"
        )
        process = subprocess.Popen([sys.executable, "-c", parent])
        for _ in range(1200):
            if log.exists() and log.read_text().strip():
                break
            time.sleep(0.05)
        number = int(log.read_text())
        process.kill()
        process.wait()
        for _ in range(200):
            if not alive(number):
                break
            time.sleep(0.05)
        assert not alive(number)


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
        return Path(f"/proc/{process}/stat").read_text().split()[2] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


class TestFolder:
    def test_its_plan_is_one_for_ever(self, tmp_path) -> None:
        sweep_folder.planned(tmp_path / "s", PLAN)
        assert sweep_folder.read_plan(tmp_path / "s") == PLAN
        sweep_folder.planned(tmp_path / "s", PLAN)
        with pytest.raises(OutputError, match=r"another plan \(seeds is 2 there and 3 here; retrain is .* none here\)"):
            sweep_folder.planned(tmp_path / "s", changed(seeds=3, retrain=None))

    def test_what_varies_names_the_runs_in_its_order(self, tmp_path) -> None:
        one = changed(vary={"strategy": ("random",), "ratio": ("1/2",)}, retrain=None)
        other = changed(vary={"ratio": ("1/2",), "strategy": ("random",)}, retrain=None)
        assert one.searches[0].name != other.searches[0].name
        sweep_folder.planned(tmp_path, one)
        with pytest.raises(OutputError, match=r"vary is \{\"strategy\".* there and \{\"ratio\".* here"):
            sweep_folder.planned(tmp_path, other)

    def test_it_is_no_single_runs(self, tmp_path) -> None:
        RunFolder.create(tmp_path / "run", {}, {})
        with pytest.raises(OutputError, match="holds a single run"):
            sweep_folder.planned(tmp_path / "run", PLAN)

    def test_no_single_run_gets_into_it(self, tmp_path) -> None:
        sweep_folder.planned(tmp_path, PLAN)
        before = sorted(tmp_path.iterdir())
        with pytest.raises(OutputError, match="holds a sweep, not a single run"):
            RunFolder.create(tmp_path, {}, {})
        with pytest.raises(SearchError, match="the line that began it goes on"):
            RunFolder.open(tmp_path)
        with (
            pytest.raises(OutputError, match="holds a sweep, not a single run"),
            RunFolder.starting(tmp_path, {}, {}, resume=True),
        ):
            pass
        assert sorted(tmp_path.iterdir()) == before
        sweep_folder.planned(tmp_path, PLAN)


class TestSummary:
    def test_what_is_there_is_compared_and_drawn_also_under_way(self, tmp_path) -> None:
        failures = {PLAN.searches[-1].name: Failure(2, "<no> luck")}
        for number, one in enumerate(PLAN.searches[:-1]):
            finish(tmp_path, one, (0.5 + number / 100, 0.1))
        found = SweepSummary(tmp_path, changed(retrain=None), failures)
        content = json.loads(json.dumps(found.to_dict()))
        assert content["schema"] == "repconv.sweep-result/1"
        assert content["complete"] is False
        assert [run["state"] for run in content["runs"]] == [*["finished"] * 7, "failed"]
        assert content["runs"][-1]["error"] == "<no> luck"
        assert content["runs"][3]["accuracy"] == 0.53
        assert content["retrainings"] is None
        groups = content["searches"]["groups"]
        assert groups["strategy=des ratio=0.3333"]["value"] == pytest.approx(0.52)
        assert groups["strategy=des ratio=0.3333"]["count"] == 2
        page = found.page()
        assert "8 runs, 7 finished, 1 failed" in page
        assert "&lt;no&gt; luck" in page
        (picture,) = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
        ElementTree.fromstring(picture)  # noqa: S314  # our own output
        assert picture.count("<circle") == 7

    def test_damage_of_one_run_is_its_own(self, tmp_path) -> None:
        for one in PLAN.searches[:3]:
            finish(tmp_path, one)
        damaged, begun = (tmp_path / one.name for one in PLAN.searches[2:4])
        (damaged / RESULT).write_text("{}")
        begun.mkdir()
        (begun / METRICS).write_text("nonsense\n")
        found = SweepSummary(tmp_path, PLAN)
        assert [*found.failures] == [PLAN.searches[2].name]
        assert "makes no sense" in found.to_dict()["runs"][2]["error"]
        assert len(found.to_dict()["searches"]["runs"]) == 2
        assert (found.standings[PLAN.searches[3].name].state, found.complete) == ("under way", False)
        stage = Stage(tmp_path)
        (begun / METRICS).unlink()
        begun.rmdir()
        do_all(tmp_path, PLAN.runs, Crew(), hands(stage))
        assert PLAN.retrainings[4].name in dict(stage.begun), "it says itself what is wrong"

    def test_one_run_is_compared_with_nothing(self, tmp_path) -> None:
        finish(tmp_path, PLAN.searches[0])
        assert SweepSummary(tmp_path, PLAN).to_dict()["searches"] is None
        assert "1 finished" in SweepSummary(tmp_path, PLAN).page()


def test_a_picture_of_intervals_is_in_proportion_and_leaves_wide_ones_open() -> None:
    groups = [
        NumberGroup(name="a & b", values=[1.0, 2.0, 3.0], middle=2.0, interval=(0.5, 3.5)),
        NumberGroup(name="wide", values=[2.0, 2.1], middle=2.05, interval=(-90.0, 94.0)),
        NumberGroup(name="one", values=[2.5], middle=2.5, interval=None),
    ]
    root = ElementTree.fromstring(intervals(groups, "%"))  # noqa: S314  # our own output
    space = "{http://www.w3.org/2000/svg}"
    spots = [float(circle.get("cx")) for circle in root.iter(f"{space}circle")]
    assert spots[1] == pytest.approx((spots[0] + spots[2]) / 2, abs=0.1)
    assert spots[5] == pytest.approx((spots[1] + spots[2]) / 2, abs=0.1)
    assert all(0 < spot < 620 for spot in spots)
    closed = [path for path in root.iter(f"{space}path") if path.get("d").endswith("v10")]
    assert len(closed) == 2  # both of the first group's, none of the second's
    ElementTree.fromstring(intervals(groups[2:], "%"))  # noqa: S314  # our own output
    with pytest.raises(ValueError, match="needs a group"):
        intervals([], "%")
