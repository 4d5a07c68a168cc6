"""Where a search is, and the file that holds it, from which a killed run goes on."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import torch

from ..folder import RunFolder
from ..resuming import Position, keep, kept
from ..session import Session
from ..strategies import State, state_from_dict
from ..strategies.training import Training, training_from_dict
from ..supernet.architecture import Architecture
from ..supernet.supernet import Gates

FORMAT = "repconv.search-checkpoint/1"


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a run is.

    train, measure: what the strategy asked for in this generation, None before it was asked; training: how.
    """

    state: State
    at: Position = field(default_factory=Position)
    train: tuple[Architecture, ...] | None = None
    measure: tuple[Architecture, ...] = ()
    training: Training = field(default_factory=Training)
    generator: torch.Generator = field(default_factory=torch.Generator)


def write_checkpoint(folder: RunFolder, session: Session, progress: Progress) -> None:
    """Keep where the run is, in place of what was kept before."""
    content = {
        "format": FORMAT,
        **session.state(),
        "initial": [list(session.initial.alpha), list(session.initial.beta)],
        "state": json.dumps(progress.state.to_dict()),
        "train": None if progress.train is None else [list(a.mask) for a in progress.train],
        "measure": [list(a.mask) for a in progress.measure],
        "training": json.dumps(progress.training.to_dict()),
        "generator": progress.generator.get_state(),
    }
    keep(folder, session, progress.at, content)


def restored(folder: RunFolder, session: Session) -> Progress:
    """Where the last checkpoint was, its numbers put into `session`; the start without one."""
    generator = torch.Generator().manual_seed(session.config.seed)
    found = kept(folder, session, FORMAT)
    if found is None:
        return Progress(state=State(gates=session.initial), generator=generator)
    at, content = found
    space = session.supernet.space
    session.put_state(content)
    session.initial = Gates(*map(tuple, content["initial"]))
    generator.set_state(content["generator"])
    asked = [
        None if masks is None else tuple(Architecture(space, tuple(mask)) for mask in masks)
        for masks in (content["train"], content["measure"])
    ]
    return Progress(
        state=state_from_dict(json.loads(content["state"]), space),
        at=at,
        train=asked[0],
        measure=asked[1] or (),
        training=training_from_dict(json.loads(content["training"])) if "training" in content else Training(),
        generator=generator,
    )
