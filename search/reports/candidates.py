"""The architectures that a file of a search holds, with what retraining them needs, best first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from repconv.errors import SearchError

from ..config import config_from_dict
from ..folder import CONFIG, POPULATIONS, RESULT, RunFolder
from ..supernet.architecture import SCHEMA, Architecture, read_json
from ..supernet.records import POPULATION, SEARCH, require
from ..supernet.space import SearchSpace
from ..supernet.supernet import Gates
from .found import Found, read_found


def read_candidates(path: str | Path, top: int = 1) -> tuple[Found, ...]:
    """The `top` best of a file, by validation accuracy; equal ones in its order.

    path: an architecture (`best.arch.json`, which holds one), a run's `result.json` or `populations/NNNN.json`, whose
    network the run's `config.json` names, or the run's folder, for its result.

    Raises:
        SearchError: it cannot be read, is of another kind, or holds fewer; a folder's search is not finished.
    """
    file = Path(path) / RESULT if Path(path).is_dir() else Path(path)
    if Path(path).is_dir() and not file.exists():
        last = max((RunFolder.open(Path(path)).path / POPULATIONS).glob("*.json"), default=None)
        instead = "" if last is None else f", or name what it has until now: {last}"
        raise SearchError(f"{path} is under way: it has no {RESULT}; go on with it first (search resume){instead}")
    content = read_json(file)
    schema = content.get("schema") if isinstance(content, dict) else None
    if schema == SCHEMA:
        found = [read_found(file)]
    elif schema == SEARCH:
        found = _listed(require(content, SEARCH, str(file)), "architectures", file, file.parent)
    elif schema == POPULATION:
        found = _listed(require(content, POPULATION, str(file)), "members", file, file.parent.parent)
    else:
        raise SearchError(
            f"{file} is of schema {schema!r}; expected {SCHEMA} (best.arch.json), {SEARCH} ({RESULT}) or {POPULATION} "
            f"({POPULATIONS}/0001.json)"
        )
    if len(found) < top:
        raise SearchError(f"{file} holds {len(found)} architectures, and {top} were asked for")
    return tuple(sorted(found, key=lambda one: -one.accuracy)[:top])


def _listed(content: Any, key: str, file: Path, run: Path) -> list[Found]:  # noqa: ANN401  # as its schema says
    space = SearchSpace.of_records(content["space"])
    gates = Gates.of_record(content["gates"], space, str(file))
    if not (run / CONFIG).is_file():
        raise SearchError(f"{file} names no network: {run / CONFIG} does; keep it in its run's folder")
    config = config_from_dict(read_json(run / CONFIG), str(run / CONFIG))
    return [
        Found(
            architecture=Architecture(space, space.mask(one["active"])),
            network=config.network_settings,
            gates=gates,
            accuracy=float(one["accuracy"]),
            searched=config.provenance,
        )
        for one in content[key]
        if one["accuracy"] is not None
    ]
