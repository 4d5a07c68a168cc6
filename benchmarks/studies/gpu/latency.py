"""One image through a backend: the fused network beside its branches and beside the plain network of its shape."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from repconv import create_model, save
from repconv.errors import VerificationError
from repconv.files.held import temporary_folder

from ...harness.bench import bench
from ...harness.results import BenchResult
from .given import AMOUNTS, CHECKPOINT, SHIPPED
from .running import Rows


def latency(backend: str, device: str, *, recorded: bool = False) -> Rows:
    """Rows of a backend of `repconv bench`, a network and precision each; `recorded` replays calls as CUDA graphs.

    Raises:
        BackendError, BuildError: it is missing, or could measure nothing.
        VerificationError: a form does not give what its source gives.
    """
    amount = AMOUNTS[device]
    settings = replace(amount.turns, backends=(backend,), cuda_graphs=recorded)
    with temporary_folder() as folder:
        for network, precision in amount.latencies:
            found = bench([str(_file(network, folder))], replace(settings, precisions=(precision,)))
            yield _row(network, precision, found, recorded=recorded)
            if found.differing:
                raise VerificationError(f"{found.differing[0].key.name} is not what its source gives")


def _file(network: str, folder: Path) -> Path:
    """The file of a network: the one that ships, or one of random weights for 224 pixels."""
    if network == SHIPPED:
        return CHECKPOINT
    path = folder / f"{network}.pt"
    if not path.exists():
        torch.manual_seed(0)
        save(create_model(network).eval(), path, input_shape=(3, 224, 224))
    return path


def _row(network: str, precision: str, found: BenchResult, *, recorded: bool) -> Mapping[str, object]:
    """Medians by form, ratios with their intervals, and what the harness had to say."""
    return {
        "network": network,
        "backend": found.settings.backends[0],
        "recorded": recorded,
        "precision": precision,
        "median_ms": {row.key.form: row.latency.median_ms for row in found.rows if row.latency is not None},
        "ratios": {each.name: each.ratio.to_dict() for each in found.compared},
        "same": {row.key.form: row.same for row in found.rows if row.same is not None},
        "failures": {row.key.form: row.failure for row in found.failed},
        "observed": {row.key.form: dict(row.observed) for row in found.rows},
        "warnings": found.all_warnings,
        "seconds": found.seconds,
    }
