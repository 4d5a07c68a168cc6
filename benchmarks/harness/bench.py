"""`bench`: every form of every source on every backend, compared with its source and measured in turns."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from repconv.errors import BuildError, SourceError
from repconv.files.held import temporary_folder

from ..environment import environment
from .backends import choose_backends
from .explain import explain
from .forms import BenchForm, Given, forms_of, open_given
from .group import GroupResult, build_group, measure_group
from .loading.building import Workshop
from .machine.gpu import clock_warnings
from .machine.machine import governor_warnings
from .results import BenchResult, Compared, Measured, Row, pairs
from .settings import FUSED, PLAIN, UNFUSED, BenchSettings
from .turns.noise import ratio_warning
from .turns.timing import ratio

Say = Callable[[str], None]


def bench(
    sources: Sequence[str],
    settings: BenchSettings,
    *,
    model: str | None = None,
    state_key: str | None = None,
    say: Say = lambda _: None,
) -> BenchResult:
    """Measure sources as `settings` asks.

    Batch sizes and precisions are measured one after the other; within one, all sources, forms and backends take turns.

    Args:
        sources: files and names, as the command line takes them.
        settings: what is asked for.
        model: for state dicts, their network's name.
        state_key: the key in a file under which the weights are.
        say: told what is being done.

    Raises:
        SourceError, CheckpointError, FusionError: bad input, or settings that do not fit it.
        BackendError: a backend is missing or cannot work here.
        BuildError: a backend cannot build a form, or none could be measured.
        OutputError: temporary files cannot be written.
    """
    began = time.perf_counter()
    if not sources:
        raise SourceError("no SOURCE to measure; name a file, or a network such as timm:resnet18")
    backends = choose_backends(settings.backends, settings.device, settings.precisions)
    _refuse_idle(settings, [backend.device(settings.device) for backend in backends])
    _check_cpus(settings)
    say("loading")
    given = [open_given(text, settings.image, model=model, state_key=state_key, seed=settings.seed) for text in sources]
    _check_labels(given)
    forms, notes = _forms(given, settings)
    say("fusing, and checking block by block")
    measured = [_measured(text, one) for text, one in zip(sources, given, strict=True)]
    found: list[GroupResult] = []
    with temporary_folder() as folder:
        shop = Workshop(folder)
        for batch in settings.batches:
            for precision in settings.precisions:
                say(f"building {len(forms) * len(backends)} subjects: batch {batch}, {precision}")
                entries, inputs = build_group(shop, forms, backends, batch, precision, settings.seed)
                found.append(measure_group(entries, inputs, settings, folder, say))
    rows = [row for group in found for row in group.rows]
    loads = [group.others for group in found if group.others is not None]
    worst = max(loads, key=lambda load: load.others, default=None)
    looks = tuple(look for group in found for look in group.gpu)
    warnings = [*(worst.warnings if worst else ()), *governor_warnings(settings.cpus or _cores())]
    if all(row.failure is not None for row in rows):
        raise BuildError("; ".join(dict.fromkeys(f"{row.key.backend}: {row.failure}" for row in rows)))
    return BenchResult(
        sources=tuple(measured),
        settings=settings,
        rows=tuple(rows),
        compared=tuple(_compared(rows, settings)),
        environment=environment(),
        others=worst,
        gpu=looks,
        warnings=(*warnings, *clock_warnings(looks)),
        notes=tuple(dict.fromkeys(notes)),
        seconds=time.perf_counter() - began,
    )


def _forms(given: Sequence[Given], settings: BenchSettings) -> tuple[list[BenchForm], list[str]]:
    """The forms of all sources, and notes."""
    notes = [f"{one.label}: {note}" for one in given for note in one.source.notes]
    opened: dict[str, Given] = {}

    def other(text: str) -> Given:
        if text not in opened:
            found = open_given(text, settings.image or given[0].size[1:], seed=settings.seed)
            taken = {UNFUSED, FUSED, PLAIN}
            opened[text] = replace(found, label=f"against {found.label}") if found.label in taken else found
        return opened[text]

    forms = []
    for one in given:
        found, said = forms_of(one, settings.against, other)
        forms += found
        notes += said
    if "int8" in settings.precisions:
        notes.append(
            "int8 is calibrated on noise: its times are those of any int8 file of the network, its outputs are not; "
            "for those, export it with images and measure that file"
        )
    return forms, notes


def _refuse_idle(settings: BenchSettings, devices: Sequence[str]) -> None:
    """Switches that would change nothing, or exclude one another."""
    switches = {
        "transfers": settings.transfers, "CUDA graphs": settings.cuda_graphs, "CUDA events": settings.cuda_events
    }  # fmt: skip
    for name, on in switches.items():
        if on and "cuda" not in devices:
            raise SourceError(f"{name} are for a GPU, and everything runs on the CPU; add --device cuda")
    in_onnxruntime = any(name.startswith("onnxruntime") for name in settings.backends)
    if settings.transfers and settings.cuda_graphs and in_onnxruntime:
        raise SourceError(
            "onnxruntime records CUDA graphs only of tensors that stay on the GPU; leave out transfers or CUDA graphs"
        )


def _check_labels(given: Sequence[Given]) -> None:
    labels = [one.label for one in given]
    twice = next((label for i, label in enumerate(labels) if label in labels[:i]), None)
    if twice is not None:
        raise SourceError(f"two sources are called {twice}; measure files of different names")


def _cores() -> list[int]:
    try:
        return sorted(os.sched_getaffinity(0))
    except AttributeError:  # not on this system
        return []


def _check_cpus(settings: BenchSettings) -> None:
    known = _cores()
    if settings.cpus and not known:
        raise SourceError("this system cannot pin processes to cores; leave out --pin")
    odd = [cpu for cpu in settings.cpus if cpu not in known]
    if odd:
        raise SourceError(f"--pin names core {odd[0]}; this process may use {', '.join(map(str, known))}")


def _measured(text: str, given: Given) -> Measured:
    report, inspection = explain(given)
    size = None if given.path is None else given.path.stat().st_size
    return Measured(
        label=given.label,
        name=text,
        size=given.size,
        bytes=size,
        sha256=given.source.sha256,
        report=report,
        inspection=inspection,
        notes=given.source.notes,
    )


def _compared(rows: Sequence[Row], settings: BenchSettings) -> list[Compared]:
    """Ratios of what was measured in the same rounds."""
    latencies = {row.key: row.latency for row in rows if row.latency is not None}
    baselines = list(dict.fromkeys(key.form for key in latencies if key.form not in (FUSED, UNFUSED)))
    found = []
    for over, under in pairs(list(latencies), baselines):
        value = ratio(latencies[over], latencies[under], sessions=settings.sessions, seed=settings.seed)
        where = f"{over.backend}, batch {over.batch}, {over.precision}"
        said = Compared(over=over, under=under, ratio=value, warning=None)
        found.append(replace(said, warning=ratio_warning(f"{said.name} ({where})", value)))
    return found
