"""Do the jobs of the protocol that are not done yet, several at a time, each on one thread.

    python benchmarks/studies/search/evidence/measure.py --train cifar10-train.zip --test cifar10-test.zip \
        [--jobs 2] [--only REGEX] [--minutes 120]
    python benchmarks/studies/search/evidence/measure.py --list [--only REGEX]

Every finished job's files stay in benchmarks/results/evidence/, a folder each; a job that was interrupted goes on where
it was, in build/evidence/. In all it takes about 18 hours of one core.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import time
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path

from repconv.benchmarks.studies.common import ROOT, existing, positive
from repconv.benchmarks.studies.search.evidence.job import do, finished, ready
from repconv.benchmarks.studies.search.evidence.protocol import TEST, TRAIN, Job, jobs
from repconv.benchmarks.studies.training.training_step import MALLOC

WORK = ROOT / "build" / "evidence"


def main() -> None:
    """Do what is left."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=existing, help="a zip of CIFAR-10's training images")
    parser.add_argument("--test", type=existing, help="a zip of its test images")
    parser.add_argument("--jobs", type=positive, default=1, help="at a time (%(default)s)")
    parser.add_argument("--only", default="", help="jobs whose name this regular expression finds")
    parser.add_argument("--minutes", type=positive, help="start none after so long")
    parser.add_argument("--list", action="store_true", help="name those left, and do none")
    chosen = parser.parse_args()
    named = {job.name: job for job in jobs()}
    left = [job for name, job in named.items() if re.search(chosen.only, name) and not finished(name)]
    print(f"{len(left)} of {len(named)} jobs are left", flush=True)
    if chosen.list:
        print("".join(f"{job.name}\n" for job in left), end="")
        return
    if not left:
        return
    if not (chosen.train and chosen.test):
        parser.error("they need the images of CIFAR-10: give --train and --test, a zip each (--list names them alone)")
    os.environ.update(MALLOC)  # of the processes to come
    WORK.mkdir(parents=True, exist_ok=True)
    for name, file in ((TRAIN, chosen.train), (TEST, chosen.test)):
        link = WORK / name.partition(":")[2]
        link.unlink(missing_ok=True)
        link.symlink_to(Path(file).resolve())
    do_all(left, chosen.jobs, time.monotonic() + 60 * chosen.minutes if chosen.minutes else float("inf"))


def do_all(left: list[Job], at_a_time: int, until: float) -> None:
    """Do `left`, always the first whose start is there; none is started after `until`."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(at_a_time, mp_context=spawn) as pool:
        under_way: dict[Future[str], float] = {}
        while True:
            while len(under_way) < at_a_time and time.monotonic() < until:
                job = next((job for job in left if ready(job)), None)
                if job is None:
                    break
                left.remove(job)
                under_way[pool.submit(do, job, WORK)] = time.monotonic()
            if not under_way:
                return
            for done in wait(under_way, return_when=FIRST_COMPLETED).done:
                print(f"{done.result()} {time.monotonic() - under_way.pop(done):.0f} s, {len(left)} left", flush=True)


if __name__ == "__main__":
    main()
