"""The process of one backend: `python -m repconv.benchmarks.harness.worker`, one JSON request and answer a line.

Each backend has a process of its own, so that its threads do not share one with another's, and so that a crash is an
answer. Between requests it waits for input, which costs no processor time.

Peak memory is measured by a child that is forked before the runtime has started any thread; it loads one subject, calls
it, and tells how far its resident memory rose.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from repconv.benchmarks.harness.loading.turn import take_turn
from repconv.export.artefacts.loaded import How, Job, Loaded, host_clock

MEMORY_CALLS = 3


def _none(job: Job, how: How) -> Loaded:  # noqa: ARG001
    raise RuntimeError("the first request is a start")


@dataclass(kw_only=True)
class _State:
    """What the requests so far have made."""

    loader: Callable[[Job, How], Loaded] = _none
    how: How = field(default_factory=How)
    jobs: dict[str, Job] = field(default_factory=dict)
    loaded: dict[str, Loaded] = field(default_factory=dict)

    def load(self, subject: str) -> Loaded:
        """Load a subject of the jobs."""
        return self.loader(self.jobs[subject], self.how)


def main() -> None:
    """Answer requests until there are no more."""
    # Runtimes write to standard output as they please; what they say belongs to standard error.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    state = _State()
    for line in sys.stdin:
        _answer(answers, state, json.loads(line))


def _answer(answers: IO[str], state: _State, asked: Mapping[str, Any]) -> None:
    try:
        answer = REQUESTS[asked["do"]](state, asked)
    except Exception as error:  # noqa: BLE001  # runtimes raise anything, and all of it is an answer
        missing = isinstance(error, ImportError) or asked["do"] == "start"
        said = next((line for line in str(error).splitlines() if line.strip()), "")
        answer = {"error": "missing" if missing else "failed", "said": f"{type(error).__name__}: {said}"}
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


def _start(state: _State, asked: Mapping[str, Any]) -> dict[str, object]:
    """Take the cores and threads asked for, import the runtime, and hear of the jobs."""
    if asked["cpus"]:
        os.sched_setaffinity(0, asked["cpus"])
    state.how = How(**asked["how"])
    state.jobs = {
        name: Job(
            file=Path(job["file"]),
            input=Path(job["input"]),
            precision=job["precision"],
            own_code=job["own_code"],
            target=job["target"],
        )
        for name, job in asked["jobs"].items()
    }
    from repconv.benchmarks.harness.loading.loading import loader_of

    state.loader = loader_of(asked["backend"])
    threads = state.how.threads
    if threads is not None and "torch" in sys.modules:
        import torch

        torch.set_num_threads(threads)
    cores = sorted(os.sched_getaffinity(0)) if sys.platform.startswith("linux") else []
    return {"pid": os.getpid(), "cpus": cores}


def _load(state: _State, asked: Mapping[str, Any]) -> dict[str, object]:
    """Load a subject, in place of what there was of it."""
    state.loaded.pop(asked["subject"], None)
    start = time.perf_counter()
    found = state.load(asked["subject"])
    state.loaded[asked["subject"]] = found
    return {"seconds": time.perf_counter() - start, "observed": dict(found.observed)}


def _run(state: _State, asked: Mapping[str, Any]) -> dict[str, object]:
    """Write the outputs of one call."""
    import numpy as np

    np.savez(asked["output"], *state.loaded[asked["subject"]].outputs())
    return {}


def _warm(state: _State, asked: Mapping[str, Any]) -> dict[str, object]:
    found = state.loaded[asked["subject"]]
    samples = take_turn(found.call, found.clock or host_clock(found.wait), asked["seconds"], 1)
    return {"calls": len(samples)}


def _turn(state: _State, asked: Mapping[str, Any]) -> dict[str, object]:
    found = state.loaded[asked["subject"]]
    clock = found.clock or host_clock(found.wait)
    return {"samples_s": take_turn(found.call, clock, asked["seconds"], asked["calls"])}


def _memory(state: _State, asked: Mapping[str, Any]) -> dict[str, object]:
    """Bytes by which loading and calling a subject raises memory: the GPU's, or a forked child's resident memory."""
    subject = asked["subject"]
    if state.how.device == "cuda":
        return {"bytes": _device_memory(lambda: state.load(subject))}
    if sys.platform == "win32":
        return {"bytes": None}
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            before = _peak_bytes()
            found = state.load(subject)
            for _ in range(MEMORY_CALLS):
                found.call()
            os.write(writing, str(_peak_bytes() - before).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as stream:
        said = stream.read()
    os.waitpid(child, 0)
    return {"bytes": int(said) if said else None}


def _peak_bytes() -> int:
    """The most memory that was resident since this process was forked; macOS counts bytes, Linux KiB: getrusage(2)."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _device_memory(make: Callable[[], Loaded]) -> int:
    """Bytes of the GPU that are taken after loading and calling, beyond those before: of all that runs on it."""
    import torch

    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    before, _ = torch.cuda.mem_get_info()
    found = make()
    for _ in range(MEMORY_CALLS):
        found.call()
    found.wait()
    after, _ = torch.cuda.mem_get_info()
    return before - after


REQUESTS: dict[str, Callable[[_State, Mapping[str, Any]], dict[str, object]]] = {
    "start": _start, "load": _load, "run": _run, "warm": _warm, "turn": _turn, "memory": _memory,
}  # fmt: skip

if __name__ == "__main__":
    main()
