"""One batch size and precision: every form on every backend built, loaded, compared with its source, and measured."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor

from repconv.errors import BuildError
from repconv.export.artefacts.loaded import How
from repconv.export.measuring import compare_with_source
from repconv.export.proof.evidence import Evidence, Probe
from repconv.export.settings import BuildSettings
from repconv.export.subject import Subject
from repconv.progress import tell_progress

from .backends import Backend
from .forms import BenchForm, Given
from .loading.building import BuiltForm, Workshop
from .machine.gpu import GpuState, gpu_state, visible_gpu
from .machine.machine import Others, others, process_seconds, usage
from .player import PlayerLost, Process
from .results import Key, Row
from .settings import BenchSettings
from .turns.noise import series_warnings
from .turns.turns import Seat, play

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A subject before it is measured."""

    key: Key
    form: BenchForm
    backend: Backend
    artefact: BuiltForm


@dataclass(kw_only=True)
class _Known:
    """What became known of a subject before its turns."""

    memory_bytes: int | None = None
    load_s: float | None = None
    observed: dict[str, str] = field(default_factory=dict)
    evidence: Evidence | None = None
    failure: str | None = None


@dataclass(frozen=True)
class GroupResult:
    """Rows, who else used the processor meanwhile, and looks at the GPU."""

    rows: tuple[Row, ...]
    others: Others | None
    gpu: tuple[GpuState, ...]


def build_group(
    shop: Workshop, forms: Sequence[BenchForm], backends: Sequence[Backend], batch: int, precision: str, seed: int
) -> tuple[list[Entry], dict[str, Tensor]]:
    """Every form for every backend, and by source the input all of them get.

    A file that fused networks are compared with is left out where a backend cannot take it.

    Raises:
        SourceError: a backend cannot take a source.
        BackendError, BuildError: a backend is missing, or cannot build one.
    """
    inputs: dict[str, tuple[Path, Tensor]] = {}
    entries = []
    for form in forms:
        given = form.given
        if given.label not in inputs:
            inputs[given.label] = shop.input(given, batch, seed)
        path, x = inputs[given.label]
        for backend in backends:
            if form.network is None and backend.target is None and not form.same:
                continue
            key = Key(source=form.source, form=form.name, backend=backend.name, batch=batch, precision=precision)
            entries.append(
                Entry(
                    key=key, form=form, backend=backend, artefact=shop.build(form, backend, batch, precision, x, path)
                )
            )
    return entries, {label: x for label, (_, x) in inputs.items()}


def measure_group(
    entries: Sequence[Entry],
    inputs: Mapping[str, Tensor],
    settings: BenchSettings,
    folder: Path,
    say: Say,
) -> GroupResult:
    """Load everything, compare it with its source, and let it take turns.

    Args:
        entries: what `build_group` gives.
        inputs: by label of a source.
        settings: what is asked for.
        folder: for temporary files.
        say: told what is being done.

    Raises:
        BackendError: a runtime cannot be imported.
        SourceError: a source itself cannot be run.
    """
    with ExitStack() as stack:
        processes: dict[str, Process] = {}
        known = {entry.key: _Known() for entry in entries}
        for name, mine in _by_backend(entries).items():
            how = How(
                device=mine[0].backend.device(settings.device),
                threads=settings.threads,
                transfers=settings.transfers,
                cuda_graphs=settings.cuda_graphs,
                cuda_events=settings.cuda_events,
            )
            jobs = {entry.key.name: entry.artefact.job for entry in mine}
            processes[name] = stack.enter_context(Process(backend=name, how=how, jobs=jobs, cpus=settings.cpus))
            say(f"loading into {name}")
            _load(processes[name], mine, known, folder, inputs)
        ready = [entry for entry in entries if known[entry.key].failure is None]
        say(f"measuring {len(ready)} subjects in {settings.rounds} rounds")
        own_pids = [os.getpid(), *(process.pid for process in processes.values())]
        on_gpu = any(entry.backend.device(settings.device) == "cuda" for entry in ready)
        looks: list[GpuState] = []

        def between(part: float) -> None:
            look = gpu_state(visible_gpu(), own_pids) if on_gpu else None
            looks.extend([] if look is None else [look])
            tell_progress("rounds", round(part * settings.rounds), settings.rounds)

        before, began = usage(), time.perf_counter()
        own = sum(map(process_seconds, own_pids))
        places = [Seat(e.key.name, processes[e.backend.name], e.key.name) for e in ready]
        played = play(places, settings, between)
        own = sum(map(process_seconds, own_pids)) - own
        load = others(before, usage(), time.perf_counter() - began, own)
    rows = []
    for entry in entries:
        seen = known[entry.key]
        latency = played.reports.get(entry.key.name)
        rows.append(
            Row(
                key=entry.key,
                device=entry.backend.device(settings.device),
                latency=latency,
                artefact_bytes=entry.artefact.bytes,
                memory_bytes=seen.memory_bytes,
                load_s=seen.load_s,
                evidence=seen.evidence,
                observed={**entry.artefact.observed, **seen.observed},
                warnings=() if latency is None else tuple(series_warnings(latency)),
                failure=seen.failure or played.failures.get(entry.key.name),
            )
        )
    return GroupResult(tuple(rows), load, tuple(looks))


def _by_backend(entries: Sequence[Entry]) -> dict[str, list[Entry]]:
    found: dict[str, list[Entry]] = {}
    for entry in entries:
        found.setdefault(entry.backend.name, []).append(entry)
    return found


def _load(
    process: Process, entries: Sequence[Entry], known: Mapping[Key, _Known], folder: Path, inputs: Mapping[str, Tensor]
) -> None:
    """Start a backend; what its subjects take, and whether they give what they should."""
    try:
        process.start()
        # Before any is loaded: loading starts threads, and a process with threads cannot be forked safely.
        for entry in entries:
            known[entry.key].memory_bytes = process.memory(entry.key.name)
        for entry in entries:
            _load_one(process, entry, known[entry.key], folder, inputs[entry.form.given.label])
    except PlayerLost as lost:
        for entry in entries:
            known[entry.key].failure = str(lost)


def _load_one(process: Process, entry: Entry, known: _Known, folder: Path, x: Tensor) -> None:
    try:
        answer = process.load(entry.key.name)
        known.load_s, known.observed = float(answer["seconds"]), dict(answer["observed"])
        if entry.form.same:
            output = folder / "outputs.npz"
            process.run(entry.key.name, str(output))
            known.evidence = judge(entry.form.given, x, read_outputs(output), entry.key.precision, entry.backend.name)
    except BuildError as refused:
        known.failure = str(refused)


def read_outputs(path: Path) -> list[Tensor]:
    """The tensors a backend's process wrote, in order."""
    with np.load(path, allow_pickle=False) as found:
        return [torch.from_numpy(found[name]) for name in found.files]


def judge(given: Given, x: Tensor, got: Sequence[Tensor], precision: str, runtime: str) -> Evidence:
    """How far outputs `got` for `x` are from what the source gives, with the tolerances of `repconv export`.

    Raises:
        SourceError: the source itself cannot run `x`.
    """
    source = Subject(
        name=given.label,
        model=onnx.ModelProto(),
        reference=given.reference,
        network=given.network,
        size=given.size,
        report=None,
    )
    return compare_with_source(
        source, lambda _: got, [Probe(x, x, None)], BuildSettings(precision), runtime=runtime, origin="noise"
    )
